"""Documents as passages, and the index beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpt2kit.data.passages import INDEX, LONGEST, Library, Passage, open_library
from gpt2kit.errors import UserError


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "pump.md").write_text("# Pump\n\nTurn it off.\n\nChange the filter every year.\n", encoding="utf-8")
    (folder / "deep" / "手册.txt").write_text("第一章\n\n每年更换滤芯。\n", encoding="utf-8")
    rows = [{"text": "The warranty lasts two years."}, {"text": "保修期为两年。"}]
    (folder / "faq.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return folder


def places(library: Library, question: str) -> list[str]:
    return [one.place for one in library.search(question, 2)]


def test_a_question_finds_file_and_line_in_english_and_chinese(documents: Path) -> None:
    library = open_library(documents)
    assert places(library, "When is the filter changed?")[0] == "pump.md:1"
    assert places(library, "滤芯多久更换一次？")[0] == "deep/手册.txt:1"
    assert places(library, "how long is the warranty") == ["faq.jsonl:1", "pump.md:1"]
    assert places(library, "保修期")[0] == "faq.jsonl:2"
    library.close()


def test_the_index_is_kept_and_made_anew_only_when_a_document_changes(documents: Path) -> None:
    told: list[str] = []
    open_library(documents, told.append).close()
    assert [line for line in told if "indexed" in line] == [f"{documents}: 3 files read, 4 passages indexed"]
    kept = (documents / INDEX).stat().st_mtime_ns
    told.clear()
    library = open_library(documents, told.append)
    assert told == []
    assert (documents / INDEX).stat().st_mtime_ns == kept
    assert places(library, "warranty") == ["faq.jsonl:1"]
    library.close()
    for change in ("edited", "added", "removed"):
        if change == "edited":
            (documents / "pump.md").write_text("Steam.\n", encoding="utf-8")
        elif change == "added":
            (documents / "new.txt").write_text("Steam and whales.\n", encoding="utf-8")
        else:
            (documents / "new.txt").unlink()
        told.clear()
        library = open_library(documents, told.append)
        assert len(told) == 1, change
        assert ("new.txt:1" in places(library, "whales")) == (change == "added")
        library.close()
    assert {path.name for path in documents.iterdir()} == {"pump.md", "deep", "faq.jsonl", INDEX}


def test_a_damaged_index_is_made_anew(documents: Path) -> None:
    open_library(documents).close()
    (documents / INDEX).write_bytes((documents / INDEX).read_bytes()[:5000])
    assert places(open_library(documents), "warranty") == ["faq.jsonl:1"]
    (documents / INDEX).write_bytes(b"something else")
    assert places(open_library(documents), "warranty") == ["faq.jsonl:1"]


def test_a_place_that_cannot_be_written_is_searched_in_memory(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr("tempfile.mkstemp", full)
    told: list[str] = []
    assert places(open_library(documents, told.append), "warranty") == ["faq.jsonl:1"]
    assert any("cannot be kept" in line for line in told)
    assert not (documents / INDEX).exists()


def test_one_file_is_a_library_too(documents: Path) -> None:
    library = open_library(documents / "pump.md")
    assert places(library, "filter") == ["pump.md:1"]
    library.close()
    assert (documents / f".pump.md{INDEX}").is_file()


def test_long_texts_are_cut_at_paragraphs_sentences_or_words_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * 50 for n in range(20)]
    chinese = "这是一个句子。" * 300
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs) + "\n\n" + chinese + "x" * 1500, encoding="utf-8")
    library = open_library(tmp_path / "a.txt")
    found = library.passages
    assert max(len(one.text) for one in found) <= LONGEST
    whole = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert "".join("".join(one.text.split()) for one in found) == "".join(whole.split())
    lines = whole.split("\n")
    assert all(lines[one.line - 1].startswith(one.text.split("\n")[0][:20]) for one in found[:10])
    ends = [one.text[-1] for one in found if "句子" in one.text and "x" not in one.text]
    assert set(ends) == {"。"}
    library.close()


def test_nothing_to_search_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(UserError, match="no text to search"):
        open_library(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_library(tmp_path / "absent")
    assert os.listdir(tmp_path) == ["empty.txt"]


def test_line_breaks_inside_a_json_string_are_no_lines_of_the_file(tmp_path: Path) -> None:
    rows = [
        {"text": "\n\n".join(f"{name} paragraph {n}. " + "word " * 40 for n in range(6))} for name in ("first", "other")
    ]
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    library = open_library(path)
    assert places(library, "other paragraph 5")[0] == "notes.jsonl:2"
    library.close()


def test_documents_do_not_come_from_standard_input() -> None:
    with pytest.raises(UserError, match="standard input"):
        open_library("-")


def test_a_line_inside_a_passage_is_one_of_the_file_where_the_file_has_the_same_lines() -> None:
    text = "one\ntwo\nthree"
    assert Passage(text, "notes.md", 4).line_of(text.index("three")) == 6
    assert Passage(text, "table.csv.gz", 4).line_of(text.index("two")) == 5
    assert Passage(text, "rows.jsonl", 4).line_of(text.index("three")) == 4
