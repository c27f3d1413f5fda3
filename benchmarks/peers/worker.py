"""A peer's process: it loads one model, then answers one JSON command a line until its input ends.

    {"prompts": [[ids], ...], "tokens": 64, "options": {}}
        -> {"tokens": [[ids], ...], "prefill_seconds": ..., "decode_seconds": ..., "decoded": ...}
    {"memory": true} -> {"bytes": ...}      resident, with that of child processes

Decoding is greedy, takes exactly `tokens` tokens of every stream, and is timed here, around the work alone. Prefill
ends when every stream has its first token. `decode_seconds` is the time from there until the first stream has its last
token, so that all streams run all the while; `decoded` counts the tokens that came in it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Generate = Callable[..., None]  # (prompts, tokens, timeline, **options)
Load = Callable[[Path, str, int], Generate]  # (what was exported, variant, threads)
Export = Callable[[Path, Path, str], None]  # (model folder, target, variant)


class Timeline:
    """When each stream got each of its tokens."""

    def __init__(self, streams: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(streams)]
        self.times: list[list[float]] = [[] for _ in range(streams)]
        self.start = time.perf_counter()

    def add(self, stream: int, token: int, when: float | None = None) -> None:
        self.tokens[stream].append(int(token))
        self.times[stream].append(time.perf_counter() if when is None else when)

    def step(self, tokens: list[int], when: float | None = None) -> None:
        """One token of every stream, all of one moment."""
        when = time.perf_counter() if when is None else when
        for stream, token in enumerate(tokens):
            self.add(stream, token, when)

    def whole(self, tokens: list[int]) -> None:
        """The first stream, which is known only at its end: all but one of its tokens took the time since the start."""
        for place, token in enumerate(tokens):
            self.add(0, token, self.start if place == 0 else None)

    def result(self) -> dict[str, Any]:
        first = max(times[0] for times in self.times)
        last = max(first, min(times[-1] for times in self.times))
        return {
            "tokens": self.tokens,
            "prefill_seconds": first - self.start,
            "decode_seconds": last - first,
            "decoded": sum(first < when <= last for times in self.times for when in times),
        }


def memory() -> int:
    """Resident bytes of this process and its children."""
    import psutil

    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))


def _end_with_parent() -> None:
    """On Linux: be killed when whoever asks is killed. A worker that is stopped would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(load: Load, export: Export | None = None) -> None:
    """The command line of a peer's file: `export FOLDER TARGET VARIANT`, or `serve TARGET VARIANT THREADS`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("export", "serve"))
    parser.add_argument("model", type=Path)
    parser.add_argument("rest", nargs=2)
    arguments = parser.parse_args()
    if arguments.verb == "export":
        assert export is not None, "this peer reads the model folder as it is"
        export(arguments.model, Path(arguments.rest[0]), arguments.rest[1])
        return
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    generate = load(arguments.model, arguments.rest[0], int(arguments.rest[1]))
    for line in sys.stdin:
        print(json.dumps(_answer(generate, json.loads(line))), file=answers, flush=True)


def _answer(generate: Generate, command: dict[str, Any]) -> dict[str, Any]:
    if command.get("memory"):
        return {"bytes": memory()}
    timeline = Timeline(len(command["prompts"]))
    generate(command["prompts"], command["tokens"], timeline, **command.get("options", {}))
    found = timeline.result()
    assert all(len(tokens) == command["tokens"] for tokens in found["tokens"]), [len(t) for t in found["tokens"]]
    return found
