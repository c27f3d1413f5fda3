"""An adapter folder, ours or PEFT's, over its base -> a model folder of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gpt2kit import commit, peft
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.peft.artefact import ADAPTER
from gpt2kit.peft.saved import METHODS, TENSORS
from gpt2kit.recipes.places import parent_of
from gpt2kit.tasks import task_of
from gpt2kit.tasks.chat import Chat
from gpt2kit.tasks.reference import with_head


def merge(adapter: str | Path, base: str, out: str | Path, hub: bool = False) -> Path:
    """Write the model folder `out`; return it. `adapter` may be a run folder, whose adapter/ is meant.

    Raises UserError for a method that is no weights, for another base, and where `out` holds something else.
    """
    folder = Path(adapter) / ADAPTER if (Path(adapter) / ADAPTER).is_dir() else Path(adapter)
    said = peft.describe(folder)
    if not METHODS[said.peft_type].mergeable:
        raise UserError(
            f"{folder} cannot be merged: what {said.peft_type} does is not in the weights of a plain GPT-2",
            hint="run it over its base: gpt2kit run, gpt2kit evaluate",
        )
    parent = parent_of(base, hub)
    if Path(out).resolve() in (Path(parent["folder"]), Path(base).resolve()):
        raise UserError(f"{out} is the base itself, which would be lost", hint="choose another --out")
    network, tokenizer = model_folder.load(parent["folder"])
    config = _config(said, network.config)
    if config.labels != network.config.labels:
        network = with_head(network, config)
    adapted = peft.load(folder, network)
    peft.merge(network, keep=False)
    lineage: dict[str, Any] = {
        "name": Path(out).resolve().name,
        "parents": [
            {"folder": parent["name"], "hash": model_folder.identity(parent["folder"])},
            {"folder": folder.resolve().name, "hash": commit.sha256_file(folder / TENSORS)},
        ],
        "method": adapted.method.to_dict(),
    }
    extra = {}
    if "task" in said.lineage:
        lineage["task"] = said.lineage["task"]
        task = task_of(said.lineage)
        extra = {"chat_template.jinja": task.template} if isinstance(task, Chat) else {}
    return model_folder.save(out, network, tokenizer, lineage, extra)


def _config(said: peft.Description, base: GPT2Config) -> GPT2Config:
    """The base's, with the head that the adapter brings. PEFT says how many classes there are, not what they are."""
    if said.labels:
        return dataclasses.replace(base, labels=said.labels, multi_label=said.multi_label)
    if said.task != "SEQ_CLS" or base.labels:
        return base
    labels = peft.class_names(said)
    if not labels:
        raise UserError(f"{said.folder} is of a classifier, and neither it nor the base has a head")
    return dataclasses.replace(base, labels=labels)
