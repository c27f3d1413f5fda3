"""Texts that differ only in case, width, spaces or punctuation, as one."""

from __future__ import annotations

import re
import unicodedata

_NOT_WORDS = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """Letters and digits alone, in NFKC and case-folded; a text without any is taken as it is."""
    kept = _NOT_WORDS.sub("", (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold())
    return kept or text
