"""`gpt2kit run`: what is printed of answers, and what is said besides. The model is a fake; its folder is real."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2kit import cli
from gpt2kit.data.families import AnswerRow, Row
from gpt2kit.model import files
from gpt2kit.tasks import reference
from gpt2kit.tasks.answer import Answer as Question
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.pairs import Pairs, changes
from gpt2kit.tasks.prompted import Prompted
from gpt2kit.tasks.spans import Spans
from gpt2kit.tasks.task import Answer

Run = Callable[..., tuple[str, str]]


class Fake:
    """An engine that is not asked: the tasks' own answers are replaced."""

    config = SimpleNamespace(n_positions=128)

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb on a model that was tuned for `task`, whose answer to a row is `say(row)`."""

    def call(task: Any, say: Callable[[Any], Answer], *words: str | Path, code: int = 0) -> tuple[str, str]:
        def answer(self: Any, engine: object, rows: Sequence[Row], *rest: object) -> list[Answer]:
            return [say(row) for row in rows]

        for kind in (type(task), Prompted):
            monkeypatch.setattr(kind, "answer", answer)
        monkeypatch.setattr(files, "lineage", lambda folder: {"task": task.values()})
        monkeypatch.setattr(reference, "open_for_tasks", lambda *_: Fake())
        found = cli.main(["run", task.name, "model", *map(str, words)])
        told = capsys.readouterr()
        assert found == code, told.err
        return told.out, told.err

    return call


def corrected(row: Any) -> Answer:
    after = row.prompt.replace("克", "课")
    return Answer(after, {"changes": changes(row.prompt, after), "cut": False})


@pytest.mark.parametrize("terminal", [True, False])
def test_a_correction_shows_its_changes_on_a_terminal_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    out, _ = run(Pairs("correct"), corrected, "我去上克。")
    assert out == ("我去上课。  [-克-]{+课+}\n" if terminal else "我去上课。\n")
    out, _ = run(Pairs("correct"), corrected, "我去。")
    assert out == "我去。\n"


def test_how_many_texts_were_cut_is_said_at_the_end(run: Run, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("long\nshort\nlong\n", encoding="utf-8")

    def say(row: Any) -> Answer:
        return Answer("x", {"labels": ["x"], "probabilities": {"x": 1.0}, "cut": row.key == "long"})

    out, err = run(Classify(("x", "y")), say, many, "--json")
    assert [json.loads(line)["cut"] for line in out.splitlines()] == [True, False, True]
    assert err.splitlines()[-1] == "note: 2 texts did not fit the model's 128 positions and were cut"
    assert "cut" not in run(Classify(("x", "y")), say, "short")[1]


def test_a_prompt_for_a_model_with_a_head_is_said(run: Run) -> None:
    task, said = Classify(("x", "y")), "asked by a prompt, not by the head it was tuned with"
    assert said in run(task, lambda row: Answer("x", {}), "text", "--labels", "x,y")[1]
    assert said not in run(task, lambda row: Answer("x", {}), "text")[1]


def test_the_question_stands_in_the_json_beside_its_passage(run: Run) -> None:
    given = '{"question": "Who?", "context": "Mary."}'
    out, _ = run(Question(), lambda row: Answer("Mary", {"cut": False}), given, "--json")
    assert json.loads(out) == {"input": "Who?", "passage": "Mary.", "answer": "Mary", "cut": False}


def test_a_model_that_points_at_answers_needs_a_passage(run: Run) -> None:
    _, err = run(Spans(), lambda row: Answer("", {}), '{"question": "Who?"}', code=2)
    assert "needs a passage" in err
    assert "--documents" in err


def test_the_documents_are_searched_for_the_objects_question(run: Run, tmp_path: Path) -> None:
    """Its own passage is not read, and the line is that of the answer."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "pump.txt").write_text("The pump.\nIt has filters:\n7 of them.\n", encoding="utf-8")
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"question": "How many filters?", "context": "The fox."}\n', encoding="utf-8")
    seen: list[AnswerRow] = []

    def say(row: AnswerRow) -> Answer:
        seen.append(row)
        at = row.passage.index("7")
        return Answer("7", {"place": [at, at + 1], "margin": 1.0, "cut": False})

    words = (asked, "--documents", tmp_path / "notes")
    assert run(Spans(), say, *words)[0] == "7  [pump.txt:3]\n"
    found = json.loads(run(Spans(), say, *words, "--json")[0])
    assert (found["input"], found["source"]["line"], found["passages"][0]["line"]) == ("How many filters?", 3, 1)
    assert "passage" not in found
    assert {row.question for row in seen} == {"How many filters?"}
    assert "fox" not in seen[0].passage
