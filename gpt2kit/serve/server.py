"""From settings to a server that listens, loads its models, answers, and leaves when it is told to.

SIGTERM or SIGINT: new requests get 503, running ones finish within shutdown_timeout, then the exit code is 0. A second
signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn

from gpt2kit.errors import UserError
from gpt2kit.serve import log
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.http import MOST_REFUSED, make_protocol
from gpt2kit.serve.keys import Keys
from gpt2kit.serve.settings import is_loopback

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from gpt2kit.engine.engine import Progress
    from gpt2kit.serve.admission import Admission
    from gpt2kit.serve.running import Engines
    from gpt2kit.serve.settings import ServeSettings

BACKLOG = 2048  # connections that wait to be accepted
FLUSH = 5  # seconds in which the last answers must be taken, after their requests have ended
SPARE_FILES = 256  # open files beyond those of connections: models, logs, libraries
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


class App(Protocol):
    """What create_app makes, as far as the server knows it."""

    admission: Admission
    engines: Engines

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def serve(
    settings: ServeSettings,
    on_ready: Callable[[str], None] = lambda address: None,
    on_progress: Progress | None = None,
) -> int:
    """Serve until a signal ends it, and return the exit code, 0. Call it in the main thread.

    `on_ready` is called with the address once the models of settings.first_loaded are there; until then /health says
    503. `on_progress` hears from another thread what takes seconds the first time, as Engine.load does. UserError for
    an address that cannot be listened on, one that others can reach without a key, a key file or a model that is wrong.
    """
    if not settings.models:
        raise UserError("no model is given", hint="for example: gpt2kit serve runs/mine")
    with _Signals() as signals:
        keys = None if settings.api_key_file is None else Keys.load(settings.api_key_file)
        with listen(settings) as listener:
            return _serve(settings, keys, listener, signals, on_ready, on_progress)


def _serve(
    settings: ServeSettings,
    keys: Keys | None,
    listener: socket.socket,
    signals: _Signals,
    on_ready: Callable[[str], None],
    on_progress: Progress | None,
) -> int:
    from gpt2kit.engine import Models
    from gpt2kit.serve.app import create_app

    log.configure(settings.log_level)
    _allow_open_files(settings.max_connections + MOST_REFUSED + SPARE_FILES)
    models = Models(
        settings.folders, settings.model_memory, precision=settings.precision, threads=settings.threads,
        max_batch=settings.max_batch, cache_memory=settings.cache_memory, on_progress=on_progress,
    )  # fmt: skip
    app = create_app(models, settings, keys)

    def ready() -> None:
        # What is loaded stays: some 180,000 objects, which a full collection would walk through while every thread
        # waits, 130 ms in which no token is written. What has no more users still goes at once, engines too.
        gc.collect()
        gc.freeze()
        on_ready(address_of(listener))

    server = Server(app, settings, ready)
    signals.stop = server.stop
    try:
        server.run(sockets=[listener])
    finally:
        gc.unfreeze()
    if server.failure is None and not server.is_loaded:  # a thread that loads or compiles would be waited for
        _end_now()
    app.engines.close()
    models.close()
    if server.failure is not None:
        raise server.failure
    return 0


def uvicorn_config(app: Any, settings: ServeSettings) -> uvicorn.Config:
    """uvicorn as we use it: our protocol and limits, no log of its own, no headers of proxies believed."""
    keep_alive: Any = settings.keep_alive  # uvicorn says int, asyncio takes fractions
    return uvicorn.Config(
        app, http=make_protocol(settings), ws="none", loop="asyncio", lifespan="on", interface="asgi3", workers=1,
        log_config=None, access_log=False, proxy_headers=False, server_header=False, backlog=BACKLOG,
        timeout_keep_alive=keep_alive, timeout_graceful_shutdown=FLUSH,
    )  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn's, which loads the models beside answering, and drains before it closes."""

    def __init__(self, app: App, settings: ServeSettings, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(uvicorn_config(app, settings))
        self.is_loaded = False
        self.failure: BaseException | None = None  # why the models could not be loaded
        self._app, self._settings, self._on_ready = app, settings, on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not by uvicorn, which raises them again once it has ended."""
        yield

    def stop(self) -> None:
        """Drain, then end. From any thread or signal handler."""
        if self._loop is None:
            self.should_exit = True
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(lambda: self._start(self._drain()))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._start(self._load())

    def _start(self, work: Any) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _load(self) -> None:
        try:
            await self._app.engines.preload(self._settings.first_loaded)
        except Exception as error:
            self.failure = error.__cause__ if isinstance(error, ApiError) and error.__cause__ is not None else error
            self.should_exit = True
            return
        self.is_loaded = True
        for name, served in self._app.engines.loaded.items():
            for note in served.engine.notes:
                log.write(logging.INFO, model=name, message=note)
        if not self._app.admission.draining:
            self._on_ready()

    async def _drain(self) -> None:
        admission, seconds = self._app.admission, self._settings.shutdown_timeout
        admission.drain()
        log.write(logging.INFO, message="shutting down; a second signal ends at once", running=admission.running)
        try:
            await asyncio.wait_for(admission.idle(), seconds)
        except TimeoutError:
            log.write(logging.WARNING, message=f"not finished within {seconds:g} s", running=admission.running)
            self.config.timeout_graceful_shutdown = 0
        self.should_exit = True


# ---------------------------------------------------------------- signals


class _Signals:
    """The first signal stops the server, or ends what comes before it; the second ends the process."""

    def __init__(self) -> None:
        self.stop: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}
        self._count = 0

    def _note(self, number: int, frame: object) -> None:
        self._count += 1
        if self._count > 1:
            _end_now()
        if self.stop is None:
            raise SystemExit(0)
        self.stop()

    def __enter__(self) -> _Signals:
        with contextlib.suppress(ValueError):  # not the main thread: nothing to hear there
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end_now() -> None:
    """Without waiting for any thread; there is nothing to save."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(0)


# ---------------------------------------------------------------- the socket


def listen(settings: ServeSettings) -> socket.socket:
    """A listening socket. UserError where there can be none, or where others could reach it without a key."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(f"the host {host!r} is not known: {error.strerror or error}") from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # localhost has both kinds
    if settings.api_key_file is None and not settings.insecure and not is_loopback(str(address[0])):
        raise UserError(
            f"other machines can reach {host}, and no key is asked for",
            hint="add --api-key-file keys.json (to make one: gpt2kit key NAME --file keys.json), or --insecure",
        )
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} on {host} is in use", hint="take another with --port, or --port 0") from None
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from None


def address_of(listener: socket.socket) -> str:
    """Where clients find it: `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _allow_open_files(wanted: int) -> None:
    """Each connection is an open file, and macOS allows 256, Linux often 1,024 of them unless asked."""
    if sys.platform == "win32":  # no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != resource.RLIM_INFINITY and soft < wanted:
        log.write(logging.WARNING, message=f"the system allows {soft} open files, max_connections needs {wanted}")
