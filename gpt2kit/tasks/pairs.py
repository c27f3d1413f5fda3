"""Prompt and completion: translation, summaries, correction, editing, instructions. The loss falls on the completion.

A template says what stands around the prompt; it is stored with the model and used again when the model is asked.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gpt2kit.data.families import PairRow
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.shots import Shots, before
from gpt2kit.tasks.task import GIVEN, Answer, Encoded, completions, end_of_text, generate
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Completions

TEMPLATES = {  # what the model reads before it writes
    "translate": "{prompt}\n=>\n",
    "summarise": "{prompt}\nTL;DR:\n",  # as in the GPT-2 paper, section 3.6
    "correct": "{prompt}\n=>\n",
    "edit": "{prompt}\n=>\n",
    "instruct": "{prompt}\n\n",
}
PLACE = "{prompt}"
MAX_TOKENS = 256


@dataclass(frozen=True)
class Pairs:
    """One of TEMPLATES' tasks."""

    name: str
    template: str = ""  # "": the task's own
    max_tokens: int = MAX_TOKENS  # of an answer

    def __post_init__(self) -> None:
        if not self.template:
            object.__setattr__(self, "template", TEMPLATES[self.name])
        if self.template.count(PLACE) != 1:
            raise UserError(f"the template must hold {PLACE} once, got {self.template!r}")

    def values(self) -> dict[str, Any]:
        return {"name": self.name, "template": self.template, "max_tokens": self.max_tokens}

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return base

    def _prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        return tokenizer.encode(self.template.replace(PLACE, text))

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        tokenizer, eos = end_of_text(tokenizer)
        rows = cast("Sequence[PairRow]", examples)
        pairs = [(self._prompt(row.prompt, tokenizer), tokenizer.encode(row.completion)) for row in rows]
        return completions(pairs, eos, context)

    def objective(self, smoothing: float = 0.0) -> Completions:
        from gpt2kit.training.rows import Completions

        return Completions(smoothing)

    def example(self, text: str) -> PairRow:
        return PairRow(text, "", where=GIVEN)

    def answer(
        self, engine: Engine, examples: Sequence[Example], shots: Shots | None = None, stop: Sequence[str] = ()
    ) -> list[Answer]:
        """Greedy. `shots` and `stop` are for a model that was not tuned: examples to show, where an answer ends."""
        tokenizer, _ = end_of_text(engine.tokenizer)
        rows = [cast(PairRow, example) for example in examples]
        room = engine.config.n_positions - min(self.max_tokens, engine.config.n_positions // 2)
        shown = [[self._shown(one) for one in shots.of(row)] if shots is not None else [] for row in rows]
        asked = [
            before(own, self.template.replace(PLACE, row.prompt), tokenizer, room)
            for own, row in zip(shown, rows, strict=True)
        ]
        answers = generate(engine, [ids for ids, _ in asked], self.max_tokens, stop)
        for row, answer, (_, kept) in zip(rows, answers, asked, strict=True):
            if shots is not None:
                answer.details["shots"] = kept
            if self.name in ("correct", "edit"):
                answer.details["changes"] = changes(row.prompt, answer.text)
        return answers

    def _shown(self, example: Example) -> str:
        row = cast(PairRow, example)
        return self.template.replace(PLACE, row.prompt) + row.completion

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        from gpt2kit.scores.correction import correction
        from gpt2kit.scores.written import written

        rows = cast("Sequence[PairRow]", examples)
        gold, inputs = [row.completion for row in rows], [row.prompt for row in rows]
        predicted = [answer.text for answer in answers]
        if self.name == "correct":
            return correction(gold, predicted, inputs)
        return written(gold, predicted, inputs, exact=self.name == "edit")


def changes(before: str, after: str) -> list[dict[str, Any]]:
    """What was changed, by character: [{"start", "end", "before", "after"}] in the places of `before`."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return [
        {"start": a, "end": b, "before": before[a:b], "after": after[c:d]}
        for kind, a, b, c, d in matcher.get_opcodes()
        if kind != "equal"
    ]
