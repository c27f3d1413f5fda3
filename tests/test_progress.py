"""How far long work is, on a terminal and in a log."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gpt2kit import progress
from gpt2kit.progress import Progress


def _screen(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_a_log_gets_a_line_every_few_seconds_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress() as shown:
        for step in range(4):  # 0, 4, 8 and 12 seconds
            shown.reading("packing", (5 + step) * 1_000_000, 20_000_000, 1_500_000)
            now[0] += 4
        shown.reading("learning", 6_000_000, None)
    assert capsys.readouterr() == ("", "packing 8.0 of 20.0 MB, 1.5 M tokens\n")
    with Progress() as shown:
        now[0] += 30
        shown.reading("learning", 6_000_000, None)
    assert capsys.readouterr() == ("", "learning 6.0 MB\n")


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        for step in range(1000):
            shown.reading("packing", step, 1000, step)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_one_bar_for_the_work_at_hand() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(console) as shown:
        shown.reading("packing", 5_000_000, 20_000_000, 10)
        shown.show("training", 8, 8, "8/8  loss 3.0")
    last = _screen(console).rstrip().splitlines()[-1]
    assert re.search(r"training ━+ 8/8  loss 3\.0", last)
    assert "packing" not in last


def test_the_bar_is_closed_when_the_work_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(RuntimeError), Progress(console):
        raise RuntimeError
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("\x1b[?25h") == 1  # the cursor is given back
