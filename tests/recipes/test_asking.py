"""What a model is asked: by its task, or by a prompt, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.families import AnswerRow
from gpt2kit.data.passages import open_library
from gpt2kit.errors import UserError
from gpt2kit.recipes.ask_options import AskOptions
from gpt2kit.recipes.asking import choose, with_best_prompt
from gpt2kit.recipes.retrieve import answer_from
from gpt2kit.tasks import NAMES, prompted
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.embed import Embed
from gpt2kit.tasks.prompted import TEMPLATES, Prompted
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.shown import Shown
from gpt2kit.tasks.task import Answer
from gpt2kit.tasks.write import Write

TUNED = Classify(("good", "bad"))


@pytest.fixture
def examples(tmp_path: Path) -> str:
    path = tmp_path / "train.csv"
    path.write_text("text,label\nlazy dog,good\nbrown fox,bad\nquick film,good\n", encoding="utf-8")
    return str(path)


def test_a_tuned_model_is_asked_its_task_and_no_other() -> None:
    assert choose(TUNED.values(), "classify", AskOptions()) == TUNED
    assert choose(TUNED.values(), None, AskOptions()) == TUNED
    with pytest.raises(UserError, match="was tuned for classify, not for translate"):
        choose(TUNED.values(), "translate", AskOptions())
    assert choose(TUNED.values(), "embed", AskOptions()) == Embed()
    assert choose(Write(5).values(), "write", AskOptions(seed=3)) == Write(5, seed=3)


def test_flags_for_a_prompt_are_taken_by_tuned_and_untuned_models() -> None:
    for kept in (None, TUNED.values()):
        assert choose(kept, "classify", AskOptions(labels="good,bad")) == Prompted(("good", "bad"))
    found = choose(None, "classify", AskOptions(label_words="1=good, 0=bad", template="{text}\\n{label}"))
    assert found == Prompted(("1", "0"), ("good", "bad"), "{text}\n{label}")
    assert choose(None, "rank", AskOptions(per="byte")) == Rank(by="likelihood", per="byte")


def test_examples_tell_the_labels_and_are_shown(examples: str) -> None:
    found: Any = choose(None, "classify", AskOptions(examples=examples))
    assert found.labels == ("bad", "good")
    assert found.shots.count == 4
    assert choose(None, "classify", AskOptions(examples=examples, search_prompts="builtin")).shots is None  # type: ignore


def test_how_examples_are_read_is_said_and_can_be_told(tmp_path: Path) -> None:
    table = tmp_path / "films.csv"
    table.write_text("id,kind,said,about\n1,good,lazy dog,x\n2,bad,brown fox,y\n", encoding="utf-8")
    told: list[str] = []
    options = AskOptions(examples=str(table), example_columns="text=said,label=kind")
    found: Any = choose(None, "classify", options, note=told.append)
    assert found.labels == ("bad", "good")
    assert [row.text for row in found.shots.rows] == ["lazy dog", "brown fox"]
    assert "text from 'said'" in told[0]
    assert "label from 'kind'" in told[0]
    with pytest.raises(UserError, match="'speech'") as caught:
        choose(None, "classify", dataclasses.replace(options, example_columns="text=speech"))
    assert "--columns" not in str(caught.value.hint)
    with pytest.raises(UserError, match="--example-columns must look like"):
        choose(None, "classify", dataclasses.replace(options, example_columns="said"))


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_asked_of_an_untuned_model_or_says_that_it_must_be_tuned(name: str) -> None:
    kinds = {"rank": Rank, "write": Write, "classify": None, "chat": None}
    if kinds.get(name, Shown) is None:
        with pytest.raises(UserError) as caught:
            choose(None, name, AskOptions())
        assert "gpt2kit finetune" in str(caught.value.hint)
    else:
        assert isinstance(choose(None, name, AskOptions()), kinds.get(name, Shown))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "flags", "said"), [
    ("rank", {"labels": "a,b"}, "--labels means nothing for rank"),
    ("translate", {"per": "byte"}, "--per means nothing for translate"),
    ("classify", {"shots": 2, "labels": "a,b"}, "--shots needs labelled examples"),
    ("translate", {"shots": 2}, "--shots needs labelled examples"),
    ("translate", {"example_columns": "source=a"}, "--example-columns needs labelled examples"),
    ("classify", {"labels": "a,b", "label_words": "a=b"}, "not both"),
    ("classify", {"label_words": "a"}, "must look like"),
    ("clasify", {}, "did you mean 'classify'"),
    (None, {}, "was not tuned for a task"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(name: str | None, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(None, name, AskOptions(**flags))


def test_the_search_tries_the_templates_of_a_file_or_ours(
    examples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blind:
        tokenizer = None

    tried: list[str] = []

    def answers(self: Prompted, engine: object, rows: list[Any]) -> list[Answer]:
        tried.append(self.template)
        labels = [row.labels[0] if "It" in self.template else "bad" for row in rows]
        return [Answer(one, {"probabilities": {x: float(x == one) for x in self.labels}}) for one in labels]

    monkeypatch.setattr(prompted.Prompted, "answer", answers)
    lines = tmp_path / "prompts.txt"
    lines.write_text("{text}\\n{label}\n\nReview: {text}\\nIt was {label}\n", encoding="utf-8")
    options = AskOptions(examples=examples, search_prompts=str(lines))
    told: list[str] = []
    task, table = with_best_prompt(Blind(), choose(None, "classify", options), options, told.append)  # type: ignore
    assert tried == ["{text}\n{label}", "Review: {text}\nIt was {label}"]
    assert task.template == tried[1]  # type: ignore[attr-defined]
    assert [one.accuracy for one in table] == [1.0, pytest.approx(1 / 3)]
    assert len(told) == 2
    tried.clear()
    options = dataclasses.replace(options, search_prompts="builtin")
    with_best_prompt(Blind(), choose(None, "classify", options), options, told.append)  # type: ignore[arg-type]
    assert tried == list(TEMPLATES["en"])
    lines.write_text("{label} first {text}\n", encoding="utf-8")
    for path, said in ((lines, "end in"), (tmp_path / "absent", "no file of templates")):
        options = dataclasses.replace(options, search_prompts=str(path))
        with pytest.raises(UserError, match=said):
            with_best_prompt(Blind(), choose(None, "classify", options), options, told.append)  # type: ignore


# documents


class Reader:
    """A task that answers with the number in a passage, as sure as it is large."""

    name = "answer"

    def example(self, text: str) -> AnswerRow:
        raise NotImplementedError

    def answer(self, engine: object, examples: list[AnswerRow]) -> list[Answer]:
        numbers = ["".join(filter(str.isdigit, row.passage)) for row in examples]
        return [Answer(number, {"margin": float(number or -1)}) for number in numbers]


def test_the_surest_passage_answers_and_is_cited(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The pump has 3 filters.", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\nThe pump, the pump, the filters: 7 of them.", encoding="utf-8")
    (tmp_path / "c.txt").write_text("A pump without numbers.", encoding="utf-8")
    library = open_library(tmp_path)
    asked = ["How many filters has the pump?", "zebra?", "without numbers"]
    first, none, empty = answer_from(None, Reader(), library, asked, passages=2)  # type: ignore[arg-type]
    assert first.text == "7"
    assert (first.details["source"]["file"], first.details["source"]["line"]) == ("b.txt", 2)
    assert len(first.details["passages"]) == 2
    assert none == Answer("", {"source": None, "passages": [], "cut": False})
    assert empty.text == ""
    assert empty.details["source"] is None
    assert [one["file"] for one in empty.details["passages"]] == ["c.txt"]
    library.close()
