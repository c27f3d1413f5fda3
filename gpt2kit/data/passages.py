"""A user's documents as passages that can be searched: cut at paragraphs and sentences, indexed once, kept beside them.

    library = open_library("manuals/")
    library.search("How is the filter changed?", 3)    [Passage(text=..., file="pump.md", line=12), ...]

The index is one SQLite file, `.gpt2kit-index` in the folder (`.NAME.gpt2kit-index` beside a single file). It is made
anew when a file has come, gone, or changed in size or time; where it cannot be written it is made in memory each
time.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from gpt2kit.data import sources
from gpt2kit.data.decode import STDIN
from gpt2kit.data.fulltext import TextIndex
from gpt2kit.data.records import JSON
from gpt2kit.data.sources import SourceReport, read_documents
from gpt2kit.errors import UserError

INDEX = ".gpt2kit-index"
FORMAT = 1  # of the index: another one is made anew
LONGEST = 600  # characters of a passage
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[。！？!?；]|[.;](?=\s)"), re.compile(r"\s"))


@dataclass(frozen=True)
class Passage:
    """A piece of a document. line: where it begins, from 1. score: of the search that found it, larger is better."""

    text: str
    file: str
    line: int
    score: float = 0.0

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def line_of(self, at: int) -> int:
        """The file's line that holds the character `at` of the text."""
        return self.line + (self.text.count("\n", 0, at) if _lined(self.file) else 0)


class Library:
    """Passages and their index."""

    def __init__(self, index: TextIndex, passages: list[Passage]) -> None:
        self._index, self.passages = index, passages

    def search(self, question: str, limit: int) -> list[Passage]:
        """At most `limit` passages that share words with the question, the best first."""
        return [
            Passage(one.text, one.file, one.line, hit.score)
            for hit in self._index.search(question, limit)
            for one in (self.passages[hit.number],)
        ]

    def close(self) -> None:
        self._index.close()


def open_library(documents: str | Path, note: Callable[[str], None] = lambda text: None) -> Library:
    """The passages of a folder or file (every form that data/sources.py reads). UserError where there is no text."""
    if str(documents) == STDIN:
        raise UserError("documents are read from a file or a folder, not from standard input")
    root = Path(documents)
    report = SourceReport()
    files = list(sources.expand(root, report))
    base = root if root.is_dir() else root.parent
    stamp = json.dumps([FORMAT, LONGEST, [_stamp(Path(file), base) for file in files]], ensure_ascii=False)
    path = root / INDEX if root.is_dir() else base / f".{root.name}{INDEX}"
    library = _stored(path, stamp)
    if library is not None:
        return library
    for line in report.notes:
        note(line)
    passages = [passage for document in read_documents(root) for passage in _cut(document, base)]
    if not passages:
        raise UserError(f"{root} holds no text to search", hint="a folder of .txt, .md, .jsonl, .csv … files")
    note(f"{root}: {len(files):,} files read, {len(passages):,} passages indexed")
    try:
        _store(path, passages, stamp)
        library = _stored(path, stamp)
    except (OSError, sqlite3.Error) as error:
        note(f"the index cannot be kept in {path}: {error}")
    if library is not None:
        return library
    return Library(_filled(TextIndex(), passages), passages)


def _stamp(file: Path, base: Path) -> list[object]:
    found = file.stat()
    return [file.relative_to(base).as_posix(), found.st_size, found.st_mtime_ns]


def _filled(index: TextIndex, passages: list[Passage]) -> TextIndex:
    index.add((passage.text, passage.file) for passage in passages)
    return index


def _store(path: Path, passages: list[Passage], stamp: str) -> None:
    """Written beside its place and renamed: whoever reads meanwhile has the old one or the new one whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}-", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        _filled(TextIndex(temporary), passages).close()
        with closing(sqlite3.connect(temporary)) as base, base:
            base.execute("CREATE TABLE passages (id INTEGER PRIMARY KEY, text TEXT, file TEXT, line INTEGER)")
            rows = ((n, one.text, one.file, one.line) for n, one in enumerate(passages))
            base.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", rows)
            base.execute("CREATE TABLE about (stamp TEXT)")
            base.execute("INSERT INTO about VALUES (?)", (stamp,))
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _stored(path: Path, stamp: str) -> Library | None:
    """The index at `path`, if it is there, whole, and of these files."""
    if not path.is_file():
        return None
    try:
        index = TextIndex(path, read_only=True)
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
            known = base.execute("SELECT stamp FROM about").fetchall()
            rows = base.execute("SELECT text, file, line FROM passages ORDER BY id").fetchall()
    except sqlite3.Error:  # damaged, or another program's: it is made anew
        return None
    return Library(index, [Passage(*row) for row in rows]) if known == [(stamp,)] else None


def _cut(document: sources.Document, base: Path) -> Iterator[Passage]:
    """Pieces of at most LONGEST characters, each ending at a paragraph, else a line, a sentence, a word."""
    text, at = document.text, 0
    file = Path(document.source)
    lined = _lined(file)
    name = file.relative_to(base).as_posix() if file.is_relative_to(base) else document.source
    while at < len(text):
        end = _end(text, at)
        piece = text[at:end]
        if piece.strip():
            begin = at + len(piece) - len(piece.lstrip())
            yield Passage(piece.strip(), name, (document.line or 1) + (text.count("\n", 0, begin) if lined else 0))
        at = end


def _lined(file: str | Path) -> bool:
    """Whether the line breaks of a text are its file's."""
    return sources.kind_of(file)[0] not in (*JSON, ".parquet")


def _end(text: str, at: int) -> int:
    if len(text) - at <= LONGEST:
        return len(text)
    for pattern in _ENDS:
        ends = [found.end() for found in pattern.finditer(text, at + LONGEST // 2, at + LONGEST)]
        if ends:
            return ends[-1]
    return at + LONGEST
