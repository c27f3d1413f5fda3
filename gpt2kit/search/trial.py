"""One trial of a search: a run of the verb whose evaluations decide whether it is ended early."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.recipes.events import Event, Finished
from gpt2kit.recipes.pretrain import RUN
from gpt2kit.search import study as search_study
from gpt2kit.search.verbs import VERBS, Searchable, Stop, options_of
from gpt2kit.training import checkpoint, loop

Watch = Callable[[Event], None]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: "complete", "pruned", "fail", or "running" where it was asked to stop and will go on."""

    number: int
    state: str
    value: float | None = None
    why: str = ""


def folder_of(search: Path, number: int) -> Path:
    """Trials are counted from 0 inside, from 1 where people see them."""
    return search / "trials" / f"{number + 1:04d}"


def run_trial(
    folder: Path, record: Mapping[str, Any], number: int, values: Mapping[str, Any], threads: int | None, stop: Stop,
    watch: Watch,
) -> Outcome:  # fmt: skip
    """Run trial `number` in its own folder, or go on with it where it was cut off.

    Values that do not go together and a loss that explodes make a failed trial, and so does whatever keeps a run from
    beginning once another has come to a loss; else that is the user's to put right, and raised.
    """
    verb, place = VERBS[record["verb"]], folder_of(folder, number)
    trial = search_study.trial(search_study.open_study(folder), number)
    pruned, begun, value = False, False, None
    halt = lambda: pruned or stop()  # noqa: E731
    given = options_of(record, folder)
    try:
        threads = given.threads if threads is None else threads
        options = dataclasses.replace(given, **values, out=str(place), threads=threads)
        verb.check(options)
    except UserError as error:
        return Outcome(number, "fail", why=error.message)
    try:
        for event in _events(verb, options, place, halt):
            watch(event)
            begun = begun or isinstance(event, loop.Stepped)
            if isinstance(event, loop.Evaluated):
                every = commit.read_json(place / RUN)["settings"]["evaluate_every"]
                pruned = search_study.report(trial, -(-event.step // every), event.loss) or pruned
            if isinstance(event, Finished):
                if event.resume is not None:
                    return Outcome(number, "pruned" if pruned else "running")
                losses = commit.read_json(checkpoint.newest(place)[0] / checkpoint.STATE)["losses"]
                value = min(losses.values(), default=None)
    except UserError as error:
        if not begun and not any(one.intermediate_values for one in trial.study.trials):
            raise
        return Outcome(number, "fail", why=error.message)
    if value is None:
        raise UserError("there is nothing to validate on, so trials cannot be compared", hint="give --validation FILE")
    return Outcome(number, "complete", value)


def _events(verb: Searchable, options: Any, place: Path, stop: Stop) -> Iterator[Event]:
    if checkpoint.steps_of(place):
        return verb.resume(place, stop)
    shutil.rmtree(place, ignore_errors=True)
    return verb.start(options, stop)
