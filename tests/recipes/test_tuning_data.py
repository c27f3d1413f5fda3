"""Which rows a tuning run learns from, and which it is judged by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2kit.data.examples import Examples, RankRow, Where
from gpt2kit.errors import UserError
from gpt2kit.recipes.adapters import method_of
from gpt2kit.recipes.tuning_data import context_for, read_parts, task_settings, without_empty
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.task import Encoded
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training.rows import Row


@pytest.fixture
def parts_of(tmp_path: Path) -> Callable[..., tuple[dict[str, Examples], Examples, list[str]]]:
    """Options of finetune -> what it reads."""

    def read(*data: Path, validation: list[Path] | None = None) -> tuple[dict[str, Examples], Examples, list[str]]:
        held = None if validation is None else [str(path) for path in validation]
        paths = [str(path) for path in data]
        return read_parts(FinetuneOptions(paths, from_="base", task="classify", out="out", validation=held))

    return read


def write(path: Path, count: int, labels: tuple[str, ...] = ("a", "b")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"{path.stem} {n}", "label": labels[n % len(labels)]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(examples: Examples) -> set[str]:
    return {row.key.split()[0] for row in examples.rows}


def test_files_given_for_validation_stand_in_for_the_datas_own_and_its_test_stays_aside(tmp_path, parts_of) -> None:
    for name in ("train", "validation", "test"):
        write(tmp_path / "set" / f"{name}.jsonl", 4)
    other = write(tmp_path / "other.jsonl", 6)
    parts, _, notes = parts_of(tmp_path / "set", validation=[other])
    assert {name: texts(part) for name, part in parts.items()} == {"train": {"train"}, "validation": {"other"}}
    assert "4 rows of the test part left for gpt2kit evaluate" in notes
    assert "the data's own 4 validation rows left out: --validation names others" in notes
    parts, _, notes = parts_of(tmp_path / "set", validation=[tmp_path / "set" / "validation.jsonl"])
    assert {name: len(part.rows) for name, part in parts.items()} == {"train": 4, "validation": 4}
    parts, _, notes = parts_of(tmp_path / "set")
    assert {name: len(part.rows) for name, part in parts.items()} == {"train": 4, "validation": 4}


def test_labels_of_the_test_alone_make_no_class(tmp_path, parts_of) -> None:
    write(tmp_path / "set" / "train.jsonl", 8)
    write(tmp_path / "set" / "test.jsonl", 8, labels=("a", "c"))
    _, found, _ = parts_of(tmp_path / "set")
    assert found.labels == ("a", "b")


def test_validation_rows_that_are_trained_on_are_said(tmp_path, parts_of) -> None:
    data = write(tmp_path / "my.jsonl", 6)
    again = tmp_path / "again.jsonl"
    again.write_text(json.dumps({"text": "  MY 3!", "label": "a"}) + "\n" + json.dumps({"text": "new", "label": "b"}))
    _, _, notes = parts_of(data, validation=[again])
    assert "1 validation row also in the training data: the validation loss is too good" in notes
    _, _, notes = parts_of(data, validation=[write(tmp_path / "other.jsonl", 3)])
    assert not any("too good" in note for note in notes)


def test_a_templates_line_breaks_are_written_as_in_the_other_verbs() -> None:
    def template(task: str) -> str:
        return task_settings(FinetuneOptions(["d"], from_="b", task=task, out="o", template="Q: {prompt}\\nA:"))[
            "template"
        ]

    assert template("translate") == "Q: {prompt}\nA:"
    assert template("chat") == "Q: {prompt}\\nA:"


def test_rows_that_all_name_another_part_leave_nothing_to_learn_from(tmp_path, parts_of) -> None:
    write(tmp_path / "set" / "train.jsonl", 0)
    write(tmp_path / "set" / "test.jsonl", 4)
    with pytest.raises(UserError, match="no training rows"):
        parts_of(tmp_path / "set")


def test_a_label_that_falls_to_validation_by_hash_is_a_label_all_the_same(tmp_path, parts_of) -> None:
    found = set()
    for seed in range(30):
        path = write(tmp_path / f"{seed}.jsonl", 40)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"text": f"rare {seed}", "label": ["a", "rare"]}) + "\n")
        parts, rows, notes = parts_of(path)
        assert rows.labels == ("a", "b", "rare")
        assert rows.multi_label
        held = "rare" in parts["validation"].labels
        assert ("no training row has the label 'rare'" in notes) == held
        found.add(held)
    assert found == {True, False}


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("classify", {"template": "x{text}"}, "--template is not for classify"),
        ("write", {"template": "x"}, "--template is not for write"),
        ("translate", {"mode": "extractive"}, "--mode is of answer, not of translate"),
    ],
)
def test_a_flag_of_another_task_is_refused(task: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FinetuneOptions(["rows.csv"], from_="base", task=task, out="out", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"replay_share": 0.5}, "--replay-share says nothing without --replay"),
        ({"augment_times": 3}, "--augment-times says nothing without --augment"),
        ({"resume": "runs/x", "learning_rate": 1.0}, "learning-rate cannot change"),
    ],
)
def test_a_flag_that_means_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    rest = {} if "resume" in given else {"data": ["rows.csv"], "from_": "base", "task": "classify", "out": "out"}
    with pytest.raises(UserError, match=message):
        FinetuneOptions(**rest, **given)


@pytest.mark.parametrize(
    ("given", "rate"),
    [({}, 0.1), ({"method": "lora"}, 0.0), ({"method": "lora", "dropout": 0.2}, 0.2), ({"dropout": 0.0}, 0.0)],
)
def test_an_adapter_trains_without_dropout_unless_asked(given: dict[str, Any], rate: float) -> None:
    options = FinetuneOptions(["rows.csv"], from_="base", task="classify", out="out", **given)
    assert options.settings(rows=100, context=64).dropout == rate


@pytest.mark.parametrize(
    ("settings", "rank", "message"),
    [("seed=5", None, "seed has a flag"), ("rank=4", 8, "rank has a flag"), ("name=x", None, "name has a flag")],
)
def test_settings_of_a_method_that_have_a_flag_are_refused(settings: str, rank: int | None, message: str) -> None:
    options = FinetuneOptions(
        ["rows.csv"], from_="base", task="classify", out="out", method="lora", rank=rank, method_settings=settings
    )
    with pytest.raises(UserError, match=message):
        method_of(options)


def test_a_part_of_which_nothing_fitted_is_dropped_or_refused() -> None:
    row = Row(np.array([1, 2]), labels=(0,))
    parts = {"train": Encoded([row]), "validation": Encoded([], left_out=2)}
    assert "none of its rows fits" in without_empty(parts, 64)[0]
    assert list(parts) == ["train"]
    with pytest.raises(UserError, match="no training row fits into 64 tokens"):
        without_empty({"train": Encoded([]), "validation": Encoded([row])}, 64)


def test_candidates_are_measured_one_by_one() -> None:
    tokenizer = train_tokenizer(["abcdefgh \n=>:;.,?!"], "char")
    rows = [RankRow("ab", (), ("c" * n, "d" * 20), 0, where=Where("test")) for n in range(1, 12)]
    examples = Examples(rows, RankRow)
    options = FinetuneOptions(["rows.csv"], from_="base", task="rank", out="out")
    context, why = context_for(options, examples, Rank(), tokenizer, 1024)
    assert (context, "at most 64 tokens" in why) == (64, True)
