"""What `gpt2kit search finetune` and `gpt2kit search train` can be told: the verb's own flags, and how to search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from gpt2kit.errors import UserError
from gpt2kit.recipes.options import TrainOptions, changes, check_resumed
from gpt2kit.recipes.tuning_options import FinetuneOptions

Sampler = Literal["tpe", "random", "grid"]
TRIALS = 20


@dataclass(frozen=True)
class Search:
    """How to search, whatever the verb."""

    resume: str | None = None  # go on with this search folder; takes --trials and --jobs beside it
    space: str = ""  # the settings to try, such as "learning_rate=1e-5..1e-3:log, dropout=0|0.1|0.2"
    sampler: Sampler = "tpe"  # how values are proposed: tpe learns from earlier trials; a grid takes all in order
    trials: int | None = None  # to run in all; None: 20, or all of a grid
    jobs: int = 1  # trials at a time, each a process on its share of the cores


@dataclass(frozen=True)
class SearchFinetuneOptions(Search, FinetuneOptions):
    """Look for settings of `gpt2kit finetune` that give the lowest validation loss.

    --space names fields of finetune with a range or a list of values each; all other flags are finetune's. Trials that
    do worse than half of the others at the same evaluation are ended early. Ctrl-C loses nothing: --resume goes on.

    Examples:
      gpt2kit search finetune reviews.tsv --from runs/mine --task classify --out runs/search
        --space "learning_rate=1e-5..1e-3:log, dropout=0|0.1|0.2"
      gpt2kit search finetune --resume runs/search --trials 40
    """

    def __post_init__(self) -> None:
        if self.resume is None:
            super().__post_init__()
        check(self, FinetuneOptions)


@dataclass(frozen=True)
class SearchTrainOptions(Search, TrainOptions):
    """Look for settings of `gpt2kit train` that give the lowest validation loss.

    As `gpt2kit search finetune`. The text is packed once, for all trials.

    Examples:
      gpt2kit search train my.txt --steps 300 --out runs/search
        --space "learning_rate=1e-3..1e-2:log, n_layer=2|4"
      gpt2kit search train --resume runs/search
    """

    def __post_init__(self) -> None:
        if self.resume is None:
            super().__post_init__()
        check(self, TrainOptions)


SearchOptions = SearchFinetuneOptions | SearchTrainOptions


def check(options: SearchOptions, verb: type) -> None:
    """What the verb itself cannot know."""
    for name in ("trials", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if options.resume is None:
        if not options.space:
            raise UserError("--space is missing", hint='such as --space "learning_rate=1e-5..1e-3:log, dropout=0|0.1"')
        return
    check_resumed(options, "search", ("trials", "jobs"))


def typed(verb: str, options: Any) -> list[str]:
    """The words of a command line that give these options."""
    flags = []
    positional: list[str] = []
    for name, value in changes(options):
        flag = f"--{name.rstrip('_').replace('_', '-')}"
        if name == "data":
            positional = list(value)
        elif value is False:
            flags.append(flag.replace("--", "--no-", 1))
        elif value is True:
            flags.append(flag)
        elif isinstance(value, (list, tuple)):
            flags += [flag, *map(str, value)]
        else:
            flags += [flag, str(value)]
    return [verb, *positional, *flags]


def only(options: SearchOptions, verb: type[Any]) -> Any:
    """The verb's own options, without the search's."""
    return verb(**{field.name: getattr(options, field.name) for field in dataclasses.fields(verb)})
