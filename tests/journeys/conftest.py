"""Whole user paths. One tiny run, trained by a real process from an empty folder, is shared by all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import pytest

import gpt2kit
from gpt2kit import cli

TINY = [
    "--n-layer",
    "1",
    "--n-embd",
    "32",
    "--n-head",
    "2",
    "--context",
    "16",
    "--batch",
    "4",
    "--tokenizer",
    "char",
    "--precision",
    "fp32",
    "--no-sample",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Trained(NamedTuple):
    folder: Path
    text: Path
    result: Result


class Processes:
    """The command line as processes of their own, as a new user starts them."""

    def __init__(self) -> None:
        root = str(Path(gpt2kit.__file__).parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

    def start(self, folder: Path, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        words = [sys.executable, "-m", "gpt2kit", *map(str, arguments)]
        return subprocess.Popen(words, cwd=folder, env=self.environment, **pipes)

    def run(self, folder: Path, *arguments: object, stdin: bytes = b"") -> Result:
        with self.start(folder, *arguments, stdin=subprocess.PIPE) as started:
            out, err = started.communicate(stdin, timeout=240)
        return Result(started.returncode, out.decode(), err.decode())


@pytest.fixture(scope="session")
def processes() -> Processes:
    return Processes()


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    return TINY


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], torch_as_it_was: None
) -> Callable[..., Result]:
    """The command line inside this process, standing in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = cli.main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture(scope="session")
def english() -> str:
    return "\n\n".join(topics[name] for name in sorted(topics))[:40_000]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, english: str, processes: Processes) -> Trained:
    folder = tmp_path_factory.mktemp("user")
    (folder / "my.txt").write_text(english, encoding="utf-8")
    result = processes.run(
        folder, "train", "my.txt", "--out", "runs/mine", "--steps", 30, "--evaluate-every", 15, *TINY
    )
    return Trained(folder / "runs" / "mine", folder / "my.txt", result)
