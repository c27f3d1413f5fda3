"""Who gets through to the app, and what goes out: asked in process, as an ASGI server asks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from gpt2kit.engine import Models
from gpt2kit.errors import UserError
from gpt2kit.serve.app import create_app
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.guard import OPEN, SCOPES, Guard, route_of
from gpt2kit.serve.keys import ANONYMOUS, Key, Keys
from gpt2kit.serve.keys import SCOPES as ALL_SCOPES
from gpt2kit.serve.settings import ServeSettings

CANARY = "canary-7f3a"
ALL, NONE_OF = "all-secret", "secret without "
ROUTES = [*(route for route in SCOPES if "{" not in route), "/v1/models/mine", "/v1/models/mine/loss.png"]
FILES = ["/ui/app.js", "/ui/i18n/zh.json", "/ui/a-b.min.css"]


def make_keys() -> Keys:
    """One that may do everything, and for each scope one that may do all but that."""
    kinds = {ALL: Key("all")}
    for scope in ALL_SCOPES:
        kinds[NONE_OF + scope] = Key(f"no-{scope}", frozenset(ALL_SCOPES) - {scope})
    return Keys((hashlib.sha256(secret.encode()).digest(), key) for secret, key in kinds.items())


@dataclass
class Inner:
    """The app behind: remembers whom it saw."""

    seen: list[Key] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    headers: Sequence[tuple[bytes, bytes]] = ()
    failure: Callable[[], BaseException] | None = None
    fails_late: bool = False
    reads: bool = True
    usage: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["state"]["key"])
        self.ids.append(scope["state"]["request_id"])
        scope["state"]["usage"] = self.usage
        size = 0
        while self.reads:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            size += len(message["body"])
            if not message["more_body"]:
                break
        if self.failure is not None and not self.fails_late:
            raise self.failure()
        await send({"type": "http.response.start", "status": 200, "headers": list(self.headers)})
        if self.failure is not None:
            raise self.failure()
        await send({"type": "http.response.body", "body": str(size).encode()})


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> Any:
        found = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        assert int(self.headers["content-length"]) == len(self.body)
        return found


def ask(
    app: Any, path: str = "/v1/models", method: str = "GET", key: str | None = None,
    host: str | None = "127.0.0.1:8000", origin: str | None = None, pieces: Sequence[bytes] | None = (b"",),
    more: Sequence[tuple[str, str]] = (),
) -> Answer:  # fmt: skip
    """One request. `pieces` of the body; None: the client goes away instead."""
    fields = [("host", host), ("origin", origin), ("authorization", None if key is None else f"Bearer {key}"), *more]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": CANARY.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields if value is not None],
        "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    messages: list[Any] = [{"type": "http.disconnect"}]
    if pieces is not None:
        last = len(pieces) - 1
        messages = [{"type": "http.request", "body": p, "more_body": i < last} for i, p in enumerate(pieces)]
    answer = Answer()
    starts: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            starts.append(message)
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message["body"]

    asyncio.run(app(scope, receive, send))
    assert len(starts) <= 1, "two answers"
    assert not starts or len(starts[0]["headers"]) == len(answer.headers), "a header is there twice"
    return answer


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(one.getMessage()) for one in caplog.records if one.name == "gpt2kit.serve"]


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def guarded(inner: Inner, caplog: pytest.LogCaptureFixture) -> Guard:
    """With keys."""
    caplog.set_level(logging.INFO)
    return Guard(inner, ServeSettings(body_limit=100), make_keys())


@pytest.fixture
def unlocked(inner: Inner, caplog: pytest.LogCaptureFixture) -> Guard:
    """Without keys."""
    caplog.set_level(logging.INFO)
    return Guard(inner, ServeSettings(body_limit=100), None)


# ---------------------------------------------------------------- keys and scopes


@pytest.mark.parametrize("route", [*ROUTES, "/nothing", "/ui", "/ui/../keys.json", "/v1", "//health", "/health/"])
def test_a_route_needs_a_key_with_its_scope(guarded: Guard, inner: Inner, route: str) -> None:
    name = route_of(route)
    needed = [SCOPES[name]] if name in SCOPES else list(ALL_SCOPES)
    assert name in SCOPES or name == "other"
    for key in (None, "wrong", ALL.upper(), "all", ""):
        answer = ask(guarded, route, key=key)
        assert answer.status == 401
        assert answer.error["type"] == "authentication_error"
        assert answer.error["code"] == ("missing_api_key" if key is None else "invalid_api_key")
        assert answer.headers["www-authenticate"] == 'Bearer realm="gpt2kit"'
    assert inner.seen == []
    assert ask(guarded, route, key=ALL).status == 200
    for scope in ALL_SCOPES:
        answer = ask(guarded, route, key=NONE_OF + scope)
        assert answer.status == (403 if scope in needed else 200)
        if scope in needed:
            assert answer.error["type"] == "permission_error"
            assert answer.error["code"] == "missing_scope"
    assert [key.name for key in inner.seen] == ["all", *(f"no-{one}" for one in ALL_SCOPES if one not in needed)]


@pytest.mark.parametrize("route", ["/", "/health", "/version", *FILES])
def test_an_open_route_is_read_without_a_key(guarded: Guard, inner: Inner, route: str) -> None:
    for method in ("GET", "HEAD"):
        for key in (None, "wrong", NONE_OF + "models"):
            assert ask(guarded, route, method, key=key).status == 200
    assert inner.seen == [ANONYMOUS] * 6
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "get", "X"):
        assert ask(guarded, route, method).status == 401


def test_without_a_key_file_everybody_is_anonymous(unlocked: Guard, inner: Inner) -> None:
    for route in [*ROUTES, *FILES, "/", "/health", "/nothing"]:
        assert ask(unlocked, route).status == ask(unlocked, route, "POST", key="sk-anything").status == 200
    assert set(inner.seen) == {ANONYMOUS}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([f"Bearer {ALL}"], 200),
        ([f"bearer {ALL}"], 200),
        ([f"Bearer   {ALL} "], 200),
        ([ALL], 401),
        ([f"Basic {ALL}"], 401),
        ([f"Bearer{ALL}"], 401),
        (["Bearer"], 401),
        ([""], 401),
        ([f"Bearer {ALL}", f"Bearer {ALL}"], 401),
        ([f"Bearer {ALL}, Bearer {ALL}"], 401),
        (["Bearer \xff\xfe"], 401),
    ],
)
def test_only_one_bearer_key_opens(guarded: Guard, values: list[str], status: int) -> None:
    assert ask(guarded, more=[("authorization", value) for value in values]).status == status


def test_every_route_of_the_app_is_known_here() -> None:
    """Else a key with few scopes could not use it, and the log would say "other"."""
    app = create_app(Models({}), ServeSettings())
    paths = [getattr(route, "path", "") for route in app.api.routes]
    assert "/v1/completions" in paths
    for path in paths:
        assert route_of(path.replace("{id}", "mine")) != "other", path
    assert {"/health", "/version", *(one for one in SCOPES if "{" not in one)} <= set(paths)


# ---------------------------------------------------------------- Host and Origin


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("127.0.0.1:80", True),  # a tunnel may have another port
        ("127.8.8.8", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("localhost.:8000", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("Models.Example.Org", True),
        ("models.example.org.", True),
        ("models.example.org:443", True),
        (None, False),
        ("", False),
        (" ", False),
        (":8000", False),
        (".", False),
        ("127.0.0.1.evil.com", False),
        ("127.0.0.1.", True),
        ("localhost.evil.com", False),
        ("evil.com", False),
        ("xlocalhost", False),
        ("models.example.org.evil.com", False),
        ("evilmodels.example.org", False),
        ("example.org", False),
        ("localhost:99999", False),
        ("localhost:0", False),
        ("localhost:", False),
        ("localhost:80:80", False),
        ("localhost:-1", False),
        ("localhost:８０", False),
        ("localhost:8000@evil.com", False),
        ("user@localhost", False),
        ("localhost/evil", False),
        ("localhost evil.com", False),
        ("localhost, evil.com", False),
        ("::1", False),
        ("[::1", False),
        ("[::1]x", False),
        ("[localhost]", False),
        ("[::1%25lo]", False),
        ("[::ffff:1.2.3.4]", False),
        ("0.0.0.0", False),
        ("192.168.0.1", False),
        ("2130706433", False),
        ("0x7f.1", False),
        ("127.1", False),
        ("localhost\x00", False),
        ("lоcalhost".encode().decode("latin-1"), False),  # a Cyrillic o
    ],
)
def test_only_our_own_hosts_are_answered(inner: Inner, host: str | None, is_ours: bool) -> None:
    guard = Guard(inner, ServeSettings(allowed_hosts=("models.example.org",)), None)
    if host is not None and not host.isascii() and "８" in host:
        host = host.encode().decode("latin-1")
    for path in ("/v1/models", "/", "/health"):
        answer = ask(guard, path, host=host)
        assert answer.status == (200 if is_ours else 403), path
        if not is_ours:
            assert answer.error["code"] == "host_not_allowed"


def test_two_host_headers_are_refused(unlocked: Guard) -> None:
    assert ask(unlocked, more=[("host", "127.0.0.1:8000")]).status == 403


@pytest.mark.parametrize(
    ("bound", "host", "is_ours"),
    [
        ("192.168.0.5", "192.168.0.5:8000", True),
        ("192.168.0.5", "192.168.0.6:8000", False),
        ("models.internal", "MODELS.internal", True),
        ("fe80::5", "[FE80::5]:8000", True),
        (
            "0.0.0.0",
            "10.1.2.3:8000",
            True,
        ),  # any of our addresses; no page can come from an address that is not its own
        ("::", "[2001:db8::1]:8000", True),
        ("0.0.0.0", "evil.com", False),
        ("0.0.0.0", "10.1.2.3.evil.com", False),
        ("::", "evil.com", False),
        ("0.0.0.0", "localhost", True),
    ],
)
def test_the_bound_host_is_ours(inner: Inner, bound: str, host: str, is_ours: bool) -> None:
    assert ask(Guard(inner, ServeSettings(host=bound), None), host=host).status == (200 if is_ours else 403)


@pytest.mark.parametrize(
    ("host", "origin", "is_ours"),
    [
        ("127.0.0.1:8000", None, True),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("localhost:8000", "http://localhost:8000", True),
        ("localhost:8000", "HTTP://LOCALHOST:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("localhost", "http://localhost", True),
        ("localhost:80", "http://localhost", True),
        ("models.example.org", "https://models.example.org", True),  # TLS ends before us
        ("models.example.org:443", "https://models.example.org", True),
        ("localhost:8000", "null", False),
        ("localhost:8000", "", False),
        ("localhost:8000", "http://localhost:8001", False),
        ("localhost:8000", "http://localhost", False),
        ("localhost:8000", "https://localhost:8000", False),
        ("localhost:8000", "http://127.0.0.1:8000", False),
        ("localhost:8000", "http://evil.com", False),
        ("localhost:8000", "http://localhost:8000.evil.com", False),
        ("localhost:8000", "http://evil.com@localhost:8000", False),
        ("localhost:8000", "http://localhost:8000/", False),
        ("localhost:8000", "http://localhost:8000?x", False),
        ("localhost:8000", "file://", False),
        ("localhost:8000", "chrome-extension://localhost:8000", False),
        ("localhost:8000", "localhost:8000", False),
        ("models.example.org", "https://models.example.org:8443", False),
        ("models.example.org", "https://evil.com", False),
        ("models.example.org:8000", "https://models.example.org", False),
    ],
)
def test_only_our_own_pages_may_ask(inner: Inner, host: str, origin: str | None, is_ours: bool) -> None:
    guard = Guard(inner, ServeSettings(allowed_hosts=("models.example.org",)), None)
    for method in ("GET", "POST", "OPTIONS"):
        answer = ask(guard, "/v1/completions", method, host=host, origin=origin)
        assert answer.status == (200 if is_ours else 403)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        if not is_ours:
            assert answer.error["code"] == "origin_not_allowed"


def test_two_origins_are_refused(unlocked: Guard) -> None:
    own = "http://127.0.0.1:8000"
    assert ask(unlocked, origin=own, more=[("origin", own)]).status == 403


def test_host_comes_before_origin_and_that_before_the_key(guarded: Guard) -> None:
    assert ask(guarded, host="evil.com", origin="null").error["code"] == "host_not_allowed"
    assert ask(guarded, origin="null").error["code"] == "origin_not_allowed"
    assert ask(guarded, more=[("content-length", "101")]).error["code"] == "missing_api_key"


@pytest.mark.parametrize("target", ["http://127.0.0.1:8000/health", "http://evil.com/", "*", "127.0.0.1:8000", ""])
def test_a_target_that_is_not_a_path_is_refused(unlocked: Guard, inner: Inner, target: str) -> None:
    answer = ask(unlocked, target)
    assert (answer.status, answer.error["code"]) == (400, "invalid_target")
    assert inner.seen == []


# ---------------------------------------------------------------- the body


def test_a_declared_body_past_the_limit_is_refused_at_once(unlocked: Guard, inner: Inner) -> None:
    answer = ask(unlocked, method="POST", more=[("content-length", "101")])
    assert (answer.status, answer.error["message"]) == (413, "the body has 101 bytes, the most is 100")
    assert answer.headers["connection"] == "close"
    assert inner.seen == []


@pytest.mark.parametrize("length", ["1e3", "-1", "", "0x10", "99999999999999999999999"])
def test_a_strange_length_is_refused(unlocked: Guard, length: str) -> None:
    assert ask(unlocked, method="POST", more=[("content-length", length)]).status == 413


@pytest.mark.parametrize(("sizes", "status"), [([100], 200), ([50, 50, 0], 200), ([101], 413), ([60, 41, 5], 413)])
def test_a_body_is_counted_while_it_comes(unlocked: Guard, sizes: list[int], status: int) -> None:
    pieces = [bytes(size) for size in sizes]
    answer = ask(unlocked, method="POST", pieces=pieces, more=[("transfer-encoding", "chunked")])
    assert answer.status == status
    assert ("connection" in answer.headers) == (status == 413)
    if status == 413:
        assert answer.error["message"] == "the body has more than 100 bytes, the most is 100"
        assert answer.error["code"] == "body_too_large"


def test_a_connection_whose_body_nobody_reads_is_closed(unlocked: Guard, inner: Inner) -> None:
    inner.reads = False
    assert ask(unlocked, method="POST", more=[("content-length", "5")]).headers["connection"] == "close"
    assert "connection" not in ask(unlocked, method="POST", more=[("content-length", "0")]).headers
    assert "connection" not in ask(unlocked).headers


# ---------------------------------------------------------------- what goes out


def test_the_page_and_the_api_have_their_own_policies(unlocked: Guard) -> None:
    for path in ("/", *FILES):
        page = ask(unlocked, path).headers
        assert "script-src 'self'" in page["content-security-policy"]
        assert "unsafe" not in page["content-security-policy"]
        assert page["cache-control"] == "no-cache"
    for path in ("/v1/models", "/health", "/nothing"):
        api = ask(unlocked, path).headers
        assert api["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert api["cache-control"] == "no-store"
    for path in ("/", "/v1/models"):
        headers = ask(unlocked, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/v1/models"])
def test_an_error_has_those_of_the_api(guarded: Guard, path: str) -> None:
    headers = ask(guarded, path, "POST").headers
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert "x-request-id" in headers


def test_the_app_s_own_headers_win(unlocked: Guard, inner: Inner) -> None:
    inner.headers = [(b"Cache-Control", b"max-age=60"), (b"X-Request-Id", b"forged"), (b"x-more", b"1")]
    headers = ask(unlocked).headers
    assert headers["cache-control"] == "max-age=60"
    assert headers["x-request-id"] == inner.ids[0]
    assert headers["x-more"] == "1"


@pytest.mark.parametrize("id_", ["a", "req-1.A_b", "x" * 64])
def test_a_harmless_request_id_is_kept(
    unlocked: Guard, inner: Inner, id_: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert ask(unlocked, more=[("x-request-id", id_)]).headers["x-request-id"] == id_
    assert inner.ids == [id_]
    assert lines(caplog)[0]["id"] == id_


@pytest.mark.parametrize("ids", [[], [""], ["x" * 65], ["a b"], ['a"b'], ["é"], ["a\nb"], ["a", "b"]])
def test_another_request_id_is_replaced(unlocked: Guard, ids: list[str]) -> None:
    answer = ask(unlocked, more=[("x-request-id", id_) for id_ in ids])
    assert re.fullmatch("[0-9a-f]{24}", answer.headers["x-request-id"])


# ---------------------------------------------------------------- failures


def test_an_api_error_of_the_app_is_answered(unlocked: Guard, inner: Inner) -> None:
    inner.failure = lambda: ApiError(429, "slow down", code="requests_limit_exceeded", retry_after=1.2)
    answer = ask(unlocked)
    assert (answer.status, answer.error["message"]) == (429, "slow down")
    assert answer.headers["retry-after"] == "2"


def test_a_user_error_of_the_app_is_a_400(unlocked: Guard, inner: Inner) -> None:
    inner.failure = lambda: UserError("the prompt is too long", hint="cut it")
    answer = ask(unlocked)
    assert (answer.status, answer.error["message"]) == (400, "the prompt is too long; cut it")


def test_a_bug_is_a_500_with_the_request_id_and_no_value(
    unlocked: Guard, inner: Inner, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> BaseException:
        error = ValueError(CANARY)
        error.__cause__ = ExceptionGroup(CANARY, [KeyError(CANARY)])
        return error

    inner.failure = fail
    answer = ask(unlocked, more=[("x-request-id", "mine")])
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert "mine" in answer.error["message"]
    failed, line = lines(caplog)
    assert (failed["level"], failed["id"], line["status"]) == ("error", "mine", 500)
    assert failed["error"][0] == "ValueError"
    assert "ExceptionGroup" in failed["error"]
    assert failed["error"][-1] == "KeyError"
    assert any("test_guard.py" in place for place in failed["error"])
    assert CANARY not in answer.body.decode() + caplog.text


def test_an_answer_that_has_begun_is_left_unfinished(
    unlocked: Guard, inner: Inner, caplog: pytest.LogCaptureFixture
) -> None:
    inner.failure, inner.fails_late = lambda: ValueError(CANARY), True
    assert ask(unlocked).body == b""
    assert lines(caplog)[-1]["status"] == 200
    assert lines(caplog)[-1]["problem"] == "internal_error"


def test_a_request_that_the_shutdown_cancels_is_told(unlocked: Guard, inner: Inner) -> None:
    inner.failure = asyncio.CancelledError
    answer = ask(unlocked)
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    assert answer.headers["retry-after"] == "1"


def test_a_client_that_leaves_is_no_error(unlocked: Guard, inner: Inner, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(unlocked, method="POST", pieces=None).status == 0
    (line,) = lines(caplog)
    assert (line["level"], line["status"]) == ("info", 499)


def test_an_app_without_an_answer_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return None

    assert ask(Guard(silent, ServeSettings(), None)).error["code"] == "internal_error"


def test_web_sockets_are_refused_and_lifespan_goes_through() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def run(kind: str) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {}

        await Guard(app, ServeSettings(), None)({"type": kind}, receive, send)
        return sent

    assert asyncio.run(run("websocket")) == [{"type": "websocket.close", "code": 1008}]
    assert asyncio.run(run("lifespan")) == []
    assert seen == ["lifespan"]


# ---------------------------------------------------------------- the log


def test_one_line_says_who_what_and_how_long(guarded: Guard, inner: Inner, caplog: pytest.LogCaptureFixture) -> None:
    inner.usage = {"prompt_tokens": 3, "completion_tokens": 4}
    ask(guarded, "/v1/completions", "POST", key=ALL, more=[("x-request-id", "mine")])
    (line,) = lines(caplog)
    assert 0 <= line.pop("ms") < 10_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info", "id": "mine", "key": "all", "method": "POST", "route": "/v1/completions", "status": 200,
        "tokens_in": 3, "tokens_out": 4, "problem": None,
    }  # fmt: skip


def test_a_refusal_is_logged_with_its_reason_and_the_key_s_name(
    guarded: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    ask(guarded, key=NONE_OF + "models")
    ask(guarded, key="wrong")
    found = [(line["key"], line["status"], line["problem"]) for line in lines(caplog)]
    assert found == [("no-models", 403, "missing_scope"), (None, 401, "invalid_api_key")]


def test_nothing_that_a_client_sends_is_logged_or_quoted(guarded: Guard, caplog: pytest.LogCaptureFixture) -> None:
    said = ""
    for key in (CANARY, ALL, None):
        for path in (f"/v1/models/{CANARY}", f"/{CANARY}", f"/ui/{CANARY}.js", f"http://{CANARY}/"):
            for method in ("GET", CANARY):
                for host in ("localhost", f"{CANARY}.com"):
                    for origin in (None, f"http://{CANARY}"):
                        answer = ask(
                            guarded, path, method, key, host, origin, [CANARY.encode() * 20], [("x-secret", CANARY)]
                        )
                        said += f"{answer.status} {answer.headers} {answer.body!r}\n"
    assert CANARY not in said
    assert CANARY not in caplog.text
    assert len(lines(caplog)) == 96
    assert {line["method"] for line in lines(caplog)} == {"GET", "other"}
    assert {line["route"] for line in lines(caplog)} == {"/v1/models/{id}", "other", "/ui"}


def test_open_routes_are_those_that_are_promised() -> None:
    assert set(OPEN) == {"/", "/ui", "/health", "/version"}
