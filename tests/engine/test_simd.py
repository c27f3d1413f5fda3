"""What is written as LLVM code, against numpy: products of every instruction set, sums in order, fetching ahead."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from gpt2kit.engine import simd
from gpt2kit.engine.kernels import OPTIONS
from gpt2kit.engine.simd import (
    atomic_add,
    atomic_load,
    atomic_store,
    dot_tile,
    fma_tile,
    give_way,
    key_scores,
    lane_sum,
    largest,
    largest_size,
    pause,
    pointer,
    prefetch,
    weigh_values,
)

Bytes = NDArray[Any]
compiled: Any = numba.njit(**OPTIONS)
each_set = pytest.mark.parametrize("name", simd.available())
each_kind = pytest.mark.parametrize("kind", ["random", "lowest", "highest", "mixed"])
MAPPED_NOWHERE = 1 << 40  # bytes ahead


def some(kind: str, dtype: Any, size: int, seed: int = 0) -> Bytes:
    """Bytes: random, all the smallest, all the largest, or the two by turns."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.integers(low, high, size, dtype, endpoint=True)
    return np.where(rng.random(size) < {"lowest": 1, "highest": 0, "mixed": 0.5}[kind], low, high).astype(dtype)


@compiled
def dot_tiles(isa: Any, x: Any, stride: int, w: Any, steps: int, ahead: int, start: Any, out: Any) -> None:
    dot_tile(isa, 1, 4, x, 3, stride, w, 0, steps, ahead, start, 2, out, 0, 64)
    dot_tile(isa, 4, 1, x, 3, stride, w, 4 * 32, steps, ahead, start, 2, out, 1000, 64)
    dot_tile(isa, 12, 2, x, 3, stride, w, 4 * 32, steps, ahead, start, 2, out, 2000, 70)


@each_set
@each_kind
@pytest.mark.parametrize("steps", [1, 33])
def test_tiles_of_products_are_exact(name: str, kind: str, steps: int) -> None:
    stride, K = 4 * steps + 5, 4 * steps
    x, w = some(kind, np.int8, 3 + 12 * stride), some(kind, np.uint8, 256 * steps, 1)
    start = np.random.default_rng(2).integers(-(2**20), 2**20, 14).astype(np.int32)
    out = np.zeros(3000, np.int32)
    dot_tiles(simd.instructions(name), x, stride, w, steps, MAPPED_NOWHERE, start, out)
    rows = np.stack([x[3 + m * stride :][:K] for m in range(12)]).astype(np.int64)
    columns = w.reshape(steps, 64, 4).transpose(1, 0, 2).reshape(64, K).astype(np.int64)
    expected = start[2:, None] + rows @ columns.T
    np.testing.assert_array_equal(out[:64], expected[0])
    for m in range(4):
        np.testing.assert_array_equal(out[1000 + 64 * m :][:16], expected[m, 32:48])
    for m in range(12):
        np.testing.assert_array_equal(out[2000 + 70 * m :][:32], expected[m, 32:])


@compiled
def one_fma_tile(x: Any, stride: int, w: Any, steps: int, out: Any) -> None:
    fma_tile(3, 4, x, 2, stride, w, 16, steps, out, 5, 64)


def test_float_tiles_sum_in_ascending_order() -> None:
    steps, stride = 37, 40
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(size).astype(np.float32) for size in (2 + 3 * stride, 16 + 64 * steps))
    rows, columns = np.stack([x[2 + m * stride :][:steps] for m in range(3)]), w[16:].reshape(steps, 64)
    columns[:3, 0], rows[:, :3] = (2.0**24, 1, -(2.0**24)), 1  # column 0: exactly 0 after three, in this order only
    columns[3:, 0] = 0
    for m in range(3):
        x[2 + m * stride :][:steps] = rows[m]
    out = np.full(5 + 3 * 64, np.nan, np.float32)
    one_fma_tile(x, stride, w, steps, out)
    found = out[5:].reshape(3, 64)
    np.testing.assert_allclose(found[:, 1:], rows.astype(np.float64) @ columns[:, 1:], rtol=1e-5, atol=1e-5)
    assert (found[:, 0] == 0).all()
    assert np.isnan(out[:5]).all()


@compiled
def scores_of(
    isa: Any, q: Any, keys: Any, table: Any, stride: int, blocks: int, steps: int, start: Any, out: Any, span: int
) -> None:
    key_scores(isa, 1, q, 4 * steps, keys, 7, table, 2, stride, blocks, steps, start, out, span)
    key_scores(isa, 4, q, 4 * steps, keys, 7, table, 2, stride, blocks, steps, start, out[span:], span)


@each_set
@each_kind
def test_scores_of_keys_follow_the_table(name: str, kind: str) -> None:
    steps, blocks, span = 16, 5, 96
    stride = 64 * steps + 9
    q, keys = some(kind, np.int8, 4 * 4 * steps), some(kind, np.uint8, 7 + 8 * stride, 1)
    table = np.array([99, 99, 6, 0, 3, 3, 7], np.int32)
    start = np.array([5, -1000, 0, 2**20], np.int32)
    out = np.full(5 * span, -1, np.int32)
    scores_of(simd.instructions(name), q, keys, table, stride, blocks, steps, start, out, span)
    rows = q.reshape(4, 4 * steps).astype(np.int64)
    for b in range(blocks):
        block = keys[7 + table[2 + b] * stride :][: 64 * steps].reshape(steps, 16, 4).transpose(1, 0, 2)
        expected = start[:, None] + rows @ block.reshape(16, 4 * steps).astype(np.int64).T
        np.testing.assert_array_equal(out.reshape(5, span)[0, 16 * b :][:16], expected[0])
        np.testing.assert_array_equal(out.reshape(5, span)[1:, 16 * b : 16 * b + 16], expected)
    assert (out.reshape(5, span)[:, 16 * blocks :] == -1).all()


@compiled
def weighed(isa: Any, shares: Any, span: int, values: Any, table: Any, stride: int, blocks: int, out: Any) -> None:
    weigh_values(isa, 1, 1, shares, span, values, 3 + 4 * 16, table, 1, stride, blocks, 4 * 64, out)
    weigh_values(isa, 2, 4, shares, span, values, 3, table, 1, stride, blocks, 4 * 64, out[100:])


@each_set
@each_kind
def test_weighed_values_follow_the_table(name: str, kind: str) -> None:
    blocks, span, stride = 5, 90, 4 * 4 * 64 + 5
    shares, values = some(kind, np.uint8, 4 * span), some(kind, np.int8, 3 + 7 * stride, 1)
    table = np.array([99, 6, 0, 3, 3, 5], np.int32)
    out = np.full(700, -1, np.int32)
    weighed(simd.instructions(name), shares, span, values, table, stride, blocks, out)
    tokens = [values[3 + b * stride :][:1024].reshape(4, 64, 4).transpose(0, 2, 1).reshape(16, 64) for b in table[1:]]
    weights = shares.reshape(4, span)[:, : 16 * blocks].astype(np.int64)
    expected = weights @ np.concatenate(tokens).astype(np.int64)  # [2 rows x 2 bytes, 64 channels]
    np.testing.assert_array_equal(out[:32].reshape(2, 16), expected[:2, 16:32])
    np.testing.assert_array_equal(out[100:356].reshape(4, 64), expected)
    assert (out[32:100] == -1).all()
    assert (out[356:] == -1).all()


# ---------------------------------------------------------------- reductions


@compiled
def reduced(x: Any, at: int, vectors: int) -> Any:
    return lane_sum(x, at, vectors), largest_size(x, at, vectors), largest(x, at, vectors)


def lanes(x: NDArray[np.float32]) -> np.float32:
    """Sixteen sums, then halves of them, each addition rounded."""
    acc = np.zeros(16, np.float32)
    for row in x.reshape(-1, 16):
        acc += row
    while len(acc) > 1:
        acc = acc[: len(acc) // 2] + acc[len(acc) // 2 :]
    return np.float32(acc[0])


def test_sums_are_rounded_in_one_order() -> None:
    rng = np.random.default_rng(0)
    for vectors in (1, 2, 7, 48):
        x = (rng.standard_normal(5 + 16 * vectors) * 10.0 ** rng.integers(-3, 4, 5 + 16 * vectors)).astype(np.float32)
        total, size, most = reduced(x, 5, vectors)
        assert np.float32(total) == lanes(x[5:])
        assert size == np.abs(x[5:]).max()
        assert most == x[5:].max()


def test_the_order_of_a_sum_is_by_lane_then_by_halves() -> None:
    x = np.zeros(48, np.float32)
    x[[0, 16, 32]] = 2.0**24, 1, -(2.0**24)  # one lane, ascending: the 1 is lost
    assert reduced(x, 0, 3)[0] == 0
    x = np.zeros(16, np.float32)
    x[[0, 8, 1]] = 2.0**24, -(2.0**24), 1  # lanes 0 and 8 meet first: the 1 is kept
    assert reduced(x, 0, 1)[0] == 1
    x[[0, 8, 1, 9]] = 2.0**24, 1, -(2.0**24), 0  # 0 and 8 meet, then 1: lost
    assert reduced(x, 0, 1)[0] == 0


@pytest.mark.parametrize("place", [0, 15, 16, 31, 37, 47])
def test_the_largest_is_found_in_every_place(place: int) -> None:
    x = np.full(48, -3, np.float32)
    x[place] = -9
    assert reduced(x, 0, 3)[1:] == (9, -3)
    x[place] = -1
    assert reduced(x, 0, 3)[1:] == (3, -1)
    x[:] = -np.inf
    x[place] = -5e30
    assert reduced(x, 0, 3)[2] == np.float32(-5e30)


def test_the_largest_size_passes_over_nan_and_is_zero_of_zeros() -> None:
    x = np.array([np.nan, -2, 1, 0] * 8, np.float32)
    assert reduced(x, 0, 2)[1] == 2
    assert reduced(np.zeros(16, np.float32), 0, 1)[1] == 0
    assert reduced(np.zeros(16, np.float32), 0, 0)[:2] == (0, 0)


# ---------------------------------------------------------------- memory and threads


@compiled
def fetched(array: Any, at: int, count: int) -> None:
    prefetch(array, at, count)


def test_fetching_ahead_changes_nothing_even_past_the_end() -> None:
    for dtype in (np.uint8, np.float32):
        array = np.arange(100).astype(dtype)
        before = array.copy()
        for at, count in ((0, 100), (99, 1), (100, 64), (100, 100_000), (MAPPED_NOWHERE, 1), (5, 0)):
            fetched(array, at, count)
        np.testing.assert_array_equal(array, before)


@compiled
def from_address(address: int, n: int) -> Any:
    pause()
    give_way()
    return carray(pointer(address), (n,), np.float32).sum()


def test_an_address_leads_to_its_array() -> None:
    array = np.arange(1, 9, dtype=np.float32)
    assert from_address(array.ctypes.data, 8) == 36


@compiled
def counted(array: Any) -> Any:
    atomic_store(array, 1, 40)
    return atomic_add(array, 1, 2), atomic_load(array, 1)


def test_atomic_words_are_the_named_ones() -> None:
    array = np.full(3, 7, np.int64)
    assert counted(array) == (40, 42)
    assert array.tolist() == [7, 42, 7]
