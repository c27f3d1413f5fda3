"""Scores as JSON and back; what is wrong in a file is named; test sets are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.result import FRACTION, Score, Scores, TestSet, mean_of

PROTOCOLS = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key != "metrics"),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=3)),
    max_size=4,
)


@st.composite
def score(draw: st.DrawFn) -> Score:
    low, value, high = sorted(draw(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)))
    ends = draw(st.booleans())
    return Score(
        draw(st.text(min_size=1, max_size=8)), value, low if ends else None, high if ends else None,
        draw(st.integers(1, 10**6)), draw(st.text(max_size=8)), draw(PROTOCOLS),
    )  # fmt: skip


@settings(max_examples=40)
@given(st.lists(score(), max_size=5, unique_by=lambda item: item.name), st.lists(st.text(max_size=9), max_size=2))
def test_scores_come_back_from_json_as_they_were(items: list[Score], notes: list[str]) -> None:
    scores = Scores(tuple(items), tuple(notes))
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


def test_the_shape_of_the_json() -> None:
    """Each metric has value, low, high; what all protocols say alike stands once."""
    test = TestSet.of(["a", "b", "a"])
    values = np.array([1.0, 0.0, 1.0])
    scores = Scores((mean_of("accuracy", values, test, Resampling()),
                     mean_of("exact_match", values, test, Resampling(), definition="SQuAD")))  # fmt: skip
    found = scores.to_dict()
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert set(found["metrics"]["accuracy"]) == {"value", "low", "high", "n", "unit"}
    assert found["metrics"]["accuracy"]["unit"] == FRACTION
    assert found["protocol"]["test_set"] == test.name
    assert found["protocol"]["seed"] == 0
    assert found["protocol"]["metrics"] == {"exact_match": {"definition": "SQuAD"}}
    assert "notes" not in found


GOOD: dict[str, Any] = {"metrics": {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}}, "protocol": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "no object 'metrics'"),
        ({"metrics": []}, "no object 'metrics'"),
        ({"metrics": {"f1": 0.5}}, "the metric 'f1' is not an object"),
        ({"metrics": {"f1": {"value": "0.5"}}}, "metric 'f1': value is '0.5', not a finite number"),
        ({"metrics": {"f1": {"value": float("nan")}}}, "metric 'f1': value is nan"),
        ({"metrics": {"f1": {"value": True}}}, "metric 'f1': value is True"),
        ({"metrics": {"f1": {"value": 0.5, "low": 0.6, "high": 0.7}}}, "0.5 is not between low 0.6 and high 0.7"),
        ({"metrics": {"f1": {"value": 0.5, "n": 0}}}, "n must be a whole number from 1"),
        ({"metrics": {"f1": {"value": 0.5, "unit": 3}}}, "unit a string"),
        ({"protocol": []}, "the protocol of the scores is not an object"),
        ({"protocol": {"metrics": 3}}, "the protocol of the scores is not an object"),
        ({"notes": "x"}, "the notes of the scores"),
    ],
)
def test_a_damaged_file_names_what_is_wrong(change: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Scores.from_dict(GOOD | change if isinstance(change, dict) else change)
    assert Scores.from_dict(GOOD)["f1"].n == 1


def test_a_test_set_is_known_by_its_examples_in_any_order() -> None:
    a = TestSet.of(["x", "y"], ["one", "two"])
    b = TestSet.of(["y", "x"], ["two", "one"])
    assert a.name == b.name
    assert a.order != b.order
    assert a.name != TestSet.of(["x", "y"], ["one", "three"]).name
    assert a.name != TestSet.of(["x", "y"]).name  # labels alone say less, and say so
    assert a.name.startswith("inputs and references, 2 examples")
    assert TestSet.of(["xy", ""]).name != TestSet.of(["x", "y"]).name


def test_scores_are_found_by_name_and_joined() -> None:
    one = Score("a", 0.5, None, None, 3, FRACTION)
    scores = Scores((one,), ("n",)) + Scores((replace(one, name="b"),), ("n", "m"))
    assert [score.name for score in scores] == ["a", "b"]
    assert scores.notes == ("n", "m")
    assert "b" in scores
    assert len(scores.prefixed("dev_")) == 2
    assert scores.prefixed("dev_")["dev_a"].value == 0.5
    with pytest.raises(UserError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        Scores((replace(one, name="accuracy"),))["acuracy"]
    assert str(one) == "a 0.5"
    assert str(replace(one, low=0.4, high=0.61)) == "a 0.5 [0.4, 0.61]"
    with pytest.raises(AssertionError, match="named twice"):
        Scores((one, one))


def test_a_score_is_never_nan_nor_outside_its_interval() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        Score("a", float("nan"), None, None, 1, "")
    with pytest.raises(AssertionError, match="outside its interval"):
        Score("a", 0.5, 0.6, 0.7, 1, "")


def test_a_score_shows_its_interval_and_says_where_there_is_no_spread() -> None:
    known = Score("bleu", 12.345678, 11.0, 13.0, 5, "points", {"interval": "bca"})
    assert str(known) == "bleu 12.35 [11, 13]"
    assert known.interval_text(".1f") == "[11.0, 13.0]"
    assert str(replace(known, value=0, low=0, high=0, protocol={"interval": "none"})) == "bleu 0 (no spread)"
    assert str(replace(known, low=None, high=None)) == "bleu 12.35"
