"""A checkpoint is whole or passed over; whatever the disk does, the old one still verifies."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.training import checkpoint, optim
from gpt2kit.training.checkpoint import STATE, TENSORS, State, WholeModel


def write(toy: Any, run: Path, step: int, keep: int = 10, losses: dict[str, float] | None = None) -> Path:
    model = toy.model(seed=step)
    config = toy.settings()
    optimizers = optim.build(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optim.update(optimizers, 1.0, 1, 1.0)
    state = State(step=step, total=100, losses=losses or {})
    return checkpoint.save(run, WholeModel(model), optimizers, state, {"name": "toy"}, keep)


def restored(toy: Any, path: Path) -> tuple[State, dict[str, torch.Tensor]]:
    model = toy.model(seed=50)
    optimizers = optim.build(model, toy.settings())
    state = checkpoint.restore(path, WholeModel(model), optimizers)
    return state, {**model.state_dict(), **optim.state_tensors(model, optimizers)}


@pytest.fixture
def run(toy: Any, tmp_path: Path) -> Path:
    for step in (10, 20, 30):
        write(toy, tmp_path, step)
    return tmp_path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << at % 8
    path.write_bytes(data)


DAMAGE = {
    "a truncated file": lambda path: os.truncate(path / "model.safetensors", 1000),
    "a flipped bit in the weights": lambda path: flip(path / "model.safetensors", 20_000),
    "a flipped bit in the optimiser": lambda path: flip(path / TENSORS, 20_000),
    "a changed state": lambda path: (path / STATE).write_text("{}"),
    "a missing file": lambda path: (path / TENSORS).unlink(),
    "a missing manifest": lambda path: (path / commit.MANIFEST).unlink(),
    "a damaged manifest": lambda path: (path / commit.MANIFEST).write_text("{"),
    "an empty folder": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_note(run: Path, kind: str) -> None:
    DAMAGE[kind](run / "checkpoints" / "step-000030")
    path, notes = checkpoint.newest(run)
    assert path.name == "step-000020"
    assert len(notes) == 1
    assert "step-000030 is passed over" in notes[0]


def test_a_checkpoint_that_is_a_bare_model_folder_is_passed_over(toy: Any, run: Path) -> None:
    from gpt2kit.model import folder

    folder.save(run / "checkpoints" / "step-000040", toy.model())
    path, notes = checkpoint.newest(run)
    assert path.name == "step-000030"
    assert STATE in notes[0]


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "a changed state"])
def test_the_best_that_is_whole_becomes_the_model(run: Path, kind: str) -> None:
    state = State(step=30, total=100, losses={"10": 3.0, "20": 1.0, "30": 2.0})
    assert checkpoint.best_whole(run, state) == (20, [])
    DAMAGE[kind](run / "checkpoints" / "step-000020")
    step, notes = checkpoint.best_whole(run, state)
    assert (step, len(notes)) == (30, 1)
    assert "step-000020 is passed over" in notes[0]
    for path in (run / "checkpoints").iterdir():
        DAMAGE["a damaged manifest"](path)
    with pytest.raises(UserError, match="no checkpoint that is whole"):
        checkpoint.best_whole(run, state)


def test_the_newest_is_taken_by_number_not_by_name(toy: Any, run: Path) -> None:
    write(toy, run, 1_000_000)
    (run / "checkpoints" / "step-99x").mkdir()
    (run / "checkpoints" / ".partial-step-000099-abc").mkdir()
    assert checkpoint.newest(run)[0].name == "step-1000000"
    assert checkpoint.steps_of(run) == [10, 20, 30, 1_000_000]


def test_without_a_good_checkpoint_the_error_says_why(run: Path, tmp_path: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        (path / TENSORS).unlink()
    with pytest.raises(UserError, match=r"no checkpoint to resume from .*step-000010") as caught:
        checkpoint.newest(run)
    assert "gpt2kit train" in str(caught.value.hint)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.newest(tmp_path / "absent")


def test_the_last_k_and_the_best_are_kept(toy: Any, tmp_path: Path) -> None:
    losses: dict[str, float] = {}
    for step, loss in ((10, 3.0), (20, 1.5), (30, 2.0), (40, 2.5), (50, 2.2)):
        losses[str(step)] = loss
        write(toy, tmp_path, step, keep=2, losses=losses)
    assert checkpoint.steps_of(tmp_path) == [20, 40, 50]
    assert checkpoint.best(tmp_path, State(losses=losses)) == 20
    assert commit.verify(tmp_path / "checkpoints" / "step-000020") is not None


def test_what_a_killed_save_left_is_gone_after_the_next(toy: Any, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".partial-step-000007-0badcafe"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    write(toy, tmp_path, 10)
    assert [path.name for path in left.parent.iterdir()] == ["step-000010"]


def test_without_evaluations_the_newest_is_the_best(toy: Any, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(toy, tmp_path, step, keep=1)
    assert checkpoint.steps_of(tmp_path) == [30]
    assert checkpoint.best(tmp_path, State()) == 30
    assert checkpoint.best(tmp_path / "absent", State()) is None


def test_restore_puts_everything_back(toy: Any, tmp_path: Path) -> None:
    torch.manual_seed(8)
    path = write(toy, tmp_path, 7, losses={"7": 2.5})
    expected = torch.rand(3)
    torch.manual_seed(9)
    state, tensors = restored(toy, path)
    assert torch.equal(torch.rand(3), expected)
    assert (state.step, state.total, state.losses) == (7, 100, {"7": 2.5})
    again = restored(toy, path)[1]
    assert tensors.keys() == again.keys()
    first = tensors["h.0.attn.c_attn.weight/momentum_buffer"]
    assert torch.equal(first, torch.full_like(first, float(first[0, 0])))
    lineage = commit.manifest(path)
    assert lineage is not None
    assert (lineage["kind"], lineage["step"], lineage["scores"]) == ("checkpoint", 7, {"validation_loss": 2.5})


def test_a_checkpoint_is_a_model_folder_that_loads(toy: Any, tmp_path: Path) -> None:
    from gpt2kit.model import folder

    model, tokenizer = folder.load(write(toy, tmp_path, 7))
    assert tokenizer is None
    assert not torch.equal(model.wte.weight, toy.model(seed=7).wte.weight)  # one step was made
    torch.testing.assert_close(model.wte.weight, toy.model(seed=7).wte.weight, atol=0.01, rtol=0)


# The disk


CHILD = """
import resource, sys
from pathlib import Path
import torch
from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.training import checkpoint, optim
from gpt2kit.training.checkpoint import State, WholeModel
from gpt2kit.training.config import TrainConfig
run, limit = Path(sys.argv[1]), int(sys.argv[2])
model = GPT2(GPT2Config(vocab_size=65, n_positions=16, n_embd=32, n_layer=2, n_head=2))
optimizers = optim.build(model, TrainConfig())
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
optim.update(optimizers, 1.0, 1, 1.0)
def save(step):
    return checkpoint.save(run, WholeModel(model), optimizers, State(step=step, total=9), {"name": "toy"}, 2)
save(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save(2)
except UserError as error:
    print(error)
path, notes = checkpoint.newest(run)
print(path.name, notes, sorted(p.name for p in (run / "checkpoints").iterdir()))
"""


@pytest.mark.parametrize(
    "limit", [pytest.param(500, marks=pytest.mark.slow), 40_000]
)  # the first file fails; the weights do
def test_a_full_disk_keeps_the_old_checkpoint_and_says_what_to_do(tmp_path: Path, limit: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path), str(limit)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("could not write"), done
    assert "File too large" in done.stdout
    assert "check the disk" in done.stdout
    assert done.stdout.endswith("step-000001 [] ['step-000001']\n")


@pytest.mark.parametrize("fails_at", range(0, 9, 2))
@pytest.mark.parametrize(("number", "advice"), [(errno.EIO, "check the disk"), (errno.ENOSPC, "free some space")])
def test_a_failing_fsync_keeps_the_old_checkpoint(
    toy: Any, run: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, number: int, advice: str
) -> None:
    real, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise OSError(number, os.strerror(number))
        real(handle)

    before = {p.name for p in (run / "checkpoints").iterdir()}
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"could not write|no space left") as caught:
        write(toy, run, 40, keep=1)
    monkeypatch.setattr(os, "fsync", real)
    assert advice in str(caught.value.hint)
    assert {p.name for p in (run / "checkpoints").iterdir()} == before
    assert checkpoint.newest(run)[0].name == "step-000030"
    assert restored(toy, checkpoint.newest(run)[0])[0].step == 30


# Bytes from a stranger: the manifest is made to fit, so that the readers themselves must hold


def recommit(path: Path) -> None:
    """Let the manifest cover what lies there now."""
    value = json.loads((path / commit.MANIFEST).read_text())
    value["files"] = {
        p.name: {"bytes": p.stat().st_size, "sha256": commit.sha256_file(p)}
        for p in path.iterdir() if p.name != commit.MANIFEST
    }  # fmt: skip
    (path / commit.MANIFEST).write_text(json.dumps(value))


def outcome(toy: Any, path: Path) -> str:
    try:
        restored(toy, path)
    except UserError as error:
        return error.message
    return "success"


VALUES: list[Any] = [None, True, -1, 1e400, "1", [], {}, 3.5, 2**70, "x" * 50]


@pytest.mark.parametrize("field", ["step", "total", "seconds", "evaluations_since_best", "plateau", "losses",
                                   "accuracies", "stopped_early"])  # fmt: skip
def test_any_value_in_the_state_is_read_or_refused(toy: Any, tmp_path: Path, field: str) -> None:
    path = write(toy, tmp_path, 7, losses={"7": 2.0})
    good = (path / STATE).read_text()
    wrong: list[Any] = [[], "x", {"7": "x"}, -1]
    if field in ("stopped_early", "losses", "accuracies"):
        wrong = ["x", 3.5, ["7"]]
    for value in [*VALUES, *wrong]:
        changed = json.loads(good)
        changed[field] = value
        (path / STATE).write_text(json.dumps(changed))
        recommit(path)
        result = outcome(toy, path)
        assert result != "success" or not any(value == w and type(value) is type(w) for w in wrong), value


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{", '{"step": 1}', "\x00", '{"a": ' * 2000])
def test_any_text_as_state_is_refused(toy: Any, tmp_path: Path, text: str) -> None:
    path = write(toy, tmp_path, 7)
    (path / STATE).write_text(text)
    recommit(path)
    assert outcome(toy, path) != "success"


@pytest.mark.parametrize("name", [TENSORS, STATE])
def test_random_damage_is_read_or_refused(toy: Any, tmp_path: Path, name: str) -> None:
    path = write(toy, tmp_path, 7, losses={"7": 2.0})
    good = (path / name).read_bytes()
    rng = random.Random(1)
    refused = 0
    for turn in range(60):
        data = bytearray(good)
        match turn % 3:
            case 0:
                del data[rng.randrange(len(data)) :]
            case 1:
                for _ in range(3):  # in the header, where it hurts
                    data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
            case 2:
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(50)] = rng.randbytes(rng.randrange(50))
        (path / name).write_bytes(data)
        recommit(path)
        refused += outcome(toy, path) != "success"
    assert refused > 20


def test_tensors_of_another_model_are_refused(toy: Any, tmp_path: Path) -> None:
    """Shapes and names are checked before the optimiser sees them, not at the next step."""
    from safetensors.torch import load_file, save_file

    path = write(toy, tmp_path, 7)
    good = load_file(path / TENSORS)
    name = "h.0.attn.c_attn.weight/momentum_buffer"
    broken = {
        "another shape": {**good, name: torch.zeros(3, 3)},
        "an unknown parameter": {**good, "h.9.nothing/exp_avg": torch.zeros(3)},
        "no generator": {k: v for k, v in good.items() if k != checkpoint.GENERATOR},
        "a short generator": {**good, checkpoint.GENERATOR: torch.zeros(7, dtype=torch.uint8)},
        "a name without a slash": {**good, "nothing": torch.zeros(3)},
        "a missing buffer": {k: v for k, v in good.items() if k != name},
    }
    accepted = []
    for what, tensors in broken.items():
        save_file(tensors, path / TENSORS)
        recommit(path)
        if outcome(toy, path) == "success":
            accepted.append(what)
    assert accepted == []
