"""Words of like meaning: the nearest tokens of an embedding matrix by cosine."""

from __future__ import annotations

import random
import re
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpt2kit.data.augment import IDEOGRAPH
from gpt2kit.errors import UserError

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

_LETTER = rf"[^\W\d_{IDEOGRAPH}]"
_INSIDE = rf"[^\W{IDEOGRAPH}]|['’]"  # what a word goes on with
_RUNS = re.compile(
    rf"(?P<han>[{IDEOGRAPH}]+)|(?P<spaced> {_LETTER}+)(?!{_INSIDE})|(?<!{_INSIDE})(?P<bare>{_LETTER}+)(?!{_INSIDE})"
)
_WORD = re.compile(rf" ?{_LETTER}+|[{IDEOGRAPH}]+")

_CACHED = 1 << 18  # words whose token is remembered

Place = tuple[int, int, int]  # start and end in the text, token


class Neighbours:
    """The nearest tokens of each token that is a whole word: `matrix` [V, C] is a model's wte.

    Of the same kind only: after a space or not, Chinese or not, capitals alike, in Chinese as many characters. Cosines
    are taken after the mean of all words is subtracted, which in GPT-2's embedding most of each vector is (Mu and
    Viswanath, All-but-the-Top, 2018). Words that the tokenizer cuts in parts have no neighbours: nor have
    Chinese characters under a vocabulary learned from English.

    Raises UserError where matrix and tokenizer do not belong together.
    """

    def __init__(self, matrix: npt.NDArray[np.floating], tokenizer: Tokenizer, nearest: int = 5) -> None:
        if matrix.ndim != 2 or len(matrix) < tokenizer.vocab_size:
            raise UserError(
                f"the embedding has shape {matrix.shape}, the tokenizer {tokenizer.vocab_size:,} tokens",
                hint="take both from one model folder",
            )
        self._matrix = matrix
        self._tokenizer = tokenizer
        self._nearest = nearest
        self._found: dict[int, tuple[str, ...]] = {}
        self._ids: dict[str, int | None] = {}
        self._groups: dict[tuple[bool, int, int], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}

    def of(self, token: int) -> tuple[str, ...]:
        """Texts of the nearest tokens, the nearest first; without their space before. () for what is no word."""
        if token not in self._found:
            self._found[token] = self._search(token)
        return self._found[token]

    def like(self, word: str, pick: random.Random) -> str | None:
        """A neighbour of a word, None where it has none."""
        for text in (" " + word, word):
            token = self._word(text)
            if token is not None:
                return pick.choice(self.of(token))
        return None

    def _word(self, text: str) -> int | None:
        """The one token of a text, if it has neighbours."""
        if text not in self._ids:
            ids = self._tokenizer.encode(text)
            if len(self._ids) >= _CACHED:
                self._ids.clear()
            self._ids[text] = ids[0] if len(ids) == 1 and self.of(ids[0]) else None
        return self._ids[text]

    def places(self, text: str) -> list[Place]:
        """The words of a text that have neighbours."""
        found: list[Place] = []
        for match in _RUNS.finditer(text):
            if match["han"]:
                found += self._characters(match.start(), match["han"])
                continue
            token = self._word(match[0])
            if token is not None:
                found.append((match.start() + (match["spaced"] is not None), match.end(), token))
        return found

    def _characters(self, start: int, run: str) -> list[Place]:
        """The tokens of a run of Chinese that are whole characters, at their places."""
        found: list[Place] = []
        data = b""
        for token in self._tokenizer.encode(run):
            begin = len(data.decode(errors="ignore"))
            data += self._tokenizer.token_bytes(token)
            end = len(data.decode(errors="ignore"))
            if run[begin:end] == self._texts[token] and self.of(token):
                found.append((start + begin, start + end, token))
        return found

    @cached_property
    def _texts(self) -> list[str]:
        """[V] the text of each token that is a word and is what the tokenizer makes of that text; else ""."""
        vocabulary = range(self._tokenizer.vocab_size)
        texts = [self._tokenizer.token_bytes(token).decode(errors="replace") for token in vocabulary]
        texts = [text if _WORD.fullmatch(text) else "" for text in texts]
        encoded = self._tokenizer.encode_batch(texts)
        return [
            text if len(ids) == 1 and int(ids[0]) == token else ""
            for token, text, ids in zip(vocabulary, texts, encoded, strict=True)
        ]

    @cached_property
    def _kinds(self) -> dict[tuple[bool, int, int], list[int]]:
        kinds: dict[tuple[bool, int, int], list[int]] = {}
        for token, text in enumerate(self._texts):
            if text:
                kinds.setdefault(_kind(text), []).append(token)
        return kinds

    @cached_property
    def _mean(self) -> npt.NDArray[np.float32]:
        words = [token for token, text in enumerate(self._texts) if text]
        return np.asarray(self._matrix[words].mean(axis=0), np.float32)

    def _group(self, kind: tuple[bool, int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(tokens [N], their directions [N, C]) of one kind."""
        if kind not in self._groups:
            tokens = np.array(self._kinds[kind], np.int64)
            vectors = np.asarray(self._matrix[tokens], np.float32) - self._mean
            sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._groups[kind] = tokens, vectors / np.maximum(sizes, 1e-12)
        return self._groups[kind]

    def _search(self, token: int) -> tuple[str, ...]:
        text = self._texts[token] if 0 <= token < len(self._texts) else ""
        if not text:
            return ()
        tokens, directions = self._group(_kind(text))
        likeness = directions @ directions[int(np.searchsorted(tokens, token))]
        order = np.lexsort((tokens, -likeness))  # ties by token: the same on any machine
        best = [int(tokens[n]) for n in order[: self._nearest + 1] if tokens[n] != token and likeness[n] > 0]
        return tuple(self._texts[near].lstrip(" ") for near in best[: self._nearest])


def _kind(text: str) -> tuple[bool, int, int]:
    """(after a space, characters if Chinese else 0, 0 small / 1 capitalised / 2 capitals)."""
    word = text.lstrip(" ")
    if word[0] >= "\u3040" and re.match(f"[{IDEOGRAPH}]", word):
        return False, len(word), 0
    capitals = 2 if len(word) > 1 and word.isupper() else 1 if word[0].isupper() else 0
    return text[0] == " ", 0, capitals
