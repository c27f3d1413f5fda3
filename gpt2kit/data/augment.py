"""More rows out of labelled ones: words deleted, swapped, inserted, replaced; noise for learning to correct.

Every function is pure, (row, seed, index) -> row: the same three give the same row, on any machine and in any order.
The row comes back marked (`row.augmented`), or as it is where nothing could be changed. A word is a word of
letters and digits, in Chinese and Japanese one character. Rows of plain text are refused: what a language
model learns from is never altered.

Deletion, swap and insertion follow Wei and Zou, EDA (2019); replacement is theirs with the neighbours of a model's
own embeddings (neighbours.py) in place of a thesaurus.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gpt2kit.data.families import LabelRow, PairRow, Row
from gpt2kit.errors import UserError, unknown

if TYPE_CHECKING:
    from gpt2kit.data.confusions import Confusions
    from gpt2kit.data.neighbours import Neighbours

RATE = 0.1  # of a text's words that are changed, one at least; EDA's advice for small data
IDEOGRAPH = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Han: a word is a character
_LETTERS = rf"[^\W_{IDEOGRAPH}]+"
_PIECES = re.compile(rf"[{IDEOGRAPH}]|{_LETTERS}(?:['’]{_LETTERS})*|\s+|.", re.DOTALL)

Change = Callable[[str, random.Random], str]
Method = Callable[[Row, int, int], Row]
NAMES = ("delete", "swap", "insert", "replace", "noise")
MEANING = ("insert", "replace")  # they put in words of like meaning
TASKS = ("classify", "translate", "summarise", "correct", "edit", "instruct")
NOISY = ("correct", "edit")  # what noise is for


def pieces(text: str) -> list[str]:
    """The text cut into words, blanks and single marks; they join to the text."""
    return _PIECES.findall(text)


def is_word(piece: str) -> bool:
    return piece[:1].isalnum()


def generator(name: str, seed: int, index: int) -> random.Random:
    """The random numbers of one row: a function of the three arguments alone."""
    return random.Random(f"{name} {seed} {index}")


def _altered(row: Row, name: str, seed: int, index: int, change: Change) -> Row:
    """The row with `change` made to what the model is given; never to a label or a completion."""
    pick = generator(name, seed, index)
    if isinstance(row, LabelRow):
        text = change(row.text, pick)
        pair = None if row.text_pair is None else change(row.text_pair, pick)
        if (text, pair) == (row.text, row.text_pair):
            return row
        return replace(row, text=text, text_pair=pair, augmented=name)
    if isinstance(row, PairRow):
        prompt = change(row.prompt, pick)
        return row if prompt == row.prompt else replace(row, prompt=prompt, augmented=name)
    raise UserError(
        f"{row.where}: only texts with labels and prompts with completions are augmented, not a {type(row).__name__}",
        hint="plain text is learned as it is; answers and conversations would no longer fit their text",
    )


def _some(words: Sequence[int], rate: float, pick: random.Random) -> list[int]:
    return pick.sample(words, min(len(words), max(1, round(rate * len(words)))))


def _words(parts: Sequence[str]) -> list[int]:
    return [n for n, piece in enumerate(parts) if is_word(piece)]


def delete(row: Row, seed: int, index: int, rate: float = RATE) -> Row:
    """Without some of its words; one stays at least."""

    def change(text: str, pick: random.Random) -> str:
        parts = pieces(text)
        words = _words(parts)
        gone = set(_some(words, rate, pick)[: len(words) - 1]) if len(words) > 1 else set()
        kept: list[str] = []
        for n, piece in enumerate(parts):
            double = piece.isspace() and n - 1 in gone and (not kept or kept[-1].isspace())
            if n not in gone and not double:
                kept.append(piece)
        if len(parts) - 1 in gone and kept[-1].isspace():
            kept.pop()
        return "".join(kept)

    return _altered(row, "delete", seed, index, change)


def swap(row: Row, seed: int, index: int, rate: float = RATE) -> Row:
    """With some of its words in each other's place."""

    def change(text: str, pick: random.Random) -> str:
        parts = pieces(text)
        words = _words(parts)
        for first in _some(words, rate, pick) if len(words) > 1 else []:
            second = pick.choice([n for n in words if n != first])
            parts[first], parts[second] = parts[second], parts[first]
        return "".join(parts)

    return _altered(row, "swap", seed, index, change)


def insert(row: Row, seed: int, index: int, rate: float = RATE, neighbours: Neighbours | None = None) -> Row:
    """With some of its words once more somewhere else; with `neighbours`, words of their meaning instead."""

    def change(text: str, pick: random.Random) -> str:
        parts = pieces(text)
        words = _words(parts)
        added = [parts[n] for n in _some(words, rate, pick)]
        if neighbours is not None:
            added = [near for word in added if (near := neighbours.like(word, pick)) is not None]
        places = sorted((pick.choice(words) for _ in added), reverse=True)
        for word, at in zip(added, places, strict=True):
            parts[at:at] = [word] if len(word) == 1 and not word.isascii() else [word, " "]
        return "".join(parts)

    return _altered(row, "insert", seed, index, change)


def exchange(row: Row, seed: int, index: int, neighbours: Neighbours, rate: float = RATE) -> Row:
    """With some of its words replaced by neighbours of theirs in the embedding."""

    def change(text: str, pick: random.Random) -> str:
        places = neighbours.places(text)
        chosen = pick.sample(places, min(len(places), max(1, round(rate * len(places)))))
        for start, end, token in sorted(chosen, reverse=True):
            text = text[:start] + pick.choice(neighbours.of(token)) + text[end:]
        return text

    return _altered(row, "replace", seed, index, change)


def noise(row: Row, seed: int, index: int, confusions: Confusions) -> Row:
    """A pair to learn correction from: the completion, with mistakes put in, as the prompt."""
    if not isinstance(row, PairRow):
        raise UserError(f"{row.where}: noise is put into pairs for correction, not into a {type(row).__name__}",
                        hint="read the data for the task correct")  # fmt: skip
    prompt = confusions.spoil(row.completion, generator("noise", seed, index))
    return row if prompt == row.prompt else replace(row, prompt=prompt, augmented="noise")


def read_names(given: str, task: str) -> list[str]:
    """`delete,swap` -> ["delete", "swap"], checked. UserError for a task whose rows must stay as they are, by name."""
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    strange = next((name for name in names if name not in NAMES), None)
    if strange is not None:
        raise unknown("augmentation", strange, NAMES)
    if not names:
        raise UserError("--augment names no way to do it", hint=f"known: {', '.join(NAMES)}")
    if task not in TASKS:
        raise UserError(
            f"{task} is never augmented: " + ("a language model would learn the damaged text" if task == "write" else
            "answers and conversations would no longer fit their text"),
            hint=f"labels and pairs can be: {', '.join(TASKS)}",
        )  # fmt: skip
    if "noise" in names and task not in NOISY:
        raise UserError(f"noise makes mistakes to correct, which {task} has no use for", hint="for correct and edit")
    return names


def methods(names: Sequence[str], neighbours: Neighbours | None, confusions: Confusions | None) -> list[Method]:
    """The functions of these names. `neighbours` for those in MEANING, `confusions` for noise."""
    known: dict[str, Method] = {"delete": delete, "swap": swap}
    if neighbours is not None:
        known["insert"] = partial(insert, neighbours=neighbours)
        known["replace"] = partial(exchange, neighbours=neighbours)
    if confusions is not None:
        known["noise"] = partial(noise, confusions=confusions)
    return [known[name] for name in names]


@dataclass(frozen=True)
class Augmented:
    """The rows given, then the ones made of them. made: method -> rows; unchanged: tries that changed nothing."""

    rows: list[Row]
    made: Counter[str]
    unchanged: int

    def lines(self) -> list[str]:
        """What was made, as it is printed."""
        made = self.made.total()
        kinds = ", ".join(f"{name} {n:,}" for name, n in sorted(self.made.items())) or "none"
        shown = [f"augmented rows: {made:,} ({kinds}) beside {len(self.rows) - made:,} real ones"]
        if self.unchanged:
            shown.append(f"left out: {self.unchanged:,} copies in which nothing could be changed")
        return shown


def augment(rows: Sequence[Row], methods: Sequence[Method], copies: int = 1, seed: int = 0) -> Augmented:
    """`copies` altered copies of every training row, by one method after the other.

    Rows of a validation or test split are passed through. Raises UserError for plain text, for rows that are
    augmented already, and without a method.
    """
    if not methods or copies < 1:
        raise UserError(f"{copies} copies by {len(methods)} methods are no augmentation", hint="one of each at least")
    made: list[Row] = []
    counts: Counter[str] = Counter()
    unchanged = 0
    for number, row in enumerate(rows):
        if row.augmented:
            raise UserError(f"{row.where}: the row is augmented already", hint="augment the rows as they were read")
        if row.split not in ("", "train"):
            continue
        for index in range(number * copies, (number + 1) * copies):
            new = methods[index % len(methods)](row, seed, index)
            if new.augmented:
                made.append(new)
                counts[new.augmented] += 1
            else:
                unchanged += 1
    return Augmented([*rows, *made], counts, unchanged)
