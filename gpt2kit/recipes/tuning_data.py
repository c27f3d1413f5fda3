"""The labelled rows of a tuning run, in their parts, and the length that they are cut to."""

from __future__ import annotations

import numpy as np

from gpt2kit.data.examples import Examples, read_examples
from gpt2kit.errors import UserError
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_columns
from gpt2kit.tasks.task import Encoded, Task
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.wording import plural

LENGTHS = (64, 128, 256, 512, 1024)


def read_parts(options: FinetuneOptions) -> tuple[dict[str, Examples], Examples, list[str]]:
    """{"train", "validation", perhaps "test"}, all rows of the data together, and what was found.

    Files of --validation stand in for the validation rows that the data names itself, which then belong to no part.
    """
    columns = read_columns(options.columns)
    found = read_examples(options.data, options.task, columns, classes=options.classes)
    notes = found.report.lines()
    if options.validation is None:
        parts = found.splits()
    else:
        parts = found.splits(0.0)
        held = read_examples(options.validation, options.task, columns, classes=options.classes)
        own, parts["validation"] = parts.get("validation"), held
        notes += held.report.lines()
        if own is not None:
            notes.append(
                f"the data's own {plural(len(own.rows), 'validation row')} left out: --validation names others"
            )
    if "train" not in parts:
        raise UserError("the data has no training rows: its names say that all are for validation or for the test")
    unseen = [label for label in found.labels if label not in parts["train"].labels]
    if unseen:
        notes.append(f"no training row has the label {', '.join(map(repr, unseen))}")
    return parts, found, notes


def context_for(
    options: FinetuneOptions, train: Examples, task: Task, tokenizer: Tokenizer, room: int
) -> tuple[int, str]:
    """The length that rows are cut to, and why; `room`: the positions that the model has for them."""
    if options.context is not None:
        if not 8 <= options.context <= room:
            raise UserError(f"context must be from 8 to the model's {room}, got {options.context}")
        return options.context, f"rows are at most {options.context} tokens, as asked"
    some = task.encode(train.rows[:: max(1, len(train.rows) // 1000)], tokenizer, room).rows
    lengths = [max(row.labels) if task.name == "rank" else len(row) for row in some]  # candidates are read one by one
    need = int(np.quantile(lengths, 0.99)) if some else room
    context = min(next((length for length in LENGTHS if length >= need), need), room)
    return context, f"rows are at most {context} tokens: 99 % have at most {need}"


def told(name: str, encoded: Encoded, context: int) -> str:
    """What became of a part's rows."""
    lost = f", {encoded.left_out:,} left out for want of room" if encoded.left_out else ""
    return f"{name}: {plural(len(encoded.rows), 'row')}, {encoded.cut:,} cut to {context} tokens{lost}"


def without_empty(rows: dict[str, Encoded], context: int) -> list[str]:
    """Drop a validation part of which nothing fitted, and say so. UserError where nothing to learn from is left."""
    if not rows["train"].rows:
        raise UserError(
            f"no training row fits into {context} tokens", hint="a larger --context, or a model with a longer one"
        )
    if "validation" not in rows or rows["validation"].rows:
        return []
    del rows["validation"]
    return [f"validation: none of its rows fits into {context} tokens, so there is none"]
