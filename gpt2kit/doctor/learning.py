"""Proofs of the gradients and of the training loss (identities 4, 5 and 14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.doctor import oracle
from gpt2kit.doctor.proofs import Failed, random_ids, require, run, shape_of, tiny, weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.model.gpt2 import GPT2

UNSHIFTED = "unshifted labels: each token is trained to predict itself instead of the next one"


def plain_loss(model: GPT2, batch: Tensor) -> Tensor:
    """The sum of -log p(next token), written out: batch [B, T + 1]."""
    scores = model(batch[:, :-1])
    chosen: Tensor = scores.log_softmax(-1).gather(-1, batch[:, 1:, None])
    return -chosen.sum()


def gradients(model: GPT2, loss: Tensor) -> dict[str, oracle.Array]:
    import torch

    model.zero_grad()
    torch.autograd.backward(loss)
    return {n: p.grad.double().numpy().copy() for n, p in model.named_parameters() if p.grad is not None}


def prove_gradients() -> str:
    """Identity 5: finite differences along a random direction of every parameter, the tied one among them."""
    import torch

    model = tiny(n_layer=1)
    batch = random_ids(model, 2, 8)
    found = gradients(model, plain_loss(model, batch))
    rng, step, worst = np.random.default_rng(3), 1e-5, 0.0
    for name, parameter in model.named_parameters():
        direction = rng.standard_normal(parameter.shape)
        values = []
        with torch.no_grad():
            original = parameter.clone()
            for sign in (1, -1):
                parameter.copy_(original + sign * step * torch.from_numpy(direction))
                values.append(float(plain_loss(model, batch).detach()))
            parameter.copy_(original)
        numeric = (values[0] - values[1]) / (2 * step)
        analytic = float((found.get(name, np.zeros(1)) * direction).sum())
        error = abs(numeric - analytic) / max(1.0, abs(numeric))
        if not error < 1e-6:  # step 1e-5 squared, and rounding of 1e-16 / 1e-5
            raise Failed(f"the gradient of {name} is {analytic:.6g} in a direction, by differences {numeric:.6g}")
        worst = max(worst, error)
    return f"{len(found)} kinds of parameter agree with finite differences to {worst:.0e}"


def prove_loss() -> str:
    """Identity 14: the training loss is the oracle's sum over the next tokens, and its gradient the plain
    one.
    """
    from gpt2kit.training import losses

    model = tiny("float32")
    batch = random_ids(model, 3, 10)
    total, count = losses.next_token(model, batch)
    weights, shape = weights_of(model), shape_of(model.config)
    rows = [row.tolist() for row in batch]
    scores = [oracle.logits(weights, row[:-1], shape) for row in rows]
    expected = sum(float(oracle.nll(s, row[1:]).sum()) for s, row in zip(scores, rows, strict=True))
    unshifted = sum(float(oracle.nll(s, row[:-1]).sum()) for s, row in zip(scores, rows, strict=True))
    late = sum(float(oracle.nll(s[:-1], row[2:]).sum()) for s, row in zip(scores, rows, strict=True))
    value, number = float(total.detach()), float(count)
    if abs(value - expected) > 1e-4 * expected:
        guesses = (
            (unshifted, UNSHIFTED),
            (late, "labels shifted twice"),
            (expected / number, "a mean instead of a sum"),
        )
        likely = next((f": {words}" for guess, words in guesses if abs(value - guess) < 1e-4 * abs(guess)), "")
        raise Failed(f"the training loss sums to {value:.4f}, the formulas give {expected:.4f}{likely}")
    if number != batch[:, 1:].numel():
        raise Failed(f"the training loss counts {number:g} targets, there are {batch[:, 1:].numel()}")
    found = gradients(model, losses.next_token(model, batch)[0])
    for name, gradient in gradients(model, plain_loss(model, batch)).items():
        require(found.get(name, np.zeros(1)), gradient, "float32", f"the training loss's gradients of {name}")
    return f"sum over {number:g} next tokens {value:.4f}, by the formulas {expected:.4f}; gradients agree"


def prove_masked_loss() -> str:
    """Identity 14, its second half: ignored targets and label smoothing keep the shift."""
    from gpt2kit.training import losses

    model = tiny("float32")
    batch = random_ids(model, 3, 10)
    targets = ragged(batch)
    weights, shape = weights_of(model), shape_of(model.config)
    V = model.config.vocab_size
    for smoothing in (0.0, 0.1):
        expected = 0.0
        for row, wanted in zip(batch.tolist(), targets.tolist(), strict=True):
            scores = oracle.logits(weights, row[:-1], shape)
            every = np.stack([oracle.nll(scores, [v] * len(scores)) for v in range(V)], axis=1)  # T V
            smooth = (1 - smoothing) * oracle.nll(scores, row[1:]) + smoothing * every.mean(axis=1)
            expected += float(smooth[[target >= 0 for target in wanted]].sum())
        total, count = losses.cross_entropy(model, model.hidden(batch[:, :-1]), targets, smoothing)
        value = float(total.detach())
        if abs(value - expected) > 1e-4 * expected or count != int((targets >= 0).sum()):
            raise Failed(
                f"with ignored targets and smoothing {smoothing} the loss sums to {value:.4f} over "
                f"{count}, the formulas give {expected:.4f} over {int((targets >= 0).sum())}"
            )
    return f"{count} of {targets.numel()} targets counted, smoothing 0 and 0.1: the formulas' sums"


def ragged(batch: Tensor) -> Tensor:
    """The next tokens of [B, T + 1], with another number of them ignored in each row."""
    from gpt2kit.training.losses import IGNORED

    targets = batch[:, 1:].clone()
    for row in range(len(targets)):
        targets[row, : 1 + row % (targets.shape[1] - 1)] = IGNORED
    return targets


def prove_accumulation() -> str:
    """Identity 4: the gradient of 1 x 16 rows is that of 16 x 1, with ragged masks too."""
    import torch

    from gpt2kit.training import losses

    model = tiny("float32")
    batch = random_ids(model, 16, 10)
    masked = ragged(batch)
    worst = 0.0
    for targets in (None, masked):

        def loss(rows: slice, targets: Tensor | None = targets) -> tuple[Tensor, int]:
            if targets is None:
                return losses.next_token(model, batch[rows])
            return losses.cross_entropy(model, model.hidden(batch[rows, :-1]), targets[rows])

        total, count = loss(slice(None))
        whole = gradients(model, total / count)
        model.zero_grad()
        for row in range(16):
            torch.autograd.backward(loss(slice(row, row + 1))[0] / count)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            what = f"gradients of {name} accumulated over 16 x 1 and over 1 x 16 rows"
            found = parameter.grad.double().numpy()
            worst = max(worst, require(found, whole[name], "float32", what))
    return f"16 x 1 rows accumulate to the gradient of 1 x 16, ragged masks too; largest error {worst:.0e}"


def prove_fast_parts() -> str:
    """Training's fused parts give the model file's loss and gradients, and are gone when put back."""
    from gpt2kit.training import fast, losses

    model = tiny("float32", attn_pdrop=0.0)
    batch = random_ids(model, 3, 10)
    expected, value = gradients(model, plain_loss(model, batch)), float(plain_loss(model, batch).detach())
    before = run(model, batch)
    fast.accelerate(model, seed=0, dropout=0.0)
    model.train()
    total, _ = losses.next_token(model, batch)
    fused = float(total.detach())
    if abs(fused - value) > 1e-4 * value:
        raise Failed(f"training's fused parts give a loss of {fused:.4f}, the model file {value:.4f}")
    found = gradients(model, total)
    worst = max(require(found[n], g, "float32", f"fused gradients of {n}") for n, g in expected.items())
    fast.plain(model.eval())
    if not np.array_equal(run(model, batch), before):
        raise Failed("the model computes otherwise after training's fused parts were taken out")
    return f"loss and {len(expected)} gradients of the fused parts are the model file's; error {worst:.0e}"


PROOFS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("gradients", prove_gradients),
    ("training loss", prove_loss),
    ("masked and smoothed loss", prove_masked_loss),
    ("gradient accumulation", prove_accumulation),
    ("training's fused parts", prove_fast_parts),
)
