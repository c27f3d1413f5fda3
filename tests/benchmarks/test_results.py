"""benchmarks/results.py from data to table: a word says the class, and every contestant must learn it."""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.training import train_tokenizer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "two", "birds", "look", "on"]
FLAGS = ("--epochs", "12", "--learning-rate", "3e-3", "--dropout", "0")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # as Python starts a script
    found = importlib.import_module("results")
    monkeypatch.delitem(sys.modules, "results")
    monkeypatch.delitem(sys.modules, "public_data")
    return found


def write(path: Path, count: int, seed: int) -> None:
    drawn = random.Random(seed)
    rows = []
    for i in range(count):
        words = drawn.sample(WORDS, drawn.randint(2, 9))
        words.insert(drawn.randint(0, len(words)), "fine" if i % 2 else "awful")
        rows.append({"text": " ".join(words), "label": "positive" if i % 2 else "negative"})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.slow
def test_every_contestant_learns_a_word(results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "sst2" / "train.jsonl", 120, 0)
    write(tmp_path / "data" / "sst2" / "test.jsonl", 41, 1)
    tokenizer = train_tokenizer([" ".join([*WORDS, "fine", "awful"]) * 4], "bpe", 320)
    model = GPT2(GPT2Config(tokenizer.vocab_size, 64, 32, 2, 2), torch.Generator().manual_seed(1))
    folder.save(tmp_path / "models" / "en", model, tokenizer, {"name": "en"})
    adapters = {"lora": ("--epochs", "13")}  # the later of two flags holds
    monkeypatch.setitem(results.EXPERIMENTS, "sst2", results.Experiment("classify", "en", FLAGS, adapters=adapters))

    place = results.Place(tmp_path / "data", tmp_path / "models", tmp_path / "out")
    found = dict(results.run(place, "sst2"))

    assert [who.split(",")[-1].strip() for who in found] == [
        "TF-IDF + logistic regression", "tuned", "tuned", "lora", "transformers from the same weights",
    ]  # fmt: skip
    for who, row in found.items():
        assert row["metrics"]["accuracy"]["value"] > 0.9, who
    assert found["GPT-2, untrained, tuned"] != found["GPT-2, pre-trained, tuned"]
    full, lora = (json.loads((tmp_path / "out/sst2" / n / "run.json").read_text()) for n in ("en", "en-lora"))
    assert full["settings"]["steps"] < lora["settings"]["steps"]
    kept = [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")]
    assert dict(results.run(place, "sst2")) == found  # nothing is made twice
    assert kept == [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")]
    assert results.shown("sst2", list(found.items())).count("\n") == 6
