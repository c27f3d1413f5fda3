"""LoRA's scale and dropout, DoRA's norm, AdaLoRA's budget; against the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2kit.peft import AdaLoraConfig, LoraConfig, inject
from gpt2kit.peft.adalora import AdaLoraDelta
from gpt2kit.peft.method import Parts
from gpt2kit.training import fast


def one(toy: Any, **settings: Any) -> tuple[Any, Any, Tensor]:
    """A stirred LoRA on one Linear: its delta, its base, an input [3, 7, C]."""
    model = toy.model()
    laid = inject(model, LoraConfig(rank=4, targets=r"h\.1\.attn\.c_attn", **settings))
    toy.stir(laid)
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(2))
    return laid.parts.deltas["h.1.attn.c_attn"], model.h[1].attn.c_attn.base, x


@pytest.mark.parametrize(("settings", "scale"), [({"alpha": 6.0}, 1.5), ({"alpha": 6.0, "rslora": True}, 3.0)])
def test_lora_adds_the_scaled_product(toy: Any, settings: dict[str, Any], scale: float) -> None:
    delta, base, x = one(toy, **settings)
    expected = base(x) + scale * (x @ delta.lora_A.t() @ delta.lora_B.t())
    torch.testing.assert_close(delta(base, x), expected, atol=2e-6, rtol=1e-5)


def test_dora_gives_each_row_its_length(toy: Any) -> None:
    delta, base, x = one(toy, dora=True, alpha=6.0)
    moved = base.weight + 1.5 * delta.lora_B @ delta.lora_A
    weight = moved / moved.norm(dim=1, keepdim=True) * delta.lora_magnitude_vector[:, None]
    torch.testing.assert_close(delta(base, x), x @ weight.t() + base.bias, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(delta.norm(base), moved.norm(dim=1), atol=1e-6, rtol=1e-6)


def test_doras_norm_is_a_constant_to_the_gradient(toy: Any) -> None:
    delta, base, x = one(toy, dora=True)
    delta(base, x).sum().backward()
    got = [p.grad.clone() for p in (delta.lora_A, delta.lora_B)]
    ratio = (delta.lora_magnitude_vector / delta.norm(base)).detach()
    delta.zero_grad()
    (ratio * delta.scale * (x @ delta.lora_A.t() @ delta.lora_B.t())).sum().backward()
    for gradient, parameter in zip(got, (delta.lora_A, delta.lora_B), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_falls_on_the_adapters_input_alone(toy: Any, dora: bool) -> None:
    delta, base, x = one(toy, dropout=0.5, dora=dora)
    quiet = delta.eval()(base, x)
    delta.train()
    fast.PLACE.step = 3
    first = delta(base, x)
    assert torch.equal(delta(base, x), first)
    assert not torch.allclose(first, quiet, atol=1e-3)
    fast.PLACE.step = 4
    assert not torch.equal(delta(base, x), first)
    fast.PLACE.step = 3
    fast.PLACE.first_row = 1
    assert torch.equal(delta(base, x[1:]), first[1:])  # a mask belongs to a row of the global batch
    with torch.no_grad():
        delta.lora_B.zero_()
        if not dora:
            assert torch.equal(delta(base, x), base(x))


def test_layers_and_seeds_have_masks_of_their_own(toy: Any) -> None:
    model = toy.model()
    ones = torch.ones(2, 5, 24)
    masks = []
    for name, seed in (("a", 1), ("b", 2)):
        laid = inject(model, LoraConfig(rank=2, dropout=0.5, seed=seed), name)
        masks += [delta.drop(ones, True) for delta in laid.parts.deltas.values()]
    assert len({mask.numpy().tobytes() for mask in masks}) == 6


def test_low_precision_products_stay_near(toy: Any) -> None:
    for settings in ({}, {"dora": True}):
        delta, base, x = one(toy, **settings)
        exact = delta(base, x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = delta(base, x)
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.02)
        rough.float().sum().backward()
        assert delta.lora_A.grad.dtype == torch.float32


# AdaLoRA


def test_the_budget_falls_by_a_cubic_between_its_ends() -> None:
    settings = AdaLoraConfig(rank=12, target_rank=4, start=0.1, settle=0.3)
    budgets = [settings.budget(10, step, 100) for step in range(101)]
    assert budgets[:11] == [120] * 11
    assert budgets[70:] == [40] * 31
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[40] == int(80 * (1 - 30 / 60) ** 3 + 40)
    assert [settings.budget(10, step, 1) for step in (0, 1)] == [120, 40]  # a run of one step


def adalora(toy: Any, **settings: Any) -> Any:
    laid = inject(toy.model(), AdaLoraConfig(rank=4, target_rank=2, every=5, **settings))
    toy.stir(laid)
    return laid


def test_allocation_keeps_exactly_the_budget_and_the_most_important(toy: Any) -> None:
    laid = adalora(toy, start=0.2, settle=0.2)
    deltas: list[AdaLoraDelta] = list(laid.parts.deltas.values())
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 51):
        for index, delta in enumerate(deltas):
            for parameter in delta.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator) * (10.0**-index)
        laid.after_step(step, 50)
        alive = [int(delta.alive.sum()) for delta in deltas]
        if step <= 10:
            assert alive == [4, 4, 4]
        elif step % 5 == 0 or step > 40:
            assert sum(alive) == laid.method.budget(3, step, 50)
        for delta in deltas:
            assert bool(((delta.lora_E[:, 0] == 0) | (delta.alive > 0)).all() or step % 5)
    assert alive == [4, 2, 0]  # six triplets, where the gradients are largest
    with torch.no_grad():
        for delta in deltas:
            delta.lora_E += 1.0  # as an optimiser step would
    laid.after_step(50, 50)
    for delta in deltas:
        assert torch.equal(delta.lora_E[:, 0] != 0, delta.alive.bool())


def test_importance_is_sensitivity_times_uncertainty(toy: Any) -> None:
    laid = adalora(toy, beta_sensitivity=0.6, beta_uncertainty=0.7, start=0.5)
    delta = next(iter(laid.parts.deltas.values()))
    smooth = {name: torch.zeros_like(getattr(delta, f"lora_{name}")) for name in "ABE"}
    spread = {name: value.clone() for name, value in smooth.items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 4):
        for every in laid.parts.deltas.values():
            for parameter in every.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        for name in "ABE":
            parameter = getattr(delta, f"lora_{name}")
            now = (parameter * parameter.grad).abs().detach()
            smooth[name] = 0.6 * smooth[name] + 0.4 * now
            spread[name] = 0.7 * spread[name] + 0.3 * (now - smooth[name]).abs()
        laid.after_step(step, 100)
    score = {name: smooth[name] * spread[name] for name in "ABE"}
    expected = score["E"][:, 0] + score["A"].mean(1) + score["B"].mean(0)
    torch.testing.assert_close(delta.importance(), expected)


def test_the_penalty_is_zero_for_orthonormal_factors(toy: Any) -> None:
    laid = adalora(toy)
    assert float(laid.penalty().detach()) > 0.1
    with torch.no_grad():
        for delta in laid.parts.deltas.values():
            delta.lora_A.copy_(torch.linalg.qr(delta.lora_A.t())[0].t())
            delta.lora_B.copy_(torch.linalg.qr(delta.lora_B)[0])
    assert float(laid.penalty().detach()) < 1e-5
    assert adalora(toy, orthogonality=0.0).penalty() is None


def test_methods_without_a_schedule_ignore_steps(toy: Any) -> None:
    laid = inject(toy.model(), toy.method("lora"))
    before = {name: tensor.clone() for name, tensor in laid.state_tensors().items()}
    laid.after_step(1, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in laid.state_tensors().items())
    assert laid.penalty() is None
    assert Parts().tensors() == {}
    assert math.isclose(LoraConfig(rank=16, alpha=8.0, rslora=True).scale, 2.0)
