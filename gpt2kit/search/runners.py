"""Where a search's trials run: in its own process, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gpt2kit import runtime
from gpt2kit.errors import UserError
from gpt2kit.search.trial import Outcome, Watch, run_trial
from gpt2kit.search.verbs import Stop
from gpt2kit.wording import command

POLL_SECONDS = 0.3  # between looks at Ctrl-C while other processes run the trials


class Runners:
    """Where trials run: in this process, or `jobs` at a time in processes of their own, which Ctrl-C does not reach."""

    def __init__(self, folder: Path, record: Mapping[str, Any], jobs: int, stop: Stop, watch: Watch) -> None:
        self.folder, self.record, self.jobs, self.stop, self.watch = folder, record, jobs, stop, watch
        self.going_on = command("search", record["verb"], "--resume", folder)
        self.here: list[tuple[int, Mapping[str, Any]]] = []
        self.futures: set[Future[Outcome]] = set()
        context = multiprocessing.get_context("spawn")
        self.ending = context.Event()
        self.pool = ProcessPoolExecutor(jobs, context, _begin, (self.ending,)) if jobs > 1 else None

    def __len__(self) -> int:
        return len(self.here) + len(self.futures)

    def submit(self, number: int, values: Mapping[str, Any]) -> None:
        if self.pool is None:
            self.here.append((number, values))
            return
        threads = self.record["options"]["threads"] or max(1, runtime.cores() // self.jobs)
        self.futures.add(self.pool.submit(_in_process, self.folder, dict(self.record), number, dict(values), threads))

    def finished(self) -> list[Outcome]:
        """Wait until a trial has ended, or all were asked to stop and have."""
        if self.pool is None:
            number, values = self.here.pop(0)
            return [run_trial(self.folder, self.record, number, values, None, self.stop, self.watch)]
        done: set[Future[Outcome]] = set()
        while not done:
            if self.stop():
                self.ending.set()
            done, self.futures = wait(self.futures, POLL_SECONDS, FIRST_COMPLETED)
        try:
            return sorted((future.result() for future in done), key=lambda outcome: outcome.number)
        except BrokenProcessPool:
            said = "a trial's process was killed, most likely for want of memory"
            raise UserError(said, hint=f"go on with: {self.going_on} --jobs 1") from None

    def close(self) -> None:
        """End what still runs; each process writes a checkpoint first."""
        if self.pool is not None:
            self.ending.set()
            self.pool.shutdown(cancel_futures=True)


_ending: Any = None  # of this process, where it is a worker


def _begin(ending: Any) -> None:
    global _ending
    _ending = ending
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the search tells its processes itself


def _in_process(
    folder: Path, record: Mapping[str, Any], number: int, values: Mapping[str, Any], threads: int
) -> Outcome:
    parent = multiprocessing.parent_process()
    stop = lambda: _ending.is_set() or (parent is not None and not parent.is_alive())  # noqa: E731
    return run_trial(folder, record, number, values, threads, stop, lambda event: None)
