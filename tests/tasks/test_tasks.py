"""How examples become rows: what is cut, what is counted, what stands around a prompt."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2kit.data.examples import Examples
from gpt2kit.data.families import AnswerRow, ChatRow, LabelRow, Message, PairRow, Where
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks import NAMES, task_from_data, task_of
from gpt2kit.tasks.answer import Answer
from gpt2kit.tasks.chat import Chat, OpenChat, reply_wanted
from gpt2kit.tasks.classify import Classify, probabilities
from gpt2kit.tasks.pairs import Pairs, changes
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.spans import Spans
from gpt2kit.tasks.task import Answer as Said
from gpt2kit.tasks.task import Task, completions
from gpt2kit.tasks.write import Write
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

HERE = Where("test")


# completions


def test_a_completion_ends_in_eos_and_is_counted_from_its_first_token() -> None:
    (row,) = completions([([5, 6, 7], [8, 9])], 1, 16).rows
    assert row.ids.tolist() == [5, 6, 7, 8, 9, 1]
    assert row.start == 3


def test_a_long_prompt_loses_its_beginning_and_a_long_completion_its_end_and_eos() -> None:
    prompt, completion = list(range(100, 120)), list(range(200, 204))
    encoded = completions([(prompt, completion)], 1, 12)
    (row,) = encoded.rows
    assert row.ids.tolist() == [*prompt[-8:], *completion, 1]
    assert encoded.cut == 1
    (row,) = completions([(prompt, list(range(200, 230)))], 1, 12).rows
    assert row.ids.tolist() == [*prompt[-6:], *range(200, 207)]
    assert row.start == 6
    assert completions([([2], [3])], 1, 12).cut == 0


def test_an_empty_prompt_starts_from_eos() -> None:
    (row,) = completions([([], [8])], 1, 12).rows
    assert row.ids.tolist() == [1, 8, 1]
    assert row.start == 1


# classify


def test_a_long_text_keeps_its_first_quarter_and_its_end(tokenizer: Tokenizer) -> None:
    text = "abcdefghijklmnopqrstuvwxyz"
    task = Classify(("a", "b"))
    ids, cut = task.ids([LabelRow(text, ("a",), where=HERE), LabelRow("abc", ("b",), where=HERE)], tokenizer, 13)
    assert cut == [True, False]
    assert tokenizer.decode(ids[0][:-1]) == text[:3] + text[-9:]
    assert ids[0][-1] == ids[1][-1] == tokenizer.eot_id
    assert len(ids[0]) == 13


def test_a_label_that_training_did_not_have_is_named_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"test line 3: unknown label 'goood'; did you mean 'good'"):
        Classify(("good", "bad")).encode([LabelRow("x", ("goood",), where=Where("test", 3))], tokenizer, 8)


def test_a_classifier_of_pairs_knows_that_it_is_one() -> None:
    pair, single = LabelRow("a", ("x",), "b", where=HERE), LabelRow("a", ("y",), where=HERE)
    task = task_from_data("classify", Examples([pair, replace(pair, labels=("y",))], LabelRow), {})
    assert task_of({"task": task.values()}) == Classify(("x", "y"), pairs=True)
    with pytest.raises(UserError, match="tuned on pairs of texts, and this is one text"):
        task.answer(SimpleNamespace(tokenizer=train_tokenizer(["ab"], "char")), [pair, single])  # type: ignore[arg-type]
    mixed = task_from_data("classify", Examples([pair, single], LabelRow), {})
    assert "pairs" not in mixed.values()


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(UserError, match="needs two labels"):
        Classify(("only",))


def test_probabilities_sum_to_one_or_stand_for_themselves() -> None:
    scores = np.array([[1000.0, 0.0, -1000.0]], np.float32)
    assert probabilities(scores, False)[0] == pytest.approx([1, 0, 0])
    assert probabilities(scores, True)[0] == pytest.approx([1, 0.5, 0])


# pairs, chat, answers


def test_the_template_stands_around_the_prompt(tokenizer: Tokenizer) -> None:
    task = Pairs("translate", "en: {prompt}\n=> ")
    (row,) = task.encode([PairRow("a b", "cd", where=HERE)], tokenizer, 64).rows
    assert tokenizer.decode(row.ids[: row.start].tolist()) == "en: a b\n=> "
    assert tokenizer.decode(row.ids[row.start : -1].tolist()) == "cd"
    with pytest.raises(UserError, match="must hold"):
        Pairs("translate", "no place")


def test_each_thing_that_the_assistant_says_is_a_row(tokenizer: Tokenizer) -> None:
    messages = (
        Message("user", "a?"), Message("assistant", "b."), Message("user", "c?"), Message("assistant", "d."),
    )  # fmt: skip
    rows = Chat().encode([ChatRow(messages, where=HERE)], tokenizer, 128).rows
    assert [tokenizer.decode(row.ids[row.start : -1].tolist()) for row in rows] == ["b.", "d."]
    assert all(row.ids[-1] == tokenizer.eot_id for row in rows)
    assert "b." in tokenizer.decode(rows[1].ids[: rows[1].start].tolist())


def test_a_long_conversation_loses_its_oldest_turns_in_tuning_too(tokenizer: Tokenizer) -> None:
    turns = (Message("system", "S"), *(Message(role, text * 12) for role, text in (
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
    )))  # fmt: skip
    encoded = Chat().encode([ChatRow(turns, where=HERE)], tokenizer, 80)
    whole = [tokenizer.decode(row.ids[: row.start].tolist()) for row in Chat().encode(
        [ChatRow(turns, where=HERE)], tokenizer, 300).rows]  # fmt: skip
    prompts = [tokenizer.decode(row.ids[: row.start].tolist()) for row in encoded.rows]
    assert encoded.cut == 1
    assert prompts[0] == whole[0]
    assert "c" * 12 in prompts[1]
    assert "a" not in prompts[1].replace("assistant", "").replace("system", "")
    assert prompts[1].startswith(whole[1].split("a" * 12)[0].rsplit("user", 1)[0])  # the system message stays
    last = (Message("user", "x" * 100), Message("assistant", "y"))
    encoded = Chat().encode([ChatRow(last, where=HERE)], tokenizer, 64)
    assert (encoded.cut, len(encoded.rows[0].ids)) == (1, 65)


def test_a_conversation_that_ends_with_the_user_is_scored_where_the_assistant_last_answered() -> None:
    from gpt2kit.tasks.chat import _asked
    from gpt2kit.tasks.task import Answer as Said

    turns = (Message("user", "a?"), Message("assistant", "b, of course."), Message("user", "thanks"))
    row = ChatRow(turns, where=HERE)
    assert _asked(row) == turns[:1]
    assert Chat().score([row], [Said("b, of course.", {})])["chrf"].value == pytest.approx(100)
    assert _asked(ChatRow(turns[:1], where=HERE)) == turns[:1]
    assert _asked(OpenChat(turns, where=HERE)) == turns


def test_an_edit_is_judged_as_written_text_and_a_correction_by_its_changes() -> None:
    """An edit's prompt is an instruction, no sentence with errors; an empty line is no detection."""
    rows = [PairRow("Make it polite: Sit down!", "Please sit down.", where=HERE)]
    edited = Pairs("edit").score(rows, [Said("", {})])
    assert (edited["bleu"].value, edited["exact_match"].value) == (0, 0)
    assert "detection_f1" not in edited
    assert "detection_accuracy" in Pairs("correct").score(rows, [Said("Please sit down.", {})])


def test_what_the_assistant_should_say_is_the_reply_to_the_turn_that_is_asked() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    assert reply_wanted(ChatRow(tuple(turns), where=HERE)) == "d"
    assert reply_wanted(ChatRow(tuple(turns[:1]), where=HERE)) == ""


def test_windows_are_cut_by_tokens_where_a_passage_is_in_two_scripts() -> None:
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 9], "bpe", 300)
    passage = "春眠不觉晓。" * 20 + "答案是王。" + " the quick brown fox" * 200
    row = AnswerRow("谁?", passage, (("王", passage.index("王")),), where=HERE)
    task = Answer(max_tokens=16)
    windows = task._windows(row, tokenizer, 256)
    assert all(len(task._prompt(row, window, tokenizer)) <= 256 - 16 for window in windows)
    assert (windows[0][0], windows[-1][1]) == (0, len(passage))
    assert all(b[0] < a[1] for a, b in itertools.pairwise(windows))
    (learned,) = task.encode([row], tokenizer, 256).rows
    assert "答案是王" in tokenizer.decode(learned.ids[: learned.start].tolist())


@pytest.mark.parametrize("labels", [(), ("x", "y")])
def test_a_classifier_of_one_label_is_not_scored_by_rows_with_another_number(labels: tuple[str, ...]) -> None:
    from gpt2kit.tasks.task import Answer as Said

    said = Said("x", {"probabilities": {"x": 0.7, "y": 0.3}})
    with pytest.raises(UserError, match=f"{len(labels)} labels"):
        Classify(("x", "y")).score([LabelRow("text", labels, where=HERE)], [said])


def test_a_passage_is_cut_to_the_window_that_holds_the_answer(tokenizer: Tokenizer) -> None:
    passage = "a" * 300 + " the wolf. " + "b" * 300
    row = AnswerRow("who?", passage, (("wolf", 305),), where=HERE)
    task = Answer(max_tokens=16)
    encoded = task.encode([row], tokenizer, 96)
    assert encoded.cut == 1
    assert "wolf" in tokenizer.decode(encoded.rows[0].ids[: encoded.rows[0].start].tolist())
    windows = task._windows(row, tokenizer, 96)
    assert windows[0][0] == 0
    assert windows[-1][1] == len(passage)
    assert all(b[0] < a[1] for a, b in itertools.pairwise(windows))  # they overlap
    long = task.encode([AnswerRow("v" * 100 + "w" * 100, "p", (), where=HERE)], tokenizer, 96)
    assert long.cut == 1
    assert tokenizer.decode(long.rows[0].ids[: long.rows[0].start].tolist()) == "p\n\n" + "w" * 48 + "\n=>\n"
    with pytest.raises(UserError, match="fill the context"):
        Answer("x" * 90 + "{passage}{question}").encode([row], tokenizer, 96)


def test_changes_are_in_the_places_of_the_text_before() -> None:
    assert changes("我去上克。", "我去上课。") == [{"start": 3, "end": 4, "before": "克", "after": "课"}]


# the artefact


@pytest.mark.parametrize("name", NAMES)
def test_a_task_survives_its_lineage(name: str) -> None:
    made: dict[str, Task] = {
        "classify": Classify(("x", "y"), True), "chat": Chat(max_tokens=9), "answer": Answer(max_tokens=9),
        "rank": Rank("{query}: {candidate}"), "write": Write(max_tokens=9),
    }  # fmt: skip
    task = made.get(name) or Pairs(name, "{prompt}!", 9)
    assert task_of({"task": task.values()}) == task
    base = GPT2Config(64, 16, 16, 1, 2)
    assert bool(task.model_config(base).labels) == (name in ("classify", "rank"))


def test_a_model_without_a_task_says_how_to_tune_one() -> None:
    with pytest.raises(UserError) as caught:
        task_of({"name": "x"})
    assert "gpt2kit finetune" in str(caught.value.hint)
    with pytest.raises(UserError, match="unknown task 'clasify'"):
        task_of({"task": {"name": "clasify"}})
    with pytest.raises(UserError, match="not ones that this version wrote"):
        task_of({"task": {"name": "classify", "lables": ["a"]}})


def test_an_answers_mode_is_one_of_two() -> None:
    assert task_of({"task": Spans().values()}) == Spans()
    with pytest.raises(UserError, match="did you mean 'extractive'"):
        task_of({"task": {"name": "answer", "mode": "extractve"}})
