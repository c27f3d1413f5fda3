"""What a run that trains an adapter keeps and makes: small checkpoints, and in the end adapter/ and what uses it.

checkpoints/step-000500/    adapter_state.safetensors: parameters and statistics; no weight of the base
adapter/                    PEFT's layout: to share, to switch, to merge elsewhere
config.json, model.safetensors, ...   the merged model; without weights where the method does not merge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.config_file import write_config
from gpt2kit.model.files import ADAPTER_RUN, CONFIG
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.peft.inject import Adapted, merge
from gpt2kit.peft.int8base import dequantise_base
from gpt2kit.peft.method import check_finite
from gpt2kit.peft.saved import save
from gpt2kit.text.tokenizer import Tokenizer

ADAPTER = "adapter"  # the folder inside a run folder
STATE = "adapter_state.safetensors"


@dataclass(frozen=True)
class AdapterOnly:
    """`training.checkpoint.Artefact` of an adapter over a frozen base. `base`: its name, for people and for PEFT."""

    adapted: Adapted
    tokenizer: Tokenizer | None
    base: str

    @property
    def model(self) -> GPT2:
        return self.adapted.model

    def write(self, staging: Path, lineage: dict[str, Any]) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.adapted.state_tensors().items()}
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        safetensors.torch.save_file(tensors, staging / STATE)

    def restore(self, path: Path) -> None:
        try:
            tensors = safetensors.torch.load_file(path / STATE)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path / STATE} cannot be read: {error}") from None
        self.adapted.load_state_tensors(tensors)

    def publish(self, folder: Path, best: Path, lineage: Mapping[str, Any], extra: Mapping[str, str]) -> None:
        """The adapter is taken off afterwards: the model is a plain one, merged where the method can be.

        Over an int8 base the merged weights are those that were trained on and validated, int8's roundings included.
        """
        self.restore(best)
        save(folder / ADAPTER, self.adapted, self.base, lineage)
        if self.adapted.method.mergeable:
            dequantise_base(self.model)
            merge(self.model, keep=False)
            model_folder.save(folder, self.model, self.tokenizer, lineage, extra, keep_others=True)
        else:
            _save_without_weights(folder, self.model, self.tokenizer, lineage, extra)


def _save_without_weights(
    folder: Path, model: GPT2, tokenizer: Tokenizer | None, lineage: Mapping[str, Any], extra: Mapping[str, str]
) -> None:
    """Config and tokenizer, so that readers of model folders know what the adapter answers to."""
    record = model_folder.complete_lineage(model, tokenizer, lineage)
    target = folder / ".model"
    with commit.folder(target, ADAPTER_RUN, record) as staging:
        if tokenizer is not None:
            tokenizer.save(staging)
        write_config(staging / CONFIG, model.config, tokenizer)
        for name, content in extra.items():
            commit.inside(staging, name).write_text(content, encoding="utf-8")
    commit.files_into(folder, target)
