"""Correction: the bake-off's counts worked out by hand, and edits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.scores.correction import correction, edits
from gpt2kit.scores.intervals import Resampling

FEW = Resampling(resamples=100)
# what happened                        source    gold      predicted
ROWS = [
    ("corrected", "我去学笑", "我去学校", "我去学校"),
    ("found, wrong character", "对不气", "对不起", "对不七"),
    ("one of two errors", "他门来拉", "他们来啦", "他们来拉"),
    ("missed", "跳无", "跳舞", "跳无"),
    ("rightly left alone", "你好", "你好", "你好"),
    ("false alarm", "再见", "再见", "在见"),
]
text = st.text(alphabet="我你他好吗啊", max_size=6)


def scored(rows: list[tuple[str, str, str, str]], **extra: Any) -> Any:
    return correction([r[2] for r in rows], [r[3] for r in rows], [r[1] for r in rows], resampling=FEW, **extra)


def test_sentences_by_hand() -> None:
    """Changed: 4. With errors: 4. Detection right: rows 1, 2 (and 5 of all six); correction right: row 1 (and 5)."""
    scores = scored(ROWS)
    want = {
        "detection_accuracy": 3 / 6,
        "detection_precision": 2 / 4,
        "detection_recall": 2 / 4,
        "detection_f1": 1 / 2,
        "correction_accuracy": 2 / 6,
        "correction_precision": 1 / 4,
        "correction_recall": 1 / 4,
        "correction_f1": 1 / 4,
        "false_positive_rate": 1 / 2,
        "edit_precision": 2 / 4,  # made: 校, 七, 们, 在; of these 校 and 们 are right
        "edit_recall": 2 / 5,  # needed: 校, 起, 们, 啦, 舞
        "edit_f1": 2 * 2 / (4 + 5),
        "edit_f0.5": 1.25 * 2 / (4 + 0.25 * 5),
    }
    assert {score.name: score.value for score in scores} == pytest.approx(want)
    for score in scores:
        assert score.low <= score.value <= score.high


def test_edits_of_one_length_are_place_by_place() -> None:
    assert edits("他门来拉", "他们来啦") == [(1, 2, "们"), (3, 4, "啦")]
    assert edits("abca", "bcab") == [(i, i + 1, new) for i, new in enumerate("bcab")]


def test_edits_of_another_length_insert_and_delete() -> None:
    assert edits("我我去学校", "我去学校") == [(0, 1, "")]
    assert edits("我去校", "我去学校") == [(2, 2, "学")]
    assert edits("坐路大概十分钟", "走路十分钟") == [(0, 1, "走"), (2, 4, "")]


def test_the_edits_of_a_row_are_found_in_one_way() -> None:
    """The reference has as many words as the source, the prediction one less."""
    scores = correction(["I go to the school"], ["I go to school"], ["I am go to school"], "en", FEW)
    assert (scores["edit_precision"].value, scores["edit_recall"].value) == (1, 1 / 2)
    scores = correction(["我昨天去了学校"], ["我昨天去学校"], ["我昨天在去学校"], "zh", FEW)
    assert (scores["edit_precision"].value, scores["edit_recall"].value) == (1, 1 / 2)


def test_english_edits_are_words() -> None:
    assert edits("He go to school .", "He goes to school.", "en") == [(2, 3, "goes"), (7, 8, "")]
    scores = correction(["He goes home."], ["He goes home."], ["He go home."], resampling=FEW)
    assert scores["edit_recall"].value == 1


@settings(deadline=None, max_examples=40)
@given(text, text, st.sampled_from(["en", "zh"]))
def test_edits_turn_the_source_into_the_target(source: str, target: str, language: str) -> None:
    pieces = list(source) if language == "zh" else ([source] if source else [])
    for begin, end, new in sorted(edits(source, target, language), reverse=True):
        pieces[begin:end] = [new]
    assert "".join(pieces) == target


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.just(""), text, text, text), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_the_sentences_changes_nothing(rows: list[tuple[str, str, str, str]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert scored(rows, language="zh").to_dict() == scored(shuffled, language="zh").to_dict()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=8))
def test_perfect_corrections_give_1(rows: list[tuple[str, str]]) -> None:
    scores = correction([b for _, b in rows], [b for _, b in rows], [a for a, _ in rows], "zh", resampling=FEW)
    for score in scores:
        assert score.value == (0 if score.name == "false_positive_rate" else 1)


def test_rates_without_a_denominator_are_noted() -> None:
    scores = correction(["你好", "再见"], ["你好", "再见"], ["你好", "再见"], resampling=FEW)
    assert {score.name for score in scores} == {"detection_accuracy", "correction_accuracy", "false_positive_rate"}
    assert "detection_precision is undefined: no sentence was changed" in scores.notes
    assert "edit_recall is undefined: no edit was needed" in scores.notes
    scores = correction(["你好"], ["你号"], ["你号"], resampling=FEW)
    assert scores["detection_f1"].value == 0
    assert "false_positive_rate is undefined: every sentence has an error" in scores.notes


def test_wrong_inputs_say_what_is_wrong() -> None:
    with pytest.raises(UserError, match="no examples"):
        correction([], [], [])
    with pytest.raises(UserError, match="1 inputs for 2 references"):
        correction(["a", "b"], ["a", "b"], ["a"])
