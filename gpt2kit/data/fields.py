"""Which field of a record plays which role: by the name given, by a usual name, or by what the column holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from gpt2kit.data import rows
from gpt2kit.data.families import Where
from gpt2kit.errors import UserError, closest

SHORT = 40  # characters: a longer value is no label
_LISTED = 6  # fields named in a sentence

# The usual names of each role, the likeliest first, in lower case.
TEXT = (*rows.TEXT_FIELDS, "premise", "sentence1", "text_a", "question1", "comment", "comment_text", "tweet",
        "post", "email", "sms", "utterance", "description", "headline", "title", "query", "评论", "评价", "评论内容",
        "评价内容", "句子", "标题")  # fmt: skip
TEXT_PAIR = ("text_pair", "hypothesis", "sentence2", "text_b", "question2", "text2")
LABEL = ("label_text", "label_name", "label", "labels", "class", "classes", "category", "categories", "topic", "topics",
         "sentiment", "intent", "emotion", "polarity", "target", "tag", "tags", "rating", "stars", "score",
         "标签", "标注", "类别", "分类", "类型", "情感", "情感倾向", "主题")  # fmt: skip
PROMPT_ALONE = ("prompt", "source", "src", "input", "instruction", "question", "query", "original", "wrong",
                "incorrect", "source_text", "input_text", "article", "问题", "指令", "提示", "原文", "源文", "输入",
                "原句", "错误", "病句")  # fmt: skip
PROMPT = (*PROMPT_ALONE, "document", "dialogue", "text", "content", "sentence", "正文")
COMPLETION = ("completion", "response", "output", "target", "tgt", "answer", "summary", "highlights", "abstract",
              "corrected", "correction", "correct", "right", "reply", "translation", "target_text", "output_text",
              "headline", "title", "答案", "回答", "回复", "译文", "目标", "参考", "输出", "摘要", "标题",
              "改正", "正确", "纠正", "修改后")  # fmt: skip
INSTRUCTION = ("instruction",)
INPUT = ("input", "context")
OUTPUT = ("output", "response", "completion", "answer")
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
SYSTEM = ("system", "system_prompt")
QUESTION = ("question", "query", "query_text", "question_text", "问题")
PASSAGE = ("passage", "context", "context_text", "paragraph", "paragraph_text", "document", "article", "text",
           "content", "文章", "正文")  # fmt: skip
ANSWERS = ("answers", "answer", "answer_text", "output", "答案")
ANSWER_START = ("answer_start", "start")
IDENTITY = ("id", "query_id", "qid", "question_id", "guid")
TITLE = ("title", "标题")
CHOSEN = ("chosen", "preferred", "better", "winner", "response_j")
REJECTED = ("rejected", "dispreferred", "worse", "loser", "response_k")
HISTORY = ("history", "read", "clicked")
CANDIDATES = ("candidates", "choices", "options", "endings", "passages")
RIGHT = ("chosen", "answer", "label", "correct", "answerkey", "gold", "target")
POSITIVE = ("positive", "positives", "pos")
NEGATIVES = ("negatives", "negative", "neg", "hard_negatives")
LANGUAGES = frozenset((
    "en", "zh", "de", "fr", "es", "it", "pt", "ru", "ja", "ko", "eng", "cmn", "zho", "deu", "fra", "spa", "ita", "por",
    "rus", "jpn", "kor", "english", "chinese", "german", "french", "spanish", "japanese",
    "英文", "中文", "英语", "汉语",
))  # fmt: skip
# What makes the first line of a table a line of names
NAMES = LANGUAGES | {
    name
    for role in (TEXT, TEXT_PAIR, LABEL, PROMPT, COMPLETION, QUESTION, PASSAGE, ANSWERS, IDENTITY, CHOSEN, REJECTED,
                 CANDIDATES, ("idx", "index"))
    for name in role
}  # fmt: skip

Test = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """A string, or what stands for one: a list of strings (its lines), a number."""
    return isinstance(value, (str, int, float)) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def is_label(value: Any) -> bool:
    return isinstance(value, (str, int, float, list))


def is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


class Head:
    """The first records of a file, and which of its fields are taken by a role."""

    def __init__(self, records: Sequence[dict[str, Any]], where: Where, columns: Mapping[str, str],
                 numbered: bool = False) -> None:  # fmt: skip
        self.records = records
        self.where = where
        self.columns = columns
        self.numbered = numbered
        self.fields = list(dict.fromkeys(field for record in records for field in record))
        self.guessed: set[str] = set()  # roles that were decided by what the columns hold
        self.taken: dict[str, str] = {}  # field -> role
        self._lower = {field.lower(): field for field in reversed(self.fields)}

    def values(self, field: str) -> list[Any]:
        """What the field holds, without null."""
        return [value for record in self.records if (value := record.get(field)) is not None]

    def find(self, role: str, usual: Sequence[str], test: Test = is_text) -> str | None:
        """The field of a role by the name that the user gave, else by a usual name; it is then taken."""
        field = self.columns.get(role)
        if field is not None:
            if field not in self.fields:
                near = closest(field, self.fields)
                hint = f"--columns {role}={near if near is not None else 'NAME'}"
                raise UserError(f"{self.where}: no field {field!r}; it has: {self.names()}", hint=hint)
            return self.take(role, field)
        for name in usual:
            field = self._lower.get(name)
            if field is not None and field not in self.taken and self._passes(field, test):
                return self.take(role, field)
        return None

    def take(self, role: str, field: str) -> str:
        self.taken[field] = role
        return field

    def has(self, usual: Sequence[str], test: Test = is_text) -> bool:
        """Whether a field of a usual name is there, taken or not."""
        return any(name in self._lower and self._passes(self._lower[name], test) for name in usual)

    def _passes(self, field: str, test: Test) -> bool:
        values = self.values(field)
        return any(map(test, values)) or not values

    def need(self, role: str, what: str, usual: Sequence[str], guess: Callable[[], str | None] = lambda: None) -> str:
        """As `find`, and where it finds nothing by `guess`; UserError where that does not either."""
        field = self.find(role, usual)
        if field is None:
            field = guess()
            if field is None:
                raise self.unclear(role, what)
            self.guessed.add(role)
            self.take(role, field)
        return field

    def unclear(self, role: str, what: str) -> UserError:
        return UserError(
            f"{self.where}: it is not clear which field holds the {what}; it has: {self.names()}",
            hint=f"name it: --columns {role}=NAME (in a table without a line of names its number, from 1)",
        )

    def names(self) -> str:
        return rows._names(dict.fromkeys(self.fields)).encode("utf-8", "replace").decode()

    # By what the columns hold

    def texts(self) -> list[str]:
        """Fields that are not taken and hold mostly strings that are not numbers."""
        return [field for field in self.fields if field not in self.taken and self._wordy(field)]

    def _wordy(self, field: str) -> bool:
        values = self.values(field)
        words = sum(isinstance(v, str) and not rows._is_number(v) for v in values)
        return bool(values) and 2 * words > len(values)

    def length(self, field: str) -> float:
        """Mean length of a field's values in characters."""
        values = self.values(field)
        return sum(len(str(value)) for value in values) / len(values) if values else 0.0

    def longest_text(self) -> str | None:
        return max(self.texts(), key=self.length, default=None)

    def likely_label(self) -> str | None:
        """The field with the fewest different short values, if they come again and again; of two such the later."""
        best: tuple[float, str] | None = None
        longest = self.longest_text()
        for field in reversed(self.fields):
            values = [value for value in self.values(field) if is_label(value)]
            if field in self.taken or field == longest or not values:
                continue
            different = len({str(value) for value in values})
            if self.length(field) > SHORT or (len(values) > 5 and different > len(values) / 2):
                continue
            if best is None or different < best[0]:
                best = different, field
        return None if best is None else best[1]

    def said(self, role: str, field: str) -> str:
        """`label from 'stars'`"""
        return f"{role} from {field!r}" if not self.numbered else f"{role} from column {field}"

    def rest(self) -> str:
        """`; not used: 'id', 'date'`"""
        left = [field for field in self.fields if field not in self.taken]
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        shown = ", ".join(field if self.numbered else repr(field[:40]) for field in left[:_LISTED])
        columns = "column " if self.numbered and len(left) == 1 else "columns " if self.numbered else ""
        return f"; not used: {columns}{shown}{more}" if left else ""


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def unknown_columns(columns: Mapping[str, str], roles: Collection[str]) -> UserError | None:
    """The error for a role that the family has not."""
    wrong = next((role for role in columns if role not in roles), None)
    if wrong is None:
        return None
    near = closest(wrong, roles)
    mean = "" if near is None else f"; did you mean {near!r}?"
    return UserError(f"unknown role {wrong!r} in columns{mean}", hint=f"roles of this task: {', '.join(roles)}")
