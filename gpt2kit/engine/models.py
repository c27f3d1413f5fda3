"""Several engines in a bounded amount of memory: the one used least recently goes when another is wanted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from gpt2kit.engine.engine import Engine
from gpt2kit.errors import UserError, unknown


class Models:
    """Named model folders, loaded when first used. Thread-safe.

    memory: bytes that all loaded engines may take together (weights and cache); None: no limit. What an engine takes
    is known once it is loaded, so while one is loaded there may be more, by that one. An engine in use stays.
    """

    def __init__(
        self,
        folders: Mapping[str, str | Path],
        memory: int | None = None,
        load: Callable[..., Engine] = Engine.load,
        **options: Any,
    ) -> None:
        """`options` are those of Engine.load, the same for all."""
        self.folders, self.memory, self.options = dict(folders), memory, options
        self._load = load
        self._engines: OrderedDict[str, Engine] = OrderedDict()  # the one used least recently first
        self._users: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def loaded(self) -> list[str]:
        with self._lock:
            return list(self._engines)

    @contextmanager
    def use(self, name: str) -> Iterator[Engine]:
        """The engine of this name; it is not unloaded inside."""
        with self._lock:
            engine = self._get(name)
            self._users[name] = self._users.get(name, 0) + 1
        try:
            yield engine
        finally:
            with self._lock:
                self._users[name] -= 1

    def preload(self, name: str) -> None:
        """Load it now rather than at its first use."""
        with self._lock:
            self._get(name)

    def unload(self, name: str) -> None:
        """Give its memory back. UserError while it is in use; no effect where it is not loaded."""
        with self._lock:
            self._check(name)
            if self._in_use(name):
                raise UserError(f"model {name!r} is in use", hint="wait for its requests to end, or cancel them")
            if name in self._engines:
                self._engines.pop(name).close()

    def close(self) -> None:
        """Unload all; requests that still run fail with UserError."""
        with self._lock:
            while self._engines:
                self._engines.popitem()[1].close()

    def __enter__(self) -> Models:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, name: str) -> None:
        if name not in self.folders:
            raise unknown("model", name, self.folders)

    def _in_use(self, name: str) -> bool:
        engine = self._engines.get(name)
        return engine is not None and (self._users.get(name, 0) > 0 or engine.busy)

    def _get(self, name: str) -> Engine:
        self._check(name)
        if name not in self._engines:
            engine = self._load(self.folders[name], **self.options)
            try:
                self._make_room(name, engine.memory)
            except BaseException:
                engine.close()
                raise
            self._engines[name] = engine
        self._engines.move_to_end(name)
        return self._engines[name]

    def _make_room(self, name: str, need: int) -> None:
        if self.memory is None:
            return
        if need > self.memory:
            raise UserError(
                f"model {name!r} takes {need / 2**20:,.0f} MB, the limit for all is {self.memory / 2**20:,.0f} MB",
                hint="raise the limit, or lower max_batch or cache_memory",
            )
        for other in list(self._engines):
            if sum(engine.memory for engine in self._engines.values()) + need <= self.memory:
                return
            if not self._in_use(other):
                self._engines.pop(other).close()
        if sum(engine.memory for engine in self._engines.values()) + need > self.memory:
            busy = ", ".join(self._engines)
            raise UserError(f"no memory for model {name!r} beside {busy}, in use", hint="try again when they are idle")
