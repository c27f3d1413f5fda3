"""Beam search by the engine: every beam of every step is a request for one token.

A beam has its beginning in common with the prompt, with the other beams and with itself one step ago. So its keys and
values are found in the prefix tree, but for those of the last, unfinished block: at most BLOCK rows a beam and step are
computed, and the whole view when that slides. Its logits are those of the same tokens in any company, which makes the
beams the same in any company, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt2kit.engine.handle import Handle
from gpt2kit.model.completion import Event, Generation, Logits


class _Looked(Generation):
    """A completion of one token that keeps what it was chosen from."""

    logits: Logits

    def advance(self, logits: Logits) -> Event:
        self.logits = logits.copy()  # [V]; the engine's own row holds another's next
        return super().advance(logits)


class Look(Handle):
    """A request for the logits behind its prompt; its settings ask for one token."""

    generation = _Looked

    @property
    def logits(self) -> Logits:
        """[V], once it has ended."""
        (row,) = self.generations
        assert isinstance(row, _Looked)
        return row.logits


class EngineBeams:
    """model/beam.py's decoder. `look` gives the logits [V] behind each of some token ids."""

    def __init__(self, look: Callable[[Sequence[list[int]]], Sequence[Logits]]) -> None:
        self._look = look

    def logits(self, rows: list[list[int]]) -> Logits:
        """Of each row's next token, [R, V]."""
        return np.stack(self._look(rows))

    def reorder(self, rows: list[int]) -> None:
        """Nothing to do: a row's beginning is found by its tokens."""
