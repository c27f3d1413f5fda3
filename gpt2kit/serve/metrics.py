"""Figures for Prometheus and for the page's status tab.

Names are those that dashboards know, once with the prefix gpt2kit_ and once with vLLM's. The only label that a request
can choose is the model's name, after it has been found among the served ones.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from gpt2kit.serve.admission import Admission
    from gpt2kit.serve.running import Engines

MODEL = "model_name"
ALSO = "vllm:"  # the prefix under which most dashboards ask
RENAMED = {"kv_cache_usage": "kv_cache_usage_perc"}  # where vLLM's name differs; both are from 0 to 1
FIRST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
WHOLE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SPAN = 10.0  # seconds over which speed is taken
SHORTEST = 0.25  # seconds between samples of it


class ModelMetrics:
    """What the requests of one model are observed with."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.first_token = metrics.first_token.labels(name)  # seconds from the request's arrival
        self.between_tokens = metrics.between_tokens.labels(name)  # seconds a token
        self.whole = metrics.whole.labels(name)  # seconds
        self.prompt_tokens = metrics.prompt_tokens.labels(name)
        self.generation_tokens = metrics.generation_tokens.labels(name)
        self._finished = metrics.finished
        self._name = name

    def finished(self, reason: str) -> None:
        """A completion that ended with this finish_reason, or "abort" where the client had gone."""
        self._finished.labels(self._name, reason).inc()


class Metrics:
    """All of a server's figures. Lives on the event loop."""

    def __init__(self, engines: Engines, admission: Admission) -> None:
        own = self._registry = CollectorRegistry()
        self.first_token = Histogram(
            "gpt2kit_time_to_first_token_seconds", "From a request to its first token", [MODEL],
            registry=own, buckets=FIRST,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "gpt2kit_inter_token_latency_seconds", "Between tokens of a streamed completion", [MODEL],
            registry=own, buckets=BETWEEN,
        )  # fmt: skip
        self.whole = Histogram(
            "gpt2kit_e2e_request_latency_seconds", "From a request to its end", [MODEL], registry=own, buckets=WHOLE
        )
        self.prompt_tokens = Counter("gpt2kit_prompt_tokens", "Tokens of prompts", [MODEL], registry=own)
        self.generation_tokens = Counter("gpt2kit_generation_tokens", "Tokens generated", [MODEL], registry=own)
        self.finished = Counter(
            "gpt2kit_request_success", "Completions by how they ended", [MODEL, "finished_reason"], registry=own
        )
        self._errors = Counter("gpt2kit_request_errors", "Requests answered with an error", ["status"], registry=own)
        own.register(_EngineFigures(engines, admission))
        ProcessCollector(registry=own)
        self.of = {name: ModelMetrics(self, name) for name in engines.names}

    def count(self, status: int) -> None:
        """A request that was answered with an error."""
        self._errors.labels(str(status)).inc()

    def text(self) -> bytes:
        """The exposition, in Prometheus' text format 0.0.4."""
        return generate_latest(_WithOtherNames(self._registry))


class _EngineFigures(Collector):
    """What the engines say of themselves, taken when asked."""

    def __init__(self, engines: Engines, admission: Admission) -> None:
        self._engines, self._admission = engines, admission

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("gpt2kit_num_requests_running", "Completions in the engine's steps", labels=[MODEL])
        waiting = GaugeMetricFamily("gpt2kit_num_requests_waiting", "Requests in line", labels=[MODEL])
        used = GaugeMetricFamily("gpt2kit_kv_cache_usage", "Share of the cache in use", labels=[MODEL])
        asked = CounterMetricFamily("gpt2kit_prefix_cache_queries", "Prompt tokens looked up", labels=[MODEL])
        hits = CounterMetricFamily("gpt2kit_prefix_cache_hits", "Prompt tokens found", labels=[MODEL])
        families: tuple[GaugeMetricFamily | CounterMetricFamily, ...] = (running, waiting, used, asked, hits)
        for name, served in self._engines.loaded.items():
            now = served.engine.stats()
            values = (
                now.running, now.waiting + self._admission.waiting_for(name), now.cache_usage,
                now.totals.prompt_tokens, now.totals.prefix_tokens,
            )  # fmt: skip
            for family, value in zip(families, values, strict=True):
                family.add_metric([name], value)
        yield from families


class _WithOtherNames(Collector):
    """A registry's families, each of ours a second time under the other prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
            stem = family.name.removeprefix("gpt2kit_")
            if stem != family.name and stem != "request_errors":
                yield _renamed(family, ALSO + RENAMED.get(stem, stem))


def _renamed(family: Metric, name: str) -> Metric:
    other = copy.copy(family)
    other.name = name
    other.samples = [sample._replace(name=name + sample.name[len(family.name) :]) for sample in family.samples]
    return other


class Speed:
    """Tokens a second over the last ten seconds, from a total that somebody looks at now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, total: int) -> None:
        """`total`: tokens so far."""
        now = self._clock()
        if self._samples and now - self._samples[-1][0] < SHORTEST:
            return
        self._samples.append((now, total))
        while len(self._samples) > 1 and self._samples[1][0] <= now - SPAN:  # one at or before the span's beginning
            self._samples.popleft()

    def now(self, total: int) -> float:
        """Tokens a second; 0 before there are two looks at it."""
        self.sample(total)
        now, (then, before) = self._clock(), self._samples[0]
        return max(total - before, 0) / (now - then) if now > then else 0.0
