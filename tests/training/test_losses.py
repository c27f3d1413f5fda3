"""The chunked cross-entropy is F.cross_entropy, in loss and in every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.headers import is_transposed
from gpt2kit.training import fast, losses

B, T, V = 3, 16, 65


def reference(model: GPT2, hidden: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    logits = F.linear(hidden, model.head).flatten(0, 1)
    return F.cross_entropy(
        logits, targets.flatten(), reduction="sum", ignore_index=losses.IGNORED, label_smoothing=smoothing
    )


def gradients(model: GPT2, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def compare(model: GPT2, tokens: Tensor, targets: Tensor, smoothing: float = 0.0, scale: float = 1.0) -> None:
    loss, count = losses.cross_entropy(model, model.hidden(tokens), targets, smoothing)
    expected = reference(model, model.hidden(tokens), targets, smoothing)
    assert count == int((targets != losses.IGNORED).sum())
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    ours, theirs = gradients(model, loss * scale), gradients(model, expected * scale)
    for name in theirs:  # sums over 48 rows in another order
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5 * abs(scale), msg=name)


@pytest.mark.parametrize("rows", [1, 7, 48, 100])  # 7 does not divide 48
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_the_whole_logits(
    toy: Any, monkeypatch: pytest.MonkeyPatch, rows: int, tied: bool
) -> None:
    monkeypatch.setattr(losses, "LOGITS_BYTES", rows * 4 * V)
    compare(toy.model(tie_word_embeddings=tied), toy.ids(B, T), toy.ids(B, T, seed=1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_targets_count_for_nothing(toy: Any, monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    monkeypatch.setattr(losses, "LOGITS_BYTES", 5 * 4 * V)
    targets = toy.ids(B, T, seed=1)
    targets[1] = losses.IGNORED
    targets[2, 3:9] = losses.IGNORED
    compare(toy.model(), toy.ids(B, T), targets, smoothing)


@pytest.mark.parametrize("smoothing", [0.05, 0.3])
def test_label_smoothing_is_torchs(toy: Any, smoothing: float) -> None:
    compare(toy.model(), toy.ids(B, T), toy.ids(B, T, seed=1), smoothing)


@pytest.mark.parametrize("scale", [0.25, -3.0])
def test_an_upstream_gradient_is_passed_on(toy: Any, scale: float) -> None:
    compare(toy.model(), toy.ids(B, T), toy.ids(B, T, seed=1), scale=scale)


def test_one_workers_kernel_agrees_with_that_of_all_cores(toy: Any) -> None:
    model, batch = toy.model(), toy.ids(B, T + 1)
    results = []
    for fast.PLACE.parallel in (False, True):
        loss, _ = losses.next_token(model, batch, 0.1)
        results.append([loss, *gradients(model, loss).values()])
    for a, b in zip(*results, strict=True):  # two compilations of one loop: sums over V may be ordered otherwise
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_extreme_logits_stay_finite(toy: Any) -> None:
    model = toy.model()
    hidden = (torch.randn(1, 4, 32) * 1e4).requires_grad_()
    loss, _ = losses.cross_entropy(model, hidden, toy.ids(1, 4))
    expected = reference(model, hidden, toy.ids(1, 4))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert torch.isfinite(torch.autograd.grad(loss, hidden)[0]).all()


def test_without_gradients_none_are_made(toy: Any) -> None:
    model, batch = toy.model(), toy.ids(B, T + 1)
    products: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.ops.aten.mm.out, torch.ops.aten.addmm_.default):
                products.append(str(function))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        loss, _ = losses.next_token(model, batch)
    assert not loss.requires_grad
    assert products == []
    with Watch():
        again, _ = losses.next_token(model, batch)
    assert products != []
    assert torch.equal(loss, again)


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_autocast_is_as_near_as_torchs_own(toy: Any, tied: bool) -> None:
    """bf16 has 8 bits: one part in 256 a product. Both must lie within 3 % of the fp32 gradients, in norm."""
    model, batch = toy.model(tie_word_embeddings=tied), toy.ids(4, T + 1)
    exact = gradients(model, reference(model, model.hidden(batch[:, :-1]), batch[:, 1:]))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = losses.next_token(model, batch)
        whole = reference(model, model.hidden(batch[:, :-1]), batch[:, 1:])
    torch.testing.assert_close(loss, whole, rtol=2e-3, atol=0)
    ours = gradients(model, loss)
    for name, value in exact.items():
        assert ours[name].dtype == torch.float32
        assert (ours[name] - value).norm() <= 0.03 * value.norm() + 1e-4, name


def test_bf16_rounds_the_heads_gradient_once_a_chunk_only(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's gradient is summed in float32 over the chunks: many chunks are no worse than one."""
    model, batch = toy.model(), toy.ids(16, T + 1)
    hidden = model.hidden(batch[:, :-1]).detach()
    exact = torch.autograd.grad(reference(model, hidden, batch[:, 1:]), model.head)[0]
    errors = []
    for rows in (1000, 1):
        monkeypatch.setattr(losses, "LOGITS_BYTES", rows * 4 * V)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = losses.cross_entropy(model, hidden, batch[:, 1:])
        errors.append(float((torch.autograd.grad(loss, model.head)[0] - exact).norm() / exact.norm()))
    assert errors[0] < 0.01
    assert errors[1] < 1.5 * errors[0], errors


def test_next_token_shifts_by_one(toy: Any) -> None:
    """A model that repeats its input is right on a constant sequence and wrong on one that moves by one."""
    model = toy.model()
    batch = toy.ids(B, T + 1)
    loss, count = losses.next_token(model, batch)
    logits = model(batch[:, :-1]).detach()
    by_hand = -sum(float(logits[b, t].double().log_softmax(-1)[batch[b, t + 1]]) for b in range(B) for t in range(T))
    assert count == B * T
    assert float(loss.detach()) == pytest.approx(by_hand, rel=2e-6)
    unshifted = reference(model, model.hidden(batch[:, :-1]), batch[:, :-1])
    assert abs(float(unshifted.detach()) - by_hand) > 1


def test_masked_counts_masked_targets_and_sees_both_sides(toy: Any) -> None:
    model = toy.model()
    inputs, targets = toy.ids(B, T), torch.full((B, T), losses.IGNORED)
    targets[0, 2], targets[2, 9] = 5, 6
    loss, count = losses.masked(model, inputs, targets)
    logits = model(inputs, causal=False).detach().double().log_softmax(-1)
    assert count == 2
    assert float(loss.detach()) == pytest.approx(-float(logits[0, 2, 5] + logits[2, 9, 6]), rel=2e-6)
    later = inputs.clone()
    later[0, 15] = (later[0, 15] + 1) % V
    changed, _ = losses.masked(model, later, targets)
    assert not torch.equal(changed, loss)


def test_mean_loss_weighs_tokens_not_batches(toy: Any) -> None:
    model = toy.model().eval()
    windows = toy.ids(7, T + 1).numpy()
    whole = losses.mean_loss(model, windows, 7)
    assert losses.mean_loss(model, windows, 3) == pytest.approx(whole, rel=1e-6)
    logits = model(torch.from_numpy(windows[:, :-1])).detach().flatten(0, 1)
    assert whole == pytest.approx(float(F.cross_entropy(logits, torch.from_numpy(windows[:, 1:]).flatten())), rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_loss_and_gradients_are_transformers(toy: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model = toy.model()
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=V, n_positions=T, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.transformer.named_parameters():
            value = ours[name]
            parameter.copy_(value.t() if is_transposed(name) else value)
    batch = toy.ids(B, T + 1)
    fast.accelerate(model, 0)
    loss, count = losses.next_token(model, batch)
    (loss / count).backward()
    logits = theirs(input_ids=batch[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    expected.backward()
    assert float(loss.detach()) / count == pytest.approx(float(expected.detach()), rel=2e-6)
    for name, parameter in theirs.transformer.named_parameters():
        gradient = parameter.grad.t() if is_transposed(name) else parameter.grad
        # fp32, other order of summation, a polynomial exp in GELU and softmax
        torch.testing.assert_close(ours[name].grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_no_gradient_is_made_for_what_is_frozen(toy: Any, frozen: str) -> None:
    """An adapter's base needs none: the head's alone is a third of the loss's work."""
    model = toy.model(tie_word_embeddings=False)
    hidden = model.hidden(toy.ids(B, T)).detach().requires_grad_(frozen == "head")
    model.lm_head.weight.requires_grad_(frozen == "hidden")
    loss, _ = losses.cross_entropy(model, hidden, toy.ids(B, T, seed=1))
    assert loss.grad_fn is not None
    d_hidden, d_head = loss.grad_fn.saved_tensors
    assert (d_hidden is None) == (frozen == "hidden")
    assert (d_head is None) == (frozen == "head")
