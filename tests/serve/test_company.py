"""Many clients at a time: the same bytes as alone, nothing left behind, no more than there is room for."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from crowd import Answer, arrivals, ask, crowd
from live import LIMIT, Live, make_model, process, serving, until

PATH = "/v1/completions"


def body(number: int, **more: Any) -> dict[str, Any]:
    prompt = ["Once upon a time", "春眠不觉晓", "Once upon a time there", "🤗"][number % 4]
    return {"model": "tiny", "prompt": prompt, "seed": number, "max_tokens": 5 + number % 30, **more}


@pytest.mark.parametrize("at_a_time", [8, 64])
def test_the_same_seed_gives_the_same_bytes_in_any_company(live: Live, at_a_time: int) -> None:
    async def main() -> None:
        numbers = range(64)
        alone = await crowd(live.port, PATH, [body(number) for number in numbers], 1)
        for stream in (False, True):
            mixed = [body(number, stream=stream) for number in numbers]
            random.Random(at_a_time).shuffle(mixed)
            answers = await crowd(live.port, PATH, mixed, at_a_time)
            found = {one["seed"]: answer for one, answer in zip(mixed, answers, strict=True)}
            for number in numbers:
                assert found[number].is_whole
                assert found[number].text == alone[number].text
        assert len({one.text for one in alone}) > 32

    asyncio.run(main())


def left_behind(live: Live) -> dict[str, int]:
    """What may leak: tasks, open files, the engine's blocks and places."""

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    loop = live.server._loop
    assert loop is not None
    stats = live.app.engines.loaded["tiny"].engine.stats()
    return {
        "tasks": asyncio.run_coroutine_threadsafe(tasks(), loop).result(LIMIT),
        "files": psutil.Process().num_fds() if sys.platform != "win32" else 0,
        "blocks": stats.blocks_used,
        "streams": stats.running + stats.waiting,
        "running": live.app.admission.running,
        "waiting": live.app.admission.waiting,
        "users": live.app.engines.loaded["tiny"].users,
    }


def drop_half(live: Live, count: int, seed: int, longest: float) -> list[Answer]:
    """So many streams at once, every second one dropped at a random moment."""
    rng = random.Random(seed)
    moments = [rng.random() * longest if number % 2 else None for number in range(count)]

    async def main() -> list[Answer]:
        tasks = (
            ask(live.port, PATH, body(number, stream=True, max_tokens=40, ignore_eos=True), moment)
            for number, moment in enumerate(moments)
        )
        return await asyncio.gather(*tasks)

    found = asyncio.run(main())
    assert all(answer.is_whole for answer, moment in zip(found, moments, strict=True) if moment is None)
    return found


def test_dropped_streams_leave_nothing_behind(live: Live) -> None:
    before = left_behind(live)
    drop_half(live, 60, seed=1, longest=0.3)
    until(lambda: left_behind(live) == before, 2.0)


@pytest.mark.slow
def test_a_thousand_streams_half_of_them_dropped(model_folder: Path) -> None:
    with serving({"tiny": model_folder}, max_queued=2000, max_connections=2000) as live:
        drop_half(live, 20, seed=0, longest=0.1)
        before = left_behind(live)
        begun = time.perf_counter()
        found = drop_half(live, 1000, seed=2, longest=5.0)
        seconds = time.perf_counter() - begun
        dropped = sum(not answer.is_whole for answer in found)
        until(lambda: left_behind(live) == before, 2.0)
        print(f"1,000 streams in {seconds:.1f} s, {dropped} dropped before their end")
        assert dropped > 100


def goodput(answers: list[Answer], seconds: float) -> float:
    return sum(answer.is_whole and answer.status == 200 for answer in answers) / seconds


@pytest.mark.slow
def test_ten_times_more_than_there_is_room_for(tmp_path: Path) -> None:
    """What is asked beyond the capacity is refused quickly, and takes little from what is answered.

    The model computes a while, as one that is worth serving does: refusing costs half a millisecond of Python each.
    """
    make_model(tmp_path / "wide", n_embd=384, n_layer=6)
    asked = body(3, max_tokens=100, ignore_eos=True)
    with process(tmp_path / "wide", "--max-queued", "16") as (_, port):

        def measure(count: int) -> float:
            begun = time.perf_counter()
            return goodput(asyncio.run(crowd(port, PATH, [asked] * count, 24)), time.perf_counter() - begun)

        measure(8)
        capacity = measure(48)
        seconds = max(20.0, 48 / capacity)
        begun = time.perf_counter()
        found = asyncio.run(arrivals(port, PATH, asked, 10 * capacity, seconds))
        reached = goodput(found, time.perf_counter() - begun)
        capacity = min(capacity, measure(48))  # a machine that others use is not the same a minute later
    refused = [answer for answer in found if answer.status == 503]
    slowest = sorted(answer.seconds for answer in refused)[int(len(refused) * 0.99)]
    offered = len(found) / seconds
    print(f"capacity {capacity:.2f}/s, offered {offered:.1f}/s, reached {reached:.2f}/s, 503 p99 {slowest:.3f} s")
    assert {answer.status for answer in found} == {200, 503}
    assert all(json.loads(answer.body)["error"]["code"] == "queue_full" for answer in refused)
    assert reached >= 0.95 * capacity
    assert slowest <= 0.1


def test_more_than_there_is_room_for_is_refused_and_the_rest_answered(model_folder: Path) -> None:
    with serving({"tiny": model_folder}, max_batch=1, max_queued=3) as live:
        bodies = [body(3, max_tokens=120, ignore_eos=True)] * 40
        found = asyncio.run(crowd(live.port, PATH, bodies, 40))
    assert {answer.status for answer in found} == {200, 503}
    assert all(answer.is_whole for answer in found)
    assert len({answer.text for answer in found if answer.status == 200}) == 1


def stop_under_load(folder: Path, seed: int) -> tuple[int, list[Answer]]:
    """A server that gets SIGTERM at a random moment while clients ask: its exit code, and how each answer ended."""
    rng = random.Random(seed)
    with process(folder, "--shutdown-timeout", "20") as (server, port):

        async def main() -> list[Answer]:
            loop = asyncio.get_running_loop()
            loop.call_later(rng.random() * 0.5, server.send_signal, signal.SIGTERM)
            tasks = []
            while server.poll() is None:
                number = len(tasks)
                stream = number % 2 == 0
                tasks.append(asyncio.create_task(ask(port, PATH, body(number, stream=stream, max_tokens=100))))
                await asyncio.sleep(rng.expovariate(200))
            return await asyncio.gather(*tasks)

        found = asyncio.run(main())
        return server.wait(LIMIT), found


def check_stop(folder: Path, seed: int) -> dict[int, int]:
    code, found = stop_under_load(folder, seed)
    assert code == 0
    counts: dict[int, int] = {}
    for answer in found:
        counts[answer.status] = counts.get(answer.status, 0) + 1
        if answer.status == 0:
            assert not answer.body  # nobody had accepted it
        else:
            assert answer.status in (200, 503)
            assert answer.is_whole, answer.body[-200:]
    assert counts.get(200, 0) > 0
    return counts


def test_a_server_that_is_told_to_stop_finishes_what_it_accepted(model_folder: Path) -> None:
    check_stop(model_folder, 0)


@pytest.mark.slow
def test_fifty_stops_at_random_moments(model_folder: Path) -> None:
    for seed in range(50):
        print(seed, check_stop(model_folder, seed))


def test_a_long_prompt_does_not_hold_up_streams(live: Live) -> None:
    """A body of a megabyte is parsed and cut beside the event loop."""
    huge = json.dumps({"prompt": "春眠不觉晓，处处闻啼鸟。" * 20_000}, ensure_ascii=False).encode()
    answers: list[Any] = []
    sender = threading.Thread(target=lambda: answers.extend(live.ask("POST", "/tokenize", huge) for _ in range(3)))
    sender.start()
    waits = []
    while sender.is_alive():
        begun = time.perf_counter()
        assert live.get("/health") == {"status": "ok"}
        waits.append(time.perf_counter() - begun)
    sender.join()
    assert {status for status, _, _ in answers} == {400}  # more tokens than an answer may have
    assert len(waits) > 3
    assert sorted(waits)[len(waits) // 2] < 0.25
