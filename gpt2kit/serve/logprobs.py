"""Tokens as clients see them: their names, the characters they have a part in, their log-probabilities in both forms.

`text_offset` counts characters from the beginning of the prompt, with or without echo; a token that begins inside a
character has that character's. An entry of `top_logprobs` holds the token itself besides the likeliest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from typing_extensions import TypedDict  # pydantic cannot read typing's own before Python 3.12

from gpt2kit.model.sampling import Choice
from gpt2kit.text.tokenizer import Tokenizer

LOWEST = -9999.0  # stands for minus infinity, which JSON has not


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Alternative(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(TypedDict):
    content: list[ChatToken]
    refusal: None


class TokenReader:
    """Tokens one after another: the bytes that each adds to the text, and the characters that it has a part in."""

    def __init__(self, tokenizer: Tokenizer | None, start: int = 0) -> None:
        """`start`: characters before the first token."""
        self.characters = start  # so far, without one that is incomplete
        self._tokenizer = tokenizer
        self._names = {} if tokenizer is None else {token: name for name, token in tokenizer.special_tokens.items()}
        self._previous: list[int] = []  # the last token that added to the text: WordPiece's spaces depend on it
        self._pending = b""  # of the incomplete character

    def data(self, token: int) -> bytes:
        """What `token` would add here."""
        if self._tokenizer is None:
            return b""
        before = len(self._tokenizer.decode_bytes(self._previous))
        return self._tokenizer.decode_bytes([*self._previous, token])[before:]

    def name(self, token: int, prefix: str = "") -> str:
        """`token` as text; not whole UTF-8: `prefix` and its bytes, \\xe4\\xbd."""
        data = self.data(token)
        if not data:
            return self._names.get(token, f"token_id:{token}")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return prefix + "".join(f"\\x{byte:02x}" for byte in data)

    def push(self, token: int) -> tuple[int, int]:
        """Read one: from which to before which character it reaches."""
        data = self.data(token)
        if not data:
            return self.characters, self.characters
        self._previous = [token]
        begins, is_whole = character_starts(self._pending + data)
        start = self.characters + bisect_right(begins, len(self._pending)) - 1
        end = self.characters + len(begins)
        self.characters = end if is_whole else end - 1
        self._pending = b"" if is_whole else (self._pending + data)[begins[-1] :]
        return start, end


def character_starts(data: bytes) -> tuple[list[int], bool]:
    """At which bytes the characters begin, as decoding with U+FFFD makes them, and whether the last one is whole."""
    begins: list[int] = []
    done = 0
    while True:
        try:
            data[done:].decode()
            error = None
        except UnicodeDecodeError as found:
            error = found
        valid = len(data) if error is None else done + error.start
        begins += (at for at in range(done, valid) if data[at] & 0xC0 != 0x80)
        if error is None:
            return begins, True
        begins.append(valid)
        if error.reason == "unexpected end of data":
            return begins, False
        done += error.end


def logprob_of(choice: Choice) -> float:
    assert choice.logprob is not None, "the engine was not asked for log-probabilities"
    return max(choice.logprob, LOWEST)


def completion_logprobs(
    reader: TokenReader, tokens: Iterable[int], choices: Iterable[Choice | None]
) -> CompletionLogprobs:
    """The columns of /v1/completions; the first token of a text has no choice, hence null."""
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token, choice in zip(tokens, choices, strict=True):
        name = reader.name(token, "bytes:")
        found["tokens"].append(name)
        if choice is None:
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
        else:
            top: dict[str, float] = {}
            for other, logprob in choice.alternatives or ():
                top.setdefault(reader.name(other, "bytes:"), max(logprob, LOWEST))  # the likeliest of equal names
            top.setdefault(name, logprob_of(choice))
            found["token_logprobs"].append(logprob_of(choice))
            found["top_logprobs"].append(top)
        found["text_offset"].append(reader.push(token)[0])
    return found


def chat_logprobs(reader: TokenReader, choices: Iterable[Choice]) -> ChatLogprobs:
    """The objects of /v1/chat/completions; each token carries its bytes."""
    content = []
    for choice in choices:
        top = [_alternative(reader, token, max(logprob, LOWEST)) for token, logprob in choice.alternatives or ()]
        own = _alternative(reader, choice.token, logprob_of(choice))
        content.append(ChatToken(**own, top_logprobs=top))
        reader.push(choice.token)
    return ChatLogprobs(content=content, refusal=None)


def _alternative(reader: TokenReader, token: int, logprob: float) -> Alternative:
    return Alternative(token=reader.name(token), logprob=logprob, bytes=list(reader.data(token)))
