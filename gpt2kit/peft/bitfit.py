"""BitFit: the biases of the blocks and of ln_f are trained, nothing else (Ben Zaken et al. 2021).

PEFT does not know this method: the folder has its layout, but peft cannot read it. Merged, it is a plain GPT-2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gpt2kit.model.config import GPT2Config
from gpt2kit.model.headers import stored_shapes
from gpt2kit.peft.method import MethodConfig


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(MethodConfig):
    """Every bias of the Linears, L (5 C + I); with `layer_norms` those of ln_1, ln_2 and ln_f, 2 L C + C more."""

    name: ClassVar[str] = "bitfit"
    peft_type: ClassVar[str] = "GPT2KIT_BITFIT"
    known_to_peft: ClassVar[bool] = False

    layer_norms: bool = True

    def replaces(self, config: GPT2Config) -> list[str]:
        biases = [name for name in stored_shapes(config) if name.endswith(".bias")]
        return [name for name in biases if self.layer_norms or "ln_" not in name]

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        return {"layer_norms": self.layer_norms}

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"layer_norms": values["layer_norms"]}
