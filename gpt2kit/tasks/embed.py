"""Embeddings: a text as a vector of unit length, the mean of its hidden states or its last token's. Needs no tuning.

A text longer than the context is read in windows: the mean is over all of its tokens, the last state sees the last
window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.families import Row as Example
from gpt2kit.data.families import TextRow
from gpt2kit.errors import UserError, unknown
from gpt2kit.tasks.task import GIVEN, Answer, end_of_text

if TYPE_CHECKING:
    from gpt2kit.engine import Engine

Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class Embed:
    pooling: Pooling = "mean"
    name: str = "embed"

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise unknown("pooling", self.pooling, ("mean", "last"))

    def example(self, text: str) -> TextRow:
        return TextRow(text, where=GIVEN)

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """details: embedding, a list of numbers; the text of the answer is these numbers."""
        tokenizer, _ = end_of_text(engine.tokenizer)
        texts = [cast(TextRow, example).text for example in examples]
        cut = [self.pooling == "last" and len(tokenizer.encode(one)) > engine.config.n_positions for one in texts]
        return [
            Answer(" ".join(f"{x:.6g}" for x in one), {"embedding": one.tolist(), "cut": shorter})
            for one, shorter in zip(self.vectors(engine, texts), cut, strict=True)
        ]

    def vectors(self, engine: Engine, texts: Sequence[str]) -> NDArray[np.float32]:
        """[P, C], each of length 1."""
        from gpt2kit.engine import Engine

        if not isinstance(engine, Engine):
            raise UserError("this kind of adapter gives no vectors", hint="embed with its base model")
        tokenizer, eos = end_of_text(engine.tokenizer)
        N = engine.config.n_positions
        ids = [tokenizer.encode(text) or [eos] for text in texts]
        if self.pooling == "last":
            states = engine.embed([one[-N:] for one in ids], "last").astype(np.float64)
            return _unit(states)
        pieces = [one[a : a + N] for one in ids for a in range(0, len(one), N)]
        means = engine.embed(pieces, "mean").astype(np.float64) * np.array([[len(piece)] for piece in pieces])
        counts = [-(-len(one) // N) for one in ids]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return _unit(np.add.reduceat(means, starts, axis=0))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
