"""Beam search: Hugging Face's with early_stopping=False.

It ends when the best running beam, scored at its present length, is no better than the worst of num_beams
finished ones. Penalties, bans and bias act on the log-probabilities, as in transformers. A stop string ends
a beam, too. All beams are one batch, [num_beams, T]. The model file's decoder computes their logits, or the engine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gpt2kit.model.completion import Completion, Finish, Logits, TextStream, Window, room, stop_ids, view_start
from gpt2kit.model.sampling import (
    Choice,
    SamplingSettings,
    check_logits,
    describe,
    log_softmax,
    process,
    ranked,
)

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Beam:
    tokens: list[int]
    logprob: float  # the sum over the tokens, after the penalties
    choices: list[Choice]
    score: float = 0.0
    stop: int | str | None = None


class BeamDecoder(Protocol):
    """What computes the beams."""

    def logits(self, rows: list[list[int]]) -> Logits:
        """Of each row's next token: [R, V] float32. A row has grown by one token since the last call."""

    def reorder(self, rows: list[int]) -> None:
        """Go on with these rows, in this order; a row may be dropped or taken several times."""


def beam_search(
    decoder: BeamDecoder,
    prompt: list[int],
    settings: SamplingSettings,
    n_positions: int,
    eos_id: int | None = None,
    tokenizer: Tokenizer | None = None,
    window: Window = "slide",
) -> list[Completion]:
    """The settings.n best of settings.num_beams beams, best first. Arguments as checked by `generate`."""
    width = settings.num_beams
    limit = room(len(prompt), settings, n_positions, window)
    stops = stop_ids(settings, eos_id)
    beams, finished = [_Beam([], 0.0, [])], list[_Beam]()
    if limit == 0:
        finished = beams * width
    for length in range(1, limit + 1):
        logits = decoder.logits([prompt + beam.tokens for beam in beams])  # R V
        parents, grown = _grow(beams, logits, prompt, settings, eos_id, max(2, 1 + len(stops)) * width)
        running: list[tuple[int, _Beam]] = []
        for rank, (parent, beam) in enumerate(zip(parents, grown, strict=True)):
            stop = _beam_stop(beam.tokens, settings, stops, tokenizer)
            if stop is None and length < limit:
                running.append((parent, beam))
            elif rank < width:
                points = beam.logprob / length**settings.length_penalty
                finished.append(dataclasses.replace(beam, score=points, stop=stop))
        finished = sorted(finished, key=lambda beam: -beam.score)[:width]  # stable: the older of equals first
        running = running[:width]
        if not running:
            break
        if len(finished) == width:
            best = running[0][1].logprob / length**settings.length_penalty
            if best <= finished[-1].score:
                break
        beams = [beam for _, beam in running]
        decoder.reorder([parent for parent, _ in running])
    return [_completion(beam, settings, tokenizer, len(prompt), n_positions) for beam in finished[: settings.n]]


def _grow(
    beams: list[_Beam],
    logits: Logits,
    prompt: list[int],
    settings: SamplingSettings,
    eos_id: int | None,
    count: int,
) -> tuple[list[int], list[_Beam]]:
    """The `count` likeliest continuations of the beams by one token, best first, and each one's beam."""
    V = logits.shape[1]
    rows = []
    for beam, row in zip(beams, logits, strict=True):
        check_logits(float(row.max()), banned=False)
        rows.append(process(log_softmax(row), settings, prompt, beam.tokens, eos_id) + beam.logprob)
    scores = np.concatenate(rows)
    check_logits(float(scores.max()), banned=True)
    parents, grown = [], []
    for index in ranked(scores, count):
        if scores[index] == -np.inf:
            break
        parent, token = divmod(int(index), V)
        beam = beams[parent]
        choice = describe(logits[parent], token, settings.logprobs)
        parents.append(parent)
        grown.append(_Beam([*beam.tokens, token], float(scores[index]), [*beam.choices, choice]))
    return parents, grown


def _beam_stop(
    tokens: list[int], settings: SamplingSettings, stops: frozenset[int], tokenizer: Tokenizer | None
) -> int | str | None:
    """The token id or the stop string that ends this beam, or None."""
    if len(tokens) < settings.min_tokens:
        return None
    if tokens[-1] in stops:
        return tokens[-1]
    return _beam_text(tokens, settings, tokenizer).stop if settings.stop and tokenizer is not None else None


def _beam_text(tokens: list[int], settings: SamplingSettings, tokenizer: Tokenizer) -> _Text:
    text = TextStream(tokenizer, settings.stop)
    pieces = []
    for count, token in enumerate(tokens, 1):
        if text.stop is None:
            pieces.append(text.push(token, count >= settings.min_tokens))
    return _Text("".join(pieces) + (text.finish() if text.stop is None else ""), text.stop)


@dataclass(frozen=True)
class _Text:
    text: str
    stop: str | None


def _completion(
    beam: _Beam, settings: SamplingSettings, tokenizer: Tokenizer | None, prompt: int, n_positions: int
) -> Completion:
    """`prompt` is the length of the prompt."""
    visible = beam.tokens[:-1] if isinstance(beam.stop, int) else beam.tokens
    text = None if tokenizer is None else _beam_text(visible, settings, tokenizer).text
    finish: Finish = "length" if beam.stop is None else "stop"
    logprobs = None if settings.logprobs is None else beam.choices
    slid = bool(beam.tokens) and view_start(prompt + len(beam.tokens) - 1, n_positions) > 0
    return Completion(beam.tokens, text, finish, beam.stop, logprobs, None, slid, beam.score)
