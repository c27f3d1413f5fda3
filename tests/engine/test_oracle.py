"""The oracle of the int8 arithmetic, held against cases made by hand and against the float model file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from oracle import FloatOracle, Oracle, some_smoothing

from gpt2kit.engine import source
from gpt2kit.engine.smoothing import fold, to_int8
from gpt2kit.model.config import ACTIVATION_NAMES, GPT2Config
from gpt2kit.model.gpt2 import GPT2

f32 = np.float32
SHAPE: dict[str, Any] = {"vocab_size": 101, "n_positions": 40, "n_embd": 36, "n_layer": 3, "n_head": 3}
IDS = [5, 99, 3, 3, 57, 0, 100, 42, 8, 11, 31, 77, 5, 5, 64, 23, 9, 1]


def model(seed: int = 0, **changes: Any) -> tuple[GPT2, dict[str, Any]]:
    """Random weights whose blocks answer gently, so that an error of the oracle shows and not the model's own chaos."""
    shape = GPT2Config(**{**SHAPE, **changes})
    tensors = {n: t * f32(0.5) if "c_" in n else t for n, t in source.random_tensors(shape, seed).items()}
    made = GPT2(shape)
    made.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return made.eval(), tensors


def logits(made: GPT2, ids: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(made(torch.tensor([ids]))[0].numpy())


# ---------------------------------------------------------------- the parts


def test_lane_sum_adds_in_its_order() -> None:
    """Numbers so far apart that each order of adding gives another sum."""
    rng = np.random.default_rng(0)
    for n in (1, 15, 16, 17, 50):
        v = (rng.standard_normal(n) * 10.0 ** rng.integers(-8, 8, n)).astype(f32)
        lanes = [f32(0)] * 16
        for i, value in enumerate(v):
            lanes[i % 16] = f32(lanes[i % 16] + value)
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [f32(lanes[j] + lanes[j + half]) for j in range(half)]
        assert oracle.lane_sum(v) == lanes[0]
    tell = np.zeros(17, f32)
    tell[[0, 16, 8]] = 1e8, 1, -1e8  # 1 is lost beside 1e8 in lane 0 before lane 8 takes that away
    assert oracle.lane_sum(tell) == 0


def test_exp_is_close_everywhere_and_clamped() -> None:
    x = np.linspace(-86.9, 87.9, 20001).astype(f32)
    wanted = np.exp(x.astype(np.float64))
    assert np.abs(oracle.exp(x) / wanted - 1).max() < 3e-7
    assert oracle.exp(np.zeros(1, f32))[0] == 1
    edge = oracle.exp(np.array([-87, -1e9, -np.inf, 88, 1e9], f32))
    assert edge[0] == edge[1] == edge[2] > 0
    assert edge[3] == edge[4] < np.inf


def test_quantise_rounds_half_to_even_with_a_scale_a_row() -> None:
    y = np.array([[127, 0.5, 1.5, -2.5, -127], [0, 0, 0, 0, 0], [-2, 1, 0.5, 0, 0]], f32)
    q, scale = oracle.quantise(y)
    assert q.tolist() == [[127, 0, 2, -2, -127], [0, 0, 0, 0, 0], [-127, 64, 32, 0, 0]]
    assert scale.tolist() == [1, 0, f32(2) / f32(127)]


def test_integer_sums_are_exact_and_rounded_once() -> None:
    q, w = np.full((1, 3072), 127, np.int8), np.full((1, 3072), -127, np.int8)
    w[0, 0] = -126
    assert oracle.integer_sum(q, w)[0, 0] == f32(-(127 * 127 * 3071 + 127 * 126))


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_are_torchs(name: str) -> None:
    from gpt2kit.model.gpt2 import ACTIVATIONS

    x = np.linspace(-12, 12, 5001).astype(f32)
    wanted = ACTIVATIONS[name](torch.from_numpy(x)).numpy()
    assert np.abs(oracle.activation(name, x) - wanted).max() < 2e-6  # A&S 7.1.26 is good to 1.5e-7 of erf


def test_attention_of_one_token_is_its_value() -> None:
    qkv = np.array([[3, 1, -2, 5, 0.5, -0.25, 8, 4, 2, -1, 0, 3]], f32)  # C = 4, two heads
    out = oracle.attention(qkv, 2, 1.0)[0]
    assert np.allclose(out, qkv[0, 8:], rtol=2 / 127)
    assert out[0] == f32(f32(255 * 127) * f32(256) + f32(255 * 127)) * (f32(2) / f32(127) / f32(65535))


def test_a_value_of_zeros_gives_zeros() -> None:
    assert not oracle.attention(np.array([[1, 2, 3, 4, 0, 0]], f32), 1, 1.0).any()


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True, "n_inner": 50},
        *({"activation_function": name} for name in ACTIVATION_NAMES[2:]),
    ],
    ids=str,
)
def test_oracle_is_near_the_model_file(changes: dict[str, Any]) -> None:
    made, tensors = model(**changes)
    plain = source.from_tensors(made.config, tensors)
    wanted = logits(made, IDS)
    size = wanted.max() - wanted.min()
    assert np.abs(FloatOracle(plain).logits(IDS) - wanted).max() < 3e-6 * size
    weights = to_int8(plain)
    near = np.abs(Oracle(weights).logits(IDS) - wanted).max() / size
    assert near < 0.03  # eight bits
    assert near > 1e-4
    rounded = np.abs(Oracle(weights).logits(IDS) - FloatOracle(weights).logits(IDS)).max() / size
    assert rounded < near * 1.5  # with the same int8 weights only the activations differ


def test_hidden_states_are_the_models() -> None:
    made, tensors = model()
    smoothing = some_smoothing(made.config)
    with torch.no_grad():
        wanted = made.hidden(torch.tensor([IDS]))[0].numpy()
    got = Oracle(to_int8(source.from_tensors(made.config, tensors), smoothing)).hidden(IDS)
    assert (
        np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()
    )  # with a smoothing drawn at random, eight bits do worse


def test_a_row_depends_on_nothing_after_it() -> None:
    made, tensors = model()
    whole = Oracle(to_int8(source.from_tensors(made.config, tensors))).logits(IDS)
    for T in (1, 2, 16, 17):
        assert np.array_equal(Oracle(to_int8(source.from_tensors(made.config, tensors))).logits(IDS[:T]), whole[:T])


@pytest.mark.parametrize("tied", [True, False])
def test_smoothing_keeps_the_function(tied: bool) -> None:
    made, tensors = model(tie_word_embeddings=tied)
    plain = source.from_tensors(made.config, tensors)
    folded = fold(plain, some_smoothing(made.config))
    wanted = FloatOracle(plain).logits(IDS)
    assert np.abs(FloatOracle(folded).logits(IDS) - wanted).max() < 1e-5 * np.abs(wanted).max()
    for name in ("c_attn", "attn_proj", "c_fc", "mlp_proj"):
        before, after = getattr(plain.layers[0], name).q, getattr(folded.layers[0], name).q
        assert not np.allclose(before, after), name


def test_the_key_bias_is_dropped_and_not_missed() -> None:
    made, tensors = model()
    C = made.config.n_embd
    plain = source.from_tensors(made.config, tensors)
    before = Oracle(to_int8(plain)).logits(IDS)
    for layer in range(made.config.n_layer):
        tensors[f"h.{layer}.attn.c_attn.bias"][C : 2 * C] += f32(30)
    weights = to_int8(source.from_tensors(made.config, tensors))
    assert not any(layer.c_attn.bias[C : 2 * C].any() for layer in weights.layers)
    assert np.array_equal(Oracle(weights).logits(IDS), before)
    float_before, float_after = FloatOracle(plain).logits(IDS), FloatOracle(source.from_tensors(made.config, tensors))
    assert np.allclose(float_after.logits(IDS), float_before, atol=1e-4)
    assert math.isfinite(float(before.max()))
