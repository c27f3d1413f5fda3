"""Hostile and clumsy clients on raw sockets, against a real uvicorn with our protocol."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from wire import PATIENCE, Answer, Wire, answers, assert_error, read_all, until

from gpt2kit.serve import http

CANARY = "canary-7f3a"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    bad = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not bad


@pytest.fixture(scope="module")
def patient() -> Iterator[Wire]:
    """Deadlines that no test reaches."""
    with Wire() as wire:
        yield wire


# ---------------------------------------------------------------- deadlines


def trickle(wire: Wire, *pieces: bytes, pause: float) -> tuple[list[Answer], float]:
    """Send piece by piece, as long as the server listens: its answers, and the seconds until it closes."""
    connection = wire.connect()

    def send() -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)

    begun = time.monotonic()
    sender = threading.Thread(target=send)
    sender.start()
    found = read_all(connection)
    seconds = time.monotonic() - begun
    connection.close()
    sender.join(PATIENCE)
    return answers(found), seconds


def in_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def test_a_head_that_trickles_is_answered_408_at_its_deadline() -> None:
    with Wire(head_timeout=0.3) as wire:
        found, seconds = trickle(wire, *in_bytes(b"GET / HTTP/1.1\r\nHost: " + b"a" * 300), pause=0.01)
        error = assert_error(found, 408)
        assert "within 0.3 s" in error["message"]
        assert 0.25 < seconds < 1.5


def test_a_head_that_comes_byte_by_byte_in_time_is_answered(patient: Wire) -> None:
    found, _ = trickle(patient, *in_bytes(LAST), pause=0.001)
    assert [one[0] for one in found] == [200]


def test_a_connection_without_a_byte_is_closed_silently() -> None:
    with Wire(head_timeout=0.2) as wire:
        begun = time.monotonic()
        assert read_all(wire.connect()) == b""
        assert 0.15 < time.monotonic() - begun < 1.5


def test_the_second_head_on_a_connection_has_its_own_deadline() -> None:
    with Wire(head_timeout=0.3) as wire:
        found, seconds = trickle(wire, GET, b"", b"", GET[:5], pause=0.12)
        assert found[0][0] == 200
        assert_error(found[1:], 408)
        assert 0.6 < seconds < 2.5


def test_an_idle_connection_is_closed_after_keep_alive() -> None:
    with Wire(keep_alive=0.3, head_timeout=5.0) as wire:
        begun = time.monotonic()
        assert [one[0] for one in wire.ask(GET)] == [200]
        assert 0.25 < time.monotonic() - begun < 2.0


def test_a_body_that_trickles_is_answered_408_after_its_grace() -> None:
    with Wire(body_grace=0.3, body_rate=1000) as wire:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n"
        found, seconds = trickle(wire, head, *in_bytes(bytes(900)), pause=0.02)
        error = assert_error(found, 408)
        assert "slower than 1000 bytes/s" in error["message"]
        assert 0.25 < seconds < 2.0
        until(lambda: wire.app.ends == ["gone"])


def test_framing_does_not_count_as_body() -> None:
    with Wire(body_grace=0.3, body_rate=1000) as wire:
        chunk = b"1;" + b"x" * 1000 + b"\r\nz\r\n"
        found, seconds = trickle(wire, CHUNKED, *[chunk] * 100, pause=0.02)
        assert_error(found, 408)
        assert seconds < 2.0


def test_a_body_that_keeps_its_rate_may_take_long() -> None:
    with Wire(body_grace=0.1, body_rate=1000) as wire:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3000\r\n\r\n"
        found, seconds = trickle(wire, head, *[bytes(150)] * 20, pause=0.02)
        assert [json.loads(one[2])["body"] for one in found] == [3000]
        assert seconds > 0.35


def test_a_client_is_not_blamed_while_the_app_does_not_read() -> None:
    with Wire(body_grace=0.1, body_rate=1_000_000) as wire:
        head = b"POST /late HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3000000\r\n\r\n"
        threading.Timer(0.4, wire.app.go_on.set).start()
        found, seconds = trickle(wire, head, bytes(3_000_000), pause=0)
        assert [json.loads(one[2])["body"] for one in found] == [3_000_000]
        assert seconds > 0.3


def test_a_client_that_does_not_take_its_answer_is_cut_off() -> None:
    with Wire(body_grace=0.2, body_rate=1_000_000) as wire:
        connection = wire.connect()
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        state = wire.server.server_state
        until(lambda: state.connections)
        until(lambda: not state.connections and not state.tasks, seconds=5.0)


def test_a_client_that_takes_its_answer_slowly_gets_it() -> None:
    with Wire(body_grace=0.2, body_rate=1000) as wire:
        connection = wire.connect()
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        begun = time.monotonic()
        while time.monotonic() < begun + 0.5:
            assert connection.recv(65536)
            time.sleep(0.02)
        connection.close()


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("size", [4000, 4200, 60_000, 300_000])
@pytest.mark.parametrize("lines", [1, 40])
def test_a_head_past_the_limit_is_answered_431_even_in_one_piece(patient: Wire, size: int, lines: int) -> None:
    each = size // lines
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    found = patient.ask(head + b"".join(b"x: %s\r\n" % (b"y" * (each - 5)) for _ in range(lines)) + b"\r\n")
    if size < 4096:
        assert found[0][0] == 200
    else:
        assert "4096 bytes" in assert_error(found, 431)["message"]


@pytest.mark.parametrize("size", [4000, 5000, 300_000])
def test_a_target_past_the_limit_is_answered_431(patient: Wire, size: int) -> None:
    found = patient.ask(b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert found[0][0] == (200 if size < 4096 else 431)


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # how TLS begins
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / http/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
        b"GET /\xe6\x98\xa5 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx\x00y: z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: y\x00z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: first\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_a_request_is_answered_400(patient: Wire, head: bytes) -> None:
    assert assert_error(patient.ask(head), 400)["code"] == "invalid_http"


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0", b"9.9"])
def test_another_version_is_answered_505(patient: Wire, version: bytes) -> None:
    found = patient.ask(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    assert [one[0] for one in found] == [505]
    assert json.loads(found[0][2])["error"]["type"] == "invalid_request_error"


def test_http_2_without_asking_is_answered_505(patient: Wire) -> None:
    found = patient.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert [one[0] for one in found] == [505]


def test_http_1_0_is_answered_and_closed(patient: Wire) -> None:
    ((status, fields, body),) = patient.ask(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert status == 200
    assert fields["connection"] == "close"
    assert json.loads(body) == {"method": "GET", "path": "/old", "version": "1.0", "body": 0}


def test_a_body_in_http_1_0_is_read(patient: Wire) -> None:
    found = patient.ask(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
    assert json.loads(found[0][2])["body"] == 3


def test_head_gets_no_body(patient: Wire) -> None:
    connection = patient.connect()
    connection.sendall(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert read_all(connection).endswith(b"\r\n\r\n")


def test_an_upgrade_is_ignored(patient: Wire) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert [one[0] for one in patient.ask(head)] == [200]


def test_expect_100_continue_is_answered(patient: Wire) -> None:
    connection = patient.connect()
    connection.sendall(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"abc")
    assert [one[0] for one in answers(read_all(connection))] == [200]


def test_a_client_that_asks_whether_to_continue_and_then_sends_garbage_gets_one_answer() -> None:
    with Wire() as wire:
        connection = wire.connect()
        head = CHUNKED.replace(b" / ", b" /late ").replace(b"Host: a", b"Host: a\r\nExpect: 100-continue")
        connection.sendall(head + b"zz\r\n")
        assert_error(answers(read_all(connection)), 400)
        wire.app.go_on.set()
        until(lambda: wire.app.ends == ["gone"])


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"-1\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"\r\nabc\r\n0\r\n\r\n",
        b"F" * 21 + b"\r\nabc",
        b"3\r\nabcd\r\n0\r\n\r\n",  # one byte more than it says
        b"3\r\nabc0\r\n\r\n",
        b"3;" + b"x" * 5000,  # a line without an end
        b"0\r\nbad trailer\r\n\r\n",
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_bad_chunking_is_answered_400_and_the_app_sees_its_client_gone(body: bytes, in_pieces: bool) -> None:
    with Wire() as wire:
        connection = wire.connect()
        connection.sendall(CHUNKED)
        if in_pieces:
            until(lambda: wire.server.server_state.tasks)
        connection.sendall(body)
        assert assert_error(answers(read_all(connection)), 400)["code"] == "invalid_http"
        until(lambda: wire.app.ends == ["gone"], seconds=http.LINGER / 2)  # though the connection is still open


@pytest.mark.parametrize("path", [b"/hasty", b"/begun"])
def test_a_bad_chunk_after_the_answer_has_begun_gets_no_second_one(path: bytes) -> None:
    with Wire() as wire:
        connection = wire.connect()
        connection.sendall(CHUNKED.replace(b" / ", b" " + path + b" "))
        found = connection.recv(1000)
        while b"no" not in found and b"begun" not in found:
            found += connection.recv(1000)
        connection.sendall(b"zz\r\n")
        assert (found + read_all(connection)).count(b"HTTP/1.1") == 1
        until(lambda: wire.app.ends == (["gone"] if path == b"/begun" else []))


def test_good_chunks_are_read(patient: Wire) -> None:
    head = CHUNKED.replace(b"Host: a", b"Host: a\r\nConnection: close")
    found = patient.ask(head, b"3;name=value\r\nabc\r\n", b"A\r\n0123456789\r\n", b"0\r\ntrailer: x\r\n\r\n")
    assert json.loads(found[0][2])["body"] == 13


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 3\r\nContent-Length: 4", 400),
        (b"Content-Length: 3, 4", 400),
        (b"Content-Length: +3", 400),
        (b"Content-Length: -3", 400),
        (b"Content-Length: 0x3", 400),
        (b"Content-Length: 3 3", 400),
        (b"Content-Length:", 400),
        (b"Content-Length: 999999999999999999999", 400),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", 400),
        (b"Transfer-Encoding: identity", 501),
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"Transfer-Encoding: chunked, chunked", 501),
        (b"Transfer-Encoding: xchunked", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        (b"Transfer-Encoding: \x0bchunked", 400),
    ],
)
def test_an_ambiguous_length_is_refused(patient: Wire, fields: bytes, status: int) -> None:
    found = patient.ask(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + LAST)
    assert_error(found, status)  # and nothing of what follows is taken for a second request


def test_transfer_encoding_in_http_1_0_is_refused(patient: Wire) -> None:
    assert_error(patient.ask(CHUNKED.replace(b"/1.1", b"/1.0") + b"0\r\n\r\n"), 400)


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_client_that_still_sends_reads_its_answer(patient: Wire, when: str) -> None:
    """The answer is there before the body; a reset of the connection would destroy it."""
    connection = patient.connect()
    connection.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
    if when == "late":
        time.sleep(0.05)
    for _ in range(80):
        connection.sendall(bytes(100_000))
    ((status, fields, body),) = answers(read_all(connection))
    assert (status, fields["connection"], body) == (200, "close", b"no")


def test_a_client_that_sends_without_end_is_cut_off(patient: Wire) -> None:
    connection = patient.connect()
    connection.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    begun = time.monotonic()
    with contextlib.suppress(OSError):  # reset, or broken pipe
        while time.monotonic() < begun + PATIENCE:
            connection.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
            time.sleep(0.01)
    assert time.monotonic() - begun < http.LINGER + 1.5


# ---------------------------------------------------------------- several requests


def test_pipelined_requests_are_answered_in_order(patient: Wire) -> None:
    heads = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(50))
    found = patient.ask(heads + LAST)
    assert [one[0] for one in found] == [200] * 51
    assert [json.loads(one[2])["path"] for one in found] == [*(f"/{i}" for i in range(50)), "/"]


def test_pipelined_bodies_are_kept_apart(patient: Wire) -> None:
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    found = patient.ask(post % 5 + b"GET /", CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", post % 0, LAST)
    assert [json.loads(one[2])["body"] for one in found] == [5, 3, 0, 0]


def test_garbage_after_a_request_does_not_spoil_its_answer(patient: Wire) -> None:
    found = patient.ask(GET + b"\x16\x03\x01 what is this")
    assert found[0][0] == 200
    assert_error(found[1:], 400)


def test_what_follows_a_last_request_is_not_answered(patient: Wire) -> None:
    assert [one[0] for one in patient.ask(LAST + GET)] == [200]


def test_an_answer_s_second_packet_does_not_wait_for_the_first_s_receipt(patient: Wire) -> None:
    """Nagle's algorithm against delayed receipts: 40 ms a request, unless it is off."""
    connection = patient.connect()
    seconds = []
    for _ in range(10):
        begun = time.monotonic()
        connection.sendall(GET)
        found = connection.recv(65536)
        while not found.endswith(b"}"):
            found += connection.recv(65536)
        seconds.append(time.monotonic() - begun)
    assert sorted(seconds)[2] < 0.03


# ---------------------------------------------------------------- many connections


def test_connections_past_the_cap_are_told_so_and_may_come_later() -> None:
    with Wire(max_connections=3) as wire:
        held = [wire.connect() for _ in range(3)]
        until(lambda: len(wire.server.server_state.connections) == 3)
        found = wire.ask(GET)
        assert assert_error(found, 503)["code"] == "too_many_connections"
        assert found[0][1]["retry-after"] == "1"
        held.pop().close()
        until(lambda: len(wire.server.server_state.connections) == 2)
        assert [one[0] for one in wire.ask(LAST)] == [200]


def test_those_who_were_refused_do_not_count_against_the_cap() -> None:
    with Wire(max_connections=1) as wire:
        held = wire.connect()
        until(lambda: len(wire.server.server_state.connections) == 1)
        for _ in range(5):
            assert wire.connect().recv(20).startswith(b"HTTP/1.1 503")  # and it stays open on our side
        held.close()
        until(lambda: not wire.server.server_state.connections, seconds=http.LINGER / 2)
        assert [one[0] for one in wire.ask(LAST)] == [200]


def test_those_who_were_refused_and_left_make_room_for_others_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_REFUSED", 1)
    with Wire(max_connections=1) as wire:
        wire.connect()
        until(lambda: len(wire.server.server_state.connections) == 1)
        for _ in range(3):
            with wire.connect() as connection:
                assert_error(answers(read_all(connection)), 503)
            until(lambda: not wire.refused)


def test_a_flood_past_the_cap_is_cut_off_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_REFUSED", 2)
    with Wire(max_connections=1) as wire:
        wire.connect()
        until(lambda: len(wire.server.server_state.connections) == 1)
        first = [wire.connect() for _ in range(2)]
        assert all(one.recv(20).startswith(b"HTTP/1.1 503") for one in first)
        with contextlib.suppress(ConnectionResetError):
            assert wire.connect().recv(20) == b""


@pytest.mark.skipif(sys.platform == "win32", reason="needs thousands of open files")
def test_a_thousand_idle_connections_keep_nobody_out() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip("not enough open files allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    with Wire(max_connections=1024, head_timeout=1.0) as wire:
        idle = [wire.connect() for _ in range(1000)]
        begun = time.monotonic()
        assert [one[0] for one in wire.ask(LAST)] == [200]
        assert time.monotonic() - begun < 1.0
        assert all(one.recv(1) == b"" for one in idle)  # at their deadline
        until(lambda: not wire.server.server_state.connections)


# ---------------------------------------------------------------- behind the guard


@pytest.fixture(scope="module")
def guarded() -> Iterator[Wire]:
    with Wire(guarded=True, body_limit=100_000) as wire:
        yield wire


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost", 200),
        (b"GET / HTTP/1.1\r\nhOsT:LOCALHOST.:8000", 200),
        (b"GET / HTTP/1.0\r\nHost: [::1]:8000", 200),
        (b"GET / HTTP/1.1\r\nHost:", 403),
        (b"GET / HTTP/1.0", 403),
        (b"GET / HTTP/1.0\r\nHost: localhost\r\nHost: evil.com", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.com", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost:99999", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost", 200),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost", 400),
        (b"GET http://evil.com/ HTTP/1.1\r\nHost: localhost", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost", 400),
        (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost:22", 400),
    ],
)
def test_heads_reach_the_guard_as_they_were_sent(guarded: Wire, line: bytes, status: int) -> None:
    ((found, fields, body),) = guarded.ask(line + b"\r\nConnection: close\r\n\r\n")
    assert found == status
    assert "x-request-id" in fields
    assert status == 200 or set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_too_much_reads_413(guarded: Wire, chunked: bool) -> None:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 5000000"
    piece = b"C350\r\n" + bytes(50_000) + b"\r\n" if chunked else bytes(50_000)
    found = guarded.ask(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n", *[piece] * 100)
    assert assert_error(found, 413)["code"] == "body_too_large"


# ---------------------------------------------------------------- privacy, shutdown


@pytest.mark.parametrize(
    "head",
    [
        f"GET /{CANARY} nonsense\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: a\r\nAuthorization {CANARY}\r\n\r\n",
        f"{CANARY}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {CANARY}\r\n\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}\r\n",
        f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {CANARY}\r\n\r\n",
        f"GET /{CANARY * 500} HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_nothing_of_a_bad_request_is_quoted(patient: Wire, head: str, caplog: pytest.LogCaptureFixture) -> None:
    found = patient.ask(head.encode())
    assert found[0][0] >= 400
    assert CANARY not in str(found)
    assert CANARY not in caplog.text
    assert found[0][1]["x-request-id"] in caplog.text


def test_a_good_request_s_path_and_query_are_in_no_log(patient: Wire, caplog: pytest.LogCaptureFixture) -> None:
    path = f"/{CANARY}?key={CANARY}".encode()
    assert [one[0] for one in patient.ask(LAST.replace(b" / ", b" " + path + b" "))] == [200]
    assert CANARY not in caplog.text


def test_a_shutdown_closes_what_is_idle_and_lets_the_others_end() -> None:
    with Wire() as wire:
        idle, half, busy = wire.connect(), wire.connect(), wire.connect()
        half.sendall(GET[:10])
        busy.sendall(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: len(wire.server.server_state.connections) == 3 and wire.server.server_state.tasks)
        wire.server.should_exit = True
        assert read_all(idle) == read_all(half) == b""
        wire.app.go_on.set()
        assert [one[0] for one in answers(read_all(busy))] == [200]
