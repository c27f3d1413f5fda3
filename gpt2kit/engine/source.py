"""Float weights for the engine: a folder's files, read without torch and without a copy, or seeded random ones.

Tensors go by our names, matrices as [out, in], all float32. A float32 file is memory-mapped: its tensors are views.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpt2kit.engine.smoothing import to_int8
from gpt2kit.engine.weights import (
    EngineWeights,
    Floats,
    LayerWeights,
    LinearWeights,
    Precision,
    attention_scale,
)
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.files import read_head, read_steadily, resolve
from gpt2kit.model.headers import (
    StoredTensor,
    check_headers,
    is_transposed,
    read_headers,
    stored_shapes,
)

NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # numpy has no bfloat16: it is a float32's upper half


def from_folder(folder: str | Path, precision: Precision = "fp32", verify: bool = True) -> EngineWeights:
    """A model folder's weights; int8 by plain rounding, without the smoothing of `quantise.py`.

    Raises UserError naming the file, key or tensor that is wrong.
    """
    path, _ = resolve(folder)

    def read(notes: list[str]) -> EngineWeights:
        config, _ = read_head(path, notes)
        return from_tensors(config, read_tensors(path, config))

    weights, _ = read_steadily(path, read, verify)
    return weights if precision == "fp32" else to_int8(weights)


def read_tensors(folder: Path, config: GPT2Config) -> dict[str, Floats]:
    """The weights by our names. Checked: names, shapes, types, and that all values are finite (else UserError)."""
    found = read_headers(folder)
    check_headers(found, config, folder)
    offsets = {file: _offsets(file) for file in {stored.file for stored in found.values()}}
    tensors = {}
    for name, stored in found.items():
        values = _map(stored, offsets[stored.file][stored.name])
        if not (math.isfinite(values.min()) and math.isfinite(values.max())):  # both pass a NaN on
            raise UserError(
                f"{stored.file}: {stored.name} holds NaN or infinity: such a model answers nothing",
                hint="go back to a checkpoint from before the loss exploded",
            )
        tensors[name] = values.T if is_transposed(name) else values
    spare = tensors.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    if spare is not None and not np.array_equal(spare, tensors["wte.weight"]):
        stored = found["lm_head.weight"]
        raise UserError(
            f"{stored.file}: {stored.name} differs from wte.weight, though config.json ties them",
            hint='set "tie_word_embeddings": false in config.json',
        )
    return tensors


def read_score(folder: Path, config: GPT2Config) -> Floats | None:
    """A classifier's head [labels, C]; None for a language model."""
    if not config.labels:
        return None
    stored = read_headers(folder)["score.weight"]
    return np.array(_map(stored, _offsets(stored.file)[stored.name]))


def _offsets(file: Path) -> dict[str, int]:
    """Where each tensor's bytes begin. `read_headers` has had the file checked by safetensors itself."""
    with open(file, "rb") as reader:
        (length,) = struct.unpack("<Q", reader.read(8))
        header = json.loads(reader.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _map(stored: StoredTensor, offset: int) -> Floats:
    """A tensor's values in its stored shape: a view of the file, where that is float32."""
    raw = np.memmap(stored.file, NUMPY_DTYPES[stored.dtype], "r", offset, stored.shape).view(np.ndarray)
    if stored.dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused by our caller
        return raw.astype(np.float32, copy=False)


def from_tensors(config: GPT2Config, tensors: Mapping[str, Floats]) -> EngineWeights:
    """fp32 weights from float32 tensors by our names, matrices [out, in] (`read_tensors`, `random_tensors`)."""

    def linear(name: str, bias: bool = True) -> LinearWeights:
        q = tensors[f"{name}.weight"]
        zeros = np.zeros(len(q), np.float32)
        return LinearWeights(q, np.ones(len(q), np.float32), tensors[f"{name}.bias"] if bias else zeros)

    layers = []
    for index in range(config.n_layer):
        block = f"h.{index}"
        layers.append(
            LayerWeights(
                ln_1_g=tensors[f"{block}.ln_1.weight"],
                ln_1_b=tensors[f"{block}.ln_1.bias"],
                c_attn=linear(f"{block}.attn.c_attn"),
                attn_proj=linear(f"{block}.attn.c_proj"),
                ln_2_g=tensors[f"{block}.ln_2.weight"],
                ln_2_b=tensors[f"{block}.ln_2.bias"],
                c_fc=linear(f"{block}.mlp.c_fc"),
                post=np.ones(config.inner_size, np.float32),
                mlp_proj=linear(f"{block}.mlp.c_proj"),
                alpha=attention_scale(config, index),
                smoothed=np.ones((4, config.n_embd), np.float32),
            )
        )
    wte = linear("wte", bias=False)
    return EngineWeights(
        config=config,
        precision="fp32",
        wpe=tensors["wpe.weight"],
        unsmooth=np.ones(config.n_embd, np.float32),
        wte=wte,
        head=wte if config.tie_word_embeddings else linear("lm_head", bias=False),
        layers=layers,
        ln_f_g=tensors["ln_f.weight"],
        ln_f_b=tensors["ln_f.bias"],
    )


def random_tensors(config: GPT2Config, seed: int) -> dict[str, Floats]:
    """Seeded weights with a trained GPT-2's scales, by our names, matrices [out, in]: for tests and benchmarks."""
    rng = np.random.default_rng(seed)
    C, scales = config.n_embd, {"c_attn": 0.18, "attn.c_proj": 0.14, "c_fc": 0.13, "mlp.c_proj": 0.09}

    def draw(shape: tuple[int, ...], scale: float, centre: float = 0.0) -> Floats:
        values = rng.standard_normal(shape, dtype=np.float32)
        values *= np.float32(scale)
        values += np.float32(centre)
        return values

    width = math.sqrt(768 / C)  # the scales above are GPT-2 small's
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if "ln_" in name:
            gain = 1.3 if name.startswith("ln_f") else 0.35
            tensors[name] = draw(shape, 0.05, gain if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            tensors[name] = draw(shape, 0.1)
        else:
            scale = next((width * value for part, value in scales.items() if part in name), 0.12)
            tensors[name] = draw(shape, scale)
    return tensors


def random_weights(config: GPT2Config, seed: int, precision: Precision = "int8") -> EngineWeights:
    """`random_tensors` as engine weights, without smoothing."""
    weights = from_tensors(config, random_tensors(config, seed))
    return weights if precision == "fp32" else to_int8(weights)


def tensor_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Our parameter names and shapes, matrices [out, in]."""
    return {name: shape[::-1] if is_transposed(name) else shape for name, shape in stored_shapes(config).items()}
