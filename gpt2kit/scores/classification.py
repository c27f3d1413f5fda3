"""Scores of a classifier: accuracy, precision, recall, F1, confusion matrix, AUROC, calibration error.

Values are scikit-learn's where it has the metric. Precision and recall without a denominator are 0, and a macro
average is over the classes that occur in the references or the predictions: scikit-learn's defaults, said in notes.
Intervals come from the counts of each example; that both agree is asserted.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import UserError, missing_extra
from gpt2kit.scores.intervals import Floats, Interval, Resampling, Sample, from_draws, mean_interval, quotient
from gpt2kit.scores.result import FRACTION, Score, Scores, TestSet, check_pairs, mean_of, measured

Label = str | int
BINS = 15  # Guo et al. 2017
AVERAGES = {
    "macro_precision": "mean of the classes' precisions",
    "macro_recall": "mean of the classes' recalls",
    "macro_f1": "mean of the classes' F1",
    "micro_precision": "precision over all decisions",
    "micro_recall": "recall over all decisions",
    "micro_f1": "F1 over all decisions",
}


def sklearn_metrics() -> Any:
    try:
        import sklearn.metrics
    except ImportError:
        raise missing_extra("scikit-learn", "scores", "scoring a classifier") from None
    return sklearn.metrics


@dataclass(frozen=True)
class Confusion:
    """`counts[i, j]` examples of class `labels[i]` were called `labels[j]`. [C, C]"""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Examples with a confidence in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def classes_of(gold: Sequence[Label], predicted: Sequence[Label], labels: Sequence[Label] | None) -> list[Label]:
    """`labels` in their order, checked to hold every class that occurs; without them the classes, sorted."""
    occurring = {*gold, *predicted}
    if len({isinstance(label, str) for label in occurring}) > 1:
        raise UserError(
            "some labels are strings and some are numbers, so that '1' and 1 would be two classes",
            hint="give the references and the predictions labels of one kind",
        )
    if labels is None:
        return sorted(occurring)
    if len(set(labels)) != len(labels):
        raise UserError("a label is listed twice", hint=f"the labels are {', '.join(map(str, labels))[:200]}")
    unlisted = sorted(occurring - set(labels))
    if unlisted:
        raise UserError(
            f"label {unlisted[0]!r} occurs in the test set or the predictions, but is not one of the {len(labels)}",
            hint=f"the labels are {', '.join(map(repr, labels))[:200]}",
        )
    return list(labels)


def _codes(values: Sequence[Label], classes: Sequence[Label]) -> NDArray[np.int64]:
    index = {label: i for i, label in enumerate(classes)}
    return np.fromiter((index[value] for value in values), dtype=np.int64, count=len(values))


def averages(sums: Floats, name: str, C: int) -> Floats:
    """The metric `name` of AVERAGES from sums [..., 3C]: right, predicted and true examples of each class."""
    right, called, true = sums[..., :C], sums[..., C : 2 * C], sums[..., 2 * C :]
    if name.startswith("micro"):
        right, called, true = (part.sum(-1, keepdims=True) for part in (right, called, true))
    occurs = (called + true) > 0
    kind = name.partition("_")[2]
    each = {
        "precision": lambda: quotient(right, called, 0.0),
        "recall": lambda: quotient(right, true, 0.0),
        "f1": lambda: quotient(2 * right, called + true, 0.0),
    }[kind]()
    return quotient(each.sum(-1), occurs.sum(-1))


def classification(
    gold: Sequence[Label],
    predicted: Sequence[Label],
    probabilities: Any = None,
    labels: Sequence[Label] | None = None,
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """Accuracy, macro precision, recall and F1, micro F1; with `probabilities` [N, C] AUROC and calibration error.

    One label an example. `labels` gives the columns of `probabilities` and is then needed; classes in it that never
    occur are left out of averages. UserError for an empty set, unequal lengths, unknown labels, wrong probabilities.
    """
    check_pairs(gold, predicted, inputs)
    resampling = resampling or Resampling()
    classes = classes_of(gold, predicted, labels)
    true, called = _codes(gold, classes), _codes(predicted, classes)
    test = TestSet.of([str(label) for label in gold], inputs)
    right = (true == called).astype(np.float64)
    value = float(sklearn_metrics().accuracy_score(true, called))
    interval = mean_interval(right, resampling)
    _check_equal(value, interval, "accuracy")
    scores = [mean_of("accuracy", right, test, resampling, interval=interval)]
    scores += _averaged(true, called, classes, test, resampling, interval)
    notes = _absent(true, called, classes)
    if probabilities is not None:
        if labels is None:
            raise UserError("probabilities need the labels of their columns", hint="give labels=[...] in that order")
        found = check_probabilities(probabilities, len(true), len(classes))
        more, said = _of_probabilities(true, called, found, classes, test, resampling)
        scores, notes = scores + more, notes + said
    return Scores(tuple(scores), tuple(notes))


def _counts(true: NDArray[np.int64], called: NDArray[np.int64], C: int) -> Floats:
    """[N, 3C] for `averages`."""
    one_hot = np.eye(C)
    return np.hstack([one_hot[true] * (true == called)[:, None], one_hot[called], one_hot[true]])


def _averaged(
    true: NDArray[np.int64],
    called: NDArray[np.int64],
    classes: Sequence[Label],
    test: TestSet,
    resampling: Resampling,
    accuracy: Interval,
) -> list[Score]:
    """Macro precision, recall and F1; micro F1, which of one label an example is the accuracy."""
    metrics, C = sklearn_metrics(), len(classes)
    parts = _counts(true, called, C)
    sample = Sample(parts, true * C + called)
    draws = sample.resampled(resampling.resamples, resampling.seed)
    present = np.union1d(true, called)
    macro = metrics.precision_recall_fscore_support(true, called, labels=present, average="macro", zero_division=0)
    values = dict(zip(("macro_precision", "macro_recall", "macro_f1"), map(float, macro[:3]), strict=True))
    values["micro_f1"] = float(metrics.f1_score(true, called, labels=present, average="micro", zero_division=0))
    scores = []
    for name, value in values.items():
        combine = partial(averages, name=name, C=C)
        interval = accuracy if name == "micro_f1" else sample.interval(combine, resampling, draws)
        _check_equal(value, interval, name)
        scores.append(measured(name, interval, len(true), FRACTION, test, resampling, (parts, combine),
                               definition=f"{AVERAGES[name]}; over classes that occur; 0 without a denominator",
                               classes=[str(label) for label in classes]))  # fmt: skip
    return scores


def _check_equal(value: float, interval: Interval, name: str) -> None:
    assert abs(value - interval.value) < 1e-9, f"{name}: scikit-learn {value}, from the counts {interval.value}"


def _absent(true: NDArray[np.int64], called: NDArray[np.int64], classes: Sequence[Label]) -> list[str]:
    notes = []
    in_gold, in_called = set(true.tolist()), set(called.tolist())
    never = [str(label) for i, label in enumerate(classes) if i not in in_gold | in_called]
    if never:
        notes.append(f"left out of macro averages, for neither true nor predicted: {', '.join(never)[:300]}")
    unseen = [str(classes[i]) for i in sorted(in_called - in_gold)]
    if unseen:
        notes.append(f"predicted but never true, counted with F1 0 in macro averages: {', '.join(unseen)[:300]}")
    missed = [str(classes[i]) for i in sorted(in_gold - in_called)]
    if missed:
        notes.append(f"never predicted, counted with precision 0 in macro averages: {', '.join(missed)[:300]}")
    return notes


def check_probabilities(probabilities: Any, N: int, C: int) -> Floats:
    """[N, C] float64, each row a distribution. UserError naming the row that is not."""
    try:
        found = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("the probabilities are not a table of numbers") from None
    if found.shape != (N, C):
        raise UserError(f"probabilities must be [{N}, {C}]: a row an example, a column a label; got {found.shape}")
    bad = ~np.isfinite(found).all(1) | (found < -1e-6).any(1) | (np.abs(found.sum(1) - 1) > 1e-3)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"row {row} of the probabilities is not a distribution: it sums to {found[row].sum():.6g}, "
            f"from {found[row].min():.3g} to {found[row].max():.3g}",
            hint="give probabilities after softmax, not logits",
        )
    return found.clip(0, 1)


def _of_probabilities(
    true: NDArray[np.int64],
    called: NDArray[np.int64],
    probabilities: Floats,
    classes: Sequence[Label],
    test: TestSet,
    resampling: Resampling,
) -> tuple[list[Score], list[str]]:
    scores, notes = [], []
    N = len(true)
    present = [c for c in range(len(classes)) if 0 < (true == c).sum() < N]
    if present:
        columns = present[-1:] if len(classes) == 2 else present  # of two classes one figure says both
        value = float(np.mean([sklearn_metrics().roc_auc_score(true == c, probabilities[:, c]) for c in columns]))
        interval = auroc_interval(true, probabilities, columns, resampling)
        _check_equal(value, interval, "auroc")
        definition = f"P({classes[1]})" if len(classes) == 2 else "mean of one class against the rest"
        scores.append(measured("auroc", interval, N, FRACTION, test, resampling, definition=definition))
        if len(present) < len(classes) and len(classes) > 2:
            notes.append(f"AUROC is the mean over {len(present)} of {len(classes)} classes: the others never are true")
    else:
        notes.append(f"AUROC is undefined: every example is of class {classes[int(true[0])]}")
    confidence = probabilities[np.arange(N), called]
    scores.append(_calibration(confidence, (true == called).astype(np.float64), test, resampling))
    return scores, notes


def auroc_interval(
    true: NDArray[np.int64], probabilities: Floats, columns: Sequence[int], resampling: Resampling
) -> Interval:
    """AUROC, the mean over `columns` of one class against the rest, by the bootstrap over examples.

    Resamples in which one of the classes is missing are left out. Percentile: leaving each example out in turn would
    cost N times the metric.
    """
    chosen = probabilities[:, list(columns)]
    sample = Sample(np.column_stack([chosen, true]))
    areas = [_area(sample.rows[:, i], sample.rows[:, -1] == c) for i, c in enumerate(columns)]

    def mean(weights: Floats) -> Floats:
        areas_of: Floats = np.mean([area(weights) for area in areas], axis=0)
        return areas_of

    value = float(mean(sample.counts[None].astype(np.float64))[0])
    draws = np.concatenate([mean(weights) for weights in sample.weights(resampling.resamples, resampling.seed)])
    return from_draws(value, draws, None, sample.counts, resampling)


def _area(score: Floats, positive: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """A function of weights [r, G]: the share of (positive, negative) pairs in order, a tie counting one half.

    Source: Hanley and McNeil 1982: the area is the Wilcoxon statistic.
    """
    down = np.flatnonzero(~positive)
    down = down[np.argsort(score[down], kind="stable")]
    up = np.flatnonzero(positive)
    first, last = (np.searchsorted(score[down], score[up], side) for side in ("left", "right"))
    tied = bool((first != last).any())

    def area(weights: Floats) -> Floats:
        below = np.zeros((len(weights), len(down) + 1))
        np.cumsum(weights[:, down], axis=1, out=below[:, 1:])
        lower = (below[:, first] + below[:, last]) / 2 if tied else below[:, first]
        of_up = weights[:, up]
        pairs: Floats = np.einsum("rp,rp->r", of_up, lower)
        return quotient(pairs, of_up.sum(1) * below[:, -1])

    return area


def reliability(confidence: Any, right: Any, bins: int = BINS) -> list[Bin]:
    """The examples of each of `bins` equal ranges of confidence; empty ranges are left out. [N] and [N]"""
    parts = _bins(np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64), bins)
    count, hits, total = parts.sum(0).reshape(3, bins)
    return [
        Bin(i / bins, (i + 1) / bins, int(count[i]), float(total[i] / count[i]), float(hits[i] / count[i]))
        for i in range(bins)
        if count[i]
    ]


def _bins(confidence: Floats, right: Floats, bins: int) -> Floats:
    """[N, 3 bins]: one, right and confidence in the column of the example's bin; bins are open below, closed above."""
    if len(confidence) and (confidence.min() < 0 or confidence.max() > 1 or not np.isfinite(confidence).all()):
        raise UserError("confidences must be from 0 to 1")
    place = np.eye(bins)[np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)]
    return np.hstack([place, place * right[:, None], place * confidence[:, None]])


def expected_calibration_error(sums: Floats) -> Floats:
    """From sums [..., 3 bins]: the mean over examples of |accuracy - confidence| of their bin. (Guo et al. 2017)"""
    count, hits, total = np.split(sums, 3, axis=-1)
    return quotient(np.abs(hits - total).sum(-1), count.sum(-1))


def _calibration(confidence: Floats, right: Floats, test: TestSet, resampling: Resampling) -> Score:
    parts = _bins(confidence, right, BINS)
    sample = Sample(parts, np.column_stack([confidence, right]))
    interval = sample.interval(expected_calibration_error, resampling)
    said = "mean |accuracy - confidence| over equal bins of the predicted class's probability"
    kept = parts, expected_calibration_error
    return measured(
        "calibration_error", interval, len(right), FRACTION, test, resampling, kept, bins=BINS, definition=said
    )


def confusion(gold: Sequence[Label], predicted: Sequence[Label], labels: Sequence[Label] | None = None) -> Confusion:
    """How many examples of each class were called what, by scikit-learn."""
    check_pairs(gold, predicted)
    classes = classes_of(gold, predicted, labels)
    counts = sklearn_metrics().confusion_matrix(
        _codes(gold, classes), _codes(predicted, classes), labels=np.arange(len(classes))
    )
    return Confusion(tuple(map(str, classes)), np.asarray(counts, dtype=np.int64))


def per_class(
    gold: Sequence[Label],
    predicted: Sequence[Label],
    labels: Sequence[Label] | None = None,
    resampling: Resampling | None = None,
) -> dict[str, Scores]:
    """Precision, recall and F1 of each class that occurs; a figure that is 0/0 is left out and noted."""
    check_pairs(gold, predicted)
    resampling = resampling or Resampling()
    classes = classes_of(gold, predicted, labels)
    C, true, called = len(classes), _codes(gold, classes), _codes(predicted, classes)
    test = TestSet.of([str(label) for label in gold])
    sample = Sample(_counts(true, called, C), true * C + called)
    draws = sample.resampled(resampling.resamples, resampling.seed)
    right, called_n, true_n = sample.totals.reshape(3, C)
    found = {}
    for c, label in enumerate(classes):
        scores, notes = [], []
        for name, above, below in (("precision", right, called_n), ("recall", right, true_n),
                                   ("f1", 2 * right, called_n + true_n)):  # fmt: skip
            if below[c] == 0:
                notes.append(f"{name} is undefined: nothing {'was predicted' if name == 'precision' else 'occurs'}")
                continue
            trials = None if name == "f1" else float(below[c])
            interval = sample.interval(partial(_of_class, c=c, C=C, name=name), resampling, draws, trials)
            assert math.isclose(interval.value, above[c] / below[c])
            scores.append(measured(name, interval, len(true), FRACTION, test, resampling))
        found[str(label)] = Scores(tuple(scores), tuple(notes))
    return found


def _of_class(sums: Floats, c: int, C: int, name: str) -> Floats:
    right, called, true = sums[..., c], sums[..., C + c], sums[..., 2 * C + c]
    return quotient(*{"precision": (right, called), "recall": (right, true), "f1": (2 * right, called + true)}[name])


def multilabel(
    gold: Sequence[Sequence[Label]],
    predicted: Sequence[Sequence[Label]],
    labels: Sequence[Label] | None = None,
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """Any number of labels an example: subset accuracy (all labels right), micro and macro precision, recall, F1."""
    check_pairs(gold, predicted, inputs)
    resampling = resampling or Resampling()
    classes = classes_of([x for row in gold for x in row], [x for row in predicted for x in row], labels)
    if not classes:
        raise UserError("no example has a label, true or predicted")
    index = {label: i for i, label in enumerate(classes)}
    true, called = np.zeros((2, len(gold), len(classes)))
    for table, rows in ((true, gold), (called, predicted)):
        for i, row in enumerate(rows):
            table[i, [index[label] for label in row]] = 1
    test = TestSet.of([sorted(map(str, row)) for row in gold], inputs)
    right = (true == called).all(1).astype(np.float64)
    metrics, C, N = sklearn_metrics(), len(classes), len(gold)
    interval = mean_interval(right, resampling)
    _check_equal(float(metrics.accuracy_score(true, called)), interval, "subset_accuracy")
    scores = [mean_of("subset_accuracy", right, test, resampling, interval=interval)]
    parts = np.hstack([true * called, called, true])
    sample = Sample(parts)
    draws = sample.resampled(resampling.resamples, resampling.seed)
    if not parts.any():
        return Scores(tuple(scores), ("no example has a label, true or predicted: only subset accuracy is defined",))
    present = np.flatnonzero((true + called).any(0))
    for name in AVERAGES:
        combine = partial(averages, name=name, C=C)
        kind = {"precision": "precision_score", "recall": "recall_score", "f1": "f1_score"}[name.partition("_")[2]]
        value = getattr(metrics, kind)(true, called, labels=present, average=name[:5], zero_division=0)
        interval = sample.interval(combine, resampling, draws)
        _check_equal(float(value), interval, name)
        scores.append(measured(name, interval, N, FRACTION, test, resampling, (parts, combine),
                               definition=f"{AVERAGES[name]}; over classes that occur; 0 without a denominator",
                               classes=[str(label) for label in classes]))  # fmt: skip
    missing = np.setdiff1d(np.arange(C), present)
    note = f"left out of macro averages, for neither true nor predicted: {', '.join(str(classes[i]) for i in missing)}"
    return Scores(tuple(scores), (note[:400],) if len(missing) else ())
