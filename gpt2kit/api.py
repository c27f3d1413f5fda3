"""The same things as the command line's, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2kit.errors import unknown
from gpt2kit.model import folder
from gpt2kit.model.completion import Completion
from gpt2kit.model.generate import generate as generate_ids
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.recipes import events, pretrain
from gpt2kit.recipes.options import TrainOptions
from gpt2kit.text.tokenizer import Tokenizer


def load(path: str | Path) -> tuple[GPT2, Tokenizer | None]:
    """The model of a folder, in eval mode, and its tokenizer (None where the folder has none)."""
    return folder.load(path)


def generate(
    model: GPT2, tokenizer: Tokenizer, prompt: str, *, allow_special: bool = False, **settings: Any
) -> list[Completion]:
    """`settings["n"]` completions of a prompt; the names are SamplingSettings' (max_tokens, temperature, seed ...).

    With num_beams above 1 the temperature is 0 unless it is given. With `allow_special` the tokenizer's special
    tokens in the prompt are themselves; else they are text like any other.
    """
    _check("sampling setting", settings, SamplingSettings)
    if settings.get("num_beams", 1) != 1:
        settings.setdefault("temperature", 0.0)
    ids = tokenizer.encode(prompt, "all" if allow_special else frozenset())
    return generate_ids(model, [ids], SamplingSettings(**settings), tokenizer=tokenizer)[0]


def train(
    data: str | Path | Sequence[str | Path] = (),
    out: str | Path = "",
    on_event: Callable[[events.Event], None] | None = None,
    **options: Any,
) -> events.Finished:
    """Train on text into the run folder `out`; `options` are the flags of `gpt2kit train` (`--from` is `from_`).

    `train(resume="runs/mine")` goes on with a run. `on_event` sees the text being read, the plan, every
    step, evaluation and sample.
    """
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    _check("option", options, TrainOptions)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    chosen = TrainOptions(data=[str(p) for p in paths], out=str(out) if out else "", **options)
    tell: Callable[[events.Event], None] = (lambda event: None) if on_event is None else on_event
    if chosen.resume is not None:
        source = pretrain.resume(chosen.resume, lambda: False)
    else:
        source = pretrain.start(chosen, lambda: False, tell)
    for event in source:
        tell(event)
    assert isinstance(event, events.Finished)
    return event


def _check(what: str, given: dict[str, Any], settings: type) -> None:
    known = [field.name for field in dataclasses.fields(settings)]
    for name in given:
        if name not in known:
            raise unknown(what, name, known)
