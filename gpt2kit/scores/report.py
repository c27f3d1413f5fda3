"""What an evaluation leaves behind: report.json for programs, report.html for people.

report.json has the scores' own shape ("metrics", "protocol", "notes"), so `Scores.from_dict` reads it, and beside them
everything that the page shows. The same report gives the same bytes: no time of day, no machine.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.scores.classification import Bin, Confusion
from gpt2kit.scores.comparison import Comparison, compare_what_can_be
from gpt2kit.scores.intervals import Resampling, mean_interval
from gpt2kit.scores.result import Scores, check_pairs

JSON, HTML = "report.json", "report.html"
FORMAT = 1
TEXT = "text"  # the task where nothing is asked: its examples are texts alone
WORST = 20
LENGTH_BINS = 8
SMALLEST_BIN = 5  # examples


@dataclass(frozen=True)
class Example:
    """One example as it was answered. `score` is the figure that makes it one of the worst."""

    input: str
    gold: str
    predicted: str
    score: float


@dataclass(frozen=True)
class LengthBin:
    """Examples whose inputs have `shortest` to `longest` characters: how many, and their mean with its interval."""

    shortest: int
    longest: int
    count: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LossPoint:
    """A step of training: the loss of its batch, or of the validation set, or both. Nats per token."""

    step: int
    training: float | None = None
    validation: float | None = None


@dataclass(frozen=True)
class Beside:
    """Another system on the same examples, such as a baseline: its name, its scores, and the comparisons with it.

    `refused` says of a metric that both have why the two figures cannot be compared.
    """

    name: str
    scores: Scores
    comparisons: tuple[Comparison, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, scores: Scores, ours: Scores) -> Self:
        """With every comparison of `ours` against the other's `scores` that can be made."""
        return cls(name, scores, *compare_what_can_be(scores, ours))

    def to_dict(self) -> dict[str, Any]:
        """JSON's shape."""
        compared = {"comparisons": [one.to_dict() for one in self.comparisons]}
        return {"name": self.name, **self.scores.to_dict(), **compared, "refused": dict(self.refused)}


@dataclass(frozen=True)
class Report:
    """Everything that a report shows; what is empty is left out of the page.

    `example_score` names what `Example.score` is, `length_score` what the lengths' values are where that is another: a
    metric's name, or words. `diff` marks what differs between a prediction and its reference, for texts.
    """

    title: str
    scores: Scores
    task: str = ""
    beside: tuple[Beside, ...] = ()
    confusion: Confusion | None = None
    per_class: Mapping[str, Scores] = field(default_factory=dict)
    reliability: tuple[Bin, ...] = ()
    lengths: tuple[LengthBin, ...] = ()
    losses: tuple[LossPoint, ...] = ()
    examples: tuple[Example, ...] = ()
    example_score: str = ""
    length_score: str = ""
    diff: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON's shape: the scores at the top, then what the page shows."""
        found: dict[str, Any] = {"format": FORMAT, "title": self.title, "task": self.task, **self.scores.to_dict()}
        if self.confusion is not None:
            found["confusion"] = {"labels": list(self.confusion.labels), "counts": self.confusion.counts.tolist()}
        found["per_class"] = {label: scores.to_dict()["metrics"] for label, scores in self.per_class.items()}
        found["beside"] = [other.to_dict() for other in self.beside]
        for name in ("reliability", "lengths", "losses", "examples"):
            found[name] = [asdict(item) for item in getattr(self, name)]
        found |= {"example_score": self.example_score, "length_score": self.length_score}
        found |= {"settings": dict(self.settings), "lineage": dict(self.lineage)}
        always = {"format", "title", "task", "metrics", "protocol"}
        return {key: value for key, value in found.items() if value or key in always}


def write_report(folder: str | Path, report: Report, language: str = "en") -> Path:
    """Write report.json and report.html into `folder`, each whole or not at all; the path of the page.

    The page holds both languages; `language` is the one that it opens in.
    """
    from gpt2kit.scores.page import render

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a report needs a folder", hint="name another place")
    page = render(report, language).encode("utf-8")
    commit.replace_json(folder / JSON, report.to_dict())
    temporary = folder / f".{HTML}.{secrets.token_hex(4)}"
    try:
        temporary.write_bytes(page)
        commit.fsync_path(temporary)
        os.replace(temporary, folder / HTML)
        commit.fsync_path(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{folder / HTML} cannot be written: {error.strerror or error}") from error
    return folder / HTML


def worst(
    inputs: Sequence[str],
    gold: Sequence[Any],
    predicted: Sequence[Any],
    values: Any,
    count: int = WORST,
) -> tuple[Example, ...]:
    """The examples with the lowest values, [N], worst first; of equals the shorter input, which is read faster.

    Several references are joined by " / ".
    """
    check_pairs(gold, predicted, inputs)
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (len(gold),) or not np.isfinite(found).all():
        raise UserError(f"{len(gold):,} examples need as many finite values, got {found.shape}")
    order = sorted(range(len(gold)), key=lambda i: (found[i], len(inputs[i]), i))[:count]
    return tuple(Example(inputs[i], _text(gold[i]), _text(predicted[i]), float(found[i])) for i in order)


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else " / ".join(map(str, answer)) if _several(answer) else str(answer)


def _several(answer: Any) -> bool:
    return isinstance(answer, Sequence) and not isinstance(answer, str)


def by_length(
    inputs: Sequence[str], values: Any, bins: int = LENGTH_BINS, resampling: Resampling | None = None
) -> tuple[LengthBin, ...]:
    """The mean of values [N] in groups of inputs of like length, about as many examples in each.

    Examples of one length stay together. At most so many groups that 5 examples fall to each on average.
    """
    check_pairs(inputs, values)
    resampling = resampling or Resampling()
    lengths = np.array([len(text) for text in inputs])
    found = np.asarray(values, dtype=np.float64)
    bins = max(1, min(bins, len(inputs) // SMALLEST_BIN))
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, lengths, side="left")
    result = []
    for group in np.unique(place):
        inside = place == group
        bounded = bool(found.min() >= 0 and found.max() <= 1)
        interval = mean_interval(found[inside], resampling, bounded)
        shortest, longest = int(lengths[inside].min()), int(lengths[inside].max())
        result.append(LengthBin(shortest, longest, int(inside.sum()), interval.value, interval.low, interval.high))
    return tuple(result)


def losses_of(rows: Sequence[Mapping[str, Any]]) -> tuple[LossPoint, ...]:
    """The losses in the rows of a run's metrics.jsonl; other rows, and losses that are not finite, are passed over."""
    points: dict[int, dict[str, float]] = {}
    for row in rows:
        for event, key, kind in (("step", "loss", "training"), ("evaluation", "validation_loss", "validation")):
            value = row.get(key)
            if row.get("event") == event and isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(int(row["step"]), {})[kind] = float(value)
    return tuple(LossPoint(step, **kinds) for step, kinds in sorted(points.items()))
