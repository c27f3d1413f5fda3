"""What the scheduler works on: a request is a job, each of its completions a stream of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.cache import BLOCK, Lease, Root
from gpt2kit.engine.speculate import Drafter
from gpt2kit.model.completion import Completion, Event, Generation, Logits, Window, view_start
from gpt2kit.model.sampling import Choice, SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine.adapters import Adapter

Pooling = Literal["mean", "last"]


@dataclass
class Counters:
    """Totals since the engine was loaded."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    rows: int = 0
    prompt_tokens: int = 0  # of requests let in, computed or found
    prefix_tokens: int = 0  # of these, found in the cache
    generation_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    slides: int = 0
    forward_seconds: float = 0.0


class Job:
    """One request inside the scheduler: its completions, or the vectors of its prompt.

    `pooling` None: complete. The hooks are called by the scheduler's thread; the engine's handles override them.
    """

    generation = Generation  # what each completion is

    def __init__(
        self,
        prompt: list[int],
        settings: SamplingSettings,
        eos_id: int | None,
        tokenizer: Tokenizer | None,
        n_positions: int,
        window: Window = "slide",
        salt: str = "",
        speculate: bool = True,
        echo: bool = False,
        pooling: Pooling | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.prompt, self.settings, self.speculate, self.adapter = prompt, settings, speculate, adapter
        self.root: Root = salt if adapter is None else (salt, adapter.number)  # of its blocks in the prefix tree
        self.echo, self.pooling = echo, pooling
        own = (settings.for_completion(j) for j in range(settings.n))
        self.generations = [self.generation(prompt, s, eos_id, tokenizer, n_positions, window) for s in own]
        self.scores: list[Choice | None] = [None]  # echo: of the prompt's tokens, the first has none
        self.states: NDArray[np.float32] | None = None  # pooling: [T, C] for "mean", [1, C] for "last"
        self.first_logits: Logits | None = None  # after the prompt, for the completions that share it
        self.leader: Stream | None = None
        self.streams: list[Stream] = []
        self.found = 0  # prompt tokens found in the cache
        self.counted = False  # in the totals
        self.open = 0  # completions that are not finished
        self.error: BaseException | None = None
        self.ended = False

    def completions(self) -> list[Completion]:
        return [row.completion() for row in self.generations]

    def on_event(self, index: int, event: Event) -> None:
        """Completion `index` has gone one token on."""

    def on_end(self) -> None:
        """Everything is done, or `error` says why not."""


class Stream:
    """One completion in the scheduler. Its view is ids[start:end]; positions count from `start`."""

    __slots__ = (
        "computed", "drafter", "end", "index", "job", "lease", "number", "room", "row", "scored", "slot", "start",
        "stop", "wanted",
    )  # fmt: skip

    def __init__(self, job: Job, index: int, number: int) -> None:
        self.job, self.index, self.number = job, index, number
        self.row = job.generations[index]
        self.lease: Lease | None = None
        self.drafter: Drafter | None = None
        self.slot = -1
        self.room = 0  # positions that the lease's blocks hold
        self.scored = 0 if job.echo and index == 0 else len(job.prompt) - 1
        self.start = self.end = self.stop = self.wanted = self.computed = 0

    def open_view(self, N: int) -> None:
        """The view in which token `scored` predicts the next one, as far as there are tokens."""
        ids = self.row.ids
        self.stop = len(ids) if self.row.limit or self.job.pooling else len(ids) - 1
        self.start = view_start(self.scored + 1, N)
        self.end = min(self.start + N, self.stop)
        self.wanted = 0 if self.job.pooling == "mean" else self.scored - self.start  # the first position of interest

    def most_blocks(self, N: int) -> int:
        """How many blocks this view can come to hold."""
        more = 0 if self.job.pooling else self.row.limit - len(self.row.output)
        return -(-min(N, self.end - self.start + more) // BLOCK)
