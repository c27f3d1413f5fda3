"""The table of hashes answers as a Python set does, whatever its size and place."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from gpt2kit.data.seen import SeenHashes, text_hashes


@pytest.mark.parametrize("memory", [1 << 28, 0])
def test_adding_in_batches_matches_a_python_set(memory: int, tmp_path: Path) -> None:
    pick = random.Random(5)
    table, slow = SeenHashes(tmp_path, memory, slots=4), set()
    for _ in range(40):
        texts = [str(pick.randrange(9000)).encode() for _ in range(pick.randrange(400))]
        expected = []
        for text in texts:
            expected.append(text not in slow)
            slow.add(text)
        asked = [str(pick.randrange(9000)).encode() for _ in range(50)]
        if texts:
            assert table.add(text_hashes(texts)).tolist() == expected
        assert table.contains(text_hashes(asked)).tolist() == [text in slow for text in asked]
        assert len(table) == len(slow)
    assert 24 <= table.nbytes / len(table) <= 48
    assert list(tmp_path.iterdir()) == []


def test_equal_homes_and_the_zero_hash_are_kept_apart() -> None:
    table = SeenHashes(slots=8)
    same_slot = np.array([[0, 0], [8, 1], [16, 1], [0, 1], [24, 9]], dtype=np.uint64)
    assert table.add(same_slot).tolist() == [True, True, True, False, True]  # (0, 0) counts as (0, 1)
    assert table.contains(same_slot).all()
    assert not table.contains(np.array([[32, 1]], dtype=np.uint64)).any()


def test_hashes_are_blake2b() -> None:
    import hashlib

    digest = hashlib.blake2b(b"abc", digest_size=16).digest()
    assert text_hashes([b"x", b"abc"])[1].astype("<u8").tobytes() == digest


def test_asking_for_one_with_in_is_a_bug() -> None:
    with pytest.raises(TypeError, match="contains"):
        _ = b"abc" in SeenHashes()
