"""A tiny model of each language, random: what tests need of it is that its figures are all different."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt2kit.engine import Engine
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

ENGLISH = "the quick brown fox jumps over the lazy dog good bad film story Text: Category: N/A [MASK] ?! => "
CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少文本类别：，。好评差 N/A [MASK]\n"


def bpe() -> Tokenizer:
    return train_tokenizer([ENGLISH * 3 + "\n" + CHINESE], "bpe", 400)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a byte-level vocabulary; 96 positions."""
    path, tokenizer = tmp_path_factory.mktemp("tasks") / "base", bpe()
    config = GPT2Config(
        tokenizer.vocab_size, 96, 32, 2, 2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3
    )
    folder.save(path, GPT2(config, torch.Generator().manual_seed(0)), tokenizer, {"name": "base"})
    return path


@pytest.fixture(scope="session")
def engine(base: Path) -> Iterator[Engine]:
    with Engine.load(base, "fp32", threads=1, max_batch=8) as engine:
        yield engine


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token a character."""
    return train_tokenizer(["abcdefghijklmnopqrstuvwxyz \n=>:;.,?! 春眠不觉晓"], "char")
