"""Serving speed beside the servers that people pick: `python benchmarks/serve.py --envs DIR --work DIR`.

First `python benchmarks/peers/environments.py --envs DIR` makes each peer's environment; a peer without one is left
out. The model is GPT-2 small with seeded random weights (peers/model.py), exported to every peer's format under --work
once. Servers are real processes on this machine, asked over HTTP as a client does: a text of --prompt tokens, streamed
answers of --tokens tokens, greedy. They take turns, all of them stopped but one; what is printed are medians.

The load: open-loop Poisson arrivals over 8 and over 32 clients (connections at a time), at --rungs of the capacity of
each server, which is what it does when all clients ask without a pause. All times count from the scheduled arrival.
  at SLO         throughput while p95 of the time to the first token and of the time between tokens stay within limits
  at equal p95   for each rung of a peer: our throughput at that rung's p95 of whole requests, over the peer's; the
                 smallest of the rungs is printed

--cost: our engine alone against our engine through HTTP, at 1, 8 and 32 streams, and the time to the first token.
--overload: ten times our capacity is offered: what is finished, and how fast the rest is refused.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import inference
import load
from servers import MODEL, OURS, SERVERS, STREAMS, Running, start

OVER = 10  # times the capacity, offered by --overload
TURNS = 15  # of the engine alone and through HTTP: each takes a second or less, and the difference is small


# ---------------------------------------------------------------- load


class Load:
    """Asks one server at a time. Every request has a prompt of its own; all servers get the same ones."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.words = load.words(arguments.work / "small" / "model" / "tokenizer.json")
        self.largest_share = 0.0  # of a core, that the load itself took

    def request(self, seed: str) -> bytes:
        prompt = load.prompt(self.words, self.arguments.prompt, seed)
        limits = {"max_tokens": self.arguments.tokens, "temperature": 0}
        return load.request({"model": MODEL, "prompt": prompt, "stream": True, **limits})

    def full(self, one: Running, clients: int, seconds: float, seed: str) -> load.Point:
        """All clients ask without a pause."""
        requests = (self.request(f"full {clients} {seed} {number}") for number in count())
        start, answers = self._put(one, load.closed_loop(one.port, requests, clients, seconds))
        return load.Point.of(answers, start, seconds)

    def offered(self, one: Running, clients: int | None, rate: float, seed: str) -> tuple[float, list[load.Answer]]:
        """Open-loop arrivals of `rate` requests a second. Also the moment at which they began."""
        moments = load.arrivals(rate, self.arguments.seconds, seed)
        requests = [self.request(f"{seed} {number}") for number in range(len(moments))]
        return self._put(one, load.open_loop(one.port, requests, moments, clients))

    def _put(self, one: Running, work: Coroutine[Any, Any, list[load.Exchange]]) -> tuple[float, list[load.Answer]]:
        with one:
            start, before = time.perf_counter(), time.process_time()
            exchanges = asyncio.run(work)
            share = (time.process_time() - before) / (time.perf_counter() - start)
        self.largest_share = max(self.largest_share, share)
        return start, [load.read(exchange, self.arguments.tokens) for exchange in exchanges]


@dataclass
class Curve:
    """One server at one number of clients: a point for each rung, and what it does without a pause."""

    rates: list[float]
    points: list[list[load.Point]]  # rung, round
    full: list[load.Point]

    @property
    def medians(self) -> list[load.Point]:
        return [load.Point.median(points) for points in self.points if points]

    @property
    def capacity(self) -> float:
        """Tokens a second."""
        return statistics.median(point.throughput for point in self.full)


def measure_load(found: list[Running], clients: int, arguments: argparse.Namespace) -> dict[str, Curve]:
    ask, curves = Load(arguments), {}
    for one in found:
        ask.full(one, clients, arguments.seconds / 3, "warm up")
        full = ask.full(one, clients, arguments.seconds, "capacity")
        if not full.throughput:
            print(f"  {one.name} finished nothing with {clients} clients, left out", file=sys.stderr, flush=True)
            continue
        rates = [rung * full.throughput / arguments.tokens for rung in arguments.rungs]
        curves[one.name] = Curve(rates, [[] for _ in rates], [full])
    for turn in range(arguments.rounds):
        for rung in range(len(arguments.rungs)):
            for one in found[turn % len(found) :] + found[: turn % len(found)]:
                if one.name in curves:
                    curve, seed = curves[one.name], f"{clients} {rung} {turn}"
                    start, answers = ask.offered(one, clients, curve.rates[rung], seed)
                    curve.points[rung].append(load.Point.of(answers, start, arguments.seconds))
        for one in found:
            if one.name in curves and turn:
                curves[one.name].full.append(ask.full(one, clients, arguments.seconds, f"round {turn}"))
    print(f"\nthe load itself took at most {ask.largest_share:.0%} of a core")
    return curves


def at_slo(curve: Curve, first: float, between: float) -> float | None:
    """Throughput within both limits (seconds), and with every request answered."""

    def cost(point: load.Point) -> float:
        return float("inf") if point.failed > 0.01 else max(point.first_p95 / first, point.between_p95 / between)

    return load.throughput_at(curve.medians, cost, 1.0)


def at_equal_p95(ours: Curve, peer: Curve) -> float | None:
    """The smallest ratio, over the peer's rungs, of our throughput to the peer's at the peer's p95."""
    ratios = []
    for point in peer.medians:
        if point.failed > 0.01 or not point.throughput:
            continue
        reached = load.throughput_at(ours.medians, lambda mine: mine.request_p95, point.request_p95)
        ratios.append((reached or 0.0) / point.throughput)
    return min(ratios, default=None)


def show_load(curves: dict[str, Curve], clients: int, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"{clients} clients, prompts of {arguments.prompt} tokens, answers of {arguments.tokens}")
    head = ("offered/s", "tokens/s", "first p50", "p95 ms", "between p50", "p95 ms", "request p50", "p95 ms", "failed")
    print(f"{'':<26}" + "".join(f"{title:>12}" for title in head))
    for name, curve in curves.items():
        for point in curve.medians:
            spans = [getattr(point, f"{span}_p{q}") * 1e3 for span in ("first", "between", "request") for q in (50, 95)]
            numbers = "".join(f"{milliseconds:>12,.1f}" for milliseconds in spans)
            print(f"{name:<26}{point.offered:>12.2f}{point.throughput:>12,.0f}{numbers}{point.failed:>12.1%}")
    limits = arguments.slo_first / 1e3, arguments.slo_between / 1e3
    slo = {name: at_slo(curve, *limits) for name, curve in curves.items()}
    print(f"SLO: p95 of the first token within {arguments.slo_first:g} ms, between tokens {arguments.slo_between:g} ms")
    print(f"{'':<26}{'capacity':>12}{'at SLO':>12}{'ours / it: ':>12}{'capacity':>12}{'at SLO':>12}{'equal p95':>12}")
    ratios: dict[str, dict[str, float | None]] = {}
    for name, curve in curves.items():
        line = f"{name:<26}{curve.capacity:>12,.0f}{_number(slo[name], ',.0f')}"
        if name != OURS and OURS in curves:
            theirs = slo[name]
            ratios[name] = {
                "capacity": curves[OURS].capacity / curve.capacity,
                "at SLO": (slo[OURS] or 0.0) / theirs if theirs else None,
                "at equal p95": at_equal_p95(curves[OURS], curve),
            }
            line += f"{'':>12}" + "".join(_number(ratio, ".2f") for ratio in ratios[name].values())
        print(line, flush=True)
    return {
        "clients": clients,
        "servers": {name: {**asdict(curve), "at SLO": slo[name]} for name, curve in curves.items()},
        "ratios": ratios,
    }


def _number(value: float | None, form: str) -> str:
    return f"{'–' if value is None else format(value, form):>12}"


# ---------------------------------------------------------------- what HTTP costs


def measure_cost(one: Running, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same prompts, as token ids, to the engine alone and to the server, in turns."""
    peer = inference.Peer("engine alone", "engine_alone.py", None, "int8", 8)
    model, log = arguments.work / "small" / "model", arguments.work / "logs" / "serve" / "engine alone.log"
    engine = inference.Contestant(peer, model, arguments.threads, arguments.envs, log)
    found: dict[str, Any] = {}

    def both(turn: int, streams: int) -> tuple[Times, Times]:
        """What the engine alone and the server take; who begins changes from turn to turn."""
        (prompt,) = inference.prompts(f"cost {streams}", turn)
        many = [[stream, *prompt[1:]] for stream in range(streams)]  # none begins like another
        if turn % 2:
            first = _alone(engine, many, arguments)
            return first, _through(one, many, arguments)
        second = _through(one, many, arguments)
        return _alone(engine, many, arguments), second

    print(f"\n{'streams':<12}{'alone':>12}{'HTTP':>12}{'HTTP/alone':>12}{'first alone':>12}{'HTTP':>12}{'ms more':>12}")
    try:
        for streams in arguments.streams:
            both(-1, streams)  # warms up
            rows = [(*alone, *through) for alone, through in (both(turn, streams) for turn in range(TURNS))]
            columns = [statistics.median(column) for column in zip(*rows, strict=True)]
            rates = [streams * arguments.tokens / columns[place] for place in (0, 2)]
            more = statistics.median(row[3] - row[1] for row in rows) * 1e3
            ratio = statistics.median(row[0] / row[2] for row in rows)
            firsts = f"{columns[1] * 1e3:>12.1f}{columns[3] * 1e3:>12.1f}{more:>12.1f}"
            print(f"{streams:<12}{rates[0]:>12,.0f}{rates[1]:>12,.0f}{ratio:>12.3f}{firsts}", flush=True)
            found[str(streams)] = {"ratio": ratio, "first_ms_more": more, "seconds": rows}
    finally:
        engine.close()
    return found


Times = tuple[float, float]  # seconds until every stream has its last token, and its first


def _alone(engine: inference.Contestant, prompts: list[list[int]], arguments: argparse.Namespace) -> Times:
    answer = engine.ask(prompts, arguments.tokens)
    return answer["seconds"], answer["first_seconds"]


def _through(one: Running, prompts: list[list[int]], arguments: argparse.Namespace) -> Times:
    rest = {"model": MODEL, "stream": True, "max_tokens": arguments.tokens, "temperature": 0, "ignore_eos": True}
    requests = [load.request({"prompt": ids, **rest}) for ids in prompts]
    with one:
        exchanges = asyncio.run(load.together(one.port, requests))
    answers = [load.read(exchange, arguments.tokens) for exchange in exchanges]
    failures = {answer.failure for answer in answers} - {None}
    assert not failures, failures
    return max(answer.duration for answer in answers), max(answer.first for answer in answers)


# ---------------------------------------------------------------- more than it can do


def measure_overload(one: Running, arguments: argparse.Namespace) -> dict[str, Any]:
    ask = Load(arguments)
    ask.full(one, STREAMS, arguments.seconds / 3, "warm up")
    rows = []
    for turn in range(arguments.rounds):
        capacity = ask.full(one, STREAMS, arguments.seconds, f"capacity {turn}").throughput
        rate = OVER * capacity / arguments.tokens
        start, answers = ask.offered(one, None, rate, f"overload {turn}")
        rows.append({"capacity": capacity, **overload(answers, start, arguments.seconds)})
    numbers = {name: statistics.median(row[name] for row in rows) for name in rows[0] if name != "failures"}
    failures = sorted({failure for row in rows for failure in row["failures"]})
    print(f"\n{OVER} times the capacity offered: {numbers['offered']:.0f} requests/s")
    print(f"goodput {numbers['goodput']:,.0f} tokens/s, capacity {numbers['capacity']:,.0f}: "
          f"{numbers['goodput'] / numbers['capacity']:.3f}")  # fmt: skip
    print(f"refused with 503: {numbers['refused']:.1%}")
    if numbers["refused"]:
        spans = [numbers[f"refused_{which}"] * 1e3 for which in ("p50", "p95", "max")]
        print("within {:.1f} ms (p50), {:.1f} (p95), {:.1f} (all)".format(*spans))
    print(f"other failures: {numbers['failed']:.1%} {'; '.join(failures)}", flush=True)
    return {"medians": numbers, "rounds": rows}


def overload(answers: Sequence[load.Answer], start: float, seconds: float) -> dict[str, Any]:
    begin, end = start + load.LEAD * seconds, start + seconds
    counted = [answer for answer in answers if begin <= answer.scheduled < end]
    refused = [answer.ended - answer.scheduled for answer in counted if answer.status == 503]
    failures = [answer.failure for answer in counted if answer.failure is not None and answer.status != 503]
    return {
        "offered": len(counted) / (end - begin),
        "goodput": sum(answer.tokens_within(begin, end) for answer in answers) / (end - begin),
        "refused": len(refused) / max(1, len(counted)),
        "refused_p50": load.percentile(refused, 0.5),
        "refused_p95": load.percentile(refused, 0.95),
        "refused_max": max(refused, default=0.0),
        "failed": len(failures) / max(1, len(counted)),
        "failures": sorted(set(failures)),
    }


# ---------------------------------------------------------------- the run


def start_all(found: list[Running], arguments: argparse.Namespace) -> None:
    """Add the servers that there is an environment for, each of them ready and stopped."""
    words = [word.lower() for word in arguments.peers or [""]]
    for server in SERVERS:
        only_ours = arguments.cost or arguments.overload
        if server.name != OURS and (only_ours or not any(word in server.name.lower() for word in words)):
            continue
        if server.environment and not (arguments.envs / server.environment / "complete").exists():
            print(f"{server.name}: no environment, left out")
            continue
        try:
            found.append(start(server, arguments.envs, arguments.work, arguments.threads))
        except ChildProcessError as error:
            print(f"  {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True, help="made by peers/environments.py")
    parser.add_argument("--work", type=Path, required=True, help="models, exports and logs are kept here (2 GB)")
    parser.add_argument("--cost", action="store_true", help="only what HTTP costs")
    parser.add_argument("--overload", action="store_true", help=f"only {OVER} times the capacity")
    parser.add_argument("--peers", nargs="+", metavar="WORD", help="only peers whose name holds one of these")
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32], help="of the cost of HTTP")
    parser.add_argument("--rungs", nargs="+", type=float, default=[0.3, 0.5, 0.7, 0.85, 1.0], help="shares of capacity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of one measurement")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--slo-first", type=float, default=500.0, help="milliseconds")
    parser.add_argument("--slo-between", type=float, default=50.0, help="milliseconds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    arguments = parser.parse_args()
    arguments.envs, arguments.work = arguments.envs.absolute(), arguments.work.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    inference.make_models("small", arguments.work)
    written: dict[str, Any] = {}
    found: list[Running] = []
    try:
        start_all(found, arguments)
        if not (arguments.cost or arguments.overload):
            written["load"] = []
            for clients in arguments.clients:
                written["load"].append(show_load(measure_load(found, clients, arguments), clients, arguments))
        ours = next((one for one in found if one.name == OURS), None)
        if ours is not None and not arguments.overload:
            written["cost"] = measure_cost(ours, arguments)
        if ours is not None and arguments.overload:
            written["overload"] = measure_overload(ours, arguments)
    finally:
        for one in found:
            one.close()
        if arguments.out:
            arguments.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
