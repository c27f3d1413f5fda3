"""Files -> records: JSON, tables and Parquet as {field: value}. What is wrong with one record ends that record only.

Readers, encodings and compression are those of sources.py, rows.py and decode.py. A line that is not JSON and a
row with a field too many come as a `Problem` in their place, so that one pass names them all. What leaves no
way to go on (damaged compression, binary data, a JSON list that breaks off) is a UserError.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.data import rows
from gpt2kit.data.decode import STDIN, Decoded, decode, read_bytes
from gpt2kit.data.families import Problem, Where
from gpt2kit.data.sources import SourceReport, kind_of
from gpt2kit.errors import UserError

HEAD = 200  # records looked at to decide what a file holds
JSON = (".json", ".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")

Record = tuple[Where, dict[str, Any] | Problem]
_Line = tuple[int, dict[str, Any] | Problem]


@dataclass(frozen=True)
class Opened:
    """A file whose records are read as they are asked for. form: what it is, in words."""

    form: str
    records: Iterator[Record]
    numbered: bool = False  # a table without a line of names: its fields are "1", "2", ...


def open_records(
    path: str | Path, report: SourceReport, columns: Collection[str] = (), names: Collection[str] = ()
) -> Opened:
    """The records of one file ("-": JSON lines from standard input).

    columns: fields that the user named; names: usual names of fields, in lower case. Both tell whether the
    first line of a table holds names. Raises UserError for a file that cannot be read as records.
    """
    stdin = str(path) == STDIN
    form, packing = (".jsonl", "") if stdin else kind_of(path)
    name = "standard input" if stdin else str(path)
    if form == ".parquet":
        if packing:
            raise UserError(f"{name}: Parquet compresses by itself and is not read from {packing}",
                            hint=f"unpack it: the file is then {name[: -len(packing)]}")  # fmt: skip
        return Opened("Parquet", ((Where(name, row), record) for row, record in rows.parquet(Path(path), None)))
    text = text_of_file(path, name, report)
    if form not in JSON:
        return _table(rows.lines(text, name), name, form, columns, names)
    form, found = ("JSON", rows.json_list(text, name)) if form == ".json" else _json_lines(text, name)
    return Opened(form, ((Where(name, line), record) for line, record in found))


def text_of_file(path: str | Path, name: str, report: SourceReport) -> Iterator[str]:
    """The text of a file; what decoding found goes into `report`, as in sources.py."""
    found, start = Decoded(), report.read

    def progress(read: int) -> None:
        report.read = start + read

    yield from decode(read_bytes(path, progress), name, found)
    report.encodings[name] = found.encoding
    report.replaced += found.replaced
    if found.encoding != "UTF-8":
        report.notes.append(f"{name} is in {found.encoding}: converted")
    if found.replaced:
        report.notes.append(f"{name}: {found.replaced:,} invalid {found.encoding} sequences became U+FFFD")


def whole_text(path: Path, report: SourceReport) -> str:
    """The text of a whole file."""
    return "".join(text_of_file(path, str(path), report))


# JSON lines


def _json_lines(text: Iterable[str], name: str) -> tuple[str, Iterator[_Line]]:
    """One object a line; a list, or objects over several lines, where neither of the first two lines is an object."""
    lines = rows.lines(text, name)
    before: list[str] = []
    first: list[str] = []  # lines that are not blank: one that is broken does not make the file another one
    for line in lines:
        before.append(line)
        if not line.isspace():
            first.append(line)
            if len(first) == 2 or line.lstrip().startswith("[") or isinstance(parsed_line(line), dict):
                break
    lines = itertools.chain(before, lines)
    if first and not any(isinstance(parsed_line(line), dict) for line in first):
        return "JSON", rows.json_list(_blocks(lines), name)
    return "JSON lines", _objects(lines, name)


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    """The lines joined a thousand at a time: a long value is parsed anew with every block."""
    while block := "".join(itertools.islice(lines, 1000)):
        yield block


def _objects(lines: Iterable[str], name: str) -> Iterator[_Line]:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        value = parsed_line(line)
        if isinstance(value, dict):
            yield number, value
        else:
            what = str(value) if isinstance(value, Exception) else f"holds a {type(value).__name__}, not an object"
            yield number, _problem(name, number, "json", what, "correct or remove that line")


def parsed_line(line: str) -> Any:
    """The value of a line, or the error."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not valid JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list a thousand levels deep
        return ValueError(f"not usable JSON: {error}")


def _problem(name: str, line: int, kind: str, reason: str, fix: str) -> Problem:
    return Problem(Where(name, line), "", kind, reason, fix)


# Tables


def _table(lines: Iterator[str], name: str, form: str, columns: Collection[str], names: Collection[str]) -> Opened:
    ahead = list(itertools.islice(lines, HEAD))
    delimiter = _delimiter(ahead, name, form)
    cells = _cells(itertools.chain(ahead, lines), name, delimiter)
    head = list(itertools.islice(cells, HEAD))
    good = [row for _, row in head if not isinstance(row, Problem)] or [[""]]
    width = Counter(map(len, good)).most_common(1)[0][0]
    good = [row for row in good if len(row) == width]
    header = has_names(good, columns, names)
    fields = [str(n) for n in range(1, width + 1)]
    if header:
        fields = [cell.strip() or number for cell, number in zip(good[0], fields, strict=True)]
        _check_names(fields, name)
    kind = {"\t": "tabs", ",": "commas", ";": "semicolons"}[delimiter]
    found = _named(itertools.chain(head, cells), fields, header, name, delimiter)
    form = f"table with {kind}, {'the first line names the fields' if header else 'no line of names'}"
    return Opened(form, found, numbered=not header)


def _delimiter(ahead: Sequence[str], name: str, form: str) -> str:
    first = next((line for line in ahead if not line.isspace()), "")
    if form == ".csv":
        return next((mark for mark in ",\t;" if mark in first), ",")
    if form != ".tsv":
        tabs = {line.count("\t") for line in ahead[:-1] or ahead if not line.isspace()}  # the last may be incomplete
        if len(tabs) != 1 or tabs == {0}:
            raise UserError(
                f"{name} is plain text: it has no fields from which prompts, labels or answers could be taken",
                hint='write one JSON object a line, such as {"text": "...", "label": "..."}, into a file named .jsonl, '
                "or columns with tabs between them into one named .tsv",
            )
    return "\t"


def _cells(lines: Iterable[str], name: str, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """(line, fields). A quote is text where tabs separate, as in rows.py."""
    csv.field_size_limit(max(csv.field_size_limit(), rows.MAX_ROW))  # the standard library keeps one limit a process
    plain = delimiter == "\t"
    reader = (
        csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        if plain
        else csv.reader(lines, delimiter=delimiter, strict=True)
    )
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            span = f"lines {line} to {reader.line_num}: " if reader.line_num > line else ""
            fix = "write a quotation mark inside a quoted field twice, and close what is opened"
            yield line, _problem(name, line, "columns", f"{span}{error}", fix)
            continue
        if row is None:
            return
        if row:
            yield line, row


def _named(
    cells: Iterable[tuple[int, list[str] | Problem]], fields: list[str], header: bool, name: str, delimiter: str
) -> Iterator[Record]:
    width = len(fields)
    fix = "put fields that hold a separator in quotation marks" if delimiter != "\t" else "replace tabs inside a field"
    for line, row in cells:
        if isinstance(row, Problem):
            yield row.where, row
        elif len(row) != width:
            yield Where(name, line), _problem(name, line, "columns", f"{len(row)} fields instead of {width}", fix)
        elif header:
            header = False  # the first row that has as many fields as most is the line of names
        else:
            yield Where(name, line), dict(zip(fields, row, strict=True))


def has_names(head: Sequence[Sequence[str]], columns: Collection[str], names: Collection[str]) -> bool:
    """Whether the first row of a table holds names of fields, not data.

    It does where the user's names are in it. It does not where the user gave numbers. Else it does where all of it
    looks like names, and one is a usual name, or stands above a column of nothing but numbers.
    """
    first = [cell.strip() for cell in head[0]]
    if columns:
        return not all(column.isdecimal() for column in columns)
    if not all(rows._is_name(cell) or not cell for cell in first) or not any(first):
        return False
    if any(cell.lower() in names for cell in first):
        return True
    below = list(zip(*head[1:], strict=True))
    return any(cell and all(map(rows._is_number, column)) for cell, column in zip(first, below, strict=False))


def _check_names(fields: Sequence[str], name: str) -> None:
    twice = next((field for field, times in Counter(fields).items() if times > 1), None)
    if twice is not None:
        raise UserError(
            f"{name} line 1: two fields are named {twice[:80]!r}",
            hint="rename one; if that line is not names but data, give the fields by number: --columns text=1",
        )
