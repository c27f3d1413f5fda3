"""Files -> documents -> perplexity and bits, by the one protocol of `evaluation.py`, with intervals over documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit import runtime
from gpt2kit.data.packed import open_packed
from gpt2kit.data.sources import SourceReport, read_documents
from gpt2kit.evaluation import Evaluation, evaluate
from gpt2kit.model import folder
from gpt2kit.model.files import lineage
from gpt2kit.recipes.data import is_packed
from gpt2kit.scores.likelihood import likelihood
from gpt2kit.scores.report import TEXT, Beside, Example, Report, losses_of, write_report
from gpt2kit.scores.result import Scores
from gpt2kit.training.track import read_metrics
from gpt2kit.wording import plural


@dataclass(frozen=True)
class Measured:
    """A text's figures, their intervals, and another model's beside them where that was asked for."""

    evaluation: Evaluation
    scores: Scores
    beside: tuple[Beside, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON's shape: "metrics" as every score has them, "intervals" with how they were drawn, and the evaluation."""
        protocol = self.scores.to_dict()["protocol"]
        drawn = {key: protocol[key] for key in ("blocks", "resamples", "confidence", "seed")}
        metrics = {score.name: score.to_dict() for score in self.scores}
        return {"metrics": metrics, "intervals": drawn, **self.evaluation.to_dict()}


def evaluate_files(
    model_folder: str | Path,
    paths: Sequence[str],
    context: int | None = None,
    stride: int | None = None,
    field: str | None = None,
    note: Callable[[str], None] = lambda text: None,
    allow_hub: bool = False,
    threads: int | None = None,
    against: str | Path | None = None,
) -> Measured:
    """Score a model on text files, or on the validation split of a packed folder; `against`: another, on the same."""
    runtime.set_threads(threads)
    runtime.tune_allocator()
    report, notes = SourceReport(), list[str]()
    folders = [model_folder] if against is None else [model_folder, against]
    loaded = [folder.load(one, notes=notes, allow_hub=allow_hub) for one in folders]
    if len(paths) == 1 and is_packed(paths[0]):
        texts: list[Any] = [open_packed(paths[0], "val", None if own is None else own.hash) for _, own in loaded]
    else:
        documents = read_documents(paths, field, report)
        texts = [documents] if against is None else [list(documents)] * 2  # standard input is read once
    found = [
        evaluate(model, tokenizer, text, context, stride)
        for (model, tokenizer), text in zip(loaded, texts, strict=True)
    ]
    for line in [*notes, *report.notes]:
        note(line)
    ours, *others = [likelihood(one.to_dict(), one.blocks) for one in found]
    return Measured(found[0], ours, tuple(Beside.of(str(against), other, ours) for other in others))


def write(out: str | Path, model_folder: str | Path, found: Measured) -> Path:
    """report.json and report.html in `out`: the scores, the texts that are hardest to predict."""
    report = Report(
        f"{Path(model_folder).resolve().name}: {plural(found.evaluation.documents, 'document')}", found.scores, TEXT,
        beside=found.beside, losses=losses_of(read_metrics(Path(model_folder))), lineage=lineage(model_folder),
        examples=tuple(Example(one.text, "", "", one.bits_per_byte) for one in found.evaluation.hardest),
        example_score="bits_per_byte",
    )  # fmt: skip
    return write_report(out, report)
