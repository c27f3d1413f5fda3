"""What a window of tokens becomes before the loss sees it: as it is, with tokens masked, or with its middle moved last.

Each is a pure function of (window, seed, step, row of the global batch), so slicing and resuming change nothing.
Shapes: B batch, T context; windows [B, T+1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import losses
from gpt2kit.training.config import TrainConfig

Ids = NDArray[np.int64]
Arrays = tuple[NDArray[Any], ...]
Batch = tuple[Tensor, ...]  # the same as tensors
Loss = Callable[..., tuple[Tensor, int]]  # (model, *tensors) -> sum in nats, number of targets
Rows = Ids | Sequence[Any]  # windows [B, T+1], or rows of any length that have one (`len`)
MASK = "<|mask|>"
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
SPECIAL_TOKENS = {"next": (), "masked": (MASK,), "fim": FIM}
MASKED_SHARE = 0.15  # Devlin et al. 2018: of these 80 % become the mask, 10 % another token, 10 % stay
FIM_SHARE = 0.5  # Bavarian et al. 2022: at a half, left-to-right loss does not suffer


class Judged(NamedTuple):
    """What an evaluation counts, without label smoothing."""

    loss: Tensor  # sum in nats
    targets: int
    right: int | None = None  # targets that a classifier decides as they are; None: no classifier


class Objective(Protocol):
    """What training asks of rows: `prepare` them, then `loss(model, *tensors)` gives (sum, count)."""

    def prepare(self, rows: Any, step: int, first_row: int) -> Arrays: ...

    @property
    def loss(self) -> Loss: ...

    @property
    def judge(self) -> Callable[..., Judged]: ...  # (model, *tensors)


class TextObjective:
    """The objective that a config names, bound to a vocabulary, on windows of text."""

    def __init__(self, config: TrainConfig, vocab_size: int, tokenizer: Tokenizer | None) -> None:
        self.name, self.seed, self.vocab_size = config.objective, config.seed, vocab_size
        names = SPECIAL_TOKENS[config.objective]
        known = {} if tokenizer is None else tokenizer.special_tokens
        missing = [name for name in names if name not in known]
        if missing:
            raise UserError(
                f"the objective {self.name!r} needs the special tokens {', '.join(missing)}, the tokenizer has none",
                hint=f"learn one in the same command, or: gpt2kit tokenizer train … --special {' '.join(names)}",
            )
        self.special = [known[name] for name in names]
        self.loss = partial(
            losses.masked if self.name == "masked" else losses.next_token, smoothing=config.label_smoothing
        )

    def judge(self, model: GPT2, *windows: Tensor) -> Judged:
        plain: Loss = losses.masked if self.name == "masked" else losses.next_token
        return Judged(*plain(model, *windows))

    def prepare(self, windows: Rows, step: int, first_row: int) -> Arrays:
        """[B, T+1] -> the same shape, or for "masked" inputs and targets [B, T]."""
        if self.name == "next":
            assert isinstance(windows, np.ndarray)
            return (windows,)
        rows = [self._row(w, np.random.Generator(np.random.Philox(key=self._key(step, first_row + i))))
                for i, w in enumerate(windows)]  # fmt: skip
        return tuple(np.stack(rows, axis=1)) if self.name == "masked" else (np.stack(rows),)

    def _key(self, step: int, row: int) -> NDArray[np.uint64]:
        return np.array([self.seed, step << 24 | row], dtype=np.uint64)

    def _row(self, window: Ids, rng: np.random.Generator) -> Ids:
        return self._masked(window[:-1], rng) if self.name == "masked" else self._fim(window, rng)

    def _masked(self, tokens: Ids, rng: np.random.Generator) -> Ids:
        """[T] -> [2, T]"""
        chosen = rng.random(len(tokens)) < MASKED_SHARE
        chosen[rng.integers(len(tokens))] = True  # at least one, or the loss has nothing to count
        fate = rng.random(len(tokens))
        other = rng.integers(self.vocab_size, size=len(tokens))
        corrupted = np.where(fate < 0.8, self.special[0], np.where(fate < 0.9, other, tokens))
        return np.stack([np.where(chosen, corrupted, tokens), np.where(chosen, tokens, losses.IGNORED)])

    def _fim(self, window: Ids, rng: np.random.Generator) -> Ids:
        """[T+1] -> [T+1]: prefix, suffix, middle, each behind its marker; the window's last three tokens make room."""
        if rng.random() >= FIM_SHARE or len(window) < 8:
            return window
        text = window[:-3]
        a, b = np.sort(rng.integers(0, len(text) + 1, size=2))
        prefix, suffix, middle = self.special
        parts = ([prefix], text[:a], [suffix], text[b:], [middle], text[a:b])
        return np.concatenate([np.asarray(p, dtype=np.int64) for p in parts])
