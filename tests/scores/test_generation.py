"""BLEU, chrF and ROUGE are sacrebleu's and rouge-score's own; Chinese is not lost."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sacrebleu", reason="needs the extra 'scores'")
pytest.importorskip("rouge_score", reason="needs the extra 'scores'")

import sacrebleu
from rouge_score import rouge_scorer

from gpt2kit.errors import UserError
from gpt2kit.scores.generation import generation
from gpt2kit.scores.intervals import Resampling

FEW = Resampling(resamples=100)
ENGLISH = [
    ("The cat sat on the mat, quietly.", "The cat is sitting on the mat."),
    ("It's 5 o'clock in the U.S. today.", "It's five o'clock in the US today."),
    ("He bought a new car last week.", "Last week he bought a new car."),
]
CHINESE = [
    ("我们来试试吧，现在就开始。", "我们试试吧，现在开始。"),
    ("他昨天买了一辆新车。", "他昨天买了新的车子。"),
    ("GPT-2 是一个语言模型。", "GPT-2是语言的模型。"),
]
sentence = st.text(alphabet="我们他你来去好吗ab 1，。", max_size=12)


@pytest.mark.parametrize(("pairs", "tokenize"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_and_chrf_are_sacrebleus_with_the_signature(pairs: list[tuple[str, str]], tokenize: str) -> None:
    gold, predicted = ([pair[i] for pair in pairs] for i in (0, 1))
    scores = generation(gold, predicted, resampling=FEW)
    bleu = sacrebleu.BLEU(tokenize=tokenize)
    assert scores["bleu"].value == pytest.approx(bleu.corpus_score(predicted, [gold]).score, abs=1e-9)
    assert scores["bleu"].protocol["signature"] == str(bleu.get_signature())
    assert f"tok:{tokenize}" in scores["bleu"].protocol["signature"]
    chrf = sacrebleu.CHRF()
    assert scores["chrf"].value == pytest.approx(chrf.corpus_score(predicted, [gold]).score, abs=1e-9)
    assert scores["chrf"].protocol["signature"] == str(chrf.get_signature())
    assert scores["bleu"].unit == "points"
    each = scores["chrf"].examples
    assert each is not None
    assert each.values is not None
    want = [chrf.sentence_score(p, [g]).score for g, p in pairs]
    np.testing.assert_allclose(each.values, want)


def test_english_rouge_is_rouge_scores() -> None:
    gold, predicted = ([pair[i] for pair in ENGLISH] for i in (0, 1))
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = generation(gold, predicted, metrics=["rougeL", "rouge1", "rouge2"], resampling=FEW)
    assert [score.name for score in scores] == ["rougeL", "rouge1", "rouge2"]
    for score in scores:
        want = np.mean([scorer.score(g, p)[score.name].fmeasure for g, p in ENGLISH])
        assert score.value == pytest.approx(want)


def test_rouge_l_of_lin_2004() -> None:
    """Lin 2004, section 3.1: reference `police killed the gunman`; 3/4 and 2/4 of it in order."""
    gold = ["police killed the gunman"] * 2
    scores = generation(gold, ["police kill the gunman", "the gunman kill police"], "en", ["rougeL"], resampling=FEW)
    assert scores["rougeL"].examples is not None
    assert scores["rougeL"].examples.values is not None
    assert scores["rougeL"].examples.values.tolist() == [3 / 4, 2 / 4]


def test_chinese_rouge_counts_characters() -> None:
    """今天天气好 and 今天很好: three of five and of four characters, in order; rouge-score itself finds nothing."""
    assert rouge_scorer.RougeScorer(["rouge1"]).score("今天天气好", "今天很好")["rouge1"].fmeasure == 0
    scores = generation(["今天天气好。"], ["今天很好！"], metrics=["rouge1", "rouge2", "rougeL"], resampling=FEW)
    assert scores["rouge1"].value == pytest.approx(2 * 3 / (5 + 4))
    assert scores["rouge2"].value == pytest.approx(2 * 1 / (4 + 3))
    assert scores["rougeL"].value == pytest.approx(2 * 3 / (5 + 4))
    assert "by character" in scores["rouge1"].protocol["definition"]


def test_several_references_and_different_numbers_of_them() -> None:
    gold = [["他走了。", "他离开了。"], ["你好"]]
    scores = generation(gold, ["他离开了。", "你好"], resampling=FEW)
    want = sacrebleu.BLEU(tokenize="zh").corpus_score(
        ["他离开了。", "你好"], [["他走了。", "你好"], ["他离开了。", None]]
    )
    assert scores["bleu"].value == pytest.approx(want.score)
    assert scores["chrf"].value == pytest.approx(100)
    assert scores["rougeL"].value == 1


def test_short_texts_have_no_4_grams_and_it_is_said() -> None:
    scores = generation(["嗨。", "你好"], ["嗨。", "你好"], resampling=FEW)
    assert scores["bleu"].value == 0
    assert scores["chrf"].value == pytest.approx(100)
    assert "no generated text has four tokens" in scores.notes[0]


def test_nothing_generated_scores_0() -> None:
    scores = generation(["今天天气很好", "你好吗朋友"], ["", ""], resampling=FEW)
    assert [score.value for score in scores] == [0, 0, 0, 0, 0]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(sentence, sentence), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_nothing(rows: list[tuple[str, str]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    first, second = (generation([a for a, _ in r], [b for _, b in r], "zh", resampling=FEW) for r in (rows, shuffled))
    assert first.to_dict() == second.to_dict()
    for score in first:
        assert score.low is not None
        assert score.high is not None
        assert 0 <= score.low <= score.value <= score.high <= 100 + 1e-9


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(alphabet="我们他你来去好吗ab", min_size=4, max_size=12), min_size=1, max_size=6))
def test_perfect_predictions_give_everything(gold: list[str]) -> None:
    scores = generation(gold, gold, "zh", ["chrf", "rouge1", "rougeL"], resampling=FEW)
    for score in scores:
        assert score.value == pytest.approx(100 if score.unit == "points" else 1)


def test_wrong_inputs_say_what_is_wrong() -> None:
    with pytest.raises(UserError, match="no examples"):
        generation([], [])
    with pytest.raises(UserError, match="example 1 has no reference"):
        generation(["a", []], ["a", "b"])
    with pytest.raises(UserError, match="unknown metric 'blue'; did you mean 'bleu'"):
        generation(["a"], ["a"], metrics=["blue"])
    with pytest.raises(UserError, match="unknown language 'cn'"):
        generation(["a"], ["a"], "cn")


@pytest.mark.parametrize(("package", "metric"), [("sacrebleu", "bleu"), ("rouge_score", "rougeL")])
def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str, metric: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="needs the package") as error:
        generation(["a"], ["a"], metrics=[metric])
    assert error.value.hint == "run: pip install 'gpt2kit[scores]'"
