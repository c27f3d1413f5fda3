"""THE perplexity: one protocol, and a result that carries what the figure depends on.

Protocol. The text is one stream of tokens. Where the tokenizer has <|endoftext|>, one stands before the first
document and one between documents, as in packed training data. These separators are context and are never
scored, so that the nats and the bytes are of the same text. Every other token is scored exactly once.
(Without <|endoftext|> nothing precedes the first token: it is not scored, and its bytes are not counted.)

A window is `context` tokens of input. The first window scores all its targets. Each later one starts `stride`
tokens further and scores its last `stride` targets, so a token has at least `context - stride + 1` tokens
before it, or all there are. stride = context is fastest and flatters least; stride = 1 gives every token a
full context.

Bytes and characters are the original text's: bits per byte compares models with different tokenizers,
perplexity per token does not.

Beside the sums over the text stand those of its documents, a long one in stretches: what an interval is drawn from.
A stretch of a text is whole pieces, as `data.sources` cuts them, so it is the same text whatever the tokenizer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.errors import UserError, unknown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpt2kit.data.sources import Document
    from gpt2kit.model.gpt2 import GPT2
    from gpt2kit.text.tokenizer import Tokenizer

PROTOCOL = "one stream, <|endoftext|> before every document as unscored context, sliding windows"
TOKENS_PER_FORWARD = 4096  # windows are grouped to about this many tokens: a constant, so the result depends on none
LOGITS_PER_CHUNK = 1 << 24  # 64 MB of float32 logits at a time: 333 rows of 50,257
ENCODE_GROUP = 1 << 22  # characters handed to the tokenizer at once
STRETCH_TOKENS = 4096  # of a long document of packed tokens
STRETCH_BYTES = 1 << 14  # of a long text, as many tokens or so: the next piece begins another stretch
HARDEST = 20  # stretches that are kept to be read

Progress = Callable[[int, int], None]
Block = tuple[float, int, int, int]  # nats, tokens, bytes, characters


@dataclass(frozen=True)
class Passage:
    """A document, or a stretch of a long one, and what the model needs for it."""

    text: str
    bits_per_byte: float


@dataclass(frozen=True)
class Evaluation:
    """Sums over the scored text, and everything that a comparison must hold equal. `nll` is in nats."""

    nll: float
    tokens: int
    bytes: int
    characters: int
    documents: int
    context: int
    stride: int
    tokenizer_hash: str
    unit: str  # what a token is, e.g. "bpe token"
    text_hash: str
    lossless: bool = True  # False: the tokens do not give the text back, and bits per byte flatter the model
    protocol: str = PROTOCOL
    blocks: tuple[Block, ...] = field(default=(), compare=False, repr=False)  # of each document or stretch, in order
    hardest: tuple[Passage, ...] = field(default=(), compare=False, repr=False)  # most bits per byte first

    @property
    def loss(self) -> float:
        """Mean negative log likelihood, nats per token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): per token of this tokenizer. inf where that overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.loss))  # the same function as scores/likelihood.py, to the last bit

    @property
    def bits_per_byte(self) -> float:
        return self.nll / self.bytes / math.log(2)

    @property
    def bits_per_character(self) -> float:
        return self.nll / self.characters / math.log(2)

    def to_dict(self) -> dict[str, Any]:
        """JSON's shape: the sums and the four figures; a perplexity too large for a float is None."""
        figures = {
            "loss": self.loss,
            "perplexity": self.perplexity if math.isfinite(self.perplexity) else None,
            "bits_per_byte": self.bits_per_byte,
            "bits_per_character": self.bits_per_character,
        }
        return figures | {one.name: getattr(self, one.name) for one in fields(self) if one.compare}


@dataclass(frozen=True)
class Comparison:
    """`second` against `first` in one unit. `notes` name what differs and is no reason to refuse."""

    unit: str
    first: float
    second: float
    notes: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.second - self.first


@dataclass(frozen=True)
class TokenLosses:
    """Each token of the stream with its loss in nats; NaN where it is not scored (separators, a first token
    alone).
    """

    ids: NDArray[np.int64]
    nll: NDArray[np.float64]


def evaluate(
    model: GPT2,
    tokenizer: Tokenizer | None,
    text: str | Iterable[str | Document] | Any,
    context: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity and bits per byte of `model` on `text`, by the protocol above.

    `text` is one document, an iterable of documents (strings or `Document`s), or token ids: an array, or
    packed tokens (anything with a length and slices). `context` is at most the model's positions, the
    default; `stride` is 1 to `context`, by default half of it. `progress(done, total)` counts tokens. The
    model may be in training mode; it is evaluated without dropout and given back as it was. Sums are float64;
    windows are grouped by `context` alone, so the same call gives the same bits (on the same machine and
    threads). UserError for an empty text.
    """
    if tokenizer is None:
        raise UserError(
            "evaluation needs the model's tokenizer, and its folder has none",
            hint="copy the tokenizer's files into the model folder",
        )
    context, stride = window_shape(model, context, stride)
    stream = _stream(tokenizer, text)
    _check_ids(model, stream)
    nll, scored = 0.0, 0
    starts = np.array([stretch.start for stretch in stream.stretches])
    nats, tokens = np.zeros(len(starts)), np.zeros(len(starts), dtype=np.int64)
    for positions, losses in window_losses(model, stream.take, len(stream), context, stride, progress):
        targets = stream.is_text(stream.take(positions.start, positions.stop))
        nll += float(losses[targets].sum())
        scored += int(targets.sum())
        inside = np.searchsorted(starts, np.arange(positions.start, positions.stop)[targets], "right") - 1
        np.add.at(nats, inside, losses[targets])
        np.add.at(tokens, inside, 1)
    if scored == 0:
        raise UserError("the tokenizer makes no tokens of this text, so there is nothing to evaluate")
    if not math.isfinite(nll):
        raise UserError("the model's loss on this text is not finite", hint="run: gpt2kit doctor MODEL")
    blocks = tuple(
        (float(n), int(count), stretch.bytes, stretch.characters)
        for n, count, stretch in zip(nats, tokens, stream.stretches, strict=True)
    )
    return Evaluation(
        nll, scored, stream.bytes, stream.characters, stream.documents, context, stride,
        tokenizer.hash, f"{tokenizer.kind} token", stream.text_hash, stream.lossless,
        blocks=blocks, hardest=_hardest(tokenizer, stream, blocks),
    )  # fmt: skip


def _hardest(tokenizer: Tokenizer, stream: _Stream, blocks: Sequence[Block]) -> tuple[Passage, ...]:
    bits = {n: block[0] / block[2] / math.log(2) for n, block in enumerate(blocks) if block[1] > 0 and block[2] > 0}
    ends = [*(stretch.start for stretch in stream.stretches[1:]), len(stream)]
    found = sorted(bits, key=lambda n: -bits[n])[:HARDEST]
    return tuple(
        Passage(tokenizer.decode(stream.take(stream.stretches[n].start, ends[n]).tolist()), bits[n]) for n in found
    )


def token_losses(
    model: GPT2,
    tokenizer: Tokenizer,
    text: str | Iterable[str | Document] | Any,
    context: int | None = None,
    stride: int | None = None,
) -> TokenLosses:
    """The loss of each token of the stream, [N] ids and [N] nats: what `evaluate` sums, for explanation."""
    context, stride = window_shape(model, context, stride)
    stream = _stream(tokenizer, text)
    _check_ids(model, stream)
    ids = stream.take(0, len(stream))
    nll = np.full(len(ids), np.nan)
    for positions, losses in window_losses(model, stream.take, len(stream), context, stride):
        nll[positions] = losses
    nll[~stream.is_text(ids)] = np.nan
    return TokenLosses(ids, nll)


def window_shape(model: GPT2, context: int | None, stride: int | None) -> tuple[int, int]:
    """`context` and `stride` with their defaults filled in. UserError where the model cannot take them."""
    limit = model.config.n_positions
    context = limit if context is None else context
    if not 1 <= context <= limit:
        raise UserError(
            f"context must be 1 to the model's {limit} positions, got {context}",
            hint=f"use --context {limit}",
        )
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UserError(
            f"stride must be 1 to the context of {context}, got {stride}; a longer one would skip tokens",
            hint=f"use --stride {max(1, context // 2)}",
        )
    return context, stride


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first): a window reads [begin, end) and scores targets [first, end + 1) of a stream of
    `length`.
    """
    begin, first = 0, 1
    while first < length:
        end = min(begin + context, length - 1)
        yield begin, end, first
        begin, first = begin + stride, end + 1


def window_losses(
    model: GPT2,
    take: Callable[[int, int], NDArray[np.int64]],
    length: int,
    context: int,
    stride: int,
    progress: Progress | None = None,
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """(slice of the stream, losses of its tokens in nats) for tokens 1 .. length - 1, each once and in order.

    `take(a, b)` gives the stream's ids [a, b). Full windows are grouped; the last, shorter one goes alone.
    """
    import torch

    group: list[tuple[int, int, int]] = []
    rows = max(1, TOKENS_PER_FORWARD // context)
    with _evaluation_mode(model), torch.inference_mode():
        for window in windows(length, context, stride):
            if group and (len(group) == rows or window[1] - window[0] < context):
                yield from _grouped(model, take, group)
                group = []
                if progress is not None:
                    progress(window[2], length)
            group.append(window)
        if group:
            yield from _grouped(model, take, group)
    if progress is not None:
        progress(length, length)


def _grouped(
    model: GPT2, take: Callable[[int, int], NDArray[np.int64]], group: list[tuple[int, int, int]]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """The losses of windows of one length, in one pass; logits exist for LOGITS_PER_CHUNK at a time."""
    import torch
    import torch.nn.functional as F

    head = model.head
    ids = torch.from_numpy(np.stack([take(begin, end + 1) for begin, end, _ in group])).to(head.device)  # B T+1
    scored = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.bool, device=head.device)
    for row, (begin, _, first) in enumerate(group):
        scored[row, first - begin - 1 :] = True
    hidden = model.hidden(ids[:, :-1])[scored]  # N C
    targets = ids[:, 1:][scored]  # N
    chunk = max(1, LOGITS_PER_CHUNK // head.shape[0])
    precise = torch.promote_types(head.dtype, torch.float32)
    losses = torch.cat([
        F.cross_entropy(F.linear(h, head).to(precise), t, reduction="none")
        for h, t in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
    ]).double().cpu().numpy()  # fmt: skip
    done = 0
    for _, end, first in group:
        count = end + 1 - first
        yield slice(first, end + 1), losses[done : done + count]
        done += count


@contextmanager
def _evaluation_mode(model: GPT2) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def compare(first: Evaluation, second: Evaluation, unit: str = "byte") -> Comparison:
    """`second` against `first` in bits per "byte" or "character", or perplexity per "token".

    UserError, with the reason, where the figures cannot be compared: another text, or tokens of another
    tokenizer.
    """
    if unit not in ("token", "byte", "character"):
        raise unknown("unit", unit, ("token", "byte", "character"))
    if first.text_hash != second.text_hash:
        raise UserError(
            f"the evaluations are of different texts ({first.text_hash[:8]}… and {second.text_hash[:8]}…)",
            hint="evaluate both models on the same file",
        )
    if unit == "token" and first.tokenizer_hash != second.tokenizer_hash:
        raise UserError(
            f"perplexity per token depends on the tokenizer: a {first.unit} of {first.tokenizer_hash[:8]}… "
            f"is not a {second.unit} of {second.tokenizer_hash[:8]}…",
            hint="compare bits per byte or per character",
        )
    if unit != "token" and first.bytes != second.bytes:
        raise UserError(
            f"one evaluation scored {first.bytes} bytes of the text, the other {second.bytes}: "
            "a tokenizer without <|endoftext|> cannot score its first token",
            hint="compare on one document, with tokenizers that both have or both lack <|endoftext|>",
        )
    notes = tuple(
        f"{name} differs: {getattr(first, name)} and {getattr(second, name)}"
        for name in ("context", "stride", "protocol", "lossless")
        if getattr(first, name) != getattr(second, name)
    )
    figure = {"token": "perplexity", "byte": "bits_per_byte", "character": "bits_per_character"}[unit]
    return Comparison(unit, getattr(first, figure), getattr(second, figure), notes)


# ---------------------------------------------------------------- the stream


@dataclass
class _Stretch:
    """A document or a part of one: where its tokens begin in the stream, and how much text they are."""

    start: int
    bytes: int = 0
    characters: int = 0


@dataclass
class _Stream:
    """Ids with a separator before the first where there is one; memory-mapped ids stay on the disk."""

    ids: Sequence[int] | NDArray[Any]
    separator: int | None
    prefix: int  # 1 where a separator is put before ids[0]
    bytes: int = 0
    characters: int = 0
    documents: int = 0
    text_hash: str = ""
    lossless: bool = True
    stretches: list[_Stretch] = field(default_factory=list)

    def __len__(self) -> int:
        return self.prefix + len(self.ids)

    def take(self, begin: int, end: int) -> NDArray[np.int64]:
        """The ids [begin, end) of the stream, as int64."""
        ids = np.asarray(self.ids[max(0, begin - self.prefix) : end - self.prefix], dtype=np.int64)
        if begin < self.prefix:
            assert self.separator is not None
            ids = np.concatenate([np.array([self.separator], dtype=np.int64), ids])
        return ids

    def is_text(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.ones(len(ids), dtype=bool) if self.separator is None else ids != self.separator


def _stream(tokenizer: Tokenizer, text: Any) -> _Stream:
    separator = tokenizer.eot_id
    if isinstance(text, str):
        stream = _encode(tokenizer, [text])
    elif hasattr(text, "__getitem__") and (isinstance(text, np.ndarray) or not isinstance(text, (list, tuple))):
        stream = _count(tokenizer, text)
    elif isinstance(text, (list, tuple)) and text and isinstance(text[0], int):
        stream = _count(tokenizer, np.asarray(text, dtype=np.int64))
    else:
        stream = _encode(tokenizer, text)
    if separator is None and len(stream) > 0:  # nothing precedes the first token
        first = tokenizer.token_bytes(int(stream.take(0, 1)[0]))
        stream.bytes -= len(first)
        stream.characters -= _characters(first)
        stream.stretches[0].bytes -= len(first)
        stream.stretches[0].characters -= _characters(first)
    if stream.bytes <= 0 or stream.characters <= 0:
        raise UserError(
            "the text to evaluate is empty"
            if separator is not None
            else "the text to evaluate is too short: without <|endoftext|> the first token cannot be scored"
        )
    return stream


def _characters(data: bytes) -> int:
    """How many characters begin in `data`, which may cut one: all bytes but UTF-8's continuation bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def _encode(tokenizer: Tokenizer, documents: Iterable[str | Document]) -> _Stream:
    """Documents to a stream, counting the text on the way. Text hash: SHA-256 of UTF-8, documents joined by a
    NUL.
    """
    separator = tokenizer.eot_id
    digest = hashlib.sha256()
    arrays: list[NDArray[np.int32]] = []
    pending: list[tuple[str, bool, int]] = []
    lossless: list[bool] = []
    stretches: list[_Stretch] = []
    counts = {"bytes": 0, "characters": 0, "documents": 0, "pending": 0, "tokens": 0}

    def flush() -> None:
        encoded = tokenizer.encode_batch([content for content, _, _ in pending])
        for (content, continues, size), ids in zip(pending, encoded, strict=True):
            if not continues or stretches[-1].bytes >= STRETCH_BYTES:
                stretches.append(_Stretch(counts["tokens"]))
            stretches[-1].bytes += size
            stretches[-1].characters += len(content)
            if separator is not None and not continues:
                arrays.append(np.array([separator], dtype=np.int32))
                counts["tokens"] += 1
            arrays.append(np.asarray(ids, dtype=np.int32))
            counts["tokens"] += len(ids)
            if tokenizer.kind != "bpe":  # byte-level BPE loses nothing
                lossless.append(tokenizer.decode_bytes(ids.tolist()) == content.encode("utf-8"))
        pending.clear()
        counts["pending"] = 0

    for document in documents:
        content = document if isinstance(document, str) else document.text
        if not content:
            continue
        continues = not isinstance(document, str) and document.continues and counts["documents"] > 0
        data = _utf8(content)
        digest.update(data if continues or counts["documents"] == 0 else b"\0" + data)
        counts["bytes"] += len(data)
        counts["characters"] += len(content)
        counts["documents"] += not continues
        counts["pending"] += len(content)
        pending.append((content, continues, len(data)))
        if counts["pending"] >= ENCODE_GROUP:
            flush()
    flush()
    ids = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
    sizes = counts["bytes"], counts["characters"], counts["documents"]
    return _Stream(ids, separator, 0, *sizes, digest.hexdigest(), all(lossless), stretches)


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds a lone surrogate at character {error.start}, which is not valid Unicode"
        ) from None


def _count(tokenizer: Tokenizer, ids: Any) -> _Stream:
    """Token ids to a stream; bytes and characters are those of the decoded text."""
    separator = tokenizer.eot_id
    stream = _Stream(ids, separator, 0)
    if len(ids) == 0:
        return stream
    stream.prefix = int(separator is not None and int(ids[0]) != separator)
    digest = hashlib.sha256()
    previous = separator
    for begin in range(0, len(stream), ENCODE_GROUP):
        piece = stream.take(begin, min(begin + ENCODE_GROUP, len(stream)))
        cuts = [] if separator is None else np.flatnonzero(piece == separator).tolist()
        for a, b in zip([0, *(c + 1 for c in cuts)], [*cuts, len(piece)], strict=True):
            data = tokenizer.decode_bytes(piece[a:b].tolist())
            starts = previous == separator and separator is not None and b > a
            digest.update(b"\0" + data if starts and stream.documents else data)
            stream.documents += starts
            stream.bytes += len(data)
            stream.characters += _characters(data)
            stream.stretches += _cut(tokenizer, piece[a:b], data, begin + a)
            previous = separator if b < len(piece) else int(piece[-1])
    stream.documents = max(1, stream.documents)
    stream.text_hash = digest.hexdigest()
    return stream


def _cut(tokenizer: Tokenizer, ids: NDArray[np.int64], data: bytes, start: int) -> Iterator[_Stretch]:
    """A document's ids, whose text is `data`, in stretches; the last has all that the others leave."""
    for a in range(0, len(ids), STRETCH_TOKENS):
        b = a + STRETCH_TOKENS
        size = len(data) if b >= len(ids) else len(tokenizer.decode_bytes(ids[a:b].tolist()))
        yield _Stretch(start + a, len(data[:size]), _characters(data[:size]))
        data = data[size:]


def _check_ids(model: GPT2, stream: _Stream) -> None:
    """An id outside the model's vocabulary is refused before any work."""
    V = model.config.vocab_size
    for begin in range(0, len(stream), ENCODE_GROUP):
        ids = stream.take(begin, min(begin + ENCODE_GROUP, len(stream)))
        if ids.size and (int(ids.max()) >= V or int(ids.min()) < 0):
            worst = int(ids.max()) if int(ids.max()) >= V else int(ids.min())
            raise UserError(
                f"token id {worst} is outside the model's vocabulary of {V}",
                hint="evaluate with the tokenizer that the model was trained with",
            )
