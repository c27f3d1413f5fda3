"""Texts to units: Chinese by character, everything else by word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.scores.segment import check_language, language_of, ngrams, units


def test_characters_words_and_marks() -> None:
    assert units("GPT-2是模型。Hello, wörld!") == ["GPT", "-", "2", "是", "模", "型", "。", "Hello", ",", "wörld", "!"]
    assert units("GPT-2是模型。", punctuation=False) == ["GPT", "2", "是", "模", "型"]
    assert units("他𠮷野家々〇") == ["他", "𠮷", "野", "家", "々", "〇"]
    assert units(" \n\u3000") == []


@given(st.text(max_size=30))
def test_nothing_but_space_is_lost(text: str) -> None:
    assert "".join(units(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["他走了。"], "zh"),
        (["好"], "zh"),
        (["He left."], "en"),
        (["用 Python 3 写的程序"], "zh"),
        (["the word 你好 in English text"], "en"),
        (["123"], "en"),
        ([""], "en"),
        ([], "en"),
    ],
)
def test_the_language_is_that_of_most_units(texts: list[str], language: str) -> None:
    assert language_of(texts) == language
    assert check_language(None, texts) == language
    assert check_language("zh", texts) == "zh"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UserError, match="unknown language 'chinese'"):
        check_language("chinese", [])


def test_ngrams_of_short_texts_are_none() -> None:
    assert ngrams("abc", 2) == [("a", "b"), ("b", "c")]
    assert ngrams("a", 2) == []
