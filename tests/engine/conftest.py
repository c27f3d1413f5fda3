"""An exact tiny model behind the engine's interface (fake_forward.py), runs of the scheduler over it; tokenizers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # so that tests here can import fake_forward and schedules

TEXT = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。abc"


@pytest.fixture(scope="session")
def characters() -> Tokenizer:
    return train_tokenizer([TEXT], "char")


@pytest.fixture(scope="session")
def bytes_bpe() -> Tokenizer:
    return train_tokenizer([TEXT * 3], "bpe", vocab_size=270)
