"""Low-rank adapters over one base: what each adds to a row, and how it lies in memory.

A Linear's answer y to a row x becomes y + B (A x), with A [r, K] and B [N, r] (Hu et al. 2021, LoRA; the scale is in B
already). A step computes rows of many adapters, and of none, together: a stream's slot says which is its own.

    shrink   beside the quantising of a row, from the same floats: u = A x, each of the r sums over 16 lanes
    expand   behind the linear, by the thread that owns the outputs: y += sum of u[k] B[:, k], k ascending

Every product and sum is rounded by itself, in an order that only A's and B's shapes decide. So a row gets the same bits
in any company, and numpy says the same ones. Rows of other streams are not touched.

int8 weights are smoothed (smoothing.py): their inputs come divided by factors that the adapter was not trained with,
and c_attn's outputs are multiplied by some. Both are folded into A's columns and B's rows when the adapter is packed.

Packed: A float32 [r, K], B float32 [N/64, r, 64]; r padded to a multiple of 4, K of 16, N of 64.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.np import numpy_support
from numpy.typing import NDArray

from gpt2kit import runtime
from gpt2kit.engine.kernels import TILE, ZERO, Array, _activate, called
from gpt2kit.engine.lanes import Lanes, _floats
from gpt2kit.engine.simd import (
    F32,
    I32,
    V16F32,
    _accumulators,
    _index,
    _part,
    _pointer,
    _splat,
    _store,
    cgutils,
    constant_intrinsic,
    pointer,
)
from gpt2kit.engine.weights import BLOCK_N, Floats, LayerLayout, LinearLayout, PackedWeights, aligned, pad
from gpt2kit.errors import UserError, unknown

carray: Any = numpy_support.carray  # has no types
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # of a layer, in the table's order
ENTRY = 3  # numbers that a table has of a Linear: the addresses of A and B, and r; r = 0: nothing is added
LAYER_ENTRIES = len(LINEARS) * ENTRY
PAD_RANK = 4
WIDE, NARROW = 8, PAD_RANK  # rows of A that share a pass over x
TOGETHER = 4  # rows of one stream that share a pass over B

Factors = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]  # Linear's name -> A [r, in], B [out, r]


# ---------------------------------------------------------------- compiled


class LowRank(NamedTuple):
    """What compiled code knows of the adapters of a step. Addresses, as in views.py: an array would be counted."""

    table: int  # address of int64 [slots, L, 4, ENTRY]
    size: int  # numbers of a slot
    parts: int  # address of float32 [rows, stride]: A x of rows, at the rows' places among the quantised ones
    stride: int
    which: int  # bits: which Linears of a layer have an adapter in this step


@constant_intrinsic
def lane_products(
    typing_context: Any, rows: Any, x: Any, at: Any, vectors: Any, a: Any, a_at: Any, out: Any, to: Any
) -> Any:
    """out[to + m] = the lane sum of x[at:] * a[a_at + 16 m vectors :], for `rows` rows of a, a constant."""
    M, i = rows.literal_value, types.int64

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        xs = _pointer(context, builder, sig.args[1], args[1], args[2], F32)
        first = _pointer(context, builder, sig.args[4], args[4], args[5], F32)
        outs = _pointer(context, builder, sig.args[6], args[6], args[7], F32)
        width = builder.mul(args[3], _index(16))
        starts = [builder.gep(first, [builder.mul(width, _index(m))]) for m in range(M)]
        sums = _accumulators(builder, [ir.Constant(V16F32, [0.0] * 16)] * M)
        with cgutils.for_range(builder, args[3]) as loop:
            column = builder.mul(loop.index, _index(16))
            value = _floats(builder, xs, column)
            for m in range(M):
                total = Lanes(builder, builder.load(sums[m])) + value * _floats(builder, starts[m], column)
                builder.store(total.value, sums[m])
        for m in range(M):
            vector = builder.load(sums[m])
            for width in (8, 4, 2, 1):
                vector = builder.fadd(_part(builder, vector, 0, width), _part(builder, vector, width, width))
            builder.store(builder.extract_element(vector, ir.Constant(I32, 0)), builder.gep(outs, [_index(m)]))
        return context.get_dummy_value()

    return types.void(rows, x, i, i, a, i, out, i), generate


@constant_intrinsic
def add_products(
    typing_context: Any, rows: Any, u: Any, u_at: Any, u_stride: Any, b: Any, b_at: Any, rank: Any, out: Any, to: Any,
    stride: Any,
) -> Any:  # fmt: skip
    """out += sum over k of u[k] * b[k], for `rows` rows, a constant, of 64 outputs.

    Row m: u from u_at + m u_stride, out from to + m stride. b [rank, 64] from b_at.
    """
    M, N, i = rows.literal_value, TILE // 16, types.int64

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        us = _pointer(context, builder, sig.args[1], args[1], args[2], F32)
        bs = _pointer(context, builder, sig.args[4], args[4], args[5], F32)
        outs = _pointer(context, builder, sig.args[7], args[7], args[8], F32)
        sources = [builder.gep(us, [builder.mul(args[3], _index(m))]) for m in range(M)]
        sums = _accumulators(builder, [ir.Constant(V16F32, [0.0] * 16)] * (M * N))
        with cgutils.for_range(builder, args[6]) as loop:
            line = builder.mul(loop.index, _index(TILE))
            weights = [_floats(builder, bs, builder.add(line, _index(16 * n))) for n in range(N)]
            for m in range(M):
                one = builder.load(builder.gep(sources[m], [loop.index]))
                factor = Lanes(builder, _splat(builder, one, V16F32))
                for n in range(N):
                    place = sums[m * N + n]
                    builder.store((Lanes(builder, builder.load(place)) + factor * weights[n]).value, place)
        for m in range(M):
            row = builder.gep(outs, [builder.mul(args[9], _index(m))])
            for n in range(N):
                total = _floats(builder, row, _index(16 * n)) + Lanes(builder, builder.load(sums[m * N + n]))
                _store(builder, total.value, builder.gep(row, [_index(16 * n)]))
        return context.get_dummy_value()

    return types.void(rows, u, i, i, b, i, i, out, i, i), generate


@called
def shrink(x: Array, at: int, n: int, R: LowRank, slot: int, row: int, place: int) -> None:
    """A x of the row x[at : at + n] into part `row`; nothing where its stream, in `slot`, has no adapter here.

    n is a multiple of 16; place: where a slot's entry of this Linear lies.
    """
    vectors = n // 16
    entry = carray(pointer(R.table + 8 * (slot * R.size + place)), (ENTRY,), np.int64)
    rank = entry[2]
    if rank == 0:
        return
    a = carray(pointer(entry[0]), (rank * vectors * 16,), np.float32)
    u = carray(pointer(R.parts + 4 * row * R.stride), (rank,), np.float32)
    k = ZERO
    while k < rank:
        if rank - k >= WIDE:
            lane_products(8, x, at, vectors, a, k * vectors * 16, u, k)
            k += WIDE
        else:
            lane_products(4, x, at, vectors, a, k * vectors * 16, u, k)
            k += NARROW


@called
def expand(
    count: int, slots: Array, R: LowRank, place: int, first: int, low: int, high: int, out: Array, out_stride: int
) -> None:
    """Outputs 64 low to 64 high of `count` rows += B u, u from part `first` on; rows without an adapter stay."""
    r = ZERO
    while r < count:
        entry = carray(pointer(R.table + 8 * (np.int64(slots[r]) * R.size + place)), (ENTRY,), np.int64)
        rank = entry[2]
        n = 1
        if r + TOGETHER <= count and slots[r + TOGETHER - 1] == slots[r]:  # the rows of a slot follow each other
            n = TOGETHER
        if rank > 0:
            b = carray(pointer(entry[1]), (rank * high * TILE,), np.float32)
            u = carray(pointer(R.parts + 4 * (first + r) * R.stride), (n * R.stride,), np.float32)
            for block in range(low, high):
                to = r * out_stride + block * TILE
                if n == 1:
                    add_products(1, u, 0, R.stride, b, block * rank * TILE, rank, out, to, out_stride)
                else:
                    add_products(4, u, 0, R.stride, b, block * rank * TILE, rank, out, to, out_stride)
        r += n


@called
def activate_blocks(count: int, low: int, high: int, out: Array, stride: int, kind: int, f: Array, post: int) -> None:
    """What ACTIVATE does, where an adapter's part had to be added first."""
    for r in range(count):
        for block in range(low, high):
            _activate(kind, out, r * stride + block * TILE, f, post + block * TILE)


# ---------------------------------------------------------------- packing

_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, packed for one engine's weights. It lives as long as somebody holds it."""

    name: str
    number: int  # another one for each adapter that this process ever makes: what the prefix cache knows it by
    table: NDArray[np.int64]  # flat [L, 4, ENTRY]
    floats: Floats  # what the table points into
    rank: int  # the largest, padded
    which: int  # bits of LINEARS that it touches in any layer

    @property
    def bytes(self) -> int:
        return self.floats.nbytes + self.table.nbytes


def pack_adapter(name: str, factors: Factors, packed: PackedWeights) -> Adapter:
    """`factors` over these weights.

    UserError names a Linear that is not there, a wrong shape, a value that is not finite, the memory that it takes.
    """
    layers = packed.layout.layers
    places = {f"h.{i}.{end}": (i, j) for i in range(len(layers)) for j, end in enumerate(LINEARS)}
    checked = {places[linear]: pair for linear, pair in _checked(name, factors, places, layers).items()}
    count = sum(_size(_linears(layers[i])[j], len(a)) for (i, j), (a, _) in checked.items())
    free = runtime.available_memory()
    if 4 * count > free:
        raise UserError(
            f"adapter {name!r} takes {4 * count / 2**20:,.0f} MB, {free / 2**20:,.0f} MB are free",
            hint="remove another adapter, or load the engine with a smaller cache_memory",
        )
    floats, table = aligned(count, np.float32), np.zeros((len(layers), len(LINEARS), ENTRY), np.int64)
    start = rank = which = 0
    for (i, j), (a, b) in checked.items():
        at, r = _linears(layers[i])[j], pad(len(a), PAD_RANK)
        inputs, outputs = _smoothed(packed, layers[i])[j]
        middle, end = start + r * at.k_padded, start + _size(at, r)
        with np.errstate(over="ignore", invalid="ignore"):
            floats[start:middle].reshape(r, at.k_padded)[: len(a), : at.k] = a * inputs
            columns = np.zeros((at.n_padded, r), np.float32)
            columns[: at.n, : len(a)] = b * outputs[:, None]
        floats[middle:end].reshape(-1, r, BLOCK_N)[:] = columns.reshape(-1, BLOCK_N, r).transpose(0, 2, 1)
        if not np.isfinite(floats[start:end]).all():
            raise UserError(
                f"adapter {name!r}: h.{i}.{LINEARS[j]} holds NaN, infinity, or a value too large",
                hint="train the adapter again, from before its loss exploded",
            )
        table[i, j] = floats.ctypes.data + 4 * start, floats.ctypes.data + 4 * middle, r
        start, rank, which = end, max(rank, r), which | 1 << j
    return Adapter(name, next(_numbers), table.reshape(-1), floats, rank, which)


def _size(at: LinearLayout, rank: int) -> int:
    return pad(rank, PAD_RANK) * (at.k_padded + at.n_padded)


def _linears(layer: LayerLayout) -> tuple[LinearLayout, ...]:
    return layer.c_attn, layer.attn_proj, layer.c_fc, layer.mlp_proj


def _smoothed(packed: PackedWeights, layer: LayerLayout) -> list[tuple[Floats, Floats]]:
    """For each of LINEARS what A's columns [K] and B's rows [N] are multiplied by, since the weights are smoothed."""
    floats, C = packed.floats, packed.config.n_embd
    attn, proj, fc, qk = floats[layer.smoothed : layer.smoothed + 4 * C].reshape(4, C)
    post = floats[layer.post : layer.post + layer.mlp_proj.k]
    outputs = np.concatenate([qk, np.reciprocal(qk), np.reciprocal(proj)])
    inner, ones = np.ones(layer.c_fc.n, np.float32), np.ones(C, np.float32)
    return [(attn, outputs), (proj, ones), (fc, inner), (np.reciprocal(post), ones)]


def _checked(
    name: str, factors: Factors, places: Mapping[str, tuple[int, int]], layers: tuple[LayerLayout, ...]
) -> dict[str, tuple[Floats, Floats]]:
    if not isinstance(factors, Mapping) or not factors:
        raise UserError(f"adapter {name!r} has no factors", hint="give A and B by Linear: {'h.0.attn.c_attn': (A, B)}")
    found = {}
    for linear, pair in factors.items():
        if linear not in places:
            raise unknown(f"Linear of adapter {name!r}", str(linear), places)
        i, j = places[linear]
        at = _linears(layers[i])[j]
        arrays = [np.asarray(one) for one in pair] if isinstance(pair, tuple | list) else []
        shapes = [one.shape for one in arrays if one.dtype.kind == "f"]
        r = shapes[0][0] if shapes and shapes[0] else 0
        if r < 1 or len(arrays) != 2 or shapes != [(r, at.k), (at.n, r)]:
            got = ", ".join(f"{one.dtype} {list(one.shape)}" for one in arrays) or type(pair).__name__
            raise UserError(
                f"adapter {name!r}: {linear} needs floats A [r, {at.k}] and B [{at.n}, r], got {got}",
                hint="was the adapter made for a model of another shape?",
            )
        found[linear] = arrays[0].astype(np.float32), arrays[1].astype(np.float32)
    return found
