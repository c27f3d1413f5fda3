"""What `gpt2kit finetune` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from gpt2kit.errors import UserError, unknown
from gpt2kit.tasks import NAMES
from gpt2kit.training.config import Optimizer, PrecisionName, Schedule, TrainConfig

LEARNING_RATE = 3e-4  # peak of AdamW's
EVALUATIONS = 10  # in a run, where nothing else is asked for


@dataclass(frozen=True)
class FinetuneOptions:
    """Tune a model for a task, into a run folder that `gpt2kit run` and `gpt2kit evaluate` use.

    Examples:
      gpt2kit finetune reviews.tsv --from runs/mine --task classify --out runs/reviews
      gpt2kit finetune pairs.tsv --from runs/mine --task translate --out runs/translator --epochs 5
      gpt2kit finetune --resume runs/reviews
    """

    # .jsonl, .json, .csv, .tsv, .parquet, compressed or not, or folders of them
    data: Annotated[list[str], tyro.conf.Positional] = field(default_factory=list)
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None  # the model to tune
    task: str | None = None  # classify, translate, summarise, correct, edit, instruct, chat, answer
    out: str = ""  # the run folder to make
    resume: str | None = None  # go on with this run folder; takes no other flag
    validation: list[str] | None = None  # files to validate on; else a tenth of the rows, by hash
    columns: str | None = None  # which field is what, as text=review,label=stars; else guessed, and said
    classes: str | None = None  # a file with one class a line, for labels that are numbers
    template: str | None = None  # what stands around {prompt}; else the task's own
    epochs: float = 3.0  # passes over the training rows
    steps: int | None = None  # optimiser steps, instead of epochs
    batch: int = 16  # rows in a step
    context: int | None = None  # tokens of the longest row; None: what 99 % of the rows need
    seed: int = 0  # draws order, head and dropout; same seed, same bytes on this machine
    optimizer: Optimizer = "adamw"
    learning_rate: float = LEARNING_RATE  # peak
    weight_decay: float = 0.01
    schedule: Schedule = "linear"
    dropout: float = 0.1  # embedding and residual
    label_smoothing: float = 0.0
    precision: PrecisionName = "auto"
    evaluate_every: int | None = None  # steps; None: ten times a run
    patience: int = 0  # evaluations without a better loss before stopping early; 0: never
    threads: int | None = None  # cores to use
    hub: bool = False  # let --from be a name on the Hugging Face hub

    def __post_init__(self) -> None:
        if self.resume is not None:
            return
        missing = next((name for name in ("data", "from_", "task", "out") if not getattr(self, name)), None)
        if missing is not None:
            raise UserError(
                "nothing to learn from" if missing == "data" else f"--{missing.rstrip('_')} is missing",
                hint="gpt2kit finetune DATA --from runs/mine --task classify --out runs/tuned",
            )
        if self.task not in NAMES:
            raise unknown("task", str(self.task), NAMES)
        if not 0 < self.epochs <= 1000:
            raise UserError(f"epochs must be above 0 and at most 1000, got {self.epochs}")

    def settings(self, rows: int, context: int) -> TrainConfig:
        """For so many training rows, cut to `context` tokens."""
        steps = self.steps or max(1, round(self.epochs * rows / self.batch))
        every = self.evaluate_every or max(1, -(-steps // EVALUATIONS))
        return TrainConfig(
            steps=steps, batch=self.batch, context=context, seed=self.seed, optimizer=self.optimizer,
            learning_rate=self.learning_rate, weight_decay=self.weight_decay, schedule=self.schedule,
            warmup=max(1, steps // 20), dropout=self.dropout, label_smoothing=self.label_smoothing,
            precision=self.precision, evaluate_every=every, checkpoint_every=every, patience=self.patience,
            beta2=0.999,
        )  # fmt: skip


def read_columns(given: str | None) -> dict[str, str] | None:
    """`text=review,label=stars` -> {"text": "review", "label": "stars"}."""
    if given is None:
        return None
    pairs = [part.partition("=") for part in given.split(",")]
    if not all(role and field_ for role, _, field_ in pairs):
        raise UserError(f"--columns must look like text=review,label=stars, got {given!r}")
    return {role.strip(): field_.strip() for role, _, field_ in pairs}
