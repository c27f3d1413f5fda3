"""A model folder: read by other tools, reading theirs, with its lineage, refused by name where damaged."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model import files, folder
from gpt2kit.model.config_file import config_values, read_config, write_config
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

TEXT = "一二三四五六七八九十 once upon a time there was a cat\n" * 3
LINEAGE: dict[str, Any] = {
    "name": "Tiny | tale",
    "parents": [{"folder": "runs/old", "hash": "ab" * 32}],
    "data": {"files": ["tale.txt"], "hash": "cd" * 32},
    "settings": {"batch": 12, "schedule": {"kind": "cosine"}},
    "seed": 7,
    "scores": {"validation_loss": 1.25},
    "notes": ["trained for a test"],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], kind="char")


def make(vocab_size: int = 64, seed: int = 0, **fields: Any) -> GPT2:
    config = GPT2Config(vocab_size=vocab_size, n_positions=16, n_embd=12, n_layer=2, n_head=3, **fields)
    return GPT2(config, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return folder.save(tmp_path / "a", make(), tokenizer, LINEAGE)


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# Round trips


def test_save_load_save_is_byte_equal(saved: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, loaded = folder.load(saved)
    assert loaded is not None
    assert loaded.hash == tokenizer.hash
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make().parameters(), strict=True))
    folder.save(tmp_path / "b", model, loaded, folder.lineage(saved))
    assert content(tmp_path / "b") == content(saved)
    assert folder.identity(saved) == folder.identity(tmp_path / "b")
    folder.save(tmp_path / "c", make(seed=1), loaded, folder.lineage(saved))
    assert folder.identity(saved) != folder.identity(tmp_path / "c")


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False}, {"activation_function": "relu", "n_inner": 9}])
def test_transformers_reads_our_folder_without_a_complaint(
    tmp_path: Path, fields: dict[str, Any], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(**fields)
    folder.save(tmp_path / "a", model, tokenizer)
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert isinstance(theirs, transformers.GPT2LMHeadModel)
    assert not any(info.values()), info
    assert not caplog.records
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.eot_id
    x = torch.arange(16)[None]
    torch.testing.assert_close(theirs(x).logits, model(x), atol=2e-5, rtol=0)  # fp32, other summation order


def test_transformers_folders_are_read_and_written_back_equal(tmp_path: Path) -> None:
    values = config_values(make().config) | {"bos_token_id": 1, "eos_token_id": 2}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    notes: list[str] = []
    model, tokenizer = folder.load(tmp_path / "theirs", notes=notes)
    assert (tokenizer, notes) == (None, [])
    x = torch.arange(16)[None]
    torch.testing.assert_close(model(x), theirs(x).logits, atol=2e-5, rtol=0)
    folder.save(tmp_path / "ours", model)
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    facts = folder.describe(tmp_path / "theirs")
    assert (facts["verified"], facts["lineage"], facts["tokenizer"]) == (False, {}, None)
    assert "made by another tool" in facts["notes"][0]
    assert len(folder.identity(tmp_path / "theirs")) == 64
    assert folder.lineage(tmp_path / "theirs") == {}


def test_dtype_and_device_are_honoured(saved: Path) -> None:
    model, _ = folder.load(saved, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


# Lineage and card


def test_lineage_holds_what_was_given_and_what_can_be_read_off(saved: Path, tokenizer: Tokenizer) -> None:
    origin = folder.lineage(saved)
    assert {key: origin[key] for key in LINEAGE} == LINEAGE
    assert origin["parameters"] == make().config.parameters
    assert origin["tokenizer"] == {"kind": "char", "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    assert origin["versions"]["torch"] == torch.__version__
    assert set(origin) == {*LINEAGE, "parameters", "tokenizer", "versions"}
    value = commit.manifest(saved)
    assert value is not None
    assert set(value["files"]) == set(content(saved)) - {"gpt2kit.json"}


def test_card_states_the_lineage_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    card = (saved / "README.md").read_text(encoding="utf-8")
    for text in (
        "# Tiny \\| tale",
        f"{make().config.parameters:,} parameters",
        "| schedule.kind | cosine |",
        "| validation_loss | 1.25 |",
        "| seed | 7 |",
        "- trained for a test",
        'gpt2kit.load("PATH")',
        "from_pretrained",
    ):
        assert text in card
    folder.save(tmp_path / "plain", make())
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    for heading in ("Data", "Settings", "Scores", "Notes"):
        assert f"## {heading}" not in card


def test_describe_says_what_a_folder_holds(saved: Path, tokenizer: Tokenizer) -> None:
    facts = folder.describe(saved)
    assert facts["parameters"] == make().config.parameters
    assert facts["config"]["n_embd"] == 12
    assert facts["dtypes"] == ["F32"]
    assert facts["tokenizer"]["hash"] == tokenizer.hash
    assert facts["scores"] == {"validation_loss": 1.25}
    assert (facts["kind"], facts["verified"], facts["folder"]) == ("model", True, str(saved))
    assert facts["bytes"] > (saved / "model.safetensors").stat().st_size
    json.dumps(facts)
    (saved / "README.md").write_text("my own words")
    assert any("README.md has" in note for note in folder.describe(saved)["notes"])
    folder.load(saved)  # the card is the user's to edit


# Saving


def test_extra_files_are_covered_and_others_are_kept_on_request(saved: Path) -> None:
    (saved / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        folder.save(saved, make(seed=1))
    folder.save(saved, make(seed=1), extra={"samples.txt": "诗", "curve.bin": b"\0"}, keep_others=True)
    assert (saved / "metrics.jsonl").read_text() == "{}"
    value = commit.verify(saved)
    assert value is not None
    assert {"samples.txt", "curve.bin"} <= set(value["files"])
    model, tokenizer = folder.load(saved)
    assert tokenizer is None  # the old model's tokenizer went with it
    assert torch.equal(model.wte.weight, make(seed=1).wte.weight)


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=rf"has {tokenizer.vocab_size} tokens, the model only 5"):
        folder.save(tmp_path / "a", make(vocab_size=5), tokenizer)
    assert not list(tmp_path.iterdir())
    folder.save(tmp_path / "b", make(vocab_size=5))
    tokenizer.save(tmp_path / "b")
    (tmp_path / "b" / "gpt2kit.json").unlink()
    with pytest.raises(UserError, match="the model only 5"):
        folder.load(tmp_path / "b")


def test_model_files_go_into_an_open_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with commit.folder(tmp_path / "step-10", "checkpoint", {"scores": {}}) as staging:
        folder.write_model_files(staging, make(), tokenizer, LINEAGE)
        (staging / "optimizer.safetensors").write_bytes(b"state")
    model, _ = folder.load(tmp_path / "step-10")
    assert torch.equal(model.wte.weight, make().wte.weight)


def test_saving_is_killed_at_any_moment_and_one_model_is_whole(tmp_path: Path) -> None:
    code = """
import sys, time, torch
from pathlib import Path
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
models = [GPT2(GPT2Config(vocab_size=64, n_positions=16, n_embd=12, n_layer=2, n_head=3),
               torch.Generator().manual_seed(seed)) for seed in (0, 1)]
print("ready", flush=True)
for round in range(100_000):
    folder.save(Path(sys.argv[1]), models[round % 2], lineage={"seed": round % 2})
    time.sleep(0.001)  # who asks for a lock again at once can keep the others waiting for minutes on a busy machine
"""
    target = tmp_path / "a"
    folder.save(target, make(seed=0), lineage={"seed": 0})
    wanted = [make(seed=seed).wte.weight for seed in (0, 1)]
    rng = random.Random(1)
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            for _ in range(10):  # read beside the running writer
                model, _ = folder.load(target)
                assert any(torch.equal(model.wte.weight, weight) for weight in wanted)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(rng.uniform(0, 0.05))
        finally:
            child.kill()
    model, _ = folder.load(target)
    assert torch.equal(model.wte.weight, wanted[folder.lineage(target)["seed"]])
    folder.save(target, make(seed=1))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_folder_replaced_while_it_is_read_is_read_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    real, calls = folder.load_weights, 0

    def replaced_meanwhile(*arguments: Any) -> GPT2:
        nonlocal calls
        calls += 1
        if calls == 1:
            old = real(*arguments)
            folder.save(saved, make(seed=1))
            if not fails:
                return old
            raise UserError("half old, half new")
        return real(*arguments)

    monkeypatch.setattr(folder, "load_weights", replaced_meanwhile)
    model, tokenizer = folder.load(saved)
    assert torch.equal(model.wte.weight, make(seed=1).wte.weight)
    assert tokenizer is None
    assert calls == 2


@pytest.mark.parametrize("moment", range(1, 30))
def test_a_folder_between_a_writers_two_renames_is_waited_for(
    saved: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Away at any one look at the folder itself, there again, replaced, at the next."""
    real, looks = Path.stat, 0

    def away_once(path: Path, **flags: Any) -> os.stat_result:
        nonlocal looks
        looks += path == saved
        if path == saved and looks == moment:
            folder.save(saved, make(seed=1))
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, **flags)

    monkeypatch.setattr(Path, "stat", away_once)
    model, _ = folder.load(saved)
    assert torch.equal(model.wte.weight, make(seed=1 if looks >= moment else 0).wte.weight)


@pytest.mark.parametrize("fails", [True, False])
def test_a_writer_without_a_pause_is_held_off_for_one_reading(
    saved: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    real, reads, saves = folder.load_weights, 0, 0
    writers: list[threading.Thread] = []

    def replaced_meanwhile(*arguments: Any) -> GPT2:
        """Before each reading of the weights comes another save, or the attempt of one: it may have to wait."""
        nonlocal reads
        reads += 1
        seed = reads

        def write() -> None:
            nonlocal saves
            folder.save(saved, make(seed=seed))
            saves += 1

        writers.append(threading.Thread(target=write))
        writers[-1].start()
        if reads <= files.ATTEMPTS:
            writers[-1].join()
            if fails:
                raise UserError("half old, half new")
        else:
            writers[-1].join(0.2)
            assert writers[-1].is_alive()
            assert saves == files.ATTEMPTS
        return real(*arguments)

    monkeypatch.setattr(folder, "load_weights", replaced_meanwhile)
    model, _ = folder.load(saved)
    assert reads == files.ATTEMPTS + 1
    assert torch.equal(model.wte.weight, make(seed=files.ATTEMPTS).wte.weight)
    writers[-1].join()
    monkeypatch.undo()
    assert torch.equal(folder.load(saved)[0].wte.weight, make(seed=reads).wte.weight)


# Refusals


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"])
def test_a_flipped_bit_a_truncated_and_a_missing_file_are_refused_by_name(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    (saved / name).write_bytes(flipped)
    with pytest.raises(UserError, match=f"{name} has changed"):
        folder.load(saved)
    (saved / name).write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{name} has {len(data) - 1} bytes"):
        folder.load(saved)
    (saved / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        folder.load(saved)


def test_a_file_that_was_slipped_in_is_refused_by_name(saved: Path) -> None:
    (saved / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"vocab\.json is not covered"):
        folder.load(saved)
    folder.load(saved, verify=False)


def test_links_out_of_a_strangers_folder_are_not_followed(saved: Path, tmp_path: Path) -> None:
    (saved / "gpt2kit.json").unlink()
    shutil.move(saved / "config.json", tmp_path / "elsewhere.json")
    (saved / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"config\.json is a link to"):
        folder.load(saved)


@pytest.mark.parametrize(
    ("prepare", "message", "hint"),
    [
        (lambda p: None, "there is no model folder", "gpt2kit train my.txt --out"),
        (lambda p: p.write_text("x"), "is a file, not a model folder", "config.json"),
        (lambda p: p.mkdir(), "holds no model", "gpt2kit train my.txt --out"),
        (lambda p: (p.mkdir(), (p / "adapter_config.json").write_text("{}")), "is an adapter", "gpt2kit merge"),
        (lambda p: (p.parent / "run-a").mkdir(), "there is no model folder", "did you mean .*run-a"),
        (lambda p: (p / "checkpoints" / "step-3").mkdir(parents=True), "holds no model", "gpt2kit train"),
        (
            lambda p: (p.mkdir(), (p / "config.json").write_text("{}")),
            "has no weights",
            "copy the whole folder",
        ),
        (
            lambda p: (p.mkdir(), (p / "model.safetensors").write_text("")),
            r"no config\.json",
            "whole model folder",
        ),
    ],
)
def test_what_is_no_model_folder_is_said_with_the_next_command(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str, hint: str
) -> None:
    prepare(tmp_path / "run_a")
    with pytest.raises(UserError, match=message) as caught:
        folder.load(tmp_path / "run_a")
    assert caught.match(hint)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, ""])
def test_impossible_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        folder.load(name)


# A run without a final model


def checkpoint(run: Path, step: int, loss: float | None, accuracy: float | None = None) -> Path:
    known = {"validation_loss": loss, "validation_accuracy": accuracy}
    scores = {"scores": {name: value for name, value in known.items() if value is not None}}
    return folder.save(run / "checkpoints" / f"step-{step}", make(seed=step), lineage=scores)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([2.0, 1.0, 1.5], 20), ([None, None, None], 30), ([2.0, None, None], 10), ([1.0, 1.0, 2.0], 20)],
)
def test_a_run_stands_for_its_best_or_last_checkpoint(tmp_path: Path, losses: list[float | None], best: int) -> None:
    for step, loss in zip((10, 20, 30), losses, strict=True):
        checkpoint(tmp_path / "run", step, loss)
    notes: list[str] = []
    model, _ = folder.load(tmp_path / "run", notes=notes)
    assert torch.equal(model.wte.weight, make(seed=best).wte.weight)
    assert f"has no final model: step-{best} is used" in notes[0]
    assert folder.describe(tmp_path / "run")["notes"][0] == notes[0]


def test_a_classifiers_run_stands_for_the_checkpoint_that_errs_least(tmp_path: Path) -> None:
    for step, loss, accuracy in ((10, 0.3, 0.85), (20, 0.4, 0.9), (30, 0.5, 0.9)):
        checkpoint(tmp_path / "run", step, loss, accuracy)
    path, note = folder.resolve(tmp_path / "run")
    assert path.name == "step-20"
    assert note is not None
    assert note.endswith("step-20 is used (validation accuracy 0.9000, the highest)")


def test_damaged_checkpoints_are_left_out_and_interrupted_ones_recovered(tmp_path: Path) -> None:
    for step in (5, 100, 200):
        checkpoint(tmp_path / "run", step, None)
    place = tmp_path / "run" / "checkpoints"
    os.truncate(place / "step-200" / "model.safetensors", 50)
    os.rename(place / "step-100", place / ".replaced-step-100")
    (place / ".partial-step-300-0").mkdir()
    path, note = folder.resolve(tmp_path / "run")
    assert path.name == "step-100"
    assert note is not None
    assert note.endswith("damaged and left out: step-200")


# The hub


def test_a_hub_name_is_loaded_from_the_cache_only_when_allowed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[[str, Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    hub("someone/tiny", saved)
    with pytest.raises(UserError, match="there is no model folder"):
        folder.load("someone/tiny")
    model, tokenizer = folder.load("someone/tiny", allow_hub=True)
    assert torch.equal(model.wte.weight, make().wte.weight)
    assert tokenizer is not None
    assert folder.describe("someone/tiny", allow_hub=True)["verified"]
    with pytest.raises(UserError, match="the Hugging Face hub did not give it") as caught:
        folder.load("someone/absent", allow_hub=True)
    assert caught.match("check the name and the network")
    with pytest.raises(UserError, match="there is no model folder"):
        folder.load("no/such/path", allow_hub=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"gpt2kit\[hub\]"):
        folder.load("someone/tiny", allow_hub=True)


# config.json

GOOD: dict[str, Any] = config_values(make().config)


def changed(**keys: Any) -> dict[str, Any]:
    return {**GOOD, **keys}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"config\.json holds \[\], not an object"),
        (changed(model_type="llama"), "model_type is 'llama'"),
        (changed(architectures=["GPT2ForTokenClassification"]), "architectures has 'GPT2ForToken"),
        (changed(architectures="GPT2LMHeadModel"), "architectures must be a list"),
        (changed(add_cross_attention=True), "add_cross_attention is True"),
        (changed(is_encoder_decoder=True), "is_encoder_decoder"),
        (changed(quantization_config={"bits": 4}), "quantization_config"),
        (changed(pruned_heads={"0": [1]}), "pruned_heads"),
        (changed(activation_function="mish"), "unknown activation_function 'mish'"),
        (changed(activation_function=None), "unknown activation_function None"),
        (changed(n_embd="12"), "n_embd must be a whole number .* got '12'"),
        (changed(n_layer=True), "n_layer must be a whole number .* got True"),
        (changed(n_head=3.0), "n_head must be a whole number .* got 3.0"),
        (changed(n_head=0), "n_head must be a whole number .* got 0"),
        (changed(vocab_size=-1), "vocab_size .* got -1"),
        (changed(n_positions=None), "n_positions .* got None"),
        (changed(n_embd=10**400), "n_embd"),
        (changed(n_inner=[]), "n_inner"),
        (changed(n_head=5), "n_embd 12 must divide by n_head 5"),
        (changed(layer_norm_epsilon=float("inf")), "layer_norm_epsilon must be a number, got inf"),
        (changed(layer_norm_epsilon=float("nan")), "layer_norm_epsilon must be a number, got nan"),
        (changed(layer_norm_epsilon="1e-5"), "layer_norm_epsilon must be a number"),
        (changed(initializer_range=10**400), "initializer_range"),
        (changed(attn_pdrop=1.5), "attn_pdrop must be in"),
        (changed(resid_pdrop=False), "resid_pdrop must be a number"),
        (changed(scale_attn_weights="true"), "scale_attn_weights must be true or false"),
        (changed(tie_word_embeddings=1), "tie_word_embeddings must be true or false, got 1"),
        (changed(reorder_and_upcast_attn="x"), "reorder_and_upcast_attn must be true or false"),
        (changed(eos_token_id="2"), "eos_token_id must be a token id or null, got '2'"),
        (changed(bos_token_id=True), "bos_token_id must be a token id"),
        (changed(eos_token_id=["a"]), "eos_token_id must be a token id"),
        (changed(hidden_size=13), "hidden_size is 13, but n_embd is 12"),
        (changed(n_ctx="16"), "n_ctx must be a whole number"),
        (changed(model_type="\x1b[31m" * 100), "model_type is"),
    ],
)
def test_a_wrong_config_key_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_config(values)
    assert len(caught.value.message) < 300
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"n_inner": 7, "scale_attn_weights": False}, {"n_inner": 7, "scale_attn_weights": False}),
        ({"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx": True}),
        ({"attn_pdrop": 0, "layer_norm_epsilon": 1e-6}, {"attn_pdrop": 0.0, "layer_norm_epsilon": 1e-6}),
        ({"reorder_and_upcast_attn": True, "hidden_size": 12, "use_cache": False}, {}),
        ({"bos_token_id": 3, "eos_token_id": 4}, {"bos_token_id": 3, "eos_token_id": 4}),
        ({"pad_token_id": 5}, {"pad_token_id": 5}),
        ({"tie_word_embeddings": False, "n_inner": None}, {"tie_word_embeddings": False}),
    ],
)  # fmt: skip
def test_config_keys_are_honoured_without_a_note(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    config, notes = read_config(changed(**keys))
    assert notes == []
    assert config == dataclasses.replace(make().config, **expected)


def test_old_and_foreign_names_are_understood() -> None:
    values = {key: GOOD[key] for key in ("vocab_size", "n_ctx", "model_type")}
    values |= {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    assert read_config(values)[0] == make().config
    config, notes = read_config(changed(n_ctx=8))
    assert config.n_positions == 16
    assert notes == ["config.json: n_ctx 8 is ignored, n_positions is 16"]
    values.pop("model_type")
    assert read_config(values)[1] == ["config.json has no model_type: taken for gpt2"]
    assert read_config({"model_type": "gpt2"})[0] == GPT2Config(bos_token_id=50256, eos_token_id=50256)


def test_keys_that_name_code_are_data_and_are_said_to_be_ignored() -> None:
    values = changed(auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True, n_hed=3, wheels=4)
    before = set(sys.modules)
    config, notes = read_config(values)
    assert config == make().config
    assert set(sys.modules) == before
    assert notes == [
        "config.json: auto_map, trust_remote_code ignored: no code that comes with a model is ever run",
        "config.json: unknown key 'n_hed' ignored; did you mean 'n_head'?",
        "config.json: unknown key 'wheels' ignored",
    ]


def test_an_end_token_outside_the_vocabulary_is_repaired_or_dropped_with_a_note(tmp_path: Path) -> None:
    """UER's Chinese GPT-2: BertTokenizer with 21,128 tokens, and GPT-2's 50256 in the config."""
    values = changed(bos_token_id=50256, eos_token_id=50256, pad_token_id=-1, tokenizer_class="BertTokenizer")
    config, notes = read_config(values)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)
    assert len(notes) == 3
    assert all("is outside the vocabulary of 64 tokens: dropped" in note for note in notes)
    folder.save(tmp_path / "a", make())
    (tmp_path / "a" / "gpt2kit.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一二三四五六七八九十"]
    (tmp_path / "a" / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    (tmp_path / "a" / "config.json").write_text(json.dumps(values))
    found: list[str] = []
    model, tokenizer = folder.load(tmp_path / "a", notes=found)
    assert tokenizer is not None
    assert tokenizer.kind == "wordpiece"
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (2, 3, 0)
    assert sum("outside the vocabulary" in note for note in found) == 3
    folder.save(tmp_path / "b", model, tokenizer)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["eos_token_id"] == 3
    assert folder.load(tmp_path / "b")[0].config == model.config


def test_several_end_tokens_give_the_first_with_a_note() -> None:
    config, notes = read_config(changed(eos_token_id=[4, 5]))
    assert config.eos_token_id == 4
    assert notes == ["config.json: eos_token_id is a list, the first token of it is used: 4"]


def test_write_config_writes_what_others_expect(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", make().config)
    values = json.loads((tmp_path / "config.json").read_text())
    assert list(values) == sorted(values)
    expected = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_ctx": 16,
        "torch_dtype": "float32",
    }
    assert expected.items() <= values.items()


# Fuzz

values_of_any_type = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=100)
@given(keys=st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(max_size=12), values_of_any_type, max_size=4))
def test_any_config_is_read_or_refused(keys: dict[str, Any]) -> None:
    values = copy.deepcopy(changed(**keys))
    try:
        config, notes = read_config(values)
    except UserError as error:
        assert "config.json" in error.message  # noqa: PT017
    else:
        assert isinstance(config, GPT2Config)
        assert all(isinstance(note, str) and len(note) < 300 for note in notes)


def test_mutated_config_files_load_or_are_refused(saved: Path) -> None:
    (saved / "gpt2kit.json").unlink()
    text = (saved / "config.json").read_bytes()
    rng = random.Random(0)
    outcomes = set()
    for _ in range(120):
        mutated = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            mutated[rng.randrange(len(mutated))] = rng.choice(b'0123456789eE-+."{}[],:nNftI\xff\x00')
        (saved / "config.json").write_bytes(mutated)
        try:
            folder.load(saved)
            outcomes.add("loaded")
        except UserError:
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}
