"""The load that benchmarks/serve.py puts on a server: when requests come, how they are sent, what is made of answers.

Arrivals are open-loop: a Poisson process that does not wait for the server. With a limited number of clients a request
whose clients are all busy waits here, and since all times count from the scheduled arrival that wait is the server's.

While load runs, only the time of each piece of an answer is kept; h11 parses the pieces afterwards, so that the
generator takes as little as it can of the cores that it shares with the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11

HOST = "127.0.0.1"
LEAD = 0.2  # of a measurement's time, in which the load builds up and nothing is counted
PATIENCE = 30.0  # seconds that requests get to finish after the last arrival


# ---------------------------------------------------------------- what is sent, and when


def arrivals(rate: float, seconds: float, seed: str) -> list[float]:
    """Seconds from the start at which requests come: a Poisson process of `rate` a second."""
    drawn, moments, now = random.Random(seed), [], 0.0
    while (now := now + drawn.expovariate(1.0) / rate) < seconds:
        moments.append(now)
    return moments


def words(tokenizer: Path) -> list[str]:
    """The lower-case English words that are one token with the blank before them, from a folder's tokenizer.json."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(word[1:] for word in vocabulary if word[0] == "Ġ" and word[1:].isascii() and word[1:].islower())


def prompt(known: Sequence[str], length: int, seed: str) -> str:
    """A text of `length` tokens that no cache has seen."""
    return "".join(f" {word}" for word in random.Random(seed).choices(known, k=length))


def request(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


# ---------------------------------------------------------------- one request


class Exchange(asyncio.Protocol):
    """One request on a connection of its own: the pieces of the answer, each with the time of its coming."""

    late = False  # broken off by us

    def __init__(self, data: bytes, scheduled: float) -> None:
        self.data, self.scheduled = data, scheduled
        self.pieces: list[tuple[float, bytes]] = []
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def run(self, port: int) -> None:
        """To the end of the answer. A connection that is refused leaves no pieces."""
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, HOST, port)
        except OSError:
            return
        try:
            await self.ended
        except asyncio.CancelledError:
            self.late = True
            raise
        finally:
            transport.abort()


@dataclass
class Answer:
    """What came of one request; times in seconds on one clock."""

    scheduled: float
    status: int = 0  # 0: none came
    times: list[float] = field(default_factory=list)  # of the events that carried text
    tokens: int = 0
    ended: float = math.inf  # of the last piece
    failure: str | None = "no answer"

    @property
    def first(self) -> float:
        """Seconds to the first text."""
        return self.times[0] - self.scheduled if self.times and self.failure is None else math.inf

    @property
    def between(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.times)]

    @property
    def duration(self) -> float:
        return self.ended - self.scheduled if self.failure is None else math.inf

    def tokens_within(self, start: float, end: float) -> float:
        """Of a whole answer. An event may carry several tokens: each counts the same share."""
        if self.failure is not None or not self.times:
            return 0.0
        return self.tokens * sum(start <= when < end for when in self.times) / len(self.times)


def parse(pieces: Sequence[tuple[float, bytes]]) -> tuple[int, list[tuple[float, str]]]:
    """The status, and the body's lines with the time at which each was complete. Raises ValueError for no HTTP."""
    reader, status, lines, rest, when = h11.Connection(h11.CLIENT), 0, [], b"", 0.0
    reader.send(h11.Request(method="GET", target="/", headers=[("host", HOST)]))
    reader.send(h11.EndOfMessage())
    try:
        for when, data in [*pieces, (pieces[-1][0] if pieces else 0.0, b"")]:
            reader.receive_data(data)
            while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    *whole, rest = (rest + event.data).split(b"\n")
                    lines += [(when, line.decode()) for line in whole]
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    break
    except h11.ProtocolError as error:
        raise ValueError(f"not whole: {error}") from None
    return status, [*lines, *([(when, rest.decode())] if rest else [])]


def read(exchange: Exchange, wanted: int) -> Answer:
    """A streamed completion of `wanted` tokens: whole only with its finish_reason and data: [DONE]."""
    answer, finish, done = Answer(exchange.scheduled), None, False
    if exchange.late:
        answer.failure = f"not finished {PATIENCE:g} s after the load's end"
        return answer
    if not exchange.pieces:
        return answer
    answer.ended = exchange.pieces[-1][0]
    try:
        answer.status, lines = parse(exchange.pieces)
        if answer.status != 200:
            answer.failure = f"status {answer.status}"
            return answer
        for when, line in lines:
            data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
            done |= data == "[DONE]"
            event = json.loads(data) if data.startswith("{") else {}
            if "error" in event:
                answer.failure = f"error in the stream: {event['error']}"
                return answer
            for choice in event.get("choices", []):
                answer.times += [when] if choice.get("text") else []
                finish = choice.get("finish_reason") or finish
    except ValueError as error:
        answer.failure = str(error)
        return answer
    answer.failure = None if done and finish else "the stream broke off"
    answer.tokens = wanted if finish == "length" else len(answer.times)
    return answer


# ---------------------------------------------------------------- many requests


async def open_loop(
    port: int, requests: Sequence[bytes], moments: Sequence[float], clients: int | None
) -> list[Exchange]:
    """Each request at its moment, on one of `clients` connections at a time (None: as many as it takes)."""
    free = asyncio.Semaphore(clients or len(requests) + 1)
    start = time.perf_counter()
    exchanges = [Exchange(data, start + moment) for data, moment in zip(requests, moments, strict=True)]

    async def one(exchange: Exchange) -> None:
        await asyncio.sleep(exchange.scheduled - time.perf_counter())
        async with free:
            await exchange.run(port)

    tasks = [asyncio.create_task(one(exchange)) for exchange in exchanges]
    await _finish(tasks, start + max(moments, default=0.0) + PATIENCE)
    return exchanges


async def closed_loop(port: int, requests: Iterator[bytes], clients: int, seconds: float) -> list[Exchange]:
    """`clients` that send their next request when the one before is answered."""
    start, exchanges = time.perf_counter(), []

    async def one() -> None:
        while time.perf_counter() < start + seconds:
            exchanges.append(Exchange(next(requests), time.perf_counter()))
            await exchanges[-1].run(port)
            if not exchanges[-1].pieces:
                await asyncio.sleep(0.1)  # refused: do not spin

    await _finish([asyncio.create_task(one()) for _ in range(clients)], start + seconds + PATIENCE)
    return exchanges


async def together(port: int, requests: Sequence[bytes]) -> list[Exchange]:
    """All at once."""
    return await open_loop(port, requests, [0.0] * len(requests), None)


async def _finish(tasks: Sequence[asyncio.Task[None]], deadline: float) -> None:
    """Wait for them until the deadline; the rest are broken off. An error of ours comes out."""
    if tasks:
        done, late = await asyncio.wait(tasks, timeout=max(0.0, deadline - time.perf_counter()))
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()


# ---------------------------------------------------------------- what is made of answers


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that a share q of all do not exceed; infinite where there are none."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)] if values else math.inf


@dataclass(frozen=True)
class Point:
    """One measurement, or the median of several. Seconds, and tokens a second."""

    offered: float  # requests a second
    throughput: float
    first_p50: float
    first_p95: float
    between_p50: float
    between_p95: float
    request_p50: float
    request_p95: float
    failed: float  # share of the requests

    @classmethod
    def of(cls, answers: Sequence[Answer], start: float, seconds: float) -> Point:
        """Of what came between the LEAD and the end; a request that failed took infinitely long."""
        begin, end = start + LEAD * seconds, start + seconds
        counted = [answer for answer in answers if begin <= answer.scheduled < end]
        spans = {
            "first": [answer.first for answer in counted],
            "between": [gap for answer in counted for gap in answer.between],
            "request": [answer.duration for answer in counted],
        }
        return cls(
            offered=len(counted) / (end - begin),
            throughput=sum(answer.tokens_within(begin, end) for answer in answers) / (end - begin),
            failed=sum(answer.failure is not None for answer in counted) / max(1, len(counted)),
            **{f"{name}_p{q}": percentile(values, q / 100) for name, values in spans.items() for q in (50, 95)},
        )

    @classmethod
    def median(cls, points: Sequence[Point]) -> Point:
        names = cls.__dataclass_fields__
        return cls(**{name: statistics.median(getattr(one, name) for one in points) for name in names})


def throughput_at(curve: Sequence[Point], cost: Callable[[Point], float], limit: float) -> float | None:
    """The throughput that a server reaches while `cost` stays within `limit`; None where it never does.

    `curve` rises in what is offered. Between its last point within the limit and the next one, linear.
    """
    within = list(itertools.takewhile(lambda point: cost(point) <= limit, curve))
    if not within:
        return None
    last = within[-1]
    if len(within) == len(curve) or not math.isfinite(cost(curve[len(within)])):
        return last.throughput
    beyond = curve[len(within)]
    share = (limit - cost(last)) / (cost(beyond) - cost(last))
    return max(last.throughput, last.throughput + share * (beyond.throughput - last.throughput))
