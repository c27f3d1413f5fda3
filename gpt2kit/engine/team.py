"""One team of threads that computes whole steps together, and the barrier at which they meet.

The caller is thread 0. The others stay in compiled code between steps, where they wait for the next one: first
spinning, then giving way to whoever is ready, and after some milliseconds asleep in Python. Nobody waits without giving
way: on a machine whose cores are taken by others a waiting thread must not burn the time slice that the working one
needs.

`control` is an array of int64, one word a cache line: the number of steps begun, of arrivals at barriers, and for each
thread whether it sleeps. A thread that lies down says so, then looks once more whether a step has begun; the caller
begins a step, then looks who sleeps. One of the two sees the other, so no wake-up is lost.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine import simd
from gpt2kit.engine.kernels import OPTIONS, inlined
from gpt2kit.engine.simd import Instructions, atomic_add, atomic_load, atomic_store, give_way, pause
from gpt2kit.jit import compiled

Control = NDArray[np.int64]
LINE = 8  # int64 words of a cache line
STEPS, ARRIVED, SLEEPS = 0, LINE, 2 * LINE
SPINS = 2000  # about 30 µs: longer than any stage of a small model takes
JOB = 8  # numbers that a step is told: its own, then
PHASE, END = 6, 7  # the barrier's phase, and whether the threads are to end
PATIENCE = 20_000  # times to give way before sleeping: 10 to 20 ms on an idle machine


@inlined
def barrier(control: Control, phase: int, threads: int) -> int:
    """Wait until every thread has come here; return the next phase."""
    if threads == 1:
        return phase
    phase += 1
    target = phase * threads
    if atomic_add(control, ARRIVED, 1) + 1 == target:
        return phase
    spins = 0
    while atomic_load(control, ARRIVED) < target:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            give_way()
    return phase


def _next_step(control: Control, tid: int, seen: int) -> Any:
    """Wait in compiled code for a step after `seen`; False if this thread should rather sleep in Python."""
    sleeps = SLEEPS + tid * LINE
    for spins in range(SPINS + PATIENCE):
        if atomic_load(control, STEPS) != seen:
            return True
        if spins < SPINS:
            pause()
        else:
            give_way()
    atomic_store(control, sleeps, 1)
    if atomic_load(control, STEPS) != seen:
        atomic_store(control, sleeps, 0)
        return True
    return False


def _begin(control: Control, threads: int) -> Any:
    """Begin a step; whether anybody sleeps."""
    atomic_add(control, STEPS, 1)
    asleep = 0
    for tid in range(1, threads):
        asleep += atomic_load(control, SLEEPS + tid * LINE)
    return asleep


next_step = compiled(_next_step, (simd,), **OPTIONS)
begin = compiled(_begin, (simd,), **OPTIONS)


class Team:
    """`run` lets all threads call function(isa, tid, threads, job, control, *arguments) and returns when all are done.

    The function's last act must be a barrier.
    """

    def __init__(
        self, function: Callable[..., None], isa: Instructions, threads: int, arguments: tuple[Any, ...]
    ) -> None:
        self.threads = threads
        self._control = np.zeros(SLEEPS + threads * LINE, np.int64)
        self._job = np.zeros(JOB, np.int64)
        self._call = (function, isa, threads, self._job, self._control, *arguments)
        self._awake = [threading.Event() for _ in range(threads)]
        self._workers = [
            threading.Thread(target=_work, args=(tid, self._call, self._awake[tid]), daemon=True, name=f"engine-{tid}")
            for tid in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()
        self._end = weakref.finalize(self, _end, self._job, self._control, self._awake)

    def run(self, *job: int) -> None:
        """One step; up to six numbers are the function's `job`."""
        assert self._end.alive, "the team has ended"
        self._job[: len(job)] = job
        self._job[PHASE] = self._phase()
        if begin(self._control, self.threads):
            for awake in self._awake:
                awake.set()
        function, isa, threads, *rest = self._call
        function(isa, 0, threads, *rest)

    def _phase(self) -> int:
        return int(self._control[ARRIVED]) // self.threads

    def asleep(self) -> bool:
        return all(self._control[SLEEPS + tid * LINE] for tid in range(1, self.threads))

    def close(self) -> None:
        """End the threads and wait for them."""
        self._end()
        for worker in self._workers:
            worker.join()


def _end(job: NDArray[np.int64], control: Control, awake: list[threading.Event]) -> None:
    job[END] = 1
    control[STEPS] += 1
    for event in awake:
        event.set()


def _work(tid: int, call: tuple[Any, ...], awake: threading.Event) -> None:
    function, isa, threads, job, control, *arguments = call
    seen = 0
    while True:
        if not next_step(control, tid, seen):
            awake.wait()
            awake.clear()
            control[SLEEPS + tid * LINE] = 0
            continue
        seen += 1
        if job[END]:
            return
        function(isa, tid, threads, job, control, *arguments)
