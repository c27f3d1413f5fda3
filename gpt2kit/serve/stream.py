"""Answers as bytes: JSON that is written piece by piece, and streams of server-sent events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpt2kit.model.completion import Event

if TYPE_CHECKING:
    from starlette.types import Send

    from gpt2kit.serve.answers import ChatChunks, CompletionChunks
    from gpt2kit.serve.errors import ApiError

JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
DONE = "data: [DONE]\n\n"
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
MARK = secrets.token_hex(16)  # stands for a text where a template is made

to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode(answer: Mapping[str, Any], name: str) -> bytes:
    """JSON, with the list `name` last and written entry by entry.

    One call for all would hold the interpreter's lock throughout: a second for 2,048 vectors of 768 numbers.
    """
    rest = to_json({key: value for key, value in answer.items() if key != name})
    return f'{rest[:-1]},"{name}":[{",".join(map(to_json, answer[name]))}]}}'.encode()


async def send_json(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*JSON, _length(body)]})
    await send({"type": "http.response.body", "body": body})


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


class Lines:
    """The events of a stream to its lines, `data: {...}`, through answers.py's chunks.

    Where a chunk differs from the one before in its text alone, it is made from a template of that one: 1 us instead of
    15, of which a busy server makes thousands a second.
    """

    def __init__(self, chunks: ChatChunks | CompletionChunks, has_templates: bool) -> None:
        """`has_templates`: no log-probabilities are asked for."""
        self._chunks, self._has_templates = chunks, has_templates
        self._templates: dict[int, tuple[str, str]] = {}  # of each choice: what stands before and behind the text

    def events(self, came: Iterable[tuple[int, Event]]) -> str:
        return "".join([self.event(choice, event) for choice, event in came])

    def event(self, choice: int, event: Event) -> str:
        if event.finish_reason is None and choice in self._templates:
            before, behind = self._templates[choice]
            return before + _event_json(event.text) + behind if event.text else ""
        found = lines(self._chunks.push(choice, event))
        if self._has_templates and choice not in self._templates:  # the first chunk may hold more, such as an echo
            before, _, behind = lines(self._chunks.push(choice, Event(None, MARK))).partition(to_json(MARK))
            self._templates[choice] = before, behind
        return found


def _event_json(value: Any) -> str:
    """JSON in which no reader sees the end of a line: some take U+2028 and its like for one, which JSON does not."""
    text = to_json(value)
    return text if text.isascii() else text.translate(_LINE_ENDS)


def lines(chunks: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"data: {_event_json(chunk)}\n\n" for chunk in chunks)


class EventStream:
    """An ASGI answer of server-sent events. The headers go with the first of them."""

    def __init__(self, send: Send) -> None:
        self.has_begun = False
        self._send = send

    async def write(self, text: str, ends: bool = False) -> None:
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": not ends})

    async def fail(self, error: ApiError) -> None:
        """The one way to tell of an error behind the headers: an event, then the end, without DONE."""
        await self.write(f"data: {_event_json(error.body())}\n\n", ends=True)
