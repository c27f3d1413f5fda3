"""Shapes of labelled data: what each is read as, how fields are guessed, what is said of bad rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.examples import (
    TASKS,
    AnswerRow,
    ChatRow,
    Examples,
    LabelRow,
    Message,
    PairRow,
    PreferenceRow,
    Problem,
    RankRow,
    Row,
    TextRow,
    Where,
    read_examples,
)
from gpt2kit.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "examples.md"
SAMPLES = re.findall(r"^```(\w+) (\w+) (\S+)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def read(tmp_path: Path):
    def read_file(name: str, content: str | list[Any], task: str | None, **options: Any) -> Examples:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return read_examples(path, task, **options)

    return read_file


def one(examples: Examples) -> Any:
    (row,) = examples.rows
    return row


def said(examples: Examples) -> str:
    return next(iter(examples.report.guesses.values()))


def problem(examples: Examples) -> Problem:
    (found,) = examples.report.problems
    return found


# The page that shows them all


def test_the_page_of_shapes_has_a_sample_for_every_family() -> None:
    assert {TASKS[task] for _, task, _, _ in SAMPLES} == set(TASKS.values())


@pytest.mark.parametrize(("language", "task", "name", "content"), SAMPLES, ids=[name for _, _, name, _ in SAMPLES])
def test_every_sample_of_the_page_is_read_whole(read, language: str, task: str, name: str, content: str) -> None:
    assert name.endswith(f".{language}")
    examples = read(name, content, task)
    assert examples.report.reported == 0
    assert len(examples.rows) == examples.report.rows_in > 0
    assert {type(row) for row in examples.rows} == {TASKS[task]}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("texts.jsonl", TextRow), ("reviews.jsonl", LabelRow), ("pairs.jsonl", PairRow), ("alpaca.json", PairRow),
        ("messages.jsonl", ChatRow), ("sharegpt.json", ChatRow), ("squad.json", AnswerRow), ("cmrc.json", AnswerRow),
        ("flat.jsonl", AnswerRow), ("dpo.json", PreferenceRow), ("choices.jsonl", RankRow), ("history.jsonl", RankRow),
    ],
)  # fmt: skip
def test_without_a_task_the_fields_tell_the_family(read, name: str, family: type[Row]) -> None:
    content = next(content for _, _, sample, content in SAMPLES if sample == name)
    assert read(name, content, None).family is family


# Texts and labels


def test_text_and_label(read) -> None:
    examples = read("a.jsonl", [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}], "classify")
    path = examples.rows[0].where.file
    assert examples.rows == [
        LabelRow("good", ("pos",), where=Where(path, 1)),
        LabelRow("bad", ("neg",), where=Where(path, 2)),
    ]
    assert said(examples) == "JSON lines; text from 'text', label from 'label'"
    assert examples.labels == ("neg", "pos")


@pytest.mark.parametrize(
    ("value", "labels"),
    [("pos", ("pos",)), (1, ("1",)), (1.0, ("1",)), (0.5, ("0.5",)), (True, ("true",)), (" pos\n", ("pos",)),
     (["b", "a", "b"], ("b", "a")), ([], ()), ([1, 2], ("1", "2")), ('["a", "b"]', ("a", "b")), ("[sic]", ("[sic]",))],
)  # fmt: skip
def test_labels_are_strings_numbers_or_lists(read, value: object, labels: tuple[str, ...]) -> None:
    assert one(read("a.jsonl", [{"text": "t", "label": value}], "classify")).labels == labels


def test_numbers_are_ordered_by_size_and_before_names(read) -> None:
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(["b", 10, 9, "a", -1])]
    assert read("a.jsonl", rows, "classify").labels == ("-1", "9", "10", "a", "b")


def test_a_name_beside_a_number_is_the_label(read) -> None:
    row = one(read("a.jsonl", [{"text": "t", "label": 3, "label_text": "sports"}], "classify"))
    assert row.labels == ("sports",)


def test_columns_name_the_fields(read) -> None:
    rows = [{"text": "not this", "title": "this", "label": 0, "stars": 5}]
    examples = read("a.jsonl", rows, "classify", columns={"text": "title", "label": "stars"})
    assert (one(examples).text, one(examples).labels) == ("this", ("5",))
    assert "not used: 'text', 'label'" in said(examples)


def test_a_dot_reaches_into_objects(read) -> None:
    columns = {"text": "review.body", "label": "review.mark"}
    row = one(read("a.jsonl", [{"review": {"body": "fine", "mark": 1}}], "classify", columns=columns))
    assert (row.text, row.labels) == ("fine", ("1",))


def test_columns_of_0_and_1_are_several_labels(read) -> None:
    content = "id,comment,toxic,insult\n1,a,1,0\n2,b,0,0\n3,c,1,1\n4,d,x,0\n"
    examples = read("a.csv", content, "classify", columns={"text": "comment", "label": "toxic+insult"})
    assert [row.labels for row in examples.rows] == [("toxic",), (), ("toxic", "insult")]
    assert examples.multi_label
    assert str(problem(examples)).endswith("a.csv line 5: 'toxic': holds neither 0 nor 1 (correct that row)")


def test_classes_name_integer_labels(read, tmp_path: Path) -> None:
    (tmp_path / "topics-classes.txt").write_text("世界\n体育\n", encoding="utf-8")
    content = "甲\t1\n乙\t0\n丙\t2\n丁\t1\n"
    examples = read("topics-train.tsv", content, "classify", classes=tmp_path / "topics-classes.txt")
    assert [row.labels for row in examples.rows] == [("体育",), ("世界",), ("体育",)]
    assert examples.labels == ("世界", "体育")
    assert problem(examples).where.line == 3
    assert "'2' is none of the 2 classes" in problem(examples).reason


def test_classes_beside_the_data_are_found(read, tmp_path: Path) -> None:
    (tmp_path / "topics-classes.txt").write_text("sports\nworld\n")
    (tmp_path / "classes.txt").write_text("wrong\nfile\n")
    examples = read("topics-train.tsv", "a b\t1\nc d\t0\n", "classify")
    assert [row.labels for row in examples.rows] == [("world",), ("sports",)]
    assert "names from" in said(examples)


def test_classes_count_from_1_where_the_labels_do(read, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    examples = read("x.tsv", "one\t1\ntwo\t3\nthree\t2\nfour\t3\n", "classify")
    assert [row.labels for row in examples.rows] == [("a",), ("c",), ("b",), ("c",)]
    assert "counted from 1" in said(examples)


def test_classes_that_do_not_fit_are_not_taken(read, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert read("x.tsv", "one\tpos\ntwo\tneg\n", "classify").labels == ("neg", "pos")


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\nb\na\n", "'a' is named twice"), ("a\n\nb\n", "line 2 names no class"), ("", "line 1 names no class")],
)
def test_a_bad_list_of_classes_is_refused(read, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read("x.tsv", "one\t0\ntwo\t1\n", "classify", classes=tmp_path / "names.txt")


# Tables


@pytest.mark.parametrize(
    ("name", "content", "first", "sentence"),
    [
        ("a.tsv", "sentence\tlabel\ngood one\t1\nbad one\t0\n", ("good one", "1"), "the first line names the fields"),
        ("a.csv", "label,review\n1,good one\n0,bad one\n", ("good one", "1"), "the first line names the fields"),
        ("a.csv", " review , sentiment\ngood one,pos\nbad one,neg\n", ("good one", "pos"), "text from 'review'"),
        ("a.csv", "标签,评论\n1,很好\n0,不好\n", ("很好", "1"), "the first line names the fields"),
        ("a.csv", "words,mark\ngood one,5\nbad one,1\n", ("good one", "5"), "the first line names the fields"),
        ("a.csv", "good one,5\nbad one,1\n", ("good one", "5"), "no line of names"),
        ("a.tsv", "1\tgood one\n0\tbad one\n", ("good one", "1"), "no line of names"),
        ("a.tsv", "A good one.\tpos\nA bad one.\tneg\n", ("A good one.", "pos"), "no line of names"),
        ("a.csv", "label;review\n1;good one\n0;bad one\n", ("good one", "1"), "table with semicolons"),
        ("train.txt", "good one\t1\nbad one\t0\n", ("good one", "1"), "table with tabs"),
    ],
)
def test_a_line_of_names_is_told_from_data(
    read, name: str, content: str, first: tuple[str, str], sentence: str
) -> None:
    examples = read(name, content, "classify")
    row = examples.rows[0]
    assert isinstance(row, LabelRow)
    assert (row.text, *row.labels) == first
    assert sentence in said(examples)
    assert examples.report.rows_in == 2


def test_a_line_above_the_names_is_reported(read) -> None:
    examples = read("a.csv", "Reviews of 2024\n\ntext,label\ngood,1\nbad,0\n", "classify")
    assert [row.text for row in examples.rows] == ["good", "bad"]
    assert problem(examples).where.line == 1


def test_names_alone_make_no_data(read) -> None:
    with pytest.raises(UserError, match="no row can be used of 0"):
        read("a.csv", "text,label\n", "classify")


def test_columns_by_number_take_every_line(read) -> None:
    examples = read("a.csv", "label,text\n1,good\n", "classify", columns={"text": "2", "label": "1"})
    assert [(row.text, row.labels) for row in examples.rows] == [("text", ("label",)), ("good", ("1",))]


def test_three_columns_without_names_are_label_and_two_texts(read) -> None:
    content = "".join(f"{n % 3},Headline number {n}.,The story of number {n} at length.\n" for n in range(9))
    examples = read("ag.csv", content, "classify")
    row = examples.rows[0]
    assert (row.labels, row.text, row.text_pair) == (("0",), "The story of number 0 at length.", "Headline number 0.")
    assert said(examples).endswith("(guessed: label, text, text_pair)")


def test_bad_lines_of_a_table_are_all_reported(read) -> None:
    content = 'text,label\nfine,1\na,b,2\n"open"x,1\n\nlast,0\n'
    examples = read("a.csv", content, "classify")
    assert [row.text for row in examples.rows] == ["fine", "last"]
    assert [p.where.line for p in examples.report.problems] == [3, 4]
    assert examples.report.problems[0].reason == "3 fields instead of 2"
    assert examples.report.rows_in == 4


def test_an_open_quote_names_the_lines_that_it_swallows(read) -> None:
    examples = read("a.csv", 'text,label\nfine,1\n"open,1\nmore,0\nlast,0\n', "classify")
    assert problem(examples).where.line == 3
    assert problem(examples).reason.startswith("lines 3 to 5: ")


def test_quotes_are_text_where_tabs_separate(read) -> None:
    assert read("a.tsv", '"so" he said\t1\nx "y\t0\n', "classify").rows[0].text == '"so" he said'


def test_a_field_named_twice_is_refused(read) -> None:
    with pytest.raises(UserError, match="two fields are named 'text'"):
        read("a.csv", "text,label,text\na,1,b\n", "classify")


def test_plain_text_has_no_labels(read) -> None:
    with pytest.raises(UserError, match=r"a\.txt is plain text: it has no fields") as caught:
        read("a.txt", "Just a line.\nAnd another.\n", "classify")
    assert ".jsonl" in str(caught.value.hint)


def test_unclear_fields_are_an_error_that_lists_them(read) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl line 1: it is not clear which field holds the label") as caught:
        read("a.jsonl", [{"text": "some words", "author": {"name": "x"}}], "classify")
    assert "text, author" in caught.value.message
    assert "--columns label=NAME" in str(caught.value.hint)


def test_a_misspelt_column_is_suggested(read) -> None:
    with pytest.raises(UserError, match="no field 'lable'") as caught:
        read("a.jsonl", [{"text": "t", "label": 1}], "classify", columns={"label": "lable"})
    assert caught.value.hint == "--columns label=label"


def test_an_unknown_role_is_refused(read) -> None:
    with pytest.raises(UserError, match="unknown role 'lable' in columns; did you mean 'label'") as caught:
        read("a.jsonl", [{"text": "t", "label": 1}], "classify", columns={"lable": "label"})
    assert "text, text_pair, label" in str(caught.value.hint)


# Pairs


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        ({"prompt": "a", "completion": "b"}, ("a", "b")),
        ({"source": "a", "target": "b"}, ("a", "b")),
        ({"id": 7, "input": "a", "output": "b"}, ("a", "b")),
        ({"summary": "b", "text": "a"}, ("a", "b")),
        ({"title": "b", "text": "a"}, ("a", "b")),
        ({"article": "a", "highlights": ["b", "c"]}, ("a", "b\nc")),
        ({"incorrect": "a", "correct": "b"}, ("a", "b")),
        ({"原文": "a", "译文": "b"}, ("a", "b")),
        ({"en": "a", "zh": "b"}, ("a", "b")),
        ({"translation": {"de": "a", "en": "b"}}, ("a", "b")),
        ({"first": "a", "second": "b"}, ("a", "b")),
        ({"instruction": "a", "input": "x", "output": "b"}, ("a\n\nx", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, ("a", "b")),
        ({"instruction": "a", "output": "b"}, ("a", "b")),
        ({"instruction": "a", "context": None, "response": "b"}, ("a", "b")),
        ({"prompt": "1 + 1 =", "completion": 2}, ("1 + 1 =", "2")),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ("a", "b")),
    ],
)
def test_pairs(read, record: dict[str, Any], pair: tuple[str, str]) -> None:
    row = one(read("a.jsonl", [record], "instruct"))
    assert (row.prompt, row.completion) == pair


def test_a_third_column_of_a_pair_is_said_and_left(read) -> None:
    content = "Hi.\t嗨。\tCC-BY 2.0 tatoeba\nRun!\t跑！\tCC-BY 2.0 tatoeba\n"
    examples = read("cmn.txt", content, "translate")
    assert [(row.prompt, row.completion) for row in examples.rows] == [("Hi.", "嗨。"), ("Run!", "跑！")]
    assert said(examples).endswith("; not used: column 3 (guessed: completion, prompt)")


def test_the_direction_of_a_pair_can_be_turned(read) -> None:
    row = read("cmn.tsv", "Hi.\t嗨。\n", "translate", columns={"prompt": "2", "completion": "1"}).rows[0]
    assert (row.prompt, row.completion) == ("嗨。", "Hi.")


def test_a_long_conversation_is_no_pair(read) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    good = [{"messages": turns[:2]}]
    examples = read("a.jsonl", [*good, {"messages": turns}], "instruct")
    assert problem(examples).where.line == 2
    assert problem(examples).fix == "such data is for the task chat"


@pytest.mark.parametrize(
    ("record", "field", "kind"),
    [
        ({"prompt": "a"}, "completion", "missing"),
        ({"prompt": "a", "completion": None}, "completion", "missing"),
        ({"prompt": "a", "completion": " \n"}, "completion", "empty"),
        ({"prompt": "", "completion": "b"}, "prompt", "empty"),
        ({"prompt": "a", "completion": {"x": 1}}, "completion", "type"),
        ({"prompt": ["a", 1], "completion": "b"}, "prompt", "type"),
    ],
)
def test_a_bad_pair_names_its_field(read, record: dict[str, Any], field: str, kind: str) -> None:
    examples = read("a.jsonl", [{"prompt": "p", "completion": "c"}, record], "instruct")
    assert (problem(examples).where.line, problem(examples).field, problem(examples).kind) == (2, field, kind)
    assert len(examples.rows) == 1


# Conversations


def test_messages_keep_their_turns(read) -> None:
    turns = [("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "再见"), ("assistant", "再！")]
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    row = one(read("a.jsonl", [record], "chat"))
    assert row.messages == tuple(Message(role, text) for role, text in turns)
    assert row.messages[0].as_dict() == {"role": "system", "content": "Be brief."}
    assert row.key == "Be brief.\nHi!"
    assert row.target == "Hello.\n再见\n再！"


def test_sharegpt_roles_are_translated(read) -> None:
    names = ["system", "human", "gpt"]
    row = one(read("a.json", [{"conversations": [{"from": name, "value": "x"} for name in names]}], "chat"))
    assert [message.role for message in row.messages] == ["system", "user", "assistant"]


def test_content_in_parts_of_text_is_joined(read) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    record = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]}
    assert one(read("a.jsonl", [record], "chat")).messages[0].content == "ab"


def test_alpaca_with_system_and_history_is_a_conversation(read) -> None:
    record = {"system": "S", "history": [["q", "a"]], "instruction": "i", "input": "x", "output": "o"}
    row = one(read("a.json", [record], "chat"))
    assert [(m.role, m.content) for m in row.messages] == [
        ("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "i\n\nx"), ("assistant", "o")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "field", "kind"),
    [
        ([], "messages", "type"),
        ("hello", "messages", "type"),
        (None, "messages", "missing"),
        ([{"role": "user", "content": "x"}], "messages", "role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role", "role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "role"),
        ([{"content": "x"}], "messages[0].role", "role"),
        ([{"role": "user"}], "messages[0].content", "missing"),
        ([{"role": "user", "content": ""}], "messages[0].content", "empty"),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages[0].content", "type"),
        ([{"role": "user", "content": "x"}, "y"], "messages[1]", "type"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "messages[1]", "role"),
    ],
)
def test_a_bad_conversation_names_the_message(read, turns: object, field: str, kind: str) -> None:
    good = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    examples = read("a.jsonl", [{"messages": good}, {"messages": turns}], "chat")
    assert (problem(examples).where.line, problem(examples).field, problem(examples).kind) == (2, field, kind)


# Answers


def squad(text: str, start: int | None, passage: str = "Tea came in 1610, not in 1611.") -> list[Any]:
    answer = {"text": text} if start is None else {"text": text, "answer_start": start}
    return [{"data": [{"title": "T", "paragraphs": [{"context": passage, "qas": [
        {"id": "good", "question": "g?", "answers": [{"text": passage[:3], "answer_start": 0}]},
        {"id": "q", "question": "When?", "answers": [answer]},
    ]}]}]}]  # fmt: skip


def test_squad_is_read_with_its_nesting(read) -> None:
    examples = read("a.json", squad("1610", 12), "answer")
    row = examples.rows[1]
    assert row == AnswerRow("When?", "Tea came in 1610, not in 1611.", (("1610", 12),), "q", "T", where=row.where)
    assert row.where.index == "data[0].paragraphs[0].qas[1]"
    assert row.where.line == 1


@pytest.mark.parametrize(
    ("text", "start", "place"),
    [("1610", 12, 12), ("1610", 11, 12), ("1610", -5, 12), ("1611.", -5, 25), ("1610", 10**9, 12), ("1610", None, 12),
     ("in", 9, 9), ("in", 22, 22), ("in", None, 9), ("tea", None, -1)],
)  # fmt: skip
def test_places_point_at_the_answer(read, text: str, start: int | None, place: int) -> None:
    row = read("a.json", squad(text, start), "answer").rows[1]
    assert row.answers == ((text, place),)
    assert place < 0 or row.passage.startswith(text, place)


@pytest.mark.parametrize(("text", "start", "times"), [("in", 3, "more than once"), ("tea", 3, "nowhere")])
def test_a_place_that_cannot_be_put_right_is_reported(read, text: str, start: int, times: str) -> None:
    found = problem(read("a.json", squad(text, start), "answer"))
    assert found.where.index == "data[0].paragraphs[0].qas[1]"
    assert (found.field, found.kind) == ("answers", "answer")
    assert f"answer_start {start} does not point at the answer, which is {times}" in found.reason


def test_what_was_put_right_is_counted(read) -> None:
    notes = read("a.json", squad("1610", 11), "answer").report.notes
    assert notes == ["1 answers whose answer_start did not fit and was put right: they are in the passage once"]


def test_places_hold_after_line_ends_change(read) -> None:
    passage = "Tea\r\ncame\r\nin 1610."
    row = read("a.json", squad("1610", 14, passage), "answer").rows[1]
    assert row.passage == "Tea\ncame\nin 1610."
    assert row.passage.startswith("1610", row.answers[0][1])


def test_cmrc_without_places(read) -> None:
    content = json.dumps([{"context_text": "茶在1610年传到欧洲。", "context_id": "D0", "title": "茶", "qas": [
        {"query_text": "何时？", "query_id": "Q0", "answers": ["在1610年的时候", "1610年", 39648.0]},
    ]}], ensure_ascii=False)  # fmt: skip
    examples = read("a.json", content, "answer")
    assert one(examples).answers == (("1610年", 2), ("在1610年的时候", -1))
    assert (one(examples).id, one(examples).title) == ("Q0", "茶")
    assert [note.split(" ")[0] for note in examples.report.notes] == ["1", "1"]


@pytest.mark.parametrize(
    "answers", [[], {"text": [], "answer_start": []}, [""], [{"text": "", "answer_start": -1}]], ids=str
)
def test_no_answer_means_that_the_passage_has_none(read, answers: object) -> None:
    examples = read("a.jsonl", [{"question": "q", "context": "c", "answers": answers}], "answer")
    assert one(examples).answers == ()
    assert "questions without an answer" in examples.report.notes[0]


def test_impossible_questions_have_no_answer(read) -> None:
    record = {"question": "q", "context": "c", "is_impossible": True, "answers": [], "plausible_answers": ["c"]}
    assert one(read("a.jsonl", [record], "answer")).answers == ()


def test_a_table_of_answers(read) -> None:
    content = "question,passage,answer,answer_start\nWhen?,Tea came in 1610.,1610,12\nWho?,Tea came in 1610.,Tea,0\n"
    rows = read("a.csv", content, "answer").rows
    assert [row.answers for row in rows] == [(("1610", 12),), (("Tea", 0),)]


def test_questions_without_passages(read) -> None:
    row = one(read("a.jsonl", [{"question": "When?", "answer": "In 1610."}], "answer"))
    assert (row.passage, row.answers, row.key) == ("", (("In 1610.", -1),), "When?")


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [
        ({"answers": None}, "answers", "missing"),
        ({"answers": [None]}, "answers", "answer"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "answers", "answer"),
        ({"answers": {"text": ["c"], "answer_start": ["0"]}}, "answers", "answer"),
        ({"answers": [True]}, "answers", "answer"),
        ({"context": ""}, "context", "empty"),
        ({"context": 5}, "context", "type"),
        ({"question": " "}, "question", "empty"),
    ],
)
def test_a_bad_question_names_its_field(read, change: dict[str, Any], field: str, kind: str) -> None:
    good = {"question": "q", "context": "c", "answers": ["c"]}
    examples = read("a.jsonl", [good, good | change], "answer")
    assert (problem(examples).where.line, problem(examples).field, problem(examples).kind) == (2, field, kind)


def test_an_article_without_questions_is_reported(read) -> None:
    content = [{"data": [{"title": "a", "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": ["c"]}]}]},
                         {"title": "b", "paragraphs": []}, 5]}]  # fmt: skip
    examples = read("a.json", content, "answer")
    assert len(examples.rows) == 1
    assert [p.where.index for p in examples.report.problems] == ["data[1]", "data[2]"]
    assert examples.report.rows_in == 3


# Preferences and candidates


def dpo(**change: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"}} | change  # fmt: skip


def test_preferences_with_conversations(read) -> None:
    row = one(read("a.json", [dpo()], "prefer"))
    assert row == PreferenceRow((Message("user", "q"),), "a", "b", where=row.where)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
         "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
    ],
)  # fmt: skip
def test_preferences_with_a_plain_prompt(read, record: dict[str, Any]) -> None:
    row = one(read("a.jsonl", [record], "prefer"))
    assert (row.prompt, row.messages, row.chosen, row.rejected) == ("q", (Message("user", "q"),), "a", "b")


def test_preferences_of_whole_conversations(read) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "r"}]
    ends = {"chosen": "a", "rejected": "b"}
    record = {name: [*talk, {"role": "assistant", "content": end}] for name, end in ends.items()}
    row = one(read("a.jsonl", [record], "prefer"))
    assert [m.content for m in row.messages] == ["q", "x", "r"]
    assert (row.chosen, row.rejected, row.prompt) == ("a", "b", None)


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [
        ({"rejected": {"from": "gpt", "value": "a"}}, "rejected", "label"),
        ({"rejected": {"from": "human", "value": "b"}}, "rejected", "role"),
        ({"chosen": None}, "chosen", "missing"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "conversations", "role"),
        ({"chosen": [{"from": "human", "value": "other"}, {"from": "gpt", "value": "a"}]}, "chosen", "shape"),
    ],
)
def test_a_bad_preference_names_its_field(read, change: dict[str, Any], field: str, kind: str) -> None:
    examples = read("a.jsonl", [dpo(), dpo(**change)], "prefer")
    assert (problem(examples).where.line, problem(examples).field, problem(examples).kind) == (2, field, kind)


@pytest.mark.parametrize(
    ("record", "chosen"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 1}, 1),
        ({"question": "q", "choices": ["a", "b"], "answer": "B"}, 1),
        ({"question": "q", "choices": ["a", "b"], "answer": "b"}, 1),
        ({"question": "q", "choices": ["a", "b"], "label": "1"}, 1),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}, 1),
        ({"history": ["h", "i"], "candidates": ["a", "b"], "chosen": 1}, 1),
        ({"query": "q", "history": [], "candidates": ["a", "b"], "chosen": 1}, 1),
        ({"query": "q", "positive": "a", "negatives": ["b"]}, 0),
        ({"query": "q", "pos": ["a"], "neg": ["b"]}, 0),
    ],
)
def test_candidates(read, record: dict[str, Any], chosen: int) -> None:
    row = one(read("a.jsonl", [record], "rank"))
    assert (row.candidates, row.chosen) == (("a", "b"), chosen)
    assert row.key == ("h\ni" if record.get("history") else "q")


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [({"answer": 2}, "answer", "label"), ({"answer": "c"}, "answer", "label"), ({"answer": True}, "answer", "label"),
     ({"choices": ["a"], "answer": 0}, "choices", "missing"), ({"choices": ["a", ""]}, "choices", "empty"),
     ({"question": ""}, "question", "empty")],
)  # fmt: skip
def test_bad_candidates_name_their_field(read, change: dict[str, Any], field: str, kind: str) -> None:
    good = {"question": "q", "choices": ["a", "b"], "answer": 0}
    examples = read("a.jsonl", [good, good | change], "rank")
    assert (problem(examples).where.line, problem(examples).field, problem(examples).kind) == (2, field, kind)


def test_further_right_candidates_are_counted(read) -> None:
    notes = read("a.jsonl", [{"query": "q", "pos": ["a", "c", "d"], "neg": ["b"]}], "rank").report.notes
    assert notes == ["2 further right candidates, left out: one is learned a row"]


def test_preferences_are_two_candidates_behind_their_conversation(read) -> None:
    turns = [{"from": "human", "value": "天为什么是蓝的？"}]
    chat = {"conversations": turns, "chosen": {"from": "gpt", "value": "散射。"},
            "rejected": {"from": "gpt", "value": "油漆。"}}  # fmt: skip
    row = one(read("a.jsonl", [chat], "rank"))
    assert (row.key, row.candidates, row.chosen) == ("天为什么是蓝的？", ("散射。", "油漆。"), 0)
    plain = [{"ask": "Flat?", "good": "No.", "poor": "Yes."}, {"ask": "Flat?", "good": "No.", "poor": "No."}]
    columns = {"prompt": "ask", "chosen": "good", "rejected": "poor"}
    examples = read("b.jsonl", plain, "rank", columns=columns)
    assert one(examples).candidates == ("No.", "Yes.")
    assert problem(examples).field == "poor"


@pytest.mark.parametrize(
    ("names", "task"),
    [("错误,正确", "correct"), ("原句,改正", "correct"), ("指令,回复", "instruct"), ("源文,译文", "translate")],
)
def test_chinese_names_of_columns_are_names(read, names: str, task: str) -> None:
    examples = read("rows.csv", f"{names}\n我在去,我再去\n他门来,他们来\n", task)
    assert [(row.key, row.target) for row in examples.rows] == [("我在去", "我再去"), ("他门来", "他们来")]


def test_chinese_names_of_a_text_and_its_label(read) -> None:
    examples = read("rows.csv", "评论内容,情感倾向\n很好吃,好\n太慢了,差\n", "classify")
    assert [(row.key, row.target) for row in examples.rows] == [("很好吃", "好"), ("太慢了", "差")]
