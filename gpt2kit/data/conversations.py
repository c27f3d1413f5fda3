"""The shapes of pairs, conversations and preferences: prompt and completion, Alpaca, messages, ShareGPT, DPO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from gpt2kit.data import fields
from gpt2kit.data.families import ChatRow, Message, PairRow, PreferenceRow, Role, Row, Where
from gpt2kit.data.fields import Head
from gpt2kit.data.values import Convert, RowError, Wanted, clean, optional_text, text_of

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
_ROLE_FIELDS = ("role", "from")
_CONTENT_FIELDS = ("content", "value", "text")
_Pair = Callable[[dict[str, Any]], tuple[str, str]]
_SHARE_GPT = "ShareGPT conversations"
_CHAT = "messages"


def pairs(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    """PairRow from Alpaca's fields, a prompt and a completion, or conversations of one question and one answer."""
    counts, split = wanted.counts, wanted.split
    if not head.columns and not head.has(("completion",)) and head.has(fields.MESSAGES, fields.is_messages):
        sentence, field = _messages_field(head)

        def from_messages(record: dict[str, Any], where: Where) -> Row:
            turns = messages_of(record.get(field), field, counts)
            roles = [message.role for message in turns]
            if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
                raise RowError(field, "shape", f"{len(turns)} messages are not one prompt and its completion",
                          "such data is for the task chat")  # fmt: skip
            prompt = "\n\n".join(message.content for message in turns[:-1])
            return PairRow(prompt, turns[-1].content, where=where, split=split)

        return f"{sentence}, each one prompt and its completion", from_messages
    sentence, build = _prompt_and_completion(head, counts)

    def from_fields(record: dict[str, Any], where: Where) -> Row:
        prompt, completion = build(record)
        return PairRow(prompt, completion, where=where, split=split)

    return sentence, from_fields


def chats(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    """ChatRow from messages, ShareGPT, Alpaca (with `system` and `history`), or a prompt and a completion."""
    counts, split = wanted.counts, wanted.split
    named = {"prompt", "completion"} & head.columns.keys()
    if "messages" in head.columns or (not named and head.has(fields.MESSAGES, fields.is_messages)):
        sentence, field = _messages_field(head)
        before = head.find("system", fields.SYSTEM)

        def from_messages(record: dict[str, Any], where: Where) -> Row:
            turns = messages_of(record.get(field), field, counts)
            system = optional_text(record, before, counts)
            if system and turns[0].role != "system":
                turns = (Message("system", system), *turns)
            if not any(message.role == "assistant" for message in turns):
                raise RowError(field, "role", "has no message of the assistant: there is nothing to learn from it",
                          "add the answer or remove the row")  # fmt: skip
            return ChatRow(turns, where=where, split=split)

        return sentence, from_messages
    before, past = head.find("system", fields.SYSTEM), head.find("history", fields.HISTORY, lambda v: True)
    sentence, build = _prompt_and_completion(head, counts)

    def from_fields(record: dict[str, Any], where: Where) -> Row:
        prompt, completion = build(record)
        system = optional_text(record, before, counts)
        first = (Message("system", system),) if system and not system.isspace() else ()
        turns = history_of(record.get(past), past, counts) if past is not None else ()
        last = (Message("user", prompt), Message("assistant", completion))
        return ChatRow((*first, *turns, *last), where=where, split=split)

    return sentence, from_fields


def preferences(head: Head, wanted: Wanted) -> tuple[str, Convert]:
    """PreferenceRow from a prompt or a conversation with a chosen and a rejected answer (strings or messages)."""
    counts, split = wanted.counts, wanted.split
    chosen = head.find("chosen", fields.CHOSEN, bool)
    rejected = head.find("rejected", fields.REJECTED, bool)
    if chosen is None or rejected is None:
        role = "chosen" if chosen is None else "rejected"
        raise head.unclear(role, f"{role} answer")
    field, prompt, extra = None, None, None
    said = "the conversation that both answers begin with"
    if "prompt" not in head.columns:
        field = head.find("messages", (*fields.MESSAGES, "prompt"), _waits)
    if field is None:
        prompt = head.find("prompt", ("prompt", *fields.INSTRUCTION, *fields.QUESTION, *fields.INPUT))
        extra = head.find("input", fields.INPUT) if prompt in fields.INSTRUCTION else None
    if field is not None or prompt is not None:
        said = head.said("conversation" if field is not None else "prompt", str(field or prompt))

    def build(record: dict[str, Any], where: Where) -> Row:
        text = None if prompt is None else with_input(text_of(record, prompt, counts), record, extra, counts)
        before: tuple[Message, ...] = () if text is None else (Message("user", text),)
        if field is not None:
            before = messages_of(record.get(field), field, counts)
        begin, better = _answer(record, chosen, counts)
        begin_too, worse = _answer(record, rejected, counts)
        if not before and begin and begin == begin_too:
            before = begin
        elif begin not in ((), before) or begin_too not in ((), before):
            raise RowError(chosen, "shape", "the two answers follow different conversations", "give both the same one")
        if not before or before[-1].role != "user":
            reason = "the conversation before the answers does not end with the user"
            raise RowError(str(field or chosen), "role", reason, "end it with the user's message")
        if better == worse:
            raise RowError(rejected, "label", "is the same text as the chosen answer", "remove the row")
        return PreferenceRow(before, better, worse, text, where=where, split=split)

    return f"{said}, {head.said('chosen', chosen)}, {head.said('rejected', rejected)}", build


# Parts of these shapes


def _waits(value: Any) -> bool:
    """Whether messages wait for an answer: their last one is not the assistant's."""
    return fields.is_messages(value) and _role(value[-1]) not in (None, "assistant")


def _role(message: Any) -> Role | None:
    given = next((message[name] for name in _ROLE_FIELDS if name in message), None) if isinstance(message, dict) else ""
    return _ROLES.get(given.lower()) if isinstance(given, str) else None


def _messages_field(head: Head) -> tuple[str, str]:
    field = head.find("messages", fields.MESSAGES, fields.is_messages)
    if field is None:
        raise head.unclear("messages", "messages")
    first: dict[str, Any] = next((value[0] for value in head.values(field) if fields.is_messages(value)), {})
    return head.said(_SHARE_GPT if "from" in first else _CHAT, field), field


def _prompt_and_completion(head: Head, counts: Counter[str]) -> tuple[str, _Pair]:
    """(sentence, record -> (prompt, completion)); Alpaca's input joins the instruction after a blank line."""
    named = {"prompt", "completion"} & head.columns.keys()
    extra: str | None = None
    if not named and head.has(fields.INSTRUCTION) and head.has(fields.OUTPUT):
        prompt = head.need("prompt", "instruction", fields.INSTRUCTION)
        extra = head.find("input", fields.INPUT)
        completion = head.need("completion", "output", fields.OUTPUT)
        sentence = f"Alpaca's shape: {head.said('prompt', prompt)}"
        sentence += f" and {extra!r}" if extra is not None else ""
    else:
        prompt, completion = _two_texts(head)
        sentence = head.said("prompt", prompt)

    def build(record: dict[str, Any]) -> tuple[str, str]:
        text = with_input(text_of(record, prompt, counts), record, extra, counts)
        return text, text_of(record, completion, counts)

    return f"{sentence}, {head.said('completion', completion)}", build


def _two_texts(head: Head) -> tuple[str, str]:
    """By the names given or usual; else two languages; else the first two columns of text."""
    languages = [field for field in head.fields if field.lower() in fields.LANGUAGES]
    if not head.columns and len(languages) == 2:
        return head.take("prompt", languages[0]), head.take("completion", languages[1])
    completion = head.find("completion", fields.COMPLETION)
    prompt = head.find("prompt", fields.PROMPT)
    texts = head.texts()
    if prompt is None and completion is None and (len(texts) == 2 or (head.numbered and len(texts) == 3)):
        head.guessed |= {"prompt", "completion"}
        return head.take("prompt", texts[0]), head.take("completion", texts[1])
    for role, what in (("prompt", prompt), ("completion", completion)):
        if what is None and len(texts) == 1:
            head.guessed.add(role)
            what = head.take(role, texts[0])
        if what is None:
            raise head.unclear(role, role)
        prompt, completion = (what, completion) if role == "prompt" else (prompt, what)
    assert prompt is not None
    assert completion is not None
    return prompt, completion


def with_input(text: str, record: dict[str, Any], extra: str | None, counts: Counter[str]) -> str:
    more = optional_text(record, extra, counts)
    return f"{text}\n\n{more}" if more and not more.isspace() else text


def messages_of(value: Any, field: str, counts: Counter[str]) -> tuple[Message, ...]:
    """Messages of {"role", "content"} or ShareGPT's {"from", "value"}; RowError for any that cannot be read."""
    if not isinstance(value, list) or not value:
        raise RowError(field, "missing" if value is None else "type", "holds no list of messages", "write it as a list")
    turns = []
    for number, item in enumerate(value):
        place = f"{field}[{number}]"
        if not isinstance(item, dict):
            raise RowError(place, "type", f"holds a {type(item).__name__}, not a message",
                      'write {"role": "user", "content": "..."}')  # fmt: skip
        turns.append(_message(item, place, counts))
        if turns[-1].role == "system" and number:
            raise RowError(place, "role", "the system's message is not the first", "put it first")
    return tuple(turns)


def _message(item: dict[str, Any], place: str, counts: Counter[str]) -> Message:
    role = _role(item)
    if role is None:
        given = next((item[name] for name in _ROLE_FIELDS if name in item), None)
        what = f"{given[:40]!r} is no role that is known" if isinstance(given, str) else "has no role"
        raise RowError(f"{place}.role", "role", what, "roles: system, user, assistant (ShareGPT: system, human, gpt)")
    name = next((name for name in _CONTENT_FIELDS if name in item), "content")
    content = item.get(name)
    if isinstance(content, list) and fields.is_messages(content):  # OpenAI's list of parts
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(f"{place}.{name}", "type", "holds parts that are not text", "keep the text only")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        kind = "missing" if content is None else "type"
        raise RowError(f"{place}.{name}", kind, "holds no text", "write it as a string")
    if not content or content.isspace():
        raise RowError(f"{place}.{name}", "empty", "the message is empty", "complete it or remove the row")
    return Message(role, clean(content, counts))


def history_of(value: Any, field: str, counts: Counter[str]) -> tuple[Message, ...]:
    """[[question, answer], ...] as messages."""
    if value is None or value == "" or value == []:
        return ()
    turns: list[Message] = []
    for number, pair in enumerate(value if isinstance(value, list) else [value]):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair)):
            raise RowError(f"{field}[{number}]", "type", "is no question with its answer", "correct it")
        turns += [Message("user", clean(pair[0], counts)), Message("assistant", clean(pair[1], counts))]
    return tuple(turns)


def _answer(record: dict[str, Any], field: str, counts: Counter[str]) -> tuple[tuple[Message, ...], str]:
    """(the messages before it, the answer): from a string, a message or a conversation that ends with it."""
    value = record.get(field)
    if isinstance(value, dict):
        value = [value]
    if not fields.is_messages(value):
        return (), text_of(record, field, counts)
    turns = messages_of(value, field, counts)
    if turns[-1].role != "assistant":
        raise RowError(field, "role", "does not end with the assistant's message", "end it with the answer")
    return turns[:-1], turns[-1].content
