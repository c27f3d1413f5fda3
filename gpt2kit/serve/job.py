"""Completions on their way: prompts to ids to requests for the engine, and what comes of these to OpenAI's objects."""

from __future__ import annotations

import dataclasses
import random
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2kit.engine import Request
from gpt2kit.model.completion import Completion, Event, vocabulary
from gpt2kit.model.sampling import Choice, SamplingSettings
from gpt2kit.serve import answers
from gpt2kit.serve.answers import ChatChunks, CompletionChunks, Head, Outcome
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.protocol import ChatRequest, CompletionRequest
from gpt2kit.serve.remembered import Result
from gpt2kit.serve.stream import encode, lines

if TYPE_CHECKING:
    from gpt2kit.engine import Handle
    from gpt2kit.serve.remembered import Remembered
    from gpt2kit.serve.running import Served
    from gpt2kit.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]

# Names, no secrets. The system's own source of random bytes lets the interpreter's lock go, and while the engine holds
# that, a call takes milliseconds.
IDS = random.Random(secrets.randbits(128))


class Job:
    """A request for completions of one or more prompts. What the cache of answers knows is not computed again."""

    def __init__(
        self, asked: CompletionRequest | ChatRequest, served: Served, remembered: Remembered, most: int
    ) -> None:
        """`most`: tokens that an answer may hold, those of echoed prompts too."""
        self.asked, self.served, self._most = asked, served, most
        self.echoes = isinstance(asked, CompletionRequest) and asked.echo and asked.logprobs is not None
        self.settings = SamplingSettings()
        self.ids: Sequence[list[int]] = ()  # of the prompts
        self._prompts: Sequence[Prompt] = ()
        self._remembered = remembered
        self._keys: list[bytes | None] = []  # of the prompts' answers
        self._known: dict[int, Result] = {}  # by the number of the prompt
        self._numbers: list[int] = []  # of the prompts that the engine works on
        id = ("chatcmpl-" if isinstance(asked, ChatRequest) else "cmpl-") + f"{IDS.getrandbits(96):024x}"
        self._head = Head(id, int(time.time()), asked.model, served.facts.fingerprint)

    def requests(self, salt: str) -> list[Request]:
        """Read the prompts; what the engine is to do. ApiError 400, UserError."""
        asked, engine = self.asked, self.served.engine
        if isinstance(asked, ChatRequest):
            self._prompts = [_render(self.served, asked)]
            self.ids = read(self.served, self._prompts, "messages")
            self.settings = asked.settings(engine.config.n_positions - len(self.ids[0]))
        else:
            self._prompts = asked.prompts()
            self.ids = read(self.served, self._prompts, "prompt")
            self.settings = asked.settings()
            if asked.echo:
                self._check_echoed(asked.candidates)
        self._check_tokens()
        echo = self.echoes
        identity, found = self.served.facts.identity, []
        for number, ids in enumerate(self.ids):
            key = self._remembered.key(identity, engine.precision, self.settings, ids, salt, echo)
            known = self._remembered.get(key)
            self._keys.append(key)
            if known is not None:
                self._known[number] = known
            else:
                self._numbers.append(number)
                found.append(
                    Request(ids, self.settings, window="stop", salt=salt, echo=echo, adapter=self.served.adapter)
                )
        return found

    def _check_echoed(self, candidates: int) -> None:
        prompts, new = sum(map(len, self.ids)), self.settings.max_tokens * len(self.ids)
        if candidates * (prompts + new) > self._most:
            raise ApiError(
                400,
                f"{candidates} times {prompts} tokens of prompts and {new} new ones are more than {self._most} in all",
                param="echo",
            )

    def _check_tokens(self) -> None:
        """Tokens that are named by their numbers."""
        engine = self.served.engine
        V = vocabulary(engine.config, engine.tokenizer)
        for param, ids in (("logit_bias", self.settings.logit_bias), ("stop_token_ids", self.settings.stop_token_ids)):
            strange = next((token for token in ids if token >= V), None)
            if strange is not None:
                raise ApiError(400, f"{param} names token {strange}, outside the vocabulary of {V} tokens", param=param)

    @property
    def most_tokens(self) -> int:
        """That prompts and completions can have together."""
        N, n = self.served.engine.config.n_positions, self.settings.n
        return sum(len(ids) + n * min(self.settings.max_tokens, N - len(ids)) for ids in self.ids)

    def choice(self, number: int, index: int) -> int:
        """The index, in the answer, of completion `index` of the engine's request `number`."""
        return self._numbers[number] * self.asked.n + index

    def outcomes(self, handles: Sequence[Handle]) -> list[Outcome]:
        """Of each prompt what is there by now."""
        found = {
            number: Outcome(self._prompts[number], self.ids[number], one.completions, one.scores, len(self.ids[number]))
            for number, one in self._known.items()
        }
        for number, handle in zip(self._numbers, handles, strict=True):
            made = handle.completions() if handle.done else ()
            prompt, ids = self._prompts[number], self.ids[number]
            found[number] = Outcome(prompt, ids, made, handle.scores, handle.cached_tokens)
        return [found[number] for number in range(len(self.ids))]

    def remember(self, handles: Sequence[Handle]) -> None:
        """Keep the answers of requests that have ended, where they are worth it."""
        for number, handle in zip(self._numbers, handles, strict=True):
            key = self._keys[number]
            if key is not None:
                self._remembered.put(key, Result(handle.completions(), handle.scores))

    def write(self, handles: Sequence[Handle]) -> bytes:
        """The whole answer as JSON."""
        outcomes, tokenizer = self.outcomes(handles), self.served.engine.tokenizer
        if isinstance(self.asked, ChatRequest):
            return encode(answers.chat_answer(self._head, self.asked, outcomes[0], tokenizer), "choices")
        return encode(answers.completion_answer(self._head, self.asked, outcomes, tokenizer), "choices")

    def begin(self, handles: Sequence[Handle]) -> tuple[ChatChunks | CompletionChunks, str]:
        """A stream's chunks, and the lines that are there before the engine's first token."""
        tokenizer = self.served.engine.tokenizer
        chunks: ChatChunks | CompletionChunks
        if isinstance(self.asked, ChatRequest):
            chunks = ChatChunks(self._head, self.asked, tokenizer)
            text = lines(chunks.start())
        else:
            chunks = CompletionChunks(self._head, self.asked, self.outcomes(handles), tokenizer)
            text = ""
        for number, result in self._known.items():
            for index, completion in enumerate(result.completions):
                for event in _events(completion):
                    text += lines(chunks.push(number * self.asked.n + index, event))
        return chunks, text


def tokenizer_of(served: Served) -> Tokenizer:
    """ApiError 400 where the model has none."""
    if served.engine.tokenizer is None:
        raise ApiError(400, "this model has no tokenizer: give the prompt as token ids", code="no_tokenizer")
    return served.engine.tokenizer


def read(served: Served, prompts: Sequence[Prompt], param: str) -> list[list[int]]:
    """Ids of the prompts, each within the model's context; EOS for an empty one. ApiError 400 with the numbers."""
    engine = served.engine
    N, found = engine.config.n_positions, []
    V = vocabulary(engine.config, engine.tokenizer)
    for prompt in prompts:
        ids = tokenizer_of(served).encode(prompt) if isinstance(prompt, str) else list(prompt)
        if len(ids) > N:
            have = "have" if param == "messages" else "has"
            message = f"this model's maximum context length is {N} tokens, the {param} {have} {len(ids)}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        strange = None if isinstance(prompt, str) else next((token for token in ids if token >= V), None)
        if strange is not None:
            raise ApiError(400, f"the {param} holds id {strange}, outside the vocabulary of {V} tokens", param=param)
        found.append(ids or ([] if engine.eos_id is None else [engine.eos_id]))
    return found


def _render(served: Served, asked: ChatRequest) -> list[int]:
    if served.facts.template is None:
        raise ApiError(
            400, "this model has no chat template: use /v1/completions, or tune one that has", code="no_chat_template"
        )
    return served.facts.template.encode(tokenizer_of(served), asked.conversation())


def _events(completion: Completion) -> list[Event]:
    """A finished completion as a stream's events: the text comes with the last."""
    choices: Sequence[Choice | None] = completion.logprobs or [None]
    events = [Event(None if choice is None else choice.token, choice=choice) for choice in choices]
    events[-1] = dataclasses.replace(events[-1], text=completion.text or "", finish_reason=completion.finish_reason)
    return events
