"""Threads that meet at a barrier, sleep when nothing is asked of them, wake up, and end with their team."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from gpt2kit.engine import simd
from gpt2kit.engine.kernels import OPTIONS
from gpt2kit.engine.simd import atomic_add
from gpt2kit.engine.team import PHASE, Team, barrier

WIDTH, STAGES = 24, 400


@numba.njit(**OPTIONS)
def add_in_stages(
    isa: Any, tid: int, threads: int, job: Any, control: Any, rows: Any, sums: Any
) -> None:  # pragma: no cover  (compiled)
    """Row s is made from row s - 1, of which every thread wrote a part; all add to one sum a stage."""
    phase = job[PHASE]
    low, high = WIDTH * tid // threads, WIDTH * (tid + 1) // threads
    for stage in range(1, job[0]):
        for i in range(low, high):
            rows[stage, i] = rows[stage - 1, (i + WIDTH // 2) % WIDTH] + rows[stage - 1, i] % 1000 + job[1]
        atomic_add(sums, stage, tid + 1)
        phase = barrier(control, phase, threads)


def expected(step: int) -> NDArray[np.int64]:
    rows = np.zeros((STAGES, WIDTH), np.int64)
    rows[0] = np.arange(WIDTH)
    for stage in range(1, STAGES):
        rows[stage] = np.roll(rows[stage - 1], -(WIDTH // 2)) + rows[stage - 1] % 1000 + step
    return rows


class Adders:
    """A team over `add_in_stages`, and what it wrote."""

    def __init__(self, threads: int) -> None:
        self.rows, self.sums = np.zeros((STAGES, WIDTH), np.int64), np.zeros(STAGES, np.int64)
        self.team = Team(add_in_stages, simd.instructions("plain"), threads, (self.rows, self.sums))

    def check(self, step: int) -> None:
        self.rows[:], self.sums[:] = 0, 0
        self.rows[0] = np.arange(WIDTH)
        self.team.run(STAGES, step)
        np.testing.assert_array_equal(self.rows, expected(step))
        threads = self.team.threads
        assert (self.sums[1:] == threads * (threads + 1) // 2).all()


@pytest.fixture(params=[1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def adders(request: pytest.FixtureRequest) -> Iterator[Adders]:
    made = Adders(request.param)
    yield made
    made.team.close()


def wait_until_asleep(team: Team) -> None:
    deadline = time.monotonic() + 60
    while not team.asleep():
        assert time.monotonic() < deadline, "a thread never lay down"
        time.sleep(0.005)


def test_every_stage_sees_the_whole_stage_before_it(adders: Adders) -> None:
    for step in range(12):
        adders.check(step)


def test_threads_that_sleep_wake_up_and_lose_no_step(adders: Adders) -> None:
    for step in range(3):
        wait_until_asleep(adders.team)
        adders.check(step)
        adders.check(step + 1)  # those that are still awake


def test_steps_that_come_when_threads_are_about_to_sleep_are_not_lost(adders: Adders) -> None:
    """Pauses around the time that a thread is patient: some steps meet it awake, some lying down, some asleep."""
    for pause in np.linspace(0.0, 0.04, 25):
        time.sleep(pause)
        adders.check(7)


def test_a_team_ends_once_and_then_refuses(adders: Adders) -> None:
    adders.check(1)
    for _ in range(2):
        adders.team.close()
        assert not any(worker.is_alive() for worker in adders.team._workers)
    with pytest.raises(AssertionError, match="ended"):
        adders.team.run(STAGES, 1)


@pytest.mark.parametrize("sleeping", [False, True])
def test_a_team_that_nobody_holds_ends_its_threads(sleeping: bool) -> None:
    adders = Adders(3)
    adders.check(1)
    if sleeping:
        wait_until_asleep(adders.team)
    workers, alive = list(adders.team._workers), weakref.ref(adders.team)
    del adders
    gc.collect()
    assert alive() is None  # neither its threads nor its finalizer hold it
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
