"""More training rows for a tuning run: altered copies of the labelled ones, as `--augment` asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt2kit.data.augment import MEANING, augment, methods, read_names
from gpt2kit.data.confusions import Confusions
from gpt2kit.data.examples import Examples
from gpt2kit.data.neighbours import Neighbours
from gpt2kit.model import folder as model_folder
from gpt2kit.text.tokenizer import Tokenizer


def augmented(
    train: Examples, names: str, times: int, seed: int, task: str, parent: str | Path, tokenizer: Tokenizer
) -> tuple[Examples, list[str]]:
    """The training rows with `times` altered copies of each behind them, and what was made, in words.

    Words of like meaning are the neighbours in the embedding of the model in `parent`; mistakes are learned from the
    rows themselves. Raises UserError for a task that is never augmented.
    """
    chosen = read_names(names, task)
    neighbours = None
    if set(chosen) & set(MEANING):
        model, _ = model_folder.load(parent)
        neighbours = Neighbours(model.wte.weight.detach().numpy(), tokenizer)
    confusions = Confusions.learn(train.rows) if "noise" in chosen else None
    made = augment(train.rows, methods(chosen, neighbours, confusions), times, seed)
    lines = made.lines()
    if neighbours is not None and len(made.rows) == len(train.rows):
        lines.append("no word of these rows is one token of the model, and only such have neighbours: delete and swap "
                     "need none, and gpt2kit tokenizer extend gives it tokens for your text")  # fmt: skip
    return dataclasses.replace(train, rows=made.rows), lines
