"""The labelled rows of a tuning run, in their parts, and the length that they are cut to."""

from __future__ import annotations

import dataclasses

import numpy as np

from gpt2kit.data.examples import Examples, read_examples
from gpt2kit.data.normalise import normalised
from gpt2kit.errors import UserError
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_columns
from gpt2kit.tasks.task import Encoded, Task
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.wording import plural

LENGTHS = (64, 128, 256, 512, 1024)


def read_parts(options: FinetuneOptions) -> tuple[dict[str, Examples], Examples, list[str]]:
    """{"train", perhaps "validation"}, their rows together, and what was found. Rows of a test part are left alone.

    Files of --validation stand in for the validation rows that the data names itself, which then belong to no part.
    """
    columns = read_columns(options.columns)
    found = read_examples(options.data, options.task, columns, classes=options.classes)
    notes = found.report.lines()
    rows = [row for row in found.rows if row.split != "test"]
    if len(rows) < len(found.rows):
        notes.append(f"{plural(len(found.rows) - len(rows), 'row')} of the test part left for gpt2kit evaluate")
        found = dataclasses.replace(found, rows=rows)
    if options.validation is None:
        parts = found.splits()
    else:
        parts = found.splits(0.0)
        held = read_examples(options.validation, options.task, columns, classes=options.classes)
        own, parts["validation"] = parts.get("validation"), held
        notes += _known(parts.get("train"), held)
        notes += held.report.lines()
        if own is not None:
            notes.append(
                f"the data's own {plural(len(own.rows), 'validation row')} left out: --validation names others"
            )
    if "train" not in parts:
        raise UserError("the data has no training rows: its names say that all are for validation or for the test")
    if "validation" not in parts:
        notes.append("no validation rows, so no validation loss and the last step is kept: --validation names a file")
    unseen = [label for label in found.labels if label not in parts["train"].labels]
    if unseen:
        notes.append(f"no training row has the label {', '.join(map(repr, unseen))}")
    return parts, found, notes


def _known(train: Examples | None, held: Examples) -> list[str]:
    """A note on validation rows that are training rows too, but for case, width, spaces and punctuation."""
    known = {normalised(row.key) for row in train.rows} if train else set()
    again = sum(normalised(row.key) in known for row in held.rows)
    if not again:
        return []
    return [f"{plural(again, 'validation row')} also in the training data: the validation loss is too good"]


def task_settings(options: FinetuneOptions) -> dict[str, str]:
    r"""What the task is told. A template's \n is a line break, but in a chat's, which is Jinja and has its own."""
    template = options.template
    if template is not None and options.task != "chat":
        template = template.replace("\\n", "\n")
    return {name: value for name, value in (("template", template), ("mode", options.mode)) if value is not None}


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
