"""`gpt2kit evaluate` on labelled files: fluency by another model, a classifier's report, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from gpt2kit import cli
from gpt2kit.data.families import LabelRow, PairRow, Where
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.recipes.fluency import add_fluency
from gpt2kit.recipes.score import Scored
from gpt2kit.recipes.score_report import write
from gpt2kit.scores.result import Scores
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.task import Answer
from gpt2kit.text.training import train_tokenizer


def test_fluency_is_what_the_reference_says_of_answers_and_gold(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "judge"
    model, tokenizer = folder.load(small / "base")
    assert tokenizer is not None
    with torch.no_grad():
        model.wte.weight.mul_(3)
    folder.save(judge, model, tokenizer, {"name": "judge"})
    bits, characters = 0.0, 0
    for row in map(json.loads, (small / "pairs.jsonl").read_text(encoding="utf-8").splitlines()):
        ids = [tokenizer.eot_id, *tokenizer.encode(row["completion"])]
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, :-1].double().log_softmax(-1)
        bits -= float(logits[range(len(ids) - 1), ids[1:]].sum()) / math.log(2)
        characters += len(row["completion"])
    ask = ["evaluate", str(small / "base"), str(small / "pairs.jsonl"), "--task", "translate", "--precision", "fp32"]
    assert cli.main([*ask, "--json", "--fluency-by", str(judge)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["fluency_of_references"]["value"] == pytest.approx(bits / characters, rel=1e-4)
    assert found["metrics"]["fluency"]["unit"] == "bits per character"
    assert found["protocol"]["metrics"]["fluency"]["reference"].startswith("judge, sha256 ")
    assert found["protocol"]["metrics"]["fluency"]["reference_tokenizer"] == tokenizer.hash


def test_characters_that_the_reference_does_not_know_are_said(small: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["red green wolf"], "char")
    judge = GPT2(GPT2Config(tokenizer.vocab_size, 48, 16, 1, 2), torch.Generator().manual_seed(0))
    folder.save(tmp_path / "judge", judge, tokenizer, {"name": "judge"})
    rows = [PairRow("x", gold, where=Where("test")) for gold in ("red", "green", "七")]
    found, notes = Scored("translate", Scores(()), rows, [Answer("wolf", {})] * 3), list[str]()
    add_fluency(found, tmp_path / "judge", "fp32", note=notes.append)
    assert [note for note in notes if "cannot write" in note] == [
        "of 1 text the reference cannot write every character: fluency flatters them"
    ]


@pytest.mark.parametrize(("words", "said"), [
    (["--task", "rank", "--fluency-by", "BASE"], "--fluency-by is of written answers, not of rank"),
    (["--task", "translate", "--fluency-by", "BASE"], "the reference is the model itself"),
    (["--fluency-by", "BASE"], "--fluency-by is of a task's answers"),
    (["--last-word", "--fluency-by", "BASE"], "--fluency-by says nothing of a last word"),
])  # fmt: skip
def test_fluency_is_refused_before_anything_is_answered(
    small: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    base = str(small / "base")
    assert cli.main(["evaluate", base, "nothing.jsonl", *(base if word == "BASE" else word for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_mistyped_task_is_answered_with_tasks(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(small / "base"), str(small / "pairs.jsonl"), "--task", "clasify"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'classify'" in said
    assert "prefer" not in said
    assert "continue" not in said


def test_a_classifiers_report_begins_with_what_it_was_surest_of_wrongly(small: Path, tmp_path: Path) -> None:
    given = [("sun", "good", 0.9), ("x", "good", 0.4), ("a longer text", "bad", 0.95), ("rain", "bad", 0.3)]
    rows = [LabelRow(text, (label,), where=Where("test")) for text, label, _ in given]
    answers = [Answer("good" if p > 0.5 else "bad", {"probabilities": {"bad": 1 - p, "good": p}}) for _, _, p in given]
    found = Scored("classify", Classify(("bad", "good")).score(rows, answers), rows, answers)
    write(tmp_path / "report", small / "base", found)
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert [one["input"] for one in report["examples"]] == ["a longer text", "x", "rain", "sun"]
    assert report["examples"][0]["score"] == pytest.approx(0.05)
    assert (report["example_score"], report["length_score"]) == ("gold_probability", "accuracy")
    assert [one["count"] for one in report["reliability"]] == [1, 1, 1, 1]
    assert report["reliability"][0] | {"confidence": 0.6, "accuracy": 0.0} == pytest.approx(report["reliability"][0])
