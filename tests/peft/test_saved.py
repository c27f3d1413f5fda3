"""Adapter folders: whole or absent, the same on every round, tied to their base, and refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.peft import (
    PRESETS,
    LoraConfig,
    activate,
    adapted,
    base_hash,
    describe,
    inject,
    load,
    merge,
    names,
    quantise_base,
    save,
    saved,
    trainable_parameters,
)

from .conftest import KINDS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def made(toy: Any, tmp_path: Path) -> Path:
    """A folder with a stirred LoRA."""
    laid = inject(toy.model(), toy.method("lora"))
    toy.stir(laid)
    return save(tmp_path / "made", laid, base="runs/base")


def edit(path: Path, **changes: Any) -> None:
    """Change fields of adapter_config.json as by hand, without the manifest."""
    values = json.loads((path / CONFIG).read_text()) | changes
    (path / CONFIG).write_text(json.dumps(values))
    (path / commit.MANIFEST).unlink(missing_ok=True)


def retensor(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = safetensors.torch.load_file(path / TENSORS)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    safetensors.torch.save_file(tensors, path / TENSORS)
    (path / commit.MANIFEST).unlink(missing_ok=True)


@pytest.mark.parametrize("labels", [(), ("bad", "good")], ids=["language", "classifier"])
@pytest.mark.parametrize("name", KINDS)
def test_save_load_save_is_byte_equal(toy: Any, tmp_path: Path, name: str, labels: tuple[str, ...]) -> None:
    model, ids = toy.model(labels=labels), toy.ids(2, 12)
    laid = inject(model, toy.method(name, seed=9))
    toy.stir(laid)
    save(tmp_path / "a", laid, base="runs/base", lineage={"seed": 3})
    again = toy.model(labels=labels)
    other = load(tmp_path / "a", again)
    assert other.method == laid.method
    assert torch.equal(again(ids), model(ids))
    save(tmp_path / "b", other, base="runs/base", lineage={"seed": 3})
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == files
    assert {CONFIG, TENSORS, commit.MANIFEST} <= set(files)
    assert ("encoder.safetensors" in files) == (name in ("prefix-mlp", "p-tuning", "p-tuning-lstm"))
    assert all(torch.equal(tensor, laid.parameters[key]) for key, tensor in other.parameters.items())


def test_names_and_layout_are_pefts(made: Path) -> None:
    tensors = safetensors.torch.load_file(made / TENSORS)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{side}.weight": shape
        for i in range(3)
        for side, shape in (("A", (4, 24)), ("B", (72, 4)))
    }
    values = json.loads((made / CONFIG).read_text())
    assert values["target_modules"] == ["c_attn"]
    assert (values["peft_type"], values["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (values["r"], values["lora_alpha"], values["fan_in_fan_out"]) == (4, 16, True)
    assert values["base_model_name_or_path"] == "runs/base"


def test_matrices_that_stand_for_the_models_are_stored_as_in_its_checkpoint(toy: Any, tmp_path: Path) -> None:
    model = toy.model(labels=("a", "b"))
    toy.stir(inject(model, toy.method("last")))
    save(tmp_path / "a", adapted(model))
    held = safetensors.torch.load_file(tmp_path / "a" / TENSORS)
    merge(model)
    folder.save(tmp_path / "whole", model)
    whole = safetensors.torch.load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in held.items():
        assert torch.equal(tensor, whole[name.removeprefix("base_model.model.")]), name
    assert "base_model.model.score.weight" in held
    assert held["base_model.model.transformer.h.2.attn.c_attn.weight"].shape == (24, 72)


def test_a_folder_describes_itself(toy: Any, tmp_path: Path) -> None:
    model = toy.model(labels=("差", "好"))
    laid = inject(model, toy.method("lora"))
    save(tmp_path / "a", laid, base="runs/基", lineage={"scores": {"accuracy": 0.9}, "kind": "forged"})
    said = describe(tmp_path / "a")
    assert (said.peft_type, said.task, said.base, said.labels) == ("LORA", "SEQ_CLS", "runs/基", ("差", "好"))
    assert said.base_weights == base_hash(model)
    assert said.lineage["scores"] == {"accuracy": 0.9}
    assert said.lineage["parameters"] == laid.trainable == trainable_parameters(model.config, laid.method)
    assert said.lineage["method"]["rank"] == 4
    manifest = commit.manifest(tmp_path / "a")
    assert manifest is not None
    assert manifest["kind"] == "adapter"


# The base


def test_another_base_is_refused_by_name(toy: Any, made: Path) -> None:
    model = toy.model(seed=2)
    before = toy.weights(model)
    with pytest.raises(UserError, match=r"made belongs to the base runs/base with weights \w{12}…, this model's are"):
        load(made, model)
    assert names(model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    (made / commit.MANIFEST).unlink()  # as PEFT leaves it: taken on trust
    load(made, model)


def test_the_bases_name_is_that_of_its_weights(toy: Any) -> None:
    model = toy.model()
    name = base_hash(model)
    assert base_hash(toy.model()) == name
    for adapter in PRESETS:
        toy.stir(inject(model, toy.method(adapter), adapter))
        assert base_hash(model) == name
    activate(model, "lora")
    merge(model)
    assert base_hash(model) == name
    for key, _ in toy.model().named_parameters():
        other = toy.model()
        with torch.no_grad():
            other.get_parameter(key).view(-1)[0] += 1e-6
        assert base_hash(other) != name, key
    assert base_hash(toy.model(labels=("a", "b"))) == name  # a head of its own is no other base
    small = toy.model()
    quantise_base(small)
    assert base_hash(small) == name


def test_a_base_that_is_written_to_gets_another_name(toy: Any) -> None:
    model = toy.model()
    name = base_hash(model)
    inject(model, toy.method("lora"))
    assert base_hash(model) == base_hash(model) == name
    with torch.no_grad():
        model.h[1].attn.c_attn.base.weight[0, 0] += 1.0
    assert base_hash(model) != name


def test_a_failed_load_leaves_the_adapters_as_they_were(toy: Any, made: Path) -> None:
    model, ids = toy.model(), toy.ids(2, 9)
    toy.stir(inject(model, toy.method("ia3"), "old"))
    logits = model(ids)
    retensor(made, **{"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(4, 23)})
    with pytest.raises(UserError, match="shape"):
        load(made, model, "new")
    assert names(model) == ["old"]
    assert torch.equal(model(ids), logits)


def test_several_folders_on_one_base(toy: Any, tmp_path: Path) -> None:
    ids, alone = toy.ids(2, 12), {}
    for index, name in enumerate(("lora", "prompt", "bitfit")):
        laid = inject(toy.model(), toy.method(name))
        toy.stir(laid, seed=index)
        save(tmp_path / name, laid)
        alone[name] = laid.model(ids).detach()
    model = toy.model()
    for name in alone:
        load(tmp_path / name, model, name)
    for name in (*alone, "lora"):
        activate(model, name)
        assert torch.equal(model(ids), alone[name])


# What is wrong with a folder


def test_a_changed_file_is_refused(toy: Any, made: Path) -> None:
    for name in (CONFIG, TENSORS):
        data = (made / name).read_bytes()
        (made / name).write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        with pytest.raises(UserError, match=name):
            load(made, toy.model())
        (made / name).write_bytes(data)
    load(made, toy.model())


A0 = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({A0: None}, "lacks h.0.attn.c_attn.lora_A"),
        ({A0: torch.zeros(5, 24)}, r"h.0.attn.c_attn.lora_A has shape \[5, 24\], this model makes it \[4, 24\]"),
        ({A0: torch.full((4, 24), float("nan"))}, "NaN"),
        ({A0: torch.zeros(4, 24, dtype=torch.int32)}, "no floats"),
        (
            {"base_model.model.transformer.h.9.attn.c_attn.lora_A.weight": torch.zeros(4, 24)},
            "did you mean|lacks|holds",
        ),
        ({"base_model.model.transformer.h.0.attn.q_proj.lora_A.weight": torch.zeros(4, 24)}, "did you mean|holds"),
        ({"base_model.model.transformer.h.0.attn.c_attn.ia3_l": torch.zeros(72, 1)}, "ia3_l, which no LORA adapter"),
        ({"prompt_embeddings": torch.zeros(3, 24)}, "holds prompt_embeddings"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(toy: Any, made: Path, changes: dict[str, Any], words: str) -> None:
    retensor(made, **changes)
    with pytest.raises(UserError, match=words):
        load(made, toy.model())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOAR"}, "did you mean 'LORA'"),
        ({"peft_type": 3}, "names no peft_type"),
        ({"peft_type": "VERA"}, "unknown peft_type 'VERA'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"alpha_pattern": {"c_attn": 3}}, "alpha_pattern"),
        ({"use_something_new": True}, "use_something_new is True"),
        ({"r": "four"}, "rank"),
        ({"r": 3}, "rank|shape"),
        ({"lora_alpha": None}, "lora_alpha|field|type"),
    ],
)
def test_a_wrong_field_is_refused_by_name(toy: Any, made: Path, changes: dict[str, Any], words: str) -> None:
    edit(made, **changes)
    with pytest.raises(UserError, match=words):
        load(made, toy.model())


def test_fields_that_say_nothing_new_are_read_over(toy: Any, made: Path) -> None:
    edit(made, use_something_new=False, another={}, peft_version="9.9", exclude_modules=["x"], revision=None)
    load(made, toy.model())


def test_folders_that_are_none(toy: Any, tmp_path: Path, made: Path) -> None:
    with pytest.raises(UserError, match="there is no adapter folder") as caught:
        load(tmp_path / "maid", toy.model())
    assert "did you mean" in str(caught.value)
    with pytest.raises(UserError, match=f"no {CONFIG}"):
        load(tmp_path, toy.model())
    shutil.copytree(made, tmp_path / "b")
    (tmp_path / "b" / TENSORS).rename(tmp_path / "b" / "adapter_model.bin")
    (tmp_path / "b" / commit.MANIFEST).unlink()
    with pytest.raises(UserError, match=r"adapter_model\.bin, a format that can run code"):
        load(tmp_path / "b", toy.model())
    (tmp_path / "b" / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=f"no {TENSORS}"):
        load(tmp_path / "b", toy.model())
    (tmp_path / "b" / TENSORS).write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load(tmp_path / "b", toy.model())
    (tmp_path / "b" / TENSORS).unlink()
    (tmp_path / "b" / TENSORS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError):
        load(tmp_path / "b", toy.model())


def test_a_classifiers_adapter_wants_a_classifier(toy: Any, tmp_path: Path) -> None:
    save(tmp_path / "a", inject(toy.model(labels=("a", "b")), toy.method("lora")))
    with pytest.raises(UserError, match="score"):
        load(tmp_path / "a", toy.model())
    with pytest.raises(UserError, match="shape"):
        load(tmp_path / "a", toy.model(labels=("a", "b", "c")))


def test_weights_that_are_not_finite_are_not_written(toy: Any, tmp_path: Path, made: Path) -> None:
    laid = inject(toy.model(), toy.method("lora"))
    with torch.no_grad():
        laid.parameters["h.0.attn.c_attn.lora_B"][0, 0] = float("inf")
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(UserError, match="lora_B"):
        save(made, laid)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == files


def test_another_kind_of_folder_is_not_replaced(toy: Any, tmp_path: Path) -> None:
    folder.save(tmp_path / "model", toy.model())
    with pytest.raises(UserError, match="is a model folder"):
        save(tmp_path / "model", inject(toy.model(), toy.method("lora")))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(sorted(PRESETS)))
def test_any_value_in_any_field_is_read_or_refused(toy: Any, tmp_path: Path, data: Any, name: str) -> None:
    path = tmp_path / name
    if not path.exists():
        save(path, inject(toy.model(), toy.method(name)))
        edit(path)
    good = (path / CONFIG).read_text()
    field = data.draw(st.sampled_from(sorted(json.loads(good))))
    edit(path, **{field: data.draw(VALUES)})
    model = toy.model()
    try:
        load(path, model)
        assert names(model) == ["default"]
    except UserError:
        assert names(model) == []
    finally:
        (path / CONFIG).write_text(good)


def test_the_readers_tables_cover_every_method() -> None:
    assert set(saved.READ) == set(saved.METHODS)
    assert {type(make()) for make in PRESETS.values()} == set(saved.METHODS.values())
    assert saved.METHODS["LORA"] is LoraConfig
