"""What every way of decoding shares: rows of tokens to logits, with a cache.

What happens past n_positions: `completion.py`.

Shapes: R rows (sequences), T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F

from gpt2kit.model.completion import Logits, view_start, vocabulary
from gpt2kit.model.gpt2 import GPT2, PADDING, KVCache

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

Padding = Literal["left", "right"]


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
        self.vocab_size = vocabulary(model.config, tokenizer)
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
