"""A real uvicorn with our protocol before an app that says what it received, and raw sockets to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from gpt2kit.serve.guard import Guard
from gpt2kit.serve.server import uvicorn_config
from gpt2kit.serve.settings import ServeSettings

PATIENCE = 10.0  # seconds that a test waits for anything
Answer = tuple[int, dict[str, str], bytes]


class EchoApp:
    """Says what it received; keeps what became of each request."""

    def __init__(self) -> None:
        self.ends: list[str] = []  # "whole" or "gone"
        self.go_on = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/early":
            return await self.answer(send, b"no", [(b"connection", b"close")])
        if scope["path"] == "/hasty":
            return await self.answer(send, b"no", [])
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        if scope["path"] == "/late":
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ends.append("gone")
                return None
            size += len(message["body"])
            if not message["more_body"]:
                break
        if scope["path"] == "/endless":
            return await self.pour(receive, send)
        self.ends.append("whole")
        found = {"method": scope["method"], "path": scope["path"], "version": scope["http_version"], "body": size}
        return await self.answer(send, json.dumps(found).encode(), [])

    async def answer(self, send: Any, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def pour(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100_000):
            await send({"type": "http.response.body", "body": bytes(4096), "more_body": True})
        raise AssertionError("the client took 400 MB")


class Wire:
    """A running server, and raw connections to it."""

    def __init__(self, guarded: bool = False, **values: Any) -> None:
        values = {"head_timeout": 5.0, "keep_alive": 5.0, "body_grace": 5.0, "head_limit": 4096, **values}
        settings = ServeSettings(**values)
        self.app = EchoApp()
        config = uvicorn_config(Guard(self.app, settings, None) if guarded else self.app, settings)
        config.lifespan = "off"
        self.refused = config.http.keywords["refused"]  # type: ignore[union-attr]
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Wire:
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *error: object) -> None:
        self.app.go_on.set()
        self.stack.close()
        state = self.server.server_state
        with contextlib.suppress(AssertionError):
            until(lambda: not state.connections and not state.tasks)
        left = len(state.connections), len(state.tasks)
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.listener.close()
        assert left == (0, 0), "connections or tasks leaked"

    def connect(self) -> socket.socket:
        connection = socket.socket()
        self.stack.enter_context(connection)
        connection.settimeout(PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(self.listener.getsockname())
        return connection

    def ask(self, *pieces: bytes) -> list[Answer]:
        """Send these, and read until the server closes."""
        connection = self.connect()
        for piece in pieces:
            connection.sendall(piece)
        return answers(read_all(connection))


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def answers(found: bytes) -> list[Answer]:
    """Bytes to answers, each as long as its Content-Length says."""
    result = []
    while found:
        head, gap, found = found.partition(b"\r\n\r\n")
        assert gap, f"no whole head: {head!r}"
        first, *lines = head.decode("ascii").split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(fields.get("content-length", 0))
        result.append((int(first.split()[1]), fields, found[:size]))
        found = found[size:]
    return result


def assert_error(found: list[Answer], status: int) -> dict[str, Any]:
    """One answer alone, in OpenAI's shape, after which the connection closes."""
    assert [one[0] for one in found] == [status]
    _, fields, body = found[0]
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("overloaded_error" if status == 503 else "invalid_request_error")
    assert fields["content-type"] == "application/json"
    assert fields["connection"] == "close"
    assert fields["cache-control"] == "no-store"
    assert re.fullmatch("[0-9a-f]{24}", fields["x-request-id"])
    return error
