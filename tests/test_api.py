"""The Python API: the same names, the same errors, nothing heavy before it is needed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2kit
from gpt2kit.recipes import events as kinds
from gpt2kit.training import loop

TINY: dict[str, Any] = {
    "n_layer": 1, "n_embd": 32, "n_head": 2, "context": 16, "batch": 4, "tokenizer": "char", "precision": "fp32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _threads(torch_as_it_was: None) -> None:
    """A verb sets the threads of its process, which is this one."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "my.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n\n" * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text: Path) -> tuple[Any, list[Any]]:
    events: list[Any] = []
    out = text.parent / "run"
    return gpt2kit.train(text, out=out, steps=6, evaluate_every=3, on_event=events.append, **TINY), events


def _python(code: str) -> str:
    root = str(Path(gpt2kit.__file__).parent.parent)
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_package_imports_quickly_and_without_torch() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import gpt2kit; print(time.perf_counter() - start); "
        "assert not {'torch', 'numpy', 'tyro', 'rich'} & set(sys.modules)"
    )
    # 0.1 s is the promise on a quiet machine; three times that here, others may be running
    assert statistics.median(float(_python(code)) for _ in range(5)) < 0.3


def test_every_exported_name_is_there_and_listed() -> None:
    assert set(gpt2kit.__all__) <= set(dir(gpt2kit))
    for name in gpt2kit.__all__:
        assert getattr(gpt2kit, name) is not None
    assert gpt2kit.__all__ == sorted(gpt2kit.__all__)
    assert isinstance(gpt2kit.__version__, str)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gpt2kit' has no attribute 'lode'"):
        gpt2kit.lode  # noqa: B018
    assert not hasattr(gpt2kit, "__wrapped__")


def test_train_shows_every_event_and_returns_the_end(run: tuple[Any, list[Any]]) -> None:
    finished, events = run
    assert isinstance(finished, kinds.Finished)
    assert events[-1] == finished
    assert [e.step for e in events if isinstance(e, loop.Stepped)] == [1, 2, 3, 4, 5, 6]
    evaluated = [e for e in events if isinstance(e, loop.Evaluated)]
    assert {3, 6} <= {e.step for e in evaluated}
    assert sum(isinstance(e, kinds.Planned) for e in events) == 1
    assert sum(isinstance(e, kinds.Sampled) for e in events) == len(evaluated)
    assert any("char vocabulary" in e.text for e in events if isinstance(e, kinds.Note))
    assert (finished.stopped, finished.resume) == ("finished", None)
    assert finished.loss == min(e.loss for e in evaluated)


def test_load_gives_a_model_that_maps_ids_to_logits(run: tuple[Any, list[Any]]) -> None:
    model, tokenizer = gpt2kit.load(run[0].folder)
    assert tokenizer is not None
    assert not model.training
    ids = torch.tensor([tokenizer.encode("the quick")])
    with torch.no_grad():
        logits = model(ids)
    assert logits.shape == (1, 9, tokenizer.vocab_size)


def test_generate_is_seeded_and_takes_the_sampling_settings(run: tuple[Any, list[Any]]) -> None:
    model, tokenizer = gpt2kit.load(run[0].folder)
    assert tokenizer is not None
    first = gpt2kit.generate(model, tokenizer, "the", n=2, max_tokens=6, seed=4)
    again = gpt2kit.generate(model, tokenizer, "the", n=2, max_tokens=6, seed=4)
    assert [c.text for c in first] == [c.text for c in again]
    assert len(first) == 2
    assert all(len(c.token_ids) == 6 for c in first)
    assert gpt2kit.generate(model, tokenizer, "the", max_tokens=3, temperature=0)[0].text != first[0].text


def test_beam_search_takes_temperature_0_unless_it_is_told_otherwise(run: tuple[Any, list[Any]]) -> None:
    model, tokenizer = gpt2kit.load(run[0].folder)
    assert tokenizer is not None
    (found,) = gpt2kit.generate(model, tokenizer, "the", num_beams=3, max_tokens=5)
    (same,) = gpt2kit.generate(model, tokenizer, "the", num_beams=3, max_tokens=5, temperature=0)
    assert found == same
    with pytest.raises(gpt2kit.UserError, match="needs temperature 0"):
        gpt2kit.generate(model, tokenizer, "the", num_beams=3, temperature=0.5)


def test_resume_goes_on_with_a_run(run: tuple[Any, list[Any]]) -> None:
    finished = gpt2kit.train(resume=run[0].folder)
    assert (finished.step, finished.loss) == (run[0].step, run[0].loss)


def test_from_starts_from_a_models_weights(run: tuple[Any, list[Any]], text: Path, tmp_path: Path) -> None:
    finished = gpt2kit.train(
        text, out=tmp_path / "tuned", from_=str(run[0].folder), steps=2, batch=4, precision="fp32", sample=False
    )
    assert gpt2kit.load(finished.folder)[0].config == gpt2kit.load(run[0].folder)[0].config


def test_an_unknown_option_is_answered_with_the_one_meant(text: Path, tmp_path: Path) -> None:
    with pytest.raises(gpt2kit.UserError, match=r"'lerning_rate'.*did you mean 'learning_rate'"):
        gpt2kit.train(text, out=tmp_path / "a", lerning_rate=1e-3)
    assert not (tmp_path / "a").exists()


def test_an_unknown_sampling_setting_is_answered_with_the_one_meant(run: tuple[Any, list[Any]]) -> None:
    model, tokenizer = gpt2kit.load(run[0].folder)
    assert tokenizer is not None
    with pytest.raises(gpt2kit.UserError, match=r"'temprature'.*did you mean 'temperature'"):
        gpt2kit.generate(model, tokenizer, "the", temprature=0.5)


def test_the_same_errors_as_on_the_command_line(text: Path, tmp_path: Path) -> None:
    with pytest.raises(gpt2kit.UserError, match="no --out folder"):
        gpt2kit.train(text)
    with pytest.raises(gpt2kit.UserError, match="there is no model folder"):
        gpt2kit.load(tmp_path / "nowhere")
    with pytest.raises(gpt2kit.UserError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        gpt2kit.train(text, out=tmp_path / "a", preset="tinny")
