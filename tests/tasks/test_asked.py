"""What `gpt2kit run` is given becomes rows: texts, objects with a task's own fields, tables."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.families import TASKS, AnswerRow, RankRow, Row
from gpt2kit.errors import UserError
from gpt2kit.tasks.answer import Answer
from gpt2kit.tasks.asked import Input
from gpt2kit.tasks.chat import Chat, OpenChat
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.embed import Embed
from gpt2kit.tasks.pairs import Pairs
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.write import Write

ASKED: dict[str, Any] = {
    "classify": Classify(("x", "y")), "embed": Embed(), "write": Write(), "chat": Chat(), "answer": Answer(),
    "rank": Rank(), **{name: Pairs(name) for name in ("summarise", "translate", "correct", "edit", "instruct")},
}  # fmt: skip

Told = list[str]


def rows(task: str, given: str | Path, told: Told | None = None) -> list[Row]:
    note: Callable[[str], None] = (told if told is not None else []).append
    return list(Input(TASKS[task], ASKED[task].example).rows(str(given), note))


def row(task: str, record: dict[str, Any]) -> Any:
    (found,) = rows(task, json.dumps(record))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, content: str | bytes) -> Path:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


# objects


@pytest.mark.parametrize("task", ["classify", "embed", "write"])
def test_of_an_object_its_text_is_asked(task: str) -> None:
    assert row(task, {"id": 7, "text": "A fine film.", "label": "good"}).key == "A fine film."


@pytest.mark.parametrize("task", ["summarise", "translate", "correct", "edit", "instruct"])
@pytest.mark.parametrize(("record", "prompt"), [
    ({"prompt": "Sit.", "completion": "Please sit."}, "Sit."),
    ({"text": "Sit."}, "Sit."),
    ({"instruction": "Be polite.", "input": "Sit!"}, "Be polite.\n\nSit!"),
    ({"instruction": "Be polite.", "input": "", "output": ""}, "Be polite."),
    ({"source": "Sit.", "instruction": "unused", "target": "Please sit."}, "Sit."),
    ({"zh": "坐。", "en": "Sit."}, "坐。"),
    ({"translation": {"en": "Sit.", "zh": "坐。"}}, "Sit."),
    ({"wrong": "Sitt."}, "Sitt."),
    ({"messages": [{"role": "user", "content": "Sit."}, {"role": "assistant", "content": "No."}]}, "Sit."),
])  # fmt: skip
def test_of_an_object_its_prompt_is_asked_as_in_training(task: str, record: dict[str, Any], prompt: str) -> None:
    assert row(task, record).prompt == prompt


@pytest.mark.parametrize("record", [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                  {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]},
    {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                                      {"from": "human", "value": "c"}]},
    {"system": "s", "history": [["a", "b"]], "prompt": "c"},
])  # fmt: skip
def test_a_conversation_comes_with_its_system_message_and_what_was_said_before(record: dict[str, Any]) -> None:
    found = row("chat", record)
    assert [(one.role, one.content) for one in found.messages] == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"),
    ]  # fmt: skip
    assert isinstance(found, OpenChat)
    assert found.key == "s\na\nb\nc"


def test_a_conversation_that_the_assistant_ends_asks_nothing() -> None:
    with pytest.raises(UserError, match="does not end with the user"):
        row("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


def test_a_pair_of_texts_is_read_by_the_names_that_training_knows() -> None:
    assert row("classify", {"premise": "a", "hypothesis": "b"}).text_pair == "b"
    assert row("classify", {"sentence1": "a", "sentence2": "b"}).text == "a"


def test_a_question_comes_with_its_passage_if_there_is_one() -> None:
    found = row("answer", {"question": "Who?", "context": "Mary.", "answers": ["Mary"]})
    assert (found.question, found.passage) == ("Who?", "Mary.")
    assert row("answer", {"question": "Who?\n\nReally?", "passage": None}).question == "Who?\n\nReally?"


@pytest.mark.parametrize(("record", "key", "candidates"), [
    ({"query": "q", "history": ["a", "b"], "candidates": ["x", "y"]}, "a\nb\nq", ("x", "y")),
    ({"history": ["a"], "candidates": ["x", "y"]}, "a", ("x", "y")),
    ({"question": "q", "choices": ["x", "y"], "answer": "nonsense"}, "q", ("x", "y")),
    ({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}, "q", ("x", "y")),
    ({"query": "q", "positive": "x", "negatives": ["y", "z"]}, "q", ("x", "y", "z")),
    ({"prompt": "q", "chosen": "x", "rejected": "y"}, "q", ("x", "y")),
])  # fmt: skip
def test_candidates_are_read_as_in_training(record: dict[str, Any], key: str, candidates: tuple[str, ...]) -> None:
    found = row("rank", record)
    assert (found.key, found.candidates) == (key, candidates)


def test_candidates_given_once_are_those_of_every_object_and_text(path: Callable[..., Path]) -> None:
    file = path("asked.txt", '{"query": "a"}\n')
    made = Input(RankRow, ASKED["rank"].example, {"candidates": ["x", "y"]})
    (found,) = made.rows(str(file))
    assert (found.key, found.longest) == ("a", "a\nx")


def test_what_is_wrong_with_an_object_is_said_with_its_line(path: Callable[..., Path]) -> None:
    good = '{"text": "fine"}\n'
    for line, said in (
        ('{"label": "good"}', "line 2: it is not clear what is asked; the fields are: label"),
        ('{"text": " "}', "line 2: 'text': holds no text"),
        ("A fine film.", "line 2: not valid JSON"),
        ("[1]", "line 2: holds a list, not an object"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            rows("classify", path("asked.jsonl", f"{good}{line}\n"))
        assert caught.value.hint
    with pytest.raises(UserError, match="line 1: it is not clear what is asked"):
        rows("answer", path("asked.txt", '{"context": "Mary."}\n'))
    with pytest.raises(UserError, match="line 1: ranking needs two candidates"):
        rows("rank", path("asked.jsonl", '{"query": "a", "candidates": ["x"]}\n'))


@pytest.mark.parametrize("text", ['{"colour": "red"}', "{ as prose goes }", "{}", '["text"]', '"text"', "12"])
def test_prose_that_looks_like_json_stays_a_text(text: str, path: Callable[..., Path]) -> None:
    assert [one.key for one in rows("classify", text)] == [text]
    assert [one.key for one in rows("classify", path("asked.txt", text))] == [text]


# files


def test_only_a_line_break_ends_a_line(path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\ufeffa\u2028b\r\n\r\nc\x0bd\x85e\n".encode()
    wanted = [("a\u2028b", 1), ("c\x0bd\x85e", 3)]
    assert [(one.key, one.where.line) for one in rows("write", path("asked.txt", data))] == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert [(one.key, one.where.line) for one in rows("write", "-")] == wanted


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16"])
def test_chinese_in_other_encodings_is_read_and_said(encoding: str, path: Callable[..., Path]) -> None:
    told: Told = []
    text = "春天的花很好看，我們都喜歡。" if encoding == "big5" else "春天的花很好看，我们都喜欢。"
    assert [one.key for one in rows("embed", path("asked.txt", f"{text}\n{text}\n".encode(encoding)), told)] == [
        text
    ] * 2
    assert told[0].endswith(": converted")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files_are_read(suffix: str, pack: Callable[[bytes], bytes], path: Callable[..., Path]) -> None:
    assert [one.key for one in rows("write", path(f"a.txt{suffix}", pack(b"one\ntwo\n")))] == ["one", "two"]
    assert [one.key for one in rows("write", path(f"a.jsonl{suffix}", pack(b'{"text": "one"}\n')))] == ["one"]


def test_a_table_is_read_by_its_line_of_names_and_that_is_said(path: Callable[..., Path]) -> None:
    told: Told = []
    table = path("asked.csv", 'label,review\ngood,"A warm, funny film."\nbad,Dull.\n')
    assert [(one.key, one.where.line) for one in rows("classify", table, told)] == [
        ("A warm, funny film.", 2), ("Dull.", 3)
    ]  # fmt: skip
    assert "text from 'review'; not used: 'label'" in told[0]
    bare = path("asked.tsv", "1\tA warm film, and a long one.\n2\tDull from start to end.\n")
    assert [one.key for one in rows("write", bare, told)][1] == "Dull from start to end."
    assert "text from column 2" in told[1]


def test_a_list_of_objects_and_a_nested_file_are_read(path: Callable[..., Path]) -> None:
    listed = path("asked.json", json.dumps([{"prompt": "a"}, {"prompt": "b"}]))
    assert [one.key for one in rows("instruct", listed)] == ["a", "b"]
    squad = {"data": [{"paragraphs": [{"context": "Mary.", "qas": [{"question": "Who?"}, {"question": "When?"}]}]}]}
    found = rows("answer", path("squad.json", json.dumps(squad)))
    assert [(one.question, one.passage) for one in found if isinstance(one, AnswerRow)] == [
        ("Who?", "Mary."), ("When?", "Mary.")
    ]  # fmt: skip


def test_a_table_without_what_is_asked_is_refused(path: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="it is not clear what is asked"):
        rows("answer", path("asked.csv", "colour,size\nred,1\n"))
    with pytest.raises(UserError, match="line 3: 1 fields instead of 2"):
        rows("classify", path("torn.csv", "text,label\na b,c\nd\n"))


def test_a_folder_is_refused_and_a_file_that_is_not_there_is_a_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder") as caught:
        rows("write", tmp_path)
    assert "cat " in str(caught.value.hint)
    told: Told = []
    assert [one.key for one in rows("write", "reviews.csv.gz", told)] == ["reviews.csv.gz"]
    assert told == ["there is no file reviews.csv.gz: it is taken as a text"]
    told.clear()
    rows("write", "I read it in reviews.csv", told)
    rows("write", "", told)
    assert told == []
