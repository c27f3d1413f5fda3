"""From the engine's results to OpenAI's objects: whole answers, and the chunks of a stream.

No HTTP, no engine, no clock: engine results in, plain values that JSON holds out. All generated tokens are listed in
logprobs and counted in usage, also the end-of-text token and those of a stop string, which the text leaves out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict  # pydantic cannot read typing's own before Python 3.12

from gpt2kit.model.completion import Completion, Event, Finish
from gpt2kit.model.sampling import Choice
from gpt2kit.serve.errors import ErrorType
from gpt2kit.serve.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    TokenReader,
    chat_logprobs,
    completion_logprobs,
    logprob_of,
)
from gpt2kit.serve.protocol import ChatRequest, CompletionRequest
from gpt2kit.text.tokenizer import Tokenizer

# -------------------------------------------------------------------------------------------------- shapes


class ErrorFields(TypedDict):
    message: str
    type: ErrorType
    param: str | None
    code: str | None


class ErrorAnswer(TypedDict):
    error: ErrorFields


class CachedTokens(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None  # None before a choice's last chunk


class CompletionAnswer(TypedDict):
    """The whole, or a chunk of a stream: there usage stands in the last one, if it is asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatAnswer(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # base64: little-endian float32


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Classification(TypedDict):
    object: Literal["classification"]
    index: int
    labels: list[str]  # the likeliest, or all above one half where several can be true
    probabilities: dict[str, float]


class ClassifyAnswer(TypedDict):
    object: Literal["list"]
    data: list[Classification]
    model: str
    usage: EmbeddingUsage


class RankedDocument(TypedDict):
    index: int  # its place in the request
    relevance_score: float  # larger is better; only differences within one answer mean something
    document: dict[Literal["text"], str]


class RankAnswer(TypedDict):
    object: Literal["list"]
    results: list[RankedDocument]  # the best first
    model: str
    usage: EmbeddingUsage


class Piece(TypedDict):
    id: int
    text: str  # a part of a character as its bytes: \xe6\x98
    bytes: str  # hexadecimal
    start: int  # the characters of the text that the token has a part in
    end: int


class TokenizeAnswer(TypedDict):
    tokens: list[int]
    pieces: list[Piece]
    count: int
    max_model_len: int


class DetokenizeAnswer(TypedDict):
    prompt: str


@dataclass(frozen=True)
class Head:
    """What stands above every answer and chunk."""

    id: str  # cmpl-…, chatcmpl-…
    created: int  # seconds since 1970
    model: str
    fingerprint: str  # the first 12 hexadecimal digits of the weights' hash


@dataclass(frozen=True)
class Outcome:
    """A prompt and what became of it. In a stream `scores` may be the list that the engine still fills."""

    prompt: str | Sequence[int]  # as it was asked
    ids: Sequence[int]  # as the model read it
    completions: Sequence[Completion] = ()
    scores: Sequence[Choice | None] = ()  # of the prompt's tokens, for echo with logprobs
    cached: int = 0  # tokens of the prompt that were not computed again


# -------------------------------------------------------------------------------------------------- usage


def usage(prompt: int, completion: int, cached: int = 0) -> Usage:
    """In tokens; a prompt counts once however many completions it has."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=CachedTokens(cached_tokens=cached),
    )


def usage_of(outcomes: Sequence[Outcome]) -> Usage:
    """All completions count, also those that best_of leaves out."""
    made = sum(len(one.token_ids) for outcome in outcomes for one in outcome.completions)
    return usage(sum(len(one.ids) for one in outcomes), made, sum(one.cached for one in outcomes))


# --------------------------------------------------------------------------------------------- completions


def completion_answer(
    head: Head, request: CompletionRequest, outcomes: Sequence[Outcome], tokenizer: Tokenizer | None
) -> CompletionAnswer:
    """The whole answer: the choices of the first prompt, then those of the next."""
    choices: list[CompletionChoice] = []
    for outcome in outcomes:
        for one in likeliest(outcome.completions, request.n):
            choice = _begin(request, outcome, len(choices), tokenizer)
            if request.logprobs is not None:
                assert one.logprobs is not None
                reader = TokenReader(tokenizer, len(_prompt_text(outcome, tokenizer)))
                _extend(choice, completion_logprobs(reader, one.token_ids, one.logprobs))
            choice["text"] += one.text or ""
            choice["finish_reason"] = one.finish_reason
            choices.append(choice)
    return {**_completion(head, choices), "usage": usage_of(outcomes)}


def likeliest(completions: Sequence[Completion], n: int) -> Sequence[Completion]:
    """The n with the highest log-probability per token, best first; all in their order where there are just n."""
    if len(completions) <= n:
        return completions
    return sorted(completions, key=_mean_logprob, reverse=True)[:n]


def _mean_logprob(completion: Completion) -> float:
    assert completion.logprobs is not None
    return sum(map(logprob_of, completion.logprobs)) / max(len(completion.logprobs), 1)


def _completion(head: Head, choices: list[CompletionChoice]) -> CompletionAnswer:
    return CompletionAnswer(
        id=head.id,
        object="text_completion",
        created=head.created,
        model=head.model,
        system_fingerprint=head.fingerprint,
        choices=choices,
    )


def _prompt_text(outcome: Outcome, tokenizer: Tokenizer | None) -> str:
    if isinstance(outcome.prompt, str):
        return outcome.prompt
    return "" if tokenizer is None else tokenizer.decode(outcome.prompt)


def _begin(request: CompletionRequest, outcome: Outcome, index: int, tokenizer: Tokenizer | None) -> CompletionChoice:
    """A choice before its first token: with echo, the prompt."""
    choice = CompletionChoice(index=index, text="", logprobs=None, finish_reason=None)
    if request.echo:
        choice["text"] = _prompt_text(outcome, tokenizer)
        if request.logprobs is not None:
            choice["logprobs"] = completion_logprobs(TokenReader(tokenizer), outcome.ids, outcome.scores)
    return choice


def _extend(choice: CompletionChoice, more: CompletionLogprobs) -> None:
    known = choice["logprobs"]
    if known is None:
        choice["logprobs"] = more
    else:
        known["tokens"] += more["tokens"]
        known["token_logprobs"] += more["token_logprobs"]
        known["top_logprobs"] += more["top_logprobs"]
        known["text_offset"] += more["text_offset"]


class CompletionChunks:
    """The events of a stream as chunks. A choice's index is that of its prompt times n plus that of its completion.

    With echo the prompt stands in a choice's first chunk. The pieces of a choice joined are its text in the whole
    answer, and so are the columns of its logprobs.
    """

    def __init__(
        self, head: Head, request: CompletionRequest, outcomes: Sequence[Outcome], tokenizer: Tokenizer | None
    ) -> None:
        self._head, self._request, self._outcomes, self._tokenizer = head, request, outcomes, tokenizer
        self._readers: dict[int, TokenReader] = {}  # of the choices that have begun
        self._needs_scores = request.echo and request.logprobs is not None
        self._held: list[tuple[int, Event]] = []

    def push(self, index: int, event: Event) -> list[CompletionAnswer]:
        """The chunks that this event makes certain; none for half a character."""
        if not self._needs_scores:
            return self._chunks(index, event)
        # A completion of no tokens may end before its prompt is scored.
        due, self._held = [*self._held, (index, event)], []
        chunks = []
        for one in due:
            outcome = self._outcomes[one[0] // self._request.n]
            if len(outcome.scores) == len(outcome.ids):
                chunks += self._chunks(*one)
            else:
                self._held.append(one)
        return chunks

    def end(self, total: Usage) -> list[CompletionAnswer]:
        """After the last event: the usage, where the request wants it."""
        assert not self._held, "the stream ended before its prompt was scored"
        return [{**_completion(self._head, []), "usage": total}] if self._request.wants_usage else []

    def _chunks(self, index: int, event: Event) -> list[CompletionAnswer]:
        choice = CompletionChoice(index=index, text="", logprobs=None, finish_reason=None)
        if index not in self._readers:
            outcome = self._outcomes[index // self._request.n]
            choice = _begin(self._request, outcome, index, self._tokenizer)
            start = len(_prompt_text(outcome, self._tokenizer))
            self._readers[index] = TokenReader(self._tokenizer, start)
        choice["text"] += event.text
        choice["finish_reason"] = event.finish_reason
        if self._request.logprobs is not None and event.choice is not None:
            reader = self._readers[index]
            _extend(choice, completion_logprobs(reader, [event.choice.token], [event.choice]))
        if not (choice["text"] or choice["logprobs"] or choice["finish_reason"]):
            return []
        chunk = _completion(self._head, [choice])
        if self._request.wants_usage:
            chunk["usage"] = None
        return [chunk]


# ---------------------------------------------------------------------------------------------------- chat


def chat_answer(head: Head, request: ChatRequest, outcome: Outcome, tokenizer: Tokenizer | None) -> ChatAnswer:
    choices = [
        ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content=one.text or "", refusal=None),
            logprobs=chat_logprobs(TokenReader(tokenizer), one.logprobs or ()) if request.logprobs else None,
            finish_reason=one.finish_reason,
        )
        for index, one in enumerate(outcome.completions)
    ]
    return ChatAnswer(
        id=head.id,
        object="chat.completion",
        created=head.created,
        model=head.model,
        system_fingerprint=head.fingerprint,
        choices=choices,
        usage=usage_of([outcome]),
    )


class ChatChunks:
    """The events of a stream as chunks: first one with the role for each choice."""

    def __init__(self, head: Head, request: ChatRequest, tokenizer: Tokenizer | None) -> None:
        self._head, self._request = head, request
        self._readers = [TokenReader(tokenizer) for _ in range(request.n)]

    def start(self) -> list[ChatChunk]:
        """Before the first event."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._request.n)]

    def push(self, index: int, event: Event) -> list[ChatChunk]:
        """The chunks that this event makes certain; none for half a character."""
        logprobs = None
        if self._request.logprobs and event.choice is not None:
            logprobs = chat_logprobs(self._readers[index], [event.choice])
        if not (event.text or logprobs or event.finish_reason):
            return []
        delta: ChatDelta = {"content": event.text} if event.text else {}
        return [self._chunk(index, delta, logprobs, event.finish_reason)]

    def end(self, total: Usage) -> list[ChatChunk]:
        """After the last event: the usage, where the request wants it."""
        return [{**self._of([]), "usage": total}] if self._request.wants_usage else []

    def _chunk(
        self, index: int, delta: ChatDelta, logprobs: ChatLogprobs | None = None, finish: Finish | None = None
    ) -> ChatChunk:
        chunk = self._of([ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)])
        if self._request.wants_usage:
            chunk["usage"] = None
        return chunk

    def _of(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._head.id,
            object="chat.completion.chunk",
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.fingerprint,
            choices=choices,
        )


# -------------------------------------------------------------------------------------- vectors and pieces


def embedding_answer(
    model: str, vectors: NDArray[np.float32], encoding: Literal["float", "base64"], prompt_tokens: int
) -> EmbeddingAnswer:
    """vectors [P, C], one for each input."""
    data: list[Embedding] = []
    for index, vector in enumerate(vectors):
        plain = base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
        data.append(Embedding(object="embedding", index=index, embedding=plain))
    used = EmbeddingUsage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens)
    return EmbeddingAnswer(object="list", data=data, model=model, usage=used)


def classify_answer(model: str, found: Sequence[Mapping[str, Any]], prompt_tokens: int) -> ClassifyAnswer:
    """found: of each input its labels and probabilities."""
    data = [
        Classification(object="classification", index=index, labels=one["labels"], probabilities=one["probabilities"])
        for index, one in enumerate(found)
    ]
    used = EmbeddingUsage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens)
    return ClassifyAnswer(object="list", data=data, model=model, usage=used)


def rank_answer(
    model: str, documents: Sequence[str], scores: Sequence[float], most: int | None, prompt_tokens: int
) -> RankAnswer:
    """The `most` best documents; of equal ones the first."""
    order = sorted(range(len(documents)), key=lambda index: (-scores[index], index))[:most]
    results = [
        RankedDocument(index=index, relevance_score=scores[index], document={"text": documents[index]})
        for index in order
    ]
    used = EmbeddingUsage(prompt_tokens=prompt_tokens, total_tokens=prompt_tokens)
    return RankAnswer(object="list", results=results, model=model, usage=used)


def tokenize_answer(tokenizer: Tokenizer, ids: Sequence[int], n_positions: int) -> TokenizeAnswer:
    """How a text is cut."""
    reader = TokenReader(tokenizer)
    pieces: list[Piece] = []
    for token in ids:
        text, data = reader.name(token), reader.data(token).hex()
        start, end = reader.push(token)
        pieces.append(Piece(id=token, text=text, bytes=data, start=start, end=end))
    return TokenizeAnswer(tokens=list(ids), pieces=pieces, count=len(pieces), max_model_len=n_positions)
