"""The last blocks alone are trained, with ln_f. Nothing below them keeps anything for a backward pass.

PEFT does not know this method: the folder has its layout, but peft cannot read it. Merged, it is a plain GPT-2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.headers import stored_shapes
from gpt2kit.peft.method import MethodConfig, within


@dataclass(frozen=True, kw_only=True)
class LastConfig(MethodConfig):
    """The last `layers` blocks, 4 C^2 + 2 C I + 9 C + I each; with `ln_f` the final layer norm, 2 C."""

    name: ClassVar[str] = "last"
    peft_type: ClassVar[str] = "GPT2KIT_LAST"
    known_to_peft: ClassVar[bool] = False

    layers: int = 1
    ln_f: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "layers", 0, 2**20)

    def check(self, config: GPT2Config) -> None:
        if self.layers > config.n_layer:
            raise UserError(f"layers is {self.layers}, the model has {config.n_layer}")

    def replaces(self, config: GPT2Config) -> list[str]:
        first = config.n_layer - self.layers
        starts = tuple(f"h.{i}." for i in range(first, config.n_layer)) + ("ln_f.",) * self.ln_f
        return [name for name in stored_shapes(config) if name.startswith(starts)]

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        return {"layers": self.layers, "ln_f": self.ln_f}

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"layers": values["layers"], "ln_f": values["ln_f"]}
