"""What `gpt2kit finetune` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from gpt2kit.data.augment import read_names
from gpt2kit.errors import UserError, unknown
from gpt2kit.recipes.options import check_resumed
from gpt2kit.tasks import NAMES
from gpt2kit.training.config import Optimizer, PrecisionName, Schedule, TrainConfig

Method = Literal[
    "full", "lora", "lora-all", "rslora", "dora", "adalora", "houlsby", "pfeiffer",
    "prefix", "prefix-mlp", "prompt", "p-tuning", "p-tuning-lstm", "ia3", "bitfit", "last",
]  # fmt: skip
# Peaks of AdamW's. The fewer numbers a method has, the further each must go: after 80 steps of 8 pairs the validation
# loss of a 0.9 M model was 4.7 with LoRA at 1e-3, 3.6 at 3e-3, 2.1 at 1e-2; with 20 virtual tokens 5.5 at 3e-3, 4.9 at
# 1e-2. Larger models and longer runs want less, so none here is the highest that was tried.
RATES: dict[str, float] = {"full": 3e-4, "last": 1e-3, "prefix": 1e-2, "prompt": 1e-2, "ia3": 1e-2}
ADAPTER_RATE = 3e-3
EVALUATIONS = 10  # in a run, where nothing else is asked for


@dataclass(frozen=True)
class FinetuneOptions:
    """Tune a model for a task, into a run folder that `gpt2kit run` and `gpt2kit evaluate` use.

    Examples:
      gpt2kit finetune reviews.tsv --from runs/mine --task classify --out runs/reviews
      gpt2kit finetune pairs.tsv --from runs/mine --task translate --out runs/translator --method lora
      gpt2kit finetune --resume runs/reviews
    """

    # .jsonl, .json, .csv, .tsv, .parquet, compressed or not, or folders of them
    data: Annotated[list[str], tyro.conf.Positional] = field(default_factory=list)
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None  # the model to tune
    task: str | None = None  # classify, translate, summarise, correct, edit, instruct, chat, answer, rank, write
    out: str = ""  # the run folder to make
    resume: str | None = None  # go on with this run folder; takes no other flag
    method: Method = "full"  # all weights, or an adapter over them: docs/adapters.md
    rank: int | None = None  # of LoRA and its kin; None: the method's own
    method_settings: str | None = None  # others of the method's, as alpha=32,targets=.* or tokens=40
    int8_base: bool = False  # keep the frozen weights in int8: half their memory, for adapters
    validation: list[str] | None = None  # files to validate on; else a tenth of the rows, by hash
    columns: str | None = None  # which field is what, as text=review,label=stars; else guessed, and said
    classes: str | None = None  # a file with one class a line, for labels that are numbers
    template: str | None = None  # what stands around {prompt}, of chat a whole Jinja template; else the task's own
    mode: Literal["generative", "extractive"] | None = None  # of answer: written (None), or pointed at in the passage
    epochs: float = 3.0  # passes over the training rows
    steps: int | None = None  # optimiser steps, instead of epochs
    batch: int = 16  # rows in a step
    context: int | None = None  # tokens of the longest row; None: what 99 % of the rows need
    seed: int = 0  # draws order, head, adapter and dropout; same seed, same bytes on this machine
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None  # peak; None: what suits the method
    weight_decay: float = 0.01
    schedule: Schedule = "linear"
    dropout: float | None = None  # embedding and residual; None: 0.1 of all weights, 0 of an adapter
    label_smoothing: float = 0.0
    precision: PrecisionName = "auto"
    evaluate_every: int | None = None  # steps; None: ten times a run
    patience: int = 0  # evaluations without a better loss before stopping early; 0: never
    augment: str | None = None  # altered copies of the training rows: delete,swap,insert,replace,noise
    augment_times: int = 1  # copies of each row
    replay: list[str] | None = None  # data of before: FILE, or NAME=FILE of an earlier task; rows of it join each batch
    replay_share: float = 0.2  # of a batch's rows; 0: they are only what --ewc is estimated on
    ewc: float = 0.0  # strength of the penalty on moving weights that --replay's rows need, such as 100
    lwf: float = 0.0  # weight of staying with the earlier model's next-token distribution, such as 1
    probe: list[str] | None = None  # more texts for the report on forgetting
    remember: list[str] | None = None  # NAME=FILE: test rows of an earlier task, for that report
    threads: int | None = None  # cores to use
    hub: bool = False  # let --from be a name on the Hugging Face hub

    def __post_init__(self) -> None:
        if self.resume is not None:
            check_resumed(self)
            return
        missing = next((name for name in ("data", "from_", "task", "out") if not getattr(self, name)), None)
        if missing is not None:
            raise UserError(
                "nothing to learn from" if missing == "data" else f"--{missing.rstrip('_')} is missing",
                hint="gpt2kit finetune DATA --from runs/mine --task classify --out runs/tuned",
            )
        if self.task not in NAMES:
            raise unknown("task", str(self.task), NAMES)
        if self.template is not None and self.task in ("classify", "write"):
            raise UserError(
                f"--template is not for {self.task}: the model reads the text as it is", hint="leave it out"
            )
        if self.mode is not None and self.task != "answer":
            raise UserError(f"--mode is of answer, not of {self.task}", hint="leave it out")
        if self.augment is not None:
            read_names(self.augment, str(self.task))
        if not 1 <= self.augment_times <= 100:
            raise UserError(f"augment_times must be from 1 to 100, got {self.augment_times}")
        if not 0 <= self.replay_share < 1:
            raise UserError(f"replay_share must be from 0 to below 1, got {self.replay_share}")
        for name in ("ewc", "lwf"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be zero or more, got {getattr(self, name)}")
        if self.ewc and not self.replay:
            raise UserError("--ewc needs rows of what was learned before", hint="add --replay FILE")
        for name in ("batch", "steps", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        for flag, needed in (("replay_share", "replay"), ("augment_times", "augment")):
            if getattr(self, flag) != getattr(type(self), flag) and not getattr(self, needed):
                raise UserError(f"--{flag.replace('_', '-')} says nothing without --{needed}", hint=f"add --{needed}")
        if not 0 < self.epochs <= 1000:
            raise UserError(f"epochs must be above 0 and at most 1000, got {self.epochs}")
        if self.method == "full":
            for flag in ("rank", "method_settings", "int8_base"):
                if getattr(self, flag) not in (None, False):
                    name = flag.replace("_", "-")
                    raise UserError(f"--{name} is for adapters, full tuning has none", hint="add --method lora")
        elif self.optimizer == "muon":
            raise UserError("muon is for whole matrices, an adapter has none", hint="leave out --optimizer")

    def settings(self, rows: int, context: int) -> TrainConfig:
        """For so many training rows, cut to `context` tokens."""
        steps = max(1, round(self.epochs * rows / self.batch)) if self.steps is None else self.steps
        every = max(1, -(-steps // EVALUATIONS)) if self.evaluate_every is None else self.evaluate_every
        rate = RATES.get(self.method, ADAPTER_RATE) if self.learning_rate is None else self.learning_rate
        dropout = (0.1 if self.method == "full" else 0.0) if self.dropout is None else self.dropout
        return TrainConfig(
            steps=steps, batch=self.batch, context=context, seed=self.seed, optimizer=self.optimizer,
            learning_rate=rate, weight_decay=self.weight_decay, schedule=self.schedule,
            warmup=max(1, steps // 20), dropout=dropout, label_smoothing=self.label_smoothing,
            precision=self.precision, evaluate_every=every, checkpoint_every=every, patience=self.patience,
            beta2=0.999,
        )  # fmt: skip


def read_columns(given: str | None, flag: str = "--columns") -> dict[str, str] | None:
    """`text=review,label=stars` -> {"text": "review", "label": "stars"}."""
    return None if given is None else read_pairs(given, flag, "text=review,label=stars")


def read_pairs(given: str, flag: str, example: str) -> dict[str, str]:
    """`a=1,b=2` -> {"a": "1", "b": "2"}. UserError with the example for anything else."""
    pairs = [part.partition("=") for part in given.split(",")]
    if not all(left.strip() and right.strip() for left, _, right in pairs):
        raise UserError(f"{flag} must look like {example}, got {given!r}")
    return {left.strip(): right.strip() for left, _, right in pairs}
