"""Whether a task's answers can be scored, found out before a model is asked: answering can take hours."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2kit.data.families import LabelRow, Row
from gpt2kit.errors import UserError
from gpt2kit.scores.classification import sklearn_metrics
from gpt2kit.scores.generation import rouge_scorer, sacrebleu_metrics
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.prompted import Prompted
from gpt2kit.tasks.task import Asked, Graded
from gpt2kit.wording import plural

BY_SKLEARN = ("classify", "rank")
BY_SACREBLEU_AND_ROUGE = ("translate", "summarise", "instruct", "chat")


def check_scorable(task: Asked, rows: Sequence[Row]) -> None:
    """UserError where the task has no right answers, a package is missing, or an example has labels that the task has
    not.
    """
    if not isinstance(task, Graded):
        raise UserError(f"{task.name} has no right answers to compare with")
    if task.name in BY_SKLEARN:
        sklearn_metrics()
    if task.name in BY_SACREBLEU_AND_ROUGE:
        sacrebleu_metrics()
        rouge_scorer(["rouge1"], "en")
    if isinstance(task, Classify | Prompted):
        _check_labels(task, rows)


def _check_labels(task: Classify | Prompted, rows: Sequence[Row]) -> None:
    several = isinstance(task, Classify) and task.multi_label
    for row in rows:
        assert isinstance(row, LabelRow)
        if not several and len(row.labels) != 1:
            raise UserError(f"{row.where}: {plural(len(row.labels), 'label')}; this classifier tells exactly one")
        strange = next((label for label in row.labels if label not in task.labels), None)
        if strange is not None:
            raise UserError(
                f"{row.where}: the label {strange!r} is not one of the {len(task.labels)} that the model tells apart",
                hint=f"they are {', '.join(map(repr, task.labels))[:200]}",
            )
