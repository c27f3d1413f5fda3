"""GPT-2's weights in safetensors files: a list of transposes.

Hugging Face keeps four matrices of a block as [in, out] (its Conv1D), we keep [out, in] (nn.Linear).
What the files hold is `headers.py`'s affair.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.headers import (
    HEADS,
    StoredTensor,
    check_headers,
    is_transposed,
    open_weights,
    read_headers,
    stored_shapes,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
        with open_weights(file, "pt") as reader:
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
    with open_weights(stored.file, "pt") as reader:
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
    names = {(name if name in HEADS else f"transformer.{name}"): name for name in shapes}
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
            if tensor.dtype not in DTYPES:
                raise UserError(
                    f"cannot save {names[stored]} as float32: it is {tensor.dtype}", hint="run: model.float()"
                )
            tensor = tensor.t() if is_transposed(names[stored]) else tensor
            file.write(tensor.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).data)
