"""For tests of tuning recipes: a random model that reads English and Chinese, and small files to tune it on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.recipes.probe import TEXTS
from gpt2kit.text.training import train_tokenizer

WORDS = ["red", "green", "wolf", "sheep", "七", "八"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base (a random model), pairs.jsonl (copy the last word), labels.jsonl (colour or not), text.txt."""
    path = tmp_path_factory.mktemp("continual")
    draw = random.Random(0)
    rows = [draw.choices(WORDS, k=3) for _ in range(40)]
    pairs = [{"prompt": " ".join(row), "completion": row[-1]} for row in rows]
    labels = [{"text": " ".join(row), "label": str(row[0] in WORDS[:2])} for row in rows]
    for name, lines in (("pairs", pairs), ("labels", labels)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (path / "text.txt").write_text("\n\n".join(" ".join(row * 4) for row in rows), encoding="utf-8")
    tokenizer = train_tokenizer([*map(" ".join, rows), *TEXTS.values()], "bpe", 400)
    config = GPT2Config(tokenizer.vocab_size, 48, 16, 1, 2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    folder.save(path / "base", GPT2(config, torch.Generator().manual_seed(0)), tokenizer, {"name": "base"})
    return path


@pytest.fixture(autouse=True)
def _same_threads(torch_as_it_was: None) -> None:
    """A verb sets the threads of its process, which is this one."""
