"""Ranked candidates against scikit-learn and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="needs the extra 'scores'")

from sklearn import metrics

from gpt2kit.errors import UserError
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.ranking import first_rank, ranking

FEW = Resampling(resamples=100)


@st.composite
def query(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    n = draw(st.integers(1, 8))
    relevance = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    return relevance, draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=n, max_size=n))


def test_ranks_by_hand() -> None:
    scores = ranking([[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[3, 2, 1], [3, 2, 1], [3, 2, 1]], hits=[1, 2], resampling=FEW)
    assert scores["mrr"].value == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert scores["hits@1"].value == pytest.approx(1 / 3)
    assert scores["hits@2"].value == pytest.approx(2 / 3)


def test_discounted_gain_by_hand() -> None:
    """Gains 3 2 3 0 1 2 in this order: DCG 6.861 of 7.141 (linear gain, log2 of rank + 1)."""
    scores = ranking([[3, 2, 3, 0, 1, 2]], [[6, 5, 4, 3, 2, 1]], ndcg=[6], resampling=FEW)
    assert scores["ndcg@6"].value == pytest.approx(6.861 / 7.141, abs=1e-3)


def test_a_model_that_gives_all_the_same_score_has_ranked_nothing() -> None:
    scores = ranking([[1, 0, 0, 0]], [[0.5] * 4], hits=[1], ndcg=[], resampling=FEW)
    assert scores["mrr"].value == 1 / 4
    assert scores["hits@1"].value == 0


@settings(deadline=None, max_examples=60)
@given(query())
def test_figures_are_scikit_learns(case: tuple[list[int], list[float]]) -> None:
    relevance, found = np.array(case[0]), np.array(case[1])
    one = np.zeros(len(found), dtype=int)
    one[int(relevance.argmax())] = 1
    reciprocal = metrics.label_ranking_average_precision_score(one[None], found[None])
    assert 1 / first_rank(one.astype(float), found) == pytest.approx(reciprocal)
    if len(found) > 1:
        scores = ranking([relevance.tolist()], [found.tolist()], ndcg=[3], resampling=FEW)
        assert scores["ndcg@3"].value == pytest.approx(metrics.ndcg_score(relevance[None], found[None], k=3))


@settings(deadline=None, max_examples=30)
@given(st.lists(query(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_the_queries_changes_nothing(rows: list[tuple[list[int], list[float]]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    first, second = (ranking([a for a, _ in r], [b for _, b in r], resampling=FEW) for r in (rows, shuffled))
    assert first.to_dict() == second.to_dict()


@settings(deadline=None, max_examples=30)
@given(st.lists(query(), min_size=1, max_size=8))
def test_a_perfect_order_gives_1(rows: list[tuple[list[int], list[float]]]) -> None:
    scores = ranking([a for a, _ in rows], [a for a, _ in rows], resampling=FEW)
    for score in scores:
        assert score.value == pytest.approx(1)


def test_hits_that_cannot_miss_are_left_out_and_noted() -> None:
    scores = ranking([[1, 0], [0, 1]], [[1, 0], [1, 0]], resampling=FEW)
    assert "hits@5" not in scores
    assert scores.notes == ("hits@5, @10 left out: no query has more candidates",)


@pytest.mark.parametrize(
    ("relevance", "scores", "said"),
    [
        ([], [], "no examples"),
        ([[0, 0]], [[1, 2]], "query 0 has no relevant candidate"),
        ([[1, 0]], [[1]], "2 relevances and 1 scores"),
        ([[1, 0]], [[float("nan"), 1]], "scores finite"),
        ([[-1, 1]], [[0, 1]], "relevance must be 0 or more"),
        ([["x", 1]], [[0, 1]], "must be numbers"),
    ],
)
def test_wrong_inputs_say_what_is_wrong(relevance: Any, scores: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ranking(relevance, scores)
    with pytest.raises(UserError, match="k must be at least 1"):
        ranking([[1, 0]], [[1, 0]], hits=[0])


def test_one_right_candidate_makes_an_accuracy_and_several_do_not() -> None:
    one = ranking([[0, 1], [1, 0]], [[1, 2], [1, 2]], resampling=FEW)
    assert one["accuracy"].value == one["hits@1"].value == 1 / 2
    assert "accuracy" not in ranking([[1, 1, 0], [1, 0, 0]], [[3, 2, 1], [3, 2, 1]], resampling=FEW)
