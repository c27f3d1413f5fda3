"""Smoothing: the same float function, spread so that eight bits hold it.

An int8 row has one scale, so a channel fifty times larger than the rest leaves these a fiftieth of the steps. Dividing
an input channel by s and multiplying the matrix's column by s moves the trouble to where there is room (Xiao et al.
2022, SmoothQuant). The division costs nothing at run time:
    c_attn, c_fc, head   in the gain and bias of the LayerNorm before
    attn.c_proj          in the rows of c_attn that make the values: attention mixes tokens, never channels
    mlp.c_proj           in `post`, a factor after the activation
    queries and keys     queries times r, keys divided by r: their products stay
A tied head is the token embedding too: `unsmooth` gives the embedding its size back.

Shapes: C channels, I inner size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.weights import EngineWeights, Floats, LayerWeights, LinearWeights
from gpt2kit.model.config import GPT2Config

ROWS = 256  # rounded at once


@dataclass(frozen=True)
class LayerSmoothing:
    c_attn: Floats  # [C]: what the input is divided by
    qk: Floats  # [C]: what the queries are multiplied and the keys divided by, heads inside
    attn_proj: Floats  # [C]
    c_fc: Floats  # [C]
    mlp_proj: Floats  # [I]


@dataclass(frozen=True)
class Smoothing:
    layers: list[LayerSmoothing]
    head: Floats  # [C]


def none(config: GPT2Config) -> Smoothing:
    """The smoothing that changes nothing."""
    ones = np.ones(config.n_embd, np.float32)
    layer = LayerSmoothing(ones, ones, ones, ones, np.ones(config.inner_size, np.float32))
    return Smoothing([layer] * config.n_layer, ones)


def fold(weights: EngineWeights, smoothing: Smoothing) -> EngineWeights:
    """fp32 weights of the same function, with the smoothing inside."""
    return _transform(weights, smoothing, lambda linear: linear)


def to_int8(weights: EngineWeights, smoothing: Smoothing | None = None) -> EngineWeights:
    """fp32 weights -> int8: smoothed, then each row rounded with its own scale. Matrix by matrix, to save memory."""
    smoothing = none(weights.config) if smoothing is None else smoothing
    return dataclasses.replace(_transform(weights, smoothing, _rounded), precision="int8")


def _transform(
    weights: EngineWeights, smoothing: Smoothing, finish: Callable[[LinearWeights], LinearWeights]
) -> EngineWeights:
    assert weights.precision == "fp32", weights.precision
    wte = finish(_columns(weights.wte, smoothing.head))
    return dataclasses.replace(
        weights,
        unsmooth=np.reciprocal(smoothing.head),
        wte=wte,
        head=wte if weights.head is weights.wte else finish(_columns(weights.head, smoothing.head)),
        layers=[_layer(*pair, finish) for pair in zip(weights.layers, smoothing.layers, strict=True)],
        ln_f_g=weights.ln_f_g / smoothing.head,
        ln_f_b=weights.ln_f_b / smoothing.head,
    )


def _layer(layer: LayerWeights, s: LayerSmoothing, finish: Callable[[LinearWeights], LinearWeights]) -> LayerWeights:
    """The key bias is left out: it adds the same q.b to a query's scores with all keys, which softmax cannot see.

    GPT-2's key biases are its largest, and would take the int8 steps away from what tells the keys apart.
    """
    C = len(s.qk)
    rows = np.concatenate([s.qk, np.reciprocal(s.qk), np.reciprocal(s.attn_proj)])  # factors of c_attn's outputs
    bias = layer.c_attn.bias * rows
    bias[C : 2 * C] = 0
    c_attn = _columns(layer.c_attn, s.c_attn)
    return dataclasses.replace(
        layer,
        ln_1_g=layer.ln_1_g / s.c_attn,
        ln_1_b=layer.ln_1_b / s.c_attn,
        c_attn=finish(LinearWeights(c_attn.q * rows[:, None], c_attn.scale, bias)),
        attn_proj=finish(_columns(layer.attn_proj, s.attn_proj)),
        ln_2_g=layer.ln_2_g / s.c_fc,
        ln_2_b=layer.ln_2_b / s.c_fc,
        c_fc=finish(_columns(layer.c_fc, s.c_fc)),
        post=np.reciprocal(s.mlp_proj),
        mlp_proj=finish(_columns(layer.mlp_proj, s.mlp_proj)),
        smoothed=np.stack([s.c_attn, s.attn_proj, s.c_fc, s.qk]),
    )


def _columns(linear: LinearWeights, s: Floats) -> LinearWeights:
    return dataclasses.replace(linear, q=linear.q * s)


def _rounded(linear: LinearWeights) -> LinearWeights:
    q, scale = round_rows(linear.q)
    return LinearWeights(q, scale, linear.bias)


def round_rows(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """float32 [N, K] -> int8 [N, K] and scales [N]: to the nearest, each row by its largest value. Zeros: scale 0."""
    N = len(weight)
    q, scale = np.empty(weight.shape, np.int8), np.empty(N, np.float32)
    for start in range(0, N, ROWS):  # the temporary arrays stay in the CPU's cache
        rows = weight[start : start + ROWS]
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        tiny = largest < 1e-30  # 127 / largest would overflow
        inverse = np.float32(127) / np.where(tiny, np.float32(1), largest)
        inverse[tiny] = 0
        scaled = rows * inverse[:, None]
        q[start : start + ROWS] = np.rint(scaled, out=scaled)
        scale[start : start + ROWS] = np.where(tiny, np.float32(0), largest / np.float32(127))
    return q, scale
