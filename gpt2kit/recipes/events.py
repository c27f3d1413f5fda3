"""What a training recipe reports while it runs; the loop's own events (training/loop.py) come between these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt2kit import runtime
from gpt2kit.model.config import GPT2Config
from gpt2kit.training import loop, plan
from gpt2kit.training.config import TrainConfig


@dataclass(frozen=True)
class Note:
    text: str


@dataclass(frozen=True)
class Reading:
    """How far a corpus is read. It goes to a recipe's `report`, not into its stream: nothing is yielded meanwhile."""

    work: str  # "learning" a vocabulary, or "packing"
    read: int  # bytes from the disk so far
    total: int | None  # bytes of all of it, where that is known
    tokens: int | None = None


@dataclass(frozen=True)
class Planned:
    plan: plan.Plan
    model: GPT2Config
    config: TrainConfig
    precision: runtime.Precision


@dataclass(frozen=True)
class Sampled:
    step: int
    text: str


@dataclass(frozen=True)
class Finished:
    folder: Path
    step: int  # of the checkpoint that became the model
    scores: Mapping[str, float]  # of it: validation_loss, and validation_accuracy of a classifier, as far as known
    seconds: float  # of training
    stopped: str  # "finished", "early" or "asked"
    resume: str | None  # the command that goes on, where the run was stopped
    next: tuple[str, ...] = ()  # commands to try on what was made; none: those of a model that writes

    @property
    def loss(self) -> float | None:
        """The checkpoint's validation loss, nats per target."""
        return self.scores.get("validation_loss")


Event = loop.Event | Note | Reading | Planned | Sampled | Finished
