"""One step of the engine: rows of tokens to logits, by one team of threads from the first layer to the last.

A row is one token of one sequence at one position. Decoding rows of many sequences, drafts that are being checked and
a piece of somebody's prompt are all rows of one step. Each is computed by itself, so its logits depend on its own
sequence only. The threads share the outputs of every linear and the heads; between the stages they meet at a barrier:

    embed | ln_1, quantise | c_attn | heads: write keys and values, attend | quantise | c_proj, add |
    ln_2, quantise | c_fc, activate | quantise | c_proj, add | ... | ln_f, quantise | head

With one or two rows every thread quantises them for itself: that costs less than meeting once more.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine import kernels, lanes, simd, team, views
from gpt2kit.engine.kernels import (
    ACTIVATE,
    ADD,
    BARE,
    BLOCK,
    OPTIONS,
    PAIR,
    QUERIES,
    ROWS,
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
from gpt2kit.engine.lanes import ACTIVATIONS
from gpt2kit.engine.simd import Instructions, instructions, prefetch
from gpt2kit.engine.team import Control, Team, barrier
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
    rows_view,
    uint8_view,
    work_view,
)
from gpt2kit.engine.weights import PackedWeights, Precision, aligned, attention_scale, pad
from gpt2kit.errors import UserError
from gpt2kit.jit import compiled, is_compiled
from gpt2kit.model.config import GPT2Config

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
def _quantise_rows(
    source: Array, stride: int, n: int, count: int, B: Buffers, S: Shape, tid: int, threads: int, shared: int,
    control: Control, phase: int,
) -> Any:  # fmt: skip
    """Rows as they are to int8: by each thread for itself where they are few, else shared out. (first row, phase)"""
    if count <= ALONE:
        first = shared + tid * ALONE
        for r in range(count):
            quantise(source, r * stride, n, B.q, (first + r) * S.q_stride, B.scales, B.begins, first + r)
        return first, phase
    low, high = _share(count, tid, threads)
    for r in range(low, high):
        quantise(source, r * stride, n, B.q, r * S.q_stride, B.scales, B.begins, r)
    return ZERO, barrier(control, phase, threads)


@inlined
def _normalise_rows(
    gain: int, bias: int, f: Array, count: int, B: Buffers, S: Shape, tid: int, threads: int, shared: int,
    control: Control, phase: int,
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
    """What thread `tid` does of one step. job: rows, wanted rows, 1 for hidden states, the first own row, the phase."""
    count, wanted, shared = job[0], job[1], job[3]
    phase = job[4]
    w, f, layers, alphas = uint8_view(A, MATRICES), float32_view(A, FLOATS), layers_view(A), float32_view(A, ALPHAS)
    rows, B, W = rows_view(A), buffers_view(A), work_view(A, tid)
    K = Cache(uint8_view(A, CACHE_AT), float32_view(A, CACHE_AT + 1))
    sums = W.sums
    low, high = _share(count, tid, threads)
    for r in range(low, high):
        _embed_int8(r, rows, w, f, P, S, B.x)
    phase = barrier(control, phase, threads)
    for layer in range(S.L):
        O = layers[layer]  # noqa: E741
        first, phase = _normalise_rows(O[8], O[9], f, count, B, S, tid, threads, shared, control, phase)
        low, high = _share(S.qkv_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[0], S.CP, low, high,
            f, O[4], O[12], sums, B.qkv, S.qkv_stride, STORE, ZERO, ZERO,
        )  # fmt: skip
        phase = barrier(control, phase, threads)
        low, high = _share(S.H, tid, threads)
        _attend_heads_int8(isa, layer, alphas[layer], count, rows, S, B, K, low, high, W)
        phase = barrier(control, phase, threads)
        first, phase = _quantise_rows(B.att, S.x_stride, S.CP, count, B, S, tid, threads, shared, control, phase)
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[1], S.CP, low, high,
            f, O[5], O[13], sums, B.x, S.x_stride, ADD, ZERO, ZERO,
        )  # fmt: skip
        phase = barrier(control, phase, threads)
        first, phase = _normalise_rows(O[10], O[11], f, count, B, S, tid, threads, shared, control, phase)
        low, high = _share(S.ff_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[2], S.CP, low, high,
            f, O[6], O[14], sums, B.ff, S.ff_stride, ACTIVATE, S.kind, O[16],
        )  # fmt: skip
        phase = barrier(control, phase, threads)
        first, phase = _quantise_rows(B.ff, S.ff_stride, S.IP, count, B, S, tid, threads, shared, control, phase)
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_int8(
            isa, B.q, first * S.q_stride, S.q_stride, B.scales, B.begins, first, count, w, O[3], S.IP, low, high,
            f, O[7], O[15], sums, B.x, S.x_stride, ADD, ZERO, ZERO,
        )  # fmt: skip
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
    count, wanted, phase = job[0], job[1], job[4]
    w, f, layers, alphas = float32_view(A, MATRICES), float32_view(A, FLOATS), layers_view(A), float32_view(A, ALPHAS)
    rows, B, W = rows_view(A), buffers_view(A), work_view(A, tid)
    K = Cache(float32_view(A, CACHE_AT), float32_view(A, CACHE_AT + 1))
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
        for r in range(mine, end):
            layernorm(B.x, r * S.x_stride, S.C, f, O[8], O[9], F(S.epsilon), B.h, r * S.x_stride)
        phase = barrier(control, phase, threads)
        low, high = _share(S.qkv_stride // TILE, tid, threads)
        linear_fp32(
            B.h, ZERO, S.x_stride, count, w, O[0], S.CP, low, high, f, O[12], sums, B.qkv, S.qkv_stride,
            STORE, ZERO, ZERO,
        )  # fmt: skip
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
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_fp32(
            B.att, ZERO, S.x_stride, count, w, O[1], S.CP, low, high, f, O[13], sums, B.x, S.x_stride, ADD, ZERO, ZERO
        )
        phase = barrier(control, phase, threads)
        for r in range(mine, end):
            layernorm(B.x, r * S.x_stride, S.C, f, O[10], O[11], F(S.epsilon), B.h, r * S.x_stride)
        phase = barrier(control, phase, threads)
        low, high = _share(S.ff_stride // TILE, tid, threads)
        linear_fp32(
            B.h, ZERO, S.x_stride, count, w, O[2], S.CP, low, high, f, O[14], sums, B.ff, S.ff_stride,
            ACTIVATE, S.kind, O[16],
        )  # fmt: skip
        phase = barrier(control, phase, threads)
        low, high = _share(S.x_stride // TILE, tid, threads)
        linear_fp32(
            B.ff, ZERO, S.ff_stride, count, w, O[3], S.IP, low, high, f, O[15], sums, B.x, S.x_stride, ADD, ZERO, ZERO
        )
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


PARTS = (simd, lanes, kernels, team, views)  # whose functions are compiled into these two
step_int8 = compiled(_step_int8, PARTS, **OPTIONS)
step_fp32 = compiled(_step_fp32, PARTS, **OPTIONS)


# ---------------------------------------------------------------- from Python


def head_items(config: GPT2Config) -> int:
    """Items (bytes for int8, floats for fp32) of one head's keys and values in one block."""
    return 2 * BLOCK * pad(config.head_size, 16)


def block_bytes(config: GPT2Config, precision: Precision) -> int:
    """Memory of one key-value block: 16 tokens, all layers."""
    heads = config.n_layer * config.n_head
    if precision == "int8":
        return heads * (head_items(config) + 2 * BLOCK * 4)
    return heads * head_items(config) * 4


def _shape(config: GPT2Config, packed: PackedWeights) -> Shape:
    at, layer = packed.layout, packed.layout.layers[0]
    return Shape(
        C=config.n_embd, H=config.n_head, D=config.head_size, DP=pad(config.head_size, 16),
        L=config.n_layer, CP=layer.c_attn.k_padded, IP=layer.mlp_proj.k_padded, x_stride=layer.attn_proj.n_padded,
        qkv_stride=layer.c_attn.n_padded, ff_stride=max(layer.c_fc.n_padded, layer.attn_proj.n_padded),
        q_stride=max(layer.mlp_proj.k_padded, layer.c_attn.k_padded), v_stride=at.head.n_padded,
        hb=head_items(config), span=pad(config.n_positions, BLOCK), kind=ACTIVATIONS[config.activation_function],
        epsilon=config.layer_norm_epsilon,
    )  # fmt: skip


def _layer_table(packed: PackedWeights) -> NDArray[np.int64]:
    """[L, COLUMNS] offsets: 0-3 the matrices, 4-7 their scales, 8-11 both LayerNorms, 12-15 the biases, 16 post."""
    item, table = packed.weights.itemsize, []
    for layer in packed.layout.layers:
        linears = (layer.c_attn, layer.attn_proj, layer.c_fc, layer.mlp_proj)
        table.append(
            [
                *(linear.weight // item for linear in linears),
                *(linear.scale for linear in linears),
                *(layer.ln_1_g, layer.ln_1_b, layer.ln_2_g, layer.ln_2_b),
                *(linear.bias for linear in linears),
                layer.post,
            ]
        )
    return np.array(table, np.int64)


def _places(packed: PackedWeights) -> Places:
    at, item = packed.layout, packed.weights.itemsize
    return Places(
        wte=at.wte.weight // item, wte_scale=at.wte.scale, unsmooth=at.unsmooth, wpe=at.wpe, wpe_stride=at.wpe_stride,
        head=at.head.weight // item, head_scale=at.head.scale, head_blocks=at.head.n_padded // TILE,
        ln_f_g=at.ln_f_g, ln_f_b=at.ln_f_b,
    )  # fmt: skip


def _new_work(S: Shape) -> Work:
    return Work(
        head=aligned(S.DP, np.float32), q=aligned(QUERIES * S.DP, np.int8), scales=aligned(QUERIES, np.float32),
        begins=aligned(QUERIES, np.int32), integers=aligned(QUERIES * S.span, np.int32),
        scores=aligned(S.span, np.float32), found=aligned(2, np.float32), shares=aligned(PAIR * 2 * S.span, np.uint8),
        factors=aligned(PAIR, np.float32), sums=aligned(ROWS * TILE, np.int32),
        float_sums=aligned(ROWS * TILE, np.float32),
    )  # fmt: skip


class Forward:
    """Weights, key-value blocks and threads; `step` computes rows. One caller at a time.

    Memory is taken here, once: `blocks` blocks of 16 tokens and working rows. Pages of blocks that were never used cost
    nothing on systems that give memory out when it is first written.
    """

    def __init__(
        self,
        packed: PackedWeights,
        threads: int,
        blocks: int,
        max_rows: int = 288,
        max_logits: int = 64,
        max_sequences: int = 64,
        instructions_name: str = "auto",
    ) -> None:
        if threads < 1 or blocks < 1:
            raise UserError(f"the engine needs a thread and a block, got {threads} and {blocks}")
        self.config, self.precision, self.threads = packed.config, packed.precision, threads
        self.vocab_size = packed.config.vocab_size
        self.max_rows, self.max_logits, self.max_sequences = max_rows, max_logits, max_sequences
        self.blocks = blocks
        self.blocks_per_sequence = -(-packed.config.n_positions // BLOCK)
        self.block_bytes = block_bytes(packed.config, packed.precision)
        integer = packed.precision == "int8"
        self._shape = S = _shape(packed.config, packed)
        heads = S.L * S.H
        self._cache = Cache(
            aligned(blocks * heads * S.hb, np.uint8 if integer else np.float32),
            aligned(blocks * heads * 2 * BLOCK if integer else blocks, np.float32),
        )
        self._rows = Rows(
            np.zeros(max_rows, np.int32), np.zeros(max_rows, np.int32), np.zeros(max_rows, np.int32),
            np.zeros(max_sequences * self.blocks_per_sequence, np.int32), np.zeros(max_logits, np.int32),
        )  # fmt: skip
        most = max(max_rows, max_logits)
        q_rows = most + ALONE * threads + ROWS
        self._buffers = Buffers(
            x=aligned(max_rows * S.x_stride, np.float32),
            h=aligned(threads * S.ff_stride if integer else most * S.x_stride, np.float32),
            qkv=aligned(max_rows * S.qkv_stride, np.float32),
            att=aligned(max_rows * S.x_stride, np.float32),
            ff=aligned(max_rows * S.ff_stride, np.float32),
            q=aligned(q_rows * S.q_stride if integer else 64, np.int8),
            scales=aligned(q_rows, np.float32),
            begins=aligned(q_rows, np.int32),
            logits=aligned(max_logits * S.v_stride, np.float32),
            hidden=aligned(max_rows * S.x_stride, np.float32),
        )
        self.hidden = self._buffers.hidden.reshape(max_rows, S.x_stride)[:, : S.C]
        self._logits = self._buffers.logits.reshape(max_logits, S.v_stride)[:, : self.vocab_size]
        self._first_shared = most
        alphas = np.array([attention_scale(packed.config, i) for i in range(S.L)], np.float32)
        work = [array for _ in range(threads) for array in _new_work(S)]
        weights = (packed.weights, packed.floats, _layer_table(packed))
        arrays = [*weights, alphas, *self._rows, *self._buffers, *self._cache, *work]
        self._alive = arrays  # compiled code knows their addresses only
        addresses = np.array([number for array in arrays for number in (array.ctypes.data, array.size)], np.int64)
        self._function = step_int8 if integer else step_fp32
        arguments = (addresses, S, _places(packed))
        self._team = Team(self._function, instructions(instructions_name), threads, arguments)

    def step(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        slots: NDArray[np.int32],
        tables: NDArray[np.int32],
        wanted: NDArray[np.int32],
        hidden: bool = False,
    ) -> NDArray[np.float32]:
        """Rows to logits [J, V], which are valid until the next step.

        tokens, positions, slots [R]; tables [S, blocks_per_sequence]; wanted [J]: the rows whose logits are asked for.
        tables[slot, position // 16] is the block of a position. The rows of one slot are consecutive and ascending; the
        positions before them are in the cache. With `hidden`, `self.hidden` [R, C] holds the rows after ln_f.
        """
        count, J = len(tokens), len(wanted)
        assert 0 < count <= self.max_rows
        assert self.max_logits >= J
        assert tables.size <= len(self._rows.tables)
        self._rows.tokens[:count] = tokens
        self._rows.positions[:count] = positions
        self._rows.slots[:count] = slots
        self._rows.tables[: tables.size] = tables.reshape(-1)
        self._rows.wanted[:J] = wanted
        self._team.run(count, J, int(hidden), self._first_shared)
        logits: NDArray[np.float32] = self._logits[:J]
        return logits

    @property
    def is_compiled(self) -> bool:
        """False before the first step that this machine ever makes, which takes some seconds."""
        return is_compiled(self._function)

    def warm_up(self) -> None:
        """Compile or load what was compiled, and read all weights once. Writes to block 0: nobody may hold it yet."""
        none = np.zeros(1, np.int32)
        self.step(none, none, none, np.zeros((1, self.blocks_per_sequence), np.int32), none)

    def copy_block(self, source: int, target: int) -> None:
        """What block `source` holds, into block `target`."""
        for part in self._cache:
            rows = part.reshape(self.blocks, -1)
            rows[target] = rows[source]

    def asleep(self) -> bool:
        """Whether every thread but the caller's sleeps, as they do when nothing has been asked for some time."""
        return self._team.asleep()

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
