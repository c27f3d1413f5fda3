"""The int8 engine's arithmetic in plain numpy: slow, whole sequences at once, no cache, no packing, no threads.

Every float32 operation stands here in the order in which the engine rounds it, so the engine must agree to the bit.
Where rows are computed together the operations are elementwise, or sums of integers, which float64 holds exactly:
a row's result is the same as alone. (numpy rounds each float32 operation by itself: it fuses none.)

Shapes: T tokens, C channels, H heads, D head size, V vocabulary, N outputs and K inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.smoothing import LayerSmoothing, Smoothing
from gpt2kit.engine.weights import EngineWeights, LayerWeights, LinearWeights
from gpt2kit.model.config import GPT2Config

Floats = NDArray[np.float32]
f32 = np.float32
ZERO, ONE, TINY = f32(0), f32(1), f32(1e-30)
LANES = 16


def lane_sum(v: Floats) -> Floats:
    """The sum over the last axis: sixteen running sums, then halves added to halves."""
    padded = np.zeros((*v.shape[:-1], -(-v.shape[-1] // LANES) * LANES), f32)
    padded[..., : v.shape[-1]] = v
    acc = np.zeros((*v.shape[:-1], LANES), f32)
    for start in range(0, padded.shape[-1], LANES):
        acc = acc + padded[..., start : start + LANES]
    for half in (8, 4, 2, 1):
        acc = acc[..., :half] + acc[..., half:]
    return acc[..., 0]


def exp(x: Floats) -> Floats:
    """Cephes' expf: a polynomial of degree 5 on [-ln 2 / 2, ln 2 / 2], times a power of two built from its bits."""
    x = np.minimum(np.maximum(x, f32(-87)), f32(88))
    n = np.floor(x * f32(1.44269504) + f32(0.5))
    r = (x - n * f32(0.693359375)) + n * f32(2.12194440e-4)
    p = np.full_like(x, f32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f32(c)
    p = (p * r) * r + r + ONE
    return p * ((n.astype(np.int32) + np.int32(127)) << np.int32(23)).view(f32)


def layernorm(x: Floats, g: Floats, b: Floats, epsilon: float) -> Floats:
    inv_n = ONE / f32(x.shape[-1])
    mean = lane_sum(x) * inv_n
    d = x - mean[..., None]
    var = lane_sum(d * d) * inv_n
    r = ONE / np.sqrt(var + f32(epsilon))
    return (d * r[..., None]) * g + b


def quantise(y: Floats) -> tuple[NDArray[np.int8], Floats]:
    """[..., n] -> integers [..., n] and one scale a row [...]."""
    amax = np.abs(y).max(axis=-1)
    amax = np.where(amax < TINY, ZERO, amax)
    inv = f32(127) / np.where(amax == 0, ONE, amax)
    q = np.rint(y * inv[..., None])  # a row of zeros: zeros, whatever inv is
    return q.astype(np.int8), amax / f32(127)


def integer_sum(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """a [..., T, K] times b [..., N, K] -> float32 [..., T, N], rounded once from the exact integer."""
    return (a.astype(np.float64) @ b.astype(np.float64).swapaxes(-1, -2)).astype(f32)


def linear(q: NDArray[np.int8], scale: Floats, weights: LinearWeights, bias: bool = True) -> Floats:
    out = integer_sum(q, weights.q) * (scale[:, None] * weights.scale)
    return out + weights.bias if bias else out


def _gelu_new(x: Floats) -> Floats:
    u = x * ((f32(0.07135481282553131) * (x * x)) + f32(1.5957691216057308))
    return x / (ONE + exp(ZERO - u))


def _gelu(x: Floats) -> Floats:
    z = x * f32(0.70710678)
    a = np.abs(z)
    t = ONE / (ONE + f32(0.3275911) * a)
    poly = f32(1.061405429) * t - f32(1.453152027)
    poly = poly * t + f32(1.421413741)
    poly = poly * t - f32(0.284496736)
    poly = poly * t + f32(0.254829592)
    e = ONE - (poly * t) * exp(ZERO - (a * a))
    return (f32(0.5) * x) * (ONE + np.copysign(e, z))


def activation(name: str, x: Floats) -> Floats:
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return _gelu_new(x)
    if name == "gelu":
        return _gelu(x)
    if name == "relu":
        return np.maximum(x, ZERO)
    if name in ("silu", "swish"):
        return x / (ONE + exp(ZERO - x))
    assert name == "tanh", name
    return f32(2) / (ONE + exp(ZERO - f32(2) * x)) - ONE


def attention(qkv: Floats, heads: int, alpha: float) -> Floats:
    """[T, 3C] -> [T, C]: each row attends to itself and to the rows before it."""
    T, C = qkv.shape[0], qkv.shape[1] // 3
    parts = qkv.reshape(T, 3, heads, C // heads).transpose(1, 2, 0, 3)  # 3 H T D
    (q8, sq), (k8, sk), (v8, sv) = (quantise(np.ascontiguousarray(part)) for part in parts)
    scores = integer_sum(q8, k8) * ((sq * f32(alpha))[:, :, None] * sk[:, None, :])  # H T T
    seen = np.tril(np.ones((T, T), bool))
    m = np.where(seen, scores, f32(-np.inf)).max(axis=-1)
    e = np.where(seen, exp(np.where(seen, scores - m[:, :, None], ZERO)), ZERO)  # later keys add zeros to Z: no change
    Z = lane_sum(e)
    w = e * sv[:, None, :]
    wmax = w.max(axis=-1)
    wmax = np.where(wmax < TINY, ZERO, wmax)
    inv = f32(65535) / np.where(wmax == 0, ONE, wmax)
    p = np.minimum(np.rint(w * inv[:, :, None]), f32(65535)).astype(np.int64)
    A = integer_sum(p >> 8, v8.swapaxes(1, 2))  # H T D
    B = integer_sum(p & 255, v8.swapaxes(1, 2))
    out = (A * f32(256) + B) * ((wmax / f32(65535)) / Z)[:, :, None]
    return np.ascontiguousarray(out.transpose(1, 0, 2)).reshape(T, C)


Pair = tuple[Floats, Floats]  # A [r, K], B [N, r] of an adapter


def low_rank(y: Floats, x: Floats, pair: Pair | None) -> Floats:
    """y [T, N] + (x A^T) B^T: A x by lane sums, the sum over r ascending."""
    if pair is None:
        return y
    a, b = pair
    total = np.zeros_like(y)
    for k in range(len(a)):
        total = total + lane_sum(x * a[k])[:, None] * b[:, k]
    return y + total


def unsmoothed(factors: Mapping[str, Pair], smoothing: Smoothing) -> dict[str, Pair]:
    """An adapter's factors for inputs that come divided, and outputs that are wanted multiplied."""
    found = {}
    for name, (a, b) in factors.items():
        s, end = smoothing.layers[int(name.split(".")[1])], name.split(".", 2)[2]
        inputs = {"attn.c_attn": s.c_attn, "attn.c_proj": s.attn_proj, "mlp.c_fc": s.c_fc}
        outputs = np.concatenate([s.qk, ONE / s.qk, ONE / s.attn_proj])[:, None]
        found[name] = a * inputs.get(end, ONE / (ONE / s.mlp_proj)), b * outputs if end == "attn.c_attn" else b
    return found


class Oracle:
    """Token ids of one sequence to logits, by the definition of the int8 arithmetic. `factors`: see `unsmoothed`."""

    def __init__(self, weights: EngineWeights, factors: Mapping[str, Pair] | None = None) -> None:
        assert weights.precision == "int8", weights.precision
        self.weights, self.config, self.factors = weights, weights.config, factors or {}

    def _rows(self, token_ids: Sequence[int]) -> Floats:
        """The rows after ln_f [T, C], as the head's product takes them."""
        ids, w = np.asarray(token_ids, np.int64), self.weights
        assert 0 < len(ids) <= self.config.n_positions
        x = (w.wte.q[ids].astype(f32) * w.wte.scale[ids, None]) * w.unsmooth + w.wpe[: len(ids)]
        for index, layer in enumerate(w.layers):
            x = self._block(x, layer, f"h.{index}")
        return layernorm(x, w.ln_f_g, w.ln_f_b, self.config.layer_norm_epsilon)

    def _block(self, x: Floats, layer: LayerWeights, name: str) -> Floats:
        epsilon, factors = self.config.layer_norm_epsilon, self.factors
        h = layernorm(x, layer.ln_1_g, layer.ln_1_b, epsilon)
        qkv = low_rank(linear(*quantise(h), layer.c_attn), h, factors.get(f"{name}.attn.c_attn"))
        y = attention(qkv, self.config.n_head, layer.alpha)
        x = low_rank(x + linear(*quantise(y), layer.attn_proj), y, factors.get(f"{name}.attn.c_proj"))
        h = layernorm(x, layer.ln_2_g, layer.ln_2_b, epsilon)
        f = low_rank(linear(*quantise(h), layer.c_fc), h, factors.get(f"{name}.mlp.c_fc"))
        f = activation(self.config.activation_function, f) * layer.post
        return low_rank(x + linear(*quantise(f), layer.mlp_proj), f, factors.get(f"{name}.mlp.c_proj"))

    def hidden(self, token_ids: Sequence[int]) -> Floats:
        """The model's last hidden state [T, C]: the smoothing that lies in ln_f is taken out again."""
        return self._rows(token_ids) / self.weights.unsmooth

    def logits(self, token_ids: Sequence[int]) -> Floats:
        """[T, V]; row t predicts token t + 1."""
        return linear(*quantise(self._rows(token_ids)), self.weights.head, bias=False)


class FloatOracle:
    """The same network over the same kind of weights, fp32 or int8, in float64 and without rounding activations."""

    def __init__(self, weights: EngineWeights) -> None:
        self.weights, self.config = weights, weights.config

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        ids, w, T = np.asarray(token_ids, np.int64), self.weights, len(token_ids)
        H, epsilon = self.config.n_head, self.config.layer_norm_epsilon
        x = self._matrix(w.wte)[ids] * w.unsmooth + w.wpe[:T]
        for layer in w.layers:
            qkv = self._linear(self._norm(x, layer.ln_1_g, layer.ln_1_b, epsilon), layer.c_attn)
            q, k, v = qkv.reshape(T, 3, H, -1).transpose(1, 2, 0, 3)  # each H T D
            scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(1, 2) * layer.alpha, -np.inf)
            e = np.exp(scores - scores.max(axis=2, keepdims=True))
            y = (e / e.sum(axis=2, keepdims=True)) @ v
            x = x + self._linear(y.transpose(1, 0, 2).reshape(T, -1), layer.attn_proj)
            f = self._linear(self._norm(x, layer.ln_2_g, layer.ln_2_b, epsilon), layer.c_fc)
            f = activation(self.config.activation_function, f.astype(f32)) * layer.post
            x = x + self._linear(f, layer.mlp_proj)
        return self._norm(x, w.ln_f_g, w.ln_f_b, epsilon) @ self._matrix(w.head).T

    def _matrix(self, linear: LinearWeights) -> NDArray[np.float64]:
        return linear.q.astype(np.float64) * linear.scale[:, None]

    def _linear(self, x: NDArray[Any], weights: LinearWeights) -> NDArray[np.float64]:
        return x @ self._matrix(weights).T + weights.bias

    def _norm(self, x: NDArray[Any], g: Floats, b: Floats, epsilon: float) -> NDArray[np.float64]:
        d = x - x.mean(axis=1, keepdims=True)
        return d / np.sqrt((d * d).mean(axis=1, keepdims=True) + epsilon) * g + b


def some_smoothing(config: GPT2Config) -> Smoothing:
    """Random factors between 1/e and e, everywhere that there are any."""
    rng = np.random.default_rng(1)

    def draw(n: int) -> Floats:
        return np.exp(rng.uniform(-1, 1, n)).astype(f32)

    C = config.n_embd
    layers = [
        LayerSmoothing(draw(C), draw(C), draw(C), draw(C), draw(config.inner_size)) for _ in range(config.n_layer)
    ]
    return Smoothing(layers, draw(C))
