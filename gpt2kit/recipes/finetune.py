"""Tune a model on a task's examples: rows whose loss falls on the completion, or on the class.

Data flow: files -> examples -> task -> rows in the run folder -> loop -> model folder with the task in its lineage.
The rows are kept as ids, so that a resumed run needs neither the files nor the tokenizer's speed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2kit import commit, runtime
from gpt2kit.data.examples import Examples, read_examples
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes.events import Event, Note
from gpt2kit.recipes.pretrain import RUN, parent_of
from gpt2kit.recipes.sitting import Feed, sit
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_columns
from gpt2kit.tasks import task_from_data, task_of
from gpt2kit.tasks.chat import Chat
from gpt2kit.tasks.task import Task, end_of_text
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import checkpoint
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.rows import RowBatches
from gpt2kit.training.stored_rows import load_rows, save_rows
from gpt2kit.wording import command, plural

ROWS = "rows"  # the folder with the encoded examples
LENGTHS = (64, 128, 256, 512, 1024)


def start(options: FinetuneOptions, stop: Callable[[], bool]) -> Iterator[Event]:
    """A new tuning run. Yields events; the last is `Finished`."""
    assert options.task is not None
    assert options.from_ is not None
    out = Path(options.out)
    if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            f"{out} already holds something",
            hint=f"go on with it: {command('finetune', '--resume', out)}, or choose another --out",
        )
    runtime.set_threads(options.threads)
    runtime.tune_allocator()
    parts, notes = _read(options)
    parent = parent_of(options.from_, options.hub)
    base, tokenizer = model_folder.load(parent["folder"], notes=notes)
    tokenizer, _ = end_of_text(tokenizer)
    given = {} if options.template is None else {"template": options.template}
    task = task_from_data(options.task, parts["train"], given)
    context, why = _context(options, parts["train"], task, tokenizer, base.config)
    rows = {name: task.encode(part.rows, tokenizer, context) for name, part in parts.items() if name != "test"}
    yield from map(Note, [*notes, why])
    for name, encoded in rows.items():
        lost = f", {encoded.left_out:,} left out for want of room" if encoded.left_out else ""
        yield Note(f"{name}: {plural(len(encoded.rows), 'row')}, {encoded.cut:,} cut to {context} tokens{lost}")
    config = options.settings(len(rows["train"].rows), context)
    record = {
        "kind": "finetune",
        "name": out.resolve().name,
        "settings": config.to_dict(),
        "model": dataclasses.asdict(task.model_config(base.config)),
        "precision": runtime.choose_precision(options.precision, device=runtime.device().type).to_dict(),
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
    }
    save_rows(out / ROWS, {name: encoded.rows for name, encoded in rows.items()})
    commit.replace_json(out / RUN, record)
    yield from sit(out, record, beginning(record), tokenizer, _feed(out, record), None, stop)


def resume(out: str | Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Go on from the newest good checkpoint: the same bytes as a run that was never stopped."""
    out = Path(out)
    record = commit.read_json(out / RUN) if (out / RUN).exists() else {}
    if record.get("kind") != "finetune":
        raise UserError(f"{out} is not the folder of a tuning run", hint="start one with: gpt2kit finetune")
    path, notes = checkpoint.newest(out) if checkpoint.steps_of(out) else (None, [])
    yield from map(Note, notes)
    runtime.tune_allocator()
    runtime.set_threads(record["threads"])
    network = beginning(record) if path is None else GPT2(GPT2Config(**record["model"]))
    tokenizer = Tokenizer.find(Path(record["parents"][0]["folder"]) if path is None else path)
    yield from sit(out, record, network, tokenizer, _feed(out, record), path, stop)


def _read(options: FinetuneOptions) -> tuple[dict[str, Examples], list[str]]:
    """{"train", "validation"} and what was found."""
    columns = read_columns(options.columns)
    found = read_examples(options.data, options.task, columns, classes=options.classes)
    notes = found.report.lines()
    if options.validation is None:
        return found.splits(), notes
    held = read_examples(options.validation, options.task, columns, classes=options.classes)
    return {"train": found, "validation": held}, [*notes, *held.report.lines()]


def _context(
    options: FinetuneOptions, train: Examples, task: Task, tokenizer: Tokenizer, config: GPT2Config
) -> tuple[int, str]:
    """The length that rows are cut to, and why."""
    if options.context is not None:
        if not 8 <= options.context <= config.n_positions:
            raise UserError(f"context must be from 8 to the model's {config.n_positions}, got {options.context}")
        return options.context, f"rows are at most {options.context} tokens, as asked"
    some = task.encode(train.rows[:: max(1, len(train.rows) // 1000)], tokenizer, config.n_positions).rows
    need = int(np.quantile([len(row) for row in some], 0.99)) if some else config.n_positions
    context = min(next((length for length in LENGTHS if length >= need), need), config.n_positions)
    return context, f"rows are at most {context} tokens: 99 % have at most {need}"


def _feed(out: Path, record: dict[str, Any]) -> Feed:
    config, task = TrainConfig.from_dict(record["settings"]), task_of(record)
    rows = load_rows(out / ROWS)
    extra = {"chat_template.jinja": task.template} if isinstance(task, Chat) else {}
    return Feed(
        RowBatches(rows["train"], config.batch, config.seed), rows.get("validation"),
        task.objective(config.label_smoothing), {"task": record["task"]}, extra,
    )  # fmt: skip


def beginning(record: dict[str, Any]) -> GPT2:
    """The parent's weights; a head that it has not is drawn by the seed."""
    parent = record["parents"][0]
    if model_folder.identity(parent["folder"]) != parent["hash"]:
        raise UserError(f"{parent['folder']} is no longer the model that the run started from")
    base, _ = model_folder.load(parent["folder"])
    network = GPT2(GPT2Config(**record["model"]), torch.Generator().manual_seed(record["settings"]["seed"]))
    weights = base.state_dict()
    if base.config.labels != network.config.labels:
        weights.pop("score.weight", None)
    network.load_state_dict(weights, strict=False)
    return network
