"""The values of a record's fields as clean text, and what every shape is read with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from gpt2kit.data import fields
from gpt2kit.data.families import Row, Where

FILL_IN = "complete that row or remove it"

Convert = Callable[[dict[str, Any], Where], Row]


class RowError(Exception):
    """What keeps a record from being a row: (field, kind, reason, fix)."""


@dataclass(frozen=True)
class Classes:
    """Names of integer labels: label n is names[n - first]. `binding`: the user named them, so labels must fit."""

    names: tuple[str, ...]
    source: str
    binding: bool = False
    first: int = 0

    def name(self, label: str, field: str) -> str:
        if label in self.names:
            return label
        if label.isdecimal() and 0 <= int(label) - self.first < len(self.names):
            return self.names[int(label) - self.first]
        raise RowError(field, "label", f"{label[:40]!r} is none of the {len(self.names)} classes of {self.source}",
                  "correct the label or the list of classes")  # fmt: skip


@dataclass
class Wanted:
    """What a file is read for, and what reading it decides on the way."""

    family: type[Row] | None
    columns: Mapping[str, str] = dataclass_field(default_factory=dict)
    classes: Classes | None = None
    split: str = ""
    counts: Counter[str] = dataclass_field(default_factory=Counter)  # what was put right -> how often
    used_classes: Classes | None = None


def clean(text: str, counts: Counter[str]) -> str:
    """The text with line ends as "\\n", and U+FFFD for halves of surrogate pairs."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        counts["texts with half of a surrogate pair, which became U+FFFD"] += 1
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def text_of(record: dict[str, Any], field: str, counts: Counter[str]) -> str:
    """The text in a field; RowError where it is missing, blank or no text."""
    value = record.get(field)
    text = value if type(value) is str else as_text(value, field, counts)
    if not text or text.isspace():
        raise RowError(field, "empty", "holds no text", FILL_IN)
    return clean(text, counts)


def optional_text(record: dict[str, Any], field: str | None, counts: Counter[str]) -> str:
    """As `text_of`, but "" where there is none."""
    value = None if field is None else record.get(field)
    if field is None or value is None or value == "" or fields.is_nan(value):
        return ""
    return clean(as_text(value, field, counts), counts)


def as_text(value: Any, field: str, counts: Counter[str]) -> str:
    """A string; a list of strings joined by line breaks; a number as it is written."""
    if isinstance(value, str):
        return value
    if value is None or fields.is_nan(value):
        raise RowError(field, "missing", "is missing", FILL_IN)
    if isinstance(value, (int, float)):
        counts["numbers read as text"] += 1
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    raise RowError(field, "type", f"holds a {type(value).__name__}, not text", "write it as a string")
