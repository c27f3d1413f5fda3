"""Accuracy and perplexity of last words: the definitions, and what is refused."""

from __future__ import annotations

import math

import pytest

from gpt2kit.errors import UserError
from gpt2kit.scores.comparison import compare
from gpt2kit.scores.last_word import last_word

WORDS, NATS, GREEDY = [" tea", " sea", " he", " moon"], [0.5, 2.0, 0.1, 4.0], [True, False, True, False]


def test_the_figures_are_their_definitions() -> None:
    found = last_word(WORDS, NATS, GREEDY)
    assert found["accuracy"].value == 0.5
    perplexity = found["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(6.6 / 4))
    assert perplexity.unit == "perplexity per word"
    assert perplexity.low is not None
    assert perplexity.high is not None
    assert perplexity.low < perplexity.value < perplexity.high


def test_two_models_are_compared_in_pairs() -> None:
    first = last_word(WORDS * 30, NATS * 30, GREEDY * 30)
    second = last_word(WORDS * 30, [one * 0.8 for one in NATS] * 30, [True] * 120)
    assert compare(first["accuracy"], second["accuracy"]).difference == 0.5
    found = compare(first["perplexity"], second["perplexity"])
    assert found.high is not None
    assert found.high < 0


def test_a_hopeless_model_has_a_finite_figure() -> None:
    assert math.isfinite(last_word(["x"] * 3, [900.0, 1e6, 800.0], [False] * 3)["perplexity"].value)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        last_word(WORDS, [0.5, math.nan, 1, 2], GREEDY)
    with pytest.raises(UserError):
        last_word(WORDS, NATS[:3], GREEDY)
    with pytest.raises(UserError):
        last_word([], [], [])


def test_single_characters_are_no_words() -> None:
    assert last_word(["来", "天"], [0.5, 2.0], [True, False])["perplexity"].unit == "perplexity per character"
    assert last_word(["来", " 天"], [0.5, 2.0], [True, False])["perplexity"].unit == "perplexity per word"
