"""update() on summed gradients is torch's own optimiser on means; Muon and the schedules by their properties."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt2kit.training import losses, optim
from gpt2kit.training.config import Schedule, TrainConfig

COUNT = 64  # tokens that the toy batches' gradients are summed over


def torchs(name: str, model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    lr, betas = config.learning_rate, (config.beta1, config.beta2)
    plain = {"foreach": False}
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, **plain)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, **plain)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, **plain)
    return torch.optim.RMSprop(groups, lr=lr, momentum=config.momentum, **plain)


@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_update_on_sums_is_torchs_optimiser_on_means(toy: Any, name: str, clip: float) -> None:
    """30 steps with gradients given, so that nothing but the optimiser differs."""
    config = toy.settings(optimizer=name, learning_rate=1e-3, weight_decay=0.2, momentum=0.8)
    ours, theirs = toy.model(), toy.model()
    optimizers, reference = optim.build(ours, config), torchs(name, theirs, config)
    generator = torch.Generator().manual_seed(5)
    clipped = 0
    for step in range(30):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn(a.shape, generator=generator) * 0.5 ** (step % 9)
            a.grad, b.grad = gradient * COUNT, gradient.clone()
        norm = optim.update(optimizers, 0.5 + step / 60, COUNT, clip)
        for group in reference.param_groups:
            group["lr"] = config.learning_rate * (0.5 + step / 60)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
        assert norm == pytest.approx(float(expected), rel=1e-5)
        clipped += bool(clip) and norm > clip
        reference.step()
    assert clipped == (30 if clip == 0.05 else 0)
    start = dict(toy.model().named_parameters())
    for (n, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        moved = (b - start[n]).detach().abs().max()
        assert float(moved) > 0
        # fp32 rounding of 30 steps; the fused kernels divide where the plain ones multiply
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4 * float(moved) + 1e-7, msg=n)


@pytest.mark.parametrize("name", ["muon", "adamw", "adam", "sgd", "rmsprop"])
def test_decay_falls_on_matrices_only(toy: Any, name: str) -> None:
    """With zero gradients only decay moves a weight."""
    model, start = toy.model(), toy.weights(toy.model())
    optimizers = optim.build(model, toy.settings(optimizer=name, weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert set(decay) == {id(p) for p in model.parameters()}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim == 2 else 0.0)
        parameter.grad = torch.zeros_like(parameter)
    optim.update(optimizers, 1.0, COUNT, 1.0)
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), start[n]) == (parameter.ndim < 2), n


def test_frozen_parameters_are_not_given_to_an_optimiser(toy: Any) -> None:
    model = toy.model()
    model.wte.weight.requires_grad_(False)
    given = {id(p) for o in optim.build(model, toy.settings()) for g in o.param_groups for p in g["params"]}
    assert id(model.wte.weight) not in given
    assert len(given) == len(list(model.parameters())) - 1


@pytest.mark.parametrize("name", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_makes_no_step(toy: Any, name: str, bad: float) -> None:
    model, start = toy.model(), toy.weights(toy.model())
    optimizers = optim.build(model, toy.settings(optimizer=name))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert model.ln_f.bias.grad is not None
    model.ln_f.bias.grad[3] = bad
    assert not math.isfinite(optim.update(optimizers, 1.0, COUNT, 1.0))
    assert all(torch.equal(p.detach(), start[n]) for n, p in model.named_parameters())
    assert optim.state_tensors(model, optimizers) == {}


# Muon


@pytest.mark.parametrize("shape", [(32, 32), (128, 32), (32, 128), (7, 50)])
def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_directions(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, *shape, generator=generator), full_matrices=False)
    values = torch.logspace(0, -1.3, min(shape)).expand(3, -1)
    matrices = 100 * u @ torch.diag_embed(values) @ v
    out = optim.orthogonalise(matrices)
    assert out.shape == matrices.shape
    found = torch.linalg.svdvals(out)
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.25
    turned = u.transpose(1, 2) @ out @ v.transpose(1, 2)  # diagonal in the same bases
    off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert float(off.abs().max()) < 1e-3
    one_by_one = torch.cat([optim.orthogonalise(m[None]) for m in matrices])
    torch.testing.assert_close(out, one_by_one, rtol=1e-4, atol=1e-5)


def muon(model: Any, config: TrainConfig) -> optim.Muon:
    found = [o for o in optim.build(model, config) if isinstance(o, optim.Muon)]
    assert len(found) == 1
    return found[0]


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(toy: Any) -> None:
    model = toy.model(tie_word_embeddings=False)
    names = {id(p): n for n, p in model.named_parameters()}
    taken = {names[id(p)] for g in muon(model, toy.settings()).param_groups for p in g["params"]}
    blocks = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert taken == {f"h.{layer}.{part}.weight" for layer in (0, 1) for part in blocks}
    peaks = {o.param_groups[0]["peak"] for o in optim.build(model, toy.settings())}
    assert peaks == {3e-3, 0.02}


def test_muons_first_step_by_hand(toy: Any) -> None:
    """Query, key and value are three matrices: each is orthogonalised by itself, with its own size."""
    config = toy.settings(momentum=0.9, weight_decay=0.1, matrix_learning_rate=0.05)
    model, start = toy.model(), toy.weights(toy.model())
    generator = torch.Generator().manual_seed(2)
    gradients = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    for size, part in zip((1, 10, 100), gradients["h.0.attn.c_attn.weight"].chunk(3), strict=True):
        part.mul_(size)
    for n, parameter in model.named_parameters():
        parameter.grad = gradients[n].clone()
    muon(model, config).step()

    def expected(weight: Tensor, gradient: Tensor) -> Tensor:
        rows, columns = weight.shape
        direction = gradient * 0.1 + 0.9 * (0.1 * gradient)  # Nesterov's first step
        change = optim.orthogonalise(direction[None])[0] * max(1.0, rows / columns) ** 0.5
        return weight * (1 - 0.05 * 0.1) - 0.05 * change

    for n in ("h.0.attn.c_proj.weight", "h.1.mlp.c_fc.weight", "h.1.mlp.c_proj.weight"):
        torch.testing.assert_close(model.state_dict()[n], expected(start[n], gradients[n]), rtol=1e-4, atol=1e-5)
    name = "h.0.attn.c_attn.weight"
    parts = zip(start[name].chunk(3), gradients[name].chunk(3), strict=True)
    for got, (weight, gradient) in zip(model.state_dict()[name].chunk(3), parts, strict=True):
        torch.testing.assert_close(got, expected(weight, gradient), rtol=1e-4, atol=1e-5)


def test_muons_momentum_is_a_running_mean(toy: Any) -> None:
    model = toy.model()
    optimizer = muon(model, toy.settings(momentum=0.75))
    mean = torch.zeros(32, 32)
    for seed in range(4):
        gradient = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model.h[0].attn.c_proj.weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.75 * mean + 0.25 * gradient
    torch.testing.assert_close(optimizer.state[model.h[0].attn.c_proj.weight]["momentum_buffer"], mean)


@pytest.mark.parametrize("name", ["muon", "adamw", "adam", "sgd", "rmsprop"])
def test_every_optimiser_lowers_the_loss(toy: Any, name: str) -> None:
    rates = {"sgd": 0.1, "rmsprop": 3e-4}
    config = toy.settings(optimizer=name, learning_rate=rates.get(name, 3e-3), momentum=0.9)
    model = toy.model()
    optimizers = optim.build(model, config)
    batch = torch.from_numpy(np.stack([toy.text()[a : a + 17] for a in range(0, 160, 10)]))
    seen = []
    for _ in range(25):
        model.zero_grad()
        loss, count = losses.next_token(model, batch)
        loss.backward()
        seen.append(float(loss.detach()) / count)
        optim.update(optimizers, 1.0, count, 1.0)
    assert seen[-1] < seen[0] - 0.5, seen


# Schedules


def rates(schedule: str, total: int = 400, **changes: Any) -> np.ndarray[Any, Any]:
    config = TrainConfig(steps=total, schedule=schedule, **{"warmup": 20, "final_rate": 0.1, **changes})
    return np.array([optim.rate(config, step, total) for step in range(total)])


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_warm_up_rises_evenly_to_the_peak(schedule: str) -> None:
    seen = rates(schedule)
    assert 0 < seen[0] <= 1 / 20
    assert np.allclose(np.diff(seen[:20]), seen[0])
    assert seen[20] == pytest.approx(1.0)
    assert seen.max() <= 1.0


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_rates_lie_between_the_end_and_the_peak_without_jumps(schedule: str, final: float) -> None:
    seen = rates(schedule, final_rate=final)[20:]
    assert (seen >= min(final, 0.999) - 1e-12).all()
    assert (seen > 0).all() or final == 0
    assert (seen >= 0).all()
    assert (seen <= 1 + 1e-12).all()
    assert np.abs(np.diff(rates(schedule, final_rate=final)[19:])).max() < 0.06  # the warm-up's last step is 1 / 21


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "wsd"])
@pytest.mark.parametrize("final", [0.05, 0.5])
def test_falling_schedules_fall_to_the_final_rate(schedule: str, final: float) -> None:
    seen = rates(schedule, final_rate=final)[20:]
    assert (np.diff(seen) <= 1e-12).all()
    assert seen[0] == pytest.approx(1.0, abs=0.01)
    assert seen[-1] == pytest.approx(final, abs=0.02)


def test_shapes_are_told_apart_by_their_middles() -> None:
    at = {name: rates(name, warmup=0, final_rate=0.0)[[100, 200, 300, 360]] for name in get_args(Schedule)}
    assert at["constant"] == pytest.approx([1, 1, 1, 1])
    assert at["plateau"] == pytest.approx([1, 1, 1, 1])
    assert at["linear"] == pytest.approx([0.75, 0.5, 0.25, 0.1])
    assert at["cosine"] == pytest.approx([math.cos(math.pi * x / 2) ** 2 for x in (0.25, 0.5, 0.75, 0.9)])
    assert at["wsd"] == pytest.approx([1, 1, 1, 0.5])
    assert at["exponential"] == pytest.approx([0.01**0.25, 0.1, 0.01**0.75, 0.01**0.9])


def test_cyclic_falls_to_the_end_again_and_again_and_ends_there() -> None:
    seen = rates("cyclic", warmup=0, total=4000)
    lows = [i for i in range(1, 3999) if seen[i] <= seen[i - 1] and seen[i] < seen[i + 1]]
    highs = [i for i in range(1, 3999) if seen[i] >= seen[i - 1] and seen[i] > seen[i + 1]]
    assert len(lows) == optim.CYCLES - 1
    assert seen[lows] == pytest.approx([0.1] * len(lows), abs=0.01)
    assert seen[highs] == pytest.approx([1.0] * len(highs), abs=0.01)
    assert seen[-1] == pytest.approx(0.1, abs=0.01)


def test_plateau_scales_by_what_the_run_found() -> None:
    config = TrainConfig(schedule="plateau", warmup=5)
    assert optim.rate(config, 50, 100, 0.25) == 0.25
    assert optim.rate(config, 2, 100, 1.0) == 0.5
    assert optim.rate(TrainConfig(schedule="linear", warmup=0), 50, 100, 0.25) == 0.5


def test_warm_up_takes_half_of_a_short_run_at_most() -> None:
    seen = rates("linear", total=10, final_rate=0.0)
    assert seen[5] == 1.0
    assert seen[-1] == pytest.approx(0.2)


# State


@pytest.mark.parametrize("name", ["muon", "adamw", "adam", "sgd", "rmsprop"])
def test_state_tensors_put_back_go_on_with_the_same_bits(toy: Any, name: str) -> None:
    config = toy.settings(optimizer=name)

    def steps(model: Any, optimizers: list[torch.optim.Optimizer], first: int) -> None:
        for step in range(first, first + 3):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optim.update(optimizers, 1.0, COUNT, 1.0)

    straight, stopped, resumed = toy.model(), toy.model(), toy.model(seed=9)
    optimizers = optim.build(straight, config)
    steps(straight, optimizers, 0)
    steps(straight, optimizers, 3)
    before = optim.build(stopped, config)
    steps(stopped, before, 0)
    tensors = {n: t.clone() for n, t in optim.state_tensors(stopped, before).items()}
    parameters = {n for n, _ in stopped.named_parameters()}
    assert {n.rpartition("/")[0] for n in tensors} == parameters
    resumed.load_state_dict(stopped.state_dict())
    after = optim.build(resumed, config)
    optim.load_state_tensors(resumed, after, tensors)
    steps(resumed, after, 3)
    for (n, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), n
