"""What `gpt2kit train` and `gpt2kit.train` can be told. None means: chosen, and said in the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from gpt2kit.errors import UserError
from gpt2kit.training.config import Objective, Optimizer, PrecisionName, Schedule

PresetName = Literal["tiny", "mini", "small", "medium", "large", "xl"]

MEANT_FOR = {  # the optimisers that read a setting
    "matrix_learning_rate": ("muon",),
    "momentum": ("muon", "sgd", "rmsprop"),
    "beta1": ("muon", "adamw", "adam"),
    "beta2": ("muon", "adamw", "adam"),
}


@dataclass(frozen=True)
class TrainOptions:
    # text files, folders, a packed folder, or - for standard input
    data: Annotated[list[str], tyro.conf.Positional] = dataclasses.field(default_factory=list)
    out: str = ""  # the run folder to make
    resume: str | None = None  # go on with this run folder, from its newest checkpoint; takes no other flag
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None  # start from this model's weights and tokenizer
    preset: PresetName | None = None  # a ready shape: tiny (0.8 M parameters) to xl (1.5 G)
    minutes: float | None = None  # choose the steps, and the shape where none is given, for this time
    steps: int | None = None  # optimiser steps
    seed: int = 0  # draws weights, order and dropout; same steps and seed, same bytes on this machine
    batch: int | None = None  # sequences in a step
    context: int | None = None  # tokens in a sequence
    micro_batch: int | None = None  # sequences in one forward pass: less memory
    n_layer: int | None = None  # blocks
    n_head: int | None = None  # attention heads
    n_embd: int | None = None  # channels
    tokenizer: str | None = None  # bpe, char or word to learn one; or a folder that has one
    vocab_size: int | None = None  # of a vocabulary that is learned here
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet
    validation: list[str] | None = None  # files to validate on; else 5 % of the documents
    optimizer: Optimizer | None = None  # muon (with AdamW for the rest), adamw, adam, sgd, rmsprop
    learning_rate: float | None = None  # peak; AdamW's part under muon
    matrix_learning_rate: float | None = None  # peak of Muon's part
    weight_decay: float | None = None  # on matrices only
    beta1: float | None = None  # Adam's first moment
    beta2: float | None = None  # Adam's second moment
    momentum: float | None = None  # of muon, sgd and rmsprop
    schedule: Schedule | None = None  # of the learning rate after the warm-up
    warmup: int | None = None  # steps
    final_rate: float | None = None  # the schedule's end, as a fraction of the peak
    clip: float | None = None  # largest gradient norm; 0: off
    dropout: float | None = None  # embedding and residual; None: by the number of epochs
    attention_dropout: float | None = None  # slower: leaves the fast attention
    label_smoothing: float | None = None
    objective: Objective | None = None  # next token, masked, or fim (fill in the middle)
    precision: PrecisionName = "auto"  # auto measures bf16 against fp32 here
    evaluate_every: int | None = None  # steps
    evaluate_tokens: int | None = None  # of the validation split; 0: all
    checkpoint_every: int | None = None  # steps; each evaluation with a better loss makes a checkpoint too
    keep: int | None = None  # newest checkpoints kept (2), besides the best of all evaluations
    patience: int | None = None  # evaluations without a better loss before stopping early
    workers: int | None = None  # threads that each take a slice of the batch
    threads: int | None = None  # cores to use
    tensorboard: bool | None = None  # write TensorBoard files too
    # write a sample at each evaluation
    sample: Annotated[bool, tyro.conf.arg(help="write no samples at evaluations")] = True
    hub: bool = False  # let --from be a name on the Hugging Face hub

    def __post_init__(self) -> None:
        if self.resume is not None:
            check_resumed(self)
            return
        if not self.data or not self.out:
            what = "nothing to train on" if not self.data else "no --out folder was named"
            raise UserError(what, hint="gpt2kit train my.txt --out runs/mine")
        if self.minutes is not None and not 0.05 <= self.minutes <= 60 * 24 * 60:
            raise UserError(f"minutes must be between 0.05 and 86,400, got {self.minutes}")
        if self.minutes is not None and self.steps is not None:
            raise UserError("--minutes and --steps both say how long to train", hint="give one of them")
        for name, users in MEANT_FOR.items():
            if getattr(self, name) is not None and (self.optimizer or "muon") not in users:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} has no meaning for {self.optimizer}",
                                hint=f"leave it out; it is a setting of {', '.join(users)}")  # fmt: skip
        if self.hub and self.from_ is None:
            raise UserError("--hub says where --from may be, but there is no --from", hint="leave it out")
        if self.from_ is not None:
            for name in ("tokenizer", "vocab_size", "preset", "n_layer", "n_head", "n_embd"):
                if getattr(self, name) is not None:
                    flag = name.replace("_", "-")
                    raise UserError(f"--{flag} cannot be given with --from: the model has its own")

    def settings(self) -> dict[str, Any]:
        """The training settings that were given, under TrainConfig's names."""
        from gpt2kit.training.config import TrainConfig

        names = {f.name for f in dataclasses.fields(TrainConfig)}
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {name: value for name, value in values.items() if value is not None}


def changes(options: Any) -> list[tuple[str, Any]]:
    """The fields of a dataclass that differ from their defaults."""
    return [
        (field.name, getattr(options, field.name))
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != _default(field)
    ]


def check_resumed(options: Any, what: str = "run", beside: Collection[str] = ()) -> None:
    """UserError where a flag stands beside --resume that cannot."""
    other = next((name for name, _ in changes(options) if name not in ("resume", *beside)), None)
    if other is not None:
        flag = other.rstrip("_").replace("_", "-")
        raise UserError(f"--resume takes its settings from the {what}; {flag} cannot change", hint="leave it out")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
