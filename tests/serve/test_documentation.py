"""docs/serve.md is held to the server: its settings and defaults, metrics, routes, and every example, run by curl."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, serving

from gpt2kit.serve.settings import FIELDS, ServeSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
ADDRESS = "http://127.0.0.1:8000"
NO_HEAD = ("/v1/classify", "/v1/rank")


def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def examples() -> list[list[str]]:
    """The curl commands of the page, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("curl")]


def path_of(command: list[str]) -> str:
    (address,) = (word for word in command if word.startswith(ADDRESS))
    return address.removeprefix(ADDRESS)


@pytest.fixture(scope="module")
def documented(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of a model "mine" that has all that the examples ask for."""
    folder = tmp_path_factory.mktemp("documented") / "mine"
    shutil.copytree(chat_folder, folder)
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with serving({"mine": folder}) as one:
        yield one


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_example_gets_the_answer_that_the_page_promises(documented: Live, tmp_path: Path) -> None:
    for command in examples():
        status = 400 if path_of(command) in NO_HEAD else 200
        words = [word.replace(ADDRESS, documented.url) for word in command]
        done = subprocess.run([*words, "--write-out", "\n%{http_code}"], cwd=tmp_path, capture_output=True, timeout=30)
        body, _, code = done.stdout.decode().rpartition("\n")
        assert (done.returncode, code) == (0, str(status)), (command, body)
        if "text/event-stream" not in body and "stream" in " ".join(command):
            assert body.endswith("data: [DONE]\n\n")


def test_every_route_has_an_example(documented: Live) -> None:
    asked = {path_of(command).replace("/mine", "/{id}") for command in examples()}
    assert asked == {*documented.get("/openapi.json")["paths"], "/openapi.json", "/"}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_stands_in_a_table_with_its_default(name: str) -> None:
    flag = "the arguments" if name == "models" else f"`--{name.replace('_', '-')}`"
    (row,) = (line for line in text().splitlines() if line.startswith("|") and f"| `GPT2KIT_{name.upper()}` |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == flag
    default = next(field.default for field in dataclasses.fields(ServeSettings) if field.name == name)
    if default not in (None, (), False):
        assert cells[3] == str(default)


def test_every_metric_is_explained(documented: Live) -> None:
    found = re.findall(r"^# TYPE (gpt2kit_\w+)", documented.ask("GET", "/metrics")[2].decode(), re.MULTILINE)
    assert found
    assert set(found) == set(re.findall(r"`(gpt2kit_\w+)`", text()))
