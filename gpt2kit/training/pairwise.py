"""Learning to rank: the right candidate above each other one, by the score of a head with one output.

Bradley and Terry 1952: the probability that a is preferred to b is sigmoid(score(a) - score(b)). With more than two
candidates each is read once, and all pairs with the right one are compared (Ouyang et al. 2022, section 3.5).

Shapes: B rows, S candidates of all of them, T tokens of the longest candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training import fast
from gpt2kit.training.objectives import Judged
from gpt2kit.training.rows import Row, pad

CANDIDATES = 1 << 12  # of a row: numbers between those of two rows


def candidates_row(candidates: Sequence[Sequence[int]]) -> Row:
    """The ids of a query's candidates, the right one first, end to end; their lengths stand as the row's labels."""
    ids = np.concatenate([np.array(one, np.int64) for one in candidates])
    return Row(ids, labels=tuple(len(one) for one in candidates))


class Preferences:
    """-log sigmoid(score of the right candidate - score of another one), over all pairs of the batch."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def prepare(self, rows: Sequence[Row], step: int, first_row: int) -> tuple[NDArray[np.int64], ...]:
        """Ids [S, T], lengths [S], and for each candidate the place of its row's right one [S]."""
        parts: list[Row] = []
        right: list[int] = []
        for row in rows:
            first = len(parts)
            parts += [Row(ids) for ids in np.split(row.ids, np.cumsum(row.labels)[:-1])]
            right += [first] * len(row.labels)
        return *pad(parts), np.array(right)

    def loss(self, model: GPT2, ids: Tensor, lengths: Tensor, right: Tensor) -> tuple[Tensor, int]:
        return self._loss(model, ids, lengths, right, self.smoothing)

    def judge(self, model: GPT2, ids: Tensor, lengths: Tensor, right: Tensor) -> Judged:
        return Judged(*self._loss(model, ids, lengths, right, 0.0))

    def _loss(self, model: GPT2, ids: Tensor, lengths: Tensor, right: Tensor, smoothing: float) -> tuple[Tensor, int]:
        fast.PLACE.rows = _numbers(right.numpy(force=True))
        try:
            scores = model.classify(ids, lengths).float()[:, 0]  # S
        finally:
            fast.PLACE.rows = None
        other = right != torch.arange(len(right), device=right.device)
        lead = (scores[right] - scores)[other]
        loss = -(1 - smoothing) * F.logsigmoid(lead) - smoothing * F.logsigmoid(-lead)
        return loss.sum(), len(lead)


def _numbers(right: NDArray[np.int64]) -> NDArray[np.uint32]:
    """A number for each candidate, by its row in the whole batch and its place in it: dropout masks go by it."""
    places = np.arange(len(right))
    row = fast.PLACE.first_row + np.cumsum(right == places) - 1
    return (row * CANDIDATES + places - right).astype(np.uint32)
