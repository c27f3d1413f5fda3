"""Tasks that every model can be asked: embed, write, and generative tasks by a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2kit.data.families import AnswerRow, PairRow, TextRow, Where
from gpt2kit.engine import Engine
from gpt2kit.errors import UserError
from gpt2kit.tasks.answer import Answer
from gpt2kit.tasks.embed import Embed
from gpt2kit.tasks.pairs import Pairs
from gpt2kit.tasks.shots import Shots
from gpt2kit.tasks.shown import Shown
from gpt2kit.tasks.write import Write
from gpt2kit.text.tokenizer import Tokenizer

HERE = Where("test")


def text(content: str, continues: bool = False) -> TextRow:
    return TextRow(content, continues, where=HERE)


# embed


def test_vectors_have_length_one_and_the_direction_of_the_pooled_states(engine: Engine) -> None:
    rows = [text("the lazy dog"), text("春眠不觉晓"), text("")]
    for pooling in ("mean", "last"):
        found = np.array([answer.details["embedding"] for answer in Embed(pooling).answer(engine, rows)])
        plain = engine.embed(["the lazy dog", "春眠不觉晓", ""], pooling)
        assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3))
        assert (found * plain).sum(1) == pytest.approx(np.linalg.norm(plain, axis=1), rel=1e-5)


def test_a_text_longer_than_the_context_counts_whole(engine: Engine) -> None:
    assert engine.tokenizer is not None
    long = "the quick brown fox " * 40
    ids = engine.tokenizer.encode(long)
    pieces = [ids[a : a + 96] for a in range(0, len(ids), 96)]
    assert len(pieces) > 1
    states = [engine.embed([piece], "mean")[0].astype(float) * len(piece) for piece in pieces]
    expected = np.sum(states, axis=0)
    found = Embed().vectors(engine, ["x", long])[1]
    assert found == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    wandering = long + "a lazy dog"
    state = engine.embed([engine.tokenizer.encode(wandering)[-96:]], "last")[0].astype(float)
    last = Embed("last").vectors(engine, [wandering])[0]
    assert last == pytest.approx(state / np.linalg.norm(state), abs=1e-6)
    with pytest.raises(UserError, match="did you mean 'mean'"):
        Embed("means")  # type: ignore[arg-type]


# write


def test_every_token_of_a_text_is_learned_once_and_its_end(tokenizer: Tokenizer) -> None:
    content = "abcdefghijklmnopqrst"
    rows = Write().encode([text(content)], tokenizer, 8).rows
    targets = [token for row in rows for token in row.ids[row.start :].tolist()]
    assert targets == [*tokenizer.encode(content), tokenizer.eot_id]
    assert rows[0].ids[0] == tokenizer.eot_id
    assert all(len(row) <= 9 for row in rows)
    assert [int(b.ids[0]) for b in rows[1:]] == [int(a.ids[-1]) for a in rows[:-1]]


def test_pieces_of_one_document_go_on_without_an_end(tokenizer: Tokenizer) -> None:
    rows = Write().encode([text("abc"), text("def", continues=True), text("ghi")], tokenizer, 16).rows
    eos = tokenizer.eot_id
    assert [[tokenizer.decode([i]) or "." for i in row.ids.tolist()] for row in rows] == [
        [".", "a", "b", "c"], ["c", "d", "e", "f", "."], [".", "g", "h", "i", "."]
    ]  # fmt: skip
    assert rows[0].ids[0] == eos


def test_what_is_written_depends_on_the_seed_alone(engine: Engine) -> None:
    rows = [text("the lazy"), text("春眠")]
    first = Write(12, seed=1).answer(engine, rows)
    assert Write(12, seed=1).answer(engine, rows[1:])[0].text == first[1].text
    assert Write(12, seed=2).answer(engine, rows)[0].text != first[0].text
    with pytest.raises(UserError, match="no right answer"):
        Write().score(rows, first)


# generative tasks by a prompt


class Listening:
    """An engine that notes what it is asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.asked, self.stops = engine, list[str](), list[object]()
        self.tokenizer, self.config = engine.tokenizer, engine.config

    def generate(self, prompts: list[list[int]], **changes: object) -> object:
        assert self.tokenizer is not None
        self.asked += [self.tokenizer.decode(ids) for ids in prompts]
        self.stops.append(changes["stop"])
        return self.engine.generate(prompts, **changes)  # type: ignore[arg-type]


def test_examples_stand_before_a_pair_and_an_answer_ends_with_its_line(engine: Engine) -> None:
    heard = Listening(engine)
    pool = [PairRow("lazy dog", "lazy", where=HERE), PairRow("bad film", "bad", where=HERE)]
    task = Shown(Pairs("translate", max_tokens=8), Shots(pool, 1))
    (answer,) = task.answer(heard, [task.example("the dog")])  # type: ignore[arg-type]
    assert heard.asked == ["lazy dog\n=>\nlazy\n\nthe dog\n=>\n"]
    assert heard.stops == [["\n"]]
    assert answer.details["shots"] == 1
    assert "\n" not in answer.text
    plain = Shown(Pairs("summarise", max_tokens=8))
    (answer,) = plain.answer(heard, [plain.example("the dog")])  # type: ignore[arg-type]
    assert heard.asked[1] == "the dog\nTL;DR:\n"
    assert heard.stops[1] == ["\n\n"]
    assert "shots" not in answer.details


def test_examples_of_questions_come_with_their_passages_as_far_as_there_is_room(engine: Engine) -> None:
    heard = Listening(engine)
    pool = [
        AnswerRow("good dog?", "lazy dog", (("lazy", 0),), where=HERE),
        AnswerRow("good fox?", "x " * 90, (("x", 0),), where=HERE),
    ]
    task = Shown(Answer(max_tokens=8), Shots(pool, 2, seed=1))
    question = AnswerRow("good film?", "bad film", (), where=HERE)
    task.answer(heard, [question])  # type: ignore[arg-type]
    (asked,) = heard.asked
    assert asked.endswith("bad film\n\ngood film?\n=>\n")
    assert "x x x" not in asked
    Shown(Answer(max_tokens=24), task.shots).answer(heard, [AnswerRow("fox " * 200, "bad film", (), where=HERE)])  # type: ignore[arg-type]
    assert heard.asked[1].startswith("bad film")  # a question that leaves no room for examples
