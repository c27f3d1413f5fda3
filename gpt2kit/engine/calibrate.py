"""How much to smooth: for each matrix the split that disturbs its output least, tried on real activations.

SmoothQuant's rule divides channel k by s_k = activation_k^a / weight_k^(1 - a), both largest absolute values. Which a
is best differs from matrix to matrix, so each tries a few and keeps the one with the smallest squared error of its
int8 output against the float output. This is done block by block, on float activations of the model itself.

Shapes: B sequences, T tokens each, R = B T rows, C channels, H heads, D head size, N outputs and K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.engine.smoothing import LayerSmoothing, Smoothing
from gpt2kit.engine.weights import Floats
from gpt2kit.model.gpt2 import GPT2, Attention, Block

STRENGTHS = (None, 0.25, 0.5, 0.75)  # a; None leaves the matrix as it is. Eight of them chose no better
LIMIT = 1e4  # no channel is moved by more, against the geometric mean of all
HEAD_ROWS = 256  # rows of the head's trial: 50 MB of logits at V = 50,257

Progress = Callable[[int, int], None]


@torch.no_grad()
def choose(model: GPT2, tokens: Tensor, on_progress: Progress | None = None) -> Smoothing:
    """The smoothing for a model in eval mode, from token ids [B, T]. `on_progress(done, total)` counts blocks."""
    T, total = tokens.shape[1], len(model.h) + 1
    x = model.wte(tokens) + model.wpe.weight[:T]  # B T C
    layers = []
    for index, block in enumerate(model.h):
        assert isinstance(block, Block)
        x, smoothing = _block(block, x)
        layers.append(smoothing)
        if on_progress is not None:
            on_progress(index + 1, total)
    rows = _flat(model.ln_f(x))
    stride = max(1, len(rows) // HEAD_ROWS)
    head = _linear(rows[::stride][:HEAD_ROWS], model.head)
    if on_progress is not None:
        on_progress(total, total)
    return Smoothing(layers, _floats(head))


def _block(block: Block, x: Tensor) -> tuple[Tensor, LayerSmoothing]:
    """[B, T, C] through one block, and what was chosen on the way."""
    B, T, C = x.shape
    attention, mlp = block.attn, block.mlp
    h = block.ln_1(x)
    c_attn = _linear(_flat(h), attention.c_attn.weight, parts=3)
    q, k, v = attention.c_attn(h).view(B, T, 3, attention.n_head, -1).permute(2, 0, 3, 1, 4)  # each B H T D
    k = k - attention.c_attn.bias[C : 2 * C].view(attention.n_head, 1, -1)
    qk = _queries_and_keys(q, k)
    weights = _attention(q, k, attention)
    attn_proj = _values(weights, v, attention.c_proj.weight)
    x = x + attention.c_proj(_join(weights @ v))
    h = block.ln_2(x)
    c_fc = _linear(_flat(h), mlp.c_fc.weight)
    f = mlp.act(mlp.c_fc(h))
    mlp_proj = _linear(_flat(f), mlp.c_proj.weight)
    smoothing = LayerSmoothing(*map(_floats, (c_attn, qk, attn_proj, c_fc, mlp_proj)))
    return x + mlp.c_proj(f), smoothing


def _attention(q: Tensor, k: Tensor, attention: Attention) -> Tensor:
    """[B, H, T, T]; the key bias may be left out of `k`, softmax cannot see it."""
    T = q.shape[2]
    scores = q @ k.transpose(2, 3) * attention.scale
    return scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf).softmax(3)


def _join(y: Tensor) -> Tensor:
    """Heads side by side: [B, H, T, D] -> [B, T, C]."""
    return y.transpose(1, 2).flatten(2)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(0, -2)


def _floats(s: Tensor) -> Floats:
    out: Floats = s.numpy().astype(np.float32)
    return out


# ---------------------------------------------------------------- trials


def _linear(x: Tensor, weight: Tensor, parts: int = 1) -> Tensor:
    """s [K] for inputs [R, K] and a matrix [N, K], whose outputs are `parts` things of equal weight."""
    wanted = F.linear(x, weight)

    def error(s: Tensor) -> Tensor:
        wrong = F.linear(_eight_bits(x / s), _eight_bits(weight * s)) - wanted
        return _relative(wrong, wanted, parts)

    return _best(x.abs().amax(0), weight.abs().amax(0), error)


def _queries_and_keys(q: Tensor, k: Tensor) -> Tensor:
    """r [C] for queries and keys [B, H, T, D]: the scores' error."""
    wanted = q @ k.transpose(2, 3)

    def error(s: Tensor) -> Tensor:
        r = s.view(q.shape[1], 1, -1)
        wrong = _eight_bits(q * r) @ _eight_bits(k / r).transpose(2, 3) - wanted
        return _relative(wrong.flatten(), wanted.flatten(), 1)

    return _best(_heads_max(k), _heads_max(q), error)


def _values(weights: Tensor, v: Tensor, projection: Tensor) -> Tensor:
    """s [C] for attention weights [B, H, T, T], values [B, H, T, D] and c_proj [C, C]: the projection's error."""
    wanted = F.linear(_flat(_join(weights @ v)), projection)

    def error(s: Tensor) -> Tensor:
        y = weights @ _eight_bits(v / s.view(v.shape[1], 1, -1))
        wrong = F.linear(_eight_bits(_flat(_join(y))), _eight_bits(projection * s)) - wanted
        return _relative(wrong, wanted, 1)

    return _best(_heads_max(v), projection.abs().amax(0), error)


def _best(activation: Tensor, weight: Tensor, error: Callable[[Tensor], Tensor]) -> Tensor:
    """The s [K] of the strength with the smallest error."""
    trials = [_strength(activation, weight, a) for a in STRENGTHS]
    return min(((float(error(s)), i, s) for i, s in enumerate(trials)))[2]


def _strength(activation: Tensor, weight: Tensor, a: float | None) -> Tensor:
    """activation^a / weight^(1 - a), about 1 in the middle; a channel that is all zeros stays as it is."""
    if a is None:
        return torch.ones_like(activation)
    used = (activation > 0) & (weight > 0)
    logs = a * activation.clamp(min=1e-30).log() - (1 - a) * weight.clamp(min=1e-30).log()
    middle = logs[used].mean() if bool(used.any()) else logs.new_zeros(())
    limit = float(np.log(LIMIT))
    return torch.where(used, (logs - middle).clamp(-limit, limit), 0.0).exp()


def _eight_bits(x: Tensor) -> Tensor:
    """Each row rounded to 255 steps of its own."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (x / scale).round_().mul_(scale)


def _relative(wrong: Tensor, wanted: Tensor, parts: int) -> Tensor:
    """Squared error by the size of what is wanted; of several parts side by side the sum."""
    pairs = zip(wrong.chunk(parts, -1), wanted.chunk(parts, -1), strict=True)
    return torch.stack([w.square().mean() / t.var().clamp(min=1e-30) for w, t in pairs]).sum()


def _heads_max(x: Tensor) -> Tensor:
    """[B, H, T, D] -> the largest absolute value of each channel [C]."""
    return x.abs().amax((0, 2)).flatten()
