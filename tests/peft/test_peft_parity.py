"""Against `peft` itself on tiny random GPT-2s: its answers to our folders, ours to its, and gradients."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2kit.errors import UserError
from gpt2kit.model.headers import HEADS, is_transposed
from gpt2kit.peft import MethodConfig, inject, load, method, save
from gpt2kit.peft.saved import METHODS, file_name
from gpt2kit.training import losses

from .conftest import SETTINGS, SHAPE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies
    peft = pytest.importorskip("peft")
    import transformers

pytestmark = pytest.mark.filterwarnings("ignore")
ATOL = 2e-5  # fp32, other summation order
KNOWN = [name for name in SETTINGS if name not in ("houlsby", "pfeiffer", "bitfit", "last")]
LABELS = ("bad", "fair", "good")
P = 5  # virtual tokens in SETTINGS


def theirs(model: Any) -> Any:
    """Transformers' model with the same weights."""
    labels = model.config.labels
    config = transformers.GPT2Config(
        **SHAPE, bos_token_id=None, eos_token_id=None, attn_implementation="eager",
        num_labels=max(2, len(labels)), pad_token_id=96 if labels else None,
    )  # fmt: skip
    kind = transformers.GPT2ForSequenceClassification if labels else transformers.GPT2LMHeadModel
    other = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            target = other.get_parameter(name if name in HEADS else f"transformer.{name}")
            target.copy_(parameter.t() if is_transposed(name) else parameter)
    return other


def ours(model: Any, ids: Tensor) -> Tensor:
    answer: Tensor = model.classify(ids, torch.full((len(ids),), ids.shape[1])) if model.config.labels else model(ids)
    return answer


def said(other: Any, ids: Tensor, name: str) -> Tensor:
    """Their logits, without those of virtual tokens."""
    logits: Tensor = other(ids).logits
    embedded = name.startswith(("prompt", "p-tuning")) and logits.ndim == 3
    return logits[:, P:] if embedded else logits


both_tasks = pytest.mark.parametrize(
    ("name", "labels"),
    [(name, ()) for name in KNOWN] + [(n, LABELS) for n in ("lora", "ia3", "prefix", "p-tuning")],
)


@both_tasks
def test_peft_reads_our_folder_and_we_read_the_one_it_writes(
    toy: Any, tmp_path: Path, name: str, labels: tuple[str, ...]
) -> None:
    model, ids = toy.model(labels=labels), toy.ids(3, 13)
    base = theirs(model)
    before = ours(model, ids).detach()
    laid = inject(model, toy.method(name))
    toy.stir(laid)
    save(tmp_path / "ours", laid)
    other = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    answer = ours(model, ids)
    assert float((answer - before).abs().max()) > 0.05  # the adapter counts
    torch.testing.assert_close(said(other, ids, name), answer, atol=ATOL, rtol=1e-5)
    other.save_pretrained(tmp_path / "theirs")
    again = toy.model(labels=labels)
    load(tmp_path / "theirs", again)
    torch.testing.assert_close(ours(again, ids), answer, atol=ATOL, rtol=1e-5)


def peft_config(name: str, labels: tuple[str, ...], **changes: Any) -> Any:
    task = "SEQ_CLS" if labels else "CAUSAL_LM"
    lora = {"task_type": task, "r": 4, "lora_alpha": 7, "fan_in_fan_out": True, **changes}
    tokens = {"task_type": task, "num_virtual_tokens": P}
    made = {
        "lora": lambda: peft.LoraConfig(**lora),
        "lora-all": lambda: peft.LoraConfig(**lora, target_modules=["c_attn", "c_proj", "c_fc"]),
        "rslora": lambda: peft.LoraConfig(**lora, use_rslora=True),
        "dora": lambda: peft.LoraConfig(**lora, use_dora=True),
        "adalora": lambda: peft.AdaLoraConfig(
            task_type=task, init_r=6, target_r=3, lora_alpha=9, total_step=10, tinit=1, tfinal=2, fan_in_fan_out=True
        ),
        "ia3": lambda: peft.IA3Config(task_type=task),
        "prefix": lambda: peft.PrefixTuningConfig(**tokens),
        "prefix-mlp": lambda: peft.PrefixTuningConfig(**tokens, prefix_projection=True, encoder_hidden_size=7),
        "prompt": lambda: peft.PromptTuningConfig(**tokens),
        "p-tuning": lambda: peft.PromptEncoderConfig(**tokens, encoder_hidden_size=7),
        "p-tuning-lstm": lambda: peft.PromptEncoderConfig(
            **tokens, encoder_hidden_size=7, encoder_reparameterization_type="LSTM"
        ),
    }
    return made[name]()


def stirred(other: Any) -> Any:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return other


@both_tasks
def test_we_read_an_adapter_that_peft_made(toy: Any, tmp_path: Path, name: str, labels: tuple[str, ...]) -> None:
    model, ids = toy.model(labels=labels), toy.ids(3, 13)
    other = stirred(peft.get_peft_model(theirs(model), peft_config(name, labels))).eval()
    other.save_pretrained(tmp_path / "theirs")
    laid = load(tmp_path / "theirs", model)
    torch.testing.assert_close(ours(model, ids), said(other, ids, name), atol=ATOL, rtol=1e-5)
    assert type(laid.method).name == type(toy.method(name)).name
    save(tmp_path / "ours", laid)
    back = peft.PeftModel.from_pretrained(theirs(toy.model(labels=labels)), tmp_path / "ours").eval()
    torch.testing.assert_close(said(back, ids, name), ours(model, ids), atol=ATOL, rtol=1e-5)


def their_name(key: str, method: MethodConfig) -> str:
    """Our name of a parameter -> that of theirs in memory."""
    if key.startswith("front."):
        key = key.removeprefix("front.").removeprefix("encoder.")
        return f"prompt_encoder.{'embedding.weight' if key == 'embedding' else key}"
    stored = file_name(key, method)
    return f"{stored}.weight" if stored.endswith("vector") else stored


@pytest.mark.parametrize("name", KNOWN)
def test_gradients_are_pefts(toy: Any, name: str) -> None:
    """Through the networks behind prefix and P-tuning, too."""
    model, ids = toy.model(), toy.ids(3, 13)
    config = peft_config(name, ())
    changes = {"alpha": 7.0} if "lora" in name or name == "dora" else {}
    changes |= {"alpha": 9.0} if name == "adalora" else {}
    laid = inject(model, toy.method(name, **changes, **({"rank": 4} if name == "lora-all" else {})))
    toy.stir(laid)
    other = peft.get_peft_model(theirs(toy.model()), config).eval()
    own = {their_name(key, laid.method): parameter for key, parameter in laid.parameters.items()}
    found = {key.replace(".default", ""): p for key, p in other.named_parameters() if p.requires_grad}
    assert own.keys() == found.keys()
    with torch.no_grad():
        for key, parameter in own.items():
            found[key].copy_(parameter)
    loss, count = losses.next_token(model, ids)
    (loss / count).backward()
    logits = said(other, ids, name)[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for key, parameter in own.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, found[key].grad, atol=1e-6, rtol=1e-4, msg=key)


# AdaLoRA's budget


def adalora_steps(toy: Any) -> tuple[Any, Any, list[int]]:
    """Twenty plain gradient steps with allocation, ours and theirs side by side from the same values."""
    model = toy.model()
    settings = toy.method("adalora", start=0.1, settle=0.3, every=2, orthogonality=0.1)
    laid = inject(model, settings)
    toy.stir(laid)
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=6, target_r=3, lora_alpha=32, fan_in_fan_out=True,
        total_step=20, tinit=2, tfinal=6, deltaT=2, orth_reg_weight=0.1,
    )  # fmt: skip
    other = peft.get_peft_model(theirs(toy.model()), config).eval()
    own = dict(laid.parameters)
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if parameter.requires_grad:
                name = key.removeprefix("base_model.model.transformer.").removesuffix(".default")
                parameter.copy_(own[name])
    alive = []
    for step in range(1, 21):
        ids = toy.ids(3, 13, seed=step)
        loss, count = losses.next_token(model, ids)
        penalty = laid.penalty()
        (loss / count + penalty).backward()
        other(ids, labels=ids).loss.backward()  # adds its own penalty
        for parameters in (laid.parameters.values(), [p for p in other.parameters() if p.requires_grad]):
            for parameter in parameters:
                with torch.no_grad():
                    parameter -= 0.05 * parameter.grad
        laid.after_step(step, 20)
        other.base_model.update_and_allocate(step)
        model.zero_grad()
        other.zero_grad()
        alive.append(sum(int(delta.alive.sum()) for delta in laid.parts.deltas.values()))
    return laid, other, alive


def test_adaloras_penalty_importance_and_budget_are_pefts(toy: Any, tmp_path: Path) -> None:
    laid, other, alive = adalora_steps(toy)
    pattern = other.peft_config["default"].rank_pattern
    for linear, delta in laid.parts.deltas.items():
        assert pattern[f"transformer.{linear}.lora_E.default"] == delta.alive.bool().tolist(), linear
    assert alive == sorted(alive, reverse=True)
    assert alive[:2] == [18, 18]
    assert alive[-7:] == [9] * 7
    ids = toy.ids(3, 13)
    torch.testing.assert_close(laid.model(ids), other(ids).logits, atol=1e-4, rtol=1e-4)  # after twenty steps
    # folders without the triplets that were taken, both ways
    save(tmp_path / "ours", laid)
    assert len(json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["rank_pattern"]) == 3
    back = peft.PeftModel.from_pretrained(theirs(toy.model()), tmp_path / "ours").eval()
    torch.testing.assert_close(back(ids).logits, laid.model(ids), atol=ATOL, rtol=1e-5)
    other.save_pretrained(tmp_path / "theirs")
    model = toy.model()
    loaded = load(tmp_path / "theirs", model)
    torch.testing.assert_close(model(ids), other(ids).logits, atol=ATOL, rtol=1e-5)
    assert sum(int(delta.alive.sum()) for delta in loaded.parts.deltas.values()) == 9


# What PEFT can write and we do not compute


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("bias", {"bias": "all"}),
        ("alpha_pattern", {"alpha_pattern": {"h.0.attn.c_attn": 3}}),
        ("rank_pattern", {"rank_pattern": {"h.0.attn.c_attn": 2}}),
        ("lora_bias", {"lora_bias": True, "target_modules": ["c_fc"]}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
    ],
)
def test_a_variant_that_we_do_not_compute_is_refused_by_name(
    toy: Any, tmp_path: Path, field: str, changes: dict[str, Any]
) -> None:
    model = toy.model()
    peft.get_peft_model(theirs(model), peft_config("lora", (), **changes)).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=field):
        load(tmp_path / "a", model)


def test_an_embedding_adapter_is_refused_by_name(toy: Any, tmp_path: Path) -> None:
    model = toy.model()
    config = peft_config("lora", (), target_modules=["wte", "c_attn"])
    peft.get_peft_model(theirs(model), config).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match="lora_embedding_A"):
        load(tmp_path / "a", model)


def test_layers_that_peft_picked_by_pattern_or_number_are_found(toy: Any, tmp_path: Path) -> None:
    for index, changes in enumerate((
        {"target_modules": r".*h\.[02]\.(attn\.c_attn|mlp\.c_proj)"},
        {"target_modules": ["c_attn"], "layers_to_transform": [1]},
        {"target_modules": "all-linear"},
        {"target_modules": ["c_fc"], "modules_to_save": ["ln_f"]},
    )):  # fmt: skip
        model, ids = toy.model(), toy.ids(2, 9)
        other = stirred(peft.get_peft_model(theirs(model), peft_config("lora", (), **changes))).eval()
        other.save_pretrained(tmp_path / str(index))
        laid = load(tmp_path / str(index), model)
        torch.testing.assert_close(model(ids), other(ids).logits, atol=ATOL, rtol=1e-5)
        assert laid.trainable == sum(p.numel() for p in other.parameters() if p.requires_grad)


def test_every_method_of_pefts_that_we_know_is_tested_here() -> None:
    assert {type(method(name)) for name in KNOWN} == {kind for kind in METHODS.values() if kind.known_to_peft}
