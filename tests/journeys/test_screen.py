"""What a person sees in a terminal while a model trains."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2kit import display, progress
from gpt2kit.recipes.events import Finished, Reading
from gpt2kit.training.loop import Evaluated, Stepped


def test_a_log_gets_lines_and_the_last_has_the_last_validation_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with display.TrainingDisplay() as shown:
        shown.show(Stepped(1, 2, 3.0, 1.0, 1.0, 500.0, 2.0))
        assert capsys.readouterr().out == ""  # not in the first seconds
        shown.progress.last_line -= 60
        shown.show(Reading("packing", 5_000_000, 20_000_000, 1_500_000))
        assert capsys.readouterr().out == "packing 5.0 of 20.0 MB, 1.5 M tokens\n"
        shown.progress.last_line -= 60
        shown.show(Stepped(2, 2, 2.5, 1.0, 0.0, 500.0, 0.0))
        assert capsys.readouterr().out == "training 2/2  loss 2.500  500 tokens/s  0 s left\n"
        shown.progress.last_line -= 60
        shown.show(Evaluated(2, 2.75, True))
    out = capsys.readouterr().out
    assert out == (
        "step 2: validation loss 2.7500, the best so far\ntraining 2/2  loss 2.500  val 2.750  500 tokens/s  0 s left\n"
    )


def test_commands_are_quoted_once(capsys: pytest.CaptureFixture[str]) -> None:
    with display.TrainingDisplay() as shown:
        shown.show(Finished(Path("my run"), 5, {}, 1.0, "asked", "gpt2kit train --resume 'my run'"))
        assert capsys.readouterr().out.endswith("Go on with:\n  gpt2kit train --resume 'my run'\n")
        shown.show(
            Finished(Path("my run"), 5, {"validation_loss": 2.0, "validation_accuracy": 0.75}, 1.0, "early", None)
        )
    out = capsys.readouterr().out
    assert "validation loss 2.0000, validation accuracy 0.7500 (stopped early" in out
    assert out.endswith(
        "  gpt2kit generate 'my run' \"Once\"\n  gpt2kit info 'my run'\n  gpt2kit evaluate 'my run' other.txt\n"
    )


def test_learning_a_vocabulary_shows_how_far_it_is(
    run: Any, tiny: list[str], english: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "READ_SECONDS", 0.0)
    Path("my.txt").write_text(english, encoding="utf-8")
    out = run("train", "my.txt", "--out", "a", "--steps", 1, *tiny).out
    assert re.search(
        r"^learning 0\.0 of 0\.0 MB\n(.*\n)*packing 0\.0 of 0\.0 MB, \S+ k? ?tokens\n(.*\n)*the plan", out, re.M
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is a POSIX thing")
def test_a_terminal_shows_a_live_bar_and_keeps_the_lines_above_it(
    processes: Any, tiny: list[str], english: str, tmp_path: Path
) -> None:
    (tmp_path / "my.txt").write_text(english, encoding="utf-8")
    reader, writer = os.openpty()
    flags = ("--steps", 8, "--evaluate-every", 8, *(flag for flag in tiny if flag != "--no-sample"))
    with processes.start(
        tmp_path, "train", "my.txt", "--out", "a", *flags, stdout=writer, stderr=writer, stdin=writer
    ) as started:
        os.close(writer)
        screen = b""
        while True:
            try:
                part = os.read(reader, 1 << 16)
            except OSError:  # Linux's way to say that the other side has closed
                break
            if not part:
                break
            screen += part
        os.close(reader)
    assert started.wait(10) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    loss = re.search(r"step 8: validation loss (\d\.\d{3})", text)
    assert loss is not None
    bars = re.findall(r"training ━+ 8/8 +loss \d\.\d{3}(.*?) tokens/s +0 s left", text)
    assert f"val {loss[1][:-1]}" in bars[-1]
    assert "sample at step 8" in text
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h") == 1  # the cursor is hidden once and given back
    assert text.rstrip().endswith("gpt2kit evaluate a other.txt")
