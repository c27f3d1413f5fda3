"""Low-rank adapters as an engine takes them: held against what merging computes; others are refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.peft import inject, quantise_base, save
from gpt2kit.peft.factors import low_rank_factors, score_head

from .conftest import KINDS, SHAPE

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LOW_RANK = ("lora", "lora-all", "rslora", "adalora")
STEM = "base_model.model.transformer.h"


def edit(path: Path, **changes: Any) -> None:
    """Change fields of adapter_config.json as by hand, without the manifest."""
    values = json.loads((path / CONFIG).read_text()) | changes
    (path / CONFIG).write_text(json.dumps(values))
    (path / "gpt2kit.json").unlink()


def retensor(path: Path, **changes: torch.Tensor | None) -> None:
    """Exchange tensors, add them, or with None take them away."""
    tensors = safetensors.torch.load_file(path / TENSORS) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, path / TENSORS)
    (path / "gpt2kit.json").unlink()


def check(laid: Any, found: dict[str, Any]) -> None:
    """B A is what merging adds to each weight."""
    assert set(found) == set(laid.parts.deltas)
    for linear, delta in laid.parts.deltas.items():
        a, b = found[linear]
        assert a.dtype == b.dtype == np.float32
        weight = torch.zeros(len(b), a.shape[1], dtype=torch.float64)
        merged, _ = delta.merged(weight, torch.zeros(len(b)))
        expected = merged.detach().numpy()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(b.astype(np.float64) @ a, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", LOW_RANK)
def test_the_factors_are_what_merging_adds(toy: Any, tmp_path: Path, name: str) -> None:
    laid = inject(toy.model(), toy.method(name))
    toy.stir(laid)
    check(laid, low_rank_factors(save(tmp_path / "a", laid), toy.config()))


def test_triplets_that_the_budget_took_do_not_count(toy: Any, tmp_path: Path) -> None:
    laid = inject(toy.model(), toy.method("adalora"))
    toy.stir(laid)
    with torch.no_grad():
        for i, delta in enumerate(laid.parts.deltas.values()):
            delta.alive[: i + 1] = 0
            delta.lora_E.mul_(delta.alive[:, None])
    found = low_rank_factors(save(tmp_path / "a", laid), toy.config())
    assert [len(a) for a, _ in found.values()] == [5, 4, 3]
    check(laid, found)
    whole = {name.split("transformer.")[-1]: tensor for name, tensor in laid.parts.tensors().items()}
    tensors = {}  # as PEFT has them that do not prune: the mask stands in the config alone
    for name, tensor in whole.items():
        module, _, leaf = name.rpartition(".")
        if leaf in ("lora_A", "lora_B", "lora_E"):
            filled = torch.where(tensor == 0, 9.0, tensor) if leaf == "lora_E" else tensor
            tensors[f"base_model.model.transformer.{module}.{leaf}"] = filled.detach().contiguous()
    safetensors.torch.save_file(tensors, tmp_path / "a" / TENSORS)
    edit(tmp_path / "a")
    check(laid, low_rank_factors(tmp_path / "a", toy.config()))


@pytest.mark.slow  # imports transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOW_RANK)
def test_folders_of_peft_itself(toy: Any, tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        peft = pytest.importorskip("peft")
        import transformers
    laid = inject(toy.model(), toy.method(name))
    toy.stir(laid)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE, bos_token_id=None, eos_token_id=None))
    peft.PeftModel.from_pretrained(base, save(tmp_path / "ours", laid)).save_pretrained(tmp_path / "theirs")
    check(laid, low_rank_factors(tmp_path / "theirs", toy.config()))


@pytest.mark.parametrize("name", [name for name in KINDS if name not in LOW_RANK])
def test_other_methods_are_refused_by_name(toy: Any, tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "a", inject(toy.model(), toy.method(name)))
    with pytest.raises(UserError) as caught:
        low_rank_factors(path, toy.config())
    mergeable = name in ("dora", "ia3", "bitfit", "last")
    assert ("gpt2kit merge" in str(caught.value)) == mergeable
    kind = {"houlsby": "bottleneck", "prefix-mlp": "prefix", "p-tuning-lstm": "p-tuning", "dora": "DoRA"}.get(
        name, name
    )
    assert f"adapter of {kind}" in caught.value.message or f"{kind} adapter" in caught.value.message


def test_a_classifiers_head_comes_by_itself(toy: Any, tmp_path: Path) -> None:
    laid = inject(toy.model(labels=("bad", "good")), toy.method("lora"))
    toy.stir(laid)
    path = save(tmp_path / "a", laid)
    check(laid, low_rank_factors(path, toy.config()))
    head = score_head(path)
    assert head is not None
    np.testing.assert_array_equal(head, laid.parameters["score.weight"].detach().numpy())
    assert score_head(save(tmp_path / "b", inject(toy.model(), toy.method("lora")))) is None


def test_the_base_must_be_the_one_that_was_tuned(toy: Any, tmp_path: Path) -> None:
    base, other = (folder.save(tmp_path / name, toy.model(seed)) for name, seed in (("base", 1), ("other", 2)))
    model = toy.model()
    quantise_base(model)
    for name, under in (("a", toy.model()), ("int8", model)):
        path = save(tmp_path / name, inject(under, toy.method("lora")), base="runs/base")
        assert low_rank_factors(path, toy.config(), base)
        with pytest.raises(UserError, match=r"belongs to the base runs/base with weights .*…, .*other has"):
            low_rank_factors(path, toy.config(), other)
        (path / "gpt2kit.json").unlink()  # as PEFT leaves it: taken on trust
        assert low_rank_factors(path, toy.config(), other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{STEM}.1.attn.c_attn.lora_A.weight": None}, "lacks h.1.attn.c_attn.lora_A"),
        ({f"{STEM}.7.attn.c_attn.lora_A.weight": torch.ones(4, 24)}, "does not have"),
        ({f"{STEM}.1.attn.c_attn.lora_A.weight": torch.ones(4, 25)}, "72 x 24"),
        ({f"{STEM}.1.attn.c_attn.lora_B.weight": torch.full((72, 4), torch.nan)}, "NaN"),
        ({"base_model.model.transformer.wpe.weight": torch.ones(32, 24)}, "no low-rank factor"),
        ({f"{STEM}.{i}.attn.c_attn.lora_{x}.weight": None for i in range(3) for x in "AB"}, "no factors"),
    ],
    ids=["missing", "layer", "shape", "nan", "whole", "empty"],
)
def test_strange_tensors_are_named(toy: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "a", inject(toy.model(), toy.method("lora")))
    retensor(path, **changes)
    with pytest.raises(UserError, match=message):
        low_rank_factors(path, toy.config())


def test_a_rank_that_the_config_denies_is_refused(toy: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "a", inject(toy.model(), toy.method("lora")))
    edit(path, r=8)
    assert json.loads((path / CONFIG).read_text())["r"] == 8
    with pytest.raises(UserError, match=r"has rank 4, .* says r 8"):
        low_rank_factors(path, toy.config())
