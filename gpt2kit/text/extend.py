"""More tokens for a vocabulary that exists: byte-level BPE trained on, from where its merges ended.

The corpus is cut by the old vocabulary. The ids of each piece are written as characters of their own (U+10000 + id),
so that `tokenizers`' trainer learns merges of old tokens. These stand behind the old merges: what was cut stays cut the
same way, and only then do the new merges join what is left. No old id changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2kit.errors import UserError
from gpt2kit.text import training
from gpt2kit.text.reading import LARGEST_ID
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import BOUNDARY, Progress

FIRST_CHARACTER = 0x10000  # stands for id 0; ids up to 1,048,574 fit below BOUNDARY
LARGEST_OLD_ID = ord(BOUNDARY) - FIRST_CHARACTER - 1
SEEN = 2  # times that a pair must occur


@dataclass(frozen=True)
class Extension:
    """The longer vocabulary. `parts[i]`: the old ids that token `first + i` is made of, two at least."""

    tokenizer: Tokenizer
    first: int
    parts: tuple[tuple[int, ...], ...]


def extend(tokenizer: Tokenizer, documents: Iterable[str], add: int, progress: Progress | None = None) -> Extension:
    """At most `add` tokens learned from a stream of documents, read once, in bounded memory.

    New ids begin at `tokenizer.vocab_size`, behind the special tokens. A small corpus may give fewer: a token must have
    occurred twice. The same documents give the same tokens. Raises UserError for a vocabulary that is not byte-level
    BPE, for a number that cannot be, and where the text gives no token at all.
    """
    if tokenizer.kind != "bpe":
        raise UserError(
            f"a {tokenizer.kind} vocabulary cannot be extended: only byte-level BPE has merges to go on from",
            hint="train a model with --tokenizer bpe, or learn a vocabulary of your own: gpt2kit tokenizer train",
        )
    if add < 1 or tokenizer.vocab_size + add > LARGEST_ID:
        raise UserError(f"--add must be from 1 to {LARGEST_ID - tokenizer.vocab_size:,}, got {add:,}")
    if tokenizer.vocab_size > LARGEST_OLD_ID:
        raise UserError(f"a vocabulary of {tokenizer.vocab_size:,} tokens cannot be extended; {LARGEST_OLD_ID:,} can")
    stream = training._Stream(documents, progress)
    merges = _learn(_recoded(tokenizer, _pieces(stream)), tokenizer.vocab_size, add)
    if stream.bytes == 0:
        raise UserError("there is no text to learn tokens from", hint="check the path and the field of the documents")
    return _longer(tokenizer, merges)


def _pieces(stream: training._Stream) -> Iterator[str]:
    """The documents cut by the pattern, BOUNDARY between the pieces; beyond DIRECT_BYTES counted first, as in
    training.
    """
    from tokenizers import pre_tokenizers

    first: list[str] = []
    parts = iter(stream)
    for part in parts:
        first.append(part)
        if stream.bytes > training.DIRECT_BYTES:
            yield from training._emit(training._count(training._also(first, parts)))
            return
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for part in first:
        yield BOUNDARY.join(part[begin:end] for _, (begin, end) in split.pre_tokenize_str(part))


def _recoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """Each piece as its ids' characters. A token that is added whole, and so never merged, is a boundary."""
    whole = set(tokenizer._plain_added.values())
    known: dict[str, str] = {}
    for text in texts:
        pieces = text.split(BOUNDARY)
        new = sorted(set(pieces).difference(known))
        for piece, ids in zip(new, tokenizer.encode_batch(new), strict=True):
            known[piece] = "".join(BOUNDARY if n in whole else chr(FIRST_CHARACTER + n) for n in ids.tolist())
        yield BOUNDARY.join(known[piece] for piece in pieces)


def _learn(texts: Iterator[str], vocab_size: int, wanted: int) -> list[tuple[str, str]]:
    """The merges of such characters, most frequent first."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    learner = Backend(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(BOUNDARY, behavior="removed")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + wanted, min_frequency=SEEN, show_progress=False, special_tokens=[],
        initial_alphabet=[chr(FIRST_CHARACTER + n) for n in range(vocab_size)],
    )  # fmt: skip
    learner.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]


def _longer(tokenizer: Tokenizer, learned: list[tuple[str, str]]) -> Extension:
    """The old vocabulary with the learned merges behind its own.

    A token that is there already is left out, and whatever is made of it: that happens in vocabularies edited by hand,
    where a token is listed that its own merges never reach.
    """
    document: dict[str, Any] = json.loads(tokenizer._backend.to_str())
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    for token in document["added_tokens"]:  # without an entry of its own it would move behind the new tokens
        vocabulary.setdefault(token["content"], token["id"])
    names = {chr(FIRST_CHARACTER + number): name for number, name in enumerate(tokenizer._tokens)}
    first = tokenizer.vocab_size
    parts: list[tuple[int, ...]] = []
    for left, right in learned:
        name = names.get(left, "") + names.get(right, "")
        if left not in names or right not in names or name in vocabulary:
            continue
        merges.append([names[left], names[right]])
        vocabulary[name] = first + len(parts)
        parts.append(tuple(ord(character) - FIRST_CHARACTER for character in left + right))
        names[left + right] = name
    if not parts:
        raise UserError(
            "the text gives no new token: nothing in it occurs twice that the vocabulary does not have",
            hint="give more text, or text in the language that the vocabulary lacks",
        )
    backend = type(tokenizer._backend).from_str(json.dumps(document, ensure_ascii=False))
    return Extension(Tokenizer(backend, tokenizer._config), first, tuple(parts))
