"""The first thing that a newcomer runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.recipes import demo

Run = Callable[..., Any]


@pytest.mark.slow
def test_the_demo_ends_with_text_a_plot_and_three_commands_and_replaces_itself(run: Run) -> None:
    for _ in range(2):
        result = run("demo", "--out", "runs/demo", "--seconds", 3)
        assert result.code == 0, result.err
        assert "it writes:\n\nThe statement" in result.out
        for line in ("gpt2kit generate runs/demo", "gpt2kit info runs/demo", "gpt2kit evaluate runs/demo"):
            assert line in result.out
        plot = Path("runs/demo/loss.png").read_bytes()
        assert plot.startswith(b"\x89PNG\r\n\x1a\n")
        assert plot.endswith(b"IEND\xaeB`\x82")
        assert sorted(p.name for p in Path("runs").iterdir()) == ["demo"]
        (Path("runs/demo") / "left over").touch()


def test_a_folder_that_is_no_demo_is_refused_and_left_alone(run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    Path("mine", demo.TEXT).write_text("a copy")
    result = run("demo", "--out", "mine")
    assert result.code == 2
    assert "mine holds something that is not a demo" in result.err
    assert Path("mine/thesis.txt").read_text() == "years of work"
    result = run("demo", "--out", "mine/thesis.txt")
    assert result.code == 2
    assert result.err.startswith("error: ")


def test_an_interrupted_demo_can_be_started_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"

    def interrupted(options: Any) -> int:
        (out / "data").mkdir(parents=True)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            demo.demo(str(out), 3, 0, interrupted)
        assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_the_corpus_is_text_of_some_size_and_always_the_same() -> None:
    assert len(demo.corpus()) > 300_000
    assert demo.corpus() == demo.corpus()
