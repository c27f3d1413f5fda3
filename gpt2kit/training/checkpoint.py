"""Checkpoints: a model folder plus all the state that the next step depends on, committed atomically.

runs/x/checkpoints/step-000500/   config.json, model.safetensors, tokenizer files, gpt2kit.json ... (a model folder)
                                  training_state.safetensors   optimiser tensors, torch's generator
                                  training_state.json          counters, settings, schedule, who was best
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model.folder import complete_lineage, write_model_files
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.weights import load_weights
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import optim

TENSORS = "training_state.safetensors"
STATE = "training_state.json"
GENERATOR, CUDA_GENERATOR = "torch/generator", "torch/cuda_generator"
STEP = re.compile(r"step-(\d+)")


@dataclass
class State:
    """Where a run is. Everything here, the weights and the optimiser's tensors determine all later steps."""

    step: int = 0  # optimiser steps done
    total: int = 0  # steps of the whole run
    seconds: float = 0.0  # of training, over all sittings
    best: float | None = None  # lowest validation loss, nats per token
    evaluations_since_best: int = 0
    plateau: float = 1.0  # the learning rate's factor under the "plateau" schedule
    losses: dict[str, float] = field(default_factory=dict)  # step -> validation loss, for the plot and the lineage
    stopped_early: bool = False

    @classmethod
    def from_dict(cls, values: Any) -> State:
        known = {f.name: f for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != set(known):
            raise UserError("the training state is not one that this version wrote")
        numbers = (values["step"], values["total"], values["seconds"], values["plateau"])
        if any(isinstance(n, bool) or not isinstance(n, (int, float)) or n < 0 for n in numbers):
            raise UserError("the training state holds impossible counters")
        good = (
            all(type(values[n]) is int for n in ("step", "total", "evaluations_since_best"))
            and (values["best"] is None or type(values["best"]) in (int, float))
            and type(values["stopped_early"]) is bool
            and isinstance(values["losses"], dict)
            and all(type(v) in (int, float) for v in values["losses"].values())
        )
        if not good or values["evaluations_since_best"] < 0:
            raise UserError("the training state holds values of another type")
        return cls(**values)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def steps_of(run: Path) -> list[int]:
    """The steps of the checkpoints that are there, damaged ones too, in order."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(match[1]) for p in found if (match := STEP.fullmatch(p.name)))


def save(
    run: Path,
    model: GPT2,
    tokenizer: Tokenizer | None,
    optimizers: list[torch.optim.Optimizer],
    state: State,
    lineage: dict[str, Any],
    keep: int,
) -> Path:
    """Commit the checkpoint of `state.step`, then delete all but the `keep` newest and the best."""
    target = folder_of(run, state.step)
    loss = state.losses.get(str(state.step))
    scores = {} if loss is None else {"validation_loss": loss}
    record = complete_lineage(model, tokenizer, {**lineage, "step": state.step, "scores": scores})
    with commit.folder(target, "checkpoint", record) as staging:
        write_model_files(staging, model, tokenizer, record)
        tensors = {n: t.contiguous() for n, t in optim.state_tensors(model, optimizers).items()}
        tensors[GENERATOR] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[CUDA_GENERATOR] = torch.cuda.get_rng_state()
        safetensors.torch.save_file(tensors, staging / TENSORS)
        commit.write_json(staging / STATE, dataclasses.asdict(state))
    kept = {*steps_of(run)[-keep:], best(run, state)}
    for step in steps_of(run):
        if step not in kept:
            commit.discard(folder_of(run, step))
    return target


def best(run: Path, state: State) -> int | None:
    """The step of the checkpoint with the lowest validation loss; the newest where none was evaluated."""
    steps = steps_of(run)
    return min(steps, key=lambda step: (state.losses.get(str(step), math.inf), -step), default=None)


def restore(path: Path, model: GPT2, optimizers: list[torch.optim.Optimizer]) -> State:
    """Fill model and optimisers from a checkpoint that was verified; return its state."""
    model.load_state_dict(load_weights(path, model.config).state_dict())
    try:
        tensors = safetensors.torch.load_file(path / TENSORS)
        torch.set_rng_state(tensors.pop(GENERATOR))
    except (safetensors.SafetensorError, KeyError, RuntimeError, TypeError, OSError) as error:
        raise UserError(f"{path / TENSORS} cannot be read: {error}", hint="resume from an earlier checkpoint") from None
    cuda = tensors.pop(CUDA_GENERATOR, None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    optim.load_state_tensors(model, optimizers, tensors)
    return State.from_dict(commit.read_json(path / STATE))


def newest(run: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint whose every file matches its manifest, and notes on damaged ones that were passed over."""
    notes: list[str] = []
    for step in reversed(steps_of(run)):
        path = folder_of(run, step)
        try:
            commit.recover(path)
            if commit.verify(path) is None:
                raise UserError(f"{path} has no {commit.MANIFEST}")
            for name in (STATE, TENSORS):
                if not (path / name).exists():
                    raise UserError(f"{path} has no {name}")
            return path, notes
        except UserError as error:
            notes.append(f"checkpoint {path.name} is passed over: {error.message}")
    raise UserError(
        f"{run} has no checkpoint to resume from" + (f" ({'; '.join(notes)})" if notes else ""),
        hint="start the run again with gpt2kit train",
    )
