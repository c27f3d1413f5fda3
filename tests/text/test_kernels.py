"""The kernels' source run by Python itself: the slow twin of what Numba compiles."""

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest

from gpt2kit.text import kernels
from gpt2kit.text.bytelevel import ByteLevelEncoder, code_point_classes
from gpt2kit.text.tokenizer import Tokenizer

TEXT = (
    "Hello,  world's end\n\n 't 're 've 'm 'll 'd 'x 'r 'l '\t2024 x²  我們, 你好。🤗é\x85\u3000a "
    "internationalization of unbelievable things "
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """gpt2kit.text.kernels without the compiler."""

    def uncompiled(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(numba, "njit", uncompiled)
    assert kernels.__spec__ is not None
    assert kernels.__spec__.origin is not None
    spec = importlib.util.spec_from_file_location("plain_kernels", kernels.__spec__.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compiled_and_plain_encode_alike(plain: ModuleType, gpt2: Tokenizer) -> None:
    encoder = gpt2._encoder
    assert isinstance(encoder, ByteLevelEncoder)
    documents = [TEXT.encode(), b"", b"z" * 2000, b" '", TEXT.encode()]
    starts = np.cumsum([0, *map(len, documents)])
    buffer = np.frombuffer(b"".join(documents), np.uint8)
    results = []
    for module in (kernels, plain):
        out, ends = np.zeros(len(buffer), np.uint32), np.zeros(len(documents), np.int64)
        cache = np.zeros((64, 4), np.int64)
        with np.errstate(over="ignore"):  # the hashes wrap around on purpose
            total = module.encode(buffer, starts, code_point_classes(), *encoder._tables, cache, out, ends)
        results.append((out[:total].tolist(), ends.tolist()))
    assert results[0] == results[1]
    ids, ends = results[0]
    assert ids[: ends[0]] == gpt2.encode(TEXT)
    assert ends[2] < 0  # a piece beyond LONGEST_PIECE is left to the caller


def test_pieces_that_share_a_slot_are_not_mixed_up(gpt2: Tokenizer) -> None:
    text = " internal internals international internatio interna int inter" * 3
    buffer = np.frombuffer(text.encode(), np.uint8)
    encoder = gpt2._encoder
    assert isinstance(encoder, ByteLevelEncoder)
    out, ends, cache = np.zeros(len(buffer), np.uint32), np.zeros(1, np.int64), np.zeros((1, 4), np.int64)
    starts = np.array([0, len(buffer)])
    total = kernels.encode(buffer, starts, code_point_classes(), *encoder._tables, cache, out, ends)
    assert out[:total].tolist() == gpt2.encode(text)


def test_compiled_and_plain_count_and_prune_alike(plain: ModuleType) -> None:
    buffer = np.frombuffer((TEXT * 3).encode(), np.uint8)
    starts = np.array([0, len(buffer)])
    results = []
    for module in (kernels, plain):
        table, kept = np.zeros((512, 4), np.int64), np.zeros((512, 4), np.int64)
        with np.errstate(over="ignore"):
            new = module.count_pieces(buffer, starts, code_point_classes(), table)
            left = module.prune(table, 3, kept)
        scratch = np.empty(module.COUNTED_BYTES, np.uint8)
        counts = {scratch[: module.unpack(row, scratch)].tobytes(): row[3] for row in kept if row[3]}
        results.append((new, left, counts))
    assert results[0] == results[1]


def test_compiled_and_plain_tables_alike(plain: ModuleType) -> None:
    tables = []
    for module in (kernels, plain):
        pairs = np.full(64, -1, np.int64)
        with np.errstate(over="ignore"):
            module.fill_pairs(np.arange(20), np.arange(20) + 7, pairs)
        tables.append({int(slot) for slot in pairs})
    assert tables[0] == tables[1]
