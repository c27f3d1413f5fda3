"""Continuous batching: which rows the next step computes, and what becomes of their logits.

    waiting ──admit (slot, blocks)──> prefilling ──prompt computed──> decoding ──finished──> gone
       ^                                                                  │
       └─────────────── the view is full and slides: compute it anew ─────┘

A step's rows are, in this order: for each decoding sequence its last token, then its draft; then the prompts that
are being computed, first come, first served, as far as rows are left. While others decode, a step takes at most
`chunk` rows of prompts, fewer on a slow machine, so that no stream waits long for its next token.

A row's logits depend on its own sequence alone (forward.py), and the scheduler never looks at logits to decide who is
computed with whom; so what a request gets does not depend on its company.

Not thread-safe: engine.py gives it to one thread.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.cache import BLOCK, BlockPool
from gpt2kit.engine.job import Counters, Job, Stream
from gpt2kit.engine.speculate import FIRST_ODDS, LONGEST_DRAFT, Drafter, StepCost
from gpt2kit.engine.weights import Precision
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Event, Logits
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import check_logits, describe

if TYPE_CHECKING:
    from gpt2kit.engine.adapters import Adapter, Factors

Ints = NDArray[np.int32]

CHUNK = 128  # rows of prompts in a step beside decoding streams: at most so many,
SHORTEST_CHUNK = 32  # at least so many (fewer cost nearly as much: the weights are read once a step),
STALL = 0.05  # and between these as many as take so many seconds


class Forward(Protocol):
    """What the scheduler needs of forward.py's class; the tests have a slow exact one."""

    config: GPT2Config
    precision: Precision
    blocks: int
    blocks_per_sequence: int
    max_rows: int
    max_logits: int
    max_sequences: int
    hidden: NDArray[np.float32]

    def step(
        self, tokens: Ints, positions: Ints, slots: Ints, tables: Ints, wanted: Ints, hidden: bool = False
    ) -> Logits: ...

    def copy_block(self, source: int, target: int) -> None: ...

    def pack_adapter(self, name: str, factors: Factors) -> Adapter: ...

    def use_adapter(self, slot: int, adapter: Adapter | None) -> None: ...

    def close(self) -> None: ...


class Scheduler:
    """Owns the forward pass and its cache. `vocab_size`: only so many of the logits may be chosen."""

    def __init__(self, forward: Forward, vocab_size: int, max_batch: int, chunk: int = CHUNK) -> None:
        assert 0 < max_batch <= min(forward.max_sequences, forward.max_logits - 1, forward.max_rows - BLOCK)
        self.forward, self.vocab_size, self.max_batch, self.chunk = forward, vocab_size, max_batch, chunk
        self.N = forward.config.n_positions
        self.pool = BlockPool(forward.blocks, forward.copy_block)
        self.counters = Counters()
        self.cost = StepCost()
        self.prompt_cost = 0.0  # measured seconds of a prompt's row
        self.odds = list(FIRST_ODDS)
        self.waiting: OrderedDict[int, Stream] = OrderedDict()  # by number: in order of arrival
        self.resuming: list[Stream] = []  # slid, so here before all who wait
        self.prefilling: list[Stream] = []
        self.decoding: list[Stream] = []
        self.slots = list(range(max_batch - 1, -1, -1))
        self.numbers = 0
        self.tables: Ints = np.zeros((forward.max_sequences, forward.blocks_per_sequence), np.int32)
        R = forward.max_rows
        self.tokens, self.positions, self.owners, self.wanted = (np.zeros(R, np.int32) for _ in range(4))
        self._counting = np.arange(max(R, self.N), dtype=np.int32)

    # ------------------------------------------------------------ who is here

    @property
    def running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    @property
    def queued(self) -> int:
        return len(self.waiting) + len(self.resuming)

    @property
    def busy(self) -> bool:
        return bool(self.decoding or self.prefilling or self.waiting or self.resuming)

    def check_fits(self, job: Job) -> None:
        """UserError for a request that could never be let in."""
        stream = Stream(job, 0, 0)
        stream.open_view(self.N)
        need = stream.most_blocks(self.N)
        if need > self.pool.blocks:
            raise UserError(
                f"the request may need {need * BLOCK} tokens of cache, the engine has {self.pool.blocks * BLOCK}",
                hint="lower max_tokens, shorten the prompt, or load the engine with more blocks",
            )

    def add(self, job: Job) -> None:
        self.counters.requests += 1
        job.streams = [Stream(job, i, self.numbers + i) for i in range(len(job.generations))]
        job.leader = job.streams[0]
        self.numbers += len(job.streams)
        job.open = len(job.streams)
        for stream in job.streams:
            stream.open_view(self.N)
            if stream.row.finish_reason is None or (stream.index == 0 and stream.end > 0 and (job.echo or job.pooling)):
                self.waiting[stream.number] = stream
            else:
                self._guard(self._finish, stream)

    def cancel(self, job: Job) -> None:
        """Free what the request holds; nothing more will come of it."""
        if not job.ended:
            self.counters.cancelled += 1
            self._drop(job)

    def fail(self, job: Job, error: BaseException) -> None:
        if not job.ended:
            self.counters.failed += 1
            job.error = error
            self._drop(job)

    def fail_all(self, error: BaseException) -> None:
        for stream in [*self.decoding, *self.prefilling, *self.resuming, *self.waiting.values()]:
            self.fail(stream.job, error)

    def _drop(self, job: Job) -> None:
        for stream in job.streams:
            if stream.lease is not None:
                self._leave(stream)
            elif self.waiting.pop(stream.number, None) is None and stream in self.resuming:
                self.resuming.remove(stream)
        self._end(job)

    def _end(self, job: Job) -> None:
        job.ended = True
        job.first_logits, job.leader, job.adapter, job.streams = None, None, None, []
        with contextlib.suppress(Exception):  # a listener's fault is not the other requests'
            job.on_end()

    def _leave(self, stream: Stream) -> None:
        assert stream.lease is not None
        (self.decoding if stream in self.decoding else self.prefilling).remove(stream)
        stream.lease.release()
        stream.lease = None
        if stream.job.adapter is not None:
            self.forward.use_adapter(stream.slot, None)
        self.slots.append(stream.slot)

    def _finish(self, stream: Stream) -> None:
        """A completion is done."""
        job = stream.job
        if stream.lease is not None:
            self._leave(stream)
        if not stream.row.limit and not job.pooling:
            job.on_event(stream.index, Event(None, finish_reason="length", seed=stream.row.settings.seed))
        job.open -= 1
        if not job.open:
            self.counters.finished += 1
            self._end(job)

    # ------------------------------------------------------------ admission

    def _admit(self) -> None:
        while self.slots and (self.resuming or self.waiting):
            stream = self.resuming[0] if self.resuming else next(iter(self.waiting.values()))
            if not self._let_in(stream):
                assert self.running, "nobody runs, yet there is no room for one"
                return

    def _let_in(self, stream: Stream) -> bool:
        job = stream.job
        sharing = stream.index > 0 and not stream.row.output
        if sharing and job.first_logits is None:
            return False  # the first completion is computing the prompt
        stream.open_view(self.N)
        slot, most = self.slots[-1], stream.most_blocks(self.N)
        table, leader, forked = self.tables[slot], job.leader, False
        assert leader is not None
        if sharing and leader.lease is not None and leader.start == stream.start:
            lease, forked = self.pool.fork(leader.lease, stream.end - stream.start, most, table), True
        else:
            reusable = max(0, min(stream.wanted, stream.end - stream.start))
            lease = self.pool.lease(job.root, stream.row.ids, stream.start, reusable, most, table)
        if lease is None:
            return False
        if self.resuming:
            self.resuming.pop(0)
        else:
            del self.waiting[stream.number]
        self.slots.pop()
        if job.adapter is not None:
            self.forward.use_adapter(slot, job.adapter)
        stream.lease, stream.slot, stream.room = lease, slot, len(lease.blocks) * BLOCK
        if not stream.row.output:
            if not job.counted:  # once, however many completions and views it has
                self.counters.prompt_tokens += len(job.prompt)
                self.counters.prefix_tokens += lease.shared * BLOCK
            job.counted = True
            job.found = max(job.found, lease.shared * BLOCK)
        if forked:
            stream.computed = stream.end - stream.start
            self.decoding.append(stream)
            self._guard(self._advance, stream, job.first_logits)
        else:
            stream.computed = lease.shared * BLOCK
            self.prefilling.append(stream)
        return True

    # ------------------------------------------------------------ a step

    def step(self) -> bool:
        """Admit, compute, hand out. False: there is nothing to do."""
        self._admit()
        if not self.running:
            return False
        R, J, drafts = self._lay_decoding()
        decoding = self.decoding[:]
        R_decoding = R
        R, J, chunks = self._lay_prefilling(R, J)
        hidden = any(stream.job.pooling for stream, *_ in chunks)
        begun = time.perf_counter()
        logits = self.forward.step(
            self.tokens[:R], self.positions[:R], self.owners[:R], self.tables, self.wanted[:J], hidden
        )
        seconds = time.perf_counter() - begun
        self.counters.steps += 1
        self.counters.rows += R
        self.counters.forward_seconds += seconds
        if not chunks:
            self.cost.observe(R, seconds)
        elif R - R_decoding >= SHORTEST_CHUNK:
            known = self.cost.seconds_of(R_decoding) if R_decoding and self.cost.weight else 0.0
            row = max(0.0, seconds - known) / (R - R_decoding)
            if not self.prompt_cost or row < self.prompt_cost:
                self.prompt_cost = row  # a first step that compiles, or an interrupted one, is soon forgotten
            else:
                self.prompt_cost += (row - self.prompt_cost) * 0.25
        logits = logits[:, : self.vocab_size]
        j = 0
        for stream, draft in zip(decoding, drafts, strict=True):
            self._guard(self._take_decoded, stream, logits, j, draft)
            j += 1 + len(draft)
        for stream, first, count, j, wanted in chunks:
            self._guard(self._take_prefilled, stream, logits, first, count, j, wanted)
        return True

    def _guard(self, what: object, stream: Stream, *arguments: object) -> None:
        """An error in one request ends that request; nothing more comes of one that has ended in this very step."""
        if stream.job.ended:
            return
        try:
            what(stream, *arguments)  # type: ignore[operator]
        except Exception as error:
            self.fail(stream.job, error)

    def _lay_decoding(self) -> tuple[int, int, list[list[int]]]:
        """Rows of the decoding streams. Returns rows, logits asked for (all of them), and each stream's draft."""
        tokens, positions, owners = self.tokens, self.positions, self.owners
        S = len(self.decoding)
        spare = min(self.forward.max_logits, self.forward.max_rows) - S - (1 if self.prefilling else 0)
        cost, expected = self.cost, float(S)
        seconds, slope = cost.seconds_of(S), cost.slope
        drafts: list[list[int]] = []
        none: list[int] = []
        r = 0
        for stream in self.decoding:
            row, p = stream.row, stream.computed
            draft = none
            drafter = stream.drafter
            if drafter is not None and drafter.source >= 0 and spare:
                most = min(LONGEST_DRAFT, spare, row.limit - len(row.output) - 1, self.N - 1 - p)
                draft = drafter.draft(most, slope * expected / seconds)
                if draft:
                    spare -= len(draft)
                    expected += drafter.expected(len(draft))
                    seconds += slope * len(draft)
            drafts.append(draft)
            k = len(draft)
            if p + k >= stream.room:
                self._extend(stream, p + k + 1)
            tokens[r] = row.ids[-1]
            positions[r] = p
            owners[r] = stream.slot
            r += 1
            if k:
                tokens[r : r + k] = draft
                positions[r : r + k] = range(p + 1, p + 1 + k)
                owners[r : r + k] = stream.slot
                r += k
        self.wanted[:r] = self._counting[:r]
        return r, r, drafts

    def _lay_prefilling(self, R: int, J: int) -> tuple[int, int, list[tuple[Stream, int, int, int, int]]]:
        """Rows of prompts: for each chunk (stream, first row, rows, first of its logits, how many logits)."""
        rows = self.forward.max_rows - R
        if R:
            rows = min(rows, self._chunk_rows())
        room = self.forward.max_logits - J
        chunks = []
        for stream in self.prefilling:
            p = stream.computed
            count = min(rows, stream.end - stream.start - p)
            wanted = 0
            if not stream.job.pooling:
                wanted = max(0, p + count - max(p, stream.wanted))
                if wanted > room:
                    count, wanted = count - (wanted - room), room
            if count <= 0:
                break
            self._extend(stream, p + count)
            at = stream.start + p
            self.tokens[R : R + count] = stream.row.ids[at : at + count]
            self.positions[R : R + count] = self._counting[p : p + count]
            self.owners[R : R + count] = stream.slot
            self.wanted[J : J + wanted] = self._counting[R + count - wanted : R + count]
            chunks.append((stream, R, count, J, wanted))
            R, J, rows, room = R + count, J + wanted, rows - count, room - wanted
        return R, J, chunks

    def _chunk_rows(self) -> int:
        """Rows of prompts in a step beside decoding streams."""
        if not self.prompt_cost:
            return self.chunk
        return min(self.chunk, max(SHORTEST_CHUNK, int(STALL / self.prompt_cost)))

    def _extend(self, stream: Stream, length: int) -> None:
        lease = stream.lease
        assert lease is not None
        lease.extend(length)
        stream.room = len(lease.blocks) * BLOCK

    # ------------------------------------------------------------ what comes of it

    def _take_decoded(self, stream: Stream, logits: Logits, j: int, draft: list[int]) -> None:
        """Go on token by token while the draft foretells what the sampler chooses."""
        counters, row = self.counters, stream.row
        for i in range(len(draft) + 1):
            stream.computed += 1
            finished = self._advance(stream, logits[j + i])
            if finished or i == len(draft) or row.ids[-1] != draft[i]:
                break
        counters.draft_tokens += len(draft)
        counters.accepted_tokens += i

    def _advance(self, stream: Stream, logits: Logits) -> bool:
        """One token on. True when the stream has left the running ones: finished, or its view slides."""
        row = stream.row
        event = row.advance(logits)
        self.counters.generation_tokens += 1
        stream.job.on_event(stream.index, event)
        lease = stream.lease
        assert lease is not None
        if stream.computed >= (lease.entered + 1) * BLOCK:
            lease.enter(row.ids, stream.start, stream.computed)
        if row.finish_reason is not None:
            self._finish(stream)
            return True
        drafter = stream.drafter
        if drafter is not None:
            drafter.push(row.ids[-1])
        elif stream.job.speculate and row.limit - len(row.output) > 1:
            stream.drafter = Drafter(row.ids, self.odds)
        if len(row.ids) - stream.start > self.N:
            self._slide(stream, len(row.ids) - 1)
            return True
        return False

    def _slide(self, stream: Stream, scored: int) -> None:
        """The view is full: queue up, as one of the first, to have the one computed that token `scored` sees."""
        self.counters.slides += 1
        self._leave(stream)
        stream.scored = scored
        self.resuming.append(stream)
        self.resuming.sort(key=lambda one: one.number)

    def _take_prefilled(self, stream: Stream, logits: Logits, first: int, count: int, j: int, wanted: int) -> None:
        job, row, lease = stream.job, stream.row, stream.lease
        assert lease is not None
        p = stream.computed
        stream.computed += count
        lease.enter(row.ids, stream.start, stream.computed)
        if job.pooling:
            self._keep_states(stream, p, first, count)
        last = None
        for i in range(wanted):
            t = stream.start + stream.computed - wanted + i
            if t == len(row.ids) - 1:
                last = logits[j + i]
            else:
                self._score(stream, t, logits[j + i])
        if stream.start + stream.computed < stream.end:
            return
        if stream.end < stream.stop:
            self._slide(stream, stream.end)
        elif last is None:
            self._finish(stream)
        else:
            if job.open > 1 and stream.index == 0 and job.first_logits is None:
                job.first_logits = last.copy()
            self.prefilling.remove(stream)
            self.decoding.append(stream)
            self._advance(stream, last)

    def _score(self, stream: Stream, t: int, logits: Logits) -> None:
        """What the model thought of prompt token t + 1."""
        check_logits(float(logits.max()), banned=False)
        job = stream.job
        assert len(job.scores) == t + 1
        job.scores.append(describe(logits, job.prompt[t + 1], job.settings.logprobs or 0))

    def _keep_states(self, stream: Stream, p: int, first: int, count: int) -> None:
        job, hidden = stream.job, self.forward.hidden
        if job.states is None:
            T = len(job.prompt) if job.pooling == "mean" else 1
            job.states = np.zeros((T, hidden.shape[1]), np.float32)
        if job.pooling == "mean":
            job.states[p : p + count] = hidden[first : first + count]
        else:
            job.states[0] = hidden[first + count - 1]
