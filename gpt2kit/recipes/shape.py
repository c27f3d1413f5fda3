"""From what was asked, the data's size and this machine's speed to a model's shape and its training settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt2kit import runtime
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes.options import TrainOptions
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import plan
from gpt2kit.training.config import TrainConfig

DEFAULT_STEPS = 1000
EVALUATIONS, CHECKPOINTS = 20, 5  # in a run, where nothing else is asked for
WATCHING_SHARE = 0.08  # of the minutes that evaluations, plots, samples and checkpoints may take
WATCHING_SECONDS = 0.7  # of one evaluation besides its forward passes: plot, sample, a small checkpoint
SAVING_SECONDS = 5e-8  # of a checkpoint, a parameter: 8.6 bytes written, hashed and synced at 150-250 MB/s
EVALUATION_SHARE = 0.005  # of the minutes that the forward passes of one evaluation may take
TUNING_RATE = 0.2  # of the preset's learning rates, when training goes on from a model's weights
Choice = tuple[GPT2Config, TrainConfig, float | None, tuple[str, ...]]


def choose(
    options: TrainOptions,
    base: GPT2 | None,
    tokenizer: Tokenizer,
    precision: runtime.Precision,
    train_tokens: int,
) -> Choice:
    """(model, training settings, tokens/s where it was measured, reasons)."""
    model, config, speed, reasons = _shape(options, base, tokenizer, precision, train_tokens)
    if options.dropout is None:
        rate = plan.choose_dropout(config.tokens / max(1, train_tokens))
        config = dataclasses.replace(config, dropout=rate)
        model = model if base is not None else dataclasses.replace(model, resid_pdrop=rate, embd_pdrop=rate)
    return model, config, speed, reasons


def _shape(
    options: TrainOptions, base: GPT2 | None, tokenizer: Tokenizer, precision: runtime.Precision, train_tokens: int
) -> Choice:
    if base is not None:
        return _from_model(options, base, precision)
    if options.minutes is not None and options.preset is None and options.n_embd is None and options.n_layer is None:
        return _for_minutes(options, tokenizer, precision, train_tokens)
    chosen = plan.preset(options.preset or "tiny")
    shape = plan.Candidate(
        chosen.n_layer if options.n_layer is None else options.n_layer,
        chosen.n_embd if options.n_embd is None else options.n_embd,
        chosen.context if options.context is None else options.context,
        chosen.batch if options.batch is None else options.batch,
    )
    n_head = chosen.n_head if options.n_head is None else options.n_head
    model, config = _build(options, tokenizer, shape, n_head, dataclasses.asdict(chosen))
    return _timed(options, model, config, precision)


def _for_minutes(
    options: TrainOptions, tokenizer: Tokenizer, precision: runtime.Precision, train_tokens: int
) -> Choice:
    assert options.minutes is not None

    def build(shape: plan.Candidate) -> tuple[GPT2Config, TrainConfig]:
        shape = dataclasses.replace(
            shape,
            context=shape.context if options.context is None else options.context,
            batch=shape.batch if options.batch is None else options.batch,
        )
        n_head = shape.n_head if options.n_head is None else options.n_head
        rate = plan.NARROW_RATE if shape.n_embd < plan.NARROW else TrainConfig.matrix_learning_rate
        return _build(options, tokenizer, shape, n_head, {"matrix_learning_rate": rate})

    model, config, speed, reasons = plan.for_minutes(options.minutes, build, precision, train_tokens, options.n_head)
    return model, _intervals(options, model, config, speed), speed, reasons


def _timed(options: TrainOptions, model: GPT2Config, config: TrainConfig, precision: runtime.Precision) -> Choice:
    """Turn minutes into steps by measuring this shape; without minutes the steps are as asked."""
    if options.minutes is None:
        return model, _intervals(options, model, config), None, ()
    speed = plan.tokens_per_second(model, config, precision)
    steps = plan.steps_for(options.minutes, speed, config)
    return model, _intervals(options, model, dataclasses.replace(config, steps=steps), speed), speed, ()


def _build(
    options: TrainOptions, tokenizer: Tokenizer, shape: plan.Candidate, n_head: int, rates: dict[str, Any]
) -> tuple[GPT2Config, TrainConfig]:
    given = options.settings()
    dropout = given.get("dropout", 0.0)
    model = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=shape.context, n_embd=shape.n_embd, n_layer=shape.n_layer,
        n_head=n_head, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=given.get("attention_dropout", 0.0),
        bos_token_id=tokenizer.eot_id, eos_token_id=tokenizer.eot_id,
    )  # fmt: skip
    settings: dict[str, Any] = {"steps": DEFAULT_STEPS, "batch": shape.batch, "context": shape.context}
    settings |= {k: rates[k] for k in ("learning_rate", "matrix_learning_rate") if k in rates}
    settings |= plan.optimizer_settings(options.optimizer)
    return model, _slices(TrainConfig(**(settings | given)), model)


def _slices(config: TrainConfig, model: GPT2Config) -> TrainConfig:
    cores = runtime.cores() if runtime.device().type == "cpu" else 1
    workers = config.workers or plan.choose_workers(model.parameters, config.batch, cores)
    micro = config.micro_batch or plan.choose_micro_batch(config, workers)
    return dataclasses.replace(config, workers=workers, micro_batch=micro)


def _intervals(options: TrainOptions, model: GPT2Config, config: TrainConfig, speed: float = 0.0) -> TrainConfig:
    """Evaluate as often as people like to look, but within WATCHING_SHARE of the minutes."""
    times = EVALUATIONS
    if options.minutes is not None:
        forward = 3 * speed  # a step's backward pass costs two forward passes
        if options.evaluate_tokens is None:
            most = int(forward * options.minutes * 60 * EVALUATION_SHARE)
            config = dataclasses.replace(config, evaluate_tokens=min(config.evaluate_tokens, max(4096, most)))
        cost = WATCHING_SECONDS + SAVING_SECONDS * model.parameters + (config.evaluate_tokens or 1_000_000) / forward
        times = max(1, min(EVALUATIONS, int(options.minutes * 60 * WATCHING_SHARE / cost)))
    evaluate = options.evaluate_every or max(1, config.steps // times)
    checkpoint = options.checkpoint_every or max(1, evaluate * max(1, config.steps // CHECKPOINTS // evaluate))
    return dataclasses.replace(config, evaluate_every=evaluate, checkpoint_every=checkpoint)


def _from_model(options: TrainOptions, base: GPT2, precision: runtime.Precision) -> Choice:
    """Further training keeps the model's shape; the learning rates are those of the nearest preset, lowered."""
    chosen = min(
        plan.PRESETS.values(),
        key=lambda p: abs(p.n_embd * p.n_layer - base.config.n_embd * base.config.n_layer),
    )
    if options.context is not None and options.context > base.config.n_positions:
        raise UserError(f"--context {options.context} exceeds the model's {base.config.n_positions} positions")
    context = min(base.config.n_positions, chosen.context if options.context is None else options.context)
    settings = {
        "steps": DEFAULT_STEPS, "batch": chosen.batch, "context": context,
        "learning_rate": chosen.learning_rate * TUNING_RATE,
        "matrix_learning_rate": chosen.matrix_learning_rate * TUNING_RATE,
    }  # fmt: skip
    settings |= plan.optimizer_settings(options.optimizer)
    config = _slices(TrainConfig(**(settings | options.settings() | {"context": context})), base.config)
    return _timed(options, base.config, config, precision)
