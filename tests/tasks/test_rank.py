"""Ranking: by likelihood, and by a head that learned which candidate was right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2kit.data.families import RankRow, Where
from gpt2kit.engine import Engine
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tasks import rank as rank_module
from gpt2kit.tasks import task_of
from gpt2kit.tasks.rank import Rank, question, rank
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training.rows import RowBatches

HERE = Where("test")


def row(query: str, candidates: tuple[str, ...], chosen: int = 0, history: tuple[str, ...] = ()) -> RankRow:
    return RankRow(query, history, candidates, chosen, where=HERE)


def total(engine: Engine, front: str, tail: str) -> tuple[float, int]:
    assert engine.tokenizer is not None
    a, b = engine.tokenizer.encode(front), engine.tokenizer.encode(tail)
    (scored,) = engine.score([a + b])
    return sum(one.logprob or 0.0 for one in scored[len(a) :] if one is not None), len(b)


def test_likelihood_is_taken_per_token_per_byte_or_in_total(engine: Engine) -> None:
    candidates = ("lazy dog", "春眠不觉晓", "the quick brown fox jumps over")
    sums = [total(engine, "the film\n", one) for one in candidates]
    found = {per: Rank(by="likelihood", per=per).scores(engine, [("the film", candidates)])[0]  # type: ignore[arg-type]
             for per in ("token", "byte", "total")}  # fmt: skip
    assert found["total"] == pytest.approx([x for x, _ in sums])
    assert found["token"] == pytest.approx([x / n for x, n in sums])
    assert found["byte"] == pytest.approx([x / len(c.encode()) for (x, _), c in zip(sums, candidates, strict=True)])
    assert rank(engine, "the film", candidates) == found["token"]


def test_the_last_token_alone_is_judged_by_all_before_it(engine: Engine) -> None:
    candidates = ("lazy dog", "春眠不觉晓", "a")
    assert engine.tokenizer is not None
    expected = []
    for one in candidates:
        ids, last = engine.tokenizer.encode(one)[:-1], engine.tokenizer.encode(one)[-1]
        (scored,) = engine.score([[*engine.tokenizer.encode("the film\n"), *ids, last]])
        assert scored[-1] is not None
        expected.append(scored[-1].logprob)
    (found,) = Rank(by="likelihood", per="last").scores(engine, [("the film", candidates)])
    assert found == pytest.approx(expected)
    assert len(set(found)) == 3


def test_the_likelihood_behind_an_empty_query_is_subtracted(engine: Engine) -> None:
    task = Rank("Text: {query} {candidate}", "likelihood", "total", unconditional=True)
    (found,) = task.scores(engine, [("fox", ("dog", "good film"))])
    right = [total(engine, "Text: fox", tail)[0] - total(engine, "Text:", tail)[0] for tail in (" dog", " good film")]
    assert found == pytest.approx(right)


def test_a_long_query_loses_its_beginning_and_a_candidate_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    real = rank_module.continuations
    monkeypatch.setattr(rank_module, "continuations", lambda *given: asked.append(given[1:]) or real(*given))
    task, query, candidates = Rank(by="likelihood", per="total"), "x " * 200 + "fox", ("dog", "bad film")
    (scores,) = task.scores(engine, [(query, candidates)])
    assert engine.tokenizer is not None
    whole, tails = task._parts(query, candidates, engine.tokenizer)
    ((prompts, groups),) = asked
    assert list(prompts[0]) == whole[-(96 - max(map(len, tails))) :]
    assert list(groups[0]) == tails
    assert all(math.isfinite(one) for one in scores)
    with pytest.raises(UserError, match="a candidate has"):
        task.scores(engine, [("fox", ("dog fox " * 90, "bad"))])


def test_answers_hold_the_order_and_the_scores(engine: Engine) -> None:
    task, rows = Rank(by="likelihood"), [row("fox", ("dog", "bad film", "lazy"), 2)]
    (answer,) = task.answer(engine, rows)
    scores = answer.details["scores"]
    assert answer.details["ranking"] == sorted(range(3), key=lambda n: -scores[n])
    assert answer.text == rows[0].candidates[answer.details["ranking"][0]]
    found = task.score(rows, [answer])
    assert "accuracy" in found
    assert found["mrr"].value == 1 / (1 + answer.details["ranking"].index(2))


# the head


def test_a_row_holds_every_candidate_behind_the_query_the_right_one_first(tokenizer: Tokenizer) -> None:
    encoded = Rank().encode([row("ab", ("c", "dd", "e"), 1, ("xy",))], tokenizer, 16)
    (one,) = encoded.rows
    parts = np.split(one.ids, np.cumsum(one.labels)[:-1])
    assert [tokenizer.decode(part[:-1].tolist()) for part in parts] == ["xy\nab\ndd", "xy\nab\nc", "xy\nab\ne"]
    assert all(part[-1] == tokenizer.eot_id for part in parts)
    assert encoded.cut == 0


def test_what_is_too_long_loses_the_querys_beginning_then_the_candidates_end(tokenizer: Tokenizer) -> None:
    encoded = Rank().encode([row("abcdefghij", ("k", "l" * 30))], tokenizer, 12)
    first, second = np.split(encoded.rows[0].ids, np.cumsum(encoded.rows[0].labels)[:-1])
    assert tokenizer.decode(first[:-1].tolist()) == "bcdefghij\nk"
    assert tokenizer.decode(second[:-1].tolist()) == "ghij\n" + "l" * 6
    assert encoded.cut == 1


def test_a_head_learns_which_of_two_is_preferred(base: Path, tmp_path: Path) -> None:
    """Trained through the same rows, objective and engine as by the command line."""
    model, tokenizer = folder.load(base)
    assert tokenizer is not None
    task = Rank()
    words = ["dog", "fox", "film", "story"]
    rows = [
        row(f"{a} {b}", (a, b) if flip else (b, a), 0 if flip else 1)
        for n, a in enumerate(words)
        for b in words
        if a != b
        for flip in (n % 2 == 0,)
    ]
    network = GPT2(task.model_config(model.config), torch.Generator().manual_seed(1))
    network.load_state_dict(model.state_dict(), strict=False)
    batches = RowBatches(task.encode(rows, tokenizer, 64).rows, 6, seed=0)
    objective, optimizer = task.objective(), torch.optim.AdamW(network.parameters(), 2e-3)
    for step in range(40):
        loss, count = objective.loss(network, *map(torch.from_numpy, objective.prepare(batches.at(step), step, 0)))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    folder.save(tmp_path / "ranker", network, tokenizer, {"task": task.values()})
    kept = task_of(folder.lineage(tmp_path / "ranker"))
    with Engine.load(tmp_path / "ranker", "fp32", threads=1, max_batch=8) as engine:
        answers = kept.answer(engine, rows)
        assert rank(engine, "dog fox", ["fox", "dog"], task)[1] == answers[0].details["scores"][0]
    assert kept.score(rows, answers)["mrr"].value > 0.95


# what is asked


def test_a_text_alone_has_no_candidates() -> None:
    with pytest.raises(UserError, match="no query with candidates"):
        Rank().example("plain")
    with pytest.raises(UserError, match="two candidates"):
        question("q", ["x"])
    with pytest.raises(UserError, match="a query, or a history"):
        question(" ", ["x", "y"])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'token'"):
        Rank(per="tokens")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must hold"):
        Rank("{candidate} {query}")
    with pytest.raises(UserError, match="unknown way"):
        Rank(by="heads")
