"""The share of each label in many texts."""

from __future__ import annotations

import pytest

from gpt2kit.errors import UserError
from gpt2kit.scores.shares import shares


def test_a_share_comes_with_an_interval_around_it() -> None:
    found = shares([["good"]] * 30 + [["bad"]] * 10, ["good", "bad", "mixed"])
    assert [score.name for score in found] == ["good", "bad", "mixed"]
    assert found["good"].value == 0.75
    low, high = found["good"].low, found["good"].high
    assert low is not None
    assert high is not None
    assert 0.55 < low < 0.75 < high < 0.92  # Wilson's: 0.598 to 0.858
    assert found["mixed"].value == 0
    assert found["mixed"].high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert found["good"].n == 40


def test_several_labels_of_a_text_each_count() -> None:
    found = shares([["a", "b"], ["b"], []], ["a", "b"])
    assert [score.value for score in found] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_no_texts_have_no_shares() -> None:
    with pytest.raises(UserError, match="no texts"):
        shares([], ["a"])
