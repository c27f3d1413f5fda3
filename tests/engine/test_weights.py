"""Weights read, packed and laid out; against the definition, element by element."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gpt2kit.engine import source, weights
from gpt2kit.engine.smoothing import round_rows
from gpt2kit.engine.weights import LayerLayout, Layout, LinearLayout, layout
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config, gpt2_small
from gpt2kit.model.gpt2 import GPT2

SHAPE: dict[str, Any] = {"vocab_size": 101, "n_positions": 24, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 70}


def config(**changes: Any) -> GPT2Config:
    return GPT2Config(**{**SHAPE, **changes})


def model(shape: GPT2Config, seed: int = 0) -> GPT2:
    made = GPT2(shape)
    tensors = source.random_tensors(shape, seed)
    made.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return made.eval()


def assert_same(first: Any, second: Any, name: str = "") -> None:
    """Equal dataclasses, lists and arrays, to the bit."""
    if dataclasses.is_dataclass(first):
        for field in dataclasses.fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name), f"{name}.{field.name}")
    elif isinstance(first, list):
        assert len(first) == len(second), name
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{name}[{index}]")
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype, name
        assert np.array_equal(first, second), name
    else:
        assert first == second, name


# ---------------------------------------------------------------- layout


def parts(at: Layout, shape: GPT2Config) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(start, length) of every part, in bytes of `weights` and in floats of `floats`, by what each must hold."""
    C = shape.n_embd
    matrices: list[tuple[int, int]] = []
    floats = [(at.unsmooth, C), (at.ln_f_g, C), (at.ln_f_b, C), (at.wpe, shape.n_positions * at.wpe_stride)]

    def linear(one: LinearLayout, item: int) -> None:
        matrices.append((one.weight, one.n_padded * one.k_padded * item))
        floats.append((one.scale, one.n_padded))
        if one.bias >= 0:
            floats.append((one.bias, one.n_padded))

    item = 1 if at == layout(shape, "int8") else 4
    for one in {at.wte, at.head}:
        linear(one, item)
    for layer in at.layers:
        floats += [(layer.ln_1_g, C), (layer.ln_1_b, C), (layer.ln_2_g, C), (layer.ln_2_b, C)]
        floats += [(layer.post, shape.inner_size), (layer.smoothed, 4 * C)]
        for name in ("c_attn", "attn_proj", "c_fc", "mlp_proj"):
            linear(getattr(layer, name), item)
    return matrices, floats


@settings(deadline=None, max_examples=40)
@given(
    V=st.integers(1, 300), P=st.integers(1, 40), D=st.integers(1, 20), H=st.integers(1, 5), L=st.integers(1, 3),
    I=st.integers(1, 200), tied=st.booleans(), precision=st.sampled_from(["int8", "fp32"]),
)  # fmt: skip
def test_parts_are_aligned_and_never_overlap(
    V: int,
    P: int,
    D: int,
    H: int,
    L: int,
    I: int,  # noqa: E741
    tied: bool,
    precision: weights.Precision,
) -> None:
    shape = GPT2Config(V, P, D * H, L, H, n_inner=I, tie_word_embeddings=tied)
    at = layout(shape, precision)
    matrices, floats = parts(at, shape)
    for found, total, alignment in ((matrices, at.weights_bytes, 64), (floats, at.floats_count, 64)):
        end = 0
        for start, length in sorted(found):
            assert start % alignment == 0
            assert start >= end
            end = start + length
        assert end <= total < end + 64 * alignment
    assert (at.head == at.wte) is tied


def test_layout_is_in_the_order_of_a_step() -> None:
    at = layout(config(tie_word_embeddings=False), "int8")
    order = [at.wte, at.head]
    for layer in at.layers:
        order += [layer.c_attn, layer.attn_proj, layer.c_fc, layer.mlp_proj]
    starts = [one.weight for one in order]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert (at.wte.n, at.wte.n_padded, at.wte.k, at.wte.k_padded) == (101, 128, 36, 48)
    assert isinstance(at.layers[0], LayerLayout)
    assert at.layers[0].c_attn.n == 108
    assert at.wte.bias == at.head.bias == -1


def test_gpt2_small_takes_128_megabytes() -> None:
    assert weights.packed_bytes(gpt2_small(), "int8") == 128_030_208
    assert weights.packed_bytes(gpt2_small(), "fp32") > 4 * 124_000_000


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize(("N", "K"), [(1, 1), (64, 16), (65, 17), (130, 36)])
def test_packed_matrices_follow_their_definition(N: int, K: int) -> None:
    q = np.random.default_rng(0).integers(-127, 128, (N, K)).astype(np.int8)
    packed = weights.pack_int8(q)
    floats = weights.pack_fp32(q.astype(np.float32))
    assert packed.shape == (-(-N // 64), -(-K // 16) * 4, 64, 4)
    assert floats.shape == (-(-N // 64), -(-K // 16) * 16, 64)
    for n in range(packed.shape[0] * 64):
        for k in range(packed.shape[1] * 4):
            value = int(q[n, k]) if n < N and k < K else 0
            assert packed[n // 64, k // 4, n % 64, k % 4] == value + 128
            assert floats[n // 64, k, n % 64] == value
    assert np.array_equal(weights.unpack_int8(packed.reshape(-1), N, K), q)
    assert np.array_equal(weights.unpack_fp32(floats.reshape(-1), N, K), q)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("tied", [True, False])
def test_packing_loses_nothing(precision: weights.Precision, tied: bool) -> None:
    plain = source.random_weights(config(tie_word_embeddings=tied), 1, precision)
    packed = weights.pack(plain)
    back = weights.unpack(packed)
    assert_same(plain, back)
    assert (back.head is back.wte) is tied
    assert packed.weights.ctypes.data % 64 == packed.floats.ctypes.data % 64 == 0
    at = packed.layout
    assert packed.weights.nbytes == at.weights_bytes
    assert len(packed.floats) == at.floats_count


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_padding_adds_nothing(precision: weights.Precision) -> None:
    packed = weights.pack(source.random_weights(config(), 1, precision))
    one = packed.layout.layers[1].c_fc
    assert not packed.floats[one.scale + one.n : one.scale + one.n_padded].any()
    assert not packed.floats[one.bias + one.n : one.bias + one.n_padded].any()
    rows = packed.floats[packed.layout.wpe :][: 24 * packed.layout.wpe_stride].reshape(24, -1)
    assert rows.shape[1] == 48
    assert not rows[:, 36:].any()
    assert rows[:, :36].all()


# ---------------------------------------------------------------- rounding


def test_rows_are_rounded_to_the_nearest_step() -> None:
    weight = np.random.default_rng(0).standard_normal((700, 33)).astype(np.float32)
    weight[5] = 0
    weight[6] = 1e-38
    weight[7] = np.linspace(-3, 1, 33)
    q, scale = round_rows(weight)
    assert np.abs(q.astype(int)).max() == 127
    assert q[7, 0] == -127
    assert scale[5] == scale[6] == 0
    assert not q[5:7].any()
    keep = [i for i in range(700) if i not in (5, 6)]
    wrong = np.abs(q * scale[:, None] - weight)[keep]
    assert (wrong <= scale[keep, None] * 0.5001).all()
    assert np.abs(q[keep]).max(axis=1).min() == 127


# ---------------------------------------------------------------- reading a folder


def test_a_folder_gives_the_models_weights(tmp_path: Path) -> None:
    shape = config()
    made = model(shape)
    folder.save(tmp_path / "m", made)
    read = source.from_folder(tmp_path / "m")
    assert_same(source.from_tensors(shape, source.random_tensors(shape, 0)), dataclasses.replace(read, config=shape))
    assert np.array_equal(read.layers[1].c_fc.q, made.h[1].mlp.c_fc.weight.detach().numpy())


def test_an_untied_head_is_read(tmp_path: Path) -> None:
    made = model(config(tie_word_embeddings=False))
    folder.save(tmp_path / "m", made)
    read = source.from_folder(tmp_path / "m")
    assert read.head is not read.wte
    assert np.array_equal(read.head.q, made.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    rewrite(tmp_path, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    read = source.from_folder(tmp_path)
    wanted = model(config()).h[0].attn.c_attn.weight.detach().to(dtype).float().numpy()
    assert np.array_equal(read.layers[0].c_attn.q, wanted)
    assert read.layers[0].c_attn.q.dtype == np.float32


def test_shards_and_bare_names_are_read(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    whole = source.from_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in shards.items():
        save_file({name: tensors[name] for name in some}, tmp_path / file)
    index = {"weight_map": {name: file for file, some in shards.items() for name in some}}
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(whole, source.from_folder(tmp_path))


def rewrite(path: Path, change: Any) -> None:
    """A folder without a manifest, its tensors changed."""
    folder.save(path, model(config()))
    (path / "gpt2kit.json").unlink()
    tensors = load_file(path / "model.safetensors")
    save_file({name: t.contiguous() for name, t in change(tensors).items()}, path / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
        return tensors

    rewrite(tmp_path, spoil)
    with pytest.raises(UserError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight holds NaN or infinity"):
        source.from_folder(tmp_path)


def test_a_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    rewrite(tmp_path, lambda tensors: {n: t[:-1] if "wpe" in n else t for n, t in tensors.items()})
    with pytest.raises(UserError, match=r"wpe\.weight has shape \[23, 36\], config.json makes it \[24, 36\]"):
        source.from_folder(tmp_path)


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    def twice(change: float) -> Any:
        return lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + change}

    rewrite(tmp_path / "same", twice(0.0))
    assert source.from_folder(tmp_path / "same").head.q.shape == (101, 36)
    rewrite(tmp_path / "other", twice(1.0))
    with pytest.raises(UserError, match=r"lm_head.weight differs from wte.weight"):
        source.from_folder(tmp_path / "other")


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    folder.save(tmp_path / "m", model(config()))
    data = bytearray((tmp_path / "m" / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "m" / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="has changed since it was written"):
        source.from_folder(tmp_path / "m")


def test_reading_and_packing_need_no_torch(tmp_path: Path) -> None:
    folder.save(tmp_path / "m", model(config()))
    code = (
        "import sys\nfrom gpt2kit.engine import source, weights\n"
        f"weights.pack(source.from_folder({str(tmp_path / 'm')!r}, 'int8'))\nprint('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_attention_is_scaled_as_the_config_says() -> None:
    assert weights.attention_scale(config(), 1) == np.float32(12**-0.5)
    assert weights.attention_scale(config(scale_attn_weights=False), 1) == 1
    assert weights.attention_scale(config(scale_attn_by_inverse_layer_idx=True), 1) == np.float32(12**-0.5 / 2)


def test_random_weights_depend_on_the_seed_alone() -> None:
    assert_same(source.random_weights(config(), 3), source.random_weights(config(), 3))
    first, second = (source.random_weights(config(), seed).wte.q for seed in (3, 4))
    assert not np.array_equal(first, second)
