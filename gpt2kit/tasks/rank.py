"""Ranking: which candidate fits a query, or comes next after a user's history of texts.

Tuned: a head with one output reads query and candidate; it learns from which candidate was right
(training/pairwise.py). Without tuning: by the log-likelihood of the candidate behind the query, per token, per byte
or in total, or of its last token alone, given all before it; and where asked for less what it has behind an empty query
(Brown et al. 2020, section 2.4), which takes away that common texts are likely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from gpt2kit.data.families import RankRow, Where
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError, unknown
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.likelihood import continuations
from gpt2kit.tasks.task import GIVEN, Answer, Encoded, end_of_text
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.pairwise import Preferences

TEMPLATE = "{query}\n{candidate}"
Per = Literal["token", "byte", "total", "last"]
BY = ("head", "likelihood")
HEAD = ("score",)  # the label of a tuned model's only output


@dataclass(frozen=True)
class Rank:
    template: str = TEMPLATE
    by: str = "head"
    per: Per = "token"  # likelihood alone
    unconditional: bool = False  # subtract the likelihood behind an empty query
    name: str = "rank"

    def __post_init__(self) -> None:
        ends = self.template.endswith("{candidate}") and self.template.count("{candidate}") == 1
        if not ends or self.template.count("{query}") != 1:
            raise UserError(f"the template must hold {{query}} once and end in {{candidate}}, got {self.template!r}")
        if self.by not in BY:
            raise unknown("way to rank", self.by, BY)
        if self.per not in get_args(Per):
            raise unknown("per", self.per, get_args(Per))

    def values(self) -> dict[str, Any]:
        return {"name": self.name, "template": self.template}

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return dataclasses.replace(base, labels=HEAD, multi_label=False)

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        from gpt2kit.training.pairwise import candidates_row

        rows, cut = [], 0
        for example in examples:
            row = cast(RankRow, example)
            order = [row.chosen, *(n for n in range(len(row.candidates)) if n != row.chosen)]
            ids, shorter = self.ids(row.key, [row.candidates[n] for n in order], tokenizer, context)
            rows.append(candidates_row(ids))
            cut += shorter
        return Encoded(rows, cut)

    def ids(
        self, query: str, candidates: Sequence[str], tokenizer: Tokenizer, context: int
    ) -> tuple[list[list[int]], bool]:
        """Query and candidate with EOS behind, for each candidate; and whether some had to be cut.

        The query loses its beginning, down to half of the context, then the candidate its end.
        """
        tokenizer, eos = end_of_text(tokenizer)
        prompt, tails = self._parts(query, candidates, tokenizer)
        kept = [self._fit(prompt, tail, context - 1) for tail in tails]
        whole = [len(prompt) + len(tail) for tail in tails]
        return [[*p, *c, eos] for p, c in kept], any(len(p) + len(c) < n for (p, c), n in zip(kept, whole, strict=True))

    def _parts(self, query: str, candidates: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], list[list[int]]]:
        """The prompt's ids, and each candidate's as it goes on; the template's blank before it belongs to it."""
        front = self.template.removesuffix("{candidate}")
        blank = front[len(front.rstrip(" ")) :]
        prompt = tokenizer.encode(front.replace("{query}", query).rstrip(" "))
        return prompt, [tokenizer.encode(blank + one) for one in candidates]

    @staticmethod
    def _fit(prompt: list[int], tail: list[int], room: int) -> tuple[list[int], list[int]]:
        left = max(room - len(tail), room // 2)
        prompt = prompt[-left:]
        return prompt, tail[: room - len(prompt)]

    def objective(self, smoothing: float = 0.0) -> Preferences:
        from gpt2kit.training.pairwise import Preferences

        return Preferences(smoothing)

    def example(self, text: str) -> RankRow:
        """None: a text has no candidates."""
        raise UserError(
            f"this is no query with candidates: {text[:60]!r}",
            hint='{"query": "…", "candidates": ["…", "…"]}, one a line; or the same for all: --candidates A B',
        )

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """The best candidate; details: the scores in the order given, and the candidates' places, the best first."""
        tokenizer, _ = end_of_text(engine.tokenizer)
        rows = [cast(RankRow, example) for example in examples]
        found = self.scores(engine, [(row.key, row.candidates) for row in rows])
        room = engine.config.n_positions - (self.by == "head")
        answers = [_ranked(row, scores) for row, scores in zip(rows, found, strict=True)]
        for row, answer in zip(rows, answers, strict=True):
            prompt, tails = self._parts(row.key, row.candidates, tokenizer)
            answer.details["cut"] = len(prompt) + max(map(len, tails)) > room
        return answers

    def scores(self, engine: Engine, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """Of each (query, candidates) the candidates' scores, larger is better."""
        tokenizer, eos = end_of_text(engine.tokenizer)
        if self.by == "head":
            N = engine.config.n_positions
            ids = [self.ids(query, candidates, tokenizer, N)[0] for query, candidates in asked]
            flat = iter(engine.classify([one for group in ids for one in group])[:, 0].tolist())
            return [[next(flat) for _ in group] for group in ids]
        found = self._likelihoods(engine, asked, tokenizer, eos)
        if self.unconditional:
            bare = self._likelihoods(engine, [("", candidates) for _, candidates in asked], tokenizer, eos)
            found = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(found, bare, strict=True)]
        sizes = [[self._size(one, tokenizer) for one in candidates] for _, candidates in asked]
        return [[x / n for x, n in zip(*pair, strict=True)] for pair in zip(found, sizes, strict=True)]

    def _size(self, candidate: str, tokenizer: Tokenizer) -> int:
        if self.per in ("total", "last"):
            return 1
        return len(candidate.encode()) if self.per == "byte" else len(self._parts("", [candidate], tokenizer)[1][0])

    def _likelihoods(
        self, engine: Engine, asked: Sequence[tuple[str, Sequence[str]]], tokenizer: Tokenizer, eos: int
    ) -> list[list[float]]:
        """Candidates are never cut, which would make them likelier: what does not fit beside one is the query's
        beginning.

        UserError for a candidate longer than the context.
        """
        N = engine.config.n_positions
        prompts, tails = [], []
        for query, candidates in asked:
            prompt, group = self._parts(query, candidates, tokenizer)
            longest = max(map(len, group), default=0)
            if longest >= N:
                raise UserError(f"a candidate has {longest} tokens, the model sees {N}", hint="shorten the candidates")
            prompts.append((prompt or [eos])[-(N - longest) :])
            tails.append(group)
        if self.per != "last":
            return continuations(engine, prompts, tails)
        fronts = [[*prompt, *one[:-1]] for prompt, group in zip(prompts, tails, strict=True) for one in group]
        found = iter(continuations(engine, fronts, [[one[-1:]] for group in tails for one in group]))
        return [[next(found)[0] for _ in group] for group in tails]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        from gpt2kit.scores.ranking import ranking

        rows = [cast(RankRow, example) for example in examples]
        right = [[float(n == row.chosen) for n in range(len(row.candidates))] for row in rows]
        return ranking(right, [answer.details["scores"] for answer in answers], inputs=[row.key for row in rows])


def rank(engine: Engine, query: str, candidates: Sequence[str], task: Rank | None = None) -> list[float]:
    """A score for each candidate, larger is better: by the task that the model was tuned for, else by likelihood."""
    (found,) = (task or Rank(by="likelihood")).scores(engine, [(query, candidates)])
    return found


def question(query: str, candidates: Sequence[str], history: Sequence[str] = (), where: Where = GIVEN) -> RankRow:
    """One that nobody knows the answer to. UserError for fewer than two candidates, empty ones, and nothing asked."""
    if len(candidates) < 2 or not all(map(str.strip, candidates)):
        raise UserError("ranking needs two candidates, none of them empty")
    if not query.strip() and not any(map(str.strip, history)):
        raise UserError("ranking needs a query, or a history of texts")
    return RankRow(query, tuple(history), tuple(candidates), 0, where=where)


def _ranked(row: RankRow, scores: list[float]) -> Answer:
    order = np.argsort(-np.array(scores), kind="stable").tolist()
    return Answer(row.candidates[order[0]], {"scores": scores, "ranking": order})
