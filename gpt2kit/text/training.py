"""Training a vocabulary in bounded memory, whatever the corpus's size and language.

Byte-level BPE goes through `tokenizers`' trainer. Fed with gigabytes directly, its table of pieces grows
without bound: Chinese has no spaces, so that nearly every run between two marks is new (1 GB would need over
10 GB). So beyond DIRECT_BYTES we count the pieces ourselves, in one fixed table: long pieces are cut
(kernels.COUNTED_BYTES, four characters in scripts without spaces), and when the table is full the rarest
pieces are counted as their two halves. The trainer then gets each piece as often as it was counted (all
counts divided by one number beyond EMITTED_PIECES).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2kit.errors import UserError, unknown
from gpt2kit.text import words
from gpt2kit.text.bytelevel import code_point_classes, utf8
from gpt2kit.text.tokenizer import Tokenizer

Progress = Callable[[int], None]
KINDS = ("bpe", "char", "word")
BPE_VOCABULARY = 32_000
WORD_VOCABULARY = 50_000
SMALLEST_BPE = 257  # 256 bytes and <|endoftext|>
DIRECT_BYTES = 4 << 20  # the trainer takes so much as it comes: about 200 MB of its memory in Chinese
CHUNK_BYTES = 1 << 19  # counted at a time; adds at most as many entries, so the table of TABLE_SLOTS never fills
TABLE_SLOTS = 1 << 21  # 32 bytes each: 64 MB
TABLE_ENTRIES = 1 << 20  # beyond it the table is pruned
KEPT_ENTRIES = 600_000  # after pruning, and for the trainer, which needs up to 1 KB a piece
EMITTED_PIECES = 20_000_000
WORDS_COUNTED = 1_000_000  # of the word kind; the rarest half is forgotten beyond it
BOUNDARY = "\U0010ffff"  # a noncharacter between pieces for the trainer

Array = npt.NDArray[np.int64]


def train_tokenizer(
    documents: Iterable[str],
    kind: str = "bpe",
    vocab_size: int | None = None,
    progress: Progress | None = None,
    segmenter: str = "unicode",
) -> Tokenizer:
    """Learn a vocabulary from a stream of documents, read once; the same documents give the same bytes.

    vocab_size counts everything, `<|endoftext|>` (always the last id) too. Default: 32,000 for bpe, every
    character for char, 50,000 for word. A small corpus may give fewer. segmenter, for word: "unicode" or
    "jieba" (the extra `chinese`). progress is called with the bytes read so far.

    Raises UserError where there is no text, and for too small a size.
    """
    if kind not in KINDS:
        raise unknown("kind of tokenizer to train", kind, KINDS)
    if segmenter not in ("unicode", "jieba"):
        raise unknown("segmenter", segmenter, ("unicode", "jieba"))
    if segmenter != "unicode" and kind != "word":
        raise UserError(f"--segmenter {segmenter} cuts text into words, which kind {kind} has none of",
                        hint="give --kind word, or leave --segmenter out")  # fmt: skip
    smallest = SMALLEST_BPE if kind == "bpe" else 3
    if vocab_size is not None and vocab_size < smallest:
        raise UserError(
            f"a {kind} vocabulary of {vocab_size} is too small: it needs at least {smallest} tokens",
            hint=f"use --vocab-size {smallest} or more; usual sizes are 8,000 to 50,000",
        )
    stream = _Stream(documents, progress)
    if kind == "bpe":
        backend = _train_bpe(stream, vocab_size or BPE_VOCABULARY)
    elif kind == "char":
        counts = _count_characters(stream)
        backend = words.word_level(_most_frequent(counts, vocab_size, by_code_point=True), words.CHARACTER)
    else:
        pattern = None if segmenter == "jieba" else words.WORD
        counts = _count_words(stream, pattern)
        backend = words.word_level(_most_frequent(counts, vocab_size or WORD_VOCABULARY), pattern)
    if stream.bytes == 0:
        raise UserError(
            "there is no text to train a tokenizer on: every document is empty",
            hint="check the path and the field name of the documents",
        )
    return Tokenizer(backend)


class _Stream:
    """Documents that are counted as they pass, each as UTF-8 of at most CHUNK_BYTES."""

    def __init__(self, documents: Iterable[str], progress: Progress | None) -> None:
        self._documents, self._progress = documents, progress
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for document in self._documents:
            for begin in range(0, len(document), CHUNK_BYTES // 4):
                part = document[begin : begin + CHUNK_BYTES // 4]
                self.bytes += len(utf8(part))
                yield part
            if self._progress is not None:
                self._progress(self.bytes)


# Byte-level BPE


def _train_bpe(stream: _Stream, vocab_size: int) -> Any:
    """Trainer -> tokenizers.Tokenizer: 256 bytes, merges, <|endoftext|>."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
    )
    learner = Tokenizer(models.BPE())
    parts = iter(stream)
    first: list[str] = []
    for part in parts:
        first.append(part)
        if stream.bytes > DIRECT_BYTES:
            break
    if stream.bytes <= DIRECT_BYTES:
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        learner.train_from_iterator(first, trainer)
    else:
        table = _count(_also(first, parts))
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(BOUNDARY), behavior="removed"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        learner.train_from_iterator(_emit(table), trainer)
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    learner.decoder = decoders.ByteLevel()
    learner.add_special_tokens([AddedToken(words.END_OF_TEXT, special=True)])
    return learner


def _also(first: list[str], rest: Iterator[str]) -> Iterator[str]:
    """`first`, released as it is read, then `rest`."""
    first.reverse()
    while first:
        yield first.pop()
    yield from rest


def _count(parts: Iterable[str]) -> Array:
    """The pieces of all parts -> table [n, 4] of at most KEPT_ENTRIES pieces and counts, in a fixed order."""
    from gpt2kit.text import kernels

    table = np.zeros((TABLE_SLOTS, 4), np.int64)
    classes = code_point_classes()
    entries = 0
    for chunk in _chunks(parts):
        starts = np.zeros(len(chunk) + 1, np.int64)
        np.cumsum([len(data) for data in chunk], out=starts[1:])
        buffer = np.frombuffer(b"".join(chunk), np.uint8)
        entries += kernels.count_pieces(buffer, starts, classes, table)
        if entries > TABLE_ENTRIES:
            table, entries = _prune(table, entries)
    if entries > KEPT_ENTRIES:
        table, entries = _prune(table, entries)
    table = table[table[:, 3] > 0]
    return table[np.lexsort((table[:, 0], table[:, 1], table[:, 2]))]


def _chunks(parts: Iterable[str]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for part in parts:
        data = part.encode()
        if size + len(data) > CHUNK_BYTES and chunk:
            yield chunk
            chunk, size = [], 0
        chunk.append(data)
        size += len(data)
    if chunk:
        yield chunk


def _prune(table: Array, entries: int) -> tuple[Array, int]:
    """Halve the rarest pieces until at most KEPT_ENTRIES are left."""
    from gpt2kit.text import kernels

    while entries > KEPT_ENTRIES:
        counts = np.sort(table[:, 3])[::-1]
        threshold = int(counts[KEPT_ENTRIES // 2])  # the halves need room too
        kept = np.zeros_like(table)
        entries, cut = kernels.prune(table, threshold, kept)
        table = kept
        if cut == 0:  # nothing but single characters
            break
    return table, entries


def _emit(table: Array) -> Iterator[str]:
    """Each piece as often as it was counted, BOUNDARY between; rounding carries over, so that mass is
    kept.
    """
    from gpt2kit.text import kernels

    scale = max(1.0, float(table[:, 3].sum()) / EMITTED_PIECES)
    scratch = np.empty(kernels.COUNTED_BYTES, np.uint8)
    waiting: list[str] = []
    size, owed = 0, 0.0
    for row in table:
        piece = scratch[: kernels.unpack(row, scratch)].tobytes().decode()
        owed += float(row[3]) / scale
        times = int(owed)
        owed -= times
        while times:
            now = min(times, 1 + CHUNK_BYTES // len(piece))
            waiting.append((piece + BOUNDARY) * now)
            size += len(waiting[-1])
            times -= now
            if size > CHUNK_BYTES:
                yield "".join(waiting)
                waiting, size = [], 0
    if waiting:
        yield "".join(waiting)


# Characters and words


def _count_characters(stream: _Stream) -> Counter[str]:
    counts = np.zeros(0x110000, np.int64)
    for part in stream:
        found, times = np.unique(np.frombuffer(part.encode("utf-32-le"), np.uint32), return_counts=True)
        counts[found] += times
    return Counter({chr(point): int(counts[point]) for point in np.flatnonzero(counts).tolist()})


def _count_words(stream: _Stream, pattern: str | None) -> Counter[str]:
    split = words.splitter(pattern)
    counts: Counter[str] = Counter()
    for part in stream:
        counts.update(split(part))
        if len(counts) > WORDS_COUNTED:
            counts = Counter(dict(_ranked(counts)[: WORDS_COUNTED // 2]))
    return counts


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first; equals in code point order, so that the result is one."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _most_frequent(counts: Counter[str], vocab_size: int | None, by_code_point: bool = False) -> list[str]:
    """The pieces to keep beside <unk> and <|endoftext|>."""
    room = None if vocab_size is None else vocab_size - 2
    kept = [piece for piece, _ in _ranked(counts)[:room]]
    return sorted(kept) if by_code_point else kept
