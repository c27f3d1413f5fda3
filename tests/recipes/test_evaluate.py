"""`gpt2kit evaluate`: every figure with its interval, two models paired, and refusals before a model is asked."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit import cli
from gpt2kit.evaluation import evaluate
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes import score
from gpt2kit.scores.report import HTML, JSON
from gpt2kit.tasks.classify import Classify
from gpt2kit.text.training import train_tokenizer

METRICS = ["perplexity", "loss", "bits_per_byte", "bits_per_character"]


@pytest.fixture(scope="module")
def texts(small: Path) -> Path:
    """Forty documents, a line each."""
    path = small / "texts.jsonl"
    rows = (small / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("".join(json.dumps({"text": json.loads(row)["text"]}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def other(small: Path) -> Path:
    """The base model with other weights."""
    model, tokenizer = folder.load(small / "base")
    folder.save(small / "other", GPT2(model.config, torch.Generator().manual_seed(7)), tokenizer, {"name": "other"})
    return small / "other"


@pytest.fixture(scope="module")
def characters(small: Path) -> Path:
    """A model of single characters."""
    tokenizer = train_tokenizer([(small / "text.txt").read_text(encoding="utf-8")], "char")
    model, _ = folder.load(small / "base")
    config = dataclasses.replace(
        model.config, vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eot_id, bos_token_id=tokenizer.eot_id
    )
    folder.save(small / "characters", GPT2(config, torch.Generator().manual_seed(0)), tokenizer, {"name": "characters"})
    return small / "characters"


@pytest.fixture(scope="module")
def classifiers(small: Path) -> tuple[Path, Path]:
    """Two that were tuned for "True" and "False", as their lineage has it; their weights are random."""
    model, tokenizer = folder.load(small / "base")
    task = Classify(("False", "True"))
    config = dataclasses.replace(task.model_config(model.config), initializer_range=0.3)
    for seed in (1, 2):
        network = GPT2(config, torch.Generator().manual_seed(seed))
        folder.save(small / f"classifier{seed}", network, tokenizer, {"task": task.values()})
    return small / "classifier1", small / "classifier2"


def gpt2kit(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    found = cli.main([*map(str, ("evaluate", *words))])
    told = capsys.readouterr()
    assert found == code, told.err
    return told.out if code == 0 else told.err


def test_each_figure_of_a_text_has_its_interval(small: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(gpt2kit(capsys, small / "base", texts, "--json"))
    assert list(found["metrics"]) == METRICS
    for name, figure in found["metrics"].items():
        assert figure["low"] < figure["value"] < figure["high"]
        assert figure["value"] == found[name]
    assert found["intervals"] == {"blocks": 40, "resamples": 1000, "confidence": 0.95, "seed": 0}
    assert found["metrics"]["bits_per_byte"]["n"] == found["bytes"]
    model, tokenizer = folder.load(small / "base")
    documents = [json.loads(row)["text"] for row in texts.read_text(encoding="utf-8").splitlines()]
    assert found["nll"] == evaluate(model, tokenizer, documents).nll
    low, high = (found["metrics"]["perplexity"][end] for end in ("low", "high"))
    plain = gpt2kit(capsys, small / "base", texts)
    assert f"perplexity          {found['perplexity']:.4f} per bpe token [{low:.4f}, {high:.4f}]\n" in plain


def test_a_single_document_shows_no_spread(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("red wolf", encoding="utf-8")
    plain = gpt2kit(capsys, small / "base", tmp_path / "one.txt")
    assert plain.count("(no spread)") == 4
    assert "[" not in plain.partition("on  ")[0]


def test_a_text_has_a_report_with_its_hardest_documents(
    small: Path, other: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (small / "base", texts, "--report", tmp_path, "--against", other, "--json")
    found = json.loads(gpt2kit(capsys, *words))
    saved = json.loads((tmp_path / JSON).read_text(encoding="utf-8"))
    assert saved["metrics"] == found["metrics"]
    assert [one["score"] for one in saved["examples"]] == sorted((x["score"] for x in saved["examples"]), reverse=True)
    documents = [json.loads(row)["text"] for row in texts.read_text(encoding="utf-8").splitlines()]
    assert {one["input"] for one in saved["examples"]} <= set(documents)
    assert saved["beside"] == [found["against"]]
    assert saved["examples"][0]["input"] in (tmp_path / HTML).read_text(encoding="utf-8")


def test_a_model_that_writes_is_measured_on_texts(
    small: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = folder.load(small / "base")
    folder.save(tmp_path / "poet", model, tokenizer, {"task": {"name": "write", "max_tokens": 9}})
    found = json.loads(gpt2kit(capsys, tmp_path / "poet", texts, "--json", "--report", tmp_path / "report"))
    assert list(found["metrics"]) == METRICS
    assert (tmp_path / "report" / HTML).exists()


def test_two_models_are_paired_on_one_text(
    small: Path, other: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(gpt2kit(capsys, small / "base", texts, "--against", other, "--json"))["against"]
    alone = json.loads(gpt2kit(capsys, other, texts, "--json"))
    assert found["metrics"] == alone["metrics"]
    assert [one["metric"] for one in found["comparisons"]] == METRICS
    for one in found["comparisons"]:
        assert one["difference"] == one["second"] - one["first"]
        assert one["first"] == alone[one["metric"]]
        assert one["low"] <= one["difference"] <= one["high"]
        assert one["test"] == "paired permutation"
    plain = gpt2kit(capsys, small / "base", texts, "--against", other)
    last = found["comparisons"][-1]
    assert f"bits_per_character {last['difference']:+.4g} [{last['low']:+.4g}, {last['high']:+.4g}], p " in plain


def test_perplexities_of_unlike_tokens_are_refused_and_bits_per_byte_compared(
    small: Path, characters: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(gpt2kit(capsys, small / "base", texts, "--against", characters, "--json"))["against"]
    assert [one["metric"] for one in found["comparisons"]] == ["bits_per_byte", "bits_per_character"]
    assert all(math.isfinite(one["p"]) for one in found["comparisons"])
    assert "'perplexity per char token' and 'perplexity per bpe token'" in found["refused"]["perplexity"]
    plain = gpt2kit(capsys, small / "base", texts, "--against", characters)
    assert "perplexity not compared: the two perplexity have different units" in plain


def test_two_classifiers_are_paired_on_one_test_set(
    small: Path, classifiers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (classifiers[0], small / "labels.jsonl", "--precision", "fp32", "--threads", "1")
    more = ("--against", classifiers[1], "--report", tmp_path)
    found = json.loads(gpt2kit(capsys, *words, *more, "--json"))
    accuracy = found["against"]["comparisons"][0]
    assert (accuracy["metric"], accuracy["test"]) == ("accuracy", "McNemar, exact")
    assert accuracy["second"] == found["metrics"]["accuracy"]["value"]
    assert accuracy["first"] == found["against"]["metrics"]["accuracy"]["value"]
    assert accuracy["first"] != accuracy["second"]
    saved = json.loads((tmp_path / JSON).read_text(encoding="utf-8"))
    assert saved["beside"] == [found["against"]]
    plain = gpt2kit(capsys, *words, *more)
    assert f"\naccuracy {accuracy['difference']:+.4g} [" in plain.partition("paired:")[2]


def test_a_tuned_model_is_compared_with_a_prompted_one(
    small: Path, classifiers: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (classifiers[0], small / "labels.jsonl", "--precision", "fp32", "--threads", "1", "--json")
    found = json.loads(gpt2kit(capsys, *words, "--against", small / "base"))
    assert found["against"]["comparisons"][0]["metric"] == "accuracy"


@pytest.mark.parametrize(("words", "said"), [
    (("--against", "nowhere"), "nowhere"),
    (("--against", "OTHER", "--last-word"), "--against says nothing of a last word"),
    (("--against", "OTHER", "--tune-threshold"), "would flatter it beside another"),
])  # fmt: skip
def test_comparisons_that_mean_nothing_are_refused(
    small: Path, classifiers: tuple[Path, Path], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    own = [str(classifiers[1]) if word == "OTHER" else word for word in words]
    assert said in gpt2kit(capsys, classifiers[0], small / "labels.jsonl", *own, code=2)


# ---------------------------------------------------------------- before a model is asked


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is opened."""

    def open_for_tasks(*_: Any) -> None:
        raise AssertionError("a model was asked")

    monkeypatch.setattr(score, "open_for_tasks", open_for_tasks)


@pytest.mark.usefixtures("unasked")
def test_a_label_that_a_model_does_not_know_is_found_before_it_is_asked(
    classifiers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "red", "label": "True"}, {"text": "wolf", "label": "Maybe"}, {"text": "red", "label": "False"}]
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = gpt2kit(capsys, classifiers[0], data, code=2)
    assert "line 2: the label 'Maybe' is not one of the 2 that the model tells apart" in told
    assert "hint:  they are 'False', 'True'" in told


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(("task", "package"), [
    ("classify", "scikit-learn"), ("translate", "sacrebleu"), ("summarise", "rouge-score"),
])  # fmt: skip
def test_a_package_that_is_missing_is_named_before_a_model_is_asked(
    small: Path, task: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = {"scikit-learn": "sklearn.metrics", "sacrebleu": "sacrebleu.metrics"}.get(
        package, "rouge_score.rouge_scorer"
    )
    monkeypatch.setitem(sys.modules, module, None)
    data = small / ("labels.jsonl" if task == "classify" else "pairs.jsonl")
    told = gpt2kit(capsys, small / "base", data, "--task", task, code=2)
    assert f"needs the package '{package}'" in told
    assert "pip install 'gpt2kit[scores]'" in told


def test_a_text_is_measured_without_the_packages_for_scores(
    small: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("sklearn", "sklearn.metrics", "sacrebleu", "sacrebleu.metrics", "rouge_score"):
        monkeypatch.setitem(sys.modules, module, None)
    found = json.loads(gpt2kit(capsys, small / "base", texts, "--json", "--report", tmp_path))
    assert found["metrics"]["perplexity"]["low"] < found["perplexity"]
