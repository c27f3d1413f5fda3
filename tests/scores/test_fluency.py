"""Fluency: bits per character by its definition, and what is not compared."""

from __future__ import annotations

import math

import pytest

from gpt2kit.errors import UserError
from gpt2kit.scores import names, notes
from gpt2kit.scores.comparison import compare
from gpt2kit.scores.fluency import fluency
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.result import Scores, TestSet

TEXTS, BITS = ["abcd", "ab", "", "春眠"], [4.0, 6.0, 0.0, 10.0]
FEW = Resampling(resamples=100)


def of(reference: str = "judge", tokenizer: str = "t", texts: list[str] = TEXTS) -> Scores:
    nats = [bits * math.log(2) for bits in BITS]
    return fluency(texts, nats, TestSet.of(TEXTS), reference, tokenizer, "fp32", resampling=FEW)


def test_bits_are_summed_over_characters() -> None:
    found = of()["fluency"]
    assert found.value == pytest.approx(20 / 8)
    assert found.unit == "bits per character"
    assert found.low is not None
    assert found.high is not None
    assert 1 <= found.low < found.value < found.high <= 5


def test_empty_texts_are_counted_and_left_out() -> None:
    assert of().notes == ("fluency is over 3 of 4 texts: the others are empty",)
    assert of(texts=[""] * 4).notes == ("fluency is undefined: every text is empty",)
    assert all(notes.chinese(note) != note for text in (TEXTS, [""] * 4) for note in of(texts=text).notes)


def test_figures_by_unlike_references_are_not_compared() -> None:
    assert compare(of()["fluency"], of()["fluency"]).difference == 0
    for other in (of(reference="another"), of(tokenizer="u")):
        with pytest.raises(UserError, match="cannot be compared"):
            compare(of()["fluency"], other["fluency"])


def test_less_is_better() -> None:
    assert names.describe("fluency").less_is_better
    assert names.describe("fluency_of_references").less_is_better
