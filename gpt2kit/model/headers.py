"""What the weight files of a model folder hold: names, shapes, types. Read from their headers, without torch.

Names are ours but for a prefix: `transformer.h.0...` in a language model's files, `h.0...` in a bare one.
Only safetensors is read: a pickle can run code.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADS = ("lm_head.weight", "score.weight")  # no part of the stack: they have no prefix in any file
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants that older versions of transformers saved
DTYPES = ("F32", "F16", "BF16")
PICKLES = ("pytorch_model*.bin*", "*.pt", "*.pth", "*.ckpt*", "tf_model.h5", "flax_model.msgpack")
DAMAGED = "the file is damaged or unfinished: download or copy it again"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, name there, shape there ([in, out] for CONV1D), safetensors' dtype name."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def is_transposed(name: str) -> bool:
    """Whether the file holds this parameter as [in, out]."""
    return name.endswith(CONV1D)


def stored_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Our parameter names and their shapes in a file."""
    V, C, I = config.vocab_size, config.n_embd, config.inner_size  # noqa: E741
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, C), "wpe.weight": (config.n_positions, C)}
    for layer in range(config.n_layer):
        for name, n_in, n_out in (
            ("attn.c_attn", C, 3 * C),
            ("attn.c_proj", C, C),
            ("mlp.c_fc", C, I),
            ("mlp.c_proj", I, C),
        ):
            shapes[f"h.{layer}.{name}.weight"] = (n_in, n_out)
            shapes[f"h.{layer}.{name}.bias"] = (n_out,)
        for name in ("ln_1", "ln_2"):
            shapes[f"h.{layer}.{name}.weight"] = shapes[f"h.{layer}.{name}.bias"] = (C,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (C,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, C)
    if config.labels:
        shapes["score.weight"] = (len(config.labels), C)
    return shapes


def weight_files(folder: Path) -> list[str]:
    """The files that hold the weights, the index first where there is one. UserError where there are none."""
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if (folder / INDEX).exists():
        return [INDEX, *sorted(set(_weight_map(folder).values()))]
    unsafe = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if unsafe:
        raise UserError(
            f"{folder} has its weights only in {unsafe[0]}, a format that can run code: it is not read",
            hint=f"where you trust that file, run: python -c {shlex.quote(_conversion(folder))}",
        )
    if (folder / "adapter").is_dir():
        raise UserError(
            f"{folder} holds an adapter over another model, and no weights",
            hint="gpt2kit run and gpt2kit evaluate lay it over its base; everything else takes that base itself",
        )
    raise UserError(f"{folder} has no weights: {WEIGHTS} is missing", hint="copy the whole folder again")


def _conversion(folder: Path) -> str:
    source, target = (json.dumps(str(name), ensure_ascii=False) for name in (folder, f"{folder}-safetensors"))
    return f"from transformers import GPT2LMHeadModel as M; M.from_pretrained({source}).save_pretrained({target})"


def _weight_map(folder: Path) -> dict[str, str]:
    value = commit.read_json(commit.inside(folder, INDEX))
    names = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{folder / INDEX} has no weight_map from tensor names to files", hint=DAMAGED)
    for file in sorted(set(names.values())):
        if not file.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX} names {file!r}: only safetensors files are read")
        if not commit.inside(folder, file).is_file():
            raise UserError(f"{folder / file} is missing, though {INDEX} lists it", hint=DAMAGED)
    return dict(names)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """What the weight files hold, by our names, without reading the weights. Mask buffers are left out.

    Raises UserError for a truncated or malformed file, a shard out of step with its index, a repeated name.
    """
    files = weight_files(folder)
    weight_map = _weight_map(folder) if files[0] == INDEX else None
    found: dict[str, StoredTensor] = {}
    for file in files[1:] if weight_map is not None else files:
        path = commit.inside(folder, file)
        with open_weights(path) as reader:
            for stored in reader.keys():  # noqa: SIM118  (a reader is no dict)
                if weight_map is not None and weight_map.get(stored) != file:
                    raise UserError(f"{path} holds {stored!r}, which {INDEX} does not list there", hint=DAMAGED)
                part = reader.get_slice(stored)
                name = stored.removeprefix("transformer.")
                if MASK_BUFFER.fullmatch(name):
                    continue
                if name in found:
                    raise UserError(f"{path} holds {stored!r}, and {found[name].name!r} is there too")
                found[name] = StoredTensor(path, stored, tuple(part.get_shape()), str(part.get_dtype()))
    if weight_map is not None:
        for stored, file in weight_map.items():
            name = stored.removeprefix("transformer.")
            if name not in found and not MASK_BUFFER.fullmatch(name):
                raise UserError(f"{folder / file} lacks {stored!r}, though {INDEX} lists it", hint=DAMAGED)
    return found


def open_weights(path: Path, framework: str = "numpy") -> Any:
    """A reader of a safetensors file, whose own checks cover header, offsets and length."""
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}", hint=DAMAGED) from None


def check_headers(found: dict[str, StoredTensor], config: GPT2Config, folder: Path) -> None:
    """Compare what the files hold with what `config` needs, before allocating. UserError by name."""
    layers = len({m[1] for name in found if (m := re.match(r"h\.(\d+)\.", name))})
    if layers != config.n_layer:
        raise UserError(f"config.json says n_layer {config.n_layer}, the weights in {folder} have {layers} layers")
    shapes = stored_shapes(config)
    spare = {"lm_head.weight": shapes["wte.weight"]} if config.tie_word_embeddings else {}
    for name, stored in found.items():
        shape = shapes.get(name, spare.get(name))
        if shape is None:
            raise UserError(
                f"{stored.file} holds the tensor {stored.name!r}, which a GPT-2 language model does not have",
                hint="is it another architecture, or an adapter that was not merged?",
            )
        if stored.shape != shape:
            raise UserError(
                f"{stored.file}: {stored.name} has shape {list(stored.shape)}, config.json makes it {list(shape)}",
                hint="config.json and the weights belong to different models",
            )
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.file}: {stored.name} has dtype {stored.dtype}; {', '.join(DTYPES)} are read",
                hint="convert the weights to float32 first",
            )
    missing = [name for name in shapes if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the weights in {folder} lack the tensor {missing[0]!r}{more}", hint=DAMAGED)
