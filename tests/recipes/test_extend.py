"""`gpt2kit tokenizer extend` from a model and a text to a model that trains on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpt2kit import cli
from gpt2kit.errors import UserError
from gpt2kit.evaluation import evaluate
from gpt2kit.model import folder
from gpt2kit.model.extend import grow
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.recipes import extend as recipe
from gpt2kit.recipes.extend import extend_model
from gpt2kit.text.extend import extend
from gpt2kit.text.training import train_tokenizer

TEXT = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n\n" * 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "english"
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 20], "bpe", 300)
    config = GPT2Config(tokenizer.vocab_size, 64, 32, 1, 2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = GPT2(config, torch.Generator().manual_seed(0))
    task = {"name": "translate", "template": "{prompt}\n=>\n", "max_tokens": 20}
    folder.save(path, model, tokenizer, {"name": "english", "task": task}, {"chat_template.jinja": "x"})
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "诗.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_command_makes_a_model_and_says_what_it_saves(
    base: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    out = tmp_path / "runs" / "zh"
    assert cli.main(["tokenizer", "extend", str(base), str(text), "--add", "60", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "tokens added" in said
    assert f"--from {out}" in said
    model, tokenizer = folder.load(out)
    assert tokenizer is not None
    old = folder.load(base)[0].config.vocab_size
    assert tokenizer.vocab_size == model.config.vocab_size > old
    found = folder.lineage(out)
    assert (found["extension"]["first"], found["extension"]["tokens"]) == (old, tokenizer.vocab_size - old)
    rates = found["extension"]["tokens_per_character"]
    assert rates["after"] < 0.5 * rates["before"]
    assert found["parents"] == [{"folder": "english", "hash": folder.identity(base)}]
    assert found["data"] == {"sources": ["诗.txt"]}
    assert found["task"]["name"] == "translate"
    assert (out / "chat_template.jinja").read_text() == "x"
    assert str(tmp_path) not in json.dumps(found)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_the_new_model_is_evaluated_in_bits_per_byte_like_the_old_one(base: Path, text: Path, tmp_path: Path) -> None:
    made = extend_model(base, [str(text)], tmp_path / "zh", 60)
    results = [evaluate(*folder.load(path), TEXT) for path in (base, made.folder)]
    assert results[0].bytes == results[1].bytes
    assert results[1].tokens < 0.5 * results[0].tokens
    assert results[1].bits_per_byte < results[0].bits_per_byte  # an untrained model: fewer guesses a byte


def test_the_text_decides_how_far_transplanted_rows_are_shifted(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = folder.load(base)
    assert tokenizer is not None
    made = extend(tokenizer, [TEXT], 40)
    bits = {}
    for shift in recipe.SHIFTS:
        bits[shift] = evaluate(
            grow(model, made.first, made.parts, shift=shift), made.tokenizer, TEXT
        ).bits_per_character
    best = min(bits, key=lambda shift: bits[shift])
    for order in (recipe.SHIFTS, recipe.SHIFTS[::-1]):
        monkeypatch.setattr(recipe, "SHIFTS", order)
        grown, shift = recipe.begun(model, made, "transplant", 0, [TEXT])
        assert shift == best
        assert torch.equal(grown.wte.weight, grow(model, made.first, made.parts, shift=best).wte.weight)


def test_the_same_command_gives_the_same_bytes(base: Path, text: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        extend_model(base, [str(text)], tmp_path / name / "zh", 30, "random", seed=5)
    for path in (tmp_path / "first" / "zh").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / "zh" / path.name).read_bytes(), path.name


def test_training_goes_on_from_the_extended_model(base: Path, text: Path, tmp_path: Path) -> None:
    import gpt2kit

    out = tmp_path / "zh"
    extend_model(base, [str(text)], out, 60)
    finished = gpt2kit.train(text, tmp_path / "trained", from_=out, steps=3, context=16, batch=4, sample=False)
    model, tokenizer = folder.load(finished.folder)
    assert tokenizer is not None
    assert tokenizer.hash == folder.load(out)[1].hash  # type: ignore[union-attr]
    assert not torch.equal(model.wte.weight, folder.load(out)[0].wte.weight)


def test_the_model_itself_and_standard_input_are_refused(base: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model itself"):
        extend_model(base, [str(text)], base, 10)
    with pytest.raises(UserError, match="standard input"):
        extend_model(base, ["-"], tmp_path / "zh", 10)


def test_a_model_without_a_tokenizer_is_refused(base: Path, text: Path, tmp_path: Path) -> None:
    model, _ = folder.load(base)
    folder.save(tmp_path / "bare", model)
    with pytest.raises(UserError, match="no tokenizer to extend"):
        extend_model(tmp_path / "bare", [str(text)], tmp_path / "zh", 10)
