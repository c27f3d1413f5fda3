"""Files and folders -> labelled rows for fine-tuning, with a report that accounts for every row.

    examples = read_examples("reviews.csv", "classify")
    examples.rows[0]           LabelRow(text=..., labels=("1",), where=Where("reviews.csv", 2))
    examples.report.lines()    the guess of shape and fields, what is wrong and where

Rows in = rows used + rows reported. The order is that of the files, the same on every call.
docs/examples.md shows every shape that is read.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from gpt2kit.data import folders, sources
from gpt2kit.data.decode import STDIN
from gpt2kit.data.families import (
    FAMILIES,
    TASKS,
    AnswerRow,
    ChatRow,
    LabelRow,
    Message,
    PairRow,
    PreferenceRow,
    Problem,
    RankRow,
    Row,
    TextRow,
    Where,
)
from gpt2kit.data.fields import NAMES
from gpt2kit.data.folders import File
from gpt2kit.data.normalise import normalised
from gpt2kit.data.records import HEAD, open_records, whole_text
from gpt2kit.data.seen import text_hashes
from gpt2kit.data.shapes import flatten, recognise
from gpt2kit.data.sources import SourceReport
from gpt2kit.data.values import Classes, Wanted, clean
from gpt2kit.errors import UserError, unknown
from gpt2kit.wording import plural

__all__ = [
    "FAMILIES", "TASKS", "AnswerRow", "ChatRow", "Examples", "LabelRow", "Message", "PairRow", "PreferenceRow",
    "Problem", "RankRow", "ReadReport", "Row", "TextRow", "Where", "iter_examples", "read_examples", "split_by_hash",
]  # fmt: skip

VALIDATION_FRACTION = 0.1
KEPT_PROBLEMS = 1000  # the others are only counted
_SHOWN = 10  # problems in `lines`


@dataclass
class ReadReport:
    """What reading found. It is filled while rows are read: rows_in = used + reported, at every moment."""

    source: SourceReport = dataclass_field(default_factory=SourceReport)  # files, bytes, encodings
    rows_in: int = 0
    used: int = 0
    reported: int = 0
    problems: list[Problem] = dataclass_field(default_factory=list)  # the first KEPT_PROBLEMS
    kinds: Counter[str] = dataclass_field(default_factory=Counter)  # kind of problem -> rows
    guesses: dict[str, str] = dataclass_field(default_factory=dict)  # file -> its shape and fields, in words
    counts: Counter[str] = dataclass_field(default_factory=Counter)  # what was put right -> how often
    classes: tuple[str, ...] = ()  # names of the classes, in their order, where a list of them was used

    @property
    def notes(self) -> list[str]:
        """What was decided or put right on the way."""
        return [*self.source.notes, *(f"{n:,} {what}" for what, n in self.counts.items() if n)]

    def add(self, problem: Problem) -> None:
        self.reported += 1
        self.kinds[problem.kind] += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)

    def lines(self) -> list[str]:
        """The report as it is printed: the guesses, the counts, the first problems."""
        by_sentence: dict[str, list[str]] = {}
        for file, sentence in self.guesses.items():
            by_sentence.setdefault(sentence, []).append(file)
        shown = [
            f"{files[0]}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}: {sentence}"
            for sentence, files in by_sentence.items()
        ]
        shown.append(f"{plural(self.rows_in, 'row')}: {self.used:,} used, {self.reported:,} not")
        shown += [str(problem) for problem in self.problems[:_SHOWN]]
        if self.reported > _SHOWN:
            kinds = ", ".join(f"{kind} {n:,}" for kind, n in self.kinds.most_common())
            shown.append(f"and {self.reported - _SHOWN:,} more; in all by kind: {kinds}")
        return shown + self.notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds."""
        return {
            "rows_in": self.rows_in,
            "rows_used": self.used,
            "rows_reported": self.reported,
            "kinds": dict(self.kinds),
            "problems": [
                {"file": p.where.file, "line": p.where.line, "index": p.where.index, "field": p.field, "kind": p.kind,
                 "reason": p.reason, "fix": p.fix}
                for p in self.problems
            ],
            "guesses": dict(self.guesses),
            "classes": list(self.classes),
            "notes": self.notes,
        }  # fmt: skip


@dataclass
class Examples:
    """Rows of one family, and how they were read."""

    rows: list[Row]
    family: type[Row]
    report: ReadReport = dataclass_field(default_factory=ReadReport)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels: in the order of the list of classes, numbers by size, else by code point."""
        found = {label for row in self.rows if isinstance(row, LabelRow) for label in row.labels}
        rest = found.difference(self.report.classes)
        return (*self.report.classes, *sorted(rest, key=_place))

    @property
    def multi_label(self) -> bool:
        """Whether some row has not exactly one label."""
        return any(len(row.labels) != 1 for row in self.rows if isinstance(row, LabelRow))

    @property
    def data_hash(self) -> str:
        """SHA-256 over what the rows hold, in their order, wherever they were read from."""
        total = hashlib.sha256()
        for row in self.rows:
            for text in (row.split, row.augmented, row.key, row.target):
                data = text.encode()
                total.update(len(data).to_bytes(8, "little") + data)
        return total.hexdigest()

    def splits(self, validation_fraction: float = VALIDATION_FRACTION) -> dict[str, Examples]:
        """{"train", "validation", "test"} as far as they have rows: as the data says, else validation by hash.

        Validation that the data does not name is taken from the training rows by `split_by_hash`.
        """
        named: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
        for row in self.rows:
            named[row.split or "train"].append(row)
        if not named["validation"]:
            named["train"], named["validation"] = split_by_hash(named["train"], validation_fraction)
        return {name: replace(self, rows=rows) for name, rows in named.items() if rows}

    def to_learn_from(self) -> Examples:
        """The training rows, where the data names parts."""
        rows = [row for row in self.rows if row.split in ("", "train")]
        return replace(self, rows=rows or self.rows)

    def to_score(self) -> tuple[Examples, str]:
        """The rows to score a model on: of the test part, else the validation part, else all; and what to say."""
        for name in ("test", "validation"):
            rows = [row for row in self.rows if row.split == name]
            if rows:
                others = len(self.rows) - len(rows)
                left = f"; {plural(others, 'other row')} of the data not asked" if others else ""
                return replace(self, rows=rows), f"scored on the {name} part, {plural(len(rows), 'row')}{left}"
        return self, ""


def _place(label: str) -> tuple[bool, int, str]:
    """Whole numbers by size, before all other labels."""
    whole = label.isascii() and label.removeprefix("-").isdigit() and len(label) < 10
    return not whole, int(label) if whole else 0, label


def split_by_hash(rows: Sequence[Row], fraction: float = VALIDATION_FRACTION) -> tuple[list[Row], list[Row]]:
    """(training, validation): a row's side depends on 64 bits of the hash of its key alone, compared with `fraction`.

    Rows that are added later move none of the others, and rows of one key stay together (case, width, spaces and
    punctuation do not make another key). Should the hashes leave validation with less than half its share of the
    keys, the keys with the smallest hashes join it; the key with the largest is always for training.
    Raises UserError for a fraction that is none, and for augmented rows: a copy's key differs from its original's.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"validation fraction {fraction} is not between 0 and 1", hint="0.1 puts a tenth aside")
    if any(row.augmented for row in rows):
        raise UserError("augmented rows cannot be split: a copy could be tested on what its original taught",
                        hint="split first, then augment the training rows")  # fmt: skip
    if not rows or not fraction:
        return list(rows), []
    keys = text_hashes([normalised(row.key).encode() for row in rows])[:, 1].tolist()
    ordered = sorted(set(keys))
    share = sum(key < int(fraction * 2**64) for key in ordered)
    if 2 * share < fraction * len(ordered):
        share = max(1, int(fraction / 2 * len(ordered)))
    held = set(ordered[: min(share, len(ordered) - 1)])
    train: list[Row] = []
    validation: list[Row] = []
    for row, key in zip(rows, keys, strict=True):
        (validation if key in held else train).append(row)
    return train, validation


# Reading


def read_examples(
    paths: str | Path | Sequence[str | Path],
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    classes: str | Path | None = None,
    report: ReadReport | None = None,
) -> Examples:
    """All rows of `paths` for a task (families.TASKS; None: what the fields of the first file are made for).

    columns: role -> field, such as {"text": "review", "label": "stars"}; in a table without a line of names the
    number of the column, from 1. Without it the fields are guessed, and the guess is in `report.guesses`.
    classes: a file with one name a line, for labels that are integers; without it a file such as
    `topics-classes.txt` beside `topics-train.tsv` is taken.

    Raises UserError, with the file and where there is one the line: for what cannot be read at all, for fields
    that are not clear, and where not one row can be used.
    """
    report = ReadReport() if report is None else report
    rows = list(iter_examples(paths, task, columns, classes=classes, report=report))
    return Examples(rows, type(rows[0]), report)


def iter_examples(
    paths: str | Path | Sequence[str | Path],
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    classes: str | Path | None = None,
    report: ReadReport | None = None,
) -> Iterator[Row]:
    """As `read_examples`, row by row: memory does not grow with the input. `report` is complete at the end."""
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)
    report = ReadReport() if report is None else report
    listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
    given = None if classes is None else Classes(folders.read_classes(Path(classes)), str(classes), binding=True)
    wanted = Wanted(None if task is None else TASKS[task], columns or {}, given, counts=report.counts)
    files = folders.plan(listed, wanted.family, report.source)
    for file in files:
        yield from _read_file(file, wanted, report)
    if not report.used:
        first = f"; first: {report.problems[0]}" if report.problems else ""
        raise UserError(
            f"{', '.join(map(str, listed))}: no row can be used of {report.rows_in:,}{first}",
            hint="docs/examples.md shows every shape that is read; name the fields: --columns text=NAME,label=NAME",
        )


def _read_file(file: File, wanted: Wanted, report: ReadReport) -> Iterator[Row]:
    source, before = report.source, report.source.read
    if file.label is not None:
        yield from _class_file(file, report)
    elif wanted.family is TextRow and folders.is_plain(file.path) and not wanted.columns:
        yield from _documents(file, report)
    else:
        yield from _records(file, wanted, report)
    source.files += 1
    if str(file.path) != STDIN:
        source.read = before + sources.size_of(Path(file.path))


def _used(row: Row, report: ReadReport) -> Row:
    report.rows_in += 1
    report.used += 1
    return row


def _not_used(problem: Problem, report: ReadReport) -> None:
    report.rows_in += 1
    report.add(problem)


def _documents(file: File, report: ReadReport) -> Iterator[Row]:
    """Plain text as sources.py reads it: documents, long ones in pieces that follow each other."""
    source = report.source
    empty = source.empty_documents
    for document in sources.read_file(file.path, None, source):
        where = Where(document.source, document.line)
        yield _used(TextRow(document.text, document.continues, where=where, split=file.split), report)
    report.guesses[str(file.path)] = "plain text"
    for _ in range(source.empty_documents - empty):
        _not_used(Problem(Where(str(file.path)), "", "empty", "a document without text", "remove it"), report)


def _class_file(file: File, report: ReadReport) -> Iterator[Row]:
    """One text of a folder a class."""
    where, counts = Where(str(file.path)), report.counts
    text = clean(whole_text(Path(file.path), report.source), counts)
    report.guesses[str(Path(file.path).parent)] = f"one text a file, the label is the folder's name, {file.label!r}"
    if not text.strip():
        _not_used(Problem(where, "", "empty", "a file without text", "remove it"), report)
        return
    yield _used(LabelRow(text, (clean(str(file.label), counts),), where=where, split=file.split), report)


def _records(file: File, wanted: Wanted, report: ReadReport) -> Iterator[Row]:
    opened = open_records(file.path, report.source, wanted.columns.values(), NAMES)
    found = flatten(opened.records, wanted.columns)
    first = list(itertools.islice(found, HEAD))
    head = [(where, record) for where, record in first if not isinstance(record, Problem)]
    if not head:
        for where, record in itertools.chain(first, found):
            _not_used(record if isinstance(record, Problem) else _late(where), report)
        if not first:
            report.source.empty_files += 1
            report.source.notes.append(f"{file.path} holds no rows")
        return
    classes = wanted.classes
    if classes is None and wanted.family in (None, LabelRow):
        classes = folders.classes_beside(file.path, list(head[0][1]))
    here = replace(wanted, classes=classes, split=file.split, used_classes=None)
    shape = recognise(head, here, opened.numbered)
    if here.used_classes is not None:
        report.classes = tuple(dict.fromkeys((*report.classes, *here.used_classes.names)))
    report.guesses[str(file.path)] = f"{opened.form}; {shape.sentence}"
    if wanted.family is None:
        wanted.family = shape.family
    for where, record in itertools.chain(first, found):
        row = record if isinstance(record, Problem) else shape.convert(record, where)
        if isinstance(row, Problem):
            _not_used(row, report)
        else:
            yield _used(row, report)


def _late(where: Where) -> Problem:
    """A good record after HEAD bad ones: too late to tell a shape from it."""
    return Problem(where, "", "shape", f"the {HEAD} records before it are not usable", "correct those first")
