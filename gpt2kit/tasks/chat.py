"""Conversations: system, user and assistant, written by the model folder's chat template, the default one otherwise.

The loss falls on what the assistant says, each turn with the token that ends it. A conversation longer than the context
loses its oldest turns, in tuning as in answering; how many conversations were cut, or how many turns, is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gpt2kit.data.families import ChatRow, Message
from gpt2kit.data.families import Row as Example
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.task import GIVEN, Answer, Encoded, completions, end_of_text, generate
from gpt2kit.text.chat import DEFAULT_TEMPLATE, ChatTemplate
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Completions

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class OpenChat(ChatRow):
    """A conversation that waits for an answer: it is asked as it stands, whatever was answered before."""

    @property
    def key(self) -> str:
        return "\n".join(message.content for message in self.messages)


@dataclass(frozen=True)
class Chat:
    template: str = DEFAULT_TEMPLATE
    max_tokens: int = MAX_TOKENS
    name: str = "chat"

    def values(self) -> dict[str, Any]:
        return {"name": self.name, "template": self.template, "max_tokens": self.max_tokens}

    @property
    def chat_template(self) -> ChatTemplate:
        return ChatTemplate(self.template)

    def model_config(self, base: GPT2Config) -> GPT2Config:
        return base

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, context: int) -> Encoded:
        """One row for each thing that the assistant says, with what went before as its prompt.

        The prompt gets what the reply leaves of the context, at least half of it.
        """
        tokenizer, eos = end_of_text(tokenizer)
        template, pairs, cut = self.chat_template, [], 0
        for example in examples:
            messages = _plain(cast(ChatRow, example).messages)
            for turn, message in enumerate(messages):
                if message["role"] == "assistant":
                    reply = tokenizer.encode(message["content"].strip())
                    room = max(context - len(reply), context // 2)
                    prompt, dropped = _prompt(template, tokenizer, messages[:turn], room)
                    cut += dropped > 0 and len(prompt) + len(reply) <= context  # what is longer is counted below
                    pairs.append((prompt, reply))
        encoded = completions(pairs, eos, context)
        return Encoded(encoded.rows, encoded.cut + cut, encoded.left_out)

    def objective(self, smoothing: float = 0.0) -> Completions:
        from gpt2kit.training.rows import Completions

        return Completions(smoothing)

    def example(self, text: str) -> OpenChat:
        return OpenChat((Message("user", text),), where=GIVEN)

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """What the assistant says next: where a conversation has answers already, to the last turn that has one."""
        tokenizer, _ = end_of_text(engine.tokenizer)
        template, prompts, dropped = self.chat_template, [], []
        room = engine.config.n_positions - min(self.max_tokens, engine.config.n_positions // 2)
        for example in examples:
            prompt, count = _prompt(template, tokenizer, _plain(_asked(cast(ChatRow, example))), room)
            prompts.append(prompt)
            dropped.append(count)
        answers = generate(engine, prompts, self.max_tokens)
        for one, count in zip(answers, dropped, strict=True):
            one.details["dropped_messages"] = count
            one.details["cut"] |= count > 0
        return answers

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        from gpt2kit.scores.written import written

        rows = [cast(ChatRow, example) for example in examples]
        gold = [reply_wanted(row) for row in rows]
        return written(gold, [answer.text for answer in answers], inputs=[row.key for row in rows])


def reply_wanted(row: ChatRow) -> str:
    """What the assistant says to the turn that is asked; "" where the conversation does not tell."""
    asked = len(_asked(row))
    return row.messages[asked].content if asked < len(row.messages) else ""


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _asked(row: ChatRow) -> tuple[Message, ...]:
    """The conversation up to the last turn of the user that has an answer; where none has, up to the last one.

    All of one that is open.
    """
    if isinstance(row, OpenChat):
        return row.messages
    roles = [message.role for message in row.messages]
    users = [n for n, role in enumerate(roles) if role == "user"]
    answered = [n for n in users if roles[n + 1 : n + 2] == ["assistant"]]
    return row.messages[: (answered or users or [len(roles) - 1])[-1] + 1]


def _prompt(
    template: ChatTemplate, tokenizer: Tokenizer, messages: list[dict[str, str]], room: int
) -> tuple[list[int], int]:
    """The conversation's ids and how many turns it lost for want of room.

    A last turn that does not fit with the system message is left whole: whoever gets the ids cuts their beginning.
    """
    ids = template.encode(tokenizer, messages)
    if len(ids) <= room:
        return ids, 0
    try:
        kept = template.truncate(tokenizer, messages, room)
    except UserError:
        return template.encode(tokenizer, messages[-1:]), len(messages) - 1
    return template.encode(tokenizer, kept.messages), kept.dropped
