"""Learning something new without losing what was learned before: replay, EWC, learning without forgetting.

    Replay     rows of before in every batch                        (Robins 1995; Rolnick et al. 2019)
    Mixed      each row under the loss of its own task
    Ewc        a penalty on moving weights that mattered            (Kirkpatrick et al. 2017)
    Distilled  the new rows, read as the model before reads them    (Li and Hoiem 2016)

All are pure functions of (seed, step, row) and of the weights at the start: a run's state does not grow.

Shapes: B rows, T tokens, N counted positions, C channels, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training import fast
from gpt2kit.training.losses import LOGITS_BYTES
from gpt2kit.training.objectives import Arrays, Judged, Objective
from gpt2kit.training.rows import Completions, Row, RowBatches
from gpt2kit.training.spans import SpanEnds

TEMPERATURE = 2.0  # Li and Hoiem 2016, section 3
FISHER_ROWS = 256  # that the Fisher information is estimated on
_OTHER_ORDER = 0x5EED  # added to the seed, so that rows of before do not follow the new rows' order


@dataclass(frozen=True)
class Earlier(Row):
    """A row of before: of task number `group`."""

    group: int = 0


class Replay:
    """New rows as they come, and behind them in every batch so many of before that they are `share` of all its rows.

    The new rows, their order and the number of steps are those of a run without replay.
    """

    def __init__(self, new: RowBatches, earlier: Sequence[Earlier], share: float) -> None:
        assert 0 < share < 1, share
        self.new = new
        self.count = max(1, round(new.batch * share / (1 - share)))
        self.earlier = RowBatches(earlier, self.count, new.seed + _OTHER_ORDER)

    def at(self, step: int) -> list[Row]:
        before = [row for row in self.earlier.at(step) if isinstance(row, Earlier)]
        return [*self.new.at(step), *sorted(before, key=lambda row: row.group)]  # a group's rows stand together

    def prefetch(self, start_step: int, stop_step: int | None) -> Iterator[list[Row]]:
        step = start_step
        while stop_step is None or step < stop_step:
            yield self.at(step)
            step += 1


def per_row(objective: Objective, rows: Sequence[Row], config: GPT2Config) -> float:
    """The targets that a row counts, on average."""
    if isinstance(objective, Completions):
        return float(np.mean([len(row) - row.start for row in rows]))
    if isinstance(objective, SpanEnds):
        return 2.0
    return float(max(1, len(config.labels))) if config.multi_label else 1.0


@dataclass(frozen=True)
class Group:
    """A task of before: its loss, and what a row of it weighs. worth None: its targets count like the new ones.

    Else a row counts as `worth` targets and its loss is multiplied by `scale`, so that a page of text does not outweigh
    a hundred labels.
    """

    objective: Objective
    worth: int | None = None
    scale: float = 1.0


def group(
    new: Objective, new_rows: Sequence[Row], earlier: Objective, rows: Sequence[Row], config: GPT2Config
) -> Group:
    """An earlier task beside a new one: targets of one kind count alike; of two kinds a row weighs as much as a row."""
    if type(new) is type(earlier):
        return Group(earlier)
    worth = max(1, round(per_row(new, new_rows, config)))
    return Group(earlier, worth, worth / per_row(earlier, rows, config))


class Mixed:
    """New rows under their own objective, rows of before (`Earlier`) under that of their group.

    The validation rows are new ones, and the new objective judges them.
    """

    def __init__(self, new: Objective, groups: Sequence[Group]) -> None:
        self.new, self.groups = new, list(groups)

    def prepare(self, rows: Sequence[Row], step: int, first_row: int) -> Arrays:
        """[parts, rows of each part ...] and each part's arrays, end to end; a part without rows has none."""
        parts: list[list[Row]] = [[] for _ in range(1 + len(self.groups))]
        for row in rows:
            parts[1 + row.group if isinstance(row, Earlier) else 0].append(row)
        objectives = [self.new, *(group.objective for group in self.groups)]
        arrays = [
            objective.prepare(part, step, first_row) if part else ()
            for objective, part in zip(objectives, parts, strict=True)
        ]
        shape = np.array([[len(part), len(own)] for part, own in zip(parts, arrays, strict=True)])
        return (shape, *(array for own in arrays for array in own))

    def loss(self, model: GPT2, shape: Tensor, *tensors: Tensor) -> tuple[Tensor, int]:
        total = torch.zeros((), device=shape.device)
        count, at, first = 0, 0, fast.PLACE.first_row
        for number, (rows, arrays) in enumerate(shape.tolist()):
            if rows:
                part, n = self._part(number, rows, model, tensors[at : at + arrays])
                total, count = total + part, count + n
            at += arrays
            fast.PLACE.first_row += rows  # dropout goes by the row's place in the whole batch
        fast.PLACE.first_row = first
        return total, count

    def _part(self, number: int, rows: int, model: GPT2, tensors: Sequence[Tensor]) -> tuple[Tensor, int]:
        if number == 0:
            return self.new.loss(model, *tensors)
        group = self.groups[number - 1]
        part, count = group.objective.loss(model, *tensors)
        return group.scale * part, count if group.worth is None else group.worth * rows

    def judge(self, model: GPT2, shape: Tensor, *tensors: Tensor) -> Judged:
        rows, arrays = shape[0].tolist()
        assert rows, "validation rows are new ones"
        return self.new.judge(model, *tensors[:arrays])


# Elastic weight consolidation


def fisher(model: GPT2, objective: Objective, rows: Sequence[Row], most: int = FISHER_ROWS) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of each trained weight, per counted target, on evenly spread rows.

    The square of the gradient of each row's log-likelihood, under the labels of the data: the empirical Fisher.
    """
    model.eval()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sums = {name: torch.zeros_like(p) for name, p in named}
    total = 0
    chosen = [rows[i * len(rows) // min(most, len(rows))] for i in range(min(most, len(rows)))]
    for number, row in enumerate(chosen):
        tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in objective.prepare([row], 0, number)]
        judged = objective.judge(model, *tensors)
        found = torch.autograd.grad(judged.loss, [p for _, p in named], allow_unused=True)
        for (name, _), gradient in zip(named, found, strict=True):
            if gradient is not None:
                sums[name].addcmul_(gradient, gradient)
        total += judged.targets
    return {name: value / max(1, total) for name, value in sums.items()}


class Ewc:
    """strength / 2 x the sum over weights of F (w - w0)^2, in nats per target (Kirkpatrick et al. 2017, equation 3).

    `anchor` and `information` go by the names of the model's parameters; those that have none are left free.
    Strength 0 gives None: training is bit by bit what it is without.
    """

    def __init__(
        self, model: GPT2, anchor: Mapping[str, Tensor], information: Mapping[str, Tensor], strength: float
    ) -> None:
        self.strength = strength
        self.terms = [(p, anchor[name], information[name]) for name, p in model.named_parameters() if name in anchor]

    def __call__(self) -> Tensor | None:
        if self.strength == 0 or not self.terms:
            return None
        sums = [(f.to(p.device) * (p - w.to(p.device)).square()).sum() for p, w, f in self.terms]
        return 0.5 * self.strength * torch.stack(sums).sum()


def anchor(model: GPT2) -> dict[str, Tensor]:
    """A copy of each trained weight as it is now."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


# Learning without forgetting


class Distilled:
    """An objective, and how far the next-token distribution has moved from the model before, on the same new rows.

    Added is `weight` x T^2 KL(before || now) at temperature T, averaged over a row's tokens; a row of it weighs as much
    as a row of the objective, which has `targets` targets (`per_row`).
    """

    def __init__(
        self, objective: Objective, model: GPT2, teacher: GPT2, weight: float, targets: float,
        temperature: float = TEMPERATURE,
    ) -> None:  # fmt: skip
        self.objective, self.teacher = objective, teacher.eval().requires_grad_(False)
        self.weight, self.temperature = weight * targets, temperature
        self.local = threading.local()  # workers share the model
        model.ln_f.register_forward_hook(lambda module, inputs, output: self._seen(output))

    def _seen(self, hidden: Tensor) -> None:
        if getattr(self.local, "wanted", False):
            self.local.hidden = hidden

    def prepare(self, rows: Sequence[Row], step: int, first_row: int) -> Arrays:
        """The objective's arrays, and how many of each row's tokens are real."""
        arrays = self.objective.prepare(rows, step, first_row)
        ids = arrays[0]
        if len(ids) != len(rows):  # candidates: several rows of ids each, their lengths beside them
            return (*arrays, arrays[1])
        longest = max(max(len(row), row.width) for row in rows)  # the inputs of next-token prediction are one shorter
        return (*arrays, np.array([len(row) - longest + ids.shape[1] for row in rows]))

    def loss(self, model: GPT2, *tensors: Tensor) -> tuple[Tensor, int]:
        self.local.wanted = True
        total, count = self.objective.loss(model, *tensors[:-1])
        hidden, self.local.hidden, self.local.wanted = self.local.hidden, None, False
        ids, lengths = tensors[0], tensors[-1]
        hidden = hidden[:, hidden.shape[1] - ids.shape[1] :]  # B T C, without an adapter's virtual tokens
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # B T
        weights = (real / lengths[:, None])[real]  # N
        with torch.no_grad():
            before = self.teacher.to(ids.device).hidden(ids)[real]  # N C
        return total + self.weight * self._divergence(model.head, hidden[real], before, weights), count

    def judge(self, model: GPT2, *tensors: Tensor) -> Judged:
        return self.objective.judge(model, *tensors[:-1])

    def _divergence(self, head: Tensor, now: Tensor, before: Tensor, weights: Tensor) -> Tensor:
        """Sum over N of weight x T^2 KL, in chunks whose logits are made anew for the backward pass."""
        rows = max(1, LOGITS_BYTES // (8 * len(head)))
        parts = [
            checkpoint(self._chunk, head, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*(torch.split(x, rows) for x in (now, before, weights)), strict=True)
        ]
        return torch.stack(parts).sum()

    def _chunk(self, head: Tensor, now: Tensor, before: Tensor, weights: Tensor) -> Tensor:
        T = self.temperature
        logs = (F.linear(now, head).float() / T).log_softmax(-1)
        wanted = (F.linear(before, self.teacher.head).float() / T).log_softmax(-1)
        divergence: Tensor = F.kl_div(logs, wanted, reduction="none", log_target=True).sum(-1)
        return T * T * (weights * divergence).sum()


def both(first: Any, second: Any) -> Any:
    """Two penalties as one; None where there is none."""
    if first is None or second is None:
        return second if first is None else first

    def total() -> Tensor | None:
        terms = [term for term in (first(), second()) if term is not None]
        return torch.stack(terms).sum() if terms else None

    return total
