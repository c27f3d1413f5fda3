"""More tokens for a vocabulary: old ids and old cuts stay, the new tokens agree with the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from gpt2kit.errors import UserError
from gpt2kit.text import training
from gpt2kit.text.bytelevel import ByteLevelEncoder
from gpt2kit.text.extend import Extension, extend
from gpt2kit.text.tokenizer import Tokenizer, measure

STRANGE = ("", " ", "从前從前從", "a从 b前\n\n山", "🤗🤗 it's 2024　　山里", "<|endoftext|>山", "aaaaa", "中\u200b中")

POEM = ("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "红豆生南国，春来发几枝。愿君多采撷，此物最相思。")


@pytest.fixture(scope="module")
def corpus(chinese: tuple[str, ...], english: str) -> list[str]:
    return [*chinese * 5, english[200_000:230_000]]


@pytest.fixture(scope="module")
def made(gpt2: Tokenizer, corpus: list[str]) -> Extension:
    return extend(gpt2, corpus, 150)


def json_of(made: Extension) -> str:
    return str(made.tokenizer._backend.to_str())


def test_old_ids_and_special_tokens_stay_and_new_ones_follow(gpt2: Tokenizer, made: Extension) -> None:
    new = made.tokenizer
    assert made.first == gpt2.vocab_size == 50257
    assert new.vocab_size == 50257 + 150 == made.first + len(made.parts)
    assert (new.special_tokens, new.eot_id) == (gpt2.special_tokens, 50256)
    assert [new.token_bytes(n) for n in range(50257)] == [gpt2.token_bytes(n) for n in range(50257)]
    for number, ids in enumerate(made.parts):
        assert len(ids) >= 2
        assert new.token_bytes(made.first + number) == gpt2.decode_bytes(ids)


def test_a_new_token_is_what_the_old_vocabulary_cut_into_its_parts(gpt2: Tokenizer, made: Extension) -> None:
    for number, ids in enumerate(made.parts):
        data = made.tokenizer.token_bytes(made.first + number)
        try:
            text = data.decode()
        except UnicodeDecodeError:  # a part of a character
            continue
        assert tuple(gpt2.encode(text)) == ids
        assert made.tokenizer.encode(text) == [made.first + number]


def test_the_old_cut_is_only_joined_never_changed(gpt2: Tokenizer, made: Extension, corpus: list[str]) -> None:
    for text in [*corpus, *STRANGE]:
        apart: list[int] = []
        for number in made.tokenizer.encode(text):
            apart += made.parts[number - made.first] if number >= made.first else [number]
        assert apart == gpt2.encode(text)


def test_the_saved_file_gives_the_library_the_same_ids(made: Extension, corpus: list[str], tmp_path: Path) -> None:
    made.tokenizer.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    assert isinstance(made.tokenizer._encoder, ByteLevelEncoder)  # the fast path, and not the library itself
    for text in [*corpus, *STRANGE]:
        assert made.tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    again = Tokenizer.load(tmp_path)
    assert again.hash == made.tokenizer.hash
    assert again.special_tokens == made.tokenizer.special_tokens
    assert library.token_to_id("<|endoftext|>") == 50256
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_the_compiled_path_gives_the_same_ids(made: Extension, corpus: list[str]) -> None:
    encoder = made.tokenizer._encoder
    assert isinstance(encoder, ByteLevelEncoder)
    fast = [ids.tolist() for ids in encoder._encode_fast([*corpus, *STRANGE], 1)]
    assert fast == [made.tokenizer.encode(text) for text in [*corpus, *STRANGE]]


def test_old_merges_keep_their_order_in_front(gpt2: Tokenizer, made: Extension) -> None:
    old = json.loads(gpt2._backend.to_str())["model"]["merges"]
    new = json.loads(made.tokenizer._backend.to_str())["model"]["merges"]
    assert new[: len(old)] == old
    assert len(new) == len(old) + 150


def test_chinese_costs_less_and_english_no_more(gpt2: Tokenizer, made: Extension, chinese: tuple[str, ...]) -> None:
    before, after = measure(gpt2, chinese), measure(made.tokenizer, chinese)
    assert before.tokens_per_character > 1.5
    assert after.tokens_per_character < 0.6 * before.tokens_per_character
    english = ["The old wolf and the old sheep went to the market, as they did every year.", "def f(x): return x + 1"]
    assert measure(made.tokenizer, english).tokens <= measure(gpt2, english).tokens


def test_an_end_of_text_that_is_only_added_keeps_its_id(trained: Tokenizer) -> None:
    """As a vocabulary that was trained here has it: outside the model's own list."""
    made = extend(trained, ["白日依山尽，黄河入海流。" * 3], 5)
    assert made.tokenizer.eot_id == 1999
    assert made.first == 2000
    assert json.loads(made.tokenizer._backend.to_str())["added_tokens"][0]["id"] == 1999


def test_extending_twice_goes_on_from_the_first_time(trained: Tokenizer, chinese: tuple[str, ...]) -> None:
    once = extend(trained, ["白日依山尽，黄河入海流。" * 3], 5)
    twice = extend(once.tokenizer, ["abracadabra abracadabra abracadabra xyzzyxyzzy xyzzyxyzzy"] * 3, 10)
    assert twice.first == once.tokenizer.vocab_size
    assert len(twice.tokenizer.encode("abracadabra")) < len(once.tokenizer.encode("abracadabra"))
    for text in (*chinese, "abracadabra xyzzyxyzzy", "黄河入海流"):
        assert twice.tokenizer.decode(twice.tokenizer.encode(text)) == text


def test_a_token_that_no_merge_reaches_keeps_its_id() -> None:
    """Hand-edited: ab is merged first, so that abc is never made of a and bc."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate([*letters, "ab", "bc", "abc"])}
    backend = Backend(models.BPE(vocabulary, [("a", "b"), ("b", "c"), ("a", "bc")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made = extend(Tokenizer(backend), ["abc abcabc abcabc xyxyxy"] * 3, 20)
    assert made.first == 259
    assert made.tokenizer.token_bytes(258) == b"abc"
    for text in ("abc", "abcabcabc abc"):
        assert made.tokenizer.decode(made.tokenizer.encode(text)) == text


def test_large_corpora_go_through_the_counting_table(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extend(trained, POEM * 5, 60)
    monkeypatch.setattr(training, "DIRECT_BYTES", 0)
    counted = extend(trained, POEM * 5, 60)
    before, after = measure(whole.tokenizer, POEM), measure(counted.tokenizer, POEM)
    assert after.tokens < 1.2 * before.tokens  # pieces of four characters at most, so other tokens, hardly worse ones


def test_the_same_text_gives_the_same_tokens(trained: Tokenizer) -> None:
    one, other = extend(trained, POEM * 3, 50), extend(trained, iter(POEM * 3), 50)
    assert one.parts == other.parts
    assert json_of(one) == json_of(other)
    assert one.tokenizer.hash == other.tokenizer.hash != trained.hash


def test_tokens_that_are_added_whole_are_never_parts(trained: Tokenizer) -> None:
    from tokenizers import AddedToken

    backend = type(trained._backend).from_str(trained._backend.to_str())
    backend.add_tokens([AddedToken("山里", normalized=False)])
    held = Tokenizer(backend, trained._config)
    made = extend(held, ["大山里边，大山里边，大山里边。"] * 5, 30)
    number = held.vocab_size - 1
    assert all(number not in ids for ids in made.parts)
    assert made.tokenizer.encode("大山里边").count(number) == 1
    assert made.tokenizer.decode(made.tokenizer.encode("大山里边，大")) == "大山里边，大"


@pytest.mark.parametrize(
    ("texts", "add", "said"),
    [([], 5, "no text"), (["", ""], 5, "no text"), (["qzjx"], 5, "no new token"), (["山山山山"], 0, "must be from 1")],
)
def test_what_cannot_give_tokens_is_refused(trained: Tokenizer, texts: list[str], add: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        extend(trained, texts, add)


def test_other_kinds_are_refused_by_name(characters: Tokenizer, wordpiece: Tokenizer) -> None:
    for tokenizer in (characters, wordpiece):
        with pytest.raises(UserError, match=f"{tokenizer.kind} vocabulary cannot be extended"):
            extend(tokenizer, ["山山山山"], 5)


def test_a_small_text_gives_fewer(trained: Tokenizer) -> None:
    made = extend(trained, ["绝句绝句"], 1000)
    assert 1 <= len(made.parts) < 10


@pytest.mark.slow
def test_tang_poems_cost_half(gpt2: Tokenizer, data: Callable[[str], list[str]]) -> None:
    poems = data("text/tang-poems.jsonl.xz")[:1200]
    made = extend(gpt2, poems[:1000], 1000)
    before, after = (measure(t, poems[1000:]).tokens_per_character for t in (gpt2, made.tokenizer))
    assert before > 2.0
    assert after < 0.6 * before
