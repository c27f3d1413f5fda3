"""LoRA, its rank-stabilised scale, and DoRA.

W x becomes W x + s B A x with A [r, in], B [out, r] and s = alpha / r (Hu et al. 2021), or alpha / sqrt(r)
(Kalajdzievski 2023). DoRA gives each row of W + s B A a learned length m (Liu et al. 2024). B starts at zero, so a new
adapter changes nothing, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.peft.method import (
    AdapterDropout,
    Base,
    Delta,
    MethodConfig,
    Parts,
    check_pattern,
    matched,
    new_parameter,
    pattern_of,
    shortest,
    within,
)

INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva", None)  # PEFT's others change the base's weights, too


@dataclass(frozen=True, kw_only=True)
class LoraConfig(MethodConfig):
    """LoRA on the Linears that `targets` matches."""

    name: ClassVar[str] = "lora"
    peft_type: ClassVar[str] = "LORA"
    leaves: ClassVar[Mapping[str, str]] = {
        "lora_A": "lora_A.weight",
        "lora_B": "lora_B.weight",
        "lora_magnitude_vector": "lora_magnitude_vector",
    }

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # of the adapter's input; DoRA's product with W sees it without
    targets: str = "c_attn"  # a regular expression; `c_attn`, `attn.c_proj`, `.*` are enough for most
    rslora: bool = False  # scale by alpha / sqrt(rank) instead of alpha / rank
    dora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "rank", 1, 2**20)
        within(self, "alpha", 0, 1e6, above=True)
        within(self, "dropout", 0, 1, below=True)
        check_pattern(self.targets)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def check(self, config: GPT2Config) -> None:
        for linear, shape in matched(config, self.targets).items():
            if self.rank > min(shape):
                raise UserError(f"rank {self.rank} exceeds {linear}, which is {shape[0]} x {shape[1]}")

    def count(self, config: GPT2Config) -> int:
        """r (in + out) for each Linear, and out more with DoRA."""
        shapes = matched(config, self.targets).values()
        return sum(self.rank * (n_in + n_out) + n_out * self.dora for n_out, n_in in shapes)

    def build(self, base: Base) -> Parts:
        kind = DoraDelta if self.dora else LoraDelta
        return Parts({
            linear: kind(base.linear(linear), self, linear) for linear in matched(base.config, self.targets)
        })  # fmt: skip

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        alpha = int(self.alpha) if self.alpha == int(self.alpha) else self.alpha
        return {
            "r": self.rank,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "bias": "none",
            "fan_in_fan_out": True,
            "init_lora_weights": True,
            "target_modules": shortest(config, modules),
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        if values.get("init_lora_weights") not in INITIALISATIONS:
            raise UserError(
                f"init_lora_weights is {values['init_lora_weights']!r}: such an adapter belongs to changed weights",
                hint="convert it with peft (save_pretrained with path_initial_model_for_weight_conversion)",
            )
        return {
            "rank": values.get("r", 8),
            "alpha": float(values.get("lora_alpha", 8)),
            "dropout": float(values.get("lora_dropout", 0.0)),
            "rslora": values.get("use_rslora", False),
            "dora": values.get("use_dora", False),
            "targets": pattern_of(modules),
        }


class LoraDelta(Delta):
    def __init__(self, base: Any, config: LoraConfig, linear: str) -> None:
        super().__init__()
        weight: Tensor = base.weight
        out, n_in = weight.shape
        self.scale = config.scale
        self.lora_A = new_parameter(config.rank, n_in, like=weight)
        self.lora_B = new_parameter(out, config.rank, like=weight)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.drop = AdapterDropout(config.dropout, config.seed, f"lora {linear}")

    def forward(self, base: Any, x: Tensor) -> Tensor:
        return with_low_rank(base, x, self.drop(x, self.training), self.lora_A, self.lora_B, self.scale)

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight + self.scale * (self.lora_B.double() @ self.lora_A.double()), bias


def with_low_rank(base: Any, x: Tensor, dropped: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """base(x) + scale * dropped A^T B^T, [..., out]; base(x) itself where B is zero.

    The sum goes into the base's answer. That is flat, for into a view autograd would write by way of copies; a sum of
    its own would take 78 MB with 4 x 256 tokens of GPT-2 small.
    """
    y: Tensor = base(x.flatten(0, -2))  # N out
    h = F.linear(dropped.flatten(0, -2), a).to(y.dtype)  # N r
    y.addmm_(h, b.t().to(y.dtype), alpha=scale)
    return y.view(*x.shape[:-1], len(b))


class DoraDelta(LoraDelta):
    """`lora_magnitude_vector` [out] is m. The norm of W + s B A is a constant to the gradient (the paper's 4.3)."""

    squares: Tensor

    def __init__(self, base: Any, config: LoraConfig, linear: str) -> None:
        super().__init__(base, config, linear)
        weight: Tensor = base.weight
        squares = weight.detach().double().square().sum(1).float()  # out
        self.register_buffer("squares", squares, persistent=False)
        self.lora_magnitude_vector = nn.Parameter(squares.sqrt())

    def forward(self, base: Any, x: Tensor) -> Tensor:
        y = super().forward(base, x)
        ratio = self.lora_magnitude_vector / self.norm(base)  # out; 1 at the start, exactly
        change: Tensor = (ratio - 1) * (y - base.bias)
        return y + change.to(y.dtype)

    @torch.no_grad()
    def norm(self, base: Any) -> Tensor:
        """Row norms of W + s B A, [out], from products of rank r: |W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            a, b, s = self.lora_A, self.lora_B, self.scale
            weight: Tensor = base.weight
            cross = F.linear(weight, a)  # out r
            return (self.squares + (b * (2 * s * cross + s * s * (b @ (a @ a.t())))).sum(1)).clamp(min=0).sqrt()

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        moved, bias = super().merged(weight, bias)
        length = self.lora_magnitude_vector.double() / moved.norm(dim=1)
        return moved * length[:, None], bias
