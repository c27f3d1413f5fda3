"""What Prometheus gets to see, and how fast the page says the server is."""

from __future__ import annotations

import dataclasses
import re
import uuid
from typing import Any

import pytest
from live import Live, until
from prometheus_client.parser import text_string_to_metric_families

from gpt2kit.serve.job import Job
from gpt2kit.serve.metrics import Speed

STEMS = {  # facts that dashboards are built on, and their types
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage": "gauge",
    "prefix_cache_hits": "counter",
    "prefix_cache_queries": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "request_success": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
}


def read(live: Live) -> dict[str, float]:
    """`name{labels}` and values, as a scraper reads them."""
    status, headers, body = live.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        one.name + "".join(f" {value}" for _, value in sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(body.decode())
        for one in family.samples
    }


def test_the_names_that_dashboards_know_are_there_twice(live: Live) -> None:
    live.stream("/v1/completions", prompt="Once", max_tokens=3)
    families = {one.name: one.type for one in text_string_to_metric_families(live.ask("GET", "/metrics")[2].decode())}
    for stem, kind in STEMS.items():
        assert families[f"gpt2kit_{stem}"] == kind
        assert families["vllm:" + {"kv_cache_usage": "kv_cache_usage_perc"}.get(stem, stem)] == kind
    found = read(live)
    assert {name for name in found if name.startswith("vllm:")} == {
        name.replace("gpt2kit_", "vllm:").replace("kv_cache_usage", "kv_cache_usage_perc")
        for name in found
        if name.startswith("gpt2kit_") and not name.startswith("gpt2kit_request_errors")
    }
    assert not any("_created" in name for name in found)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_counted_where_it_belongs(live: Live, stream: bool) -> None:
    before = read(live)
    body = {"prompt": [5, 6, 7], "max_tokens": 6, "n": 2, "ignore_eos": True}
    if stream:
        live.stream("/v1/completions", **body)
    else:
        live.post("/v1/completions", **body)
    after = read(live)

    def grown(name: str) -> float:
        return after[f"gpt2kit_{name}"] - before.get(f"gpt2kit_{name}", 0)

    assert grown("prompt_tokens_total tiny") == 3
    assert grown("generation_tokens_total tiny") == 12
    assert grown("request_success_total length tiny") == 2
    assert grown("time_to_first_token_seconds_count tiny") == 1
    assert grown("e2e_request_latency_seconds_count tiny") == 1
    assert 0 < grown("time_to_first_token_seconds_sum tiny") <= grown("e2e_request_latency_seconds_sum tiny") < 20
    assert grown("inter_token_latency_seconds_count tiny") == (10 if stream else 0)
    assert grown("prompt_tokens_total chatty") == 0


def test_what_the_engine_holds_is_shown_while_it_does(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = live.app.engines.loaded["tiny"].engine
    busy = dataclasses.replace(engine.stats(), running=3, waiting=2, blocks=40, blocks_used=10)
    with monkeypatch.context() as then:
        then.setattr(engine, "stats", lambda: busy)
        found = read(live)
    assert found["gpt2kit_num_requests_running tiny"] == 3
    assert found["gpt2kit_num_requests_waiting tiny"] == 2
    assert found["gpt2kit_kv_cache_usage tiny"] == 0.25
    with live.leaving_after("/v1/completions", prompt="Once", max_tokens=100, n=8, ignore_eos=True, best_of=8):
        pass
    until(lambda: read(live)["gpt2kit_kv_cache_usage tiny"] == 0)
    assert read(live)["gpt2kit_num_requests_running tiny"] == 0
    assert read(live)["gpt2kit_num_requests_waiting tiny"] == 0


def test_errors_are_counted_by_status(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[int, Any] = {
        404: {"model": "nobody", "prompt": "x"},
        400: {"model": "tiny", "prompt": [100_000]},
        500: {"model": "tiny", "prompt": "x"},
    }
    monkeypatch.setattr(Job, "outcomes", lambda job, handles: 1 // 0)
    before = read(live)
    for status, body in wrong.items():
        assert live.ask("POST", "/v1/completions", body)[0] == status
    after = read(live)
    for status in wrong:
        name = f"gpt2kit_request_errors_total {status}"
        assert after[name] == before.get(name, 0) + 1


def test_errors_that_the_guard_or_the_router_answers_are_counted_too(live: Live) -> None:
    before = read(live)
    big = b'{"model": "tiny", "prompt": "' + b"x" * 2_000_000 + b'"}'
    asked = [("GET", "/nowhere", None, {}), ("GET", "/v1/completions", None, {}), ("POST", "/v1/completions", big, {}),
             ("GET", "/health", None, {"host": "elsewhere.example"})]  # fmt: skip
    statuses = [live.ask(*one)[0] for one in asked]
    assert statuses == [404, 405, 413, 403]
    after = read(live)
    for status in statuses:
        name = f"gpt2kit_request_errors_total {status}"
        assert after[name] == before.get(name, 0) + 1


def test_nothing_that_a_client_writes_becomes_a_label(live: Live) -> None:
    canary = uuid.uuid4().hex
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", f"/{canary}"):
        live.ask("POST", path, {"model": canary, "prompt": canary, "input": canary, canary: canary})
        live.ask("POST", path, canary.encode(), {"x-request-id": canary, "authorization": f"Bearer {canary}"})
    live.ask("GET", f"/v1/models/{canary}")
    body = live.ask("GET", "/metrics")[2].decode()
    assert canary not in body
    assert set(re.findall(r'model_name="(.*?)"', body)) <= {"tiny", "chatty"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_that_of_the_last_ten_seconds() -> None:
    clock = Clock()
    speed = Speed(clock)
    assert speed.now(0) == 0
    total = 0
    for _ in range(100):
        clock.now += 0.5
        total += 50
        assert speed.now(total) == pytest.approx(100)
    for _ in range(10):
        clock.now += 0.5
        found = speed.now(total)
    assert found == pytest.approx(50, rel=0.1)
    clock.now += 20
    assert speed.now(total) == 0
    assert len(speed._samples) < 50


def test_a_model_that_left_memory_makes_no_negative_speed() -> None:
    clock = Clock()
    speed = Speed(clock)
    speed.now(1000)
    clock.now += 1
    assert speed.now(10) == 0
