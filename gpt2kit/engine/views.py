"""What compiled code is told: the model's sizes, where its parts lie, and the addresses of the arrays it works on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.np import numpy_support

from gpt2kit.engine.adapters import LAYER_ENTRIES, LowRank
from gpt2kit.engine.kernels import Array, Work, inlined
from gpt2kit.engine.simd import pointer

carray: Any = numpy_support.carray  # has no types
COLUMNS = 17  # of the table of a layer's offsets, see `forward._layer_table`
WORK_PARTS = len(Work._fields)


class Shape(NamedTuple):
    """The model's sizes, for compiled code."""

    C: int
    H: int
    D: int  # head size
    DP: int  # padded to 16
    L: int
    CP: int  # the inputs of c_attn, c_fc and the head: C padded to 16
    IP: int  # the inputs of the second projection
    x_stride: int  # floats of a row of C channels
    qkv_stride: int
    ff_stride: int
    q_stride: int  # bytes of a row of quantised inputs
    v_stride: int  # floats of a row of logits
    hb: int  # items of one head's block
    span: int  # tokens of a full table
    kind: int  # the activation
    epsilon: float


class Places(NamedTuple):
    """Where the parts lie in the packed buffers: offsets, see `weights.Layout`."""

    wte: int
    wte_scale: int
    unsmooth: int
    wpe: int
    wpe_stride: int
    head: int
    head_scale: int
    head_blocks: int
    ln_f_g: int
    ln_f_b: int


# Compiled code builds these from the addresses of arrays that `Forward` owns. An array that is passed to compiled code
# is counted by every function that touches it, atomically, in a cache line that all threads share: 0.5 us a head and
# row.


class Rows(NamedTuple):
    """What a step is asked: filled by `Forward.step`."""

    tokens: Array  # int32
    positions: Array  # int32
    slots: Array  # int32
    tables: Array  # int32, flat [S, blocks_per_sequence]
    wanted: Array  # int32


class Buffers(NamedTuple):
    """Flat working memory; rows lie at multiples of their stride."""

    x: Array  # float32
    h: Array  # float32; int8: a row a thread; fp32: normalised rows
    qkv: Array  # float32
    att: Array  # float32
    ff: Array  # float32
    q: Array  # int8: shared rows, then ALONE rows a thread
    scales: Array  # float32
    begins: Array  # int32
    logits: Array  # float32
    hidden: Array  # float32


class Cache(NamedTuple):
    data: Array  # uint8 or float32, flat [blocks, L, H, hb]
    scales: Array  # float32, flat [blocks, L, H, 2, 16]; int8 only


# Rows of `addresses`: these four arrays, then those of Rows, of Buffers, of Cache, of LowRank, of each thread's Work.
MATRICES, FLOATS, LAYERS, ALPHAS = 0, 1, 2, 3
ROWS_AT, BUFFERS_AT, CACHE_AT, LOW_RANK_AT, WORK_AT = 4, 9, 19, 21, 23


@inlined
def float32_view(addresses: Array, i: int) -> Any:
    return carray(pointer(addresses[2 * i]), (addresses[2 * i + 1],), np.float32)


@inlined
def int32_view(addresses: Array, i: int) -> Any:
    return carray(pointer(addresses[2 * i]), (addresses[2 * i + 1],), np.int32)


@inlined
def int8_view(addresses: Array, i: int) -> Any:
    return carray(pointer(addresses[2 * i]), (addresses[2 * i + 1],), np.int8)


@inlined
def uint8_view(addresses: Array, i: int) -> Any:
    return carray(pointer(addresses[2 * i]), (addresses[2 * i + 1],), np.uint8)


@inlined
def low_rank_view(A: Array, S: Shape, stride: int, which: int) -> Any:
    i = 2 * LOW_RANK_AT
    return LowRank(A[i], S.L * LAYER_ENTRIES, A[i + 2], stride, which)


@inlined
def layers_view(addresses: Array) -> Any:
    i = 2 * LAYERS
    return carray(pointer(addresses[i]), (addresses[i + 1] // COLUMNS, COLUMNS), np.int64)


@inlined
def rows_view(A: Array) -> Any:
    i = ROWS_AT
    return Rows(
        int32_view(A, i), int32_view(A, i + 1), int32_view(A, i + 2), int32_view(A, i + 3), int32_view(A, i + 4)
    )


@inlined
def buffers_view(A: Array) -> Any:
    i = BUFFERS_AT
    return Buffers(
        float32_view(A, i), float32_view(A, i + 1), float32_view(A, i + 2), float32_view(A, i + 3),
        float32_view(A, i + 4), int8_view(A, i + 5), float32_view(A, i + 6), int32_view(A, i + 7),
        float32_view(A, i + 8), float32_view(A, i + 9),
    )  # fmt: skip


@inlined
def work_view(A: Array, tid: int) -> Any:
    i = WORK_AT + tid * WORK_PARTS
    return Work(
        float32_view(A, i), int8_view(A, i + 1), float32_view(A, i + 2), int32_view(A, i + 3),
        int32_view(A, i + 4), float32_view(A, i + 5), float32_view(A, i + 6), uint8_view(A, i + 7),
        float32_view(A, i + 8), int32_view(A, i + 9), float32_view(A, i + 10),
    )  # fmt: skip
