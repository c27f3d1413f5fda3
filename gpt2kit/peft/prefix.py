"""Prefix tuning: learned keys and values before every row, in every layer (Li and Liang 2021).

The model reads them as it reads its cache of earlier tokens. With `projection` they come out of a small network, which
trains more steadily and is not needed afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.peft.front import Front, Hidden, KeysValues
from gpt2kit.peft.method import Base, MethodConfig, Parts, within

START_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(MethodConfig):
    """`tokens` virtual tokens, each with a key and a value in every layer."""

    name: ClassVar[str] = "prefix"
    peft_type: ClassVar[str] = "PREFIX_TUNING"
    mergeable: ClassVar[bool] = False

    tokens: int = 20
    projection: bool = False  # make them from C numbers each, by a network with a tanh
    width: int = 0  # of that network; 0: C

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "tokens", 1, 2**20)
        within(self, "width", 0, 2**20)
        if self.width and not self.projection:
            raise UserError("width is that of the projection", hint="set projection, too")

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def check(self, config: GPT2Config) -> None:
        check_places(self.tokens, config)

    def count(self, config: GPT2Config) -> int:
        """2 P L C; with the projection P C + C W + W + W 2 L C + 2 L C, where W is the width."""
        C, out = config.n_embd, 2 * config.n_layer * config.n_embd
        W = self.width or C
        return self.tokens * C + C * W + W + W * out + out if self.projection else self.tokens * out

    def build(self, base: Base) -> Parts:
        return Parts(front=PrefixFront(base.config, self).to(base.parameter("wte.weight").device))

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        width = (self.width or config.n_embd) if self.projection else config.n_embd
        return front_fields(config, self.tokens) | {
            "prefix_projection": self.projection,
            "encoder_hidden_size": width,
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """PEFT's file holds what the projection made, not the projection."""
        return {"tokens": values["num_virtual_tokens"]}


class PrefixFront(Front):
    """`embedding` [P, 2 L C], key and value of each layer in turn; with a projection [P, C] and `transform`."""

    def __init__(self, config: GPT2Config, method: PrefixConfig) -> None:
        super().__init__(config, method.tokens)
        C, out = config.n_embd, 2 * config.n_layer * config.n_embd
        W = method.width or C
        self.embedding = nn.Embedding(method.tokens, C if method.projection else out)
        self.transform: nn.Module = nn.Identity()
        if method.projection:
            self.transform = nn.Sequential(nn.Linear(C, W), nn.Tanh(), nn.Linear(W, out))
        else:
            nn.init.normal_(self.embedding.weight, std=START_STD)

    def prompt(self) -> Tensor:
        made: Tensor = self.transform(self.embedding.weight)
        return made

    def fix(self, prompt: Tensor) -> None:
        self.transform = nn.Identity()
        self.embedding = nn.Embedding(len(prompt), prompt.shape[1], _weight=prompt.clone())

    def keys_values(self, hidden: Hidden) -> KeysValues:
        config = self.config
        split = self.prompt().view(self.length, 2 * config.n_layer, config.n_head, config.head_size)
        layers = split.permute(1, 2, 0, 3)[:, None].unbind()  # 2L of 1 H P D
        return list(layers[::2]), list(layers[1::2])


def check_places(tokens: int, config: GPT2Config) -> None:
    if tokens >= config.n_positions:
        raise UserError(
            f"{tokens} virtual tokens leave no room: the model has {config.n_positions} positions",
            hint="use fewer; 10 to 100 are common",
        )


def front_fields(config: GPT2Config, tokens: int) -> dict[str, Any]:
    """The fields of adapter_config.json that prefix, prompt and P-tuning share."""
    return {
        "num_virtual_tokens": tokens,
        "token_dim": config.n_embd,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.n_head,
        "num_layers": config.n_layer,
    }
