"""A generative task asked of a model that was not tuned for it: examples before the question, and where an answer ends.

Such a model never learned to write an end-of-text token, so an answer ends with its line, or with a blank line where
answers have several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2kit.data.families import Row as Example
from gpt2kit.tasks.answer import Answer as Question
from gpt2kit.tasks.pairs import Pairs
from gpt2kit.tasks.shots import BETWEEN, Shots
from gpt2kit.tasks.task import Answer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores

ONE_LINE = ("translate", "correct", "edit", "answer")


@dataclass(frozen=True)
class Shown:
    task: Pairs | Question
    shots: Shots | None = None

    @property
    def name(self) -> str:
        return self.task.name

    def example(self, text: str) -> Example:
        return self.task.example(text)

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        return self.task.answer(engine, examples, self.shots, ["\n" if self.name in ONE_LINE else BETWEEN])

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        return self.task.score(examples, answers)
