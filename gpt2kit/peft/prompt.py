"""Prompt tuning and P-tuning: learned embeddings before every row.

Prompt tuning learns them directly (Lester et al. 2021), P-tuning through a small network, an MLP or an LSTM, which is
not needed afterwards (Liu et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import KVCache
from gpt2kit.peft.front import Front, Hidden, KeysValues
from gpt2kit.peft.method import Base, MethodConfig, Parts, one_of, within
from gpt2kit.peft.prefix import check_places, front_fields

ENCODERS = ("mlp", "lstm")


@dataclass(frozen=True, kw_only=True)
class PromptConfig(MethodConfig):
    """`tokens` virtual tokens. They start as the embeddings of `start`, ids repeated as needed, or of random tokens."""

    name: ClassVar[str] = "prompt"
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    mergeable: ClassVar[bool] = False

    tokens: int = 20
    start: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "start", tuple(self.start))
        within(self, "tokens", 1, 2**20)
        if any(type(token) is not int or token < 0 for token in self.start):
            raise UserError(f"start must be token ids, got {self.start!r}")

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def check(self, config: GPT2Config) -> None:
        check_places(self.tokens, config)
        if max(self.start, default=0) >= config.vocab_size:
            raise UserError(f"start has the id {max(self.start)}, the vocabulary {config.vocab_size} tokens")

    def count(self, config: GPT2Config) -> int:
        """P C."""
        return self.tokens * config.n_embd

    def build(self, base: Base) -> Parts:
        ids = torch.randint(base.config.vocab_size, (self.tokens,))
        if self.start:
            ids = torch.tensor((self.start * self.tokens)[: self.tokens])
        weight = base.parameter("wte.weight").detach()
        return Parts(front=PromptFront(base.config, weight[ids.to(weight.device)].clone()))

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        return front_fields(config, self.tokens) | {"prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"tokens": values["num_virtual_tokens"]}


@dataclass(frozen=True, kw_only=True)
class PTuningConfig(MethodConfig):
    """`tokens` virtual tokens out of an encoder: PEFT's MLP of three layers, or its LSTM with two layers behind."""

    name: ClassVar[str] = "p-tuning"
    peft_type: ClassVar[str] = "P_TUNING"
    mergeable: ClassVar[bool] = False

    tokens: int = 20
    encoder: str = "mlp"
    width: int = 0  # of the encoder; 0: C
    layers: int = 2  # of the LSTM

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "tokens", 1, 2**20)
        within(self, "width", 0, 2**20)
        within(self, "layers", 1, 64)
        one_of(self, "encoder", ENCODERS)

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def check(self, config: GPT2Config) -> None:
        check_places(self.tokens, config)

    def count(self, config: GPT2Config) -> int:
        """P C and the encoder: MLP C W + W + W W + W + W C + C; LSTM as torch's, then 2W 2W + 2W + 2W C + C."""
        C, W = config.n_embd, self.width or config.n_embd
        if self.encoder == "mlp":
            return self.tokens * C + C * W + W + W * W + W + W * C + C
        first, others = 4 * W * (C + W + 2), 4 * W * (2 * W + W + 2)
        lstm = 2 * (first + (self.layers - 1) * others)
        return self.tokens * C + lstm + 4 * W * W + 2 * W + 2 * W * C + C

    def build(self, base: Base) -> Parts:
        C = base.config.n_embd
        embedding = torch.randn(self.tokens, C)
        encoder = Encoder(self.encoder, C, self.width or C, self.layers)
        return Parts(front=PromptFront(base.config, embedding, encoder).to(base.parameter("wte.weight").device))

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        return front_fields(config, self.tokens) | {
            "encoder_reparameterization_type": self.encoder.upper(),
            "encoder_hidden_size": self.width or config.n_embd,
            "encoder_num_layers": self.layers,
            "encoder_dropout": 0.0,
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """PEFT's file holds what the encoder made, not the encoder."""
        return {"tokens": values["num_virtual_tokens"]}


class Encoder(nn.Module):
    """[P, C] -> [P, C]."""

    def __init__(self, kind: str, C: int, W: int, layers: int) -> None:
        super().__init__()
        self.lstm_head: nn.LSTM | None = None
        if kind == "mlp":
            self.mlp_head = nn.Sequential(nn.Linear(C, W), nn.ReLU(), nn.Linear(W, W), nn.ReLU(), nn.Linear(W, C))
        else:
            self.lstm_head = nn.LSTM(C, W, layers, bidirectional=True, batch_first=True)
            self.mlp_head = nn.Sequential(nn.Linear(2 * W, 2 * W), nn.ReLU(), nn.Linear(2 * W, C))

    def forward(self, x: Tensor) -> Tensor:
        if self.lstm_head is not None:
            x = self.lstm_head(x[None])[0][0]
        out: Tensor = self.mlp_head(x)
        return out


class PromptFront(Front):
    """`embedding` [P, C], and the encoder that it passes through, if any."""

    def __init__(self, config: GPT2Config, embedding: Tensor, encoder: Encoder | None = None) -> None:
        super().__init__(config, len(embedding))
        self.embedding = nn.Parameter(embedding)
        self.encoder: nn.Module = nn.Identity() if encoder is None else encoder

    def prompt(self) -> Tensor:
        made: Tensor = self.encoder(self.embedding)
        return made

    def fix(self, prompt: Tensor) -> None:
        self.encoder = nn.Identity()
        self.embedding = nn.Parameter(prompt.clone())

    def keys_values(self, hidden: Hidden) -> KeysValues:
        """The virtual tokens run through the model once; later tokens do not change what it makes of them."""
        prompt = self.prompt()
        cache = KVCache(self.config, 1, self.length, prompt.dtype, prompt.device)
        hidden(embeds=prompt[None], cache=cache)
        return cache.keys, cache.values

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
        if cache is not None:
            return super().hidden(hidden, embed, tokens, embeds, cache, positions, causal)
        self.check_room(tokens if embeds is None else embeds, cache, positions)
        x = embed(tokens) if embeds is None and tokens is not None else embeds
        assert x is not None
        prompt = self.prompt().to(x.dtype).expand(len(x), -1, -1)  # B P C
        if positions is not None:
            front = torch.arange(self.length, device=positions.device).expand(len(x), -1)
            shifted = self.shifted(positions)
            assert shifted is not None
            positions = torch.cat([front, shifted], 1)
        return hidden(embeds=torch.cat([prompt, x], 1), positions=positions, causal=causal)[:, self.length :]
