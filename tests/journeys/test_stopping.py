"""Ctrl-C and SIGTERM in the middle of a real run: nothing is lost, and the printed command goes on from there."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as POSIX does")


def _read_until(stream: Any, wanted: str) -> str:
    """Lines up to the one that holds `wanted`; the end of the stream before it is a failure."""
    lines = []
    for line in stream:
        lines.append(line.decode())
        if wanted in lines[-1]:
            return "".join(lines)
    raise AssertionError(f"{wanted!r} never came:\n{''.join(lines)}")


def _weights(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def _uninterrupted(run: Path, other: Path, call: Callable[..., Any]) -> str:
    """The weights that the same run (settings, data, precision) ends in when nobody stops it."""
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl", "*.png"))
    assert call("train", "--resume", other).code == 0
    return _weights(other)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_and_ends_in_the_same_weights(
    number: int, code: int, english: str, processes: Any, run: Callable[..., Any], tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "my.txt").write_text(english, encoding="utf-8")
    flags = ("--steps", 60, "--evaluate-every", 15, "--checkpoint-every", 1000, *tiny)
    with processes.start(tmp_path, "train", "my.txt", "--out", "my run", *flags) as started:
        _read_until(started.stdout, "step 15: validation loss")
        started.send_signal(number)
        out, err = (part.decode() for part in started.communicate(timeout=60))
    assert started.returncode == code, err
    assert "stopping after this step" in err
    assert "Traceback" not in err
    checkpoints = list((tmp_path / "my run" / "checkpoints").iterdir())
    assert 1 <= len(checkpoints) <= 2  # the best evaluation's, and that of the signal
    assert not (tmp_path / "my run" / "model.safetensors").exists()
    assert "nothing is lost" in out
    words = shlex.split(out.strip().splitlines()[-1])
    assert words[:3] == ["gpt2kit", "train", "--resume"]
    finished = run(*words[1:])
    assert finished.code == 0, finished.err
    assert "step 60: validation loss" in finished.out
    assert _weights(tmp_path / "my run") == _uninterrupted(tmp_path / "my run", tmp_path / "other", run)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_the_run_can_still_be_resumed(
    english: str, processes: Any, run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "my.txt").write_text(english * 3, encoding="utf-8")
    flags = ("--steps", 4, "--batch", 512, "--context", 64, "--tokenizer", "char", "--precision", "fp32", "--no-sample")
    with processes.start(
        tmp_path, "train", "my.txt", "--out", "runs/a", *flags, "--evaluate-every", 1, "--checkpoint-every", 1
    ) as started:
        _read_until(started.stdout, "step 1: validation loss")
        started.send_signal(signal.SIGINT)
        _read_until(started.stderr, "stopping after this step")
        started.send_signal(signal.SIGINT)
        out, err = (part.decode() for part in started.communicate(timeout=60))
    assert started.returncode == 130
    assert "nothing is lost" not in out
    assert "Traceback" not in err
    assert run("train", "--resume", "runs/a").code == 0
    assert _weights(tmp_path / "runs" / "a") == _uninterrupted(tmp_path / "runs" / "a", tmp_path / "other", run)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_text_is_being_read_ends_at_once(
    number: int, code: int, processes: Any, trained: Any, tmp_path: Path
) -> None:
    words = ("train", "-", "--tokenizer", trained.folder, "--out", "a", "--steps", 5)
    with processes.start(tmp_path, *words, stdin=subprocess.PIPE) as started:
        piece = b"some words that never end\n" * 40
        for _ in range(4000):  # the pipe holds 64 KiB: when this is written, the reader is inside the packing
            started.stdin.write(piece)
        started.stdin.flush()
        started.send_signal(number)
        out, err = (part.decode() for part in started.communicate(timeout=60))
    assert started.returncode == code, err
    assert "Traceback" not in err
    assert "the plan" not in out
    assert not (tmp_path / "a" / "run.json").exists()


def test_resuming_what_is_no_run_is_refused(run: Callable[..., Any]) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "nowhere"):
        result = run("train", "--resume", folder)
        assert result.code == 2
        assert f"{folder} is not a run folder" in result.err
    result = run("train", "--resume", "empty", "--steps", 50)
    assert result.code == 2
    assert "--resume takes its settings from the run; steps cannot change" in result.err
