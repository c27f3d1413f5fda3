"""What `gpt2kit run` and `gpt2kit evaluate` can be told of a task that a model was not tuned for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

SHOTS = 4
SEARCHED = 200  # examples that a search for a prompt asks of each template, at most
GENERATIVE = ("translate", "summarise", "correct", "edit", "instruct", "answer")


@dataclass(kw_only=True)
class AskOptions:
    """Flags that `run` and `evaluate` share."""

    labels: str | None = None  # of classify without tuning, as positive,negative: their words are compared
    label_words: str | None = None  # the same with other words for them, as positive=good,negative=bad
    no_calibration: bool = False  # do not divide by what a text without content gets
    examples: str | None = None  # a labelled file: examples of it, the likest ones, stand before each question
    example_columns: str | None = None  # which field of --examples is what, as text=review,label=stars; else guessed
    shots: int | None = None  # how many of them; 4
    balanced: bool = False  # of each label as many
    template: str | None = None  # without tuning: the prompt, as 'Review: {text}\nIt was {label}'
    search_prompts: str | None = None  # a file with a template a line, or builtin: the best one on --examples is used
    per: Literal["token", "byte", "total", "last"] = (
        "token"  # rank without tuning: likelihood per what; the last token's
    )
    unconditional: bool = False  # rank without tuning: less the likelihood behind an empty query
    pooling: Literal["mean", "last"] = "mean"  # embed: the mean of the hidden states, or the last one
    seed: int = 0  # of the order of examples; of what write draws

    @property
    def given(self) -> set[str]:
        """The flags that are not as they are by themselves."""
        return {one.name for one in dataclasses.fields(AskOptions) if getattr(self, one.name) != one.default}


USED = {  # by what is asked
    "classify": {"labels", "label_words", "no_calibration", "examples", "example_columns", "shots", "balanced",
                 "template", "search_prompts", "seed"},
    "rank": {"template", "per", "unconditional"},
    "embed": {"pooling"},
    "write": {"seed"},
    **{name: {"examples", "example_columns", "shots", "template", "seed"} for name in GENERATIVE},
}  # fmt: skip
