"""Files, folders and standard input -> documents, in bounded memory.

    .txt .md no suffix     one document a file, or several between lines that consist of <|endoftext|>
    .jsonl .ndjson .json   one document an object (.json: a list of objects)
    .csv .tsv .parquet     one document a row
    any but .parquet       also as .gz .xz .bz2 .zst
    "-"                    standard input: plain text, or JSON lines where a field is named

A long text is cut into pieces (`cut`) that follow each other; whoever joins them has the text again.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

from gpt2kit.data import rows
from gpt2kit.data.decode import COMPRESSED, STDIN, Decoded, decode, read_bytes
from gpt2kit.errors import UserError, closest

SEPARATOR = "<|endoftext|>"
PIECE = 2_000  # characters: a piece is cut at the first blank line after this many,
PIECE_MAX = 8_000  # else at the first line end, else after this many
ROW_MAX = 1_000_000  # characters of a row that stay whole

_TEXT = (".txt", ".md", "")
_TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_SEPARATOR_LINE = re.compile(rf"(?<=\n){re.escape(SEPARATOR)}\n")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Document:
    """A text and where it is from. `continues`: it directly follows the previous one of the same document."""

    text: str
    source: str = ""
    line: int | None = None
    continues: bool = False


@dataclass
class SourceReport:
    """What reading found. It is filled while the documents are read, and complete when they end."""

    files: int = 0
    files_total: int = 0
    documents: int = 0  # pieces of a long text count as one
    pieces: int = 0
    characters: int = 0
    bytes: int = 0  # of the documents in UTF-8
    read: int = 0  # bytes taken from the disk so far
    total: int | None = None  # bytes of all files on the disk; None with standard input
    empty_files: int = 0
    empty_documents: int = 0  # without any character but blanks
    replaced: int = 0  # invalid sequences that became U+FFFD
    encodings: dict[str, str] = dataclass_field(default_factory=dict)  # file -> encoding
    fields: dict[str, str] = dataclass_field(default_factory=dict)  # file -> field that was guessed
    skipped: list[str] = dataclass_field(default_factory=list)  # files of a folder that were passed over
    notes: list[str] = dataclass_field(default_factory=list)  # for the user: what was decided or put right


def read_documents(
    paths: str | Path | Sequence[str | Path], field: str | None = None, report: SourceReport | None = None
) -> Iterator[Document]:
    """The documents of `paths`, in order; the files of a folder in the order of their names.

    `field` names the text field of structured files; None guesses it for each file and says so in `report`.
    Raises UserError naming file and line for whatever cannot be read as text.
    """
    report = SourceReport() if report is None else report
    listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [file for path in listed for file in expand(path, report)]
    if not files:
        raise UserError(
            f"no readable file in {', '.join(map(str, listed)) or 'an empty list'}",
            hint=f"readable: {' '.join(filter(None, (*_TEXT, *_TABLES)))}, also with {' '.join(COMPRESSED)}",
        )
    if field is not None and not any(str(file) == STDIN or kind_of(file)[0] in _TABLES for file in files):
        report.notes.append(f"field {field!r} is not looked for: plain text has no fields, unlike {' '.join(_TABLES)}")
    report.files_total = len(files)
    if STDIN not in map(str, files):
        report.total = sum(size_of(Path(file)) for file in files)
    for file in files:
        before, pieces = report.read, report.pieces
        yield from read_file(file, field, report)
        report.files += 1
        if str(file) != STDIN:
            report.read = before + size_of(Path(file))
        if report.pieces == pieces:
            report.empty_files += 1
            report.notes.append(f"{file} holds no text")


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def is_stream(path: str | Path) -> bool:
    """Whether it can be read once only: standard input, a pipe."""
    return str(path) == STDIN or (Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir())


def kind_of(path: str | Path) -> tuple[str, str]:
    """(format suffix, compression suffix), both in lower case: a.jsonl.gz -> ".jsonl", ".gz"."""
    path = Path(path)
    packing = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    return Path(path.name[: len(path.name) - len(packing)]).suffix.lower(), packing


def expand(path: str | Path, report: SourceReport) -> Iterator[str | Path]:
    """The files behind one argument."""
    if str(path) == STDIN:
        yield STDIN
        return
    path = Path(path)
    if path.is_dir():
        for folder, folders, names in os.walk(path, onerror=_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for linked in (Path(folder) / name for name in folders if (Path(folder) / name).is_symlink()):
                report.skipped.append(str(linked))
                report.notes.append(f"{linked} skipped: a linked folder is read where it is named itself")
            for name in sorted(name for name in names if not name.startswith(".")):
                if kind_of(name)[0] in (*_TEXT, *_TABLES):
                    yield Path(folder) / name
                else:
                    report.skipped.append(str(Path(folder) / name))
                    report.notes.append(f"{Path(folder) / name} skipped: its suffix is not one that is read")
    elif path.exists():
        if kind_of(path)[0] not in (*_TEXT, *_TABLES):
            report.notes.append(f"{path} read as plain text, whatever its suffix means")
        yield path
    else:
        near = closest(path.name, names_in(path.parent))
        raise UserError(f"{path} does not exist", hint=None if near is None else f"did you mean {path.parent / near}?")


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from None


def names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def read_file(path: str | Path, field: str | None, report: SourceReport) -> Iterator[Document]:
    form, packing = (".jsonl" if field else "", "") if str(path) == STDIN else kind_of(path)
    name = "standard input" if str(path) == STDIN else str(path)
    if form == ".parquet":
        if packing:
            raise UserError(f"{name}: Parquet compresses by itself and is not read from {packing}",
                            hint=f"unpack it: the file is then {name[: -len(packing)]}")  # fmt: skip
        yield from _row_documents(rows.parquet(Path(path), field), name, field, report)
        return
    found = Decoded()
    start = report.read

    def progress(read: int) -> None:
        report.read = start + read

    chunks = decode(read_bytes(path, progress), name, found)
    if form in _TABLES:
        yield from _row_documents(_rows(chunks, name, form, field), name, field, report)
    else:
        yield from _text_documents(chunks, name, report)
    report.encodings[name] = found.encoding
    report.replaced += found.replaced
    if found.encoding != "UTF-8":
        report.notes.append(f"{name} is in {found.encoding}: converted")
    if found.replaced:
        report.notes.append(f"{name}: {found.replaced:,} invalid {found.encoding} sequences became U+FFFD")


def _rows(chunks: Iterable[str], name: str, form: str, field: str | None) -> Iterator[rows.Row]:
    if form == ".json":
        return rows.json_list(chunks, name)
    if form in (".jsonl", ".ndjson"):
        return rows.json_lines(chunks, name)
    numbered = field is not None and field.isdecimal()
    return rows.delimited(chunks, name, tab=form == ".tsv", numbered=numbered)


def _row_documents(found: Iterator[rows.Row], name: str, field: str | None, report: SourceReport) -> Iterator[Document]:
    chosen: str | None = None
    for line, row in found:
        if chosen is None:
            chosen = rows.choose_field(row, field, name, line)
            if field is None:
                report.fields[name] = chosen
                report.notes.append(f"{name}: the text is taken from field {chosen!r}")
        text = rows.field_text(row, chosen, name, line)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        pieces = [text] if len(text) <= ROW_MAX else cut([text])
        yield from _documents(((piece, line) for piece in pieces), name, report)


def _text_documents(chunks: Iterable[str], name: str, report: SourceReport) -> Iterator[Document]:
    line = 1

    def numbered(pieces: Iterable[str]) -> Iterator[tuple[str, int]]:
        nonlocal line
        for piece in pieces:
            yield piece, line
            line += piece.count("\n")

    for separators, group in itertools.groupby(_separated(chunks), key=lambda text: text is None):
        if separators:
            line += sum(1 for _ in group)
        else:
            yield from _documents(numbered(cut(text for text in group if text)), name, report)


def _documents(pieces: Iterable[tuple[str, int]], name: str, report: SourceReport) -> Iterator[Document]:
    """The pieces of one text as documents, counted. Blank pieces at its start are dropped."""
    continues = blank = False
    for text, line in pieces:
        if not continues and not text.strip():
            blank = True
            continue
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # half of a surrogate pair, written as \ud83d in JSON
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            size = len(text.encode())
            report.replaced += 1
            report.notes.append(f"{name} line {line}: half of a surrogate pair became U+FFFD")
        report.documents += not continues
        report.pieces += 1
        report.characters += len(text)
        report.bytes += size
        yield Document(text, name, line, continues)
        continues = True
    report.empty_documents += blank and not continues


def _separated(chunks: Iterable[str]) -> Iterator[str | None]:
    """The stream of text again, with None in place of every line that consists of SEPARATOR."""
    before, held = "\n", ""  # the character before `held`, which is what may yet become a separator
    for chunk in itertools.chain(chunks, [None]):
        parts = _SEPARATOR_LINE.split(before + held + ("\n" if chunk is None else chunk))
        for number, part in enumerate(parts):
            if number:
                yield None
                before = "\n"
            text = part if number else part[1:]
            if number < len(parts) - 1:
                yield text
            elif chunk is None:
                yield text[:-1]  # without the line break that was added above
            else:
                keep = max(0, len(text) - len(SEPARATOR))
                yield text[:keep]
                before, held = text[keep - 1] if keep else before, text[keep:]


def cut(chunks: Iterable[str]) -> Iterator[str]:
    """Cut a stream of text into pieces of PIECE to PIECE_MAX characters (the last may be shorter).

    They join to the text. Where a piece ends depends on nothing after its PIECE_MAX: text that is appended
    changes the last piece only.
    """
    buffer, at = "", 0
    for chunk in chunks:
        buffer, at = buffer[at:] + chunk, 0
        while len(buffer) - at >= PIECE_MAX:
            end = _blank_line(buffer, at) or buffer.find("\n", at + PIECE - 1, at + PIECE_MAX) + 1 or at + PIECE_MAX
            yield buffer[at:end]
            at = end
    while at < len(buffer):
        end = _blank_line(buffer, at) or len(buffer)
        yield buffer[at:end]
        at = end


def _blank_line(text: str, at: int) -> int:
    """Where the first blank line past PIECE characters of the piece from `at` ends; 0 where there is none."""
    found = _BLANK_LINE.search(text, at + PIECE - 2, at + PIECE_MAX)
    return found.end() if found else 0
