"""The forms that text comes in: files of several kinds and encodings, standard input, packed folders, vocabularies."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2kit import commit
from gpt2kit.text.tokenizer import Tokenizer

Run = Callable[..., Any]
POEM = "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。\n春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。\n\n"


@pytest.fixture
def train(run: Run, tiny: list[str]) -> Run:
    """A run of two steps into runs/a."""

    def call(*arguments: object) -> Any:
        flags = [*tiny, "--steps", 2, "--evaluate-every", 2]
        if "--tokenizer" in arguments:
            at = flags.index("--tokenizer")
            del flags[at : at + 2]
        return run("train", *arguments, "--out", "runs/a", *flags)

    return call


def test_a_vocabulary_then_a_packed_folder_then_a_model(run: Run, train: Run, english: str) -> None:
    Path("my.txt").write_text(english, encoding="utf-8")
    learned = run("tokenizer", "train", "my.txt", "--out", "vocab", "--vocab-size", 300)
    assert (learned.code, learned.err) == (0, "")
    assert learned.out.startswith("vocab: bpe, 300 tokens, ")
    packed = run("pack", "my.txt", "--out", "packed", "--tokenizer", "vocab", "--validation-fraction", 0.1)
    assert packed.code == 0
    assert "training tokens" in packed.out
    assert "for validation" in packed.out
    trained = train("packed", "--tokenizer", "vocab")
    assert trained.code == 0, trained.err
    assert "vocabulary 300" in trained.out
    assert not (Path("runs/a") / "data").exists()  # trains from the folder itself
    cut = run("tokenizer", "info", "runs/a", "How is this cut? 这句话呢？", "--json")
    found = json.loads(cut.out)
    assert "".join(piece for _, piece in found["pieces"]).startswith("How is this cut?")
    assert found["tokens_per_character"] > found["tokens_per_byte"] > 0


def test_a_vocabulary_is_committed_whole_and_never_over_a_model(
    run: Run, trained: Any, english: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my.txt").write_text(english, encoding="utf-8")
    words = ("tokenizer", "train", "my.txt", "--kind", "char", "--out")
    assert run(*words, "vocab").code == 0
    manifest = commit.verify(Path("vocab"))
    assert manifest is not None
    assert manifest["kind"] == "tokenizer"
    assert manifest["tokenizer"]["hash"] == Tokenizer.load("vocab").hash
    assert manifest["data"] == {"sources": ["my.txt"]}

    def full(self: Tokenizer, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Tokenizer, "save", full)
        failed = run(*words, "vocab")
    assert failed.code == 2
    assert "no space left on the disk" in failed.err
    assert commit.verify(Path("vocab")) == manifest
    assert run(*words, "vocab").code == 0  # its own kind is replaced
    others = shutil.ignore_patterns("*.png", "*.jsonl", "data", "checkpoints", "run.json")
    shutil.copytree(trained.folder, "model", ignore=others)
    refused = run(*words, "model")
    assert refused.code == 2
    assert "model is a model folder, a tokenizer folder would replace it" in refused.err
    assert commit.verify(Path("model")) is not None


def test_a_packed_folder_of_another_vocabulary_is_refused_by_name(run: Run, train: Run, trained: Any) -> None:
    Path("my.txt").write_text("other text " * 400, encoding="utf-8")
    assert run("pack", "my.txt", "--out", "packed", "--tokenizer", "char").code == 0
    result = train("packed", "--from", trained.folder)
    assert result.code == 2  # also for the shape flags that --from does not take
    result = run("train", "packed", "--from", trained.folder, "--out", "b", "--steps", 2)
    assert result.code == 2
    assert "was packed with tokenizer" in result.err
    assert "run gpt2kit pack with --tokenizer MODEL" in result.err


def test_standard_input_needs_a_ready_tokenizer(
    train: Run, trained: Any, monkeypatch: pytest.MonkeyPatch, english: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(english[:9000].encode())))
    result = train("-")
    assert result.code == 2
    assert "standard input can be read once only" in result.err
    assert "give --tokenizer FOLDER" in result.err
    result = train("-", "--tokenizer", trained.folder)
    assert result.code == 0, result.err
    assert "training tokens" in result.out


def test_a_field_of_jsonl_is_read_and_a_wrong_one_is_named(train: Run) -> None:
    rows = [json.dumps({"title": f"t{i}", "body": POEM + str(i)}, ensure_ascii=False) for i in range(40)]
    with gzip.open("rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(rows))
    wrong = train("rows.jsonl.gz", "--field", "boddy")
    assert wrong.code == 2
    for part in ("rows.jsonl.gz", "boddy", "body"):
        assert part in wrong.err
    right = train("rows.jsonl.gz", "--field", "body")
    assert right.code == 0, right.err


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_chinese_text_trains_and_writes_in_either_encoding(train: Run, run: Run, encoding: str) -> None:
    Path("诗.txt").write_bytes((POEM * 30).encode(encoding))
    result = train("诗.txt")
    assert result.code == 0, result.err
    assert ("gb18030" in result.out.lower()) == (encoding == "gb18030")
    written = run("generate", "runs/a", "床前明月", "--max-tokens", 8, "--seed", 1)
    assert written.out.startswith("床前明月")
    assert len(written.out.strip()) > 6
    figures = json.loads(run("evaluate", "runs/a", "诗.txt", "--json").out)
    assert figures["bits_per_character"] > 2 * figures["bits_per_byte"]


def test_validation_files_are_the_validation_split(train: Run, english: str) -> None:
    Path("my.txt").write_text(english[:9000], encoding="utf-8")
    Path("held.txt").write_text(english[9000:12000], encoding="utf-8")
    result = train("my.txt", "--validation", "held.txt")
    assert result.code == 0, result.err
    held = json.loads((Path("runs/a/data") / "pack.json").read_text())["splits"]["val"]
    assert held["characters"] == 3000
    twice = train("my.txt", "--validation", "held.txt", "--validation", "my.txt")
    assert twice.code == 2
    assert "--validation is given twice" in twice.err


def test_too_little_text_says_how_much_there_is_and_what_fits(train: Run) -> None:
    Path("my.txt").write_text("just this", encoding="utf-8")
    result = train("my.txt")
    assert result.code == 2
    assert "error: 10 tokens do not fill one window of 16 + 1" in result.err
    assert "--context 5 or smaller" in result.err


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("missing.txt", None, ("missing.txt does not exist",)),
        ("empty.txt", b"", ("empty",)),
        ("photo.jpg", b"\xff\xd8\xff\xe0", ("photo.jpg",)),
    ],
)
def test_a_file_that_is_no_text_is_named(train: Run, name: str, content: bytes | None, parts: tuple[str, ...]) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    result = train(name)
    assert result.code == 2
    assert result.err.startswith("error: ")
    for part in parts:
        assert part in result.err


def test_a_wrong_vocabulary_is_refused_with_the_right_words(train: Run, run: Run, trained: Any, english: str) -> None:
    Path("my.txt").write_text(english[:9000], encoding="utf-8")
    result = train("my.txt", "--tokenizer", "nowhere")
    assert result.code == 2
    assert "nowhere" in result.err
    result = train("my.txt", "--tokenizer", trained.folder, "--vocab-size", 500)
    assert "its size is fixed" in result.err
    result = run("tokenizer", "train", "my.txt", "--out", "v", "--kind", "bpee")
    assert result.code == 2
    assert "did you mean 'bpe'" in result.err
