"""A request as its caller sees it: events to iterate, a result to wait for, a way to stop it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.job import Job
from gpt2kit.engine.scheduler import Scheduler
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Completion, Event


class Worker(Protocol):
    """Who computes: engine.py's thread."""

    scheduler: Scheduler

    def post(self, call: Callable[[], None]) -> None: ...


class Handle(Job):
    """A request on its way. Any thread may iterate it, cancel it or wait for it.

    `notify` is called by the worker after each event and at the end; it must be quick (an asyncio server passes
    loop.call_soon_threadsafe here). `events` False: nothing is queued, for callers who want the result alone.
    """

    def __init__(self, *arguments: Any, notify: Callable[[], None] | None, events: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queue: queue.SimpleQueue[tuple[int, Event] | None] | None = queue.SimpleQueue() if events else None
        self._notify = notify
        self._finished = threading.Event()
        self._worker: Worker | None = None
        self.created = time.perf_counter()
        self.first_token: float | None = None  # seconds from creation to the first event

    # ------------------------------------------------------------ the worker's side

    def on_event(self, index: int, event: Event) -> None:
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.created
        if self._queue is not None:
            self._queue.put((index, event))
            if self._notify is not None:
                self._notify()

    def on_end(self) -> None:
        self._worker = None  # a handle that somebody keeps does not keep the engine
        self._finished.set()
        if self._queue is not None:
            self._queue.put(None)
        if self._notify is not None:
            self._notify()

    # ------------------------------------------------------------ the caller's side

    @property
    def done(self) -> bool:
        return self._finished.is_set()

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache."""
        return self.found

    def cancel(self) -> None:
        """Free what the request holds, before the next step. No effect on one that has ended."""
        worker = self._worker
        if worker is not None and not self.done:
            worker.post(lambda: worker.scheduler.cancel(self))

    def events(self) -> Iterator[tuple[int, Event]]:
        """(number of the completion, event), as they come. Raises UserError if the request fails or is cancelled."""
        assert self._queue is not None, "submitted with events=False"
        while True:
            try:
                found = self._queue.get(timeout=0.5)  # in pieces, as in `wait_for`
            except queue.Empty:
                continue
            if found is None:
                self._queue.put(None)  # the next reader ends, too
                self._raise()
                return
            yield found

    def ready(self) -> list[tuple[int, Event]]:
        """The events that are there now, without waiting: for `notify`."""
        assert self._queue is not None, "submitted with events=False"
        found = []
        with contextlib.suppress(queue.Empty):
            while (one := self._queue.get_nowait()) is not None:
                found.append(one)
            self._queue.put(None)  # who iterates ends, too
        return found

    def __iter__(self) -> Iterator[Event]:
        """The events of the only completion."""
        if self.settings.n > 1:
            raise UserError("a stream is of one completion: n must be 1", hint="use events(), which numbers them")
        return (event for _, event in self.events())

    def wait(self, timeout: float | None = None) -> None:
        """Until the end. TimeoutError after `timeout` seconds; UserError if the request failed or was cancelled."""
        if timeout is None:
            wait_for(self._finished)
        elif not self._finished.wait(timeout):
            raise TimeoutError(f"the request has not ended within {timeout} s")
        self._raise()

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error
        if self.open:
            raise UserError("the request was cancelled")

    def result(self, timeout: float | None = None) -> list[Completion]:
        """The settings.n completions. Waits and raises as `wait` does."""
        self.wait(timeout)
        return self.completions()

    def vector(self, timeout: float | None = None) -> NDArray[np.float32]:
        """The pooled hidden state [C] of a request with `pooling`. Waits and raises as `wait` does."""
        self.wait(timeout)
        assert self.states is not None, "the request has no pooling"
        # One sum over all tokens at once: in which chunks they were computed cannot change it.
        vector: NDArray[np.float32] = self.states.mean(0, dtype=np.float64).astype(np.float32)
        return vector


def wait_for(done: threading.Event) -> None:
    while not done.wait(0.5):  # in pieces: Windows delivers Ctrl-C only between them
        pass


class Events(Iterator[Event]):
    """A stream's events. Closing or dropping it before its end cancels the request.

    It holds `owner`, the engine, which would otherwise close when its last user holds the stream alone.
    """

    def __init__(self, handle: Handle, owner: object) -> None:
        self.handle, self._owner = handle, owner
        self._events = iter(handle)

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        self.handle.cancel()

    __del__ = close
