"""Byte-level BPE: GPT-2's byte alphabet, its pre-split pattern, and three ways to the same ids.

- `tokenizers` defines what the ids are: the folder's tokenizer.json.
- tiktoken encodes small texts (ranks are built from the folder's own merges), where `canonical` proves it
equal.
- the Numba kernels encode large batches: 5 to 20 times tiktoken's speed.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import queue
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt2kit.errors import UserError

if TYPE_CHECKING:
    import tiktoken

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same language with possessive quantifiers, so that the engine never backtracks (tiktoken's own r50k
# pattern).
TIKTOKEN_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The kernels come in once so many characters were asked for in all: before, their import (0.4 s) and
# compilation (2 s, once a machine) cost more than they save. Calls below FAST_CALL stay with tiktoken.
FAST_CHARACTERS = 1 << 19
FAST_CALL = 1 << 14
CHUNK_CHARACTERS = 1 << 19  # what one thread takes at a time; its scratch memory is 4 bytes of ids per byte of text
CACHE_SLOTS = 1 << 16  # 32 bytes each: 2 MB a thread, which a core's own cache holds
# A place where no piece spans: after anything but white space, before white space (see `_cut`).
SAFE_CUT = re.compile(r"\S(?=[ \t\n\r\u3000])")

IDS_LIMIT = 1 << 20  # ids that fit the kernels' 20 bits

Ids = npt.NDArray[np.unsignedinteger[Any]]


@cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest from U+0100
    on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@cache
def _alphabet_bytes() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def token_to_bytes(token: str) -> bytes:
    """The bytes that a vocabulary entry stands for. KeyError where it is not written in the byte alphabet."""
    table = _alphabet_bytes()
    return bytes([table[character] for character in token])


def utf8(text: str) -> bytes:
    """The text's bytes; a lone surrogate, which no UTF-8 can hold, is a UserError."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start:,}",
            hint="read the file with the right encoding, or remove it: text.encode(errors='ignore').decode()",
        ) from None


@cache
def code_point_classes() -> npt.NDArray[np.uint8]:
    """The class of every code point in the pattern, [0x110000], asked of tiktoken's own regular expressions.

    So the kernels follow the very Unicode version that tiktoken was built with. Takes about 0.1 s.
    """
    import tiktoken

    every = "".join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x110000))))
    singles = {bytes([byte]): byte for byte in range(256)}
    classes = np.zeros(0x110000, np.uint8)
    for kind, pattern in ((1, r"\p{L}+"), (2, r"\p{N}+"), (3, r"\s+")):  # kernels.LETTER, NUMBER, SPACE
        probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=singles, special_tokens={})
        matched = bytes(probe.encode_ordinary(every)).decode()
        classes[np.frombuffer(matched.encode("utf-32-le"), np.uint32)] = kind
    return classes


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ByteLevelEncoder:
    """Ordinary text to ids for one vocabulary.

    vocabulary: token (in the byte alphabet) -> id, holding the 256 bytes. merges: pairs of tokens, best
    first.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self._vocabulary, self._merges = vocabulary, merges
        self._asked = 0  # characters
        self._caches: queue.SimpleQueue[npt.NDArray[np.int64]] = queue.SimpleQueue()
        self.dtype: type[np.unsignedinteger[Any]] = np.uint16 if max(vocabulary.values()) < 1 << 16 else np.uint32

    @cached_property
    def _tiktoken(self) -> tiktoken.Encoding:
        import tiktoken

        tokens = [*byte_alphabet().values(), *(left + right for left, right in self._merges)]
        ranks = {token_to_bytes(token): rank for rank, token in enumerate(tokens)}
        return tiktoken.Encoding("gpt2kit", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens={})

    @cached_property
    def _ids(self) -> npt.NDArray[np.int64]:
        """Rank -> id. tiktoken ranks: bytes in the alphabet's order; the kernels' ranks: bytes by value."""
        tokens = [*byte_alphabet().values(), *(left + right for left, right in self._merges)]
        return np.array([self._vocabulary[token] for token in tokens], np.int64)

    @cached_property
    def _ids_are_ranks(self) -> bool:
        return bool((self._ids == np.arange(len(self._ids))).all())

    def encode(self, text: str) -> list[int]:
        """One text, through tiktoken."""
        utf8(text)  # tiktoken would quietly replace lone surrogates
        ranks = self._tiktoken.encode_ordinary(text)
        return ranks if self._ids_are_ranks else self._ids[ranks].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        """Many texts, on `threads` cores: tiktoken for little text, the kernels for much."""
        size = sum(map(len, texts))
        self._asked += size
        if size < FAST_CALL or self._asked < FAST_CHARACTERS:
            if threads > 1 and len(texts) > 1:
                for text in texts:
                    utf8(text)
                found = self._tiktoken.encode_ordinary_batch(list(texts), num_threads=threads)
                return [self._ids[ranks].astype(self.dtype) for ranks in found]
            return [np.array(self.encode(text), self.dtype) for text in texts]
        return list(self._encode_fast(texts, threads))

    def _encode_fast(self, texts: Sequence[str], threads: int) -> Iterator[Ids]:
        self._tables  # noqa: B018  # compiled and filled once, before the threads
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            parts: list[Ids] = []
            for found in pool.map(self._encode_chunk, _chunks(texts)):
                for ids, last in found:
                    parts.append(ids)
                    if last:
                        yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                        parts = []

    @cached_property
    def _tables(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """byte_pairs [65536], pairs [a power of two], ids [ranks]: what the kernels read."""
        from gpt2kit.text import kernels

        alphabet = byte_alphabet()
        rank_of = {alphabet[byte]: byte for byte in range(256)}
        for m, (left, right) in enumerate(self._merges):
            rank_of[left + right] = 256 + m
        lefts = np.array([rank_of[pair[0]] for pair in self._merges], np.int64)
        rights = np.array([rank_of[pair[1]] for pair in self._merges], np.int64)
        pairs = np.full(1 << (4 * len(lefts) + 16).bit_length(), -1, np.int64)
        kernels.fill_pairs(lefts, rights, pairs)
        byte_pairs = np.full(65536, kernels.NO_PAIR, np.int64)
        both = (lefts < 256) & (rights < 256)
        byte_pairs[lefts[both] << 8 | rights[both]] = 256 + np.flatnonzero(both)
        ids = np.array([self._vocabulary[token] for token in rank_of], np.int64)
        return byte_pairs, pairs, ids

    def _encode_chunk(self, chunk: list[tuple[str, bool]]) -> list[tuple[Ids, bool]]:
        """Segments of documents -> their ids; the flag marks a document's last segment."""
        from gpt2kit.text import kernels

        encoded = [utf8(text) for text, _ in chunk]
        starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(data) for data in encoded], out=starts[1:])
        buffer = np.frombuffer(b"".join(encoded), np.uint8)
        out = np.empty(len(buffer), np.uint32)
        ends = np.empty(len(encoded), np.int64)
        try:
            remembered = self._caches.get_nowait()
        except queue.Empty:
            remembered = np.zeros((CACHE_SLOTS, 4), np.int64)
        total = kernels.encode(buffer, starts, code_point_classes(), *self._tables, remembered, out, ends)
        self._caches.put(remembered)
        ids = out[:total].astype(self.dtype)
        result: list[tuple[Ids, bool]] = []
        begun = 0
        for (text, last), end in zip(chunk, ends.tolist(), strict=True):
            if end < 0:
                result.append((np.array(self.encode(text), self.dtype), last))
            else:
                result.append((ids[begun:end], last))
                begun = end
        return result


def _chunks(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Group segments of documents into chunks of about CHUNK_CHARACTERS."""
    chunk: list[tuple[str, bool]] = []
    size = 0
    for text in texts:
        for segment, last in _cut(text):
            chunk.append((segment, last))
            size += len(segment) + 16
            if size >= CHUNK_CHARACTERS:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _cut(text: str) -> Iterator[tuple[str, bool]]:
    """Cut a long document where no piece can span, so that threads share it and scratch memory stays small.

    Before white space that follows something else, every alternative of the pattern ends, and what lies to
    the left never looks past that place. Where there is none the segment grows.
    """
    begin = 0
    while len(text) - begin > 2 * CHUNK_CHARACTERS:
        match = SAFE_CUT.search(text, begin + CHUNK_CHARACTERS)
        if match is None:
            break
        yield text[begin : match.end()], False
        begin = match.end()
    yield (text[begin:] if begin else text), True


def canonical(model: Any, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> bool:
    """Whether merging by the rank of the joined token (tiktoken, the kernels) always equals merging by
    listed pairs.

    True when every merge makes a token of its own, out of bytes and earlier merges, and `model` (tokenizers'
    BPE) cuts each of these tokens into itself. Proof: take the first place where the two ways part: a pair
    (x, y) whose joined token t is listed as another pair (p, q). Nothing crossed t's borders so far, so t
    alone would come to (x, y) as well, and could not end as t. Every vocabulary that a BPE trainer made
    passes; hand-edited ones may not.
    """
    seen = set(byte_alphabet().values())
    if not all(token in vocabulary for token in seen) or max(vocabulary.values()) >= IDS_LIMIT:
        return False
    for left, right in merges:
        token = left + right
        if left not in seen or right not in seen or token in seen or token not in vocabulary:
            return False
        seen.add(token)
    return all(
        [piece.id for piece in model.tokenize(left + right)] == [vocabulary[left + right]] for left, right in merges
    )
