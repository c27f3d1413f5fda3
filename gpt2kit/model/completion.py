"""A completion in progress and its result, for the reference decode and every other engine; without torch.

**Past n_positions.** GPT-2 has no position beyond n_positions N. With window="slide" the model sees at most
the last N tokens: when token N + 1 arrives the view is cut to the last 3/4 N tokens, which are computed
anew from position 0, and grows to N again. What the model sees is a function of the sequence's length alone
(`view_start`), so a prompt longer than N is treated as if it had been generated, and a cache cannot change
it. Results say `window_slid`. With window="stop" prompt and completion together end at N with finish_reason
"length".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import Choice, SamplingSettings, random_seed, sample

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

Window = Literal["slide", "stop"]
Finish = Literal["stop", "length"]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Completion:
    """One finished completion."""

    token_ids: list[int]  # with the EOS or stop token that ended it, and the tokens of a stop string
    text: str | None  # without them; None where there is no tokenizer
    finish_reason: Finish
    stop_reason: int | str | None = None  # the token id or the string that stopped it
    logprobs: list[Choice] | None = None  # one per token; None unless settings.logprobs is set
    seed: int | None = None  # set it to repeat this completion with n = 1
    window_slid: bool = False  # some tokens were chosen without sight of the beginning
    score: float | None = None  # beam search: log-probability / tokens ** length_penalty


def stop_ids(settings: SamplingSettings, eos_id: int | None) -> frozenset[int]:
    eos = () if eos_id is None or settings.ignore_eos else (eos_id,)
    return frozenset((*settings.stop_token_ids, *eos))


def room(prompt: int, settings: SamplingSettings, n_positions: int, window: Window) -> int:
    """How many tokens may follow a prompt of `prompt` tokens."""
    return settings.max_tokens if window == "slide" else min(settings.max_tokens, n_positions - prompt)


def view_start(length: int, n_positions: int) -> int:
    """The first token of `length` that the model sees: 0 until it is full, then 1/4 further a time."""
    if length <= n_positions:
        return 0
    stride = n_positions + 1 - max(1, n_positions * 3 // 4)
    return -(-(length - n_positions) // stride) * stride


class TextStream:
    """Tokens to text: never half a character, never a part of a stop string.

    The stop string that is completed first wins (of several at once the one that began first), however the
    text is cut into tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        from gpt2kit.text.tokenizer import StreamDecoder

        self.decoder = StreamDecoder(tokenizer)
        self.stops = stops
        self.held = ""
        self.stop: str | None = None  # the stop string that was met

    def push(self, token: int, search: bool = True) -> str:
        """The text that is certain after `token`. search=False: no stop string is looked for."""
        return self._emit(self.decoder.push(token), search)

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        text = self._emit(self.decoder.finish(), True)
        if self.stop is None:
            text, self.held = text + self.held, ""
        return text

    def _emit(self, piece: str, search: bool) -> str:
        text = self.held + piece
        if not search:
            self.held = ""
            return text
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self.stops if stop in text]
        if found:
            _, start, self.stop = min(found)
            self.held = ""
            return text[:start]
        longest = min(len(text), max(map(len, self.stops), default=1) - 1)
        tails = (k for k in range(longest, 0, -1) if any(stop.startswith(text[-k:]) for stop in self.stops))
        hold = next(tails, 0)
        self.held = text[len(text) - hold :]
        return text[: len(text) - hold]


class NextLogits(Protocol):
    """What computes: R rows of token ids -> [R, V], the logits of each row's next token."""

    def logits(self, rows: Sequence[Sequence[int]]) -> Logits: ...


@dataclass(frozen=True)
class Event:
    """One step of a stream. The pieces of text joined are the text of the completion."""

    token: int | None  # None only when max_tokens or the window leave no room for any
    text: str = ""  # what is certain by now: whole characters, no possible beginning of a stop string
    choice: Choice | None = None
    finish_reason: Finish | None = None  # set on the last event
    stop_reason: int | str | None = None
    seed: int | None = None
    window_slid: bool = False


class Generation:
    """One completion in progress: takes a row of logits a step, until `finish_reason` is set."""

    def __init__(
        self,
        prompt: Sequence[int],
        settings: SamplingSettings,
        eos_id: int | None,
        tokenizer: Tokenizer | None,
        n_positions: int,
        window: Window,
    ) -> None:
        self.prompt, self.settings, self.eos_id, self.n_positions = prompt, settings, eos_id, n_positions
        self.ids = list(prompt)
        self.output: list[int] = []
        self.choices: list[Choice] = []
        self.stream = None if tokenizer is None else TextStream(tokenizer, settings.stop)
        self.text: list[str] = []
        self.stop_ids = stop_ids(settings, eos_id)
        self.limit = room(len(prompt), settings, n_positions, window)
        self.window_slid = False
        self.stop_reason: int | str | None = None
        self.finish_reason: Finish | None = "length" if self.limit == 0 else None

    def advance(self, logits: Logits) -> Event:
        """Choose the next token from logits [V] and say what became of it."""
        assert self.finish_reason is None, "this completion has ended"
        self.window_slid |= view_start(len(self.ids), self.n_positions) > 0
        choice = sample(logits, self.settings, self.prompt, self.output, self.eos_id)
        self.ids.append(choice.token)
        self.output.append(choice.token)
        self.choices.append(choice)
        long_enough = len(self.output) >= self.settings.min_tokens
        text = ""
        if choice.token in self.stop_ids and long_enough:
            self.stop_reason, self.finish_reason = choice.token, "stop"
        else:
            if self.stream is not None:
                text = self.stream.push(choice.token, long_enough)
            if len(self.output) == self.limit:
                self.finish_reason = "length"
        if self.stream is not None:
            if self.finish_reason is not None and self.stream.stop is None:
                text += self.stream.finish()
            if self.stream.stop is not None:
                self.stop_reason, self.finish_reason = self.stream.stop, "stop"
        self.text.append(text)
        return self._event(choice, text)

    def _event(self, choice: Choice | None, text: str = "") -> Event:
        token = None if choice is None else choice.token
        return Event(token, text, choice, self.finish_reason, self.stop_reason, self.settings.seed, self.window_slid)

    def run(self, decoder: NextLogits, logits: Logits | None) -> Iterator[Event]:
        """The events until the end. `logits` [1, V] are those after the prompt, where they are known."""
        if self.finish_reason is not None:
            yield self._event(None)
        while self.finish_reason is None:
            logits = decoder.logits([self.ids]) if logits is None else logits
            yield self.advance(logits[0])
            logits = None

    def completion(self) -> Completion:
        assert self.finish_reason is not None, "this completion has not ended"
        text = None if self.stream is None else "".join(self.text)
        logprobs = None if self.settings.logprobs is None else self.choices
        seed = self.settings.seed
        return Completion(self.output, text, self.finish_reason, self.stop_reason, logprobs, seed, self.window_slid)


# What can be wrong with a prompt or with settings, before anything is computed


def vocabulary(config: GPT2Config, tokenizer: Tokenizer | None) -> int:
    """How many tokens can be chosen: the model's, or fewer where the tokenizer knows fewer."""
    V = config.vocab_size
    return V if tokenizer is None else min(V, tokenizer.vocab_size)


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def end_id(config: GPT2Config, eos_id: int | None, tokenizer: Tokenizer | None) -> int | None:
    """The id that ends a text: the one given, the config's, the tokenizer's, or None."""
    if eos_id is None:
        eos_id = config.eos_token_id
    if eos_id is None and tokenizer is not None:
        eos_id = tokenizer.eot_id
    V = vocabulary(config, tokenizer)
    if eos_id is not None and not 0 <= eos_id < V:
        raise UserError(f"EOS {eos_id} is outside the vocabulary of {V} tokens")
    return eos_id


def check_settings(settings: SamplingSettings, config: GPT2Config, tokenizer: Tokenizer | None) -> SamplingSettings:
    """The settings with a seed, if they fit this model."""
    settings.check_vocabulary(vocabulary(config, tokenizer))
    if settings.stop and tokenizer is None:
        raise UserError("stop strings need a tokenizer", hint="pass tokenizer=, or use stop_token_ids")
    if settings.seed is None and settings.temperature > 0:
        settings = dataclasses.replace(settings, seed=random_seed())
    return settings


def check_ids(what: str, ids: Sequence[int], config: GPT2Config, tokenizer: Tokenizer | None = None) -> list[int]:
    V = vocabulary(config, tokenizer)
    out = []
    for i, token in enumerate(ids):
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool):
            raise UserError(f"{what} must be a list of token ids, got {token!r} at {i}")
        if not 0 <= token < V:
            raise UserError(f"{what} holds id {token} at {i}, outside the vocabulary of {V} tokens")
        out.append(int(token))
    return out


def check_prompt(
    what: str, prompt: Sequence[int], config: GPT2Config, eos_id: int | None, window: Window,
    tokenizer: Tokenizer | None = None,
) -> list[int]:  # fmt: skip
    if isinstance(prompt, (str, bytes, Mapping)) or not hasattr(prompt, "__iter__"):
        raise UserError(f"{what} must be a list of token ids, got {prompt!r}", hint="encode the text first")
    ids = check_ids(what, prompt, config, tokenizer)
    if not ids:
        if eos_id is None:
            raise UserError(f"{what} is empty and there is no EOS to start from", hint="give at least one token")
        return [eos_id]
    N = config.n_positions
    if window == "stop" and len(ids) > N:
        raise UserError(
            f"{what} has {len(ids)} tokens, the model sees {N}",
            hint='cut it, or generate with window="slide"',
        )
    return ids
