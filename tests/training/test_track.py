"""What a run leaves for people: one row a step, no row twice after a resume, a plot that opens."""

from __future__ import annotations

import errno
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.errors import UserError
from gpt2kit.training import track
from gpt2kit.training.loop import Evaluated, Replanned, Saved, Stepped, Stopped
from gpt2kit.training.track import METRICS, PLOT, SAMPLES, Track


def stepped(step: int, total: int = 10) -> Stepped:
    return Stepped(step, total, 4.0 / step, 0.5, 1.0, 1234.6, 9.0)


def rows(folder: Path) -> list[tuple[str, int]]:
    return [(row["event"], row["step"]) for row in track.read_metrics(folder)]


def pixels(path: Path) -> bytes:
    """The raw image of a PNG; every chunk's checksum is verified."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, image = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        image += body if kind == b"IDAT" else b""
        at += 12 + length
    assert kind == b"IEND"
    return zlib.decompress(image)


def test_every_event_becomes_a_row(tmp_path: Path) -> None:
    out = Track(tmp_path, 0)
    for event in (stepped(1), stepped(2), Evaluated(2, 2.5, True), Saved(2, tmp_path / "step-000002"),
                  Replanned(2, 20), Stopped(2, "asked")):  # fmt: skip
        out.write(event)
    out.close()
    found = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert found == [
        {"step": 1, "event": "step", "loss": 4.0, "gradient_norm": 0.5, "rate": 1.0, "tokens_per_second": 1235},
        {"step": 2, "event": "step", "loss": 2.0, "gradient_norm": 0.5, "rate": 1.0, "tokens_per_second": 1235},
        {"step": 2, "event": "evaluation", "validation_loss": 2.5, "best": True},
        {"step": 2, "event": "checkpoint", "folder": "step-000002"},
        {"step": 2, "event": "replanned", "total": 20},
        {"step": 2, "event": "stopped", "reason": "asked"},
    ]


def test_long_runs_write_about_two_thousand_rows(tmp_path: Path) -> None:
    out = Track(tmp_path, 0)
    for step in range(1, 20_001):
        out.write(stepped(step, 20_000))
    out.close()
    found = rows(tmp_path)
    assert len(found) == 2001
    assert found[0] == ("step", 1)
    assert found[-1] == ("step", 20_000)


def test_a_resumed_run_drops_the_rows_behind_its_checkpoint(tmp_path: Path) -> None:
    out = Track(tmp_path, 0)
    for step in range(1, 8):
        out.write(stepped(step))
    out.write(Stopped(5, "asked"))
    out.close()
    again = Track(tmp_path, 5)
    assert rows(tmp_path) == [("step", step) for step in range(1, 6)]
    again.write(stepped(6))
    again.close()
    assert rows(tmp_path) == [("step", step) for step in range(1, 7)]


def test_a_new_run_begins_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "event": "step"}\n')
    Track(tmp_path, 0).close()
    assert (tmp_path / METRICS).read_text() == ""


@pytest.mark.parametrize("rest", ['{"step": 3, "ev', "{", "3", "[]", '{"step": 3}', "\x00\x00"])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, rest: str) -> None:
    good = '{"step": 1, "event": "step", "loss": 4.0}\n{"step": 2, "event": "step", "loss": 3.0}\n'
    (tmp_path / METRICS).write_text(good + rest)
    assert rows(tmp_path) == [("step", 1), ("step", 2)]
    Track(tmp_path, 2).close()
    assert (tmp_path / METRICS).read_text() == good


def test_a_half_written_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "event": "step"}\n{"st\n{"step": 2, "event": "step"}\n')
    with pytest.raises(UserError, match="line 2 is not a metrics row"):
        track.read_metrics(tmp_path)


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert track.read_metrics(tmp_path) == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the module sees, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(track.time, "perf_counter", lambda: now[0])
    return now


def test_an_evaluation_draws_the_curve(tmp_path: Path, clock: list[float]) -> None:
    out = Track(tmp_path, 0)
    clock[0] += 60
    out.write(Evaluated(0, 4.0, True))
    first = pixels(tmp_path / PLOT)
    for step in range(1, 6):
        out.write(stepped(step))
    out.write(Evaluated(5, 1.0, True))
    out.close()
    second = pixels(tmp_path / PLOT)
    assert second != first
    assert len(set(second)) > 20  # lines, not a blank
    assert {p.name for p in tmp_path.iterdir()} == {METRICS, PLOT}


def test_drawing_takes_a_small_share_of_the_time_and_the_last_curve_is_whole(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def slow(folder: Path) -> None:
        drawn.append(clock[0] - 1000)
        clock[0] += 0.4

    monkeypatch.setattr(track, "plot", slow)
    out = Track(tmp_path, 0)
    for step in range(1, 451):
        clock[0] += 0.2
        out.write(Evaluated(step, 1 / step, True))
    assert drawn[0] == pytest.approx(25, abs=0.3)  # the first is thought to take half a second
    assert len(drawn) == 4
    assert 0.4 * len(drawn) <= 0.02 * (clock[0] - 1000)
    out.close()
    assert drawn[4:] == [pytest.approx(91.6)]
    again = Track(tmp_path, 450)
    again.close()
    assert len(drawn) == 5  # nothing new, nothing drawn


def test_a_run_that_fails_still_draws_its_curve_and_a_full_disk_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Track(tmp_path, 0)
    out.write(Evaluated(1, 4.0, True))
    assert not (tmp_path / PLOT).exists()
    out.close()
    pixels(tmp_path / PLOT)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(track, "plot", full)
    out = Track(tmp_path, 0)
    out.write(Evaluated(1, 4.0, True))
    out.close()


def test_a_curve_without_rows_can_be_drawn(tmp_path: Path) -> None:
    pixels(track.plot(tmp_path))


def test_a_chinese_folder_name_is_drawn_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors here: matplotlib warns where its font lacks a glyph."""
    folder = tmp_path / "唐诗"
    folder.mkdir()
    pixels(track.plot(folder))


def test_the_running_mean_is_over_the_last_values() -> None:
    assert track._running_mean([1.0, 2.0, 3.0, 4.0], 2) == pytest.approx([1, 1.5, 2.5, 3.5])


def test_samples_are_appended(tmp_path: Path) -> None:
    out = Track(tmp_path, 0)
    out.sample(5, "春眠不觉晓")
    out.sample(10, "b")
    out.close()
    assert (tmp_path / SAMPLES).read_text(encoding="utf-8") == "--- step 5\n春眠不觉晓\n\n--- step 10\nb\n\n"


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any, int]] = []
    monkeypatch.setattr(track, "_tensorboard", lambda folder: lambda *row: seen.append(row))
    out = Track(tmp_path, 0, tensorboard=True)
    out.write(stepped(1))
    out.write(Evaluated(1, 2.5, True))
    out.close()
    assert ("step/loss", 4.0, 1) in seen
    assert ("evaluation/validation_loss", 2.5, 1) in seen
    assert not [row for row in seen if row[0] == "evaluation/best"]


def test_tensorboard_absent_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError) as caught:
        Track(tmp_path, 0, tensorboard=True)
    assert "pip install 'gpt2kit[tensorboard]'" in str(caught.value)


def test_a_disk_that_refuses_is_explained_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = close = write

    out = Track(tmp_path, 0)
    out.file.close()
    monkeypatch.setattr(out, "file", Full())
    with pytest.raises(UserError, match="no space left"):
        out.write(stepped(1))
    monkeypatch.setattr(Full, "close", lambda self: Full.write(self, ""))
    out.close()  # a full disk must not hide what went wrong before
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="could not write"):
        Track(tmp_path / "taken", 0)


def test_the_rows_before_a_checkpoint_are_on_the_disk(tmp_path: Path) -> None:
    out = Track(tmp_path, 0)
    for event in (stepped(1), stepped(2), Saved(2, tmp_path / "step-000002")):
        out.write(event)
    assert rows(tmp_path) == [("step", 1), ("step", 2), ("checkpoint", 2)]  # without a close
    out.close()
