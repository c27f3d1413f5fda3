"""A tuned model on labelled files: examples -> the task's answers by the engine -> scores with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit.data.examples import read_examples
from gpt2kit.data.families import Row
from gpt2kit.engine import Engine
from gpt2kit.model.files import lineage
from gpt2kit.scores.result import Scores
from gpt2kit.tasks import task_of
from gpt2kit.tasks.task import Answer
from gpt2kit.training.track import read_metrics

BATCH = 512  # examples that are answered before progress is told


@dataclass(frozen=True)
class Scored:
    """What a model answered to a test set, and what that is worth."""

    task: str
    scores: Scores
    examples: Sequence[Row]
    answers: Sequence[Answer]


def score_files(
    folder: str | Path,
    paths: Sequence[str],
    columns: Mapping[str, str] | None = None,
    classes: str | None = None,
    precision: Literal["auto", "int8", "fp32"] = "auto",
    threads: int | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_load: Callable[[str, int, int], None] | None = None,
) -> Scored:
    """Score a tuned model folder on files of its task. Raises UserError where it was not tuned, or they do not fit."""
    task = task_of(lineage(folder))
    found = read_examples(list(paths), task.name, columns, classes=classes)
    for line in found.report.lines():
        note(line)
    with Engine.load(folder, precision, threads, on_progress=on_load) as engine:
        note(f"answered by the engine in {engine.precision}")
        answers: list[Answer] = []
        for a in range(0, len(found.rows), BATCH):
            answers += task.answer(engine, found.rows[a : a + BATCH])
            progress(len(answers), len(found.rows))
    return Scored(task.name, task.score(found.rows, answers), found.rows, answers)


def write(out: str | Path, folder: str | Path, found: Scored) -> Path:
    """report.json and report.html in `out`: the scores, where a classifier errs, the worst examples."""
    from gpt2kit.scores import classification
    from gpt2kit.scores.report import Report, by_length, losses_of, worst, write_report

    inputs = [example.key for example in found.examples]
    gold = [example.target for example in found.examples]
    predicted = [answer.text for answer in found.answers]
    first = found.scores.items[0]
    values = None if first.examples is None else first.examples.values
    more: dict[str, Any] = {}
    if found.task == "classify" and "accuracy" in found.scores:
        more["confusion"] = classification.confusion(gold, predicted)
        more["per_class"] = classification.per_class(gold, predicted)
    if values is not None:
        more["lengths"] = by_length(inputs, values)
        more["examples"] = worst(inputs, gold, predicted, values)
    report = Report(
        f"{found.task}: {Path(folder).resolve().name}", found.scores, found.task, example_score=first.name,
        diff=found.task != "classify", lineage=lineage(folder), losses=losses_of(read_metrics(Path(folder))), **more,
    )  # fmt: skip
    return write_report(out, report)
