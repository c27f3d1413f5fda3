"""Between the engine's threads and the event loop: wake-ups, events, cancelling, models that load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_forward import FakeForward
from live import LIMIT

from gpt2kit.engine import Engine, Models, Request
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.serve import running
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.running import CHEAP, Engines, Facts, Presence, Running, Wakeups

LONG = 100_000  # tokens of a request that never ends by itself
V, EOS, POISON = 50, 49, 7


class Gate(FakeForward):
    """Lets a test hold the engine inside a step, and count steps."""

    def __init__(self, poison: int = -1) -> None:
        config = GPT2Config(vocab_size=V, n_positions=64, n_embd=4, n_layer=1, n_head=1)
        super().__init__(config, blocks=40, repeats=0.5, poison=poison)
        self.open = threading.Event()
        self.open.set()
        self.is_waiting = threading.Event()

    def step(self, *arguments: Any, **options: Any) -> Any:
        if not self.open.is_set():
            self.is_waiting.set()
            assert self.open.wait(LIMIT)
        return super().step(*arguments, **options)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def engine(gate: Gate) -> Iterator[Engine]:
    with Engine(gate, None, 4, eos_id=EOS) as one:
        yield one
        gate.open.set()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT))


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.002)


def request(*prompt: int, n: int = 1, max_tokens: int = 12, **options: Any) -> Request:
    settings = SamplingSettings(max_tokens=max_tokens, temperature=0.8, seed=3, n=n, ignore_eos=True)
    return Request(list(prompt or (1, 2)), settings, **options)


async def drain(work: Running) -> None:
    while await work.more():
        pass


def begin() -> Running:
    return Running(Wakeups(asyncio.get_running_loop()))


# ---------------------------------------------------------------- waking the event loop


def test_events_that_come_together_wake_the_loop_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = []
        real = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *a, **k: (calls.append(a), real(*a, **k))[1]  # type: ignore[method-assign]
        wakeups, heard = Wakeups(loop), []
        for number in range(100):
            wakeups.post(lambda number=number: heard.append(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert heard == list(range(100))
        assert len(calls) == 1
        wakeups.post(lambda: heard.append(-1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert heard[-1] == -1

    run(main())


def test_what_is_posted_while_others_are_delivered_comes_next() -> None:
    async def main() -> None:
        wakeups, heard = Wakeups(asyncio.get_running_loop()), []
        wakeups.post(lambda: wakeups.post(lambda: heard.append("second")))
        for _ in range(4):
            await asyncio.sleep(0)
        assert heard == ["second"]

    run(main())


def test_no_call_from_any_thread_is_lost_or_out_of_order() -> None:
    async def main() -> None:
        wakeups, heard = Wakeups(asyncio.get_running_loop()), dict[int, list[int]]()
        each, threads = 3000, 4

        def post(thread: int) -> None:
            for number in range(each):
                wakeups.post(lambda number=number: heard.setdefault(thread, []).append(number))

        workers = [threading.Thread(target=post, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        await until(lambda: sum(map(len, heard.values())) == each * threads)
        assert all(numbers == list(range(each)) for numbers in heard.values())
        for worker in workers:
            worker.join()

    run(main())


def test_a_loop_that_has_ended_is_no_error_for_the_engine(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    work = Running(Wakeups(loop))
    loop.close()
    work.submit(engine, [request()], True)
    work.handles[0].wait(LIMIT)


# ---------------------------------------------------------------- events and results


def test_events_are_those_that_the_engine_gives(engine: Engine) -> None:
    want = [list(engine.submit(request(5, n=3, max_tokens=9)).events()), list(engine.submit(request(6)).events())]

    async def main() -> None:
        with begin() as work:
            work.submit(engine, [request(5, n=3, max_tokens=9), request(6)], True)
            found: list[list[Any]] = [[], []]
            while news := await work.more():
                for number, index, event in news:
                    found[number].append((index, event))
            assert work.is_over
            assert [sorted(one, key=lambda pair: pair[0]) for one in found] == [
                sorted(one, key=lambda pair: pair[0]) for one in want
            ]

    run(main())


def test_results_come_without_any_event_before_them(engine: Engine) -> None:
    (want,) = engine.submit(request(5)).result()

    async def main() -> None:
        with begin() as work:
            work.submit(engine, [request(5), request(5, max_tokens=3)], False)
            await work.finish()
            assert work.handles[0].completions() == [want]
            assert work.handles[1].completions()[0].token_ids == want.token_ids[:3]

    run(main())


def test_no_requests_are_over_at_once() -> None:
    async def main() -> None:
        with begin() as work:
            await work.finish()
            assert await work.more() == []

    run(main())


def test_what_the_engine_fails_at_is_a_500_that_says_so() -> None:
    async def main(stream: bool) -> None:
        with Engine(Gate(POISON), None, 4, eos_id=EOS) as engine, begin() as work:
            work.submit(engine, [request(), request(POISON)], stream)
            with pytest.raises(ApiError, match="could not finish") as found:
                await (drain(work) if stream else work.finish())
            assert found.value.status == 500

    run(main(True))
    run(main(False))


def test_a_wrong_request_raises_where_it_is_submitted(engine: Engine) -> None:
    async def main() -> None:
        with begin() as work, pytest.raises(UserError, match="outside the vocabulary"):
            work.submit(engine, [request(V)], True)

    run(main())


# ---------------------------------------------------------------- clients that go away


def test_leaving_frees_the_places_before_the_next_step(engine: Engine, gate: Gate) -> None:
    async def main() -> None:
        with begin() as work:
            work.submit(engine, [request(max_tokens=LONG), request(4, n=3, max_tokens=LONG)], True)
            await until(lambda: engine.stats().running == 4)
            gate.open.clear()
            await until(gate.is_waiting.is_set)
            before = gate.steps
        gate.open.set()
        await until(lambda: not engine.busy)
        assert gate.steps == before + 1
        assert engine.stats().blocks_used == 0

    run(main())


def test_a_client_that_goes_while_we_submit_leaves_nothing_behind(engine: Engine) -> None:
    async def main() -> None:
        work = begin()
        with work:
            pass
        work.submit(engine, [request(max_tokens=LONG)] * 3, True)
        assert len(work.handles) == 1
        await until(lambda: not engine.busy)

    run(main())


class Client:
    """What ASGI's receive tells of a client that leaves when it is told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def test_the_task_of_a_client_that_goes_is_cancelled_and_goes_on_behind() -> None:
    async def main() -> None:
        client, steps = Client(), []
        asyncio.get_running_loop().call_later(0.01, client.leaves.set)
        async with Presence(client.receive) as presence:
            try:
                await asyncio.sleep(LIMIT)
            finally:
                steps.append("cleaned")
        assert presence.gone
        await asyncio.sleep(0.001)  # no cancellation is left
        assert steps == ["cleaned"]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_a_client_that_goes_is_noticed_at_once() -> None:
    async def main() -> None:
        client, turns = Client(), 0
        async with Presence(client.receive) as presence:
            await asyncio.sleep(0)  # the watch begins
            client.leaves.set()
            while turns < 100:
                turns += 1
                await asyncio.sleep(0)
        assert presence.gone
        assert turns < 10  # of the event loop

    run(main())


def test_a_client_that_stays_changes_nothing_and_no_task_is_left() -> None:
    async def main() -> None:
        async with Presence(Client().receive) as presence:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not presence.gone
        assert len(asyncio.all_tasks()) == 2  # wait_for's and this one
        with pytest.raises(ValueError, match="ours"):
            async with Presence(Client().receive):
                raise ValueError("ours")

    run(main())


def test_a_server_that_ends_cancels_even_while_the_client_goes() -> None:
    async def main() -> None:
        client, reached = Client(), []

        async def work() -> None:
            async with Presence(client.receive):
                await asyncio.sleep(LIMIT)
            reached.append("behind")
            await asyncio.sleep(LIMIT)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        client.leaves.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert not reached

    run(main())


# ---------------------------------------------------------------- models


class Loaded:
    """Instead of an engine."""

    def __init__(self, folder: str, memory: int = 1) -> None:
        self.folder, self.memory = folder, memory
        self.busy = self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "read_facts", lambda name, folder: Facts(name, Path(folder), "f" * 64, 0, None, {}))


def engines(load: Callable[[str], Any] = Loaded, memory: int | None = None, names: str = "abc") -> Engines:
    return Engines(Models({name: f"/secret/{name}" for name in names}, memory, load=load))


def test_a_model_that_loads_does_not_stop_the_loop_or_the_others() -> None:
    may_load = threading.Event()

    def load(folder: str) -> Loaded:
        assert folder.endswith("a") or may_load.wait(LIMIT)
        return Loaded(folder)

    async def main() -> None:
        found = engines(load)
        async with found.use("a"):
            pass
        slow = asyncio.create_task(found.preload(["b"]))
        await asyncio.sleep(0.02)
        begun = time.perf_counter()
        for _ in range(50):
            async with found.use("a") as served:
                assert served.users == 1
                await asyncio.sleep(0)
        assert time.perf_counter() - begun < 1
        assert not slow.done()
        assert not found.is_ready
        may_load.set()
        await slow
        assert found.is_ready
        found.close()

    run(main())


def test_a_model_is_loaded_once_however_many_ask() -> None:
    loads = []

    def load(folder: str) -> Loaded:
        loads.append(folder)
        time.sleep(0.05)
        return Loaded(folder)

    async def main() -> None:
        found = engines(load)

        async def ask() -> None:
            async with found.use("a"):
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(ask()) for _ in range(20)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()  # who asked first does not take the model from the others
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [asyncio.CancelledError] + [type(None)] * 19
        assert len(loads) == 1
        assert found.loaded["a"].users == 0
        found.close()

    run(main())


def test_an_unknown_model_is_a_404_that_lists_the_known() -> None:
    async def main() -> None:
        found = engines()
        with pytest.raises(ApiError, match="known: a, b, c") as error:
            async with found.use("x"):
                pass
        assert (error.value.status, error.value.param, error.value.code) == (404, "model", "model_not_found")
        with pytest.raises(ApiError):
            await found.facts("../a")
        found.close()

    run(main())


def test_a_model_that_cannot_be_loaded_is_a_503_without_the_servers_paths(caplog: pytest.LogCaptureFixture) -> None:
    faults = [UserError("no model in /secret/a", hint="look into /secret/a")]

    def load(folder: str) -> Loaded:
        if faults:
            raise faults.pop()
        return Loaded(folder)

    async def main() -> None:
        found = engines(load)
        with pytest.raises(ApiError) as error:
            await found.preload(["a"])
        assert error.value.status == 503
        assert "secret" not in str(error.value.body())
        assert isinstance(error.value.__cause__, UserError)
        assert "/secret/a" in caplog.text
        assert not found.is_ready
        await found.preload(["a"])  # it has been put right
        assert found.is_ready
        found.close()

    run(main())


def test_where_memory_is_short_the_model_used_least_recently_gives_way_and_one_in_use_never() -> None:
    made: dict[str, Loaded] = {}

    def load(folder: str) -> Loaded:
        made[folder[-1]] = Loaded(folder)
        return made[folder[-1]]

    async def main() -> None:
        found = engines(load, memory=2)
        async with found.use("a"):
            async with found.use("b"):
                pass
            await asyncio.sleep(0.001)
        async with found.use("c"):
            assert [name for name, one in made.items() if one.closed] == ["b"]
            async with found.use("a") as served, found.use("c"):
                assert served.engine is made["a"]
                with pytest.raises(ApiError) as error:
                    async with found.use("b"):
                        pass
                assert error.value.status == 503
            async with found.use("b"):
                assert made["a"].closed
                assert not made["c"].closed
        found.close()

    run(main())


def test_what_is_not_in_memory_is_loaded_again() -> None:
    async def main() -> None:
        found = engines(memory=1)
        for name in "abacb":
            async with found.use(name) as served:
                assert served.facts.name == name
                assert not served.engine.closed  # type: ignore[attr-defined]
        found.close()

    run(main())


def test_long_work_is_done_beside_the_loop_and_short_work_at_once() -> None:
    async def main() -> None:
        found = engines()
        here = threading.current_thread()
        assert await found.do(CHEAP, threading.current_thread) is here
        assert await found.do(CHEAP + 1, threading.current_thread) is not here
        found.close()

    run(main())
