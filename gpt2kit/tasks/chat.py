"""Conversations: system, user and assistant, written by the model folder's chat template, the default one otherwise.

The loss falls on what the assistant says, each turn with the token that ends it. A conversation longer than the context
loses its oldest turns; how many is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gpt2kit.data.families import ChatRow, Message, Where
from gpt2kit.data.families import Row as Example
from gpt2kit.model.config import GPT2Config
from gpt2kit.tasks.task import Answer, Encoded, completions, end_of_text, generate
from gpt2kit.text.chat import DEFAULT_TEMPLATE, ChatTemplate
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.scores.result import Scores
    from gpt2kit.training.rows import Completions

MAX_TOKENS = 256


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
        """One row for each thing that the assistant says, with what went before as its prompt."""
        tokenizer, eos = end_of_text(tokenizer)
        pairs = []
        for example in examples:
            messages = _plain(cast(ChatRow, example).messages)
            for turn, message in enumerate(messages):
                if message["role"] == "assistant":
                    prompt = self.chat_template.encode(tokenizer, messages[:turn])
                    pairs.append((prompt, tokenizer.encode(message["content"].strip())))
        return completions(pairs, eos, context)

    def objective(self, smoothing: float = 0.0) -> Completions:
        from gpt2kit.training.rows import Completions

        return Completions(smoothing)

    def example(self, text: str) -> ChatRow:
        return ChatRow((Message("user", text),), where=Where("the text given"))

    def answer(self, engine: Engine, examples: Sequence[Example]) -> list[Answer]:
        """What the assistant says next: to the last user's turn, where a conversation has answers already."""
        tokenizer, _ = end_of_text(engine.tokenizer)
        template, prompts, dropped = self.chat_template, [], []
        room = engine.config.n_positions - min(self.max_tokens, engine.config.n_positions // 2)
        for example in examples:
            kept = template.truncate(tokenizer, _plain(_asked(cast(ChatRow, example))), room)
            prompts.append(template.encode(tokenizer, kept.messages))
            dropped.append(kept.dropped)
        answers = generate(engine, prompts, self.max_tokens)
        for one, count in zip(answers, dropped, strict=True):
            one.details["dropped_messages"] = count
        return answers

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Scores:
        from gpt2kit.scores.generation import generation

        rows = [cast(ChatRow, example) for example in examples]
        gold = [row.messages[len(_asked(row))].content if len(_asked(row)) < len(row.messages) else "" for row in rows]
        return generation(gold, [answer.text for answer in answers], inputs=[row.key for row in rows])


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _asked(row: ChatRow) -> tuple[Message, ...]:
    """The conversation up to the last turn of the user."""
    last = max((n for n, message in enumerate(row.messages) if message.role == "user"), default=len(row.messages) - 1)
    return row.messages[: last + 1]
