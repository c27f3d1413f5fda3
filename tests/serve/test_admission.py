"""The queue, the limits of a key, and draining."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from gpt2kit.serve.admission import AHEAD, Admission
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.keys import ANONYMOUS, Key
from gpt2kit.serve.settings import ServeSettings


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(max_batch: int = 1, max_queued: int = 2, clock: Clock | None = None, **more: Any) -> Admission:
    settings = ServeSettings(models=("m", "slow", "fast"), max_batch=max_batch, max_queued=max_queued, **more)
    return Admission(settings, clock or Clock())


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


class Guest:
    """A request that stays until it is told to go."""

    def __init__(self, admission: Admission, **options: Any) -> None:
        self.is_in = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(admission, **options))

    async def _stay(self, admission: Admission, key: Key = ANONYMOUS, model: str = "m", **options: Any) -> None:
        async with admission.enter(key, model, **options):
            self.is_in = True
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def guests(admission: Admission, count: int, **options: Any) -> AsyncIterator[list[Guest]]:
    found = [Guest(admission, **options) for _ in range(count)]
    await settle()
    yield found
    for one in found:
        await one.cancel()


def test_requests_wait_in_the_order_of_arrival() -> None:
    async def main() -> None:
        a = admission(max_batch=1, max_queued=10)
        async with guests(a, AHEAD + 3) as all_of_them:
            assert [one.is_in for one in all_of_them] == [True] * AHEAD + [False] * 3
            assert (a.running, a.waiting) == (AHEAD, 3)
            for left in range(3):
                await all_of_them[left].leave()
                await settle()
                assert [one.is_in for one in all_of_them[AHEAD:]] == [True] * (left + 1) + [False] * (2 - left)
        assert (a.running, a.waiting) == (0, 0)

    run(main())


def test_more_than_max_queued_are_answered_503_with_a_time_to_wait() -> None:
    async def main() -> None:
        a = admission(max_queued=2)
        async with guests(a, AHEAD + 2):
            with pytest.raises(ApiError) as found:
                async with a.enter(ANONYMOUS, "m"):
                    pass
            error = found.value
            assert (error.status, error.type, error.code) == (503, "overloaded_error", "queue_full")
            assert error.headers() == {"retry-after": "1"}
            assert a.waiting == 2

    run(main())


def test_with_max_queued_0_nobody_waits() -> None:
    async def main() -> None:
        a = admission(max_queued=0)
        async with guests(a, AHEAD) as found:
            assert all(one.is_in for one in found)
            with pytest.raises(ApiError):
                async with a.enter(ANONYMOUS, "m"):
                    pass
        async with a.enter(ANONYMOUS, "m"):
            assert a.running == 1

    run(main())


def test_the_time_to_wait_is_guessed_from_the_pace() -> None:
    async def main() -> None:
        clock = Clock()
        a = admission(max_queued=4, clock=clock)
        for _ in range(10):
            async with a.enter(ANONYMOUS, "m"):
                clock.now += 3
        async with guests(a, AHEAD + 4):
            with pytest.raises(ApiError) as found:
                async with a.enter(ANONYMOUS, "m"):
                    pass
            assert found.value.retry_after == pytest.approx(12)

    run(main())


def test_a_request_of_many_streams_gets_in_when_one_place_is_free_and_holds_them_all() -> None:
    async def main() -> None:
        a = admission(max_batch=2, max_queued=10)
        one = Guest(a, streams=2 * AHEAD - 1)
        large = Guest(a, streams=100)
        other = Guest(a)
        await settle()
        assert (one.is_in, large.is_in, other.is_in) == (True, True, False)
        await one.leave()
        await settle()
        assert not other.is_in
        await large.leave()
        await settle()
        assert other.is_in
        await other.leave()

    run(main())


def test_a_model_that_is_full_does_not_keep_others_waiting() -> None:
    async def main() -> None:
        a = admission(max_queued=1)
        async with guests(a, AHEAD + 1, model="slow") as slow:
            assert not slow[-1].is_in
            assert (a.waiting_for("slow"), a.waiting_for("fast")) == (1, 0)
            a.check_room()
            async with a.enter(ANONYMOUS, "fast"):
                pass

    run(main())


def test_what_needs_no_engine_never_waits() -> None:
    async def main() -> None:
        a = admission(max_queued=0)
        async with guests(a, AHEAD), a.enter(ANONYMOUS, "m", streams=0):
            assert a.running == AHEAD + 1

    run(main())


def test_where_every_model_is_full_a_look_is_enough_to_refuse() -> None:
    async def main() -> None:
        a = admission(max_queued=0)
        async with guests(a, AHEAD, model="slow"), guests(a, AHEAD, model="fast"):
            a.check_room()
            async with guests(a, AHEAD), guests(a, 1, streams=0):
                with pytest.raises(ApiError) as found:
                    a.check_room()
                assert found.value.code == "queue_full"
        a.check_room()
        a.drain()
        with pytest.raises(ApiError) as found:
            a.check_room()
        assert found.value.code == "shutting_down"

    run(main())


def test_one_who_gives_up_in_line_leaves_no_gap() -> None:
    async def main() -> None:
        a = admission(max_queued=10)
        async with guests(a, AHEAD + 3) as found:
            await found[AHEAD + 1].cancel()
            assert a.waiting == 2
            await found[0].leave()
            await found[1].leave()
            await settle()
            assert found[AHEAD].is_in
            assert found[AHEAD + 2].is_in

    run(main())


def test_one_who_gives_up_in_the_moment_of_its_turn_hands_the_place_on() -> None:
    async def main() -> None:
        a = admission(max_queued=10)
        async with guests(a, AHEAD + 2) as found:
            found[0]._leave.set()
            await asyncio.sleep(0)  # the place is given to the first in line, which has not run yet
            found[AHEAD].task.cancel()
            await settle()
            assert not found[AHEAD].is_in
            assert found[AHEAD + 1].is_in

    run(main())


def test_whoever_comes_and_goes_the_places_are_all_free_in_the_end() -> None:
    async def main() -> None:
        rng = random.Random(0)
        a = admission(max_batch=3, max_queued=20)
        most = 0

        async def visit() -> None:
            nonlocal most
            with contextlib.suppress(ApiError):
                async with a.enter(ANONYMOUS, "m", streams=rng.choice([0, 1, 1, 2, 9])):
                    most = max(most, a.running)
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)

        tasks = []
        for _ in range(2000):
            tasks.append(asyncio.create_task(visit()))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            if rng.random() < 0.5:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (a.running, a.waiting) == (0, 0)
        assert {line.taken for line in a._lines.values()} == {0}
        assert most > 3
        await a.idle()

    run(main())


def test_draining_refuses_the_new_and_waits_for_the_old_also_those_in_line() -> None:
    async def main() -> None:
        a = admission(max_queued=10, shutdown_timeout=7.0)
        async with guests(a, AHEAD + 1) as found:
            a.drain()
            with pytest.raises(ApiError) as refused:
                async with a.enter(ANONYMOUS, "m"):
                    pass
            assert (refused.value.status, refused.value.code) == (503, "shutting_down")
            assert refused.value.headers() == {"retry-after": "7"}
            idle = asyncio.create_task(a.idle())
            for one in found:
                await settle()
                assert not idle.done()
                await one.leave()
            await idle

    run(main())


def test_one_whose_turn_it_is_but_who_has_not_run_yet_is_waited_for() -> None:
    async def main() -> None:
        a = admission(max_queued=10)
        large = Guest(a, streams=AHEAD)
        small = Guest(a)
        await settle()
        idle = asyncio.create_task(a.idle())
        await large.leave()
        await settle()
        assert small.is_in
        assert not idle.done()
        await small.leave()
        await idle

    run(main())


def test_idle_at_once_where_nobody_ever_was() -> None:
    run(admission().idle())


# ---------------------------------------------------------------- limits of a key


async def refused(a: Admission, key: Key, **options: Any) -> ApiError:
    with pytest.raises(ApiError) as found:
        async with a.enter(key, "m", **options):
            pass
    assert found.value.status == 429
    assert found.value.type == "rate_limit_error"
    return found.value


def test_requests_a_minute_are_counted_over_any_60_seconds() -> None:
    async def main() -> None:
        clock = Clock()
        a = admission(clock=clock)
        key = Key("shop", requests_per_minute=3)
        for _ in range(3):
            async with a.enter(key, "m"):
                clock.now += 10
        assert (await refused(a, key)).headers() == {"retry-after": "30"}
        clock.now += 29.5
        assert (await refused(a, key)).headers() == {"retry-after": "1"}
        clock.now += 0.5
        async with a.enter(key, "m"):
            pass
        error = await refused(a, key)
        assert error.code == "requests_limit_exceeded"
        assert error.retry_after == pytest.approx(10)  # when the second of the first three is a minute old

    run(main())


def test_a_keys_limits_are_its_own() -> None:
    async def main() -> None:
        a = admission()
        async with a.enter(Key("a", requests_per_minute=1), "m"):
            pass
        await refused(a, Key("a", requests_per_minute=1))
        async with a.enter(Key("b", requests_per_minute=1), "m"):
            pass
        for _ in range(100):
            async with a.enter(ANONYMOUS, "m", tokens=10**9):
                pass

    run(main())


def test_concurrency_counts_those_in_line_and_is_given_back() -> None:
    async def main() -> None:
        a = admission(max_queued=10)
        key = Key("shop", concurrency=AHEAD + 1)
        async with guests(a, AHEAD + 1, key=key) as found:
            assert not found[-1].is_in
            assert (await refused(a, key)).code == "concurrency_limit_exceeded"
            await found[-1].cancel()
            async with guests(a, 1, key=key):
                await refused(a, key)
        async with a.enter(key, "m"):
            pass

    run(main())


def test_tokens_are_reserved_charged_and_settled() -> None:
    async def main() -> None:
        clock = Clock()
        a = admission(clock=clock)
        key = Key("shop", tokens_per_minute=100)
        async with a.enter(key, "m", tokens=60):
            assert (await refused(a, key, tokens=41)).code == "tokens_limit_exceeded"  # and it came to nothing
        async with a.enter(key, "m", tokens=60) as ticket:
            assert (await refused(a, key, tokens=41)).retry_after == pytest.approx(60)
            with pytest.raises(ApiError) as found:
                ticket.charge(41)
            assert found.value.code == "tokens_limit_exceeded"
            ticket.charge(40)
            await refused(a, key, tokens=1)
            ticket.settle(30)
        async with a.enter(key, "m", tokens=70) as ticket:
            ticket.charge(0)
        await refused(a, key, tokens=1)
        clock.now += 60
        async with a.enter(key, "m", tokens=100):
            pass

    run(main())


def test_settling_what_has_left_the_minute_counts_nothing_twice() -> None:
    async def main() -> None:
        clock = Clock()
        a = admission(clock=clock)
        key = Key("shop", tokens_per_minute=100)
        async with a.enter(key, "m", tokens=60) as ticket:
            clock.now += 61
            async with a.enter(key, "m", tokens=100) as other:
                ticket.settle(10)
                await refused(a, key, tokens=1)
                other.settle(100)
        await refused(a, key, tokens=1)

    run(main())


def test_more_tokens_than_a_minute_has_are_refused_without_a_time_to_wait() -> None:
    async def main() -> None:
        a = admission()
        error = await refused(a, Key("shop", tokens_per_minute=100), tokens=101)
        assert error.headers() == {}
        assert "101" in error.message
        assert "100" in error.message

    run(main())


def test_a_refused_request_takes_nothing() -> None:
    async def main() -> None:
        a = admission(max_queued=0)
        key = Key("shop", requests_per_minute=1, tokens_per_minute=10, concurrency=1)
        await refused(a, key, tokens=11)
        async with guests(a, AHEAD):
            with pytest.raises(ApiError):
                async with a.enter(key, "m", tokens=5):
                    pass
        async with a.enter(key, "m", tokens=10):
            pass

    run(main())
