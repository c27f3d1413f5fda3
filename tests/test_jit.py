"""Compiled code survives a cache that is broken or absent."""

from collections.abc import Callable
from typing import Any

import numba
import pytest

from gpt2kit import jit


def test_a_cache_that_fails_costs_nothing_but_time() -> None:
    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    assert jit._optional(broken)(1, 2) is None
    assert jit._optional(lambda value: value)(3) == 3


def test_no_cache_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def njit(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
        calls.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(numba, "njit", njit)
    assert jit.compiled(len) is len
    assert len(calls) == 2


def test_a_renamed_copy_does_the_same_under_its_own_name() -> None:
    def double(x: int) -> int:
        return 2 * x

    copy = jit.renamed(double, "double_parallel")
    assert copy(4) == 8
    assert copy.__qualname__ == "double_parallel" != double.__qualname__
