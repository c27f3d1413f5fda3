"""Rows of different lengths for fine-tuning: prompt and completion, or a text and its class.

A batch's order is a pure function of (seed, step), so the run's state stays a step number. Rows of like length share a
batch, which saves most of the padding: the samples of POOL batches are sorted by length, cut into batches, and these
shuffled.

Shapes: B rows, T tokens of the longest of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gpt2kit.data.loader import permute
from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training import losses
from gpt2kit.training.objectives import Judged

POOL = 32  # batches whose samples are sorted together
WIDTHS = 32  # that batches are padded to, at most: memory that fits the next one again, kernels made once


@dataclass(frozen=True)
class Row:
    """One example. The loss falls on ids[start:] of a completion, or on the labels of a class."""

    ids: NDArray[np.int64]  # T
    start: int = 1
    labels: tuple[int, ...] = ()
    width: int = 0  # that a batch with this row is padded to at least; 0: its length

    def __len__(self) -> int:
        return len(self.ids)


def on_grid(rows: Sequence[Row]) -> list[Row]:
    """The same rows with widths: multiples of 1/32 of the longest row, and never beyond it."""
    longest = max(map(len, rows), default=0)
    step = -(-longest // WIDTHS)
    return [dataclasses.replace(row, width=min(-(-len(row) // step) * step, longest)) for row in rows]


class RowBatches:
    """Every row once an epoch, in an order fixed by `seed`. Raises UserError where there are no rows."""

    def __init__(self, rows: Sequence[Row], batch: int, seed: int) -> None:
        if not rows:
            raise UserError("there is no row to train on", hint="look at: gpt2kit data check")
        self.rows, self.batch, self.seed = rows, batch, seed
        self._lengths = np.array([len(row) for row in rows])
        self._pool = lru_cache(maxsize=2)(self._order)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch)

    def at(self, step: int) -> list[Row]:
        pool, place = divmod(step, POOL)
        return [self.rows[i] for i in self._pool(pool)[place]]

    def prefetch(self, start_step: int, stop_step: int | None) -> Iterator[list[Row]]:
        step = start_step
        while stop_step is None or step < stop_step:
            yield self.at(step)
            step += 1

    def _order(self, pool: int) -> NDArray[np.int64]:
        """[POOL, B]: the rows of the pool's batches."""
        n, size = len(self.rows), POOL * self.batch
        samples = np.arange(pool * size, (pool + 1) * size)
        order = np.empty(size, np.int64)
        for epoch in np.unique(samples // n):
            own = samples // n == epoch
            order[own] = permute(samples[own] % n, n, _keys(self.seed, int(epoch)))
        batches = order[np.argsort(self._lengths[order], kind="stable")].reshape(POOL, self.batch)
        shuffled: NDArray[np.int64] = batches[permute(np.arange(POOL), POOL, _keys(self.seed, -1 - pool))]
        return shuffled


def _keys(seed: int, number: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"rows {seed} {number}".encode(), digest_size=64).digest()
    return tuple(int(key) for key in np.frombuffer(digest, "<u8"))


def pad(rows: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids [B, T], zeros behind each row, and lengths [B]. Causal attention never looks at the zeros."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), max(max(row.width, len(row)) for row in rows)), np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row.ids
    return ids, lengths


class Completions:
    """Next-token prediction on the completions alone: the targets are the inputs shifted by one."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def prepare(self, rows: Sequence[Row], step: int, first_row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs [B, T-1] and targets [B, T-1], IGNORED before the completion and behind it."""
        ids, lengths = pad(rows)
        targets = ids[:, 1:].copy()
        place = np.arange(1, ids.shape[1])
        starts = np.array([row.start for row in rows])
        targets[(place < starts[:, None]) | (place >= lengths[:, None])] = losses.IGNORED
        return ids[:, :-1], targets

    def loss(self, model: GPT2, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return self._loss(model, inputs, targets, self.smoothing)

    def judge(self, model: GPT2, inputs: Tensor, targets: Tensor) -> Judged:
        return Judged(*self._loss(model, inputs, targets, 0.0))

    def _loss(self, model: GPT2, inputs: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, int]:
        counted = targets != losses.IGNORED
        hidden = model.hidden(inputs)[counted]  # N C: the head, the dearest part, sees these alone
        return losses.cross_entropy(model, hidden[None], targets[counted][None], smoothing)


class Classes:
    """The cross-entropy of a row's class, or of each label by itself where several can be true."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def prepare(self, rows: Sequence[Row], step: int, first_row: int) -> tuple[NDArray[np.int64], ...]:
        """Ids [B, T], lengths [B], labels [B, most]: padded with -1."""
        most = max(1, *(len(row.labels) for row in rows))
        labels = np.full((len(rows), most), -1)
        for line, row in zip(labels, rows, strict=True):
            line[: len(row.labels)] = row.labels
        return *pad(rows), labels

    def loss(self, model: GPT2, ids: Tensor, lengths: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        scores = model.classify(ids, lengths).float()  # B K
        if not model.config.multi_label:
            return F.cross_entropy(scores, labels[:, 0], reduction="sum", label_smoothing=self.smoothing), len(ids)
        wanted = _each(labels, scores) * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum"), wanted.numel()

    def judge(self, model: GPT2, ids: Tensor, lengths: Tensor, labels: Tensor) -> Judged:
        scores = model.classify(ids, lengths).float()  # B K
        if not model.config.multi_label:
            loss = F.cross_entropy(scores, labels[:, 0], reduction="sum")
            return Judged(loss, len(ids), int((scores.argmax(1) == labels[:, 0]).sum()))
        wanted = _each(labels, scores)
        loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")
        return Judged(loss, wanted.numel(), int(((scores > 0) == (wanted > 0)).sum()))


def _each(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels [B, most] as one or nought for each class [B, K]."""
    wanted = torch.zeros_like(scores)
    row, place = torch.nonzero(labels >= 0, as_tuple=True)
    wanted[row, labels[row, place]] = 1.0
    return wanted
