"""`gpt2kit train` and `gpt2kit demo`: follow a run's events, and stop it cleanly when asked to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2kit.recipes.options import TrainOptions
from gpt2kit.verbs import Verb

if TYPE_CHECKING:
    from gpt2kit.recipes.events import Event, Reading

Source = Callable[[Callable[[], bool], "Callable[[Reading], None]"], "Generator[Event, None, None]"]

TRAIN_HELP = """\
Train a GPT-2 on text, into a run folder: the model, its checkpoints, metrics, samples and a loss curve.

Give --minutes for the best model in that time, or --preset, or a shape flag by flag. What is not given is chosen,
and said in the plan before the start. Ctrl-C writes a checkpoint and prints the command that goes on from it.

Examples:
  gpt2kit train my.txt --out runs/mine --minutes 10
  gpt2kit train corpus/ --out runs/mini --preset mini --steps 2000
  gpt2kit train more.txt --out runs/tuned --from runs/mine --minutes 5
  gpt2kit train --resume runs/mine
"""


@dataclass
class DemoOptions:
    """Train a small GPT-2 from scratch on Python's own documentation, then write with it.

    Example:
      gpt2kit demo
    """

    out: str = "runs/demo"  # the run folder; an earlier demo there is replaced
    seconds: float = 90.0  # of training
    seed: int = 0


def run_train(options: TrainOptions) -> int:
    from gpt2kit.recipes import pretrain

    def events(stop: Callable[[], bool], report: Callable[[Reading], None]) -> Generator[Event, None, None]:
        if options.resume is not None:
            yield from pretrain.resume(options.resume, stop)
        else:
            yield from pretrain.start(options, stop, report)

    return follow(events)


def run_demo(options: DemoOptions) -> int:
    from gpt2kit.recipes.demo import demo

    return follow(lambda stop, report: demo(options.out, options.seconds, options.seed, stop, report))


def follow(source: Source) -> int:
    """Show every event; 0, or 128 + the signal's number where one stopped the run before its end."""
    from gpt2kit.display import TrainingDisplay
    from gpt2kit.recipes.events import Finished, Note

    unfinished = False
    with (
        signals() as asked,
        TrainingDisplay() as display,
        contextlib.closing(source(asked.yes, display.show)) as events,  # the recipe tidies up, whatever happens
    ):
        for event in events:
            asked.training = asked.training or not isinstance(event, Note)
            unfinished = isinstance(event, Finished) and event.resume is not None
            display.show(event)
    return 128 + asked.received[0] if unfinished else 0


@dataclass
class Signals:
    """SIGINT and SIGTERM. While training they are kept until the step ends; before it there is nothing to save."""

    received: list[int] = dataclasses.field(default_factory=list)
    training: bool = False

    def yes(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.received)

    def note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and (self.received or not self.training):
            raise KeyboardInterrupt
        if not self.training:
            raise SystemExit(128 + number)
        self.received.append(number)
        # straight to the descriptor: the interrupted step may be inside a write to the same Python stream
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Collect signals, so that a step can end and a checkpoint be written; a second SIGINT ends at once."""
    collected = Signals()
    before = {number: signal.signal(number, collected.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield collected
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


VERBS = {
    "demo": Verb(DemoOptions, run_demo),
    "train": Verb(TrainOptions, run_train, TRAIN_HELP),
}
