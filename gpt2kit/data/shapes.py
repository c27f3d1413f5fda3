"""Records -> labelled rows: which shape a file has is decided on its first records, and said.

`flatten` brings nested files (SQuAD, CMRC, {"data": [...]}) into one record a row. `recognise` looks at the
first of them and gives a `Shape`: one sentence for the user, and the function that turns a record into a row
or a `Problem`. What a family is read from is in its own function here, and in conversations.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2kit.data import answers, conversations, fields
from gpt2kit.data.families import (
    AnswerRow,
    ChatRow,
    LabelRow,
    PairRow,
    PreferenceRow,
    Problem,
    RankRow,
    Row,
    TextRow,
    Where,
)
from gpt2kit.data.fields import Head
from gpt2kit.data.records import Record
from gpt2kit.data.values import FILL_IN, Classes, Convert, RowError, Wanted, text_of

ROLES: Mapping[type[Row], tuple[str, ...]] = {
    TextRow: ("text",),
    LabelRow: ("text", "text_pair", "label"),
    PairRow: ("prompt", "completion"),
    ChatRow: ("messages", "prompt", "completion"),
    AnswerRow: ("question", "passage", "answers", "answer_start", "id", "title"),
    PreferenceRow: ("messages", "prompt", "chosen", "rejected"),
    RankRow: ("query", "history", "candidates", "chosen", "positive", "negatives", "rejected", "prompt"),
}
_DEEPEST = 4  # levels of nesting that are looked into; SQuAD has three
_WRAPPERS = ("data", "rows", "examples", "items", "instances", "train")


@dataclass(frozen=True)
class Shape:
    """How records of a file become rows."""

    family: type[Row]
    sentence: str
    convert: Callable[[dict[str, Any], Where], Row | Problem]


def recognise(head: Sequence[tuple[Where, dict[str, Any]]], wanted: Wanted, numbered: bool = False) -> Shape:
    """The shape of a file by its first records. UserError where it is not clear, with the fields that it has."""
    found = Head([record for _, record in head], head[0][0], wanted.columns, numbered)
    family = wanted.family or natural_family(found)
    wrong = fields.unknown_columns(wanted.columns, ROLES[family])
    if wrong is not None:
        raise wrong
    readers: dict[type[Row], Callable[[Head, Wanted], tuple[str, Convert]]] = {
        TextRow: _texts,
        LabelRow: _labels,
        PairRow: conversations.pairs,
        ChatRow: conversations.chats,
        PreferenceRow: conversations.preferences,
        AnswerRow: answers.answers,
        RankRow: _ranks,
    }
    sentence, build = readers[family](found, wanted)

    def convert(record: dict[str, Any], where: Where) -> Row | Problem:
        try:
            return build(record, where)
        except RowError as bad:
            return Problem(where, *bad.args)

    guess = f" (guessed: {', '.join(sorted(found.guessed))})" if found.guessed else ""
    return Shape(family, f"{sentence}{found.rest()}{guess}", convert)


def natural_family(head: Head) -> type[Row]:
    """What the fields are made for, where no task is given."""
    if head.has(fields.CHOSEN, bool) and head.has(fields.REJECTED, bool):
        return PreferenceRow
    if head.has(fields.CANDIDATES, lambda value: isinstance(value, (list, dict))):
        return RankRow
    if head.has(fields.MESSAGES, fields.is_messages):
        return ChatRow
    if head.has(fields.QUESTION) and head.has(fields.PASSAGE) and head.has(fields.ANSWERS, lambda v: v is not None):
        return AnswerRow
    languages = [field for field in head.fields if field.lower() in fields.LANGUAGES]
    if (head.has(fields.PROMPT_ALONE) and head.has(fields.COMPLETION)) or len(languages) == 2:
        return PairRow
    return LabelRow if head.has(fields.LABEL, fields.is_label) else TextRow


def _ranks(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    """Candidates; preferences (a chosen and a rejected answer) are two of them behind their conversation."""
    named = "rejected" in wanted.columns
    if not named and not (head.has(fields.CHOSEN, bool) and head.has(fields.REJECTED, bool)):
        return answers.ranks(head, wanted)
    sentence, build = conversations.preferences(head, wanted)

    def ranked(record: dict[str, Any], where: Where) -> Row:
        row = build(record, where)
        assert isinstance(row, PreferenceRow)
        return RankRow(row.key, (), (row.chosen, row.rejected), 0, where=where, split=row.split)

    return sentence, ranked


# Nested files


def flatten(records: Iterator[Record], columns: Mapping[str, str], depth: int = 0) -> Iterator[Record]:
    """One record a row. A nested one knows its place: `data[0].paragraphs[2].qas[1]`."""
    dotted = [column for column in columns.values() if "." in column]
    for where, record in records:
        if isinstance(record, Problem):
            yield where, record
        elif depth < _DEEPEST and ("qas" in record or "paragraphs" in record):
            yield from flatten(_questions(record, where), columns, depth + 1)
        elif depth < _DEEPEST and (inside := _wrapped(record)) is not None:
            yield from flatten(_items(record[inside], inside, where), columns, depth + 1)
        else:
            yield where, _lifted(record, dotted)


def _wrapped(record: dict[str, Any]) -> str | None:
    """The field that holds the rows, if the record is nothing but a wrapper around them."""
    lists = [name for name, value in record.items() if isinstance(value, list)]
    return lists[0] if len(lists) == 1 and lists[0] in _WRAPPERS and fields.is_messages(record[lists[0]]) else None


def _items(items: list[Any], name: str, where: Where) -> Iterator[Record]:
    prefix = f"{where.index}." if where.index else ""
    for number, item in enumerate(items):
        place = Where(where.file, where.line, f"{prefix}{name}[{number}]")
        if isinstance(item, dict):
            yield place, item
        else:
            yield place, Problem(place, "", "type", f"holds a {type(item).__name__}, not an object", FILL_IN)


def _questions(record: dict[str, Any], where: Where) -> Iterator[Record]:
    """One step into SQuAD's and CMRC's nesting: articles hold paragraphs, paragraphs hold questions."""
    inside = "qas" if "qas" in record else "paragraphs"
    items = record[inside]
    if not isinstance(items, list) or not items:
        yield where, Problem(where, inside, "missing", "holds no list of questions", FILL_IN)
        return
    outer = {name: value for name, value in record.items() if name not in ("qas", "paragraphs")}
    for place, item in _items(items, inside, where):
        if isinstance(item, Problem):
            yield place, item
        else:
            yield place, {**outer, **item}


def _lifted(record: dict[str, Any], dotted: Sequence[str]) -> dict[str, Any]:
    """The languages of {"translation": {"en": ..., "zh": ...}}, and fields named `a.b`, as fields of their own."""
    pair = record.get("translation")
    if isinstance(pair, dict):
        record = {**{name: value for name, value in record.items() if name != "translation"}, **pair}
        record |= {f"translation.{name}": value for name, value in pair.items() if f"translation.{name}" in dotted}
    for column in dotted:
        value: Any = record
        for part in column.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and column not in record:
            record = {**record, column: value}
    return record


# Texts and labels


def _texts(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    field = head.need("text", "text", fields.TEXT, head.longest_text)
    counts, split = wanted.counts, wanted.split

    def build(record: dict[str, Any], where: Where) -> Row:
        return TextRow(text_of(record, field, counts), where=where, split=split)

    return head.said("text", field), build


def _labels(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    counts, split = wanted.counts, wanted.split
    label, labels = _label_field(head)
    text = head.need("text", "text", fields.TEXT, head.longest_text)
    pair = head.find("text_pair", fields.TEXT_PAIR)
    others = head.texts()
    if pair is None and head.numbered and len(others) == 1 and 4 * head.length(others[0]) > head.length(text):
        pair = head.take("text_pair", others[0])
        head.guessed.add("text_pair")
    classes, said = _classes_that_fit(wanted, labels, head)

    def build(record: dict[str, Any], where: Where) -> Row:
        first = text_of(record, text, counts)
        second = None if pair is None else text_of(record, pair, counts)
        found = labels(record)
        if classes is not None:
            found = tuple(classes.name(name, label) for name in found)
        return LabelRow(first, found, second, where=where, split=split)

    second = "" if pair is None else f", {head.said('second text', pair)}"
    return f"{head.said('text', text)}{second}, {head.said('label', label)}{said}", build


def _label_field(head: Head) -> tuple[str, Callable[[dict[str, Any]], tuple[str, ...]]]:
    """The field of the labels, or several columns of 0 and 1 that the user listed, and how to read it."""
    listed = head.columns.get("label", "")
    columns = [column.strip() for column in listed.split("+")]
    if listed not in head.fields and len(columns) > 1 and all(column in head.fields for column in columns):
        for column in columns:
            head.take("label", column)

        def marked(record: dict[str, Any]) -> tuple[str, ...]:
            return tuple(column for column in columns if _is_marked(record.get(column), column))

        return listed, marked
    field = head.find("label", fields.LABEL, fields.is_label)
    if field is None:
        field = head.need("label", "label", (), head.likely_label)
    return field, lambda record: labels_of(record.get(field), field)


def _is_marked(value: Any, column: str) -> bool:
    if value in (0, 1, "0", "1", "0.0", "1.0"):
        return value in (1, "1", "1.0")
    raise RowError(column, "label", "holds neither 0 nor 1", "correct that row")


def labels_of(value: Any, field: str) -> tuple[str, ...]:
    """One label (a string or a number), or several: a list, also as JSON in a cell of a table."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, list):
        return tuple(dict.fromkeys(_label(item, field) for item in value))
    return (_label(value, field),)


def _label(value: Any, field: str) -> str:
    if isinstance(value, str):
        name = " ".join(value.encode("utf-8", "replace").decode().split())
        if not name:
            raise RowError(field, "label", "the label is empty", FILL_IN)
        return name
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or fields.is_nan(value):
        raise RowError(field, "label", "the label is missing", FILL_IN)
    if isinstance(value, (int, float)):
        return str(int(value)) if value == value // 1 and abs(value) < 2**53 else str(value)
    raise RowError(field, "label", f"holds a {type(value).__name__}, not a label", "write labels as strings or numbers")


def _classes_that_fit(
    wanted: Wanted, labels: Callable[[dict[str, Any]], tuple[str, ...]], head: Head
) -> tuple[Classes | None, str]:
    """The names of integer labels, if there are some and the labels are such integers; and how to say so."""
    classes = wanted.classes
    if classes is None:
        return None, ""
    seen: set[str] = set()
    for record in head.records:
        try:
            seen.update(labels(record))
        except RowError:
            continue
    numbers = {int(label) for label in seen if label.removeprefix("-").isdecimal() and len(label) < 10}
    if len(classes.names) in numbers and 0 not in numbers:
        classes = Classes(classes.names, classes.source, classes.binding, first=1)
    fits = len(numbers) == len(seen) and max(numbers, default=0) - classes.first < len(classes.names)
    if not fits and not classes.binding:
        return None, ""
    wanted.used_classes = classes
    start = ", counted from 1" if classes.first else ""
    return classes, f" (names from {classes.source}{start})"
