"""The engine: a model folder, prompts in, completions out. Thread-safe; one worker thread owns what computes.

    engine = Engine.load("runs/mine")
    engine.generate(["Once upon a time"], max_tokens=50, temperature=0)

The caller's thread checks and tokenises a request and waits; the worker runs the scheduler. Between them: an inbox
(a queue) one way, each request's `Handle` the other way.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from gpt2kit import runtime
from gpt2kit.engine.beams import EngineBeams, Look
from gpt2kit.engine.handle import Events, Handle, wait_for
from gpt2kit.engine.job import Counters, Pooling
from gpt2kit.engine.plan import check_batch, check_threads, plan_blocks
from gpt2kit.engine.scheduler import Forward, Scheduler
from gpt2kit.errors import UserError, unknown
from gpt2kit.model.beam import beam_search
from gpt2kit.model.completion import (
    Completion,
    Logits,
    Window,
    check_one_of,
    check_prompt,
    check_settings,
    end_id,
    vocabulary,
)
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.files import read_head, read_steadily, resolve
from gpt2kit.model.sampling import Choice, SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2kit.engine.adapters import Adapter, Factors

Prompt = str | Sequence[int]  # text, or token ids
Adapters = str | None | Sequence[str | None]  # one name, or one a prompt
Precision = Literal["int8", "fp32", "auto"]
Progress = Callable[[str, int, int], None]  # stage, done, total

PROMPT_ROWS = 256  # a step's rows beyond one for each stream
SPARE_LOGITS = 32  # logits of a step beyond one for each stream: drafts, scores, prompts that end
ONE_TOKEN = SamplingSettings(max_tokens=1, temperature=0.0)
SETTINGS = tuple(one.name for one in dataclasses.fields(SamplingSettings))


@dataclass(frozen=True)
class Request:
    """What a server asks of the engine. Requests with different salts (tenants) never share cached blocks."""

    prompt: Prompt
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    window: Window = "slide"  # past n_positions: "slide", or "stop" with finish_reason "length"
    salt: str = ""
    speculate: bool = True
    echo: bool = False  # score the prompt's tokens, with settings.logprobs alternatives each
    pooling: Pooling | None = None  # not a completion but the last hidden state: its mean, or the last token's
    adapter: str | None = None  # one of Engine.adapters; None: the model as it is


class _Worker:
    """The one thread that touches scheduler and forward. Does not hold the engine, which can so be collected."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        # SimpleQueue: the garbage collector may drop a stream, which posts its end, inside any call but this one's put.
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.closing = False
        self.process = os.getpid()
        self.thread = threading.Thread(target=self._run, name="gpt2kit-engine", daemon=True)
        self.thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Have the thread call this before its next step."""
        self.inbox.put(call)
        if self.closing and not self.thread.is_alive():
            self._read()

    def add(self, handle: Handle) -> None:
        if self.closing:
            self.scheduler.fail(handle, _closed())
        else:
            self.scheduler.add(handle)

    def clear(self, done: threading.Event) -> None:
        self.scheduler.pool.clear()
        done.set()

    def _run(self) -> None:
        scheduler = self.scheduler
        while True:
            self._read()
            if self.closing:
                scheduler.fail_all(_closed())
                return
            if not scheduler.busy:
                self.inbox.get()()
                continue
            try:
                scheduler.step()
            except Exception as error:  # of the step as a whole: whoever is here cannot go on, others can come
                scheduler.fail_all(error)
                scheduler.pool.clear()

    def _read(self) -> None:
        while True:
            try:
                call = self.inbox.get_nowait()
            except queue.Empty:
                return
            call()

    def stop(self) -> None:
        self.closing = True
        self.inbox.put(lambda: None)
        if self.process == os.getpid() and threading.current_thread() is not self.thread:
            self.thread.join()
            self._read()  # what was posted while the thread ended
            self.scheduler.forward.close()


def _closed() -> UserError:
    return UserError("the engine is closed", hint="load it again")


class Engine:
    """A loaded model. Use `Engine.load`; close it, or use it as a context manager, to give its memory back."""

    def __init__(
        self, forward: Forward, tokenizer: Tokenizer | None = None, max_batch: int = 32, eos_id: int | None = None
    ) -> None:
        """From a forward pass that is there already; `load` makes it from a folder."""
        self.config: GPT2Config = forward.config
        self.tokenizer, self.max_batch = tokenizer, max_batch
        self.eos_id = end_id(self.config, eos_id, tokenizer)
        self.precision = forward.precision
        self.notes: list[str] = []
        self.memory = 0  # bytes of weights and cache
        self.score_head: NDArray[np.float32] | None = None  # a classifier's [labels, C]
        self._adapters: dict[str, Adapter] = {}
        self._heads: dict[str, NDArray[np.float32]] = {}  # of adapters that bring one
        self._changing = threading.Lock()  # of the adapters
        self._worker = _Worker(Scheduler(forward, vocabulary(self.config, tokenizer), max_batch))
        self._finalizer = weakref.finalize(self, self._worker.stop)  # also before the interpreter ends

    @classmethod
    def load(
        cls,
        folder: str | Path,
        precision: Precision = "auto",
        threads: int | None = None,
        max_batch: int = 32,
        cache_memory: int | None = None,
        on_progress: Progress | None = None,
        allow_hub: bool = False,
    ) -> Engine:
        """Load a model folder, or with allow_hub a name on the Hugging Face hub.

        precision: "auto" is int8 unless that costs the model more than 1 % in bits per token. threads: None takes
        every core that this process may use. max_batch: streams that are computed together; others wait.
        cache_memory: bytes for keys and values; None takes what max_batch full contexts need, at most half of the free
        memory. on_progress is told of what takes seconds the first time: "compiling" on a new machine, and the stages
        of a folder's first int8 load. What was chosen, or put right, is in `notes`. Raises UserError for what is wrong
        with the folder or too much for this machine.
        """
        check_one_of("precision", precision, ("int8", "fp32", "auto"))
        threads, max_batch = check_threads(threads), check_batch(max_batch)
        from gpt2kit.engine.forward import Forward as Kernels
        from gpt2kit.engine.forward import block_bytes
        from gpt2kit.engine.quantise import load_packed
        from gpt2kit.engine.source import read_score
        from gpt2kit.engine.weights import packed_bytes

        notes: list[str] = []
        path, chosen = resolve(folder, allow_hub)
        if chosen is not None:
            notes.append(chosen)
        (config, tokenizer), found = read_steadily(path, lambda found: read_head(path, found), weights=False)
        notes += found
        packed = load_packed(path, precision, on_progress, notes, config)
        size = block_bytes(packed.config, packed.precision)
        blocks = plan_blocks(packed.config, size, max_batch, cache_memory, runtime.available_memory())
        rows, logits = max_batch + PROMPT_ROWS, max_batch + SPARE_LOGITS
        forward = Kernels(packed, threads, blocks, rows, logits, max_batch)
        if on_progress is not None and not forward.is_compiled:
            on_progress("compiling", 0, 1)
        forward.warm_up()
        engine = cls(forward, tokenizer, max_batch)
        engine.memory = blocks * size + packed_bytes(packed.config, packed.precision)
        engine.notes = notes
        engine.score_head = read_score(path, packed.config)
        return engine

    # ------------------------------------------------------------ requests

    def submit(self, request: Request, *, notify: Callable[[], None] | None = None, events: bool = True) -> Handle:
        """Hand a request in. Wrong ones raise UserError here; later errors come out of the handle."""
        handle = self._handle(request, notify, events)
        self._post([handle])
        return handle

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
        *,
        window: Window = "slide",
        salt: str = "",
        speculate: bool = True,
        adapter: Adapters = None,
        **changes: Any,
    ) -> list[Completion] | list[list[Completion]]:
        """A completion for each prompt (text or token ids), in their order; a list of them each where n > 1.

        `settings` and `adapter` are one for all or one for each; `changes` are fields of the settings by name. An empty
        prompt starts from EOS.
        Without a seed each prompt draws one, which its completions report. Raises UserError.
        """
        found = _prompts(prompts)
        each = _settings(settings, changes, len(found))
        names = _adapters(adapter, len(found))
        requests = [
            Request(prompt, one, window, salt, speculate, adapter=name)
            for prompt, one, name in zip(found, each, names, strict=True)
        ]
        if any(one.num_beams > 1 for one in each):
            results = [self._beams(one) if one.settings.num_beams > 1 else self._whole([one])[0] for one in requests]
        else:
            results = self._whole(requests)
        return results if any(one.n > 1 for one in each) else [result[0] for result in results]

    def stream(
        self,
        prompt: Prompt,
        settings: SamplingSettings | None = None,
        *,
        window: Window = "slide",
        salt: str = "",
        speculate: bool = True,
        adapter: str | None = None,
        **changes: Any,
    ) -> Events:
        """One completion, token by token. What is wrong raises UserError at the call. Closing it cancels."""
        (one,) = _settings(settings, changes, 1)
        if one.n > 1:
            raise UserError("a stream is of one completion: n must be 1", hint="use submit(...).events()")
        return Events(self.submit(Request(prompt, one, window, salt, speculate, adapter=adapter)), self)

    def score(
        self, prompts: Prompt | Sequence[Prompt], logprobs: int = 0, *, salt: str = "", adapter: str | None = None
    ) -> list[list[Choice | None]]:
        """For each token of each prompt its log-probability and the likeliest alternatives; None for the first.

        Past n_positions the view slides as in generation.
        """
        settings = SamplingSettings(max_tokens=0, temperature=0.0, logprobs=logprobs)
        requests = [Request(prompt, settings, salt=salt, echo=True, adapter=adapter) for prompt in _prompts(prompts)]
        return [handle.scores for handle in self._finish(requests)]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling: Pooling = "mean",
        *,
        salt: str = "",
        adapter: str | None = None,
    ) -> NDArray[np.float32]:
        """[P, C]: of each prompt the hidden state after ln_f, its mean over all tokens or the last token's."""
        check_one_of("pooling", pooling, ("mean", "last"))
        requests = [Request(prompt, salt=salt, pooling=pooling, adapter=adapter) for prompt in _prompts(prompts)]
        vectors = [handle.vector() for handle in self._finish(requests)]
        return np.stack(vectors) if vectors else np.zeros((0, self.config.n_embd), np.float32)

    def classify(
        self, prompts: Prompt | Sequence[Prompt], *, salt: str = "", adapter: str | None = None
    ) -> NDArray[np.float32]:
        """[P, labels]: a classifier's scores before softmax (or sigmoid), from the last token's hidden state.

        Raises UserError where neither the model nor the adapter has such a head.
        """
        held, head = self._adapter(adapter), self.head_of(adapter)  # once: later ones of its name are others
        if head is None:
            raise UserError("the model has no classification head", hint="gpt2kit finetune DATA --task classify")
        asked = [Request(prompt, salt=salt, pooling="last", adapter=adapter) for prompt in _prompts(prompts)]
        handles = self._run([self._handle(request, None, False, adapter=held) for request in asked])
        return np.array([_scores(head, one.vector()) for one in handles]).reshape(len(handles), len(head))

    def head_of(self, adapter: str | None = None) -> NDArray[np.float32] | None:
        """The classification head [labels, C]: the adapter's, else the model's, else None."""
        return self.score_head if adapter is None else self._heads.get(adapter, self.score_head)

    def scores_of(self, state: NDArray[np.float32], adapter: str | None = None) -> NDArray[np.float32]:
        """A classifier's scores [labels] of one last hidden state [C], which `submit` with pooling="last" gives."""
        head = self.head_of(adapter)
        assert head is not None
        return _scores(head, state)

    def _whole(self, requests: Sequence[Request]) -> list[list[Completion]]:
        return [handle.completions() for handle in self._finish(requests)]

    def _beams(self, request: Request) -> list[Completion]:
        """beams.py has the way. The window and everything else are the request's."""
        settings = check_settings(request.settings, self.config, self.tokenizer)
        check_one_of("window", request.window, ("slide", "stop"))
        prompt = check_prompt("the prompt", self._ids(request.prompt), self.config, self.eos_id, request.window,
                              self.tokenizer)  # fmt: skip
        one = dataclasses.replace(request, settings=ONE_TOKEN, window="slide", speculate=False)
        adapter = self._adapter(request.adapter)  # once: a later one of its name is another

        def look(rows: Sequence[list[int]]) -> list[Logits]:
            handles = [self._handle(dataclasses.replace(one, prompt=row), None, False, Look, adapter) for row in rows]
            return [cast(Look, handle).logits for handle in self._run(handles)]

        N = self.config.n_positions
        return beam_search(EngineBeams(look), prompt, settings, N, self.eos_id, self.tokenizer, request.window)

    def _finish(self, requests: Sequence[Request]) -> list[Handle]:
        return self._run([self._handle(request, None, False) for request in requests])

    def _run(self, handles: list[Handle]) -> list[Handle]:
        """All of them to their end. If one fails, or Ctrl-C comes, the others are cancelled."""
        try:
            self._post(handles)
            for handle in handles:
                handle.wait()
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def _post(self, handles: Sequence[Handle]) -> None:
        worker = self._living()
        for handle in handles:
            handle._worker = worker
            worker.post(functools.partial(worker.add, handle))

    def _living(self) -> _Worker:
        worker = self._worker
        if worker.process != os.getpid():
            raise UserError("the engine was loaded by the parent process", hint="load it after the fork")
        if worker.closing:
            raise _closed()
        return worker

    def _handle(
        self, request: Request, notify: Callable[[], None] | None, events: bool, kind: type[Handle] = Handle,
        adapter: Adapter | None = None,
    ) -> Handle:  # fmt: skip
        """Check everything that can be wrong with a request. `adapter`: the one that its name stood for."""
        settings, window = request.settings, request.window
        check_one_of("window", window, ("slide", "stop"))
        if not isinstance(request.salt, str):
            raise UserError(f"salt must be text, got {request.salt!r}")
        if settings.num_beams > 1:
            raise UserError(
                "beam search knows its text at the end alone, so there is no stream", hint="Engine.generate"
            )
        if request.pooling is not None:
            check_one_of("pooling", request.pooling, ("mean", "last"))
            settings, window = SamplingSettings(max_tokens=1, temperature=0.0), "stop"
        settings = check_settings(settings, self.config, self.tokenizer)
        ids = check_prompt("the prompt", self._ids(request.prompt), self.config, self.eos_id, window, self.tokenizer)
        handle = kind(
            ids, settings, self.eos_id, self.tokenizer, self.config.n_positions, window, request.salt,
            request.speculate, request.echo, request.pooling, adapter or self._adapter(request.adapter),
            notify=notify, events=events,
        )  # fmt: skip
        self._worker.scheduler.check_fits(handle)
        return handle

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise UserError("the model folder has no tokenizer", hint="give the prompt as token ids")
        return self.tokenizer.encode(prompt)

    # ------------------------------------------------------------ adapters

    @property
    def adapters(self) -> list[str]:
        """Their names, in the order in which they came."""
        return list(self._adapters)

    def add_adapter(self, name: str, factors: Factors, score_head: NDArray[np.float32] | None = None) -> None:
        """Let requests name this adapter: by Linear ("h.0.attn.c_attn") A [r, in] and B [out, r], B A added to W.

        Any number may be there, and any of them in one step; the weights below are shared and not touched. `score_head`
        [labels, C] makes it a classifier. Raises UserError for a name that is taken, a Linear that the model does not
        have, a wrong shape, a value that is not finite, and where the memory does not suffice.
        """
        if not isinstance(name, str) or not name:
            raise UserError(f"an adapter's name must be text, got {name!r}")
        forward = self._living().scheduler.forward
        with self._changing:
            if name in self._adapters:
                raise UserError(
                    f"there is an adapter {name!r} already", hint="remove that one first, or take another name"
                )
            if score_head is not None:
                self._heads[name] = _checked_head(name, score_head, self.config.n_embd)
            try:
                adapter = forward.pack_adapter(name, factors)
            except BaseException:
                self._heads.pop(name, None)
                raise
            self._adapters[name] = adapter
            self.memory += adapter.bytes

    def remove_adapter(self, name: str) -> None:
        """Requests that are in the engine end with it; new ones do not find it. A later one of its name is another."""
        with self._changing:
            self.memory -= self._adapter(name).bytes
            del self._adapters[name]
            self._heads.pop(name, None)

    def _adapter(self, name: str | None) -> Any:
        found = None if name is None else self._adapters.get(name)
        if found is None and name is not None:
            raise unknown("adapter", str(name), self._adapters)
        return found

    # ------------------------------------------------------------ state

    @property
    def busy(self) -> bool:
        """Somebody runs or waits."""
        return self._worker.scheduler.busy or not self._worker.inbox.empty()

    def stats(self) -> Stats:
        """Figures for metrics, taken while the worker goes on."""
        scheduler = self._worker.scheduler
        pool = scheduler.pool
        counters = dataclasses.replace(scheduler.counters)
        waiting = scheduler.queued + self._worker.inbox.qsize()
        return Stats(scheduler.running, waiting, pool.blocks, pool.used, len(pool.tree), pool.evicted, counters)

    def clear_cache(self) -> None:
        """Forget all cached beginnings that nobody uses, before the next step. Waits for it."""
        worker, done = self._living(), threading.Event()
        worker.post(lambda: worker.clear(done))
        wait_for(done)

    def close(self) -> None:
        """End the worker; requests that still run fail with UserError. Closing twice is fine."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Stats:
    """A moment of an engine."""

    running: int  # streams in steps
    waiting: int  # streams in the queue
    blocks: int
    blocks_used: int  # held by a stream
    blocks_cached: int  # stand for a beginning, used or not
    blocks_evicted: int
    totals: Counters

    @property
    def cache_usage(self) -> float:
        return self.blocks_used / self.blocks


def _scores(head: NDArray[np.float32], state: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = (head.astype(np.float64) @ state).astype(np.float32)
    return scores


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several as a list: text is one prompt, and so is a flat list of ids."""
    if isinstance(prompts, str):
        return [prompts]
    if not hasattr(prompts, "__iter__") or isinstance(prompts, (bytes, Mapping)):
        raise UserError(f"prompts must be text, token ids, or a list of either, got {type(prompts).__name__}")
    found: list[Any] = list(prompts)
    if found and all(isinstance(one, (int, float, np.number)) for one in found):
        return [found]
    return found


def _adapters(given: Adapters, count: int) -> list[str | None]:
    if given is None or isinstance(given, str):
        return [given] * count
    if not isinstance(given, list | tuple) or len(given) != count:
        raise UserError(f"got {given!r} as adapters of {count} prompts", hint="give one name for all or one for each")
    return list(given)


def _checked_head(name: str, head: NDArray[np.float32], C: int) -> NDArray[np.float32]:
    found = np.array(head, np.float32)
    if found.ndim != 2 or found.shape[1] != C or not np.isfinite(found).all():
        raise UserError(f"adapter {name!r}: its score head must be finite [labels, {C}], got {list(found.shape)}")
    return found


def _settings(
    settings: SamplingSettings | Sequence[SamplingSettings] | None, changes: Mapping[str, Any], count: int
) -> list[SamplingSettings]:
    for name in changes:
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
    if not isinstance(settings, SamplingSettings | list | tuple | None):
        raise UserError(f"settings must be SamplingSettings, or one for each prompt, got {type(settings).__name__}")
    given = [settings or SamplingSettings()] * count if isinstance(settings, SamplingSettings | None) else settings
    if len(given) != count:
        raise UserError(f"got {len(given)} settings for {count} prompts", hint="give one for all or one for each")
    return [dataclasses.replace(one, **changes) for one in given]
