"""One file a family of tasks: how its data becomes rows to learn from, what the model is asked, how answers are scored.

Tuning, evaluation, `gpt2kit run` and the server share these. Which task a model was tuned for, and with what template
and labels, stands in its folder's lineage (gpt2kit.json, "task"); `task_of` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import UserError, unknown

if TYPE_CHECKING:
    from gpt2kit.data.examples import Examples
    from gpt2kit.tasks.task import Task

NAMES = ("classify", "translate", "summarise", "correct", "edit", "instruct", "chat", "answer", "rank", "write")
MODES = ("generative", "extractive")  # of answer: the answer is written, or pointed at in the passage
NEVER_TUNED = ("embed",)  # what `gpt2kit run` knows besides


def task_from_data(name: str, examples: Examples, options: Mapping[str, Any]) -> Task:
    """The task `name` as its examples show it: a classifier's labels are theirs. `options`: template, mode."""
    if name == "classify":
        from gpt2kit.data.families import LabelRow
        from gpt2kit.tasks.classify import Classify

        pairs = all(isinstance(row, LabelRow) and row.text_pair is not None for row in examples.rows)
        return Classify(examples.labels, examples.multi_label, pairs)
    return task_named(name, options)


def task_of(lineage: Mapping[str, Any]) -> Task:
    """The task that a model folder was tuned for. UserError where it was not."""
    values = lineage.get("task")
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise UserError(
            "the model was not tuned for a task", hint="tune one: gpt2kit finetune DATA --from MODEL --task TASK"
        )
    rest = {key: value for key, value in values.items() if key != "name"}
    return task_named(values["name"], rest)


def task_named(name: str, values: Mapping[str, Any]) -> Task:
    """The task `name` with what `Task.values` said of it, or a part of that. `answer` has two modes."""
    from gpt2kit.tasks.answer import Answer
    from gpt2kit.tasks.chat import Chat
    from gpt2kit.tasks.classify import Classify
    from gpt2kit.tasks.pairs import Pairs
    from gpt2kit.tasks.rank import Rank
    from gpt2kit.tasks.spans import Spans
    from gpt2kit.tasks.write import Write

    makers: dict[str, Any] = {"classify": Classify, "chat": Chat, "answer": Answer, "rank": Rank, "write": Write}
    if name not in NAMES:
        raise unknown("task", name, NAMES)
    values = dict(values)
    mode = values.pop("mode", MODES[0]) if name == "answer" else MODES[0]
    if mode not in MODES:
        raise unknown("mode", str(mode), MODES)
    if mode == "extractive":
        makers["answer"] = Spans
    try:
        task: Task = makers[name](**values) if name in makers else Pairs(name, **values)
    except TypeError:
        raise UserError(f"the settings of the task {name!r} are not ones that this version wrote") from None
    return task
