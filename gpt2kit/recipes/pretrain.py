"""Train a GPT-2 on text: from scratch, from a model (`from_`), or on from a checkpoint (`resume`).

Data flow: files -> tokenizer -> packed folder -> plan -> loop -> model folder. Wiring only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gpt2kit import commit, runtime
from gpt2kit.data.loader import Batches
from gpt2kit.data.packed import open_packed
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes import data as data_recipe
from gpt2kit.recipes.events import Event, Note, Planned, Reading
from gpt2kit.recipes.options import TrainOptions
from gpt2kit.recipes.places import check_parent, new_folder, parent_of
from gpt2kit.recipes.shape import choose
from gpt2kit.recipes.sitting import packed_feed, sit
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import checkpoint, plan
from gpt2kit.training.objectives import SPECIAL_TOKENS, TextObjective
from gpt2kit.wording import command

RUN = "run.json"


def start(
    options: TrainOptions, stop: Callable[[], bool], report: Callable[[Reading], None] = lambda reading: None
) -> Iterator[Event]:
    """A new run, as `options` (recipes/options.py) say. Yields events; the last is `Finished`.

    `report` is called while the corpus is read.
    """
    out = Path(options.out)
    with new_folder(out, "train", but="data"):
        yield from _start(options, out, stop, report)


def _start(
    options: TrainOptions, out: Path, stop: Callable[[], bool], report: Callable[[Reading], None]
) -> Iterator[Event]:
    runtime.set_threads(options.threads)
    runtime.tune_allocator()
    data_recipe.check_packed(
        options.data, vocab_size=options.vocab_size, field=options.field, validation=options.validation
    )
    notes: list[str] = []
    parent = None if options.from_ is None else parent_of(options.from_, options.hub)
    base, tokenizer = (None, None) if parent is None else model_folder.load(parent["folder"], notes=notes)
    if options.tokenizer is not None and data_recipe.is_packed(options.data[0]):
        tokenizer = Tokenizer.load(options.tokenizer)  # must be the one that packed it
    packed, data, tokenizer = data_recipe.prepare(
        options.data, out / "data", tokenizer, lambda: data_recipe.pick_tokenizer(
            options.data, options.field, options.tokenizer, options.vocab_size,
            SPECIAL_TOKENS[options.objective or "next"], notes.append,
            lambda read, total: report(Reading("learning", read, total)),
        ), options.field, options.validation, lambda p: report(Reading("packing", p.read, p.total, p.tokens)),
    )  # fmt: skip
    yield from map(Note, [*notes, *data.notes, data_recipe.describe(data)])
    precision = runtime.choose_precision(options.precision, device=runtime.device().type)
    train_tokens = data.splits["train"].tokens
    model_config, config, speed, reasons = choose(options, base, tokenizer, precision, train_tokens)
    made = plan.make(model_config, config, precision, train_tokens, speed, reasons)
    yield Planned(made, model_config, config, precision)
    made.check_memory()
    Batches(open_packed(packed, "train"), config.context, config.batch, config.seed)  # refuses too little text
    TextObjective(config, model_config.vocab_size, tokenizer)  # refuses missing special tokens
    del base
    record = {
        "name": out.resolve().name,
        "settings": config.to_dict(),
        "model": dataclasses.asdict(model_config),
        "precision": precision.to_dict(),
        "threads": torch.get_num_threads(),
        "minutes": options.minutes,
        "data": {
            "folder": str(packed.resolve() if packed != out / "data" else "data"),
            "hash": data.data_hash,
            "sources": [Path(path).name for path in options.data],
            "training_tokens": train_tokens,
        },
        "parents": [] if parent is None else [{**parent, "hash": model_folder.identity(parent["folder"])}],
        "sample": options.sample,
    }
    commit.replace_json(out / RUN, record)
    yield from sit(out, record, beginning(record), tokenizer, packed_feed(out, record, tokenizer), None, stop)


def resume(out: str | Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Go on from the newest good checkpoint: the same bytes as a run that was never stopped."""
    out = Path(out)
    if not (out / RUN).exists():
        raise UserError(f"{out} is not a run folder: it has no {RUN}", hint="start one with: gpt2kit train")
    record = commit.read_json(out / RUN)
    if record.get("kind") == "finetune":
        raise UserError(f"{out} is the folder of a tuning run", hint=command("finetune", "--resume", out))
    with commit.alone(out):
        yield from _resume(out, record, stop)


def _resume(out: Path, record: dict[str, Any], stop: Callable[[], bool]) -> Iterator[Event]:
    path, notes = checkpoint.newest(out) if checkpoint.steps_of(out) else (None, [])
    yield from map(Note, notes)
    runtime.tune_allocator()
    if runtime.set_threads(record["threads"]) > runtime.cores():
        yield Note(
            f"the run began on {record['threads']} threads, {runtime.cores()} cores are here: same bytes, slower"
        )
    if path is None:
        yield Note("the run was cut off before its first checkpoint: it begins anew")
        network = beginning(record)
        tokenizer = Tokenizer.find(out / record["data"]["folder"])
    else:
        network = GPT2(GPT2Config(**record["model"]), torch.Generator())
        tokenizer = Tokenizer.find(path)
    feed = packed_feed(out, record, tokenizer)
    yield from sit(out, record, network, tokenizer, feed, path, stop)


def beginning(record: dict[str, Any]) -> GPT2:
    """The model that a run starts from: its parent's weights, or those that its seed draws."""
    torch.manual_seed(record["settings"]["seed"])
    if not record["parents"]:
        return GPT2(GPT2Config(**record["model"]), torch.Generator().manual_seed(record["settings"]["seed"]))
    parent = record["parents"][0]
    check_parent(parent)
    return model_folder.load(parent["folder"])[0]
