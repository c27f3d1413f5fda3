"""Texts to the units that scores count: Chinese by character, other scripts by word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal

from gpt2kit.errors import unknown

Language = Literal["en", "zh"]
# Ideographs with their extensions, 々〇, kana: scripts that are written without spaces.
CHARACTERS = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{CHARACTERS}]")
_WORD = re.compile(rf"[^\W{CHARACTERS}]+")
_UNIT = re.compile(rf"[{CHARACTERS}]|[^\W{CHARACTERS}]+|[^\w\s]")
_UNIT_WITHOUT_PUNCTUATION = re.compile(rf"[{CHARACTERS}]|[^\W{CHARACTERS}]+")
LOOKED_AT = 1000  # texts that decide the language


def units(text: str, punctuation: bool = True) -> list[str]:
    """`GPT-2是模型。` -> GPT - 2 是 模 型 。: each Chinese character, each word or number, each punctuation mark."""
    return (_UNIT if punctuation else _UNIT_WITHOUT_PUNCTUATION).findall(text)


def language_of(texts: Iterable[str]) -> Language:
    """ "zh" where the first 1,000 texts hold more Chinese characters than words of other scripts, else "en"."""
    balance = 0
    for text in islice(texts, LOOKED_AT):
        balance += len(_CHARACTER.findall(text)) - len(_WORD.findall(text))
    return "zh" if balance > 0 else "en"


def check_language(language: str | None, texts: Iterable[str]) -> Language:
    """The language that was asked for, or that of the texts."""
    if language is None:
        return language_of(texts)
    if language not in ("en", "zh"):
        raise unknown("language", language, ("en", "zh"))
    return "zh" if language == "zh" else "en"


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
