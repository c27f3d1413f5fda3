"""An adapter in the loop: its hooks, its checkpoints, what it leaves; and frozen weights cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2kit import runtime
from gpt2kit.data.loader import Batches
from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.peft import Adapted, AdapterOnly, base_hash, inject, load, names, quantise_base
from gpt2kit.peft.artefact import STATE
from gpt2kit.training import checkpoint, fast, loop, optim
from gpt2kit.training.checkpoint import State
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.objectives import TextObjective
from gpt2kit.training.rows import Classes, Completions, Row

FP32 = runtime.Precision("fp32", "aten", "for the test")
SLICED: list[dict[str, Any]] = [
    {"micro_batch": 1},
    {"micro_batch": 5},
    {"workers": 2},
    {"workers": 3, "micro_batch": 2},
]


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**{
        "steps": 10, "batch": 16, "context": 16, "warmup": 2, "seed": 3, "workers": 1, "precision": "fp32",
        "optimizer": "adamw", "learning_rate": 1e-2, "evaluate_every": 5, "checkpoint_every": 1000, **changes,
    })  # fmt: skip


def batches(config: TrainConfig) -> Batches:
    rng = np.random.default_rng(0)
    return Batches(np.cumsum(rng.integers(0, 9, 3000)).astype(np.int64) % 97, config.context, config.batch, 3)


def fit(toy: Any, folder: Path, name: str, stop_at: int = 99, resume: bool = False, **changes: Any) -> Adapted:
    """Train a new adapter, up to a step or on from the newest checkpoint."""
    config = settings(**changes)
    adapted = inject(toy.model(), toy.method(name))
    if not resume:
        torch.manual_seed(0)
    artefact = AdapterOnly(adapted, None, "base")
    optimizers = optim.build(adapted.model, config)
    state = State(total=config.steps)
    if resume:
        path, notes = checkpoint.newest(folder)
        assert notes == []
        state = checkpoint.restore(path, artefact, optimizers)
    run = loop.Run(
        folder, adapted.model, None, config, batches(config), None, FP32, {"name": "toy"},
        stop=lambda: state.step >= stop_at, penalty=adapted.penalty, after_step=adapted.after_step, artefact=artefact,
    )  # fmt: skip
    list(loop.fit(run, optimizers, state))
    return adapted


@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "houlsby", "prefix-mlp", "p-tuning-lstm", "last"])
def test_a_stopped_adapter_goes_on_to_the_same_bits(toy: Any, tmp_path: Path, name: str) -> None:
    straight = fit(toy, tmp_path / "straight", name, dropout=0.2)
    fit(toy, tmp_path / "stopped", name, stop_at=4, dropout=0.2)
    torch.manual_seed(99)
    resumed = fit(toy, tmp_path / "stopped", name, resume=True, dropout=0.2)
    ends = [checkpoint.newest(tmp_path / where)[0] for where in ("straight", "stopped")]
    for file in (STATE, checkpoint.TENSORS):
        assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes()
    for key, tensor in straight.state_tensors().items():
        assert torch.equal(tensor, resumed.state_tensors()[key]), key
    if name == "adalora":
        alive = [delta.alive.sum() for delta in straight.parts.deltas.values()]  # type: ignore[union-attr]
        assert float(sum(alive)) == 3 * 3  # the budget was taken, so `after_step` ran


@pytest.mark.parametrize("changes", SLICED)
def test_a_sliced_batch_has_the_whole_batchs_gradient_and_penalty(toy: Any, changes: dict[str, Any]) -> None:
    def gradient(penalised: bool = True, **more: Any) -> list[torch.Tensor]:
        config = settings(dropout=0.1, **more)
        adapted = inject(toy.model(), toy.method("adalora"))
        toy.stir(adapted)
        objective = TextObjective(config, adapted.model.config.vocab_size, None)
        penalty = adapted.penalty if penalised else None
        gradients = loop.Gradients(adapted.model, objective, config, FP32, torch.device("cpu"), penalty)
        fast.accelerate(adapted.model.train(), config.seed, config.dropout)
        try:
            gradients(toy.ids(16, 17).numpy(), 3)
        finally:
            gradients.close()
        return [parameter.grad for parameter in adapted.parameters.values() if parameter.grad is not None]

    whole, sliced, plain = gradient(), gradient(**changes), gradient(penalised=False)
    for a, b in zip(whole, sliced, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=2e-3)  # sums over 256 tokens in another order
    assert any(float((a - b).abs().max()) > 0.1 for a, b in zip(whole, plain, strict=True))


def test_a_checkpoint_of_another_adapter_is_refused(toy: Any, tmp_path: Path) -> None:
    fit(toy, tmp_path, "lora", steps=1)
    other = AdapterOnly(inject(toy.model(), toy.method("ia3")), None, "base")
    path = checkpoint.newest(tmp_path)[0]
    with pytest.raises(UserError, match="the state is of another adapter"):
        other.restore(path)
    wider = AdapterOnly(inject(toy.model(), toy.method("lora", rank=5)), None, "base")
    with pytest.raises(UserError, match="has shape"):
        wider.restore(path)
    (path / STATE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        wider.restore(path)


def test_what_is_not_finite_is_not_kept(toy: Any, tmp_path: Path) -> None:
    adapted = inject(toy.model(), toy.method("lora"))
    with torch.no_grad():
        next(iter(adapted.parameters.values()))[0, 0] = torch.nan
    with pytest.raises(UserError, match="holds NaN or infinity"):
        checkpoint.save(tmp_path, AdapterOnly(adapted, None, "base"), [], State(step=1), {}, 1)
    assert checkpoint.steps_of(tmp_path) == []


@pytest.mark.parametrize("name", ["lora-all", "bitfit", "last", "prompt"])
def test_publishing_leaves_a_plain_model_and_a_whole_adapter(toy: Any, tmp_path: Path, name: str) -> None:
    from gpt2kit.model import folder

    adapted = fit(toy, tmp_path, name, steps=2)
    model, ids = adapted.model, toy.ids(2, 9)
    with torch.no_grad():
        expected = model(ids).clone()
    end = checkpoint.newest(tmp_path)[0]
    AdapterOnly(adapted, None, "base").publish(tmp_path, end, {"name": "toy"}, {"note.txt": "里"})
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "里"
    again = toy.model()
    load(tmp_path / "adapter", again)
    with torch.no_grad():
        torch.testing.assert_close(again(ids), expected, atol=2e-5, rtol=1e-5)
        if name != "prompt":
            assert names(model) == []
            torch.testing.assert_close(folder.load(tmp_path)[0](ids), expected, atol=2e-5, rtol=1e-5)


def test_over_int8_the_merged_model_is_the_one_that_was_trained(toy: Any, tmp_path: Path) -> None:
    from gpt2kit.model import folder

    model, ids = toy.model(), toy.ids(2, 9)
    name = base_hash(model)
    quantise_base(model)
    adapted = inject(model, toy.method("lora"))
    toy.stir(adapted)
    with torch.no_grad():
        expected = model(ids).clone()
    artefact = AdapterOnly(adapted, None, "base")
    end = checkpoint.save(tmp_path, artefact, [], State(step=1), {}, 1)
    artefact.publish(tmp_path, end, {}, {})
    with torch.no_grad():
        torch.testing.assert_close(folder.load(tmp_path)[0](ids), expected, atol=2e-5, rtol=1e-5)
    over = toy.model()
    assert base_hash(load(tmp_path / "adapter", over).model) == name


# What is frozen costs nothing


@pytest.mark.parametrize("backend", ["aten", pytest.param("onednn", marks=pytest.mark.skipif(
    not runtime.has_onednn(), reason="this torch has no oneDNN"))])  # fmt: skip
@pytest.mark.parametrize("name", ["lora", "bitfit", "houlsby"])
def test_frozen_weights_have_no_gradient_and_no_state_and_the_adapters_are_right(
    toy: Any, name: str, backend: str
) -> None:
    def gradient(frozen: bool) -> tuple[dict[str, torch.Tensor], GPT2, Adapted]:
        adapted = inject(toy.model(), toy.method(name))
        toy.stir(adapted)
        if not frozen:
            adapted.model.requires_grad_(True)
        fast.accelerate(adapted.model, 0, 0.0, 0.0, backend)
        loss, _ = Completions().loss(adapted.model, *map(torch.from_numpy, Completions().prepare(rows(), 0, 0)))
        loss.backward()
        return {key: p.grad for key, p in adapted.parameters.items() if p.grad is not None}, adapted.model, adapted

    found, model, adapted = gradient(frozen=True)
    whole, _, _ = gradient(frozen=False)
    assert found.keys() == adapted.parameters.keys()
    own = {id(parameter) for parameter in adapted.parameters.values()}
    assert all(parameter.grad is None for parameter in model.parameters() if id(parameter) not in own)
    for key, value in found.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-5, msg=key)
    optimizers = optim.build(model, settings())
    optim.update(optimizers, 1.0, 1, 1.0)
    tensors = optim.state_tensors(model, optimizers)
    assert len({key.rpartition("/")[0] for key in tensors}) == len(adapted.parameters)
    optim.load_state_tensors(model, optim.build(model, settings()), tensors)
    with pytest.raises(UserError, match="of another model"):
        optim.load_state_tensors(model, optimizers, dict(list(tensors.items())[3:]))


def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    return [Row(rng.integers(0, 97, n), n // 2, (n % 3,)) for n in (5, 9, 12)]


def test_nothing_below_the_last_block_is_kept_for_a_backward_pass(toy: Any) -> None:
    """Autograd's own list of what it saved: none of it belongs to the first two blocks."""
    model = toy.model()
    inject(model, toy.method("last"))
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        Completions().loss(model, *map(torch.from_numpy, Completions().prepare(rows(), 0, 0)))
    kept = sum(t.numel() for t in {t.data_ptr(): t for t in saved}.values())
    model = toy.model()
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        Completions().loss(model, *map(torch.from_numpy, Completions().prepare(rows(), 0, 0)))
    whole = sum(t.numel() for t in {t.data_ptr(): t for t in saved}.values())
    assert kept < 0.5 * whole


@pytest.mark.parametrize("workers", [1, 2])
def test_an_untied_head_that_classes_do_not_use_trains_and_resumes(toy: Any, tmp_path: Path, workers: int) -> None:
    model = toy.model(tie_word_embeddings=False, labels=("a", "b", "c"))
    config = settings(workers=workers, batch=3)
    gradients = loop.Gradients(model.train(), Classes(), config, FP32, torch.device("cpu"))
    optimizers = optim.build(model, config)
    try:
        _, count = gradients(rows(), 0)
    finally:
        gradients.close()
    optim.update(optimizers, 1.0, count, 1.0)
    path = checkpoint.save(tmp_path, checkpoint.WholeModel(model.eval()), optimizers, State(step=1), {}, 1)
    again = toy.model(seed=3, tie_word_embeddings=False, labels=("a", "b", "c"))
    checkpoint.restore(path, checkpoint.WholeModel(again), optim.build(again, config))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
