"""The arithmetic of benchmarks/serve.py and harness.py, and its load generator against a small server of this file."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import lzma
import math
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("inference", "load", "servers", "serve", "harness")  # of benchmarks/, which is no package


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a file of benchmarks/; it is gone afterwards, and so is what its import did to sys.path."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])  # last, as the files themselves put it

    def load(name: str) -> ModuleType:
        monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # as Python starts a script
        return importlib.import_module(name)

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


# ---------------------------------------------------------------- a server with known times


def chunked(body: bytes, size: int | None = None) -> bytes:
    """In HTTP chunks of `size` bytes; None: one."""
    pieces = [body] if size is None else [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def event(text: str, finish: str | None = None) -> bytes:
    return f"data: {json.dumps({'choices': [{'text': text, 'finish_reason': finish}]})}\n\n".encode()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\nretry-after: 1\r\n\r\n{}"
END = chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@dataclass
class Fake:
    """Answers `tokens` events, the first after `first` seconds, then one every `between`. None is sent before `company`
    requests have been there together.
    """

    tokens: int = 4
    first: float = 0.005
    between: float = 0.002
    company: int = 1
    running: int = 0
    most: int = 0
    gone: int = 0  # clients that left before their answer
    bodies: list[Any] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.running -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        self.bodies.append(json.loads(await reader.readexactly(int(length.split(b":")[1]))))
        while self.most < self.company:
            await asyncio.sleep(0.01)
            if reader.at_eof():
                self.gone += 1
                return
        writer.write(HEAD)
        for number in range(self.tokens):
            await asyncio.sleep(self.between if number else self.first)
            last = number + 1 == self.tokens
            writer.write(chunked(event("x", "length" if last else None)) + (END if last else b""))

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]
            while self.running:
                await asyncio.sleep(0.001)


# ---------------------------------------------------------------- when requests come


def test_arrivals_are_a_poisson_process_that_a_seed_repeats(bench: Any) -> None:
    load = bench("load")
    moments = load.arrivals(50.0, 200.0, "seed")
    assert moments == load.arrivals(50.0, 200.0, "seed") == sorted(moments)
    assert moments != load.arrivals(50.0, 200.0, "other")
    assert 0 < moments[0] < moments[-1] < 200
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)  # as exponential ones have it
    assert load.arrivals(100.0, 200.0, "seed")[: len(moments)] == pytest.approx([one / 2 for one in moments], rel=1e-9)


def test_open_loop_requests_do_not_wait_for_answers(bench: Any) -> None:
    load, fake = bench("load"), Fake(tokens=1, company=10)

    async def go() -> list[Any]:
        async with fake.listening() as port:
            request = load.request({"prompt": "x"})
            return await load.open_loop(port, [request] * 10, [0.01 * n for n in range(10)], None)

    answers = [load.read(one, 1) for one in asyncio.run(go())]
    assert fake.most == 10
    assert [answer.failure for answer in answers] == [None] * 10
    assert all(answer.first >= 0.005 for answer in answers)


def test_waiting_for_one_of_few_clients_counts_as_the_server_s_time(bench: Any) -> None:
    load, fake = bench("load"), Fake(first=0.1, tokens=1)

    async def go() -> list[Any]:
        async with fake.listening() as port:
            return await load.open_loop(port, [load.request({"prompt": "x"})] * 3, [0.0] * 3, 1)

    answers = [load.read(one, 1) for one in asyncio.run(go())]
    assert fake.most == 1
    assert [answer.first >= 0.1 * (number + 1) for number, answer in enumerate(answers)] == [True] * 3


def test_closed_loop_clients_ask_again_when_they_are_answered(bench: Any) -> None:
    load, fake = bench("load"), Fake(first=0.02, tokens=1)

    async def go() -> list[Any]:
        async with fake.listening() as port:
            requests = (load.request({"number": number}) for number in range(10_000))
            return await load.closed_loop(port, requests, 3, 0.3)

    exchanges = asyncio.run(go())
    assert fake.most == 3
    assert len(exchanges) > 3
    assert sorted(body["number"] for body in fake.bodies) == list(range(len(exchanges)))


def test_requests_without_an_end_are_broken_off_and_failed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load, fake = bench("load"), Fake(company=99)
    monkeypatch.setattr(load, "PATIENCE", 0.3)

    async def go() -> list[Any]:
        async with fake.listening() as port:
            found = await load.together(port, [load.request({})] * 3)
            deadline = time.monotonic() + 10
            while fake.gone < 3 and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            return found  # type: ignore[no-any-return]

    answers = [load.read(one, 4) for one in asyncio.run(go())]
    assert fake.gone == 3
    assert [answer.failure for answer in answers] == ["not finished 0.3 s after the load's end"] * 3


def test_a_server_that_is_not_there_is_a_failure_and_no_crash(bench: Any) -> None:
    load = bench("load")

    async def go() -> list[Any]:
        async with Fake().listening() as port:
            pass
        return await load.together(port, [load.request({})] * 2)

    answers = [load.read(one, 1) for one in asyncio.run(go())]
    assert [answer.failure for answer in answers] == ["no answer"] * 2
    assert [answer.duration for answer in answers] == [math.inf] * 2


# ---------------------------------------------------------------- what answers say


def exchange(*pieces: bytes, scheduled: float = 10.0) -> Any:
    """The pieces came one second after the other, from second 11 on."""
    timed = [(11.0 + n, piece) for n, piece in enumerate(pieces)]
    return SimpleNamespace(scheduled=scheduled, pieces=timed, late=False)


def test_tokens_are_timed_by_the_piece_that_completed_their_event(bench: Any) -> None:
    first, second = chunked(event("春")), chunked(event("", None)) + chunked(event("b", "length"))
    answer = bench("load").read(exchange(HEAD, first[:30], first[30:], second, END), 2)
    assert answer.failure is None
    assert answer.times == [13.0, 14.0]  # the event without text counts for nothing
    assert (answer.first, answer.between, answer.duration, answer.tokens) == (3.0, [1.0], 5.0, 2)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_are_read_however_they_are_cut(bench: Any, size: int, line_end: bytes) -> None:
    body = b"".join((event("春"), b": a comment\n\n", event("眠", "length"), b"data: [DONE]\n\n")).replace(
        b"\n", line_end
    )
    raw = HEAD + chunked(body, 5) + b"0\r\n\r\n"
    answer = bench("load").read(exchange(*(raw[at : at + size] for at in range(0, len(raw), size))), 2)
    assert (answer.failure, answer.tokens, len(answer.times)) == (None, 2, 2)


def test_a_text_that_ended_by_itself_has_as_many_tokens_as_events(bench: Any) -> None:
    raw = HEAD + chunked(event("a") + event("b", "stop")) + END
    assert bench("load").read(exchange(raw), 64).tokens == 2


@pytest.mark.parametrize(
    ("pieces", "status", "failure"),
    [
        ((), 0, "no answer"),
        ((b"what?\r\n\r\n",), 0, "not whole"),
        ((REFUSAL,), 503, "status 503"),
        ((HEAD, chunked(event("a", "length"))), 200, "not whole"),
        ((HEAD, chunked(event("a")) + END), 200, "the stream broke off"),
        ((HEAD, chunked(event("a", "length")) + b"0\r\n\r\n"), 200, "the stream broke off"),
        ((HEAD, chunked(b'data: {"error": {"message": "full"}}\n\n') + b"0\r\n\r\n"), 200, "error in the stream"),
        ((HEAD, chunked(b"data: {broken\n\n") + END), 200, "Expecting property name"),
    ],
)
def test_answers_that_are_not_whole_count_as_failed(bench: Any, pieces: Any, status: int, failure: str) -> None:
    answer = bench("load").read(exchange(*pieces), 1)
    assert answer.failure is not None
    assert answer.failure.startswith(failure)
    assert answer.status in (0, status)
    assert (answer.first, answer.duration, answer.tokens_within(0, 1e9)) == (math.inf, math.inf, 0.0)


# ---------------------------------------------------------------- what is made of them


def test_percentiles_are_values_that_occurred(bench: Any) -> None:
    percentile = bench("load").percentile
    values = [3.0, 1.0, 2.0, 4.0]
    assert [percentile(values, q) for q in (0.25, 0.5, 0.51, 0.95, 1.0)] == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) == math.inf
    assert percentile([1.0] * 19 + [math.inf], 0.95) == 1.0


def answer_of(load: Any, scheduled: float, times: list[float], tokens: int, failure: str | None = None) -> Any:
    return load.Answer(scheduled, 200, times, tokens, times[-1] if times else scheduled, failure)


def test_a_point_counts_what_came_after_the_load_had_built_up(bench: Any) -> None:
    load = bench("load")
    answers = [
        answer_of(load, 100.0, [101.0, 103.0], 2),  # before the lead's end, its second token after it
        answer_of(load, 103.0, [104.0, 105.0, 106.0], 6),
        answer_of(load, 105.0, [107.0, 109.0, 113.0], 3),  # its last token after the end
        answer_of(load, 106.0, [107.0], 4, failure="broken"),
        answer_of(load, 110.0, [111.0], 1),  # after the end
    ]
    point = load.Point.of(answers, 100.0, 10.0)  # counts from 102 to 110
    assert point.offered == 3 / 8
    assert point.throughput == (1 + 6 + 2) / 8  # the broken one's tokens are none
    assert (point.first_p50, point.first_p95) == (2.0, math.inf)
    assert (point.request_p50, point.failed) == (8.0, 1 / 3)
    assert (point.between_p50, point.between_p95) == (1.0, 4.0)


def points(load: Any, *pairs: tuple[float, float]) -> list[Any]:
    """Points of (p95 of requests, throughput)."""
    return [load.Point(1, rate, 0.1, 0.1, 0.01, 0.01, p95, p95, 0.0) for p95, rate in pairs]


def test_throughput_within_a_limit_lies_between_the_points_beside_it(bench: Any) -> None:
    load = bench("load")
    curve = points(load, (1.0, 100.0), (2.0, 200.0), (4.0, 220.0), (math.inf, 230.0))

    def at(limit: float) -> float | None:
        return load.throughput_at(curve, lambda point: point.request_p95, limit)  # type: ignore[no-any-return]

    assert at(0.5) is None
    assert [at(1.0), at(1.5), at(3.0), at(4.0), at(100.0)] == [100.0, 150.0, 210.0, 220.0, 220.0]
    assert load.throughput_at(curve[:2], lambda point: point.request_p95, 9.0) == 200.0  # all within: at least that
    falling = points(load, (1.0, 100.0), (2.0, 80.0))
    assert load.throughput_at(falling, lambda point: point.request_p95, 1.5) == 100.0


def curve_of(serve: Any, found: list[Any]) -> Any:
    return serve.Curve([0.0] * len(found), [[point] for point in found], found)


def test_equal_p95_compares_at_every_rung_of_the_peer_and_says_the_worst(bench: Any) -> None:
    serve, load = bench("serve"), bench("load")
    ours = curve_of(serve, points(load, (1.0, 300.0), (2.0, 400.0)))
    peer = curve_of(serve, points(load, (1.0, 100.0), (1.5, 200.0), (3.0, 250.0)))
    assert serve.at_equal_p95(ours, peer) == min(300 / 100, 350 / 200, 400 / 250)
    fast = curve_of(serve, points(load, (0.5, 100.0)))
    assert serve.at_equal_p95(ours, fast) == 0.0  # we never answer so fast


def test_an_slo_asks_for_both_limits_and_for_answers(bench: Any) -> None:
    serve, load = bench("serve"), bench("load")
    one = {"offered": 1, "first_p50": 0.1, "between_p50": 0.01, "request_p50": 1, "request_p95": 1}

    def rung(throughput: float, first: float, between: float, failed: float = 0.0) -> Any:
        return load.Point(throughput=throughput, first_p95=first, between_p95=between, failed=failed, **one)

    assert serve.at_slo(curve_of(serve, [rung(100, 0.2, 0.02), rung(200, 0.4, 0.06)]), 0.5, 0.05) == 175.0
    assert serve.at_slo(curve_of(serve, [rung(100, 0.2, 0.02), rung(200, 0.2, 0.02, 0.5)]), 0.5, 0.05) == 100
    assert serve.at_slo(curve_of(serve, [rung(100, 0.6, 0.02)]), 0.5, 0.05) is None


def test_the_median_of_points_is_taken_figure_by_figure(bench: Any) -> None:
    load = bench("load")
    middle = load.Point.median(points(load, (1.0, 300.0), (2.0, 100.0), (9.0, 200.0)))
    assert (middle.request_p95, middle.throughput, middle.failed) == (2.0, 200.0, 0.0)


def test_overload_tells_goodput_refusals_and_other_failures_apart(bench: Any) -> None:
    serve, load = bench("serve"), bench("load")
    answers = [answer_of(load, 103.0, [104.0, 105.0], 8)]
    answers += [load.Answer(104.0, 503, [], 0, 104.0 + wait, "status 503") for wait in (0.01, 0.03, 0.02)]
    answers += [load.Answer(104.0, 500, [], 0, 104.1, "status 500")]
    answers += [load.Answer(100.0, 503, [], 0, 109.0, "status 503")]  # while the load built up
    found = serve.overload(answers, 100.0, 10.0)
    assert found["offered"] == 5 / 8
    assert found["goodput"] == 1.0
    assert (found["refused"], found["failed"], found["failures"]) == (0.6, 0.2, ["status 500"])
    assert [found[f"refused_{which}"] for which in ("p50", "p95", "max")] == pytest.approx([0.02, 0.03, 0.03])


# ---------------------------------------------------------------- against the small server


@pytest.mark.slow
def test_load_is_measured_end_to_end(bench: Any, tmp_path: Path) -> None:
    """Load, curves and the table, with a server whose times are known, in a thread of its own."""
    serve = bench("serve")
    vocabulary = {"model": {"vocab": {"Ġonce": 1, "Ġupon": 2, "Ġa": 3, "x": 4, "Ġ春": 5, "Ġ": 6}}}
    (tmp_path / "small" / "model").mkdir(parents=True)
    (tmp_path / "small" / "model" / "tokenizer.json").write_text(json.dumps(vocabulary))
    arguments = SimpleNamespace(
        work=tmp_path, prompt=40, tokens=4, seconds=0.3, rounds=2, rungs=[0.3, 0.6], slo_first=500, slo_between=400
    )
    fake = Fake()
    with running(fake) as port:
        ours, peer = (Turn(name, port) for name in (serve.OURS, "peer"))
        curves = serve.measure_load([ours, peer], 2, arguments)
    written = serve.show_load(curves, 2, arguments)
    for curve in curves.values():
        assert 0 < curve.capacity < 4 * 2 / 0.011  # two clients, 4 tokens in 11 ms
        assert curve.rates == pytest.approx([share * curve.full[0].throughput / 4 for share in (0.3, 0.6)])
        assert [len(one) for one in curve.points] == [2, 2]
        assert all(point.failed == 0 and point.first_p50 >= 0.005 for point in curve.medians)
    assert fake.most == 2
    assert all(set(body["prompt"].split()) <= {"once", "upon", "a"} for body in fake.bodies)
    assert max(Counter(body["prompt"] for body in fake.bodies).values()) == 2  # of two servers, and never again
    assert written["ratios"].keys() == {"peer"}
    assert ours.turns == peer.turns == 2 + 2 * 2 + 1  # warm-up, capacity, rungs, and once more without a pause
    json.dumps(written)


@dataclass
class Turn:
    """Stands for servers.Running, whose process it has none of."""

    name: str
    port: int
    turns: int = 0

    def __enter__(self) -> Turn:
        self.turns += 1
        return self

    def __exit__(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running(fake: Fake) -> Iterator[int]:
    """The small server in a thread."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []
    stop: asyncio.Future[None] = loop.create_future()

    async def go() -> None:
        async with fake.listening() as port:
            ports.append(port)
            ready.set()
            await stop

    thread = threading.Thread(target=lambda: loop.run_until_complete(go()))
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set_result, None)
        thread.join(10)
        loop.close()


def test_a_server_that_ends_or_stays_silent_is_told_with_its_log(bench: Any, tmp_path: Path) -> None:
    servers = bench("servers")
    with pytest.raises(ChildProcessError, match="has ended; its last words are in"):
        servers.Running("x", [sys.executable, "-c", "print('oh')"], servers.free_port(), tmp_path / "x.log", {})
    assert (tmp_path / "x.log").read_text() == "oh\n"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signal stops a process here")
def test_a_server_runs_only_in_its_turn(bench: Any, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    servers = bench("servers")
    port = servers.free_port()
    code = f"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404 if self.path == "/health" else 500)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""
    one = servers.Running("x", [sys.executable, "-c", code], port, tmp_path / "x.log", {"GPT2KIT_X": "1"})
    try:
        process = psutil.Process(one.process.pid)
        assert process.environ()["GPT2KIT_X"] == "1"
        with one:
            assert process.status() != psutil.STATUS_STOPPED
        deadline = time.monotonic() + 10
        while process.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
    finally:
        one.close()
    assert one.process.poll() is not None


# ---------------------------------------------------------------- the harness


def test_passages_end_in_the_word_to_find(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    rows = [{"text": "Once upon a time."}, {"text": "夜来\n风雨 声"}]
    with lzma.open(tmp_path / "text" / "lambada-test.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found = list(bench("harness").passages(tmp_path))
    assert found == [{"context": "Once upon a", "word": "time."}, {"context": "夜来\n风雨", "word": "声"}]


def test_the_harness_s_task_reads_the_passages_beside_it(bench: Any, tmp_path: Path) -> None:
    harness = bench("harness")
    rows = [{"context": "夜来\n风雨", "word": "声"}]
    harness.write_task(tmp_path / "work", rows)
    task = json.loads((tmp_path / "work" / f"{harness.TASK}.yaml").read_text(encoding="utf-8"))
    data = Path(task["dataset_kwargs"]["data_files"][task["test_split"]])
    assert [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()] == rows
    assert task["doc_to_text"] + task["doc_to_target"] == "{{context}} {{word}}"


def test_the_engine_s_scores_are_read_as_the_harness_reads_them(bench: Any) -> None:
    """Three words: of one token found, of two tokens of which one is not the likeliest, of one not found."""

    def choice(logprob: float, likeliest: float) -> Any:
        return SimpleNamespace(logprob=logprob, alternatives=[(0, likeliest)])

    scores = {
        "a b": [None, choice(-1.0, -1.0)],
        "a bb": [None, choice(-2.0, -2.0), choice(-3.0, -1.0)],
        "aa b": [None, choice(-9.0, -1.0), choice(-4.0, -0.5)],
    }
    texts = list(scores)

    class Engine:
        tokenizer = SimpleNamespace(encode=lambda text: [ord(sign) for sign in text if sign != " "])

        def score(self, prompts: list[list[int]], logprobs: int) -> list[Any]:
            assert (logprobs, prompts) == (1, [self.tokenizer.encode(text) for text in texts])
            return [scores[text] for text in texts]

    rows = [dict(zip(("context", "word"), text.split(), strict=True)) for text in texts]
    found = bench("harness").by_engine(Engine(), rows)
    assert found["acc"] == 1 / 3
    assert found["perplexity"] == pytest.approx(math.exp((1 + 5 + 4) / 3))
