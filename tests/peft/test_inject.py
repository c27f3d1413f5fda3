"""One mechanism: what is frozen, what trains, what merges, and that a model comes back bit for bit."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gpt2kit import runtime
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.config import gpt2_medium, gpt2_small
from gpt2kit.peft import (
    PRESETS,
    LastConfig,
    LoraConfig,
    activate,
    adapted,
    inject,
    merge,
    method,
    names,
    remove,
    trainable_parameters,
    unmerge,
)
from gpt2kit.training import fast, loop, losses, optim
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.objectives import TextObjective

from .conftest import FRONTED, KINDS, MERGEABLE

IDENTITIES = [name for name in PRESETS if name not in FRONTED]
needs_onednn = pytest.mark.skipif(not runtime.has_onednn(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [{}, {"labels": ("a", "b", "c"), "n_inner": 17, "n_head": 1}], ids=str)
def test_the_formula_counts_what_trains(toy: Any, name: str, shape: dict[str, Any]) -> None:
    model, settings = toy.model(**shape), toy.method(name)
    laid = inject(model, settings)
    required = [p for p in model.parameters() if p.requires_grad]
    count = trainable_parameters(model.config, settings)
    assert laid.trainable == sum(p.numel() for p in required) == count > 0
    assert len(required) == len(laid.parameters)
    assert ("score.weight" in laid.parameters) == ("labels" in shape)


def test_known_counts() -> None:
    small, medium = gpt2_small(), gpt2_medium()
    assert trainable_parameters(medium, LoraConfig(rank=4)) == 393_216  # the LoRA paper's r = 4 on queries and values
    assert trainable_parameters(small, method("lora")) == 294_912
    assert trainable_parameters(small, method("lora-all")) == 1_179_648 < 0.01 * small.parameters
    assert trainable_parameters(small, method("bitfit")) == 102_144
    assert trainable_parameters(small, method("ia3")) == 12 * (3 * 768 + 3072)
    assert trainable_parameters(small, method("last")) == 7_087_872 + 1_536
    assert trainable_parameters(small, method("prefix")) == 2 * 20 * 12 * 768
    everything = LastConfig(layers=12, also=("wpe",))
    assert trainable_parameters(small, everything) == small.parameters - small.vocab_size * small.n_embd


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_new_adapter_changes_nothing_bit_for_bit(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(3, 17)
    before = model(ids)
    laid = inject(model, toy.method(name))
    assert torch.equal(model(ids), before)
    toy.stir(laid)
    assert float((model(ids) - before).detach().abs().max()) > 0.01


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_the_adapter_and_nothing_else(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(2, 12)
    laid = inject(model, toy.method(name))
    toy.stir(laid)
    loss, _ = losses.next_token(model.train(), ids)
    loss.backward()
    own = {id(p) for p in laid.parameters.values()}
    for parameter_name, parameter in model.named_parameters():
        if id(parameter) in own:
            assert parameter.grad is not None, parameter_name
            assert bool((parameter.grad != 0).any()), parameter_name
        else:
            assert parameter.grad is None, parameter_name


@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "houlsby", "prefix-mlp", "p-tuning-lstm", "ia3"])
def test_gradients_are_those_of_finite_differences(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(2, 9)
    laid = inject(model, toy.method(name))
    toy.stir(laid)
    model.double()
    loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    generator = torch.Generator().manual_seed(3)
    for key, parameter in laid.parameters.items():
        assert parameter.grad is not None
        if name == "dora" and not key.endswith("vector"):
            continue  # its norm is a constant to the gradient, not to the loss: see test_lora.py
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                logits = model(ids)[:, :-1].flatten(0, 1)
                values.append(float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten())))
                parameter.add_(direction, alpha=-step)
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5, abs=1e-8), key


@pytest.mark.parametrize("name", PRESETS)
def test_removing_gives_the_model_back(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(2, 12)
    model.wpe.weight.requires_grad_(False)
    before, logits = toy.weights(model), model(ids)
    kinds = [type(module) for module in model.modules()]
    parameters = [id(p) for p in model.parameters()]
    toy.stir(inject(model, toy.method(name)))
    assert not torch.equal(model(ids), logits)
    remove(model)
    assert torch.equal(model(ids), logits)
    assert [type(module) for module in model.modules()] == kinds
    assert [id(p) for p in model.parameters()] == parameters
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["wpe.weight"]
    assert adapted(model) is None
    assert "hidden" not in model.__dict__


# Merging


def expected_weights(model: Any) -> dict[str, Any]:
    """Merged weights and biases in float64, from the papers' formulas."""
    found = {}
    laid = adapted(model)
    assert laid is not None
    tensors = {name: tensor.detach().double().numpy() for name, tensor in laid.parts.tensors().items()}
    for linear, delta in laid.parts.deltas.items():
        base = model.get_submodule(linear).base
        weight, bias = base.weight.detach().double().numpy(), base.bias.detach().double().numpy()
        own = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{linear}.")}
        if "ia3_l" in own:
            bias = bias * own["ia3_l"][:, 0] if own["ia3_l"].shape[1] == 1 else bias
            weight = weight * own["ia3_l"]
        else:
            scaled = own["lora_A"] * own["lora_E"] if "lora_E" in own else own["lora_A"]
            weight = weight + delta.scale * own["lora_B"] @ scaled
        if "lora_magnitude_vector" in own:
            weight = weight * (own["lora_magnitude_vector"] / np.sqrt((weight**2).sum(1)))[:, None]
        found |= {f"{linear}.weight": weight, f"{linear}.bias": bias}
    return found


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_is_exact_to_one_ulp_on_square_and_threefold_projections(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(2, 12)
    changes = {"targets": "c_attn|c_proj"} if name in ("lora", "rslora", "dora", "adalora") else {}
    toy.stir(inject(model, toy.method(name, **changes)))
    expected, logits = expected_weights(model), model(ids)
    merge(model)
    own = dict(model.named_parameters())
    for key, value in expected.items():
        got = own[key].numpy()
        assert bool((np.abs(got - value) <= np.spacing(np.abs(value).astype(np.float32))).all()), key
    if changes:
        assert {tuple(own[key].shape) for key in expected if key.endswith("weight")} >= {(24, 24), (72, 24)}
    torch.testing.assert_close(model(ids), logits, atol=2e-5, rtol=1e-5)  # float32, other products
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", MERGEABLE)
def test_merge_then_unmerge_is_the_identity(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(2, 12)
    laid = inject(model, toy.method(name))
    toy.stir(laid)
    before, logits = toy.weights(model), model(ids)
    merge(model)
    unmerge(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(model(ids), logits)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in laid.parameters.values()}


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_merged_model_is_saved_and_loaded_as_a_plain_one(toy: Any, name: str, tmp_path: Any) -> None:
    model, ids = toy.model(), toy.ids(2, 12)
    toy.stir(inject(model, toy.method(name)))
    logits = model(ids).detach()
    with pytest.raises(UserError, match="adapter") if name not in ("bitfit", "last") else _nothing():
        folder.save(tmp_path / "unmerged", model)
    merge(model, keep=False)
    assert names(model) == []
    assert all(p.requires_grad for p in model.parameters())
    folder.save(tmp_path / "merged", model)
    loaded, _ = folder.load(tmp_path / "merged")
    torch.testing.assert_close(loaded(ids), logits, atol=2e-5, rtol=1e-5)


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in MERGEABLE])
def test_what_is_no_weight_does_not_merge(toy: Any, name: str) -> None:
    model = toy.model()
    inject(model, toy.method(name))
    with pytest.raises(UserError, match="cannot be merged"):
        merge(model)


def test_merging_and_unmerging_out_of_turn_is_refused(toy: Any) -> None:
    model = toy.model()
    with pytest.raises(UserError, match="carries no adapter"):
        merge(model)
    inject(model, toy.method("lora"))
    with pytest.raises(UserError, match="no adapter is merged"):
        unmerge(model)
    merge(model)
    for act in (lambda: merge(model), lambda: activate(model, None), lambda: inject(model, toy.method("ia3"), "b")):
        with pytest.raises(UserError, match="'default' is merged"):
            act()
    remove(model)
    assert names(model) == []


# Several adapters on one base


def test_adapters_of_all_methods_live_on_one_base_and_switch(toy: Any) -> None:
    ids = toy.ids(2, 12)
    alone = {}
    for index, name in enumerate(PRESETS):
        model = toy.model()
        toy.stir(inject(model, toy.method(name)), seed=index)
        alone[name] = model(ids).detach()
    model = toy.model()
    plain = model(ids).detach()
    for index, name in enumerate(PRESETS):
        toy.stir(inject(model, toy.method(name), name), seed=index)
    assert names(model) == list(PRESETS)
    for name in [*reversed(PRESETS), *PRESETS]:
        laid = activate(model, name)
        assert adapted(model) is laid
        assert laid is not None
        assert torch.equal(model(ids), alone[name]), name
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in laid.parameters.values()}
    activate(model, None)
    assert torch.equal(model(ids), plain)
    for name in ("lora", "last", "prompt"):
        remove(model, name)
    assert torch.equal(model(ids), plain)
    activate(model, "dora")
    assert torch.equal(model(ids), alone["dora"])
    merge(model)
    torch.testing.assert_close(model(ids), alone["dora"], atol=2e-5, rtol=1e-5)
    unmerge(model)
    for name in names(model):
        activate(model, name)
        assert torch.equal(model(ids), alone[name]), name
    remove(model)
    assert torch.equal(model(ids), plain)
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_that_takes_a_copy_copies_the_base_and_not_another_adapter(toy: Any) -> None:
    model = toy.model()
    bias = model.ln_f.bias.detach().clone()
    toy.stir(inject(model, toy.method("bitfit"), "a"))
    laid = inject(model, toy.method("last"), "b")
    assert torch.equal(laid.parameters["ln_f.bias"], bias)
    remove(model, "a")
    remove(model, "b")
    assert torch.equal(model.ln_f.bias, bias)


def test_unknown_and_taken_names(toy: Any) -> None:
    model = toy.model()
    inject(model, toy.method("lora"), "reviews")
    with pytest.raises(UserError, match="did you mean 'reviews'"):
        activate(model, "review")
    with pytest.raises(UserError, match="did you mean 'reviews'"):
        remove(model, "review")
    with pytest.raises(UserError, match="already has an adapter 'reviews'"):
        inject(model, toy.method("lora"), "reviews")
    for name in ("", "a.b"):
        with pytest.raises(UserError, match="name cannot be"):
            inject(model, toy.method("lora"), name)
    inject(model, toy.method("lora"), "train")  # a name that modules have for themselves
    assert names(model) == ["reviews", "train"]


def test_a_refused_adapter_leaves_the_model_as_it_was(toy: Any) -> None:
    model = toy.model()
    with pytest.raises(UserError, match="no score to train"):
        inject(model, toy.method("lora", also=("score",)))
    assert all(p.requires_grad for p in model.parameters())
    assert "adapters" not in model.__dict__
    with pytest.raises(UserError, match="trains nothing"):
        inject(model, LastConfig(layers=0, ln_f=False))
    assert all(p.requires_grad for p in model.parameters())


def test_only_a_float32_base_carries_adapters(toy: Any) -> None:
    with pytest.raises(UserError, match="float32"):
        inject(toy.model().bfloat16(), toy.method("lora"))


@pytest.mark.parametrize("name", ["lora", "bitfit", "prefix", "prompt"])
def test_a_deep_copy_is_a_model_of_its_own(toy: Any, name: str) -> None:
    model, ids = toy.model(), toy.ids(2, 12)
    toy.stir(inject(model, toy.method(name)))
    logits = model(ids).detach()
    other = copy.deepcopy(model)
    assert torch.equal(other(ids), logits)
    toy.stir(adapted(other))
    assert not torch.equal(other(ids), logits)
    assert torch.equal(model(ids), logits)
    remove(other)
    assert torch.equal(model(ids), logits)


# With the training loop's parts


@pytest.mark.parametrize("backend", ["aten", pytest.param("onednn", marks=needs_onednn)])
@pytest.mark.parametrize("name", KINDS)
def test_accelerate_and_plain_leave_adapters_alone(toy: Any, name: str, backend: str) -> None:
    model, ids = toy.model(resid_pdrop=0.1), toy.ids(3, 12)
    laid = inject(model, toy.method(name))
    toy.stir(laid)
    before, keys, kinds = model(ids), list(model.state_dict()), [type(m) for m in model.modules()]
    fast.accelerate(model, 5, 0.0, 0.0, backend)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=2e-5)
    if backend == "onednn":
        wrapped = list(laid.parts.deltas)
        assert all(isinstance(model.get_submodule(f"{linear}.base"), fast.OneDnnLinear) for linear in wrapped)
        assert isinstance(model.h[0].mlp.c_fc, fast.OneDnnLinear) == ("h.0.mlp.c_fc" not in wrapped)
    loss, _ = losses.next_token(model.train(), ids)
    loss.backward()
    assert all(p.grad is not None for p in laid.parameters.values())
    fast.plain(model.eval())
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(ids), before)
    remove(model)


@pytest.mark.parametrize("name", KINDS)
def test_one_batch_of_eight_is_eight_of_one(toy: Any, name: str) -> None:
    """Dropout too: its masks belong to the rows of the global batch."""
    model, ids = toy.model(resid_pdrop=0.2), toy.ids(8, 13)
    changes = {"dropout": 0.3} if name in ("lora-all", "dora", "adalora") else {}
    laid = inject(model, toy.method(name, **changes))
    toy.stir(laid)
    fast.accelerate(model, 5, 0.2)
    model.train()
    results = []
    for size in (8, 1, 3):
        model.zero_grad()
        total = 0.0
        for start in range(0, 8, size):
            fast.PLACE.step, fast.PLACE.first_row = 4, start
            loss, _ = losses.next_token(model, ids[start : start + size])
            loss.backward()
            total += float(loss.detach())
        results.append((total, [p.grad.clone() for p in laid.parameters.values() if p.grad is not None]))
    for total, gradients in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-6)
        for one, whole in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(one, whole, rtol=1e-4, atol=2e-5 * float(whole.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", ["lora", "prefix-mlp", "p-tuning-lstm", "last"])
def test_workers_share_an_adapted_model(toy: Any, name: str) -> None:
    """Two threads that each take half of the batch find the gradients of one, masks and all."""
    results = []
    for workers in (1, 2):
        model = toy.model(resid_pdrop=0.2)
        laid = inject(model, toy.method(name, **({"dropout": 0.3} if name == "lora" else {})))
        toy.stir(laid)
        config = TrainConfig(batch=8, context=12, workers=workers, precision="fp32")
        fast.accelerate(model, 5, 0.2)
        objective = TextObjective(config, 97, None)
        precision = runtime.Precision("fp32", "aten", "for the test")
        gradients = loop.Gradients(model.train(), objective, config, precision, torch.device("cpu"))
        total, count = gradients(toy.ids(8, 13).numpy(), 4)
        gradients.close()
        results.append((total, count, [p.grad for p in laid.parameters.values()]))
    assert results[1][:2] == (pytest.approx(results[0][0], rel=1e-6), results[0][1])
    for one, two in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=2e-5 * float(one.abs().max().clamp(min=1)))


def trained(toy: Any, name: str, steps: range, laid: Any = None, state: Any = None) -> tuple[Any, Any]:
    """Steps of AdamW with dropout, from the start or from a state."""
    config = TrainConfig(optimizer="adamw", learning_rate=0.01, steps=8, warmup=0, seed=3)
    if laid is None:
        changes = {"dropout": 0.2} if name in ("lora-all", "dora", "adalora") else {}
        changes |= {"start": 0.1, "settle": 0.3, "every": 2} if name == "adalora" else {}
        laid = inject(toy.model(resid_pdrop=0.1), toy.method(name, seed=7, **changes))
    model = laid.model
    optimizers = optim.build(model, config)
    if state is not None:
        laid.load_state_tensors(state[0])
        for parameter, values in zip(laid.parameters.values(), state[1], strict=True):
            optimizers[0].state[parameter] = {key: value.clone() for key, value in values.items()}
    fast.accelerate(model, config.seed, 0.1)
    model.train()
    for step in steps:
        fast.PLACE.step, fast.PLACE.first_row = step, 0
        model.zero_grad()
        loss, count = losses.next_token(model, toy.ids(4, 13, seed=step))
        penalty = laid.penalty()
        (loss if penalty is None else loss + count * penalty).backward()
        optim.update(optimizers, 1.0, count, 1.0)
        laid.after_step(step + 1, 8)
    fast.plain(model)
    after = {key: value.clone() for key, value in laid.state_tensors().items()}
    moments = [
        {key: value.clone() for key, value in optimizers[0].state[parameter].items()}
        for parameter in laid.parameters.values()
    ]
    return laid, (after, moments)


@pytest.mark.parametrize("name", KINDS)
def test_stopped_and_resumed_training_makes_the_same_bits(toy: Any, name: str) -> None:
    _, straight = trained(toy, name, range(8))
    _, half = trained(toy, name, range(3))
    torch.manual_seed(99)  # another process: nothing may hang on torch's generator
    _, resumed = trained(toy, name, range(3, 8), state=half)
    assert straight[0].keys() == resumed[0].keys()
    for key, value in straight[0].items():
        assert torch.equal(value, resumed[0][key]), key
    assert any(not torch.equal(value, half[0][key]) for key, value in straight[0].items())


@pytest.mark.parametrize("name", KINDS)
def test_every_method_learns(toy: Any, name: str) -> None:
    """On one fixed batch the loss falls; the base does not move."""
    model = toy.model()
    ids = torch.arange(13).repeat(4, 1) + torch.arange(4)[:, None]
    before = toy.weights(model)
    laid = inject(model, toy.method(name))
    optimizers = optim.build(model, TrainConfig(optimizer="adamw", learning_rate=0.03, weight_decay=0.0))
    found = []
    for step in range(30):
        model.zero_grad()
        loss, count = losses.next_token(model, ids)
        loss.backward()
        optim.update(optimizers, 1.0, count, 1.0)
        laid.after_step(step + 1, 30)
        found.append(float(loss.detach()) / count)
    assert found[-1] < 0.95 * found[0]
    remove(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_state_of_another_adapter_is_refused_by_name(toy: Any) -> None:
    laid = inject(toy.model(), toy.method("lora"))
    state = laid.state_tensors()
    other = dict(state)
    del other["h.1.attn.c_attn.lora_B"]
    with pytest.raises(UserError, match=re.escape("h.1.attn.c_attn.lora_B")):
        laid.load_state_tensors(other)
    with pytest.raises(UserError, match="has shape"):
        laid.load_state_tensors({**state, "h.1.attn.c_attn.lora_B": torch.zeros(3, 3)})


def test_nothing_below_the_first_adapter_keeps_a_graph(toy: Any) -> None:
    model = toy.model()
    inject(model, LoraConfig(rank=2, targets=r"h\.2\.attn\.c_attn"))
    seen: dict[str, bool] = {}
    for name in ("h.0", "h.1", "h.2"):
        model.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.update({name: y.requires_grad}))
    model(toy.ids(2, 9))
    assert seen == {"h.0": False, "h.1": False, "h.2": True}
