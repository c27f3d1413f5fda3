"""Blocks are never lost, never shared by mistake, never missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from schedules import Asked, V, alone, scheduler

from gpt2kit.engine.cache import BLOCK, BlockPool, Lease

TABLE = 8


class Copies:
    """Stands for forward.copy_block."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def __call__(self, source: int, target: int) -> None:
        self.made.append((source, target))


def pool(blocks: int = 8) -> tuple[BlockPool, Copies]:
    copies = Copies()
    return BlockPool(blocks, copies), copies


def table() -> Any:
    return np.zeros(TABLE, np.int32)


def filled(made: BlockPool, ids: list[int], salt: str = "", most: int = TABLE, reusable: int | None = None) -> Lease:
    """A lease whose tokens have all been computed and entered."""
    lease = made.lease(salt, ids, 0, len(ids) if reusable is None else reusable, most, table())
    assert lease is not None
    lease.extend(len(ids))
    lease.enter(ids, 0, len(ids))
    made.check()
    return lease


def test_an_equal_beginning_shares_full_blocks_only() -> None:
    made, _ = pool()
    ids = list(range(40))
    first = filled(made, ids, most=3)
    second = filled(made, [*ids[:36], 99, 98, 97, 96], most=3)
    assert second.shared == 2
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert made.used == 4


def test_a_beginning_is_found_after_its_writer_has_gone() -> None:
    made, _ = pool()
    ids = list(range(40))
    first = filled(made, ids, most=3)
    blocks = first.blocks
    first.release()
    made.check()
    assert made.used == 0
    again = filled(made, ids, most=3)
    assert again.shared == 2
    assert again.blocks[:2] == blocks[:2]


def test_the_last_tokens_are_left_to_compute() -> None:
    made, _ = pool()
    ids = list(range(32))
    filled(made, ids, most=2).release()
    again = made.lease("", ids, 0, 31, 2, table())
    assert again is not None
    assert again.shared == 1


def test_another_salt_shares_nothing() -> None:
    made, _ = pool()
    ids = list(range(32))
    filled(made, ids, salt="a", most=2)
    assert filled(made, ids, salt="b", most=2).shared == 0
    assert filled(made, ids, salt="a", most=2).shared == 2


def test_equal_tokens_after_another_beginning_are_not_equal() -> None:
    made, _ = pool()
    same = list(range(16))
    filled(made, [1] * 16 + same, most=2)
    assert filled(made, [2] * 16 + same, most=2).shared == 0
    assert filled(made, same, most=2).shared == 0


def test_two_who_compute_the_same_at_once_end_up_with_one_copy() -> None:
    made, _ = pool()
    ids = list(range(32))
    tables = [table(), table()]
    leases = [made.lease("", ids, 0, 0, 2, t) for t in tables]
    for lease in leases:
        assert lease is not None
        lease.extend(32)
    for lease in leases:
        assert lease is not None
        lease.enter(ids, 0, 32)
        made.check()
    assert made.used == 2
    assert tables[0].tolist() == tables[1].tolist()


def test_the_block_unused_for_longest_goes_first_and_heirs_before_their_ancestors() -> None:
    made, _ = pool(4)
    old, new = list(range(32)), list(range(100, 132))
    filled(made, old, most=2).release()
    filled(made, new, most=2).release()
    filled(made, list(range(200, 216)), most=1).release()  # takes the second block of `old`
    assert made.evicted == 1
    assert filled(made, [*old, 0], most=3, reusable=32).shared == 1
    made.check()


def test_a_used_beginning_is_not_evicted() -> None:
    made, _ = pool(3)
    ids = list(range(32))
    lease = filled(made, ids, most=2)
    for i in range(5):
        filled(made, [500 + i] * 16, most=1).release()
    assert made.lease("", ids, 0, 32, 2, table()).shared == 2  # type: ignore[union-attr]
    lease.release()


def test_nobody_is_let_in_whose_need_is_not_covered() -> None:
    made, _ = pool(4)
    first = made.lease("", [1], 0, 0, 3, table())
    assert first is not None
    assert made.lease("", [2], 0, 0, 2, table()) is None
    assert made.lease("", [2], 0, 0, 1, table()) is not None
    first.extend(48)  # what was promised is there
    made.check()


def test_taking_unused_blocks_counts_against_what_is_available() -> None:
    """A found block that nobody held is no longer there for those who were promised one."""
    made, _ = pool(4)
    ids = list(range(32))
    filled(made, ids, most=2).release()
    waiting = made.lease("", [7], 0, 0, 2, table())  # may come to need the two free blocks
    assert waiting is not None
    assert made.lease("", ids, 0, 32, 3, table()) is None
    made.check()
    assert made.lease("", ids, 0, 32, 2, table()) is not None
    waiting.extend(32)
    made.check()


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    made, copies = pool()
    ids = list(range(40))
    first = filled(made, ids, most=3)
    second = made.fork(first, 40, 4, table())
    assert second is not None
    assert second.blocks[:2] == first.blocks[:2]
    assert copies.made == [(first.blocks[2], second.blocks[2])]
    made.check()
    assert made.fork(first, 32, 2, table()).blocks == first.blocks[:2]  # type: ignore[union-attr]
    assert len(copies.made) == 1


def test_a_freed_block_is_the_next_one_taken() -> None:
    made, _ = pool()
    lease = made.lease("", [1], 0, 0, 2, table())
    assert lease is not None
    lease.extend(32)
    blocks = lease.blocks
    lease.release()
    again = made.lease("", [1], 0, 0, 2, table())
    assert again is not None
    again.extend(32)
    assert again.blocks == blocks


def test_clearing_forgets_what_nobody_holds() -> None:
    made, _ = pool()
    held, gone = list(range(32)), list(range(50, 82))
    filled(made, held, most=2)
    filled(made, gone, most=2).release()
    made.clear()
    made.check()
    assert filled(made, held, most=2).shared == 2
    assert filled(made, gone, most=2).shared == 0


@pytest.mark.parametrize("harm", ["references", "free", "promised", "tree", "table"])
def test_check_sees_what_is_wrong(harm: str) -> None:
    made, _ = pool()
    lease = filled(made, list(range(40)), most=4)
    if harm == "references":
        made.references[lease.blocks[0]] += 1
    elif harm == "free":
        made.free.append(lease.blocks[0])
    elif harm == "promised":
        made.promised += 1
    elif harm == "tree":
        made.tree.popitem()
    else:
        lease.table[0] += 1
    with pytest.raises(AssertionError):
        made.check()


class Company(RuleBasedStateMachine):
    """Submit, step, cancel, evict in any order: the pool's rules hold after each, and every answer is right."""

    def __init__(self) -> None:
        super().__init__()
        self.made = scheduler(blocks=6, chunk=9, max_batch=3, max_rows=30, max_logits=7, repeats=0.9)
        self.jobs: list[tuple[dict[str, Any], Asked]] = []

    @rule(
        stem=st.integers(0, 2),
        length=st.integers(0, 50),
        tail=st.lists(st.integers(1, V - 1), min_size=1, max_size=20),
        max_tokens=st.integers(0, 40),
        n=st.integers(1, 3),
        seed=st.one_of(st.none(), st.integers(0, 99)),
        salt=st.sampled_from(["", "b"]),
        speculate=st.booleans(),
        echo=st.booleans(),
    )
    def submit(self, stem: int, length: int, tail: list[int], seed: int | None, **options: Any) -> None:
        prompt = [1 + (stem + i * (stem + 3)) % (V - 1) for i in range(length)] + tail
        if seed is not None:
            options |= {"temperature": 0.9, "seed": seed}
        job = Asked(prompt, **options)
        self.made.check_fits(job)
        self.made.add(job)
        self.jobs.append(({"prompt": prompt, **options}, job))

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.made.step()
            self.made.pool.check()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        _, job = self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))
        self.made.cancel(job)
        assert job.done

    @rule()
    def evict(self) -> None:
        self.made.pool.clear()

    @rule(count=st.integers(1, 6))
    def crowd_out(self, count: int) -> None:
        """Somebody takes all that may be taken, which evicts, and gives it back."""
        made = self.made.pool
        lease = made.lease("", [0], 0, 0, min(count, made.available - made.promised), np.zeros(6, np.int32))
        if lease is not None:
            lease.extend(lease.most * BLOCK)
            made.check()
            lease.release()

    @invariant()
    def rules_hold(self) -> None:
        self.made.pool.check()
        assert len(self.made.slots) + self.made.running == 3

    def teardown(self) -> None:
        while self.made.step():
            pass
        self.made.pool.check()
        assert not self.made.pool.leases
        for options, job in self.jobs:
            assert job.answer() == alone(**options, repeats=0.9), options


Company.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestCompany = Company.TestCase
