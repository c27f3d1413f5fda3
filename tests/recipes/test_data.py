"""From text to a tokenizer and a packed folder, as the recipes need it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2kit.errors import UserError
from gpt2kit.recipes import data
from gpt2kit.text.tokenizer import Tokenizer

TEXT = "one fish, two fish, red fish, blue fish.\n\n" * 200


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "my.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("characters", "size"), [(0, 1024), (1_500_000, 1024), (1_500_001, 2048), (400_000_000, 16384), (10**12, 32000)]
)
def test_a_larger_corpus_gets_a_larger_vocabulary(characters: int, size: int) -> None:
    assert data.vocabulary_for(characters) == size


def test_a_vocabulary_is_learned_and_said(text: str) -> None:
    notes: list[str] = []
    tokenizer = data.pick_tokenizer([text], None, "char", None, ["<|mask|>"], notes.append)
    assert tokenizer.decode(tokenizer.encode("red fish")) == "red fish"
    assert "<|mask|>" in tokenizer.special_tokens
    assert notes[0].startswith("learned a char vocabulary of ")


def test_the_tokenizer_of_a_folder_wins_over_a_kind_of_the_same_name(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = data.pick_tokenizer([text], None, "bpe", 270, (), lambda note: None)
    assert own.vocab_size == 270
    own.save(tmp_path / "char")
    monkeypatch.chdir(tmp_path)
    assert data.pick_tokenizer([text], None, "char", None, (), lambda note: None).hash == own.hash


def test_a_ready_tokenizer_has_its_size(text: str, tmp_path: Path) -> None:
    data.pick_tokenizer([text], None, "char", None, (), lambda note: None).save(tmp_path / "vocab")
    with pytest.raises(UserError, match="its size is fixed"):
        data.pick_tokenizer([text], None, str(tmp_path / "vocab"), 500, (), lambda note: None)


def test_standard_input_cannot_be_read_twice() -> None:
    with pytest.raises(UserError, match="read once only"):
        data.pick_tokenizer(["-"], None, None, None, (), lambda note: None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_cannot_be_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe can be read once only"):
        data.pick_tokenizer([str(tmp_path / "pipe")], None, None, None, (), lambda note: None)


def test_a_packed_folder_is_used_as_it_is(text: str, tmp_path: Path) -> None:
    def make() -> Tokenizer:
        return data.pick_tokenizer([text], None, "char", None, (), lambda note: None)

    first, report, tokenizer = data.prepare([text], tmp_path / "packed", None, make, None, None, None)
    assert first == tmp_path / "packed"
    assert data.is_packed(first)
    assert not data.is_packed(text)
    again, same, loaded = data.prepare([str(first)], tmp_path / "b", tokenizer, make, None, None, None)
    assert (again, same.data_hash, loaded.hash) == (first, report.data_hash, tokenizer.hash)
    assert not (tmp_path / "b").exists()
    other = data.pick_tokenizer([text], None, "bpe", 260, (), lambda note: None)
    with pytest.raises(UserError, match="was packed with tokenizer"):
        data.prepare([str(first)], tmp_path / "b", other, make, None, None, None)


def test_a_packed_folder_is_trained_on_alone(text: str, tmp_path: Path) -> None:
    tokenizer = data.pick_tokenizer([text], None, "char", None, (), lambda note: None)
    folder = str(tmp_path / "packed")
    data.prepare([text], Path(folder), tokenizer, lambda: tokenizer, None, None, None)
    for paths in ([folder, folder], [text, folder]):
        with pytest.raises(UserError, match="packed folder is trained on alone"):
            data.prepare(paths, tmp_path / "other", tokenizer, lambda: tokenizer, None, None, None)


def test_a_report_is_one_line(text: str, tmp_path: Path) -> None:
    tokenizer = data.learn([text], None, "char", None, (), "unicode")
    _, report, _ = data.prepare([text, text], tmp_path / "p", tokenizer, lambda: tokenizer, None, None, None)
    line = data.describe(report)
    assert "training tokens" in line
    assert "tokens per character" in line
    assert "\n" not in line


def test_learning_reads_all_of_the_text(text: str) -> None:
    tokenizer = data.learn([text], None, "char", None, ["<|a|>"], "unicode")
    assert tokenizer.vocab_size == len(set(TEXT)) + len({"<unk>", "<|endoftext|>", "<|a|>"})
