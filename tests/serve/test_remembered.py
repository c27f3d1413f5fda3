"""The answers of deterministic requests: found by everything they depend on, bounded, never across tenants."""

from __future__ import annotations

import dataclasses
import random
import threading
import tracemalloc
from typing import Any

import pytest

from gpt2kit.model.completion import Completion
from gpt2kit.model.sampling import Choice, SamplingSettings
from gpt2kit.serve.remembered import Remembered, Result, weigh

ASKED: dict[str, Any] = {
    "identity": "a" * 64,
    "precision": "int8",
    "settings": SamplingSettings(temperature=0.0),
    "ids": [1, 2, 3],
    "salt": "shop",
    "echo": False,
}
OTHER = {
    "identity": "b" * 64,
    "precision": "fp32",
    "settings": SamplingSettings(temperature=0.0, max_tokens=5),
    "ids": [1, 23],
    "salt": "",
    "echo": True,
}


def choices(tokens: int, alternatives: int) -> list[Choice]:
    return [
        Choice(300 + i, -0.1 * i, tuple((1000 + j, -1.0 * j - i) for j in range(alternatives))) for i in range(tokens)
    ]


def result(tokens: int = 3, alternatives: int = 0, n: int = 1) -> Result:
    completions = []
    for number in range(n):
        text = "".join(chr(0x4E00 + i) for i in range(tokens))
        ids = [300 + i for i in range(tokens)]
        completions.append(Completion(ids, text, "length", None, choices(tokens, alternatives), 1000 + number))
    return Result(completions, choices(tokens, alternatives))


def key_of(remembered: Remembered, **changes: Any) -> bytes | None:
    return remembered.key(**(ASKED | changes))


@pytest.mark.parametrize("field", list(ASKED))
def test_an_answer_is_found_by_all_that_it_depends_on(field: str) -> None:
    remembered = Remembered(1 << 20)
    remembered.put(key_of(remembered), result())
    assert remembered.get(key_of(remembered, ids=[1, 2, 3])) == result()
    assert remembered.get(key_of(remembered, **{field: OTHER[field]})) is None
    assert (remembered.hits, remembered.misses) == (1, 1)


@pytest.mark.parametrize("field", sorted({f.name for f in dataclasses.fields(SamplingSettings)} - {"num_beams"}))
def test_every_setting_counts(field: str) -> None:
    changes: dict[str, Any] = {
        "max_tokens": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.5, "typical_p": 0.5,
        "repetition_penalty": 2.0, "presence_penalty": 1.0, "frequency_penalty": 1.0, "no_repeat_ngram": 2,
        "bad_words": [[1]], "logit_bias": {1: 2.0}, "seed": 9, "n": 2, "stop": ["x"], "stop_token_ids": [4],
        "ignore_eos": True, "min_tokens": 2, "logprobs": 1, "length_penalty": 2.0,
    }  # fmt: skip
    remembered = Remembered(1 << 20)
    settings = SamplingSettings(seed=1)
    other = dataclasses.replace(settings, **{field: changes[field]})
    assert key_of(remembered, settings=settings) != key_of(remembered, settings=other)


def test_only_what_can_have_one_answer_is_remembered() -> None:
    remembered = Remembered(1 << 20)
    assert key_of(remembered, settings=SamplingSettings(temperature=1.0)) is None
    assert key_of(remembered, settings=SamplingSettings(temperature=1.0, seed=0)) is not None
    assert key_of(remembered, settings=SamplingSettings(temperature=0.0)) is not None
    remembered.put(None, result())
    assert remembered.get(None) is None
    assert remembered.used == 0


def test_without_room_nothing_is_looked_up() -> None:
    remembered = Remembered(0)
    assert key_of(remembered) is None


def test_the_answer_used_least_recently_goes_first_and_the_limit_holds() -> None:
    size = weigh(result())
    remembered = Remembered(3 * size)
    keys = [key_of(remembered, ids=[i]) for i in range(4)]
    for key in keys[:3]:
        remembered.put(key, result())
    assert remembered.get(keys[0]) is not None
    remembered.put(keys[3], result())
    assert [remembered.get(key) is not None for key in keys] == [True, False, True, True]
    assert remembered.used == 3 * size
    remembered.put(keys[0], result())  # once more the same
    assert remembered.used == 3 * size
    remembered.put(keys[1], result(tokens=100))  # larger than all
    assert remembered.get(keys[1]) is None
    assert remembered.get(keys[3]) is not None


@pytest.mark.parametrize(
    "shape", [(1, 0, 1), (100, 0, 1), (100, 5, 1), (30, 20, 8), pytest.param((1000, 0, 1), marks=pytest.mark.slow)]
)
def test_the_bound_is_not_less_than_what_an_answer_takes(shape: tuple[int, int, int]) -> None:
    count = 50
    remembered = Remembered(1 << 30)
    keys = [key_of(remembered, ids=[i]) for i in range(count)]
    result(*shape)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for key in keys:
        remembered.put(key, result(*shape))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.4 * remembered.used < taken <= remembered.used


def test_many_threads_keep_the_books_straight() -> None:
    remembered = Remembered(20 * weigh(result()))
    keys = [key_of(remembered, ids=[i]) for i in range(60)]

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2000):
            key = rng.choice(keys)
            if remembered.get(key) is None:
                remembered.put(key, result())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert remembered.used == sum(size for _, size in remembered._entries.values()) <= remembered.limit
