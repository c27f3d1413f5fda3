"""The first thing that a newcomer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.recipes import demo, pretrain
from gpt2kit.recipes.events import Event

Run = Callable[..., Any]


@pytest.mark.slow
def test_the_demo_ends_with_text_then_a_plot_then_three_commands_and_replaces_itself(run: Run) -> None:
    for _ in range(2):
        result = run("demo", "--out", "runs/demo", "--seconds", 3)
        assert result.code == 0, result.err
        text, plot_line, folder = (
            result.out.index(part) for part in ("it writes:\n\nThe statement", "\nloss curve  ", "\nmodel       ")
        )
        assert text < plot_line < folder
        assert result.out.endswith(
            'next:\n  gpt2kit generate runs/demo "Once"\n  gpt2kit info runs/demo\n'
            "  gpt2kit evaluate runs/demo other.txt\n"
        )
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


def _interrupted(options: Any, *rest: Any) -> Iterator[Event]:
    (Path(options.out) / "data").mkdir(parents=True)
    raise KeyboardInterrupt
    yield


def test_an_interrupted_demo_can_be_started_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "start", _interrupted)
    for _ in range(2):
        assert run("demo", "--out", "a").code == 130
        assert [p.name for p in Path().iterdir()] == ["a"]
        assert Path("a", demo.TEXT).read_text(encoding="utf-8") == demo.corpus()


def test_a_demo_that_was_stopped_while_it_packed_is_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "start", _interrupted)
    Path("a").mkdir()
    Path("a", demo.TEXT).write_text("text", encoding="utf-8")
    assert "holds something" not in run("demo", "--out", "a").err
    Path("b").mkdir()
    Path("b", "mine.txt").write_text("text", encoding="utf-8")
    assert "holds something" in run("demo", "--out", "b").err


def test_a_wrong_flag_leaves_an_earlier_demo_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "start", _interrupted)
    run("demo", "--out", "a")
    before = sorted(Path().rglob("*"))
    result = run("demo", "--out", "a", "--seconds", 0)
    assert result.code == 2
    assert "--seconds must be at least 3" in result.err
    assert sorted(Path().rglob("*")) == before


def test_the_corpus_is_text_of_some_size_and_always_the_same() -> None:
    assert len(demo.corpus()) > 300_000
    assert demo.corpus() == demo.corpus()
