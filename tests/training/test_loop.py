"""THE loop: slicing the batch changes nothing, resuming changes nothing, evaluating changes nothing."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training import checkpoint, fast, loop, optim
from gpt2kit.training.checkpoint import State, WholeModel
from gpt2kit.training.objectives import MASK, TextObjective

# fp32 on one thread, seed 3, Muon, 16 x 16: change them only together with the reason why the arithmetic changed
GOLDEN = (
    # training, steps 1 to 10
    4.173149, 4.16142, 4.097828, 4.000475, 3.933364,
    3.883996, 3.864547, 3.849945, 3.785467, 3.753706,
    # validation, steps 5 and 10
    3.860427, 3.723768,
)  # fmt: skip
DROPOUT = {"dropout": 0.2}
SLICED: list[dict[str, Any]] = [{"micro_batch": 1}, {"micro_batch": 4}, {"micro_batch": 5}, {"workers": 2},
                                {"workers": 3, "micro_batch": 2}, {"workers": 16}]  # fmt: skip


def sha256(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def events(found: list[loop.Event], kind: type) -> list[Any]:
    return [event for event in found if isinstance(event, kind)]


def masking_tokenizer() -> Any:
    letters = "".join(chr(ord("A") + i) for i in range(62))
    return train_tokenizer([letters], "char").with_special([MASK])


# One batch, however it is sliced


def gradient_of(toy: Any, **changes: Any) -> tuple[float, int, list[torch.Tensor]]:
    tokenizer = masking_tokenizer() if changes.get("objective") == "masked" else None
    model = toy.model()
    config = toy.settings(batch=16, **changes)
    gradients = loop.Gradients(
        model, TextObjective(config, model.config.vocab_size, tokenizer), config, toy.precision, torch.device("cpu")
    )
    fast.accelerate(model, config.seed, config.dropout)
    model.train()
    try:
        total, count = gradients(toy.ids(16, 17).numpy(), 3)
    finally:
        gradients.close()
    return total, count, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("changes", SLICED)
@pytest.mark.parametrize("setting", [{}, DROPOUT, {"objective": "masked", "dropout": 0.1}, {"label_smoothing": 0.1}])
def test_a_sliced_batch_has_the_whole_batchs_gradient(
    toy: Any, setting: dict[str, Any], changes: dict[str, Any]
) -> None:
    total, count, whole = gradient_of(toy, **setting)
    sliced_total, sliced_count, sliced = gradient_of(toy, **setting, **changes)
    assert sliced_count == count  # under "masked" the rows count differently: ragged
    assert (count == 256) == ("objective" not in setting)
    assert sliced_total == pytest.approx(total, rel=1e-6)
    assert len(whole) == len(sliced) == 28
    for a, b in zip(whole, sliced, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-4)  # sums over 256 tokens in another order


def test_dropout_is_at_work_in_the_test_above(toy: Any) -> None:
    assert gradient_of(toy)[0] != pytest.approx(gradient_of(toy, **DROPOUT)[0], rel=1e-3)


@pytest.mark.parametrize("changes", SLICED)
def test_three_steps_end_in_the_same_weights(toy: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    """AdamW amplifies rounding where a gradient is near zero, so SGD shows the sums themselves."""
    settings = {"steps": 3, "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.5, **DROPOUT}
    runs = [toy.run(tmp_path / str(i), toy.model(), **settings, **more) for i, more in enumerate(({}, changes))]
    found = [toy.fit(run) for run in runs]
    for a, b in zip(*(events(f, loop.Stepped) for f in found), strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.norm == pytest.approx(a.norm, rel=1e-4)
    start = toy.weights(toy.model())
    for (name, a), b in zip(runs[0].model.named_parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(a.detach(), start[name])


def test_the_step_divides_by_tokens_not_by_parts(toy: Any, tmp_path: Path) -> None:
    """The reported loss and norm are means over the batch's tokens: those of a plain forward and backward pass."""
    run = toy.run(tmp_path, toy.model(), steps=1, workers=2, micro_batch=3)
    batch = torch.from_numpy(run.batches.at(0))
    model = toy.model()
    loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    (step,) = events(toy.fit(run), loop.Stepped)
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert step.norm == pytest.approx(float(norm), rel=1e-4)
    assert step.rate == pytest.approx(optim.rate(run.config, 0, 1))


# Hooks


def pull(model: Any) -> loop.Penalty:
    """0.3 |w - 1|^2 of every weight: nothing that the rows know of."""
    return lambda: 0.3 * torch.stack([(parameter - 1).square().sum() for parameter in model.parameters()]).sum()


def penalised_gradient(toy: Any, penalised: bool = True, **changes: Any) -> tuple[float, int, list[torch.Tensor]]:
    """Of rows whose counts differ: slices of like size have unlike shares in the count."""
    model, config = toy.model(), toy.settings(batch=16, objective="masked", dropout=0.1, **changes)
    objective = TextObjective(config, model.config.vocab_size, masking_tokenizer())
    penalty = pull(model) if penalised else None
    gradients = loop.Gradients(model, objective, config, toy.precision, torch.device("cpu"), penalty)
    fast.accelerate(model, config.seed, config.dropout)
    model.train()
    try:
        total, count = gradients(toy.ids(16, 17).numpy(), 3)
    finally:
        gradients.close()
    return total, count, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("changes", SLICED)
def test_a_sliced_batch_has_the_same_penalty(toy: Any, changes: dict[str, Any]) -> None:
    total, count, whole = penalised_gradient(toy)
    sliced_total, sliced_count, sliced = penalised_gradient(toy, **changes)
    assert (sliced_count, sliced_total) == (count, pytest.approx(total, rel=1e-6))
    for a, b in zip(whole, sliced, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-3)  # |gradient| is about 0.6 x 50


def test_the_penalty_is_in_nats_a_token_and_outside_the_reported_loss(toy: Any) -> None:
    total, count, with_it = penalised_gradient(toy)
    plain_total, _, without = penalised_gradient(toy, penalised=False)
    assert total == plain_total
    for weight, a, b in zip(toy.model().parameters(), with_it, without, strict=True):
        torch.testing.assert_close((a - b) / count, 0.6 * (weight.detach() - 1), rtol=1e-4, atol=1e-4)


def test_a_penalty_of_none_and_one_of_zero_are_plain(toy: Any, tmp_path: Path) -> None:
    plain = toy.run(tmp_path / "plain", steps=3)
    toy.fit(plain)
    for name, penalty in (("none", lambda: None), ("zero", lambda: torch.zeros(()))):
        run = toy.run(tmp_path / name, steps=3)
        run.penalty = penalty
        toy.fit(run)
        assert all(map(torch.equal, run.model.state_dict().values(), plain.model.state_dict().values())), name


def test_a_penalty_moves_the_weights_and_leaves_evaluations_alone(toy: Any, tmp_path: Path) -> None:
    plain, pulled = (toy.run(tmp_path / name, steps=20, optimizer="adamw") for name in ("plain", "pulled"))
    pulled.penalty = lambda: 10 * pulled.model.ln_f.bias.sub(1).square().mean()
    toy.fit(plain)
    found = toy.fit(pulled)
    away, plain_away = (float((run.model.ln_f.bias.detach() - 1).abs().mean()) for run in (pulled, plain))
    assert away < plain_away - 0.02
    with torch.no_grad():
        windows = torch.from_numpy(pulled.validation)
        logits = pulled.model(windows[:, :-1])
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert events(found, loop.Evaluated)[-1].loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_after_step_sees_each_step_and_its_gradients(toy: Any, tmp_path: Path, workers: int) -> None:
    run = toy.run(tmp_path, steps=4, workers=workers)
    seen: list[tuple[int, int, bool]] = []
    before = [run.model.ln_f.weight.detach().clone()]

    def after_step(step: int, total: int) -> None:
        grad = run.model.ln_f.weight.grad
        changed = not torch.equal(run.model.ln_f.weight, before[0])
        before[0] = run.model.ln_f.weight.detach().clone()
        seen.append((step, total, changed and grad is not None and bool(grad.abs().sum() > 0)))

    run.after_step = after_step
    saved = [event.step for event in events(toy.fit(run), loop.Saved)]
    assert seen == [(1, 4, True), (2, 4, True), (3, 4, True), (4, 4, True)]
    assert saved == [4]


def test_what_after_step_changes_is_in_the_checkpoint(toy: Any, tmp_path: Path) -> None:
    run = toy.run(tmp_path, steps=2)
    run.after_step = lambda step, total: run.model.ln_f.bias.data.fill_(step)
    toy.fit(run)
    again = toy.model(seed=5)
    checkpoint.restore(checkpoint.newest(tmp_path)[0], WholeModel(again), optim.build(again, run.config))
    assert bool((again.ln_f.bias == 2).all())


# The golden run, and resume


def test_golden_ten_steps(toy: Any, tmp_path: Path) -> None:
    """Listed losses; 1e-4 leaves room for other CPUs' order of summation, which ten steps of Muon amplify."""
    found = toy.fit(toy.run(tmp_path))
    seen = [event.loss for event in events(found, loop.Stepped)]
    seen += [event.loss for event in events(found, loop.Evaluated)]
    assert seen == pytest.approx(list(GOLDEN), rel=1e-4)
    assert seen[0] == pytest.approx(math.log(65), abs=0.05)


def resumed(toy: Any, folder: Path, at: int, **changes: Any) -> Path:
    """Stop a run after `at` steps and go on in a fresh model, as a new process would; returns its last checkpoint."""
    done = 0

    def stop() -> bool:
        return done >= at

    run = toy.run(folder, stop=stop, **changes)
    for event in loop.fit(run, optim.build(run.model, run.config), State()):
        done += isinstance(event, loop.Stepped)
    torch.manual_seed(999)  # whatever the new process did before
    again = toy.run(folder, toy.model(seed=77), **changes)
    optimizers = optim.build(again.model, again.config)
    path, notes = checkpoint.newest(folder)
    assert notes == []
    state = checkpoint.restore(path, WholeModel(again.model), optimizers)
    assert state.step == at
    assert list(loop.fit(again, optimizers, state))[-1] == loop.Stopped(again.config.steps, "finished")
    return checkpoint.newest(folder)[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw", "dropout": 0.2}, {"optimizer": "sgd", "learning_rate": 0.05},
     {"optimizer": "rmsprop", "learning_rate": 1e-3}, {"optimizer": "adam", "schedule": "cosine"},
     {"attention_dropout": 0.2, "dropout": 0.1}, {"workers": 2, "micro_batch": 3, "dropout": 0.1},
     {"schedule": "plateau", "evaluate_every": 1, "matrix_learning_rate": 0.5, "learning_rate": 0.2, "clip": 0.0}],
)  # fmt: skip
def test_resume_at_five_equals_ten_straight(toy: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = toy.run(tmp_path / "straight", **changes)
    toy.fit(run)
    straight = checkpoint.newest(tmp_path / "straight")[0]
    torch.manual_seed(0)
    path = resumed(toy, tmp_path / "resumed", 5, **changes)
    assert sha256(path) == sha256(straight)
    assert (path / checkpoint.TENSORS).read_bytes() == (straight / checkpoint.TENSORS).read_bytes()
    a, b = (commit.read_json(p / checkpoint.STATE) for p in (path, straight))
    assert {k: v for k, v in a.items() if k not in ("seconds", "losses")} == {
        k: v for k, v in b.items() if k not in ("seconds", "losses")
    }


def test_attention_dropout_with_workers_resumes_exactly(toy: Any, tmp_path: Path) -> None:
    """torch's own generator draws these masks: the threads' order must not decide who draws first."""
    changes = {"attention_dropout": 0.3, "workers": 2}
    toy.fit(toy.run(tmp_path / "straight", **changes))
    torch.manual_seed(0)
    path = resumed(toy, tmp_path / "resumed", 5, **changes)
    assert sha256(path) == sha256(checkpoint.newest(tmp_path / "straight")[0])


@pytest.mark.parametrize("seed", [3, 4])
def test_the_seed_decides_the_run(toy: Any, tmp_path: Path, seed: int) -> None:
    runs = [toy.run(tmp_path / str(i), seed=s, steps=3, dropout=0.1) for i, s in enumerate((3, seed))]
    found = [events(toy.fit(run), loop.Stepped) for run in runs]
    assert ([e.loss for e in found[0]] == [e.loss for e in found[1]]) == (seed == 3)


# Events, evaluation, stopping


def test_events_come_in_order(toy: Any, tmp_path: Path) -> None:
    found = toy.fit(toy.run(tmp_path, steps=6, evaluate_every=2, checkpoint_every=3))
    names = [(type(event).__name__, event.step) for event in found]
    assert names == [
        ("Stepped", 1), ("Stepped", 2), ("Evaluated", 2), ("Saved", 2), ("Stepped", 3), ("Evaluated", 3), ("Saved", 3),
        ("Stepped", 4), ("Evaluated", 4), ("Saved", 4), ("Stepped", 5), ("Stepped", 6), ("Evaluated", 6), ("Saved", 6),
        ("Stopped", 6),
    ]  # fmt: skip
    assert found[-1] == loop.Stopped(6, "finished")
    assert [event.total for event in events(found, loop.Stepped)] == [6] * 6
    assert all(event.folder.name == f"step-{event.step:06d}" for event in events(found, loop.Saved))
    assert events(found, loop.Stepped)[-1].seconds_left == 0
    assert all(event.tokens_per_second > 0 for event in events(found, loop.Stepped))


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2, "attention_dropout": 0.2}])
def test_evaluation_does_not_change_the_run(toy: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    hashes = set()
    for every, validation in ((1, True), (5, True), (1, False)):
        folder = tmp_path / f"{every}-{validation}"
        torch.manual_seed(0)
        toy.fit(toy.run(folder, validation=validation, evaluate_every=every, **changes))
        hashes.add(sha256(checkpoint.newest(folder)[0]))
    assert len(hashes) == 1


def test_evaluation_is_the_models_own_loss_without_dropout_and_smoothing(toy: Any, tmp_path: Path) -> None:
    run = toy.run(tmp_path, steps=1, dropout=0.5, label_smoothing=0.3, workers=2)
    (evaluated,) = events(toy.fit(run), loop.Evaluated)
    windows = torch.from_numpy(run.validation)
    with torch.no_grad():
        logits = run.model.eval()(windows[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert evaluated.loss == pytest.approx(float(expected), rel=1e-5)
    assert evaluated.best


def test_the_model_is_plain_again_after_the_run(toy: Any, tmp_path: Path) -> None:
    run = toy.run(tmp_path, steps=1, dropout=0.1)
    kinds = [type(m) for m in run.model.modules()]
    toy.fit(run)
    assert [type(m) for m in run.model.modules()] == kinds
    assert not run.model.training


@pytest.mark.parametrize("after", [0, 3])
def test_stop_writes_a_checkpoint(toy: Any, tmp_path: Path, after: int) -> None:
    done = 0
    run = toy.run(tmp_path, stop=lambda: done >= after)
    found = []
    for event in loop.fit(run, optim.build(run.model, run.config), State()):
        found.append(event)
        done += isinstance(event, loop.Stepped)
    assert found[-1] == loop.Stopped(after, "asked")
    assert checkpoint.newest(tmp_path)[0].name == f"step-{after:06d}"


def test_leaving_the_loop_early_ends_its_threads(toy: Any, tmp_path: Path) -> None:
    import threading

    run = toy.run(tmp_path, workers=2)
    generator = loop.fit(run, optim.build(run.model, run.config), State())
    next(generator)
    generator.close()
    assert not [t for t in threading.enumerate() if "prefetch" in t.name or "ThreadPool" in t.name]
    assert not run.model.training


def worsening(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Validation losses as listed: a real model does not get worse on demand."""
    left = iter(values)
    monkeypatch.setattr(loop.Gradients, "evaluate", lambda self, windows: (next(left), None))


def test_early_stopping_after_patience_and_the_best_is_kept(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsening(monkeypatch, [3.0, 2.0, 2.5, 2.4, 2.1, 1.0])
    found = toy.fit(toy.run(tmp_path, evaluate_every=1, patience=3, keep=1))
    assert found[-1] == loop.Stopped(5, "early")
    assert [event.best for event in events(found, loop.Evaluated)] == [True, True, False, False, False]
    assert checkpoint.steps_of(tmp_path) == [2, 5]
    state = State.from_dict(commit.read_json(tmp_path / "checkpoints" / "step-000005" / checkpoint.STATE))
    assert state.stopped_early
    assert checkpoint.best(tmp_path, state) == 2


def test_a_classifiers_best_errs_least_though_it_is_surer_of_its_mistakes(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([(0.5, 0.80), (0.3, 0.85), (0.4, 0.90), (0.6, 0.90), (0.2, 0.89)])
    monkeypatch.setattr(loop.Gradients, "evaluate", lambda self, rows: next(found))
    said = toy.fit(toy.run(tmp_path, steps=5, evaluate_every=1, keep=1))
    evaluations = events(said, loop.Evaluated)
    assert [event.best for event in evaluations] == [True, True, True, False, False]
    assert evaluations[2].accuracy == 0.90
    newest, _ = checkpoint.newest(tmp_path)
    state = State.from_dict(commit.read_json(newest / checkpoint.STATE))
    assert checkpoint.best_whole(tmp_path, state) == (checkpoint.best(tmp_path, state), []) == (3, [])
    kept = commit.read_json(checkpoint.folder_of(tmp_path, 3) / commit.MANIFEST)["scores"]
    assert kept == {"validation_loss": 0.4, "validation_accuracy": 0.90}
    state = State.from_dict({k: v for k, v in vars(state).items() if k != "accuracies"} | {"best": 0.2})
    assert checkpoint.best(tmp_path, state) == 5  # written before accuracies were kept: by the loss


def test_the_best_evaluation_is_kept_without_patience_and_between_checkpoints(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsening(monkeypatch, [3.0, 2.0, 2.5, 2.4, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6])
    run = toy.run(tmp_path, evaluate_every=1, checkpoint_every=1000, keep=1)
    found = toy.fit(run)
    assert [event.step for event in events(found, loop.Saved)] == [1, 2, run.config.steps]
    assert checkpoint.steps_of(tmp_path) == [2, run.config.steps]


def test_plateau_halves_the_rate_every_second_evaluation_without_a_better_loss(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worsening(monkeypatch, [3.0, 3.1, 3.2, 3.3, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5])
    found = toy.fit(toy.run(tmp_path, evaluate_every=1, schedule="plateau", warmup=0))
    seen = [event.rate for event in events(found, loop.Stepped)]
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_minutes_replan_the_steps(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that gives each step 0.1 s and 10 s in all: 100 steps, whatever was planned."""
    now = 0.0

    def clock() -> float:
        return now

    monkeypatch.setattr(loop.time, "perf_counter", clock)
    run = toy.run(tmp_path, steps=400, minutes=10 / 60, evaluate_every=25, batch=2)
    found = []
    for event in loop.fit(run, optim.build(run.model, run.config), State()):
        found.append(event)
        if isinstance(event, loop.Stepped):
            now += 0.1
    replanned = events(found, loop.Replanned)
    assert replanned
    assert all(90 <= event.total <= 115 for event in replanned)  # the stub's first step takes no time
    assert found[-1].reason == "finished"
    assert 95 <= found[-1].step <= 105


# Explosions


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_an_exploding_loss_names_step_cause_and_checkpoint(toy: Any, tmp_path: Path, optimizer: str) -> None:
    run = toy.run(
        tmp_path, toy.model(), optimizer=optimizer, learning_rate=10.0, matrix_learning_rate=10.0, clip=0.0, warmup=0,
        checkpoint_every=1, steps=60, momentum=0.99, schedule="constant", validation=False,
    )  # fmt: skip
    seen: list[loop.Event] = []
    with pytest.raises(UserError) as caught:
        seen.extend(loop.fit(run, optim.build(run.model, run.config), State()))
    last = events(seen, loop.Stepped)[-1].step
    assert f"at step {last + 1}" in caught.value.message
    assert f"step-{last:06d}" in caught.value.message
    assert "--learning-rate 3.3" in str(caught.value.hint)
    path, notes = checkpoint.newest(tmp_path)
    assert (path.name, notes) == (f"step-{last:06d}", [])
    assert not run.model.training


def test_nan_weights_stop_before_a_step_and_before_a_checkpoint(toy: Any, tmp_path: Path) -> None:
    run = toy.run(tmp_path)
    with torch.no_grad():
        run.model.ln_f.bias[0] = math.nan
    with pytest.raises(UserError, match=r"the loss was nan .* at step 1") as caught:
        toy.fit(run)
    assert "checkpoint" not in caught.value.message
    assert checkpoint.steps_of(tmp_path) == []


def test_a_late_explosion_points_at_the_text(toy: Any, tmp_path: Path) -> None:
    run = toy.run(tmp_path, steps=400)
    with torch.no_grad():
        run.model.ln_f.bias[0] = math.nan
    with pytest.raises(UserError, match="at step 301") as caught:
        toy.fit(run, State(step=300))
    assert "check the data" in str(caught.value.hint)


def test_bf16_trains_and_its_overflow_is_named(toy: Any, tmp_path: Path) -> None:
    precision = type(toy.precision)("bf16", "aten", "for the test")
    run = toy.run(tmp_path / "a", precision=precision)
    products: set[torch.dtype] = set()
    run.model.h[0].mlp.c_fc.register_forward_hook(
        lambda layer, x, y: products.add(y.dtype) if run.model.training else None
    )
    seen = [event.loss for event in events(toy.fit(run), loop.Stepped)]
    assert products == {torch.bfloat16}
    assert seen == pytest.approx(list(GOLDEN[:10]), abs=0.05)
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    broken = toy.run(tmp_path / "b", precision=precision)
    with torch.no_grad():
        broken.model.ln_f.bias[0] = math.inf
    with pytest.raises(UserError) as caught:
        toy.fit(broken)
    assert "--precision fp32" in str(caught.value.hint)


def test_masked_training_learns(toy: Any, tmp_path: Path) -> None:
    tokenizer = masking_tokenizer()
    model = toy.model(vocab_size=tokenizer.vocab_size)
    run = toy.run(tmp_path, model, tokenizer, objective="masked", steps=60)
    seen = [event.loss for event in events(toy.fit(run), loop.Stepped)]
    assert np.mean(seen[-10:]) < np.mean(seen[:5]) - 0.3


@pytest.mark.parametrize(("minutes", "kept"), [(None, 500), (1.0, 750)])
def test_the_clock_remembers_only_what_it_looks_at(
    monkeypatch: pytest.MonkeyPatch, minutes: float | None, kept: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    state = State(total=10_000)
    clock = loop._Clock(state, minutes)
    for state.step in range(1, 5001):
        now[0] += 0.02 if state.step > 2500 else 0.04
        speed, left = clock.tick(state, 100)
    assert speed == pytest.approx(100 / 0.02)
    assert left == pytest.approx(5000 * 0.02)
    assert len(clock.marks) <= kept + 3
