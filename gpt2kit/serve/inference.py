"""A parsed request to its answer: admission, tokenising, the engine, OpenAI's objects, whole or as a stream.

Each way in (`generate`, `embed`, `tokenize`, `detokenize`) is one coroutine that writes ASGI messages itself, so that
all that a request holds is let go in one place, however it ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpt2kit.engine import Request
from gpt2kit.model.completion import Completion, Event
from gpt2kit.model.sampling import Choice, SamplingSettings
from gpt2kit.serve import answers, log
from gpt2kit.serve.answers import ChatChunks, CompletionChunks, Head, Outcome
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.keys import ANONYMOUS
from gpt2kit.serve.protocol import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from gpt2kit.serve.remembered import Result
from gpt2kit.serve.running import Presence
from gpt2kit.serve.stream import DONE, EventStream, Lines, encode, lines, send_json, to_json
from gpt2kit.tasks import task_of
from gpt2kit.tasks.classify import Classify

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from gpt2kit.serve.admission import Admission, Ticket
    from gpt2kit.serve.keys import Key
    from gpt2kit.serve.metrics import Metrics
    from gpt2kit.serve.remembered import Remembered
    from gpt2kit.serve.running import Engines, Running, Served
    from gpt2kit.serve.settings import ServeSettings
    from gpt2kit.text.tokenizer import Tokenizer

Generate = CompletionRequest | ChatRequest
Prompt = str | Sequence[int]

# Names, no secrets. The system's own source of random bytes lets the interpreter's lock go, and while the engine holds
# that, a call takes milliseconds.
IDS = random.Random(secrets.randbits(128))


# What takes as long as so many characters of a text that is cut into tokens
PROMPT_COST = 300  # handing one to the engine
LOGPROB_COST = 50  # a token with its alternatives
VECTOR_COST = 2000


@dataclass(frozen=True)
class Visit:
    """A request that has been let in, and what it holds."""

    key: Key
    ticket: Ticket
    served: Served
    running: Running


@dataclass
class Job:
    """Completions on their way."""

    asked: Generate
    served: Served
    head: Head
    prompts: Sequence[Prompt] = ()
    ids: Sequence[list[int]] = ()  # of the prompts
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    keys: list[bytes | None] = field(default_factory=list)  # by which the prompts' answers are remembered
    known: dict[int, Result] = field(default_factory=dict)  # those that were, by the number of the prompt
    numbers: list[int] = field(default_factory=list)  # of the prompts that the engine works on

    @property
    def scores_prompt(self) -> bool:
        """The log-probabilities of the prompts' own tokens are asked for."""
        asked = self.asked
        return isinstance(asked, CompletionRequest) and asked.echo and asked.logprobs is not None

    @property
    def most_tokens(self) -> int:
        """That prompts and completions can have together."""
        N, n = self.served.engine.config.n_positions, self.settings.n
        return sum(len(ids) + n * min(self.settings.max_tokens, N - len(ids)) for ids in self.ids)


class Inference:
    """What the routes of the API do."""

    def __init__(
        self, settings: ServeSettings, engines: Engines, admission: Admission, metrics: Metrics, remembered: Remembered
    ) -> None:
        self._settings, self._engines, self._admission = settings, engines, admission
        self._metrics, self._remembered = metrics, remembered

    @asynccontextmanager
    async def _enter(self, model: str, streams: int, scope: Scope, receive: Receive) -> AsyncIterator[Visit]:
        """Wait for a place and for the model; a client that goes away ends what is inside, quietly."""
        key: Key = scope["state"].get("key", ANONYMOUS)
        self._engines.check(model)
        async with (
            Presence(receive),
            self._admission.enter(key, model, streams, 1) as ticket,
            self._engines.use(model) as served,
        ):
            with self._engines.running() as running:
                yield Visit(key, ticket, served, running)

    # -------------------------------------------------------------------------------------------- completions

    async def generate(self, asked: Generate, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/completions and /v1/chat/completions."""
        arrived = time.perf_counter()
        async with self._enter(asked.model, _streams(asked), scope, receive) as visit:
            head = Head(_new_id(asked), int(time.time()), asked.model, visit.served.facts.fingerprint)
            job = Job(asked, visit.served, head)
            try:
                await self._engines.do(_cost(asked), self._submit, job, visit)
                visit.ticket.charge(job.most_tokens - 1)
                await (self._stream if asked.stream else self._answer)(job, visit.running, send)
            finally:
                self._account(job, visit, scope, arrived)

    def _submit(self, job: Job, visit: Visit) -> None:
        """Texts to ids to engine requests, but for what is remembered. ApiError 400."""
        asked, engine, salt = job.asked, job.served.engine, visit.key.salt
        if isinstance(asked, ChatRequest):
            job.prompts = [_render(job.served, asked)]
            job.ids = _checked(job.served, job.prompts, "messages")
            job.settings = asked.settings(engine.config.n_positions - len(job.ids[0]))
        else:
            job.prompts = asked.prompts()
            job.ids = _checked(job.served, job.prompts, "prompt")
            job.settings = asked.settings()
        identity, echo = job.served.facts.identity, job.scores_prompt
        requests = []
        for number, ids in enumerate(job.ids):
            key = self._remembered.key(identity, engine.precision, job.settings, ids, salt, echo)
            known = self._remembered.get(key)
            job.keys.append(key)
            if known is not None:
                job.known[number] = known
            else:
                job.numbers.append(number)
                requests.append(Request(ids, job.settings, window="stop", salt=salt, echo=echo))
        visit.running.submit(engine, requests, asked.stream)

    async def _answer(self, job: Job, running: Running, send: Send) -> None:
        await running.finish()
        cost = sum(len(row.output) for handle in running.handles for row in handle.generations)
        if job.settings.logprobs is not None:
            cost = (cost + sum(map(len, job.ids))) * LOGPROB_COST
        await send_json(send, await self._engines.do(cost, self._write, job, running))

    def _write(self, job: Job, running: Running) -> bytes:
        """The whole answer."""
        self._remember(job, running)
        asked, outcomes, tokenizer = job.asked, _outcomes(job, running), job.served.engine.tokenizer
        if isinstance(asked, ChatRequest):
            return encode(answers.chat_answer(job.head, asked, outcomes[0], tokenizer), "choices")
        return encode(answers.completion_answer(job.head, asked, outcomes, tokenizer), "choices")

    def _remember(self, job: Job, running: Running) -> None:
        for number, handle in zip(job.numbers, running.handles, strict=True):
            key = job.keys[number]
            if key is not None:
                self._remembered.put(key, Result(handle.completions(), handle.scores))

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
            await stream.fail(_told(error))

    async def _pump(self, job: Job, running: Running, stream: EventStream) -> None:
        """Lines as tokens come; all that is there at a time goes out at once."""
        chunks, text = _begin(job, running)
        made = Lines(chunks, job.settings.logprobs is None)
        observe = self._metrics.of[job.asked.model].between_tokens.observe
        last: dict[int, float] = {}  # when a choice's last token came
        while news := await running.more():
            now = time.perf_counter()
            for number, index, event in news:
                choice = job.numbers[number] * job.asked.n + index
                text += made.event(choice, event)
                if choice in last:
                    observe(now - last[choice])
                last[choice] = now
            if text and not running.is_over:
                await stream.write(text)
                text = ""
        total = answers.usage_of(_outcomes(job, running))
        await stream.write(text + lines(chunks.end(total)) + DONE, ends=True)
        self._remember(job, running)

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

    # ------------------------------------------------------------------------------------- vectors and tokens

    async def embed(self, asked: EmbeddingRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/embeddings: vectors of unit length."""
        inputs = asked.inputs()
        async with self._enter(asked.model, len(inputs), scope, receive) as visit:
            served, running = visit.served, visit.running

            def submit() -> int:
                ids = _checked(served, inputs, "input")
                requests = [Request(one, salt=visit.key.salt, pooling=asked.pooling) for one in ids]
                running.submit(served.engine, requests, False)
                return sum(map(len, ids))

            def write() -> bytes:
                vectors = np.stack([_unit(handle.vector()) for handle in running.handles])
                answer = answers.embedding_answer(asked.model, vectors, asked.encoding_format, tokens)
                return encode(answer, "data")

            tokens = await self._engines.do(_cost(asked), submit)
            visit.ticket.charge(tokens - 1)
            scope["state"]["usage"] = {"prompt_tokens": tokens, "completion_tokens": 0}
            self._metrics.of[asked.model].prompt_tokens.inc(tokens)
            await running.finish()
            await send_json(send, await self._engines.do(len(inputs) * VECTOR_COST, write))

    async def classify(self, asked: ClassifyRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/classify, by a model that was tuned for it."""
        inputs = asked.inputs()
        async with self._enter(asked.model, len(inputs), scope, receive) as visit:
            served, running = visit.served, visit.running
            task = _classifier(served)

            def submit() -> int:
                ids = _labelled(served, task, inputs)
                requests = [Request(one, salt=visit.key.salt, pooling="last") for one in ids]
                running.submit(served.engine, requests, False)
                return sum(map(len, ids))

            def write() -> bytes:
                found = [task.read(served.engine.scores_of(handle.vector())) for handle in running.handles]
                answer = answers.classify_answer(asked.model, [one.details for one in found], tokens)
                return encode(answer, "data")

            tokens = await self._engines.do(_cost(asked), submit)
            visit.ticket.charge(tokens - 1)
            scope["state"]["usage"] = {"prompt_tokens": tokens, "completion_tokens": 0}
            self._metrics.of[asked.model].prompt_tokens.inc(tokens)
            await running.finish()
            await send_json(send, await self._engines.do(len(inputs) * VECTOR_COST, write))

    async def tokenize(self, asked: TokenizeRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /tokenize."""

        def work(served: Served) -> bytes:
            ids, most = _tokenizer(served).encode(asked.prompt), self._settings.max_tokens_total
            if len(ids) > most:
                raise ApiError(400, f"the prompt has {len(ids)} tokens, more than {most}", param="prompt")
            answer = answers.tokenize_answer(_tokenizer(served), ids, served.engine.config.n_positions)
            return encode(answer, "pieces")

        await self._with_model(asked.model, len(asked.prompt) * 20, work, scope, receive, send)

    async def detokenize(self, asked: DetokenizeRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /detokenize."""

        def work(served: Served) -> bytes:
            return to_json(answers.DetokenizeAnswer(prompt=_tokenizer(served).decode(asked.tokens))).encode()

        await self._with_model(asked.model, len(asked.tokens), work, scope, receive, send)

    async def _with_model(
        self, model: str | None, cost: int, work: Callable[[Served], bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Work that no engine is needed for. The first model is the default."""
        async with self._enter(model or self._engines.names[0], 0, scope, receive) as visit:
            await send_json(send, await self._engines.do(cost, work, visit.served))


# ------------------------------------------------------------------------------------------- prompts and results


def _cost(asked: Generate | EmbeddingRequest | ClassifyRequest) -> int:
    """Of reading the texts and handing them to the engine, in characters."""
    if isinstance(asked, ChatRequest):
        texts: Sequence[Prompt] = [message.text for message in asked.messages]
    else:
        texts = asked.prompts() if isinstance(asked, CompletionRequest) else asked.inputs()
    return sum(len(text) + PROMPT_COST for text in texts)


def _streams(asked: Generate) -> int:
    return asked.n if isinstance(asked, ChatRequest) else asked.candidates * len(asked.prompts())


def _new_id(asked: Generate) -> str:
    return ("chatcmpl-" if isinstance(asked, ChatRequest) else "cmpl-") + f"{IDS.getrandbits(96):024x}"


def _tokenizer(served: Served) -> Tokenizer:
    if served.engine.tokenizer is None:
        raise ApiError(400, "this model has no tokenizer: give the prompt as token ids", code="no_tokenizer")
    return served.engine.tokenizer


def _render(served: Served, asked: ChatRequest) -> list[int]:
    if served.facts.template is None:
        raise ApiError(
            400, "this model has no chat template: use /v1/completions, or tune one that has", code="no_chat_template"
        )
    return served.facts.template.encode(_tokenizer(served), asked.conversation())


def _checked(served: Served, prompts: Sequence[Prompt], param: str) -> list[list[int]]:
    """Ids of the prompts, each within the model's context."""
    engine = served.engine
    N, found = engine.config.n_positions, []
    for prompt in prompts:
        ids = _tokenizer(served).encode(prompt) if isinstance(prompt, str) else list(prompt)
        if len(ids) > N:
            message = f"this model's maximum context length is {N} tokens, the {param} has {len(ids)}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        found.append(ids or ([] if engine.eos_id is None else [engine.eos_id]))
    return found


def _classifier(served: Served) -> Classify:
    """What the model was tuned to tell. ApiError 400 where it was not."""
    lineage = served.facts.described["lineage"]
    if served.engine.score_head is None or (lineage.get("task") or {}).get("name") != "classify":
        raise ApiError(400, "this model has no head for classes", param="model", code="no_such_head")
    task = task_of(lineage)
    assert isinstance(task, Classify)
    return task


def _labelled(served: Served, task: Classify, inputs: Sequence[Prompt]) -> list[list[int]]:
    """Texts as the model was tuned on them, which cuts long ones; ids as they are given."""
    if all(isinstance(one, str) for one in inputs):
        rows = [task.example(str(one)) for one in inputs]
        return task.ids(rows, _tokenizer(served), served.engine.config.n_positions)[0]
    return _checked(served, inputs, "input")


def _outcomes(job: Job, running: Running) -> list[Outcome]:
    """Of each prompt what is there by now."""
    found = {
        number: Outcome(prompt, ids, known.completions, known.scores, len(ids))
        for number, (prompt, ids) in enumerate(zip(job.prompts, job.ids, strict=True))
        if (known := job.known.get(number)) is not None
    }
    for number, handle in zip(job.numbers, running.handles, strict=True):
        made = handle.completions() if handle.done else ()
        found[number] = Outcome(job.prompts[number], job.ids[number], made, handle.scores, handle.cached_tokens)
    return [found[number] for number in range(len(job.ids))]


def _begin(job: Job, running: Running) -> tuple[ChatChunks | CompletionChunks, str]:
    """A stream's chunks, and the lines that are there before the engine's first token."""
    tokenizer = job.served.engine.tokenizer
    chunks: ChatChunks | CompletionChunks
    if isinstance(job.asked, ChatRequest):
        chunks = ChatChunks(job.head, job.asked, tokenizer)
        text = lines(chunks.start())
    else:
        chunks = CompletionChunks(job.head, job.asked, _outcomes(job, running), tokenizer)
        text = ""
    for number, result in job.known.items():
        for index, completion in enumerate(result.completions):
            for event in _events(completion):
                text += lines(chunks.push(number * job.asked.n + index, event))
    return chunks, text


def _events(completion: Completion) -> list[Event]:
    """A finished completion as a stream's events: the text comes with the last."""
    choices: Sequence[Choice | None] = completion.logprobs or [None]
    events = [Event(None if choice is None else choice.token, choice=choice) for choice in choices]
    events[-1] = dataclasses.replace(events[-1], text=completion.text or "", finish_reason=completion.finish_reason)
    return events


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same direction, length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0 else (vector / length).astype(np.float32)


def _told(error: Exception) -> ApiError:
    """What a client is told of an error behind the headers, where nothing else can answer it."""
    if isinstance(error, ApiError):
        return error
    log.write(logging.ERROR, event="error in a stream", error=log.places(error))
    return ApiError(500, "the server failed")
