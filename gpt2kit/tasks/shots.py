"""Few-shot: which labelled examples are put before a question. The likest ones by bm25, in an order fixed by the seed.

Likeness to the question is what makes an example useful (Liu et al. 2021). By bm25, which Rubin et al. 2022 compare
with, no vector of every example has to be computed first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gpt2kit.data.families import AnswerRow, LabelRow, Row
from gpt2kit.data.fulltext import TextIndex
from gpt2kit.data.normalise import normalised
from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import Tokenizer

BETWEEN = "\n\n"  # an example and the next


class Shots:
    """`count` examples of `rows` for each question; never the question itself.

    balanced: of each label as many, as far as `count` allows. Where too few share a word with the question, others are
    drawn by (seed, question).
    """

    def __init__(self, rows: Sequence[Row], count: int, seed: int = 0, balanced: bool = False) -> None:
        if not 1 <= count <= 100:
            raise UserError(f"shots must be from 1 to 100, got {count}")
        if not rows:
            raise UserError("there are no examples to show")
        self.rows, self.count, self.seed = list(rows), count, seed
        self._keys = [normalised(asked(row)) for row in self.rows]
        self._groups = [row.labels[0] if isinstance(row, LabelRow) and row.labels else "" for row in self.rows]
        self._labels = sorted(set(self._groups)) if balanced else []
        self._index = TextIndex()
        self._index.add(zip(map(asked, self.rows), self._groups, strict=True))

    def of(self, row: Row) -> list[Row]:
        """The examples for one question."""
        question = asked(row)
        draw = random.Random(f"{self.seed}\0{question}")
        if not self._labels:
            found = self._likest(question, self.count, None, draw)
        else:
            share, more = divmod(self.count, len(self._labels))
            lucky = set(draw.sample(self._labels, more))
            found = [n for one in self._labels for n in self._likest(question, share + (one in lucky), one, draw)]
        draw.shuffle(found)
        return [self.rows[n] for n in found]

    def _likest(self, question: str, count: int, group: str | None, draw: random.Random) -> list[int]:
        own = normalised(question)
        hits = self._index.search(question, count + 8, group) if count else []
        found = [hit.number for hit in hits if self._keys[hit.number] != own][:count]
        if len(found) < count:
            taken = set(found)
            rest = [
                n
                for n, (key, kind) in enumerate(zip(self._keys, self._groups, strict=True))
                if n not in taken and key != own and group in (None, kind)
            ]
            found += draw.sample(rest, min(count - len(found), len(rest)))
        return found


def asked(row: Row) -> str:
    """What a question is about: of a passage's questions the question, else the row's key."""
    return row.question if isinstance(row, AnswerRow) else row.key


def before(shown: Sequence[str], question: str, tokenizer: Tokenizer, room: int) -> tuple[list[int], int]:
    """Ids of the question with as many of the examples before it as find room, the last ones; and how many these are.

    Without any the question may still be too long: its ids are given whole.
    """
    for first in range(len(shown)):
        ids = tokenizer.encode("".join(shot + BETWEEN for shot in shown[first:]) + question)
        if len(ids) <= room:
            return ids, len(shown) - first
    return tokenizer.encode(question), 0
