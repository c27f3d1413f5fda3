"""Key-value blocks: a fixed pool, counted references, and a tree in which equal beginnings share blocks.

A block holds the keys and values of BLOCK consecutive positions. A full block whose tokens are known is entered in
the tree under (what came before, its tokens): another sequence that begins with the same tokens under the same root
(salt and adapter) takes the block instead of computing it. A block that nobody holds stays in the tree until its
memory is needed; the one unused for longest goes first.

**No block is ever missing.** A sequence is let in only when the blocks that it can come to need at most are there:
`promised`, what all leases may still take, never exceeds `available`, what is free or unused.

**The tree is never torn.** A lease holds the whole path to its last entered block, and gives its blocks back from the
end. So a block is unused for at least as long as the blocks before it, and goes before them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 16  # positions of one block; forward.py uses the same number

Root = str | tuple[str, int]  # the salt; with an adapter, that and the adapter's number
Parent = int | Root  # the number of the entry before; for a first block, the root
Key = tuple[Parent, tuple[int, ...]]


class BlockPool:
    """`blocks` blocks, who holds them, and which beginnings they stand for. Not thread-safe."""

    def __init__(self, blocks: int, copy_block: Callable[[int, int], None]) -> None:
        self.blocks, self.copy_block = blocks, copy_block
        self.free = list(range(blocks - 1, -1, -1))  # a stack: what was used last is used next, and stays in memory
        self.references = [0] * blocks
        self.entry = [0] * blocks  # the number of a block's entry in the tree, never used twice; 0: not entered
        self.keys: list[Key | None] = [None] * blocks
        self.tree: dict[Key, int] = {}
        self.unused: OrderedDict[int, None] = OrderedDict()  # entered and not held, oldest first
        self.promised = 0
        self.leases: set[Lease] = set()
        self.entries = 0
        self.evicted = 0

    @property
    def available(self) -> int:
        return len(self.free) + len(self.unused)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.blocks - self.available

    def lease(self, root: Root, ids: Sequence[int], start: int, reusable: int, most: int, table: Table) -> Lease | None:
        """Blocks for the tokens ids[start:], the first `reusable` of which may come from the tree; None: wait.

        `most` is how many blocks the sequence can ever hold. `table` [blocks of a sequence] is filled in.
        """
        found = self._match(root, ids, start, reusable // BLOCK)
        return self._grant(root, found, most, table)

    def fork(self, lease: Lease, length: int, most: int, table: Table) -> Lease | None:
        """A second lease on the first `length` positions: full blocks are shared, the last one is copied."""
        full = length // BLOCK
        assert full <= lease.entered, "only entered blocks are shared"
        copy = self._grant(lease.root, lease.blocks[:full], most, table)
        if copy is not None and length % BLOCK:
            copy.extend(length)
            self.copy_block(lease.blocks[full], copy.blocks[full])
        return copy

    def _match(self, root: Root, ids: Sequence[int], start: int, most: int) -> list[int]:
        found: list[int] = []
        parent: Parent = root
        for i in range(start, start + most * BLOCK, BLOCK):
            block = self.tree.get((parent, tuple(ids[i : i + BLOCK])))
            if block is None:
                break
            found.append(block)
            parent = self.entry[block]
        return found

    def _grant(self, root: Root, shared: list[int], most: int, table: Table) -> Lease | None:
        revived = sum(not self.references[block] for block in shared)
        if self.promised + most - len(shared) > self.available - revived:
            return None
        for block in shared:
            self.hold(block)
        self.promised += most - len(shared)
        return Lease(self, root, shared, most, table)

    def hold(self, block: int) -> None:
        if not self.references[block]:
            del self.unused[block]
        self.references[block] += 1

    def drop(self, block: int) -> None:
        self.references[block] -= 1
        if self.references[block]:
            return
        if self.entry[block]:
            self.unused[block] = None
        else:
            self.free.append(block)

    def take(self) -> int:
        """A block for one lease alone: a free one, otherwise the one unused for longest."""
        if self.free:
            block = self.free.pop()
        else:
            block, _ = self.unused.popitem(last=False)
            self._forget(block)
            self.evicted += 1
        self.references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        key = self.keys[block]
        assert key is not None
        del self.tree[key]
        self.keys[block], self.entry[block] = None, 0

    def enter(self, key: Key, block: int) -> int:
        """The block that stands for `key`: this one from now on, or the one entered before."""
        known = self.tree.setdefault(key, block)
        if known == block:
            self.entries += 1
            self.keys[block], self.entry[block] = key, self.entries
        return known

    def clear(self) -> None:
        """Forget every beginning that nobody holds."""
        while self.unused:
            block, _ = self.unused.popitem()
            self._forget(block)
            self.free.append(block)

    def check(self) -> None:
        """Assert all that must hold between two steps."""
        held = [0] * self.blocks
        for lease in self.leases:
            lease.check()
            for block in lease.blocks:
                held[block] += 1
        assert held == self.references, "references are not what leases hold"
        assert len(set(self.free)) == len(self.free), "a block is free twice"
        entered = {block for block in range(self.blocks) if self.entry[block]}
        assert sorted(entered) == sorted(self.tree.values()), "tree and entries differ"
        assert all(self.tree[key] == block for block, key in enumerate(self.keys) if key is not None)
        idle = {block for block in range(self.blocks) if not held[block]}
        assert set(self.unused) == idle & entered, "the unused are not those entered and not held"
        assert set(self.free) == idle - entered, "a block is neither free nor entered nor held"
        assert self.promised == sum(lease.most - len(lease.blocks) for lease in self.leases), "promises do not add up"
        assert self.promised <= self.available, "more is promised than there is"
        numbers = {self.entry[block]: block for block in entered}
        age = {block: i for i, block in enumerate(self.unused)}
        for key, block in self.tree.items():
            if isinstance(key[0], int):
                assert key[0] in numbers, "an entry has lost the one before it"
                before = numbers[key[0]]
                assert before not in age or age.get(block, len(age)) < age[before], "a block would go before its heirs"


Table = NDArray[np.int32]  # [blocks of a sequence]: which block holds positions 16 i .. 16 i + 15


class Lease:
    """One sequence's blocks, in the order of its positions: those shared first, then its own."""

    __slots__ = ("blocks", "entered", "most", "pool", "root", "shared", "table")

    def __init__(self, pool: BlockPool, root: Root, shared: list[int], most: int, table: Table) -> None:
        self.pool, self.root, self.blocks, self.most, self.table = pool, root, shared, most, table
        self.shared = self.entered = len(shared)
        table[: len(shared)] = shared
        pool.leases.add(self)

    def extend(self, length: int) -> None:
        """Have blocks for `length` positions."""
        while len(self.blocks) * BLOCK < length:
            assert len(self.blocks) < self.most, "a sequence outgrows what it was promised"
            block = self.pool.take()
            self.pool.promised -= 1
            self.table[len(self.blocks)] = block
            self.blocks.append(block)

    def enter(self, ids: Sequence[int], start: int, length: int) -> None:
        """Enter the blocks that positions 0 .. length - 1, of the tokens from ids[start], have filled.

        Where an equal block is known it takes this one's place: its content is the same, to the bit.
        """
        pool, blocks = self.pool, self.blocks
        while (self.entered + 1) * BLOCK <= length:
            i = self.entered
            parent = pool.entry[blocks[i - 1]] if i else self.root
            at = start + i * BLOCK
            mine = blocks[i]
            known = pool.enter((parent, tuple(ids[at : at + BLOCK])), mine)
            if known != mine:
                pool.hold(known)
                pool.drop(mine)
                blocks[i] = self.table[i] = known
            self.entered += 1

    def release(self) -> None:
        pool = self.pool
        for block in reversed(self.blocks):
            pool.drop(block)
        pool.promised -= self.most - len(self.blocks)
        pool.leases.remove(self)
        self.blocks, self.most, self.entered = [], 0, 0

    def check(self) -> None:
        assert len(set(self.blocks)) == len(self.blocks) <= self.most, "a block twice in one sequence"
        assert self.table[: len(self.blocks)].tolist() == self.blocks, "the table is not what the lease holds"
        entry = self.pool.entry
        assert all(entry[block] for block in self.blocks[: self.entered]), "an entered block is not in the tree"
        own = self.blocks[self.entered :]
        assert not any(entry[block] for block in own), "a block that is written to is in the tree"
        assert all(self.pool.references[block] == 1 for block in own), "a block that is written to is shared"
