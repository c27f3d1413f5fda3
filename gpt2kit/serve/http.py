"""uvicorn's HTTP/1.1 with deadlines and caps. It has none of these by itself: a byte a second would keep a connection.

    phase       begins with                           may last
    head        the connection, or a next request     head_timeout, then 408; silent closing where no byte has come
    body        the end of the head                   body_grace + body bytes / body_rate, then 408
    answer      the end of the body                   as long as the app takes
    idle        the end of the answer                 keep_alive

A client that does not take its answer is cut off after body_grace + bytes / body_rate, too. Whatever is wrong with the
bytes themselves is answered in OpenAI's error shape: 400, 431 (head_limit), 501, 505, or 503 past max_connections.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import socket
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2kit.serve import log
from gpt2kit.serve.errors import ApiError

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from gpt2kit.serve.settings import ServeSettings

LINGER = 1.0  # seconds in which we read away what a refused client still sends: a reset would eat our answer
MOST_REFUSED = 64  # connections past the cap that get an answer at one time; others are cut off


def make_protocol(settings: ServeSettings) -> type[asyncio.Protocol]:
    """What uvicorn's Config takes as `http`; one for each server."""
    return cast("type[asyncio.Protocol]", functools.partial(Protocol, settings=settings, refused=set()))


class _Connection(h11.Connection):
    """h11's, strict where a proxy before us may read a request in another way, and with a limit that holds.

    h11 looks at its limit only while a head is incomplete: one that comes in one piece passes at any size.
    """

    def __init__(self, head_limit: int) -> None:
        super().__init__(h11.SERVER, head_limit)
        self.head_limit = head_limit
        self.body_bytes = 0  # of the request that is being read; framing does not count

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.body_bytes = 0
            self._check(event)
        elif isinstance(event, h11.Data):
            self.body_bytes += len(event.data)
        return event

    def _check(self, request: h11.Request) -> None:
        fields = list(request.headers)
        if len(request.target) + sum(len(name) + len(value) + 4 for name, value in fields) > self.head_limit:
            raise h11.RemoteProtocolError("too large", error_status_hint=431)
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("unknown version", error_status_hint=505)
        names = {name for name, _ in fields}
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            raise h11.RemoteProtocolError("two lengths")  # RFC 9112, 6.1: how requests are smuggled


class _Transport:
    """The transport as uvicorn's request cycle has it: closing goes through the protocol."""

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        self._transport, self._protocol = transport, protocol
        self.write = transport.write

    def close(self) -> None:
        self._protocol.close()

    def is_closing(self) -> bool:
        return self._protocol.closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(H11Protocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: ServeSettings,
        refused: set[Protocol],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.access_log = False  # uvicorn's has paths and query strings; guard.py writes ours
        self.settings = settings
        self.closing = False
        self.conn: _Connection = _Connection(settings.head_limit)
        self._refused = refused  # by all connections of this server, past the cap
        self._phase = ""
        self._begun = 0.0  # of the body; the loop's time
        self._deadline: asyncio.TimerHandle | None = None  # of the phase; when closing, of that
        self._write_deadline: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._socket = transport
        self.transport = cast(asyncio.Transport, _Transport(transport, self))
        # asyncio does this for the sockets that it binds itself; without it an answer's second packet is 40 ms late
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) <= self.settings.max_connections:
            self._follow()
            return
        self.connections.discard(self)
        if len(self._refused) >= MOST_REFUSED:
            transport.abort()
            return
        self._refused.add(self)
        self._refuse(ApiError(503, "too many open connections", code="too_many_connections", retry_after=1.0))

    def data_received(self, data: bytes) -> None:
        if not self.closing:
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """From within `except RemoteProtocolError`. The error's text may quote the client: it goes nowhere."""
        hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
        in_body = self.cycle is not None and self.cycle.more_body
        if hint == 431 and not in_body:  # in a body it is about the line before a chunk
            text = f"the request's line and headers have more than {self.settings.head_limit} bytes"
            error = ApiError(431, text, code="headers_too_large")
        elif hint == 501:
            error = ApiError(501, "no Transfer-Encoding but chunked is known here", "invalid_request_error")
        elif hint == 505:
            error = ApiError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here", "invalid_request_error")
        else:
            error = ApiError(400, "this is not a valid HTTP/1.1 request", code="invalid_http")
        self._refuse(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self._abort_after(self._allowance())

    def resume_writing(self) -> None:
        _cancel(self._write_deadline)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self.close()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.close()
        else:
            self.cycle.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._refused.discard(self)
        for timer in (self._deadline, self._write_deadline):
            _cancel(timer)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """An Upgrade that we do not know is ignored, as RFC 9110 has it; uvicorn would write two lines of log."""

    # ------------------------------------------------------------ deadlines

    def _follow(self) -> None:
        """Set the deadline of the phase that the connection is in now."""
        if self.closing:
            return
        state = self.conn.their_state
        phase = ""
        if state is h11.SEND_BODY:
            phase = "body"
        elif state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            phase = "head"
        if phase == self._phase:
            return
        self._phase = phase
        _cancel(self._deadline)
        if phase == "head":
            self._deadline = self.loop.call_later(self.settings.head_timeout, self._end_head)
        elif phase == "body" and self.settings.body_rate:
            self._begun = self.loop.time()
            self._deadline = self.loop.call_later(self.settings.body_grace, self._check_body)

    def _end_head(self) -> None:
        if self.conn.trailing_data[0]:
            text = f"the request's head did not arrive within {self.settings.head_timeout:g} s"
            self._refuse(ApiError(408, text, code="request_timeout"))
        else:
            self.close()  # a connection that a browser opens in advance wants no answer

    def _check_body(self) -> None:
        """Is the body behind its rate? Where the app does not read, the client is not to blame."""
        now, settings = self.loop.time(), self.settings
        if self.flow.read_paused:
            self._begun = now - self.conn.body_bytes / settings.body_rate
        end = self._begun + settings.body_grace + self.conn.body_bytes / settings.body_rate
        if now < end:
            self._deadline = self.loop.call_at(end, self._check_body)
        else:
            text = f"the request's body came slower than {settings.body_rate} bytes/s"
            self._refuse(ApiError(408, text, code="request_timeout"))

    def _allowance(self) -> float | None:
        """Seconds in which the client must take what waits to be sent; None: any time."""
        settings = self.settings
        if not settings.body_rate:
            return None
        return settings.body_grace + self._socket.get_write_buffer_size() / settings.body_rate

    def _abort_after(self, seconds: float | None) -> asyncio.TimerHandle | None:
        return None if seconds is None else self.loop.call_later(seconds, self._socket.abort)

    # ------------------------------------------------------------ the end

    def _refuse(self, error: ApiError) -> None:
        """Answer, where no answer has begun, and close. An app that is at it sees its client gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        id_ = log.new_id()
        log.write(logging.INFO, id=id_, status=error.status, problem=error.code)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._socket.write(self._answer(error, id_))
        self._close(linger=True)

    def _answer(self, error: ApiError, id_: str) -> bytes:
        body = json.dumps(error.body()).encode()
        fields = {
            **{name.decode(): value.decode() for name, value in self.server_state.default_headers},
            "content-type": "application/json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "x-request-id": id_,
            "connection": "close",
            **error.headers(),
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def close(self) -> None:
        """Close once everything is sent; a client that is still sending gets a moment to read why."""
        self._close(linger=self._phase == "body" or bool(self.conn.trailing_data[0]))

    def _close(self, linger: bool) -> None:
        if self.closing or self._socket.is_closing():
            return
        self.closing = True
        self._unset_keepalive_if_required()
        _cancel(self._deadline)
        seconds = self._allowance() if self._socket.get_write_buffer_size() else 0.0
        if linger:
            self._socket.resume_reading()
            self._socket.write_eof()
        else:
            self._socket.close()
        self._deadline = self._abort_after(None if seconds is None else seconds + LINGER)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
