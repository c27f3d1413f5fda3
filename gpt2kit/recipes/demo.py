"""The first thing that a newcomer runs: a small GPT-2 from text that every Python carries, no network needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.generate import generate
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.recipes import pretrain
from gpt2kit.recipes.events import Event, Finished, Note, Reading
from gpt2kit.recipes.options import TrainOptions

TEXT = "python-documentation.txt"
PROMPT = "The statement"


def corpus() -> str:
    """The language reference behind Python's help(): about 0.4 million characters of English and code."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def demo(
    out: str,
    seconds: float,
    seed: int,
    stop: Callable[[], bool],
    report: Callable[[Reading], None] = lambda reading: None,
) -> Generator[Event, None, None]:
    """Write the corpus beside the run, train, and write with the result; the events are those of `pretrain.start`."""
    if seconds < 3:
        raise UserError(f"seconds must be at least 3, got {seconds:g}")
    target = Path(out)
    alone = target.is_dir() and {path.name for path in target.iterdir()} == {TEXT}  # it was stopped while it packed
    ours = alone or ((target / TEXT).is_file() and (target / "data").is_dir())
    if target.exists() and not ours and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} holds something that is not a demo", hint="gpt2kit demo --out another/folder")
    source = target.parent / f".{target.name}-text"
    options = TrainOptions(data=[str(source / TEXT)], out=out, minutes=seconds / 60, seed=seed)
    shutil.rmtree(target, ignore_errors=True)
    source.mkdir(parents=True, exist_ok=True)
    try:
        (source / TEXT).write_text(corpus(), encoding="utf-8")
        for event in pretrain.start(options, stop, report):
            if isinstance(event, Finished) and event.resume is None:
                yield Note(f"\nit writes:\n\n{_written(target, seed)}")
            yield event
    finally:
        if target.exists():  # after an interruption too: it marks the folder as a demo, which the next one may replace
            shutil.move(source / TEXT, target / TEXT)
        shutil.rmtree(source, ignore_errors=True)


def _written(model_folder: Path, seed: int) -> str:
    model, tokenizer = folder.load(model_folder)
    assert tokenizer is not None
    settings = SamplingSettings(max_tokens=120, temperature=0.7, top_p=0.95, seed=seed)
    completion = generate(model, [tokenizer.encode(PROMPT)], settings, tokenizer=tokenizer)[0][0]
    return PROMPT + (completion.text or "")
