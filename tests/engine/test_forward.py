"""One step of the engine against its oracles: the model file (fp32), plain numpy (int8, to the bit)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracle import Oracle, some_smoothing

from gpt2kit.engine import simd, source, weights
from gpt2kit.engine.forward import Forward
from gpt2kit.engine.smoothing import to_int8
from gpt2kit.engine.weights import EngineWeights, pack
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2

BASE = GPT2Config(vocab_size=97, n_positions=70, n_embd=48, n_layer=2, n_head=3)
CONFIGS = {
    "plain": BASE,
    "one odd head": dataclasses.replace(BASE, n_embd=21, n_head=1),
    "odd sizes": dataclasses.replace(BASE, n_embd=35, n_head=5, n_inner=77, vocab_size=131),
    "head of 64": dataclasses.replace(BASE, n_embd=128, n_head=2),
    "untied": dataclasses.replace(BASE, tie_word_embeddings=False),
    "scaled by layer": dataclasses.replace(BASE, scale_attn_by_inverse_layer_idx=True),
    "unscaled": dataclasses.replace(BASE, scale_attn_weights=False),
    **{name: dataclasses.replace(BASE, activation_function=name) for name in ("gelu", "relu", "silu", "tanh")},
}
Row = NDArray[np.float32]


def engine_weights(config: GPT2Config, precision: weights.Precision = "int8") -> EngineWeights:
    weights = source.from_tensors(config, source.random_tensors(config, 7))
    return weights if precision == "fp32" else to_int8(weights, some_smoothing(config))  # every factor takes part


def prompt(config: GPT2Config, length: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length).astype(np.int32)


def feed(
    forward: Forward, ids: NDArray[np.int32], chunks: Sequence[int], tables: NDArray[np.int32], slot: int = 0
) -> Row:
    """The logits of every token, the sequence given in chunks."""
    out, start = [], 0
    for count in chunks:
        positions = np.arange(start, start + count, dtype=np.int32)
        slots = np.full(count, slot, np.int32)
        part = forward.step(ids[start : start + count], positions, slots, tables, np.arange(count, dtype=np.int32))
        out.append(part.copy())
        start += count
    assert start == len(ids)
    return np.concatenate(out)


def tables_for(forward: Forward, sequences: int) -> NDArray[np.int32]:
    """Blocks in a shuffled order, so that nothing may rely on their being neighbours."""
    n = forward.blocks_per_sequence
    return np.random.default_rng(5).permutation(forward.blocks)[: sequences * n].astype(np.int32).reshape(sequences, n)


@pytest.fixture(scope="module")
def int8_forward() -> Forward:
    return Forward(pack(engine_weights(BASE)), threads=2, blocks=30)


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_equals_the_numpy_oracle_to_the_bit(name: str) -> None:
    config = CONFIGS[name]
    model = engine_weights(config)
    ids = prompt(config, 41)
    with Forward(pack(model), threads=2, blocks=5) as forward:
        logits = feed(forward, ids, [5, 2, 34], tables_for(forward, 1))  # pairs of rows that end in different blocks
    np.testing.assert_array_equal(logits, Oracle(model).logits(ids.tolist()))


@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_equals_the_model_file(name: str) -> None:
    config = CONFIGS[name]
    tensors = source.random_tensors(config, 7)
    model = GPT2(config).eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    ids = prompt(config, 70)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()[None])[0].numpy()
    with Forward(pack(source.from_tensors(config, tensors)), threads=2, blocks=5, max_logits=70) as forward:
        logits = feed(forward, ids, [1, 63, 6], tables_for(forward, 1))
    assert np.abs(logits - expected).max() <= 2e-5 * np.ptp(expected)  # other summation order, our own exp


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_one_or_more_threads_and_any_chunks_give_the_same_bytes(precision: weights.Precision) -> None:
    packed, ids, seen = pack(engine_weights(BASE, precision)), prompt(BASE, 60), []
    for threads in (1, 2, 3, 5):
        with Forward(packed, threads, blocks=5) as forward:
            for chunks in ([60], [1] * 60, [2, 2, 3, 7, 46], [4, 5, 6, 45]):
                seen.append(feed(forward, ids, chunks, tables_for(forward, 1)).tobytes())
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    "name",  # each compiles the whole step anew, some ten seconds: the plain one always, others in the slow suite
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "plain")) for name in simd.available()[1:]],
)
def test_every_instruction_set_gives_the_same_bytes(name: str, int8_forward: Forward) -> None:
    ids, rng = prompt(BASE, 50), np.random.default_rng(2)
    drawn = {
        end: rng.standard_normal((5, 48 + n)).astype(np.float32) for end, n in (("attn.c_attn", 144), ("mlp.c_fc", 192))
    }
    factors = {f"h.1.{end}": (both[:, :48], both[:, 48:].T) for end, both in drawn.items()}
    with Forward(pack(engine_weights(BASE)), threads=1, blocks=5, instructions_name=name) as forward:
        for adapter in (None, factors):
            if adapter is not None:
                for one in (int8_forward, forward):
                    one.use_adapter(0, one.pack_adapter("a", adapter))
            expected = feed(int8_forward, ids, [50], tables_for(int8_forward, 1))
            assert feed(forward, ids, [3, 1, 46], tables_for(forward, 1)).tobytes() == expected.tobytes()
    int8_forward.use_adapter(0, None)


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    missing = next(name for name in simd.CODES if name not in simd.available())
    with pytest.raises(UserError, match=f"no {missing}"):
        simd.instructions(missing)
    with pytest.raises(UserError, match="did you mean 'avx512_vnni'"):
        simd.instructions("avx512_vni")


def test_neighbours_do_not_change_a_row(int8_forward: Forward) -> None:
    sequences = [prompt(BASE, 20 + i, seed=i) for i in range(5)]
    tables = tables_for(int8_forward, 5)
    alone = [feed(int8_forward, ids, [len(ids)], tables, slot) for slot, ids in enumerate(sequences)]
    for slot, ids in enumerate(sequences):
        feed(int8_forward, ids[:18], [18], tables, slot)
    tokens = np.concatenate([ids[18:20] for ids in sequences])
    positions = np.tile(np.array([18, 19], np.int32), 5)
    slots = np.repeat(np.arange(5, dtype=np.int32), 2)
    together = int8_forward.step(tokens, positions, slots, tables, np.arange(10, dtype=np.int32))
    for slot in range(5):
        np.testing.assert_array_equal(together[2 * slot : 2 * slot + 2], alone[slot][18:20])


def test_hidden_states_are_the_model_files(int8_forward: Forward) -> None:
    ids = prompt(BASE, 12)
    none = np.zeros(0, np.int32)
    slots, tables = np.zeros(12, np.int32), tables_for(int8_forward, 1)
    int8_forward.step(ids, np.arange(12, dtype=np.int32), slots, tables, none, hidden=True)
    np.testing.assert_array_equal(int8_forward.hidden[:12], Oracle(engine_weights(BASE)).hidden(ids.tolist()))


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_copied_block_continues_as_the_original(precision: weights.Precision) -> None:
    ids = prompt(BASE, 14)
    with Forward(pack(engine_weights(BASE, precision)), threads=1, blocks=12) as forward:
        tables = tables_for(forward, 2)
        expected = feed(forward, ids, [13, 1], tables, 0)[-1]
        forward.copy_block(int(tables[0, 0]), int(tables[1, 0]))
        again = forward.step(ids[13:], np.array([13], np.int32), np.array([1], np.int32), tables, np.zeros(1, np.int32))
        np.testing.assert_array_equal(again[0], expected)


@pytest.mark.slow
def test_threads_that_fell_asleep_wake_up() -> None:
    import time

    ids = prompt(BASE, 9)
    with Forward(pack(engine_weights(BASE)), threads=2, blocks=5) as forward:
        tables = tables_for(forward, 1)
        expected = feed(forward, ids, [9], tables)
        deadline = time.monotonic() + 30
        for _ in range(3):
            while not forward.asleep() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert forward.asleep()
            assert feed(forward, ids, [9], tables).tobytes() == expected.tobytes()


def test_a_closed_engine_refuses_to_step() -> None:
    forward = Forward(pack(engine_weights(BASE)), threads=2, blocks=5)
    forward.close()
    forward.close()
    with pytest.raises(AssertionError, match="ended"):
        feed(forward, prompt(BASE, 3), [3], tables_for(forward, 1))
