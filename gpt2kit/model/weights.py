"""GPT-2's weights in safetensors files: a list of transposes.

Hugging Face keeps four matrices of a block as [in, out] (its Conv1D), we keep [out, in] (nn.Linear).
Names are the same but for a prefix: `transformer.h.0...` in a language model's files, `h.0...` in a bare one.
Only safetensors is read: a pickle can run code.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2, GPT2Config

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants that older versions of transformers saved
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = ("pytorch_model*.bin*", "*.pt", "*.pth", "*.ckpt*", "tf_model.h5", "flax_model.msgpack")
DAMAGED = "the file is damaged or unfinished: download or copy it again"
CONVERT = (
    'where you trust that file, run: python -c "from transformers import GPT2LMHeadModel as M; '
    "M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\""
)


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
            hint=CONVERT.format(folder),
        )
    raise UserError(f"{folder} has no weights: {WEIGHTS} is missing", hint="copy the whole folder again")


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
        with _open(path) as reader:
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


def _open(path: Path) -> Any:
    """A reader of a safetensors file, whose own checks cover header, offsets and length."""
    try:
        return safe_open(path, framework="pt")
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


class _Uninitialised(TorchFunctionMode):
    """Modules built inside keep the memory as they got it: no time, no space, no random numbers drawn.

    The meta device would do the same, but its first use imports 820 modules: 0.9 s and 67 MB here.
    """

    FILLS = (
        *(Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return None if func in self.FILLS else func(*args, **(kwargs or {}))


@torch.no_grad()
def load_weights(
    folder: Path,
    config: GPT2Config,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GPT2:
    """A model with the folder's weights, in training mode like any new module.

    The files are mapped and copied tensor by tensor into a model never initialised: one copy in memory.
    Raises UserError naming the tensor that is missing, unexpected, of another shape or dtype, or not finite.
    """
    found = read_headers(folder)
    check_headers(found, config, folder)
    with torch.device(device), _Uninitialised():
        model = GPT2(config)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.data = torch.empty_like(parameter, dtype=dtype)  # memory that no one has written takes no space
    for file in sorted({stored.file for stored in found.values()}):
        with _open(file) as reader:
            for name in sorted(name for name, stored in found.items() if stored.file == file):
                tensor: Tensor = reader.get_tensor(found[name].name)
                if name in parameters:
                    parameters[name].copy_(tensor.t() if is_transposed(name) else tensor)
                    _check_finite(found[name].name, parameters[name], f"{file}: ")
    if config.tie_word_embeddings and "lm_head.weight" in found:
        _check_tied(found["lm_head.weight"], model)
    return model


def _check_finite(name: str, tensor: Tensor, where: str = "") -> None:
    low, high = torch.aminmax(tensor)  # NaN comes through; no mask of the tensor's size is made
    if not (math.isfinite(low.item()) and math.isfinite(high.item())):
        raise UserError(
            f"{where}{name} holds NaN or infinity: such a model answers nothing",
            hint="go back to a checkpoint from before the loss exploded",
        )


def _check_tied(stored: StoredTensor, model: GPT2) -> None:
    """A tied head that was saved once more is left out, if it is the embedding."""
    with _open(stored.file) as reader:
        head = reader.get_tensor(stored.name).to(model.wte.weight)
    if not torch.equal(head, model.wte.weight):
        raise UserError(
            f"{stored.file}: {stored.name} differs from wte.weight, though config.json ties them",
            hint='set "tie_word_embeddings": false in config.json',
        )


@torch.no_grad()
def save_weights(path: Path, model: GPT2) -> None:
    """Write `model.safetensors` as transformers' GPT2LMHeadModel does, float32, byte for byte.

    Written tensor by tensor: safetensors' own writer wants the whole transposed copy in memory first.
    Raises UserError for weights that are not finite or not GPT-2's (unmerged adapters), OSError for the disk.
    """
    parameters = dict(model.named_parameters())
    shapes = stored_shapes(model.config)
    strange = sorted(set(parameters) ^ set(shapes))
    if strange:
        raise UserError(
            f"cannot save the parameter {strange[0]!r}: GPT-2 has none of that name",
            hint="merge adapters first",
        )
    names = {(name if name == "lm_head.weight" else f"transformer.{name}"): name for name in shapes}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for stored in sorted(names):
        start, end = end, end + 4 * math.prod(shapes[names[stored]])
        header[stored] = {"dtype": "F32", "shape": shapes[names[stored]], "data_offsets": [start, end]}
        _check_finite(names[stored], parameters[names[stored]])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for stored in sorted(names):
            tensor = parameters[names[stored]].detach()
            if tensor.dtype not in DTYPES.values():
                raise UserError(
                    f"cannot save {names[stored]} as float32: it is {tensor.dtype}", hint="run: model.float()"
                )
            tensor = tensor.t() if is_transposed(names[stored]) else tensor
            file.write(tensor.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).data)
