"""How fluent texts are: the bits that another model, which did not write them, needs for a character of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpt2kit.scores.intervals import Resampling, Sample, ratio
from gpt2kit.scores.result import Scores, TestSet, check_pairs, measured

DEFINITION = "bits of a text behind an end-of-text token / its characters, both summed over texts"


def fluency(
    texts: Sequence[str],
    nats: Sequence[float],
    test: TestSet,
    reference: str,
    tokenizer: str,
    precision: str,
    of: str = "",
    resampling: Resampling | None = None,
) -> Scores:
    """fluency, or fluency_of_`of`: bits per character, from the nats of each text; empty ones count for nothing.

    `reference` names the model that read them, `tokenizer` is its tokenizer's hash: figures of unlike ones are not
    compared. UserError for an empty set and unequal lengths.
    """
    check_pairs(texts, nats)
    name = f"fluency_of_{of}" if of else "fluency"
    resampling = resampling or Resampling()
    parts = np.column_stack([np.array(nats, np.float64) / math.log(2), [len(text) for text in texts]])
    parts[parts[:, 1] == 0] = 0
    empty = int((parts[:, 1] == 0).sum())
    if empty == len(texts):
        return Scores((), (f"{name} is undefined: every text is empty",))
    notes = (f"{name} is over {len(texts) - empty} of {len(texts)} texts: the others are empty",) if empty else ()
    interval = Sample(parts).interval(ratio, resampling)
    score = measured(
        name, interval, len(texts), "bits per character", test, resampling, (parts, ratio), definition=DEFINITION,
        reference=reference, reference_tokenizer=tokenizer, precision=precision,
    )  # fmt: skip
    return Scores((score,), notes)
