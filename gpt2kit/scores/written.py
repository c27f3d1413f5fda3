"""Texts that a model was asked to write: against their references, and how varied they are by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2kit.scores.diversity import diversity
from gpt2kit.scores.generation import generation
from gpt2kit.scores.intervals import Resampling
from gpt2kit.scores.result import Scores, TestSet, mean_of
from gpt2kit.scores.segment import language_of, units


def written(gold: Sequence[str], predicted: Sequence[str], inputs: Sequence[str], exact: bool = False) -> Scores:
    """`generation`'s figures, where `exact` exact_match, and `diversity`'s: all in the language of the references.

    UserError for an empty set and unequal lengths.
    """
    language = language_of(gold)
    found = generation(gold, predicted, language, inputs=inputs)
    if exact:
        same = [one.strip() == other.strip() for one, other in zip(gold, predicted, strict=True)]
        said = "equal but for blanks at the ends"
        test = TestSet.of([[row] for row in gold], inputs)  # as `generation` names it
        found += Scores((mean_of("exact_match", np.array(same, np.float64), test, Resampling(), definition=said),))
    if not any(units(text) for text in predicted):
        return found + Scores((), ("every answer is empty: there is nothing that could vary",))
    return found + diversity(predicted, language, inputs)
