"""Exact match and token F1: the official scripts' rules, worked out by hand."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.scores.answers import answers, cmrc_f1, cmrc_normalised, cmrc_tokens, squad_f1, squad_normalised
from gpt2kit.scores.intervals import Resampling

FEW = Resampling(resamples=100)
CHINESE = "光荣和开发的系列作品，。《》 3a"
text = st.text(alphabet=CHINESE, max_size=8)


def test_squad_drops_case_punctuation_articles_and_spaces() -> None:
    assert squad_normalised("The  Denver Broncos, of  an \nAmerican league!") == "denver broncos of american league"
    assert squad_normalised("another theatre") == "another theatre"  # articles are whole words
    assert squad_f1("the Denver Broncos", "Broncos") == pytest.approx(2 / 3)
    assert squad_f1("a a b b", "b c") == pytest.approx(2 * 1 / (2 + 2))  # a is an article; b counts once
    assert squad_f1("x x y", "x x z") == pytest.approx(2 * 2 / 6)  # a word counts as often as both have it
    assert squad_f1("fifty years", "years, fifty") == 1


def test_cmrc_takes_the_longest_common_run_of_characters() -> None:
    assert cmrc_tokens("光荣和ω-force") == ["光", "荣", "和", "ωforce"]
    assert cmrc_f1("光荣和ω-force", "光荣和ω-force开发") == pytest.approx(2 * 4 / (4 + 6))
    assert cmrc_f1("一二三四", "三四一二") == pytest.approx(2 * 2 / 8)  # a run, not a bag
    assert cmrc_f1("abc", "光") == 0
    assert cmrc_normalised("《战国，无双》 3。") == "战国无双 3"
    assert cmrc_f1("《战国，无双》3", "战国无双 3") == 1


def test_other_scripts_between_chinese_are_tokenised_as_the_script_does() -> None:
    pytest.importorskip("nltk", reason="needs the extra 'scores'")
    assert cmrc_tokens("第3.5版don't stop.") == ["第", "3.5", "版", "do", "n't", "stop", "."]


def test_without_nltk_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "nltk"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nltk", None)
    assert cmrc_tokens("第3版ab c") == ["第", "3", "版", "ab", "c"]
    with pytest.raises(UserError, match="nltk"):
        cmrc_tokens("第3.5版")


def test_the_best_reference_counts() -> None:
    scores = answers([["Saint Bernadette", "Bernadette Soubirous"], ["1858"]], ["bernadette soubirous", "in 1858"])
    assert scores["exact_match"].value == 0.5
    assert scores["token_f1"].value == pytest.approx((1 + 2 / 3) / 2)
    assert scores["token_f1"].protocol["definition"].startswith("SQuAD")


def test_chinese_references_are_scored_as_cmrc_does() -> None:
    scores = answers([["光荣"], ["2010年"]], ["光荣公司", "2010年。"], resampling=FEW)
    assert scores["exact_match"].value == 0.5
    assert scores["token_f1"].value == pytest.approx((2 * 2 / 6 + 1) / 2)
    assert scores["token_f1"].protocol["definition"].startswith("CMRC")


def test_abstaining_is_right_where_there_is_no_answer() -> None:
    """SQuAD 2.0's rule, and each kind of question by itself."""
    scores = answers([["Rome"], [], [""]], ["", "", "Paris"], resampling=FEW)
    assert scores["exact_match"].value == pytest.approx(1 / 3)
    assert scores["exact_match_answerable"].value == 0
    assert scores["exact_match_unanswerable"].value == 0.5
    assert scores["exact_match_unanswerable"].n == 2
    assert scores["token_f1_unanswerable"].value == 0.5


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(text, min_size=1, max_size=3), min_size=1, max_size=10), st.sampled_from(["squad", "cmrc"]))
def test_perfect_answers_give_1(gold: list[list[str]], protocol: str) -> None:
    for score in answers(gold, [row[-1] for row in gold], protocol, resampling=FEW):
        assert score.value == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_the_order_of_the_questions_changes_nothing(rows: list[tuple[str, str]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (answers([[a] for a, _ in r], [b for _, b in r], "cmrc", resampling=FEW) for r in (rows, shuffled))
    assert first.to_dict() == second.to_dict()
    for score in first:
        assert score.low is not None
        assert 0 <= score.low <= score.value <= 1


def test_wrong_inputs_say_what_is_wrong() -> None:
    with pytest.raises(UserError, match="no examples"):
        answers([], [])
    with pytest.raises(UserError, match="list of reference answers, got one string"):
        answers(["Rome"], ["Rome"])
    with pytest.raises(UserError, match="unknown protocol 'squat'; did you mean 'squad'"):
        answers([["Rome"]], ["Rome"], "squat")
