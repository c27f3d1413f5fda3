"""`gpt2kit search finetune` and `gpt2kit search train`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2kit.search.options import SearchFinetuneOptions, SearchOptions, SearchTrainOptions
from gpt2kit.verbs import Verb

if TYPE_CHECKING:
    from gpt2kit.search.run import Searched
    from gpt2kit.search.study import Tried


def run_search(options: SearchOptions) -> int:
    """Show each trial as it ends, then the table; 128 + the signal's number where one stopped the search."""
    from gpt2kit.display import TrainingDisplay
    from gpt2kit.search.run import Searched, Started, search
    from gpt2kit.training import loop
    from gpt2kit.verbs.training import signals

    result: Searched | None = None
    with signals() as asked, TrainingDisplay() as display:

        def watch(event: Any) -> None:
            if isinstance(event, loop.Stepped):
                display.show(event)

        with contextlib.closing(search(options, asked.yes, watch)) as events:
            for event in events:
                asked.training = True  # from here on a checkpoint is written before the end
                if isinstance(event, Searched):
                    result = event
                elif isinstance(event, Started):
                    _say(display, f"trial {event.number + 1} of {event.total}: {_words(event.values)}")
                else:
                    _say(display, _ended(event))
    assert result is not None
    print_result(result)
    return 128 + asked.received[0] if result.resume is not None and asked.received else 0


def _say(display: Any, text: str) -> None:
    display.console.print(text, markup=False, soft_wrap=True)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.rstrip('_')} {_written(value)}" for name, value in values.items())


def _written(value: object) -> str:
    """As --space takes it."""
    return "none" if value is None else str(value)


def _ended(trial: Tried) -> str:
    name = f"trial {trial.number + 1}"
    if trial.state == "fail":
        return f"{name} failed: {trial.why}"
    loss = "" if trial.value is None else f" {trial.value:.4f}"
    return f"{name}: validation loss{loss}" + (", ended early" if trial.state == "pruned" else "")


def print_result(found: Searched) -> None:
    """The trials, best first, and what to type next."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    order = {"complete": 0, "pruned": 1, "fail": 2, "running": 3}
    rows = sorted(found.trials, key=lambda t: (order.get(t.state, 4), float("inf") if t.value is None else t.value))
    names = list(rows[0].values) if rows else []
    table = Table(title="trials", title_justify="left", box=None, padding=(0, 2))
    for head in ("trial", "validation loss", *(name.rstrip("_") for name in names), ""):
        table.add_column(head, justify="right" if head in ("trial", "validation loss") else "left")
    said = {"pruned": "ended early", "fail": "failed", "running": "not done"}
    for trial in rows:
        loss = "" if trial.value is None else f"{trial.value:.4f}"
        values = [_written(trial.values.get(name, "")) for name in names]
        state = "best" if trial == found.best else said.get(trial.state, "")
        table.add_row(*map(Text, (str(trial.number + 1), loss, *values, state)))
    if rows:
        console.print(table)
    console.print(f"\nresults     {found.folder / 'trials.json'}\nplot        {found.folder / 'search.png'}",
                  markup=False, soft_wrap=True)  # fmt: skip
    if found.best is not None:
        made = found.folder / "trials" / f"{found.best.number + 1:04d}"
        console.print(f"best model  {made}\n\ntrain it again with:\n  {found.command}", markup=False, soft_wrap=True)
    if found.resume is not None:
        console.print(f"\nnothing is lost. Go on with:\n  {found.resume}", markup=False, soft_wrap=True)


VERBS = {
    "search finetune": Verb(SearchFinetuneOptions, run_search),
    "search train": Verb(SearchTrainOptions, run_search),
}
