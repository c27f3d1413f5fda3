"""Perplexity and bits as scores, from the sums that `evaluation.Evaluation.to_dict` gives.

A perplexity is a figure per token of one tokenizer, with one context and stride, on one text. All of this is in the
protocol, and `comparison.compare` refuses two that differ in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt2kit.errors import UserError
from gpt2kit.scores.intervals import Combine, Floats, Interval, Resampling, Sample, quotient
from gpt2kit.scores.result import Examples, Score, Scores

PROTOCOL_KEYS = ("context", "stride", "tokenizer_hash", "text_hash", "lossless", "protocol")


def _loss(sums: Floats) -> Floats:
    return quotient(sums[..., 0], sums[..., 1])


def _perplexity(sums: Floats) -> Floats:
    with np.errstate(over="ignore"):
        found: Floats = np.exp(_loss(sums))
    return np.where(np.isinf(found), np.nan, found)


def _bits_per_byte(sums: Floats) -> Floats:
    return quotient(sums[..., 0], sums[..., 2]) / math.log(2)


def _bits_per_character(sums: Floats) -> Floats:
    return quotient(sums[..., 0], sums[..., 3]) / math.log(2)


def likelihood(
    facts: Mapping[str, Any],
    blocks: Sequence[tuple[float, int, int, int]] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """perplexity, loss, bits_per_byte, bits_per_character of one evaluation.

    `facts`: nll (nats), tokens, bytes, characters, unit, and what the figures depend on. `blocks`: (nll, tokens, bytes,
    characters) of each document or stretch of text, which sum to the whole, as `Evaluation.blocks` has them; intervals
    are over them, and without them there are none. UserError where a fact is missing or the blocks do not sum to the
    whole.
    """
    missing = [key for key in ("nll", "tokens", "bytes", "characters", "unit", *PROTOCOL_KEYS) if key not in facts]
    if missing:
        raise UserError(f"the evaluation says no {', '.join(missing)}", hint="give what gpt2kit evaluate --json prints")
    whole = np.array([facts[key] for key in ("nll", "tokens", "bytes", "characters")], dtype=np.float64)
    if not np.isfinite(whole).all() or (whole[1:] < 1).any():
        raise UserError("an evaluation needs a finite loss and at least one token")
    resampling = resampling or Resampling()
    parts = None if blocks is None else np.array(blocks, dtype=np.float64).reshape(-1, 4)
    if parts is not None and not np.allclose(parts.sum(0), whole, rtol=1e-5):
        raise UserError(f"the blocks sum to {parts.sum(0).tolist()}, the evaluation to {whole.tolist()}")
    drawn = None if parts is None else _Drawn(parts, resampling)
    unit = str(facts["unit"])
    metrics: list[tuple[str, str, str, Combine]] = [
        ("perplexity", f"perplexity per {unit}", "tokens", _perplexity),
        ("loss", f"nats per {unit}", "tokens", _loss),
        ("bits_per_byte", "bits per byte", "bytes", _bits_per_byte),
        ("bits_per_character", "bits per character", "characters", _bits_per_character),
    ]
    scores, notes = [], []
    for name, unit, counted, combine in metrics:
        value = float(combine(whole))
        if math.isnan(value):
            notes.append(f"{name} is too large for a number: the loss is {float(_loss(whole)):.0f} nats per token")
            continue
        protocol: dict[str, Any] = {
            "test_set": f"text, {whole[2]:.0f} bytes, sha256 {facts['text_hash']}",
            "tokenizer": str(facts["tokenizer_hash"]),
            **{key: facts[key] for key in ("context", "stride", "lossless", "protocol")},
            "counted": counted,
        }
        n = int(facts[counted])
        if drawn is None:
            scores.append(Score(name, value, None, None, n, unit, {**protocol, "interval": "not drawn"}))
            continue
        interval = drawn.interval(combine, value)
        protocol |= {"blocks": len(drawn.parts), **resampling.protocol, **interval.protocol}
        kept = Examples(drawn.parts, combine, drawn.order)
        scores.append(Score(name, value, interval.low, interval.high, n, unit, protocol, kept))
    return Scores(tuple(scores), tuple(notes))


class _Drawn:
    """The blocks [N, 4], resampled once for all metrics."""

    def __init__(self, parts: Floats, resampling: Resampling) -> None:
        self.parts, self.resampling, self.sample = parts, resampling, Sample(parts)
        self.draws = self.sample.resampled(resampling.resamples, resampling.seed)
        # Two models are paired over the same text in each block, whatever its tokens are.
        self.order = hashlib.sha256(np.ascontiguousarray(parts[:, 2:]).tobytes()).hexdigest()

    def interval(self, combine: Combine, value: float) -> Interval:
        found = self.sample.interval(combine, self.resampling, self.draws)
        return Interval(value, min(found.low, value), max(found.high, value), found.method, found.undefined)
