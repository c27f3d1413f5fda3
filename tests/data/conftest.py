"""A tokenizer as plain as can be: its ids are the bytes, and 256 is <|endoftext|>."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest


class ByteTokenizer:
    kind = "char"

    def __init__(self, vocab_size: int = 257, eot_id: int | None = 256) -> None:
        self.vocab_size = vocab_size
        self.eot_id = eot_id
        self.hash = hashlib.sha256(f"bytes {vocab_size} {eot_id}".encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        parts = [bytes([i]) if i < 256 else b"<|endoftext|>" for i in ids]
        return b"".join(parts).decode()

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def make_tokenizer() -> type[ByteTokenizer]:
    return ByteTokenizer
