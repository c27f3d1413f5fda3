"""The arithmetic of one row, on flat buffers: LayerNorm, quantising, linears, activations, attention.

Plain Python functions that Numba compiles inside `forward.py`'s step. No fast-math: every float32 operation is rounded
by itself in the order written, so numpy says the same bits (`tests/engine/oracle.py` does). Buffers are flat; an
argument `at` is an offset into one. Rows are padded to a multiple of 64 elements with zeros that stay zeros.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpt2kit.engine.lanes import (
    activate,
    combine,
    dequantise,
    exponentials,
    normalise,
    scale_scores,
    scatter_key,
    scatter_value,
    squares,
    to_int8,
    to_shares,
    weigh_scores,
)
from gpt2kit.engine.simd import (
    CODES,
    Decorator,
    Instructions,
    dot_tile,
    fma_tile,
    key_scores,
    lane_sum,
    largest,
    largest_size,
    weigh_values,
)
from gpt2kit.jit import inner

F = np.float32
Array = Any  # a flat numpy array; Numba specialises by what it is given
OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "nogil": True}
called: Decorator = inner(**OPTIONS)  # linears: large, and called rarely
# What runs for every head and row: a call costs as much as its work.
inlined: Decorator = inner(forceinline=True, **OPTIONS)

BLOCK = 16  # tokens of a key-value block: the lanes of a vector of scores
TILE = 64  # outputs of a packed block of weights
ROWS = 12  # rows of the largest tile: 12 x 2 vectors of sums and 2 of weights fill 26 of 32 registers
SHARES = F(65535)
TINY = F(1e-30)  # a row that is smaller is zero: 127 / 1e-37 would overflow
WIDE = CODES["avx512_vnni"]  # 32 registers of 512 bits
FROM_MEMORY, FROM_CACHE = 16384, 1024  # bytes that weights are fetched ahead the first time that rows pass, and after
SHARED = 64  # the head size for which rows of one prompt share passes: GPT-2's own
QUERIES = 4  # rows that share a pass over the keys
PAIR = 2  # rows that share one over the values: 2 rows x 2 bytes x 4 vectors of sums
# What a linear does with its outputs; BARE is STORE without a bias. int64, since Numba would compile a function anew
# for every combination of literal numbers that it is called with.
ZERO: Any = np.int64(0)
STORE, ADD, ACTIVATE, BARE = np.int64(0), np.int64(1), np.int64(2), np.int64(3)


class Work(NamedTuple):
    """One thread's room for a tile, and for a head of QUERIES rows."""

    head: Array  # float32 [DP]: a padded head
    q: Array  # int8 [QUERIES, DP]
    scales: Array  # float32 [QUERIES]
    begins: Array  # int32 [QUERIES]
    integers: Array  # int32 [QUERIES, span]
    scores: Array  # float32 [span]
    found: Array  # float32 [2]
    shares: Array  # uint8 [PAIR, 2, span]
    factors: Array  # float32 [PAIR]
    sums: Array  # int32 [ROWS, TILE], or [PAIR, 2, 64]
    float_sums: Array  # float32 [ROWS, TILE]


@inlined
def layernorm(x: Array, at: int, n: int, f: Array, gain: int, bias: int, eps: Any, out: Array, to: int) -> None:
    """LayerNorm of x[at : at + n] into out[to:], which has room up to the next multiple of 16; pads with zeros."""
    whole = n // 16
    vectors = (n + 15) // 16
    size = F(1) / F(n)
    mean = lane_sum(x, at, vectors) * size
    squares(x, at, whole, mean, out, to)
    for i in range(16 * whole, n):
        out[to + i] = (x[at + i] - mean) * (x[at + i] - mean)
    for i in range(n, 16 * vectors):
        out[to + i] = F(0)
    r = F(1) / F(math.sqrt(lane_sum(out, to, vectors) * size + eps))
    normalise(x, at, whole, mean, r, f, gain, bias, out, to)
    for i in range(16 * whole, n):
        out[to + i] = (x[at + i] - mean) * r * f[gain + i] + f[bias + i]


@inlined
def quantise(y: Array, at: int, n: int, q: Array, to: int, scales: Array, begins: Array, row: int) -> None:
    """y[at : at + n] to int8 q[to:] and scales[row]; begins[row] is what the row's integer sums begin with.

    Weights are stored 128 too large, so -128 times the sum of q takes that back. n is a multiple of 16.
    """
    size = largest_size(y, at, n // 16)
    if size < TINY:
        size = F(0)
    inverse = F(127) / size if size > F(0) else F(0)
    begins[row] = np.int32(-128) * to_int8(y, at, n // 16, inverse, q, to)
    scales[row] = size / F(127)


@called
def _activate(kind: int, x: Array, at: int, f: Array, post: int) -> None:
    """A tile's row through the activation, times f[post:]."""
    if kind == 0:
        activate(0, x, at, TILE // 16, f, post)
    elif kind == 1:
        activate(1, x, at, TILE // 16, f, post)
    elif kind == 2:
        activate(2, x, at, TILE // 16, f, post)
    elif kind == 3:
        activate(3, x, at, TILE // 16, f, post)
    else:
        activate(4, x, at, TILE // 16, f, post)


@called
def _finish(
    sums: Array, rows: int, scales: Array, first: int, f: Array, scale: int, bias: int, out: Array, to: int,
    stride: int, mode: int, kind: int, post: int,
) -> None:  # fmt: skip
    """A tile of integer sums to floats, `mode` says how."""
    for m in range(rows):
        at = to + m * stride
        if mode == ADD:
            dequantise(1, sums, m * TILE, TILE // 16, scales[first + m], f, scale, bias, out, at)
        else:
            dequantise(0, sums, m * TILE, TILE // 16, scales[first + m], f, scale, bias, out, at)
        if mode == ACTIVATE:
            _activate(kind, out, at, f, post)


@called
def _tile_int8(
    isa: Instructions, rows: int, q: Array, x: int, stride: int, w: Array, tile: int, steps: int, ahead: int,
    begins: Array, b: int, sums: Array,
) -> int:  # fmt: skip
    """Integer sums of the next few of `rows` rows with 64 outputs; how many they are.

    As many as the CPU's registers hold sums for. A tile may also sum rows beyond the last, which nobody reads: buffers
    have room for ROWS more. From 7 rows on a block of weights is read in two strips, so that 12 rows share one reading.
    """
    if rows == 1:
        dot_tile(isa, 1, 4, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
        return 1
    if len(isa) != WIDE:
        n = min(rows, 4)
        for part in range(0, TILE, 16):
            if n == 4:
                dot_tile(isa, 4, 1, q, x, stride, w, tile + 4 * part, steps, ahead, begins, b, sums, part, TILE)
            elif n == 3:
                dot_tile(isa, 3, 1, q, x, stride, w, tile + 4 * part, steps, ahead, begins, b, sums, part, TILE)
            else:
                dot_tile(isa, 2, 1, q, x, stride, w, tile + 4 * part, steps, ahead, begins, b, sums, part, TILE)
        return n
    if rows > 8:
        n = min(rows, ROWS)
        dot_tile(isa, 12, 2, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
        dot_tile(isa, 12, 2, q, x, stride, w, tile + 128, steps, ahead, begins, b, sums, 32, TILE)
        return n
    if rows > 6:
        dot_tile(isa, 8, 2, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
        dot_tile(isa, 8, 2, q, x, stride, w, tile + 128, steps, ahead, begins, b, sums, 32, TILE)
        return rows
    if rows == 6:
        dot_tile(isa, 6, 4, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
        return rows
    if rows == 5:
        dot_tile(isa, 5, 4, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
    elif rows == 4:
        dot_tile(isa, 4, 4, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
    elif rows == 3:
        dot_tile(isa, 3, 4, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
    else:
        dot_tile(isa, 2, 4, q, x, stride, w, tile, steps, ahead, begins, b, sums, 0, TILE)
    return rows


@called
def linear_int8(
    isa: Instructions, q: Array, q_at: int, q_stride: int, scales: Array, begins: Array, first: int, rows: int,
    w: Array, w_at: int, inputs: int, low: int, high: int, f: Array, scale: int, bias: int,
    sums: Array, out: Array, out_stride: int, mode: int, kind: int, post: int,
) -> None:  # fmt: skip
    """Outputs 64 low to 64 high of a linear, for `rows` rows of int8 from q_at on, scales[first] on.

    `inputs` is a multiple of 4; `sums` holds a tile of int32. All rows pass over a block of weights while it is in
    cache.
    """
    steps = inputs // 4
    for block in range(low, high):
        tile, column = w_at + block * TILE * inputs, block * TILE
        r = ZERO
        while r < rows:
            ahead = FROM_MEMORY if r == 0 else FROM_CACHE
            n = _tile_int8(
                isa, rows - r, q, q_at + r * q_stride, q_stride, w, tile, steps, ahead, begins, first + r, sums
            )  # fmt: skip
            b = first + r
            to = r * out_stride + column
            at = -1 if mode == BARE else bias + column
            _finish(sums, n, scales, b, f, scale + column, at, out, to, out_stride, mode, kind, post + column)
            r += n


@called
def linear_fp32(
    x: Array, x_at: int, x_stride: int, rows: int, w: Array, w_at: int, inputs: int, low: int, high: int,
    f: Array, bias: int, sums: Array, out: Array, out_stride: int, mode: int, kind: int, post: int,
) -> None:  # fmt: skip
    """The same in float32; every output is summed over the inputs in ascending order, whatever the tile."""
    for block in range(low, high):
        tile, column = w_at + block * TILE * inputs, block * TILE
        r = ZERO
        while r < rows:
            n = min(6, rows - r)
            at = x_at + r * x_stride
            if n == 6:
                fma_tile(6, 4, x, at, x_stride, w, tile, inputs, sums, 0, TILE)
            elif n >= 3:
                n = 3
                fma_tile(3, 4, x, at, x_stride, w, tile, inputs, sums, 0, TILE)
            else:
                n = 1
                fma_tile(1, 4, x, at, x_stride, w, tile, inputs, sums, 0, TILE)
            for m in range(n):
                to = (r + m) * out_stride + column
                if mode == ADD:
                    for j in range(TILE):
                        out[to + j] += sums[m * TILE + j] + f[bias + column + j]
                elif mode == BARE:
                    for j in range(TILE):
                        out[to + j] = sums[m * TILE + j]
                else:
                    for j in range(TILE):
                        out[to + j] = sums[m * TILE + j] + f[bias + column + j]
                if mode == ACTIVATE:
                    _activate(kind, out, to, f, post + column)
            r += n


# ---------------------------------------------------------------- attention
#
# A block holds 16 tokens of one head of one layer. int8: keys uint8 [D/4, 16, 4], 128 too large; values int8 [4, D, 4];
# scales float32 [2, 16] elsewhere. fp32: keys [D, 16], values [16, D]. D is the head size, padded to a multiple of 16.


@inlined
def _quantise_head(
    x: Array, at: int, size: int, padded: int, head: Array, q: Array, to: int, s: Array, begins: Array, row: int
) -> None:
    """`quantise` of one head's channels; `head` is room for them where they must be padded."""
    if size == padded:
        quantise(x, at, size, q, to, s, begins, row)
        return
    for d in range(size):
        head[d] = x[at + d]
    for d in range(size, padded):
        head[d] = F(0)
    quantise(head, ZERO, padded, q, to, s, begins, row)


@inlined
def remember_int8(
    qkv: Array, key: int, value: int, size: int, padded: int, cache: Array, block: int, scales: Array, scale: int,
    token: int, W: Any,
) -> None:  # fmt: skip
    """Quantise one token's key and value of one head into place `token` of the block at `block`."""
    _quantise_head(qkv, key, size, padded, W.head, W.q, ZERO, W.scales, W.begins, ZERO)
    scales[scale + token] = W.scales[0]
    scatter_key(W.q, padded // 4, cache, block + token * 4)
    _quantise_head(qkv, value, size, padded, W.head, W.q, ZERO, W.scales, W.begins, ZERO)
    scales[scale + BLOCK + token] = W.scales[0]
    scatter_value(W.q, padded // 16, cache, block + BLOCK * padded + (token // 4) * 4 * padded, token % 4)


@inlined
def softmax_shares(
    integers: Array, at: int, n: int, factor: Any, scales: Array, scale: int, stride: int, table: Array, table_at: int,
    scores: Array, found: Array, shares: Array, to: int, span: int,
) -> Any:  # fmt: skip
    """Integer scores of n tokens to 16-bit shares; what a sum of shares times values is to be multiplied by.

    A share is a token's part of the softmax times the scale of its value. shares[to + t] and shares[to + span + t] are
    its high and its low byte; tokens from n to the end of n's block get 0.
    """
    blocks = (n + BLOCK - 1) // BLOCK
    highest = scale_scores(integers, at, n, blocks, factor, scales, scale, stride, table, table_at, scores)
    weigh_scores(scores, n, blocks, highest, scales, scale + BLOCK, stride, table, table_at, found)
    most = found[1]
    if most < TINY:
        most = F(0)
    to_shares(scores, blocks, SHARES / most if most > F(0) else F(0), shares, to, span)
    return (most / SHARES) / found[0]


@inlined
def attend_int8(
    isa: Instructions, rows: int, qkv: Array, query: int, qkv_stride: int, size: int, padded: int, positions: Array,
    first: int, cache: Array, cache_at: int, cache_stride: int, scales: Array, scale: int, scale_stride: int,
    table: Array, table_at: int, alpha: Any, W: Any, span: int, out: Array, to: int, out_stride: int,
) -> None:  # fmt: skip
    """One head of 1 or QUERIES consecutive rows of one sequence: softmax(q k) v over the tokens up to each row's own.

    QUERIES rows only where the head size is SHARED. `table` lists the sequence's blocks from table_at on; `span` is the
    most tokens that it can hold; W: see `Work`.
    """
    for m in range(rows):
        _quantise_head(qkv, query + m * qkv_stride, size, padded, W.head, W.q, m * padded, W.scales, W.begins, m)
    blocks = np.int64(positions[first + rows - 1]) // BLOCK + 1
    steps = padded // 4
    values = cache_at + BLOCK * padded
    if rows == 1:
        key_scores(
            isa, 1, W.q, padded, cache, cache_at, table, table_at, cache_stride, blocks, steps, W.begins,
            W.integers, span,
        )  # fmt: skip
        factor = softmax_shares(
            W.integers, ZERO, np.int64(positions[first]) + 1, W.scales[0] * alpha, scales, scale, scale_stride, table,
            table_at, W.scores, W.found, W.shares, ZERO, span,
        )  # fmt: skip
        _sum_values(isa, size, padded, blocks, cache, values, cache_stride, table, table_at, factor, W, span, out, to)
        return
    key_scores(
        isa, QUERIES, W.q, padded, cache, cache_at, table, table_at, cache_stride, blocks, steps, W.begins,
        W.integers, span,
    )  # fmt: skip
    for m in range(QUERIES):
        n = np.int64(positions[first + m]) + 1
        W.factors[m % PAIR] = softmax_shares(
            W.integers, m * span, n, W.scales[m] * alpha, scales, scale, scale_stride, table, table_at, W.scores,
            W.found, W.shares, (m % PAIR) * 2 * span, span,
        )  # fmt: skip
        seen = (n + BLOCK - 1) // BLOCK
        if m % PAIR < PAIR - 1:  # its partner may see one block more, of which it has no share
            for t in range(BLOCK * seen, BLOCK * blocks):
                W.shares[t] = 0
                W.shares[span + t] = 0
            continue
        weigh_values(
            isa, PAIR, 4, W.shares, span, cache, values, table, table_at, cache_stride, seen, 4 * padded, W.sums
        )
        for k in range(PAIR):
            combine(W.sums, k * 128, 4, W.factors[k], out, to + (m - PAIR + 1 + k) * out_stride)


@inlined
def _sum_values(
    isa: Instructions, size: int, padded: int, blocks: int, cache: Array, values: int, stride: int, table: Array,
    table_at: int, factor: Any, W: Any, span: int, out: Array, to: int,
) -> None:  # fmt: skip
    """The weighed values of one row and head."""
    if padded == 64 and size == 64:
        weigh_values(isa, 1, 4, W.shares, span, cache, values, table, table_at, stride, blocks, 4 * padded, W.sums)
        combine(W.sums, 0, 4, factor, out, to)
        return
    for part in range(0, padded, 16):
        weigh_values(
            isa, 1, 1, W.shares, span, cache, values + 4 * part, table, table_at, stride, blocks, 4 * padded, W.sums
        )
        combine(W.sums, 0, 1, factor, W.head, 0)
        for d in range(min(16, size - part)):
            out[to + part + d] = W.head[d]


@inlined
def remember_fp32(
    qkv: Array, key: int, value: int, size: int, padded: int, cache: Array, block: int, token: int
) -> None:
    for d in range(size):
        cache[block + d * BLOCK + token] = qkv[key + d]
        cache[block + (BLOCK + token) * padded + d] = qkv[value + d]
    for d in range(size, padded):
        cache[block + d * BLOCK + token] = F(0)
        cache[block + (BLOCK + token) * padded + d] = F(0)


@inlined
def attend_fp32(
    qkv: Array, query: int, size: int, padded: int, position: int, cache: Array, cache_at: int, cache_stride: int,
    table: Array, table_at: int, alpha: Any, scores: Array, out: Array, to: int,
) -> None:  # fmt: skip
    n = position + 1
    blocks = (n + BLOCK - 1) // BLOCK
    for b in range(blocks):
        at = cache_at + np.int64(table[table_at + b]) * cache_stride
        for j in range(BLOCK):
            scores[b * BLOCK + j] = F(0)
        for d in range(size):
            v = qkv[query + d]
            for j in range(BLOCK):
                scores[b * BLOCK + j] += v * cache[at + d * BLOCK + j]
        for j in range(BLOCK):
            scores[b * BLOCK + j] *= alpha
    for t in range(n, BLOCK * blocks):
        scores[t] = F(-np.inf)
    highest = largest(scores, 0, blocks)
    exponentials(scores, blocks, highest)
    for t in range(n, BLOCK * blocks):
        scores[t] = F(0)
    total = lane_sum(scores, 0, blocks)
    for d in range(size):
        out[to + d] = F(0)
    for t in range(n):
        at = cache_at + np.int64(table[table_at + t // BLOCK]) * cache_stride + (BLOCK + t % BLOCK) * padded
        share = scores[t] / total
        for d in range(size):
            out[to + d] += share * cache[at + d]
