"""The first thing that a newcomer runs: a small GPT-2 from text that every Python carries, no network needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.recipes.options import TrainOptions

TEXT = "python-documentation.txt"


def corpus() -> str:
    """The language reference behind Python's help(): about 0.4 million characters of English and code."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def demo(out: str, seconds: float, seed: int, run: Callable[[TrainOptions], int]) -> int:
    """Write the corpus beside the run, train, and generate from the result; returns `run`'s exit code."""
    from gpt2kit.model import folder
    from gpt2kit.model.generate import generate
    from gpt2kit.model.sampling import SamplingSettings

    target = Path(out)
    ours = (target / TEXT).is_file() and (target / "data").is_dir()
    if target.exists() and not ours and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} holds something that is not a demo", hint="gpt2kit demo --out another/folder")
    shutil.rmtree(target, ignore_errors=True)
    source = target.parent / f".{target.name}-text"
    source.mkdir(parents=True, exist_ok=True)
    try:
        (source / TEXT).write_text(corpus(), encoding="utf-8")
        code = run(TrainOptions(data=[str(source / TEXT)], out=out, minutes=seconds / 60, seed=seed))
    finally:
        if target.exists():  # after an interruption too: it marks the folder as a demo, which the next one may replace
            shutil.move(source / TEXT, target / TEXT)
        shutil.rmtree(source, ignore_errors=True)
    if code or commit.manifest(target) is None:
        return code
    model, tokenizer = folder.load(target)
    assert tokenizer is not None
    settings = SamplingSettings(max_tokens=120, temperature=0.7, top_p=0.95, seed=seed)
    prompt = "The statement"
    text = generate(model, [tokenizer.encode(prompt)], settings, tokenizer=tokenizer)[0][0].text
    print(f"\nit writes:\n\n{prompt}{text}")
    return 0
