"""Smoothing and rounding on a model that was really trained, with outliers as real GPT-2 checkpoints have them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import Oracle
from safetensors.torch import load_file, save_file

from gpt2kit import commit
from gpt2kit.engine import calibrate, quantise, source, stored
from gpt2kit.engine.quantise import load_packed
from gpt2kit.engine.smoothing import to_int8
from gpt2kit.engine.weights import pack, unpack
from gpt2kit.errors import UserError
from gpt2kit.model import files, folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

TEXT = "\n\n".join(topics[name] for name in sorted(topics))[:200_000]  # English that every Python carries
STEPS, LENGTH = 120, 48


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], kind="char")


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> GPT2:
    """A few seconds of training, from weights whose residual stream has channels far larger than the others.

    One is large at every position, one at the first position, one for every token, one for some tokens: training
    learns around them, so they stay.
    """
    ids = torch.tensor(tokenizer.encode(TEXT))
    shape = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=LENGTH, n_embd=64, n_layer=3, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = GPT2(shape, generator)
    with torch.no_grad():
        model.wpe.weight[:, 3] += 10
        model.wpe.weight[0, 5] += 100
        model.wte.weight[:, 7] -= 10
        model.wte.weight[:10, 11] += 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # operations this small only wait for each other: 36 s beside a busy process, 6 s alone
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 4e-3 * min((step + 1) / 20, (STEPS - step) / STEPS * 1.2, 1)
        starts = torch.randint(len(ids) - LENGTH - 1, (16,), generator=generator)
        rows = torch.stack([ids[start : start + LENGTH + 1] for start in starts])
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return model.eval()


@torch.no_grad()
def plant(model: GPT2) -> GPT2:
    """The same function with the outliers of real checkpoints: a few channels of each kind 20 to 50 times larger.

    What multiplies such a channel next is divided by as much. Key biases are large, too, which changes nothing.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    C, H = model.config.n_embd, model.config.n_head

    def some(count: int, among: int = C) -> tuple[torch.Tensor, torch.Tensor]:
        channels = torch.randperm(among, generator=generator)[:count]
        return channels, torch.empty(count).uniform_(20, 50, generator=generator)

    for block in model.h:
        for norm, linear in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            channels, factor = some(3)
            norm.weight[channels] *= factor
            norm.bias[channels] *= factor
            linear.weight[:, channels] /= factor
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        bias[C : 2 * C] += 10 * torch.randn(C, generator=generator)
        channels, factor = some(3)
        weight[2 * C + channels] *= factor[:, None]
        bias[2 * C + channels] *= factor
        block.attn.c_proj.weight[:, channels] /= factor
        for head in range(H):
            channels, factor = some(1, C // H)
            channels += head * (C // H)
            weight[channels] *= factor[:, None]
            bias[channels] *= factor
            weight[C + channels] /= factor[:, None]
            bias[C + channels] /= factor
    return model


@pytest.fixture(scope="module")
def planted(trained: GPT2) -> GPT2:
    return plant(trained)


def tensors(model: GPT2) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def sequences(trained: GPT2, tokenizer: Tokenizer) -> np.ndarray[Any, Any]:
    return quantise._samples(trained, tokenizer, lambda *_: None)


def percent(model: GPT2, weights: Any, sequences: np.ndarray[Any, Any]) -> float:
    """What int8 costs by the oracle: divergence over entropy."""
    oracle, bits, rise = Oracle(weights), 0.0, 0.0
    for ids in sequences:
        got = torch.from_numpy(oracle.logits(ids)).log_softmax(1)
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)[None])[0].log_softmax(1)
        bits -= float((wanted.exp() * wanted).sum())
        rise += float((wanted.exp() * (wanted - got)).sum())
    return 100 * rise / bits


@pytest.fixture
def saved(tmp_path: Path, planted: GPT2, tokenizer: Tokenizer) -> Path:
    return folder.save(tmp_path / "m", planted, tokenizer, {"name": "planted", "scores": {"loss": 2.5}})


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, planted: GPT2, tokenizer: Tokenizer) -> Path:
    """A folder with stored int8 weights; to be copied before it is changed."""
    path = folder.save(tmp_path_factory.mktemp("q") / "m", planted, tokenizer, {"name": "planted", "scores": {"a": 1}})
    load_packed(path, "int8")
    return path


@pytest.fixture
def copied(loaded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(loaded, tmp_path / "m"))


def test_int8_weights_have_a_name_that_other_loaders_pass_over(loaded: Path) -> None:
    """Some load every *.safetensors, *.bin or *.pt of a folder."""
    assert (loaded / stored.NAME).exists()
    assert sorted(p.name for p in loaded.iterdir() if p.suffix in (".safetensors", ".bin", ".pt")) == [
        "model.safetensors"
    ]


# ---------------------------------------------------------------- the cost


def test_planting_keeps_the_function(trained: GPT2, planted: GPT2, sequences: np.ndarray[Any, Any]) -> None:
    with torch.no_grad():
        before, after = (model(torch.from_numpy(sequences[:4])) for model in (trained, planted))
    assert torch.allclose(before, after, atol=2e-3 * float(before.abs().max()))


def test_outliers_ruin_plain_int8_and_not_smoothed(planted: GPT2, sequences: np.ndarray[Any, Any]) -> None:
    plain = source.from_tensors(planted.config, tensors(planted))
    smoothing = calibrate.choose(planted, torch.from_numpy(sequences[::2].copy()))
    held_out = sequences[1::2][:8]
    assert percent(planted, to_int8(plain), held_out) > 0.5
    assert percent(planted, to_int8(plain, smoothing), held_out) < 0.1


def test_a_model_without_outliers_loses_nothing_by_smoothing(tokenizer: Tokenizer) -> None:
    shape = GPT2Config(vocab_size=65, n_positions=32, n_embd=48, n_layer=2, n_head=3)
    model = GPT2(shape, torch.Generator().manual_seed(3)).eval()
    ids = torch.randint(65, (16, 32), generator=torch.Generator().manual_seed(0))
    plain = source.from_tensors(shape, tensors(model))
    before = percent(model, to_int8(plain), ids[8:].numpy())
    after = percent(model, to_int8(plain, calibrate.choose(model, ids[:8])), ids[8:].numpy())
    assert after < max(1.5 * before, 1e-3)


def test_dead_channels_and_zero_weights_are_survived(trained: GPT2) -> None:
    model = copy.deepcopy(trained)
    with torch.no_grad():
        block = model.h[1]
        block.ln_1.weight[4] = block.ln_1.bias[4] = 0
        block.mlp.c_fc.weight[:, 9] = 0
        block.mlp.c_proj.weight[:] = 0
        block.attn.c_attn.weight[:, :] = 0
        block.attn.c_attn.bias[:] = 0
    ids = torch.randint(60, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    weights = to_int8(source.from_tensors(model.config, tensors(model)), calibrate.choose(model, ids))
    assert percent(model, weights, ids.numpy()) < 0.1


def test_the_measured_cost_is_the_oracles(planted: GPT2, tokenizer: Tokenizer, sequences: np.ndarray[Any, Any]) -> None:
    weights = to_int8(source.from_tensors(planted.config, tensors(planted)))
    some = sequences[:3]
    cost = quantise.measure(planted, pack(weights), some, True, "samples", lambda *_: None)
    assert cost.percent == pytest.approx(percent(planted, weights, some), rel=1e-3)
    assert cost.tokens == some.size
    assert 0.5 < cost.bits < np.log2(planted.config.vocab_size)
    on_text = quantise._cut(TEXT, planted.config, tokenizer)
    cost = quantise.measure(planted, pack(weights), on_text[:8], False, "text", lambda *_: None)
    with torch.no_grad():
        rows = torch.from_numpy(on_text[:8])
        loss = F.cross_entropy(planted(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    assert cost.bits == pytest.approx(float(loss) / np.log(2), rel=1e-4)
    assert cost.percent > 0.1


# ---------------------------------------------------------------- storing and loading


def test_a_first_load_stores_what_a_second_maps(saved: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    notes: list[str] = []
    before = files.identity(saved)
    first = load_packed(saved, "int8", lambda *stage: stages.append(stage), notes)
    assert notes == []
    assert [stage for stage, done, total in stages if done == total] == [
        *("sampling", "smoothing", "rounding", "measuring")
    ]
    calls: list[Any] = []
    second = load_packed(saved, "int8", lambda *stage: calls.append(stage), notes)
    assert not calls
    assert notes == []
    assert np.array_equal(first.weights, second.weights)
    assert np.array_equal(first.floats, second.floats)
    assert not second.weights.flags.owndata
    assert not second.weights.flags.writeable
    assert second.weights.ctypes.data % 64 == second.floats.ctypes.data % 64 == 0
    assert first.cost_percent == second.cost_percent
    assert second.cost_percent is not None
    assert 0 < second.cost_percent < 0.5
    assert files.identity(saved) == before


def test_the_cost_is_part_of_the_lineage(loaded: Path) -> None:
    manifest = commit.verify(loaded)  # covers every file, the new one too
    assert manifest is not None
    assert set(manifest["files"]) == {p.name for p in loaded.iterdir()} - {commit.MANIFEST}
    assert manifest["int8"]["percent"] == load_packed(loaded).cost_percent
    assert manifest["int8"]["calibration"] == "samples"
    assert manifest["scores"] == {"a": 1}
    assert manifest["name"] == "planted"


def test_a_new_model_in_the_folder_replaces_the_stored_weights(copied: Path, trained: GPT2) -> None:
    folder.save(copied, trained)
    assert not (copied / stored.NAME).exists()
    packed = load_packed(copied, "int8")
    assert (copied / stored.NAME).exists()
    assert np.array_equal(unpack(packed).wpe, trained.wpe.weight.detach().numpy())


def put(path: Path, data: bytes) -> None:
    """As another file: the one that is mapped stays."""
    path.unlink()
    path.write_bytes(data)


def damage_data(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    put(path, bytes(data))


def truncate(path: Path) -> None:
    put(path, path.read_bytes()[:-64])


def change_metadata(name: str, value: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header["__metadata__"][name] = value
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        put(path, struct.pack("<Q", len(text)) + text + data[8 + length :])

    return change


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_data, "is damaged"),
        (truncate, "cannot be read"),
        (change_metadata("version", "0"), "is of another version"),
        (change_metadata("config", "{}"), "was made from other weights"),
        (change_metadata("source", "0" * 64), "was made from other weights"),
        (change_metadata("cost", "[]"), "cannot be read"),
        (change_metadata("cost", '{"percent": NaN}'), "has no cost"),
        (change_metadata("cost", '{"percent": 1' + "0" * 400 + "}"), "cannot be read"),
        (change_metadata("cost", "[" * 100_000), "cannot be read"),
        (lambda path: put(path, b"no"), "cannot be read"),
    ],
    ids=["bit", "truncated", "version", "config", "source", "cost", "nan", "huge", "deep", "short"],
)
def test_a_stored_file_that_does_not_fit_is_made_anew(copied: Path, damage: Callable[[Path], None], why: str) -> None:
    good = load_packed(copied, "int8")
    damage(copied / stored.NAME)
    notes: list[str] = []
    again = load_packed(copied, "int8", notes=notes)
    assert len(notes) == 1
    assert why in notes[0]
    assert np.array_equal(again.weights, good.weights)
    assert np.array_equal(again.floats, good.floats)
    commit.verify(copied)
    assert load_packed(copied, "int8", notes=notes).cost_percent == good.cost_percent
    assert len(notes) == 1


def test_a_folder_of_another_tool_keeps_its_int8_weights(copied: Path) -> None:
    (copied / commit.MANIFEST).unlink()
    (copied / stored.NAME).unlink()
    load_packed(copied, "int8")
    assert (copied / stored.NAME).exists()
    assert not (copied / commit.MANIFEST).exists()
    calls: list[Any] = []
    os.utime(copied / "model.safetensors")  # another time, the same content: found out by reading it
    load_packed(copied, "int8", lambda *stage: calls.append(stage))
    assert not calls
    tensors = load_file(copied / "model.safetensors")
    tensors["transformer.wpe.weight"][3, 3] += 1
    save_file(tensors, copied / "model.safetensors")
    notes: list[str] = []
    load_packed(copied, "int8", lambda *stage: calls.append(stage), notes)
    assert calls
    assert "was made from other weights" in notes[0]
    assert sorted(p.name for p in copied.iterdir() if p.name.startswith(".")) == []


def test_a_folder_that_cannot_be_written_is_served_from_memory(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / stored.NAME).unlink()
    monkeypatch.setattr(stored.secrets, "token_hex", lambda count: "x")
    (copied / f"{stored.STAGING}x").write_text("in the way")
    notes: list[str] = []
    packed = load_packed(copied, "int8", notes=notes)
    assert packed.cost_percent is not None
    assert len(notes) == 1
    assert "stay in memory" in notes[0]
    assert not (copied / stored.NAME).exists()


def test_a_checkpoint_is_left_as_it_is(tmp_path: Path, trained: GPT2) -> None:
    with commit.folder(tmp_path / "run" / "checkpoints" / "step-000003", "checkpoint", {}) as staging:
        folder.write_model_files(staging, trained)
    notes: list[str] = []
    load_packed(tmp_path / "run", "int8", notes=notes)
    assert len(notes) == 1
    assert "has no final model" in notes[0]
    assert not (tmp_path / "run" / "checkpoints" / "step-000003" / stored.NAME).exists()


def test_a_high_cost_is_told_and_auto_takes_fp32(loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "WARN_PERCENT", 1e-6)
    notes: list[str] = []
    assert load_packed(loaded, "int8", notes=notes).precision == "int8"
    assert 'precision="fp32" costs none' in notes[0]
    assert load_packed(loaded, "auto", notes=notes).precision == "fp32"
    assert "fp32 is used" in notes[1]


def test_fp32_is_the_folders_weights(loaded: Path, planted: GPT2) -> None:
    packed = load_packed(loaded, "fp32")
    assert packed.precision == "fp32"
    assert packed.cost_percent is None
    assert np.array_equal(unpack(packed).layers[1].c_attn.q, planted.h[1].attn.c_attn.weight.detach().numpy())
    assert load_packed(loaded, "auto").precision == "int8"


def test_loading_stored_weights_needs_no_torch(loaded: Path) -> None:
    code = (
        "import sys\nfrom gpt2kit.engine.quantise import load_packed\n"
        f"print(load_packed({str(loaded)!r}).precision, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["int8", "False"]


def test_weights_that_change_while_they_are_rounded_are_not_stored(copied: Path, trained: GPT2) -> None:
    (copied / stored.NAME).unlink()
    notes: list[str] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if stage == "rounding" and done == 0:
            folder.save(copied, trained)

    shutil.rmtree(copied)
    folder.save(copied, plant(trained))
    load_packed(copied, "int8", meanwhile, notes)
    assert "has got other weights meanwhile" in notes[0]
    assert not (copied / stored.NAME).exists()


def test_a_writer_that_comes_second_leaves_the_firsts_folder_whole(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have made their file; the first brings it in while the second is about to."""
    packed = load_packed(copied, "int8")
    source, cost = stored.source_hash(copied), {"percent": 0.0}
    real, seen = commit.files_into, []

    def second(target: Path, made: Path, over: dict[str, Any] | None = None) -> None:
        if not seen:
            seen.append(made)
            stored.write(copied, packed, source, {"percent": 1.0})
        real(target, made, over)

    monkeypatch.setattr(commit, "files_into", second)
    with pytest.raises(UserError, match="written by another process meanwhile"):
        stored.write(copied, packed, source, cost)
    kept = commit.verify(copied)
    assert kept is not None
    assert kept["int8"] == {"percent": 1.0}
    assert (copied / "model.safetensors").exists()
    assert not [path.name for path in copied.iterdir() if path.name.startswith(".")]


def test_a_model_saved_while_its_int8_weights_are_written_stays_the_new_one(
    copied: Path, trained: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, source = load_packed(copied, "int8"), stored.source_hash(copied)
    real = stored._write_file

    def meanwhile(path: Path, *arguments: Any) -> None:
        real(path, *arguments)
        folder.save(copied, trained, keep_others=True)

    monkeypatch.setattr(stored, "_write_file", meanwhile)
    with pytest.raises(UserError, match="written by another process meanwhile"):
        stored.write(copied, packed, source, {"percent": 0.0})
    commit.verify(copied)
    assert np.array_equal(folder.load(copied)[0].wpe.weight.detach().numpy(), trained.wpe.weight.detach().numpy())


def test_what_a_killed_writer_left_is_in_nobodys_way(copied: Path, trained: GPT2) -> None:
    left = copied / f"{commit.STAGING}{stored.STAGING}1234-abcd"
    left.mkdir()
    os.utime(left, (0, 0))
    folder.save(copied, trained)
    left.mkdir()
    (left / stored.NAME).write_bytes(b"x")
    os.utime(left, (0, 0))
    load_packed(copied, "int8")
    assert not left.exists()


# ---------------------------------------------------------------- texts and samples


def test_a_text_can_be_calibrated_on(copied: Path, planted: GPT2, tokenizer: Tokenizer) -> None:
    packed = quantise.quantise(copied, TEXT)
    held_out = torch.from_numpy(quantise._cut(TEXT, planted.config, tokenizer)[1::2].copy())
    with torch.no_grad():
        loss = F.cross_entropy(planted(held_out[:, :-1]).flatten(0, 1), held_out[:, 1:].flatten())
    manifest = commit.verify(copied)
    assert manifest is not None
    assert manifest["int8"]["calibration"].startswith("text ")
    assert packed.cost_percent == manifest["int8"]["percent"]
    assert manifest["int8"]["bits"] == pytest.approx(float(loss) / np.log(2), rel=1e-4)  # of that text
    assert abs(manifest["int8"]["percent"]) < 0.5


def test_a_text_counts_where_nothing_can_be_written_over_earlier_weights(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, notes = load_packed(copied, "int8"), list[str]()
    monkeypatch.setattr(stored, "write", lambda *given: (_ for _ in ()).throw(UserError("a full disk")))
    packed = quantise.quantise(copied, TEXT, notes=notes)
    assert not np.array_equal(packed.floats, earlier.floats)
    assert "a full disk" in notes[-1]
    assert np.array_equal(quantise.quantise(copied, notes=notes).floats, earlier.floats)


def test_a_text_that_is_too_short_is_refused(copied: Path, trained: GPT2) -> None:
    with pytest.raises(UserError, match="the text has 5 tokens, calibration needs at least 96"):
        quantise.quantise(copied, "hello")
    folder.save(copied, trained)
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        quantise.quantise(copied, TEXT)


def test_samples_are_seeded_and_fill_their_sequences(trained: GPT2, tokenizer: Tokenizer) -> None:
    first, second = (quantise._samples(trained, tokenizer, lambda *_: None) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (44, LENGTH)
    assert len({tuple(row) for row in first}) == 44
    assert (first[:, 0] == tokenizer.eot_id).all()
    without = quantise._samples(trained, None, lambda *_: None)
    assert len(set(without[:, 0])) > 10


def test_a_model_of_one_position_is_quantised(tmp_path: Path) -> None:
    shape = GPT2Config(vocab_size=20, n_positions=1, n_embd=8, n_layer=1, n_head=1)
    folder.save(tmp_path / "m", GPT2(shape, torch.Generator().manual_seed(0)))
    assert load_packed(tmp_path / "m", "int8").cost_percent is not None
