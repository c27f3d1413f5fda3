"""Many clients in one thread: bare asyncio sockets, cheap enough not to be what is measured."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """How a request ended. `status` 0: the connection broke before an answer."""

    status: int = 0
    body: bytes = b""
    seconds: float = 0.0
    is_whole: bool = False

    @property
    def text(self) -> str:
        """Of a completion, whole or streamed."""
        if not self.body.startswith(b"data: "):
            return str(json.loads(self.body)["choices"][0]["text"])
        events = [json.loads(one[6:]) for one in self.body.decode().split("\n\n")[:-2]]
        return "".join(one["choices"][0]["text"] for one in events if one["choices"])


async def ask(port: int, path: str, body: dict[str, Any], drop_after: float | None = None) -> Answer:
    """One request on a connection of its own. `drop_after`: seconds after which the client goes away."""
    begun = time.perf_counter()
    answer = Answer()
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\nconnection: close\r\n\r\n"
    writer = None
    try:
        async with asyncio.timeout(drop_after):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + data)
            await _read(reader, answer)
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        pass
    finally:
        if writer is not None:
            writer.close()
    answer.seconds = time.perf_counter() - begun
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    answer.status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" not in head:
        answer.body = await reader.read()
        answer.is_whole = len(answer.body) == int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        answer.body += (await reader.readexactly(size + 2))[:-2]
    answer.is_whole = answer.body.endswith(b"data: [DONE]\n\n")


async def crowd(port: int, path: str, bodies: list[dict[str, Any]], at_a_time: int) -> list[Answer]:
    """All of them, so many at a time."""
    gate = asyncio.Semaphore(at_a_time)

    async def one(body: dict[str, Any]) -> Answer:
        async with gate:
            return await ask(port, path, body)

    return await asyncio.gather(*map(one, bodies))


async def arrivals(
    port: int, path: str, body: dict[str, Any], rate: float, seconds: float, seed: int = 0
) -> list[Answer]:
    """Requests that come at random moments, `rate` a second on average, whatever becomes of those before."""
    rng = random.Random(seed)
    begun = time.perf_counter()
    due = 0.0
    tasks = []
    while due < seconds:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(port, path, body)))
    return await asyncio.gather(*tasks)
