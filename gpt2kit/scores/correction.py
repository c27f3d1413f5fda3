"""Corrected texts: sentences found and corrected as in the SIGHAN bake-offs, and edits.

    detection     a sentence counts where exactly the wrong characters were changed, whatever they became
    correction    a sentence counts where the result is the reference
    edits         each change counts by itself

Precision is over the sentences that were changed, recall over those with errors, accuracy over all; the false
positive rate is the share of error-free sentences that were changed. (Wu et al. 2013, Tseng et al. 2015; the same as
the scripts that papers since Hong et al. 2019 and Xu et al. 2021 use.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial

import numpy as np

from gpt2kit.scores.intervals import Floats, Resampling, Sample, quotient, ratio
from gpt2kit.scores.result import FRACTION, Score, Scores, TestSet, check_pairs, mean_of, measured
from gpt2kit.scores.segment import check_language

Edit = tuple[int, int, str]  # source units [begin, end) become this text
_PIECES = re.compile(r"\s+|\w+|[^\w\s]")


def edits(source: str, target: str, language: str = "zh", aligned: bool | None = None) -> list[Edit]:
    """What turns `source` into `target`: by character in Chinese, by word, mark and space in English.

    Chinese texts of one length are compared place by place, as SIGHAN's are. Others, or all where `aligned`, are
    aligned by their longest common runs; a run that was replaced by as many units is one edit a unit.
    """
    a = list(source) if language == "zh" else _PIECES.findall(source)
    b = list(target) if language == "zh" else _PIECES.findall(target)
    if aligned is None:
        aligned = language != "zh" or len(a) != len(b)
    if not aligned:
        return [(i, i + 1, new) for i, (old, new) in enumerate(zip(a, b, strict=True)) if old != new]
    found: list[Edit] = []
    for kind, begin, end, first, last in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "replace" and end - begin == last - first:
            found += [(begin + i, begin + i + 1, b[first + i]) for i in range(end - begin)]
        elif kind != "equal":
            found.append((begin, end, "".join(b[first:last])))
    return found


def f_beta(sums: Floats, beta: float = 1.0) -> Floats:
    """From (right, called, true): (1 + b²) right / (called + b² true); 0 where nothing was right."""
    right, called, true = sums[..., 0], sums[..., 1], sums[..., 2]
    return quotient((1 + beta**2) * right, called + beta**2 * true)


def _precision(sums: Floats) -> Floats:
    return quotient(sums[..., 0], sums[..., 1])


def _recall(sums: Floats) -> Floats:
    return quotient(sums[..., 0], sums[..., 2])


RATES = {"precision": _precision, "recall": _recall, "f1": f_beta}
_NOTHING = (
    {"precision": "no sentence was changed", "recall": "no sentence needed a change"},
    {"precision": "no edit was made", "recall": "no edit was needed"},
)
_NEITHER = "no sentence was changed or needed it", "no edit was made or needed"
_f_half = partial(f_beta, beta=0.5)


def correction(
    gold: Sequence[str],
    predicted: Sequence[str],
    inputs: Sequence[str],
    language: str | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """The accuracy, precision, recall and f1 of detection and correction; false_positive_rate; edit_precision,
    edit_recall, edit_f1, edit_f0.5.

    A rate without a denominator (nothing was changed, nothing was wrong) is left out and noted. Spaces at the ends are
    ignored. UserError for an empty set or unequal lengths.
    """
    check_pairs(gold, predicted, inputs)
    gold, predicted, source = ([text.strip() for text in texts] for texts in (gold, predicted, inputs))
    language = check_language(language, gold)
    resampling = resampling or Resampling()
    test = TestSet.of(gold, source)
    made: list[set[Edit]] = []
    wanted: list[set[Edit]] = []
    for before, *after in zip(source, predicted, gold, strict=True):  # both in one way: their edits are compared
        aligned = language != "zh" or {len(text) for text in after} != {len(before)}
        for found_edits, text in zip((made, wanted), after, strict=True):
            found_edits.append(set(edits(before, text, language, aligned)))
    changed = np.array([bool(row) for row in made], dtype=np.float64)
    wrong = np.array([bool(row) for row in wanted], dtype=np.float64)
    found = np.array([_places(a) == _places(b) for a, b in zip(made, wanted, strict=True)], dtype=np.float64)
    right = np.array([a == b for a, b in zip(predicted, gold, strict=True)], dtype=np.float64)
    scores: list[Score] = []
    notes: list[str] = []
    for level, hit in (("detection", found), ("correction", right)):
        scores.append(mean_of(f"{level}_accuracy", hit, test, resampling, language=language))
        sums = np.column_stack([hit * changed, changed, wrong])
        _rates(level, sums, test, resampling, language, scores, notes)
    clean = 1 - wrong
    if clean.any():
        parts = np.column_stack([changed * clean, clean])
        interval = Sample(parts).interval(ratio, resampling, trials=float(clean.sum()))
        scores.append(measured("false_positive_rate", interval, len(gold), FRACTION, test, resampling, (parts, ratio),
                               language=language))  # fmt: skip
    else:
        notes.append("false_positive_rate is undefined: every sentence has an error")
    counts = [(len(a & b), len(a), len(b)) for a, b in zip(made, wanted, strict=True)]
    _rates("edit", np.array(counts, dtype=np.float64), test, resampling, language, scores, notes)
    return Scores(tuple(scores), tuple(notes))


def _places(found: set[Edit]) -> set[tuple[int, int]]:
    return {(begin, end) for begin, end, _ in found}


def _rates(
    level: str,
    parts: Floats,
    test: TestSet,
    resampling: Resampling,
    language: str,
    scores: list[Score],
    notes: list[str],
) -> None:
    """Precision, recall and F of (right, called, true) [N, 3], where they have a denominator."""
    sample = Sample(parts)
    draws = sample.resampled(resampling.resamples, resampling.seed)
    _, called, true = sample.totals
    rates = RATES | ({"f0.5": _f_half} if level == "edit" else {})
    for name, combine in rates.items():
        below = {"precision": called, "recall": true}.get(name, called + true)
        if below == 0:
            notes.append(
                f"{level}_{name} is undefined: {_NOTHING[level == 'edit'].get(name, _NEITHER[level == 'edit'])}"
            )
            continue
        # Several edits of one sentence stand and fall together: no exact interval for a share of edits.
        trials = float(below) if level != "edit" and name in ("precision", "recall") else None
        interval = sample.interval(combine, resampling, draws, trials)
        scores.append(measured(f"{level}_{name}", interval, len(parts), FRACTION, test, resampling, (parts, combine),
                               language=language))  # fmt: skip
