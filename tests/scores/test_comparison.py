"""Two figures side by side: tests by hand and against scipy, and what may not be compared, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.scores.comparison import compare, compare_all, mcnemar, permutation
from gpt2kit.scores.intervals import Resampling, ratio
from gpt2kit.scores.likelihood import likelihood
from gpt2kit.scores.result import Score, Scores, TestSet, mean_of

TEST = TestSet.of(list(range(200)))
RNG = np.random.default_rng(0)
RIGHT_A = (RNG.random(200) < 0.7).astype(float)
RIGHT_B = np.where(RNG.random(200) < 0.2, 1.0, RIGHT_A)


def accuracy(values: Any, test: TestSet = TEST, **protocol: Any) -> Score:
    return mean_of("accuracy", np.asarray(values, dtype=float), test, Resampling(), **protocol)


def test_mcnemar_by_hand() -> None:
    """One against nine discordant: 2 (C(10,0) + C(10,1)) / 2^10."""
    first = [1] + [0] * 9 + [1] * 5 + [0] * 3
    second = [0] + [1] * 9 + [1] * 5 + [0] * 3
    assert mcnemar(first, second) == pytest.approx(22 / 1024)
    assert mcnemar([1, 0], [1, 0]) == 1
    assert mcnemar([1, 0], [0, 1]) == 1


def test_mcnemar_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
    only_a, only_b = int((RIGHT_A > RIGHT_B).sum()), int((RIGHT_B > RIGHT_A).sum())
    assert mcnemar(RIGHT_A, RIGHT_B) == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    many = np.array([0.0] * 3000 + [1.0] * 2800)
    assert mcnemar(many, 1 - many) == pytest.approx(stats.binomtest(2800, 5800).pvalue)


def test_the_permutation_test_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 40))
    b += 0.08
    one = np.ones(40)
    ours = permutation(np.column_stack([a, one]), np.column_stack([b, one]), ratio, Resampling(20_000))
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(2),
    ).pvalue  # fmt: skip
    assert 0.01 < theirs < 0.9
    assert ours == pytest.approx(theirs, abs=0.015)


def test_a_p_value_is_never_0() -> None:
    one = np.ones(60)
    assert permutation(np.column_stack([0 * one, one]), np.column_stack([one, one]), ratio, Resampling(100)) == 1 / 101


def test_a_pair_knows_more_than_two_intervals() -> None:
    """B is right wherever A is, and more: the intervals overlap, the paired difference does not touch 0."""
    a, b = accuracy(RIGHT_A), accuracy(RIGHT_B)
    found = compare(a, b)
    assert a.high is not None
    assert b.low is not None
    assert a.high > b.low
    assert found.low is not None
    assert found.high is not None
    assert found.difference == pytest.approx(RIGHT_B.mean() - RIGHT_A.mean())
    assert 0 < found.low < found.difference < found.high
    assert found.test == "McNemar, exact"
    assert found.p is not None
    assert found.p < 1e-3
    back = compare(b, a)
    assert back.difference == pytest.approx(-found.difference)
    assert back.p == found.p
    assert found.to_dict()["notes"] == []


def test_a_figure_against_itself_is_no_difference() -> None:
    found = compare(accuracy(RIGHT_A), accuracy(RIGHT_A))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    values = RNG.random(200)
    assert compare(accuracy(values), accuracy(values)).p == 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=20))
def test_the_interval_of_a_difference_contains_it(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    test = TestSet.of(list(range(len(a))))
    found = compare(accuracy(a, test), accuracy(b, test), Resampling(100))
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert found.low <= found.difference <= found.high
    assert 0 < found.p <= 1


def test_false_alarms_are_as_rare_as_the_p_value_says() -> None:
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.random((2, 30))
        one = np.ones(30)
        alarms += permutation(np.column_stack([a, one]), np.column_stack([b, one]), ratio, Resampling(200)) <= 0.1
    assert 8 <= alarms <= 34  # 20 expected; 3 standard deviations


def test_other_test_sets_metrics_units_and_definitions_are_refused() -> None:
    a = accuracy(RIGHT_A)
    other = TestSet.of(list(range(1, 201)))
    with pytest.raises(UserError, match=r"accuracy cannot be compared: they are of different test sets \(references"):
        compare(a, accuracy(RIGHT_B, other))
    with pytest.raises(UserError, match="accuracy and f1 are different metrics"):
        compare(a, replace(a, name="f1"))
    with pytest.raises(UserError, match="different units: 'fraction' and 'points'"):
        compare(a, replace(a, unit="points"))
    with pytest.raises(UserError, match="other n-grams, smoothing or tokenisation"):
        compare(accuracy(RIGHT_A, signature="tok:zh"), accuracy(RIGHT_B, signature="tok:13a"))
    with pytest.raises(UserError, match="they differ in temperature"):
        compare(accuracy(RIGHT_A, temperature=0), accuracy(RIGHT_B))
    with pytest.raises(UserError, match="of 200 and 100 examples"):
        compare(a, replace(a, n=100))


def test_another_order_of_one_test_set_cannot_be_paired() -> None:
    turned = TestSet.of(list(range(200))[::-1])
    with pytest.raises(UserError, match="in another order of examples"):
        compare(accuracy(RIGHT_A), accuracy(RIGHT_B, turned))


def test_another_seed_or_number_of_resamples_is_no_reason_to_refuse() -> None:
    values = RIGHT_A
    other = mean_of("accuracy", values, TEST, Resampling(500, 0.9, 3, "percentile"))
    assert compare(accuracy(values), other).difference == 0


def test_a_comparison_reads_as_one_line() -> None:
    found = compare(accuracy([0, 0, 0, 1] * 50), accuracy([1, 0, 1, 1] * 50))
    assert str(found) == f"accuracy +0.5 [{found.low:+.4g}, {found.high:+.4g}], p {found.p:.2g} (McNemar, exact)"
    assert str(replace(found, low=None, high=None, p=None)) == "accuracy +0.5"


def test_figures_read_back_have_a_difference_without_an_interval() -> None:
    saved = Scores.from_dict(Scores((accuracy(RIGHT_A),)).to_dict())
    found = compare_all(saved, Scores((accuracy(RIGHT_B),)))[0]
    assert found.low is None
    assert found.p is None
    assert found.notes == ("no results of single examples: the difference has no interval",)
    with pytest.raises(UserError, match="no metric in common"):
        compare_all(saved, Scores((replace(accuracy(RIGHT_A), name="f1"),)))


FACTS = {
    "nll": 300.0, "tokens": 100, "bytes": 400, "characters": 350, "unit": "bpe token", "context": 256, "stride": 128,
    "tokenizer_hash": "aa" * 32, "text_hash": "bb" * 32, "lossless": True, "protocol": "one stream",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unit": "char token"}, "different units: 'perplexity per bpe token' and 'perplexity per char token'"),
        ({"tokenizer_hash": "cc" * 32}, "a perplexity per token depends on what a token is"),
        ({"context": 512}, r"a longer context makes the same text easier to predict \(256 and 512\)"),
        ({"stride": 1}, "a shorter stride gives tokens more context"),
        ({"text_hash": "dd" * 32}, "they are of different test sets"),
        ({"protocol": "lines"}, "they follow different protocols"),
    ],
)
def test_perplexities_of_unlike_kinds_are_refused_with_the_reason(change: dict[str, Any], said: str) -> None:
    first, second = likelihood(FACTS), likelihood(FACTS | change)
    with pytest.raises(UserError, match=said) as error:
        compare(first["perplexity"], second["perplexity"])
    assert error.value.hint
    if "text_hash" not in change and "protocol" not in change:
        found = compare(first["bits_per_byte"], second["bits_per_byte"])  # comparable, and it is said what differs
        assert any("differs" in note for note in found.notes) or "unit" in change
