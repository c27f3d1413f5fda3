import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import Tokenizer

Document = dict[str, Any]


@pytest.fixture
def document(trained: Tokenizer) -> Document:
    return json.loads(trained._backend.to_str())  # type: ignore[no-any-return]


OTHER_WORDPIECE = {
    "type": "WordPiece",
    "vocab": {"[UNK]": 0},
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 9,
}


def load(folder: Path, document: object) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.load(folder)


def set_in(*path: str, to: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_in("normalizer", to={"type": "NFC"}), "normalizer NFC"),
        (set_in("pre_tokenizer", to=None), "pre-tokenizer none"),
        (set_in("pre_tokenizer", to={"type": "Whitespace"}), "Whitespace"),
        (set_in("pre_tokenizer", "use_regex", to=False), "ByteLevel with its regex"),
        (set_in("pre_tokenizer", "add_prefix_space", to=True), "add_prefix_space"),
        (set_in("model", "dropout", to=0.5), "dropout"),
        (set_in("model", "ignore_merges", to=True), "ignore_merges"),
        (set_in("model", "merges", to=[["zz", "zzz"]]), "can load"),
        (set_in("model", "vocab", to={}), "empty vocabulary"),
        (set_in("model", "vocab", to={"a": 0, "b": 0}), "one id to two tokens"),
        (set_in("model", "vocab", to={"a": -1}), "not a whole number"),
        (set_in("model", "vocab", to={"a": 1 << 40}), "not a whole number"),
        (set_in("model", "vocab", to={"a": 0.5}), "not a whole number"),
        (set_in("model", to={"type": "BPE", "vocab": {"a": 0}, "merges": []}), "255 of the 256 bytes"),
        (set_in("model", to={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}), "Unigram"),
        (set_in("model", to={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "WordLevel"),
        (set_in("model", to=OTHER_WORDPIECE), "not BERT's"),
        (set_in("model", to=7), 'no "model"'),
        (set_in("added_tokens", to=[{"id": 3}]), "without content"),
        (set_in("added_tokens", to=7), "not a list"),
    ],
)  # fmt: skip
def test_other_kinds_and_nonsense_are_refused_by_name(
    document: Document, tmp_path: Path, change: Callable[[Document], None], said: str
) -> None:
    change(document)
    with pytest.raises(UserError, match=r"tokenizer\.json") as caught:
        load(tmp_path, document)
    assert said in caught.value.message


def test_wordpiece_with_another_prefix_is_refused(wordpiece: Tokenizer, tmp_path: Path) -> None:
    document = json.loads(wordpiece._backend.to_str())
    document["model"]["continuing_subword_prefix"] = "@@"
    with pytest.raises(UserError, match="without ##"):
        load(tmp_path, document)


def test_truncation_and_padding_in_the_file_are_not_obeyed(trained: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(trained._backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("the import statement " * 9) == trained.encode("the import statement " * 9)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vocab.bpe", "#version\na b c\n", "line 2"),
        ("vocab.bpe", "#version\nzzzz qqqq\n", "line 2"),
        ("vocab.bpe", b"\xff\xfe", "not a UTF-8 text"),
        ("encoder.json", "[1]", "not an object"),
        ("encoder.json", "{", "not valid JSON"),
        ("encoder.json", '{"a": "b"}', "not a whole number"),
        ("added_tokens.json", '{"<new>": 50257}', "only from tokenizer.json"),
        ("tokenizer_config.json", "[]", "not an object of settings"),
    ],
)
def test_broken_pairs_of_files_are_refused_by_name(
    gpt2_folder: Path, tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    for file in gpt2_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=name) as caught:
        Tokenizer.load(tmp_path)
    assert said in caught.value.message


def test_a_pair_without_its_merges_is_named(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_bytes((gpt2_folder / "encoder.json").read_bytes())
    assert Tokenizer.find(tmp_path) is None
    with pytest.raises(UserError, match=r"vocab\.bpe cannot be read"):
        Tokenizer.load(tmp_path / "encoder.json")


def test_windows_line_ends_and_added_tokens_that_are_known(gpt2: Tokenizer, gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes((gpt2_folder / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((gpt2_folder / "vocab.bpe").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "added_tokens.json").write_text('{"<|endoftext|>": 50256}')
    assert Tokenizer.load(tmp_path).hash == gpt2.hash


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document, not more than a few in each long list."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in list(value)[:12]:
            found += places(value[key], (*path, key))
    if isinstance(value, list):
        for index in range(min(2, len(value))):
            found += places(value[index], (*path, index))
    return found


@settings(deadline=None, max_examples=70)
@given(st.data())
@pytest.mark.parametrize("name", ["trained", "characters", "wordpiece"])
def test_mutated_files_load_or_are_refused(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    document = json.loads(request.getfixturevalue(name)._backend.to_str())
    for _ in range(data.draw(st.integers(1, 2))):
        parent: Any = document
        path = data.draw(st.sampled_from(places(document)))
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and data.draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = data.draw(VALUES)
    folder = tmp_path_factory.mktemp("mutated")
    try:
        found = load(folder, document)
        found.encode("hello 我")
        found.describe()
        found.save(folder / "out")
    except UserError:
        return


@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "vocab.json", "merges.txt"])
def test_random_bytes_load_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, trained: Tokenizer, name: str, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("random")
    if name == "tokenizer_config.json":
        trained.save(folder)
    if name in ("vocab.json", "merges.txt"):
        (folder / "vocab.json").write_text(json.dumps(trained._vocabulary), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / name).write_bytes(content)
    try:
        Tokenizer.load(folder).describe()
    except UserError:
        return
