"""Character and word vocabularies: `tokenizers`' WordLevel model behind a pre-tokenizer that loses no
character.

| kind | pre-tokenizer in tokenizer.json | pieces |
|---|---|---|
| char | Split at CHARACTER | one code point each, line breaks and spaces too |
| word | Split at WORD | a word with its leading space, a Han or kana character, a mark, a space |
| word, jieba | none: encode(words, is_pretokenized=True) | as above, Han runs cut by jieba |

What is not in the vocabulary becomes `<unk>`, which decodes to U+FFFD: the loss is seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2kit.errors import missing_extra
from gpt2kit.text.bytelevel import utf8

UNKNOWN = "<unk>"
END_OF_TEXT = "<|endoftext|>"
CHARACTER = r"[\s\S]"
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_LETTER = rf"(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}_])"
_REST = rf"| ?{_LETTER}+(?:['’]{_LETTER}+)*| ?[^\s\p{{L}}\p{{M}}\p{{N}}_]|\s"
WORD = _UNSPACED + _REST
_HAN_RUN = r"\p{Han}+|[\p{Hiragana}\p{Katakana}]" + _REST


def split_at(pattern: str) -> Any:
    """A pre-tokenizer that makes each match of `pattern` (and what lies between) a piece."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def word_level(pieces: Sequence[str], pattern: str | None) -> Any:
    """A tokenizers.Tokenizer: ids in the order of `pieces`, then <unk>, then <|endoftext|> as the last id."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {piece: number for number, piece in enumerate([*pieces, UNKNOWN, END_OF_TEXT])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if pattern is not None:
        backend.pre_tokenizer = split_at(pattern)
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(name, special=True) for name in (UNKNOWN, END_OF_TEXT)])
    return backend


@cache
def _jieba() -> Any:
    """jieba's segmenter with its own dictionary, read from the package: not from its marshal cache in a
    shared folder.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources inside jieba
        try:
            import jieba
        except ImportError:
            raise missing_extra("jieba", "chinese", "cutting Chinese into words") from None
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


@cache
def splitter(pattern: str | None) -> Callable[[str], list[str]]:
    """The function that cuts a text into the pieces of a vocabulary with this pre-tokenizer; None is
    jieba's.
    """
    pre_tokenizer = split_at(pattern or _HAN_RUN)

    def pieces(text: str) -> list[str]:
        utf8(text)
        return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]

    if pattern is not None:
        return pieces
    single = split_at(_UNSPACED)
    segmenter = _jieba()

    def words(text: str) -> list[str]:
        found: list[str] = []
        for piece in pieces(text):
            if len(piece) > 1 and piece[0] >= "⺀" and len(single.pre_tokenize_str(piece)) == len(piece):
                found.extend(segmenter.cut(piece))
            else:
                found.append(piece)
        return found

    return words


class PieceEncoder:
    """A text's pieces looked up in a vocabulary; `characters` needs no splitter and goes through one
    array.
    """

    def __init__(self, vocabulary: dict[str, int], pattern: str | None) -> None:
        self._vocabulary, self._unknown, self._pattern = vocabulary, vocabulary[UNKNOWN], pattern
        if pattern == CHARACTER:
            known = {ord(piece): number for piece, number in vocabulary.items() if len(piece) == 1}
            self._table = np.full(max(known, default=0) + 2, self._unknown, np.int64)
            self._table[list(known)] = list(known.values())

    def _characters(self, text: str) -> npt.NDArray[np.int64]:
        utf8(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        return self._table[np.minimum(points, len(self._table) - 1)]

    def encode(self, text: str) -> list[int]:
        """One text to ids."""
        if self._pattern == CHARACTER:
            return self._characters(text).tolist()  # type: ignore[no-any-return]
        known, unknown = self._vocabulary, self._unknown
        return [known.get(piece, unknown) for piece in splitter(self._pattern)(text)]

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[npt.NDArray[np.int64]]:
        """Many texts to ids, on one core."""
        if self._pattern == CHARACTER:
            return [self._characters(text) for text in texts]
        return [np.array(self.encode(text), np.int64) for text in texts]
