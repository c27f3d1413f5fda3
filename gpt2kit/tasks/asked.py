"""What `gpt2kit run` is given, as rows to ask: a text, lines of texts or of JSON objects, a table.

An object has the fields that labelled data has, by the names that training reads (data/fields.py). What a model would
learn from need not be there, and is not looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.data import answers, conversations, fields
from gpt2kit.data.decode import STDIN
from gpt2kit.data.families import AnswerRow, ChatRow, LabelRow, Message, PairRow, Problem, RankRow, Row, TextRow, Where
from gpt2kit.data.fields import Head
from gpt2kit.data.records import HEAD, JSON, TABLES, open_records, parsed_line, text_of_file
from gpt2kit.data.rows import lines
from gpt2kit.data.shapes import flatten, recognise
from gpt2kit.data.sources import SourceReport, kind_of
from gpt2kit.data.values import Convert, RowError, Wanted, optional_text, text_of
from gpt2kit.errors import UserError
from gpt2kit.tasks.chat import OpenChat
from gpt2kit.tasks.rank import question
from gpt2kit.tasks.task import GIVEN

JSON_LINES = (".jsonl", ".ndjson")
RECORDS = (".json", *TABLES, ".parquet")
KNOWN_FILES = (".txt", ".md", *JSON, *TABLES, ".parquet")
QUERY = (*fields.QUESTION, "prompt", "text", "sentence", "context", "anchor")  # as data/answers.py looks for it

Note = Callable[[str], None]
Told = Counter[str]  # what the readers of values put right, which is said of data to learn from only


@dataclass(frozen=True)
class Input:
    """How one example becomes a row. `of_text` reads a plain text; `fixed` are fields that every object gets."""

    family: type[Row]
    of_text: Callable[[str], Row]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rows(self, given: str, note: Note = lambda text: None) -> Iterator[Row]:
        """The rows of a text, a file or "-", standard input. UserError, with the line, for what cannot be asked."""
        if not is_file(given):
            form, packing = kind_of(given)
            if (packing or form in KNOWN_FILES) and not any(map(str.isspace, given)):
                note(f"there is no file {given}: it is taken as a text")
            return self._of_line(given, GIVEN, strict=False)
        if given != STDIN and Path(given).is_dir():
            raise UserError(
                f"{given} is a folder", hint=f"name a file, or join its files: cat {given}/*.txt | gpt2kit run … -"
            )
        form = "" if given == STDIN else kind_of(given)[0]
        return self._of_records(given, note) if form in RECORDS else self._of_lines(given, form in JSON_LINES, note)

    def _of_lines(self, path: str, strict: bool, note: Note) -> Iterator[Row]:
        name, report = "standard input" if path == STDIN else path, SourceReport()
        for number, line in enumerate(lines(text_of_file(path, name, report), name), 1):
            if not line.isspace():
                yield from self._of_line(line.removesuffix("\n"), Where(name, number), strict)
        for one in report.notes:
            note(one)

    def _of_line(self, text: str, where: Where, strict: bool) -> Iterator[Row]:
        """A text, or an object: where it has a field that is known, or `strict`, because the file's name says so."""
        value = parsed_line(text) if strict or text.lstrip().startswith("{") else None
        found = list(flatten(iter([(where, value)]), {})) if isinstance(value, dict) else []
        if found and (strict or all(self._is_known(record) for _, record in found)):
            for place, record in found:
                yield self._of_record(record, place)
        elif strict:
            what = value if isinstance(value, Exception) else f"holds a {type(value).__name__}, not an object"
            raise UserError(f"{where}: {what}", hint="a file with a text a line has another suffix, such as .txt")
        else:
            with _named(where):
                yield dataclasses.replace(self.of_text(text), where=where)

    def _is_known(self, record: dict[str, Any] | Problem) -> bool:
        names = FORMS[self.family].names
        return isinstance(record, dict) and any(str(field).lower() in names for field in record)

    def _of_record(self, record: dict[str, Any] | Problem, where: Where) -> Row:
        if isinstance(record, Problem):
            raise _refused(record)
        record = {**record, **self.fixed}
        return _built(self._convert(Head([record], where, {}), guess=False), record, where)

    def _of_records(self, path: str, note: Note) -> Iterator[Row]:
        """The rows of a table or a list of objects; which fields are read is told by its first records, and said."""
        report = SourceReport()
        opened = open_records(path, report, names=fields.NAMES)
        found = flatten(opened.records, {})
        first = list(itertools.islice(found, HEAD))
        head = Head([record | dict(self.fixed) for _, record in first if isinstance(record, dict)],
                    first[0][0] if first else Where(path), {}, opened.numbered)  # fmt: skip
        convert = self._convert(head, guess=True) if head.records else None
        if convert is not None:
            said = ", ".join(head.said(role, field) for field, role in head.taken.items() if field not in self.fixed)
            note(f"{path}: {opened.form}; {said}{head.rest()}")
        for where, record in itertools.chain(first, found):
            if isinstance(record, Problem):
                raise _refused(record)
            assert convert is not None
            yield _built(convert, record | dict(self.fixed), where)
        for one in report.notes:
            note(one)

    def _convert(self, head: Head, guess: bool) -> Convert:
        form = FORMS[self.family]
        found = form.reader(head, guess)
        if found is None:
            raise UserError(
                f"{head.where}: it is not clear what is asked; the fields are: {head.names()}",
                hint=f"write each example as {form.example}",
            )
        return found


def is_file(given: str) -> bool:
    """Whether it names standard input, or a file or folder that is there. A long text cannot be a path, and the system
    says so by an error.
    """
    try:
        return given == STDIN or (given != "" and Path(given).exists())
    except (OSError, ValueError):
        return False


def _built(convert: Convert, record: dict[str, Any], where: Where) -> Row:
    try:
        with _named(where):
            return convert(record, where)
    except RowError as bad:
        raise _refused(Problem(where, *bad.args)) from None


def _refused(problem: Problem) -> UserError:
    field = f"{problem.field!r}: " if problem.field else ""
    return UserError(f"{problem.where}: {field}{problem.reason}", hint=problem.fix)


@contextlib.contextmanager
def _named(where: Where) -> Iterator[None]:
    """An error inside says which example it is of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint) from None


# One object to one row, by family. A reader looks for the fields; None where those that are needed are not there.
# `guess`: a table's text may also be told by what its columns hold.


def _texts(head: Head, guess: bool) -> Convert | None:
    text = _find(head, "text", fields.TEXT, head.longest_text() if guess else None)
    return None if text is None else lambda record, where: TextRow(text_of(record, text, Told()), where=where)


def _labels(head: Head, guess: bool) -> Convert | None:
    text = _find(head, "text", fields.TEXT, head.longest_text() if guess else None)
    pair = head.find("text_pair", fields.TEXT_PAIR)
    if text is None:
        return None

    def build(record: dict[str, Any], where: Where) -> Row:
        second = None if pair is None else text_of(record, pair, Told())
        return LabelRow(text_of(record, text, Told()), (), second, where=where)

    return build


def _pairs(head: Head, guess: bool) -> Convert | None:
    if not head.has(("completion",)) and head.has(fields.MESSAGES, fields.is_messages):
        return _pairs_of_messages(head)
    prompt = _prompt(head, guess)
    return None if prompt is None else lambda record, where: PairRow(prompt(record), "", where=where)


def _pairs_of_messages(head: Head) -> Convert:
    field = str(head.find("messages", fields.MESSAGES, fields.is_messages))

    def build(record: dict[str, Any], where: Where) -> Row:
        turns = conversations.messages_of(record.get(field), field, Told())
        turns = turns[:-1] if turns[-1].role == "assistant" else turns
        if [turn.role for turn in turns] not in (["user"], ["system", "user"]):
            raise RowError(field, "shape", "the messages are not one prompt", "such data is for the task chat")
        return PairRow("\n\n".join(turn.content for turn in turns), "", where=where)

    return build


def _prompt(head: Head, guess: bool) -> Callable[[dict[str, Any]], str] | None:
    """Alpaca's instruction with its input, a prompt, or the first of two languages, as data/conversations.py."""
    languages = [field for field in head.fields if field.lower() in fields.LANGUAGES]
    prompt = extra = None
    if head.has(fields.OUTPUT) or not head.has(fields.COMPLETION):
        prompt = head.find("prompt", fields.INSTRUCTION)
    if prompt is not None:
        extra = head.find("input", fields.INPUT)
    elif len(languages) == 2:
        prompt = head.take("prompt", languages[0])
    else:
        likely = languages or (head.texts() if guess else [])
        prompt = _find(head, "prompt", fields.PROMPT, likely[0] if likely else None)
    if prompt is None:
        return None
    return lambda record: conversations.with_input(text_of(record, prompt, Told()), record, extra, Told())


def _chats(head: Head, guess: bool) -> Convert | None:
    """Messages, or a prompt with what was said before it."""
    messages = head.find("messages", fields.MESSAGES, fields.is_messages)
    system = head.find("system", fields.SYSTEM)
    history = head.find("history", fields.HISTORY, lambda value: True)
    prompt = _prompt(head, guess) if messages is None else None
    if messages is None and prompt is None:
        return None

    def build(record: dict[str, Any], where: Where) -> Row:
        if prompt is None:
            turns = conversations.messages_of(record.get(str(messages)), str(messages), Told())
        else:
            past = conversations.history_of(record.get(history), history, Told()) if history is not None else ()
            turns = (*past, Message("user", prompt(record)))
        if turns[-1].role != "user":
            raise RowError(messages, "role", "does not end with the user's message", "leave out the answer to it")
        first = optional_text(record, system, Told())
        if first and turns[0].role != "system":
            turns = (Message("system", first), *turns)
        return OpenChat(turns, where=where)

    return build


def _answers(head: Head, guess: bool) -> Convert | None:
    asked, passage = head.find("question", fields.QUESTION), head.find("passage", fields.PASSAGE)
    if asked is None:
        return None
    return lambda record, where: AnswerRow(
        text_of(record, asked, Told()), optional_text(record, passage, Told()), (), where=where
    )


def _ranks(head: Head, guess: bool) -> Convert | None:
    """Candidates; else a chosen and a rejected answer, or right ones and wrong ones, which only labelled data has."""
    candidates = head.find("candidates", fields.CANDIDATES, lambda value: isinstance(value, (list, dict)))
    if candidates is None:
        return _labelled(head)
    query, history = head.find("query", QUERY), head.find("history", fields.HISTORY, lambda value: True)

    def build(record: dict[str, Any], where: Where) -> Row:
        texts, _ = answers.candidates_of(record, candidates, Told())
        past = answers.texts_of(record[history], history, Told()) if history and record.get(history) else ()
        return question(optional_text(record, query, Told()), texts, past, where)

    return build


def _labelled(head: Head) -> Convert | None:
    try:
        shape = recognise([(head.where, record) for record in head.records], Wanted(RankRow), head.numbered)
    except UserError:
        return None

    def build(record: dict[str, Any], where: Where) -> Row:
        found = shape.convert(record, where)
        if isinstance(found, Problem):
            raise _refused(found)
        return found

    return build


def _find(head: Head, role: str, usual: Sequence[str], guessed: str | None) -> str | None:
    field = head.find(role, usual)
    return head.take(role, guessed) if field is None and guessed is not None else field


@dataclass(frozen=True)
class Form:
    """How objects of a family are read: the fields that tell them from a text that is JSON, and how to write one."""

    reader: Callable[[Head, bool], Convert | None]
    names: frozenset[str]
    example: str


_ASKED = (*fields.PROMPT, *fields.INSTRUCTION, *fields.MESSAGES, *fields.LANGUAGES)
FORMS: Mapping[type[Row], Form] = {
    TextRow: Form(_texts, frozenset(fields.TEXT), '{"text": "…"}'),
    LabelRow: Form(_labels, frozenset((*fields.TEXT, *fields.TEXT_PAIR)), '{"text": "…"}, of pairs with "text_pair"'),
    PairRow: Form(_pairs, frozenset(_ASKED), '{"prompt": "…"}, or {"instruction": "…", "input": "…"}'),
    ChatRow: Form(
        _chats, frozenset((*_ASKED, *fields.SYSTEM, *fields.HISTORY)),
        '{"messages": [{"role": "user", "content": "…"}]}, or {"prompt": "…", "history": [["…", "…"]]}',
    ),
    AnswerRow: Form(
        _answers, frozenset((*fields.QUESTION, *fields.PASSAGE)), '{"question": "…", "context": "…"}'
    ),
    RankRow: Form(
        _ranks, frozenset((*QUERY, *fields.HISTORY, *fields.CANDIDATES, *fields.CHOSEN, *fields.POSITIVE)),
        '{"query": "…", "candidates": ["…", "…"]}',
    ),
}  # fmt: skip
