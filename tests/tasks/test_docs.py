"""docs/tasks.md: every block that is marked as an example runs, in a folder with a tiny model of each language.

The ordinary test runs the commands in this process, one after the other, and reads of the shell what the page uses:
here-documents, printf, mkdir. The slow one gives every block to a shell as it stands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt2kit import cli
from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.tasks import NAMES, NEVER_TUNED
from gpt2kit.text.training import train_tokenizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh example\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
CHINESE = re.compile("runs/zh|[\u4e00-\u9fff]{2}\\.(csv|jsonl?|txt)")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/mine and runs/zh, random: what is tested is that the commands are right."""
    home = tmp_path_factory.mktemp("home")
    for name, kind, positions in (("mine", "bpe", 128), ("zh", "char", 128)):
        tokenizer = train_tokenizer([PAGE], kind, 600)  # type: ignore[arg-type]
        config = GPT2Config(tokenizer.vocab_size, positions, 32, 1, 2)
        model = GPT2(config, torch.Generator().manual_seed(0))
        folder.save(home / "runs" / name, model, tokenizer, {"name": name})
    return home


def commands(block: str) -> Iterator[tuple[list[str], str]]:
    """(words, here-document) of each command."""
    lines = iter(block.splitlines())
    for line in lines:
        words, body = shlex.split(line), ""
        if words[-1].startswith("<<"):
            end = words.pop().removeprefix("<<")
            while (held := next(lines)) != end:
                body += held + "\n"
        yield words, body


def check_output(words: list[str], out: str, told: str) -> None:
    """Something is printed, JSON is JSON, an interval holds its value, and no row is lost."""
    assert out or words[1] == "finetune", words
    if "--json" in words:
        assert all(json.loads(line) for line in out.splitlines()), words
    for value, low, high in re.findall(r"(-?[0-9.]+) \[(-?[0-9.]+), (-?[0-9.]+)\]", out):
        assert float(low) <= float(value) <= float(high), words
    for lost in re.findall(r"rows?: [0-9,]+ used, ([0-9,]+) not", told + out):
        assert lost == "0", words


def run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, body in commands(block):
        verb = words[0]
        if verb == "gpt2kit":
            quick = ["--threads", "1", "--precision", "fp32"]  # no race of types, no int8 weights to make
            assert cli.main([words[1], *quick, *words[2:]]) == 0, words
            told = capsys.readouterr()
            check_output(words, told.out, told.err)
            assert "Traceback" not in told.err
        elif verb == "cat":
            assert words[1] == ">"
            Path(words[2]).write_text(body, encoding="utf-8")
        elif verb == "printf":
            assert words[2] == ">"
            text = words[1].replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
            Path(words[3]).write_text(text, encoding="utf-8")
        else:
            assert words[:2] == ["mkdir", "-p"], f"the page uses a command that this test does not know: {words}"
            Path(words[2]).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("name", [*NAMES, *NEVER_TUNED])
@pytest.mark.parametrize("chinese", [False, True], ids=["english", "chinese"])
def test_every_task_has_an_example(name: str, chinese: bool) -> None:
    own = [block for block in BLOCKS if bool(CHINESE.search(block)) == chinese]
    assert any(f"gpt2kit run {name} " in block or f"--task {name} " in block for block in own)


@pytest.mark.parametrize("chinese", [False, True], ids=["english", "chinese"])
def test_the_examples_run_as_they_stand(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chinese: bool
) -> None:
    monkeypatch.chdir(home)
    done = 0
    for block in BLOCKS:
        if bool(CHINESE.search(block)) == chinese:
            run(block, capsys)
            done += 1
    assert done >= 8


@pytest.mark.slow
def test_a_shell_runs_every_example(home: Path, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    shutil.copytree(home / "runs" / "mine", tmp_path / "runs" / "mine")
    shutil.copytree(home / "runs" / "zh", tmp_path / "runs" / "zh")
    command = tmp_path / "bin" / "gpt2kit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gpt2kit "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    script = "\n".join(BLOCKS)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr[-2000:]
