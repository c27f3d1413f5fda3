"""Classification: sentiment, topic, spam. A head on the last token, which is the end-of-text token after the text.

One label an example, or several that are true or false by themselves. A text longer than the context keeps its first
quarter and its end: reviews and news say what they are about at the beginning and what they think at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.families import LabelRow
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError, unknown
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.likelihood import middle_out
from gpt2kit.tasks.task import GIVEN, Answer, Encoded, end_of_text
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Classes

THRESHOLD = 0.5  # of a label's own probability, where several can be true


@dataclass(frozen=True)
class Classify:
    labels: tuple[str, ...]
    multi_label: bool = False
    pairs: bool = False  # it was tuned on two texts at a time
    end: bool = True  # an end-of-text token stands behind each text; not where another tool trained the head
    name: str = "classify"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if len(self.labels) < 2 and not self.multi_label:
            raise UserError(
                f"a classifier needs two labels, the data has {len(self.labels)}: {', '.join(self.labels)}",
                hint="look at: gpt2kit data check",
            )

    def values(self) -> dict[str, Any]:
        found = {"name": self.name, "labels": list(self.labels), "multi_label": self.multi_label}
        return found | ({"pairs": True} if self.pairs else {}) | ({} if self.end else {"end": False})

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return dataclasses.replace(base, labels=self.labels, multi_label=self.multi_label)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        from gpt2kit.training.rows import Row

        rows = []
        number = {label: index for index, label in enumerate(self.labels)}
        ids, cut = self.ids([cast(LabelRow, example) for example in examples], tokenizer, context)
        for one, example in zip(ids, examples, strict=True):
            labels = cast(LabelRow, example).labels
            strange = next((label for label in labels if label not in number), None)
            if strange is not None:
                error = unknown("label", strange, self.labels)
                raise UserError(f"{example.where}: {error.message}", hint=error.hint)
            rows.append(Row(np.array(one, np.int64), labels=tuple(number[label] for label in labels)))
        return Encoded(rows, sum(cut))

    def ids(self, rows: Sequence[LabelRow], tokenizer: Tokenizer, context: int) -> tuple[list[list[int]], list[bool]]:
        """Each text's ids with EOS behind, where the head was trained so, at most `context` of them; and whether it
        was cut. Of an empty text EOS alone is left.
        """
        tokenizer, eos = end_of_text(tokenizer)
        encoded = [one.tolist() for one in tokenizer.encode_batch([row.text for row in rows])]
        for one, row in zip(encoded, rows, strict=True):
            if row.text_pair is not None:
                one += [eos, *tokenizer.encode(row.text_pair)]
        room = context - self.end
        cut = [len(one) > room for one in encoded]
        return [middle_out(one, room) + [eos] * (self.end or not one) for one in encoded], cut

    def objective(self, smoothing: float = 0.0) -> Classes:
        from gpt2kit.training.rows import Classes

        return Classes(smoothing)

    def example(self, text: str) -> LabelRow:
        return LabelRow(text, (), where=GIVEN)

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """The likeliest label, or all above 0.5 joined by commas; details: each label's probability.

        UserError for a single text where the model was tuned on pairs.
        """
        tokenizer, _ = end_of_text(engine.tokenizer)
        rows = [cast(LabelRow, example) for example in examples]
        single = next((row for row in rows if row.text_pair is None), None)
        if self.pairs and single is not None:
            raise UserError(
                f"{single.where}: the model was tuned on pairs of texts, and this is one text",
                hint='give both: {"text": "…", "text_pair": "…"}',
            )
        ids, cut = self.ids(rows, tokenizer, engine.config.n_positions)
        answers = [self.read(scores) for scores in engine.classify(ids)]
        for answer, shorter in zip(answers, cut, strict=True):
            answer.details["cut"] = shorter
        return answers

    def read(self, scores: NDArray[np.float32]) -> Answer:
        """What a text's scores [labels] say."""
        row = probabilities(scores[None], self.multi_label)[0]
        shares = dict(zip(self.labels, row.tolist(), strict=True))
        chosen = [label for label, share in shares.items() if share > THRESHOLD]
        text = ", ".join(chosen) if self.multi_label else self.labels[int(row.argmax())]
        return Answer(text, {"labels": chosen if self.multi_label else [text], "probabilities": shares})

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        from gpt2kit.scores.classification import classification, multilabel

        rows = cast("Sequence[LabelRow]", examples)
        shares = np.array([list(answer.details["probabilities"].values()) for answer in answers])
        texts = [row.key for row in rows]
        if self.multi_label:
            predicted = [answer.details["labels"] for answer in answers]
            return multilabel([row.labels for row in rows], predicted, labels=self.labels, inputs=texts)
        strange = next((row for row in rows if len(row.labels) != 1), None)
        if strange is not None:
            raise UserError(f"{strange.where}: {len(strange.labels)} labels; this classifier tells exactly one")
        gold = [row.labels[0] for row in rows]
        return classification(gold, [answer.text for answer in answers], shares, self.labels, texts)


def probabilities(scores: np.ndarray[Any, Any], multi_label: bool) -> np.ndarray[Any, Any]:
    """[P, K] scores -> probabilities in float64: each label's own, or shares that sum to 1."""
    x = scores.astype(np.float64)
    if multi_label:
        return np.asarray((1 + np.tanh(x / 2)) / 2)  # the logistic function, without overflow
    x = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(x / x.sum(1, keepdims=True))
