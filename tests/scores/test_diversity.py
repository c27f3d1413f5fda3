"""Variety of generated texts: definitions by hand, self-BLEU against sacrebleu text by text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sacrebleu", reason="needs the extra 'scores'")

import sacrebleu

from gpt2kit.errors import UserError
from gpt2kit.scores import diversity as diversity_module
from gpt2kit.scores.comparison import compare
from gpt2kit.scores.diversity import diversity, self_bleu_values
from gpt2kit.scores.intervals import Resampling

FEW = Resampling(resamples=100)


def test_distinct_n_by_hand() -> None:
    """`a b a` and `b a c`: unigrams a b c of 6; bigrams ab ba ac of 4."""
    scores = diversity(["a b a", "b a c"], resampling=FEW)
    assert scores["distinct_1"].value == 3 / 6
    assert scores["distinct_2"].value == 3 / 4


def test_distinct_n_leaves_each_text_out_in_turn() -> None:
    """a b c d of 9 tokens; without the first a b c d of 6, without the second a b d, without the third a b c."""
    interval = diversity(["a b a", "b a c", "d d d"], resampling=FEW)["distinct_1"]
    left_out = np.array([4 / 6, 3 / 6, 3 / 6])
    error = np.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    assert interval.value == 4 / 9
    assert interval.high == pytest.approx(4 / 9 + 1.959964 * error)
    assert interval.protocol["interval"] == "jackknife"


def test_repetition_within_a_text_by_hand() -> None:
    """哈哈哈哈。: of 5 characters 2 differ; of 4 bigrams 2. 今天好。 repeats nothing."""
    scores = diversity(["哈哈哈哈。", "今天好。"], resampling=FEW)
    assert scores["rep_1"].value == pytest.approx((3 / 5 + 0) / 2)
    assert scores["rep_2"].value == pytest.approx((2 / 4 + 0) / 2)
    assert scores["rep_4"].value == 0


def test_punctuation_that_repeats_counts() -> None:
    assert diversity(["!!!!!!!!", "!!!!!!!!"], resampling=FEW)["rep_1"].value == 7 / 8


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.text(alphabet="今天好吗，ab 1", max_size=14), min_size=2, max_size=6), st.sampled_from(["zh", "13a"])
)
def test_self_bleu_is_sacrebleus_of_each_text_against_the_others(texts: list[str], tokenize: str) -> None:
    metric = sacrebleu.BLEU(tokenize=tokenize, effective_order=True)
    want = [
        metric.sentence_score(text, [other for j, other in enumerate(texts) if j != i]).score
        for i, text in enumerate(texts)
    ]
    np.testing.assert_allclose(self_bleu_values(metric, texts), want, atol=1e-9)


def test_equal_texts_have_self_bleu_100() -> None:
    scores = diversity(["今天天气很好。"] * 3, resampling=FEW)
    assert scores["self_bleu"].value == pytest.approx(100)
    assert "tok:zh" in scores["self_bleu"].protocol["signature"]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.text(alphabet="今天好吗，ab 1", min_size=1, max_size=10), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_texts_changes_nothing(texts: list[str], random: Any) -> None:
    if not any(text.strip() for text in texts):
        return
    shuffled = list(texts)
    random.shuffle(shuffled)
    first = diversity(texts, "zh", resampling=FEW)
    assert first.to_dict() == diversity(shuffled, "zh", resampling=FEW).to_dict()
    for score in first:
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high


def test_short_and_few_texts_are_noted() -> None:
    scores = diversity(["a b"], resampling=FEW)
    assert "self_bleu" not in scores
    assert "rep_3" not in scores
    assert "self_bleu is undefined: it needs two texts" in scores.notes
    assert "rep_3 is over 0 of 1 texts: the others have fewer than 3 tokens" in scores.notes
    assert diversity(["a", ""], resampling=FEW)["distinct_1"].value == 1


def test_no_texts_and_empty_texts_are_refused() -> None:
    with pytest.raises(UserError, match="no examples"):
        diversity([])
    with pytest.raises(UserError, match="all generated texts are empty"):
        diversity(["", " "])


def test_prompts_name_the_test_set() -> None:
    a = diversity(["x y", "y z"], inputs=["p", "q"], resampling=FEW)
    b = diversity(["x y", "y z"], inputs=["p", "r"], resampling=FEW)
    assert a["rep_1"].protocol["test_set"].startswith("inputs, 2 examples")
    assert a["rep_1"].protocol["test_set"] != b["rep_1"].protocol["test_set"]


def test_texts_of_unlike_length_are_compared_in_pairs() -> None:
    """Two systems abstain on different questions: as many texts have a bigram, not the same ones."""
    asked = ["p", "q", "r"]
    first = diversity(["x x x", "y", "y z y"], inputs=asked, resampling=FEW)["rep_2"]
    second = diversity(["x", "y y y", "y z"], inputs=asked, resampling=FEW)["rep_2"]
    assert (first.value, second.value) == (1 / 4, 1 / 4)
    assert first.n == second.n == 3
    found = compare(first, second, FEW)
    assert found.low is not None
    assert first.examples is not None
    assert first.examples.parts.tolist() == [[0.5, 1], [0, 0], [0, 1]]


def test_self_bleu_of_many_texts_takes_answers_to_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity_module, "COMPARED", 4)
    asked = [f"prompt {n}" for n in range(12)]
    first = [f"one {n}" for n in range(12)]
    second = [f"two {n}" for n in range(12)]
    chosen = [text.split()[1] for text in diversity_module._some(first, asked)]
    assert [text.split()[1] for text in diversity_module._some(second, asked)] == chosen
    assert [text.split()[1] for text in diversity_module._some(first[::-1], asked[::-1])] == chosen
    found = diversity(first, inputs=asked, resampling=FEW)
    assert found["self_bleu"].n == 4
    assert found["distinct_1"].n == 12
    assert "self_bleu is over 4 of 12 texts" in found.notes
