"""A scored test set -> the same with the fluency of what was written, and of the references, by another model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from gpt2kit.errors import UserError
from gpt2kit.model.files import identity, resolve
from gpt2kit.recipes.score import Scored
from gpt2kit.recipes.score_report import wanted
from gpt2kit.scores.fluency import fluency
from gpt2kit.scores.result import TestSet
from gpt2kit.tasks.likelihood import nats_of
from gpt2kit.tasks.reference import answered_by, open_for_tasks
from gpt2kit.wording import plural

WRITTEN = ("translate", "summarise", "correct", "edit", "instruct", "chat")
TOGETHER = 128  # texts that are read before progress is told


def check_fluency(task: str | None, folder: str | Path, reference: str | Path) -> None:
    """UserError, before anything is answered, where the task writes no texts or the reference is no other model."""
    if task not in WRITTEN:
        raise UserError(f"--fluency-by is of written answers, not of {task}", hint=f"tasks: {', '.join(WRITTEN)}")
    if resolve(reference)[0].resolve() == resolve(folder)[0].resolve():
        raise UserError("the reference is the model itself, which finds likely what it wrote", hint="name another")


def add_fluency(
    found: Scored,
    reference: str | Path,
    precision: Literal["auto", "int8", "fp32"] = "auto",
    threads: int | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_load: Callable[[str, int, int], None] | None = None,
) -> Scored:
    """`found` with `fluency` and `fluency_of_references`. UserError where the reference cannot read texts."""
    inputs = [example.key for example in found.examples]
    kinds = {"": [answer.text.strip() for answer in found.answers],
             "references": [wanted(example).strip() for example in found.examples]}  # fmt: skip
    test, scores, total = TestSet.of(kinds["references"], inputs), found.scores, 2 * len(inputs)
    known = f"{Path(reference).resolve().name}, sha256 {identity(reference)}"
    with open_for_tasks(reference, precision, threads, on_load) as engine:
        note(f"fluency by {reference}: {answered_by(engine)}")
        done = 0
        for of, texts in kinds.items():
            nats: list[float] = []
            for a in range(0, len(texts), TOGETHER):
                nats += nats_of(engine, texts[a : a + TOGETHER])
                progress(done + len(nats), total)
            done += len(nats)
            assert engine.tokenizer is not None
            lossy = sum(engine.tokenizer.decode(engine.tokenizer.encode(text)) != text for text in texts)
            if lossy:
                note(f"of {plural(lossy, 'text')} the reference cannot write every character: fluency flatters them")
            scores += fluency(texts, nats, test, known, engine.tokenizer.hash, engine.precision, of)
    return dataclasses.replace(found, scores=scores)
