"""What a person sees: the display in a terminal, and its figures in words."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2kit import display
from gpt2kit.data.pack import PackProgress


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (3600, "1 h 00 min"), (5430, "1 h 30 min"), (float("inf"), "?")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert display.duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(7, "7"), (9999, "9,999"), (12_345, "12.3 k"), (124_439_808, "124.4 M"), (2.5e9, "2.5 G"), (3e15, "3.0 P")],
)
def test_counts_in_words(number: float, words: str) -> None:
    assert display.count(number) == words


def test_long_packing_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with display.TrainingDisplay() as shown:
        shown.packing(PackProgress(5_000_000, 20_000_000, 10, 5_000_000, 1_500_000))
        assert capsys.readouterr().out == ""  # not in the first seconds
        shown.last_line -= display.LINE_SECONDS
        shown.packing(PackProgress(5_000_000, 20_000_000, 10, 5_000_000, 1_500_000))
        assert capsys.readouterr().out == "read 5 of 20 MB: 1.5 M tokens\n"
        shown.last_line -= display.LINE_SECONDS
        shown.packing(PackProgress(6_000_000, None, 10, 5_000_000, 1_500_000))
        assert capsys.readouterr().out == "read 6 MB: 1.5 M tokens\n"


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
    assert "━" in text
    assert re.search(r"training ━+ 8/8 loss \d\.\d{3}.* tokens/s +0 s left", text)
    assert "step 8: validation loss" in text
    assert "sample at step 8" in text
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h") == 1  # the cursor is hidden once and given back
    assert text.rstrip().endswith("gpt2kit evaluate a other.txt")
