"""Adapter folders in PEFT's layout, both ways.

    adapter_config.json          PEFT's own fields; methods of ours that PEFT does not know have peft_type GPT2KIT_...
    adapter_model.safetensors    base_model.model.transformer.h.0.attn.c_attn.lora_A.weight, ...; prompt_embeddings
    encoder.safetensors          the network behind prefix or P-tuning, to train on; PEFT does without
    gpt2kit.json                 lineage: the hash of the base's weights, settings, labels; SHA-256 of every file

A folder made by PEFT has no gpt2kit.json: its structure is checked, its base is taken on trust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gpt2kit import commit
from gpt2kit.errors import UserError, closest, unknown
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.headers import HEADS, is_transposed, open_weights, stored_shapes
from gpt2kit.peft.adalora import AdaLoraConfig
from gpt2kit.peft.bitfit import BitFitConfig
from gpt2kit.peft.bottleneck import BottleneckConfig
from gpt2kit.peft.ia3 import Ia3Config
from gpt2kit.peft.inject import Adapted, activate, base_of, inject, names, remove
from gpt2kit.peft.int8base import QuantisedLinear, weight_digest
from gpt2kit.peft.last import LastConfig
from gpt2kit.peft.lora import LoraConfig
from gpt2kit.peft.method import ALSO, MethodConfig, check_finite, fill, shortest
from gpt2kit.peft.prefix import PrefixConfig
from gpt2kit.peft.prompt import PromptConfig, PTuningConfig
from gpt2kit.runtime import package_version

CONFIG, TENSORS, ENCODER = "adapter_config.json", "adapter_model.safetensors", "encoder.safetensors"
METHODS: dict[str, type[MethodConfig]] = {
    kind.peft_type: kind
    for kind in (
        *(LoraConfig, AdaLoraConfig, Ia3Config, PrefixConfig, PromptConfig, PTuningConfig),
        *(BottleneckConfig, BitFitConfig, LastConfig),
    )
}
PROMPT = "prompt_embeddings"
NEUTRAL = {  # fields that change nothing of what a saved adapter computes, or that the tensors say better
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "peft_type",
        "peft_version",
    ),
    *(
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "fan_in_fan_out",
    ),
    *("init_lora_weights", "init_ia3_weights", "init_weights", "loftq_config", "eva_config", "corda_config"),
    *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "feedforward_modules"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"),
    "prefix_projection",
}
TASKS = (None, "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION")


@dataclass(frozen=True)
class Description:
    """What an adapter folder says of itself; the tensors' values are not looked at."""

    folder: Path
    peft_type: str
    task: str | None  # "CAUSAL_LM", "SEQ_CLS", ...
    base: str | None  # the base's name
    base_weights: str | None  # its hash; None in a folder that PEFT made
    labels: tuple[str, ...]
    multi_label: bool
    lineage: dict[str, Any]
    bytes: int  # of the tensors' file


def class_names(said: Description) -> tuple[str, ...]:
    """The classes of the head that the adapter brings, () without one. PEFT tells how many they are, not what."""
    if said.labels:
        return said.labels
    with open_weights(commit.inside(said.folder, TENSORS), "pt") as reader:
        heads = [name for name in reader.keys() if name.endswith("score.weight")]  # noqa: SIM118 - no mapping
        return tuple(f"LABEL_{i}" for i in range(reader.get_slice(heads[0]).get_shape()[0])) if heads else ()


# ---------------------------------------------------------------- writing


def save(
    folder: str | Path,
    adapted: Adapted,
    base: str | Path | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Commit an adapter folder in place of the old one; after any crash the old or the new one is whole.

    `base`: the folder or the name of the model below, for people and for PEFT; the lineage has its weights' hash.
    Raises UserError for values that are not finite, and where the disk fails.
    """
    record = {**(lineage or {}), **adapter_lineage(adapted, base)}
    with commit.folder(Path(folder), "adapter", record) as staging:
        write_adapter_files(staging, adapted, base)
    return Path(folder)


def adapter_lineage(adapted: Adapted, base: str | Path | None = None) -> dict[str, Any]:
    """What gpt2kit.json says of an adapter. No time of day: same run, same bytes."""
    config = adapted.model.config
    return {
        "base": {"name": None if base is None else str(base), "weights": base_hash(adapted.model)},
        "method": adapted.method.to_dict(),
        "parameters": adapted.trainable,
        "labels": list(config.labels),
        "multi_label": config.multi_label,
        "versions": {"gpt2kit": package_version(), "torch": torch.__version__},
    }


@torch.no_grad()
def write_adapter_files(staging: Path, adapted: Adapted, base: str | Path | None = None) -> None:
    """Write the adapter's files into an open staging folder (`commit.folder`), beside what the caller adds."""
    method, parts, config = adapted.method, adapted.parts, adapted.model.config
    held, fields = method.pack(parts)
    tensors = {file_name(name, method): tensor for name, tensor in held.items()}
    if parts.front is not None:
        tensors[PROMPT] = parts.front.prompt().detach()
        if len(parts.front.state_dict()) > 1:
            safetensors.torch.save_file(_plain(parts.front.state_dict()), staging / ENCODER, {"format": "pt"})
    for name, parameter in parts.replaced.items():
        tensors[file_name(name, method)] = parameter.detach().t() if is_transposed(name) else parameter.detach()
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    safetensors.torch.save_file(_plain(tensors), staging / TENSORS, {"format": "pt"})
    also = sorted({name.split(".")[0] for name in set(parts.replaced) - set(method.replaces(config))})
    values = {
        "peft_type": method.peft_type,
        "task_type": "SEQ_CLS" if config.labels else "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "inference_mode": True,
        **({"modules_to_save": also or None} if parts.front is None or also else {}),
        **method.to_peft(config, list(parts.deltas)),
        **fields,
    }
    commit.write_json(staging / CONFIG, dict(sorted(values.items())))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in sorted(tensors.items())}


def file_name(name: str, method: MethodConfig | type[MethodConfig]) -> str:
    """Our name of a tensor -> PEFT's. Prompt learning wraps one module less."""
    start = "base_model." if PROMPT_TYPES & {method.peft_type} else "base_model.model."
    module, _, leaf = name.rpartition(".")
    if leaf in method.leaves:
        return f"{start}transformer.{module}.{method.leaves[leaf]}"
    return f"{start}{'' if name in HEADS else 'transformer.'}{name}"


PROMPT_TYPES = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}


def base_hash(model: GPT2) -> str:
    """64 hex digits that name the weights below all adapters; a classifier's head does not count.

    A base in int8 has the hash of the weights that it was made from: adapters may pass from one to the other.
    """
    held = base_of(model)
    found: dict[str, Tensor | str] = {}
    for name in sorted(set(stored_shapes(model.config)) - {"score.weight"}):
        module, _, leaf = name.rpartition(".")
        owner: Any = model.get_submodule(module) if held is None else held.linear(module)
        if leaf == "weight" and isinstance(owner, QuantisedLinear):
            found[name] = owner.original
        else:
            found[name] = getattr(owner, leaf) if held is None else held.parameter(name)
    versions = tuple(one if isinstance(one, str) else (one.data_ptr(), one._version) for one in found.values())
    if held is not None and held.hashed is not None and held.hashed[0] == versions:
        return held.hashed[1]  # half a second of GPT-2 small, at every checkpoint
    lines = (f"{name} {one if isinstance(one, str) else weight_digest(one)}\n" for name, one in found.items())
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    if held is not None:
        held.hashed = versions, digest
    return digest


# ---------------------------------------------------------------- reading


def describe(folder: str | Path) -> Description:
    """Read what an adapter folder says, verified where it has a manifest. UserError names the file that is wrong."""
    path = _resolve(Path(folder))
    manifest = commit.verify(path) or {}
    values = _read_config(path)
    base: Any = manifest.get("base")
    base = base if isinstance(base, dict) else {}
    labels = manifest.get("labels")
    return Description(
        path,
        values["peft_type"],
        values.get("task_type"),
        base.get("name") or values.get("base_model_name_or_path"),
        base.get("weights"),
        tuple(labels) if isinstance(labels, list) else (),
        manifest.get("multi_label") is True,
        {key: value for key, value in manifest.items() if key not in commit.RESERVED},
        (path / TENSORS).stat().st_size,
    )


def load(folder: str | Path, model: GPT2, name: str = "default") -> Adapted:
    """Lay a saved adapter over the model it belongs to, and make it the active one.

    Raises UserError for another base than the one that the folder names, and by name for a tensor or a field that is
    missing, strange, of another shape or not finite.
    """
    said = describe(folder)
    if said.base_weights is not None:
        found = base_hash(model)
        if found != said.base_weights:
            whose = "" if said.base is None else f" {said.base}"
            raise UserError(
                f"{said.folder} belongs to the base{whose} with weights {said.base_weights[:12]}…, "
                f"this model's are {found[:12]}…",
                hint=f"load{whose or ' that model'} and lay the adapter over it",
            )
    values = _read_config(said.folder)
    kind = METHODS[said.peft_type]
    deltas, replaced, prompt = _read_tensors(said.folder, kind, model.config)
    method = _settings(said, kind, values, model.config, deltas, replaced, prompt)
    before = next((adapter for adapter in names(model) if _is_active(model, adapter)), None)
    adapted = inject(model, method, name)
    try:
        _fill(adapted, said.folder, values, deltas, replaced, prompt)
    except BaseException:
        remove(model, name)
        if before is not None:
            activate(model, before)
        raise
    return adapted


def _is_active(model: GPT2, name: str) -> bool:
    held = base_of(model)
    return held is not None and held.active == name


def _resolve(path: Path) -> Path:
    commit.recover(path)
    if not path.is_dir():
        near = closest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise UserError(
            f"there is no adapter folder {path}", hint=f"did you mean {path.parent / near}?" if near else None
        )
    if not (path / CONFIG).exists():
        raise UserError(f"{path} has no {CONFIG}: it is no adapter folder")
    if not (path / TENSORS).exists():
        unsafe = sorted(file.name for file in path.glob("adapter_model*.bin"))
        if unsafe:
            raise UserError(
                f"{path} has its weights only in {unsafe[0]}, a format that can run code: it is not read",
                hint="save it again with a newer peft, which writes safetensors",
            )
        raise UserError(f"{path} has no {TENSORS}", hint="copy the whole folder again")
    return path


def _read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json, refused by name where it says what we do not compute."""
    values = commit.read_json(commit.inside(path, CONFIG))
    where = path / CONFIG
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise UserError(f"{where} names no peft_type")
    if values["peft_type"] not in METHODS:
        raise unknown("peft_type", values["peft_type"], METHODS)
    if values.get("task_type") not in TASKS:
        raise UserError(f"{where}: task_type is {values['task_type']!r}, GPT-2 adapters have CAUSAL_LM or SEQ_CLS")
    if values.get("bias", "none") != "none":
        raise UserError(f"{where}: bias is {values['bias']!r}, only none is read", hint="merge it with peft first")
    for key, value in values.items():
        if key not in NEUTRAL and key not in READ[values["peft_type"]] and value:
            raise UserError(f"{where}: {key} is {value!r}, which is not supported", hint="merge it with peft first")
    return values


_SHAPE = {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
_LORA = {"bias", "r", "lora_alpha", "lora_dropout"}
READ = {
    "LORA": {*_LORA, "use_rslora", "use_dora"},
    "ADALORA": {
        *(*_LORA, "init_r", "target_r", "rank_pattern"),
        *("tinit", "tfinal", "deltaT", "total_step", "beta1", "beta2", "orth_reg_weight"),
    },
    "IA3": set(),
    "PREFIX_TUNING": _SHAPE,
    "PROMPT_TUNING": _SHAPE,
    "P_TUNING": _SHAPE,
    "GPT2KIT_BOTTLENECK": {"width", "places", "activation"},
    "GPT2KIT_BITFIT": {"layer_norms"},
    "GPT2KIT_LAST": {"layers", "ln_f"},
}


def _read_tensors(
    path: Path, kind: type[MethodConfig], config: GPT2Config
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """The file's tensors in float32: those of deltas and of replaced parameters by our names, and the prompt."""
    known = set(stored_shapes(config))
    ends = {f".{stored}": leaf for leaf, stored in kind.leaves.items()}
    deltas, replaced, prompt = dict[str, Tensor](), dict[str, Tensor](), None
    file = commit.inside(path, TENSORS)
    with open_weights(file, "pt") as reader:
        for stored in sorted(reader.keys()):
            tensor: Tensor = reader.get_tensor(stored)
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise UserError(f"{file}: {stored} holds NaN or infinity, or no floats", hint="train the adapter again")
            tensor = tensor.float()
            name = stored.removeprefix("base_model.").removeprefix("model.").removeprefix("transformer.")
            end = next((end for end in ends if name.endswith(end)), None)
            if stored == PROMPT:
                prompt = tensor
            elif end is not None:
                deltas[f"{name.removesuffix(end)}.{ends[end]}"] = tensor
            elif name in known:
                replaced[name] = tensor.t() if is_transposed(name) else tensor
            else:
                raise UserError(
                    f"{file} holds {stored}, which no {kind.peft_type} adapter of this GPT-2 has",
                    hint="it belongs to another architecture, another method, or a model with other layers",
                )
    return deltas, replaced, prompt


def _settings(
    said: Description,
    kind: type[MethodConfig],
    values: Mapping[str, Any],
    config: GPT2Config,
    deltas: Mapping[str, Tensor],
    replaced: Mapping[str, Tensor],
    prompt: Tensor | None,
) -> MethodConfig:
    """Our own settings from the lineage; of a folder that PEFT made, from its config and tensors."""
    written = said.lineage.get("method")
    if isinstance(written, dict):
        return kind.from_dict(written)
    modules = shortest(config, {name.rpartition(".")[0] for name in deltas})
    try:
        fields = kind.from_peft(values, modules, deltas)
        own = kind.from_dict(fields).replaces(config)
        also = [m for m in ALSO if f"{m}.weight" in replaced and f"{m}.weight" not in own]
        return kind.from_dict({**fields, "also": also})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{said.folder / CONFIG} lacks a field or holds one of another type: {error}") from None
    except UserError as error:
        raise UserError(f"{said.folder / CONFIG}: {error.message}", hint=error.hint) from None


@torch.no_grad()
def _fill(
    adapted: Adapted,
    path: Path,
    values: Mapping[str, Any],
    deltas: Mapping[str, Tensor],
    replaced: Mapping[str, Tensor],
    prompt: Tensor | None,
) -> None:
    parts = adapted.parts
    adapted.method.unpack(parts, deltas, values)
    missing = sorted(set(parts.replaced) ^ set(replaced))
    if missing:
        what = "lacks" if missing[0] in parts.replaced else "holds what its settings do not name:"
        raise UserError(f"{path / TENSORS} {what} {file_name(missing[0], adapted.method)}")
    for name, tensor in replaced.items():
        fill(name, parts.replaced[name], tensor)
    if (parts.front is None) != (prompt is None):
        raise UserError(f"{path / TENSORS} {'holds' if parts.front is None else 'lacks'} {PROMPT}")
    if parts.front is None or prompt is None:
        return
    with torch.no_grad():
        fill(PROMPT, torch.empty_like(parts.front.prompt()), prompt)
    if (path / ENCODER).exists():
        own = parts.front.state_dict()
        with open_weights(commit.inside(path, ENCODER), "pt") as reader:
            if set(reader.keys()) != set(own):
                raise UserError(f"{path / ENCODER} belongs to another encoder: {min(set(reader.keys()) ^ set(own))}")
            for name, tensor in own.items():
                fill(name, tensor, reader.get_tensor(name))
    else:
        parts.front.fix(prompt.to(parts.front.prompt().device))
