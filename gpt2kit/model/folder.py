"""The model folder, which every stage reads and writes: Hugging Face's layout, so other tools read it too.

    config.json, model.safetensors, generation_config.json, tokenizer files
    gpt2kit.json   lineage (parents, data, settings, seed, scores, versions) and the SHA-256 of every file
    README.md      the model card, made from the lineage

A folder without gpt2kit.json was made by another tool: unverified, but its files' structure is checked.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpt2kit import commit
from gpt2kit.model.card import model_card
from gpt2kit.model.config_file import write_config
from gpt2kit.model.files import (
    CONFIG,
    check_vocabulary,
    describe,
    identity,
    lineage,
    read_head,
    read_steadily,
    resolve,
    tokenizer_facts,
)
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.headers import WEIGHTS
from gpt2kit.model.weights import load_weights, save_weights
from gpt2kit.runtime import package_version

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

__all__ = [
    "complete_lineage",
    "describe",
    "identity",
    "lineage",
    "load",
    "resolve",
    "save",
    "write_model_files",
]


def load(
    folder: str | Path,
    device: torch.device | str = "cpu",
    verify: bool = True,
    dtype: torch.dtype = torch.float32,
    allow_hub: bool = False,
    notes: list[str] | None = None,
) -> tuple[GPT2, Tokenizer | None]:
    """The model in eval mode, and its tokenizer (None where the folder has none).

    `verify` checks each file that is read against gpt2kit.json. `notes` receives what was repaired or chosen.
    With `allow_hub`, a name that is no folder here is downloaded from the Hugging Face hub.
    Raises UserError naming the file, key or tensor that is wrong.
    """
    path, chosen = resolve(folder, allow_hub)

    def read(found: list[str]) -> tuple[GPT2, Tokenizer | None]:
        config, tokenizer = read_head(path, found)
        return load_weights(path, config, device, dtype).eval(), tokenizer

    loaded, found = read_steadily(path, read, verify)
    if notes is not None:
        notes += [*([] if chosen is None else [chosen]), *found]
    return loaded


def save(
    folder: str | Path,
    model: GPT2,
    tokenizer: Tokenizer | None = None,
    lineage: Mapping[str, Any] | None = None,
    extra: Mapping[str, str | bytes] | None = None,
    keep_others: bool = False,
) -> Path:
    """Commit a model folder in place of the old one; after any crash the old or the new one is whole.

    `lineage`: name, parents [{"folder", "hash"}], data, settings, seed, scores, notes, and any other JSON.
    `extra`: more files, name -> content. With `keep_others`, files that no manifest covers stay.
    Raises UserError for weights that are not finite, a tokenizer too large for the model, a failing disk.
    """
    folder = Path(folder)
    record = complete_lineage(model, tokenizer, lineage)
    target = folder / ".model" if keep_others else folder
    with commit.folder(target, "model", record) as staging:
        write_model_files(staging, model, tokenizer, record)
        for name, content in (extra or {}).items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            commit.inside(staging, name).write_bytes(data)
    if keep_others:
        commit.files_into(folder, target)
    return folder


def complete_lineage(
    model: GPT2, tokenizer: Tokenizer | None, lineage: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The lineage, with parameters, tokenizer and versions added. No time of day: same run, same bytes."""
    record = {key: value for key, value in (lineage or {}).items() if key not in commit.RESERVED}
    record["parameters"] = model.config.parameters
    if tokenizer is None:
        record.pop("tokenizer", None)
    else:
        record["tokenizer"] = tokenizer_facts(tokenizer)
    record["versions"] = {
        "gpt2kit": package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return record


def write_model_files(
    staging: Path, model: GPT2, tokenizer: Tokenizer | None = None, lineage: Mapping[str, Any] | None = None
) -> None:
    """Write the model's files into an open staging folder (`commit.folder`), beside what the caller adds."""
    config = model.config
    if tokenizer is not None:
        check_vocabulary(tokenizer, config)
        tokenizer.save(staging)
    write_config(staging / CONFIG, config, tokenizer)
    save_weights(staging / WEIGHTS, model)
    values = commit.read_json(staging / CONFIG)
    tokens = {name: values[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    commit.write_json(
        staging / "generation_config.json",
        {"_from_model_config": True, **{k: v for k, v in tokens.items() if v is not None}},
    )
    card = model_card(config, complete_lineage(model, tokenizer, lineage))
    (staging / "README.md").write_bytes(card.encode("utf-8", "backslashreplace"))
