"""How far long work is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich import progress as bars
from rich.console import Console

from gpt2kit.wording import count

LINE_SECONDS = 10.0  # between lines where there is no terminal
READ_SECONDS = 0.1  # between looks at the clock's answer while a corpus is read: it may be millions of documents


class Progress:
    """One piece of work at a time, by name; a context manager, so that the bar is closed whatever happens."""

    def __init__(self, console: Console | None = None, transient: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False) if console is None else console
        self._bar = bars.Progress(
            bars.TextColumn("[bold]{task.description}"), bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.fields[status]}", markup=False), console=self.console,
            disable=not self.console.is_terminal, transient=transient,
        )  # fmt: skip
        self._tasks: dict[str, bars.TaskID] = {}
        self._read = 0.0
        self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._bar.stop()

    def show(self, name: str, done: int, total: int | None, status: str) -> None:
        """Say where the work `name` is; the bar of other work goes away."""
        if name not in self._tasks:
            for other in self._tasks.values():
                self._bar.update(other, visible=False)
            self._tasks[name] = self._bar.add_task(name, status="")
        self._bar.update(self._tasks[name], completed=done, total=total, status=status)
        if not self.console.is_terminal and time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(f"{name} {status}", soft_wrap=True)

    def reading(self, name: str, read: int, total: int | None, tokens: int | None = None) -> None:
        """The same for work that reads a corpus: bytes from the disk so far, and of all of it where that is known."""
        now = time.monotonic()
        if now - self._read < READ_SECONDS:
            return
        self._read = now
        of = "" if total is None else f" of {total / 1e6:,.1f}"
        found = "" if tokens is None else f", {count(tokens)} tokens"
        self.show(name, read, total, f"{read / 1e6:,.1f}{of} MB{found}")
