"""A frozen base in int8, for adapters: each Linear of the blocks keeps one byte a weight and a scale a row.

The weight is made float again for each product and forgotten, forward and backward, so one layer's floats exist at a
time. As in QLoRA (Dettmers et al. 2023), with plain absmax rounding instead of 4 bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import threading
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.errors import UserError, unknown
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.runtime import BACKENDS

LEVELS = 127


class QuantisedLinear(nn.Module):
    """A frozen Linear: int8 `quantised` [out, in], float32 `scale` [out, 1], `bias` [out]. `backend` as in runtime."""

    quantised: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, backend: str = "aten") -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise unknown("linear backend", backend, BACKENDS)
        self.backend = backend
        self.original = weight_digest(linear.weight)  # names the base in an adapter's lineage
        quantised, scale = quantise(linear.weight)
        self.register_buffer("quantised", quantised)
        self.register_buffer("scale", scale)
        assert linear.bias is not None
        self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[out, in] in float32, made anew each time."""
        return self.quantised.float().mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        function: Any = _Int8Linear
        y: Tensor = function.apply(x, self.quantised, self.scale, self.bias, self.backend)
        return y


class _Int8Linear(torch.autograd.Function):
    """y = x W^T + b. The backward pass keeps the int8 weight only, and makes no gradient of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantised: Tensor, scale: Tensor, bias: Tensor, backend: str) -> Tensor:
        kind = x.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.save_for_backward(quantised, scale)
        ctx.backend, ctx.given = backend, x.dtype
        with torch.autocast(kind, enabled=False):
            y = torch.empty(*x.shape[:-1], len(quantised), dtype=low, device=x.device)  # no view: LoRA adds into it
            weight = SCRATCH.dequantised(quantised, scale, low)
            _product(x.to(low), weight, bias.to(low), backend, y.view(-1, len(quantised)))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None]:
        dy = gradients[0]
        dx = None
        if ctx.needs_input_grad[0]:
            quantised, scale = ctx.saved_tensors
            dx = dy.new_empty(*dy.shape[:-1], quantised.shape[1])
            weight = SCRATCH.dequantised(quantised, scale, dy.dtype)
            _product(dy, weight.t(), None, ctx.backend, dx.view(-1, quantised.shape[1]))
            dx = dx.to(ctx.given)
        return dx, None, None, dy.flatten(0, -2).sum(0).float() if ctx.needs_input_grad[3] else None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str, out: Tensor) -> None:
    """out [N, rows of the weight] = x [..., columns] weight^T + bias."""
    x = x.flatten(0, -2)
    if backend == "onednn" and x.dtype == torch.float32:
        out.copy_(torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


@torch.no_grad()
def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [out, in] -> int8 [out, in] and scale [out, 1]; the error is at most half a scale."""
    scale = weight.abs().amax(1, keepdim=True).float() / LEVELS
    scale[scale == 0] = 1.0
    return (weight / scale).round_().to(torch.int8), scale


class _Scratch(threading.local):
    """This thread's floats of one weight, used over and over: new ones each time left ever more holes in the heap."""

    bytes: Tensor | None = None

    def dequantised(self, quantised: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """[out, in], until the next call."""
        need = quantised.numel() * dtype.itemsize
        if self.bytes is None or len(self.bytes) < need or self.bytes.device != quantised.device:
            with torch.inference_mode(False):  # else it could not be written to in training
                self.bytes = torch.empty(need, dtype=torch.uint8, device=quantised.device)
        return self.bytes[:need].view(dtype).view(quantised.shape).copy_(quantised).mul_(scale)


SCRATCH = _Scratch()


def weight_digest(weight: Tensor) -> str:
    """SHA-256 of a parameter's float32 values in the checkpoint's order, as 64 hex digits."""
    values = weight.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return hashlib.sha256(values.data).hexdigest()


def quantise_base(model: GPT2, backend: str = "aten") -> int:
    """Put every Linear of the blocks into int8, in place; return how many. Each one's floats are freed in turn.

    Before `inject`: adapters are laid over what is there. Embeddings, layer norms and heads stay as they are.
    """
    if "adapters" in model.__dict__:
        raise UserError("the model already carries an adapter", hint="quantise the base first, then inject")
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name[:2] == "h."]
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, QuantisedLinear(getattr(owner, leaf), backend).train(owner.training))
    _give_back()
    return len(linears)


def _give_back() -> None:
    """Return the freed floats to the system: 340 MB of GPT-2 small, which glibc keeps for itself."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # another libc has none
            libc.malloc_trim(0)


def dequantise_base(model: GPT2) -> int:
    """Plain Linears again, of the int8 weights' values, so that the model can be saved; return how many there were."""
    found = [name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]
    for name in found:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, plain_linear(getattr(owner, leaf).weight, getattr(owner, leaf).bias).train(owner.training))
    return len(found)


def plain_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A frozen Linear around these tensors; no random number is drawn."""
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(1, 1)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
