"""What every way of decoding shares: tokens to logits with a cache, tokens to text up to a stop string.

**Past n_positions.** GPT-2 has no position beyond n_positions N. With window="slide" the model sees at most
the last N tokens: when token N + 1 arrives the view is cut to the last 3/4 N tokens, which are computed
anew from position 0, and grows to N again. What the model sees is a function of the sequence's length alone
(`view_start`), so a prompt longer than N is treated as if it had been generated, and a cache cannot change
it. Results say `window_slid`. With window="stop" prompt and completion together end at N with finish_reason
"length".

Shapes: R rows (sequences), T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gpt2kit.model.gpt2 import GPT2, PADDING, KVCache
from gpt2kit.model.sampling import Choice, SamplingSettings

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

Padding = Literal["left", "right"]
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


@contextmanager
def evaluating(model: GPT2) -> Iterator[None]:
    """No dropout and no graph inside; afterwards each module trains again that did before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def vocabulary(model: GPT2, tokenizer: Tokenizer | None) -> int:
    """How many tokens can be chosen: the model's, or fewer where the tokenizer knows fewer."""
    V = model.config.vocab_size
    return V if tokenizer is None else min(V, tokenizer.vocab_size)


class Decoder:
    """Rows of token ids to the logits of each row's next token, remembering keys and values between calls.

    Rows of unequal length are padded at the given side. `room` bounds how many tokens a row will grow by. Of
    a vocabulary that was padded beyond the tokenizer's, only the tokenizer's part is looked at.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer | None,
        room: int,
        cache: bool = True,
        padding: Padding = "left",
    ) -> None:
        self.model, self.room, self.use_cache, self.padding = model, room, cache, padding
        self.vocab_size = vocabulary(model, tokenizer)
        self.limit = model.config.n_positions
        self.device = model.wte.weight.device
        self.cache: KVCache | None = None
        self.starts: list[int] = []

    def logits(self, rows: Sequence[Sequence[int]]) -> Logits:
        """R rows -> [R, V] float32. Since the last call each row may only have grown by one token."""
        starts = [view_start(len(row), self.limit) for row in rows]
        with evaluating(self.model):
            cache = self.cache
            if self.use_cache and cache is not None and starts == self.starts and cache.length < cache.capacity:
                hidden = self._step(cache, rows)
            else:
                self.starts = starts
                hidden = self._prefill([row[start:] for row, start in zip(rows, starts, strict=True)])
            logits: Logits = F.linear(hidden, self.model.head).float().cpu().numpy()[:, : self.vocab_size]
        return logits

    def _prefill(self, views: list[Sequence[int]]) -> torch.Tensor:
        R, T = len(views), max(map(len, views))
        tokens = np.zeros((R, T), np.int64)
        positions = np.full((R, T), PADDING, np.int64)
        last = np.full(R, T - 1)
        for r, view in enumerate(views):
            at = slice(T - len(view), T) if self.padding == "left" else slice(len(view))
            tokens[r, at] = view
            positions[r, at] = np.arange(len(view))
            last[r] = at.stop - 1
        if self.use_cache:
            dtype = self.model.wte.weight.dtype
            capacity = min(self.limit, T + self.room)
            self.cache = KVCache(self.model.config, R, capacity, dtype, self.device)
        place = None if bool((positions != PADDING).all()) else torch.from_numpy(positions).to(self.device)
        hidden = self.model.hidden(torch.from_numpy(tokens).to(self.device), cache=self.cache, positions=place)
        return hidden[torch.arange(R, device=self.device), torch.from_numpy(last).to(self.device)]  # R C

    def _step(self, cache: KVCache, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        tokens = torch.tensor([[row[-1]] for row in rows], device=self.device)  # R 1
        positions = None
        if cache.padding is not None:
            here = [[len(row) - 1 - start] for row, start in zip(rows, self.starts, strict=True)]
            positions = torch.tensor(here, device=self.device)
        return self.model.hidden(tokens, cache=cache, positions=positions)[:, -1]  # R C

    def reorder(self, rows: list[int]) -> None:
        """Go on with these rows, in this order; a row may be dropped or taken several times."""
        self.starts = [self.starts[row] for row in rows]
        if self.cache is not None and rows != list(range(self.cache.keys[0].shape[0])):
            self.cache.reorder(torch.tensor(rows, device=self.device))

    def rewind(self, prompt: Sequence[int]) -> None:
        """Forget what came after `prompt`, of which the logits are known, to continue it another way."""
        start = view_start(len(prompt), self.limit)
        if self.cache is not None and self.starts == [start]:
            self.cache.length = len(prompt) - start
        elif self.use_cache:
            self.cache = None
            self.logits([prompt])


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
