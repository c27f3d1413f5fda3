"""A toy model and a toy run: 65 symbols, 2 layers x 32 channels, context 16."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2kit import runtime
from gpt2kit.data.loader import Batches
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import fast, loop, optim
from gpt2kit.training.checkpoint import State
from gpt2kit.training.config import TrainConfig

FP32 = runtime.Precision("fp32", "aten", "for the test")
SHAPE: dict[str, Any] = {
    "vocab_size": 65, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "steps": 10, "batch": 16, "context": 16, "warmup": 2, "seed": 3, "workers": 1, "precision": "fp32",
    "evaluate_every": 5, "checkpoint_every": 1000, "evaluate_tokens": 0,
}  # fmt: skip


class Toy:
    """Makers of toy things; every one is the same each time."""

    precision = FP32

    def config(self, **changes: Any) -> GPT2Config:
        return GPT2Config(**{**SHAPE, **changes})

    def model(self, seed: int = 1, **changes: Any) -> GPT2:
        """Weights as trained ones are, not as drawn: gains and biases differ from 1 and 0, logits are not uniform."""
        model = GPT2(self.config(**changes), torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        return model

    def settings(self, **changes: Any) -> TrainConfig:
        return TrainConfig(**{**SETTINGS, **changes})

    def ids(self, *shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(65, shape, generator=torch.Generator().manual_seed(seed))

    def text(self, n: int = 4000) -> np.ndarray[Any, Any]:
        """A learnable stream: mostly a walk with a fixed step, some noise."""
        rng = np.random.default_rng(0)
        steps = np.where(rng.random(n) < 0.8, 7, rng.integers(0, 65, n))
        return np.cumsum(steps).astype(np.int64) % 65

    def run(self, folder: Path, model: GPT2 | None = None, tokenizer: Tokenizer | None = None,
            validation: bool = True, precision: runtime.Precision = FP32, minutes: float | None = None,
            stop: Callable[[], bool] = lambda: False, **changes: Any) -> loop.Run:  # fmt: skip
        config = self.settings(**changes)
        if model is None:
            model = GPT2(self.config(), torch.Generator().manual_seed(1))
        stream = self.text()
        held = np.stack([stream[a : a + config.context + 1] for a in range(3500, 3900, config.context)])
        return loop.Run(
            folder, model, tokenizer, config, Batches(stream[:3500], config.context, config.batch, config.seed),
            held if validation else None, precision, {"name": "toy"}, minutes=minutes, stop=stop,
        )  # fmt: skip

    def fit(self, run: loop.Run, state: State | None = None) -> list[loop.Event]:
        return list(loop.fit(run, optim.build(run.model, run.config), State() if state is None else state))

    def weights(self, model: GPT2) -> dict[str, torch.Tensor]:
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


assert {f.name for f in dataclasses.fields(TrainConfig)} >= set(SETTINGS)
