"""Tune a model on a task's examples: rows whose loss falls on the completion, or on the class.

Data flow: files -> examples -> task -> rows in the run folder -> loop -> model folder with the task in its lineage.
All weights are tuned, or an adapter over them (adapters.py). The rows are kept as ids, so that a resumed run needs
neither the files nor the tokenizer's speed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from gpt2kit import commit, runtime
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.files import read_head, resolve
from gpt2kit.recipes import adapters, continual, forgetting
from gpt2kit.recipes.augmentation import augmented
from gpt2kit.recipes.earlier import earlier_tasks
from gpt2kit.recipes.events import Event, Finished, Note
from gpt2kit.recipes.places import new_folder, parent_of
from gpt2kit.recipes.pretrain import RUN
from gpt2kit.recipes.sitting import Feed, sit
from gpt2kit.recipes.tuning_data import context_for, read_parts, task_settings, told, without_empty
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.tasks import task_from_data, task_of
from gpt2kit.tasks.chat import Chat
from gpt2kit.tasks.task import end_of_text
from gpt2kit.training import checkpoint
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.rows import RowBatches, on_grid
from gpt2kit.training.stored_rows import load_rows, save_rows

ROWS = "rows"  # the folder with the encoded examples


def start(options: FinetuneOptions, stop: Callable[[], bool]) -> Iterator[Event]:
    """A new tuning run. Yields events; the last is `Finished`."""
    with new_folder(Path(options.out), "finetune"):
        yield from _start(options, Path(options.out), stop)


def _start(options: FinetuneOptions, out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    assert options.task is not None and options.from_ is not None  # noqa: PT018 - no test; __post_init__ saw to it
    runtime.set_threads(options.threads)
    runtime.tune_allocator()
    parts, found, notes = read_parts(options)
    parent = parent_of(options.from_, options.hub)
    path, chosen = resolve(parent["folder"])
    notes += [chosen] if chosen else []
    base, tokenizer = read_head(path, notes)
    tokenizer, eos = end_of_text(tokenizer)
    task = task_from_data(options.task, found, task_settings(options))
    model = dataclasses.replace(task.model_config(base), eos_token_id=eos)  # what completions are taught to end in
    method = adapters.method_of(options, model)
    room = model.n_positions - (0 if method is None else method.virtual_tokens)
    context, why = context_for(options, parts["train"], task, tokenizer, room)
    if options.augment is not None:
        parts["train"], made = augmented(
            parts["train"], options.augment, options.augment_times, options.seed, task.name, parent["folder"], tokenizer
        )
        notes += made
    before = earlier_tasks(model_folder.lineage(parent["folder"]))
    forgetting.check(options.probe or (), options.remember or (), before)
    past = continual.read(options.replay or (), before, tokenizer, context, model)
    notes += past.notes
    rows = {name: task.encode(part.rows, tokenizer, context) for name, part in parts.items()}
    notes += without_empty(rows, context)
    yield from map(Note, [*notes, why, *(told(name, encoded, context) for name, encoded in rows.items())])
    precision = runtime.choose_precision(options.precision, device=runtime.device().type)
    config = adapters.sliced(options.settings(len(rows["train"].rows), context), model, method is not None)
    yield Note(adapters.said_before(model, config, method, precision, options))
    record = {
        "kind": "finetune",
        "name": out.resolve().name,
        "settings": config.to_dict(),
        "model": dataclasses.asdict(model),
        "precision": precision.to_dict(),
        "threads": runtime.set_threads(options.threads),
        "minutes": None,
        "data": {
            "folder": ROWS,
            "hash": parts["train"].data_hash,
            "sources": [Path(path).name for path in options.data],
            "rows": {name: len(encoded.rows) for name, encoded in rows.items()},
        },
        "task": task.values(),
        "parents": [{**parent, "hash": model_folder.identity(parent["folder"])}],
        "sample": False,
        "earlier": before,
        "continual": continual.settings(past, options.replay_share, options.ewc, options.lwf),
        "probe": options.probe or [],
        "remember": options.remember or [],
        **adapters.recorded(method, options, parent["folder"]),
    }
    save_rows(out / ROWS, {name: encoded.rows for name, encoded in rows.items()} | past.rows)
    commit.replace_json(out / RUN, record)
    yield from _sit(out, record, None, stop)


def resume(out: str | Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Go on from the newest good checkpoint: the same bytes as a run that was never stopped."""
    out = Path(out)
    record = commit.read_json(out / RUN) if (out / RUN).exists() else {}
    if record.get("kind") != "finetune":
        raise UserError(f"{out} is not the folder of a tuning run", hint="start one with: gpt2kit finetune")
    with commit.alone(out):
        path, notes = checkpoint.newest(out) if checkpoint.steps_of(out) else (None, [])
        yield from map(Note, notes)
        runtime.tune_allocator()
        runtime.set_threads(record["threads"])
        yield from _sit(out, record, path, stop)


def _sit(out: Path, record: dict[str, Any], path: Path | None, stop: Callable[[], bool]) -> Iterator[Event]:
    """From the beginning, or from the checkpoint at `path`; at the end, what was forgotten."""
    finished = yield from _train(out, record, path, stop)
    if finished.resume is None:
        yield from map(Note, forgetting.tell(out, record))  # loads models: those of training are gone
    yield finished


def _train(
    out: Path, record: dict[str, Any], path: Path | None, stop: Callable[[], bool]
) -> Generator[Event, None, Finished]:
    network, adapted, tokenizer = adapters.begin(record, path)
    config, task = TrainConfig.from_dict(record["settings"]), task_of(record)
    rows = {name: on_grid(part) for name, part in load_rows(out / ROWS).items()}
    extra = {"chat_template.jinja": task.template} if isinstance(task, Chat) else {}
    batches = RowBatches(rows["train"], config.batch, config.seed)
    kept = {"task": record["task"], "earlier": record.get("earlier", [])}
    feed = Feed(
        batches, rows.get("validation"), task.objective(config.label_smoothing), kept, extra,
        verb="finetune", next=adapters.next_commands(out, task.name, adapted),
    )  # fmt: skip
    feed = feed if adapted is None else adapters.into_feed(feed, adapted, tokenizer, record)
    feed = continual.into_feed(
        feed, rows, record, network, lambda: network if path is None else adapters.begin(record, None)[0]
    )
    finished = None
    for event in sit(out, record, network, tokenizer, feed, path, stop):
        if isinstance(event, Finished):
            finished = event
        else:
            yield event
    assert finished is not None
    return finished
