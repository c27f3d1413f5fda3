"""Packed tokens -> batches. Which window is row r of step s is a pure function of (seed, s, r).

Legend: B batch, T context, N tokens, W windows an epoch. Sample g = step * B + row belongs to epoch g // W;
within it a keyed permutation of 0..W-1 says which window. Ranks, workers and micro-batches slice the rows.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import UserError

ROUNDS = 8  # of the Feistel network
BLOCK = 512  # samples whose order is computed at a time: the network costs the same for one as for hundreds


class Tokens(Protocol):
    """PackedTokens, or a one-dimensional integer array."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: slice, /) -> Any: ...


class Batches:
    """Windows of T + 1 tokens in an order fixed by `seed`: each once an epoch, on a grid that moves by epoch.

    Raises UserError where the tokens do not fill one window.
    """

    def __init__(self, tokens: Tokens, context: int, batch: int, seed: int) -> None:
        assert context > 0, context
        assert batch > 0, batch
        if len(tokens) <= context:
            raise UserError(
                f"{len(tokens):,} tokens do not fill one window of {context:,} + 1",
                hint=f"take more text, or --context {max(1, len(tokens) // 2)} or smaller",
            )
        self.tokens = tokens
        self.context = context
        self.batch = batch
        self.seed = seed
        self.windows_per_epoch = max(1, (len(tokens) - context) // context)
        # one window less than would fit leaves room for T to 2T-1 shifts, so that every token gets its turn
        self._shifts = len(tokens) - self.windows_per_epoch * context
        self._whole = tokens if isinstance(tokens, np.ndarray) else getattr(tokens, "whole", None)
        self._vocab_size: int | None = getattr(tokens, "vocab_size", None)

    @property
    def tokens_per_epoch(self) -> int:
        """Targets an epoch: W * T."""
        return self.windows_per_epoch * self.context

    def epoch_of(self, step: int) -> int:
        """The epoch of a step's first row."""
        return step * self.batch // self.windows_per_epoch

    def at(self, step: int) -> NDArray[np.int64]:
        """[B, T+1] int64: inputs are [:, :-1], targets [:, 1:]."""
        return self.rows(step, 0, self.batch)

    def rows(self, step: int, start: int, stop: int) -> NDArray[np.int64]:
        """[stop - start, T+1]: rows start..stop-1 of `at(step)`."""
        assert 0 <= start <= stop <= self.batch, (start, stop, self.batch)
        starts = self.starts(step, start, stop)
        out: NDArray[np.int64]
        if self._whole is not None:
            out = self._whole[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        else:
            out = np.empty((len(starts), self.context + 1), dtype=np.int64)
            for row, begin in zip(out, starts.tolist(), strict=True):
                row[:] = self.tokens[begin : begin + self.context + 1]
        if self._vocab_size is not None and out.size and int(out.max()) >= self._vocab_size:
            raise UserError(
                f"step {step} holds id {int(out.max())}, outside the vocabulary of {self._vocab_size}: "
                "a token shard has changed since it was packed",
                hint="run gpt2kit pack again",
            )
        return out

    def starts(self, step: int, start: int, stop: int) -> NDArray[np.int64]:
        """[stop - start] int64: the first token of each row's window."""
        first, end = step * self.batch + start, step * self.batch + stop
        grid = (self.seed, self.windows_per_epoch, self._shifts, self.context)
        blocks = [_block_starts(*grid, block) for block in range(first // BLOCK, -(-end // BLOCK))]
        skip = first % BLOCK
        return np.concatenate(blocks or [np.empty(0, np.int64)])[skip : skip + stop - start]

    def prefetch(
        self, start_step: int, stop_step: int | None, rows: tuple[int, int] | None = None, depth: int = 4
    ) -> Iterator[NDArray[np.int64]]:
        """Batches (or their rows) start_step..stop_step-1, up to `depth` of them prepared ahead by a thread.

        `stop_step` None: without end. Closing the generator ends the thread; its errors are raised here.
        """
        assert depth > 0, depth
        start, stop = (0, self.batch) if rows is None else rows
        ready: queue.SimpleQueue[NDArray[np.int64] | BaseException | None] = queue.SimpleQueue()
        room = threading.Semaphore(depth)
        closed = threading.Event()

        def prepare() -> None:
            step = start_step
            try:
                while stop_step is None or step < stop_step:
                    room.acquire()
                    if closed.is_set():
                        return
                    ready.put(self.rows(step, start, stop))
                    step += 1
                ready.put(None)
            except BaseException as error:
                ready.put(error)

        thread = threading.Thread(target=prepare, name="gpt2kit-prefetch", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                room.release()
                yield item
        finally:
            closed.set()
            room.release()
            thread.join()


@lru_cache(maxsize=64)
def _block_starts(seed: int, windows: int, shifts: int, context: int, block: int) -> NDArray[np.int64]:
    """[BLOCK] int64: the first tokens of the windows of samples block * BLOCK and on."""
    out = np.empty(BLOCK, dtype=np.int64)
    done = 0
    while done < BLOCK:  # one turn for each epoch that the block touches
        epoch, index = divmod(block * BLOCK + done, windows)
        count = min(BLOCK - done, windows - index)
        shift, keys = _epoch_keys(seed, epoch)
        order = permute(np.arange(index, index + count), windows, keys)
        out[done : done + count] = shift % shifts + order * context
        done += count
    out.setflags(write=False)
    return out


@lru_cache(maxsize=16)
def _epoch_keys(seed: int, epoch: int) -> tuple[int, tuple[int, ...]]:
    """(shift, round keys) of an epoch: 64-bit numbers out of blake2b."""
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=64).digest()
    more = hashlib.blake2b(digest, digest_size=64).digest()
    keys = tuple(int(key) for key in np.frombuffer(more, "<u8"))
    assert len(keys) == ROUNDS
    return int.from_bytes(digest[:8], "little"), keys


def permute(indices: NDArray[np.int64], size: int, keys: tuple[int, ...]) -> NDArray[np.int64]:
    """The images of `indices` under a permutation of 0..size-1: a Feistel network over the next power of four
    walked along its cycle until it falls below `size` (Black, Rogaway 2002; at most four turns on average).
    """
    half = np.uint64(max(2, ((size - 1).bit_length() + 1) // 2))
    out = np.array(indices, dtype=np.uint64)
    outside = np.ones(len(out), dtype=np.bool_)
    while outside.any():
        out[outside] = _feistel(out[outside], half, keys)
        outside = out >= size
    return out.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: tuple[int, ...]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + np.uint64(key)) & mask)
    return (left << half) | right


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014); products are taken modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
