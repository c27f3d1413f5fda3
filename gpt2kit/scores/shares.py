"""Which share of many texts a classifier gave each label: opinions, topics, spam, without references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.errors import UserError
from gpt2kit.scores.intervals import Resampling, mean_interval
from gpt2kit.scores.result import Scores, TestSet, mean_of


def shares(found: Sequence[Sequence[str]], labels: Sequence[str], resampling: Resampling | None = None) -> Scores:
    """For each label the share of texts that have it, named by the label. UserError where there are no texts.

    The interval says how far the share may be from that of all texts which these are a sample of. It knows nothing of
    the classifier's errors.
    """
    if not found:
        raise UserError("there are no texts to summarise")
    resampling, test = resampling or Resampling(), TestSet.of([list(row) for row in found], None)
    scores = []
    for label in labels:
        values = np.array([float(label in row) for row in found])
        interval = mean_interval(values, resampling)
        scores.append(mean_of(label, values, test, resampling, interval=interval, definition="share of the texts"))
    return Scores(tuple(scores))
