"""What is chosen where nothing is asked for: dropout, rates, how often a run is looked at."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from gpt2kit import runtime
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes import shape
from gpt2kit.recipes.options import TrainOptions
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training import plan
from gpt2kit.training.config import TrainConfig

FP32 = runtime.Precision("fp32", "aten", "for the test")
TINY = plan.PRESETS["tiny"]


def chosen(base: GPT2 | None = None, epochs: float = 1.0, **given: object) -> TrainConfig:
    options = TrainOptions(["text"], "out", steps=100, batch=8, context=64, **given)  # type: ignore[arg-type]
    tokenizer = train_tokenizer(["abc"], "char")
    return shape.choose(options, base, tokenizer, FP32, math.ceil(100 * 8 * 64 / epochs))[1]


@pytest.fixture(scope="module")
def base() -> GPT2:
    return GPT2(GPT2Config(8, 64, 32, 2, 2), torch.Generator().manual_seed(0))


def test_dropout_follows_the_epochs_from_a_model_too(base: GPT2) -> None:
    for model in (None, base):
        assert [chosen(model, epochs).dropout for epochs in (1, 3, 3.1, 10, 10.1, 90)] == [0, 0, 0.1, 0.1, 0.2, 0.2]
        assert chosen(model, 90, dropout=0.05).dropout == 0.05


def test_older_optimisers_have_rates_of_their_own_and_no_decay(base: GPT2) -> None:
    for model in (None, base):
        for name, rate in (("sgd", 0.1), ("rmsprop", 1e-3)):
            config = chosen(model, optimizer=name)
            assert (config.learning_rate, config.weight_decay) == (rate, 0.0)
        assert chosen(model, optimizer="adam").weight_decay == 0.0
        assert chosen(model, optimizer="adamw").weight_decay > 0
        assert chosen(model, optimizer="sgd", weight_decay=0.3, learning_rate=0.7).weight_decay == 0.3


def test_a_model_trains_on_at_a_fifth_of_the_rates(base: GPT2) -> None:
    config = chosen(base)
    assert config.learning_rate == pytest.approx(TINY.learning_rate / 5)
    assert config.matrix_learning_rate == pytest.approx(TINY.matrix_learning_rate / 5)
    assert chosen(base, learning_rate=0.5).learning_rate == 0.5


@pytest.mark.parametrize("minutes", [0.5, 5.0, 50.0])
def test_looking_at_a_run_takes_at_most_eight_percent_of_its_minutes(minutes: float) -> None:
    options = TrainOptions(["text"], "out", minutes=minutes)
    model, speed = GPT2Config(8192, 256, 384, 6, 6), 3000.0
    config = dataclasses.replace(TrainConfig(), steps=int(minutes * 60))
    found = shape._intervals(options, model, config, speed)
    looks = config.steps // found.evaluate_every
    each = shape.WATCHING_SECONDS + shape.SAVING_SECONDS * model.parameters + found.evaluate_tokens / (3 * speed)
    assert looks >= 1
    assert looks == 1 or looks * each <= 0.08 * minutes * 60 * 1.1  # steps are whole, so are the intervals


@pytest.mark.parametrize(
    ("optimizer", "given"),
    [("adamw", "momentum"), ("adamw", "matrix_learning_rate"), ("sgd", "beta1"), ("rmsprop", "beta2")],
)
def test_a_setting_that_the_optimiser_does_not_read_is_refused(optimizer: str, given: str) -> None:
    values = {"optimizer": optimizer, given: 0.5}
    with pytest.raises(UserError, match=f"--{given.replace('_', '-')} has no meaning for {optimizer}"):
        TrainOptions(["text"], "out", **values)  # type: ignore[arg-type]
    assert TrainOptions(["text"], "out", **{given: 0.5}).settings()[given] == 0.5  # type: ignore[arg-type]
