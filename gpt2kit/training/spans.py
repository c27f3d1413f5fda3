"""Learning to point at a span: a head with two outputs, start and end, on every token that may be one.

Shapes: B rows, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.objectives import Judged
from gpt2kit.training.rows import Row, pad


class SpanEnds:
    """The cross-entropy of the span's first token, and of its last, among ids[start:] of a row.

    A row's labels are these two places. The last token of a row, EOS, stands for "no span here".
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def prepare(self, rows: Sequence[Row], step: int, first_row: int) -> tuple[NDArray[Any], ...]:
        """Ids [B, T], which tokens may be chosen [B, T], and the two places [B, 2]."""
        ids, lengths = pad(rows)
        place = np.arange(ids.shape[1])
        starts = np.array([row.start for row in rows])
        allowed = (place >= starts[:, None]) & (place < lengths[:, None])
        return ids, allowed, np.array([row.labels for row in rows], np.int64)

    def loss(self, model: GPT2, ids: Tensor, allowed: Tensor, places: Tensor) -> tuple[Tensor, int]:
        return self._loss(model, ids, allowed, places, self.smoothing)

    def judge(self, model: GPT2, ids: Tensor, allowed: Tensor, places: Tensor) -> Judged:
        return Judged(*self._loss(model, ids, allowed, places, 0.0))

    def _loss(self, model: GPT2, ids: Tensor, allowed: Tensor, places: Tensor, smoothing: float) -> tuple[Tensor, int]:
        scores: Tensor = model.score(model.hidden(ids)).float()  # B T 2
        logs = scores.masked_fill(~allowed[:, :, None], -torch.inf).log_softmax(1)
        right = logs.gather(1, places[:, None]).squeeze(1)  # B 2
        if smoothing:
            even = logs.masked_fill(~allowed[:, :, None], 0.0).sum(1) / allowed.sum(1, keepdim=True)
            right = (1 - smoothing) * right + smoothing * even
        return -right.sum(), places.numel()
