"""The report on forgetting, how earlier tasks are named, and augmentation: what needs no tuning run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gpt2kit.data.examples import read_examples
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.recipes import forgetting
from gpt2kit.recipes.augmentation import augmented
from gpt2kit.recipes.earlier import find_task, named
from gpt2kit.recipes.forgetting import BITS, Figure

PAIRS = {"name": "translate", "template": "{prompt}\n=>\n", "max_tokens": 8}


def test_a_probe_of_the_user_is_measured_in_bits_per_byte(small: Path, tmp_path: Path) -> None:
    figures = forgetting.report(small / "base", small / "base", [str(small / "text.txt")], [], [])
    assert [figure.name for figure in figures] == ["general English", "general Chinese", "text.txt"]
    assert all(figure.unit == BITS and figure.worse == 0 for figure in figures)


def test_a_lost_bit_and_a_lost_point_are_both_worse() -> None:
    assert str(Figure("x", BITS, 2.0, 2.5)) == "x: 2.000 -> 2.500 bits per byte (+0.500, forgotten)"
    assert str(Figure("x", "fraction", 0.9, 0.6)) == "x: 0.900 -> 0.600 fraction (-0.300, forgotten)"
    assert str(Figure("x", BITS, 2.0, 2.0094)) == "x: 2.000 -> 2.009 bits per byte (+0.009, kept)"
    assert str(Figure("x", BITS, 2.0, 2.0104)) == "x: 2.000 -> 2.010 bits per byte (+0.010, forgotten)"
    assert str(Figure("x", "fraction", 0.6, 0.598)) == "x: 0.600 -> 0.598 fraction (-0.002, forgotten)"
    assert str(Figure("x", "fraction", 0.6, 0.6)) == "x: 0.600 -> 0.600 fraction (+0.000, kept)"


def test_a_parent_that_is_gone_is_a_figure_that_says_so(small: Path, tmp_path: Path) -> None:
    figures = forgetting.report(tmp_path / "gone", small / "base", [], [], [])
    assert all(figure.before is None and "gone" in figure.why for figure in figures)


def test_a_probe_that_is_gone_or_empty_is_a_figure_that_says_so(small: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("r", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("gone.txt", "short.txt")]
    figures = {figure.name: figure for figure in forgetting.report(small / "base", small / "base", files, [], [])}
    assert figures["general English"].after is not None
    assert "does not exist" in figures["gone.txt"].why
    assert figures["gone.txt"].after is None


def test_names_and_files() -> None:
    earlier = [{"name": "a", "task": {"name": "classify", "labels": ["x", "y"]}}, {"name": "b", "task": PAIRS}]
    assert named("a=b.tsv") == ("a", "b.tsv")
    assert named("b.tsv") == (None, "b.tsv")
    assert find_task("a", earlier)["labels"] == ["x", "y"]
    assert find_task(None, earlier) == PAIRS
    assert find_task("classify", earlier)["labels"] == ["x", "y"]
    assert find_task("summarise", []) == {"name": "summarise"}
    with pytest.raises(UserError, match="did you mean"):
        find_task("aa", [{"name": "aaa", "task": PAIRS}])
    with pytest.raises(UserError, match="unknown earlier task"):
        find_task("classify", [])


def test_words_are_replaced_by_neighbours_in_the_models_own_embedding(small: Path) -> None:
    train = read_examples([str(small / "labels.jsonl")], "classify")
    _, tokenizer = folder.load(small / "base")
    assert tokenizer is not None
    found, lines = augmented(train, "replace,insert", 2, 0, "classify", small / "base", tokenizer)
    again, _ = augmented(train, "replace,insert", 2, 0, "classify", small / "base", tokenizer)
    assert found.rows == again.rows
    made = [row for row in found.rows if row.augmented]
    assert {row.augmented for row in made} <= {"replace", "insert"}
    assert made
    assert "augmented rows" in lines[0]


def test_a_vocabulary_without_their_words_is_said_to_give_no_neighbours(small: Path) -> None:
    train = read_examples([str(small / "labels.jsonl")], "classify")
    rows = [dataclasses.replace(row, text="春眠不觉晓") for row in train.rows]
    _, tokenizer = folder.load(small / "base")
    assert tokenizer is not None
    found, lines = augmented(
        dataclasses.replace(train, rows=rows), "replace,insert", 1, 0, "classify", small / "base", tokenizer
    )
    assert len(found.rows) == len(rows)
    assert "no word of these rows is one token" in lines[-1]


def test_noise_makes_more_mistakes_to_correct(small: Path, tmp_path: Path) -> None:
    data = tmp_path / "wrong.jsonl"
    rows = [{"prompt": f"我门去公圆玩{n}", "completion": f"我们去公园玩{n}"} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = read_examples([str(data)], "correct")
    _, tokenizer = folder.load(small / "base")
    assert tokenizer is not None
    found, _ = augmented(train, "noise", 1, 0, "correct", small / "base", tokenizer)
    made = [row for row in found.rows if row.augmented == "noise"]
    assert len(made) > 5
    assert {row.target for row in made} <= {row["completion"] for row in rows}
