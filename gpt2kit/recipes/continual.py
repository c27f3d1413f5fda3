"""What a tuning run does about forgetting: rows of before read and kept, losses and penalties put into its feed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2kit.data.examples import read_examples
from gpt2kit.data.folders import is_plain
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes.earlier import Tasks, find_task, named
from gpt2kit.recipes.places import check_parent
from gpt2kit.recipes.sitting import Feed
from gpt2kit.tasks import task_of
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import continual
from gpt2kit.training.rows import Completions, Row, RowBatches
from gpt2kit.wording import plural

PREFIX = "earlier-"  # of the splits in the folder of rows


@dataclass(frozen=True)
class Past:
    """Rows of earlier tasks, to be stored beside the new ones, and the values of these tasks."""

    rows: dict[str, list[Row]]
    tasks: list[dict[str, Any]]
    notes: list[str]


def read(replay: Sequence[str], earlier: Tasks, tokenizer: Tokenizer, context: int, model: GPT2Config) -> Past:
    """The data of before. `NAME=FILE` is of the earlier task NAME; `FILE` alone of the task that the model was tuned
    for, and where it is plain text, or the model was tuned for none, text to go on learning from.

    Raises UserError for a task whose head the new one has replaced.
    """
    past = Past({}, [], [])
    for given in replay:
        name, file = named(given)
        plain = name is None and (is_plain(file) or not earlier)
        values = {"name": "write"} if plain else find_task(name, earlier)
        task = task_of({"task": values})
        if task.model_config(model) != model:
            raise UserError(
                f"{file}: rows of {task.name} cannot be replayed: the new task puts its own head in place of theirs",
                hint="tune one adapter a task: --method lora",
            )
        encoded = task.encode(read_examples([file], task.name).rows, tokenizer, context)
        past.notes.append(f"of before, {task.name}: {plural(len(encoded.rows), 'row')} from {Path(file).name}")
        past.rows[f"{PREFIX}{len(past.tasks)}"] = encoded.rows
        past.tasks.append(values)
    return past


def settings(past: Past, share: float, ewc: float, lwf: float) -> dict[str, Any] | None:
    """What a run's record keeps of it; None where there is nothing."""
    if not past.tasks and not lwf:
        return None
    return {"tasks": past.tasks, "share": share if past.tasks else 0.0, "ewc": ewc, "lwf": lwf}


def into_feed(
    feed: Feed, rows: Mapping[str, Sequence[Row]], record: Mapping[str, Any], network: GPT2,
    beginning: Callable[[], GPT2],
) -> Feed:  # fmt: skip
    """The feed with what the record asks for. `beginning` gives the model as it is at step 0: penalties rest on it."""
    kept = record.get("continual")
    if kept is None:
        return feed
    assert isinstance(feed.batches, RowBatches)
    new = feed.objective or Completions()
    config, batches = network.config, feed.batches
    groups, before = [], []
    for number, values in enumerate(kept["tasks"]):
        own = rows[f"{PREFIX}{number}"]
        objective = task_of({"task": values}).objective()
        groups.append(continual.group(new, batches.rows, objective, own, config))
        before += [continual.Earlier(row.ids, row.start, row.labels, row.width, number) for row in own]
    feed = dataclasses.replace(feed, lineage={**feed.lineage, "continual": kept}, objective=new)
    if kept["ewc"]:
        penalty = _consolidation(network, beginning(), groups, before, kept["ewc"])
        feed = dataclasses.replace(feed, penalty=continual.both(feed.penalty, penalty))
    if kept["lwf"]:
        check_parent(record["parents"][0])
        teacher = model_folder.load(record["parents"][0]["folder"])[0]
        targets = continual.per_row(new, batches.rows, config)
        feed = dataclasses.replace(
            feed, objective=continual.Distilled(new, network, teacher, kept["lwf"], targets)
        )  # fmt: skip
    if kept["share"] and before:
        assert feed.objective is not None
        feed = dataclasses.replace(
            feed, batches=continual.Replay(batches, before, kept["share"]),
            objective=continual.Mixed(feed.objective, groups),
        )  # fmt: skip
    return feed


def _consolidation(
    network: GPT2, start: GPT2, groups: Sequence[continual.Group], before: Sequence[continual.Earlier], strength: float
) -> continual.Ewc:
    """The penalty on moving `network`'s weights from those of `start`, by what mattered to the rows of before."""
    sums: dict[str, torch.Tensor] = {}
    for number, group in enumerate(groups):
        own = [row for row in before if row.group == number]
        for name, value in continual.fisher(start, group.objective, own).items():
            sums[name] = value / len(groups) + sums.get(name, 0.0)
    return continual.Ewc(network, continual.anchor(start), sums, strength)
