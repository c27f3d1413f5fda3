"""What is longer than the model's context is cut, and every task says so of each answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit.data.families import AnswerRow, LabelRow, Message, PairRow, RankRow, Row, TextRow, Where
from gpt2kit.engine import Engine
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tasks.answer import Answer
from gpt2kit.tasks.chat import Chat, OpenChat
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.embed import Embed
from gpt2kit.tasks.pairs import Pairs
from gpt2kit.tasks.prompted import Prompted
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.spans import Spans
from gpt2kit.tasks.write import Write

HERE = Where("test")
SHORT, LONG = "the fox", "the lazy dog " * 60


@pytest.fixture(scope="module")
def headed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same shape with a head of two outputs, as classifiers and models that point at answers have."""
    _, tokenizer = folder.load(base)
    assert tokenizer is not None
    config = GPT2Config(tokenizer.vocab_size, 96, 32, 1, 2, labels=("start", "end"))
    path = tmp_path_factory.mktemp("headed") / "model"
    folder.save(path, GPT2(config, torch.Generator().manual_seed(1)), tokenizer, {"name": "headed"})
    with Engine.load(path, "fp32", threads=1, max_batch=8) as engine:
        yield engine


def asked(task: str, text: str) -> Row:
    rows: dict[str, Row] = {
        "label": LabelRow(text, (), where=HERE),
        "text": TextRow(text, where=HERE),
        "pair": PairRow(text, "", where=HERE),
        "chat": OpenChat((Message("user", text),), where=HERE),
        "answer": AnswerRow(text, "the lazy dog", (), where=HERE),
        "rank": RankRow(text, (), ("dog", "fox"), 0, where=HERE),
    }
    return rows[task]


@pytest.mark.parametrize(("task", "row", "head"), [
    (Classify(("start", "end")), "label", True),
    (Spans(), "answer", True),
    (Prompted(("good", "bad")), "label", False),
    (Pairs("edit", max_tokens=2), "pair", False),
    (Chat(max_tokens=2), "chat", False),
    (Answer(max_tokens=2), "answer", False),
    (Rank(by="likelihood"), "rank", False),
    (Write(max_tokens=2), "text", False),
    (Embed("last"), "text", False),
], ids=lambda value: str(getattr(value, "name", value)))  # fmt: skip
def test_an_answer_says_whether_its_text_was_cut(
    engine: Engine, headed: Engine, task: Any, row: str, head: bool
) -> None:
    short, long = task.answer(headed if head else engine, [asked(row, SHORT), asked(row, LONG)])
    assert (short.details["cut"], long.details["cut"]) == (False, True)


def test_the_mean_of_all_states_cuts_nothing(engine: Engine) -> None:
    (found,) = Embed("mean").answer(engine, [asked("text", LONG)])
    assert found.details["cut"] is False


def test_an_earlier_message_that_had_no_room_counts_as_cut(engine: Engine) -> None:
    turns = (Message("user", "the fox " * 60), Message("assistant", "dog"), Message("user", "the fox"))
    (found,) = Chat(max_tokens=2).answer(engine, [OpenChat(turns, where=HERE)])
    assert (found.details["cut"], found.details["dropped_messages"] > 0) == (True, True)
