"""A model on labelled files: examples -> the task's answers by the engine -> scores with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2kit import commit
from gpt2kit.data.examples import read_examples
from gpt2kit.data.families import Row
from gpt2kit.errors import UserError, unknown
from gpt2kit.model.files import lineage, resolve
from gpt2kit.recipes.ask_options import AskOptions
from gpt2kit.recipes.asking import choose, with_best_prompt
from gpt2kit.recipes.scorable import check_scorable
from gpt2kit.scores.report import Beside
from gpt2kit.scores.result import Scores
from gpt2kit.tasks import NAMES, NEVER_TUNED, task_of
from gpt2kit.tasks.prompted import Tried
from gpt2kit.tasks.reference import answered_by, open_for_tasks
from gpt2kit.tasks.spans import Spans, best_threshold
from gpt2kit.tasks.task import Answer, Asked, Graded

BATCH = 512  # examples that are answered before progress is told


@dataclass(frozen=True)
class Scored:
    """What a model answered to a test set, and what that is worth."""

    task: str
    scores: Scores
    examples: Sequence[Row]
    answers: Sequence[Answer]
    prompts: Sequence[Tried] = ()  # of a search for a prompt, the best first
    beside: tuple[Beside, ...] = ()  # another model, asked the same


def score_files(
    folder: str | Path,
    paths: Sequence[str],
    columns: Mapping[str, str] | None = None,
    classes: str | None = None,
    name: str | None = None,
    ask: AskOptions | None = None,
    precision: Literal["auto", "int8", "fp32"] = "auto",
    threads: int | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_load: Callable[[str, int, int], None] | None = None,
    against: str | Path | None = None,
) -> Scored:
    """Score a model folder on labelled files of the task that it was tuned for, or of the task `name` by a prompt.

    `against`: another folder, which is asked the same. Raises UserError where a model cannot be asked that, or the
    files do not fit, before either is asked.
    """
    ask, kept = ask or AskOptions(), lineage(folder).get("task")
    name = name or (kept["name"] if isinstance(kept, Mapping) else None)
    if name is None:
        choose(kept, name, ask)
    elif name not in (*NAMES, *NEVER_TUNED):
        raise unknown("task", name, NAMES)
    found = read_examples(list(paths), name, columns, classes=classes)
    found, chosen = found.to_score()
    for line in [*found.report.lines(), *([chosen] if chosen else [])]:
        note(line)
    folders = [folder] if against is None else [folder, against]
    tasks = [choose(lineage(folder).get("task"), name, ask, found, note)]
    tasks += [choose(lineage(one).get("task"), name, ask, found) for one in folders[1:]]
    for task in tasks:
        check_scorable(task, found.rows)

    def answered(one: str | Path, task: Asked) -> Scored:
        with open_for_tasks(one, precision, threads, on_load) as engine:
            note(f"answered by {answered_by(engine)}")
            best, tried = with_best_prompt(engine, task, ask, note)
            assert isinstance(best, Graded)
            answers: list[Answer] = []
            for a in range(0, len(found.rows), BATCH):
                answers += best.answer(engine, found.rows[a : a + BATCH])
                progress(len(answers), len(found.rows))
        return Scored(best.name, best.score(found.rows, answers), found.rows, answers, tried)

    ours, *others = [answered(one, task) for one, task in zip(folders, tasks, strict=True)]
    return dataclasses.replace(ours, beside=tuple(Beside.of(str(against), one.scores, ours.scores) for one in others))


def tune_threshold(folder: str | Path, found: Scored) -> tuple[float, Scored]:
    """The margin above which an extractive model answers, best on these examples: kept in its folder. UserError for
    others.

    The scores are of the same examples with it, and so a little better than on others.
    """
    path, _ = resolve(folder)
    task = task_of(lineage(path))
    if not isinstance(task, Spans):
        raise UserError("a threshold is of a model that points at answers", hint="gpt2kit finetune … --mode extractive")
    task = dataclasses.replace(task, threshold=best_threshold(found.examples, found.answers))
    manifest = commit.manifest(path)
    assert manifest is not None
    commit.replace_json(path / commit.MANIFEST, manifest | {"task": task.values()})
    answers = [task.decide(answer) for answer in found.answers]
    return task.threshold, dataclasses.replace(found, scores=task.score(found.examples, answers), answers=answers)
