"""Written answers: against references, exactly, and how varied they are."""

from __future__ import annotations

import pytest

pytest.importorskip("sacrebleu", reason="needs the extra 'scores'")

from gpt2kit.scores.comparison import compare_all
from gpt2kit.scores.written import written

GOLD, ASKED = ["a red fox runs", "two sheep eat grass", "it rains"], ["p", "q", "r"]
VARIETY = ["distinct_1", "distinct_2", "rep_1", "rep_2", "rep_3", "rep_4", "self_bleu"]


def test_variety_stands_behind_the_figures_against_references() -> None:
    found = written(GOLD, ["a fox a fox a fox"] * 3, ASKED)
    assert [score.name for score in found] == ["bleu", "chrf", "rouge1", "rouge2", "rougeL", *VARIETY]
    assert found["distinct_1"].value == 2 / 18
    assert found["self_bleu"].value == pytest.approx(100)


def test_exact_matches_are_counted_where_they_are_asked_for() -> None:
    answers = [GOLD[0], "three sheep", " it rains\n"]
    assert written(GOLD, answers, ASKED, exact=True)["exact_match"].value == 2 / 3
    assert "exact_match" not in written(GOLD, GOLD, ASKED)


def test_empty_answers_are_scored_and_have_no_variety() -> None:
    found = written(GOLD, [""] * 3, ASKED, exact=True)
    assert found["exact_match"].value == 0
    assert "self_bleu" not in found
    assert any("every answer is empty" in note for note in found.notes)


def test_answers_in_another_language_are_compared_all_the_same() -> None:
    """A translator that answers in the wrong language is cut into the references' units."""
    compared = compare_all(
        written(GOLD, GOLD, ASKED, exact=True), written(GOLD, ["狐狸在跑", "羊", ""], ASKED, exact=True)
    )
    assert "self_bleu" in {one.metric for one in compared}
