"""The verbs that a search can run, each with what it needs before its first trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.errors import UserError
from gpt2kit.model import files
from gpt2kit.recipes import adapters, finetune, pretrain
from gpt2kit.recipes import data as data_recipe
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


def _check_finetune(given: Any) -> None:
    given.settings(1000, 64)
    adapters.method_of(given)


def _check_train(given: Any) -> None:
    TrainConfig(**given.settings())
    if given.n_embd and given.n_head and given.n_embd % given.n_head:
        raise UserError(f"n_embd {given.n_embd} must divide by n_head {given.n_head}")


VERBS: Mapping[str, Searchable] = {
    "finetune": Searchable(FinetuneOptions, finetune.start, finetune.resume, _check_finetune),
    "train": Searchable(TrainOptions, pretrain.start, pretrain.resume, _check_train),
}


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
    tokenizer = None if options.from_ is None else files.read_head(files.resolve(options.from_, options.hub)[0], [])[1]
    data_recipe.prepare(
        options.data, place, tokenizer, lambda: data_recipe.pick_tokenizer(
            options.data, options.field, options.tokenizer, options.vocab_size,
            SPECIAL_TOKENS[options.objective or "next"], lambda note: None,
        ), options.field, options.validation, None,
    )  # fmt: skip
