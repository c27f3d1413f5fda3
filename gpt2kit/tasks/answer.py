"""Questions about a passage, or without one: the answer is generated; "" where the passage does not hold it.

A passage longer than the context is read in windows that overlap by half; each window answers or abstains, and the
answer that the model finds likeliest per token wins. Training sees the window that holds the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from gpt2kit.data.families import AnswerRow
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.shots import BETWEEN, Shots, before
from gpt2kit.tasks.task import GIVEN, Encoded, completions, end_of_text, greedy
from gpt2kit.tasks.task import Answer as Reply
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Completions

TEMPLATE = "{passage}\n\n{question}\n=>\n"
MAX_TOKENS = 64  # of an answer; passages get what is left of the context
LEAST_ROOM = 16  # tokens that a passage needs
SPARE = 8  # tokens that a window can have more of alone: characters and words that it cuts


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
            row = shortened(cast(AnswerRow, example), tokenizer, context)
            text, start = row.answers[0] if row.answers else ("", -1)
            windows = self._windows(row, tokenizer, context)
            cut += len(windows) > 1 or row is not example
            chosen = next(
                (w for w in windows if start >= 0 and w[0] <= start and start + len(text) <= w[1]), windows[0]
            )
            pairs.append((self._prompt(row, chosen, tokenizer), tokenizer.encode(text)))
        encoded = completions(pairs, eos, context)
        return Encoded(encoded.rows, max(cut, encoded.cut), encoded.left_out)

    def _windows(
        self, row: AnswerRow, tokenizer: Tokenizer, context: int, shown: Sequence[str] = ()
    ) -> list[tuple[int, int]]:
        """Characters [from, to) of the passage, each window small enough for the context, half overlapping.

        Cut by tokens: of a passage in two languages the same number of characters can be three times as many of them.
        """
        around = len(self._prompt(row, (0, 0), tokenizer, shown))
        room = context - around - min(self.max_tokens, context // 4)
        if room < LEAST_ROOM:
            raise UserError(
                f"{row.where}: the template and the question fill the context of {context} tokens",
                hint="shorten the template, or tune a model with a longer context",
            )
        ids, places = tokenizer.encode_with_offsets(row.passage)
        if len(ids) <= room:
            return [(0, len(row.passage))]
        size = room - SPARE
        starts = range(0, len(ids) - size // 2, size // 2)
        return [(places[a][0], places[min(a + size, len(ids)) - 1][1]) for a in starts]

    def _prompt(
        self, row: AnswerRow, window: tuple[int, int], tokenizer: Tokenizer, shown: Sequence[str] = ()
    ) -> list[int]:
        return tokenizer.encode("".join(one + BETWEEN for one in shown) + self._asked(row, window))

    def _asked(self, row: AnswerRow, window: tuple[int, int]) -> str:
        left, _, right = self.template.partition("{passage}")
        left, right = (part.replace("{question}", row.question) for part in (left, right))
        return left + row.passage[slice(*window)] + right

    def objective(self, smoothing: float = 0.0) -> Completions:
        from gpt2kit.training.rows import Completions

        return Completions(smoothing)

    def example(self, text: str) -> AnswerRow:
        """As `question_of` reads it."""
        return question_of(text)

    def answer(
        self, engine: Engine, examples: Sequence[Example], shots: Shots | None = None, stop: Sequence[str] = ()
    ) -> list[Reply]:
        """`shots` and `stop` are for a model that was not tuned: examples to show, where an answer ends."""
        tokenizer, _ = end_of_text(engine.tokenizer)
        N = engine.config.n_positions
        rows = [shortened(cast(AnswerRow, example), tokenizer, N) for example in examples]
        most = min(self.max_tokens, N // 4)
        shown = [self._shown(row, shots, tokenizer, N - most) for row in rows]
        windows = [self._windows(row, tokenizer, N, own) for row, own in zip(rows, shown, strict=True)]
        prompts = [
            self._prompt(row, w, tokenizer, front)[-(N - most) :]
            for row, front, own in zip(rows, shown, windows, strict=True)
            for w in own
        ]
        found = greedy(engine, prompts, most, stop)
        replies, at = [], 0
        for row, example, own in zip(rows, examples, windows, strict=True):
            best = []
            for window, one in zip(own, found[at : at + len(own)], strict=True):
                assert one.logprobs is not None
                mean = sum(choice.logprob or 0.0 for choice in one.logprobs) / max(1, len(one.logprobs))
                best.append((bool((one.text or "").strip()), mean, (one.text or "").strip(), window))
            at += len(own)
            _, mean, text, window = max(best)
            start = row.passage.find(text, *window) if text else -1
            place = None if start < 0 else [start, start + len(text)]
            details = {"place": place, "logprob_per_token": mean, "windows": len(own), "cut": row is not example}
            replies.append(Reply(text, details))
        return replies

    def _shown(self, row: AnswerRow, shots: Shots | None, tokenizer: Tokenizer, room: int) -> list[str]:
        """Examples with their answers: as many of the last ones as fit into half of what the question leaves."""
        room = (room - len(self._prompt(row, (0, 0), tokenizer))) // 2
        if shots is None or room < LEAST_ROOM:
            return []
        found = [
            self._asked(one, (0, len(one.passage))) + (one.answers[0][0] if one.answers else "")
            for one in map(_answered, shots.of(row))
        ]
        _, kept = before(found, "", tokenizer, room)
        return found[len(found) - kept :]

    def score(self, examples: Sequence[Example], answers: Sequence[Reply]) -> Scores:
        from gpt2kit.scores.answers import answers as scored

        rows = [cast(AnswerRow, example) for example in examples]
        gold = [[text for text, _ in row.answers] for row in rows]
        inputs = [f"{row.question}\n{row.passage}" for row in rows]
        return scored(gold, [answer.text for answer in answers], inputs=inputs)


def question_of(text: str) -> AnswerRow:
    """A question; the passage may stand before it, with an empty line between."""
    passage, _, question = text.rpartition("\n\n")
    return AnswerRow(question, passage, (), where=GIVEN)


def shortened(row: AnswerRow, tokenizer: Tokenizer, context: int) -> AnswerRow:
    """The same row, or one whose question lost its beginning: it gets at most half of the context."""
    ids = tokenizer.encode(row.question)
    if len(ids) <= context // 2:
        return row
    return replace(row, question=tokenizer.decode(ids[-(context // 2) :]).lstrip("\ufffd"))


def _answered(example: Example) -> AnswerRow:
    assert isinstance(example, AnswerRow)
    return example
