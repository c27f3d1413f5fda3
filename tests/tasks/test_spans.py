"""Answers that are pointed at: windows, places, abstention."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2kit.data.families import AnswerRow, Where
from gpt2kit.engine import Engine
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes.score import score_files, tune_threshold
from gpt2kit.scores.answers import best_f1
from gpt2kit.tasks import task_of
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.spans import LONGEST, Spans, Window, best_span, best_threshold, token_scores
from gpt2kit.tasks.task import Answer
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training.rows import RowBatches

HERE = Where("test")
TEXTS = [
    "Mary had a little lamb, its fleece was white.",
    "春眠不觉晓，处处闻啼鸟。",
    "naïve café: 3 ½ 🤗 ok",
    "  two  spaces",
]


def row(question: str, passage: str, answer: str = "") -> AnswerRow:
    answers = ((answer, passage.index(answer)),) if answer else ()
    return AnswerRow(question, passage, answers, where=HERE)


def wordpiece(path: Path) -> Tokenizer:
    pieces = ["[UNK]", "[SEP]", "mary", "had", "a", "lit", "##tle", "lamb", ",", ".", "its", "was", "white", "春", "眠",
              "不", "觉", "晓", "，", "两", "two"]  # fmt: skip
    (path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return Tokenizer.load(path / "vocab.txt")


def made(kind: str, path: Path) -> Tokenizer:
    if kind == "wordpiece":
        return wordpiece(path)
    if kind == "jieba":
        pytest.importorskip("jieba", reason="needs the extra 'chinese'")
        return train_tokenizer([" ".join(TEXTS[:2])], "word", 300, segmenter="jieba")
    return train_tokenizer([" ".join(TEXTS[:2])], kind, 300)


@pytest.mark.parametrize("kind", ["bpe", "char", "word", "jieba", "wordpiece"])
def test_each_token_knows_its_characters(kind: str, tmp_path: Path) -> None:
    known = made(kind, tmp_path)
    for text in TEXTS:
        ids, places = known.encode_with_offsets(text)
        assert ids == known.encode(text)
        assert len(places) == len(ids)
        assert all(0 <= a <= b <= len(text) for a, b in places)
        assert [a for a, _ in places] == sorted(a for a, _ in places)
        if kind != "wordpiece":
            assert {n for a, b in places for n in range(a, b)} == set(range(len(text)))
        for (a, b), token in zip(places, ids, strict=True):
            data = known.token_bytes(token).decode("utf-8", "replace")
            if "\ufffd" not in data:
                assert data.strip().lower() in text[a:b].lower()


def test_labels_point_at_the_answer_in_every_window_that_holds_it(tokenizer: Tokenizer) -> None:
    passage = "a" * 40 + " the wolf. " + "b" * 60
    encoded = Spans().encode([row("who?", passage, "wolf")], tokenizer, 48)
    found = [(tokenizer.decode(r.ids[r.labels[0] : r.labels[1] + 1].tolist()), r) for r in encoded.rows]
    assert {text for text, _ in found} == {"wolf", ""}
    for text, one in found:
        assert len(one.ids) <= 48
        assert one.ids[-1] == tokenizer.eot_id
        assert tokenizer.decode(one.ids[: one.start].tolist()) == "who?\n\n"
        if not text:
            assert one.labels == (len(one.ids) - 1,) * 2
    assert sum(text == "" for text, _ in found) == 1  # one window without it, of several
    assert encoded.cut == 1


def test_questions_without_an_answer_point_at_the_end_and_answers_without_a_place_are_left_out(
    tokenizer: Tokenizer,
) -> None:
    absent = AnswerRow("who?", "the wolf", (("fox", -1),), where=HERE)
    encoded = Spans().encode([row("who?", "the wolf"), absent], tokenizer, 64)
    (one,) = encoded.rows
    assert one.labels == (len(one.ids) - 1,) * 2
    assert encoded.left_out == 1


def test_windows_overlap_by_half_and_cover_the_passage(tokenizer: Tokenizer) -> None:
    for length in (1, 30, 57, 58, 59, 86, 87, 88, 200):
        _, windows = Spans()._windows(row("q", "a" * length), tokenizer, 62)
        assert windows[0].first == 0
        assert windows[-1].last == length
        assert all(b.first < a.last and b.first - a.first == 29 for a, b in itertools.pairwise(windows))
        assert all(len(window.ids) <= 62 for window in windows)
        assert len(windows) == max(1, -(-(length - 58) // 29) + 1)
    (long,) = Spans().encode([row("v" * 60 + "w" * 60, "abc")], tokenizer, 62).rows
    assert tokenizer.decode(long.ids.tolist()) == "w" * 31 + "\n\nabc"
    with pytest.raises(UserError, match="fill the context"):
        Spans("x" * 60 + "{question}{passage}").encode([row("q", "abc")], tokenizer, 62)


def test_the_best_span_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for length in (1, 2, 7, LONGEST + 20):
        scores = draw.normal(size=(length + 4, 2))
        window = Window([0] * (length + 4), 10, 10 + length)  # three tokens before, EOS behind
        every = {
            (i, j): scores[3 + i, 0] + scores[3 + j, 1] - scores[-1].sum()
            for i in range(length)
            for j in range(i, min(i + LONGEST, length))
        }
        best = max(every, key=lambda pair: every[pair])
        assert best_span(scores, window) == pytest.approx((every[best], 10 + best[0], 10 + best[1]))


def test_the_threshold_is_the_best_of_all() -> None:
    draw = random.Random(0)
    for _ in range(20):
        rows = [row("q", "the wolf", draw.choice(["", "wolf"])) for _ in range(12)]
        answers = [
            Answer("", {"margin": float(draw.randrange(6)), "span": draw.choice(["wolf", "the wolf", "the"])})
            for _ in rows
        ]

        def f1(threshold: float, rows: list[AnswerRow] = rows, answers: list[Answer] = answers) -> float:
            found = [a.details["span"] if a.details["margin"] > threshold else "" for a in answers]
            return float(best_f1([[text for text, _ in one.answers] for one in rows], found).mean())

        chosen = best_threshold(rows, answers)
        assert f1(chosen) == pytest.approx(max(f1(t) for t in np.arange(-1.5, 7, 0.5)))


# with a model


@pytest.fixture(scope="module")
def pointer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tuned for 80 steps to point at a Chinese word, through the same rows and objective as the command line."""
    model, tokenizer = folder.load(base)
    assert tokenizer is not None
    task, draw = Spans(), random.Random(0)
    words = ["dog", "fox", "film", "story"]
    rows = []
    for n in range(96):
        front = "quick lazy " * draw.choice([0, 0, 10, 50])  # the answer can stand anywhere in the context
        behind = " ".join(draw.sample(words, 2))
        answer = draw.choice(["春眠", "啼鸟"]) if n % 3 else ""
        rows.append(row("good?", " ".join(f"{front}{draw.choice(words)} {answer} {behind}".split()), answer))
    network = GPT2(task.model_config(model.config), torch.Generator().manual_seed(1))
    network.load_state_dict(model.state_dict(), strict=False)
    batches = RowBatches(task.encode(rows, tokenizer, 96).rows, 16, seed=0)
    objective, optimizer = task.objective(), torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(80):
        loss, count = objective.loss(network, *map(torch.from_numpy, objective.prepare(batches.at(step), step, 0)))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("spans") / "pointer"
    folder.save(path, network, tokenizer, {"task": task.values()})
    return path


def test_the_engines_token_scores_are_the_model_files(pointer: Path) -> None:
    model, _ = folder.load(pointer)
    rows = [[5, 9, 40, 41, 7], list(range(10, 90)), [3]]
    with Engine.load(pointer, "fp32", threads=1, max_batch=8) as engine:
        found = token_scores(engine, rows)
    with torch.no_grad():
        for ids, scores in zip(rows, found, strict=True):
            expected = model.score(model.hidden(torch.tensor([ids])))[0].numpy()
            assert scores == pytest.approx(expected, abs=2e-4)  # fp32, other kernels


def test_a_tuned_model_points_or_abstains_also_far_into_a_passage(pointer: Path) -> None:
    task = task_of(folder.lineage(pointer))
    long = " ".join(["quick lazy"] * 60)
    asked = [
        row("good?", "fox 啼鸟 film story", "啼鸟"),
        row("good?", "dog fox film"),
        row("good?", f"{long} fox 春眠 dog film", "春眠"),
    ]
    with Engine.load(pointer, "fp32", threads=1, max_batch=8) as engine:
        answers = task.answer(engine, asked)
    assert [answer.text for answer in answers] == ["啼鸟", "", "春眠"]
    assert answers[0].details["place"] == [4, 6]
    assert answers[1].details["place"] is None
    assert answers[2].details["windows"] == 2
    start, end = answers[2].details["place"]
    assert asked[2].passage[start:end] == "春眠"
    assert task.score(asked, answers)["exact_match"].value == 1.0


def test_nothing_to_read_is_no_answer(pointer: Path) -> None:
    with Engine.load(pointer, "fp32", threads=1, max_batch=8) as engine:
        (answer,) = Spans().answer(engine, [row("good?", "")])
    assert answer.text == ""
    assert json.loads(json.dumps(answer.details, allow_nan=False))["place"] is None


def test_a_model_without_such_a_head_says_so(engine: Engine) -> None:
    with pytest.raises(UserError, match="no head that points"):
        Spans().answer(engine, [row("q", "the wolf")])
    with pytest.raises(UserError, match="test: a model that points at answers needs a passage"):
        Spans.needing_passage(AnswerRow("only a question?", "", (), where=Where("test")))
    assert Spans().example("a passage\n\nq?").passage == "a passage"


def test_a_higher_threshold_keeps_the_model_silent() -> None:
    found = Answer("", {"margin": 1.5, "span": "wolf", "span_place": [4, 8], "place": None, "windows": 1})
    assert Spans(threshold=1.4).decide(found).text == "wolf"
    assert Spans(threshold=1.4).decide(found).details["place"] == [4, 8]
    assert Spans(threshold=1.5).decide(found).text == ""
    assert task_of({"task": Spans(threshold=2.5).values()}) == Spans(threshold=2.5)


def test_a_threshold_is_tuned_on_labelled_rows_and_kept_in_the_folder(pointer: Path, tmp_path: Path) -> None:
    own = tmp_path / "pointer"
    shutil.copytree(pointer, own)
    rows = [("fox 啼鸟 film story", ["啼鸟"]), ("dog fox film", []), ("story 春眠 dog film", []), ("film dog 春眠", [])]
    lines = [{"question": "good?", "context": text, "answers": answers} for text, answers in rows]
    data = tmp_path / "dev.jsonl"
    data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    before = score_files(own, [str(data)], precision="fp32", threads=1)
    assert before.scores["exact_match"].value <= 0.5  # it points at 春眠, which here is no answer
    threshold, after = tune_threshold(own, before)
    assert after.scores["exact_match"].value >= 0.75
    assert task_of(folder.lineage(own)) == Spans(threshold=threshold)
    assert folder.describe(own)["verified"]
    again = score_files(own, [str(data)], precision="fp32", threads=1)
    assert [one.text for one in again.answers] == [one.text for one in after.answers]


def test_other_models_have_no_threshold(base: Path, tmp_path: Path) -> None:
    model, tokenizer = folder.load(base)
    folder.save(tmp_path / "ranker", model, tokenizer, {"task": Rank().values()})
    with pytest.raises(UserError, match="points at answers"):
        tune_threshold(tmp_path / "ranker", None)  # type: ignore[arg-type]
