"""A figure with its interval, its unit and its protocol; several of them, as JSON and back.

The shape of the JSON:
    metrics     name -> {"value": 0.91, "low": 0.906, "high": 0.913, "n": 25000, "unit": "fraction"}
    protocol    what all protocols say alike, and under "metrics" name -> what only this one says
    notes       what could not be measured, and why
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpt2kit.errors import UserError, unknown
from gpt2kit.scores.intervals import Combine, Floats, Interval, Resampling, mean_interval, ratio

FRACTION = "fraction"  # from 0 to 1
POINTS = "points"  # from 0 to 100, as sacrebleu prints them


@dataclass(frozen=True)
class TestSet:
    """What was scored on: `name` is the same in any order of the examples, `order` is not."""

    name: str
    order: str

    __test__ = False  # pytest takes names in Test for tests

    @classmethod
    def of(cls, references: Sequence[Any], inputs: Sequence[str] | None = None) -> TestSet:
        """From the right answers, and the inputs where they are known (labels alone tell few test sets apart)."""
        rows: Iterable[Any] = references if inputs is None else zip(inputs, references, strict=True)
        digests = [hashlib.sha256(json.dumps(row, default=str).encode()).digest() for row in rows]
        prefix = "references" if inputs is None else "inputs and references"
        name = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
        return cls(f"{prefix}, {len(digests)} examples, sha256 {name}", hashlib.sha256(b"".join(digests)).hexdigest())


@dataclass(frozen=True, eq=False)
class Examples:
    """What a paired comparison needs of each example: the sums [N, K] and what makes the metric of them.

    `values` [N] is one figure an example, for lists of the worst and for plots. Never saved.
    """

    parts: Floats
    combine: Combine
    order: str
    values: Floats | None = None


@dataclass(frozen=True)
class Score:
    """One figure. `n` counts what was scored, examples unless the protocol says otherwise.

    `low` and `high` are None where no interval could be drawn, never NaN. `protocol` holds everything that must be
    equal before two such figures are compared, and how the interval was drawn.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    examples: Examples | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        ends = [end for end in (self.low, self.high) if end is not None]
        assert all(math.isfinite(x) for x in (self.value, *ends)), f"{self.name} is not finite"
        assert len(ends) != 2 or ends[0] <= self.value <= ends[1], f"{self.name} lies outside its interval"

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "unit": self.unit}

    def interval_text(self, form: str = ".4g") -> str:
        """The interval for people: "(no spread)" where resampling shows none, which is no certainty; "" without one."""
        if self.low is None or self.high is None:
            return ""
        if self.protocol.get("interval") == "none":
            return "(no spread)"
        return f"[{self.low:{form}}, {self.high:{form}}]"

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} {self.interval_text()}".rstrip()


def measured(
    name: str,
    interval: Interval,
    n: int,
    unit: str,
    test: TestSet,
    resampling: Resampling,
    examples: tuple[Floats, Combine] | None = None,
    values: Floats | None = None,
    **protocol: Any,
) -> Score:
    """A Score with the protocol that all of them carry, and what is its own."""
    full = {"test_set": test.name, **resampling.protocol, **interval.protocol, **protocol}
    kept = None if examples is None else Examples(*examples, test.order, values)
    return Score(name, interval.value, interval.low, interval.high, n, unit, full, kept)


def mean_of(
    name: str,
    values: Floats,
    test: TestSet,
    resampling: Resampling,
    unit: str = FRACTION,
    interval: Interval | None = None,
    **protocol: Any,
) -> Score:
    """The mean of one value an example, [N]: fractions, or points from 0 to 100."""
    interval = interval or mean_interval(values, resampling, bounded=unit == FRACTION)
    parts = np.column_stack([values, np.ones(len(values))])
    return measured(name, interval, len(values), unit, test, resampling, (parts, ratio), values, **protocol)


@dataclass(frozen=True)
class Scores:
    """Scores by name, in order. `notes` say what could not be measured, and why."""

    items: tuple[Score, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [score.name for score in self.items]
        assert len(set(names)) == len(names), f"a metric is named twice: {names}"

    def __getitem__(self, name: str) -> Score:
        for score in self.items:
            if score.name == name:
                return score
        raise unknown("metric", name, [score.name for score in self.items])

    def __contains__(self, name: object) -> bool:
        return any(score.name == name for score in self.items)

    def __iter__(self) -> Iterator[Score]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __add__(self, other: Scores) -> Scores:
        """Both, of one test set or of several."""
        return Scores(self.items + other.items, tuple(dict.fromkeys(self.notes + other.notes)))

    def prefixed(self, prefix: str) -> Scores:
        """The same under names that begin with `prefix`, such as "dev_"."""
        return Scores(tuple(replace(score, name=prefix + score.name) for score in self.items), self.notes)

    def to_dict(self) -> dict[str, Any]:
        """JSON's shape. What all protocols say alike stands once."""
        first = self.items[0].protocol if self.items else {}
        shared = {
            key: value
            for key, value in first.items()
            if all(key in score.protocol and score.protocol[key] == value for score in self.items)
        }
        own = {score.name: {k: v for k, v in score.protocol.items() if k not in shared} for score in self.items}
        protocol: dict[str, Any] = dict(shared)
        if any(own.values()):
            protocol["metrics"] = {name: value for name, value in own.items() if value}
        found: dict[str, Any] = {"metrics": {s.name: s.to_dict() for s in self.items}, "protocol": protocol}
        return found | ({"notes": list(self.notes)} if self.notes else {})

    @classmethod
    def from_dict(cls, saved: Any) -> Scores:
        """What `to_dict` made. UserError names the metric and the field that is wrong."""
        metrics = saved.get("metrics") if isinstance(saved, Mapping) else None
        if not isinstance(metrics, Mapping):
            raise UserError("these are no scores: there is no object 'metrics'", hint="gpt2kit evaluate writes them")
        protocol = saved.get("protocol", {})
        if not isinstance(protocol, Mapping) or not isinstance(protocol.get("metrics", {}), Mapping):
            raise UserError("the protocol of the scores is not an object")
        shared = {key: value for key, value in protocol.items() if key != "metrics"}
        own = protocol.get("metrics", {})
        items = tuple(_read(name, value, {**shared, **own.get(name, {})}) for name, value in metrics.items())
        notes = saved.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise UserError("the notes of the scores are not a list of strings")
        return cls(items, tuple(notes))


def _read(name: str, saved: Any, protocol: Mapping[str, Any]) -> Score:
    if not isinstance(saved, Mapping):
        raise UserError(f"the metric {name!r} is not an object with value, low and high")

    def number(key: str, optional: bool = False) -> float:
        value = saved.get(key)
        if value is None and optional:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"metric {name!r}: {key} is {value!r}, not a finite number")
        return float(value)

    value, low, high = number("value"), number("low", True), number("high", True)
    if low > value or high < value:
        raise UserError(f"metric {name!r}: the value {value} is not between low {low} and high {high}")
    n, unit = saved.get("n", 1), saved.get("unit", "")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1 or not isinstance(unit, str):
        raise UserError(f"metric {name!r}: n must be a whole number from 1 and unit a string, got {n!r} and {unit!r}")
    ends = [None if math.isnan(end) else end for end in (low, high)]
    return Score(name, value, ends[0], ends[1], n, unit, dict(protocol))


def check_pairs(gold: Sequence[Any], predicted: Sequence[Any], inputs: Sequence[str] | None = None) -> None:
    """UserError for an empty set and for lists of different lengths."""
    if len(gold) == 0:
        raise UserError("there are no examples to score", hint="check the path and the fields of the test set")
    if len(gold) != len(predicted):
        raise UserError(f"{len(predicted):,} predictions for {len(gold):,} references", hint="give one for each")
    if inputs is not None and len(inputs) != len(gold):
        raise UserError(f"{len(inputs):,} inputs for {len(gold):,} references", hint="give one for each")
