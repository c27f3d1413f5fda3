"""Rows so small that dividing by them would overflow; what the whole step is held to is in test_forward.py."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from gpt2kit.engine import kernels

f32 = np.float32


@numba.njit(**kernels.OPTIONS)  # type: ignore[untyped-decorator]
def quantise(y: Any, q: Any, scales: Any, begins: Any) -> None:
    kernels.quantise(y, 0, len(y), q, 0, scales, begins, 0)


@numba.njit(**kernels.OPTIONS)  # type: ignore[untyped-decorator]
def shares_of(integers: Any, scales: Any, table: Any, scores: Any, found: Any, shares: Any) -> Any:
    return kernels.softmax_shares(
        integers, 0, len(integers), f32(1), scales, 0, 0, table, 0, scores, found, shares, 0, len(integers)
    )


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-37, 1e-31])
def test_a_tiny_row_is_quantised_to_zeros(size: float) -> None:
    y = np.zeros(16, f32)
    y[3] = size
    q, scales, begins = np.full(16, 7, np.int8), np.full(1, 7, f32), np.full(1, 7, np.int32)
    quantise(y, q, scales, begins)
    assert not q.any()
    assert scales[0] == 0
    assert begins[0] == 0


def test_a_row_that_is_not_tiny_keeps_its_value() -> None:
    y = np.zeros(16, f32)
    y[3] = 1e-29
    q, scales, begins = np.zeros(16, np.int8), np.zeros(1, f32), np.zeros(1, np.int32)
    quantise(y, q, scales, begins)
    assert q[3] == 127
    assert scales[0] * 127 == pytest.approx(1e-29)


def test_values_that_only_unseen_tokens_have_weigh_nothing() -> None:
    """The token that takes all attention has a value of zeros; the shares of the others are below any float32."""
    integers = np.full(16, -200, np.int32)
    integers[0] = 0
    scales = np.ones(32, f32)  # of 16 keys, then of 16 values
    scales[16] = 0
    shares = np.full(32, 7, np.uint8)
    factor = shares_of(integers, scales, np.zeros(1, np.int32), np.zeros(16, f32), np.zeros(2, f32), shares)
    assert factor == 0
    assert not shares.any()
