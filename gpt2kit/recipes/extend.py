"""A model and a text -> the model with a longer vocabulary, ready to be trained on. Wiring only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.data.sources import SourceReport, read_documents
from gpt2kit.errors import UserError
from gpt2kit.evaluation import evaluate
from gpt2kit.model import folder as model_folder
from gpt2kit.model.extend import Start, grow
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.extend import Extension, extend
from gpt2kit.text.tokenizer import measure

CHAT_TEMPLATE = "chat_template.jinja"
SHIFTS = (0.0, 0.5, 1.0)  # of transplanted rows towards the mean of all rows; the text decides
JUDGED = 10_000  # characters of it that do
MEASURED = 4 << 20  # characters of the text, from its start, whose tokens are counted before and after


@dataclass(frozen=True)
class Extended:
    """What was added, and what it saves: tokens per character of the text that the tokens were learned from."""

    folder: Path
    added: int
    vocab_size: int
    parameters: int
    before: float
    after: float


def extend_model(
    parent: str | Path,
    paths: Sequence[str],
    out: str | Path,
    add: int,
    start: Start = "transplant",
    field: str | None = None,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    reading: Callable[[int, int | None], None] = lambda read, total: None,
) -> Extended:
    """Commit the model of `parent` with at most `add` more tokens, learned from `paths`, as the model folder `out`.

    Raises UserError where the vocabulary or the text cannot give any, and for a folder that is the parent itself.
    """
    source, target = model_folder.resolve(parent)[0], Path(out)
    if "-" in paths:
        raise UserError("tokens are not learned from standard input", hint="save the text to a file first")
    if target.resolve() in (source.resolve(), Path(parent).resolve()):
        raise UserError(f"{out} is the model itself, which would be lost", hint="choose another --out")
    notes: list[str] = []
    model, tokenizer = model_folder.load(parent, notes=notes)
    if tokenizer is None:
        raise UserError(f"{parent} has no tokenizer to extend", hint="copy the tokenizer's files into the folder")
    sample: list[str] = []
    report = SourceReport()
    made = extend(tokenizer, _sampled(paths, field, report, sample, reading), add)
    for text in [*notes, *report.notes]:
        note(text)
    rates = [measure(one, sample).tokens_per_character for one in (tokenizer, made.tokenizer)]
    grown, shift = begun(model, made, start, seed, sample)
    earlier = model_folder.lineage(parent)
    lineage: dict[str, Any] = {
        "name": target.resolve().name,
        "parents": [{"folder": Path(parent).resolve().name, "hash": model_folder.identity(parent)}],
        "data": {"sources": [Path(path).name for path in paths]},
        "settings": {"add": add, "start": start},
        "seed": seed,
        "extension": {
            "first": made.first,
            "tokens": len(made.parts),
            "shift": shift,
            "tokens_per_character": {"before": rates[0], "after": rates[1]},
        },
        **{key: earlier[key] for key in ("task", "earlier") if key in earlier},
    }
    template = source / CHAT_TEMPLATE
    extra = {CHAT_TEMPLATE: template.read_bytes()} if template.exists() else {}
    model_folder.save(target, grown, made.tokenizer, lineage, extra)
    return Extended(target, len(made.parts), made.tokenizer.vocab_size, grown.config.parameters, rates[0], rates[1])


def begun(model: GPT2, made: Extension, start: Start, seed: int, texts: Sequence[str]) -> tuple[GPT2, float]:
    """The model with rows for the new tokens. Of transplanted ones that shift is taken under which the model, not yet
    trained on, gives the text's beginning the fewest bits.
    """
    if start != "transplant":
        return grow(model, made.first, made.parts, start, seed), 0.0
    judged = "\n\n".join(texts)[:JUDGED]
    best, lowest, chosen = model, math.inf, 0.0
    for shift in SHIFTS:
        grown = grow(model, made.first, made.parts, start, shift=shift)
        bits = evaluate(grown, made.tokenizer, judged).bits_per_character
        if bits < lowest:
            best, lowest, chosen = grown, bits, shift
    return best, chosen


def _sampled(
    paths: Sequence[str], field: str | None, report: SourceReport, sample: list[str],
    reading: Callable[[int, int | None], None],
) -> Iterator[str]:  # fmt: skip
    """The documents; the first MEASURED characters are kept in `sample`."""
    room = MEASURED
    for document in read_documents(paths, field, report):
        reading(report.read, report.total)
        if room > 0:
            sample.append(document.text[:room])
            room -= len(sample[-1])
        yield document.text
