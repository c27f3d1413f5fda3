"""Training's faster parts compute what the model file computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit import runtime
from gpt2kit.training import fast, losses


def points() -> Tensor:
    """0.5 million values, the tails and the tiny ones too."""
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(0)) * 3
    return torch.cat([x, torch.linspace(-60, 60, 10_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 300.0, -300.0])])


def test_gelu_is_torchs_tanh_form_forward_and_backward() -> None:
    x = points().requires_grad_()
    exact = x.detach().double().requires_grad_()
    dy = torch.randn(len(x), generator=torch.Generator().manual_seed(1))
    expected = F.gelu(exact, approximate="tanh")
    expected.backward(dy.double())
    y = fast.gelu(x)
    y.backward(dy)
    assert x.grad is not None
    assert exact.grad is not None
    # 2e-6 of each value's own size, or absolute below 1: the polynomial's 2 ulp
    assert bool(((y.detach() - expected.detach()).abs() <= 2e-6 * expected.detach().abs().clamp(min=1)).all())
    assert bool(((x.grad - exact.grad).abs() <= 2e-6 * exact.grad.abs().clamp(min=1) + 2e-6).all())
    assert bool(((y.detach() - F.gelu(x.detach())).abs() > 1e-4).any())  # the exact form is 4.7e-4 apart


def test_gelu_has_the_same_bits_on_one_core_and_on_all() -> None:
    results = []
    for fast.PLACE.parallel in (False, True):
        x = points().requires_grad_()
        y = fast.gelu(x)
        y.backward(torch.ones_like(y))
        results.append((y.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_gelu_of_a_strided_tensor_and_of_another_dtype() -> None:
    x = torch.randn(6, 10).t()
    torch.testing.assert_close(fast.gelu(x), F.gelu(x, approximate="tanh"), rtol=2e-6, atol=2e-6)
    half = torch.randn(8).bfloat16()
    assert torch.equal(fast.gelu(half), F.gelu(half, approximate="tanh"))


# Dropout


def dropped(p: float = 0.3, seed: int = 1, name: str = "drop", step: int = 0, first: int = 0, rows: int = 8) -> Tensor:
    """The mask [rows, 40, 50], scaled, of a dropout at a place."""
    module = fast.SeededDropout(p, seed, name).train()
    fast.PLACE.step, fast.PLACE.first_row = step, first
    return module(torch.ones(rows, 40, 50))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_dropout_drops_its_rate_and_scales_the_rest(p: float) -> None:
    mask = dropped(p, rows=64)  # 128,000 draws: the rate's standard deviation is below 0.0014
    kept = mask != 0
    assert float((~kept).float().mean()) == pytest.approx(p, abs=0.006)
    assert torch.allclose(mask[kept], torch.tensor(1 / (1 - p)))
    per_row = (~kept).float().mean(dim=(1, 2))
    assert bool(((per_row - p).abs() < 0.06).all())
    per_column = (~kept).float().flatten(1).mean(0)
    assert float(per_column.std()) < 1.5 * (p * (1 - p) / 64) ** 0.5  # columns are not dropped together


def test_a_slice_of_the_batch_has_the_masks_of_its_rows() -> None:
    whole = dropped()
    for start, stop in ((0, 3), (3, 8), (5, 6)):
        assert torch.equal(dropped(first=start, rows=stop - start), whole[start:stop])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("change", [{"step": 1}, {"seed": 2}, {"name": "h.0.mlp.dropout"}, {"first": 8}])
def test_another_step_seed_layer_or_row_has_another_mask(change: dict[str, Any]) -> None:
    a, b = dropped(0.5) != 0, dropped(0.5, **change) != 0
    agreement = float((a == b).float().mean())
    assert agreement == pytest.approx(0.5, abs=0.02)  # independent
    assert torch.equal(dropped(0.5, **change), dropped(0.5, **change))


def test_masks_of_rows_and_neighbouring_steps_are_independent() -> None:
    masks = torch.cat([(dropped(0.5, step=step) != 0).flatten(1).float() for step in (0, 1, 2)])  # 24 rows
    agreement = (masks @ masks.t() + (1 - masks) @ (1 - masks).t()) / masks.shape[1]
    agreement.fill_diagonal_(0.5)
    assert bool(((agreement - 0.5).abs() < 0.06).all())


def test_dropouts_backward_uses_the_forward_mask() -> None:
    x = torch.randn(4, 6, 5).requires_grad_()
    module = fast.SeededDropout(0.4, 1, "drop").train()
    fast.PLACE.step, fast.PLACE.first_row = 3, 2
    y = module(x)
    fast.PLACE.step, fast.PLACE.first_row = 9, 0  # the backward pass may run later
    dy = torch.randn(4, 6, 5)
    y.backward(dy)
    scale = torch.where(y == 0, 0.0, 1 / 0.6)
    assert x.grad is not None
    assert torch.allclose(x.grad, dy * scale)


def test_dropout_has_the_same_bits_on_one_core_and_on_all() -> None:
    masks = []
    for fast.PLACE.parallel in (False, True):
        masks.append(dropped(0.3))
    assert torch.equal(*masks)


def test_dropout_does_nothing_in_eval_mode_or_at_rate_zero() -> None:
    x = torch.randn(2, 3, 4)
    assert fast.SeededDropout(0.5, 1, "drop").eval()(x) is x
    assert fast.SeededDropout(0.0, 1, "drop").train()(x) is x


def test_dropout_of_bf16_keeps_its_dtype() -> None:
    fast.PLACE.step = 0
    y = fast.SeededDropout(0.5, 1, "drop").train()(torch.ones(4, 40).bfloat16())
    assert y.dtype == torch.bfloat16
    assert set(y.flatten().tolist()) == {0.0, 2.0}


# OneDnnLinear


needs_onednn = pytest.mark.skipif(not runtime.has_onednn(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 7, 24), (40, 24)])
def test_onednn_linear_is_linear(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(24, 36)
    other = fast.OneDnnLinear.of(linear)
    assert other.weight is linear.weight
    x = torch.randn(shape)
    dy = torch.randn(*shape[:-1], 36)
    results = []
    for layer in (linear, other):
        given = x.clone().requires_grad_()
        linear.zero_grad()
        y = layer(given)
        y.backward(dy)
        assert given.grad is not None
        assert linear.weight.grad is not None
        assert linear.bias.grad is not None
        results.append((y.detach(), given.grad, linear.weight.grad.clone(), linear.bias.grad.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=2e-5)  # another order of summation


@needs_onednn
def test_onednn_gradients_of_a_whole_model_are_those_of_aten(toy: Any) -> None:
    results = []
    for backend in ("aten", "onednn"):
        model = toy.model()
        fast.accelerate(model, 0, 0.0, 0.0, backend)
        assert isinstance(model.h[0].attn.c_attn, fast.OneDnnLinear) == (backend == "onednn")
        loss, _ = losses.next_token(model, toy.ids(4, 17))
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


# accelerate and plain


@pytest.mark.parametrize("backend", ["aten", pytest.param("onednn", marks=needs_onednn)])
def test_accelerate_keeps_names_and_logits_and_plain_undoes_it(toy: Any, backend: str) -> None:
    model = toy.model(resid_pdrop=0.1, embd_pdrop=0.2).eval()
    ids = toy.ids(3, 16)
    before, keys, kinds = model(ids), list(model.state_dict()), [type(m) for m in model.modules()]
    parameters = [id(p) for p in model.parameters()]
    fast.accelerate(model, 5, 0.3, 0.4, backend)
    assert not model.drop.training
    assert model.drop.p == 0.3
    assert model.h[1].attn.attn_pdrop == 0.4
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)
    fast.plain(model)
    assert [type(m) for m in model.modules()] == kinds
    assert [id(p) for p in model.parameters()] == parameters
    assert torch.equal(model(ids), before)
    assert (model.drop.p, model.h[0].mlp.dropout.p, model.h[1].attn.attn_pdrop) == (0.2, 0.1, 0.0)


def test_accelerate_is_the_same_twice(toy: Any) -> None:
    model = toy.model()
    fast.accelerate(model, 5, 0.3)
    fast.PLACE.step = 1
    once = model.train()(toy.ids(2, 16))
    fast.accelerate(model, 5, 0.3)
    assert torch.equal(model(toy.ids(2, 16)), once)


def test_accelerate_puts_every_dropout_in_place_and_each_has_its_own_mask(toy: Any) -> None:
    model = toy.model()
    fast.accelerate(model, 5, 0.3)
    found = [m for m in model.modules() if isinstance(m, fast.SeededDropout)]
    assert len(found) == 1 + 2 * 2
    assert len({m.name for m in found}) == 5
    assert not any(type(m) is nn.Dropout for m in model.modules())


def test_accelerate_without_rates_takes_the_configs(toy: Any) -> None:
    model = toy.model(resid_pdrop=0.25, attn_pdrop=0.15)
    fast.accelerate(model, 5)
    assert (model.h[0].attn.dropout.p, model.h[0].attn.attn_pdrop) == (0.25, 0.15)


def test_another_activation_stays(toy: Any) -> None:
    model = toy.model(activation_function="relu")
    ids = toy.ids(2, 16)
    before = model(ids)
    fast.accelerate(model, 5, 0.0)
    assert model.h[0].mlp.act is F.relu
    torch.testing.assert_close(model(ids), before)
    fast.plain(model)
    assert model.h[0].mlp.act is F.relu


def test_place_is_each_threads_own() -> None:
    import threading

    fast.PLACE.step = 7
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(fast.PLACE.step))
    thread.start()
    thread.join()
    assert seen == [0]
    assert isinstance(np.uint32(fast.PLACE.step), np.uint32)
