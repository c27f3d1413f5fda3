"""The values that a field of a search can take: some, or a range of numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2kit.errors import UserError

DIGITS = 3  # of a drawn number: nobody types more, and no loss depends on more


@dataclass(frozen=True)
class Choice:
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values


@dataclass(frozen=True)
class Range:
    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def rounded(self, value: float) -> int | float:
        """As it is typed: to DIGITS places, inside the range."""
        return int(value) if self.whole else min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


Space = Mapping[str, Choice | Range]


def grid(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination, the last field changing fastest. UserError for a range of numbers that are not whole."""
    axes = []
    for name, held in space.items():
        if isinstance(held, Range) and not held.whole:
            example = f"{name}={held.low:g}|{math.sqrt(held.low * held.high) if held.log else held.high / 2:.2g}"
            raise UserError(
                f"--space: a grid needs the values of {name} one by one", hint=f'such as --space "{example}"'
            )
        axes.append(held.values if isinstance(held, Choice) else range(int(held.low), int(held.high) + 1))
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*axes))
