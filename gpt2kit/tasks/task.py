"""What every task offers, and what they share: cutting to the context, generating until the end-of-text token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from gpt2kit.data.families import Row as Example
from gpt2kit.data.families import Where
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Completion
from gpt2kit.model.config import GPT2Config
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.objectives import Objective
    from gpt2kit.training.rows import Row

GIVEN = Where("the text given")


@dataclass(frozen=True)
class Encoded:
    """Rows to learn from, and how many examples were cut to the context, or left out because nothing fitted."""

    rows: list[Row]
    cut: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said to one example. `details` goes into --json: probabilities, places, log-probabilities; `cut`:
    whether the model saw less than was given.
    """

    text: str
    details: dict[str, Any]


class Asked(Protocol):
    """A kind of example, and what the model is asked with it."""

    @property
    def name(self) -> str: ...

    def example(self, text: str) -> Example:
        """One that `gpt2kit run` was given as plain text."""

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]: ...


@runtime_checkable
class Graded(Asked, Protocol):
    """One whose answers can be right or wrong."""

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores: ...


class Task(Graded, Protocol):
    """One that a model can be tuned for."""

    def values(self) -> dict[str, Any]:
        """JSON for the lineage; `task_of` makes the same task of it."""

    def model_config(self, base: GPT2Config) -> GPT2Config:
        """The base model's, with the head that the task needs."""

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded: ...

    def objective(self, smoothing: float = 0.0) -> Objective: ...


def end_of_text(tokenizer: Tokenizer | None) -> tuple[Tokenizer, int]:
    """The tokenizer and its end-of-text token, which tasks cannot do without."""
    if tokenizer is None:
        raise UserError("the model has no tokenizer, so it cannot read examples")
    if tokenizer.eot_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token, so a model could not learn where an answer ends",
            hint="train a model with a tokenizer that has <|endoftext|>",
        )
    return tokenizer, tokenizer.eot_id


def completions(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], eos: int, context: int) -> Encoded:
    """(prompt ids, completion ids) -> rows that end in EOS, at most `context` + 1 tokens long.

    A prompt that is too long loses its beginning, a completion its end (and then its EOS, which would be untrue).
    At most half of the context goes to a prompt whose completion needs the rest.
    """
    from gpt2kit.training.rows import Row

    rows, cut, left_out = [], 0, 0
    for prompt, completion in pairs:
        whole = [*completion, eos]
        room = max(context + 1 - len(whole), context // 2)
        kept = list(prompt[-room:]) if len(prompt) > room else list(prompt)
        ids = [*(kept or [eos]), *whole][: context + 1]
        cut += len(kept) < len(prompt) or len(ids) < len(kept or [eos]) + len(whole)
        if len(ids) <= len(kept or [eos]):
            left_out += 1
            continue
        rows.append(Row(np.array(ids, np.int64), len(kept or [eos])))
    return Encoded(rows, cut, left_out)


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str] = ()
) -> list[Answer]:
    """Greedy completions until the end-of-text token, or before the first of `stop`. A prompt too long for the context
    loses its beginning.
    """
    N = engine.config.n_positions
    most = min(max_tokens, N // 2)
    kept = [list(prompt[-(N - most) :]) for prompt in prompts]
    found = greedy(engine, kept, most, stop)
    answers = []
    for prompt, shown, one in zip(prompts, kept, found, strict=True):
        details = {
            "finish_reason": one.finish_reason,
            "tokens": len(one.token_ids),
            "cut": len(shown) < len(prompt),
        }
        answers.append(Answer((one.text or "").strip(), details))
    return answers


def greedy(
    engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str] = ()
) -> list[Completion]:
    """One completion each, with its tokens' log-probabilities, inside the context."""
    found = engine.generate(prompts, max_tokens=max_tokens, temperature=0.0, logprobs=0, window="stop", stop=stop)
    return cast("list[Completion]", found)
