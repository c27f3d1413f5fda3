"""THE chat template: messages to the text, and the ids, that a tuned model reads. Serving and tuning both use it.

A template is Jinja as Hugging Face's tokenizers carry it, from the model folder's own files, and runs in a sandbox. It
sees `messages`, `add_generation_prompt`, `eos_token` and the like, `raise_exception` and `strftime_now`.

**Who may write special tokens.** The template alone. What stands in a message is ordinary text, whatever it looks like:
a user who types `<|endoftext|>` ends nothing. To tell the two apart after rendering, the first character of every
special token's name inside a message (also of one that a message only begins, at its end) is replaced by a stand-in, a
lone surrogate, which no text can hold. It is put back once the text has been cut at the special tokens.
"""

from __future__ import annotations

import datetime
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpt2kit import commit
from gpt2kit.errors import UserError, missing_extra
from gpt2kit.text.bytelevel import utf8
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.words import END_OF_TEXT

Message = Mapping[str, str]  # role, content

ROLES = ("system", "user", "assistant")
FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
LARGEST_TEMPLATE = 1 << 18  # characters
LARGEST_TEXT = 1 << 22  # characters of a rendered conversation
STAND_INS = range(0xD800, 0xE000)

# A turn is the role's name on a line of its own, the text, and the end-of-text token, which nobody else can write.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
    {{- message.role + "\\n" + message.content | trim + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "assistant\\n" -}}
{%- endif -%}
"""


class ChatTemplate:
    """A model's way to write a conversation. UserError for a template that cannot be read, or fails."""

    def __init__(self, source: str = DEFAULT_TEMPLATE, special: Mapping[str, str] | None = None) -> None:
        """`special`: the template's names of special tokens; eos_token is <|endoftext|> unless it says otherwise."""
        self.source = source
        self.special = {"eos_token": END_OF_TEXT, **(special or {})}
        self._template = _compile(source)

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate | None:
        """The model folder's template: chat_template.jinja, or else tokenizer_config.json's; None where it has none."""
        folder = Path(folder)
        names = [name for name in (FILE, CONFIG) if (folder / name).exists()]
        files = {name: commit.inside(folder, name) for name in names}
        commit.verify(folder, names)
        config = commit.read_json(files[CONFIG]) if CONFIG in files else {}
        if not isinstance(config, dict):
            raise UserError(f"{files[CONFIG]} holds no JSON object")
        source = _read(files[FILE]) if FILE in files else _configured(config.get("chat_template"))
        if source is None:
            return None
        special = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
        return cls(source, {name: text for name, text in special.items() if text is not None})

    def save(self, folder: str | Path) -> None:
        """Write chat_template.jinja into `folder`."""
        (Path(folder) / FILE).write_bytes(self.source.encode())

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text; with add_generation_prompt it ends where the assistant's answer begins."""
        _check(messages)
        return self._render(messages, add_generation_prompt)

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """The conversation as ids: special tokens are those that the template wrote, and no others."""
        _check(messages)
        cover = _Cover(tokenizer.special_tokens)
        hidden = [
            {name: text if name == "role" else cover.hide(text) for name, text in message.items()}
            for message in messages
        ]
        ids: list[int] = []
        for part in cover.split(self._render(hidden, add_generation_prompt)):
            special = tokenizer.special_tokens.get(part)
            ids += tokenizer.encode(cover.show(part)) if special is None else [special]
        return ids

    def truncate(self, tokenizer: Tokenizer, messages: Sequence[Message], room: int) -> Truncated:
        """Drop the oldest turns until the rest is at most `room` tokens; system messages and the last turn stay.

        A turn is a user's message and what follows it. Raises UserError where even those are too long.
        """
        turns = _turns(messages)

        def rest(dropped: int) -> list[Message]:
            gone = {index for turn in turns[:dropped] for index in turn}
            return [message for index, message in enumerate(messages) if index not in gone]

        def length(dropped: int) -> int:
            return len(self.encode(tokenizer, rest(dropped)))

        most = max(len(turns) - 1, 0)
        dropped = bisect_left(range(most), True, key=lambda count: length(count) <= room)
        kept = rest(dropped)
        tokens = len(self.encode(tokenizer, kept))
        if tokens > room:
            raise UserError(
                f"the system message and the last turn are {tokens} tokens, there is room for {room}",
                hint="shorten them, or ask for fewer new tokens",
            )
        return Truncated(kept, len(messages) - len(kept), tokens)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        values = {**self.special, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(**values):
                size += len(part)
                if size > LARGEST_TEXT:
                    raise UserError(f"the conversation is more than {LARGEST_TEXT:,} characters long")
                parts.append(part)
        except UserError:
            raise
        except Exception as error:  # whatever a template's expressions can raise
            raise UserError(f"the model's chat template refuses these messages: {error}") from None
        return "".join(parts)


@dataclass(frozen=True)
class Truncated:
    """A conversation that fits."""

    messages: list[Message]
    dropped: int  # messages that were left out
    tokens: int  # of what is left, as `encode` gives them


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of the messages, without system ones, by turns; each but perhaps the first begins with the user."""
    turns: list[list[int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(index)
    return turns


def _check(messages: Sequence[Message]) -> None:
    for message in messages:
        if message.get("role") not in ROLES or "content" not in message:
            raise UserError(f"a message must have content, and one of these roles: {', '.join(ROLES)}")
        for text in message.values():
            if not isinstance(text, str):
                raise UserError(f"a message's role and content are text, got {type(text).__name__}")
            utf8(text)


class _Cover:
    """Hides the names of special tokens in messages from what cuts the rendered text."""

    def __init__(self, names: Iterable[str]) -> None:
        longest_first = sorted(filter(None, names), key=lambda name: (-len(name), name))
        firsts = sorted({name[0] for name in longest_first})
        if len(firsts) > len(STAND_INS):
            raise UserError(f"the special tokens begin with more than {len(STAND_INS)} different characters")
        self._stand_ins = {first: chr(code) for first, code in zip(firsts, STAND_INS, strict=False)}
        self._firsts = str.maketrans({stand_in: first for first, stand_in in self._stand_ins.items()})
        whole = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._names = re.compile(f"({whole})")
        # At its end a message may begin a name that the next one goes on with; a template may trim blanks between.
        begun = {name[:size] for name in longest_first for size in range(1, len(name))}
        ends = "|".join(map(re.escape, sorted(begun))) or "(?!)"
        first = f"[{re.escape(''.join(firsts))}]" if firsts else "(?!)"
        self._hidden = re.compile(rf"(?={whole}|(?:{ends})\s*\Z){first}")

    def hide(self, text: str) -> str:
        return self._hidden.sub(lambda found: self._stand_ins[found[0]], text)

    def show(self, text: str) -> str:
        return text.translate(self._firsts)

    def split(self, text: str) -> list[str]:
        """The text cut at the names that nobody hid: these, and what is between them."""
        return [part for part in self._names.split(text) if part]


def _compile(source: str) -> Any:
    try:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise missing_extra("jinja2", "serve", "a chat template") from None
    if len(source) > LARGEST_TEMPLATE:
        raise UserError(f"the chat template has {len(source):,} characters, more than {LARGEST_TEMPLATE:,}")
    # These options are Hugging Face's: their templates are written for them.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise UserError(f"the chat template is not Jinja: {error}") from None


def _refuse(message: str) -> NoReturn:
    raise UserError(f"the model's chat template refuses these messages: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text") from None


def _configured(value: Any) -> str | None:
    """tokenizer_config.json's "chat_template": a template, or a list of named ones, of which "default" counts."""
    if isinstance(value, list):
        named = (one for one in value if isinstance(one, dict) and one.get("name") == "default")
        value = next(named, {}).get("template")
    return value if isinstance(value, str) else None


def _content(value: Any) -> str | None:
    """A special token's text, alone or as an AddedToken's fields."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
