"""How results are printed: JSON or aligned facts on stdout, notes on stderr."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable

_BOUND = "\0"  # a blank that lines are not broken at
LINE = 100  # characters; a fact that is longer goes on in the next line, below its beginning


def print_json(value: object) -> None:
    """One line, Chinese as it is; at once, for whoever reads along."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def print_fact(name: str, value: object, width: int = 11) -> None:
    """`settings    steps 1000, batch 16, ...`, in as many lines as it takes."""
    indent = " " * (width + 1)
    lines = textwrap.wrap(_plain(value), LINE - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    print(f"{name:<{width}} " + f"\n{indent}".join(lines).replace(_BOUND, " "))


def _plain(value: object) -> str:
    """Settings and figures for the eye; --json has them for programs."""
    if isinstance(value, dict):
        return ", ".join(f"{key}{_BOUND}{_nested(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_nested, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _nested(value: object) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"({_plain(value)})"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:16]  # of a SHA-256: enough to compare
    return _plain(value)
