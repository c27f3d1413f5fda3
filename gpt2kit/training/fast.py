"""Training's faster stand-ins for parts of the model: same mathematics, same parameter names, fewer passes over memory.

`accelerate` replaces the activation and the dropouts of a GPT2 in place; `plain` puts the originals back. Dropout here
is a pure function of (seed, step, layer, row of the global batch, column): nothing is stored for the backward pass,
no generator has a state to save, and slicing a batch over micro-batches or threads changes nothing.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt2kit.model.gpt2 import ACTIVATIONS, GPT2, MLP, Attention

PARALLEL_ELEMENTS = 1 << 16


class Place(threading.local):
    """Where this thread is in the run: it keys the dropout masks and picks the kernels' variant."""

    step: int = 0
    first_row: int = 0  # of this slice in the global batch
    rows: NDArray[np.uint32] | None = None  # a number for each row of a forward pass whose rows are not the batch's
    parallel: bool = True  # this thread may use all cores


PLACE = Place()


def _variant(x: Tensor) -> int:
    """0: the serial kernel, for workers and where waking the other cores costs more than it gives; 1: all cores."""
    return 1 if PLACE.parallel and x.numel() >= PARALLEL_ELEMENTS else 0


def _apply(function: Any, *arguments: Any) -> Tensor:
    """Call an autograd function; torch leaves `apply` untyped."""
    result: Tensor = function.apply(*arguments)
    return result


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from gpt2kit.training import kernels

        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        kernels.gelu[_variant(x)](x.detach().view(-1).numpy(), y.view(-1).numpy())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        from gpt2kit.training import kernels

        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        dy = gradients[0].contiguous().view(-1)
        kernels.gelu_backward[_variant(x)](x.detach().view(-1).numpy(), dy.numpy(), dx.view(-1).numpy())
        return dx


def gelu(x: Tensor) -> Tensor:
    """GPT-2's tanh GELU, fused; other dtypes and devices take torch's."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return _apply(_Gelu, x)
    return ACTIVATIONS["gelu_new"](x)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, keys: np.ndarray[Any, Any]) -> Tensor:
        ctx.p, ctx.keys, ctx.variant = p, keys, _variant(x)
        return _drop(x, p, keys, ctx.variant)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _drop(gradients[0], ctx.p, ctx.keys, ctx.variant), None, None


def _drop(x: Tensor, p: float, keys: np.ndarray[Any, Any], variant: int) -> Tensor:
    from gpt2kit.training import kernels

    flat = x.detach().float().contiguous().view(len(keys), -1).cpu()
    y = torch.empty_like(flat)
    threshold, scale = np.uint32(round(p * 2**32)), np.float32(1 / (1 - p))
    kernels.dropout[variant](flat.numpy(), y.numpy(), keys, threshold, scale)
    return y.view(x.shape).to(x.device, x.dtype)


class SeededDropout(nn.Module):
    """Dropout of [B, ...] whose mask is keyed by (seed, name, step, row of the global batch, column)."""

    def __init__(self, p: float, seed: int, name: str) -> None:
        super().__init__()
        self.p = p
        self.seed, self.name = seed, name

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        digest = hashlib.blake2b(f"{self.seed} {self.name} {PLACE.step}".encode(), digest_size=4).digest()
        rows = PLACE.rows
        if rows is None:
            rows = np.arange(PLACE.first_row, PLACE.first_row + len(x), dtype=np.uint32)
        keys = rows * np.uint32(0x9E3779B1) ^ np.uint32(int.from_bytes(digest, "little"))
        return _apply(_Dropout, x, self.p, keys)


class _OneDnnLinear(torch.autograd.Function):
    """y = x W^T + b in float32 through oneDNN; PyTorch takes MKL, slow on AMD (runtime.choose_precision)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape = x.shape
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].reshape(-1, len(weight))
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad  # a frozen weight, or nothing to train below
        dx = _onednn(dy, weight.t(), None).view(ctx.shape) if wants_x else None
        dw = _onednn(dy.t(), x.reshape(len(dy), -1).t(), None) if wants_weight else None
        return dx, dw, dy.sum(0) if wants_bias else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class OneDnnLinear(nn.Linear):
    """A Linear that shares another's parameters and computes through oneDNN."""

    @classmethod
    def of(cls, linear: nn.Linear) -> OneDnnLinear:
        new = cls.__new__(cls)
        new.__dict__.update(linear.__dict__)
        return new

    def forward(self, x: Tensor) -> Tensor:
        return _apply(_OneDnnLinear, x, self.weight, self.bias)


def accelerate(
    model: GPT2,
    seed: int,
    dropout: float | None = None,
    attention_dropout: float = 0.0,
    backend: str = "aten",
) -> None:
    """Put the fused activation, the seeded dropouts and the Linears' backend into `model`.

    `dropout` and `attention_dropout` override the config's rates; None leaves both as the config says.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, MLP) and module.act is ACTIVATIONS[model.config.activation_function]:
            if model.config.activation_function in ("gelu_new", "gelu_pytorch_tanh"):
                module.act = gelu
        elif isinstance(module, Attention) and dropout is not None:
            module.attn_pdrop = attention_dropout
        elif isinstance(module, nn.Dropout):
            _replace(model, name, SeededDropout(module.p if dropout is None else dropout, seed, name))
        elif type(module) is nn.Linear and name.startswith("h.") and backend == "onednn":
            _replace(model, name, OneDnnLinear.of(module))


def plain(model: GPT2) -> None:
    """Undo `accelerate`: the model file's own activation, dropouts and Linears, at the config's rates."""
    for name, module in list(model.named_modules()):
        if isinstance(module, MLP):
            module.act = ACTIVATIONS[model.config.activation_function]
        elif isinstance(module, Attention):
            module.attn_pdrop = model.config.attn_pdrop
        elif isinstance(module, OneDnnLinear):
            linear = nn.Linear.__new__(nn.Linear)
            linear.__dict__.update(module.__dict__)
            _replace(model, name, linear)
        elif isinstance(module, SeededDropout):
            rate = model.config.embd_pdrop if name == "drop" else model.config.resid_pdrop
            _replace(model, name, nn.Dropout(rate))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    module.train(model.training)
    setattr(model.get_submodule(parent), leaf, module)
