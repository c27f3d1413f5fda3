"""Optimisers and learning-rate schedules.

Gradients arrive as sums over tokens; `update` divides by their number and clips in the same pass that the optimiser
makes over memory, so no extra copy of the gradients is read or written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.config import TrainConfig

NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al. 2024, "Muon": singular values to about 1 in five steps
STACKED = 6  # matrices in one batched product: GPT-2 small's 36 at once took 1 GB
CYCLES = 4  # of the cyclic schedule in one run


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices [n, rows, columns], nearly: every singular value in about [0.7, 1.2]."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        g = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(g, g, g, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: for the matrices inside the blocks. c_attn's three parts are separate matrices.

    Source: Jordan et al. 2024. Matrices of one shape go through one batched product.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.map: Callable[..., Iterable[Tensor]] = map  # a pool's, where there are workers
        self.parts = 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[tuple(parameter.shape)].append(parameter)
            for parameters in shapes.values():
                for a in range(0, len(parameters), STACKED):
                    self._change(parameters[a : a + STACKED], group)

    def _change(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Parameters of one shape."""
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            assert parameter.grad is not None
            momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            directions.append(parameter.grad.lerp(momentum, group["momentum"]))  # Nesterov
        rows, columns = parameters[0].shape
        parts = 3 if rows == 3 * columns else 1
        stack = torch.stack([part for direction in directions for part in direction.chunk(parts)])
        del directions
        changes = (change for stack in self.map(orthogonalise, stack.chunk(self.parts)) for change in stack)
        for weight, change in zip((part for p in parameters for part in p.chunk(parts)), changes, strict=True):
            scale = group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-scale)


def build(model: GPT2, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a run. Decay falls on matrices and embeddings, never on gains and biases."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if n.startswith("h.") and p.ndim == 2 and config.optimizer == "muon"]
    taken = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    lr, betas = config.learning_rate, (config.beta1, config.beta2)
    first: torch.optim.Optimizer
    match config.optimizer:
        case "adamw" | "muon":
            first = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
        case "adam":
            first = torch.optim.Adam(groups, lr=lr, betas=betas, fused=True)
        case "sgd":
            first = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)
        case "rmsprop":
            first = torch.optim.RMSprop(groups, lr=lr, momentum=config.momentum, foreach=True)
    optimizers: list[torch.optim.Optimizer] = [first]
    if inner:
        optimizers.append(Muon(inner, config.matrix_learning_rate, config.momentum, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def update(optimizers: list[torch.optim.Optimizer], rate: float, count: int, clip: float) -> float:
    """One step with learning rates `rate` x their peaks; returns the mean gradient's norm before clipping.

    A norm that is not finite is returned without a step: the caller stops the run.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) / count
    if not math.isfinite(norm):
        return norm
    factor = (min(1.0, clip / (norm + 1e-6)) if clip else 1.0) / count
    for optimizer in optimizers:
        own = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if optimizer.defaults.get("fused"):
            optimizer.grad_scale = torch.tensor(1.0 / factor)  # type: ignore[attr-defined]
        else:
            torch._foreach_mul_(own, factor)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
    return norm


def rate(config: TrainConfig, step: int, total: int, plateau: float = 1.0) -> float:
    """The learning rate of `step` in [0, total) as a fraction of the peak; `plateau` is that schedule's factor."""
    warmup = min(config.warmup, total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    end = config.final_rate
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - end) * progress
        case "cosine":
            return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
        case "exponential":
            return float(max(end, 1e-2) ** progress)
        case "wsd":  # warm-up, stable, decay over the last fifth
            return 1 - (1 - end) * max(0.0, (progress - 0.8) / 0.2)
        case "cyclic":
            return end + (1 - end) * abs(1 - 2 * (progress * (CYCLES - 0.5) % 1))
        case "plateau":
            return plateau


def state_tensors(model: GPT2, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every optimiser tensor under `<parameter name>/<state name>`."""
    tensors = {}
    names = {id(p): n for n, p in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{names[id(parameter)]}/{key}"] = value
    return tensors


def load_state_tensors(model: GPT2, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave; names and shapes were checked when the checkpoint was verified."""
    grouped: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        grouped[parameter][key] = value
    known = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if grouped and set(grouped) != set(known):  # before the first step there is no state
        raise UserError(f"the optimiser's state is of another model: {min(set(grouped) ^ set(known))}")
    for name, states in grouped.items():
        for key, value in states.items():
            if value.ndim and value.shape != known[name].shape:
                raise UserError(f"{name}/{key} has shape {list(value.shape)}, the parameter {list(known[name].shape)}")
    owner = {id(p): o for o in optimizers for g in o.param_groups for p in g["params"]}
    for weight_name, weight in known.items():
        state = {key: value.to(weight.device) for key, value in grouped[weight_name].items()}
        owner[id(weight)].state[weight] = state
