"""Engine and event loop: models that load beside it, requests whose events wake it, work that is not done on it.

    engines = Engines(models)
    async with engines.use("mine") as served:
        with engines.running() as running:                       # cancels what has not ended
            running.submit(served.engine, requests, True)
            while news := await running.more():
                ...

Everything but `Running.submit` lives on the event loop, which none of it blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model import files
from gpt2kit.serve import log
from gpt2kit.serve.errors import ApiError
from gpt2kit.text.chat import ChatTemplate

if TYPE_CHECKING:
    from starlette.types import Receive

    from gpt2kit.engine import Engine, Handle, Models, Request
    from gpt2kit.model.completion import Event

T = TypeVar("T")
News = tuple[int, int, "Event"]  # number of the request, of its completion, what came

TEXT_THREADS = 2  # tokenising and writing JSON: one long text does not hold up the short ones
CHEAP = 4096  # characters that the event loop handles itself: a millisecond; going to a thread and back costs 0.2
LOAD_RETRY = 5.0  # seconds


# ---------------------------------------------------------------------------------- from the engine's threads


class Wakeups:
    """Calls from the engine's threads onto the event loop: it is woken once for all that has come since."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: deque[Callable[[], None]] = deque()
        self._called = False

    def post(self, call: Callable[[], None]) -> None:
        """From any thread: `call` is made on the event loop, unless that has ended."""
        self._due.append(call)
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # before reading: what is posted from here on calls again
        for _ in range(len(self._due)):
            self._due.popleft()()


class Running:
    """The engine requests of one HTTP request. Leaving it cancels those that have not ended, before the next step."""

    def __init__(self, wakeups: Wakeups) -> None:
        self.handles: list[Handle] = []
        self._wakeups = wakeups
        self._news: dict[int, None] = {}  # requests that something came of, in order
        self._over: set[int] = set()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def submit(self, engine: Engine, requests: Iterable[Request], events: bool) -> None:
        """In any thread, once. `events` False: only the results are wanted. UserError for a wrong request."""
        for number, request in enumerate(requests):
            notify = partial(self._wakeups.post, partial(self._hear, number))
            self.handles.append(engine.submit(request, notify=notify, events=events))
            if self._closed:  # the client went while we submitted
                return self._cancel()
        return None

    @property
    def is_over(self) -> bool:
        return len(self._over) == len(self.handles)

    async def finish(self) -> None:
        """Until all have ended. Raises the error of one that failed."""
        while not self.is_over:
            for number in await self._listen():
                self._check_end(number)

    async def more(self) -> list[News]:
        """What has come since the last call; nothing once all have ended. Raises the error of one that failed."""
        found: list[News] = []
        while not found and not self.is_over:
            for number in await self._listen():
                handle = self.handles[number]
                ended = handle.done  # asked before the events are read: then these are all
                found += [(number, index, event) for index, event in handle.ready()]
                if ended:
                    self._check_end(number)
        return found

    def _check_end(self, number: int) -> None:
        handle = self.handles[number]
        if handle.done:
            self._over.add(number)
            if isinstance(handle.error, UserError):  # while it ran: not the request's fault
                raise ApiError(500, f"the engine could not finish: {handle.error.message}") from handle.error
            if handle.error is not None:
                raise handle.error

    def _hear(self, number: int) -> None:
        self._news[number] = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _listen(self) -> Iterable[int]:
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        news, self._news = self._news, {}
        return news

    def _cancel(self) -> None:
        for handle in self.handles:
            handle.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._cancel()


class Presence:
    """Inside it, the task is cancelled when the client goes away; outside, that cancellation is over."""

    def __init__(self, receive: Receive) -> None:
        """`receive`: after the whole body has been read."""
        self.gone = False
        self._receive = receive

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.create_task(self._wait())
        return self

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watch.cancel()
        if not self.gone:
            return False
        others = self._task.uncancel()  # who else wants the task to end
        return kind is asyncio.CancelledError and not others


# ---------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Facts:
    """What is known of a model folder without its weights."""

    name: str
    folder: Path
    identity: str  # 64 hexadecimal digits over config, weights and tokenizer
    created: int  # seconds since 1970
    template: ChatTemplate | None
    described: dict[str, Any]  # as files.describe has it

    @property
    def fingerprint(self) -> str:
        return self.identity[:12]


def read_facts(name: str, folder: str | Path) -> Facts:
    """UserError for what is wrong with the folder."""
    path, _ = files.resolve(folder)
    described = files.describe(path, verify=False)
    created = int((path / files.CONFIG).stat().st_mtime)
    return Facts(name, path, files.identity(path), created, ChatTemplate.load(path), described)


def adapter_facts(name: str, folder: str | Path, below: Facts) -> Facts:
    """Of an adapter: its base's but for lineage, hash and template. UserError for what is wrong with its folder."""
    from gpt2kit.peft.saved import CONFIG, TENSORS, class_names, describe
    from gpt2kit.tasks import task_of
    from gpt2kit.tasks.chat import Chat

    said = describe(folder)
    task = task_of(said.lineage) if "task" in said.lineage else None
    hashes = [below.identity, *(commit.sha256_file(commit.inside(said.folder, file)) for file in (CONFIG, TENSORS))]
    identity = hashlib.sha256("".join(hashes).encode()).hexdigest()
    created = int((said.folder / CONFIG).stat().st_mtime)
    template = ChatTemplate(task.template) if isinstance(task, Chat) else below.template
    lineage = said.lineage
    if task is None and said.task == "SEQ_CLS" and (labels := class_names(said)):
        lineage = {**lineage, "task": files.classifier(labels, said.multi_label)}
    described = {**below.described, "lineage": lineage, "scores": lineage.get("scores")}
    return Facts(name, said.folder, identity, created, template, described)


def lay(engine: Engine, name: str, folder: str | Path, base: str | Path) -> None:
    """An adapter folder over a loaded engine, whose folder is `base`. UserError for what is wrong with it."""
    from gpt2kit.peft.factors import low_rank_factors, score_head  # loads torch

    engine.add_adapter(name, low_rank_factors(folder, engine.config, base), score_head(folder))


@dataclass
class Served:
    """A loaded model. It stays loaded while it has users, and until its memory is wanted for another one."""

    facts: Facts
    engine: Engine
    lease: ExitStack
    users: int = 0
    used: float = 0.0
    adapter: str | None = None  # through which a request uses it


class Engines:
    """Models as the event loop needs them, which must not wait for a lock that is held while a model loads.

    One thread alone asks Models. Where memory is limited, a model that is wanted makes the idle ones give way.
    `adapters`: by name the model below and the folder. Each is a name of its own, and comes and goes with its base.
    """

    def __init__(self, models: Models, adapters: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.adapters = dict(adapters or {})
        self.names = (*models.folders, *self.adapters)
        self.loaded: dict[str, Served] = {}
        self.is_ready = False
        self._models = models
        self._facts: dict[str, Facts] = {}
        self._loading: dict[str, asyncio.Future[Served]] = {}
        self._loader = ThreadPoolExecutor(1, "gpt2kit-models")
        self._texts = ThreadPoolExecutor(TEXT_THREADS, "gpt2kit-text")
        self._wakeups: Wakeups | None = None

    def check(self, name: str) -> None:
        """ApiError 404 where no model has this name."""
        if name not in self.names:
            raise ApiError(404, f"there is no such model here; known: {', '.join(self.names)}", None, "model",
                           "model_not_found")  # fmt: skip

    def base_of(self, name: str) -> str:
        """The name of the model below an adapter; any other name is its own. ApiError 404."""
        self.check(name)
        return self.adapters[name][0] if name in self.adapters else name

    async def preload(self, names: Sequence[str]) -> None:
        """Load these; ready from then on. ApiError 503 where one cannot be loaded."""
        for name in names:
            await self._load(name)
        self.is_ready = True

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """The model, loaded if it is not; it stays so inside. ApiError 404, or 503 where it cannot be loaded."""
        base = self.base_of(name)
        served = self.loaded.get(base) or await self._load(base)
        served.users += 1
        try:
            yield served if name == base else replace(served, facts=await self.facts(name), adapter=name)
        finally:
            served.users -= 1
            served.used = time.monotonic()

    def running(self) -> Running:
        if self._wakeups is None:
            self._wakeups = Wakeups(asyncio.get_running_loop())
        return Running(self._wakeups)

    async def do(self, cost: int, work: Callable[..., T], *arguments: object) -> T:
        """The result of work on texts, in a thread unless it is short. `cost`: characters, or what takes as long."""
        if cost <= CHEAP:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._texts, work, *arguments)

    async def facts(self, name: str) -> Facts:
        """Of any model, loaded or not. ApiError 404, or 503 where its folder cannot be read."""
        self.check(name)
        if name in self.adapters and name not in self._facts:
            below, folder = await self.facts(self.adapters[name][0]), self.adapters[name][1]
            with _explained(name):
                self._facts[name] = await self.do(CHEAP + 1, adapter_facts, name, folder, below)
        if name not in self._facts:
            with _explained(name):
                self._facts[name] = await self.do(CHEAP + 1, read_facts, name, self._models.folders[name])
        return self._facts[name]

    async def _load(self, name: str) -> Served:
        while name not in self.loaded:  # while: it may have given way before we got to run
            if name not in self._loading:
                self._loading[name] = self._begin(name)
            with _explained(name):
                await asyncio.shield(self._loading[name])
        return self.loaded[name]

    def _begin(self, name: str) -> asyncio.Future[Served]:
        idle = [served for served in self.loaded.values() if not served.users and self._models.memory is not None]
        for served in idle:
            del self.loaded[served.facts.name]
        idle.sort(key=lambda served: served.used)
        found = asyncio.get_running_loop().run_in_executor(self._loader, self._open, name, idle)
        found.add_done_callback(partial(self._opened, name))
        return found

    def _opened(self, name: str, found: asyncio.Future[Served]) -> None:
        del self._loading[name]
        if not found.cancelled() and found.exception() is None:
            served = self.loaded[name] = found.result()
            self._facts[name] = served.facts
            for adapter, (base, _) in self.adapters.items():
                if base == name:
                    self._facts.pop(adapter, None)  # it has been read anew, too

    def _open(self, name: str, idle: Sequence[Served]) -> Served:
        """In the loader's thread."""
        for served in idle:  # used anew in the order of their last use, by which Models chooses who goes
            with self._models.use(served.facts.name):
                served.lease.close()
        with ExitStack() as stack:
            engine = stack.enter_context(self._models.use(name))
            for adapter, (base, folder) in self.adapters.items():
                if base == name and adapter not in engine.adapters:
                    lay(engine, adapter, folder, self._models.folders[name])
            return Served(read_facts(name, self._models.folders[name]), engine, stack.pop_all(), used=time.monotonic())

    def close(self) -> None:
        """End the threads. The models are closed by Models."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._texts.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """The owner of the server can put this right, not its clients: they get no path, the log has it."""
    try:
        yield
    except UserError as error:
        log.write(logging.ERROR, message="a model cannot be loaded", model=name, reason=error.message)
        raise ApiError(
            503, f"model {name} cannot be loaded now", "server_error", "model", "model_not_loaded", LOAD_RETRY
        ) from error
