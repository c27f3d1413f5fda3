"""Documents out of files of every kind: pieces, separators, fields, folders, errors that name their place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import random
import sys
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.data import rows
from gpt2kit.data.sources import PIECE, PIECE_MAX, Document, SourceReport, cut, read_documents
from gpt2kit.errors import UserError

SEPARATOR = "<|endoftext|>"


def read(*paths: str | Path, field: str | None = None) -> tuple[list[Document], SourceReport]:
    report = SourceReport()
    return list(read_documents(list(paths), field, report)), report


def texts(*paths: str | Path, field: str | None = None) -> list[str]:
    return [document.text for document in read(*paths, field=field)[0]]


@pytest.fixture
def write(tmp_path: Path):
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def refused(path: str | Path, field: str | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        read(path, field=field)
    return caught.value


# plain text


def test_a_text_file_is_one_document(write) -> None:
    documents, report = read(write("a.txt", "one\r\ntwo\n"))
    assert [(d.text, d.line, d.continues) for d in documents] == [("one\ntwo\n", 1, False)]
    assert documents[0].source.endswith("a.txt")
    assert (report.files, report.documents, report.characters, report.bytes) == (1, 1, 8, 8)


@pytest.mark.parametrize("name", ["a.md", "LICENSE", "a.TXT"])
def test_markdown_and_files_without_suffix_are_text(write, name: str) -> None:
    assert texts(write(name, "x")) == ["x"]


def test_a_named_file_of_unknown_suffix_is_read_as_text_and_said(write) -> None:
    documents, report = read(write("a.log", "x"))
    assert documents[0].text == "x"
    assert "read as plain text" in report.notes[0]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 13, 14, 15, 1000])
def test_separator_lines_split_documents_at_any_chunk_border(chunk: int) -> None:
    from gpt2kit.data.sources import _separated

    text = "S\na\nS\nS\nb S\nS \n\nS\nc\nS".replace("S", SEPARATOR)
    stream = list(_separated(text[i : i + chunk] for i in range(0, len(text), chunk)))
    joined = "".join("|" if part is None else part for part in stream)
    assert joined == f"|a\n||b {SEPARATOR}\n{SEPARATOR} \n\n|c\n|"


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([SEPARATOR, "\n", "a", "<|endof", " "]), max_size=30), st.integers(1, 30))
def test_separators_match_a_plain_line_by_line_reading(parts: list[str], chunk: int) -> None:
    from gpt2kit.data.sources import _separated

    text = "".join(parts)
    plain = [None if line.rstrip("\n") == SEPARATOR else line for line in io.StringIO(text)]
    expected = "".join("|" if line is None else line for line in plain)
    got = "".join("|" if p is None else p for p in _separated(text[i : i + chunk] for i in range(0, len(text), chunk)))
    assert got == expected


def test_separated_documents_carry_their_lines(write) -> None:
    documents, report = read(write("a.txt", f"a\nb\n{SEPARATOR}\n \n{SEPARATOR}\nc\n"))
    assert [(d.text, d.line) for d in documents] == [("a\nb\n", 1), ("c\n", 6)]
    assert (report.documents, report.empty_documents) == (2, 1)


def story(seed: int, length: int) -> str:
    pick = random.Random(seed)
    words = ["word ", "other ", "\n", "\n\n", "\n \t\n", "汉字", "x" * 50]
    weights = [60, 60, 4, 1, 1, 20, 5] if seed % 2 else [60, 60, 0.05, 0.01, 0.01, 20, 5]
    return "".join(pick.choices(words, weights, k=length))


def slow_cut(text: str) -> list[str]:
    """The rule in plain words: blank line after PIECE, else line end, else PIECE_MAX; then what is left."""
    pieces = []
    while text:
        window = text[:PIECE_MAX]
        ends = [i + 1 for i, c in enumerate(window) if c == "\n" and i + 1 >= PIECE]
        blank = [e for e in ends if window[PIECE - 2 : e - 1].rstrip(" \t").endswith("\n")]
        if blank:
            end = blank[0]
        elif len(text) < PIECE_MAX:
            end = len(text)
        else:
            end = ends[0] if ends else PIECE_MAX
        pieces.append(text[:end])
        text = text[end:]
    return pieces


@pytest.mark.parametrize("seed", range(8))
def test_pieces_follow_the_rule_whatever_the_chunks(seed: int) -> None:
    text = story(seed, 8000)
    expected = slow_cut(text)
    assert "".join(expected) == text
    for size in (1000, 4999, 10**9):
        assert list(cut(text[i : i + size] for i in range(0, len(text), size))) == expected
    assert all(PIECE <= len(piece) <= PIECE_MAX for piece in expected[:-1])


@pytest.mark.parametrize("seed", range(4))
def test_appending_changes_the_last_piece_only(seed: int) -> None:
    text = story(seed, 5000)
    full = list(cut([text]))
    for end in random.Random(seed).sample(range(1, len(text)), 60):
        before = list(cut([text[:end]]))
        assert before[:-1] == full[: len(before) - 1]


def test_a_blank_line_that_ends_at_the_minimum_ends_the_piece() -> None:
    for first in (PIECE - 1, PIECE, PIECE + 1):
        text = "x" * (first - 2) + "\n\n" + "y" * 1000 + "\n\nz"
        assert next(len(piece) for piece in cut([text])) == (first if first >= PIECE else first + 1002)


def test_a_line_without_end_is_cut_at_the_maximum() -> None:
    assert [len(piece) for piece in cut(["x" * 10_000, "x" * 10_000])] == [8000, 8000, 4000]


def test_pieces_of_a_long_file_continue_each_other(write) -> None:
    text = story(1, 4000)
    documents, report = read(write("a.txt", text))
    assert "".join(d.text for d in documents) == text
    assert [d.continues for d in documents] == [False] + [True] * (len(documents) - 1)
    assert [d.line for d in documents][2] == 1 + (documents[0].text + documents[1].text).count("\n")
    assert (report.documents, report.pieces) == (1, len(documents))


def test_blank_beginnings_and_empty_files_are_counted(write, tmp_path) -> None:
    write("a.txt", "")
    write("b.txt", " \n\n")
    write("c.txt", "\n\n" * 5000 + "text")
    documents, report = read(tmp_path)
    assert [d.text.strip() for d in documents] == ["text"]
    assert not documents[0].continues
    assert (report.files, report.empty_files, report.empty_documents) == (3, 2, 1)
    assert any("a.txt holds no text" in note for note in report.notes)


# encodings in the report


def test_encodings_and_invalid_bytes_are_reported(write) -> None:
    gbk = write("gbk.txt", "今天天气很好，我们去山里走一走。".encode("gbk"))
    bad = write("bad.txt", b"good text " * 50 + b"\xff")
    _, report = read(gbk, bad)
    assert report.encodings == {str(gbk): "GB18030", str(bad): "UTF-8"}
    assert report.replaced == 1
    assert f"{gbk} is in GB18030: converted" in report.notes
    assert any("1 invalid UTF-8" in note for note in report.notes)


# rows


def test_json_lines_one_document_a_line(write) -> None:
    path = write(
        "a.jsonl",
        '\ufeff{"title": "T", "author": "A", "text": "one"}\n\n{"text": "two\\r\\n"}\r\n{"text": null}',
    )
    documents, report = read(path)
    assert [(d.text, d.line) for d in documents] == [("one", 1), ("two\n", 3)]
    assert report.fields == {str(path): "text"}
    assert any("field 'text'" in note for note in report.notes)
    assert report.empty_documents == 1


def test_a_given_field_is_taken_and_lists_are_joined(write) -> None:
    path = write("a.jsonl", '{"text": "no", "lines": ["a", "b"]}\n{"text": "no", "lines": "c"}\n')
    assert texts(path, field="lines") == ["a\nb", "c"]


def test_a_field_of_plain_text_is_said_to_be_none(write) -> None:
    _, report = read(write("a.txt", "words"), field="title")
    assert any("'title' is not looked for" in note for note in report.notes)
    _, report = read(write("a.txt", "words"), write("b.jsonl", '{"title": "words"}'), field="title")
    assert not report.notes


def test_a_missing_field_names_file_line_fields_and_fix(write) -> None:
    path = write("poems.jsonl", '{"content": "x"}\n' * 16 + '{"title": "T", "author": "A", "text": "x"}\n')
    error = refused(path, field="content")
    assert error.message == f"{path} line 17: no field 'content'; it has: title, author, text"
    assert error.hint == "pass --field text"
    assert "line 17: no field 'content'" in refused(path).message  # guessed from line 1


def test_the_only_string_is_the_text(write) -> None:
    assert texts(write("a.jsonl", '{"id": 3, "poem": "x"}\n')) == ["x"]
    assert "not clear" in refused(write("b.jsonl", '{"x": "a", "y": "b"}\n')).message


@pytest.mark.parametrize(
    ("content", "line", "word"),
    [
        ('{"text": "a"}\n{"text": \n', 2, "not valid JSON"),
        ('{"text": "a"}\n[1, 2]\n', 2, "holds a list"),
        ('{"text": "a"}\n{"text": 5}\n', 2, "'text' holds a int"),
        ('{"text": "a"}\n{"text": ["a", 5]}\n', 2, "'text' holds a list"),
        ('{"text": "a"}\n' + "[" * 100_000 + "\n", 2, "not valid JSON"),
        ('{"text": "a"}\n{"text": "a", "n": ' + "9" * 5000 + "}\n", 2, "not valid JSON"),
    ],
)
def test_bad_json_lines_are_named(write, content: str, line: int, word: str) -> None:
    path = write("a.jsonl", content)
    message = refused(path).message
    assert message.startswith(f"{path} line {line}: ")
    assert word in message


def test_a_line_beyond_the_limit_is_refused(write, monkeypatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW", 300_000)
    assert "more than 300,000 characters" in refused(write("a.jsonl", "x" * 600_000)).message


def test_a_json_value_beyond_the_limit_is_refused_for_its_length(write, monkeypatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW", 300_000)
    rest = json.dumps({"data": [{"text": "x" * 100}] * 12_000}, indent=1)
    assert "longer than 300,000 characters" in refused(write("a.json", rest)).message


def test_a_line_separator_inside_a_json_string_is_text(write) -> None:
    assert texts(write("a.jsonl", '{"text": "a\u2028b\x85c"}\n')) == ["a\u2028b\x85c"]


def test_half_a_surrogate_pair_becomes_a_replacement_character(write) -> None:
    documents, report = read(write("a.jsonl", '{"text": "a\\ud83d b \\ud83d\\ude42"}\n'))
    assert documents[0].text == "a\ufffd b 🙂"
    assert report.replaced == 1


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_read_object_by_object(write, indent: int | None, monkeypatch) -> None:
    items = [{"text": f"text {n} " + "é" * n} for n in range(300)]
    path = write("a.json", json.dumps(items, indent=indent))
    documents, _ = read(path)
    assert [d.text for d in documents] == [item["text"] for item in items]
    assert documents[7].line == (1 if indent is None else 23)


def test_a_json_list_across_small_chunks() -> None:
    text = json.dumps([{"text": "a" * n, "n": n} for n in range(40)], indent=2)
    for size in (1, 3, 50):
        found = list(rows.json_list((text[i : i + size] for i in range(0, len(text), size)), "a.json"))
        assert found == [(2 + 4 * n, {"text": "a" * n, "n": n}) for n in range(40)]


def test_objects_one_after_another_are_read_from_json_too(write) -> None:
    assert texts(write("a.json", '{"text": "a"}\n{"text": "b"}\n')) == ["a", "b"]
    assert texts(write("b.json", '{"text": "a"}')) == ["a"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('[{"text": "a"},\n{"text": }]', "line 2: not valid JSON"),
        ('[{"text": "a"},\n', "ends inside its list"),
        ('[{"text": "a"},\n{"text": "b', "line 2: not valid JSON"),
        ('[{"text": "a"},\n"b"]', "line 2: holds a str"),
        ('[{"text": "a"}]\n[]', "line 2: something follows"),
        ("hello", "line 1: not valid JSON"),
    ],
)
def test_bad_json_lists_are_named(write, content: str, word: str) -> None:
    assert word in refused(write("a.json", content)).message


def test_csv_with_quotes_newlines_and_a_guess(write) -> None:
    path = write("a.csv", 'label,review\r\n1,"a, ""b""\r\nc"\r\n\r\n0,d\r\n')
    documents, report = read(path)
    assert [(d.text, d.line) for d in documents] == [('a, "b"\nc', 2), ("d", 5)]
    assert report.fields == {str(path): "review"}


def test_csv_round_trip_of_awkward_rows(write) -> None:
    values = ['"', '""', "a,b", "x\ny", "'", "汉字，", "\\", " lead", "x" * 200_000]
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text"], *enumerate(values)])
    assert texts(write("a.csv", out.getvalue())) == values


def test_tsv_takes_quotation_marks_as_text(write) -> None:
    assert texts(write("a.tsv", 'sentence\tlabel\n"open\t1\nit\'s "x"\t0\n')) == ['"open', 'it\'s "x"']


def test_a_table_without_names_is_read_by_column_number(write) -> None:
    path = write("a.tsv", "first headline\t3\nsecond headline\t5\n")
    assert "not clear" in refused(path).message
    assert "--field 1" in str(refused(path).hint)
    assert texts(path, field="1") == ["first headline", "second headline"]
    assert "no field '3'; it has: 1, 2" in refused(path, field="3").message


def test_a_sentence_in_the_first_line_is_not_taken_for_a_name(write) -> None:
    assert "not clear" in refused(write("a.tsv", "你好，世界。\t5\n再见。\t6\n")).message
    assert "two fields are named" in refused(write("b.tsv", "same\tsame\nx\ty\n")).message


@pytest.mark.parametrize(
    ("name", "content", "line", "word"),
    [
        ("a.csv", "text,n\na,1\nb,2,3\n", 3, "3 fields, the first line has 2"),
        ("a.tsv", "text\tn\na\t1\nb\n", 3, "1 fields, the first line has 2"),
        ("a.csv", 'text,n\na,1\n"b"x,2\n', 3, "expected after"),
        ("a.csv", 'text,n\na,1\n"never closed,2\nx,3\n', 3, "unexpected end"),
    ],
)
def test_bad_table_rows_are_named(write, name: str, content: str, line: int, word: str) -> None:
    path = write(name, content)
    message = refused(path).message
    assert message.startswith(f"{path} line {line}: ")
    assert word in message


def test_parquet(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"id": [1, 2, 3], "text": ["a", None, "c"], "parts": [["x", "y"], [], ["z"]]})
    pyarrow.parquet.write_table(table, path)
    documents, report = read(path)
    assert [(d.text, d.line) for d in documents] == [("a", 1), ("c", 3)]
    assert report.fields == {str(path): "text"}
    assert texts(path, field="parts") == ["x\ny", "z"]
    assert "line 1: no field 'body'; it has: id, text, parts" in refused(path, field="body").message
    assert "'id' holds a int" in refused(path, field="id").message


def test_bad_parquet_is_named(write) -> None:
    assert "not readable as Parquet" in refused(write("a.parquet", b"PAR1 not really")).message
    assert "Parquet compresses by itself" in refused(write("a.parquet.gz", b"x")).message


def test_missing_pyarrow_names_the_extra(write, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "gpt2kit[parquet]" in str(refused(write("a.parquet", b"x")).hint)


def test_rows_stay_whole_up_to_a_million_characters(write) -> None:
    long, longer = "word " * 200_000, "word " * 200_001
    path = write("a.jsonl", json.dumps({"text": long}) + "\n" + json.dumps({"text": longer}) + "\n")
    documents, report = read(path)
    assert documents[0].text == long
    assert "".join(d.text for d in documents[1:]) == longer
    assert [d.continues for d in documents[:3]] == [False, False, True]
    assert {d.line for d in documents[1:]} == {2}
    assert report.documents == 2


# where files come from


@pytest.mark.parametrize(
    ("suffix", "packer"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)]
)
def test_compressed_sources(write, suffix: str, packer) -> None:
    assert texts(write(f"a.txt{suffix}", packer(b"hello"))) == ["hello"]
    assert texts(write(f"a.JSONL{suffix}", packer(b'{"text": "x"}'))) == ["x"]
    assert texts(write(f"plain{suffix}", packer(b"no suffix"))) == ["no suffix"]


def test_folders_are_read_in_order_and_unknown_suffixes_are_said(write, tmp_path) -> None:
    for name in ("b.txt", "a/z.txt", "a/a.md", "B.txt", ".hidden.txt", ".git/x.txt", "a/pic.png"):
        write(name, name)
    write("c.jsonl", '{"text": "rows"}')
    documents, report = read(tmp_path)
    assert [d.text for d in documents] == ["B.txt", "b.txt", "rows", "a/a.md", "a/z.txt"]
    assert report.skipped == [str(tmp_path / "a" / "pic.png")]
    assert any("pic.png skipped" in note for note in report.notes)


def test_nothing_to_read_is_said(write, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no readable file" in refused(tmp_path / "empty").message
    with pytest.raises(UserError, match="no readable file"):
        list(read_documents([]))


def test_a_missing_file_suggests_its_neighbour(write, tmp_path) -> None:
    write("shakespeare.txt", "x")
    error = refused(tmp_path / "shakespear.txt")
    assert "does not exist" in error.message
    assert "shakespeare.txt" in str(error.hint)
    assert "does not exist" in refused(tmp_path / "no" / "folder" / "x.txt").message


def test_standard_input_is_text_or_json_lines(monkeypatch) -> None:
    def feed(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))

    feed(b"plain\n")
    documents, report = read("-")
    assert [(d.text, d.source) for d in documents] == [("plain\n", "standard input")]
    assert report.total is None
    assert report.read == 6
    feed(b'{"body": "x"}\n')
    assert texts("-", field="body") == ["x"]


def test_progress_reaches_the_total(write) -> None:
    a, b = write("a.txt", "x" * 1000), write("b.txt.gz", gzip.compress(b"y" * 5000))
    report = SourceReport()
    for _ in read_documents([a, b], report=report):
        assert 0 <= report.read <= (report.total or 0)
    assert report.read == report.total == a.stat().st_size + b.stat().st_size
    assert report.files == report.files_total == 2


@pytest.mark.skipif("GPT2KIT_DATA" not in os.environ, reason="needs GPT2KIT_DATA")
def test_real_sets_are_read() -> None:
    data = Path(os.environ["GPT2KIT_DATA"])
    play, _ = read(data / "text/tinyshakespeare.txt")
    assert sum(len(d.text) for d in play) == 1_115_394
    with lzma.open(data / "sentiment/waimai-10k.csv.xz") as file:
        assert len(read(data / "sentiment/waimai-10k.csv.xz")[0]) == sum(1 for _ in file) - 1 == 11_987


def test_a_linked_folder_is_passed_over_and_said(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b.txt").write_text("b", encoding="utf-8")
    (tmp_path / "walk").mkdir()
    (tmp_path / "walk" / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "walk" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "walk" / "loop").symlink_to(tmp_path / "walk")
    documents, report = read(tmp_path / "walk")
    assert [document.text for document in documents] == ["a"]
    assert report.skipped == [str(tmp_path / "walk" / name) for name in ("link", "loop")]
    assert sum("linked folder" in note for note in report.notes) == 2
