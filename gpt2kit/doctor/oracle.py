"""GPT-2 once more, in plain numpy float64, one sequence at a time: slow, short, and independent of the model
file.

It can also compute each classic mistake, so that wrong logits can be told by name. Nothing here is shared
with `model/gpt2.py`. Weights are the checkpoint's: linears [in, out], applied as x @ w + b. Source: Radford
et al. 2019; Vaswani et al. 2017 for attention; Hendrycks & Gimpel 2016 for GELU's tanh form.

Shapes: T time, C channels, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]

UNKNOWN = "no known mistake gives these"

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}

# Each wrong variant of the forward pass, with the words that name the mistake.
MISTAKES = {
    "relu": "ReLU in the MLP instead of GELU",
    "exact_gelu": "the exact (erf) GELU instead of the tanh form",
    "post_ln": "post-LayerNorm: each LayerNorm after its sublayer's residual sum instead of before it",
    "post_ln_only": "post-LayerNorm: each LayerNorm after its sublayer's residual sum, and no ln_f",
    "no_scale": "attention scores not divided by sqrt(D), the head size",
    "no_mask": "no causal mask: every token attends to the future",
    "wpe_plus_one": "wpe off by one: token t gets position t + 1",
    "wpe_minus_one": "wpe off by one: token t gets position t - 1",
    "no_ln_f": "ln_f missing: no final LayerNorm",
    "split_transposed": "head split transposed: channels read as [D, H] instead of [H, D]",
    "split_and_merge_transposed": "head split transposed: channels are [D, H] instead of [H, D], in and out",
    "merge_transposed": "head split transposed: heads merged without moving time before heads",
    "split_unmoved": "head split transposed: [T, C] read as [H, T, D] without moving heads before time",
    "conv1d": "Conv1D untransposed: square linears are used the wrong way round",
    "conv1d_attention": "Conv1D untransposed: attn.c_proj is used the wrong way round",
    "variance": "LayerNorm divides by the variance instead of the standard deviation",
    "last_norm_only": "ln_f applied, but ln_1 and ln_2 missing",
}


@dataclass(frozen=True)
class Shape:
    """What the weights alone do not tell."""

    heads: int
    activation: str = "gelu_new"
    epsilon: float = 1e-5
    scale: bool = True  # scores / sqrt(D)
    scale_by_layer: bool = False  # scores / (layer + 1) too


def logits(
    w: Weights,
    ids: Sequence[int],
    shape: Shape,
    mistake: str | None = None,
    positions: Sequence[int] | None = None,
) -> Array:
    """[T] ids -> [T, V] logits; with `mistake`, those of a model that makes it. `positions` default to 0 .. T
    - 1.
    """
    norm = variance_norm if mistake == "variance" else layer_norm
    at = np.arange(len(ids)) if positions is None else np.asarray(positions)
    at = np.clip(at + {"wpe_plus_one": 1, "wpe_minus_one": -1}.get(mistake or "", 0), 0, len(w["wpe.weight"]) - 1)
    x = w["wte.weight"][list(ids)] + w["wpe.weight"][at]  # T C
    layer = 0
    while f"h.{layer}.ln_1.weight" in w:
        p = f"h.{layer}."
        if mistake in ("post_ln", "post_ln_only"):
            x = norm(x + attention(w, p + "attn.", x, shape, layer, mistake), w, p + "ln_1", shape)
            x = norm(x + mlp(w, p + "mlp.", x, shape, mistake), w, p + "ln_2", shape)
        else:
            before = (lambda x, *_: x) if mistake == "last_norm_only" else norm
            x = x + attention(w, p + "attn.", before(x, w, p + "ln_1", shape), shape, layer, mistake)
            x = x + mlp(w, p + "mlp.", before(x, w, p + "ln_2", shape), shape, mistake)
        layer += 1
    if mistake not in ("no_ln_f", "post_ln_only"):
        x = norm(x, w, "ln_f", shape)
    return x @ w.get("lm_head.weight", w["wte.weight"]).T


def layer_norm(x: Array, w: Weights, name: str, shape: Shape) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    standard = np.sqrt((centred**2).mean(-1, keepdims=True) + shape.epsilon)
    out: Array = centred / standard * w[name + ".weight"] + w[name + ".bias"]
    return out


def variance_norm(x: Array, w: Weights, name: str, shape: Shape) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    out: Array = centred / (variance + shape.epsilon) * w[name + ".weight"] + w[name + ".bias"]
    return out


def linear(w: Weights, name: str, x: Array, mistake: str | None) -> Array:
    matrix = w[name + ".weight"]  # in out
    square = matrix.shape[0] == matrix.shape[1]
    if square and (mistake == "conv1d" or (mistake == "conv1d_attention" and name.endswith("attn.c_proj"))):
        matrix = matrix.T
    return x @ matrix + w[name + ".bias"]


def mlp(w: Weights, p: str, x: Array, shape: Shape, mistake: str | None) -> Array:
    activation = {"relu": "relu", "exact_gelu": "gelu"}.get(mistake or "", shape.activation)
    return linear(w, p + "c_proj", ACTIVATIONS[activation](linear(w, p + "c_fc", x, mistake)), mistake)


def attention(w: Weights, p: str, x: Array, shape: Shape, layer: int, mistake: str | None) -> Array:
    T, C = x.shape
    H, D = shape.heads, C // shape.heads
    q, k, v = (split(part, H, mistake) for part in np.split(linear(w, p + "c_attn", x, mistake), 3, axis=1))
    scores = q @ k.transpose(0, 2, 1)  # H T T
    if shape.scale and mistake != "no_scale":
        scores = scores / math.sqrt(D)
    if shape.scale_by_layer:
        scores = scores / (layer + 1)
    if mistake != "no_mask":
        scores = np.where(np.tril(np.ones((T, T), dtype=bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return linear(w, p + "c_proj", merge(weights @ v, mistake), mistake)


def split(x: Array, H: int, mistake: str | None) -> Array:
    """[T, C] -> [H, T, D]"""
    T, C = x.shape
    if mistake in ("split_transposed", "split_and_merge_transposed"):
        return x.reshape(T, C // H, H).transpose(2, 0, 1)
    if mistake == "split_unmoved":
        return x.reshape(H, T, C // H)
    return x.reshape(T, H, C // H).transpose(1, 0, 2)


def merge(y: Array, mistake: str | None) -> Array:
    """[H, T, D] -> [T, C]"""
    H, T, D = y.shape
    if mistake in ("merge_transposed", "split_unmoved"):
        return y.reshape(T, H * D)
    if mistake == "split_and_merge_transposed":
        return y.transpose(1, 2, 0).reshape(T, H * D)
    return y.transpose(1, 0, 2).reshape(T, H * D)


def nll(scores: Array, targets: Sequence[int]) -> Array:
    """[T, V] logits and T targets -> [T] negative log likelihoods in nats."""
    top = scores.max(-1, keepdims=True)
    log_total = (top + np.log(np.exp(scores - top).sum(-1, keepdims=True)))[:, 0]
    out: Array = log_total - scores[np.arange(len(targets)), list(targets)]
    return out


def diagnose(observed: Array, w: Weights, ids: Sequence[int], shape: Shape, tolerance: float) -> str | None:
    """Name the mistake whose logits are the observed ones, or None. `tolerance` is relative to the largest
    logit.
    """
    for name, words in MISTAKES.items():
        if (found := logits(w, ids, shape, name)).shape == observed.shape and close(observed, found, tolerance):
            return words
    return None


def close(a: Array, b: Array, tolerance: float) -> bool:
    """Whether the largest difference is within `tolerance` of the largest magnitude."""
    return error(a, b) <= tolerance


def error(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest magnitude of `b`; inf where a value is not finite."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return math.inf
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-300))
