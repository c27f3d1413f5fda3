"""`gpt2kit generate` by the engine, in both precisions, and by the model file itself."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from gpt2kit import engine
from gpt2kit.model import folder
from gpt2kit.model.generate import generate
from gpt2kit.model.sampling import SamplingSettings

Run = Callable[..., Any]
Trained = Any  # conftest's: folder, text, result
GREEDY = ("--temperature", 0, "--max-tokens", 40)  # the window of 16 positions slides


@pytest.mark.parametrize("flags", [(), ("--precision", "int8"), ("--precision", "fp32"), ("--reference",)])
def test_every_decoder_writes_on(trained: Trained, run: Run, flags: tuple[str, ...]) -> None:
    words = ("generate", trained.folder, "The ", "--seed", 5, "--max-tokens", 12, *flags)
    shown = run(*words)
    assert shown.code == 0
    assert shown.out.startswith("The ")
    assert run(*words).out == shown.out
    told = json.loads(run(*words, "--json").out)
    assert told["prompt"] + told["text"] + "\n" == shown.out
    assert len(told["token_ids"]) == 12


def test_the_default_decoder_is_the_engine_and_reference_is_the_model_file(
    trained: Trained, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("not this one")

    words = ("generate", trained.folder, "The ", "--max-tokens", 3)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "load", refuse)
        assert run(*words).code == 0
        with pytest.raises(AssertionError, match="not this one"):
            run(*words, "--reference")
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "load", refuse)
        assert run(*words, "--reference").code == 0
        with pytest.raises(AssertionError, match="not this one"):
            run(*words)


@pytest.mark.parametrize("prompt", ["The ", "a", "import x\n"])
def test_the_float_engine_writes_the_model_files_greedy_text(trained: Trained, run: Run, prompt: str) -> None:
    words = ("generate", trained.folder, prompt, *GREEDY)
    assert run(*words, "--precision", "fp32").out == run(*words, "--reference").out
    engines, reference = (
        json.loads(run(*words, "--json", "--logprobs", 0, *flags).out)
        for flags in (("--precision", "fp32"), ("--reference",))
    )
    assert engines["token_ids"] == reference["token_ids"]
    for ours, theirs in zip(engines["logprobs"], reference["logprobs"], strict=True):
        assert math.isclose(ours["logprob"], theirs["logprob"], abs_tol=1e-4)


def test_int8_is_near_the_model_file_and_not_it(trained: Trained) -> None:
    """Near enough to be the same model, far enough to show that it was int8 that ran."""
    model, tokenizer = folder.load(trained.folder)
    assert tokenizer is not None
    settings = SamplingSettings(max_tokens=8, temperature=0, logprobs=0)
    ids = tokenizer.encode("The ")
    (expected,) = generate(model, [ids], settings, tokenizer=tokenizer)[0]
    with engine.Engine.load(trained.folder, "int8") as loaded:
        (found,) = loaded.generate([ids], settings)
    assert isinstance(found, type(expected))
    assert found.logprobs is not None
    assert expected.logprobs is not None
    first, same = found.logprobs[0].logprob, expected.logprobs[0].logprob
    assert first != same
    assert abs(first - same) < 0.1


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_stream_outlives_the_name_of_its_engine(trained: Trained, precision: engine.engine.Precision) -> None:
    changes: dict[str, Any] = {"max_tokens": 25, "temperature": 0.0}
    with engine.Engine.load(trained.folder, precision) as held:
        (expected,) = held.generate("The ", **changes)
    texts = []
    for event in engine.Engine.load(trained.folder, precision).stream("The ", **changes):
        if not texts:
            gc.collect()
        texts.append(event.text)
    assert "".join(texts) == expected.text
    assert event.finish_reason == "length"
