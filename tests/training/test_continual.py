"""Replay, EWC, learning without forgetting: their mathematics; 0 is plain; slices and resuming change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2kit import runtime
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training import checkpoint, fast, loop, optim
from gpt2kit.training.checkpoint import State, WholeModel
from gpt2kit.training.continual import (
    Distilled,
    Earlier,
    Ewc,
    Group,
    Mixed,
    Replay,
    anchor,
    both,
    fisher,
    group,
    per_row,
)
from gpt2kit.training.objectives import Objective
from gpt2kit.training.pairwise import Preferences, candidates_row
from gpt2kit.training.rows import Classes, Completions, Row, RowBatches

FP32 = runtime.Precision("fp32", "aten", "for the test")
LABELS = ("a", "b", "c")


def texts(n: int, seed: int = 0, step: int = 7) -> list[Row]:
    """Walks with a fixed step, learnable in a few steps of training; of different lengths."""
    rng = np.random.default_rng(seed)
    return [Row((rng.integers(65) + step * np.arange(rng.integers(6, 15))) % 65, start=int(rng.integers(1, 4)))
            for _ in range(n)]  # fmt: skip


def labelled(n: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(0, 65, rng.integers(4, 12)), labels=(int(rng.integers(3)),)) for _ in range(n)]


def earlier(rows: Sequence[Row], number: int = 0) -> list[Earlier]:
    return [Earlier(row.ids, row.start, row.labels, row.width, number) for row in rows]


def trained(toy: Any, folder: Path, model: GPT2, objective: Objective, source: loop.Source, penalty: Any = None,
            validation: Any = None, state: State | None = None, **changes: Any) -> dict[str, torch.Tensor]:  # fmt: skip
    config = toy.settings(**{"optimizer": "adamw", "learning_rate": 1e-2, "batch": 8, **changes})
    run = loop.Run(folder, model, None, config, source, validation, FP32, {"name": "toy"}, objective=objective,
                   penalty=penalty)  # fmt: skip
    list(loop.fit(run, optim.build(model, config), State() if state is None else state))
    return toy.weights(model)  # type: ignore[no-any-return]


def gradients(
    toy: Any, model: GPT2, objective: Objective, rows: Any, **changes: Any
) -> tuple[float, list[torch.Tensor]]:
    """The mean loss, and the mean gradients, as the loop makes them."""
    config = toy.settings(**{"batch": len(rows), **changes})
    fast.accelerate(model, 3, config.dropout)
    model.train()
    made = loop.Gradients(model, objective, config, FP32, torch.device("cpu"))
    total, count = made(rows, 5)
    found = [p.grad.clone() / count for p in made.parameters if p.grad is not None]
    made.close()
    fast.plain(model)
    assert len(found) == len(made.parameters)
    return total / count, found


# Replay


def test_new_rows_come_as_without_replay_and_rows_of_before_are_the_share(toy: Any) -> None:
    new = RowBatches(texts(50), 8, 3)
    source = Replay(new, earlier(texts(30, 1)), 0.2)
    assert source.count == 2
    for step in range(40):
        batch = source.at(step)
        assert batch[:8] == new.at(step)
        assert [type(row) for row in batch[8:]] == [Earlier, Earlier]


def test_every_row_of_before_gets_its_turn_in_an_order_of_its_own() -> None:
    rows = earlier(texts(30, 1))
    source = Replay(RowBatches(texts(30, 1), 10, 3), rows, 0.5)
    seen = [row for step in range(3 * 32) for row in source.at(step)[10:]]
    assert {id(row) for row in seen} == {id(row) for row in rows}
    counts = [sum(row is other for other in seen) for row in rows]
    assert max(counts) - min(counts) <= 2
    first = source.at(0)
    order = [
        [next(n for n, row in enumerate(rows) if np.array_equal(row.ids, one.ids)) for one in part]
        for part in (first[:10], first[10:])
    ]
    assert order[0] != order[1]


def test_rows_of_one_earlier_task_stand_together() -> None:
    """Dropout goes by the row's place in the batch, and each task's rows pass through the model together."""
    source = Replay(RowBatches(texts(20), 4, 1), [*earlier(texts(9, 2)), *earlier(labelled(9), 1)], 0.6)
    groups = [[row.group for row in source.at(step)[4:] if isinstance(row, Earlier)] for step in range(8)]
    assert all(one == sorted(one) for one in groups)
    assert any(len(set(one)) == 2 for one in groups)


def test_a_batch_depends_on_the_step_alone() -> None:
    whole = [Replay(RowBatches(texts(20), 4, 1), earlier(texts(9, 2)), 0.4).at(step) for step in range(6)]
    late = Replay(RowBatches(texts(20), 4, 1), earlier(texts(9, 2)), 0.4).prefetch(3, 6)
    for one, other in zip(whole[3:], late, strict=True):
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_replay_keeps_what_was_learned(toy: Any, tmp_path: Path) -> None:
    before, after = texts(200, 1, step=7), texts(200, 2, step=11)
    model = toy.model()
    start = trained(toy, tmp_path / "a", model, Completions(), RowBatches(before, 8, 0), steps=60)
    held = texts(40, 3, step=7)
    losses = {}
    for name, source in (
        ("plain", RowBatches(after, 8, 0)), ("replay", Replay(RowBatches(after, 8, 0), earlier(before), 0.3)),
    ):  # fmt: skip
        model.load_state_dict(start)
        trained(toy, tmp_path / name, model, Mixed(Completions(), [Group(Completions())]), source, steps=60)
        losses[name] = mean(model, Completions(), held)
    assert losses["plain"] > 2 * losses["replay"]


@torch.no_grad()
def mean(model: GPT2, objective: Objective, rows: list[Row]) -> float:
    tensors = [torch.from_numpy(array) for array in objective.prepare(rows, 0, 0)]
    loss, count, _ = objective.judge(model, *tensors)
    return float(loss) / count


# Mixed losses


def test_a_mixed_batch_is_the_sum_of_its_parts(toy: Any) -> None:
    model = toy.model(labels=LABELS)
    new, old = labelled(5), texts(4)
    mixed = Mixed(Classes(), [Group(Completions(), worth=1, scale=0.25)])
    total, count = mixed.loss(model, *map(torch.from_numpy, mixed.prepare([*new, *earlier(old)], 0, 0)))
    one, n = Classes().loss(model, *map(torch.from_numpy, Classes().prepare(new, 0, 0)))
    two, _ = Completions().loss(model, *map(torch.from_numpy, Completions().prepare(old, 0, 0)))
    torch.testing.assert_close(total, one + 0.25 * two)
    assert count == n + 4 == 9


def test_a_page_of_text_weighs_as_much_as_a_label(toy: Any) -> None:
    config = toy.config(labels=LABELS)
    old = texts(30)
    made = group(Classes(), labelled(5), Completions(), old, config)
    assert made.worth == 1
    assert made.scale == pytest.approx(1 / np.mean([len(row) - row.start for row in old]))
    other = group(Completions(), old, Classes(), labelled(5), config)
    assert other.worth == round(1 / made.scale)
    assert other.scale == other.worth
    assert group(Completions(), old, Completions(), old, config).worth is None
    assert per_row(Classes(), [], dataclasses.replace(config, multi_label=True)) == 3


@pytest.mark.parametrize("order", ["classes", "completions"])
def test_slices_and_workers_change_nothing_in_a_mixed_batch(toy: Any, order: str) -> None:
    """Slices of rows of one kind only, too, and with dropout."""
    if order == "classes":
        mixed = Mixed(Classes(), [Group(Completions(), 1, 0.1), Group(Completions(), 1, 0.2)])
        rows = [*labelled(4), *earlier(texts(3, 1)), *earlier(texts(2, 2), 1)]
    else:
        mixed = Mixed(Completions(), [Group(Classes(), 6, 6.0)])
        rows = [*texts(5), *earlier(labelled(4))]
    whole = gradients(toy, toy.model(labels=LABELS), mixed, rows, dropout=0.3)
    for changes in ({"micro_batch": 1}, {"micro_batch": 2}, {"workers": 3}, {"workers": 2, "micro_batch": 2}):
        loss, found = gradients(toy, toy.model(labels=LABELS), mixed, rows, dropout=0.3, **changes)
        assert loss == pytest.approx(whole[0], rel=1e-5)
        for one, other in zip(found, whole[1], strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)  # fp32, another order of summation


def test_validation_is_of_the_new_task_alone(toy: Any) -> None:
    model, rows = toy.model(labels=LABELS), labelled(6)
    mixed = Mixed(Classes(0.1), [Group(Completions(), 1, 0.5)])
    assert mean(model, mixed, rows) == pytest.approx(mean(model, Classes(), rows))


# Elastic weight consolidation


def test_the_fisher_information_is_the_mean_square_of_each_rows_gradient(toy: Any) -> None:
    model, rows = toy.model(), texts(5)
    found = fisher(model, Completions(), rows)
    name, parameter = "h.1.mlp.c_fc.weight", model.h[1].mlp.c_fc.weight
    wanted, count = torch.zeros_like(parameter), 0
    for row in rows:
        ids = torch.from_numpy(row.ids)
        losses = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")[row.start - 1 :]
        wanted += torch.autograd.grad(losses.sum(), parameter)[0] ** 2
        count += len(losses)
    torch.testing.assert_close(found[name], wanted / count, atol=1e-7, rtol=1e-3)
    assert all(bool((value >= 0).all()) for value in found.values())


def test_fisher_rows_are_spread_over_the_data(toy: Any) -> None:
    rows = [*texts(20, 1), *texts(20, 2, step=11)]
    some = fisher(toy.model(), Completions(), rows, most=10)
    first = fisher(toy.model(), Completions(), rows[::4])
    assert all(torch.equal(some[name], first[name]) for name in some)


def test_the_penalty_is_half_the_strength_times_the_weighted_squares(toy: Any) -> None:
    model = toy.model()
    start = anchor(model)
    information = fisher(model, Completions(), texts(5))
    penalty = Ewc(model, start, information, 30.0)
    first = penalty()
    assert first is not None
    assert first.item() == 0.0
    with torch.no_grad():
        model.wte.weight[3, 4] += 0.5
    value = penalty()
    assert value is not None
    assert value.item() == pytest.approx(0.5 * 30 * float(information["wte.weight"][3, 4]) * 0.25, rel=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    assert model.wte.weight.grad is not None
    assert float(model.wte.weight.grad[3, 4]) == pytest.approx(30 * float(information["wte.weight"][3, 4]) * 0.5)


def test_strength_zero_is_plain_bit_by_bit(toy: Any, tmp_path: Path) -> None:
    found = []
    for name in ("plain", "zero"):
        model = toy.model()
        penalty = None
        if name == "zero":
            penalty = Ewc(model, anchor(model), fisher(model, Completions(), texts(5)), 0.0)
            assert penalty() is None
        found.append(
            trained(toy, tmp_path / name, model, Completions(), RowBatches(texts(40), 8, 0), penalty, workers=2)
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_ewc_forgets_less_and_an_infinite_strength_moves_nothing_that_mattered(toy: Any, tmp_path: Path) -> None:
    before, after = texts(200, 1, step=7), texts(200, 2, step=11)
    model = toy.model()
    start = trained(toy, tmp_path / "a", model, Completions(), RowBatches(before, 8, 0), steps=60)
    held, new = texts(40, 3, step=7), texts(40, 4, step=11)
    losses = {}
    for strength in (0.0, 300.0, 1e6):
        model.load_state_dict(start)
        penalty = Ewc(model, anchor(model), fisher(model, Completions(), before), strength)
        trained(toy, tmp_path / str(strength), model, Completions(), RowBatches(after, 8, 0), penalty, steps=40)
        losses[strength] = mean(model, Completions(), held), mean(model, Completions(), new)
    assert losses[0.0][0] > losses[300.0][0] > losses[1e6][0]
    assert losses[0.0][1] < losses[1e6][1]


def test_a_run_under_a_penalty_resumes_to_the_same_bytes(toy: Any, tmp_path: Path) -> None:
    """The penalty is made anew from the start, as a resumed process does."""
    source = Replay(RowBatches(texts(40), 8, 0), earlier(texts(20, 1)), 0.3)
    mixed = Mixed(Completions(), [Group(Completions())])

    def start() -> tuple[GPT2, Ewc]:
        model = toy.model()
        return model, Ewc(model, anchor(model), fisher(model, Completions(), texts(20, 1)), 50.0)

    model, penalty = start()
    straight = trained(toy, tmp_path / "straight", model, mixed, source, penalty, steps=8, dropout=0.2)
    model, penalty = start()
    trained(toy, tmp_path / "cut", model, mixed, source, penalty, steps=8, checkpoint_every=4, dropout=0.2, keep=9)
    model, penalty = start()
    config = toy.settings(optimizer="adamw", learning_rate=1e-2, batch=8, steps=8, dropout=0.2)
    optimizers = optim.build(model, config)
    state = checkpoint.restore(checkpoint.folder_of(tmp_path / "cut", 4), WholeModel(model), optimizers)
    run = loop.Run(tmp_path / "again", model, None, config, source, None, FP32, {"name": "toy"}, objective=mixed,
                   penalty=penalty)  # fmt: skip
    list(loop.fit(run, optimizers, state))
    resumed = toy.weights(model)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_two_penalties_are_added(toy: Any) -> None:
    one, two, none = lambda: torch.tensor(1.5), lambda: torch.tensor(2.0), lambda: None
    assert float(both(one, two)()) == 3.5
    assert both(None, one) is one
    assert both(one, None) is one
    assert float(both(one, none)()) == 1.5
    assert both(none, none)() is None


# Learning without forgetting


def test_at_the_start_the_divergence_is_zero(toy: Any) -> None:
    model, rows = toy.model(), texts(6)
    loss, count = summed(Distilled(Completions(), model, toy.model(), 1.0, 8.0), model, rows)
    plain, n = summed(Completions(), model, rows)
    torch.testing.assert_close(loss, plain)
    assert count == n


def summed(objective: Objective, model: GPT2, rows: list[Row]) -> tuple[torch.Tensor, int]:
    return objective.loss(model, *map(torch.from_numpy, map(np.ascontiguousarray, objective.prepare(rows, 0, 0))))


@pytest.mark.parametrize("rows", [1, 10_000])
def test_the_divergence_is_averaged_over_each_rows_tokens(toy: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2kit.training.continual.LOGITS_BYTES", 8 * 65 * rows)  # one row of logits at a time, or all
    model, teacher, some = toy.model(1), toy.model(2), texts(4)
    loss, _ = summed(Distilled(Completions(), model, teacher, 0.5, 8.0), model, some)
    wanted = summed(Completions(), model, some)[0]
    for row in some:
        ids = torch.from_numpy(row.ids)[None, :-1]
        before, now = teacher(ids)[0] / 2, model(ids)[0] / 2
        kl = (before.softmax(-1) * (before.log_softmax(-1) - now.log_softmax(-1))).sum(-1)
        wanted = wanted + 0.5 * 8.0 * 4 * kl.mean()
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["completions", "classes"])
def test_padding_to_a_width_changes_nothing_in_distillation(toy: Any, kind: str) -> None:
    rows, inner, labels = (texts(5), Completions(), ()) if kind == "completions" else (labelled(5), Classes(), LABELS)
    model, teacher = toy.model(labels=labels), toy.model(2)
    both_ways = [
        summed(
            Distilled(inner, model, teacher, 1.0, 3.0), model, [dataclasses.replace(row, width=width) for row in rows]
        )
        for width in (0, 16)
    ]
    torch.testing.assert_close(both_ways[0][0], both_ways[1][0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["completions", "classes", "candidates"])
def test_slices_change_nothing_in_distillation(toy: Any, kind: str) -> None:
    rows, inner, labels = {
        "completions": (texts(9), Completions(), ()),
        "classes": (labelled(9), Classes(), LABELS),
        "candidates": (
            [candidates_row([a.ids, b.ids]) for a, b in zip(labelled(9), labelled(9, 1), strict=True)],
            Preferences(), ("score",),
        ),
    }[kind]  # fmt: skip
    dropout = 0.0 if kind == "candidates" else 0.2  # a candidate's place in the batch is not its row's

    def made(**changes: Any) -> tuple[float, list[torch.Tensor]]:
        model = toy.model(labels=labels)
        return gradients(toy, model, Distilled(inner, model, toy.model(2), 1.0, 3.0), rows, dropout=dropout, **changes)

    whole = made()
    for changes in ({"micro_batch": 2}, {"workers": 3}):
        loss, found = made(**changes)
        assert loss == pytest.approx(whole[0], rel=1e-5)
        for one, other in zip(found, whole[1], strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)


@pytest.mark.slow
def test_learning_without_forgetting_forgets_less(toy: Any, tmp_path: Path) -> None:
    before, after = texts(200, 1, step=7), texts(200, 2, step=11)
    model = toy.model()
    start = trained(toy, tmp_path / "a", model, Completions(), RowBatches(before, 8, 0), steps=60)
    held = texts(40, 3, step=7)
    losses = {}
    for weight in (0.0, 2.0):
        model, teacher = toy.model(), toy.model()
        model.load_state_dict(start)
        teacher.load_state_dict(start)
        objective = Distilled(Completions(), model, teacher, weight, 8.0)
        trained(toy, tmp_path / str(weight), model, objective, RowBatches(after, 8, 0), steps=40)
        losses[weight] = mean(model, Completions(), held)
        assert all(torch.equal(teacher.state_dict()[name], start[name]) for name in start)
    assert losses[0.0] > losses[2.0]
