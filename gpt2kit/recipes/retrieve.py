"""Questions answered from the user's own documents: search, read the best passages, answer, say where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpt2kit.data.families import AnswerRow, Where
from gpt2kit.data.passages import Library, Passage
from gpt2kit.engine import Engine
from gpt2kit.tasks.task import Answer, Asked

PASSAGES = 5  # of the documents that are read for a question


def answer_from(
    engine: Engine, task: Asked, library: Library, questions: Sequence[str], passages: int = PASSAGES
) -> list[Answer]:
    """An answer to each question, by the passages that the search ranks first; each is read by itself.

    The answer that the model is surest of wins (the margin over "no answer", or the log-probability per token), of
    equals the one from the passage that was ranked first. details: source, the passage that it is from with the line
    that the answer begins on (None without an answer), and `passages`, all that were read.
    """
    found = [library.search(question, passages) for question in questions]
    rows = [
        AnswerRow(question, passage.text, (), where=Where(passage.file, passage.line))
        for question, own in zip(questions, found, strict=True)
        for passage in own
    ]
    replies = iter(task.answer(engine, rows) if rows else [])
    return [_best(own, [next(replies) for _ in own]) for own in found]


def _best(passages: Sequence[Passage], replies: Sequence[Answer]) -> Answer:
    read = [_plain(passage) for passage in passages]
    cut = any(reply.details.get("cut", False) for reply in replies)
    if not any(reply.text for reply in replies):
        return Answer("", {"source": None, "passages": read, "cut": cut})
    place = max(range(len(replies)), key=lambda n: (bool(replies[n].text), _confidence(replies[n]), -n))
    reply = replies[place]
    within = reply.details.get("place")
    source = read[place] | {"line": passages[place].line_of(within[0] if within else 0)}
    return replace(reply, details={"source": source, **reply.details, "passages": read, "cut": cut})


def _confidence(reply: Answer) -> float:
    found = reply.details.get("margin", reply.details.get("logprob_per_token"))
    return float(found) if found is not None else float("-inf")


def _plain(passage: Passage) -> dict[str, Any]:
    return {"file": passage.file, "line": passage.line, "text": passage.text, "score": passage.score}
