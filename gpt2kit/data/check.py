"""What is wrong with labelled data before it is learned: balance, lengths, duplicates, conflicts, leaks.

    report = check(read_examples("reviews.csv", "classify"), tokenizer, context=256)
    report.lines()       for people
    report.to_dict()     for programs

Texts count as the same where they differ in nothing but case, width, spaces and punctuation (`normalised`).
The same rows give the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.examples import Examples, ReadReport
from gpt2kit.data.families import FAMILIES, AnswerRow, ChatRow, LabelRow, PairRow, PreferenceRow, RankRow, Row, TextRow
from gpt2kit.data.normalise import normalised
from gpt2kit.data.seen import Hashes, SeenHashes, text_hashes
from gpt2kit.errors import UserError

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

Level = Literal["error", "warning", "note"]

PERCENTILES = (5, 50, 90, 95, 99)
BATCH = 1_000_000  # characters tokenised at a time
RARE = 10  # rows of a label in training, below which it is hardly learned
UNBALANCED = 10  # times as many rows as another label
_PLACES = 5  # shown of each finding
_LABELS = 20  # shown of the balance
_GIVEN: Mapping[type[Row], str] = {  # what `key` is
    TextRow: "text",
    LabelRow: "text",
    PairRow: "prompt",
    ChatRow: "opening",
    AnswerRow: "passage",
    PreferenceRow: "conversation",
    RankRow: "query",
}


@dataclass(frozen=True)
class Finding:
    """One thing to know. error: training on it makes no sense; warning: scores will be worse or wrong; note: as it is.

    kind: unused, empty-split, one-label, unseen-labels, rare-labels, unbalanced, too-long, duplicates,
    near-duplicates, conflicts, several-targets, unchanged, leaks or augmented.
    """

    level: Level
    kind: str
    split: str
    count: int
    message: str
    fix: str = ""
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Length of the rows of a split in `unit`, without the words of a template. over: rows beyond the context."""

    unit: Literal["tokens", "characters"]
    mean: float
    percentiles: dict[int, int]
    longest: int
    longest_at: str
    over: int = 0


@dataclass
class Report:
    """What `check` found: rows, labels and lengths of each split, and the findings, the worst first."""

    family: str
    context: int | None
    rows: dict[str, int] = dataclass_field(default_factory=dict)
    labels: dict[str, dict[str, int]] = dataclass_field(default_factory=dict)
    lengths: dict[str, Lengths] = dataclass_field(default_factory=dict)
    findings: list[Finding] = dataclass_field(default_factory=list)
    reading: list[ReadReport] = dataclass_field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing was found on which training makes no sense."""
        return not any(finding.level == "error" for finding in self.findings)

    def lines(self) -> list[str]:
        """The report as it is printed."""
        shown = [line for report in self.reading for line in report.lines()]
        for split, count in self.rows.items():
            shown.append(f"{split}: {count:,} {self.family}{self._balance(split, count)}")
            if split in self.lengths:
                shown.append(f"{split}: {self._length(self.lengths[split])}")
        for finding in self.findings:
            fix = f" ({finding.fix})" if finding.fix else ""
            shown.append(f"{finding.level}: {finding.message}{fix}")
            shown += [f"    {place}" for place in finding.places]
        return shown

    def _balance(self, split: str, rows: int) -> str:
        counts = self.labels.get(split)
        if not counts:
            return ""
        shown = [f"{name} {n:,} ({_share(n, rows)})" for name, n in list(counts.items())[:_LABELS]]
        more = f" and {len(counts) - _LABELS:,} labels more" if len(counts) > _LABELS else ""
        most = max(counts, key=lambda name: counts[name])
        always = (
            f"; always {most!r} would be right in {_share(counts[most], rows)}" if sum(counts.values()) == rows else ""
        )
        return f"; {', '.join(shown)}{more}{always}"

    @staticmethod
    def _length(lengths: Lengths) -> str:
        shown = ", ".join(f"{p} % up to {n:,}" for p, n in lengths.percentiles.items() if p > 50)
        middle = f"mean {lengths.mean:,.1f}, median {lengths.percentiles[50]:,}"
        return f"{lengths.unit} a row: {middle}, {shown}, longest {lengths.longest:,} ({lengths.longest_at})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON holds."""
        return {
            "family": self.family,
            "context": self.context,
            "usable": self.usable,
            "rows": dict(self.rows),
            "labels": {split: dict(counts) for split, counts in self.labels.items()},
            "lengths": {
                split: asdict(found) | {"percentiles": {str(p): n for p, n in found.percentiles.items()}}
                for split, found in self.lengths.items()
            },
            "findings": [asdict(finding) | {"places": list(finding.places)} for finding in self.findings],
            "reading": [report.to_dict() for report in self.reading],
        }


def check(
    examples: Examples,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    splits: Mapping[str, Examples] | None = None,
) -> Report:
    """Look at `examples`, by the splits that they name ("train" where they name none), and at further `splits`.

    With a tokenizer lengths are in tokens, and with a context in tokens rows beyond it are counted.
    Raises UserError where the splits are of different families, and for a split that is given twice.
    """
    parts, reading = _parts(examples, splits or {})
    report = Report(FAMILIES[examples.family], context, reading=reading)
    for read in reading:
        if read.reported:
            report.findings.append(_unused(read))
    marks = {}
    for split, rows in parts.items():
        report.rows[split] = len(rows)
        if rows:
            marks[split] = _Marks(rows)
            report.lengths[split] = _lengths(rows, tokenizer, context)
            report.findings += _inside(split, rows, marks[split], report.lengths[split], context)
        else:
            message = f"{split}: no rows"
            report.findings.append(
                Finding("error" if split == "train" else "warning", "empty-split", split, 0, message)
            )
    if issubclass(examples.family, LabelRow):
        report.labels = {split: _counted(rows, examples.labels) for split, rows in parts.items()}
        report.findings += _label_findings(report.labels, report.rows, examples.multi_label)
    report.findings += _leaks(parts, marks)
    report.findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.level))
    return report


def _parts(examples: Examples, splits: Mapping[str, Examples]) -> tuple[dict[str, list[Row]], list[ReadReport]]:
    """(rows of each split, training first; the reports of how they were read)."""
    parts: dict[str, list[Row]] = {"train": []}
    for row in examples.rows:
        parts.setdefault(row.split or "train", []).append(row)
    reading = [examples.report]
    for name, more in splits.items():
        if more.family is not examples.family:
            raise UserError(f"{name} holds {FAMILIES[more.family]}, the training data {FAMILIES[examples.family]}",
                            hint="read both for the same task")  # fmt: skip
        if parts.get(name):
            raise UserError(f"the data has a split {name!r} of its own", hint="give the further one another name")
        parts[name] = list(more.rows)
        if all(more.report is not report for report in reading):
            reading.append(more.report)
    return parts, reading


def _unused(read: ReadReport) -> Finding:
    kinds = ", ".join(f"{kind} {n:,}" for kind, n in read.kinds.most_common())
    message = f"{read.reported:,} of {read.rows_in:,} rows cannot be used: {kinds}"
    level: Level = "error" if read.reported > read.used else "warning"
    return Finding(level, "unused", "", read.reported, message, "correct or remove them")


# One split


class _Marks:
    """Hashes of the rows of a split: exact and normalised, of what is given and of the whole row. [N, 2] each."""

    def __init__(self, rows: Sequence[Row]) -> None:
        keys = [row.key.encode() for row in rows]
        near = [normalised(row.key).encode() for row in rows]
        targets = [row.target.encode() for row in rows]
        labels = isinstance(rows[0], LabelRow)  # "C" and "C++" are two labels
        near_targets = targets if labels else [normalised(row.target).encode() for row in rows]
        self.key = text_hashes(keys)
        self.near_key = text_hashes(near)
        self.row = text_hashes([key + b"\0" + target for key, target in zip(keys, targets, strict=True)])
        self.near_row = text_hashes([key + b"\0" + target for key, target in zip(near, near_targets, strict=True)])


def _first(hashes: Hashes) -> NDArray[np.int64]:
    """[N] the first row of the same hash."""
    _, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[inverse.reshape(-1)], np.int64)


def _inside(split: str, rows: Sequence[Row], marks: _Marks, lengths: Lengths, context: int | None) -> Iterator[Finding]:
    found = _Findings(split, len(rows))
    here = np.arange(len(rows))
    exact, near, key = _first(marks.row), _first(marks.near_row), _first(marks.near_key)
    again = exact != here
    alike = (near != here) & ~again
    drop = "remove them: they count twice in learning and in scores"
    text = "exact duplicates of an earlier row"
    yield from found("warning", "duplicates", again.sum(), text, drop, _couples(rows, again, exact))
    text = "differ from an earlier row in case, width, spaces or punctuation only"
    yield from found("warning", "near-duplicates", alike.sum(), text, drop, _couples(rows, alike, near))
    differ = np.array([rows[int(k)].target != row.target for row, k in zip(rows, key, strict=True)]) & (near == here)
    if isinstance(rows[0], LabelRow):
        text = "have the text of an earlier row and not its labels"
        yield from found("warning", "conflicts", differ.sum(), text, "decide for one", _couples(rows, differ, key))
    elif isinstance(rows[0], (PairRow, PreferenceRow, RankRow)):
        text = f"have the {_GIVEN[type(rows[0])]} of an earlier row and not its answer"
        yield from found("note", "several-targets", differ.sum(), text)
    same = [row for row in rows if isinstance(row, PairRow) and row.prompt.strip() == row.completion.strip()]
    fix = "right for sentences without a mistake, wrong for translations"
    places = tuple(str(row.where) for row in same[:_PLACES])
    yield from found("note", "unchanged", len(same), "the completion is the prompt, unchanged", fix, places)
    text = f"longer than the context of {context} tokens"
    if isinstance(rows[0], (AnswerRow, TextRow)):
        fate = "read in windows" if isinstance(rows[0], AnswerRow) else "learned piece by piece"
        yield from found("note", "too-long", lengths.over, f"{text}, they are {fate}")
    else:
        yield from found(
            "warning", "too-long", lengths.over, f"{text}, they would be cut", "a longer context, or shorter texts"
        )
    made = Counter(row.augmented for row in rows if row.augmented)
    text = f"augmented ({', '.join(f'{name} {n:,}' for name, n in sorted(made.items()))})"
    if split == "train":
        yield from found("note", "augmented", made.total(), text)
    else:
        yield from found("error", "augmented", made.total(), text, "measure on real rows only")


@dataclass(frozen=True)
class _Findings:
    """Makes findings of one split; none for a count of 0."""

    split: str
    rows: int

    def __call__(
        self, level: Level, kind: str, count: int, text: str, fix: str = "", places: tuple[str, ...] = ()
    ) -> Iterator[Finding]:
        count = int(count)
        if count:
            message = f"{self.split}: {text}: {count:,} of {self.rows:,} rows ({_share(count, self.rows)})"
            yield Finding(level, kind, self.split, count, message, fix, places)


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %"


def _couples(rows: Sequence[Row], which: NDArray[np.bool_], first: NDArray[np.int64]) -> tuple[str, ...]:
    """`a.csv line 7 = a.csv line 2: The film ...`"""
    return tuple(
        f"{rows[n].where} = {rows[int(first[n])].where}: {_short(rows[n].key)}"
        for n in np.flatnonzero(which)[:_PLACES].tolist()
    )


def _short(text: str) -> str:
    line = " ".join(text[:200].split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _lengths(rows: Sequence[Row], tokenizer: Tokenizer | None, context: int | None) -> Lengths:
    found = np.concatenate([_sizes(texts, tokenizer) for texts in _batches(rows)])
    longest = int(found.argmax())
    return Lengths(
        unit="characters" if tokenizer is None else "tokens",
        mean=round(float(found.mean()), 2),
        percentiles={p: int(np.percentile(found, p, method="lower")) for p in PERCENTILES},
        longest=int(found[longest]),
        longest_at=str(rows[longest].where),
        over=0 if tokenizer is None or context is None else int((found > context).sum()),
    )


def _batches(rows: Sequence[Row]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for row in rows:
        batch.append(row.longest)
        characters += len(batch[-1])
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _sizes(texts: list[str], tokenizer: Tokenizer | None) -> NDArray[np.int64]:
    sizes = map(len, texts) if tokenizer is None else map(len, tokenizer.encode_batch(texts))
    return np.fromiter(sizes, np.int64, len(texts))


# Labels


def _counted(rows: Sequence[Row], order: Sequence[str]) -> dict[str, int]:
    """label -> rows, in the order of labels; those of this split alone come last."""
    counts = Counter(label for row in rows if isinstance(row, LabelRow) for label in row.labels)
    listed = {label: counts[label] for label in order if counts[label]}
    return listed | {label: counts[label] for label in sorted(counts) if label not in listed}


def _label_findings(
    labels: Mapping[str, Mapping[str, int]], rows: Mapping[str, int], multi_label: bool
) -> Iterator[Finding]:
    train, total = labels["train"], rows["train"]
    if not total:
        return
    most, least = max(train.values(), default=0), min(train.values(), default=0)
    name_it = "name the right field: --columns label=NAME"
    if len(train) < 2 and not multi_label:
        message = f"train: all rows have the same label, {next(iter(train))!r}"
        yield Finding("error", "one-label", "train", total, message, f"add rows of another label, or {name_it}")
    rare = [label for label, n in train.items() if n < RARE]
    if 2 * len(train) > total > RARE:
        message = f"train: {len(train):,} labels on {total:,} rows: that is hardly the field of the labels"
        yield Finding("warning", "rare-labels", "train", len(train), message, name_it)
    elif rare and len(train) > 1:
        shown = ", ".join(f"{label!r} {train[label]}" for label in rare[:_LABELS])
        message = f"train: labels with fewer than {RARE} rows: {shown}{' ...' if len(rare) > _LABELS else ''}"
        yield Finding("warning", "rare-labels", "train", len(rare), message, "add rows, or join labels")
    if most > UNBALANCED * least:
        message = f"train: the commonest label has {most:,} rows, the rarest {least:,}"
        yield Finding("note", "unbalanced", "train", len(train), message, "look at macro F1 beside accuracy")
    for split, counts in labels.items():
        unseen = [label for label in counts if label not in train]
        text = f"labels that training never saw ({', '.join(map(repr, unseen[:_LABELS]))})"
        fix = "add them to training, or spell them the same way"
        found = _Findings(split, rows[split])
        yield from found("error", "unseen-labels", sum(counts[label] for label in unseen), text, fix)


# Between splits


def _leaks(parts: Mapping[str, Sequence[Row]], marks: Mapping[str, _Marks]) -> Iterator[Finding]:
    names = list(marks)
    for at, first in enumerate(names):
        seen, seen_near = SeenHashes(), SeenHashes()
        seen.add(marks[first].key)
        seen_near.add(marks[first].near_key)
        for second in names[at + 1 :]:
            rows, near = parts[second], seen_near.contains(marks[second].near_key)
            exact = int(seen.contains(marks[second].key).sum())
            places = []
            for n in np.flatnonzero(near)[:_PLACES].tolist():
                other = parts[first][int((marks[first].near_key == marks[second].near_key[n]).all(axis=1).argmax())]
                places.append(f"{rows[n].where} = {other.where}: {_short(rows[n].key)}")
            text = f"their {_GIVEN[type(rows[0])]} is also in {first} ({exact:,} exactly)"
            fix = f"remove them from {first}: scores on {second} are too good"
            yield from _Findings(second, len(rows))("warning", "leaks", near.sum(), text, fix, tuple(places))
