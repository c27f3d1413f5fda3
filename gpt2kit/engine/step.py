"""One step of the engine: rows of tokens to logits, by one team of threads from the first layer to the last.

A row is one token of one sequence at one position. Decoding rows of many sequences, drafts that are being checked and
a piece of somebody's prompt are all rows of one step. Each is computed by itself, so its logits depend on its own
sequence only. The threads share the outputs of every linear and the heads; between the stages they meet at a barrier:

    embed | ln_1, quantise | c_attn | heads: write keys and values, attend | quantise | c_proj, add |
    ln_2, quantise | c_fc, activate | quantise | c_proj, add | ... | ln_f, quantise | head

With one or two rows every thread quantises them for itself: that costs less than meeting once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2kit.engine import adapters, kernels, lanes, simd, team, views
from gpt2kit.engine.adapters import ENTRY, LAYER_ENTRIES, LowRank, activate_blocks, expand, shrink
from gpt2kit.engine.kernels import (
    ACTIVATE,
    ADD,
    BARE,
    BLOCK,
    OPTIONS,
    QUERIES,
    SHARED,
    STORE,
    TILE,
    ZERO,
    Array,
    F,
    Work,
    attend_fp32,
    attend_int8,
    inlined,
    layernorm,
    linear_fp32,
    linear_int8,
    quantise,
    remember_fp32,
    remember_int8,
)
from gpt2kit.engine.simd import Instructions, prefetch
from gpt2kit.engine.team import PHASE, Control, barrier
from gpt2kit.engine.views import (
    ALPHAS,
    CACHE_AT,
    FLOATS,
    MATRICES,
    Buffers,
    Cache,
    Places,
    Rows,
    Shape,
    buffers_view,
    float32_view,
    layers_view,
    low_rank_view,
    rows_view,
    uint8_view,
    work_view,
)
from gpt2kit.jit import compiled

ROWS_AHEAD = 3  # blocks of other sequences are fetched so many rows before they are written
ALONE = 2  # up to so many rows are quantised by every thread for itself


@inlined
def _share(n: int, tid: int, threads: int) -> Any:
    """The part of range(n) that is this thread's."""
    return n * tid // threads, n * (tid + 1) // threads


@inlined
def _embed_int8(r: int, rows: Rows, w: Array, f: Array, P: Places, S: Shape, x: Array) -> None:
    token, position = np.int64(rows.tokens[r]), np.int64(rows.positions[r])
    at = P.wte + (token // TILE) * TILE * S.CP + (token % TILE) * 4
    scale = f[P.wte_scale + token]
    place = P.wpe + position * P.wpe_stride
    for c in range(S.C):
        v = np.int32(w[at + (c // 4) * 4 * TILE + c % 4]) - np.int32(128)
        x[r * S.x_stride + c] = F(v) * scale * f[P.unsmooth + c] + f[place + c]


@inlined
def _adapted(which: int, layer: int, linear: int) -> Any:
    """Where a slot's entry of this Linear lies; -1: no stream of this step has an adapter on it."""
    place = layer * LAYER_ENTRIES + linear * ENTRY
    return place if which >> linear & 1 else -1


@inlined
def _quantise_rows(
    source: Array, stride: int, n: int, count: int, B: Buffers, S: Shape, tid: int, threads: int, shared: int,
    control: Control, phase: int, R: LowRank, slots: Array, place: int,
) -> Any:  # fmt: skip
    """Rows as they are to int8: by each thread for itself where they are few, else shared out. (first row, phase)"""
    few = count <= ALONE
    low, high = _share(count, tid, threads)
    first = ZERO
    if few:
        low, high, first = ZERO, count, shared + tid * ALONE
    for r in range(low, high):
        if place >= 0:
            shrink(source, r * stride, n, R, np.int64(slots[r]), first + r, place)
        quantise(source, r * stride, n, B.q, (first + r) * S.q_stride, B.scales, B.begins, first + r)
    if few:
        return first, phase
    return ZERO, barrier(control, phase, threads)


@inlined
def _normalise_rows(
    gain: int, bias: int, f: Array, count: int, B: Buffers, S: Shape, tid: int, threads: int, shared: int,
    control: Control, phase: int, R: LowRank, slots: Array, place: int,
) -> Any:  # fmt: skip
    """LayerNorm and int8, as `_quantise_rows`."""
    few = count <= ALONE
    low, high = _share(count, tid, threads)
    first = ZERO
    if few:
        low, high, first = ZERO, count, shared + tid * ALONE
    at = tid * S.ff_stride
    for r in range(low, high):
        layernorm(B.x, r * S.x_stride, S.C, f, gain, bias, F(S.epsilon), B.h, at)
        if place >= 0:
            shrink(B.h, at, S.CP, R, np.int64(slots[r]), first + r, place)
        quantise(B.h, at, S.CP, B.q, (first + r) * S.q_stride, B.scales, B.begins, first + r)
    if few:
        return first, phase
    return ZERO, barrier(control, phase, threads)


@inlined
def _attend_heads_int8(
    isa: Instructions, layer: int, alpha: Any, count: int, rows: Rows, S: Shape, B: Buffers, K: Cache, low: int,
    high: int, W: Work,
) -> None:  # fmt: skip
    stride, s_stride = S.L * S.H * S.hb, S.L * S.H * 2 * BLOCK
    table_size = S.span // BLOCK
    for h in range(low, high):
        at, s_at = (layer * S.H + h) * S.hb, (layer * S.H + h) * 2 * BLOCK
        for r in range(count):
            place = np.int64(rows.slots[r]) * table_size + np.int64(rows.positions[r]) // BLOCK
            block = np.int64(rows.tables[place])
            qkv = r * S.qkv_stride + h * S.D
            later = min(r + ROWS_AHEAD, count - 1)
            place = np.int64(rows.slots[later]) * table_size + np.int64(rows.positions[later]) // BLOCK
            prefetch(K.data, at + np.int64(rows.tables[place]) * stride, S.hb)
            prefetch(K.scales, s_at + np.int64(rows.tables[place]) * s_stride, 2 * BLOCK)
            for part in range(3):
                prefetch(B.qkv, later * S.qkv_stride + part * S.C + h * S.D, S.D)
            remember_int8(
                B.qkv, qkv + S.C, qkv + 2 * S.C, S.D, S.DP, K.data, at + block * stride,
                K.scales, s_at + block * s_stride, np.int64(rows.positions[r]) % BLOCK, W,
            )  # fmt: skip
        r = ZERO
        while r < count:
            n = 1
            if S.D == SHARED and r + QUERIES <= count and rows.slots[r] == rows.slots[r + QUERIES - 1]:
                n = QUERIES
            attend_int8(
                isa, n, B.qkv, r * S.qkv_stride + h * S.D, S.qkv_stride, S.D, S.DP, rows.positions, r,
                K.data, at, stride, K.scales, s_at, s_stride, rows.tables, np.int64(rows.slots[r]) * table_size,
                alpha, W, S.span, B.att, r * S.x_stride + h * S.D, S.x_stride,
            )  # fmt: skip
            r += n


def _step_int8(
    isa: Instructions, tid: int, threads: int, job: Array, control: Control, A: Array, S: Shape, P: Places
) -> None:  # fmt: skip
    """What thread `tid` does of one step.

    job: rows, wanted rows, 1 for hidden states, the first own row, the stride of LowRank's parts, its `which`.
    """
    count, wanted, shared = job[0], job[1], job[3]
    phase = job[PHASE]
    w, f, layers, alphas = uint8_view(A, MATRICES), float32_view(A, FLOATS), layers_view(A), float32_view(A, ALPHAS)
    rows, B, W = rows_view(A), buffers_view(A), work_view(A, tid)
    K = Cache(uint8_view(A, CACHE_AT), float32_view(A, CACHE_AT + 1))
    R = low_rank_view(A, S, job[4], job[5])
    sums = W.sums
    low, high = _share(count, tid, threads)
    for r in range(low, high):
        _embed_int8(r, rows, w, f, P, S, B.x)
    phase = barrier(control, phase, threads)
    for layer in range(S.L):
        O = layers[layer]  # noqa: E741
        place = _adapted(R.which, layer, 0)
        first, phase = _normalise_rows(
            O[8], O[9], f, count, B, S, tid, threads, shared, control, phase, R, rows.slots, place
        )  # fmt: skip
        low, high = _share(S.qkv_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[0], S.CP, low, high,
            f, O[4], O[12], sums, B.qkv, S.qkv_stride, STORE, ZERO, ZERO,
        )  # fmt: skip
        if place >= 0:
            expand(count, rows.slots, R, place, first, low, high, B.qkv, S.qkv_stride)
        phase = barrier(control, phase, threads)
        low, high = _share(S.H, tid, threads)
        _attend_heads_int8(isa, layer, alphas[layer], count, rows, S, B, K, low, high, W)
        phase = barrier(control, phase, threads)
        place = _adapted(R.which, layer, 1)
        first, phase = _quantise_rows(
            B.att, S.x_stride, S.CP, count, B, S, tid, threads, shared, control, phase, R, rows.slots, place
        )  # fmt: skip
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[1], S.CP, low, high,
            f, O[5], O[13], sums, B.x, S.x_stride, ADD, ZERO, ZERO,
        )  # fmt: skip
        if place >= 0:
            expand(count, rows.slots, R, place, first, low, high, B.x, S.x_stride)
        phase = barrier(control, phase, threads)
        place = _adapted(R.which, layer, 2)
        first, phase = _normalise_rows(
            O[10], O[11], f, count, B, S, tid, threads, shared, control, phase, R, rows.slots, place
        )  # fmt: skip
        low, high = _share(S.ff_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[2], S.CP, low, high,
            f, O[6], O[14], sums, B.ff, S.ff_stride, ACTIVATE if place < 0 else STORE, S.kind, O[16],
        )  # fmt: skip
        if place >= 0:
            expand(count, rows.slots, R, place, first, low, high, B.ff, S.ff_stride)
            activate_blocks(count, low, high, B.ff, S.ff_stride, S.kind, f, O[16])
        phase = barrier(control, phase, threads)
        place = _adapted(R.which, layer, 3)
        first, phase = _quantise_rows(
            B.ff, S.ff_stride, S.IP, count, B, S, tid, threads, shared, control, phase, R, rows.slots, place
        )  # fmt: skip
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[3], S.IP, low, high,
            f, O[7], O[15], sums, B.x, S.x_stride, ADD, ZERO, ZERO,
        )  # fmt: skip
        if place >= 0:
            expand(count, rows.slots, R, place, first, low, high, B.x, S.x_stride)
        phase = barrier(control, phase, threads)
    if job[2]:
        low, high = _share(count, tid, threads)
        for r in range(low, high):
            layernorm(B.x, r * S.x_stride, S.C, f, P.ln_f_g, P.ln_f_b, F(S.epsilon), B.hidden, r * S.x_stride)
            for c in range(S.C):
                B.hidden[r * S.x_stride + c] /= f[P.unsmooth + c]
    few = wanted <= ALONE
    low, high = _share(wanted, tid, threads)
    first = ZERO
    if few:
        low, high, first = ZERO, wanted, shared + tid * ALONE
    for j in range(low, high):
        at = tid * S.ff_stride
        layernorm(B.x, np.int64(rows.wanted[j]) * S.x_stride, S.C, f, P.ln_f_g, P.ln_f_b, F(S.epsilon), B.h, at)
        quantise(B.h, at, S.CP, B.q, (first + j) * S.q_stride, B.scales, B.begins, first + j)
    if not few:
        phase = barrier(control, phase, threads)
    low, high = _share(P.head_blocks, tid, threads)
    linear_int8(
        isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, wanted, w, P.head, S.CP, low, high,
        f, P.head_scale, ZERO, sums, B.logits, S.v_stride, BARE, ZERO, ZERO,
    )  # fmt: skip
    barrier(control, phase, threads)


def _step_fp32(
    isa: Instructions, tid: int, threads: int, job: Array, control: Control, A: Array, S: Shape, P: Places
) -> None:  # fmt: skip
    """The same in float32."""
    count, wanted, phase = job[0], job[1], job[PHASE]
    w, f, layers, alphas = float32_view(A, MATRICES), float32_view(A, FLOATS), layers_view(A), float32_view(A, ALPHAS)
    rows, B, W = rows_view(A), buffers_view(A), work_view(A, tid)
    K = Cache(float32_view(A, CACHE_AT), float32_view(A, CACHE_AT + 1))
    R = low_rank_view(A, S, job[4], job[5])
    scores, sums = W.scores, W.float_sums
    stride, table_size = S.L * S.H * S.hb, S.span // BLOCK
    mine, end = _share(count, tid, threads)
    for r in range(mine, end):
        token, place = np.int64(rows.tokens[r]), P.wpe + np.int64(rows.positions[r]) * P.wpe_stride
        at = P.wte + (token // TILE) * TILE * S.CP + token % TILE
        for c in range(S.C):
            B.x[r * S.x_stride + c] = w[at + c * TILE] + f[place + c]
    for layer in range(S.L):
        O = layers[layer]  # noqa: E741
        place = _adapted(R.which, layer, 0)
        for r in range(mine, end):
            layernorm(B.x, r * S.x_stride, S.C, f, O[8], O[9], F(S.epsilon), B.h, r * S.x_stride)
            if place >= 0:
                shrink(B.h, r * S.x_stride, S.CP, R, np.int64(rows.slots[r]), r, place)
        phase = barrier(control, phase, threads)
        low, high = _share(S.qkv_stride // TILE, tid, threads)
        linear_fp32(
            B.h, ZERO, S.x_stride, count, w, O[0], S.CP, low, high, f, O[12], sums, B.qkv, S.qkv_stride,
            STORE, ZERO, ZERO,
        )  # fmt: skip
        if place >= 0:
            expand(count, rows.slots, R, place, ZERO, low, high, B.qkv, S.qkv_stride)
        phase = barrier(control, phase, threads)
        low, high = _share(S.H, tid, threads)
        for h in range(low, high):
            head = (layer * S.H + h) * S.hb
            for r in range(count):
                qkv, position = r * S.qkv_stride + h * S.D, np.int64(rows.positions[r])
                block = np.int64(rows.tables[np.int64(rows.slots[r]) * table_size + position // BLOCK])
                place = head + block * stride
                remember_fp32(B.qkv, qkv + S.C, qkv + 2 * S.C, S.D, S.DP, K.data, place, position % BLOCK)
            for r in range(count):
                attend_fp32(
                    B.qkv, r * S.qkv_stride + h * S.D, S.D, S.DP, np.int64(rows.positions[r]), K.data, head, stride,
                    rows.tables, np.int64(rows.slots[r]) * table_size, alphas[layer], scores,
                    B.att, r * S.x_stride + h * S.D,
                )  # fmt: skip
        phase = barrier(control, phase, threads)
        place = _adapted(R.which, layer, 1)
        if place >= 0:
            for r in range(mine, end):
                shrink(B.att, r * S.x_stride, S.CP, R, np.int64(rows.slots[r]), r, place)
            phase = barrier(control, phase, threads)
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_fp32(
            B.att, ZERO, S.x_stride, count, w, O[1], S.CP, low, high, f, O[13], sums, B.x, S.x_stride, ADD, ZERO, ZERO
        )
        if place >= 0:
            expand(count, rows.slots, R, place, ZERO, low, high, B.x, S.x_stride)
        phase = barrier(control, phase, threads)
        place = _adapted(R.which, layer, 2)
        for r in range(mine, end):
            layernorm(B.x, r * S.x_stride, S.C, f, O[10], O[11], F(S.epsilon), B.h, r * S.x_stride)
            if place >= 0:
                shrink(B.h, r * S.x_stride, S.CP, R, np.int64(rows.slots[r]), r, place)
        phase = barrier(control, phase, threads)
        low, high = _share(S.ff_stride // TILE, tid, threads)
        linear_fp32(
            B.h, ZERO, S.x_stride, count, w, O[2], S.CP, low, high, f, O[14], sums, B.ff, S.ff_stride,
            ACTIVATE if place < 0 else STORE, S.kind, O[16],
        )  # fmt: skip
        if place >= 0:
            expand(count, rows.slots, R, place, ZERO, low, high, B.ff, S.ff_stride)
            activate_blocks(count, low, high, B.ff, S.ff_stride, S.kind, f, O[16])
        phase = barrier(control, phase, threads)
        place = _adapted(R.which, layer, 3)
        if place >= 0:
            for r in range(mine, end):
                shrink(B.ff, r * S.ff_stride, S.IP, R, np.int64(rows.slots[r]), r, place)
            phase = barrier(control, phase, threads)
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_fp32(
            B.ff, ZERO, S.ff_stride, count, w, O[3], S.IP, low, high, f, O[15], sums, B.x, S.x_stride, ADD, ZERO, ZERO
        )
        if place >= 0:
            expand(count, rows.slots, R, place, ZERO, low, high, B.x, S.x_stride)
        phase = barrier(control, phase, threads)
    if job[2]:
        for r in range(mine, end):
            layernorm(B.x, r * S.x_stride, S.C, f, P.ln_f_g, P.ln_f_b, F(S.epsilon), B.hidden, r * S.x_stride)
    low, high = _share(wanted, tid, threads)
    for j in range(low, high):
        layernorm(
            B.x, np.int64(rows.wanted[j]) * S.x_stride, S.C, f, P.ln_f_g, P.ln_f_b, F(S.epsilon), B.h, j * S.x_stride
        )
    phase = barrier(control, phase, threads)
    low, high = _share(P.head_blocks, tid, threads)
    linear_fp32(
        B.h, ZERO, S.x_stride, wanted, w, P.head, S.CP, low, high, f, ZERO, sums, B.logits, S.v_stride, BARE, ZERO, ZERO
    )
    barrier(control, phase, threads)


PARTS = (simd, lanes, kernels, adapters, team, views)  # whose functions are compiled into these two
step_int8 = compiled(_step_int8, PARTS, **OPTIONS)
step_fp32 = compiled(_step_fp32, PARTS, **OPTIONS)
