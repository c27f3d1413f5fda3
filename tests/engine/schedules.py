"""Runs of the scheduler over the exact fake: requests that remember what they got, alone and in company."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_forward import FakeForward

from gpt2kit.engine.adapters import Adapter
from gpt2kit.engine.job import Job
from gpt2kit.engine.scheduler import Scheduler
from gpt2kit.model.completion import Event, view_start
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import SamplingSettings, describe

V, N = 29, 64
EOS = 0
ADAPTERS = [Adapter(name, i + 1, np.array([i + 7]), np.zeros(0, np.float32), 4, 1) for i, name in enumerate("ab")]


def config(vocab_size: int = V, n_positions: int = N) -> GPT2Config:
    return GPT2Config(vocab_size=vocab_size, n_positions=n_positions, n_embd=8, n_layer=1, n_head=2)


def scheduler(blocks: int = 16, chunk: int = 8, max_batch: int = 6, N: int = N, **fake: Any) -> Scheduler:
    forward = FakeForward(config(n_positions=N), blocks, **fake)
    return Scheduler(forward, V, max_batch, chunk)


class Asked(Job):
    """A request that keeps its events."""

    def __init__(self, prompt: list[int], N: int = N, **options: Any) -> None:
        names = ("window", "salt", "speculate", "echo", "pooling", "adapter")
        own = {name: options.pop(name) for name in names if name in options}
        options = {"temperature": 0.0, "logprobs": 1, "max_tokens": 8, **options}
        super().__init__(prompt, SamplingSettings(**options), EOS, None, N, **own)
        self.events: list[tuple[int, Event]] = []
        self.done = False
        self.late = 0  # what came after the end; an assertion here would only be taken for this request's error

    def on_event(self, index: int, event: Event) -> None:
        self.late += self.done
        self.events.append((index, event))

    def on_end(self) -> None:
        self.late += self.done
        self.done = True

    def answer(self) -> Any:
        """Everything a user gets: tokens, reasons, log-probabilities, scores, vectors."""
        assert self.done
        assert not self.late
        if self.error is not None:
            return str(self.error)
        states = None if self.states is None else self.states.tolist()
        if self.pooling:
            return states
        rows = [(r.output, r.choices, r.finish_reason, r.stop_reason, r.window_slid) for r in self.generations]
        for index, row in enumerate(rows):
            told = [event.token for i, event in self.events if i == index]
            assert told == (row[0] or [None])
            assert [e.finish_reason for i, e in self.events if i == index][-1] == row[2]
        return rows, self.scores if self.echo else None


def run(made: Scheduler, jobs: list[Asked], check: bool = True) -> None:
    for job in jobs:
        made.check_fits(job)
        made.add(job)
    while made.step():
        if check:
            made.pool.check()
    assert all(job.done for job in jobs)
    made.pool.check()
    assert not made.pool.leases
    assert made.pool.used == 0
    assert len(made.slots) == made.max_batch


def alone(prompt: list[int], repeats: float = 0.0, poison: int = -1, **options: Any) -> Any:
    """The answer of a request that nobody else ever shared the engine with; the prompt in one piece, no drafts."""
    own = {**options, "speculate": False}
    length = own.get("N", N)
    made = scheduler(blocks=256, max_batch=1, N=length, repeats=repeats, poison=poison, max_rows=512, max_logits=512)
    job = Asked(prompt, **own)
    run(made, [job], check=False)
    return job.answer()


def by_definition(prompt: list[int], repeats: float = 0.0, **options: Any) -> Any:
    """The answer with nothing clever: for every token the whole view is computed anew. Not through the scheduler."""
    job = Asked(prompt, **options)
    length = job.generations[0].n_positions

    def rows(view: list[int]) -> Any:
        forward = FakeForward(config(n_positions=length), 64, max_rows=512, max_logits=512, repeats=repeats)
        at = np.arange(len(view), dtype=np.int32)
        table = np.zeros((8, forward.blocks_per_sequence), np.int32)
        table[0] = np.arange(forward.blocks_per_sequence)
        if job.adapter is not None:
            forward.use_adapter(0, job.adapter)
        return forward.step(np.array(view, np.int32), at, np.zeros_like(at), table, at)

    job.open = 1
    for t in range(len(prompt) - 1):
        start = view_start(t + 1, length)
        logits = rows(prompt[start : t + 1])[-1]
        job.scores.append(describe(logits, prompt[t + 1], job.settings.logprobs or 0))
    for index, row in enumerate(job.generations):
        if row.finish_reason is not None:
            job.on_event(index, Event(None, finish_reason="length"))
        while row.finish_reason is None:
            job.on_event(index, row.advance(rows(row.ids[view_start(len(row.ids), length) :])[-1]))
    job.on_end()
    return job.answer()
