"""A set of 128-bit text hashes in one numpy array: exact duplicates are found without keeping the texts."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]  # [N, 2]


def text_hashes(texts: Sequence[bytes]) -> Hashes:
    """[N, 2] uint64: blake2b of each text, 128 bits. Two texts collide with a chance of N^2 / 2^129."""
    joined = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, "<u8").reshape(-1, 2).astype(np.uint64)


class SeenHashes:
    """Open addressing with linear probing, at most two thirds full: 24 to 48 bytes a hash.

    Past `memory` bytes the table lies in an unnamed file in `folder`, mapped: the system may drop its pages.
    """

    def __init__(self, folder: Path | None = None, memory: int = 1 << 28, slots: int = 1 << 12) -> None:
        self._folder = folder
        self._memory = memory
        self._count = 0
        self._slots = self._empty(slots)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._slots.nbytes

    def add(self, hashes: Hashes) -> NDArray[np.bool_]:
        """[N] True where a hash was not in the set, nor earlier in `hashes`. Afterwards all are in it."""
        hashes = _without_zero(hashes)
        _, first = np.unique(hashes, axis=0, return_index=True)
        first.sort()
        while 3 * (self._count + len(first)) > 2 * len(self._slots):
            self._grow()
        new = np.zeros(len(hashes), dtype=np.bool_)
        new[first] = self._insert(hashes[first])
        self._count += int(new.sum())
        return new

    def __contains__(self, hashes: object) -> bool:
        raise TypeError("ask with .contains(hashes), which takes many at once")

    def contains(self, hashes: Hashes) -> NDArray[np.bool_]:
        """[N] True where a hash is in the set."""
        hashes = _without_zero(hashes)
        found = np.zeros(len(hashes), dtype=np.bool_)
        pending = np.arange(len(hashes))
        at = self._home(hashes)
        while len(pending):
            held = self._slots[at]
            same = (held == hashes[pending]).all(axis=1)
            found[pending[same]] = True
            go_on = ~same & held.any(axis=1)
            pending, at = pending[go_on], self._next(at[go_on])
        return found

    def _insert(self, hashes: Hashes) -> NDArray[np.bool_]:
        """As `add`, for hashes that differ from each other and fit."""
        new = np.zeros(len(hashes), dtype=np.bool_)
        pending = np.arange(len(hashes))
        at = self._home(hashes)
        while len(pending):
            wanted = hashes[pending]
            held = self._slots[at]
            empty = ~held.any(axis=1)
            self._slots[at[empty]] = wanted[empty]  # of several that want one slot the last gets it:
            won = empty & (self._slots[at] == wanted).all(axis=1)  # the others see that here and go on
            new[pending[won]] = True
            go_on = ~won & ~(held == wanted).all(axis=1)
            pending, at = pending[go_on], self._next(at[go_on])
        return new

    def _home(self, hashes: Hashes) -> NDArray[np.int64]:
        return (hashes[:, 0] & np.uint64(len(self._slots) - 1)).astype(np.int64)

    def _next(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        return (at + 1) & (len(self._slots) - 1)

    def _grow(self) -> None:
        old = self._slots
        self._slots = self._empty(2 * len(old))
        for start in range(0, len(old), 1 << 16):  # in blocks: a table on disk is not read into memory whole
            block = np.array(old[start : start + (1 << 16)])
            self._insert(block[block.any(axis=1)])

    def _empty(self, slots: int) -> Hashes:
        if 16 * slots <= self._memory:
            return np.zeros((slots, 2), dtype=np.uint64)
        with tempfile.TemporaryFile(dir=self._folder) as file:  # the mapping keeps it; it has no name to clean up
            return np.memmap(file, dtype=np.uint64, mode="w+", shape=(slots, 2))


def _without_zero(hashes: Hashes) -> Hashes:
    """Zero marks an empty slot: the one text in 2^128 that hashes to it counts as 1."""
    if (zero := ~hashes.any(axis=1)).any():
        hashes = hashes.copy()
        hashes[zero, 1] = 1
    return hashes
