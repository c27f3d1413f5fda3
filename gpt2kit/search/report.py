"""A search's results as files: trials.json for programs, search.png for people."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2kit import commit
from gpt2kit.search.study import Tried, best
from gpt2kit.search.values import Choice, Range, Space

RESULTS, PLOT = "trials.json", "search.png"
UNIT = "nats per counted target, on the validation rows"


def write_results(folder: Path, trials: Sequence[Tried], space: Space) -> None:
    """trials.json, and search.png where a trial has a loss."""
    won = best(list(trials))
    rows = [
        {"trial": trial.number + 1, "state": trial.state, "validation_loss": trial.value, "values": dict(trial.values)}
        | ({"why": trial.why} if trial.why else {})
        for trial in trials
    ]
    best_ = None if won is None else won.number + 1
    commit.replace_json(folder / RESULTS, {"best": best_, "unit": UNIT, "trials": rows})
    if any(trial.value is not None for trial in trials):
        plot(folder / PLOT, trials, space)


def plot(path: Path, trials: Sequence[Tried], space: Space) -> None:
    """Left the losses in the order of the trials and the lowest so far; right the values of each trial on one line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    _history(left, trials)
    _lines(figure, right, trials, space)
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=120, metadata={"Software": None})
    os.replace(temporary, path)


def _history(axes: Any, trials: Sequence[Tried]) -> None:
    for state, label, marker, colour in (
        ("complete", "whole", "o", "#1f4e8c"),
        ("pruned", "ended early", "x", "#9aa3ad"),
    ):
        own = [(t.number + 1, t.value) for t in trials if t.state == state and t.value is not None]
        if own:
            axes.scatter(*zip(*own, strict=True), marker=marker, color=colour, s=26, label=label)
    done = [(t.number + 1, t.value) for t in trials if t.state == "complete" and t.value is not None]
    if done:
        numbers = range(done[0][0], len(trials) + 1)
        lowest = [min(value for number, value in done if number <= n) for n in numbers]
        axes.step(numbers, lowest, where="post", color="#c4501b", label="lowest so far")
        most = sorted(t.value for t in trials if t.value is not None)
        axes.set_ylim(most[0] - 0.05 * (most[0] or 1), most[int(0.9 * (len(most) - 1))] * 1.1)  # not the worst tenth
    axes.set(xlabel="trial", ylabel="validation loss (nats)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _lines(figure: Any, axes: Any, trials: Sequence[Tried], space: Space) -> None:
    """Parallel coordinates: an axis for each field, a line for each complete trial, dark where the loss is low."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    done = sorted((t for t in trials if t.state == "complete" and t.value is not None), key=lambda t: -(t.value or 0))
    names = list(space)
    if done:
        scale = Normalize(min(t.value or 0 for t in done), max(t.value or 0 for t in done))
        colours: Any = ScalarMappable(scale, colormaps["viridis"])
        for trial in done:
            heights = [_place(space[name], trial.values[name]) for name in names]
            axes.plot(range(len(names)), heights, color=colours.to_rgba(trial.value), marker="o", markersize=3)
        figure.colorbar(colours, ax=axes, label="validation loss (nats)")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set(xlim=(-0.35, len(names) - 0.65), ylim=(-0.06, 1.1))
    for at, name in enumerate(names):
        axes.axvline(at, color="#c8ced6", linewidth=0.8, zorder=0)
        for value in space[name].ends:
            axes.annotate(_short(value), (at, _place(space[name], value)), xytext=(4, 3), textcoords="offset points",
                          fontsize=8, color="#555555")  # fmt: skip


def _place(held: Choice | Range, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if isinstance(held, Choice):
        return held.values.index(value) / max(1, len(held.values) - 1)
    low, high = (math.log(held.low), math.log(held.high)) if held.log else (held.low, held.high)
    return ((math.log(value) if held.log else value) - low) / (high - low)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isascii() else ascii(text)[1:-1]  # the font that comes with matplotlib has no Chinese
