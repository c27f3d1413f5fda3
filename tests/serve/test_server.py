"""From settings to a process that listens and leaves: sockets, loading, signals, exit codes."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import gpt2kit
from gpt2kit.errors import UserError
from gpt2kit.serve import log
from gpt2kit.serve.server import FLUSH, address_of, listen, serve
from gpt2kit.serve.settings import ServeSettings

PATIENCE = 60.0  # seconds; a process imports for two of them when nothing else runs
CANARY = "canary-7f3a"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")

# A real server process around an app that needs no model. GET /work answers after WORK seconds, under admission.
SERVER = """
    import asyncio, gc, os, sys, time
    from concurrent.futures import ThreadPoolExecutor
    import gpt2kit.serve.app as app_module
    from gpt2kit.errors import UserError
    from gpt2kit.serve.admission import Admission
    from gpt2kit.serve.errors import ApiError
    from gpt2kit.serve.guard import Guard
    from gpt2kit.serve.server import serve
    from gpt2kit.serve.settings import read_settings

    class Engines:
        loaded = {}

        async def preload(self, names):  # beside the loop, as the real one
            seconds = float(os.environ.get("LOADING", "0"))
            await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), time.sleep, seconds)
            if "FAILS" in os.environ:
                raise ApiError(503, "not now") from UserError("runs/mine has no weights", hint="train it")

        def close(self):
            pass

    class App:
        def __init__(self, models, settings, keys):
            self.engines, self.admission = Engines(), Admission(settings)
            self.guard = Guard(self.inside, settings, keys)

        async def __call__(self, scope, receive, send):
            await self.guard(scope, receive, send)

        async def inside(self, scope, receive, send):
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})
                return
            if scope["path"] == "/bug":
                raise ValueError(os.environ["CANARY"])
            async with self.admission.enter(scope["state"]["key"], model="mine"):
                if scope["path"] == "/v1/status":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
                await asyncio.sleep(float(os.environ.get("WORK", "0")))
                if scope["path"] != "/v1/status":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"done"})

    app_module.create_app = App
    settings = read_settings({"models": ["runs/mine"], "port": int(os.environ.get("PORT", "0"))})
    print("up", flush=True)
    sys.exit(serve(settings, lambda address: print(len(gc.get_objects()), address, flush=True)))
"""


class Process:
    """A server process, its address once it is ready, and what it wrote."""

    def __init__(self, folder: Path, code: str, *arguments: str, **environment: str) -> None:
        root = str(Path(gpt2kit.__file__).parent.parent)
        path = os.pathsep.join(one for one in (root, os.environ.get("PYTHONPATH", "")) if one)
        words = ["-c", textwrap.dedent(code)] if code else ["-m", "gpt2kit"]
        self.log = folder / "log"
        with open(self.log, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *words, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "PYTHONPATH": path, "CANARY": CANARY, **environment},
            )  # fmt: skip
        self.address = ("", 0)
        self.connections: list[http.client.HTTPConnection] = []

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait_until_ready(self) -> None:
        line = self.line()
        while line == "up":
            line = self.line()
        found = re.search(r"http://(127\.0\.0\.1):(\d+)$", line)
        assert found, self.log.read_text()
        self.address = (found[1], int(found[2]))

    def ask(self, path: str = "/health") -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        self.connections.append(connection)
        connection.request("GET", path)
        return connection

    def status(self, path: str = "/health") -> int:
        answer = self.ask(path).getresponse()
        answer.read()
        return answer.status

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def logged(self, text: str) -> bool:
        return text in self.log.read_text(encoding="utf-8")

    def end(self) -> int:
        return self.process.wait(PATIENCE)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def run(*arguments: str, code: str = SERVER, **environment: str) -> Process:
        started.append(Process(tmp_path, code, *arguments, **environment))
        return started[-1]

    yield run
    for one in started:
        for connection in one.connections:
            connection.close()
        one.process.kill()
        one.process.communicate()


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


# ---------------------------------------------------------------- signals


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_running_requests_finish_and_others_not_in(start: Callable[..., Process], number: int) -> None:
    server = start(WORK="0.5")
    server.wait_until_ready()
    running = [server.ask("/v1/models"), server.ask("/v1/status")]
    until(lambda: running[1].sock.recv(9, socket.MSG_PEEK))  # it has begun
    server.process.send_signal(number)
    until(lambda: server.logged("shutting down"))
    late = server.ask("/v1/models").getresponse()
    assert late.status == 503
    assert json.loads(late.read())["error"]["code"] == "shutting_down"
    assert int(late.headers["retry-after"]) >= 1
    assert [one.getresponse().read() for one in running] == [b"done", b"begundone"]
    assert server.end() == 0
    assert not server.logged("Traceback")
    assert [line for line in server.lines() if line["level"] not in ("info", "debug")] == []


@POSIX
def test_a_second_signal_ends_at_once(start: Callable[..., Process]) -> None:
    server = start(WORK="60")
    server.wait_until_ready()
    running = server.ask("/v1/status")
    until(lambda: running.sock.recv(9, socket.MSG_PEEK))
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.logged("shutting down"))
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert time.monotonic() - begun < 5.0


@POSIX
def test_what_is_not_finished_in_time_is_told_so(start: Callable[..., Process]) -> None:
    server = start(WORK="60", GPT2KIT_SHUTDOWN_TIMEOUT="0.3")
    server.wait_until_ready()
    whole, begun = server.ask("/v1/models"), server.ask("/v1/status")
    until(lambda: begun.sock.recv(9, socket.MSG_PEEK))
    server.process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    answer = whole.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "shutting_down")
    with pytest.raises(http.client.IncompleteRead):  # the last chunk never came
        begun.getresponse().read()
    assert server.end() == 0
    assert time.monotonic() - sent < FLUSH  # which is for those who have finished
    assert server.logged("not finished within 0.3 s")


@POSIX
def test_an_idle_server_leaves_at_once_and_its_log_quotes_nobody(start: Callable[..., Process]) -> None:
    server = start()
    server.wait_until_ready()
    assert server.status(f"/v1/models?{CANARY}") == 200
    assert server.status("/bug") == 500
    kept = server.ask("/v1/models")
    kept.getresponse().read()
    silent = socket.create_connection(server.address)
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert time.monotonic() - begun < 5.0
    silent.close()
    (failed,) = [line for line in server.lines() if line["level"] == "error"]
    assert failed["error"][0] == "ValueError"
    assert not server.logged(CANARY)


@POSIX
def test_a_signal_while_the_models_load_does_not_wait_for_them(start: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(LOADING="60", PORT=str(port))
    server.address = ("127.0.0.1", port)
    until(lambda: _answers(server))
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert time.monotonic() - begun < 10.0


def _answers(server: Process) -> bool:
    try:
        return server.status() == 200
    except ConnectionRefusedError:
        return False


@POSIX
def test_a_signal_before_the_server_runs_ends_with_0(start: Callable[..., Process]) -> None:
    code = """
        import time
        from gpt2kit.serve.server import _Signals

        with _Signals():
            print("up", flush=True)
            time.sleep(60)
    """
    process = start(code=code)
    assert process.line() == "up"
    process.process.send_signal(signal.SIGTERM)
    assert process.end() == 0


@POSIX
@pytest.mark.slow
def test_twenty_signals_at_random_moments_all_end_with_0(start: Callable[..., Process]) -> None:
    import random

    for turn in range(20):
        chance = random.Random(turn)
        server = start(WORK="0.05")
        server.wait_until_ready()
        asked = [server.ask("/v1/models") for _ in range(8)]
        time.sleep(chance.random() * 0.1)
        server.process.send_signal(chance.choice([signal.SIGTERM, signal.SIGINT]))
        for one in asked:
            answer = one.getresponse()
            assert (answer.status, answer.read()) == (200, b"done") or answer.status == 503
        assert server.end() == 0, turn


# ---------------------------------------------------------------- loading, failing


def test_a_model_that_cannot_be_loaded_is_a_user_error(start: Callable[..., Process]) -> None:
    server = start(FAILS="1")
    assert server.line() == "up"
    assert server.end() == 1  # the script's: `gpt2kit serve` prints it and ends with 2
    assert server.log.read_text().splitlines()[-2:] == [
        "gpt2kit.errors.UserError: runs/mine has no weights", "train it",
    ]  # fmt: skip


# ---------------------------------------------------------------- sockets


def test_a_taken_port_is_a_user_error() -> None:
    with listen(ServeSettings(port=0)) as first:
        port = first.getsockname()[1]
        assert address_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
            listen(ServeSettings(port=port))


def test_a_port_can_be_taken_again_at_once() -> None:
    with listen(ServeSettings(port=0)) as first:
        port = first.getsockname()[1]
        client = socket.create_connection(first.getsockname())
        first.accept()[0].close()
        client.close()
    listen(ServeSettings(port=port)).close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_ours_is_a_user_error(host: str) -> None:
    with pytest.raises(UserError, match=re.escape(host)):
        listen(ServeSettings(host=host, port=0, insecure=True))


def test_localhost_and_ipv6_can_be_bound() -> None:
    with listen(ServeSettings(host="localhost", port=0)) as socket_:
        assert socket_.getsockname()[0] in ("127.0.0.1", "::1")
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with listen(ServeSettings(host="::1", port=0)) as socket_:
            assert address_of(socket_).startswith("http://[::1]:")
    except UserError:
        pytest.skip("no IPv6 here")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_nothing_listens_beyond_this_machine_without_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[Any] = []
    monkeypatch.setattr(socket, "create_server", lambda address, **options: bound.append(address))
    with pytest.raises(UserError, match="no key is asked for") as caught:
        listen(ServeSettings(host=host, port=0))
    assert "--insecure" in str(caught.value.hint)
    assert bound == []
    for more in ({"insecure": True}, {"api_key_file": "keys.json"}):
        listen(ServeSettings(host=host, port=0, **more))  # type: ignore[arg-type]
    assert len(bound) == 2


def test_a_name_that_leads_beyond_this_machine_needs_a_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    with pytest.raises(UserError, match="no key is asked for"):
        listen(ServeSettings(host="localhost", port=0))


def test_without_a_model_there_is_nothing_to_serve() -> None:
    with pytest.raises(UserError, match="no model is given"):
        serve(ServeSettings())


def test_a_wrong_key_file_is_found_before_anything_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_server", None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match="does not exist"):
        serve(ServeSettings(models=("runs/mine",), api_key_file=str(tmp_path / "none.json")))
    assert signal.getsignal(signal.SIGTERM) is before


# ---------------------------------------------------------------- the log


@contextmanager
def configured(level: str) -> Iterator[None]:
    """log.configure changes the root logger, which pytest uses, too."""
    loggers = [logging.getLogger(name) for name in (None, "gpt2kit.serve", "uvicorn.error")]
    before = [(one, one.level, list(one.handlers)) for one in loggers]
    try:
        log.configure(level)
        yield
    finally:
        for one, was, handlers in before:
            one.setLevel(was)
            one.handlers = handlers


def test_every_logger_writes_json_without_the_text_of_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("info"):
        log.write(logging.INFO, message="春", id="x")
        log.write(logging.DEBUG, message="unseen")
        logging.getLogger("gpt2kit.serve").error("model %s cannot be loaded", "a")
        logging.getLogger("another").info("unseen")
        try:
            raise KeyError(CANARY)
        except KeyError:
            logging.getLogger("asyncio").exception("Task failed\nfuture: <Task exception=KeyError('%s')>", CANARY)
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["message"], first["id"], first["level"]) == ("春", "x", "info")
    assert (second["message"], second["logger"]) == ("model a cannot be loaded", "gpt2kit.serve")
    assert (third["message"], third["error"][0]) == ("Task failed", "KeyError")
    assert CANARY not in str(third)


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("error"):
        log.write(logging.WARNING, message="unseen")
        logging.getLogger("another").warning("unseen")
        log.write(logging.ERROR, message="seen")
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- all of it


def test_a_full_collection_walks_only_through_what_came_after_loading(start: Callable[..., Process]) -> None:
    server = start()
    assert server.line() == "up"
    objects, _ = server.line().split()
    assert int(objects) < 1000


@POSIX
@pytest.mark.slow
def test_the_command_serves_a_real_model_and_leaves(start: Callable[..., Process], model_folder: Path) -> None:
    server = start("serve", str(model_folder), "--port", "0", "--precision", "fp32", "--threads", "1", code="")
    server.wait_until_ready()
    assert server.status() == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == 0
    assert not server.logged("Traceback")
