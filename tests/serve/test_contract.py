"""schemathesis against /openapi.json: requests that fit the schema and such that do not, in every phase it has."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from live import LIMIT, Live, process

CHECKS = (  # all but positive_data_acceptance: two fields that are right may be wrong together
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)
LARGEST_GROWTH = 30e6  # bytes
SLOWEST_HEALTH = 0.05  # seconds, of 99 in 100


def schemathesis(folder: Path, url: str, *flags: str, seconds: float) -> int:
    """Run it, and return how many requests it made; every failure it finds fails the test."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", CHECKS, "--no-shrink",
        "--continue-on-failure", "--request-timeout", str(LIMIT), "--warnings", "off", *flags,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    found = re.search(r"(\d+) generated", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def test_no_answer_is_undocumented(live: Live, tmp_path: Path) -> None:
    made = schemathesis(tmp_path, live.url, "--phases", "fuzzing", "-n", "20", "--seed", "1", seconds=300)
    assert made >= 160


class Pulse(threading.Thread):
    """Asks for /health ten times a second, on one connection, and notes how long it takes."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._port, self._ends = port, threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT)
        while not self._ends.wait(0.1):
            begun = time.perf_counter()
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            self.seconds.append(time.perf_counter() - begun)
        connection.close()

    def stop(self) -> float:
        """The 99th of 100, in seconds."""
        self._ends.set()
        self.join()
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]


@pytest.mark.slow
def test_ten_thousand_requests_of_all_phases(model_folder: Path, tmp_path: Path) -> None:
    with process(model_folder) as (server, port):
        url = f"http://127.0.0.1:{port}"
        made = schemathesis(tmp_path, url, "-n", "30", seconds=1200)  # caches and pools fill up
        before = psutil.Process(server.pid).memory_info().rss
        pulse = Pulse(port)
        pulse.start()
        for seed in range(20):
            if made >= 10_000:
                break
            made += schemathesis(tmp_path, url, "-n", "150", "--seed", str(seed), seconds=3600)
        slowest = pulse.stop()
        growth = psutil.Process(server.pid).memory_info().rss - before
        print(f"{made} requests, growth {growth / 1e6:.1f} MB, /health p99 {slowest * 1e3:.1f} ms")
        assert made >= 10_000
        assert growth <= LARGEST_GROWTH
        assert slowest <= SLOWEST_HEALTH
