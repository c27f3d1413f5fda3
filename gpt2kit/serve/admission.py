"""Who may come in: a bounded queue before each model, the limits of each key, and an end to both.

    async with admission.enter(key, "mine", streams=2) as ticket:  # ApiError 503 or 429, before any tokenising
        ticket.charge(most_tokens)                                 # ApiError 429
        ...
        ticket.settle(tokens_used)

A request waits here while the engine has enough to do: a place is one completion (or one vector), and an engine is
given AHEAD times its batch, so that it never waits for us. Lives on the event loop; nothing here is thread-safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt2kit.serve.errors import ApiError

if TYPE_CHECKING:
    from gpt2kit.serve.keys import Key
    from gpt2kit.serve.settings import ServeSettings

AHEAD = 2
MINUTE = 60.0  # seconds
LONGEST_RETRY = 60.0  # seconds; clients take a longer Retry-After for a mistake
PACE = 32  # departures from which the time until a place is free is guessed


@dataclass
class _Line:
    """The places of one model, and who waits for one: first come, first served."""

    taken: int = 0
    waiting: deque[tuple[asyncio.Future[None], int]] = field(default_factory=deque)


class Admission:
    """`running`: requests that hold their places; `waiting`: those in line. `draining`: nobody is let in any more."""

    def __init__(self, settings: ServeSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.running = self.waiting = 0
        self.draining = False
        self._places = AHEAD * settings.max_batch
        self._max_queued, self._patience = settings.max_queued, settings.shutdown_timeout
        self._clock = clock
        self._lines = {name: _Line() for name in settings.folders}
        self._keys: dict[str, _Usage] = {}
        self._left: deque[float] = deque(maxlen=PACE)  # when the last requests ended
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def enter(self, key: Key, model: str, streams: int = 1, tokens: int = 0) -> AsyncIterator[Ticket]:
        """Wait for a place and hold it. `streams`: places; 0 waits for none. `tokens`: that may come of it at least.

        ApiError 503 while draining or with too many in line; 429 past the key's limits; each with Retry-After.
        """
        self.check_open()
        line = self._lines.setdefault(model, _Line())
        if self._is_full(line, streams):
            raise self._no_room()
        usage = self._keys.get(key.name)
        if usage is None:
            usage = self._keys[key.name] = _Usage(key)
        ticket = usage.enter(self._clock(), tokens, self._clock)
        self._idle.clear()
        try:
            await self._take(line, streams)
            self.running += 1
            try:
                yield ticket
            finally:
                self.running -= 1
                self._left.append(self._clock())
                self._give(line, streams)
        finally:
            usage.running -= 1
            ticket.close()
            if not self.running and not self.waiting:
                self._idle.set()

    def check_open(self) -> None:
        """ApiError 503 while draining."""
        if self.draining:
            retry = min(max(self._patience, 1.0), LONGEST_RETRY)
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=retry)

    def drain(self) -> None:
        """Let nobody in any more; who is in, also in line, goes on."""
        self.draining = True

    def waiting_for(self, model: str) -> int:
        """Requests in line for a model."""
        return len(self._lines[model].waiting) if model in self._lines else 0

    async def idle(self) -> None:
        """Until nobody is in."""
        await self._idle.wait()

    def check_room(self) -> None:
        """ApiError 503 where nobody could come in, whatever they ask: a look that costs nothing."""
        self.check_open()
        if self._lines and all(self._is_full(line, 1) for line in self._lines.values()):
            raise self._no_room()

    def _is_full(self, line: _Line, streams: int) -> bool:
        return self._must_wait(line, streams) and self.waiting >= self._max_queued

    def _no_room(self) -> ApiError:
        message = f"too many requests: {self.running} are running and {self.waiting} wait"
        return ApiError(503, message, code="queue_full", retry_after=self._guess())

    def _must_wait(self, line: _Line, streams: int) -> bool:
        """A request of more streams than there are places gets in as soon as one place is free."""
        return streams > 0 and line.taken >= self._places

    def _guess(self) -> float:
        """Seconds until about as many have left as wait now."""
        span = self._left[-1] - self._left[0] if len(self._left) > 1 else 0.0
        pace = span / max(len(self._left) - 1, 1)
        return min(max(pace * self.waiting, 1.0), LONGEST_RETRY)

    async def _take(self, line: _Line, streams: int) -> None:
        if not self._must_wait(line, streams):
            line.taken += streams
            return
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting.append((called, streams))
        self.waiting += 1
        try:
            await called
        except asyncio.CancelledError:
            if called.cancelled():
                with contextlib.suppress(ValueError):  # called up and passed over meanwhile
                    line.waiting.remove((called, streams))
            else:  # its turn came in the same moment
                self._give(line, streams)
            raise
        finally:
            self.waiting -= 1

    def _give(self, line: _Line, streams: int) -> None:
        line.taken -= streams
        while line.waiting and line.taken < self._places:
            called, wanted = line.waiting.popleft()
            if not called.done():
                line.taken += wanted
                called.set_result(None)


# -------------------------------------------------------------------------------------------- limits of a key


@dataclass
class _Entry:
    time: float
    amount: int


class _Minute:
    """At most `limit` in any 60 seconds."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.entries: deque[_Entry] = deque()

    def wait(self, now: float, amount: int) -> float:
        """Seconds until `amount` more fits; 0: now."""
        while self.entries and self.entries[0].time <= now - MINUTE:
            self.total -= self.entries.popleft().amount
        total, until = self.total, now
        for entry in self.entries:
            if total + amount <= self.limit:
                break
            total, until = total - entry.amount, entry.time + MINUTE
        return until - now

    def add(self, now: float, amount: int) -> _Entry:
        entry = _Entry(now, amount)
        self.entries.append(entry)
        self.total += amount
        return entry

    def settle(self, entry: _Entry, amount: int) -> None:
        """It was `amount` in the end."""
        if self.entries and self.entries[0].time <= entry.time:  # else it has left the minute
            self.total += amount - entry.amount
        entry.amount = amount


class _Usage:
    """What a key has running, and has used in the last minute."""

    def __init__(self, key: Key) -> None:
        self.key, self.running = key, 0
        self.requests = None if key.requests_per_minute is None else _Minute(key.requests_per_minute)
        self.tokens = None if key.tokens_per_minute is None else _Minute(key.tokens_per_minute)

    def enter(self, now: float, tokens: int, clock: Callable[[], float]) -> Ticket:
        """Count a request, if all three limits allow it."""
        key = self.key
        if key.concurrency is not None and self.running >= key.concurrency:
            raise _limited(f"the key's limit of {key.concurrency} requests at a time is reached", "concurrency", 1.0)
        if self.requests is not None and (wait := self.requests.wait(now, 1)):
            raise _limited(f"the key's limit of {self.requests.limit} requests a minute is reached", "requests", wait)
        entry = self.take(now, tokens)
        if self.requests is not None:
            self.requests.add(now, 1)
        self.running += 1
        return Ticket(self, entry, clock)

    def take(self, now: float, tokens: int) -> _Entry | None:
        """Tokens of the key's minute; None where it has no limit."""
        if self.tokens is None:
            return None
        limit = self.tokens.limit
        if tokens > limit:  # never possible: no Retry-After
            raise _limited(f"the request may need {tokens} tokens, the key's limit is {limit} a minute", "tokens", None)
        if wait := self.tokens.wait(now, tokens):
            raise _limited(f"the key's limit of {limit} tokens a minute is reached", "tokens", wait)
        return self.tokens.add(now, tokens)


class Ticket:
    """A request that is in. Its key's tokens are counted as the most that it can need, until it says what it used."""

    def __init__(self, usage: _Usage, entry: _Entry | None, clock: Callable[[], float]) -> None:
        self._usage, self._entries, self._clock = usage, [entry], clock
        self._is_used = False

    def charge(self, tokens: int) -> None:
        """Count more tokens, once the prompt's and the most that may come of it are known. ApiError 429."""
        self._entries.append(self._usage.take(self._clock(), tokens))
        self._is_used = True

    def settle(self, tokens: int) -> None:
        """What was used of all that was counted."""
        self._is_used = True
        window = self._usage.tokens
        for entry in self._entries:
            if window is not None and entry is not None:
                window.settle(entry, tokens)
                tokens = 0

    def close(self) -> None:
        """A request that came to nothing has used nothing."""
        if not self._is_used:
            self.settle(0)


def _limited(message: str, what: str, retry_after: float | None) -> ApiError:
    return ApiError(429, message, code=f"{what}_limit_exceeded", retry_after=retry_after)
