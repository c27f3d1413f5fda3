"""Perplexity and bits as scores: the figures of `evaluation`, with intervals over documents."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from gpt2kit.errors import UserError
from gpt2kit.evaluation import Evaluation
from gpt2kit.scores.comparison import compare, compare_what_can_be
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.likelihood import likelihood

SUMS = ("nll", "tokens", "bytes", "characters")
BLOCKS = [(3.0 * n + wobble, n, 4 * n, 4 * n - 2) for n, wobble in ((10, 4.0), (20, -6.0), (30, 1.0), (25, 0.5))]
WHOLE = [sum(column) for column in zip(*BLOCKS, strict=True)]
EVALUATION = Evaluation(
    WHOLE[0], int(WHOLE[1]), int(WHOLE[2]), int(WHOLE[3]), 4, 256, 128, "ab" * 32, "bpe token", "cd" * 32
)


def test_the_figures_are_those_of_the_evaluation() -> None:
    scores = likelihood(EVALUATION.to_dict())
    assert scores["perplexity"].unit == "perplexity per bpe token"
    assert scores["bits_per_byte"].unit == "bits per byte"
    assert scores["perplexity"].low is None
    assert scores["perplexity"].protocol["tokenizer"] == "ab" * 32
    assert scores["perplexity"].n == 85


def test_the_figures_are_those_of_the_evaluation_to_the_last_bit() -> None:
    rng = random.Random(0)
    for _ in range(200):  # of one sum both orders of two divisions may round alike
        tokens = rng.randint(1, 10**6)
        sums = (tokens * rng.uniform(0.01, 9), tokens, 4 * tokens + rng.randint(0, 99), 3 * tokens + rng.randint(0, 99))
        evaluation = dataclasses.replace(EVALUATION, **dict(zip(SUMS, sums, strict=True)))
        for score in likelihood(evaluation.to_dict()):
            assert score.value == getattr(evaluation, score.name), score.name


def test_documents_give_intervals_and_paired_comparisons() -> None:
    scores = likelihood(EVALUATION.to_dict(), BLOCKS)
    perplexity = scores["perplexity"]
    assert perplexity.low is not None
    assert perplexity.high is not None
    assert perplexity.low < EVALUATION.perplexity < perplexity.high
    better = [(nll * 0.9, *rest) for nll, *rest in BLOCKS]
    facts = EVALUATION.to_dict() | {"nll": sum(row[0] for row in better)}
    found = compare(perplexity, likelihood(facts, better)["perplexity"])  # type: ignore[arg-type]
    assert found.high is not None
    assert found.high < 0
    assert found.test == "paired permutation"


def test_one_document_shows_no_spread() -> None:
    facts = EVALUATION.to_dict() | dict(zip(("nll", "tokens", "bytes", "characters"), BLOCKS[0], strict=True))
    found = likelihood(facts, BLOCKS[:1])["loss"]  # type: ignore[arg-type]
    assert found.protocol["interval"] == "none"
    assert str(found) == "loss 3.4 (no spread)"
    against = compare(found, likelihood(facts | {"nll": 31.0 + 1e-12}, [(31.0, *BLOCKS[0][1:])])["loss"])
    assert (against.low, against.high, against.p) == (against.difference, against.difference, 1)
    assert str(against) == "loss -0.3 (no spread), p 1 (paired permutation)"


def test_bits_per_byte_are_paired_between_tokenizers() -> None:
    """The same text in each block, cut into other tokens."""
    halved = [(nll * 0.9, n * 2, size, characters) for nll, n, size, characters in BLOCKS]
    facts = EVALUATION.to_dict() | {"tokenizer_hash": "ef" * 32, "unit": "char token"}
    facts |= {"nll": sum(row[0] for row in halved), "tokens": 2 * EVALUATION.tokens}
    first, second = likelihood(EVALUATION.to_dict(), BLOCKS), likelihood(facts, halved)  # type: ignore[arg-type]
    found, refused = compare_what_can_be(first, second)
    assert [one.metric for one in found] == ["bits_per_byte", "bits_per_character"]
    assert found[0].n == EVALUATION.bytes
    assert found[0].notes == ("tokenizer differs: abababab… and efefefef…",)
    assert found[0].high is not None
    assert found[0].high < 0
    assert list(refused) == ["perplexity", "loss"]
    assert "different units: 'perplexity per bpe token' and 'perplexity per char token'" in refused["perplexity"]


def test_a_perplexity_too_large_for_a_number_is_noted() -> None:
    scores = likelihood(EVALUATION.to_dict() | {"nll": 85 * 800.0})
    assert "perplexity" not in scores
    assert scores["loss"].value == pytest.approx(800)
    assert scores.notes == ("perplexity is too large for a number: the loss is 800 nats per token",)


def test_wrong_facts_are_refused() -> None:
    facts = EVALUATION.to_dict()
    with pytest.raises(UserError, match="the evaluation says no nll, text_hash"):
        likelihood({key: value for key, value in facts.items() if key not in ("nll", "text_hash")})
    with pytest.raises(UserError, match="a finite loss and at least one token"):
        likelihood(facts | {"tokens": 0})
    with pytest.raises(UserError, match="a finite loss"):
        likelihood(facts | {"nll": math.inf})
    with pytest.raises(UserError, match="the blocks sum to"):
        likelihood(facts, BLOCKS[1:], Resampling(100))
