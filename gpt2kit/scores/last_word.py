"""The last word of each text: does the model write it, and how surprised is it (LAMBADA, Paperno et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.errors import UserError
from gpt2kit.scores.intervals import Floats, Interval, Resampling, Sample, ratio
from gpt2kit.scores.result import Scores, TestSet, check_pairs, mean_of, measured

ACCURACY = "share of last words whose every token is the likeliest one"
PERPLEXITY = "exp of the mean nats of a last word"


def _perplexity(sums: Floats) -> Floats:
    found: Floats = np.exp(np.minimum(ratio(sums), 700.0))  # a word of 700 nats: e^709 is the largest float
    return found


def last_word(
    words: Sequence[str],
    nats: Sequence[float],
    greedy: Sequence[bool],
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """accuracy and perplexity, per character where every word is one character, as of Chinese texts, else per word.

    Of each text: its last word, the nats that the model needs for it, and whether each of its tokens was the likeliest.
    UserError for an empty set and for losses that are not finite.
    """
    check_pairs(words, nats, inputs)
    check_pairs(words, greedy)
    losses = np.asarray(nats, dtype=np.float64)
    if not np.isfinite(losses).all():
        raise UserError("the loss of a last word is not finite", hint="run: gpt2kit doctor MODEL")
    resampling, test = resampling or Resampling(), TestSet.of(words, inputs)
    accuracy = mean_of("accuracy", np.asarray(greedy, dtype=np.float64), test, resampling, definition=ACCURACY)
    parts = np.column_stack([losses, np.ones(len(losses))])
    drawn = Sample(parts).interval(_perplexity, resampling)
    value = float(_perplexity(parts.sum(0)))
    interval = Interval(value, min(drawn.low, value), max(drawn.high, value), drawn.method, drawn.undefined)
    unit = "character" if all(len(word) == 1 for word in words) else "word"
    perplexity = measured(
        "perplexity", interval, len(losses), f"perplexity per {unit}", test, resampling, (parts, _perplexity), losses,
        definition=PERPLEXITY,
    )  # fmt: skip
    return Scores((accuracy, perplexity))
