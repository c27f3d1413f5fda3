"""Rows of any length: their order, their padding, and what of them the loss counts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.training import loop, losses, optim
from gpt2kit.training.rows import POOL, Classes, Completions, Row, RowBatches, on_grid, pad

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import GPT2ForSequenceClassification


def rows(n: int, seed: int = 0, classes: int = 3) -> list[Row]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 17, n)
    return [
        Row(rng.integers(0, 65, length), int(rng.integers(1, length)), (int(rng.integers(classes)),))
        for length in lengths
    ]


# The order


def test_an_epoch_holds_every_row_once() -> None:
    given = rows(POOL * 4)
    batches = RowBatches(given, 4, 7)
    for epoch in range(2):
        seen = [id(row) for step in range(POOL) for row in batches.at(epoch * POOL + step)]
        assert sorted(seen) == sorted(map(id, given))


def test_the_order_is_a_function_of_seed_and_step() -> None:
    given = rows(101)
    one, other = RowBatches(given, 8, 1), RowBatches(given, 8, 1)
    for step in (70, 3, 40, 3):
        assert [id(r) for r in one.at(step)] == [id(r) for r in other.at(step)]
    ahead = RowBatches(given, 8, 1).prefetch(40, 42)
    assert [[id(r) for r in batch] for batch in ahead] == [[id(r) for r in one.at(s)] for s in (40, 41)]
    assert [id(r) for r in RowBatches(given, 8, 2).at(3)] != [id(r) for r in one.at(3)]
    assert [id(r) for r in one.at(3)] != [id(r) for r in one.at(4)]


def test_rows_of_like_length_share_a_batch_and_lengths_do_not_ascend_with_the_steps() -> None:
    given = rows(POOL * 8, seed=3)
    batches = [[len(r) for r in RowBatches(given, 8, 0).at(step)] for step in range(POOL)]
    padded = sum(max(b) * len(b) for b in batches)
    assert padded < 1.1 * sum(map(len, given))
    middles = [np.mean(b) for b in batches]
    assert abs(np.corrcoef(middles, np.arange(POOL))[0, 1]) < 0.5


def test_the_grid_has_few_widths_never_beyond_the_longest_row() -> None:
    """A model with exactly the longest row's positions can take every batch."""
    rng = np.random.default_rng(0)
    given = [Row(rng.integers(0, 65, length)) for length in range(1, 101)]
    widths = [row.width for row in on_grid(given)]
    assert len(set(widths)) == 25  # 4, 8, ... 100
    assert all(len(row) <= width < len(row) + 4 for row, width in zip(given, widths, strict=True))
    assert max(row.width for row in on_grid(given[:99])) == 99
    assert pad(on_grid(given)[:6])[0].shape == (6, 8)
    assert [row.width for row in on_grid(given[:30])] == list(range(1, 31))


def test_padding_to_the_grid_changes_neither_loss_nor_gradient(toy: Any) -> None:
    model = toy.model(n_positions=64, labels=("a", "b", "c"))
    rng = np.random.default_rng(0)
    given = [Row(rng.integers(0, 65, n), n // 2, (n % 3,)) for n in (33, 37, 64, 5)]
    for objective in (Completions(), Classes()):
        results = []
        for some in (given[:2], on_grid(given)[:2]):
            arrays = objective.prepare(some, 0, 0)
            loss, count = objective.loss(model, *map(torch.from_numpy, arrays))
            results.append((arrays[0].shape[1], count, loss, torch.autograd.grad(loss, model.wte.weight)[0]))
        assert results[1][0] == results[0][0] + 1
        assert results[0][1] == results[1][1]
        torch.testing.assert_close(results[0][2:], results[1][2:], rtol=1e-5, atol=1e-5)


def test_no_rows_are_refused() -> None:
    with pytest.raises(UserError, match="no row"):
        RowBatches([], 4, 0)


# Completions


@torch.no_grad()
def test_the_loss_falls_on_the_completion_and_its_end_alone(toy: Any) -> None:
    model = toy.model()
    given = [Row(np.array([5, 6, 7, 8, 9]), 3), Row(np.array([1, 2]), 1)]
    inputs, targets = Completions().prepare(given, 0, 0)
    assert inputs.tolist() == [[5, 6, 7, 8], [1, 2, 0, 0]]
    assert targets.tolist() == [[-100, -100, 8, 9], [2, -100, -100, -100]]
    loss, count = Completions().loss(model, torch.from_numpy(inputs), torch.from_numpy(targets))
    first = torch.log_softmax(model(torch.tensor([[5, 6, 7, 8]])), -1)[0]
    second = torch.log_softmax(model(torch.tensor([[1]])), -1)[0]
    assert count == 3
    assert float(loss) == pytest.approx(-float(first[2, 8] + first[3, 9] + second[0, 2]), rel=1e-5)


@torch.no_grad()
def test_a_whole_row_that_counts_is_plain_next_token_prediction(toy: Any) -> None:
    model, ids = toy.model(), toy.ids(3, 16)
    given = [Row(line) for line in ids.numpy()]
    arrays = [torch.from_numpy(a) for a in Completions().prepare(given, 0, 0)]
    expected, n = losses.next_token(model, ids)
    loss, count = Completions().loss(model, *arrays)
    assert count == n
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("kind", [Completions, Classes])
def test_sixteen_times_one_is_one_times_sixteen_with_ragged_rows(toy: Any, kind: Any) -> None:
    results = []
    for micro in (0, 1, 5):
        model = toy.model(labels=("a", "b", "c"))
        config = toy.settings(batch=16, micro_batch=micro)
        gradients = loop.Gradients(model, kind(), config, toy.precision, torch.device("cpu"))
        total, count = gradients(rows(16), 0)
        results.append((total, count, [p.grad for p in model.parameters()]))
        gradients.close()
    for total, count, grads in results[1:]:
        assert count == results[0][1]
        assert total == pytest.approx(results[0][0], rel=1e-5)
        for one, other in zip(grads, results[0][2], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # fp32, other summation order


@torch.no_grad()
def test_smoothing_is_for_training_only(toy: Any) -> None:
    model = toy.model(labels=("a", "b"))
    for kind in (Completions, Classes):
        arrays = [torch.from_numpy(a) for a in kind().prepare(rows(4, classes=2), 0, 0)]
        smooth = kind(0.3)
        assert float(smooth.loss(model, *arrays)[0]) != float(kind().loss(model, *arrays)[0])
        assert float(smooth.judge(model, *arrays).loss) == float(kind().loss(model, *arrays)[0])


# Classes


@torch.no_grad()
@pytest.mark.parametrize("several", [False, True])
def test_right_decisions_are_counted(toy: Any, several: bool) -> None:
    model = toy.model(labels=("a", "b", "c"), multi_label=several)
    drawn = [Row(row.ids, labels=(0, 2) if several else row.labels) for row in rows(12, classes=3)]
    judged = Classes(0.3).judge(model, *(torch.from_numpy(a) for a in Classes().prepare(drawn, 0, 0)))
    right = 0
    for row in drawn:
        scores = model.classify(torch.from_numpy(row.ids)[None], torch.tensor([len(row)]))[0].tolist()
        if several:
            right += sum((scores[k] > 0) == (k in row.labels) for k in range(3))
        else:
            right += scores.index(max(scores)) == row.labels[0]
    assert (judged.right, judged.targets) == (right, 36 if several else 12)
    assert 0 < right < judged.targets
    assert (
        Completions().judge(model, *(torch.from_numpy(a) for a in Completions().prepare(rows(4), 0, 0))).right is None
    )


@pytest.mark.parametrize("multi", [False, True])
def test_a_classifiers_loss_and_gradients_are_those_of_transformers(toy: Any, tmp_path: Path, multi: bool) -> None:
    model = toy.model(labels=("a", "b", "c"), multi_label=multi, pad_token_id=0, eos_token_id=0)
    folder.save(tmp_path / "m", model)
    theirs = GPT2ForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    given = [Row(1 + r.ids % 64, 1, (r.labels[0], (r.labels[0] + 1) % 3) if multi else r.labels) for r in rows(7)]
    arrays = [torch.from_numpy(a) for a in Classes().prepare(given, 0, 0)]
    total, count = Classes().loss(model, *arrays)
    (total / count).backward()
    ids, lengths, labels = arrays
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    wanted = labels[:, 0] if not multi else F.one_hot(labels, 3).sum(1).float()
    out = theirs(ids, attention_mask=mask.long(), labels=wanted)
    out.loss.backward()
    torch.testing.assert_close(model.classify(ids, lengths), out.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(total / count, out.loss, rtol=1e-5, atol=0)
    their = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = their[name].t() if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else their[name]
        torch.testing.assert_close(parameter.grad, gradient, atol=2e-5, rtol=1e-4)


def test_a_classifier_survives_saving_byte_for_byte_and_says_its_labels(toy: Any, tmp_path: Path) -> None:
    model = toy.model(labels=("负", "正"), eos_token_id=3)
    folder.save(tmp_path / "a", model)
    again, _ = folder.load(tmp_path / "a")
    assert again.config.labels == ("负", "正")
    folder.save(tmp_path / "b", again)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    theirs = GPT2ForSequenceClassification.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "c")
    third, _ = folder.load(tmp_path / "c")
    assert third.config.labels == ("负", "正")
    assert torch.equal(third.score.weight, model.score.weight)


@torch.no_grad()
def test_padding_is_out_of_sight(toy: Any) -> None:
    model = toy.model(labels=("a", "b"))
    given = rows(5)
    ids, lengths = map(torch.from_numpy, pad(given))
    together = model.classify(ids, lengths)
    for row, scores in zip(given, together, strict=True):
        alone = model.classify(torch.from_numpy(row.ids)[None], torch.tensor([len(row)]))[0]
        torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)


# The loop


def test_the_loop_learns_rows_and_resumes_to_the_same_weights(toy: Any, tmp_path: Path) -> None:
    """The class is whether the first token is below 30: learnt in 60 steps."""
    given = [Row(r.ids, 1, (int(r.ids[0] < 30),)) for r in rows(64, seed=5)]

    def run(name: str, stop: Any = lambda: False) -> loop.Run:
        made = toy.run(tmp_path / name, toy.model(labels=("a", "b")), steps=60, batch=16, evaluate_every=20, stop=stop)
        made.batches, made.validation, made.objective = RowBatches(given, 16, 3), given, Classes()
        return made

    straight = run("straight")
    events = toy.fit(straight)
    losses_ = [e.loss for e in events if isinstance(e, loop.Evaluated)]
    assert losses_[-1] < 0.1 < losses_[0]
    left = iter(range(30))
    cut = run("cut", lambda: next(left, None) is None)
    toy.fit(cut)
    again = run("cut")
    optimizers = optim.build(again.model, again.config)
    path, _ = loop.checkpoint.newest(tmp_path / "cut")
    state = loop.checkpoint.restore(path, loop.WholeModel(again.model), optimizers)
    assert 0 < state.step < 60
    list(loop.fit(again, optimizers, state))
    for one, other in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
