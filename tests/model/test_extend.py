"""More rows for new tokens: where they start, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2kit.errors import UserError
from gpt2kit.model.extend import grow
from gpt2kit.model.gpt2 import GPT2, GPT2Config

PARTS = ((3, 5), (3, 5, 7), (12, 0))


def model(**changes: Any) -> GPT2:
    shape: dict[str, Any] = {"vocab_size": 13, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2, **changes}
    return GPT2(GPT2Config(**shape), torch.Generator().manual_seed(3)).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_transplanted_row_is_half_the_mean_of_its_parts(tied: bool) -> None:
    old = model(tie_word_embeddings=tied)
    new = grow(old, 13, PARTS, "transplant")
    assert new.config.vocab_size == 16
    for matrix, before in ((new.wte.weight, old.wte.weight), (new.head, old.head)):
        for row, ids in zip(matrix[13:], PARTS, strict=True):
            torch.testing.assert_close(row, before[list(ids)].mean(0) / 2)


def test_old_tokens_keep_their_logits_bit_by_bit_among_themselves() -> None:
    old = model()
    new = grow(old, 13, PARTS)
    ids = torch.tensor([[1, 12, 0, 4]])
    with torch.no_grad():
        assert torch.equal(new.hidden(ids), old.hidden(ids))
        torch.testing.assert_close(new(ids)[..., :13], old(ids))
    assert all(torch.equal(a, new.state_dict()[n][: len(a)]) for n, a in old.state_dict().items())


def test_a_transplanted_tokens_logit_is_at_first_half_the_mean_of_its_parts() -> None:
    old = model()
    with torch.no_grad():
        logits = grow(old, 13, PARTS)(torch.tensor([[1, 2]]))[0, -1]
    torch.testing.assert_close(logits[14], logits[[3, 5, 7]].mean() / 2)


def test_a_shift_moves_transplanted_rows_together() -> None:
    old = model()
    plain, half, whole = (grow(old, 13, PARTS, shift=shift).wte.weight[13:].detach() for shift in (0.0, 0.5, 1.0))
    torch.testing.assert_close(whole.mean(0), old.wte.weight.detach().mean(0))
    torch.testing.assert_close(half, (plain + whole) / 2)
    torch.testing.assert_close(plain - plain.mean(0), whole - whole.mean(0))


def test_the_mean_is_of_the_rows_that_tokens_have() -> None:
    old = model(vocab_size=20)  # padded: 13 of the rows are tokens
    new = grow(old, 13, PARTS, "mean")
    assert new.config.vocab_size == 20
    torch.testing.assert_close(new.wte.weight[13:16], old.wte.weight[:13].mean(0).expand(3, -1))
    assert torch.equal(new.wte.weight[16:], old.wte.weight[16:])


def test_random_rows_follow_the_seed_and_a_new_models_spread() -> None:
    old = model(n_embd=64)
    parts = [(1, 2)] * 500
    first, again, other = (grow(old, 13, parts, "random", seed).wte.weight[13:].detach() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.02, rel=0.02)
    assert float(first.mean()) == pytest.approx(0.0, abs=5e-4)


def test_a_classifiers_head_and_the_gradient_of_tied_rows_are_there() -> None:
    old = model(labels=("a", "b"))
    new = grow(old, 13, PARTS)
    assert torch.equal(new.score.weight, old.score.weight)
    new(torch.tensor([[14, 15]])).logsumexp(-1).sum().backward()
    assert new.wte.weight.grad is not None
    assert bool((new.wte.weight.grad[13:] != 0).any(1).all())


def test_an_unknown_start_is_refused_with_the_near_name() -> None:
    with pytest.raises(UserError, match="did you mean 'transplant'"):
        grow(model(), 13, PARTS, "transplants")  # type: ignore[arg-type]
