"""Figures and commands in words."""

from __future__ import annotations

import pytest

from gpt2kit import wording


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (5430, "1 h 30 min"), (float("inf"), "?")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(7, "7"), (9999, "9,999"), (12_345, "12.3 k"), (124_439_808, "124.4 M"), (2.5e9, "2.5 G"), (3e15, "3.0 P")],
)
def test_counts_in_words(number: float, words: str) -> None:
    assert wording.count(number) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (1000, "1,000 layers")]
)
def test_one_is_no_plural(number: int, words: str) -> None:
    assert wording.plural(number, "layer") == words


def test_commands_can_be_pasted_into_a_shell() -> None:
    assert wording.command("train", "--resume", "runs/mine") == "gpt2kit train --resume runs/mine"
    assert wording.command("info", "my run; ls") == "gpt2kit info 'my run; ls'"
    assert wording.command("info", "模型/一", "", "《书》") == "gpt2kit info 模型/一 '' '《书》'"
