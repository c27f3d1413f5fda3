"""The page's plots, by matplotlib, as SVG that takes its colours, its fonts and its language from the page.

No text of a user is ever drawn: labels are ours, in both languages, and class names stand in tables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gpt2kit.scores.names import describe

if TYPE_CHECKING:
    from gpt2kit.scores.classification import Bin
    from gpt2kit.scores.report import LengthBin, LossPoint

SIZE = (4.6, 3.1)  # inches: about a phone's width at 72 points an inch, so that letters keep their size there
# Stand-ins that matplotlib writes and the page replaces by its own colours.
FOREGROUND, MUTED, LINE, ACCENT, WARM = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {FOREGROUND: "fg", MUTED: "muted", LINE: "line", ACCENT: "accent", WARM: "warm"}
_WORDS = {
    "confidence": "置信度",
    "accuracy": "准确率",
    "share of examples": "样本占比",
    "perfect calibration": "完全校准",
    "this model": "本模型",
    "length of the input (characters)": "输入长度（字符）",
    "step": "步",
    "loss (nats per token)": "损失（奈特/词元）",
    "training": "训练",
    "training, running mean": "训练，滑动平均",
    "validation": "验证",
}
RUNNING = 25  # parts of a training curve over which its running mean goes
POINTS = 600  # of a curve: more cannot be seen


def _figure(draw: Callable[[Any], None], name: str, translations: dict[str, str] | None = None) -> str:
    """An SVG element with ids of its own (several stand in one page)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "text.color": FOREGROUND,
        "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
        "grid.color": LINE, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
            axes.tick_params(length=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _fit(buffer.getvalue(), name, {**_WORDS, **(translations or {})})


def _fit(svg: str, name: str, words: dict[str, str]) -> str:
    """matplotlib's file to an element of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return re.sub(r"(<text[^>]*>)([^<]*)</text>", lambda match: match[1] + _both(match[2], words) + "</text>", svg)


def _both(text: str, words: dict[str, str]) -> str:
    text = text.strip()
    if text not in words:
        return text
    return f'<tspan class="en">{text}</tspan><tspan class="zh">{words[text]}</tspan>'


def calibration(bins: Sequence[Bin]) -> str:
    """Accuracy against confidence, and below it how many examples have which confidence."""

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        total = sum(b.count for b in bins)
        upper.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="perfect calibration")
        x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
        upper.plot(x, y, color=ACCENT, marker="o", markersize=4.5, linewidth=1.8, label="this model")
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.04, 1.04), ylabel="accuracy")
        upper.grid(alpha=0.6, linewidth=0.7)
        upper.legend(loc="upper left", fontsize=9)
        middles, widths = [(b.low + b.high) / 2 for b in bins], [0.9 * (b.high - b.low) for b in bins]
        lower.bar(middles, [b.count / total for b in bins], width=widths, color=ACCENT, alpha=0.55)
        lower.set(xlabel="confidence")
        lower.set_ylabel("share of examples", fontsize=8)
        lower.locator_params(axis="y", nbins=3)

    return _figure(draw, "calibration")


def length_against_score(groups: Sequence[LengthBin], metric: str) -> str:
    """The mean of each group of lengths with its interval; each group as wide as its lengths."""
    title = describe(metric).title
    known = title if title != (metric, metric) else ("mean", "均值")  # a user's own words are never drawn

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        middles = [(g.shortest + g.longest) / 2 for g in groups]
        heights, widths = [g.high - g.low for g in groups], [max(g.longest - g.shortest, 1) for g in groups]
        axes.use_sticky_edges = False
        axes.bar(middles, heights, widths, [g.low for g in groups], color=ACCENT, alpha=0.22, linewidth=0)
        axes.plot(middles, [g.value for g in groups], color=ACCENT, marker="o", markersize=4.5, linewidth=0)
        if groups[-1].longest > 20 * max(1, groups[0].longest):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda length, _: f"{length:,.0f}")
        axes.set(xlabel="length of the input (characters)", ylabel=known[0])
        axes.grid(alpha=0.6, linewidth=0.7)

    return _figure(draw, "lengths", {known[0]: known[1]})


def loss_curve(points: Sequence[LossPoint]) -> str:
    """Training loss, every row and a running mean, and validation loss, by step."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        training = [(p.step, p.training) for p in points if p.training is not None]
        validation = [(p.step, p.validation) for p in points if p.validation is not None]
        if training:
            steps, values = zip(*_thin(training), strict=True)
            axes.plot(steps, values, color=MUTED, alpha=0.35, linewidth=0.7, label="training")
            axes.plot(steps, _running(values), color=ACCENT, linewidth=1.8, label="training, running mean")
        if validation:
            steps, values = zip(*_thin(validation), strict=True)
            axes.plot(steps, values, color=WARM, marker="o", markersize=3.5, linewidth=1.5, label="validation")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.grid(alpha=0.6, linewidth=0.7)
        axes.legend(fontsize=9)

    return _figure(draw, "loss")


def _thin(points: list[Any]) -> list[Any]:
    step = -(-len(points) // POINTS)
    return points[::step] if points[-1] in points[::step] else [*points[::step], points[-1]]


def _running(values: Sequence[float]) -> list[float]:
    width = max(1, len(values) // RUNNING)
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]
