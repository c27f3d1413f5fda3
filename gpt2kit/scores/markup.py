"""Texts as HTML: a user's made harmless, ours in both languages."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from gpt2kit.scores.segment import CHARACTERS

SHOWN, FOLDED = 600, 20_000  # characters of a text: at once, and behind "show all"
COMPARED = 4000  # characters up to which texts are marked where they differ
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PIECES = re.compile(rf"\s+|[^\W{CHARACTERS}]+|.", re.S)

Pair = tuple[str, str]  # English, Chinese


def clean(text: Any) -> str:
    """A user's text as HTML: nothing in it is markup, and what would act unseen (controls, directions) is seen."""
    text = _CONTROL.sub(lambda match: f"\u27e8U+{ord(match[0]):04X}\u27e9", str(text))
    return html.escape(_SURROGATE.sub("\ufffd", text), quote=True)


def both(english: str, chinese: str) -> str:
    """A text of ours in both languages; the page shows one."""
    if english == chinese:
        return english
    return f'<span class="en" lang="en">{english}</span><span class="zh" lang="zh-CN">{chinese}</span>'


def heading(english: str, chinese: str) -> str:
    return f"<h2>{both(english, chinese)}</h2>"


def cell(content: str, title: Pair, kind: str = "n") -> str:
    """A cell that carries its column's title, which a phone shows beside it."""
    return f'<td class="{kind}" data-en="{title[0]}" data-zh="{title[1]}"><span>{content}</span></td>'


def table(columns: Sequence[Pair], rows: Sequence[str], kind: str = "full stack") -> str:
    """A table whose first column is text and whose others are numbers. `rows` are <tr> elements."""
    head = "".join(f"<th{' class=n' if i else ''}>{both(*title)}</th>" for i, title in enumerate(columns))
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def folded(text: str) -> str:
    """A text, the rest of a long one behind a fold; where even that is cut, it is said."""
    if not text.strip():
        return f'<span class="empty">{both("empty", "空")}</span>'
    if len(text) <= SHOWN:
        return clean(text)
    more = clean(text[SHOWN:FOLDED])
    if len(text) > FOLDED:
        left = f"{len(text) - FOLDED:,}"
        more += f' <span class="empty">{both(f"… {left} more characters", f"……另有 {left} 个字符")}</span>'
    return f"{clean(text[:SHOWN])}<details><summary>{both('show all', '展开全部')}</summary>{more}</details>"


def marked(gold: str, predicted: str) -> tuple[str, str]:
    """Both texts with what the other lacks marked; texts that are empty or too long to compare stay as they are."""
    if not gold.strip() or not predicted.strip() or len(gold) + len(predicted) > COMPARED:
        return folded(gold), folded(predicted)
    a, b = _PIECES.findall(gold), _PIECES.findall(predicted)
    left, right = [], []
    for kind, i, j, m, n in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        ours, theirs = clean("".join(a[i:j])), clean("".join(b[m:n]))
        left.append(ours if kind == "equal" or not ours else f'<mark class="missing">{ours}</mark>')
        right.append(theirs if kind == "equal" or not theirs else f'<mark class="extra">{theirs}</mark>')
    return "".join(left), "".join(right)
