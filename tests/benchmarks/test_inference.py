"""What benchmarks/inference.py computes from the measurements. The measurements themselves need the peers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of benchmarks/, which is no package; what its import does to sys.path is undone."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    spec = importlib.util.spec_from_file_location(f"benchmark_{name.replace('/', '_')}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, found)
    spec.loader.exec_module(found)
    return found


def test_decoding_is_timed_while_all_streams_run(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = module("peers/worker", monkeypatch).Timeline(2)
    for stream, times in enumerate(([1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 5.5])):
        for when in times:
            timeline.add(stream, 7 + stream, timeline.start + when)
    found = timeline.result()
    assert found["prefill_seconds"] == pytest.approx(2.5)
    assert found["decode_seconds"] == pytest.approx(1.5)  # 2.5 to 4.0
    assert found["decoded"] == 3  # at 3, 3.5 and 4
    assert found["tokens"] == [[7] * 4, [8] * 4]


def test_a_stream_known_at_its_end_alone_is_timed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = module("peers/worker", monkeypatch).Timeline(1)
    timeline.whole([5, 6, 7])
    found = timeline.result()
    assert (found["tokens"], found["prefill_seconds"], found["decoded"]) == ([[5, 6, 7]], 0, 2)


def test_ratios_are_to_the_best_peer_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    inference = module("inference", monkeypatch)
    cell = inference.Cell("small", 2)
    speeds = {
        inference.OURS: 300,
        "gpt2kit fp32": 900,
        "CTranslate2 int8": 150,
        "vLLM bf16": 200,
        "llama.cpp Q4_0": 400,
    }
    for name, speed in speeds.items():
        for value in (speed - 100, speed, speed + 500):
            cell.add("decode-32", name, value)
    for name, seconds, megabytes in ((inference.OURS, 2.0, 130), (inference.YARDSTICK, 1.5, 100)):
        cell.add("start", name, seconds)
        cell.add("memory", name, megabytes)
    for name, speed in (("repeats on", 600), ("repeats off", 300), ("plain on", 99), ("plain off", 100)):
        cell.add("speculation", name, speed)
    assert inference.ratios(cell) == {
        "decode-32": {"8 bits or more": 1.5, "4 bits": 0.75},
        "start": {inference.YARDSTICK: 0.5},
        "memory": {inference.YARDSTICK: 1.3},
        "speculation": {"repeats": 2.0, "plain": 0.99},
    }


def test_every_round_has_its_own_prompts_and_every_contestant_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inference = module("inference", monkeypatch)
    assert inference.prompts("streams-8", 1) == inference.prompts("streams-8", 1)
    assert inference.prompts("streams-8", 1) != inference.prompts("streams-8", 2)
    assert [len(inference.prompts(column, 0)) for column in ("decode-512", "streams-32")] == [1, 32]
    assert [len(inference.prompts(column, 0)[0]) for column in ("decode-512", "prefill", "streams-32")] == [
        512,
        1000,
        32,
    ]
