"""Token shards: what is written is read, and whatever else is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.data.shards import (
    HEADER,
    PackedTokens,
    ShardHeader,
    ShardWriter,
    SplitInfo,
    id_size,
    read_header,
)
from gpt2kit.errors import UserError

HASH = "ab" * 32


def written(folder: Path, ids: np.ndarray, vocab_size: int, shard_tokens: int, steps: int = 7) -> PackedTokens:
    with ShardWriter(folder, "train", vocab_size, HASH, shard_tokens) as writer:
        for part in np.array_split(ids, steps):
            writer.write(part)
    info = SplitInfo(tuple(writer.names), 1, writer.tokens, 0, 0, 0)
    return PackedTokens([folder / name for name in writer.names], info, HASH, vocab_size)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
@pytest.mark.parametrize("shard_tokens", [1, 10, 100, 999, 1000, 5000])
def test_ids_come_back_over_shard_borders(tmp_path: Path, vocab_size: int, dtype: str, shard_tokens: int) -> None:
    ids = np.random.default_rng(0).integers(0, vocab_size, 1000)
    ids[3] = vocab_size - 1
    shard_tokens = max(shard_tokens, 1 if vocab_size == 257 else 10)
    tokens = written(tmp_path, ids, vocab_size, shard_tokens)
    assert len(tokens) == 1000
    assert tokens[:].dtype == dtype
    assert (tokens[:] == ids).all()
    pick = np.random.default_rng(1)
    for _ in range(300):
        a, b = pick.integers(-1100, 1100, 2).tolist()
        assert tokens[a:b].tolist() == ids[a:b].tolist()
    assert [tokens[i] for i in (0, 9, 10, 999, -1)] == [ids[i] for i in (0, 9, 10, 999, -1)]
    with pytest.raises(IndexError):
        tokens[1000]
    shards = sorted(tmp_path.iterdir())
    assert len(shards) == -(-1000 // shard_tokens)
    assert max(path.stat().st_size for path in shards) <= HEADER + shard_tokens * id_size(vocab_size)


def test_headers_say_what_is_in_the_shard(tmp_path: Path) -> None:
    written(tmp_path, np.array([5, 9, 2, 7]), 300, 3)
    assert read_header(tmp_path / "train-00000.bin") == ShardHeader(0, 3, 300, 9, 2, HASH)
    assert read_header(tmp_path / "train-00001.bin") == ShardHeader(1, 1, 300, 7, 2, HASH)


def test_the_ids_are_little_endian_after_256_bytes(tmp_path: Path) -> None:
    written(tmp_path, np.array([1, 258]), 300, 10)
    assert (tmp_path / "train-00000.bin").read_bytes()[256:] == b"\1\0\2\1"


def test_ids_outside_the_vocabulary_are_our_bug(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 10, HASH, 100) as writer:
        with pytest.raises(AssertionError, match="outside"):
            writer.write(np.array([3, 10]))
        with pytest.raises(AssertionError, match="outside"):
            writer.write(np.array([-1]))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    written(tmp_path, np.arange(100), 300, 1000)
    return tmp_path / "train-00000.bin"


def test_an_unfinished_shard_is_not_a_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 300, HASH, 1000)
    writer.write(np.arange(100))
    with pytest.raises(UserError):
        read_header(tmp_path / "train-00000.bin")
    writer.close()
    assert read_header(tmp_path / "train-00000.bin").tokens == 100


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: b"something else entirely", "is not a token shard"),
        (lambda data: b"", "is not a token shard"),
        (lambda data: data[:100], "is truncated"),
        (lambda data: data[:-1], "is truncated: 455 bytes, 456 for 100 tokens"),
        (lambda data: data[:256], "is truncated"),
        (lambda data: data + b"x", "is longer than its header says"),
        (lambda data: data[:8] + b"\2" + data[9:], "has shard version 2, this gpt2kit reads 1"),
        (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "damaged header"),
        (lambda data: data[:250] + bytes([data[250] ^ 1]) + data[251:], "damaged header"),
    ],
)
def test_what_is_not_a_whole_shard_is_refused_by_name(shard: Path, change, word: str) -> None:
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(UserError) as caught:
        read_header(shard)
    assert str(shard) in caught.value.message
    assert word in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"itemsize": 4}, "4 bytes per id"),
        ({"largest": 300}, "outside the vocabulary"),
        ({"tokens": 0}, "longer"),
    ],
)
def test_a_wrong_but_sealed_header_is_refused(shard: Path, fields: dict[str, int], word: str) -> None:
    header = replace(read_header(shard), **fields)
    shard.write_bytes(header.to_bytes() + shard.read_bytes()[HEADER:])
    with pytest.raises(UserError, match=word):
        read_header(shard)


def test_an_empty_shard_and_a_missing_one_are_refused(shard: Path, tmp_path: Path) -> None:
    shard.write_bytes(replace(read_header(shard), tokens=0).to_bytes())
    with pytest.raises(UserError, match="0 ids"):
        read_header(shard)
    with pytest.raises(UserError, match="cannot read"):
        read_header(tmp_path / "none.bin")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_fuzzed_shards_are_read_or_refused(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    written(folder, np.arange(40), 300, 1000)
    path = folder / "train-00000.bin"
    good = path.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bad[: data.draw(st.integers(0, len(bad)))] if data.draw(st.booleans()) else bad
    path.write_bytes(bytes(bad) + data.draw(st.binary(max_size=5)))
    header = None
    try:
        header = read_header(path)
    except UserError as error:
        refusal = error.message
    if header is None:
        assert str(path) in refusal
    else:
        assert path.read_bytes()[:HEADER] == good[:HEADER]
        assert header.tokens == 40
