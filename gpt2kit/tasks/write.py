"""Writing on: the plainest task. Tuning goes on with next-token prediction on whole texts, the loss on every token.

A text begins behind an end-of-text token and ends in one. One that is longer than the context becomes several rows that
follow each other, so that every token is learned once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from gpt2kit.data.families import Row as Example
from gpt2kit.data.families import TextRow
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.task import GIVEN, Answer, Encoded, end_of_text
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.model.completion import Completion
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Completions

MAX_TOKENS = 256
TEMPERATURE = 0.8  # greedy text repeats itself (Holtzman et al. 2020)
TOP_P = 0.95


@dataclass(frozen=True)
class Write:
    max_tokens: int = MAX_TOKENS
    seed: int = 0  # of what is drawn
    name: str = "write"

    def values(self) -> dict[str, Any]:
        return {"name": self.name, "max_tokens": self.max_tokens}

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return base

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        """Nothing is cut or left out. Pieces of one document follow each other without an end between them."""
        from gpt2kit.training.rows import Row

        tokenizer, eos = end_of_text(tokenizer)
        texts = [cast(TextRow, example) for example in examples]
        encoded = tokenizer.encode_batch([row.text for row in texts])
        rows = []
        for n, (row, ids) in enumerate(zip(texts, encoded, strict=True)):
            follows = row.continues and n > 0 and texts[n - 1].where.file == row.where.file
            goes_on = n + 1 < len(texts) and texts[n + 1].continues and texts[n + 1].where.file == row.where.file
            before = [int(encoded[n - 1][-1])] if follows and len(encoded[n - 1]) else [eos]
            whole = np.array([*before, *ids, *([] if goes_on else [eos])], np.int64)
            rows += [Row(whole[a : a + context + 1]) for a in range(0, len(whole) - 1, context)]
        return Encoded(rows)

    def objective(self, smoothing: float = 0.0) -> Completions:
        from gpt2kit.training.rows import Completions

        return Completions(smoothing)

    def example(self, text: str) -> TextRow:
        return TextRow(text, where=GIVEN)

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """What follows each text, the same on every run."""
        tokenizer, eos = end_of_text(engine.tokenizer)
        prompts = [[eos, *tokenizer.encode(cast(TextRow, example).text)] for example in examples]
        found = engine.generate(
            prompts, max_tokens=self.max_tokens, temperature=TEMPERATURE, top_p=TOP_P, seed=self.seed
        )  # fmt: skip
        N = engine.config.n_positions
        return [
            Answer(
                one.text or "",
                {"finish_reason": one.finish_reason, "tokens": len(one.token_ids), "cut": len(prompt) > N},
            )
            for prompt, one in zip(prompts, cast("list[Completion]", found), strict=True)
        ]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        raise UserError("texts have no right answer", hint="their perplexity: gpt2kit evaluate MODEL texts.txt")
