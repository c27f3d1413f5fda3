"""Questions about a passage, or without one: the answer is generated; "" where the passage does not hold it.

A passage longer than the context is read in windows that overlap by half; each window answers or abstains, and the
answer that the model finds likeliest per token wins. Training sees the window that holds the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gpt2kit.data.families import AnswerRow, Where
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.task import Answer as Reply
from gpt2kit.tasks.task import Encoded, completions, end_of_text, greedy
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Completions

TEMPLATE = "{passage}\n\n{question}\n=>\n"
MAX_TOKENS = 64  # of an answer; passages get what is left of the context


@dataclass(frozen=True)
class Answer:
    template: str = TEMPLATE
    max_tokens: int = MAX_TOKENS
    name: str = "answer"

    def __post_init__(self) -> None:
        for place in ("{passage}", "{question}"):
            if self.template.count(place) != 1:
                raise UserError(f"the template must hold {place} once, got {self.template!r}")

    def values(self) -> dict[str, Any]:
        return {"name": self.name, "template": self.template, "max_tokens": self.max_tokens}

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return base

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        """The passage's window around the first answer; its beginning where there is none."""
        tokenizer, eos = end_of_text(tokenizer)
        pairs, cut = [], 0
        for example in examples:
            row = cast(AnswerRow, example)
            text, start = row.answers[0] if row.answers else ("", -1)
            windows = self._windows(row, tokenizer, context)
            cut += len(windows) > 1
            chosen = next(
                (w for w in windows if start >= 0 and w[0] <= start and start + len(text) <= w[1]), windows[0]
            )
            pairs.append((self._prompt(row, chosen, tokenizer), tokenizer.encode(text)))
        encoded = completions(pairs, eos, context)
        return Encoded(encoded.rows, max(cut, encoded.cut), encoded.left_out)

    def _windows(self, row: AnswerRow, tokenizer: Tokenizer, context: int) -> list[tuple[int, int]]:
        """Characters [from, to) of the passage, each window small enough for the context, half overlapping."""
        around = len(self._prompt(row, (0, 0), tokenizer))
        room = context - around - min(self.max_tokens, context // 4)
        if room < 16:
            raise UserError(
                f"{row.where}: the question alone fills the context of {context} tokens",
                hint="shorten it, or tune a model with a longer context",
            )
        total = len(tokenizer.encode(row.passage))
        if total <= room:
            return [(0, len(row.passage))]
        size = max(1, int(len(row.passage) * room / total * 0.9))  # tokens are not spread evenly
        starts = range(0, max(1, len(row.passage) - size // 2), max(1, size // 2))
        return [(a, min(a + size, len(row.passage))) for a in starts]

    def _prompt(self, row: AnswerRow, window: tuple[int, int], tokenizer: Tokenizer) -> list[int]:
        before, _, after = self.template.partition("{passage}")
        text = before + row.passage[slice(*window)] + after.replace("{question}", row.question)
        return tokenizer.encode(text)

    def objective(self, smoothing: float = 0.0) -> Completions:
        from gpt2kit.training.rows import Completions

        return Completions(smoothing)

    def example(self, text: str) -> AnswerRow:
        """A question; the passage may stand before it, with an empty line between."""
        passage, gap, question = text.rpartition("\n\n")
        return AnswerRow(question, passage if gap else "", (), where=Where("the text given"))

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Reply]:
        tokenizer, _ = end_of_text(engine.tokenizer)
        rows = [cast(AnswerRow, example) for example in examples]
        N = engine.config.n_positions
        windows = [self._windows(row, tokenizer, N) for row in rows]
        prompts = [
            self._prompt(row, w, tokenizer)[-(N - self.max_tokens) :]
            for row, own in zip(rows, windows, strict=True)
            for w in own
        ]
        found = greedy(engine, prompts, self.max_tokens)
        replies, at = [], 0
        for row, own in zip(rows, windows, strict=True):
            best = []
            for window, one in zip(own, found[at : at + len(own)], strict=True):
                assert one.logprobs is not None
                mean = sum(choice.logprob or 0.0 for choice in one.logprobs) / max(1, len(one.logprobs))
                best.append((bool((one.text or "").strip()), mean, (one.text or "").strip(), window))
            at += len(own)
            _, mean, text, window = max(best)
            start = row.passage.find(text, *window) if text else -1
            place = None if start < 0 else [start, start + len(text)]
            replies.append(Reply(text, {"place": place, "logprob_per_token": mean, "windows": len(own)}))
        return replies

    def score(self, examples: Sequence[Example], answers: Sequence[Reply]) -> Scores:
        from gpt2kit.scores.answers import answers as scored

        rows = [cast(AnswerRow, example) for example in examples]
        gold = [[text for text, _ in row.answers] for row in rows]
        inputs = [f"{row.question}\n{row.passage}" for row in rows]
        return scored(gold, [answer.text for answer in answers], inputs=inputs)
