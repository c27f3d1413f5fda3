"""The shape of a GPT-2, and OpenAI's four shapes. Torch is not needed to know a model's shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2kit.errors import UserError, unknown

ACTIVATION_NAMES = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu", "swish", "tanh")  # the first is GPT-2's


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, with Hugging Face's field names. Defaults are GPT-2 small's."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # None: 4 * n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    labels: tuple[str, ...] = ()  # of a classifier: its classes, in the order of the head's rows; none: no such head
    multi_label: bool = False  # each label is true or false by itself

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_inner is not None and self.n_inner < 1:
            raise UserError(f"n_inner must be at least 1 or absent, got {self.n_inner}")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} must divide by n_head {self.n_head}")
        if self.activation_function not in ACTIVATION_NAMES:
            raise unknown("activation_function", self.activation_function, ACTIVATION_NAMES)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise UserError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise UserError(f"{name} {token} is outside the vocabulary of {self.vocab_size} tokens")
        object.__setattr__(self, "labels", tuple(self.labels))  # JSON has lists only
        for label in self.labels:
            if not isinstance(label, str) or not label or self.labels.count(label) > 1:
                raise UserError(f"labels must be different texts that are not empty, got {label!r}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def parameters(self) -> int:
        """The number of trainable parameters, by formula; a tied head is counted once."""
        C, I = self.n_embd, self.inner_size  # noqa: E741
        block = 2 * 2 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * I + I) + (I * C + C)
        head = 0 if self.tie_word_embeddings else self.vocab_size * C
        head += len(self.labels) * C
        return self.vocab_size * C + self.n_positions * C + self.n_layer * block + 2 * C + head


def gpt2_small() -> GPT2Config:
    """124,439,808 parameters: OpenAI's `gpt2`."""
    return GPT2Config()


def gpt2_medium() -> GPT2Config:
    """354,823,168 parameters."""
    return GPT2Config(n_embd=1024, n_layer=24, n_head=16)


def gpt2_large() -> GPT2Config:
    """774,030,080 parameters."""
    return GPT2Config(n_embd=1280, n_layer=36, n_head=20)


def gpt2_xl() -> GPT2Config:
    """1,557,611,200 parameters."""
    return GPT2Config(n_embd=1600, n_layer=48, n_head=25)
