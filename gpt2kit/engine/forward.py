"""What the scheduler calls: weights, key-value blocks, threads, and a step of compiled code (step.py) over them."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine.adapters import LAYER_ENTRIES, Adapter, Factors, pack_adapter
from gpt2kit.engine.kernels import BLOCK, PAIR, QUERIES, ROWS, TILE, Work
from gpt2kit.engine.lanes import ACTIVATIONS
from gpt2kit.engine.simd import instructions
from gpt2kit.engine.step import ALONE, step_fp32, step_int8
from gpt2kit.engine.team import Team
from gpt2kit.engine.views import LOW_RANK_AT, Buffers, Cache, Places, Rows, Shape
from gpt2kit.engine.weights import PackedWeights, Precision, aligned, attention_scale, pad
from gpt2kit.errors import UserError
from gpt2kit.jit import is_compiled
from gpt2kit.model.config import GPT2Config


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
        self._packed, S = packed, _shape(packed.config, packed)
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
        self._table = np.zeros((max_sequences, S.L * LAYER_ENTRIES), np.int64)
        self._lent: dict[int, Adapter] = {}  # slot -> whose entries the table has there
        self._part_rows, self._part_stride = most + ALONE * threads, 0
        low_rank = (self._table, np.zeros(1, np.float32))
        arrays = [*weights, alphas, *self._rows, *self._buffers, *self._cache, *low_rank, *work]
        self._alive = arrays  # compiled code knows their addresses only
        addresses = np.array([number for array in arrays for number in (array.ctypes.data, array.size)], np.int64)
        self._addresses = addresses
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
        which = 0
        if self._lent:
            for slot in set(slots.tolist()) & self._lent.keys():
                which |= self._lent[slot].which
        self._team.run(count, J, int(hidden), self._first_shared, self._part_stride, which)
        logits: NDArray[np.float32] = self._logits[:J]
        return logits

    def pack_adapter(self, name: str, factors: Factors) -> Adapter:
        """For `use_adapter`; in any thread. UserError for what does not fit the model."""
        return pack_adapter(name, factors, self._packed)

    def use_adapter(self, slot: int, adapter: Adapter | None) -> None:
        """The rows of `slot` are computed with this adapter from now on; None: with none."""
        if adapter is None:
            self._lent.pop(slot, None)
            self._table[slot] = 0
            return
        if adapter.rank > self._part_stride:
            parts = aligned(self._part_rows * adapter.rank, np.float32)
            self._alive[LOW_RANK_AT + 1], self._part_stride = parts, adapter.rank
            self._addresses[2 * LOW_RANK_AT + 2 : 2 * LOW_RANK_AT + 4] = parts.ctypes.data, parts.size
        self._table[slot], self._lent[slot] = adapter.table, adapter

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
