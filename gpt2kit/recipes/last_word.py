"""Files -> documents -> the last word of each, given what stands before it: the LAMBADA test's way of asking.

What stands behind the last blank is asked for, that blank being its first character, as GPT-2's tokens have it; of a
text without blanks, as Chinese is written, the last character. Nothing precedes the text. So does lm-evaluation-harness
(its task lambada_openai), whose figures are per word too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gpt2kit.data.sources import Document, SourceReport, read_documents
from gpt2kit.errors import UserError
from gpt2kit.model.sampling import Choice
from gpt2kit.scores.last_word import last_word
from gpt2kit.scores.result import Scores
from gpt2kit.tasks.reference import answered_by, open_for_tasks
from gpt2kit.wording import plural

TOGETHER = 128  # texts that are asked before progress is told


def cut(text: str) -> tuple[str, str]:
    """(what is given, what is asked for). UserError where there is nothing to give."""
    text = text.rstrip()
    before, blank, word = text.rpartition(" ")
    if not before.strip():
        before, blank, word = text[:-1], "", text[-1:]
    if not before.strip():
        raise UserError(f"the text {text!r} has nothing before its last word")
    return before, blank + word


def _whole(pieces: Iterable[Document]) -> Iterator[Document]:
    """Long documents come in pieces."""
    held: Document | None = None
    for piece in pieces:
        if held is not None and not piece.continues:
            yield held
        held = replace(held, text=held.text + piece.text) if held is not None and piece.continues else piece
    if held is not None:
        yield held


def score_last_words(
    folder: str | Path,
    paths: Sequence[str],
    field: str | None = None,
    precision: Literal["auto", "int8", "fp32"] = "auto",
    threads: int | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_load: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """How well a model folder knows the last word of each document. UserError where a file or a text does not fit."""
    report = SourceReport()
    given, words = [], []
    for document in _whole(read_documents(list(paths), field, report)):
        try:
            before, word = cut(document.text)
        except UserError as error:
            place = document.source if document.line is None else f"{document.source}, line {document.line}"
            raise UserError(f"{place}: {error.message}", hint="one text a document: .jsonl, or .txt") from None
        given.append(before)
        words.append(word)
    for line in report.notes:
        note(line)
    nats: list[float] = []
    greedy: list[bool] = []
    shortened = 0
    with open_for_tasks(folder, precision, threads, on_load) as engine:
        note(f"answered by {answered_by(engine)}")
        tokenizer, room = engine.tokenizer, engine.config.n_positions
        if tokenizer is None:
            raise UserError(f"{folder} has no tokenizer", hint="copy the tokenizer's files into it")
        for start in range(0, len(words), TOGETHER):
            heads = [tokenizer.encode(text) for text in given[start : start + TOGETHER]]
            tails = [tokenizer.encode(word) for word in words[start : start + TOGETHER]]
            shortened += sum(len(head) + len(tail) > room for head, tail in zip(heads, tails, strict=True))
            if any(len(tail) >= room for tail in tails):
                raise UserError(f"a last word alone has as many tokens as the model positions, {room}")
            asked = [(head + tail)[-room:] for head, tail in zip(heads, tails, strict=True)]
            for choices, tail in zip(engine.score(asked, 1), tails, strict=True):
                found = choices[-len(tail) :]
                nats.append(-sum(_logprob(choice) for choice in found))
                greedy.append(all(_is_likeliest(choice) for choice in found))
            progress(len(nats), len(words))
    if shortened:
        whose = "its" if shortened == 1 else "their"
        note(f"{plural(shortened, 'text')} lost {whose} beginning: the model has {room} positions")
    return last_word(words, nats, greedy, given)


def _logprob(choice: Choice | None) -> float:
    assert choice is not None
    assert choice.logprob is not None
    return choice.logprob


def _is_likeliest(choice: Choice | None) -> bool:
    assert choice is not None
    assert choice.alternatives is not None
    return choice.alternatives[0][0] == choice.token
