"""THE loop. Normalisation, accumulation, clipping, evaluation, checkpoints and resume exist here and nowhere else.

`fit` is a generator of events: whoever runs it decides what to print. The order of samples, dropout masks and
objectives are pure functions of (seed, step, row), so the state is: weights, optimiser tensors, counters.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gpt2kit import runtime
from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import checkpoint, fast, optim
from gpt2kit.training.checkpoint import Artefact, State, WholeModel
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.objectives import Batch, Objective, Rows, TextObjective

EXPLODED = 3.0  # times ln V: an untrained model starts at 1
SPEED_SECONDS = 10.0  # over which the tokens/s that people see are averaged
REPLANS = 40  # times that a run with minutes compares its pace with its plan
PLATEAU_PATIENCE, PLATEAU_FACTOR = 2, 0.5
EVALUATION_TOKENS = 2048  # in one forward pass
Penalty = Callable[[], Tensor | None]  # nats per counted token; None: nothing at this moment


class Source(Protocol):
    """Batches in an order fixed by a seed: what is in row r of step s is a pure function of (s, r)."""

    def prefetch(self, start_step: int, stop_step: int | None) -> Iterator[Rows]: ...


@dataclass
class Run:
    """Everything that one training run reads and writes."""

    folder: Path
    model: GPT2
    tokenizer: Tokenizer | None
    config: TrainConfig
    batches: Source
    validation: Rows | None  # rows such as those of the batches
    precision: runtime.Precision
    lineage: dict[str, Any]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    minutes: float | None = None  # the time that the steps must fit into; None: the steps decide
    stop: Callable[[], bool] = lambda: False  # asked after each step: True ends the run with a checkpoint
    objective: Objective | None = None  # None: the one that the config names, on windows of text
    penalty: Penalty | None = None  # a term that training adds to the loss; reports and evaluations leave it out
    after_step: Callable[[int, int], None] | None = None  # (steps done, total), with the step's gradients in place
    artefact: Artefact | None = None  # what checkpoints keep; None: the whole model


@dataclass(frozen=True)
class Stepped:
    step: int
    total: int
    loss: float  # nats per counted token of this step's batch, without the penalty
    norm: float  # of the gradient, before clipping
    rate: float  # learning rate as a fraction of the peak
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    step: int
    loss: float  # nats per target of the validation rows
    best: bool  # of all so far, as `State.standing` says
    accuracy: float | None = None  # where the model decides: the share of the targets that it gets right


@dataclass(frozen=True)
class Saved:
    step: int
    folder: Path


@dataclass(frozen=True)
class Replanned:
    step: int
    total: int  # steps, after the machine turned out faster or slower than measured


@dataclass(frozen=True)
class Stopped:
    step: int
    reason: str  # "finished", "asked" or "early"


Event = Stepped | Evaluated | Saved | Replanned | Stopped


def fit(run: Run, optimizers: list[torch.optim.Optimizer], state: State) -> Iterator[Event]:
    """Train from `state.step` to `state.total`. Raises UserError where the loss explodes or the disk fails."""
    config, model = run.config, run.model
    state.total = state.total or config.steps
    objective = run.objective or TextObjective(config, model.config.vocab_size, run.tokenizer)
    gradients = Gradients(model, objective, config, run.precision, run.device, run.penalty)
    gradients.share_with(optimizers)
    clock = _Clock(state, run.minutes)
    fast.accelerate(model, config.seed, config.dropout, config.attention_dropout, run.precision.backend)
    model.train()
    source = run.batches.prefetch(state.step, None)
    try:
        for batch in source:
            if state.step >= state.total or state.stopped_early or run.stop():
                break
            rate = optim.rate(config, state.step, state.total, state.plateau)
            total, count = gradients(batch, state.step)
            norm = optim.update(optimizers, rate, count, config.clip)
            loss = total / count
            _check(loss, norm, state, run, rate)
            state.step += 1
            if run.after_step is not None:
                run.after_step(state.step, state.total)
            speed, left = clock.tick(state, config.batch * config.context)
            yield Stepped(state.step, state.total, loss, norm, rate, speed, left)
            replanned = clock.replan(run, state)
            if replanned is not None:
                yield replanned
            last = state.step >= state.total
            save = state.step % config.checkpoint_every == 0 or last
            if run.validation is not None and (state.step % config.evaluate_every == 0 or save):
                evaluated = _evaluate(run, gradients, state)
                save = save or evaluated.best
                yield evaluated
            if save or state.stopped_early:
                yield _save(run, optimizers, state)
        else:  # pragma: no cover
            raise AssertionError("the batches never end")
        reason = "early" if state.stopped_early else "finished" if state.step >= state.total else "asked"
        if reason == "asked" and checkpoint.steps_of(run.folder)[-1:] != [state.step]:
            yield _save(run, optimizers, state)
        yield Stopped(state.step, reason)
    finally:
        source.close()  # type: ignore[attr-defined]
        gradients.close()
        fast.plain(model)
        model.eval()


class Gradients:
    """(batch, step) -> (loss sum, count), with the sums' gradients in `parameter.grad`.

    The penalty's gradient is in them, times the count: each slice adds its own rows' share, so that the whole does
    not depend on how the batch is cut. The loss sum is without it.

    Workers are threads that take equal slices of the batch, each on one core: for small models that beats spreading
    every operation over the cores. Their gradients are added in a fixed order.
    """

    def __init__(
        self,
        model: GPT2,
        objective: Objective,
        config: TrainConfig,
        precision: runtime.Precision,
        device: torch.device,
        penalty: Penalty | None = None,
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self.objective, self.penalty = objective, penalty
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.autocast = precision.dtype == "bf16"
        self.workers = 1 if config.attention_dropout else max(1, min(config.workers, config.batch))
        self.pool = ThreadPoolExecutor(self.workers, initializer=_single_thread) if self.workers > 1 else None
        self.threads = torch.get_num_threads()
        if self.pool is not None:  # no barrier between cores is left, so a busy machine slows a step only by its share
            torch.set_num_threads(1)

    def share_with(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Let Muon spread its matrices over the workers."""
        for optimizer in optimizers:
            if self.pool is not None and isinstance(optimizer, optim.Muon):
                optimizer.map, optimizer.parts = self.pool.map, self.workers

    def __call__(self, batch: Rows, step: int) -> tuple[float, int]:
        for parameter in self.parameters:
            parameter.grad = None
        if self.pool is None:
            sums = self._backward(batch, step, 0)
            for parameter in self.parameters:
                if (
                    parameter.grad is None
                ):  # an untied head, where a class is learned: the optimiser has it all the same
                    parameter.grad = torch.zeros_like(parameter)
            return sums
        futures = [
            self.pool.submit(self._slice_gradients, batch[a:b], step, a) for a, b in _slices(len(batch), self.workers)
        ]
        results = [future.result() for future in futures]
        first = results[0][2]
        for _, _, other in results[1:]:
            torch._foreach_add_(first, other)
        for parameter, gradient in zip(self.parameters, first, strict=True):
            parameter.grad = gradient
        return sum(r[0] for r in results), sum(r[1] for r in results)

    def _parts(self, batch: Rows, step: int, first_row: int) -> Iterator[Batch]:
        size = self.config.micro_batch or len(batch)
        for a in range(0, len(batch), size):
            fast.PLACE.step, fast.PLACE.first_row = step, first_row + a
            yield self._tensors(batch[a : a + size], step, first_row + a)

    def _tensors(self, rows: Rows, step: int, first_row: int) -> Batch:
        prepared = self.objective.prepare(rows, step, first_row)
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in prepared)

    def _loss(self, part: Batch) -> tuple[Tensor, int]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.objective.loss(self.model, *part)

    def _penalised(self, loss: Tensor, count: int) -> Tensor:
        """Outside autocast: a penalty is a sum over weights, which bf16 would round away."""
        penalty = None if self.penalty is None else self.penalty()
        return loss if penalty is None else loss + count * penalty

    def _backward(self, batch: Rows, step: int, first_row: int) -> tuple[float, int]:
        total, count = 0.0, 0
        for part in self._parts(batch, step, first_row):
            loss, n = self._loss(part)
            self._penalised(loss, n).backward()  # type: ignore[no-untyped-call]
            total, count = total + float(loss.detach()), count + n
        return total, count

    def _slice_gradients(self, batch: Rows, step: int, first_row: int) -> tuple[float, int, list[Tensor]]:
        total, count = 0.0, 0
        sums: list[Tensor] | None = None
        for part in self._parts(batch, step, first_row):
            loss, n = self._loss(part)
            whole = self._penalised(loss, n)
            gradients = list(torch.autograd.grad(whole, self.parameters, allow_unused=True, materialize_grads=True))
            if sums is None:
                sums = gradients
            else:
                torch._foreach_add_(sums, gradients)
            total, count = total + float(loss.detach()), count + n
        assert sums is not None
        return total, count, sums

    @torch.no_grad()
    def evaluate(self, rows: Rows) -> tuple[float, float | None]:
        """Mean nats per target over rows, dropout off, without label smoothing; and the share of right decisions."""

        def part(slice_: tuple[int, int]) -> tuple[float, int, int | None]:
            a, b = slice_
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                judged = self.objective.judge(self.model, *self._tensors(rows[a:b], 0, a))
                return float(judged.loss), judged.targets, judged.right

        self.model.eval()
        mapper = map if self.pool is None else self.pool.map
        results = list(mapper(part, list(_of_tokens(rows, EVALUATION_TOKENS))))
        self.model.train()
        count = sum(r[1] for r in results)
        right = [r[2] for r in results if r[2] is not None]
        return math.fsum(r[0] for r in results) / count, sum(right) / count if right else None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()
            torch.set_num_threads(self.threads)


def _single_thread() -> None:
    torch.set_num_threads(1)
    fast.PLACE.parallel = False


def _slices(n: int, parts: int) -> list[tuple[int, int]]:
    return [(n * i // parts, n * (i + 1) // parts) for i in range(parts)]


def _of_tokens(rows: Rows, most: int) -> Iterator[tuple[int, int]]:
    """Slices of rows that come to at most so many tokens, padded; at least one row each."""
    a, longest = 0, 0
    for b in range(len(rows)):
        longest = max(longest, len(rows[b]) - 1)
        if b > a and longest * (b + 1 - a) > most:
            yield a, b
            a, longest = b, len(rows[b]) - 1
    if len(rows) > a:
        yield a, len(rows)


def _evaluate(run: Run, gradients: Gradients, state: State) -> Evaluated:
    assert run.validation is not None
    loss, accuracy = gradients.evaluate(run.validation)
    before = [state.standing(step) for step in map(int, state.losses)]
    state.losses[str(state.step)] = loss
    if accuracy is not None:
        state.accuracies[str(state.step)] = accuracy
    best = all(state.standing(state.step) < one for one in before)
    if best:
        state.evaluations_since_best = 0
    else:
        state.evaluations_since_best += 1
        if run.config.schedule == "plateau" and state.evaluations_since_best % PLATEAU_PATIENCE == 0:
            state.plateau *= PLATEAU_FACTOR
        if run.config.patience and state.evaluations_since_best >= run.config.patience:
            state.stopped_early = True
    return Evaluated(state.step, loss, best, accuracy)


def _save(run: Run, optimizers: list[torch.optim.Optimizer], state: State) -> Saved:
    artefact = WholeModel(run.model, run.tokenizer) if run.artefact is None else run.artefact
    path = checkpoint.save(run.folder, artefact, optimizers, state, run.lineage, run.config.keep)
    return Saved(state.step, path)


def _check(loss: float, norm: float, state: State, run: Run, rate: float) -> None:
    limit = EXPLODED * math.log(max(3, run.model.config.vocab_size))
    if math.isfinite(loss) and math.isfinite(norm) and loss < limit:
        return
    what = f"the loss was {loss:.4g} and the gradient's norm {norm:.4g} at step {state.step + 1}"
    best = checkpoint.best(run.folder, state)
    if run.precision.dtype == "bf16" and not math.isfinite(loss):
        cause = "likely cause: bf16 overflowed; try --precision fp32"
    elif rate > 0.5 or state.step < 100:
        cause = (
            f"likely cause: the learning rate is too high; try --learning-rate {run.config.learning_rate / 3:.2g} "
            f"and --matrix-learning-rate {run.config.matrix_learning_rate / 3:.2g}, or a longer --warmup"
        )
    else:
        cause = "likely cause: damaged text; look at the samples and check the data"
    where = "" if best is None else f"; the best checkpoint is {checkpoint.folder_of(run.folder, best)}"
    raise UserError(f"{what}: training stopped{where}", hint=cause)


class _Clock:
    """Speed, time left, and the number of steps that fit into the minutes given."""

    def __init__(self, state: State, minutes: float | None = None) -> None:
        self.window = SPEED_SECONDS if minutes is None else minutes * 60 / 4  # seconds that are remembered
        self.before = state.seconds
        self.start = time.perf_counter()
        self.marks = deque([(self.start, state.step)])

    def tick(self, state: State, tokens: int) -> tuple[float, float]:
        """Tokens/s over the last steps, evaluations between them included, and the seconds left at that pace."""
        now = time.perf_counter()
        state.seconds = self.before + now - self.start
        self.marks.append((now, state.step))
        while len(self.marks) > 2 and now - self.marks[1][0] > self.window:
            self.marks.popleft()
        pace = self._pace(SPEED_SECONDS)
        return pace * tokens, (state.total - state.step) / pace

    def _pace(self, seconds: float) -> float:
        """Steps per second over about the last `seconds`."""
        now, step = self.marks[-1]
        then, since = now, step
        for mark in itertools.islice(reversed(self.marks), 1, None):
            if now - mark[0] > seconds and since < step:
                break
            then, since = mark
        return (step - since) / max(now - then, 1e-9)

    def replan(self, run: Run, state: State) -> Replanned | None:
        """Fit the rest of the steps into the rest of the minutes, at the pace of the last quarter of them."""
        if run.minutes is None or state.step % max(1, state.total // REPLANS) or state.step >= state.total:
            return None
        if state.seconds < 0.05 * run.minutes * 60:  # compiling and warming up say nothing of the pace
            return None
        left = run.minutes * 60 - state.seconds
        total = max(state.step, state.step + int(left * self._pace(self.window)))
        if abs(total - state.total) < 0.03 * state.total:
            return None
        state.total = total
        return Replanned(state.step, total)
