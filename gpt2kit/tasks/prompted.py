"""Classification without tuning: which label's word the language model would write behind a text.

A template ends in {label}: "Text: {text}\\nCategory: {label}". The log-likelihood of each label's word is compared;
shots put labelled examples in the same template before it.

Contextual calibration (Zhao et al. 2021, "Calibrate Before Use"): the model likes some words whatever the text says.
Its likelihoods are divided by those behind texts without content, with the same shots. The prior is the mean over
CONTENT_FREE of the log-likelihoods, where the paper takes the mean of probabilities: then an answer is exactly the
same whatever factor a word's likelihood is multiplied by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.families import LabelRow
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError
from gpt2kit.scores.segment import language_of
from gpt2kit.tasks.classify import Classify, probabilities
from gpt2kit.tasks.likelihood import TOGETHER, continuations, middle_out
from gpt2kit.tasks.shots import Shots, before
from gpt2kit.tasks.task import GIVEN, Answer, end_of_text
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores

CONTENT_FREE = ("N/A", "", "[MASK]")  # the paper's
TEMPLATES = {  # the first is the default, all are tried by --search-prompts builtin
    "en": (
        "Text: {text}\nCategory: {label}",
        "Text: {text}\nSentiment: {label}",
        "Review: {text}\nThe review is {label}",
        "{text}\nAll in all, it was {label}",
        "Article: {text}\nTopic: {label}",
        "{text}\nThis is about {label}",
    ),
    "zh": (
        "文本：{text}\n类别：{label}",
        "文本：{text}\n情感：{label}",
        "评论：{text}\n这条评论是{label}",
        "{text}\n总的来说，{label}",
        "标题：{text}\n主题：{label}",
        "{text}\n这是关于{label}",
    ),
}


@dataclass(frozen=True)
class Prompted:
    """A task like `Classify`, answered by an untuned model. `words`: what stands for each label in a template."""

    labels: tuple[str, ...]
    words: tuple[str, ...] = ()  # none: the labels themselves
    template: str = ""  # "": the default of the words' language
    shots: Shots | None = None
    calibrate: bool = True
    name: str = "classify"

    def __post_init__(self) -> None:
        words = tuple(self.words) or tuple(self.labels)
        object.__setattr__(self, "words", words)
        if len(self.labels) < 2 or len(words) != len(self.labels) or not all(map(str.strip, words)):
            raise UserError("a classifier needs two labels, each with a word", hint="--labels positive,negative")
        twice = next((one for group in (words, self.labels) for one in group if group.count(one) > 1), None)
        if twice is not None:
            raise UserError(f"{twice!r} stands for two labels")
        if not self.template:
            object.__setattr__(self, "template", TEMPLATES[language_of(words)][0])
        check_template(self.template)

    def example(self, text: str) -> LabelRow:
        return LabelRow(text, (), where=GIVEN)

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """The likeliest label; details: each label's probability, and how many examples were shown."""
        tokenizer, eos = end_of_text(engine.tokenizer)
        rows = [cast(LabelRow, example) for example in examples]
        tails = self._tails(tokenizer)
        room = engine.config.n_positions - max(map(len, tails))
        priors: dict[tuple[str, ...], NDArray[np.float64]] = {}
        answers = []
        for a in range(0, len(rows), TOGETHER):  # few enough for the examples' keys and values to be found again
            asked = [_Question(self._shown(row), row.key) for row in rows[a : a + TOGETHER]]
            prompts = [self._prompt(one, tokenizer, eos, room) for one in asked]
            found = np.array(continuations(engine, [ids for ids, _, _ in prompts], [tails] * len(prompts)))
            told = [one.shown[len(one.shown) - kept :] for one, (_, kept, _) in zip(asked, prompts, strict=True)]
            if self.calibrate:
                new = [shown for shown in dict.fromkeys(told) if shown not in priors]
                free = [self._prompt(_Question(shown, text), tokenizer, eos, room)[0]
                        for shown in new for text in CONTENT_FREE]  # fmt: skip
                likely = np.array(continuations(engine, free, [tails] * len(free)))
                priors |= zip(new, likely.reshape(-1, len(CONTENT_FREE), len(tails)).mean(1), strict=True)
            prior = np.array([priors.get(shown, np.zeros(len(tails))) for shown in told])
            shares = calibrated(found, prior)
            answers += [self._read(row, kept, cut) for row, (_, kept, cut) in zip(shares, prompts, strict=True)]
        return answers

    def _read(self, shares: NDArray[np.float64], kept: int, cut: bool) -> Answer:
        label = self.labels[int(shares.argmax())]
        details = {"labels": [label], "probabilities": dict(zip(self.labels, shares.tolist(), strict=True)), "cut": cut}
        return Answer(label, details | ({"shots": kept} if self.shots is not None else {}))

    def _shown(self, row: LabelRow) -> tuple[str, ...]:
        """The examples before a text, each in the template with its label's word."""
        if self.shots is None:
            return ()
        word = dict(zip(self.labels, self.words, strict=True))
        found = []
        for one in self.shots.of(row):
            assert isinstance(one, LabelRow)
            if len(one.labels) != 1 or one.labels[0] not in word:
                raise UserError(
                    f"{one.where}: the example's label must be one of {', '.join(self.labels)}",
                    hint="name all labels: --labels A,B,C",
                )
            found.append(self.template.replace("{label}", word[one.labels[0]]).replace("{text}", one.key))
        return tuple(found)

    def _tails(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Each label's word as it goes on behind the prompt: the template's blank before it belongs to it."""
        front = self.template.removesuffix("{label}")
        blank = front[len(front.rstrip(" ")) :]
        return [tokenizer.encode(blank + word) for word in self.words]

    def _prompt(self, one: _Question, tokenizer: Tokenizer, eos: int, room: int) -> tuple[list[int], int, bool]:
        """Ids that end where the label's word comes, how many examples found room, and whether the text did not.

        What does not fit: examples from the first one on, then the middle of the text.
        """
        front = self.template.removesuffix("{label}")
        ids, kept = before(one.shown, front.replace("{text}", one.text).rstrip(" "), tokenizer, room)
        if len(ids) <= room:
            return ids or [eos], kept, False
        left, right = (tokenizer.encode(part) for part in front.rstrip(" ").split("{text}"))
        if len(left) + len(right) >= room:
            raise UserError(f"the template alone fills the context of {room} tokens", hint="a shorter --template")
        return [*left, *middle_out(tokenizer.encode(one.text), room - len(left) - len(right)), *right], 0, True

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        return Classify(self.labels).score(examples, answers)


@dataclass(frozen=True)
class _Question:
    shown: tuple[str, ...]
    text: str


def check_template(template: str) -> None:
    """UserError unless it holds {text} once and ends in {label}."""
    if template.count("{text}") != 1 or template.count("{label}") != 1 or not template.endswith("{label}"):
        raise UserError(
            f"the template must hold {{text}} once and end in {{label}}, got {template!r}",
            hint="for example: 'Review: {text}\\nSentiment: {label}'",
        )


def calibrated(found: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P, K] log-likelihoods and what texts without content get -> probabilities [P, K]."""
    return probabilities(found - prior, multi_label=False)


@dataclass(frozen=True)
class Tried:
    """A template, and its scores on labelled examples."""

    template: str
    scores: Scores

    @property
    def accuracy(self) -> float:
        return self.scores["accuracy"].value


def try_templates(engine: Engine, task: Prompted, templates: Sequence[str], examples: Sequence[Example]) -> list[Tried]:
    """Prompt search: the task with each of the templates on the same examples, the most accurate first; of equals the
    one that was named first. An example is never shown before itself.
    """
    tried = []
    for template in templates:
        own = dataclasses.replace(task, template=template)
        tried.append(Tried(template, own.score(examples, own.answer(engine, examples))))
    return sorted(tried, key=lambda one: -one.accuracy)


def read_templates(path: Path) -> list[str]:
    """The templates of a file, one a line. UserError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} is no file of templates", hint="one a line, or --search-prompts builtin") from None
    templates = [line.replace("\\n", "\n") for line in lines if line.strip()]
    for template in templates:
        check_template(template)
    if not templates:
        raise UserError(f"{path} holds no template", hint="one a line, such as: Review: {text}\\nIt was {label}")
    return templates
