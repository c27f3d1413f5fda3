"""Virtual tokens: where they stand, what positions follow them, and that caches and padding do not notice them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.model.generate import generate
from gpt2kit.model.gpt2 import GPT2, KVCache
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.peft import activate, inject

from .conftest import FRONTED

ATOL = 2e-5  # fp32: the same products in another summation order
P = 5
fronted = pytest.mark.parametrize("name", FRONTED)


def laid_over(toy: Any, name: str, **shape: Any) -> Any:
    model = toy.model(**shape)
    laid = inject(model, toy.method(name))
    toy.stir(laid)
    return laid


def by_hand(toy: Any, laid: Any, ids: Tensor) -> Tensor:
    """Logits of the plain model with the virtual tokens given to it as embeddings, or as a cache filled with them."""
    model, prompt = toy.model(), laid.parts.front.prompt().detach()
    config = model.config
    if laid.method.name != "prefix":
        embeds = torch.cat([prompt.expand(len(ids), -1, -1), model.wte(ids)], 1)
        return model(embeds=embeds)[:, P:]
    cache = KVCache(config, len(ids), P + ids.shape[1])
    for layer in range(config.n_layer):
        for place, kind in ((cache.keys, 0), (cache.values, 1)):
            start = (2 * layer + kind) * config.n_embd
            part = prompt[:, start : start + config.n_embd].view(P, config.n_head, config.head_size)
            place[layer][:, :, :P] = part.transpose(0, 1)
    cache.advance(P)
    return model(ids, cache=cache)


@fronted
@torch.no_grad()
def test_the_front_is_what_the_plain_model_makes_of_virtual_tokens(toy: Any, name: str) -> None:
    laid, ids = laid_over(toy, name), toy.ids(3, 13)
    torch.testing.assert_close(laid.model(ids), by_hand(toy, laid, ids), atol=ATOL, rtol=1e-5)
    assert laid.model(ids).shape == (3, 13, 97)
    assert float((laid.model(ids) - toy.model()(ids)).abs().max()) > 0.05


@fronted
@torch.no_grad()
def test_real_tokens_take_the_positions_behind_the_front(toy: Any, name: str) -> None:
    laid, ids = laid_over(toy, name), toy.ids(2, 7)
    logits = laid.model(ids)
    torch.testing.assert_close(laid.model(ids, positions=torch.arange(7).repeat(2, 1)), logits, atol=ATOL, rtol=1e-5)
    laid.model.wpe.weight[P + 7 :, ::2] += 1.0  # positions that no token has
    assert torch.equal(laid.model(ids), logits)
    laid.model.wpe.weight[P + 6, ::2] += 1.0  # the last token's
    changed = laid.model(ids)
    assert torch.equal(changed[:, :6], logits[:, :6])
    assert not torch.allclose(changed[:, 6], logits[:, 6], atol=1e-3)


@fronted
@torch.no_grad()
def test_a_token_changes_nothing_before_it(toy: Any, name: str) -> None:
    laid, ids = laid_over(toy, name), toy.ids(2, 11)
    logits = laid.model(ids)
    ids[:, 6] = (ids[:, 6] + 1) % 97
    changed = laid.model(ids)
    assert torch.equal(changed[:, :6], logits[:, :6])
    assert bool((changed[:, 6:] != logits[:, 6:]).any())


@fronted
@pytest.mark.parametrize("pieces", [[13], [1] * 13, [6, 7], [9, 1, 3]], ids=str)
@torch.no_grad()
def test_cached_is_uncached(toy: Any, name: str, pieces: list[int]) -> None:
    laid, ids = laid_over(toy, name), toy.ids(3, 13)
    full = laid.model(ids)
    cache = KVCache(laid.model.config, 3, 13)  # room for the caller's tokens only
    parts = [laid.model(part, cache=cache) for part in ids.split(pieces, 1)]
    assert cache.length == 13
    torch.testing.assert_close(torch.cat(parts, 1), full, atol=ATOL, rtol=1e-5)


@fronted
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_padded_rows_are_those_alone(toy: Any, name: str, side: str, cached: bool) -> None:
    laid, ids = laid_over(toy, name), toy.ids(4, 12)
    positions = torch.full((4, 12), -1)
    lengths = [12, 9, 4, 1]
    for row, n in enumerate(lengths):
        positions[row, slice(12 - n, None) if side == "left" else slice(n)] = torch.arange(n)
    cache = KVCache(laid.model.config, 4, 15) if cached else None
    logits = laid.model(ids, cache=cache, positions=positions)
    for row in range(4):
        alone = laid.model(ids[row][positions[row] >= 0][None])
        torch.testing.assert_close(logits[row][positions[row] >= 0], alone[0], atol=ATOL, rtol=1e-5)
    if cache is None or side == "right":
        return
    more = toy.ids(4, 3, seed=2)
    for step in range(3):  # the cache knows which columns are padding
        place = torch.tensor([[n + step] for n in lengths])
        logits = laid.model(more[:, step : step + 1], cache=cache, positions=place)
        if step == 1:
            cache.reorder(torch.tensor([2, 0, 1, 3]))
            more, ids, positions = more[[2, 0, 1, 3]], ids[[2, 0, 1, 3]], positions[[2, 0, 1, 3]]
            lengths = [lengths[i] for i in (2, 0, 1, 3)]
    for row in range(4):
        alone = laid.model(torch.cat([ids[row][positions[row] >= 0], more[row]])[None])
        torch.testing.assert_close(logits[row, -1], alone[0, -1], atol=ATOL, rtol=1e-5)


@fronted
def test_generation_with_and_without_a_cache_gives_the_same_tokens(toy: Any, name: str) -> None:
    laid = laid_over(toy, name)
    settings = SamplingSettings(temperature=0, max_tokens=8)
    prompts = [toy.ids(6).tolist(), toy.ids(3, seed=2).tolist(), toy.ids(9, seed=3).tolist()]

    def tokens(cache: bool, batched: bool = False) -> list[list[int]]:
        return [row[0].token_ids for row in generate(laid.model, prompts, settings, cache=cache, batched=batched)]

    found = tokens(cache=True)
    assert tokens(cache=False) == found
    assert tokens(cache=True, batched=True) == found
    assert tokens(cache=False, batched=True) == found
    activate(laid.model, None)
    assert tokens(cache=True) != found


@fronted
@torch.no_grad()
def test_a_new_generation_sees_the_front_as_it_is_then(toy: Any, name: str) -> None:
    laid, ids = laid_over(toy, name), toy.ids(2, 9)
    cache = KVCache(laid.model.config, 2, 9)
    laid.model(ids, cache=cache)
    toy.stir(laid, seed=8)
    cache.length = 0
    torch.testing.assert_close(laid.model(ids, cache=cache), laid.model(ids), atol=ATOL, rtol=1e-5)


@fronted
@torch.no_grad()
def test_a_classifier_looks_at_the_last_real_token(toy: Any, name: str) -> None:
    laid = laid_over(toy, name, labels=("a", "b"))
    ids, lengths = toy.ids(3, 12), torch.tensor([12, 7, 1])
    scores = laid.model.classify(ids, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone = laid.model.classify(ids[row : row + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(scores[row], alone[0], atol=ATOL, rtol=1e-5)


@fronted
@torch.no_grad()
def test_without_the_causal_mask_every_token_sees_every_other(toy: Any, name: str) -> None:
    laid, ids = laid_over(toy, name), toy.ids(2, 9)
    logits = laid.model(ids, causal=False)
    ids[:, 8] = (ids[:, 8] + 1) % 97
    assert bool((laid.model(ids, causal=False)[:, 0] != logits[:, 0]).any())


@fronted
@torch.no_grad()
def test_what_does_not_fit_behind_the_front_is_refused(toy: Any, name: str) -> None:
    laid = laid_over(toy, name)
    assert laid.room == 32 - P
    assert laid.model(toy.ids(1, 27)).shape == (1, 27, 97)
    with pytest.raises(UserError, match=r"28 tokens and 5 virtual ones exceed .* 32 positions") as caught:
        laid.model(toy.ids(1, 28))
    assert "room for 27 tokens" in str(caught.value)
    cache = KVCache(laid.model.config, 1, 30)
    laid.model(toy.ids(1, 27), cache=cache)
    with pytest.raises(UserError, match="28 tokens and 5"):
        laid.model(toy.ids(1, 1), cache=cache)
    with pytest.raises(UserError, match="28 tokens and 5"):
        laid.model(toy.ids(1, 1), positions=torch.tensor([[27]]))
    with pytest.raises(UserError, match="either tokens or embeds"):
        laid.model()
    with pytest.raises(UserError, match="leave no room"):
        inject(toy.model(), dataclasses.replace(laid.method, tokens=32))


@fronted
@torch.no_grad()
def test_input_embeddings_take_the_place_of_tokens(toy: Any, name: str) -> None:
    laid, ids = laid_over(toy, name), toy.ids(2, 9)
    torch.testing.assert_close(
        laid.model(embeds=laid.model.wte(ids)), laid.model(ids), atol=ATOL, rtol=1e-5
    )  # fmt: skip


def test_a_prompt_starts_as_the_tokens_that_were_given(toy: Any) -> None:
    model = toy.model()
    laid = inject(model, toy.method("prompt", start=(3, 1)))
    expected = model.wte.weight[[3, 1, 3, 1, 3]]
    assert torch.equal(laid.parts.front.prompt(), expected)
    again = inject(toy.model(), toy.method("prompt", seed=1)).parts.front.prompt()
    assert torch.equal(again, inject(toy.model(), toy.method("prompt", seed=1)).parts.front.prompt())
    assert not torch.equal(again, inject(toy.model(), toy.method("prompt", seed=2)).parts.front.prompt())
    assert all(bool((model.wte.weight == row).all(1).any()) for row in again)
    with pytest.raises(UserError, match="id 97"):
        inject(toy.model(), toy.method("prompt", start=(97,)))


def test_the_model_class_itself_is_untouched(toy: Any) -> None:
    plain = GPT2.hidden
    laid = laid_over(toy, "prefix")
    assert GPT2.hidden is plain
    assert "hidden" in laid.model.__dict__
    assert torch.equal(toy.model()(toy.ids(1, 5)), toy.model()(toy.ids(1, 5)))
