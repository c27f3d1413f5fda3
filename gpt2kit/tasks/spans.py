"""Questions about a passage, answered by pointing: the answer is a span of the passage, or there is none.

A head with two outputs says of every token of the passage how well the answer starts there, and how well it ends
there (Devlin et al. 2019, section 4.2, and 4.3 for questions without an answer). The question stands before the
passage, for a causal model to know what it looks for; the end-of-text token behind it stands for "no answer here".

A passage longer than the context is read in windows of tokens that overlap by half. In each window the best span's
score less that of "no answer" is its margin; the window with the largest margin answers, and where that is not above
the threshold there is no answer. The threshold is 0 until it is tuned on labelled examples (`best_threshold`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.families import AnswerRow
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.answer import LEAST_ROOM, question_of, shortened
from gpt2kit.tasks.task import Answer, Encoded, end_of_text
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.spans import SpanEnds

TEMPLATE = "{question}\n\n{passage}"
HEAD = ("start", "end")
LONGEST = 64  # tokens of an answer
NO_PASSAGE = -9999.0  # the margin where there is nothing to point at; JSON has no minus infinity
Places = list[tuple[int, int]]  # of each token, the characters that it has a part in


@dataclass(frozen=True)
class Window:
    """Tokens [first, last) of a passage behind the question, with EOS at the end of `ids`."""

    ids: list[int]
    first: int
    last: int

    @property
    def start(self) -> int:
        """Where the passage begins in `ids`."""
        return len(self.ids) - 1 - (self.last - self.first)


@dataclass(frozen=True)
class Spans:
    template: str = TEMPLATE
    threshold: float = 0.0
    name: str = "answer"

    def __post_init__(self) -> None:
        if self.template.count("{question}") != 1 or not self.template.endswith("{passage}"):
            raise UserError(f"the template must hold {{question}} once and end in {{passage}}, got {self.template!r}")

    def values(self) -> dict[str, Any]:
        return {"name": self.name, "mode": "extractive", "template": self.template, "threshold": self.threshold}

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return dataclasses.replace(base, labels=HEAD, multi_label=False)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        """Every window that holds the first answer, and one that does not. Left out: answers that no window holds."""
        from gpt2kit.training.rows import Row

        tokenizer, _ = end_of_text(tokenizer)
        rows, cut, left_out = [], 0, 0
        for example in examples:
            row = shortened(cast(AnswerRow, example), tokenizer, context)
            text, place = row.answers[0] if row.answers else ("", -1)
            if not row.passage or (text and place < 0):
                left_out += 1
                continue
            places, windows = self._windows(row, tokenizer, context)
            cut += len(windows) > 1 or row is not example
            span = _tokens_of(places, place, place + len(text)) if text else None
            right = [w for w in windows if span is not None and w.first <= span[0] and span[1] < w.last]
            empty = [w for w in windows if span is None or span[1] < w.first or w.last <= span[0]]
            left_out += span is not None and not right
            for w in right:
                assert span is not None
                labels = tuple(w.start + at - w.first for at in span)
                rows.append(Row(np.array(w.ids, np.int64), w.start, labels))
            if empty:  # all of them would drown the answers of long passages
                w = empty[zlib.crc32(f"{row.question}\0{row.passage}".encode()) % len(empty)]
                rows.append(Row(np.array(w.ids, np.int64), w.start, (len(w.ids) - 1,) * 2))
        return Encoded(rows, cut, left_out)

    def _windows(self, row: AnswerRow, tokenizer: Tokenizer, context: int) -> tuple[Places, list[Window]]:
        tokenizer, eos = end_of_text(tokenizer)
        before = tokenizer.encode(self.template.removesuffix("{passage}").replace("{question}", row.question))
        room = context - len(before) - 1
        if room < LEAST_ROOM:
            raise UserError(
                f"{row.where}: the template and the question fill the context of {context} tokens",
                hint="shorten the template, or tune a model with a longer context",
            )
        ids, places = tokenizer.encode_with_offsets(row.passage)
        stride = room // 2
        firsts = range(0, max(1, len(ids) - room + stride), stride)
        return places, [Window([*before, *ids[a : a + room], eos], a, min(a + room, len(ids))) for a in firsts]

    def objective(self, smoothing: float = 0.0) -> SpanEnds:
        from gpt2kit.training.spans import SpanEnds

        return SpanEnds(smoothing)

    def example(self, text: str) -> AnswerRow:
        """A passage, an empty line, the question."""
        return question_of(text)

    @staticmethod
    def needing_passage(row: Example) -> Example:
        """The same row. UserError where there is nothing to point at."""
        if isinstance(row, AnswerRow) and not row.passage:
            raise UserError(
                f"{row.where}: a model that points at answers needs a passage before the question, with an empty line "
                "between",
                hint='or as {"question": "…", "context": "…"}; or documents to look in: --documents FOLDER',
            )
        return row

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """details: place [from, to) in characters, or None; margin; how many windows; the best span and its place, also
        where it is not the answer.
        """
        tokenizer, _ = end_of_text(engine.tokenizer)
        N = engine.config.n_positions
        rows = [shortened(cast(AnswerRow, example), tokenizer, N) for example in examples]
        cut = [self._windows(row, tokenizer, N) for row in rows]
        found = iter(token_scores(engine, [window.ids for _, windows in cut for window in windows]))
        answers = []
        for row, example, (places, windows) in zip(rows, examples, cut, strict=True):
            best = max((best_span(next(found), window) for window in windows), key=lambda one: one[0])
            answers.append(self._read(row, places, len(windows), *best))
            answers[-1].details["cut"] = row is not example
        return answers

    def _read(self, row: AnswerRow, places: Places, windows: int, margin: float, first: int, last: int) -> Answer:
        start, end = (places[first][0], places[last][1]) if places else (0, 0)
        text = row.passage[start:end]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        details = {"place": None, "margin": margin, "span": text, "span_place": [start, start + len(text)]}
        return self.decide(Answer("", {**details, "windows": windows}))

    def decide(self, answer: Answer) -> Answer:
        """The same with its best span as the answer, or without one, by the threshold."""
        details, answers = answer.details, answer.details["margin"] > self.threshold
        text, place = (details["span"], details["span_place"]) if answers else ("", None)
        return Answer(text, {**details, "place": place})

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        from gpt2kit.scores.answers import answers as scored

        rows = [cast(AnswerRow, example) for example in examples]
        gold = [[text for text, _ in row.answers] for row in rows]
        inputs = [f"{row.question}\n{row.passage}" for row in rows]
        return scored(gold, [answer.text for answer in answers], inputs=inputs)


def token_scores(engine: Engine, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
    """Of each row [T, 2]: how well an answer starts, and ends, at each token."""
    from gpt2kit.engine import Engine, Request

    if not isinstance(engine, Engine):
        raise UserError("this kind of adapter can only write answers", hint="tune with --method full or lora")
    if engine.score_head is None or len(engine.score_head) != len(HEAD):
        raise UserError("the model has no head that points at answers", hint="gpt2kit finetune … --mode extractive")
    head = engine.score_head.astype(np.float64).T  # C 2
    handles = [engine.submit(Request(list(row), pooling="mean"), events=False) for row in rows]
    found = []
    for handle in handles:
        handle.wait()
        assert handle.states is not None
        found.append(handle.states.astype(np.float64) @ head)
    return found


def best_span(scores: NDArray[np.float64], window: Window) -> tuple[float, int, int]:
    """(margin over no answer, first token, last token), the tokens counted in the passage."""
    starts, ends = scores[window.start : -1].T
    if not len(starts):
        return NO_PASSAGE, 0, 0
    null = float(scores[-1].sum())
    best = (-np.inf, 0, 0)
    for length in range(min(LONGEST, len(starts))):
        sums = starts[: len(starts) - length] + ends[length:]
        at = int(sums.argmax())
        best = max(best, (float(sums[at]) - null, window.first + at, window.first + at + length), key=lambda x: x[0])
    return best


def best_threshold(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    """The threshold on the margin with the best mean F1 on these examples; of equals the lowest, which answers most.

    Source: SQuAD 2.0's evaluation script, find_best_thresh.
    """
    from gpt2kit.scores.answers import best_f1

    rows = [cast(AnswerRow, example) for example in examples]
    margins = np.array([answer.details["margin"] for answer in answers])
    gold = [[text for text, _ in row.answers] for row in rows]
    gain = best_f1(gold, [answer.details["span"] for answer in answers]) - best_f1(gold, [""] * len(rows))
    order = np.argsort(margins, kind="stable")
    margins, gain = margins[order], gain[order]
    after = np.concatenate([[gain.sum()], gain.sum() - np.cumsum(gain)])  # of answering all but the first n
    cuts = np.concatenate([[margins[0] - 1.0], (margins[1:] + margins[:-1]) / 2, [margins[-1] + 1.0]])
    allowed = np.concatenate([[True], margins[1:] > margins[:-1], [True]])  # equal margins go the same way
    return float(cuts[allowed][np.argmax(np.round(after[allowed], 9))])


def _tokens_of(places: Places, start: int, end: int) -> tuple[int, int]:
    """The first and the last token with a part in characters [start, end)."""
    inside = [n for n, (a, b) in enumerate(places) if a < end and b > start]
    return (inside[0], inside[-1]) if inside else (len(places), len(places))
