"""Each task from a raw file to an answer, as a user types it: check, finetune, evaluate, run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2kit import cli
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.training import train_tokenizer

Gpt2kit = Callable[..., subprocess.CompletedProcess[str]]
WORDS = ["red", "green", "blue", "七", "八", "九", "wolf", "sheep", "river"]


def gpt2kit(*words: str | Path, code: int = 0, given: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gpt2kit", *map(str, words)], capture_output=True, text=True, input=given, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """As `gpt2kit`, in this process: what is printed to standard output."""

    def run(*words: str | Path) -> str:
        assert cli.main([*map(str, words), *([] if words[0] == "data" else ["--threads", "1"])]) == 0, words
        return capsys.readouterr().out

    return run


def sentences(n: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=4)) for _ in range(n)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a character vocabulary: what it can do afterwards, tuning has taught it."""
    import torch

    path = tmp_path_factory.mktemp("base") / "base"
    tokenizer = train_tokenizer([*sentences(50), "=>\n TL;DR: assistant user abcdefghijklmnopqrstuvwxyz ,.?"], "char")
    config = GPT2Config(tokenizer.vocab_size, 96, 64, 2, 4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    folder.save(path, GPT2(config, torch.Generator().manual_seed(0)), tokenizer, {"name": "base"})
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tune(data: Path, base: Path, task: str, out: Path, *flags: str, run: Callable[..., object] = gpt2kit) -> None:
    run("finetune", data, "--from", base, "--task", task, "--out", out, "--learning-rate", "3e-3",
        "--dropout", "0", "--batch", "16", *flags)  # fmt: skip


def printed(*words: str | Path) -> str:
    return gpt2kit(*words).stdout


def metric(out: Path, test: Path, name: str, *flags: str | Path, run: Callable[..., str] = printed) -> float:
    found = json.loads(run("evaluate", out, test, "--json", *flags))["metrics"][name]
    assert found["low"] <= found["value"] <= found["high"]
    return float(found["value"])


def test_classify_from_a_table_to_a_label(base: Path, typed: Callable[..., str], tmp_path: Path) -> None:
    def rows(n: int, seed: int) -> list[dict[str, Any]]:
        return [{"text": s, "label": "colour" if s.split()[0] in WORDS[:3] else "other"} for s in sentences(n, seed)]

    train, test = write(tmp_path / "train.jsonl", rows(240, 1)), write(tmp_path / "test.jsonl", rows(100, 2))
    checked = json.loads(typed("data", "check", train, "--task", "classify", "--json"))
    assert (checked["rows"], checked["usable"]) == ({"train": 240}, True)
    assert set(checked["labels"]["train"]) == {"colour", "other"}
    out = tmp_path / "out"
    tune(train, base, "classify", out, "--epochs", "5", run=typed)
    assert metric(out, test, "accuracy", "--report", tmp_path / "report", run=typed) >= 0.97
    answer = json.loads(typed("run", "classify", out, "blue wolf 七 八", "--json"))
    assert answer["answer"] == "colour"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert "<table" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    wrong = gpt2kit("run", "translate", out, "x", code=2)
    assert "was tuned for classify" in wrong.stderr


def test_leaks_between_files_that_are_named_are_found(typed: Callable[..., str], tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"text": s, "label": "x" if "七" in s else "y"} for s in sentences(40, 1)])
    first = json.loads(train.read_text(encoding="utf-8").splitlines()[0])
    test = write(tmp_path / "b.jsonl", [first, {"text": "river of no return", "label": "z"}])
    found = json.loads(typed("data", "check", train, "--test", test, "--json"))
    assert found["rows"] == {"train": 40, "test": 2}
    told = {(finding["kind"], finding["split"], finding["count"]) for finding in found["findings"]}
    assert {("leaks", "test", 1), ("unseen-labels", "test", 1)} <= told


def test_pairs_stop_where_they_were_taught_to_although_eos_is_pad(
    base: Path, typed: Callable[..., str], tmp_path: Path
) -> None:
    """Twenty short lines; greedy stops in twenty of twenty."""
    lines = sorted({s.split()[0] + " " + s.split()[1] for s in sentences(200)})[:20]
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": s, "completion": s.split()[0]} for s in lines])
    out = tmp_path / "out"
    tune(pairs, base, "instruct", out, "--epochs", "160", "--validation", str(pairs), run=typed)
    given = tmp_path / "asked.txt"
    given.write_text("\n".join(lines), encoding="utf-8")
    answers = [json.loads(line) for line in typed("run", "instruct", out, given, "--json").splitlines()]
    assert [a["finish_reason"] for a in answers] == ["stop"] * 20
    assert sum(a["answer"] == s.split()[0] for a, s in zip(answers, lines, strict=True)) >= 19
    assert metric(out, pairs, "chrf", run=typed) > 90


@pytest.mark.slow
def test_chat_brings_its_template_and_answers_questions(base: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]}
        for word in WORDS * 4
    ]
    data, out = write(tmp_path / "chat.jsonl", rows), tmp_path / "out"
    tune(data, base, "chat", out, "--epochs", "40", "--validation", str(data))
    assert (out / "chat_template.jinja").exists()
    assert gpt2kit("run", "chat", out, "wolf").stdout.strip() == "flow"


@pytest.mark.slow
def test_answers_are_found_in_a_passage(base: Path, tmp_path: Path) -> None:
    draw = random.Random(0)

    def document(n: int) -> dict[str, Any]:
        data = []
        for i in range(n):
            passage = " ".join(draw.sample(WORDS, 4))
            answer = passage.split()[0]
            qa = {"id": str(i), "question": "first?", "answers": [{"text": answer, "answer_start": 0}]}
            data.append({"title": "t", "paragraphs": [{"context": passage, "qas": [qa]}]})
        return {"data": data}

    train, test = tmp_path / "train.json", tmp_path / "test.json"
    train.write_text(json.dumps(document(300), ensure_ascii=False), encoding="utf-8")
    test.write_text(json.dumps(document(40), ensure_ascii=False), encoding="utf-8")
    out = tmp_path / "out"
    tune(train, base, "answer", out, "--epochs", "30")
    assert metric(out, test, "exact_match") >= 0.9


@pytest.mark.slow
def test_a_killed_tuning_run_resumes_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    rows = [{"text": s, "label": str("七" in s)} for s in sentences(200, 5)]
    data = write(tmp_path / "data.jsonl", rows)
    for name in ("straight", "killed"):
        tune(data, base, "classify", tmp_path / name, "--epochs", "2")
    import shutil

    killed = tmp_path / "killed"
    newest = sorted((killed / "checkpoints").iterdir())
    for path in newest[1:]:
        shutil.rmtree(path)
    (killed / "model.safetensors").unlink()
    gpt2kit("finetune", "--resume", killed)
    straight = (tmp_path / "straight" / "model.safetensors").read_bytes()
    assert (killed / "model.safetensors").read_bytes() == straight
