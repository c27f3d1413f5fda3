"""AdaLoRA: LoRA as a singular value decomposition, its ranks given to the Linears that need them (Zhang et al. 2023).

W x becomes W x + s B diag(E) A x with s = alpha / (first rank). Every Linear starts with `rank` triplets: a row of A,
an entry of E, a column of B. While training, the least important triplets of all Linears lose their E, until
`target_rank` a Linear are left on average. Importance is |weight x gradient|, smoothed, times its own uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.peft.lora import with_low_rank
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

START_STD = 0.02  # of A and B
TENSORS = ("lora_A", "lora_B", "lora_E")


@dataclass(frozen=True, kw_only=True)
class AdaLoraConfig(MethodConfig):
    """AdaLoRA on the Linears that `targets` matches. `start` and `settle` are shares of all steps."""

    name: ClassVar[str] = "adalora"
    peft_type: ClassVar[str] = "ADALORA"
    leaves: ClassVar[Mapping[str, str]] = {name: name for name in TENSORS}

    rank: int = 12  # of every Linear at the start
    target_rank: int = 8  # on average at the end
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = "c_attn"
    start: float = 0.1  # before the first triplet is taken
    settle: float = 0.3  # at the end, with ranks that no longer change
    every: int = 10  # steps from one allocation to the next
    beta_sensitivity: float = 0.85
    beta_uncertainty: float = 0.85
    orthogonality: float = 0.5  # weight of |A A^T - I| + |B^T B - I| in the loss, averaged over the matrices

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "rank", 1, 2**20)
        within(self, "target_rank", 1, self.rank)
        within(self, "alpha", 0, 1e6, above=True)
        within(self, "every", 1, 2**53)
        within(self, "orthogonality", 0, 1e6)
        for share in ("dropout", "start", "settle", "beta_sensitivity", "beta_uncertainty"):
            within(self, share, 0, 1, below=True)
        if self.start + self.settle >= 1:
            raise UserError(
                f"start {self.start} and settle {self.settle} leave no steps in which ranks change",
                hint="their sum must be below 1",
            )
        check_pattern(self.targets)

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank + 1e-5)  # PEFT's form

    def check(self, config: GPT2Config) -> None:
        for linear, shape in matched(config, self.targets).items():
            if self.rank > min(shape):
                raise UserError(f"rank {self.rank} exceeds {linear}, which is {shape[0]} x {shape[1]}")

    def count(self, config: GPT2Config) -> int:
        """rank (in + out + 1) for each Linear, as at the start."""
        return sum(self.rank * (n_in + n_out + 1) for n_out, n_in in matched(config, self.targets).values())

    def build(self, base: Base) -> Parts:
        return Parts({
            linear: AdaLoraDelta(base.linear(linear), self, linear)
            for linear in matched(base.config, self.targets)
        })  # fmt: skip

    def budget(self, linears: int, step: int, total: int) -> int:
        """Triplets that may live after `step` of `total`, over so many Linears: a cubic from first to last."""
        first, last = self.rank * linears, self.target_rank * linears
        begin, end = self.start * total, total - self.settle * total
        if step <= begin:
            return first
        if step >= end:
            return last
        return int((first - last) * (1 - (step - begin) / (end - begin)) ** 3 + last)

    @torch.no_grad()
    def after_step(self, parts: Parts, step: int, total: int) -> None:
        """Update importance, and every so often the ranks; in the last part hold the ranks as they are."""
        deltas = list(_deltas(parts).values())
        end = total - self.settle * total
        if step - 1 < end:
            for delta in deltas:
                delta.observe(self.beta_sensitivity, self.beta_uncertainty)
            if step >= end or (step > self.start * total and step % self.every == 0):
                _allocate(deltas, self.budget(len(deltas), step, total))
        else:
            for delta in deltas:
                delta.lora_E.mul_(delta.alive[:, None])

    def penalty(self, parts: Parts) -> Tensor | None:
        if self.orthogonality == 0:
            return None
        distances = []
        for delta in _deltas(parts).values():
            for square in (delta.lora_A @ delta.lora_A.t(), delta.lora_B.t() @ delta.lora_B):
                distances.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
        return self.orthogonality * torch.stack(distances).mean()

    def pack(self, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Without the triplets that the budget took, as PEFT writes it; `rank_pattern` says which they were."""
        own, fields = super().pack(parts)
        masks = {module: delta.alive.bool() for module, delta in _deltas(parts).items()}
        if all(bool(mask.all()) for mask in masks.values()):
            return own, fields
        pattern = {f"transformer.{module}.lora_E": mask.tolist() for module, mask in masks.items()}
        for name, tensor in own.items():
            module, _, leaf = name.rpartition(".")
            own[name] = (tensor[:, masks[module]] if leaf == "lora_B" else tensor[masks[module]]).contiguous()
        return own, {"rank_pattern": pattern}

    def unpack(self, parts: Parts, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Triplets that were taken come back as zeros and stay taken."""
        pattern = _pattern(values.get("rank_pattern") or {})
        whole = dict(tensors)
        for module, delta in _deltas(parts).items():
            mask = torch.tensor(pattern.get(f"transformer.{module}", [True] * self.rank), dtype=torch.bool)
            if mask.shape != (self.rank,):
                raise UserError(f"rank_pattern has {mask.numel()} entries for {module}, the first rank is {self.rank}")
            delta.alive.copy_(mask)
            for leaf in TENSORS:
                name, rows = f"{module}.{leaf}", leaf != "lora_B"
                if name in whole:
                    whole[name] = _expanded(whole[name], mask, rows)
        self.fill_deltas(parts, whole)
        for delta in _deltas(parts).values():
            with torch.no_grad():
                delta.lora_E.mul_(delta.alive[:, None])

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        """PEFT counts the phases in steps; it needs them to train, not to answer: they stand for 1,000 steps."""
        return {
            "init_r": self.rank,
            "target_r": self.target_rank,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.dropout,
            "tinit": round(self.start * 1000),
            "tfinal": round(self.settle * 1000),
            "deltaT": self.every,
            "total_step": 1000,
            "beta1": self.beta_sensitivity,
            "beta2": self.beta_uncertainty,
            "orth_reg_weight": self.orthogonality,
            "bias": "none",
            "fan_in_fan_out": True,
            "init_lora_weights": True,
            "target_modules": shortest(config, modules),
        }

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        total = max(1, values.get("total_step") or 1)
        start, settle = (min(1.0, (values.get(key) or 0) / total) for key in ("tinit", "tfinal"))
        return {
            "rank": values.get("init_r", 12),
            "target_rank": min(values.get("target_r", 8), values.get("init_r", 12)),
            "alpha": float(values.get("lora_alpha", 8)),
            "dropout": float(values.get("lora_dropout", 0.0)),
            "start": start if start + settle < 1 else 0.1,
            "settle": settle if start + settle < 1 else 0.3,
            "every": max(1, values.get("deltaT", 1)),
            "beta_sensitivity": float(values.get("beta1", 0.85)),
            "beta_uncertainty": float(values.get("beta2", 0.85)),
            "orthogonality": float(values.get("orth_reg_weight", 0.5)),
            "targets": pattern_of(modules),
        }


class AdaLoraDelta(Delta):
    """A [r, in], E [r, 1], B [out, r]; `alive` [r] marks the triplets that the budget leaves.

    Buffers hold the smoothed sensitivity and uncertainty of every weight: the state that a resumed run needs.
    """

    alive: Tensor

    def __init__(self, base: Any, config: AdaLoraConfig, linear: str) -> None:
        super().__init__()
        weight: Tensor = base.weight
        out, n_in = weight.shape
        self.scale = config.scale
        self.lora_A = new_parameter(config.rank, n_in, like=weight)
        self.lora_B = new_parameter(out, config.rank, like=weight)
        self.lora_E = new_parameter(config.rank, 1, like=weight)
        nn.init.normal_(self.lora_A, std=START_STD)
        nn.init.normal_(self.lora_B, std=START_STD)
        for name in TENSORS:
            for what in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{what}_{name[-1]}", torch.zeros_like(getattr(self, name)))
        self.register_buffer("alive", torch.ones(config.rank, device=weight.device))
        self.drop = AdapterDropout(config.dropout, config.seed, f"adalora {linear}")

    def forward(self, base: Any, x: Tensor) -> Tensor:
        dropped = self.drop(x, self.training)
        return with_low_rank(base, x, dropped, self.lora_A * self.lora_E, self.lora_B, self.scale)

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        right = self.lora_A.double() * self.lora_E.double()
        return weight + self.scale * (self.lora_B.double() @ right), bias

    def observe(self, beta_sensitivity: float, beta_uncertainty: float) -> None:
        """Smooth |weight x gradient|, and how far this step's lies from it."""
        for name in TENSORS:
            parameter: nn.Parameter = getattr(self, name)
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs()
            sensitivity: Tensor = getattr(self, f"sensitivity_{name[-1]}")
            uncertainty: Tensor = getattr(self, f"uncertainty_{name[-1]}")
            sensitivity.lerp_(now, 1 - beta_sensitivity)
            uncertainty.lerp_((now - sensitivity).abs(), 1 - beta_uncertainty)

    def importance(self) -> Tensor:
        """Of each triplet, [r]: its E's, and the means of its row's and its column's."""
        score = {name: getattr(self, f"sensitivity_{name}") * getattr(self, f"uncertainty_{name}") for name in "ABE"}
        total: Tensor = score["E"][:, 0] + score["A"].mean(1) + score["B"].mean(0)
        return total


def _deltas(parts: Parts) -> dict[str, AdaLoraDelta]:
    return {module: delta for module, delta in parts.deltas.items() if isinstance(delta, AdaLoraDelta)}


def _pattern(values: object) -> dict[str, list[bool]]:
    """PEFT's rank_pattern by module; its keys end in `.lora_E` or `.lora_E.default`."""
    if not isinstance(values, dict) or not all(
        isinstance(mask, list) and all(isinstance(entry, bool) for entry in mask) for mask in values.values()
    ):
        raise UserError("rank_pattern must list true and false for each module")
    return {name.partition(".lora_E")[0]: mask for name, mask in values.items()}


def _expanded(kept: Tensor, mask: Tensor, rows: bool) -> Tensor:
    """Rows or columns back in their places, zeros in the others; what is already whole stays."""
    if kept.shape[0 if rows else 1] != int(mask.sum()):
        return kept
    whole = kept.new_zeros((len(mask), kept.shape[1]) if rows else (kept.shape[0], len(mask)))
    whole[(mask,) if rows else (slice(None), mask)] = kept
    return whole


def _allocate(deltas: list[AdaLoraDelta], budget: int) -> None:
    """Keep the `budget` most important triplets, the earlier one of equals; the others' E becomes zero."""
    scores = torch.cat([delta.importance() for delta in deltas])
    alive = torch.zeros_like(scores)
    alive[torch.sort(scores, descending=True, stable=True).indices[:budget]] = 1
    masks = torch.split(alive, [len(delta.alive) for delta in deltas])
    for delta, mask in zip(deltas, masks, strict=True):
        delta.alive.copy_(mask)
        delta.lora_E.mul_(mask[:, None])
