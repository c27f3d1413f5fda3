"""Bottleneck adapters: y + up(act(down(y))) behind a sublayer's output projection, before the residual sum.

Behind attention and MLP (Houlsby et al. 2019), or behind the MLP alone (Pfeiffer et al. 2021). The block's dropout
comes after the adapter. `up` starts at zero, so a new adapter changes nothing. PEFT does not know this method: the
folder has its layout, but peft cannot read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import ACTIVATIONS
from gpt2kit.peft.method import Base, Delta, MethodConfig, Parts, matched, new_parameter, one_of, shortest, within

PLACES = {"houlsby": "c_proj", "pfeiffer": "mlp.c_proj"}
START_STD = 0.02  # of `down`


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(MethodConfig):
    """Adapters of `width` hidden units."""

    name: ClassVar[str] = "bottleneck"
    peft_type: ClassVar[str] = "GPT2KIT_BOTTLENECK"
    known_to_peft: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    leaves: ClassVar[Mapping[str, str]] = {
        f"{side}_{what}": f"bottleneck_{side}.{what}" for side in ("down", "up") for what in ("weight", "bias")
    }

    width: int = 32
    places: str = "pfeiffer"
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "width", 1, 2**20)
        one_of(self, "places", PLACES)
        one_of(self, "activation", ACTIVATIONS)

    def count(self, config: GPT2Config) -> int:
        """2 C W + W + C at each place."""
        C = config.n_embd
        return len(matched(config, PLACES[self.places])) * (2 * C * self.width + self.width + C)

    def build(self, base: Base) -> Parts:
        return Parts({
            linear: BottleneckDelta(base.linear(linear), self)
            for linear in matched(base.config, PLACES[self.places])
        })  # fmt: skip

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        return {
            "width": self.width,
            "places": self.places,
            "activation": self.activation,
            "target_modules": shortest(config, modules),
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {key: values[key] for key in ("width", "places", "activation")}


class BottleneckDelta(Delta):
    """`down_weight` [W, C], `down_bias` [W], `up_weight` [C, W], `up_bias` [C]."""

    def __init__(self, base: Any, config: BottleneckConfig) -> None:
        super().__init__()
        weight: Tensor = base.weight
        C, W = len(weight), config.width
        self.act = ACTIVATIONS[config.activation]
        self.down_weight, self.down_bias = new_parameter(W, C, like=weight), new_parameter(W, like=weight)
        self.up_weight, self.up_bias = new_parameter(C, W, like=weight), new_parameter(C, like=weight)
        nn.init.normal_(self.down_weight, std=START_STD)

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y: Tensor = base(x)
        return y + F.linear(self.act(F.linear(y, self.down_weight, self.down_bias)), self.up_weight, self.up_bias)
