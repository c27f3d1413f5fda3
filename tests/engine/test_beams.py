"""Beam search by the engine: the model file's beams in float32; in int8 the same beams in any company."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit.engine import Engine, Request
from gpt2kit.engine.cache import BLOCK
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.completion import Completion
from gpt2kit.model.generate import generate
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.text.training import train_tokenizer

TEXT = "春眠不觉晓，处处闻啼鸟。The old wolf and the old sheep. "
N = 48


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer([TEXT * 3], "bpe", vocab_size=300)
    config = GPT2Config(tokenizer.vocab_size, N, 24, 2, 3, initializer_range=0.2)
    out = tmp_path_factory.mktemp("beams") / "model"
    folder.save(out, GPT2(config, torch.Generator().manual_seed(1)), tokenizer, {"name": "beams"})
    return out


@pytest.fixture(scope="module")
def fp32(path: Path) -> Iterator[Engine]:
    with Engine.load(path, "fp32", 1, max_batch=8) as engine:
        yield engine


def searched(engine: Engine, prompt: Any, **settings: Any) -> list[Completion]:
    """Always a list, of one completion where n is 1."""
    found = engine.generate([prompt], SamplingSettings(**{"temperature": 0, **settings}))[0]
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"num_beams": 4, "n": 3, "length_penalty": 0.5},
        {"num_beams": 12, "n": 2, "max_tokens": 6},  # more beams than the engine has places
        {"num_beams": 3, "no_repeat_ngram": 2, "repetition_penalty": 1.3, "min_tokens": 4},
        {"num_beams": 3, "logit_bias": {5: 3.0}, "stop": ["e"], "logprobs": 2},
        {"num_beams": 4, "max_tokens": 70},  # the view slides
        {"num_beams": 2, "max_tokens": 0},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_float_engines_beams_are_the_model_files(path: Path, fp32: Engine, settings: dict[str, Any]) -> None:
    model, tokenizer = folder.load(path)
    assert tokenizer is not None
    chosen = SamplingSettings(**{"temperature": 0, "max_tokens": 12, **settings})
    for text in ("The old", "春", "the old wolf and the old sheep and the old wolf"):
        ids = tokenizer.encode(text)
        expected = generate(model, [ids], chosen, tokenizer=tokenizer)[0]
        found = searched(fp32, ids, **{"max_tokens": 12, **settings})
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        assert [one.text for one in found] == [one.text for one in expected]
        assert [(one.finish_reason, one.stop_reason, one.window_slid) for one in found] == [
            (one.finish_reason, one.stop_reason, one.window_slid) for one in expected
        ]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_a_window_that_stops_ends_the_beams(path: Path, fp32: Engine) -> None:
    ids = [7] * (N - 3)
    model, tokenizer = folder.load(path)
    chosen = SamplingSettings(temperature=0, num_beams=3, max_tokens=20)
    expected = generate(model, [ids], chosen, tokenizer=tokenizer, window="stop")[0]
    (found,) = fp32.generate([ids], chosen, window="stop")
    assert isinstance(found, Completion)
    assert found.token_ids == expected[0].token_ids
    assert len(found.token_ids) <= 4


def test_in_int8_the_beams_are_the_same_in_any_company(path: Path) -> None:
    settings = {"num_beams": 4, "n": 4, "max_tokens": 30}
    with Engine.load(path, "int8", 1, max_batch=4) as alone:
        expected = searched(alone, "The old wolf", **settings)
    with Engine.load(path, "int8", 2, max_batch=6) as engine:
        ends = threading.Event()

        def company() -> None:
            seed = 0
            while not ends.is_set():
                seed += 1
                prompts = [TEXT[k : k + 9] for k in range(5)]
                engine.generate(prompts, max_tokens=7, temperature=0.9, seed=seed)

        neighbours = threading.Thread(target=company)
        neighbours.start()
        try:
            for _ in range(3):
                assert searched(engine, "The old wolf", **settings) == expected
        finally:
            ends.set()
            neighbours.join()
    assert len({tuple(one.token_ids) for one in expected}) == 4


def test_one_likeliest_beam_is_greedy_in_int8(path: Path) -> None:
    """Two beams hold the greedy one until another is likelier; with a single token they are its two likeliest."""
    with Engine.load(path, "int8", 1, max_batch=2) as engine:
        (greedy,) = engine.generate(["The old"], temperature=0, max_tokens=1, logprobs=2)
        assert isinstance(greedy, Completion)
        assert greedy.logprobs is not None
        alternatives = greedy.logprobs[0].alternatives
        assert alternatives is not None
        found = searched(engine, "The old", num_beams=2, n=2, max_tokens=1)
        assert [one.token_ids for one in found] == [[token] for token, _ in alternatives]
        assert [one.score for one in found] == pytest.approx([logprob for _, logprob in alternatives], abs=1e-6)


def test_what_beams_have_in_common_is_computed_once(fp32: Engine) -> None:
    before = fp32.stats().totals.rows
    prompt, steps, beams = [3 + k % 11 for k in range(30)], 10, 4
    searched(fp32, prompt, num_beams=beams, max_tokens=steps, ignore_eos=True)
    assert fp32.stats().totals.rows - before <= len(prompt) + steps * beams * BLOCK


def test_beams_beside_other_prompts_of_one_call_keep_their_order(fp32: Engine) -> None:
    settings = [
        SamplingSettings(temperature=0, max_tokens=4),
        SamplingSettings(temperature=0, max_tokens=4, num_beams=3),
    ]
    both = fp32.generate(["The old", "The old"], settings)
    assert both[0] == fp32.generate(["The old"], settings[0])[0]
    assert both[1] == fp32.generate(["The old"], settings[1])[0]


def test_wrong_beams_are_user_errors_and_the_engine_goes_on(fp32: Engine) -> None:
    with pytest.raises(UserError, match="there is no stream"):
        fp32.submit(Request("The", SamplingSettings(temperature=0, num_beams=2)))
    with pytest.raises(UserError, match="outside the vocabulary"):
        searched(fp32, [100_000], num_beams=2)
    with pytest.raises(UserError, match="adapter"):
        fp32.generate(["The"], temperature=0, num_beams=2, adapter="none")
    with pytest.raises(UserError, match="every token is banned"):
        searched(fp32, "The", num_beams=2, bad_words=[[i] for i in range(fp32.config.vocab_size)])
    assert len(searched(fp32, "The", num_beams=2, max_tokens=2)) == 1
