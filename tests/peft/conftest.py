"""Toy models with weights as trained ones have them, and every method in a size that fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.peft import Adapted, MethodConfig, method
from gpt2kit.training import fast

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "lora-all": {"rank": 3},
    "rslora": {"rank": 4},
    "dora": {"rank": 4},
    "adalora": {"rank": 6, "target_rank": 3},
    "houlsby": {"width": 5},
    "pfeiffer": {"width": 5},
    "prefix": {"tokens": 5},
    "prefix-mlp": {"tokens": 5, "width": 7},
    "prompt": {"tokens": 5},
    "p-tuning": {"tokens": 5, "width": 7},
    "p-tuning-lstm": {"tokens": 5, "width": 7},
    "ia3": {},
    "bitfit": {},
    "last": {},
}
KINDS = ("lora-all", "dora", "adalora", "houlsby", "prefix-mlp", "prompt", "p-tuning-lstm", "ia3", "bitfit", "last")
FRONTED = ("prefix", "prefix-mlp", "prompt", "p-tuning", "p-tuning-lstm")
MERGEABLE = ("lora", "lora-all", "rslora", "dora", "adalora", "ia3", "bitfit", "last")


class Toy:
    """Makers of toy things; every one is the same each time."""

    def config(self, **changes: Any) -> GPT2Config:
        return GPT2Config(**{**SHAPE, **changes})

    def model(self, seed: int = 1, **changes: Any) -> GPT2:
        model = GPT2(self.config(**changes)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("ln_" in name))
        return model

    def method(self, name: str, **changes: Any) -> MethodConfig:
        return method(name, **{**SETTINGS[name], **changes})

    def ids(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randint(97, shape, generator=torch.Generator().manual_seed(seed))

    def stir(self, adapted: Adapted, seed: int = 5, by: float = 0.1) -> None:
        """Give the adapter values as after training: everything counts."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapted.parameters.values():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)

    def weights(self, model: GPT2) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture(autouse=True)
def _same_place(torch_as_it_was: None) -> None:
    """Each test begins on one thread, at step 0."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fast.PLACE.step, fast.PLACE.first_row, fast.PLACE.parallel = 0, 0, False
