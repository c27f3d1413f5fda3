"""Structured files -> rows: JSON lines, a JSON list, CSV, TSV and Parquet, and the choice of the text field.

A row is (line, {field: value}); lines count from 1, in Parquet they are row numbers.
Errors name file, line and field.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt2kit.errors import UserError, closest, missing_extra

MAX_ROW = 1 << 26  # characters of one row: beyond, the file is not what its suffix says
TEXT_FIELDS = (  # usual names, the likeliest first
    *("text", "content", "document", "body", "article", "story", "passage", "paragraph", "context"),
    *("context_text", "sentence", "review", "message", "output", "completion"),
    *("正文", "内容", "內容", "文本", "文章"),
)
_CHUNK = 1 << 18

Row = tuple[int, dict[str, Any]]


def lines(chunks: Iterable[str], name: str) -> Iterator[str]:
    """Lines with their "\\n", which alone ends one (JSON strings may hold U+2028); MAX_ROW long at most."""
    held: list[str] = []
    size = 0
    for chunk in chunks:
        head, newline, tail = chunk.rpartition("\n")
        if newline:
            yield from (line + "\n" for line in "".join([*held, head]).split("\n"))
            held, size = [], 0
        held.append(tail)
        size += len(tail)
        if size > MAX_ROW:
            raise UserError(
                f"{name} holds a line of more than {MAX_ROW:,} characters: it is not a file of rows",
                hint="give plain text the suffix .txt",
            )
    if size:
        yield "".join(held)


def json_lines(chunks: Iterable[str], name: str) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over."""
    for number, line in enumerate(lines(chunks, name), 1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_json(name, number, error) from None
        yield number, _object(value, name, number)


def json_list(chunks: Iterable[str], name: str) -> Iterator[Row]:
    """A list of objects, or objects one after another, one by one: memory does not grow with the file."""
    text = _JsonText(chunks, name)
    listed = text.peek() == "["
    if listed:
        text.at += 1
    while (char := text.peek("," if listed else "")) and not (listed and char == "]"):
        line = text.line
        yield line, _object(text.value(), name, line)
    if listed and not char:
        raise UserError(f"{name} ends inside its list", hint="it was cut short: fetch it again")
    text.at += listed
    if text.peek():
        raise UserError(f"{name} line {text.line}: something follows the list", hint="one list of objects a file")


class _JsonText:
    """A window on the text of a JSON file, of which `at` is the next character, on line `line`."""

    def __init__(self, chunks: Iterable[str], name: str) -> None:
        self._chunks = iter(chunks)
        self._name = name
        self._buffer = ""
        self.at = 0
        self.line = 1

    def _more(self) -> bool:
        """Read on: at least as much as is held, so that parsing a long value again and again stays linear."""
        self._buffer, self.at = self._buffer[self.at :], 0
        if len(self._buffer) > MAX_ROW:
            return False
        added = "".join(itertools.islice(self._chunks, 1 + len(self._buffer) // _CHUNK))
        self._buffer += added
        return added != ""

    def peek(self, separators: str = "") -> str:
        """The next character that is neither blank nor a separator; "" at the end."""
        blanks = " \t\n" + separators
        while True:
            while self.at < len(self._buffer):
                char = self._buffer[self.at]
                if char not in blanks:
                    return char
                self.line += char == "\n"
                self.at += 1
            if not self._more():
                return ""

    def value(self) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._buffer, self.at)
            except (ValueError, RecursionError) as error:
                if self._more():
                    continue
                if len(self._buffer) > MAX_ROW:
                    raise UserError(
                        f"{self._name} line {self.line}: a value is longer than {MAX_ROW:,} characters",
                        hint="write one object a line, as .jsonl",
                    ) from None
                breaks = self._buffer.count("\n", self.at, getattr(error, "pos", self.at))
                raise _bad_json(self._name, self.line + breaks, error) from None
            self.line += self._buffer.count("\n", self.at, end)
            self.at = end
            return value


def _bad_json(name: str, line: int, error: Exception) -> UserError:
    why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return UserError(f"{name} line {line}: not valid JSON: {why}", hint="correct or remove that line")


def _object(value: Any, name: str, line: int) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise UserError(
        f"{name} line {line}: holds a {type(value).__name__}, not an object with named fields",
        hint='write each document as {"text": "..."}',
    )


def delimited(chunks: Iterable[str], name: str, tab: bool, numbered: bool) -> Iterator[Row]:
    """CSV with the usual quotes, or TSV without any (a quote is text there). Line 1 names the fields.

    `numbered`: there is no such line; the fields are called "1", "2", ...
    Raises UserError for a row that has not as many fields as the first, and for a name given twice.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))  # the standard library keeps one limit a process
    source = lines(chunks, name)
    reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(source, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{name} line {line}: {error}", hint="a quotation mark inside a quoted field is written twice"
            ) from None
        if row is None:
            return
        if not row:
            continue
        if names is None:
            names = [str(n) for n in range(1, len(row) + 1)] if numbered else [cell.strip() for cell in row]
            if not numbered:
                _check_names(names, name, line)
                continue
        if len(row) != len(names):
            raise UserError(
                f"{name} line {line}: {len(row)} fields, the first line has {len(names)}",
                hint="replace tabs inside a field by spaces"
                if tab
                else "put fields that hold a comma in quotation marks",
            )
        yield line, dict(zip(names, row, strict=True))


def _check_names(names: list[str], name: str, line: int) -> None:
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UserError(
            f"{name} line {line}: two fields are named {twice[:80]!r}",
            hint="if that line is not names but data: --field 1 takes the text from the first column",
        )


def parquet(path: Path, field: str | None) -> Iterator[Row]:
    """Rows of a Parquet file, a batch at a time; only column `field` is read where it is given."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", f"reading {path}") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [field] if field is not None and field in file.schema_arrow.names else None
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} row {number + 1}: not readable as Parquet: {error}", hint="fetch it again") from None


def choose_field(row: dict[str, Any], field: str | None, name: str, line: int) -> str:
    """The field that holds the text: the one given, else the first usual name, else the only string.

    Raises UserError where it is missing or not clear.
    """
    if field is not None:
        if field not in row:
            raise _no_field(row, field, name, line)
        return field
    by_lower = {str(key).lower(): str(key) for key in row}
    for usual in TEXT_FIELDS:
        if usual in by_lower and (row[by_lower[usual]] is None or _is_text(row[by_lower[usual]])):
            return by_lower[usual]
    texts = [key for key, value in row.items() if _is_text(value) and not _is_number(value)]
    if len(texts) == 1 and all(_is_name(key) for key in row):
        return texts[0]
    raise UserError(
        f"{name} line {line}: it is not clear which field holds the text; it has: {_names(row)}",
        hint="pass --field NAME; in a table whose first line is not names: --field 1 for the first column",
    )


def _names(row: dict[str, Any]) -> str:
    names = ", ".join(str(key) for key in row) or "none"
    return names if len(names) <= 500 else f"{names[:500]}..."


def _no_field(row: dict[str, Any], field: str, name: str, line: int) -> UserError:
    near = next((usual for usual in TEXT_FIELDS if usual in row), None) or closest(field, map(str, row))
    hint = "correct that line" if near is None else f"pass --field {near}"
    return UserError(f"{name} line {line}: no field {field!r}; it has: {_names(row)}", hint=hint)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _is_name(key: Any) -> bool:
    """Whether a table's first line can be meant as names; a sentence or a number is rather data."""
    key = str(key)
    return 0 < len(key) <= 40 and not _is_number(key) and not any(c in key for c in ",.!?;，。！？；")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def field_text(row: dict[str, Any], field: str, name: str, line: int) -> str:
    """The text of one row: a list of strings is joined by newlines, null is empty; else UserError."""
    if field not in row:
        raise _no_field(row, field, name, line)
    value = row[field]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if _is_text(value):
        return "\n".join(value)
    raise UserError(
        f"{name} line {line}: field {field!r} holds a {type(value).__name__}, not a string or a list of them",
        hint="pass --field with the name of a field of text",
    )
