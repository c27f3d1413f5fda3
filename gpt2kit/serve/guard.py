"""What every request passes before the app sees it, and every answer on its way out. Pure ASGI.

    request id -> Host (DNS rebinding) -> Origin (other sites' pages) -> key -> scope -> size of the body -> app
    app -> security headers, x-request-id -> one line of log

Without a key only OPEN answers. A route that is not in SCOPES needs a key that may do everything.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from gpt2kit.errors import UserError
from gpt2kit.serve import keys, log
from gpt2kit.serve.errors import ApiError, from_user_error
from gpt2kit.serve.settings import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gpt2kit.serve.settings import ServeSettings

UI = "/ui"  # every file of the page
OPEN = ("/", UI, "/health", "/version")
PAGE_FILE = re.compile(r"/ui/(?:[\w-]+/)*[\w-]+(?:\.[\w-]+)+", re.ASCII)
SCOPES = {
    "/v1/completions": "generate",
    "/v1/chat/completions": "generate",
    "/v1/embeddings": "embed",
    "/v1/classify": "classify",
    "/v1/rank": "classify",
    "/v1/models": "models",
    "/v1/models/{id}": "models",
    "/v1/status": "models",
    "/tokenize": "models",
    "/detokenize": "models",
    "/openapi.json": "models",
    "/metrics": "metrics",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::([0-9]{1,5}))?", re.ASCII)
ORIGIN = re.compile(r"(https?)://([^/?#@]+)")
PORTS = {"http": 80, "https": 443}
CLIENT_GONE = 499  # as nginx logs it; nobody gets to see it

PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}
Fields = dict[bytes, list[bytes]]  # of a head: names in lower case


class Guard:
    """The app behind its checks. `keys` None: everybody may come in, as keys.ANONYMOUS. `count`: errors, by status."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        keys: keys.Keys | None,
        count: Callable[[int], None] = lambda status: None,
    ) -> None:
        self.app, self.settings, self.keys, self.count = app, settings, keys, count
        self._hosts = {name.lower().rstrip(".") for name in (settings.host, *settings.allowed_hosts)}
        self._any_address = settings.host in ("0.0.0.0", "::")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1008})  # against the policy

    def identify(self, scope: Scope, fields: Fields, route: str) -> keys.Key:
        """Whose request this is. ApiError 400, 401 or 403 where it must not go on."""
        if not scope["path"].startswith("/"):  # an absolute URI or an authority: we are not a proxy
            raise ApiError(400, "the request's target must be a path", code="invalid_target")
        host, port = self.check_host(fields.get(b"host", []))
        check_origin(fields.get(b"origin", []), host, port, scope.get("scheme", "http"))
        is_open = route in OPEN and scope["method"] in ("GET", "HEAD")
        return keys.ANONYMOUS if is_open else self.find_key(fields.get(b"authorization", []))

    def authorise(self, key: keys.Key, fields: Fields, route: str) -> None:
        """May this key have this route, and is the body not too large? ApiError 403 or 413."""
        needed = {SCOPES[route]} if route in SCOPES else set(keys.SCOPES)
        if not needed <= key.scopes:
            wanted = f"the scope {SCOPES[route]!r}" if route in SCOPES else "all scopes"
            raise ApiError(403, f"this route needs a key with {wanted}", code="missing_scope")
        length = fields.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > self.settings.body_limit:
            raise self.too_large(length.decode("latin-1"))

    def check_host(self, values: list[bytes]) -> tuple[str, int | None]:
        """The host that the request is addressed to, and the port if it says one. ApiError 403 for another's name.

        A page of another site can have its own name resolve to our address, never an address of its own.
        """
        found = _authority(values[0].decode("latin-1")) if len(values) == 1 else None
        if found is not None:
            name = found[0]
            if is_loopback(name) or name in self._hosts or (self._any_address and _is_address(name)):
                return found
        raise ApiError(
            403, "the Host header names none of this server's hosts; its owner can add one with --allowed-hosts",
            code="host_not_allowed",
        )  # fmt: skip

    def find_key(self, values: list[bytes]) -> keys.Key:
        """The key of `Authorization: Bearer SECRET`. ApiError 401."""
        if self.keys is None:
            return keys.ANONYMOUS
        if not values:
            raise ApiError(401, "no API key: send the header Authorization: Bearer KEY", code="missing_api_key")
        scheme, _, secret = values[0].decode("latin-1").partition(" ")
        key = self.keys.find(secret.strip()) if len(values) == 1 and scheme.lower() == "bearer" else None
        if key is None:
            raise ApiError(401, "the API key is not one of this server's", code="invalid_api_key")
        return key

    def too_large(self, size: str) -> ApiError:
        limit = self.settings.body_limit
        return ApiError(413, f"the body has {size} bytes, the most is {limit}", code="body_too_large")


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._begun = time.perf_counter()
        self._fields = _fields(scope)
        self._id = _request_id(self._fields)
        self._route = route_of(scope["path"])
        self._key: str | None = None
        self._status = 0  # 0: no answer has begun
        self._problem: str | None = None
        self._body_bytes = 0
        self._expects_body = _expects_body(self._fields)  # some of it is still to come
        self._is_gone = False

    async def run(self) -> None:
        state = self._scope.setdefault("state", {})
        state["request_id"] = self._id
        try:
            state["key"] = key = self._guard.identify(self._scope, self._fields, self._route)
            self._key = key.name
            self._guard.authorise(key, self._fields, self._route)
            await self._guard.app(self._scope, self.receive, self.send)
            if not self._status and not self._is_gone:
                raise RuntimeError("the app gave no answer")
        except ApiError as error:
            await self._answer(error)
        except UserError as error:
            await self._answer(from_user_error(error))
        except asyncio.CancelledError:  # the server ends before the request does
            await self._answer(ApiError(503, "the server is shutting down", code="shutting_down", retry_after=1.0))
        except Exception as error:
            await self._fail(error)
        finally:
            self._write_line()

    async def receive(self) -> Message:
        """The body, counted: ApiError 413 past the limit."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._body_bytes += len(message.get("body", b""))
            self._expects_body = self._expects_body and message.get("more_body", False)
            if self._body_bytes > self._guard.settings.body_limit:
                self._expects_body = True  # what it has beyond the limit is not read
                raise self._guard.too_large(f"more than {self._guard.settings.body_limit}")
        else:
            self._is_gone = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", ()))}
        await self._send(message)

    def _headers(self, given: Any) -> list[tuple[bytes, bytes]]:
        """The app's own headers win, but for the request id."""
        is_page = self._route in ("/", UI) and self._status < 400
        fields = {
            **HEADERS,
            b"content-security-policy": PAGE_POLICY if is_page else API_POLICY,
            b"cache-control": b"no-cache" if is_page else b"no-store",
        }
        own = [(name.lower(), value) for name, value in given if name.lower() != b"x-request-id"]
        names = {name for name, _ in own}
        own += [field for field in fields.items() if field[0] not in names]
        own.append((b"x-request-id", self._id.encode()))
        if self._expects_body and b"connection" not in names:  # nobody reads the rest
            own.append((b"connection", b"close"))
        return own

    async def _answer(self, error: ApiError) -> None:
        """In OpenAI's shape, unless an answer has begun: then it stays unfinished, and uvicorn cuts the connection."""
        self._problem = error.code or error.type
        if self._status or self._is_gone:
            return
        body = json.dumps(error.body(), ensure_ascii=False).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
        if error.status == 401:
            fields["www-authenticate"] = 'Bearer realm="gpt2kit"'
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def _fail(self, error: Exception) -> None:
        """Our bug, or a client that left while we read its body."""
        if isinstance(error, ClientDisconnect):
            self._is_gone = True
            return
        log.write(logging.ERROR, id=self._id, route=self._route, error=log.places(error))
        text = f"something went wrong in the server; its log has more under the request id {self._id}"
        await self._answer(ApiError(500, text, code="internal_error"))

    def _write_line(self) -> None:
        method = self._scope["method"]
        usage = self._scope["state"].get("usage")
        tokens = usage if isinstance(usage, Mapping) else {}
        if self._status and self._status >= 400:
            self._guard.count(self._status)
        log.write(
            logging.INFO,
            id=self._id,
            key=self._key,
            method=method if method in METHODS else "other",
            route=self._route,
            status=self._status or CLIENT_GONE,
            ms=round((time.perf_counter() - self._begun) * 1000, 1),
            tokens_in=tokens.get("prompt_tokens"),
            tokens_out=tokens.get("completion_tokens"),
            problem=self._problem,
        )


# ---------------------------------------------------------------- reading a request's head


def route_of(path: str) -> str:
    """The route's name for logs and scopes, none of the client's own text: "/v1/models/{id}", "/ui", "other"."""
    if path in SCOPES or (path in OPEN and path != UI):
        return path
    if PAGE_FILE.fullmatch(path):
        return UI
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


def check_origin(values: list[bytes], host: str, port: int | None, scheme: str) -> None:
    """Browsers say here whose page asks. Only our own may: ApiError 403 for others, "null" among them."""
    if not values:
        return
    text = values[0].decode("latin-1").lower()
    origin = ORIGIN.fullmatch(text) if len(values) == 1 else None
    found = None if origin is None else _authority(origin[2])
    if origin is not None and found is not None:
        default = PORTS[origin[1]]
        # Beyond loopback a proxy may end TLS before us: its page is https, what reaches us is not.
        is_ours = origin[1] == scheme or (origin[1] == "https" and not is_loopback(host))
        if is_ours and found[0] == host and (found[1] or default) == (port or default):
            return
    raise ApiError(403, "pages of other sites may not use this server", code="origin_not_allowed")


def _authority(text: str) -> tuple[str, int | None] | None:
    """Host and port of `host[:port]`: lower case, without brackets and the dot of a full name. None: it is none."""
    found = AUTHORITY.fullmatch(text.lower())
    if found is None:
        return None
    host = (found[1] or found[2]).removesuffix(".")
    port = None if found[3] is None else int(found[3])
    return (host, port) if host and (port is None or 0 < port < 65536) else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _fields(scope: Scope) -> Fields:
    found: Fields = {}
    for name, value in scope["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def _request_id(fields: Fields) -> str:
    """The client's own where it is harmless, else a new one."""
    values = fields.get(b"x-request-id", [])
    return values[0].decode() if len(values) == 1 and REQUEST_ID.fullmatch(values[0]) else log.new_id()


def _expects_body(fields: Fields) -> bool:
    return b"transfer-encoding" in fields or fields.get(b"content-length", [b"0"]) != [b"0"]
