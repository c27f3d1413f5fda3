"""The factors of a low-rank adapter, for an engine that serves several adapters over one base.

factors = low_rank_factors("runs/poems/adapter", engine.config, base="runs/base")
engine.add_adapter("poems", factors, score_head("runs/poems/adapter"))
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit import commit
from gpt2kit.engine.source import read_tensors
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.files import resolve
from gpt2kit.model.headers import open_weights, weight_files
from gpt2kit.peft.adalora import AdaLoraConfig
from gpt2kit.peft.lora import LoraConfig
from gpt2kit.peft.method import linears
from gpt2kit.peft.saved import CONFIG, METHODS, TENSORS, Description, describe

Floats = NDArray[np.float32]
LOW_RANK = {kind.peft_type: kind for kind in (LoraConfig, AdaLoraConfig)}
MERGE = "merge it first: gpt2kit merge"
HEAD = "score.weight"


def low_rank_factors(
    folder: str | Path, config: GPT2Config, base: str | Path | None = None
) -> dict[str, tuple[Floats, Floats]]:
    """By Linear A [r, in] and B [out, r] in float32: the adapter adds B A to the weight. The scale is in B.

    For LoRA, rank-stabilised LoRA and AdaLoRA, made here or by PEFT. `base`: the model folder below, held against the
    hash that the adapter's lineage has of it, where it has one. Raises UserError for other methods, another base, and
    by name for a tensor that is strange, missing, of another shape or not finite.
    """
    said = describe(folder)
    values = commit.read_json(commit.inside(said.folder, CONFIG))
    _check_method(said, values)
    tensors = _read(said)
    _check_shapes(said, tensors, config)
    if base is not None and said.base_weights is not None:
        _check_base(said, Path(base), config)
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    kind = LOW_RANK[said.peft_type]
    method: Any = kind(**kind.from_peft(values, modules, {}))
    found = {}
    for module in modules:
        a, b = tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"].astype(np.float64) * method.scale
        if isinstance(method, AdaLoraConfig):
            b = b * _singular_values(values, module, tensors[f"{module}.lora_E"])
        elif len(a) != method.rank:
            raise UserError(f"{said.folder / TENSORS}: {module} has rank {len(a)}, {CONFIG} says r {method.rank}")
        found[module] = a, b.astype(np.float32)
    return found


def score_head(folder: str | Path) -> Floats | None:
    """The classification head [labels, C] that the adapter brings; None where it has none."""
    said = describe(folder)
    with open_weights(commit.inside(said.folder, TENSORS), "pt") as reader:
        names = [name for name in reader.keys() if name.removeprefix("base_model.model.") == HEAD]  # noqa: SIM118
        return reader.get_tensor(names[0]).float().numpy() if names else None


def _check_method(said: Description, values: Mapping[str, Any]) -> None:
    """UserError for what is no sum of a base and a product of two matrices."""
    name = METHODS[said.peft_type].name
    if said.peft_type not in LOW_RANK:
        mergeable = METHODS[said.peft_type].mergeable
        hint = MERGE if mergeable else "what it does is not in the weights: only the model file computes it"
        raise UserError(f"{said.folder} is an adapter of {name}, which has no low-rank factors", hint=hint)
    if values.get("use_dora"):
        raise UserError(f"{said.folder} is a DoRA adapter, which rescales the base's own weights", hint=MERGE)


def _read(said: Description) -> dict[str, Floats]:
    """The tensors by Linear and leaf: `h.0.attn.c_attn.lora_A`."""
    file = commit.inside(said.folder, TENSORS)
    ends = {f".{stored}": leaf for leaf, stored in LOW_RANK[said.peft_type].leaves.items()}
    found = {}
    with open_weights(file, "pt") as reader:  # numpy has no bfloat16
        for stored in sorted(reader.keys()):
            values: Floats = reader.get_tensor(stored).float().numpy()
            name = stored.removeprefix("base_model.").removeprefix("model.").removeprefix("transformer.")
            end = next((end for end in ends if name.endswith(end)), None)
            if name == HEAD:
                continue
            if end is None:
                raise UserError(f"{file} holds {stored}, which is no low-rank factor", hint=MERGE)
            if not np.isfinite(values).all():
                raise UserError(f"{file}: {stored} holds NaN or infinity", hint="train the adapter again")
            found[name.removesuffix(end) + "." + ends[end]] = values
    return found


def _check_shapes(said: Description, tensors: Mapping[str, Floats], config: GPT2Config) -> None:
    file, known = said.folder / TENSORS, linears(config)
    needed = ("lora_A", "lora_B", "lora_E") if said.peft_type == AdaLoraConfig.peft_type else ("lora_A", "lora_B")
    for module in sorted({name.rpartition(".")[0] for name in tensors}):
        if module not in known:
            raise UserError(
                f"{file} adapts {module}, which this model does not have", hint="it belongs to a model of another shape"
            )
        lacking = [leaf for leaf in needed if f"{module}.{leaf}" not in tensors]
        if lacking:
            raise UserError(f"{file} lacks {module}.{lacking[0]}", hint="copy the whole folder again")
        shapes = [tensors[f"{module}.{leaf}"].shape for leaf in needed]
        (n_out, n_in), r = known[module], shapes[0][0] if shapes[0] else 0
        if shapes != [(r, n_in), (n_out, r), (r, 1)][: len(needed)] or not r:
            raise UserError(
                f"{file}: {module} has shapes {', '.join(str(list(shape)) for shape in shapes)}, "
                f"this model's Linear is {n_out} x {n_in}",
                hint="it belongs to a model of another shape",
            )
    if not tensors:
        raise UserError(f"{file} holds no factors", hint="copy the whole folder again")


def _singular_values(values: Mapping[str, Any], module: str, stored: Floats) -> NDArray[np.float64]:
    """AdaLoRA's E [r]. Triplets that the budget took are left out of the file, or stand there and do not count."""
    found = stored[:, 0].astype(np.float64)
    pattern = values.get("rank_pattern") or {}
    masks = [mask for name, mask in pattern.items() if name.partition(".lora_E")[0] == f"transformer.{module}"]
    if masks and len(masks[0]) == len(found):
        found = found * np.array(masks[0], np.float64)
    return found


@functools.lru_cache(maxsize=4)
def _base_weights(path: Path, config: GPT2Config, stamp: tuple[tuple[int, int], ...]) -> str:
    """`saved.base_hash` of a folder, without a model; once for all adapters over it, while its files stay (`stamp`)."""
    lines = []
    for name, values in sorted(read_tensors(path, config).items()):
        if name != HEAD:
            data = np.ascontiguousarray(values).astype("<f4", copy=False)
            lines.append(f"{name} {hashlib.sha256(data.data).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_base(said: Description, base: Path, config: GPT2Config) -> None:
    path, _ = resolve(base)
    stats = tuple((path / file).stat() for file in weight_files(path))
    found = _base_weights(path, config, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))
    if found != said.base_weights:
        whose = "" if said.base is None else f" {said.base}"
        raise UserError(
            f"{said.folder} belongs to the base{whose} with weights {str(said.base_weights)[:12]}…, "
            f"{base} has {found[:12]}…",
            hint=f"serve it over{whose or ' the model that it was tuned on'}",
        )
