"""Settings are checked by name, and survive being saved."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from gpt2kit.errors import UserError
from gpt2kit.training.config import TrainConfig

COUNTS = ("steps", "batch", "context", "evaluate_every", "checkpoint_every", "keep")
NUMBERS = ("micro_batch", "seed", "warmup", "evaluate_tokens", "patience", "workers")
RATES = ("learning_rate", "matrix_learning_rate")
FRACTIONS = ("dropout", "attention_dropout", "label_smoothing", "beta1", "beta2", "momentum")
NOT_NEGATIVE = ("weight_decay", "clip")
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in COUNTS for value in (0, -1, 2**60)),
    *((name, value) for name in NUMBERS for value in (-1, 2**60)),
    *((name, value) for name in RATES for value in (0.0, -1e-3, 11.0, math.nan, math.inf)),
    *((name, value) for name in FRACTIONS for value in (-0.1, 1.0, 2.0, math.nan)),
    *((name, value) for name in NOT_NEGATIVE for value in (-0.1, math.nan, math.inf)),
    *(("final_rate", value) for value in (-0.1, 1.1, math.nan)),
    *((name, "nonsense") for name in ("optimizer", "schedule", "objective", "precision")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(**{name: value})
    assert name in caught.value.message
    assert str(value) in caught.value.message


def test_every_field_has_a_bad_value_above() -> None:
    assert {f.name for f in dataclasses.fields(TrainConfig)} - {name for name, _ in BAD} == {"tensorboard"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 1), ("warmup", 0), ("learning_rate", 10.0), ("dropout", 0.0), ("clip", 0.0), ("final_rate", 1.0),
     ("final_rate", 0.0), ("beta1", 0.0), ("seed", 2**53), ("schedule", "wsd"), ("optimizer", "rmsprop")],
)  # fmt: skip
def test_the_ends_of_the_ranges_are_allowed(name: str, value: Any) -> None:
    assert getattr(TrainConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [("optimizer", "muun", "muon"), ("schedule", "cosin", "cosine"), ("precision", "bf61", "bf16")],
)
def test_a_near_miss_is_suggested(name: str, typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        TrainConfig(**{name: typed})


def test_tokens_are_those_of_the_run() -> None:
    assert TrainConfig(steps=7, batch=5, context=11).tokens == 385


def test_saved_settings_come_back_equal() -> None:
    config = TrainConfig(steps=7, schedule="wsd", dropout=0.1, tensorboard=True, clip=0, learning_rate=1e-3)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig.from_dict({}) == TrainConfig()


def test_an_unknown_saved_key_is_suggested() -> None:
    with pytest.raises(UserError, match="'lerning_rate'; did you mean 'learning_rate'"):
        TrainConfig.from_dict({"lerning_rate": 1e-3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", "10"), ("steps", 1.5), ("steps", True), ("steps", None), ("learning_rate", "1e-3"), ("clip", True),
     ("learning_rate", [1]), ("optimizer", 3), ("optimizer", None), ("tensorboard", 1), ("tensorboard", "yes")],
)  # fmt: skip
def test_a_saved_value_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} must be a"):
        TrainConfig.from_dict({name: value})


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 5  # type: ignore[misc]
