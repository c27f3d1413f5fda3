"""Figures and commands in words, one way everywhere."""

from __future__ import annotations

import re
import shlex


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`"""
    if seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count(number: float) -> str:
    """`124439808` -> `124.4 M`"""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{number / scale:.1f} {unit}"
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`"""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def command(*words: object) -> str:
    """A command to type, quoted for the shell: `gpt2kit info 'my run'`."""
    return " ".join(["gpt2kit", *(quoted(word) for word in words)])


def quoted(word: object) -> str:
    """One word for the shell. Letters of any script need no quotes (shlex.quote keeps to ASCII)."""
    return str(word) if re.fullmatch(r"[\w@%+=:,./-]+", str(word)) else shlex.quote(str(word))
