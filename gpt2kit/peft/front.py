"""Virtual tokens in front of every row, for prefix tuning, prompt tuning and P-tuning.

A front has P places. They take positions 0 to P - 1, so the row's own tokens stand P places later than without it, as
in PEFT. Callers do not see them: what they pass and get back are their tokens, and a KVCache of theirs holds their
tokens only. The front's keys and values reach attention through a cache that stands before the caller's.

Shapes: B batch, T time, C channels, L layers, H heads, D head size, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import PADDING, KVCache

Hidden = Callable[..., Tensor]  # GPT2.hidden of the model: (tokens, embeds, cache, positions, causal) -> [B, T, C]
KeysValues = tuple[list[Tensor], list[Tensor]]  # of each layer, [1, H, P, D]


class Front(nn.Module):
    """P virtual tokens. `fixed` replaces the network that makes them by what it made: all that PEFT's files hold."""

    def __init__(self, config: GPT2Config, length: int) -> None:
        super().__init__()
        self.config, self.length = config, length
        self._known: WeakKeyDictionary[KVCache, KeysValues] = WeakKeyDictionary()  # of generations under way

    def prompt(self) -> Tensor:
        """What stands in PEFT's file: embeddings [P, C], or keys and values [P, 2 L C]."""
        raise NotImplementedError

    def fix(self, prompt: Tensor) -> None:
        """Hold this prompt itself from now on."""
        raise NotImplementedError

    def keys_values(self, hidden: Hidden) -> KeysValues:
        raise NotImplementedError

    def hidden(
        self,
        hidden: Hidden,
        embed: Callable[[Tensor], Tensor],
        tokens: Tensor | None,
        embeds: Tensor | None,
        cache: KVCache | None,
        positions: Tensor | None,
        causal: bool,
    ) -> Tensor:
        """`GPT2.hidden` with the front before each row; returns the row's own states [B, T, C]."""
        self.check_room(tokens if embeds is None else embeds, cache, positions)
        fronted = cast(KVCache, FrontedCache(*self._keys_values(hidden, cache), cache, self.config.n_positions))
        return hidden(tokens, embeds, fronted, self.shifted(positions), causal)

    def shifted(self, positions: Tensor | None) -> Tensor | None:
        return None if positions is None else torch.where(positions == PADDING, PADDING, positions + self.length)

    def check_room(self, given: Tensor | None, cache: KVCache | None, positions: Tensor | None) -> None:
        if given is None:
            raise UserError("give either tokens or embeds")
        past = 0 if cache is None else cache.length
        last = past + given.shape[1] if positions is None else int(positions.max()) + 1
        if last + self.length > self.config.n_positions:
            raise UserError(
                f"{last} tokens and {self.length} virtual ones exceed the model's {self.config.n_positions} positions",
                hint=f"with this adapter there is room for {self.config.n_positions - self.length} tokens",
            )

    def _keys_values(self, hidden: Hidden, cache: KVCache | None) -> KeysValues:
        """Made once for each generation: while a cache grows, its front stays."""
        if cache is None or torch.is_grad_enabled():
            return self.keys_values(hidden)
        if cache.length == 0 or cache not in self._known:
            self._known[cache] = self.keys_values(hidden)
        return self._known[cache]


class FrontedCache:
    """A KVCache to the model: the front's keys and values, then those of `inner`, or of this call alone."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], inner: KVCache | None, capacity: int) -> None:
        self.keys, self.values, self.inner = keys, values, inner
        self.places = keys[0].shape[2]
        self.capacity = self.places + (capacity if inner is None else inner.capacity)
        self._padding: Tensor | None = None

    @property
    def length(self) -> int:
        return self.places + (0 if self.inner is None else self.inner.length)

    @property
    def padding(self) -> Tensor | None:
        """[B, P + capacity]; the inner cache's is a view of it, so what the model marks stays marked there."""
        if self.inner is None:
            return self._padding
        if self.inner.padding is None:
            return None
        known = self.inner.padding
        self.padding = torch.cat([known.new_zeros(len(known), self.places), known], 1)
        return self._padding

    @padding.setter
    def padding(self, value: Tensor) -> None:
        self._padding = value
        if self.inner is not None:
            self.inner.padding = value[:, self.places :]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.inner is not None:
            k, v = self.inner.append(layer, k, v)
        return _before(self.keys[layer], k), _before(self.values[layer], v)

    def advance(self, steps: int) -> None:
        if self.inner is not None:
            self.inner.advance(steps)


def _before(front: Tensor, rows: Tensor) -> Tensor:
    """[1, H, P, D] before each of [B, H, S, D]."""
    return torch.cat([front.to(rows.dtype).expand(len(rows), -1, -1, -1), rows], 2)
