"""IA3: learned factors on what a Linear gives, or on what a feed-forward Linear takes (Liu et al. 2022).

On GPT-2 the paper's keys, values and inner activations are the outputs of c_attn (its queries, too, as in PEFT) and the
inputs of mlp.c_proj.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gpt2kit.model.config import GPT2Config
from gpt2kit.peft.method import Base, Delta, MethodConfig, Parts, check_pattern, matched, pattern_of, shortest


@dataclass(frozen=True, kw_only=True)
class Ia3Config(MethodConfig):
    """Factors on the Linears that `targets` matches; on the input of those that `feedforward` matches, too."""

    name: ClassVar[str] = "ia3"
    peft_type: ClassVar[str] = "IA3"
    leaves: ClassVar[Mapping[str, str]] = {"ia3_l": "ia3_l"}

    targets: str = r"c_attn|mlp\.c_proj"
    feedforward: str = r"mlp\.c_proj"  # empty: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.targets)
        if self.feedforward:
            check_pattern(self.feedforward, "feedforward")

    def check(self, config: GPT2Config) -> None:
        self._sides(config)

    def _sides(self, config: GPT2Config) -> dict[str, bool]:
        """Linear -> whether its input is scaled."""
        inputs = matched(config, self.feedforward, "feedforward") if self.feedforward else {}
        return {linear: linear in inputs for linear in matched(config, self.targets)}

    def count(self, config: GPT2Config) -> int:
        """out for each Linear, in for each feed-forward one."""
        shapes = matched(config, self.targets)
        return sum(shapes[linear][1 if inputs else 0] for linear, inputs in self._sides(config).items())

    def build(self, base: Base) -> Parts:
        return Parts({
            linear: Ia3Delta(base.linear(linear), inputs)
            for linear, inputs in self._sides(base.config).items()
        })  # fmt: skip

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        inputs = [linear for linear, inputs in self._sides(config).items() if inputs]
        return {
            "target_modules": shortest(config, modules),
            "feedforward_modules": shortest(config, inputs),
            "fan_in_fan_out": True,
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Which side is scaled is read from the tensors: [1, in] or [out, 1]."""
        sides: dict[str, set[bool]] = {}  # of `mlp.c_proj` over all layers
        inputs = set()
        for name, tensor in tensors.items():
            linear = name.removesuffix(".ia3_l")
            end = linear.split(".", 2)[-1]
            sides.setdefault(end, set()).add(tensor.shape[0] == 1)
            if tensor.shape[0] == 1:
                inputs.add(linear)
        names = {end if sides[end] == {True} else linear for linear in inputs for end in [linear.split(".", 2)[-1]]}
        return {"targets": pattern_of(modules), "feedforward": pattern_of(sorted(names))}


class Ia3Delta(Delta):
    """`ia3_l` [out, 1], or [1, in] where the input is scaled; ones at the start."""

    def __init__(self, base: Any, inputs: bool) -> None:
        super().__init__()
        weight: Tensor = base.weight
        out, n_in = weight.shape
        self.inputs = inputs
        self.ia3_l = nn.Parameter(weight.new_ones((1, n_in) if inputs else (out, 1)))

    def forward(self, base: Any, x: Tensor) -> Tensor:
        factors = self.ia3_l.flatten()
        y: Tensor = base(x * factors.to(x.dtype)) if self.inputs else base(x)
        return y if self.inputs else y * factors.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        factors = self.ia3_l.double()
        return weight * factors, bias if self.inputs else bias * factors[:, 0]
