"""Our network against transformers' on tiny random models: logits and every gradient, in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from gpt2kit.model.config_file import config_values, read_config
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.model.headers import is_transposed

ATOL = 2e-5  # fp32: the same products in another summation order

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one head": {"n_head": 1},
    "odd heads": {"n_head": 5, "n_embd": 35},
    "head size 1": {"n_head": 24},
    "one layer": {"n_layer": 1},
    "untied": {"tie_word_embeddings": False},
    "n_inner": {"n_inner": 17},
    "wide n_inner": {"n_inner": 200},
    "by layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "unscaled by layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "exact gelu": {"activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "swish": {"activation_function": "swish"},
    "tanh": {"activation_function": "tanh"},
    "pytorch tanh gelu": {"activation_function": "gelu_pytorch_tanh"},
}


def pair(fields: dict[str, Any], seed: int = 0) -> tuple[GPT2, Any]:
    """The same random weights in our model and in transformers'; large ones, so that every part matters."""
    shape = {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4} | fields
    ours = GPT2(GPT2Config(**shape)).eval()
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("ln_" in name))
            other = named(theirs, name)
            other.copy_(parameter.t() if is_transposed(name) else parameter)
    return ours, theirs


def named(theirs: Any, name: str) -> Any:
    return theirs.get_parameter(name if name == "lm_head.weight" else f"transformer.{name}")


def ids(B: int, T: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(97, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_every_gradient_equal_transformers(variant: str) -> None:
    ours, theirs = pair(VARIANTS[variant])
    x = ids(3, 19)
    logits, expected = ours(x), theirs(x).logits
    torch.testing.assert_close(logits, expected, atol=ATOL, rtol=1e-5)
    assert expected.std() > 0.1  # else everything would agree
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    reference = theirs(x, labels=x).loss  # transformers shifts the labels itself
    torch.testing.assert_close(loss, reference, atol=ATOL, rtol=1e-6)
    loss.backward()
    reference.backward()
    for name, parameter in ours.named_parameters():
        gradient = named(theirs, name).grad
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, gradient.t() if is_transposed(name) else gradient, atol=ATOL, rtol=1e-4, msg=name
        )


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batches_equal_transformers(side: str) -> None:
    ours, theirs = pair({"n_head": 3})
    x = ids(4, 15)
    positions = torch.full((4, 15), -1)
    for row, length in enumerate([15, 11, 4, 1]):
        place = slice(15 - length, None) if side == "left" else slice(None, length)
        positions[row, place] = torch.arange(length)
    mask = positions >= 0
    expected = theirs(x, attention_mask=mask.long(), position_ids=positions.clamp(min=0)).logits
    torch.testing.assert_close(ours(x, positions=positions)[mask], expected[mask], atol=ATOL, rtol=1e-5)


@torch.no_grad()
def test_input_embeddings_equal_transformers() -> None:
    ours, theirs = pair({})
    embeds = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(embeds=embeds), theirs(inputs_embeds=embeds).logits, atol=ATOL, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_goes_to_transformers_and_back(variant: str) -> None:
    shape = {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4, "eos_token_id": 5}
    config = GPT2Config(**(shape | {"bos_token_id": 7} | VARIANTS[variant]))
    theirs = transformers.GPT2Config(**config_values(config))
    back, notes = read_config(theirs.to_dict())
    assert back == config
    assert notes == []
