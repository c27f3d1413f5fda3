"""The settings of one training run: checked here, turned into flags by the command line, saved in the run folder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gpt2kit.errors import UserError, unknown

Optimizer = Literal["muon", "adamw", "adam", "sgd", "rmsprop"]
Schedule = Literal["linear", "cosine", "constant", "exponential", "wsd", "cyclic", "plateau"]
Objective = Literal["next", "masked", "fim"]
PrecisionName = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Counts are in optimiser steps and tokens; learning rates are peaks, after the warm-up."""

    steps: int = 1000
    batch: int = 16  # sequences in one optimiser step, over all micro-batches and workers
    context: int = 128  # tokens in one sequence
    micro_batch: int = 0  # sequences in one forward pass; 0: as many as the plan allows
    seed: int = 0
    optimizer: Optimizer = "muon"
    learning_rate: float = 3e-3  # AdamW's part under "muon"
    matrix_learning_rate: float = 0.02  # Muon's part
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    schedule: Schedule = "linear"
    warmup: int = 20
    final_rate: float = 0.0  # the schedule's end, as a fraction of the peak
    clip: float = 1.0  # gradient norm; 0: off
    dropout: float = 0.0  # embedding and residual
    attention_dropout: float = 0.0  # leaves the fast attention: slower
    label_smoothing: float = 0.0
    objective: Objective = "next"
    precision: PrecisionName = "auto"
    evaluate_every: int = 100
    evaluate_tokens: int = 65536  # of the validation split; 0: all of it
    checkpoint_every: int = 500  # a better evaluation makes a checkpoint in between
    keep: int = 2  # newest checkpoints kept, besides the best
    patience: int = 0  # evaluations in a row that are not the best so far before an early stop; 0: never
    workers: int = 0  # threads that each take a slice of the batch; 0: chosen from the model's size
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "context", "evaluate_every", "checkpoint_every", "keep"):
            _at_least(self, name, 1)
        for name in ("micro_batch", "seed", "warmup", "evaluate_tokens", "patience", "workers"):
            _at_least(self, name, 0)
        for name in ("learning_rate", "matrix_learning_rate"):
            value = getattr(self, name)
            if not (0 < value <= 10):
                raise UserError(f"{name} must be in (0, 10], got {value}")
        for name in ("dropout", "attention_dropout", "label_smoothing", "beta1", "beta2", "momentum"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise UserError(f"{name} must be in [0, 1), got {value}")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(f"{name} must be zero or more, got {value}")
        if not 0 <= self.final_rate <= 1:
            raise UserError(f"final_rate must be in [0, 1], got {self.final_rate}")
        for name, kind in (("optimizer", Optimizer), ("schedule", Schedule), ("objective", Objective)):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, str(getattr(self, name)), get_args(kind))
        if self.precision not in get_args(PrecisionName):
            raise unknown("precision", str(self.precision), get_args(PrecisionName))

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on."""
        return self.steps * self.batch * self.context

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Read saved settings; an unknown key or a value of another type is a UserError that names it."""
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise unknown("training setting", name, known)
            default = known[name]
            right = isinstance(value, (int, float)) if isinstance(default, float) else isinstance(value, type(default))
            if not right or isinstance(value, bool) != isinstance(default, bool):
                raise UserError(f"training setting {name} must be a {type(default).__name__}, got {value!r}")
        return cls(**values)


def _at_least(config: TrainConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if value < least or value > 2**53:
        raise UserError(f"{name} must be at least {least}, got {value}")
