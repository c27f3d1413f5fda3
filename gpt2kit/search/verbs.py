"""The verbs that a search can run, each with what it needs before its first trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.model import files
from gpt2kit.recipes import data as data_recipe
from gpt2kit.recipes import finetune, pretrain
from gpt2kit.recipes.events import Event
from gpt2kit.recipes.options import TrainOptions
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.objectives import SPECIAL_TOKENS

PACKED = "data"  # the text of all trials, in the search folder
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Searchable:
    """A verb: its options, how it starts and goes on, and what refuses settings before any work."""

    options: type[Any]
    start: Callable[[Any, Stop], Iterator[Event]]
    resume: Callable[[Path, Stop], Iterator[Event]]
    check: Callable[[Any], object]


VERBS: Mapping[str, Searchable] = {
    "finetune": Searchable(FinetuneOptions, finetune.start, finetune.resume, lambda given: given.settings(1000, 64)),
    "train": Searchable(
        TrainOptions, pretrain.start, pretrain.resume, lambda given: TrainConfig(**given.settings())
    ),
}  # fmt: skip


def options_of(record: Mapping[str, Any], folder: Path) -> Any:
    """The verb's options that all trials share; a text that was packed for them all stands in for the files."""
    options = VERBS[record["verb"]].options(**record["options"])
    if not record["packed"]:
        return options
    return dataclasses.replace(
        options, data=[str(folder / PACKED)], tokenizer=None, vocab_size=None, field=None, validation=None
    )


def pack(options: TrainOptions, place: Path) -> None:
    """One packed text for all trials: their losses are per token of one vocabulary, on the same held-out windows."""
    tokenizer = None if options.from_ is None else files.read_head(files.resolve(options.from_)[0], [])[1]
    data_recipe.prepare(
        options.data, place, tokenizer, lambda: data_recipe.pick_tokenizer(
            options.data, options.field, options.tokenizer, options.vocab_size,
            SPECIAL_TOKENS[options.objective or "next"], lambda note: None,
        ), options.field, options.validation, None,
    )  # fmt: skip
