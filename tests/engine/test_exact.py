"""One hash in any company: the real engine's answers, however they are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from oracle import Oracle

from gpt2kit.engine import Engine, source
from gpt2kit.engine.forward import Forward
from gpt2kit.engine.weights import PackedWeights, pack
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

CONFIG = GPT2Config(vocab_size=384, n_positions=160, n_embd=64, n_layer=2, n_head=2, eos_token_id=0)
ENGLISH = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of folly. "
CHINESE = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。床前明月光，疑是地上霜。"
TOKENS = 64


@pytest.fixture(scope="module")
def packed() -> PackedWeights:
    return pack(source.random_weights(CONFIG, 11))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([ENGLISH * 3, CHINESE * 3], vocab_size=CONFIG.vocab_size)


def prompts_for(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """A third English, a third Chinese, a third random ids; some begin alike, some repeat themselves, one is long."""
    rng, found = np.random.default_rng(3), []
    for i in range(count):
        if i % 3 == 2:
            ids = rng.integers(1, CONFIG.vocab_size, int(rng.integers(1, 90))).tolist()
        else:
            text = (ENGLISH, CHINESE)[i % 3]
            start = 0 if i % 2 else int(rng.integers(len(text)))
            ids = tokenizer.encode((text * 3)[start : start + int(rng.integers(4, 150))])
            assert max(ids) < CONFIG.vocab_size
        found.append(ids[:140])
    return found


def settings_for(count: int) -> list[SamplingSettings]:
    """Greedy and seeded sampling of several kinds."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 40},
        {"temperature": 1.1, "top_p": 0.9, "repetition_penalty": 1.2},
    ]
    return [SamplingSettings(max_tokens=TOKENS, seed=1000 + i, logprobs=1, **kinds[i % 4]) for i in range(count)]


def digest(answers: Sequence[Any]) -> str:
    """Over all tokens, reasons and log-probabilities."""
    told = [(a.token_ids, a.finish_reason, a.window_slid, a.logprobs) for a in answers]
    return hashlib.sha256(repr(told).encode()).hexdigest()


class Ways:
    """Every way to compute the same answers."""

    def __init__(self, packed: PackedWeights, tokenizer: Tokenizer, count: int) -> None:
        self.packed = packed
        self.prompts, self.settings = prompts_for(tokenizer, count), settings_for(count)

    def engine(
        self, max_batch: int = 8, threads: int = 2, rows: int = 128, kernels: str = "auto", blocks: int = 200
    ) -> Engine:
        forward = Forward(self.packed, threads, blocks, rows + max_batch, max_batch + 32, max_batch, kernels)
        return Engine(forward, None, max_batch, eos_id=0)

    def batches(self, engine: Engine, size: int, order: Sequence[int], speculate: bool = True) -> str:
        """The hash when so many requests at a time are handed in, in that order."""
        answers: dict[int, Any] = {}
        for start in range(0, len(order), size):
            part = [int(i) for i in order[start : start + size]]
            found = engine.generate(
                [self.prompts[i] for i in part], [self.settings[i] for i in part], speculate=speculate
            )
            answers.update(zip(part, found, strict=True))
        return digest([answers[i] for i in range(len(order))])

    def all(self) -> Iterator[tuple[str, str]]:
        n = len(self.prompts)
        straight, shuffled = range(n), np.random.default_rng(8).permutation(n)
        with self.engine(max_batch=1) as engine:
            yield "alone", self.batches(engine, 1, straight, speculate=False)
            yield "alone again, prefixes from the cache", self.batches(engine, 1, straight, speculate=False)
            yield "alone, speculating", self.batches(engine, 1, shuffled)
        for size in (2, 8, 32):
            with self.engine(max_batch=size) as engine:
                yield f"batches of {size}, random neighbours", self.batches(engine, size, shuffled)
                yield f"batches of {size}, no speculation", self.batches(engine, size, straight[::-1], speculate=False)
        with self.engine() as engine:
            yield "all at once, more than run together", self.batches(engine, n, shuffled)
        with self.engine(blocks=24) as engine:
            yield "few blocks: waiting and eviction", self.batches(engine, n, straight)
        for rows in (16, 23, 64):
            with self.engine(rows=rows) as engine:
                yield f"prompts in chunks of {rows}", self.batches(engine, 8, shuffled)
        with self.engine(threads=1) as engine:
            yield "one thread", self.batches(engine, 8, straight)
        with self.engine(kernels="plain") as engine:
            yield "plain kernels", self.batches(engine, 8, straight)


def check_all(packed: PackedWeights, tokenizer: Tokenizer, count: int) -> None:
    seen = dict(Ways(packed, tokenizer, count).all())
    assert len(set(seen.values())) == 1, seen


def test_a_dozen_prompts_have_one_hash_in_any_company(packed: PackedWeights, tokenizer: Tokenizer) -> None:
    check_all(packed, tokenizer, 12)


@pytest.mark.slow
def test_five_hundred_prompts_have_one_hash_in_any_company(packed: PackedWeights, tokenizer: Tokenizer) -> None:
    check_all(packed, tokenizer, 500)


def test_greedy_text_is_the_oracles(packed: PackedWeights) -> None:
    """Token by token from numpy's logits, with nothing of the engine: no cache, no scheduler, no kernels."""
    oracle, prompt = Oracle(source.random_weights(CONFIG, 11)), [5, 6, 7, 300, 5, 6]
    ids = list(prompt)
    for _ in range(24):
        ids.append(int(oracle.logits(ids)[-1].argmax()))
    with Engine(Forward(packed, 2, 20), None, 4, eos_id=0) as engine:
        answer = engine.generate(prompt, max_tokens=24, temperature=0, ignore_eos=True)[0]
    assert answer.token_ids == ids[len(prompt) :]


@pytest.mark.parametrize("speculate", [False, True])
def test_sampled_frequencies_are_those_of_the_softmax(packed: PackedWeights, speculate: bool) -> None:
    """chi2 over the second token after a prompt that repeats itself, 3,000 seeds."""
    prompt, draws = [9, 8, 7, 9, 8, 7, 9], 3000
    logits = Oracle(source.random_weights(CONFIG, 11)).logits(prompt)[-1].astype(np.float64)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    with Engine(Forward(packed, 2, 200, 160, 96), None, 32, eos_id=0) as engine:
        each = [SamplingSettings(max_tokens=2, seed=seed, ignore_eos=True) for seed in range(draws)]
        answers = engine.generate([prompt] * draws, each, speculate=speculate)
    counts = np.bincount([answer.token_ids[0] for answer in answers], minlength=CONFIG.vocab_size)
    likely = share * draws >= 5  # the others are one class
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(share[likely], share[~likely].sum()) * draws
    chi2, freedom = float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1
    assert chi2 < freedom + 4.5 * np.sqrt(2 * freedom), (chi2, freedom)  # 4.5 standard deviations; the seeds are fixed
