"""The engine around the scheduler: threads, handles, texts, limits, and what users get wrong."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fake_forward import FakeForward
from schedules import EOS, N, V, alone, config

import gpt2kit.engine
from gpt2kit import runtime
from gpt2kit.engine.engine import Engine, Request
from gpt2kit.engine.handle import Handle
from gpt2kit.engine.plan import plan_blocks
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Completion
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer

LONG = 100_000  # tokens of a request that never ends by itself


class Gate(FakeForward):
    """Lets a test hold the worker inside a step."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.open = threading.Event()
        self.open.set()
        self.inside = threading.Event()

    def step(self, *arguments: Any, **options: Any) -> Any:
        self.inside.set()
        assert self.open.wait(30)
        return super().step(*arguments, **options)


Make = Callable[..., Engine]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Engine] = []

    def engine(tokenizer: Tokenizer | None = None, **options: Any) -> Engine:
        size = V if tokenizer is None else tokenizer.vocab_size
        options = {"blocks": 40, "repeats": 0.5, **options}
        batch = options.pop("max_batch", 6)
        made.append(Engine(Gate(config(size), **options), tokenizer, batch, eos_id=EOS))
        return made[-1]

    yield engine
    for one in made:
        gate(one).open.set()
        one.close()


def gate(engine: Engine) -> Gate:
    forward = engine._worker.scheduler.forward
    assert isinstance(forward, Gate)
    return forward


def tokens(results: Any) -> list[list[int]]:
    return [one.token_ids for one in results]


# ---------------------------------------------------------------- the ways to ask


def test_one_flat_list_is_one_prompt(make: Make) -> None:
    engine = make()
    (one,) = engine.generate([1, 2, 3], max_tokens=5, temperature=0)
    both = engine.generate([[1, 2, 3], np.array([4, 5])], max_tokens=5, temperature=0)
    assert isinstance(one, Completion)
    assert one == both[0]
    assert len(both) == 2
    assert engine.generate([]) == []


def test_generate_stream_and_submit_give_the_same(make: Make) -> None:
    engine = make()
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "seed": 4, "logprobs": 2}
    (one,) = engine.generate([[7, 8]], **options)
    streamed = list(engine.stream([7, 8], **options))
    handle = engine.submit(Request([7, 8], SamplingSettings(**options)))
    assert isinstance(one, Completion)
    assert [event.token for event in streamed] == one.token_ids
    assert [event.choice for event in streamed] == one.logprobs
    assert streamed[-1].finish_reason == one.finish_reason
    assert list(handle) == streamed
    assert handle.result() == [one]
    assert handle.done
    assert list(handle) == []  # what was told is told
    assert 0 <= handle.first_token < 30


def test_answers_are_those_of_the_scheduler_alone(make: Make) -> None:
    engine = make(repeats=0.9)
    prompts = [[i + 1, 2, 3] * (i + 1) for i in range(12)]
    results = engine.generate(prompts, max_tokens=20, temperature=0, logprobs=1)
    for prompt, one in zip(prompts, results, strict=True):
        rows, _ = alone(prompt, max_tokens=20, repeats=0.9)
        assert isinstance(one, Completion)
        assert (one.token_ids, one.logprobs) == (rows[0][0], rows[0][1])


def test_several_completions_come_as_lists_and_as_numbered_events(make: Make) -> None:
    engine = make()
    options: dict[str, Any] = {"n": 3, "seed": 1, "max_tokens": 6}
    ((first, second, third),) = engine.generate([[1, 2]], **options)
    assert isinstance(first, Completion)
    alone_again = engine.generate([[1, 2]], max_tokens=6, seed=second.seed)
    assert tokens(alone_again) == [second.token_ids]
    handle = engine.submit(Request([1, 2], SamplingSettings(**options)))
    told: dict[int, list[int | None]] = {0: [], 1: [], 2: []}
    for index, event in handle.events():
        told[index].append(event.token)
    assert list(told.values()) == tokens([first, second, third])
    with pytest.raises(UserError, match="n must be 1"):
        iter(handle)
    with pytest.raises(UserError, match="n must be 1"):
        engine.stream([1], n=2)


def test_each_prompt_may_have_its_own_settings(make: Make) -> None:
    engine = make()
    each = [SamplingSettings(max_tokens=i, temperature=0, ignore_eos=True) for i in (2, 5)]
    assert [len(ids) for ids in tokens(engine.generate([[1], [2]], each))] == [2, 5]
    assert [len(ids) for ids in tokens(engine.generate([[1], [2]], each, max_tokens=3))] == [3, 3]


def test_an_empty_prompt_starts_from_eos(make: Make) -> None:
    engine = make()
    assert engine.generate([[]], max_tokens=4, temperature=0) == engine.generate([[EOS]], max_tokens=4, temperature=0)


def test_no_seed_draws_one_and_reports_it(make: Make) -> None:
    engine = make()
    (one,) = engine.generate([[1]], max_tokens=8)
    assert isinstance(one, Completion)
    assert one.seed is not None
    assert tokens(engine.generate([[1]], max_tokens=8, seed=one.seed)) == [one.token_ids]


@pytest.mark.parametrize("kind", ["characters", "bytes_bpe"])
def test_text_in_text_out_and_no_character_is_split(make: Make, kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    engine = make(tokenizer)
    prompts = ["春眠不觉晓", "花落", "abc"]
    results = engine.generate(prompts, max_tokens=25, temperature=1.0, seed=1, ignore_eos=True)
    for prompt, one in zip(prompts, results, strict=True):
        assert isinstance(one, Completion)
        events = list(engine.stream(prompt, max_tokens=25, temperature=1.0, seed=1, ignore_eos=True))
        assert "".join(event.text for event in events) == one.text == tokenizer.decode(one.token_ids)
        (by_ids,) = engine.generate([tokenizer.encode(prompt)], max_tokens=25, seed=1, ignore_eos=True)
        assert by_ids == one


def test_a_stop_string_across_tokens_ends_the_text_before_it(make: Make, characters: Tokenizer) -> None:
    engine = make(characters)
    (whole,) = engine.generate(["春"], max_tokens=30, temperature=0, ignore_eos=True)
    assert isinstance(whole, Completion)
    assert whole.text is not None
    stop = whole.text[10:13]
    (cut,) = engine.generate(["春"], max_tokens=30, temperature=0, ignore_eos=True, stop=[stop])
    assert isinstance(cut, Completion)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    text = "".join(e.text for e in engine.stream("春", max_tokens=30, temperature=0, ignore_eos=True, stop=[stop]))
    assert text == cut.text


def test_tokens_that_the_tokenizer_does_not_know_are_never_chosen(make: Make, characters: Tokenizer) -> None:
    wide = config(characters.vocab_size + 40)
    with Engine(FakeForward(wide, 40), characters, 4, eos_id=EOS) as engine:
        results = engine.generate(["春"] * 5, max_tokens=40, ignore_eos=True, temperature=2.0, seed=1)
    assert max(token for ids in tokens(results) for token in ids) < characters.vocab_size


def test_ids_that_the_tokenizer_does_not_know_are_refused(characters: Tokenizer) -> None:
    wide = config(characters.vocab_size + 40)
    with Engine(FakeForward(wide, 40), characters, 4, eos_id=EOS) as engine:
        for prompt in ([characters.vocab_size], [1, characters.vocab_size + 39]):
            with pytest.raises(UserError, match=f"outside the vocabulary of {characters.vocab_size} tokens"):
                engine.generate([prompt], repetition_penalty=1.3)
            with pytest.raises(UserError, match="outside the vocabulary"):
                engine.score([prompt])


def test_scores_and_vectors(make: Make) -> None:
    engine = make()
    prompts = [[1, 2, 3, 4], [5], list(range(1, 20)) * 5]
    scores = engine.score(prompts, logprobs=2)
    for prompt, found in zip(prompts, scores, strict=True):
        _, expected = alone(prompt, max_tokens=0, echo=True, logprobs=2, repeats=0.5)
        assert found == expected
    states = alone(prompts[0], pooling="mean", repeats=0.5)
    mean, last = engine.embed(prompts[:2]), engine.embed(prompts[:2], "last")
    assert mean.shape == last.shape == (2, 4)
    assert mean.dtype == np.float32
    assert mean[0].tolist() == np.float32(np.mean(states, 0, dtype=np.float64)).tolist()
    assert last[0].tolist() == states[-1]
    assert engine.embed([]).shape == (0, 8)


# ---------------------------------------------------------------- handles and threads


def test_requests_from_many_threads_get_their_own_answers(make: Make) -> None:
    engine = make(repeats=0.9)
    found: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def ask(i: int) -> None:
        for j in range(3):
            found.put((i * 3 + j, engine.generate([[i + 1, j + 1]], max_tokens=15, temperature=0, logprobs=1)[0]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found.qsize() == 18
    while not found.empty():
        i, one = found.get()
        rows, _ = alone([i // 3 + 1, i % 3 + 1], max_tokens=15, repeats=0.9)
        assert one.token_ids == rows[0][0]


def test_cancelling_ends_a_request_and_frees_its_blocks(make: Make) -> None:
    engine = make()
    handle = engine.submit(Request([1, 2], SamplingSettings(max_tokens=LONG, ignore_eos=True)))
    events = iter(handle)
    next(events)
    handle.cancel()
    with pytest.raises(UserError, match="cancelled"):
        handle.result(30)
    with pytest.raises(UserError, match="cancelled"):
        for _ in events:
            pass
    engine.generate([[1]], max_tokens=1)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.totals.cancelled == 1


def test_a_request_that_waits_can_be_cancelled(make: Make) -> None:
    engine = make(max_batch=1)
    running = engine.submit(Request([1, 2], SamplingSettings(max_tokens=LONG, ignore_eos=True)))
    waiting = engine.submit(Request([3], SamplingSettings(max_tokens=LONG, ignore_eos=True)))
    waiting.cancel()
    with pytest.raises(UserError, match="cancelled"):
        waiting.result(30)
    assert not running.done
    running.cancel()


def test_result_gives_up_after_its_timeout(make: Make) -> None:
    engine = make()
    gate(engine).open.clear()
    handle = engine.submit(Request([1], SamplingSettings(max_tokens=3, temperature=0)))
    with pytest.raises(TimeoutError):
        handle.result(0.01)
    gate(engine).open.set()
    assert len(handle.result(30)) == 1


def test_closing_or_dropping_a_stream_cancels_it(make: Make) -> None:
    engine = make()
    for drop in (False, True):
        stream = engine.stream([1], max_tokens=LONG, ignore_eos=True)
        handle = stream.handle
        next(stream)
        if drop:
            del stream
            gc.collect()
        else:
            stream.close()
        with pytest.raises(UserError, match="cancelled"):
            handle.result(30)


def test_notify_tells_of_events_without_waiting(make: Make) -> None:
    engine = make()
    told: list[Any] = []
    over = threading.Event()
    handles: list[Handle] = []

    def notify() -> None:
        if handles:
            told.extend(event.token for _, event in handles[0].ready())
            if handles[0].done:
                over.set()

    gate(engine).open.clear()
    handles.append(engine.submit(Request([1], SamplingSettings(max_tokens=5, ignore_eos=True)), notify=notify))
    gate(engine).open.set()
    assert over.wait(30)
    assert told == handles[0].result()[0].token_ids


def test_who_iterates_ends_although_another_looked_at_what_was_ready(make: Make) -> None:
    handle = make().submit(Request([1], SamplingSettings(max_tokens=3, ignore_eos=True)))
    handle.wait(30)
    assert len(handle.ready()) == 3
    assert list(handle.events()) == []
    assert handle.ready() == []


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here, also in one of several test processes, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_what_generate_asked_for(make: Make, interruptible: None) -> None:
    engine = make()

    def interrupt() -> None:
        gate(engine).inside.wait(30)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[1], [2]], max_tokens=LONG, ignore_eos=True)
    thread.join()
    rows, _ = alone([3], max_tokens=5, repeats=0.5)
    assert tokens(engine.generate([[3]], max_tokens=5, temperature=0)) == [rows[0][0]]
    assert engine.stats().totals.cancelled == 2
    assert engine.stats().blocks_used == 0


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(make: Make) -> None:
    engine = make()
    gate(engine).error = MemoryError("no memory for a buffer")
    with pytest.raises(MemoryError):
        engine.generate([[1, 2]], max_tokens=3)
    assert len(engine.generate([[1, 2]], max_tokens=3)) == 1


def test_an_idle_engine_sleeps(make: Make) -> None:
    engine = make()
    engine.generate([[1]], max_tokens=2)
    worker, passes = engine._worker, []
    read = worker._read
    worker._read = lambda: (passes.append(None), read())[1]  # type: ignore[method-assign]
    for _ in range(100):
        engine.clear_cache()
    assert len(passes) <= 101  # one for each call, and not round and round between them


def test_a_stream_that_the_garbage_collector_drops_inside_the_engines_own_calls(make: Make) -> None:
    worker = make()._worker

    def collect(frame: FrameType, event: str, _: object) -> Any:
        """As if a dropped stream's cancel came at every line of the standard library's locks."""
        if frame.f_code.co_filename == threading.__file__:
            sys.settrace(None)
            worker.post(lambda: None)
            sys.settrace(collect)
        return collect

    def post() -> None:
        sys.settrace(collect)
        worker.post(lambda: None)
        sys.settrace(None)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_closed_engine_says_so_and_ends_what_ran(make: Make) -> None:
    engine = make()
    handle = engine.submit(Request([1], SamplingSettings(max_tokens=LONG, ignore_eos=True)))
    next(iter(handle))
    engine.close()
    engine.close()
    with pytest.raises(UserError, match="closed"):
        handle.result(30)
    for call in (lambda: engine.generate([[1]]), engine.clear_cache):
        with pytest.raises(UserError, match="closed"):
            call()
    assert gate(engine).closed
    assert not engine._worker.thread.is_alive()


def test_a_dropped_engine_ends_its_thread() -> None:
    engine = Engine(FakeForward(config(), 8), None, 2)
    worker = engine._worker
    engine.generate([[1]], max_tokens=1)
    del engine
    gc.collect()
    worker.thread.join(30)
    assert not worker.thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python's own about fork and threads
def test_a_forked_child_is_told_that_the_engine_stayed_behind(make: Make) -> None:
    engine = make()
    child = os.fork()
    if not child:
        try:
            engine.generate([[1]])
        except UserError as error:
            os._exit(7 if "parent process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_an_interpreter_ends_while_requests_run() -> None:
    code = """
        import sys; sys.path.insert(0, sys.argv[1])
        from fake_forward import FakeForward
        from schedules import config
        from gpt2kit.engine import Engine
        engine = Engine(FakeForward(config(), 8), None, 2)
        stream = engine.stream([1], max_tokens=10**6, ignore_eos=True)
        next(stream)
        print("torch" in sys.modules)
    """
    here = os.path.dirname(os.path.abspath(__file__))
    code = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "False", "")


def test_the_cache_can_be_cleared(make: Make) -> None:
    engine = make()
    prompt = list(range(1, 20)) * 2
    engine.generate([prompt], max_tokens=1)
    assert engine.stats().blocks_cached == 2
    engine.clear_cache()
    assert engine.stats().blocks_cached == 0
    handle = engine.submit(Request(prompt, SamplingSettings(max_tokens=1)))
    handle.result(30)
    assert handle.cached_tokens == 0


def test_a_prompt_counts_once_however_many_completions_and_views_it_has(make: Make) -> None:
    engine = make()
    prompt = list(range(1, 20)) * 2
    engine.generate([prompt], max_tokens=4, ignore_eos=True, n=3)
    engine.score([prompt * 4])
    assert engine.stats().totals.prompt_tokens == 38 + 4 * 38


def test_figures_for_metrics(make: Make) -> None:
    engine = make()
    prompt = list(range(1, 20)) * 2
    engine.generate([prompt, prompt], max_tokens=4, ignore_eos=True)
    engine.generate([prompt], max_tokens=4, ignore_eos=True)
    stats = engine.stats()
    totals = stats.totals
    assert (totals.requests, totals.finished, totals.generation_tokens, totals.prompt_tokens) == (3, 3, 12, 3 * 38)
    assert totals.prefix_tokens >= 32
    assert stats.blocks == 40
    assert stats.cache_usage == 0
    assert totals.steps > 0
    assert not engine.busy


# ---------------------------------------------------------------- what users get wrong

BAD: dict[str, tuple[Callable[[Engine], Any], str]] = {
    "an id outside": (lambda e: e.generate([[1, V]]), "outside the vocabulary"),
    "a negative id": (lambda e: e.generate([[-1]]), "outside the vocabulary"),
    "a float as id": (lambda e: e.generate([1.5]), "1.5"),
    "a truth as id": (lambda e: e.generate([[True]]), "True"),
    "a number as prompts": (lambda e: e.generate(5), "prompts must be"),
    "nothing as prompt": (lambda e: e.generate([None]), "list of token ids"),
    "bytes": (lambda e: e.generate(b"abc"), "prompts must be"),
    "bytes as one prompt": (lambda e: e.generate([b"abc"]), "list of token ids"),
    "a mapping as one prompt": (lambda e: e.generate([{1: 2}]), "list of token ids"),
    "settings that are none": (lambda e: e.generate([[1]], settings={"max_tokens": 5}), "settings must be"),
    "text without a tokenizer": (lambda e: e.generate("abc"), "no tokenizer"),
    "too long to stop": (lambda e: e.generate([[1] * (N + 1)], window="stop"), f"the model sees {N}"),
    "too long to embed": (lambda e: e.embed([[1] * (N + 1)]), f"the model sees {N}"),
    "unknown window": (lambda e: e.generate([[1]], window="roll"), "window"),
    "unknown pooling": (lambda e: e.embed([[1]], "max"), "pooling"),
    "unknown setting": (lambda e: e.generate([[1]], temprature=1), "did you mean 'temperature'"),
    "NaN": (lambda e: e.generate([[1]], temperature=float("nan")), "temperature"),
    "negative": (lambda e: e.generate([[1]], max_tokens=-1), "max_tokens"),
    "NaN top_p": (lambda e: e.generate([[1]], top_p=float("nan")), "top_p"),
    "beams as a stream": (lambda e: e.stream([1], num_beams=2, temperature=0), "there is no stream"),
    "bias outside": (lambda e: e.generate([[1]], logit_bias={V: 1.0}), "outside the vocabulary"),
    "stop without a tokenizer": (lambda e: e.generate([[1]], stop=["a"]), "tokenizer"),
    "settings of another number": (lambda e: e.generate([[1]], [SamplingSettings()] * 2), "2 settings for 1 prompts"),
    "a salt that is no text": (lambda e: e.generate([[1]], salt=5), "salt"),
    "all tokens banned": (lambda e: e.generate([[1]], bad_words=[[i] for i in range(V)]), "every token is banned"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_request_is_a_user_error_and_the_engine_goes_on(make: Make, name: str) -> None:
    engine = make()
    call, message = BAD[name]
    with pytest.raises(UserError, match=message):
        call(engine)
    assert len(engine.generate([[1]], max_tokens=2)) == 1
    assert engine.stats().blocks_used == 0


def test_an_empty_prompt_without_eos_is_refused() -> None:
    bare = GPT2Config(vocab_size=V, n_positions=N, n_embd=8, n_layer=1, n_head=2, eos_token_id=None)
    with Engine(FakeForward(bare, 8), None, 2) as engine, pytest.raises(UserError, match="empty"):
        engine.generate([[]])


def test_a_request_that_the_cache_can_never_hold_is_refused(make: Make) -> None:
    engine = make(blocks=2)
    with pytest.raises(UserError, match="engine has 32"):
        engine.generate([[1]], max_tokens=40)
    assert len(engine.generate([[1]], max_tokens=20)) == 1


def test_logits_that_are_nan_end_one_request_only(make: Make) -> None:
    engine = make(poison=5)
    good = engine.submit(Request([1], SamplingSettings(max_tokens=4, temperature=0, bad_words=[[5]])))
    with pytest.raises(UserError, match="NaN"):
        engine.generate([[5]], max_tokens=3)
    assert len(good.result(30)) == 1


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_must_be_a_number(threads: Any) -> None:
    with pytest.raises(UserError, match="threads"):
        Engine.load("nowhere", threads=threads)


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(UserError, match="this process may use") as caught:
        Engine.load("nowhere", threads=runtime.cores() + 1)
    assert f"threads={runtime.cores()}" in str(caught.value)


@pytest.mark.parametrize("batch", [0, 5000, 2.0, True])
def test_max_batch_must_be_a_number(batch: Any) -> None:
    with pytest.raises(UserError, match="max_batch"):
        Engine.load("nowhere", max_batch=batch)


def test_blocks_are_planned_from_memory() -> None:
    shape = config(n_positions=100)  # 7 blocks a context
    assert plan_blocks(shape, 1000, 4, None, 10**9) == 28
    assert plan_blocks(shape, 1000, 4, None, 40_000) == 20
    assert plan_blocks(shape, 1000, 4, 9_500, 10**9) == 9
    with pytest.raises(UserError, match="one full context"):
        plan_blocks(shape, 1000, 4, None, 13_000)
    with pytest.raises(UserError, match="at least 7000"):
        plan_blocks(shape, 1000, 4, 6_999, 10**9)
    with pytest.raises(UserError, match="more than the"):
        plan_blocks(shape, 1000, 4, 10**9, 10**8)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(UserError, match="cache_memory"):
            plan_blocks(shape, 1000, 4, wrong, 10**9)  # type: ignore[arg-type]


def test_the_folder_exports_its_names() -> None:
    for name in gpt2kit.engine.__all__:
        assert getattr(gpt2kit.engine, name).__name__ == name
    with pytest.raises(AttributeError):
        gpt2kit.engine.nothing  # noqa: B018


# ---------------------------------------------------------------- over the real forward pass


def real(precision: Any, threads: int = 1, **sizes: int) -> Engine:
    from gpt2kit.engine.forward import Forward
    from gpt2kit.engine.source import random_weights
    from gpt2kit.engine.weights import pack

    shape = GPT2Config(vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=4, eos_token_id=0)
    sizes = {"blocks": 64, "max_rows": 40, "max_logits": 20, "max_sequences": 8, **sizes}
    return Engine(Forward(pack(random_weights(shape, 1, precision)), threads, **sizes), None, 8)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_real_forward_answers_alike_alone_in_company_and_with_drafts(precision: str) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(1, 300) for _ in range(rng.choice([1, 3, 17, 40, 70]))] for _ in range(12)]
    prompts += [prompts[4] + prompts[0], [5, 6, 7] * 12]
    few = dict.fromkeys(range(10, 14), 100.0)  # a text over four tokens repeats itself
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.8}, {"temperature": 0.8, "logit_bias": few}]
    each = [
        SamplingSettings(max_tokens=40, seed=i, logprobs=1, ignore_eos=True, **kinds[i % 3])
        for i in range(len(prompts))
    ]
    with real(precision) as engine:
        alone = [engine.generate([p], s, speculate=False)[0] for p, s in zip(prompts, each, strict=True)]
        engine.clear_cache()
        cost = engine._worker.scheduler.cost
        cost.base, cost.slope = 1.0, 0.02
        cost.observe = lambda rows, seconds: None  # type: ignore[method-assign]
        assert engine.generate(prompts, each) == alone
        assert engine.generate(prompts[::-1], each[::-1])[::-1] == alone
        totals = engine.stats().totals
    assert totals.accepted_tokens > 20
    assert totals.prefix_tokens > 0
    assert totals.slides > 10


@pytest.mark.slow
def test_memory_stays_within_the_plan_over_ten_thousand_requests(make: Make) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    rng = random.Random(0)
    engine = make(repeats=0.8)
    resident = []
    for _ in range(100):
        handles = []
        for _ in range(100):
            prompt = [rng.randrange(1, V) for _ in range(rng.randrange(1, 40))]
            settings = SamplingSettings(max_tokens=rng.randrange(6), temperature=rng.choice([0.0, 1.0]), seed=1)
            handles.append(engine.submit(Request(prompt, settings, salt=rng.choice(["", "a"]))))
        for handle in rng.sample(handles, 20):
            handle.cancel()
        for handle in handles:
            with contextlib.suppress(UserError):
                handle.result(60)
        gc.collect()
        resident.append(process.memory_info().rss)
    engine._worker.scheduler.pool.check()
    stats = engine.stats()
    assert stats.totals.requests == 10_000
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert max(resident[50:]) - resident[20] < 4 << 20, [r >> 20 for r in resident[::10]]
