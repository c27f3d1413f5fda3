"""Intervals: textbook values, the order of examples, coverage, speed, and inputs that show no spread."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.scores import intervals
from gpt2kit.scores.intervals import (
    Interval,
    Resampling,
    Sample,
    from_draws,
    jackknife_interval,
    mean_interval,
    quotient,
    ratio,
)

FEW = Resampling(resamples=200)
values = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=40)


def test_accuracy_of_25000_examples_takes_less_than_two_seconds() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(25_000) < 0.9).astype(float)
    begin = time.process_time()
    interval = mean_interval(right, Resampling(resamples=1000))
    assert time.process_time() - begin < 2
    begin = time.process_time()
    mean_interval(rng.random(25_000), Resampling(resamples=1000))  # no two values alike
    assert time.process_time() - begin < 2
    error = 1.96 * math.sqrt(interval.value * (1 - interval.value) / 25_000)
    assert interval.high - interval.low == pytest.approx(2 * error, rel=0.1)


def test_bca_agrees_with_scipy_on_a_skewed_mean() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
    sample = np.random.default_rng(3).exponential(size=60)
    ours = mean_interval(sample, Resampling(resamples=20_000), bounded=False)
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(4))
    width = ours.high - ours.low
    assert ours.method == "bca"
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    percentile = mean_interval(sample, Resampling(20_000, method="percentile"), bounded=False)
    assert ours.low > percentile.low  # a right-skewed mean: both ends move to the right
    assert ours.high > percentile.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(300):
        interval = mean_interval((rng.random(60) < 0.8).astype(float), Resampling(300, seed=seed))
        inside += interval.low <= 0.8 <= interval.high
    assert 0.90 <= inside / 300 <= 0.99


def test_bca_agrees_with_scipy_on_a_biased_variance() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
    sample = np.random.default_rng(7).random(40) ** 2
    rows = np.column_stack([sample**2, sample, np.ones(40)])
    ours = Sample(rows).interval(lambda s: s[..., 0] / s[..., 2] - (s[..., 1] / s[..., 2]) ** 2, Resampling(20_000))
    theirs = stats.bootstrap((sample,), np.var, n_resamples=20_000, method="BCa", rng=np.random.default_rng(0))
    width = ours.high - ours.low
    assert ours.value == pytest.approx(np.var(sample))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02 * width)


@settings(deadline=None, max_examples=50)
@given(values, st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_no_bit(sample: list[float], random: object) -> None:
    shuffled = list(sample)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_interval(sample, FEW) == mean_interval(shuffled, FEW)


@settings(deadline=None, max_examples=50)
@given(values, st.sampled_from(["bca", "percentile"]))
def test_the_interval_contains_the_value(sample: list[float], method: intervals.Method) -> None:
    interval = mean_interval(sample, Resampling(resamples=100, method=method))
    assert 0 <= interval.low <= interval.value <= interval.high <= 1 + 1e-12
    assert interval.value == pytest.approx(np.mean(sample))


def test_a_seed_repeats_and_another_seed_differs() -> None:
    sample = np.random.default_rng(0).random(50)
    assert mean_interval(sample, Resampling(seed=1)) == mean_interval(sample, Resampling(seed=1))
    assert mean_interval(sample, Resampling(seed=1)) != mean_interval(sample, Resampling(seed=2))


def test_groups_and_single_examples_draw_from_one_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.array([1.0] * 70 + [0.0] * 30)
    grouped = Sample(np.column_stack([right, np.ones(100)])).resampled(20_000, 0)
    monkeypatch.setattr(intervals, "MULTINOMIAL_GROUPS", 0)
    single = Sample(np.column_stack([right, np.ones(100)])).resampled(20_000, 0)
    for draws in (grouped, single):
        assert (draws[:, 1] == 100).all()
        assert draws[:, 0].mean() == pytest.approx(70, abs=0.15)  # 3 standard errors
        assert draws[:, 0].std() == pytest.approx(math.sqrt(21), rel=0.03)


def test_the_size_of_the_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Sample(np.random.default_rng(0).random((1500, 2)))
    whole = sample.resampled(64, 0)
    monkeypatch.setattr(intervals, "COUNTS_PER_CHUNK", 4000)
    np.testing.assert_allclose(sample.resampled(64, 0), whole, rtol=1e-12)


@pytest.mark.parametrize(("value", "n", "low", "high"), [(1.0, 10, 0.6915, 1.0), (0.0, 10, 0.0, 0.3085)])
def test_all_right_of_ten_does_not_prove_perfection(value: float, n: int, low: float, high: float) -> None:
    """Clopper and Pearson's ends for 10 of 10: 0.025^(1/10)."""
    interval = mean_interval([value] * n, Resampling())
    assert interval.method == "exact"
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_no_spread_elsewhere_is_said() -> None:
    interval = mean_interval([0.4, 0.4, 0.4], Resampling())
    assert interval.method == "none"
    assert interval.low == interval.value == interval.high == pytest.approx(0.4)
    assert mean_interval([0.25], Resampling()).method == "none"


def test_undefined_resamples_are_counted_and_left_out() -> None:
    sample = Sample([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])  # 0/0 where the first is not drawn: (2/3)^3 of the time
    interval = sample.interval(ratio, Resampling(resamples=2000))
    assert interval.undefined == pytest.approx(2000 * 8 / 27, rel=0.1)
    assert interval.value == 1.0
    with pytest.raises(UserError, match="undefined"):
        Sample([[0.0, 0.0]]).interval(ratio, Resampling())


def test_a_value_outside_its_draws_widens_the_interval_and_says_so() -> None:
    draws = np.linspace(0.5, 0.6, 101)
    interval = from_draws(0.4, draws, None, np.array([1]), Resampling(confidence=0.9))
    assert interval == Interval(0.4, 0.4, pytest.approx(0.595), "percentile", 0, widened=True)
    assert interval.protocol == {"interval": "percentile", "widened": True}


def test_percentile_ends_by_hand() -> None:
    interval = from_draws(50.0, np.arange(101.0), None, np.array([1]), Resampling(confidence=0.9))
    assert (interval.low, interval.high) == (pytest.approx(5), pytest.approx(95))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    sample = np.array([1.0, 2.0, 4.0, 9.0]) / 10
    left_out = (sample.sum() - sample) / 3
    interval = jackknife_interval(sample.mean(), left_out, Resampling())
    error = sample.std(ddof=1) / 2
    assert interval.high - interval.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert jackknife_interval(0.5, left_out[:1], Resampling()).method == "none"
    many = np.random.default_rng(0).exponential(size=1000) / 1000
    assert len({jackknife_interval(0.0, many[np.random.default_rng(i).permutation(1000)], FEW) for i in range(9)}) == 1


def test_quotients_have_no_warnings_and_a_value_for_nothing() -> None:
    assert math.isnan(float(quotient(1, 0)))
    assert quotient([1, 2], [0, 4], 0.0).tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"resamples": 10}, "at least 100 resamples"),
        ({"confidence": 1.0}, "confidence must be from 0.5"),
        ({"seed": -1}, "seed must not be negative"),
        ({"method": "normal"}, "'bca' or 'percentile'"),
    ],
)
def test_wrong_settings_are_refused(settings_: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Resampling(**settings_)  # type: ignore[arg-type]


def test_no_examples_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="no examples"):
        mean_interval([], Resampling())
