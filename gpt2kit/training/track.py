"""What a run leaves for people: metrics.jsonl, loss.png, samples.txt, TensorBoard where asked for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt2kit import commit
from gpt2kit.errors import UserError, missing_extra
from gpt2kit.training.loop import Evaluated, Event, Replanned, Saved, Stepped, Stopped

METRICS, PLOT, SAMPLES = "metrics.jsonl", "loss.png", "samples.txt"
ROWS = 2000  # about so many training rows a run: one every total/ROWS steps
PLOT_SHARE = 0.02  # of the time that drawing the curve may take, apart from the last one
PLOT_SECONDS = 0.5  # of the first one: matplotlib is imported


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full or read-only disk is the user's to put right: the checkpoints before it are there."""
    try:
        yield
    except OSError as error:
        raise commit.write_error(error, path) from error


class Track:
    """Writes events as they come. A resumed run first drops the rows behind the step that it resumes from."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self.folder = folder
        self.path = folder / METRICS
        self.board = _tensorboard(folder) if tensorboard else None
        rows = (
            [row for row in read_metrics(folder) if row["step"] <= step and row["event"] != "stopped"] if step else []
        )
        temporary = self.path.with_suffix(".tmp")
        with _writing(self.path):
            _trim_samples(folder / SAMPLES, step)
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(temporary, self.path)
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self.begun, self.drawing, self.next = time.perf_counter(), 0.0, PLOT_SECONDS  # seconds
        self.changed = False  # since the curve was drawn

    def write(self, event: Event) -> None:
        with _writing(self.path):
            self._write(event)

    def _write(self, event: Event) -> None:
        match event:
            case Stepped(step, total, loss, norm, rate, speed, _):
                if step % max(1, total // ROWS) == 0 or step == 1:
                    self._row("step", step, loss=loss, gradient_norm=norm, rate=rate, tokens_per_second=round(speed))
            case Evaluated(step, loss, best, accuracy):
                decided = {} if accuracy is None else {"validation_accuracy": accuracy}
                self._row("evaluation", step, validation_loss=loss, **decided, best=best)
                self.file.flush()
                self.changed = True
                if self.drawing + self.next <= PLOT_SHARE * (time.perf_counter() - self.begun):
                    self._draw()
            case Saved(step, path):
                self._row("checkpoint", step, folder=path.name)
                self.file.flush()  # a run that is killed goes on from here, and must find its rows
            case Replanned(step, total):
                self._row("replanned", step, total=total)
            case Stopped(step, reason):
                self._row("stopped", step, reason=reason)
                self.file.flush()

    def _row(self, event: str, step: int, **values: Any) -> None:
        self.file.write(json.dumps({"step": step, "event": event, **values}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.board(f"{event}/{name}", value, step)

    def sample(self, step: int, text: str) -> None:
        path = self.folder / SAMPLES
        with _writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n\n")

    def _draw(self) -> None:
        start = time.perf_counter()
        plot(self.folder)
        self.changed, self.next = False, time.perf_counter() - start
        self.drawing += self.next

    def close(self) -> None:
        """Draw the curve once more where it is behind; also after a failure, which a full disk must not hide."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self.changed:
            with contextlib.suppress(OSError):
                self._draw()


def _trim_samples(path: Path, step: int) -> None:
    """Drop the samples behind `step`: the resumed run writes them again."""
    if not path.exists():
        return
    parts = re.split(r"(?m)^(?=--- step \d+$)", path.read_text(encoding="utf-8"))
    kept = [part for part in parts if (match := re.match(r"--- step (\d+)$", part, re.M)) and int(match[1]) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _tensorboard(folder: Path) -> Callable[[str, float, int], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("tensorboard", "tensorboard", "--tensorboard") from None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def add(name: str, value: float, step: int) -> None:
        writer.add_scalar(name, value, step)
        writer.flush()

    return add


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a crash cut in two is dropped."""
    path = folder / METRICS
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"], row["event"]
        except (json.JSONDecodeError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f"{path} line {number} is not a metrics row", hint="move the file away and resume"
            ) from None
        rows.append(row)
    return rows


def plot(folder: Path) -> Path:
    """Draw loss.png from metrics.jsonl: training loss (every row, and a running mean) and validation loss by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(folder)
    steps = [(r["step"], r["loss"]) for r in rows if r["event"] == "step"]
    evaluations = [(r["step"], r["validation_loss"]) for r in rows if r["event"] == "evaluation"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if steps:
        x, y = zip(*steps, strict=True)
        axes.plot(x, y, color="#9db7d5", linewidth=0.8, label="training, one batch")
        axes.plot(x, _running_mean(list(y), max(1, len(y) // 50)), color="#1f4e8c", label="training, running mean")
    if evaluations:
        x, y = zip(*evaluations, strict=True)
        axes.plot(x, y, color="#c4501b", marker="o", markersize=3, label=f"validation, last {y[-1]:.3f}")
    name = folder.resolve().name
    title = name if name.isascii() else ""  # the font that comes with matplotlib has no Chinese
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    if steps or evaluations:
        axes.legend()
    path = folder / PLOT
    temporary = folder / ".loss.tmp.png"
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
    return path


def _running_mean(values: list[float], width: int) -> list[float]:
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0.0)
        out.append(total / min(i + 1, width))
    return out
