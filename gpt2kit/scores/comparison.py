"""Two figures side by side: paired on the same examples, and refused where they measure different things.

    both known for each example    the difference, its interval from paired resamples, and a p-value
    figures alone (read back)      the difference

p-value, two-sided: McNemar's exact test where every example is right or wrong; otherwise a permutation test that
swaps the two systems' results on random examples (approximate randomisation; Noreen 1989, Riezler and Maxwell 2005).
Sources: McNemar 1947; Koehn 2004 for the paired bootstrap.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt2kit.errors import UserError
from gpt2kit.scores.intervals import COUNTS_PER_CHUNK, Combine, Floats, Interval, Resampling, Sample, ratio
from gpt2kit.scores.result import Score, Scores

# How a figure was measured must be equal; how its interval was drawn need not be.
_INTERVAL_KEYS = {"interval", "undefined_resamples", "widened", "resamples", "confidence", "seed", "blocks"}
_WHY = {
    "test_set": "they are of different test sets",
    "tokenizer": "a perplexity per token depends on what a token is",
    "context": "a longer context makes the same text easier to predict",
    "stride": "a shorter stride gives tokens more context, and the same text is easier to predict",
    "protocol": "they follow different protocols",
    "signature": "other n-grams, smoothing or tokenisation make other BLEU and chrF figures of the same texts",
    "language": "texts are cut into other units in another language",
    "definition": "they are defined differently",
    "classes": "an average over other classes is another figure",
    "lossless": "a tokenizer that loses some of the text has less to predict",
    "bins": "the calibration error grows with the number of bins",
}
_HINTS = {
    "test_set": "score both on the same file",
    "tokenizer": "compare bits per byte or per character",
    "context": "evaluate both with the same --context",
    "stride": "evaluate both with the same --stride",
}


@dataclass(frozen=True)
class Comparison:
    """`second` against `first`. Without per-example results `low`, `high`, `p` and `test` are None.

    `difference` is second - first; `low` and `high` are its interval, and equal to it where resampling shows no spread.
    """

    metric: str
    unit: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    test: str | None
    n: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes)}

    def __str__(self) -> str:
        text = f"{self.metric} {self.difference:+.4g}"
        if self.low is None or self.high is None or self.p is None:
            return text
        interval = "(no spread)" if self.low == self.high else f"[{self.low:+.4g}, {self.high:+.4g}]"
        return f"{text} {interval}, p {self.p:.2g} ({self.test})"


def compare(first: Score, second: Score, resampling: Resampling | None = None) -> Comparison:
    """`second` against `first`, paired where both know their examples.

    UserError, with the reason, for unlike metrics, units, test sets, or protocols.
    """
    notes = check_alike(first, second)
    difference = second.value - first.value
    if first.examples is None or second.examples is None:
        notes += ("no results of single examples: the difference has no interval",)
        known = first.name, first.unit, first.value, second.value, difference
        return Comparison(*known, low=None, high=None, p=None, test=None, n=first.n, notes=notes)
    if first.examples.order != second.examples.order:
        raise UserError(
            f"both {first.name} are of one test set, but in another order of examples, so they cannot be paired",
            hint="score both in the order of the file",
        )
    resampling = resampling or Resampling()
    a, b, combine = first.examples.parts, second.examples.parts, first.examples.combine
    if a.shape != b.shape:  # one system predicted a class that the other did not
        raise UserError(f"the two {first.name} were counted over different classes", hint="give both the same labels")
    interval = paired_interval(a, b, combine, resampling)
    if combine is ratio and _right_or_wrong(a) and _right_or_wrong(b):
        p, test = mcnemar(a[:, 0], b[:, 0]), "McNemar, exact"
    else:
        p, test = permutation(a, b, combine, resampling), "paired permutation"
    low, high = min(interval.low, difference), max(interval.high, difference)
    if interval.method == "none":
        low = high = difference
    return Comparison(first.name, first.unit, first.value, second.value, difference, low, high, p, test, first.n, notes)


def compare_all(first: Scores, second: Scores, resampling: Resampling | None = None) -> tuple[Comparison, ...]:
    """Every metric that both have. UserError where they have none in common, or one cannot be compared."""
    shared = [score.name for score in first if score.name in second]
    if not shared:
        raise UserError("the two results have no metric in common")
    return tuple(compare(first[name], second[name], resampling) for name in shared)


def compare_what_can_be(
    first: Scores, second: Scores, resampling: Resampling | None = None
) -> tuple[tuple[Comparison, ...], dict[str, str]]:
    """The metrics that both have and that can be compared; of the others the reason why not, by name."""
    found, refused = [], {}
    for name in [score.name for score in first if score.name in second]:
        try:
            found.append(compare(first[name], second[name], resampling))
        except UserError as error:
            refused[name] = error.message + (f" ({error.hint})" if error.hint else "")
    return tuple(found), refused


def check_alike(first: Score, second: Score) -> tuple[str, ...]:
    """UserError where two figures cannot be compared, by name and with the reason; notes on what differs else."""
    if first.name != second.name:
        raise UserError(f"{first.name} and {second.name} are different metrics", hint="compare a metric with itself")
    if first.unit != second.unit:
        raise UserError(
            f"the two {first.name} have different units: {first.unit!r} and {second.unit!r}",
            hint="compare bits per byte or per character" if "token" in first.unit + second.unit else None,
        )
    free = _INTERVAL_KEYS | (
        {"tokenizer", "context", "stride", "lossless"} if first.unit.startswith("bits per") else set()
    )
    notes = []
    for key in sorted({*first.protocol, *second.protocol} - _INTERVAL_KEYS):
        ours, theirs = first.protocol.get(key), second.protocol.get(key)
        if ours == theirs:
            continue
        if key in free:
            notes.append(f"{key} differs: {_short(ours)} and {_short(theirs)}")
            continue
        why = _WHY.get(key, f"they differ in {key}")
        raise UserError(
            f"the two {first.name} cannot be compared: {why} ({_short(ours)} and {_short(theirs)})",
            hint=_HINTS.get(key, f"score both with the same {key}"),
        )
    if first.n != second.n:
        raise UserError(f"the two {first.name} are of {first.n:,} and {second.n:,} examples")
    return tuple(notes)


def _short(value: Any) -> str:
    text = "none" if value is None else re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", str(value))
    return text if len(text) <= 90 else f"{text[:89]}…"


def paired_interval(first: Floats, second: Floats, combine: Combine, resampling: Resampling) -> Interval:
    """The interval of the difference: both systems on the same resamples. Parts [N, K] each."""
    k = first.shape[1]
    return Sample(np.hstack([first, second])).interval(lambda s: combine(s[..., k:]) - combine(s[..., :k]), resampling)


def permutation(first: Floats, second: Floats, combine: Combine, resampling: Resampling) -> float:
    """How often a random exchange of the two systems' results makes a difference at least as large; two-sided.

    Parts [N, K] each. (1 + as large) / (1 + resamples), so it is never 0 (Phipson and Smyth 2010).
    """
    k = first.shape[1]
    sample = Sample(np.hstack([first, second]))
    a, b = sample.totals[:k], sample.totals[k:]
    change = sample.rows[:, k:] - sample.rows[:, :k]  # what a swap adds to the first and takes from the second
    observed = abs(float(combine(b) - combine(a)))
    rng = np.random.default_rng(resampling.seed)
    step = max(1, COUNTS_PER_CHUNK // len(sample.rows))
    as_large = 0
    for begin in range(0, resampling.resamples, step):
        r = min(step, resampling.resamples - begin)
        moved = rng.binomial(sample.counts, 0.5, size=(r, len(sample.rows))) @ change
        difference = np.abs(combine(b - moved) - combine(a + moved))
        as_large += int((np.isnan(difference) | (difference >= observed * (1 - 1e-9) - 1e-12)).sum())
    return (1 + as_large) / (1 + resampling.resamples)


def mcnemar(first: Any, second: Any) -> float:
    """McNemar's exact test on right (1) and wrong (0), [N] each: two-sided, binomial over the discordant pairs."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, k = only_first + only_second, min(only_first, only_second)
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log) for log in logs))


def _right_or_wrong(parts: Floats) -> bool:
    return parts.shape[1] == 2 and bool(np.isin(parts[:, 0], (0.0, 1.0)).all() and (parts[:, 1] == 1).all())
