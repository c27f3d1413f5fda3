"""A parsed request to its answer: admission, tokenising, the engine, and bytes, whole or as a stream.

Each way in (`generate`, `embed`, `classify`, `rank`, `tokenize`, `detokenize`) is one coroutine that writes ASGI
messages itself, so that all that a request holds is let go in one place, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.families import LabelRow
from gpt2kit.engine import Request
from gpt2kit.serve import answers, log
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.job import Job, Prompt, read, tokenizer_of
from gpt2kit.serve.keys import ANONYMOUS
from gpt2kit.serve.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RankRequest,
    TokenizeRequest,
)
from gpt2kit.serve.running import Presence
from gpt2kit.serve.stream import DONE, EventStream, Lines, encode, lines, send_json, to_json
from gpt2kit.tasks import task_of
from gpt2kit.tasks.classify import Classify
from gpt2kit.tasks.rank import Rank
from gpt2kit.tasks.task import GIVEN

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from gpt2kit.engine import Handle
    from gpt2kit.engine.job import Pooling
    from gpt2kit.serve.admission import Admission, Ticket
    from gpt2kit.serve.keys import Key
    from gpt2kit.serve.metrics import Metrics
    from gpt2kit.serve.remembered import Remembered
    from gpt2kit.serve.running import Engines, Running, Served
    from gpt2kit.serve.settings import ServeSettings
    from gpt2kit.tasks.task import Task

Generate = CompletionRequest | ChatRequest

# What takes as long as so many characters of a text that is cut into tokens
PROMPT_COST = 300  # handing one to the engine
LOGPROB_COST = 50  # a token with its alternatives
VECTOR_COST = 2000
PIECE_COST = 20  # a character of a text whose tokens are listed


@dataclass(frozen=True)
class Visit:
    """A request that has been let in, and what it holds."""

    key: Key
    ticket: Ticket
    served: Served
    running: Running


class Inference:
    """What the routes of the API do."""

    def __init__(
        self, settings: ServeSettings, engines: Engines, admission: Admission, metrics: Metrics, remembered: Remembered
    ) -> None:
        self._settings, self._engines, self._admission = settings, engines, admission
        self._metrics, self._remembered = metrics, remembered

    @asynccontextmanager
    async def _enter(self, model: str, streams: int, scope: Scope) -> AsyncIterator[Visit]:
        """Wait for a place and for the model. Callers enter Presence first: a client may go away while it waits."""
        key: Key = scope["state"].get("key", ANONYMOUS)
        base = self._engines.base_of(model)  # whose places its adapters take
        async with (
            self._admission.enter(key, base, streams, 1) as ticket,
            self._engines.use(model) as served,
        ):
            with self._engines.running() as running:
                yield Visit(key, ticket, served, running)

    # -------------------------------------------------------------------------------------------- completions

    async def generate(self, asked: Generate, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/completions and /v1/chat/completions."""
        arrived = time.perf_counter()
        async with Presence(receive), self._enter(asked.model, _streams(asked), scope) as visit:
            job = Job(asked, visit.served, self._remembered, self._settings.max_tokens_total)
            requests = await self._engines.do(_cost(asked), job.requests, visit.key.salt)
            visit.ticket.charge(job.most_tokens - 1)  # before the engine has anything to do
            cost, engine = len(requests) * PROMPT_COST, visit.served.engine
            await self._engines.do(cost, visit.running.submit, engine, requests, asked.stream)
            try:
                await (self._stream if asked.stream else self._answer)(job, visit.running, send)
            finally:
                self._account(job, visit, scope, arrived)

    async def _answer(self, job: Job, running: Running, send: Send) -> None:
        await running.finish()
        job.remember(running.handles)
        cost = sum(len(row.output) for handle in running.handles for row in handle.generations)
        if job.settings.logprobs is not None:
            cost = (cost + sum(map(len, job.ids))) * LOGPROB_COST
        await send_json(send, await self._engines.do(cost, job.write, running.handles))

    async def _stream(self, job: Job, running: Running, send: Send) -> None:
        stream = EventStream(send)
        try:
            await self._pump(job, running, stream)
        except asyncio.CancelledError:
            if stream.has_begun and self._admission.draining:  # the server ends before the stream does
                await stream.fail(ApiError(503, "the server is shutting down", code="shutting_down"))
            raise
        except Exception as error:
            if not stream.has_begun:
                raise
            told = _told(error)
            self._metrics.count(told.status)
            await stream.fail(told)

    async def _pump(self, job: Job, running: Running, stream: EventStream) -> None:
        """Lines as tokens come; all that is there at a time goes out at once."""
        chunks, text = job.begin(running.handles)
        made = Lines(chunks, job.settings.logprobs is None)
        heavy = sum(map(len, job.ids)) * LOGPROB_COST if job.echoes else 0  # each choice begins with its prompt's
        observe = self._metrics.of[job.asked.model].between_tokens.observe
        last: dict[int, float] = {}  # when a choice's last token came
        while news := await running.more():
            now = time.perf_counter()
            came = [(job.choice(number, index), event) for number, index, event in news]
            text += await self._engines.do(heavy, made.events, came)
            for choice, _ in came:
                if choice in last:
                    observe(now - last[choice])
                last[choice] = now
            if text and not running.is_over:
                await stream.write(text)
                text = ""
        job.remember(running.handles)
        total = answers.usage_of(job.outcomes(running.handles))
        await stream.write(text + lines(chunks.end(total)) + DONE, ends=True)

    def _account(self, job: Job, visit: Visit, scope: Scope, arrived: float) -> None:
        """Tell the key's limits, the log and the metrics what was used, also where the client has gone."""
        handles = visit.running.handles
        rows = [row for handle in handles for row in handle.generations]
        prompt, made = sum(map(len, job.ids)), sum(len(row.output) for row in rows)
        visit.ticket.settle(prompt + made)
        scope["state"]["usage"] = {"prompt_tokens": prompt, "completion_tokens": made}
        told = self._metrics.of[job.asked.model]
        told.prompt_tokens.inc(prompt)
        told.generation_tokens.inc(made)
        told.whole.observe(time.perf_counter() - arrived)
        times = [handle.created + handle.first_token for handle in handles if handle.first_token is not None]
        if times:
            told.first_token.observe(min(times) - arrived)
        for row in rows:
            told.finished(row.finish_reason or "abort")

    # ------------------------------------------------------------------------------------- vectors and classes

    async def embed(self, asked: EmbeddingRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/embeddings: vectors of unit length."""

        def ids(served: Served) -> list[list[int]]:
            return read(served, asked.inputs(), "input")

        def write(served: Served, handles: Sequence[Handle], tokens: int) -> bytes:
            units = np.stack([_unit(handle.vector()) for handle in handles])
            return encode(answers.embedding_answer(asked.model, units, asked.encoding_format, tokens), "data")

        await self._pool(asked, asked.pooling, ids, write, scope, receive, send)

    async def classify(self, asked: ClassifyRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/classify, by a model that was tuned for it."""

        def ids(served: Served) -> list[list[int]]:
            return _labelled(served, _classifier(served), asked)

        def write(served: Served, handles: Sequence[Handle], tokens: int) -> bytes:
            task = _classifier(served)
            scores = [served.engine.scores_of(handle.vector(), served.adapter) for handle in handles]
            found = [task.read(one).details for one in scores]
            return encode(answers.classify_answer(asked.model, found, tokens), "data")

        await self._pool(asked, "last", ids, write, scope, receive, send)

    async def rank(self, asked: RankRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/rank, by a model that was tuned for it."""

        def ids(served: Served) -> list[list[int]]:
            room = served.engine.config.n_positions
            return _ranker(served).ids(asked.query, asked.documents, tokenizer_of(served), room)[0]

        def write(served: Served, handles: Sequence[Handle], tokens: int) -> bytes:
            scores = [float(served.engine.scores_of(one.vector(), served.adapter)[0]) for one in handles]
            return encode(answers.rank_answer(asked.model, asked.documents, scores, asked.top_n, tokens), "results")

        await self._pool(asked, "last", ids, write, scope, receive, send)

    async def _pool(
        self,
        asked: EmbeddingRequest | ClassifyRequest | RankRequest,
        pooling: Pooling,
        ids: Callable[[Served], list[list[int]]],
        write: Callable[[Served, Sequence[Handle], int], bytes],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """A vector of each input's last hidden states, and what `write` makes of these and of the count of tokens."""
        async with Presence(receive), self._enter(asked.model, len(asked.inputs()), scope) as visit:
            served, running = visit.served, visit.running
            given = await self._engines.do(_cost(asked), ids, served)
            tokens = sum(map(len, given))
            visit.ticket.charge(tokens - 1)  # before the engine has anything to do
            requests = [Request(one, salt=visit.key.salt, pooling=pooling, adapter=served.adapter) for one in given]
            await self._engines.do(len(requests) * PROMPT_COST, running.submit, served.engine, requests, False)
            scope["state"]["usage"] = {"prompt_tokens": tokens, "completion_tokens": 0}
            self._metrics.of[asked.model].prompt_tokens.inc(tokens)
            await running.finish()
            cost = len(running.handles) * VECTOR_COST
            await send_json(send, await self._engines.do(cost, write, served, running.handles, tokens))

    # -------------------------------------------------------------------------------------------------- tokens

    async def tokenize(self, asked: TokenizeRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /tokenize."""

        def work(served: Served) -> bytes:
            ids, most = tokenizer_of(served).encode(asked.prompt), self._settings.max_tokens_total
            if len(ids) > most:
                raise ApiError(400, f"the prompt has {len(ids)} tokens, more than {most}", param="prompt")
            answer = answers.tokenize_answer(tokenizer_of(served), ids, served.engine.config.n_positions)
            return encode(answer, "pieces")

        await self._with_model(asked.model, len(asked.prompt) * PIECE_COST, work, scope, receive, send)

    async def detokenize(self, asked: DetokenizeRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /detokenize."""

        def work(served: Served) -> bytes:
            return to_json(answers.DetokenizeAnswer(prompt=tokenizer_of(served).decode(asked.tokens))).encode()

        await self._with_model(asked.model, len(asked.tokens), work, scope, receive, send)

    async def _with_model(
        self, model: str | None, cost: int, work: Callable[[Served], bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Work that no engine is needed for. The first model is the default."""
        async with Presence(receive), self._enter(model or self._engines.names[0], 0, scope) as visit:
            await send_json(send, await self._engines.do(cost, work, visit.served))


def _streams(asked: Generate) -> int:
    return asked.n if isinstance(asked, ChatRequest) else asked.candidates * len(asked.prompts())


def _cost(asked: Generate | EmbeddingRequest | ClassifyRequest | RankRequest) -> int:
    """Of reading the texts and handing them to the engine, in characters."""
    if isinstance(asked, ChatRequest):
        texts: Sequence[Prompt] = [message.text for message in asked.messages]
    else:
        texts = asked.prompts() if isinstance(asked, CompletionRequest) else asked.inputs()
    seconds = asked.pairs() if isinstance(asked, ClassifyRequest) else []
    return sum(len(text) + PROMPT_COST for text in [*texts, *seconds])


def _classifier(served: Served) -> Classify:
    """What the model was tuned to tell. ApiError 400 where it was not."""
    task = _with_head(served)
    if not isinstance(task, Classify):
        raise ApiError(400, "this model has no head for classes", param="model", code="no_such_head")
    return task


def _ranker(served: Served) -> Rank:
    """What the model was tuned to rank. ApiError 400 where it was not."""
    task = _with_head(served)
    if not isinstance(task, Rank):
        raise ApiError(400, "this model has no head to rank with", param="model", code="no_such_head")
    return task


def _with_head(served: Served) -> Task | None:
    """The task that the model, or the adapter, was tuned for, where that gave it a head."""
    lineage = served.facts.described["lineage"]
    has_head = served.engine.head_of(served.adapter) is not None and lineage.get("task") is not None
    return task_of(lineage) if has_head else None


def _labelled(served: Served, task: Classify, asked: ClassifyRequest) -> list[list[int]]:
    """Texts as the model was tuned on them, which cuts long ones; ids as they are given.

    ApiError 400 for a single text where the model was tuned on pairs.
    """
    inputs = asked.inputs()
    if all(isinstance(one, str) for one in inputs):
        if task.pairs and not asked.pairs():
            raise ApiError(400, "this model was tuned on pairs of texts: give the second ones", param="text_pair")
        pairs: Sequence[str | None] = asked.pairs() or [None] * len(inputs)
        rows = [LabelRow(str(one), (), pair, where=GIVEN) for one, pair in zip(inputs, pairs, strict=True)]
        return task.ids(rows, tokenizer_of(served), served.engine.config.n_positions)[0]
    return read(served, inputs, "input")


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same direction, length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0 else (vector / length).astype(np.float32)


def _told(error: Exception) -> ApiError:
    """What a client is told of an error behind the headers, where nothing else can answer it."""
    if isinstance(error, ApiError):
        return error
    log.write(logging.ERROR, message="a stream failed", error=log.places(error))
    return ApiError(500, "the server failed")
