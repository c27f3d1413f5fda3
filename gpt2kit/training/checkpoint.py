"""Checkpoints: what is trained, plus all the state that the next step depends on, committed atomically.

runs/x/checkpoints/step-000500/   config.json, model.safetensors, tokenizer files, gpt2kit.json ... (a model folder)
                                  training_state.safetensors   optimiser tensors, torch's generator
                                  training_state.json          counters, settings, schedule, who was best

The first line is `WholeModel`'s. A run that trains an adapter keeps that alone (`peft.AdapterOnly`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.files import STEP, standing
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.weights import load_weights
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import optim

TENSORS = "training_state.safetensors"
STATE = "training_state.json"
GENERATOR, CUDA_GENERATOR = "torch/generator", "torch/cuda_generator"


@dataclass
class State:
    """Where a run is. Everything here, the weights and the optimiser's tensors determine all later steps."""

    step: int = 0  # optimiser steps done
    total: int = 0  # steps of the whole run
    seconds: float = 0.0  # of training, over all sittings
    evaluations_since_best: int = 0
    plateau: float = 1.0  # the learning rate's factor under the "plateau" schedule
    losses: dict[str, float] = field(default_factory=dict)  # step -> validation loss, nats per target
    accuracies: dict[str, float] = field(default_factory=dict)  # step -> share of right decisions, of a classifier
    stopped_early: bool = False

    def scores(self, step: int) -> dict[str, float]:
        """What is known of a step, by the names that model folders use."""
        kinds = {"validation_loss": self.losses, "validation_accuracy": self.accuracies}
        return {name: found[str(step)] for name, found in kinds.items() if str(step) in found}

    def standing(self, step: int) -> tuple[float, float]:
        """Of a step, as `model.files.standing` says: less is better."""
        return standing(self.scores(step))

    @classmethod
    def from_dict(cls, values: Any) -> State:
        if isinstance(values, dict) and "accuracies" not in values:  # written before these were kept
            values = {name: value for name, value in values.items() if name != "best"} | {"accuracies": {}}
        known = {f.name: f for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != set(known):
            raise UserError("the training state is not one that this version wrote")
        numbers = (values["step"], values["total"], values["seconds"], values["plateau"])
        if any(isinstance(n, bool) or not isinstance(n, (int, float)) or n < 0 for n in numbers):
            raise UserError("the training state holds impossible counters")
        good = (
            all(type(values[n]) is int for n in ("step", "total", "evaluations_since_best"))
            and type(values["stopped_early"]) is bool
            and all(isinstance(values[n], dict) for n in ("losses", "accuracies"))
            and all(type(v) in (int, float) for n in ("losses", "accuracies") for v in values[n].values())
        )
        if not good or values["evaluations_since_best"] < 0:
            raise UserError("the training state holds values of another type")
        return cls(**values)


class Artefact(Protocol):
    """What a run makes."""

    @property
    def model(self) -> GPT2:
        """What is trained: the optimiser's tensors go by the names of its parameters."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def write(self, staging: Path, lineage: dict[str, Any]) -> None:
        """Into an open checkpoint: all of the model that later steps depend on."""

    def restore(self, path: Path) -> None:
        """Put back what `write` wrote. The checkpoint was verified; UserError names what does not fit."""

    def publish(self, folder: Path, best: Path, lineage: Mapping[str, Any], extra: Mapping[str, str]) -> None:
        """Make of the checkpoint `best` what the run folder holds in the end; `extra`: more files. The run is over."""


@dataclass(frozen=True)
class WholeModel:
    """All weights are trained: a checkpoint is a model folder, and so is the run's."""

    model: GPT2
    tokenizer: Tokenizer | None = None

    def write(self, staging: Path, lineage: dict[str, Any]) -> None:
        model_folder.write_model_files(staging, self.model, self.tokenizer, lineage)

    def restore(self, path: Path) -> None:
        self.model.load_state_dict(load_weights(path, self.model.config).state_dict())

    def publish(self, folder: Path, best: Path, lineage: Mapping[str, Any], extra: Mapping[str, str]) -> None:
        model, tokenizer = model_folder.load(best)
        model_folder.save(folder, model, tokenizer, lineage, extra, keep_others=True)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def steps_of(run: Path) -> list[int]:
    """The steps of the checkpoints that are there, damaged ones too, in order."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(match[1]) for p in found if (match := STEP.fullmatch(p.name)))


def save(
    run: Path,
    artefact: Artefact,
    optimizers: list[torch.optim.Optimizer],
    state: State,
    lineage: dict[str, Any],
    keep: int,
) -> Path:
    """Commit the checkpoint of `state.step`, then delete all but the `keep` newest and the best."""
    target = folder_of(run, state.step)
    stepped = {**lineage, "step": state.step, "scores": state.scores(state.step)}
    record = model_folder.complete_lineage(artefact.model, artefact.tokenizer, stepped)
    with commit.folder(target, "checkpoint", record) as staging:
        artefact.write(staging, record)
        tensors = {n: t.contiguous() for n, t in optim.state_tensors(artefact.model, optimizers).items()}
        tensors[GENERATOR] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[CUDA_GENERATOR] = torch.cuda.get_rng_state()
        safetensors.torch.save_file(tensors, staging / TENSORS)
        commit.write_json(staging / STATE, dataclasses.asdict(state))
    kept = {*steps_of(run)[-keep:], best(run, state)}
    for step in steps_of(run):
        if step not in kept:
            commit.discard(folder_of(run, step))
    commit.sweep(target.parent, "step")  # a kill's leavings carry the name of a step that may never be saved again
    return target


def best(run: Path, state: State) -> int | None:
    """The step of the checkpoint that stands best; of equals, and where none was evaluated, the newest."""
    return min(reversed(steps_of(run)), key=state.standing, default=None)


def best_whole(run: Path, state: State) -> tuple[int, list[str]]:
    """As `best`, of those whose every file matches its manifest; and notes on damaged ones that were passed over."""
    notes: list[str] = []
    for step in sorted(steps_of(run), key=lambda step: (state.standing(step), -step)):
        try:
            commit.recover(folder_of(run, step))
            if commit.verify(folder_of(run, step)) is None:
                raise UserError(f"{folder_of(run, step)} has no {commit.MANIFEST}")
            return step, notes
        except UserError as error:
            notes.append(f"checkpoint {folder_of(run, step).name} is passed over: {error.message}")
    raise UserError(f"{run} has no checkpoint that is whole ({'; '.join(notes)})", hint="restore one from a backup")


def restore(path: Path, artefact: Artefact, optimizers: list[torch.optim.Optimizer]) -> State:
    """Fill model and optimisers from a checkpoint that was verified; return its state."""
    artefact.restore(path)
    try:
        tensors = safetensors.torch.load_file(path / TENSORS)
        torch.set_rng_state(tensors.pop(GENERATOR))
    except (safetensors.SafetensorError, KeyError, RuntimeError, TypeError, OSError) as error:
        raise UserError(f"{path / TENSORS} cannot be read: {error}", hint="resume from an earlier checkpoint") from None
    cuda = tensors.pop(CUDA_GENERATOR, None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    optim.load_state_tensors(artefact.model, optimizers, tensors)
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
