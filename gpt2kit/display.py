"""How long work looks on a terminal: the plan, the progress bar, samples. Plain lines where there is no terminal."""

from __future__ import annotations

import shlex
import time
from types import TracebackType

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gpt2kit.data.pack import PackProgress
from gpt2kit.recipes import events
from gpt2kit.training import loop

LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`"""
    if seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count(number: float) -> str:
    """`124439808` -> `124.4 M`"""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{number / scale:.1f} {unit}"
    return f"{number:,.0f}"


class TrainingDisplay:
    """Shows the events of a run as they come; a context manager, so that the bar is closed whatever happens."""

    def __init__(self) -> None:
        self.console = Console(stderr=False, highlight=False)
        self.bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("training", total=None, status="", visible=False)
        self.validation: float | None = None
        self.last_line = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def packing(self, progress: PackProgress) -> None:
        """Called while text is tokenised."""
        if time.monotonic() - self.last_line > LINE_SECONDS / 5:
            self.last_line = time.monotonic()
            share = f" of {progress.total / 1e6:,.0f}" if progress.total else ""
            self.console.print(f"read {progress.read / 1e6:,.0f}{share} MB: {count(progress.tokens)} tokens")

    def show(self, event: events.Event) -> None:
        match event:
            case events.Note(text):
                self.console.print(Text(text), soft_wrap=True)
            case events.Planned():
                self._plan(event)
            case loop.Stepped():
                self._step(event)
            case loop.Evaluated(step, loss, best):
                self.validation = loss
                star = ", the best so far" if best else ""
                self.console.print(f"step {step}: validation loss [bold]{loss:.4f}[/bold]{star}")
            case events.Sampled(step, text):
                self.console.print(Panel(Text(text.strip() or "(nothing)"), title=f"sample at step {step}", width=100))
            case loop.Replanned(_, total):
                self.bar.update(self.task, total=total)
                self.console.print(f"this machine's speed has changed: {total:,} steps fit into the time")
            case events.Finished():
                self.bar.stop()
                self._finished(event)
            case loop.Saved() | loop.Stopped():
                pass

    def _plan(self, event: events.Planned) -> None:
        plan, model, config = event.plan, event.model, event.config
        table = Table(title="the plan", show_header=False, title_justify="left", box=None, padding=(0, 2))
        rows = (
            ("model", f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, context {config.context}, "
                      f"vocabulary {model.vocab_size:,}: {plan.parameters:,} parameters"),
            ("training", f"{config.steps:,} steps of {config.batch} x {config.context} tokens = {count(plan.tokens)} "
                         f"tokens ({plan.epochs:.1f} epochs), {config.optimizer}, {config.schedule} schedule"),
            ("arithmetic", f"{event.precision.dtype}, {event.precision.reason}"),
            ("operations", f"{count(plan.operations)}FLOP"),
            ("memory", f"about {plan.memory / 1e9:.2f} GB at the peak"),
            ("time", f"about {duration(plan.seconds)}"),
            *(("why", reason) for reason in plan.reasons),
        )  # fmt: skip
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        self.console.print(table)

    def _step(self, event: loop.Stepped) -> None:
        validation = "" if self.validation is None else f"  val {self.validation:.3f}"
        status = (
            f"loss {event.loss:.3f}{validation}  {event.tokens_per_second:,.0f} tokens/s  "
            f"{duration(event.seconds_left)} left"
        )
        self.bar.update(self.task, completed=event.step, total=event.total, status=status, visible=True)
        if not self.console.is_terminal and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(f"step {event.step}/{event.total}  {status}")

    def _finished(self, event: events.Finished) -> None:
        folder = event.folder
        given = shlex.quote(str(folder))
        if event.resume is not None:
            self.console.print(
                f"\nstopped at step {event.step}; nothing is lost. Go on with:\n  gpt2kit train --resume {given}",
                markup=False, soft_wrap=True,
            )  # fmt: skip
            return
        loss = "" if event.loss is None else f", validation loss {event.loss:.4f}"
        early = " (stopped early: the validation loss no longer fell)" if event.stopped == "early" else ""
        made = (("loss curve", folder / "loss.png"), ("samples", folder / "samples.txt"))
        files = "".join(f"\n{name:<11} {path}" for name, path in made if path.exists())
        self.console.print(
            f"\ntrained in {duration(event.seconds)}{loss}{early}\n{'model':<11} {folder}{files}\n\n"
            f'next:\n  gpt2kit generate {given} "Once"\n  gpt2kit info {given}\n  gpt2kit evaluate {given} other.txt',
            markup=False, soft_wrap=True,
        )  # fmt: skip
