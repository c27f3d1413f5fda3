"""A language model that was never tuned for a task, asked by prompts on the command line: what it knows, it answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2kit import cli
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training.rows import Completions, Row, RowBatches

KINDS = {"colour": ["red", "green", "blue", "绿色"], "animal": ["wolf", "sheep", "horse", "山羊"]}


def texts(n: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        kind = draw.choice(list(KINDS))
        found.append((f"{draw.choice(['a', 'the', 'one', '那个'])} {draw.choice(KINDS[kind])}", kind))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Next-token prediction on lines like the default prompt, three of them in a window."""
    lines = [f"Text: {text}\nCategory: {kind}" for text, kind in texts(128, 1)]
    tokenizer = train_tokenizer([*lines, *lines, "N/A [MASK] Review The review is All in all, it was"], "bpe", 380)
    rows = [Row(np.array(tokenizer.encode("\n\n".join(lines[n : n + 3])))) for n in range(126)]
    config = GPT2Config(
        tokenizer.vocab_size, 64, 64, 1, 2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1
    )
    network = GPT2(config, torch.Generator().manual_seed(0))
    batches, objective = RowBatches(rows, 16, seed=0), Completions()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for step in range(50):
        loss, count = objective.loss(network, *map(torch.from_numpy, objective.prepare(batches.at(step), step, 0)))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("model") / "lm"
    folder.save(path, network, tokenizer, {"name": "lm"})
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    rows = [json.dumps({"text": text, "label": kind}, ensure_ascii=False) for text, kind in texts(60, 2)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def gpt2kit(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    found = cli.main([*map(str, words), "--threads", "1", "--precision", "fp32"])
    told = capsys.readouterr()
    assert found == code, told.err
    return told.out if code == 0 else told.err


def accuracy(out: str) -> float:
    return float(json.loads(out)["metrics"]["accuracy"]["value"])


def test_label_words_are_enough_to_classify(model: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("evaluate", model, labelled, "--task", "classify", "--json")
    assert accuracy(gpt2kit(capsys, *ask, "--labels", "colour,animal")) >= 0.95
    assert accuracy(gpt2kit(capsys, *ask)) >= 0.95  # the labels are the test set's
    assert accuracy(gpt2kit(capsys, *ask, "--label-words", "colour=animal,animal=colour")) <= 0.05
    assert accuracy(gpt2kit(capsys, *ask, "--examples", labelled, "--shots", "2", "--balanced")) >= 0.5
    found = json.loads(gpt2kit(capsys, *ask, "--examples", labelled, "--search-prompts", "builtin"))
    assert found["prompts"][0]["template"] == "Text: {text}\nCategory: {label}"
    assert found["prompts"][0]["accuracy"] == found["metrics"]["accuracy"]["value"] >= 0.95
    assert found["prompts"][-1]["accuracy"] < 0.95


def test_many_texts_are_answered_line_by_line_and_summed_up(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many.txt"
    many.write_text("a red\nthe wolf\n\nthe 山羊\none horse\n", encoding="utf-8")
    ask = ("run", "classify", model, many, "--labels", "colour,animal", "--summary")
    *lines, last = map(json.loads, gpt2kit(capsys, *ask, "--json").splitlines())
    assert [line["answer"] for line in lines] == ["colour", "animal", "animal", "animal"]
    assert last["summary"]["animal"]["value"] == 0.75
    assert last["summary"]["animal"]["low"] < 0.75 < last["summary"]["animal"]["high"]
    plain = gpt2kit(capsys, *ask).splitlines()
    assert plain[:4] == ["colour", "animal", "animal", "animal"]
    assert plain[4].startswith("colour  25.0 % [")


def test_candidates_are_ranked_by_what_the_model_would_write(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("run", "rank", model, "Text: a wolf", "--template", "{query}\\nCategory: {candidate}")
    told = gpt2kit(capsys, *ask, "--candidates", "colour", "animal").splitlines()
    assert [line.split("  ")[1] for line in told] == ["animal", "colour"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "Text: one 绿色", "candidates": ["animal", "colour"]}\n', encoding="utf-8")
    found = json.loads(gpt2kit(capsys, "run", "rank", model, rows, *ask[4:], "--json", "--per", "total"))
    assert found["answer"] == "colour"
    assert found["ranking"] == [1, 0]
    rows.write_text('{"query": "Text: one 绿色", "candidates": ["animal", "colour"], "chosen": 0}\n', encoding="utf-8")
    evaluate = ("evaluate", model, rows, "--task", *ask[1:2], *ask[4:], "--json", "--report", tmp_path / "report")
    assert json.loads(gpt2kit(capsys, *evaluate))["metrics"]["mrr"]["value"] == 0.5
    (worst,) = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["examples"]
    assert (worst["gold"], worst["predicted"]) == ("animal", "colour")


@pytest.mark.parametrize(("words", "said"), [
    (("run", "classify", "MODEL", "x"), "--labels positive,negative"),
    (("run", "chat", "MODEL", "x"), "chat needs a model that was tuned for it"),
    (("run", "rank", "MODEL", "x", "--summary"), "--summary is of classify"),
    (("run", "rank", "MODEL", "x", "--candidates", "one"), "two candidates"),
    (("run", "write", "MODEL", "x", "--labels", "a,b"), "--labels means nothing for write"),
    (("evaluate", "MODEL", "DATA", "--shots", "2"), "--shots is of a task's answers"),
    (("evaluate", "MODEL", "DATA", "--task", "embed"), "embed has no right answers"),
    (("evaluate", "MODEL", "DATA", "--task", "classify", "--labels", "x,y"), "is not one of the 2"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said(
    model: Path, labelled: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    named = {"MODEL": str(model), "DATA": str(labelled)}
    assert said in gpt2kit(capsys, *(named.get(word, word) for word in words), code=2)
