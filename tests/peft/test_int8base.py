"""A base in int8: its error, its gradients, its memory, and adapters over it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gpt2kit import runtime
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.config import gpt2_small
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.peft import (
    LoraConfig,
    QuantisedLinear,
    base_hash,
    dequantise_base,
    inject,
    load,
    merge,
    quantise_base,
    remove,
    save,
)
from gpt2kit.training import fast, losses

from .conftest import KINDS

BACKENDS = ["aten", pytest.param("onednn", marks=pytest.mark.skipif(not runtime.has_onednn(), reason="no oneDNN"))]


def layer(out: int = 36, n_in: int = 24, backend: str = "aten") -> tuple[nn.Linear, QuantisedLinear]:
    linear = nn.Linear(n_in, out)
    with torch.no_grad():
        linear.weight[3] = 0.0  # a row without a scale
        linear.weight[4] *= 100.0
    return linear, QuantisedLinear(linear, backend)


def test_each_weight_is_within_half_a_step_of_its_row() -> None:
    linear, small = layer()
    assert small.quantised.dtype == torch.int8
    steps = linear.weight.detach().abs().amax(1, keepdim=True) / 127
    assert bool(((small.weight - linear.weight).abs() <= steps / 2 * 1.0001 + 1e-12).all())
    assert torch.equal(small.weight[3], torch.zeros(24))
    assert int(small.quantised.abs().max()) == 127
    assert small.scale.shape == (36, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_linear_of_its_weights_forward_and_backward(backend: str) -> None:
    _, small = layer(backend=backend)
    plain = nn.Linear(24, 36)
    plain.weight, plain.bias = nn.Parameter(small.weight), nn.Parameter(small.bias.clone())
    x, dy = torch.randn(5, 7, 24), torch.randn(5, 7, 36)
    results = []
    for one in (plain, small):
        given = x.clone().requires_grad_()
        y = one(given)
        y.backward(dy)
        results.append((y.detach(), given.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=2e-5, rtol=1e-5)
    assert small.bias.grad is None
    assert not small(x).requires_grad  # nothing below wants a gradient: no graph


def test_autocast_computes_in_bf16() -> None:
    _, small = layer()
    x = torch.randn(5, 24).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = small(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), small(x), atol=0.3, rtol=0.05)
    y.float().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, small.weight.sum(0).expand(5, -1), atol=0.3, rtol=0.05)


def test_the_base_takes_half_of_its_memory(toy: Any) -> None:
    """By formula on GPT-2 small: a byte and a 768th or a 3,072nd of four for each weight of the blocks."""
    model = toy.model()
    before = [p.numel() for p in model.parameters()]
    assert quantise_base(model) == 12
    inner = sum(module.quantised.numel() for module in model.modules() if isinstance(module, QuantisedLinear))
    assert inner == 3 * 12 * 24 * 24
    assert sum(p.numel() for p in model.parameters()) == sum(before) - inner
    small = gpt2_small()
    weights = 12 * 12 * 768 * 768
    rows = 12 * (3 * 768 + 768 + 3072 + 768)
    assert (weights + 4 * rows + 4 * (small.parameters - weights)) / (4 * small.parameters) < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in KINDS if name != "last"])
def test_every_adapter_lies_over_an_int8_base(toy: Any, name: str, backend: str) -> None:
    """It gives what it gives over plain Linears of the same weights, and its gradients."""
    ids = toy.ids(3, 12)
    model = toy.model()
    quantise_base(model, backend)
    plain = copy.deepcopy(model)
    assert dequantise_base(plain) == 12
    results = []
    for one in (plain, model):
        one.requires_grad_(True)
        laid = inject(one, toy.method(name))
        toy.stir(laid)
        fast.accelerate(one, 0, 0.0, 0.0, backend)
        loss, _ = losses.next_token(one.train(), ids)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in laid.parameters.values())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, atol=2e-4 * float(a.abs().max().clamp(min=1)), rtol=1e-3)
    remove(model)
    assert sum(isinstance(module, QuantisedLinear) for module in model.modules()) == 12


def test_lora_learns_over_int8_what_it_learns_over_floats(toy: Any) -> None:
    ids = torch.arange(13).repeat(4, 1) + torch.arange(4)[:, None]
    ends = []
    for small in (False, True):
        model = toy.model()
        if small:
            quantise_base(model)
        laid = inject(model, LoraConfig(rank=4))
        optimizer = torch.optim.AdamW(laid.parameters.values(), lr=0.03)
        for _ in range(30):
            loss, count = losses.next_token(model, ids)
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
        ends.append(float(loss.detach()) / count)
    assert max(ends) < 3.6  # from 5.4
    assert ends[1] == pytest.approx(ends[0], rel=0.15)


def test_an_adapter_passes_between_the_int8_base_and_the_float_one(toy: Any, tmp_path: Any) -> None:
    model, name = toy.model(), base_hash(toy.model())
    quantise_base(model)
    assert base_hash(model) == name
    laid = inject(model, LoraConfig(rank=4))
    toy.stir(laid)
    save(tmp_path / "a", laid)
    other = toy.model()
    load(tmp_path / "a", other)
    ids = toy.ids(2, 12)
    difference = (other(ids) - model(ids)).detach().abs().max()
    assert 0 < float(difference) < 0.3  # int8's error alone
    changed = toy.model(seed=2)
    quantise_base(changed)
    with pytest.raises(UserError, match="belongs to the base"):
        load(tmp_path / "a", changed)


def test_what_cannot_be_done_with_int8_says_so(toy: Any, tmp_path: Any) -> None:
    model = toy.model()
    quantise_base(model)
    with pytest.raises(UserError, match=r"h\.2\.attn\.c_attn\.weight is kept in int8"):
        inject(model, toy.method("last"))
    laid = inject(model, toy.method("lora"))
    toy.stir(laid)
    with pytest.raises(UserError, match="the base is in int8"):
        merge(model)
    with pytest.raises(UserError, match="already carries an adapter"):
        quantise_base(model)
    with pytest.raises(UserError, match="did you mean 'onednn'"):
        quantise_base(toy.model(), "onedn")
    ids = toy.ids(2, 12)
    logits = model(ids).detach()
    dequantise_base(model)
    torch.testing.assert_close(model(ids), logits, atol=2e-5, rtol=1e-5)
    merge(model, keep=False)
    folder.save(tmp_path / "merged", model)
    torch.testing.assert_close(folder.load(tmp_path / "merged")[0](ids), logits, atol=2e-5, rtol=1e-5)


def test_quantising_draws_no_random_numbers(toy: Any) -> None:
    model: GPT2 = toy.model()
    state = torch.get_rng_state()
    quantise_base(model)
    inject(model, LoraConfig(rank=2))
    dequantise_base(model)
    merge(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.isfinite(model(toy.ids(1, 5)).detach().numpy()).all()
