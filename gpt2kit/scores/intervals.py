"""Intervals by resampling examples: the bootstrap, percentile and BCa, seeded and without a loop over examples.

A metric is written as sums over examples and a function of the sums: accuracy is (right, 1) and a quotient, F1 is
three counts a class, BLEU ten counts a sentence. A resample then is a product of counts with the examples' rows,
and leaving an example out is a subtraction.

Equal rows are one group, in sorted order: the order of the examples cannot change a bit of the result, and the
25,000 rows of an accuracy are two groups.

Shapes: N examples, G groups, K sums, R resamples.
Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import UserError

Floats = NDArray[np.float64]
Combine = Callable[[Floats], Floats]  # sums [..., K] -> values [...], NaN where the metric is undefined
Method = Literal["bca", "percentile"]
COUNTS_PER_CHUNK = 1 << 22  # 32 MB of resampled counts at a time
MULTINOMIAL_GROUPS = 1024  # up to here drawing a group's count is faster than drawing its examples
NORMAL = NormalDist()


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn: `resamples` of them, `confidence` of the mass between the ends, from `seed`."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    method: Method = "bca"

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise UserError(f"an interval needs at least 100 resamples, got {self.resamples}")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"confidence must be from 0.5 to below 1, got {self.confidence}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        if self.method not in ("bca", "percentile"):
            raise UserError(f"the method of an interval is 'bca' or 'percentile', got {self.method!r}")

    @property
    def protocol(self) -> dict[str, Any]:
        """What belongs beside every interval that was drawn so."""
        return {"resamples": self.resamples, "confidence": self.confidence, "seed": self.seed}


@dataclass(frozen=True)
class Interval:
    """`low` <= `value` <= `high`, and how the ends were found.

    `method`: "bca", "percentile", "jackknife", "exact" (Clopper and Pearson) or "none": the examples are all alike, so
    resampling shows no spread and the ends are the value. `undefined` resamples, of one class for instance, are left
    out. `widened`: an end was moved to the value, which lay outside; a sign of a biased metric on few examples.
    """

    value: float
    low: float
    high: float
    method: str
    undefined: int = 0
    widened: bool = False

    @property
    def protocol(self) -> dict[str, Any]:
        found: dict[str, Any] = {"interval": self.method}
        if self.undefined:
            found["undefined_resamples"] = self.undefined
        if self.widened:
            found["widened"] = True
        return found


class Sample:
    """Rows of sums [N, K], grouped: `rows` [G, K] in sorted order and `counts` [G].

    `keys` [N, k] are grouped by instead of the rows where given; examples with equal keys must have equal rows.
    """

    def __init__(self, parts: Any, keys: Any = None) -> None:
        parts = np.asarray(parts, dtype=np.float64)
        if len(parts) == 0:
            raise UserError("there are no examples to score")
        parts = parts.reshape(len(parts), -1)
        assert np.isfinite(parts).all(), "sums over examples must be finite"
        by = parts if keys is None else np.asarray(keys).reshape(len(parts), -1)
        by = by[:, 0] if by.shape[1] == 1 else by
        _, first, counts = np.unique(by, axis=0, return_index=True, return_counts=True)
        self.rows: Floats = parts[first]
        self.counts: NDArray[np.int64] = counts.astype(np.int64)
        self.size = len(parts)

    @property
    def totals(self) -> Floats:
        """The sums over all examples, [K]."""
        totals: Floats = self.counts.astype(np.float64) @ self.rows
        return totals

    def weights(self, resamples: int, seed: int) -> Iterator[Floats]:
        """How often each group is drawn: chunks [r, G] of R rows; each row sums to N."""
        rng = np.random.default_rng(seed)
        groups = len(self.rows)
        step = max(1, COUNTS_PER_CHUNK // (groups if groups <= MULTINOMIAL_GROUPS else self.size))
        member = np.repeat(np.arange(groups), self.counts)
        for begin in range(0, resamples, step):
            r = min(step, resamples - begin)
            if groups <= MULTINOMIAL_GROUPS:
                yield rng.multinomial(self.size, self.counts / self.size, size=r).astype(np.float64)
                continue
            drawn = rng.integers(0, self.size, size=(r, self.size))
            drawn = (drawn if groups == self.size else member[drawn]) + np.arange(r)[:, None] * groups
            yield np.bincount(drawn.ravel(), minlength=r * groups).reshape(r, groups).astype(np.float64)

    def resampled(self, resamples: int, seed: int) -> Floats:
        """The sums of R resamples, [R, K]."""
        return np.concatenate([weights @ self.rows for weights in self.weights(resamples, seed)])

    def left_out(self) -> Floats:
        """The sums without one example of each group, [G, K]."""
        return self.totals - self.rows

    def interval(
        self, combine: Combine, resampling: Resampling, draws: Floats | None = None, trials: float | None = None
    ) -> Interval:
        """The interval of `combine(totals)`. `draws` [R, K] where the sums were resampled already.

        `trials`: the metric is a share of so many; where it is 0 or 1 the ends are `all_alike`'s.
        """
        value = float(combine(self.totals))
        if draws is None:
            draws = self.resampled(resampling.resamples, resampling.seed)
        jackknife = combine(self.left_out()) if self.size > 1 and resampling.method == "bca" else None
        found = from_draws(value, combine(draws), jackknife, self.counts, resampling)
        if found.method == "none" and trials and value in (0.0, 1.0):
            return all_alike(value, trials, resampling)
        return found


def all_alike(value: float, n: float, resampling: Resampling) -> Interval:
    """The interval of a share that is 0 or 1, of n: Clopper and Pearson's.

    Resampling n right answers of n shows no spread, yet an error rate of up to 1 - (tail)^(1/n) is possible.
    """
    reach = 1 - ((1 - resampling.confidence) / 2) ** (1 / n)
    return Interval(value, 0.0 if value == 0 else 1 - reach, 1.0 if value == 1 else reach, "exact")


def from_draws(
    value: float, draws: Floats, jackknife: Floats | None, counts: NDArray[np.int64], resampling: Resampling
) -> Interval:
    """The interval of a metric from its values on resamples, [R], and with one example of each group left out, [G].

    BCa where the leave-one-out values are all defined, percentile otherwise. UserError where the value, or every
    resample, is undefined (NaN).
    """
    defined = draws[~np.isnan(draws)]
    if math.isnan(value) or len(defined) == 0:
        raise UserError("the metric is undefined on these examples")
    undefined = len(draws) - len(defined)
    if _alike(defined, value):
        return Interval(value, value, value, "none", undefined)
    tail = (1 - resampling.confidence) / 2
    method, ends = "percentile", (tail, 1 - tail)
    if jackknife is not None and np.isfinite(jackknife).all():
        method, ends = "bca", _bca(value, defined, jackknife, counts, tail)
    low, high = (float(end) for end in np.quantile(defined, ends))
    widened = not low <= value <= high
    return Interval(value, min(low, value), max(high, value), method, undefined, widened)


def _alike(draws: Floats, value: float) -> bool:
    """Whether no resample differs from the value by more than rounding."""
    return bool(np.ptp(draws) <= 1e-12 * max(1.0, abs(value)) and abs(draws[0] - value) <= 1e-9 * max(1.0, abs(value)))


def _bca(value: float, draws: Floats, jackknife: Floats, counts: NDArray[np.int64], tail: float) -> tuple[float, float]:
    """Which quantiles of the draws are the ends: corrected for bias (z0) and for skew (the acceleration a)."""
    below = (float((draws < value).sum()) + 0.5 * float((draws == value).sum())) / len(draws)
    z0 = NORMAL.inv_cdf(min(max(below, 1 / (len(draws) + 1)), len(draws) / (len(draws) + 1)))
    deviation = float(counts @ jackknife) / int(counts.sum()) - jackknife
    spread = float(counts @ deviation**2)
    a = float(counts @ deviation**3) / (6 * spread**1.5) if spread > 0 else 0.0

    def place(z: float) -> float:
        return NORMAL.cdf(z0 + (z0 + z) / max(1 - a * (z0 + z), 1e-9))

    z = NORMAL.inv_cdf(1 - tail)
    low, high = place(-z), place(z)
    return min(low, high), max(low, high)


def ratio(sums: Floats) -> Floats:
    """The first sum over the second; NaN where that is 0."""
    return quotient(sums[..., 0], sums[..., 1])


def quotient(above: Any, below: Any, empty: float = math.nan) -> Floats:
    """above / below, elementwise, `empty` where `below` is 0; without a warning."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    above, below = np.broadcast_arrays(above, below)
    found: Floats = np.divide(above, below, out=np.full(above.shape, empty), where=below != 0)
    return found


def mean_interval(values: Any, resampling: Resampling, bounded: bool = True) -> Interval:
    """The mean of one value an example, [N], with its interval.

    `bounded`: the values lie from 0 to 1, so that where all are 0 or all are 1 the ends are `all_alike`'s (of such
    values the mean is at least the share of ones).
    """
    values = np.asarray(values, dtype=np.float64)
    if bounded and len(values) and values.min() == values.max() and values[0] in (0.0, 1.0):
        return all_alike(float(values[0]), len(values), resampling)
    return Sample(np.column_stack([values, np.ones(len(values))]), values).interval(ratio, resampling)


def jackknife_interval(value: float, left_out: Floats, resampling: Resampling) -> Interval:
    """value -+ z standard errors from the N leave-one-out values: for counts of distinct things.

    A resample with replacement repeats texts and so always holds fewer distinct n-grams than the sample.
    Source: Efron and Tibshirani 1993, equation 11.5.
    """
    n = len(left_out)
    if n < 2:
        return Interval(value, value, value, "none")
    left_out = np.sort(left_out)  # sums do not depend on the order of the texts
    error = math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))
    reach = NORMAL.inv_cdf((1 + resampling.confidence) / 2) * error
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach), "jackknife")
