"""Packing takes the same memory for 300 MB as for 3 MB, in lines or without one, compressed or not."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import hashlib, json, sys
import numpy as np, psutil
from gpt2kit.data.pack import pack

class Bytes:
    kind, vocab_size, eot_id, hash = "char", 257, 256, "00" * 32
    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]
    def save(self, folder):
        pass

process = psutil.Process()
before, peak = process.memory_info().rss, 0
def progress(_):
    global peak
    peak = max(peak, process.memory_info().rss)
report = pack(sys.argv[1], Bytes(), sys.argv[2], progress=progress, shard_tokens=50_000_000)
print(json.dumps({"mb": (peak - before) / 1e6, "bytes": sum(s.bytes for s in report.splits.values()),
                  "duplicates": report.duplicates}))
"""


def memory_of(path: Path, out: Path) -> dict[str, float]:
    import json

    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(out)], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def fill(file, megabytes: int, line: str) -> int:
    size = 0
    number = 0
    while size < megabytes * 1_000_000:
        block = "".join(line.format(n=n) for n in range(number, number + 1000)).encode()
        number += 1000
        file.write(block)
        size += len(block)
    return size


def check(path: Path, size: int, tmp_path: Path) -> None:
    small = tmp_path / "small.txt"
    with open(small, "wb") as file:
        fill(file, 8, "line {n} of a small story\n")
    base = memory_of(small, tmp_path / "small")
    got = memory_of(path, tmp_path / "packed")
    assert got["bytes"] == size
    assert got["duplicates"] == 0
    assert got["mb"] < 100, got  # measured: 26 to 45
    assert got["mb"] < base["mb"] + 60, (got, base)


@pytest.mark.slow
def test_a_file_of_300_mb_is_packed_in_bounded_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        size = fill(file, 300, "line {n}: 春眠不觉晓 and so the story goes on and on\n")
    check(tmp_path / "a.txt", size, tmp_path)


@pytest.mark.slow
def test_one_line_of_200_mb_is_packed_in_bounded_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.txt", "wb") as file:
        size = fill(file, 200, "word{n} ")
    check(tmp_path / "a.txt", size, tmp_path)


@pytest.mark.slow
def test_a_compression_bomb_is_packed_in_bounded_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=1) as file:
        size = fill(file, 100, "{n:<4000}\n")
    check(tmp_path / "a.txt.gz", size, tmp_path)
