"""The engine's weights, plain and as the kernels walk through them.

A folder's float weights become `EngineWeights` (plain matrices: `source.py`), these become `PackedWeights` (two flat
buffers). `layout` says where each part lies in the buffers, for writer, kernels and stored file alike.

Shapes: V vocabulary, C channels, I inner size, N outputs and K inputs of a matrix.
A packed matrix has its outputs in blocks of 64, N padded to 64 and K to 16:
    int8   uint8   [N/64, K/4, 64, 4]   the weight + 128, so that padding is 128
    fp32   float32 [N/64, K, 64]
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2kit.model.config import GPT2Config

Precision = Literal["int8", "fp32"]
Floats = NDArray[np.float32]

BLOCK_N = 64  # outputs in a block: four AVX-512 registers of int32 sums
PAD_K = 16  # a lane sum's width; also a whole number of 4-byte dot products
PAD_FLOATS = 64  # every part of `floats` begins at a multiple of this
ZERO = 128  # how an int8 weight of 0 is stored


def pad(n: int, multiple: int) -> int:
    """The next multiple at or above n."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class LinearWeights:
    """One matrix. int8: out = sum(q * input) * (scale * the input's scale) + bias. fp32: q is float32, scale ones."""

    q: NDArray[Any]  # [N, K] int8 or float32; perhaps a transposed view of a memory-mapped file
    scale: Floats  # [N]
    bias: Floats  # [N]; zeros where there is none


@dataclass(frozen=True)
class LayerWeights:
    ln_1_g: Floats  # [C]; with the smoothing of what follows folded in, as in all gains and biases here
    ln_1_b: Floats
    c_attn: LinearWeights  # [3C, C]: queries, keys, values, heads inside; int8: no bias in the key part
    attn_proj: LinearWeights  # [C, C]
    ln_2_g: Floats
    ln_2_b: Floats
    c_fc: LinearWeights  # [I, C]
    post: Floats  # [I]: what the activation's output is multiplied by
    mlp_proj: LinearWeights  # [C, I]
    alpha: float  # what attention scores are multiplied by, a float32
    smoothed: Floats  # [4, C]: what the inputs of c_attn, attn_proj, c_fc are divided and queries multiplied by


@dataclass(frozen=True)
class EngineWeights:
    """What `pack` takes. Arrays may be memory-mapped."""

    config: GPT2Config
    precision: Precision
    wpe: Floats  # [n_positions, C]
    unsmooth: Floats  # [C]: what a token embedding is multiplied by; ones unless an int8 head is tied and smoothed
    wte: LinearWeights  # [V, C], bias zeros
    head: LinearWeights  # the same object as `wte` where tied
    layers: list[LayerWeights]
    ln_f_g: Floats  # [C]
    ln_f_b: Floats


def attention_scale(config: GPT2Config, layer: int) -> float:
    """What the scores of a layer are multiplied by, as a float32's value."""
    scale = config.head_size**-0.5 if config.scale_attn_weights else 1.0
    return float(np.float32(scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale))


# ---------------------------------------------------------------- layout of the packed form


@dataclass(frozen=True)
class LinearLayout:
    n: int
    k: int
    n_padded: int
    k_padded: int
    weight: int  # bytes into `weights`, a multiple of 64
    scale: int  # floats into `floats`; n_padded of them
    bias: int  # the same; -1 where there is none (embedding, head)


@dataclass(frozen=True)
class LayerLayout:
    ln_1_g: int  # floats into `floats`, as all numbers here
    ln_1_b: int
    c_attn: LinearLayout
    attn_proj: LinearLayout
    ln_2_g: int
    ln_2_b: int
    c_fc: LinearLayout
    post: int
    mlp_proj: LinearLayout
    smoothed: int


@dataclass(frozen=True)
class Layout:
    """Where each part lies: bytes into `weights`, floats into `floats`. All offsets into floats are multiples of 64."""

    wte: LinearLayout
    head: LinearLayout  # equal to `wte` where tied
    unsmooth: int
    ln_f_g: int
    ln_f_b: int
    wpe: int
    wpe_stride: int  # floats from one position to the next
    layers: tuple[LayerLayout, ...]
    weights_bytes: int
    floats_count: int


class _Allocator:
    """Hands out offsets one after another."""

    def __init__(self, precision: Precision) -> None:
        self.item = 1 if precision == "int8" else 4
        self.weights = self.floats = 0

    def part(self, count: int) -> int:
        start, self.floats = self.floats, self.floats + pad(count, PAD_FLOATS)
        return start

    def matrix(self, n: int, k: int) -> int:
        start, self.weights = self.weights, self.weights + pad(n, BLOCK_N) * pad(k, PAD_K) * self.item
        return start

    def linear(self, n: int, k: int, bias: bool = True) -> LinearLayout:
        n_padded, k_padded = pad(n, BLOCK_N), pad(k, PAD_K)
        weight, scale = self.matrix(n, k), self.part(n_padded)
        return LinearLayout(n, k, n_padded, k_padded, weight, scale, self.part(n_padded) if bias else -1)


@functools.lru_cache(maxsize=16)
def layout(config: GPT2Config, precision: Precision) -> Layout:
    """Offsets and sizes of the packed form. Parts lie in the order in which a step reads them."""
    V, C, I = config.vocab_size, config.n_embd, config.inner_size  # noqa: E741
    at, wpe_stride = _Allocator(precision), pad(C, PAD_K)
    wte = at.linear(V, C, bias=False)
    head = wte if config.tie_word_embeddings else at.linear(V, C, bias=False)
    unsmooth, ln_f_g, ln_f_b = at.part(C), at.part(C), at.part(C)
    wpe = at.part(config.n_positions * wpe_stride)
    layers = []
    for _ in range(config.n_layer):
        layers.append(
            LayerLayout(
                ln_1_g=at.part(C),
                ln_1_b=at.part(C),
                c_attn=at.linear(3 * C, C),
                attn_proj=at.linear(C, C),
                ln_2_g=at.part(C),
                ln_2_b=at.part(C),
                c_fc=at.linear(I, C),
                post=at.part(I),
                mlp_proj=at.linear(C, I),
                smoothed=at.part(4 * C),
            )
        )
    return Layout(
        wte, head, unsmooth, ln_f_g, ln_f_b, wpe, wpe_stride, tuple(layers), at.weights, at.floats
    )  # fmt: skip


def packed_bytes(config: GPT2Config, precision: Precision) -> int:
    """Memory that packed weights take."""
    found = layout(config, precision)
    return found.weights_bytes + 4 * found.floats_count


# ---------------------------------------------------------------- packing


@dataclass(frozen=True)
class PackedWeights:
    """What `forward.py` takes. The buffers may be memory-mapped, and are never written to."""

    config: GPT2Config
    precision: Precision
    layout: Layout
    weights: NDArray[Any]  # 1-D: uint8 for int8, float32 for fp32
    floats: Floats  # 1-D
    cost_percent: float | None = None  # what int8 costs in bits per token, where that was measured


def pack_int8(q: NDArray[np.int8], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """int8 [N, K] -> uint8 [N/64, K/4, 64, 4], the weight + 128. `out` is that array's memory, where given."""
    N, K = q.shape
    shape = (pad(N, BLOCK_N) // BLOCK_N, pad(K, PAD_K) // 4, BLOCK_N, 4)
    target = np.empty(shape, np.uint8) if out is None else out.reshape(shape)
    padded = np.full((pad(N, BLOCK_N), pad(K, PAD_K)), ZERO, np.uint8)
    padded[:N, :K] = q.view(np.uint8) ^ ZERO
    target[...] = padded.reshape(shape[0], BLOCK_N, shape[1], 4).transpose(0, 2, 1, 3)
    return target


def unpack_int8(packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.int8]:
    """The inverse of `pack_int8`; `packed` may be flat."""
    blocks = packed.reshape(pad(n, BLOCK_N) // BLOCK_N, pad(k, PAD_K) // 4, BLOCK_N, 4)
    plain = blocks.transpose(0, 2, 1, 3).reshape(pad(n, BLOCK_N), pad(k, PAD_K))[:n, :k]
    return np.ascontiguousarray(plain ^ ZERO).view(np.int8)


def pack_fp32(q: Floats, out: Floats | None = None) -> Floats:
    """float32 [N, K] -> float32 [N/64, K, 64]. `out` is that array's memory, where given."""
    N, K = q.shape
    shape = (pad(N, BLOCK_N) // BLOCK_N, pad(K, PAD_K), BLOCK_N)
    target = np.empty(shape, np.float32) if out is None else out.reshape(shape)
    whole, rest = divmod(N, BLOCK_N)
    target[:, K:] = 0
    for block in range(whole):
        target[block, :K] = q[block * BLOCK_N : (block + 1) * BLOCK_N].T
    if rest:
        target[whole, :K, :rest] = q[whole * BLOCK_N :].T
        target[whole, :K, rest:] = 0
    return target


def unpack_fp32(packed: Floats, n: int, k: int) -> Floats:
    """The inverse of `pack_fp32`; `packed` may be flat."""
    blocks = packed.reshape(pad(n, BLOCK_N) // BLOCK_N, pad(k, PAD_K), BLOCK_N)
    plain = blocks.transpose(0, 2, 1).reshape(pad(n, BLOCK_N), pad(k, PAD_K))[:n, :k]
    return np.ascontiguousarray(plain)


class _Buffers:
    """Two flat buffers, and how parts get in and out of them."""

    def __init__(self, precision: Precision, weights: NDArray[Any], floats: Floats) -> None:
        self.precision, self.weights, self.floats = precision, weights, floats

    def matrix(self, at: LinearLayout) -> NDArray[Any]:
        start, size = at.weight // self.weights.itemsize, at.n_padded * at.k_padded
        part: NDArray[Any] = self.weights[start : start + size]
        return part

    def put(self, start: int, values: Floats) -> None:
        self.floats[start : start + len(values)] = values

    def put_linear(self, at: LinearLayout, linear: LinearWeights) -> None:
        assert linear.q.shape == (at.n, at.k), f"{linear.q.shape} is not {(at.n, at.k)}"
        (pack_int8 if self.precision == "int8" else pack_fp32)(linear.q, self.matrix(at))
        self.put(at.scale, linear.scale)
        if at.bias >= 0:
            self.put(at.bias, linear.bias)

    def get(self, start: int, count: int) -> Floats:
        return self.floats[start : start + count]

    def get_linear(self, at: LinearLayout) -> LinearWeights:
        unpack: Any = unpack_int8 if self.precision == "int8" else unpack_fp32
        bias = self.get(at.bias, at.n) if at.bias >= 0 else np.zeros(at.n, np.float32)
        return LinearWeights(unpack(self.matrix(at), at.n, at.k), self.get(at.scale, at.n), bias)


def pack(weights: EngineWeights) -> PackedWeights:
    """The same weights in two flat buffers; padding has scale 0, bias 0 and weight 0."""
    config, at = weights.config, layout(weights.config, weights.precision)
    matrices: NDArray[Any] = (
        aligned(at.weights_bytes, np.uint8)
        if weights.precision == "int8"
        else aligned(at.weights_bytes // 4, np.float32)
    )
    buffers = _Buffers(weights.precision, matrices, aligned(at.floats_count, np.float32))
    buffers.put_linear(at.wte, weights.wte)
    if not config.tie_word_embeddings:
        buffers.put_linear(at.head, weights.head)
    buffers.put(at.unsmooth, weights.unsmooth)
    buffers.put(at.ln_f_g, weights.ln_f_g)
    buffers.put(at.ln_f_b, weights.ln_f_b)
    rows = buffers.get(at.wpe, config.n_positions * at.wpe_stride).reshape(config.n_positions, at.wpe_stride)
    rows[:, : config.n_embd] = weights.wpe
    for place, layer in zip(at.layers, weights.layers, strict=True):
        for name in ("ln_1_g", "ln_1_b", "ln_2_g", "ln_2_b", "post"):
            buffers.put(getattr(place, name), getattr(layer, name))
        buffers.put(place.smoothed, layer.smoothed.reshape(-1))
        for name in ("c_attn", "attn_proj", "c_fc", "mlp_proj"):
            buffers.put_linear(getattr(place, name), getattr(layer, name))
    return PackedWeights(config, weights.precision, at, buffers.weights, buffers.floats)


def unpack(packed: PackedWeights) -> EngineWeights:
    """The inverse of `pack`. Vectors are views of the buffer, matrices copies."""
    config, at = packed.config, packed.layout
    buffers = _Buffers(packed.precision, packed.weights, packed.floats)
    C, I = config.n_embd, config.inner_size  # noqa: E741
    rows = buffers.get(at.wpe, config.n_positions * at.wpe_stride).reshape(config.n_positions, at.wpe_stride)
    layers = []
    for index, place in enumerate(at.layers):
        layers.append(
            LayerWeights(
                ln_1_g=buffers.get(place.ln_1_g, C),
                ln_1_b=buffers.get(place.ln_1_b, C),
                c_attn=buffers.get_linear(place.c_attn),
                attn_proj=buffers.get_linear(place.attn_proj),
                ln_2_g=buffers.get(place.ln_2_g, C),
                ln_2_b=buffers.get(place.ln_2_b, C),
                c_fc=buffers.get_linear(place.c_fc),
                post=buffers.get(place.post, I),
                mlp_proj=buffers.get_linear(place.mlp_proj),
                alpha=attention_scale(config, index),
                smoothed=buffers.get(place.smoothed, 4 * C).reshape(4, C),
            )
        )
    wte = buffers.get_linear(at.wte)
    return EngineWeights(
        config=config,
        precision=packed.precision,
        wpe=rows[:, :C],
        unsmooth=buffers.get(at.unsmooth, C),
        wte=wte,
        head=wte if config.tie_word_embeddings else buffers.get_linear(at.head),
        layers=layers,
        ln_f_g=buffers.get(at.ln_f_g, C),
        ln_f_b=buffers.get(at.ln_f_b, C),
    )


def aligned(count: int, dtype: Any) -> NDArray[Any]:
    """A flat array of zeros whose first byte lies at a multiple of 64, a cache line."""
    size = count * np.dtype(dtype).itemsize
    raw = np.zeros(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype)
