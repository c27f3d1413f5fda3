"""Elementwise arithmetic on 16 lanes, written out as LLVM vector code: what lies between the products.

LLVM vectorises plain loops when it can prove them safe, which inside a large function it often cannot: GELU took 12 ns
an element there and takes 1 here. Each operation is rounded by itself.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types

from gpt2kit.engine.simd import (
    F32,
    I8,
    I32,
    I64,
    V16F32,
    V16I32,
    _call,
    _index,
    _load,
    _part,
    _pointer,
    _splat,
    _store,
    cgutils,
    constant_intrinsic,
    intrinsic,
)


class Lanes:
    """16 float32 values in generated code; arithmetic with others and with numbers."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def of(self, number: Any) -> Any:
        return number.value if isinstance(number, Lanes) else ir.Constant(V16F32, [float(number)] * 16)

    def _make(self, value: Any) -> Lanes:
        return Lanes(self.builder, value)

    def __add__(self, other: Any) -> Lanes:
        return self._make(self.builder.fadd(self.value, self.of(other)))

    def __sub__(self, other: Any) -> Lanes:
        return self._make(self.builder.fsub(self.value, self.of(other)))

    def __rsub__(self, other: Any) -> Lanes:
        return self._make(self.builder.fsub(self.of(other), self.value))

    def __mul__(self, other: Any) -> Lanes:
        return self._make(self.builder.fmul(self.value, self.of(other)))

    def __truediv__(self, other: Any) -> Lanes:
        return self._make(self.builder.fdiv(self.value, self.of(other)))

    def __rtruediv__(self, other: Any) -> Lanes:
        return self._make(self.builder.fdiv(self.of(other), self.value))

    __radd__, __rmul__ = __add__, __mul__

    def at_least(self, number: float) -> Lanes:
        smaller = self.builder.fcmp_ordered("<", self.value, self.of(number))
        return self._make(self.builder.select(smaller, self.of(number), self.value))

    def at_most(self, number: float) -> Lanes:
        larger = self.builder.fcmp_ordered(">", self.value, self.of(number))
        return self._make(self.builder.select(larger, self.of(number), self.value))

    def _unary(self, name: str) -> Lanes:
        return self._make(_call(self.builder, f"llvm.{name}.v16f32", V16F32, [self.value]))

    def floor(self) -> Lanes:
        return self._unary("floor")

    def rounded(self) -> Any:
        """The nearest whole numbers, ties to even, as [16 x i32]."""
        return self.builder.fptosi(self._unary("nearbyint").value, V16I32)

    def size(self) -> Lanes:
        return self._unary("fabs")

    def with_sign_of(self, other: Lanes) -> Lanes:
        return self._make(_call(self.builder, "llvm.copysign.v16f32", V16F32, [self.value, other.value]))

    def power_of_two(self) -> Lanes:
        """2 ** x of whole numbers in [-126, 127]."""
        whole = self.builder.fptosi(self.value, V16I32)
        biased = self.builder.add(whole, ir.Constant(V16I32, [127] * 16))
        return self._make(self.builder.bitcast(self.builder.shl(biased, ir.Constant(V16I32, [23] * 16)), V16F32))

    def exp(self) -> Lanes:
        x = self.at_least(-87.0).at_most(88.0)
        n = (x * single(1.44269504) + 0.5).floor()
        r = x - n * single(0.693359375) + n * single(2.12194440e-4)
        p = r * 0 + single(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = p * r + single(c)
        p = p * r * r + r + 1
        return p * n.power_of_two()


def single(number: float) -> float:
    """The nearest float32: an LLVM float constant must be one exactly."""
    import numpy as np

    return float(np.float32(number))


def _gelu_new(x: Lanes) -> Lanes:
    u = x * (single(0.07135481282553131) * (x * x) + single(1.5957691216057308))
    return x / (1 + (0 - u).exp())


def _gelu(x: Lanes) -> Lanes:
    """With erf by Abramowitz and Stegun 7.1.26: within 1.5e-7."""
    z = x * single(0.70710678)
    a = z.size()
    t = 1 / (1 + single(0.3275911) * a)
    p = single(1.061405429) * t - single(1.453152027)
    p = p * t + single(1.421413741)
    p = p * t - single(0.284496736)
    p = p * t + single(0.254829592)
    e = 1 - p * t * (0 - a * a).exp()
    return single(0.5) * x * (1 + e.with_sign_of(z))


def _silu(x: Lanes) -> Lanes:
    return x / (1 + (0 - x).exp())


def _relu(x: Lanes) -> Lanes:
    return x.at_least(0.0)


def _tanh(x: Lanes) -> Lanes:
    return 2 / (1 + (0 - 2 * x).exp()) - 1


BODIES = (_gelu_new, _gelu, _relu, _silu, _tanh)
ACTIVATIONS = {"gelu_new": 0, "gelu_pytorch_tanh": 0, "gelu": 1, "relu": 2, "silu": 3, "swish": 3, "tanh": 4}


@constant_intrinsic
def activate(typing_context: Any, kind: Any, x: Any, at: Any, vectors: Any, f: Any, post: Any) -> Any:
    """16 `vectors` values from x[at] through BODIES[kind], a constant, times f[post:], in place."""
    body = BODIES[kind.literal_value]

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[1], args[1], args[2], F32)
        fs = _pointer(context, builder, sig.args[4], args[4], args[5], F32)
        with cgutils.for_range(builder, args[3]) as loop:
            column = builder.mul(loop.index, _index(16))
            place = builder.gep(xs, [column])
            factor = Lanes(builder, _load(builder, builder.gep(fs, [column]), V16F32))
            _store(builder, (body(Lanes(builder, _load(builder, place, V16F32))) * factor).value, place)
        return context.get_dummy_value()

    i = types.int64
    return types.void(kind, x, i, i, f, i), generate


@constant_intrinsic
def dequantise(
    typing_context: Any, adds: Any, sums: Any, at: Any, vectors: Any, scale: Any, f: Any, scales: Any, bias: Any,
    out: Any, to: Any,
) -> Any:  # fmt: skip
    """out[to:] = sums * (scale * f[scales:]) + f[bias:], or added to what is there where `adds` is the constant 1.

    sums int32 [16 vectors] from `at`. bias -1: none.
    """
    add = bool(adds.literal_value)
    i = types.int64
    signature = types.void(adds, sums, i, i, types.float32, f, i, i, out, i)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source = _pointer(context, builder, sig.args[1], args[1], args[2], I32)
        row = Lanes(builder, _splat(builder, args[4], V16F32))
        factors = _pointer(context, builder, sig.args[5], args[5], args[6], F32)
        has_bias = builder.icmp_signed(">=", args[7], _index(0))
        biases = _pointer(context, builder, sig.args[5], args[5], builder.select(has_bias, args[7], args[6]), F32)
        target = _pointer(context, builder, sig.args[8], args[8], args[9], F32)
        with cgutils.for_range(builder, args[3]) as loop:
            column = builder.mul(loop.index, _index(16))
            value = Lanes(builder, builder.sitofp(_load(builder, builder.gep(source, [column]), V16I32), V16F32))
            value = value * (row * _floats(builder, factors, column))
            with_bias = value + _floats(builder, biases, column)
            value = Lanes(builder, builder.select(has_bias, with_bias.value, value.value))
            if add:
                value = _floats(builder, target, column) + value
            _store(builder, value.value, builder.gep(target, [column]))
        return context.get_dummy_value()

    return signature, generate


# ---------------------------------------------------------------- rows


V16I8 = ir.VectorType(I8, 16)
i64, f32 = types.int64, types.float32


def _floats(builder: Any, base: Any, at: Any) -> Lanes:
    return Lanes(builder, _load(builder, builder.gep(base, [at]), V16F32))


@intrinsic
def squares(typing_context: Any, x: Any, at: Any, vectors: Any, mean: Any, out: Any, to: Any) -> Any:
    """out[to:] = (x - mean)**2."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], args[1], F32)
        outs = _pointer(context, builder, sig.args[4], args[4], args[5], F32)
        mean = Lanes(builder, _splat(builder, args[3], V16F32))
        with cgutils.for_range(builder, args[2]) as loop:
            column = builder.mul(loop.index, _index(16))
            d = _floats(builder, xs, column) - mean
            _store(builder, (d * d).value, builder.gep(outs, [column]))
        return context.get_dummy_value()

    return types.void(x, i64, i64, f32, out, i64), generate


@intrinsic
def normalise(
    typing_context: Any, x: Any, at: Any, vectors: Any, mean: Any, r: Any, f: Any, gain: Any, bias: Any,
    out: Any, to: Any,
) -> Any:  # fmt: skip
    """out[to:] = (x - mean) * r * f[gain:] + f[bias:]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], args[1], F32)
        gains = _pointer(context, builder, sig.args[5], args[5], args[6], F32)
        biases = _pointer(context, builder, sig.args[5], args[5], args[7], F32)
        outs = _pointer(context, builder, sig.args[8], args[8], args[9], F32)
        mean, r = (Lanes(builder, _splat(builder, args[k], V16F32)) for k in (3, 4))
        with cgutils.for_range(builder, args[2]) as loop:
            column = builder.mul(loop.index, _index(16))
            d = (_floats(builder, xs, column) - mean) * r
            value = d * _floats(builder, gains, column) + _floats(builder, biases, column)
            _store(builder, value.value, builder.gep(outs, [column]))
        return context.get_dummy_value()

    return types.void(x, i64, i64, f32, f32, f, i64, i64, out, i64), generate


@intrinsic
def to_int8(typing_context: Any, x: Any, at: Any, vectors: Any, inverse: Any, q: Any, to: Any) -> Any:
    """q[to:] = round(x * inverse) as int8; the sum of all (int32)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], args[1], F32)
        qs = _pointer(context, builder, sig.args[4], args[4], args[5], I8)
        inverse = Lanes(builder, _splat(builder, args[3], V16F32))
        total = cgutils.alloca_once_value(builder, ir.Constant(V16I32, [0] * 16))
        with cgutils.for_range(builder, args[2]) as loop:
            column = builder.mul(loop.index, _index(16))
            whole = (_floats(builder, xs, column) * inverse).rounded()
            builder.store(builder.add(builder.load(total), whole), total)
            _store(builder, builder.trunc(whole, V16I8), builder.gep(qs, [column]), 1)
        return _call(builder, "llvm.vector.reduce.add.v16i32", I32, [builder.load(total)])

    return types.int32(x, i64, i64, f32, q, i64), generate


# ---------------------------------------------------------------- scores over the blocks of a table


def _entry(builder: Any, table: Any, block: Any, stride: Any) -> Any:
    return builder.mul(builder.sext(builder.load(builder.gep(table, [block])), I64), stride)


def _below(builder: Any, column: Any, n: Any) -> Any:
    """Which of 16 lanes from `column` on come before n."""
    lanes = ir.Constant(V16I32, list(range(16)))
    left = builder.trunc(builder.sub(n, column), I32)
    return builder.icmp_signed("<", lanes, _splat(builder, left, V16I32))


def _highest(builder: Any, vector: Any) -> Any:
    """The largest of 16 lanes."""
    for width in (8, 4, 2, 1):
        low, high = _part(builder, vector, 0, width), _part(builder, vector, width, width)
        vector = builder.select(builder.fcmp_ordered(">", high, low), high, low)
    return builder.extract_element(vector, ir.Constant(I32, 0))


@intrinsic
def scale_scores(
    typing_context: Any, sums: Any, at: Any, n: Any, blocks: Any, factor: Any, scales: Any, scale: Any, stride: Any,
    table: Any, table_at: Any, scores: Any,
) -> Any:  # fmt: skip
    """scores = sums[at:] * (factor * the keys' scales) for n tokens, -inf up to the last block's end; the largest.

    The scales of block b begin at scale + table[table_at + b] * stride.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source = _pointer(context, builder, sig.args[0], args[0], args[1], I32)
        factor = Lanes(builder, _splat(builder, args[4], V16F32))
        factors = _pointer(context, builder, sig.args[5], args[5], args[6], F32)
        entries = _pointer(context, builder, sig.args[8], args[8], args[9], I32)
        outs = _pointer(context, builder, sig.args[10], args[10], _index(0), F32)
        nothing = ir.Constant(V16F32, [-math.inf] * 16)
        most = cgutils.alloca_once_value(builder, nothing)
        with cgutils.for_range(builder, args[3]) as loop:
            column = builder.mul(loop.index, _index(16))
            value = Lanes(builder, builder.sitofp(_load(builder, builder.gep(source, [column]), V16I32), V16F32))
            keys = _floats(builder, factors, _entry(builder, entries, loop.index, args[7]))
            score = builder.select(_below(builder, column, args[2]), (value * (factor * keys)).value, nothing)
            larger = builder.fcmp_ordered(">", score, builder.load(most))
            builder.store(builder.select(larger, score, builder.load(most)), most)
            _store(builder, score, builder.gep(outs, [column]))
        return _highest(builder, builder.load(most))

    return f32(sums, i64, i64, i64, f32, scales, i64, i64, table, i64, scores), generate


@intrinsic
def weigh_scores(
    typing_context: Any, scores: Any, n: Any, blocks: Any, highest: Any, scales: Any, scale: Any, stride: Any,
    table: Any, table_at: Any, found: Any,
) -> Any:  # fmt: skip
    """scores = e**(scores - highest) * the values' scales for n tokens, 0 up to the last block's end, in place.

    found[0] is the lane sum of the exponentials, found[1] the largest product.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], _index(0), F32)
        highest = Lanes(builder, _splat(builder, args[3], V16F32))
        factors = _pointer(context, builder, sig.args[4], args[4], args[5], F32)
        entries = _pointer(context, builder, sig.args[7], args[7], args[8], I32)
        results = _pointer(context, builder, sig.args[9], args[9], _index(0), F32)
        zero = ir.Constant(V16F32, [0.0] * 16)
        total, most = cgutils.alloca_once_value(builder, zero), cgutils.alloca_once_value(builder, zero)
        with cgutils.for_range(builder, args[2]) as loop:
            column = builder.mul(loop.index, _index(16))
            seen = _below(builder, column, args[1])
            e = Lanes(builder, builder.select(seen, (_floats(builder, xs, column) - highest).exp().value, zero))
            builder.store(builder.fadd(builder.load(total), e.value), total)
            values = _floats(builder, factors, _entry(builder, entries, loop.index, args[6]))
            product = builder.select(seen, (e * values).value, zero)
            larger = builder.fcmp_ordered(">", product, builder.load(most))
            builder.store(builder.select(larger, product, builder.load(most)), most)
            _store(builder, product, builder.gep(xs, [column]))
        vector = builder.load(total)
        for width in (8, 4, 2, 1):
            vector = builder.fadd(_part(builder, vector, 0, width), _part(builder, vector, width, width))
        builder.store(builder.extract_element(vector, ir.Constant(I32, 0)), results)
        builder.store(_highest(builder, builder.load(most)), builder.gep(results, [_index(1)]))
        return context.get_dummy_value()

    return types.void(scores, i64, i64, f32, scales, i64, i64, table, i64, found), generate


@intrinsic
def exponentials(typing_context: Any, x: Any, vectors: Any, highest: Any) -> Any:
    """x = e**(x - highest), in place."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], _index(0), F32)
        highest = Lanes(builder, _splat(builder, args[2], V16F32))
        with cgutils.for_range(builder, args[1]) as loop:
            column = builder.mul(loop.index, _index(16))
            _store(builder, (_floats(builder, xs, column) - highest).exp().value, builder.gep(xs, [column]))
        return context.get_dummy_value()

    return types.void(x, i64, f32), generate


@intrinsic
def to_shares(typing_context: Any, x: Any, vectors: Any, inverse: Any, shares: Any, to: Any, stride: Any) -> Any:
    """Whole numbers round(x * inverse) up to 65,535: high bytes to shares[to:], low bytes to shares[to + stride:]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[0], args[0], _index(0), F32)
        inverse = Lanes(builder, _splat(builder, args[2], V16F32))
        outs = _pointer(context, builder, sig.args[3], args[3], args[4], I8)
        lows = builder.gep(outs, [args[5]])
        with cgutils.for_range(builder, args[1]) as loop:
            column = builder.mul(loop.index, _index(16))
            whole = (_floats(builder, xs, column) * inverse).at_most(65535.0).rounded()
            high = builder.lshr(whole, ir.Constant(V16I32, [8] * 16))
            _store(builder, builder.trunc(high, V16I8), builder.gep(outs, [column]), 1)
            _store(builder, builder.trunc(whole, V16I8), builder.gep(lows, [column]), 1)
        return context.get_dummy_value()

    return types.void(x, i64, f32, shares, i64, i64), generate


@intrinsic
def combine(typing_context: Any, sums: Any, at: Any, vectors: Any, factor: Any, out: Any, to: Any) -> Any:
    """out[to:] = (high * 256 + low) * factor, from int32 sums [2, 16 vectors] at `at`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source = _pointer(context, builder, sig.args[0], args[0], args[1], I32)
        low_at = builder.mul(args[2], _index(16))
        factor = Lanes(builder, _splat(builder, args[3], V16F32))
        outs = _pointer(context, builder, sig.args[4], args[4], args[5], F32)
        with cgutils.for_range(builder, args[2]) as loop:
            column = builder.mul(loop.index, _index(16))
            high, low = (
                Lanes(builder, builder.sitofp(_load(builder, builder.gep(source, [at]), V16I32), V16F32))
                for at in (column, builder.add(low_at, column))
            )
            _store(builder, ((high * 256 + low) * factor).value, builder.gep(outs, [column]))
        return context.get_dummy_value()

    return types.void(sums, i64, i64, f32, out, i64), generate


@intrinsic
def scatter_key(typing_context: Any, q: Any, steps: Any, cache: Any, to: Any) -> Any:
    """Groups of four int8 channels from q, 128 added, to cache[to + 64 g]: one token of a block of keys."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        qs = _pointer(context, builder, sig.args[0], args[0], _index(0), I8)
        outs = _pointer(context, builder, sig.args[2], args[2], args[3], I8)
        with cgutils.for_range(builder, args[1]) as loop:
            four = _load(builder, builder.gep(qs, [builder.mul(loop.index, _index(4))]), I32, 1)
            flipped = builder.xor(four, ir.Constant(I32, 0x80808080))
            _store(builder, flipped, builder.gep(outs, [builder.mul(loop.index, _index(64))]), 1)
        return context.get_dummy_value()

    return types.void(q, i64, cache, i64), generate


@intrinsic
def scatter_value(typing_context: Any, q: Any, vectors: Any, cache: Any, to: Any, byte: Any) -> Any:
    """int8 channel d of 16 `vectors` from q to cache[to + 4 d + byte]: one token of a block of values."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        qs = _pointer(context, builder, sig.args[0], args[0], _index(0), I8)
        outs = _pointer(context, builder, sig.args[2], args[2], args[3], I8)
        shift = builder.mul(builder.trunc(args[4], I32), ir.Constant(I32, 8))
        kept = _splat(builder, builder.not_(builder.shl(ir.Constant(I32, 255), shift)), V16I32)
        shifts = _splat(builder, shift, V16I32)
        with cgutils.for_range(builder, args[1]) as loop:
            channels = builder.zext(
                _load(builder, builder.gep(qs, [builder.mul(loop.index, _index(16))]), V16I8, 1), V16I32
            )
            place = builder.gep(outs, [builder.mul(loop.index, _index(64))])
            others = builder.and_(_load(builder, place, V16I32, 1), kept)
            _store(builder, builder.or_(others, builder.shl(channels, shifts)), place, 1)
        return context.get_dummy_value()

    return types.void(q, i64, cache, i64, i64), generate
