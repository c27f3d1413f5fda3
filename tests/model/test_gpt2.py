"""GPT-2's identities: what must hold for any weights, to the bit where the arithmetic allows."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.model import gpt2
from gpt2kit.model.config import GPT2Config, gpt2_large, gpt2_medium, gpt2_small, gpt2_xl
from gpt2kit.model.gpt2 import GPT2, KVCache

SMALL = GPT2Config(vocab_size=61, n_positions=24, n_embd=20, n_layer=3, n_head=5)
ATOL = 5e-6  # fp32, logits of 1 to 5: other shapes, other summation order


def make(config: GPT2Config = SMALL, seed: int = 0, spread: float = 0.25) -> GPT2:
    """A model with large random weights everywhere, so that no part is close to the identity."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config, generator).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.add_(noise) if name.startswith("ln_") or ".ln_" in name else parameter.copy_(noise)
    return model


def tokens(B: int, T: int, seed: int = 0, vocabulary: int = 61) -> Tensor:
    return torch.randint(vocabulary, (B, T), generator=torch.Generator().manual_seed(seed))


# 1 causality


@pytest.mark.parametrize("position", [0, 1, 7, 15])
@torch.no_grad()
def test_changing_a_token_leaves_earlier_logits_bit_equal(position: int) -> None:
    model, x = make(), tokens(3, 16)
    changed = x.clone()
    changed[:, position] = (changed[:, position] + 1) % 61
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert (before[:, position:] != after[:, position:]).any(dim=-1).all()


@torch.no_grad()
def test_lifting_the_mask_lets_every_token_see_every_other() -> None:
    model, x = make(), tokens(2, 9)
    changed = x.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 61
    assert (model(x, causal=False) != model(changed, causal=False)).any(dim=-1).all()
    assert not torch.allclose(model(x, causal=False)[:, 0], model(x)[:, 0], atol=1e-3)
    one = tokens(2, 1)
    assert torch.equal(model(one, causal=False), model(one))


# 2 the cache


@pytest.mark.parametrize("sizes", [[16], [1] * 16, [5, 1, 1, 9], [1, 15], [15, 1]])
@torch.no_grad()
def test_cached_equals_full(sizes: list[int]) -> None:
    model, x = make(), tokens(3, 16)
    cache = KVCache(SMALL, batch=3, capacity=24)
    parts = [model(part, cache=cache) for part in x.split(sizes, dim=1)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), atol=ATOL, rtol=0)


@pytest.mark.parametrize("sizes", [[9], [4, 5], [4, 1, 4], [1] * 9])
@torch.no_grad()
def test_cached_with_padding_equals_single(sizes: list[int]) -> None:
    """Row 0 is whole, row 1 padded left by 3, row 2 has its padding between prompt and continuation."""
    model, x = make(), tokens(3, 9)
    positions = torch.tensor(
        [list(range(9)), [-1] * 3 + list(range(6)), [0, 1, -1, -1, 2, 3, 4, 5, 6]], dtype=torch.long
    )
    cache = KVCache(SMALL, batch=3, capacity=9)
    parts = [
        model(part, cache=cache, positions=place)
        for part, place in zip(x.split(sizes, dim=1), positions.split(sizes, dim=1), strict=True)
    ]
    logits = torch.cat(parts, dim=1)
    for row in range(3):
        real = positions[row] >= 0
        torch.testing.assert_close(logits[row, real], model(x[row, real][None])[0], atol=ATOL, rtol=0)
    assert logits.isfinite().all()


@torch.no_grad()
def test_padding_is_remembered_when_later_steps_bring_no_positions_of_padding() -> None:
    model, x = make(), tokens(2, 8)
    cache = KVCache(SMALL, batch=2, capacity=8)
    first = torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]])
    model(x[:, :5], cache=cache, positions=first)
    step = model(x[:, 5:6], cache=cache, positions=torch.tensor([[3], [5]]))
    torch.testing.assert_close(step[0, 0], model(x[:1, 2:6])[0, -1], atol=ATOL, rtol=0)
    torch.testing.assert_close(step[1, 0], model(x[1:, :6])[0, -1], atol=ATOL, rtol=0)


@torch.no_grad()
def test_cache_rows_can_be_reordered_and_dropped() -> None:
    model, x = make(), tokens(3, 8)
    cache = KVCache(SMALL, batch=3, capacity=8)
    positions = torch.tensor([[-1, 0, 1, 2], [0, 1, 2, 3], [-1, -1, 0, 1]])
    model(x[:, :4], cache=cache, positions=positions)
    rows = torch.tensor([2, 0, 2, 1])
    cache.reorder(rows)
    following = torch.tensor([[2], [3], [2], [4]])
    step = model(x[rows, 4:5], cache=cache, positions=following)
    for index, row in enumerate(rows.tolist()):
        alone = model(x[row, :5][torch.cat([positions[row] >= 0, torch.tensor([True])])][None])
        torch.testing.assert_close(step[index, 0], alone[0, -1], atol=ATOL, rtol=0)
    cache.reorder(torch.tensor([1]))
    assert cache.keys[0].shape == (1, 5, 8, 4)


@torch.no_grad()
def test_a_cache_is_used_again_after_its_length_is_set_back() -> None:
    model, x = make(), tokens(2, 10)
    cache = KVCache(SMALL, batch=2, capacity=10)
    model(tokens(2, 10, seed=5), cache=cache)
    cache.length = 0
    parts = [model(x[:, :6], cache=cache), model(x[:, 6:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), atol=ATOL, rtol=0)


@torch.no_grad()
def test_a_full_cache_and_a_full_context_are_refused_before_anything_changes() -> None:
    model = make()
    cache = KVCache(SMALL, batch=1, capacity=4)
    model(tokens(1, 4), cache=cache)
    with pytest.raises(UserError, match="holds 4 tokens, 4 \\+ 1 do not fit"):
        model(tokens(1, 1), cache=cache)
    assert cache.length == 4
    with pytest.raises(UserError, match="25 tokens exceed the model's 24 positions"):
        model(tokens(1, 25))
    cache = KVCache(SMALL, batch=1, capacity=30)
    model(tokens(1, 24), cache=cache)
    with pytest.raises(UserError, match="25 tokens exceed"):
        model(tokens(1, 1), cache=cache)
    with pytest.raises(UserError, match="either tokens or embeds"):
        model()
    with pytest.raises(UserError, match="either tokens or embeds"):
        model(tokens(1, 1), embeds=torch.zeros(1, 1, 20))


# 3 padding


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_change_logits(side: str) -> None:
    model, length = make(), 8
    single = tokens(1, length)
    expected = model(single)[0]
    for pad in range(1, 17):
        other = tokens(1, length + pad, seed=pad)
        row = tokens(1, length + pad, seed=100 + pad)
        positions = torch.full((2, length + pad), -1)
        positions[1] = torch.arange(length + pad)
        place = slice(pad, None) if side == "left" else slice(None, length)
        row[0, place] = single[0]
        positions[0, place] = torch.arange(length)
        logits = model(torch.cat([row, other]), positions=positions)
        torch.testing.assert_close(logits[0, place], expected, atol=ATOL, rtol=0)
        torch.testing.assert_close(logits[1], model(other)[0], atol=ATOL, rtol=0)
        assert logits.isfinite().all()


@torch.no_grad()
def test_what_the_padding_holds_does_not_matter() -> None:
    model, x = make(), tokens(1, 10)
    positions = torch.tensor([[-1, -1, *range(8)]])
    changed = x.clone()
    changed[0, :2] = (changed[0, :2] + 7) % 61
    assert torch.equal(model(x, positions=positions)[0, 2:], model(changed, positions=positions)[0, 2:])


def test_gradients_with_padding_are_finite_and_equal_single() -> None:
    """Ragged rows in one batch against each row alone, summed: identity 4 for the model's part of it."""
    model, x = make().double(), tokens(3, 9)
    lengths = [9, 6, 2]
    positions = torch.full((3, 9), -1)
    for row, length in enumerate(lengths):
        positions[row, 9 - length :] = torch.arange(length)
    logits = model(x, positions=positions)
    real = positions >= 0
    loss = F.cross_entropy(logits[real], (x[real] + 1) % 61, reduction="sum")
    together = torch.autograd.grad(loss, list(model.parameters()))
    alone = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row, length in enumerate(lengths):
        ids = x[row : row + 1, 9 - length :]
        loss = F.cross_entropy(model(ids)[0], (ids[0] + 1) % 61, reduction="sum")
        for total, part in zip(alone, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total += part
    for (name, _), a, b in zip(model.named_parameters(), together, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9, msg=name)


@torch.no_grad()
def test_embeds_are_the_tokens_own_rows() -> None:
    model, x = make(), tokens(2, 7)
    assert torch.equal(model(embeds=model.wte(x)), model(x))
    assert torch.equal(F.linear(model.hidden(x), model.head), model(x))


@torch.no_grad()
def test_explicit_positions_equal_the_default_and_offset_ones_do_not() -> None:
    model, x = make(), tokens(2, 7)
    plain = torch.arange(7).expand(2, 7)
    assert torch.equal(model(x, positions=plain), model(x))
    assert not torch.allclose(model(x, positions=plain + 1), model(x), atol=1e-3)


# 5 finite differences


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_agree_with_finite_differences_for_every_kind_of_parameter(tied: bool) -> None:
    config = GPT2Config(
        vocab_size=11, n_positions=6, n_embd=6, n_layer=2, n_head=2, n_inner=5, tie_word_embeddings=tied
    )
    model, x = make(config, spread=0.5).double(), tokens(2, 6, vocabulary=11)
    target = tokens(2, 6, seed=1, vocabulary=11)

    def loss() -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), target.flatten())

    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    generator = torch.Generator().manual_seed(2)
    step = 1e-6
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            below = loss()
            parameter += step * direction
        numeric, exact = (above - below) / (2 * step), (gradient * direction).sum()
        assert abs(exact) > 1e-6 or name.endswith("c_attn.bias"), name
        torch.testing.assert_close(numeric, exact, atol=1e-8, rtol=1e-6, msg=f"{name}: {numeric} {exact}")


# 6 heads


@torch.no_grad()
def test_permuting_heads_with_the_columns_of_c_proj_changes_nothing() -> None:
    model, x = make(), tokens(2, 12)
    expected = model(x)
    order = torch.tensor([3, 1, 4, 0, 2])
    D = SMALL.head_size
    channels = (order[:, None] * D + torch.arange(D)).flatten()
    for block in model.h:
        attn = block.attn
        rows = torch.cat([channels + part * SMALL.n_embd for part in range(3)])
        attn.c_attn.weight.copy_(attn.c_attn.weight[rows])
        attn.c_attn.bias.copy_(attn.c_attn.bias[rows])
    assert not torch.allclose(model(x), expected, atol=1e-2)
    for block in model.h:
        block.attn.c_proj.weight.copy_(block.attn.c_proj.weight[:, channels])
    torch.testing.assert_close(model(x), expected, atol=ATOL, rtol=0)


# 13 dropout


@pytest.mark.parametrize("rate", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
@torch.no_grad()
def test_each_dropout_acts_in_training_and_never_in_evaluation(rate: str) -> None:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model, x = make(dataclasses.replace(SMALL, **{**none, rate: 0.5})), tokens(2, 12)
    assert torch.equal(model(x), model(x))
    assert torch.equal(model(x), make(dataclasses.replace(SMALL, **none))(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# Sizes, initialisation


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (gpt2_small(), 124_439_808),
        (gpt2_medium(), 354_823_168),
        (gpt2_large(), 774_030_080),
        (gpt2_xl(), 1_557_611_200),
        (GPT2Config(n_layer=6), 81_912_576),  # distilgpt2
        (GPT2Config(vocab_size=21128), 102_068_736),  # UER's Chinese GPT-2
        (GPT2Config(tie_word_embeddings=False), 124_439_808 + 50257 * 768),
        (GPT2Config(vocab_size=7, n_positions=5, n_embd=6, n_layer=2, n_head=3, n_inner=11), None),
    ],
)
def test_parameter_counts(config: GPT2Config, count: int | None) -> None:
    with torch.device("meta"):
        model = GPT2(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters
    assert count is None or config.parameters == count


@pytest.mark.parametrize("vocabulary", [65, 21128, 50257])
@torch.no_grad()
def test_an_untrained_models_loss_is_about_ln_v(vocabulary: int) -> None:
    config = GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=128, n_layer=2, n_head=4)
    model = GPT2(config, torch.Generator().manual_seed(0)).eval()
    x = tokens(4, 64, vocabulary=vocabulary)
    loss = F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    assert abs(loss.item() - math.log(vocabulary)) < 0.1


def test_initial_weights_are_gpt2s_and_depend_on_the_generator_only() -> None:
    config = GPT2Config(vocab_size=500, n_positions=64, n_embd=96, n_layer=8, n_head=4)
    model = GPT2(config, torch.Generator().manual_seed(0))
    torch.manual_seed(123)
    again = GPT2(config, torch.Generator().manual_seed(0))
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("bias"):
            assert not a.any(), name
        elif "ln_" in name:
            assert (a == 1).all(), name
        else:
            std = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert abs(a.std().item() / std - 1) < 0.05, name
    assert not torch.equal(model.wte.weight, GPT2(config, torch.Generator().manual_seed(1)).wte.weight)


def test_names_are_the_checkpoints() -> None:
    names = set(make().state_dict())
    block = {
        f"{layer}.{part}"
        for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for part in ("weight", "bias")
    }
    expected = {f"h.{index}.{name}" for index in range(3) for name in block}
    assert names == expected | {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, "n_embd 10 must divide by n_head 3"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"n_inner": 0}, "n_inner must be at least 1 or absent, got 0"),
        ({"activation_function": "gelu_nwe"}, "did you mean 'gelu_new'"),
        ({"resid_pdrop": 1.0}, r"resid_pdrop must be in \[0, 1\), got 1.0"),
        ({"attn_pdrop": float("nan")}, "attn_pdrop must be in"),
        ({"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon must be positive and finite"),
        ({"initializer_range": 0.0}, "initializer_range must be positive"),
        ({"eos_token_id": 50257}, "eos_token_id 50257 is outside the vocabulary of 50257 tokens"),
    ],
)
def test_impossible_configs_are_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GPT2Config(**fields)  # type: ignore[arg-type]


# The file itself


def test_the_model_file_is_short_and_imports_torch_config_and_errors_only() -> None:
    source = Path(gpt2.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    code = "import sys; import gpt2kit.model.gpt2; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in result.stdout.split() if name.startswith(("gpt2kit", "safetensors", "token"))}
    loaded -= {"token", "tokenize"}  # the standard library's
    assert loaded <= {"gpt2kit", "gpt2kit.errors", "gpt2kit.model", "gpt2kit.model.config", "gpt2kit.model.gpt2"}
    assert "gpt2kit.model.gpt2" in loaded
