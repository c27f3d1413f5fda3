"""Scores of a classifier against scikit-learn called directly and against definitions worked out by hand."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="needs the extra 'scores'")

from sklearn import metrics

from gpt2kit.errors import UserError
from gpt2kit.scores.classification import (
    averages,
    classification,
    confusion,
    multilabel,
    per_class,
    reliability,
)
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.result import Scores

FEW = Resampling(resamples=100)
LABELS = ["neg", "neu", "pos"]
labels = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30)


def case(N: int = 400, C: int = 3, seed: int = 0) -> tuple[list[int], list[int], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, C, N)
    logits = rng.normal(size=(N, C)).round(1)  # rounded: there are ties
    logits[np.arange(N), gold] += 1
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return gold.tolist(), p.argmax(1).tolist(), p


@pytest.mark.parametrize("C", [2, 3, 7])
def test_every_figure_is_scikit_learns(C: int) -> None:
    gold, predicted, p = case(C=C)
    scores = classification(gold, predicted, p, list(range(C)), resampling=FEW)
    assert scores["accuracy"].value == metrics.accuracy_score(gold, predicted)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(gold, predicted, average="macro")
    assert scores["macro_precision"].value == pytest.approx(precision, abs=1e-12)
    assert scores["macro_recall"].value == pytest.approx(recall, abs=1e-12)
    assert scores["macro_f1"].value == pytest.approx(f1, abs=1e-12)
    assert scores["micro_f1"].value == pytest.approx(metrics.f1_score(gold, predicted, average="micro"), abs=1e-12)
    area = metrics.roc_auc_score(gold, p[:, 1]) if C == 2 else metrics.roc_auc_score(gold, p, multi_class="ovr")
    assert scores["auroc"].value == pytest.approx(area, abs=1e-12)
    assert (confusion(gold, predicted).counts == metrics.confusion_matrix(gold, predicted)).all()
    for score in scores:
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
        assert score.n == 400


def test_macro_f1_by_hand() -> None:
    """Classes a: 2 right of 3 called and 2 true; b: 1 right of 1 called and 2 true. F1 4/5 and 2/3."""
    scores = classification(["a", "a", "b", "b"], ["a", "a", "a", "b"], resampling=FEW)
    assert scores["macro_f1"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores["macro_precision"].value == pytest.approx((2 / 3 + 1) / 2)
    assert scores["macro_recall"].value == pytest.approx((1 + 1 / 2) / 2)
    assert scores["accuracy"].value == 3 / 4
    each = per_class(["a", "a", "b", "b"], ["a", "a", "a", "b"], resampling=FEW)
    assert each["a"]["precision"].value == pytest.approx(2 / 3)
    assert each["b"]["f1"].value == pytest.approx(2 / 3)
    assert each["a"]["recall"].low == pytest.approx(0.025 ** (1 / 2))  # 2 of 2: exact, not [1, 1]


def test_the_area_under_the_curve_by_hand() -> None:
    """Pairs (true, false): 0.8 above 0.6 and 0.3; 0.6 ties with 0.6 and is above 0.3: 3.5 of 4."""
    p = np.array([0.8, 0.6, 0.6, 0.3])
    scores = classification([1, 1, 0, 0], [1, 1, 1, 0], np.column_stack([1 - p, p]), [0, 1], resampling=FEW)
    assert scores["auroc"].value == 3.5 / 4


def test_the_calibration_error_by_hand() -> None:
    """Confidences 0.62, 0.64 (bin 10 of 15: 0.6 to 0.667), one right; 0.95 (bin 15), right."""
    p = np.array([[0.62, 0.38], [0.64, 0.36], [0.95, 0.05]])
    scores = classification([0, 1, 0], [0, 0, 0], p, [0, 1], resampling=FEW)
    gap = (2 * abs(0.5 - 0.63) + 1 * abs(1 - 0.95)) / 3
    assert scores["calibration_error"].value == pytest.approx(gap)
    assert scores["calibration_error"].protocol["bins"] == 15
    bins = reliability([0.62, 0.64, 0.95], [1, 0, 1])
    assert [(b.count, b.accuracy) for b in bins] == [(2, 0.5), (1, 1.0)]
    assert bins[0].confidence == pytest.approx(0.63)
    assert (bins[0].low, bins[0].high) == (9 / 15, 10 / 15)
    assert reliability([0.5], [1], 2)[0].high == 0.5  # a bin holds its upper end
    assert reliability([0.0, 1.0], [0, 1], 10) == reliability([1.0, 0.0], [1, 0], 10)  # both ends have a bin


@settings(deadline=None, max_examples=15)
@given(labels, st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_nothing(pairs: list[tuple[str, str]], random: Any) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)

    def scored(rows: list[tuple[str, str]]) -> Scores:
        p = [[0.8 if label == called else 0.1 for label in LABELS] for _, called in rows]
        gold, called = zip(*rows, strict=True)
        return classification(gold, called, p, LABELS, resampling=FEW)

    assert scored(shuffled).to_dict() == scored(pairs).to_dict()


@settings(deadline=None, max_examples=40)
@given(labels)
def test_figures_lie_in_their_intervals_and_between_0_and_1(pairs: list[tuple[str, str]]) -> None:
    gold, predicted = zip(*pairs, strict=True)
    for score in classification(gold, predicted, labels=LABELS, resampling=FEW):
        assert score.low is not None
        assert score.high is not None
        assert 0 <= score.low <= score.value <= score.high <= 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=30))
def test_perfect_predictions_give_1(gold: list[str]) -> None:
    p = np.eye(3)[[LABELS.index(label) for label in gold]]
    scores = classification(gold, gold, p, LABELS, resampling=FEW)
    for score in scores:
        assert score.value == (0 if score.name == "calibration_error" else 1)
    assert scores["accuracy"].low == pytest.approx(0.025 ** (1 / len(gold)))
    assert ("auroc" in scores) == (len(set(gold)) > 1)


def test_one_class_has_no_area_and_it_is_said() -> None:
    scores = classification([1, 1], [1, 0], [[0.2, 0.8], [0.6, 0.4]], [0, 1], resampling=FEW)
    assert "auroc" not in scores
    assert "AUROC is undefined: every example is of class 1" in scores.notes


def test_classes_that_never_occur_do_not_lower_the_macro_average() -> None:
    scores = classification(["a", "b"], ["a", "b"], labels=["a", "b", "c"], resampling=FEW)
    assert scores["macro_f1"].value == 1
    assert any("left out of macro averages" in note and "c" in note for note in scores.notes)
    scores = classification(["a", "a"], ["a", "b"], resampling=FEW)
    assert scores["macro_f1"].value == pytest.approx((2 / 3) / 2)
    assert any("never true" in note and "b" in note for note in scores.notes)


def test_averages_of_resampled_counts_are_scikit_learns() -> None:
    """The fast path of the intervals against scikit-learn on each resample."""
    gold, predicted, _ = case(60, 4, seed=1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = rng.integers(0, 60, 60)
        g, p = np.array(gold)[drawn], np.array(predicted)[drawn]
        one = np.eye(4)
        sums = np.hstack([(one[g] * (g == p)[:, None]).sum(0), one[p].sum(0), one[g].sum(0)])
        want = metrics.precision_recall_fscore_support(g, p, average="macro", zero_division=0)
        for name, value in zip(("macro_precision", "macro_recall", "macro_f1"), want[:3], strict=True):
            assert float(averages(sums, name, 4)) == pytest.approx(value)


def test_resampled_areas_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2kit.scores import classification as module

    gold, _, p = case(80, 3, seed=2)
    columns = np.round(p, 1)  # many ties
    area = module._area(columns[:, 0], np.array(gold) == 0)
    for seed in range(20):
        weights = np.random.default_rng(seed).multinomial(80, np.full(80, 1 / 80)).astype(float)
        want = metrics.roc_auc_score(np.array(gold) == 0, columns[:, 0], sample_weight=weights)
        assert float(area(weights[None])[0]) == pytest.approx(want)


def test_several_labels_an_example() -> None:
    gold = [["a", "b"], ["b"], [], ["c"]]
    predicted = [["a"], ["b"], [], ["a", "c"]]
    scores = multilabel(gold, predicted, resampling=FEW)
    assert scores["subset_accuracy"].value == 2 / 4
    assert scores["micro_precision"].value == pytest.approx(3 / 4)
    assert scores["micro_recall"].value == pytest.approx(3 / 4)
    assert scores["macro_f1"].value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    perfect = multilabel(gold, gold, resampling=FEW)
    assert all(score.value == 1 for score in perfect)
    assert multilabel([[]], [[]], ["a"], resampling=FEW).notes[0].startswith("no example has a label")
    with pytest.raises(UserError, match="no example has a label"):
        multilabel([[]], [[]])


@pytest.mark.parametrize(
    ("gold", "predicted", "extra", "said"),
    [
        ([], [], {}, "there are no examples"),
        (["a"], ["a", "b"], {}, "2 predictions for 1 references"),
        (["1"], [1], {}, "some labels are strings and some are numbers"),
        (["a"], ["z"], {"labels": ["a", "b"]}, "label 'z' occurs in the test set or the predictions"),
        (["a"], ["a"], {"labels": ["a", "a"]}, "a label is listed twice"),
        (["a"], ["a"], {"probabilities": [[1.0]]}, "probabilities need the labels"),
        (["a"], ["a"], {"labels": ["a", "b"], "probabilities": [[1.0]]}, r"must be \[1, 2\]"),
        (["a"], ["a"], {"labels": ["a", "b"], "probabilities": [[2.0, -1.0]]}, "row 0 of the probabilities"),
        (["a"], ["a"], {"labels": ["a", "b"], "probabilities": [[0.9, 0.9]]}, "it sums to 1.8"),
        (["a"], ["a"], {"labels": ["a", "b"], "probabilities": [[float("nan"), 1]]}, "row 0 of the probabilities"),
        (["a"], ["a"], {"labels": ["a", "b"], "probabilities": [["x", "y"]]}, "not a table of numbers"),
        (["a"], ["a"], {"inputs": []}, "0 inputs for 1 references"),
    ],
)
def test_wrong_inputs_say_what_is_wrong(gold: Any, predicted: Any, extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        classification(gold, predicted, **extra)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="scikit-learn") as error:
        classification(["a"], ["a"])
    assert error.value.hint == "run: pip install 'gpt2kit[scores]'"
