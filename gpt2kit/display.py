"""How a training run looks: the plan, the progress bar, losses, samples, and what to type next."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpt2kit.progress import Progress
from gpt2kit.recipes import events
from gpt2kit.training import loop
from gpt2kit.wording import command, count, duration, plural

TOLD_CHANGE = 0.15  # of the number of steps, before a change is worth a line


class TrainingDisplay:
    """Shows the events of a run as they come; a context manager, so that the bar is closed whatever happens."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.progress = Progress(self.console)
        self.stepped: loop.Stepped | None = None
        self.validation: float | None = None
        self.total = 0  # steps, as last told

    def __enter__(self) -> TrainingDisplay:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, event: events.Event) -> None:
        match event:
            case events.Note(text):
                self.console.print(Text(text), soft_wrap=True)
            case events.Reading(work, read, total, tokens):
                self.progress.reading(work, read, total, tokens)
            case events.Planned():
                self._plan(event)
            case loop.Stepped():
                self.stepped = event
                self._step()
            case loop.Evaluated(step, loss, best, accuracy):
                self.validation = loss
                star = ", the best so far" if best else ""
                right = "" if accuracy is None else f", accuracy [bold]{accuracy:.4f}[/bold]"
                self.console.print(f"step {step}: validation loss [bold]{loss:.4f}[/bold]{right}{star}")
                self._step()
            case events.Sampled(step, text):
                self.console.print(Panel(Text(text.strip() or "(nothing)"), title=f"sample at step {step}", width=100))
            case loop.Replanned(_, total):
                if abs(total - self.total) > TOLD_CHANGE * self.total:
                    self.total = total
                    self.console.print(f"this machine's speed has changed: {plural(total, 'step')} fit into the time")
            case events.Finished():
                self.progress.stop()
                self._finished(event)
            case loop.Saved() | loop.Stopped():
                pass

    def _plan(self, event: events.Planned) -> None:
        self.total = event.config.steps
        plan, model, config = event.plan, event.model, event.config
        table = Table(title="the plan", show_header=False, title_justify="left", box=None, padding=(0, 2))
        rows = (
            ("model", f"{plural(model.n_layer, 'layer')}, {plural(model.n_head, 'head')}, {model.n_embd} wide, "
                      f"context {config.context}, vocabulary {model.vocab_size:,}: "
                      f"{plural(plan.parameters, 'parameter')}"),
            ("training", f"{plural(config.steps, 'step')} of {config.batch} x {config.context} tokens = "
                         f"{count(plan.tokens)} tokens ({plan.epochs:.1f} epochs), {config.optimizer}, "
                         f"{config.schedule} schedule"),
            ("arithmetic", f"{event.precision.dtype}, {event.precision.reason}"),
            ("operations", f"{count(plan.operations)}FLOP"),
            ("memory", f"about {plan.memory / 1e9:.2f} GB at the peak"),
            ("time", f"about {duration(plan.seconds)}"),
            *(("why", reason) for reason in plan.reasons),
        )  # fmt: skip
        for name, value in rows:
            table.add_row(Text(name, style="bold"), Text(value))
        self.console.print(table)

    def _step(self) -> None:
        event = self.stepped
        if event is None:  # the first evaluation may come before the first step
            return
        validation = "" if self.validation is None else f"  val {self.validation:.3f}"
        status = (
            f"{event.step}/{event.total}  loss {event.loss:.3f}{validation}  "
            f"{event.tokens_per_second:,.0f} tokens/s  {duration(event.seconds_left)} left"
        )
        self.progress.show("training", event.step, event.total, status)

    def _finished(self, event: events.Finished) -> None:
        folder = event.folder
        if event.resume is not None:
            self.console.print(
                f"\nstopped at step {event.step}; nothing is lost. Go on with:\n  {event.resume}",
                markup=False, soft_wrap=True,
            )  # fmt: skip
            return
        scores = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in event.scores.items())
        early = " (stopped early: it no longer grew better)" if event.stopped == "early" else ""
        made = (("loss curve", folder / "loss.png"), ("samples", folder / "samples.txt"), ("model", folder))
        files = "".join(f"{name:<11} {path}\n" for name, path in made if path.exists())
        writing = (
            f'{command("generate", folder)} "Once"', command("info", folder), command("evaluate", folder, "other.txt")
        )  # fmt: skip
        commands = "".join(f"\n  {words}" for words in event.next or writing)
        self.console.print(
            f"\ntrained in {duration(event.seconds)}{scores}{early}\n{files}\nnext:{commands}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
