"""Files -> documents -> perplexity and bits, by the one protocol of `evaluation.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gpt2kit import runtime
from gpt2kit.data.packed import open_packed
from gpt2kit.data.sources import SourceReport, read_documents
from gpt2kit.evaluation import Evaluation, evaluate
from gpt2kit.model import folder
from gpt2kit.recipes.data import is_packed


def evaluate_files(
    model_folder: str | Path,
    paths: Sequence[str],
    context: int | None = None,
    stride: int | None = None,
    field: str | None = None,
    note: Callable[[str], None] = lambda text: None,
    allow_hub: bool = False,
    threads: int | None = None,
) -> Evaluation:
    """Score a model on text files, or on the validation split of a packed folder."""
    notes: list[str] = []
    runtime.set_threads(threads)
    runtime.tune_allocator()
    model, tokenizer = folder.load(model_folder, notes=notes, allow_hub=allow_hub)
    if len(paths) == 1 and is_packed(paths[0]):
        tokens = open_packed(paths[0], "val", None if tokenizer is None else tokenizer.hash)
        result = evaluate(model, tokenizer, tokens, context, stride)
    else:
        report = SourceReport()
        result = evaluate(model, tokenizer, read_documents(paths, field, report), context, stride)
        notes += report.notes
    for text in notes:
        note(text)
    return result
