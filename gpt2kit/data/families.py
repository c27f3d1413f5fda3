"""What labelled data is made of: a frozen dataclass for each family of tasks, and where each row came from.

    Row
    ├── TextRow         a text
    ├── LabelRow        a text (or two) and its labels
    ├── PairRow         a prompt and its completion: translation, summary, correction, instruction
    ├── ChatRow         messages
    ├── AnswerRow       a question, a passage, answers with their places
    ├── PreferenceRow   a conversation, the better and the worse answer
    └── RankRow         a query or history, candidates, the right one

Every row has three views for code that treats all families alike: `key`, what the model is given (rows of
one key never lie on both sides of a split); `target`, what it shall make of it; `longest`, the longest text
it sees in one go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Where:
    """The place of a row: a file, the line that it begins on (in Parquet the row), both from 1, and the place
    inside a JSON document: `data[0].paragraphs[2].qas[1]`.
    """

    file: str
    line: int | None = None
    index: str = ""

    def __str__(self) -> str:
        unit = "row" if self.file.lower().endswith(".parquet") else "line"
        line = "" if self.line is None else f" {unit} {self.line}"
        return f"{self.file}{line}{f' {self.index}' if self.index else ''}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that is not used. kind: json, columns, missing, empty, type, label, answer, role, shape or file."""

    where: Where
    field: str
    kind: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {f'{self.field!r}: ' if self.field else ''}{self.reason} ({self.fix})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What rows of all families have. split: "train", "validation", "test" where the data says so, else "".
    augmented: how the row was made from another one, else "".
    """

    where: Where
    split: str = ""
    augmented: str = ""

    @property
    def key(self) -> str:
        """What the model is given. Splits are made by it, leaks between them are found by it."""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """What the model shall make of the key."""
        return ""

    @property
    def longest(self) -> str:
        """The longest text of the row that the model sees in one go, without the words of a template."""
        return self.key


@dataclass(frozen=True, slots=True)
class TextRow(Row):
    """A text to go on learning from. continues: it directly follows the row before, of the same document."""

    text: str
    continues: bool = False

    @property
    def key(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class LabelRow(Row):
    """A text and its labels: one, or in multi-label data any number. text_pair: the second text, as in inference."""

    text: str
    labels: tuple[str, ...]
    text_pair: str | None = None

    @property
    def key(self) -> str:
        return self.text if self.text_pair is None else f"{self.text}\n{self.text_pair}"

    @property
    def target(self) -> str:
        return "\n".join(self.labels)


@dataclass(frozen=True, slots=True)
class PairRow(Row):
    """A prompt and its completion: text and translation or summary, wrong and right, instruction and answer."""

    prompt: str
    completion: str

    @property
    def key(self) -> str:
        return self.prompt

    @property
    def target(self) -> str:
        return self.completion

    @property
    def longest(self) -> str:
        return f"{self.prompt}\n{self.completion}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class ChatRow(Row):
    """A conversation with at least one message of the assistant."""

    messages: tuple[Message, ...]

    @property
    def key(self) -> str:
        return _joined(self.messages[: self._opening])

    @property
    def target(self) -> str:
        return _joined(self.messages[self._opening :])

    @property
    def longest(self) -> str:
        return _joined(self.messages)

    @property
    def _opening(self) -> int:
        """How many messages come before the assistant's first answer; a greeting is none, unless nobody is answered."""
        said = [message.role for message in self.messages]
        asked = said.index("user") if "user" in said else 0
        return said.index("assistant", asked) if "assistant" in said[asked:] else said.index("assistant")


@dataclass(frozen=True, slots=True)
class AnswerRow(Row):
    """A question about a passage ("": without one). answers: (text, start), the start in characters of the passage.

    Answers with a place come first. A start of -1: given as an answer, and not in the passage word for word.
    No answers: the passage does not answer the question.
    """

    question: str
    passage: str
    answers: tuple[tuple[str, int], ...]
    id: str = ""
    title: str = ""

    @property
    def key(self) -> str:
        """The passage, where there is one: questions on one passage stay on one side of a split."""
        return self.passage or self.question

    @property
    def target(self) -> str:
        return "\n".join([self.question, *(text for text, _ in self.answers)])

    @property
    def longest(self) -> str:
        return "\n".join([self.passage, self.question, max((text for text, _ in self.answers), key=len, default="")])


@dataclass(frozen=True, slots=True)
class PreferenceRow(Row):
    """A conversation that ends with the user, and two answers to it.

    prompt: its text where the data holds a plain prompt and no conversation; `messages` is then that one
    message of the user.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    prompt: str | None = None

    @property
    def key(self) -> str:
        return _joined(self.messages)

    @property
    def target(self) -> str:
        return f"{self.chosen}\0{self.rejected}"

    @property
    def longest(self) -> str:
        return f"{self.key}\n{max(self.chosen, self.rejected, key=len)}"


@dataclass(frozen=True, slots=True)
class RankRow(Row):
    """Candidates of which `candidates[chosen]` is right for a query, or comes next after a history of texts."""

    query: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    chosen: int

    @property
    def key(self) -> str:
        return "\n".join([*self.history, *([self.query] if self.query else [])])

    @property
    def target(self) -> str:
        return "\0".join([self.candidates[self.chosen], *self.candidates])

    @property
    def longest(self) -> str:
        return f"{self.key}\n{max(self.candidates, key=len)}"


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in messages)


TASKS: Mapping[str, type[Row]] = MappingProxyType(
    {
        "write": TextRow,
        "continue": TextRow,
        "embed": TextRow,
        "classify": LabelRow,
        "translate": PairRow,
        "summarise": PairRow,
        "correct": PairRow,
        "edit": PairRow,
        "instruct": PairRow,
        "chat": ChatRow,
        "answer": AnswerRow,
        "prefer": PreferenceRow,
        "rank": RankRow,
    }
)
FAMILIES: Mapping[type[Row], str] = MappingProxyType(
    {
        TextRow: "texts",
        LabelRow: "labelled texts",
        PairRow: "pairs of prompt and completion",
        ChatRow: "conversations",
        AnswerRow: "questions with answers",
        PreferenceRow: "preferences",
        RankRow: "candidates to rank",
    }
)
