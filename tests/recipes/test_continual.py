"""A sequence of tasks by `gpt2kit finetune`: what is replayed and kept, the report on forgetting, augmentation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2kit import commit
from gpt2kit.data.examples import read_examples
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2Config
from gpt2kit.recipes import finetune
from gpt2kit.recipes.continual import PREFIX, read
from gpt2kit.recipes.earlier import earlier_tasks
from gpt2kit.recipes.events import Event, Finished, Note
from gpt2kit.recipes.forgetting import BITS
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.training import checkpoint

WORDS = ["red", "green", "wolf", "sheep", "七", "八"]
PAIRS = {"name": "translate", "template": "{prompt}\n=>\n", "max_tokens": 8}


def options(small: Path, out: Path, task: str = "translate", **given: Any) -> FinetuneOptions:
    data = {"translate": "pairs.jsonl", "classify": "labels.jsonl"}[task]
    settings: dict[str, Any] = {"steps": 4, "evaluate_every": 2, "batch": 8, "precision": "fp32", "threads": 1}
    return FinetuneOptions(
        data=[str(small / data)], task=task, out=str(out), **{"from_": str(small / "base"), **settings, **given}
    )  # fmt: skip


def run(chosen: FinetuneOptions, stop: Callable[[], bool] = lambda: False) -> list[Event]:
    return list(finetune.start(chosen, stop))


def notes(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def first(small: Path) -> Path:
    """The first task of a sequence: classification."""
    out = small / "colours"
    run(options(small, out, "classify"))
    return out


# The report on forgetting


def test_every_fine_tune_reports_general_text_and_earlier_tasks(small: Path, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "second"
    events = run(options(small, out, from_=str(first), remember=[f"colours={small / 'labels.jsonl'}"]))
    assert isinstance(events[-1], Finished)  # the report comes before the end
    said = notes(events)
    assert "general English: " in said
    assert "general Chinese: " in said
    assert "colours, accuracy: " in said
    kept = folder.lineage(out)["forgetting"]
    assert [row["name"] for row in kept] == ["general English", "general Chinese", "colours, accuracy"]
    assert all(row["before"] > 0 for row in kept)
    assert kept[0]["unit"] == BITS
    assert str(tmp_path) not in json.dumps(folder.lineage(out))
    assert commit.verify(out) is not None
    assert folder.lineage(out)["earlier"] == [{"name": "colours", "task": folder.lineage(first)["task"]}]
    assert [entry["name"] for entry in earlier_tasks(folder.lineage(out))] == ["colours", "second"]


def test_an_earlier_task_without_a_file_is_named(small: Path, first: Path, tmp_path: Path) -> None:
    said = notes(run(options(small, tmp_path / "out", from_=str(first), steps=1)))
    assert "colours: not measured (give --remember colours=TESTFILE)" in said


def test_a_head_that_was_replaced_is_said(small: Path, first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text((small / "labels.jsonl").read_text().replace('"True"', '"yes"'), encoding="utf-8")
    chosen = options(small, tmp_path / "out", "classify", from_=str(first), steps=1,
                     remember=[f"colours={small / 'labels.jsonl'}"])  # fmt: skip
    chosen = FinetuneOptions(**{**vars(chosen), "data": [str(other)]})
    assert "colours, accuracy: not measured (its head was replaced" in notes(run(chosen))


def test_what_the_report_needs_is_looked_at_before_the_run(small: Path, tmp_path: Path) -> None:
    for given in ({"remember": ["colurs=x.tsv"]}, {"probe": ["absent.txt"]}, {"remember": ["translate=absent.tsv"]}):
        with pytest.raises(UserError):
            run(options(small, tmp_path / "out", **given))
        assert not (tmp_path / "out").exists()


# Keeping


def test_replayed_rows_go_by_the_task_that_they_are_of(small: Path, first: Path) -> None:
    model, tokenizer = folder.load(first)
    assert tokenizer is not None
    earlier = earlier_tasks(folder.lineage(first))
    past = read([str(small / "labels.jsonl"), str(small / "text.txt"), f"translate={small / 'pairs.jsonl'}"],
                earlier, tokenizer, 32, model.config)  # fmt: skip
    assert [task["name"] for task in past.tasks] == ["classify", "write", "translate"]
    assert all(row.labels for row in past.rows[f"{PREFIX}0"])
    assert not any(row.labels for row in past.rows[f"{PREFIX}1"])
    with pytest.raises(UserError, match="cannot be replayed"):
        read([str(small / "labels.jsonl")], earlier, tokenizer, 32, GPT2Config(labels=("x", "y")))


@pytest.mark.parametrize("task", ["classify", "translate"])
def test_keeping_at_nothing_is_plain_bit_by_bit(small: Path, tmp_path: Path, task: str) -> None:
    """Rows of before that are neither mixed in nor penalised change nothing."""
    text = [str(small / "text.txt")]
    run(options(small, tmp_path / "plain", task))
    run(options(small, tmp_path / "zero", task, replay=text, replay_share=0.0, ewc=0.0))
    assert weights(tmp_path / "plain") == weights(tmp_path / "zero")


@pytest.mark.parametrize(
    "given", [{"replay_share": 0.3}, {"replay_share": 0.0, "ewc": 500.0}, {"lwf": 1.0}, {"ewc": 50.0, "lwf": 1.0}]
)
@pytest.mark.parametrize("task", ["classify", "translate"])
@pytest.mark.slow
def test_a_run_that_keeps_resumes_to_the_same_bytes(small: Path, tmp_path: Path, task: str, given: Any) -> None:
    if set(given) != {"lwf"}:
        given = {**given, "replay": [str(small / "text.txt")]}
    run(options(small, tmp_path / "straight", task, **given))
    seen: list[int] = []
    cut = tmp_path / "cut" / "straight"  # the same name: it stands in the lineage
    assert run(options(small, cut, task, **given), lambda: bool(seen.append(1)) or len(seen) > 3)[-1]
    assert checkpoint.steps_of(cut)
    assert isinstance(list(finetune.resume(cut, lambda: False))[-1], Finished)
    assert weights(cut) == weights(tmp_path / "straight")
    one, other = (folder.lineage(path) for path in (cut, tmp_path / "straight"))
    assert one.pop("precision")["dtype"] == other.pop("precision")["dtype"]  # how it was chosen holds measured speeds
    assert one == other
    assert one["continual"]["lwf"] == given.get("lwf", 0.0)
    run(options(small, tmp_path / "plain", task))
    assert weights(tmp_path / "plain") != weights(cut)


def test_another_model_in_the_parents_place_teaches_nothing(small: Path, first: Path, tmp_path: Path) -> None:
    base, out, seen = tmp_path / "base", tmp_path / "out", []
    shutil.copytree(small / "base", base)
    run(options(small, out, "classify", from_=str(base), lwf=1.0), lambda: bool(seen.append(1)) or len(seen) > 2)
    assert checkpoint.steps_of(out)
    shutil.rmtree(base)
    shutil.copytree(first, base, ignore=shutil.ignore_patterns("checkpoints", "rows"))
    with pytest.raises(UserError, match="no longer the model that the run started from"):
        list(finetune.resume(out, lambda: False))


@pytest.mark.slow
def test_an_adapter_can_be_held_back_too(small: Path, tmp_path: Path) -> None:
    text = [str(small / "text.txt")]
    given: dict[str, Any] = {"method": "lora", "replay": text, "learning_rate": 1e-2}
    for name, ewc in (("free", 0.0), ("held", 1e5)):
        run(options(small, tmp_path / name, ewc=ewc, replay_share=0.0, steps=20, **given))
    base, _ = folder.load(small / "base")
    moved = {}
    for name in ("free", "held"):
        tuned, _ = folder.load(tmp_path / name)
        moved[name] = sum(float((a - b).square().sum()) for a, b in zip(
            tuned.state_dict().values(), base.state_dict().values(), strict=True))  # fmt: skip
    assert 0 < moved["held"] < 0.5 * moved["free"]


def test_settings_that_mean_nothing_are_refused(small: Path, tmp_path: Path) -> None:
    for given, said in (
        ({"ewc": 1.0}, "--ewc needs rows"), ({"replay_share": 1.0}, "replay_share must be"),
        ({"lwf": -1.0}, "lwf must be"), ({"ewc": float("inf")}, "ewc must be"), ({"augment_times": 0}, "augment_times"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            options(small, tmp_path / "out", **given)


# Augmentation


def test_copies_stand_behind_the_training_rows_alone(small: Path, tmp_path: Path) -> None:
    events = run(options(small, tmp_path / "out", "classify", augment="delete,swap", augment_times=2, steps=1))
    assert "augmented rows: " in notes(events)
    record = commit.read_json(tmp_path / "out" / "run.json")
    rows = record["data"]["rows"]
    plain = read_examples([str(small / "labels.jsonl")], "classify").splits()
    assert rows["validation"] == len(plain["validation"].rows)
    assert len(plain["train"].rows) < rows["train"] <= 3 * len(plain["train"].rows)


@pytest.mark.parametrize(
    ("task", "names", "said"),
    [
        ("write", "delete", "write is never augmented: a language model would learn the damaged text"),
        ("chat", "delete", "chat is never augmented"), ("answer", "swap", "answer is never augmented"),
        ("classify", "delte", "did you mean 'delete'"), ("classify", "noise", "classify has no use for"),
        ("classify", ",", "names no way"),
    ],
)  # fmt: skip
def test_what_must_stay_as_it_is_is_refused_by_name(task: str, names: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        FinetuneOptions(data=["x"], from_="m", task=task, out="o", augment=names)
