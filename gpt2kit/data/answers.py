"""The shapes of questions with answers (SQuAD, CMRC, flat rows) and of candidates to rank."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpt2kit.data import fields
from gpt2kit.data.families import AnswerRow, RankRow, Row, Where
from gpt2kit.data.fields import Head
from gpt2kit.data.values import FILL_IN, Convert, RowError, Wanted, clean, optional_text, text_of

MOVED = "answers whose answer_start did not fit and was put right: they are in the passage once"
FIRST = "answers without a place that are in the passage more than once: the first is taken"
ABSENT = "answers that are not in their passage word for word: of use to write answers, not to point at them"
NUMBER = "answers that are a number beside answers of text (a spreadsheet's dates?): left out"
IMPOSSIBLE = "is_impossible"  # SQuAD 2: the field that says that the passage does not answer
UNANSWERABLE = "questions without an answer: the passage does not answer them"
MORE_RIGHT = "further right candidates, left out: one is learned a row"

_Given = list[tuple[Any, int | None]]


def answers(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    """AnswerRow. Nested files are flat by now: question, passage and answers are fields of one record."""
    counts, split = wanted.counts, wanted.split
    question = head.need("question", "question", fields.QUESTION)
    answer = head.find("answers", fields.ANSWERS, lambda value: True)
    if answer is None:
        raise head.unclear("answers", "answers")
    passage = head.find("passage", fields.PASSAGE)
    start = head.find("answer_start", fields.ANSWER_START, lambda value: True)
    if IMPOSSIBLE in head.fields:
        head.take("unanswerable", IMPOSSIBLE)
    identity = head.find("id", fields.IDENTITY)
    title = head.find("title", fields.TITLE)

    def build(record: dict[str, Any], where: Where) -> Row:
        asked = text_of(record, question, counts)
        raw = "" if passage is None else text_of_passage(record, passage)
        given = _texts_only(_given(record, answer, start), counts)
        if not given:
            if not raw:
                raise RowError(answer, "empty", "there is neither an answer nor a passage", FILL_IN)
            counts[UNANSWERABLE] += 1
        placed = [_placed(text, at, raw, answer, counts) for text, at in given]
        placed.sort(key=lambda item: item[1] < 0)  # stable: those with a place first
        name, about = optional_text(record, identity, counts), optional_text(record, title, counts)
        return AnswerRow(asked, clean(raw, counts), tuple(placed), name, about, where=where, split=split)

    source = "no passage" if passage is None else head.said("passage", passage)
    return f"{head.said('question', question)}, {source}, {head.said('answers', answer)}", build


def text_of_passage(record: dict[str, Any], field: str) -> str:
    """The passage as it is written: places are counted in it before its line ends are changed."""
    value = record.get(field)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise RowError(field, "missing" if value is None else "type", "holds no text", FILL_IN)
    if not value or value.isspace():
        raise RowError(field, "empty", "the passage is empty", FILL_IN)
    return value


def _given(record: dict[str, Any], field: str, start: str | None) -> _Given:
    """[(text, start or None)] from SQuAD's list of objects, a list of strings, {"text": [], "answer_start": []} or a
    string. Empty for a question that the data calls unanswerable, or gives no answer to.
    """
    value = record.get(field)
    if record.get(IMPOSSIBLE) is True:
        return []
    if value is None:
        raise RowError(field, "missing", "is missing", "add the answers, or an empty list where the passage has none")
    if isinstance(value, dict):
        texts, places = value.get("text"), value.get("answer_start")
        texts = texts if isinstance(texts, list) else [texts]
        places = places if isinstance(places, list) else [places] * len(texts)
        if len(texts) != len(places):
            raise RowError(field, "answer", f"{len(texts)} texts, {len(places)} places", "give each answer its place")
        return [_pair(text, at, field) for text, at in zip(texts, places, strict=True)]
    if not isinstance(value, list):
        return [_pair(value, None if start is None else _place(record.get(start)), field)]
    return [
        _pair(item.get("text"), item.get("answer_start"), field) if isinstance(item, dict) else _pair(item, None, field)
        for item in value
    ]


def _place(value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isdecimal() and len(value) < 12 else value or None
    return value


def _pair(text: Any, start: Any, field: str) -> tuple[Any, int | None]:
    if isinstance(text, bool) or not isinstance(text, (str, int, float)) or fields.is_nan(text):
        raise RowError(field, "answer", f"an answer is a {type(text).__name__}, not text", "write answers as strings")
    if isinstance(start, bool) or not isinstance(start, int | None):
        raise RowError(field, "answer", "answer_start is not a whole number", "count characters of the passage, from 0")
    return text, start


def _texts_only(given: _Given, counts: Counter[str]) -> list[tuple[str, int | None]]:
    """Without blank answers, and without numbers where there are texts."""
    texts = [(text, start) for text, start in given if isinstance(text, str)]
    if texts:
        counts[NUMBER] += len(given) - len(texts)
        return [(text, start) for text, start in texts if text and not text.isspace()]
    return [(str(int(n)) if n == n // 1 else str(n), start) for n, start in given]


def _placed(text: str, start: int | None, raw: str, field: str, counts: Counter[str]) -> tuple[str, int]:
    """The answer and its place in the cleaned passage, -1 for none."""
    if not raw:
        return clean(text, counts), -1
    if start is None or start < 0 or not raw.startswith(text, start):
        found = raw.find(text)
        if found < 0 or (start is not None and raw.find(text, found + 1) >= 0):
            if start is None:
                counts[ABSENT] += 1
                return clean(text, counts), -1
            times = "more than once" if found >= 0 else "nowhere"
            raise RowError(
                field,
                "answer",
                f"answer_start {start} does not point at the answer, which is {times} in the passage",
                "correct answer_start, counted in characters from 0",
            )
        counts[MOVED if start is not None else FIRST] += start is not None or raw.find(text, found + 1) >= 0
        start = found
    return clean(text, counts), len(clean(raw[:start], Counter())) if "\r" in raw else start


def ranks(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    """RankRow from candidates and the right one (its place, letter or text), or from right ones and wrong ones."""
    counts, split = wanted.counts, wanted.split

    def anything(value: Any) -> bool:
        return value is not None

    history = head.find("history", fields.HISTORY, lambda value: isinstance(value, (list, str)))
    candidates = head.find("candidates", fields.CANDIDATES, lambda value: isinstance(value, (list, dict)))
    right = positive = negatives = None
    if candidates is not None:
        right = head.find("chosen", fields.RIGHT, anything)
    else:
        positive = head.find("positive", fields.POSITIVE, anything)
        negatives = head.find("negatives", fields.NEGATIVES, anything)
    query = head.find("query", (*fields.QUESTION, "prompt", "text", "sentence", "context", "anchor"))
    if (query is None and history is None) or (right is None and (positive is None or negatives is None)):
        role = "query" if query is None and history is None else "candidates" if candidates is None else "chosen"
        raise head.unclear(role, f"{role}")

    def build(record: dict[str, Any], where: Where) -> Row:
        told = record.get(history) if history is not None else None
        past = () if told in (None, "", []) else texts_of(told, str(history), counts)
        asked = optional_text(record, query, counts)
        if not asked.strip() and not past:
            raise RowError(str(query or history), "empty", "holds no text", FILL_IN)
        if candidates is not None:
            texts, letters = candidates_of(record, candidates, counts)
            chosen = _chosen(record.get(str(right)), texts, letters, str(right))
        else:
            good = texts_of(record.get(str(positive)), str(positive), counts)
            texts = (*good[:1], *texts_of(record.get(str(negatives)), str(negatives), counts))
            counts[MORE_RIGHT] += len(good) - 1
            chosen = 0
        if len(texts) < 2:
            raise RowError(str(candidates or negatives), "missing", "there are not two candidates", "add one")
        return RankRow(asked, past, texts, chosen, where=where, split=split)

    roles = {"history": history, "query": query, "candidates": candidates, "right one": right or positive,
             "wrong ones": negatives}  # fmt: skip
    return ", ".join(head.said(role, field) for role, field in roles.items() if field is not None), build


def texts_of(value: Any, field: str, counts: Counter[str]) -> tuple[str, ...]:
    """A list of texts; a string is a list of one."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not items:
        raise RowError(field, "missing", "holds no texts", FILL_IN)
    return tuple(text_of({field: item}, field, counts) for item in items)


def candidates_of(record: dict[str, Any], field: str, counts: Counter[str]) -> tuple[tuple[str, ...], list[str]]:
    """(texts, their letters): a list, or {"text": [...], "label": ["A", "B"]}."""
    value = record.get(field)
    letters = [chr(ord("A") + n) for n in range(26)]
    if isinstance(value, dict):
        if isinstance(value.get("label"), list):
            letters = [str(letter) for letter in value["label"]]
        value = value.get("text")
    return texts_of(value, field, counts), letters


def _chosen(value: Any, texts: tuple[str, ...], letters: list[str], field: str) -> int:
    """The place of the right candidate: its text, its letter, or its number from 0."""
    if isinstance(value, str):
        for names in (list(texts), letters[: len(texts)]):
            if value in names:
                return names.index(value)
        value = int(value) if value.isdecimal() and len(value) < 10 else value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts):
        return value
    raise RowError(field, "label", f"does not name one of the {len(texts)} candidates",
              "give the candidate's place from 0, its letter or its text")  # fmt: skip
