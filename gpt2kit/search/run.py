"""Many runs of a verb with other settings, the lowest validation loss wanted: proposals by optuna, one memory on disk.

A search folder: search.json (what is searched), trials.journal (optuna's), trials/0007 (the runs of the best trial so
far and of those that were cut off), data/ (a text packed for all trials), trials.json and search.png (the results).
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit import commit, runtime
from gpt2kit.errors import UserError
from gpt2kit.recipes import data as data_recipe
from gpt2kit.recipes.events import Event
from gpt2kit.search import study as search_study
from gpt2kit.search.options import TRIALS, SearchFinetuneOptions, SearchOptions, only, typed
from gpt2kit.search.report import write_results
from gpt2kit.search.runners import Runners
from gpt2kit.search.space import read_space
from gpt2kit.search.study import Tried
from gpt2kit.search.trial import folder_of
from gpt2kit.search.values import Space, grid
from gpt2kit.search.verbs import PACKED, VERBS, pack
from gpt2kit.wording import command

SEARCH = "search.json"


@dataclass(frozen=True)
class Started:
    number: int
    total: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Searched:
    """The end, or a stop on the way: then `resume` is the command that goes on."""

    folder: Path
    trials: list[Tried]
    best: Tried | None
    command: str | None  # that trains with the best values
    resume: str | None


def search(
    options: SearchOptions, stop: Callable[[], bool], watch: Callable[[Event], None] = lambda event: None
) -> Generator[Started | Tried | Searched, None, None]:
    """Run trials until there are as many as asked for. `watch` sees the events of trials that run in this process.

    Raises UserError for a space that cannot be, for more jobs than cores, and where a run cannot begin at all.
    """
    search_study.library()
    if options.jobs > runtime.cores():
        raise UserError(f"{options.jobs} jobs on {runtime.cores()} cores", hint=f"use --jobs {runtime.cores()} or less")
    folder = Path(options.resume or options.out)
    record = _reopened(options, folder) if options.resume is not None else _begun(options, folder)
    verb = VERBS[record["verb"]]
    given = verb.options(**record["options"])
    space = read_space(record["space"], given, verb.check)
    combinations = list(grid(space)) if record["sampler"] == "grid" else []
    total = min(record["trials"] or len(combinations), len(combinations)) or record["trials"] or TRIALS
    search_study.mend(folder)
    study = search_study.open_study(folder)
    cut_off = [trial for trial in search_study.tried(study, space) if trial.state == "running"]
    runners = Runners(folder, record, options.jobs, stop, watch)
    try:
        while not stop():
            while len(runners) < options.jobs and (cut_off or len(study.trials) < total):
                if cut_off:
                    number, values = cut_off[0].number, dict(cut_off.pop(0).values)
                else:
                    fixed = combinations[len(study.trials)] if combinations else None
                    trial = search_study.ask(study, space, record["sampler"], given.seed, fixed)
                    number, values = trial.number, search_study.values_of(trial, space)
                yield Started(number, total, values)
                runners.submit(number, values)
            if not len(runners):
                break
            for outcome in runners.finished():
                if outcome.state != "running":
                    search_study.tell(study, outcome.number, outcome.state, outcome.value, outcome.why)
                    _tidy(folder, search_study.tried(study, space))
                    yield search_study.tried(study, space)[outcome.number]
    finally:
        runners.close()
    yield _searched(folder, record, space, search_study.tried(study, space), total, options.jobs)


def _begun(options: SearchOptions, folder: Path) -> dict[str, Any]:
    """A new search's record, after everything that can be refused was looked at."""
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} already holds something", hint="go on with --resume, or choose another --out")
    name = "finetune" if isinstance(options, SearchFinetuneOptions) else "train"
    own = only(options, VERBS[name].options)
    record = {
        "verb": name, "options": dataclasses.asdict(own), "space": options.space, "sampler": options.sampler,
        "trials": options.trials, "packed": name == "train" and not data_recipe.is_packed(own.data[0]),
    }  # fmt: skip
    space = read_space(options.space, own, VERBS[name].check)
    if options.sampler == "grid":
        grid(space)
    folder.mkdir(parents=True, exist_ok=True)
    if record["packed"]:
        pack(own, folder / PACKED)
    commit.replace_json(folder / SEARCH, record)
    return record


def _reopened(options: SearchOptions, folder: Path) -> dict[str, Any]:
    if not (folder / SEARCH).is_file():
        raise UserError(f"{folder} is not the folder of a search", hint="start one: gpt2kit search finetune --help")
    record: dict[str, Any] = commit.read_json(folder / SEARCH)
    if isinstance(options, SearchFinetuneOptions) != (record["verb"] == "finetune"):
        said = command("search", record["verb"], "--resume", folder)
        raise UserError(f"{folder} is a search of {record['verb']}", hint=said)
    if options.trials is not None and options.trials != record["trials"]:
        record["trials"] = options.trials
        commit.replace_json(folder / SEARCH, record)
    return record


def _tidy(folder: Path, trials: list[Tried]) -> None:
    """Keep the run of the best trial, and those that are not over."""
    best = search_study.best(trials)
    for trial in trials:
        if trial.state != "running" and trial != best:
            shutil.rmtree(folder_of(folder, trial.number), ignore_errors=True)


def _searched(
    folder: Path, record: dict[str, Any], space: Space, trials: list[Tried], total: int, jobs: int
) -> Searched:
    best = search_study.best(trials)
    write_results(folder, trials, space)
    given = VERBS[record["verb"]].options(**record["options"])
    again = None
    if best is not None:
        again = command(*typed(record["verb"], dataclasses.replace(given, **best.values, out=f"{given.out}-best")))
    over = sum(trial.state != "running" for trial in trials) >= total
    more = ("--jobs", jobs) if jobs > 1 else ()
    resume = None if over else command("search", record["verb"], "--resume", folder, *more)
    return Searched(folder, trials, best, again, resume)
