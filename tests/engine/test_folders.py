"""Engines of model folders: what is refused, what loading imports, and several models within one limit of memory."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from fake_forward import FakeForward
from schedules import EOS, config

from gpt2kit import runtime
from gpt2kit.engine.engine import Engine, Request
from gpt2kit.engine.models import Models
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Completion
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer

LONG = 100_000  # tokens of a request that never ends by itself


# ---------------------------------------------------------------- model folders


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, characters: Tokenizer) -> Path:
    torch = pytest.importorskip("torch")
    from gpt2kit.model import folder
    from gpt2kit.model.gpt2 import GPT2

    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=characters.vocab_size, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    path = tmp_path_factory.mktemp("models") / "tiny"
    folder.save(path, model.eval(), characters)
    return path


def test_a_folder_answers_as_its_model_file_does(model_folder: Path) -> None:
    from gpt2kit.model import folder, generate

    model, tokenizer = folder.load(model_folder)
    assert tokenizer is not None
    prompts = ["春眠不觉晓", "花落", "a"]
    settings = SamplingSettings(max_tokens=40, temperature=0.0, ignore_eos=True, logprobs=2)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    expected = generate.generate(model, ids, settings, tokenizer=tokenizer)
    with Engine.load(model_folder, "fp32", threads=1, max_batch=2) as engine:
        results = engine.generate(prompts, settings)
        assert engine.precision == "fp32"
        assert engine.memory > 0
        scores = engine.score(prompts[:1], logprobs=1)[0]
    for (wanted,), one in zip(expected, results, strict=True):
        assert isinstance(one, Completion)
        assert (one.token_ids, one.text) == (wanted.token_ids, wanted.text)
        for mine, theirs in zip(one.logprobs or [], wanted.logprobs or [], strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    for mine, theirs in zip(scores[1:], generate.echo(model, ids[0], 1)[1:], strict=True):
        assert mine is not None
        assert theirs is not None
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("precision", ["int8", "auto", "fp32"])
def test_a_changed_tokenizer_or_config_is_refused(
    model_folder: Path, tmp_path: Path, name: str, precision: Any
) -> None:
    path = tmp_path / "model"
    shutil.copytree(model_folder, path)
    Engine.load(path, "int8", threads=1, max_batch=1).close()  # so that the int8 weights are there
    (path / name).write_text((path / name).read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(UserError, match=name):
        Engine.load(path, precision, threads=1, max_batch=1)


def test_loading_and_generating_do_not_import_torch(model_folder: Path) -> None:
    with Engine.load(model_folder, "int8", threads=1, max_batch=2) as engine:  # makes and stores the int8 weights
        expected = engine.generate("春眠", max_tokens=9, seed=1)[0].token_ids
    code = (
        "import sys; from gpt2kit.engine import Engine; e = Engine.load(sys.argv[1], 'int8', 1, 2); "
        "print(e.generate('春眠', max_tokens=9, seed=1)[0].token_ids, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, model_folder], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"{expected} False", done.stderr


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Engine.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no model"):
        Engine.load(tmp_path)


def test_memory_for_not_even_one_stream(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="one full context needs"):
        Engine.load(model_folder, "fp32", threads=1)


# ---------------------------------------------------------------- several models


def several(sizes: dict[str, int], memory: int | None) -> tuple[Models, list[str]]:
    loads: list[str] = []

    def load(folder: Any, **options: Any) -> Engine:
        loads.append(folder)
        engine = Engine(FakeForward(config(), 8), None, 2, eos_id=EOS)
        engine.memory = sizes[folder]
        return engine

    return Models({name: name for name in sizes}, memory, load), loads


def test_the_model_used_least_recently_makes_room() -> None:
    models, loads = several({"a": 40, "b": 40, "c": 40}, 100)
    with models:
        for name in "aba":
            with models.use(name) as engine:
                engine.generate([[1]], max_tokens=1)
        models.preload("c")
        assert models.loaded == ["a", "c"]
        with models.use("a"):
            pass
        assert loads == ["a", "b", "c"]
    assert models.loaded == []


def test_a_model_in_use_is_not_unloaded() -> None:
    models, _ = several({"a": 60, "b": 60}, 100)
    with models:
        with models.use("a") as engine:
            with pytest.raises(UserError, match="in use"):
                models.preload("b")
            with pytest.raises(UserError, match="in use"):
                models.unload("a")
            handle = engine.submit(Request([1], SamplingSettings(max_tokens=LONG, ignore_eos=True)))
            next(iter(handle))
        with pytest.raises(UserError, match="in use"):
            models.unload("a")  # its request still runs
        handle.cancel()
        with pytest.raises(UserError, match="cancelled"):
            handle.result(30)
        models.unload("a")
        models.unload("a")
        models.preload("b")
        assert models.loaded == ["b"]


def test_a_model_that_can_never_fit_or_is_unknown_is_refused() -> None:
    models, _ = several({"a": 60, "large": 200}, 100)
    with models:
        with pytest.raises(UserError, match="limit for all"):
            models.preload("large")
        with pytest.raises(UserError, match="did you mean 'large'"):
            models.preload("larg")
        models.preload("a")
        assert models.loaded == ["a"]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_an_unloaded_engine_gives_its_memory_back_without_the_collector(model_folder: Path, precision: str) -> None:
    """`gpt2kit serve` freezes what is loaded: whatever only the collector would free would stay."""
    models = Models({"a": model_folder, "b": model_folder}, precision=precision, threads=1, max_batch=2)
    gc.collect()
    gc.disable()
    try:
        with models:
            models.preload("b")
            gc.freeze()
            with models.use("b") as engine:
                engine.generate("春眠", max_tokens=4, n=2)
                assert list(engine.stream("花落", max_tokens=4))
                with pytest.raises(UserError):
                    engine.generate("春", max_tokens=-1)
                gone = [weakref.ref(engine), weakref.ref(engine._worker.scheduler.forward)]
            del engine
            models.unload("b")
            assert [one() for one in gone] == [None, None]
    finally:
        gc.unfreeze()
        gc.enable()
