"""SIGKILL at random moments, resumed: the same bytes as a run that was never killed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt2kit import commit
from gpt2kit.training import checkpoint
from gpt2kit.training.track import read_metrics

STEPS, EVERY = 60, 10
CHILD = f"""
import sys
from gpt2kit import api, runtime
from gpt2kit.training.loop import Stepped
# timing decides between two fp32 products; here every run must take the same one
runtime.choose_precision = lambda name, device="cpu": runtime.Precision("fp32", "aten", "for the test")
def tell(event):
    if isinstance(event, Stepped):
        print(event.step, flush=True)
if sys.argv[2] == "resume":
    api.train(resume=sys.argv[1], on_event=tell)
else:
    api.train(sys.argv[2], sys.argv[1], tell, steps={STEPS}, n_layer=2, n_head=2, n_embd=32, context=16, batch=8,
              micro_batch=3, tokenizer="char", dropout=0.1, seed=5, evaluate_every=30, checkpoint_every={EVERY},
              workers=1, threads=1, sample=False, evaluate_tokens=512)
"""
TUNING_STEPS = 24
TUNING = f"""
import sys
from gpt2kit import runtime
from gpt2kit.recipes import finetune
from gpt2kit.recipes.tuning_options import FinetuneOptions
from gpt2kit.training.loop import Stepped
runtime.choose_precision = lambda name, device="cpu": runtime.Precision("fp32", "aten", "for the test")
out, what, base, method = sys.argv[1:]
if what == "resume":
    events = finetune.resume(out, lambda: False)
else:
    options = FinetuneOptions(data=[what], from_=base, task="classify", out=out, method=method, steps={TUNING_STEPS},
                              batch=4, dropout=0.1, seed=5, evaluate_every=6, threads=1)
    events = finetune.start(options, lambda: False)
for event in events:
    if isinstance(event, Stepped):
        print(event.step, flush=True)
"""


@dataclass(frozen=True)
class Moment:
    """Kill once this step was told: `delay` seconds later, or as soon as a save has begun to fill its folder."""

    step: int
    delay: float = 0.0
    in_save: bool = False


def child(run: Path, what: str, moment: Moment | None = None, tune: tuple[str, ...] = ()) -> bool:
    """Train in a process of its own, or `tune` a base by a method; True: it ended before it could be killed."""
    command = [sys.executable, "-c", TUNING if tune else CHILD, str(run), what, *tune]
    one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | one)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if moment is not None and int(line) >= moment.step:
                if moment.in_save:
                    wait_for_a_save(run, process)
                else:
                    time.sleep(moment.delay)
                process.kill()
                break
        process.stdout.read()
        code = process.wait(timeout=120)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert code in ((0,) if moment is None else (0, -9)), code
    return code == 0


def wait_for_a_save(run: Path, process: subprocess.Popen[str]) -> None:
    """Return when a staging folder holds a file (the process must not block on its pipe meanwhile: 60 short lines)."""
    while process.poll() is None:
        for path in (run / "checkpoints").glob(f"{commit.STAGING}*/*"):
            assert path
            return


def last_step(run: Path) -> int:
    steps = checkpoint.steps_of(run)
    return steps[-1] if steps else 0


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    words = ["the", "spring", "river", "moon", "night", "and", "song", "of", "a", "bird"]
    lines = [" ".join(rng.choice(words) for _ in range(8)) for _ in range(600)]
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def straight(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    assert child(run, str(text))
    return run


def check_between(run: Path) -> None:
    """Whatever the moment: the newest checkpoint verifies, and no committed one is damaged."""
    if checkpoint.steps_of(run):
        _, notes = checkpoint.newest(run)
        assert notes == []
    assert not (run / "model.safetensors").exists() or commit.verify(run) is not None


def check_end(run: Path, straight: Path) -> None:
    assert sha256(run) == sha256(straight)
    commit.verify(run)
    assert checkpoint.steps_of(run) == checkpoint.steps_of(straight)
    losses = [[(r["step"], r["loss"]) for r in read_metrics(r_) if r["event"] == "step"] for r_ in (run, straight)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))
    left = [p for p in (run / "checkpoints").iterdir() if not p.name.startswith("step-")]
    assert left == []


def test_two_kills_end_in_the_same_bytes(text: Path, straight: Path, tmp_path: Path) -> None:
    """Before the first checkpoint, and inside a save."""
    run = tmp_path / "run"
    assert not child(run, str(text), Moment(EVERY - 1))
    assert checkpoint.steps_of(run) in ([], [EVERY])
    check_between(run)
    assert not child(run, "resume", Moment(14, in_save=True))
    assert list((run / "checkpoints").glob(f"{commit.STAGING}*")), "the kill missed the save"
    check_between(run)
    assert child(run, "resume")
    check_end(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills_end_in_the_same_bytes(text: Path, straight: Path, tmp_path: Path, seed: int) -> None:
    """Ten a run, every second one inside a save; steps behind the last checkpoint are done again."""
    rng = random.Random(seed)
    run = tmp_path / "run"
    what, kills = str(text), 0
    for turn in range(10):
        step = min(STEPS - 8, last_step(run)) + rng.randrange(1, 6)
        ended = child(run, what, Moment(step, rng.random() * 0.03, in_save=turn % 2 == 1))
        assert not ended
        kills += 1
        check_between(run)
        what = "resume"
    assert kills == 10
    assert child(run, "resume")
    check_end(run, straight)


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished_by_resume(straight: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(straight, run)
    (run / "model.safetensors").unlink()
    (run / commit.MANIFEST).unlink()
    assert child(run, "resume")
    assert sha256(run) == sha256(straight)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adalora", "pfeiffer"])
def test_a_killed_adapter_ends_in_the_same_bytes(straight: Path, tmp_path: Path, method: str) -> None:
    """Behind a checkpoint, then inside a save."""
    rows = tmp_path / "rows.jsonl"
    words = ["spring", "river", "moon", "night"]
    rows.write_text("".join(f'{{"text": "the {w} and the {v}", "label": "{w}"}}\n' for w in words for v in words * 3))
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"  # one name: it stands in the lineage
    tune = (str(straight), method)
    assert child(whole, str(rows), tune=tune)
    assert not child(cut, str(rows), Moment(8), tune=tune)
    check_between(cut)
    assert not child(cut, "resume", Moment(11, in_save=True), tune=tune)
    assert list((cut / "checkpoints").glob(f"{commit.STAGING}*")), "the kill missed the save"
    check_between(cut)
    assert child(cut, "resume", tune=tune)
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    losses = [[(r["step"], r["loss"]) for r in read_metrics(r_) if r["event"] == "step"] for r_ in (whole, cut)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, TUNING_STEPS + 1))
