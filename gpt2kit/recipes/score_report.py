"""The report of a scored test set: the scores, where a classifier errs and how sure it is, the worst examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2kit.data.families import AnswerRow, ChatRow, RankRow, Row
from gpt2kit.model.files import lineage
from gpt2kit.recipes.score import Scored
from gpt2kit.tasks.chat import reply_wanted
from gpt2kit.training.track import read_metrics


def write(out: str | Path, folder: str | Path, found: Scored) -> Path:
    """report.json and report.html in `out`. The worst examples are those of the lowest first score; of a classifier
    of one label those whose right label it found least probable.
    """
    from gpt2kit.scores import classification
    from gpt2kit.scores.report import Report, by_length, losses_of, worst, write_report

    inputs = [example.key for example in found.examples]
    gold = [wanted(example) for example in found.examples]
    predicted = [answer.text for answer in found.answers]
    first = found.scores.items[0]
    values = None if first.examples is None else first.examples.values
    more: dict[str, Any] = {"example_score": first.name}
    if values is not None:
        more["lengths"] = by_length(inputs, values)
        more["examples"] = worst(inputs, gold, predicted, values)
    if found.task == "classify" and first.name == "accuracy":
        shares = [answer.details["probabilities"] for answer in found.answers]
        of_gold, of_predicted = (
            [row[label] for row, label in zip(shares, of, strict=True)] for of in (gold, predicted)
        )
        more["confusion"] = classification.confusion(gold, predicted)
        more["per_class"] = classification.per_class(gold, predicted)
        more["reliability"] = tuple(classification.reliability(of_predicted, values))
        more["examples"] = worst(inputs, gold, predicted, of_gold)
        more |= {"example_score": "gold_probability", "length_score": first.name}
    report = Report(
        f"{found.task}: {Path(folder).resolve().name}", found.scores, found.task, diff=found.task != "classify",
        beside=found.beside, lineage=lineage(folder), losses=losses_of(read_metrics(Path(folder))), **more,
    )  # fmt: skip
    return write_report(out, report)


def wanted(example: Row) -> str:
    """The right answer, for people."""
    if isinstance(example, RankRow):
        return example.candidates[example.chosen]
    if isinstance(example, AnswerRow):
        return " / ".join(dict.fromkeys(text for text, _ in example.answers))
    return reply_wanted(example) if isinstance(example, ChatRow) else example.target
