"""A tiny exact model with forward.py's interface: integers only, so that any wrong block, token or position shows.

State t is a hash of (state t-1, token t, t), and of what the slot's adapter stands for; it is stored in the block that
holds position t, with the token and the position. A row's logits are a hash of its own state and of all states before
it, read through the block table. Every read is checked: the stored positions must be 0, 1, 2 ... and each stored state
must follow from the one before.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.adapters import Adapter
from gpt2kit.engine.weights import Precision
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config

BLOCK = 16
M1, M2, M3 = (np.uint64(m) for m in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
S30, S27, S31 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(x: Any) -> Any:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> S30)) * M2
        x = (x ^ (x >> S27)) * M3
        return x ^ (x >> S31)


def follow(state: Any, token: Any, position: Any) -> Any:
    with np.errstate(over="ignore"):
        return mix(state * M1 + np.uint64(token) * M3 + np.uint64(position) * M2 + np.uint64(1))


class FakeForward:
    """`repeats`: how strongly (0 to 1) the next token hangs on the last two alone: the text then runs in circles.

    `poison`: a token whose presence makes the logits of its sequence NaN.
    """

    def __init__(
        self,
        config: GPT2Config,
        blocks: int,
        max_rows: int = 48,
        max_logits: int = 16,
        max_sequences: int = 8,
        repeats: float = 0.0,
        poison: int = -1,
    ) -> None:
        self.config, self.vocab_size, self.threads = config, config.vocab_size, 1
        self.precision: Precision = "fp32"
        self.blocks, self.max_rows, self.max_logits, self.max_sequences = blocks, max_rows, max_logits, max_sequences
        self.blocks_per_sequence = -(-config.n_positions // BLOCK)
        self.block_bytes = BLOCK * 24
        self.repeats, self.poison = repeats, poison
        self.state = np.zeros(blocks * BLOCK, np.uint64)
        self.token = np.full(blocks * BLOCK, -1, np.int64)
        self.position = np.full(blocks * BLOCK, -1, np.int64)
        self.hidden = np.zeros((max_rows, 4), np.float32)
        self.logits = np.zeros((max_logits, config.vocab_size), np.float32)
        self.vocab = np.arange(config.vocab_size).astype(np.uint64) * M1
        self.steps = self.rows = self.most_rows = self.furthest = 0
        self.entered = threading.Lock()
        self.error: Exception | None = None
        self.closed = False
        self.lent = np.zeros(max_sequences, np.uint64)  # the value of a slot's adapter
        self.numbers = itertools.count(1)

    def step(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        slots: NDArray[np.int32],
        tables: NDArray[np.int32],
        wanted: NDArray[np.int32],
        hidden: bool = False,
    ) -> NDArray[np.float32]:
        assert self.entered.acquire(blocking=False), "two callers at a time"
        try:
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            return self._step(tokens, positions, slots, tables, wanted, hidden)
        finally:
            self.entered.release()

    def _step(self, tokens: Any, positions: Any, slots: Any, tables: Any, wanted: Any, hidden: bool) -> Any:
        R = len(tokens)
        assert not self.closed
        assert 0 < R <= self.max_rows
        assert len(positions) == len(slots) == R
        assert len(set(wanted.tolist())) == len(wanted) <= self.max_logits
        assert all(a.dtype == np.int32 for a in (tokens, positions, slots, tables, wanted))
        assert tables.shape == (self.max_sequences, self.blocks_per_sequence)
        assert 0 <= tokens.min() <= tokens.max() < self.vocab_size
        self.steps, self.rows, self.most_rows = self.steps + 1, self.rows + R, max(self.most_rows, R)
        self.furthest = max(self.furthest, int(positions.max()))
        want = {int(r): j for j, r in enumerate(wanted)}
        self.logits[:] = np.nan  # what an earlier step returned is not valid any more
        self.hidden[:] = np.nan
        logits = self.logits[: len(wanted)]
        last: dict[int, tuple[int, int]] = {}  # slot -> (row, position) of its last row
        written: dict[int, int] = {}  # place -> slot
        for r in range(R):
            slot, p, token = int(slots[r]), int(positions[r]), int(tokens[r])
            if slot in last:
                assert last[slot] == (r - 1, p - 1), "rows of one slot must follow each other"
            last[slot] = (r, p)
            place = int(tables[slot, p // BLOCK]) * BLOCK + p % BLOCK
            assert written.setdefault(place, slot) == slot, "two sequences write to one place"
            at = tables[slot, np.arange(p + 1) // BLOCK].astype(np.int64) * BLOCK + np.arange(p + 1) % BLOCK
            before = self.state[at[:-1]]
            previous = before[-1] if p else np.uint64(0)
            lent = self.lent[slot]
            self.state[place] = follow(previous, token, p) ^ lent
            self.token[place], self.position[place] = token, p
            assert (self.position[at] == np.arange(p + 1)).all(), "a stale position is read"
            if p:
                chain = follow(before[:-1], self.token[at[1:-1]], np.arange(1, p))
                assert (self.state[at[1:-1]] == chain ^ lent).all(), "keys of another sequence are read"
            h = mix(np.bitwise_xor.reduce(mix(self.state[at])))
            if hidden:
                self.hidden[r] = (mix(h + np.arange(4).astype(np.uint64)) >> np.uint64(40)).astype(np.float32)
            if r in want:
                logits[want[r]] = self._logits(h, self.token[at])
        return logits

    def _logits(self, h: Any, tokens: Any) -> Any:
        row = (mix(self.vocab + h) >> np.uint64(44)).astype(np.float32) * np.float32(2.0**-18)  # 0 .. 4
        if self.repeats:
            key = np.uint64(int(tokens[-1]) * 1000 + (int(tokens[-2]) if len(tokens) > 1 else 0))
            strong = (mix(self.vocab + key) >> np.uint64(44)).astype(np.float32) * np.float32(2.0**-18)
            row = row * np.float32(1 - self.repeats) + strong * np.float32(self.repeats)
        if self.poison in tokens:
            row[:] = np.nan
        return row

    def copy_block(self, source: int, target: int) -> None:
        a, b = source * BLOCK, target * BLOCK
        for array in (self.state, self.token, self.position):
            array[b : b + BLOCK] = array[a : a + BLOCK]

    def pack_adapter(self, name: str, factors: Any) -> Adapter:
        """`factors`: a number that stands for what the adapter does."""
        if not isinstance(factors, int):
            raise UserError("no factors")
        value = np.array([factors], np.int64)
        return Adapter(name, next(self.numbers), value, np.zeros(8, np.float32), 4, 1)

    def use_adapter(self, slot: int, adapter: Adapter | None) -> None:
        assert (adapter is None) == bool(self.lent[slot]), "given to a slot that has one, or taken where there is none"
        self.lent[slot] = 0 if adapter is None else mix(np.uint64(adapter.table[0]))

    def close(self) -> None:
        self.closed = True


class NullForward:
    """Computes nothing: prefabricated logits, to time everything around a step."""

    def __init__(
        self, config: GPT2Config, blocks: int, max_rows: int = 288, max_logits: int = 64, max_sequences: int = 64
    ):
        self.config, self.vocab_size, self.threads = config, config.vocab_size, 1
        self.precision: Precision = "fp32"
        self.blocks, self.max_rows, self.max_logits, self.max_sequences = blocks, max_rows, max_logits, max_sequences
        self.blocks_per_sequence = -(-config.n_positions // BLOCK)
        self.block_bytes = 1
        self.logits = np.random.default_rng(0).normal(size=(max_logits, config.vocab_size)).astype(np.float32)
        self.hidden = np.zeros((max_rows, 4), np.float32)
        self.seconds = 0.0

    def step(self, tokens: Any, positions: Any, slots: Any, tables: Any, wanted: Any, hidden: bool = False) -> Any:
        return self.logits[: len(wanted)]

    def copy_block(self, source: int, target: int) -> None:
        pass

    def close(self) -> None:
        pass
