"""Objectives: each is loss(model, batch) -> (sum over the counted tokens in nats, their number).

The loop divides once, by the number in the whole accumulated and distributed batch.

Shapes: B batch, T time, N = B * T, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.fast import PARALLEL_ELEMENTS, PLACE

IGNORED = -100  # a target that is not counted
LOGITS_BYTES = 96 << 20  # of float32 logits at a time: GPT-2 small's 2,048 x 50,257 would take 412 MB
Loss = Callable[[GPT2, Tensor], tuple[Tensor, int]]


def next_token(model: GPT2, batch: Tensor, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Next-token prediction: batch [B, T+1] of ids; the targets are the inputs shifted by one."""
    return cross_entropy(model, model.hidden(batch[:, :-1]), batch[:, 1:], smoothing)


def masked(model: GPT2, inputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Masked language modelling (BERT's 80/10/10 corruption), the causal mask lifted.

    `inputs` [B, T]: the corrupted ids; `targets` [B, T]: the true ones, IGNORED where nothing was masked.
    """
    return cross_entropy(model, model.hidden(inputs, causal=False), targets, smoothing)


def cross_entropy(model: GPT2, hidden: Tensor, targets: Tensor, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Sum of -log p(target) over targets that are not IGNORED: hidden [B, T, C], targets [B, T]."""
    flat = targets.reshape(-1)
    count = int((flat != IGNORED).sum())
    function: Any = _ChunkedCrossEntropy
    return function.apply(hidden.reshape(len(flat), -1), model.head, flat, smoothing, torch.is_grad_enabled()), count


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The head's product and its cross-entropy in chunks of rows; the gradients are made in the same pass.

    One chunk of logits exists at a time, and it becomes its own gradient in place.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, smoothing: float, enabled: bool) -> Tensor:
        V = len(head)
        rows = max(1, LOGITS_BYTES // (4 * V))
        wants_hidden, wants_head = (enabled and needed for needed in ctx.needs_input_grad[:2])
        wanted = wants_hidden or wants_head
        low = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.detach() if low is None else head.detach().to(low)  # V C
            x = hidden.detach().to(weight.dtype)  # N C
            d_hidden = torch.empty_like(x) if wants_hidden else None
            d_head: Tensor | None = None
            total = torch.zeros((), dtype=torch.float64, device=hidden.device)
            for start in range(0, len(x), rows):
                part = x[start : start + rows]
                logits = F.linear(part, weight).float()  # rows V
                total += _rows(logits, targets[start : start + rows], smoothing, wanted).sum(dtype=torch.float64)
                if wanted:
                    logits = logits.to(weight.dtype)
                if d_hidden is not None:
                    torch.mm(logits, weight, out=d_hidden[start : start + rows])
                if wants_head:
                    if d_head is None:
                        d_head = torch.mm(logits.t(), part).float()
                    elif low is None:
                        d_head.addmm_(logits.t(), part)
                    else:
                        d_head += torch.mm(logits.t(), part)
                del logits  # else two chunks exist while the next one is made
        ctx.save_for_backward(None if d_hidden is None else d_hidden.to(hidden.dtype), d_head)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        if float(gradients[0]) != 1.0:
            d_hidden, d_head = (None if d is None else d * gradients[0] for d in (d_hidden, d_head))
        return d_hidden, d_head, None, None, None


def _rows(logits: Tensor, targets: Tensor, smoothing: float, gradient: bool) -> Tensor:
    """Losses [rows]; `logits` turn into their gradient in place."""
    if logits.device.type == "cpu":
        from gpt2kit.training import kernels

        losses = np.empty(len(logits), np.float32)
        variant = PLACE.parallel and logits.numel() >= PARALLEL_ELEMENTS
        kernels.cross_entropy[variant](logits.numpy(), targets.numpy(), np.float32(smoothing), losses, gradient)
        return torch.from_numpy(losses)
    losses_ = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing)
    if gradient:
        counted = targets != IGNORED
        logits.copy_(logits.softmax(-1)).sub_(smoothing / logits.shape[1])
        logits[torch.arange(len(logits), device=logits.device), targets.clamp(min=0)] -= 1 - smoothing
        logits.mul_(counted[:, None])
    return losses_


@torch.no_grad()
def mean_loss(model: GPT2, windows: Any, batch: int, loss: Loss = next_token) -> float:
    """Nats per token over `windows`, int64 [n, T+1] (or the objective's own shape), `batch` of them at a time."""
    total, count = 0.0, 0
    for start in range(0, len(windows), batch):
        part, n = loss(model, torch.from_numpy(np.ascontiguousarray(windows[start : start + batch])))
        total, count = total + float(part), count + n
    return total / count
