"""The doctor passes on this machine, and catches and names each classic mistake planted in the source."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2kit import commit, doctor, runtime
from gpt2kit.doctor import decoding, learning, machine, oracle, proofs, storage
from gpt2kit.errors import UserError
from gpt2kit.model import beam, generate  # noqa: F401 - a module first imported while a mistake is planted keeps it
from gpt2kit.model import folder as folders
from gpt2kit.training import fast, losses

GPT2 = "gpt2kit.model.gpt2"
WEIGHTS = "gpt2kit.model.weights"
LOSSES = "gpt2kit.training.losses"

TANH_GELU = '"gelu_new": partial(F.gelu, approximate="tanh"),'
POST_LN = """        x = self.ln_1(x + self.attn(x, mask, is_causal, cache))
        out: Tensor = self.ln_2(x + self.mlp(x))
"""
PRE_LN = """        x = x + self.attn(self.ln_1(x), mask, is_causal, cache)
        out: Tensor = x + self.mlp(self.ln_2(x))
"""
VARIANCE_NORM = """class VarianceNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


class Block(nn.Module):"""
SPLIT = ".view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)"
SPLIT_TRANSPOSED = ".view(B, T, 3, C // self.n_head, self.n_head).permute(2, 0, 4, 1, 3)"
RESET = "        self.reset(generator)\n"
OWN_OUTPUT = "        self.output = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))\n"
COPY = "copy_(tensor.t() if is_transposed(name) else tensor)"
COPY_UNLIKE = "copy_(tensor if tensor.shape == parameters[name].shape else tensor.t())"
PAST = "else cache.length\n        if"
PAST_LESS = "else cache.length and cache.length - 1\n        if"


@dataclass(frozen=True)
class Mutation:
    """A mistake as an edit of the source: in `module`, `old` becomes `new`; the doctor must say `named`."""

    key: str
    module: str
    old: str
    new: str
    named: str


MUTATIONS = (
    Mutation("relu", GPT2, TANH_GELU, '"gelu_new": F.relu,', "ReLU in the MLP"),
    Mutation("exact GELU", GPT2, TANH_GELU, '"gelu_new": F.gelu,', "exact (erf) GELU"),
    Mutation("post-LN", GPT2, PRE_LN, POST_LN, "post-LayerNorm"),
    Mutation("no 1/sqrt(D)", GPT2, "scale = config.head_size**-0.5 if", "scale = 1.0 if", "sqrt(D)"),
    Mutation("no mask", GPT2, "return None, causal and T > 1", "return None, False", "no causal mask"),
    Mutation("unshifted labels", LOSSES, "batch[:, 1:]", "batch[:, :-1]", "unshifted labels"),
    Mutation("untied head", GPT2, RESET, OWN_OUTPUT + RESET, "untied head"),
    Mutation("wpe one late", GPT2, "[past : past + T]", "[past + 1 : past + T + 1]", "wpe off by one"),
    Mutation("no ln_f", GPT2, "out: Tensor = self.ln_f(x)", "out: Tensor = x", "ln_f missing"),
    Mutation("head split transposed", GPT2, SPLIT, SPLIT_TRANSPOSED, "head split transposed"),
    Mutation("heads merged unmoved", GPT2, "y.transpose(1, 2).reshape", "y.reshape", "head split transposed"),
    Mutation("Conv1D untransposed", WEIGHTS, COPY, "copy_(tensor)", "Conv1D untransposed"),
    Mutation("square Conv1D untransposed", WEIGHTS, COPY, COPY_UNLIKE, "Conv1D untransposed"),
    Mutation("dropout left on", GPT2, "self.attn_pdrop if self.training else 0.0", "0.1", "dropout left on"),
    Mutation("variance", GPT2, "class Block(nn.Module):", VARIANCE_NORM, "variance instead of the standard"),
    Mutation("cache positions", GPT2, PAST, PAST_LESS, "cache off by one"),
    Mutation("cache length", GPT2, "self.length += steps", "self.length += steps - (steps > 1)", "cache off by one"),
    Mutation("cache mask", GPT2, "mask = (columns <= rows)", "mask = (columns < rows)", "cache off by one"),
)
FOLLOW_UPS = {  # a second edit that the first needs
    "untied head": ("causal), self.head)", "causal), self.output)"),
    "variance": ("nn.LayerNorm(config", "VarianceNorm(config"),
}


def plant(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    """Run the mutated source in place of the module's; its namespace is put back at the end of the test."""
    module = importlib.import_module(mutation.module)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    for old, new in ((mutation.old, mutation.new), FOLLOW_UPS.get(mutation.key, ("", ""))):
        assert old in source, f"the mutation {mutation.key!r} no longer fits {mutation.module}"
        source = source.replace(old, new) if old else source
    scratch = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(source, str(module.__file__), "exec"), scratch)
    package = [m for name, m in sys.modules.items() if name.startswith("gpt2kit")]
    for name, original in list(vars(module).items()):
        for user in package:  # others may have taken it by name at import
            if not name.startswith("__") and name in scratch and vars(user).get(name) is original:
                monkeypatch.setattr(user, name, scratch[name])


def failures() -> list[doctor.CheckResult]:
    return [result for result in doctor.run_checks(machine=False) if not result.ok]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.key.replace(" ", "-"))
def test_a_planted_mistake_is_caught_and_named(monkeypatch: pytest.MonkeyPatch, mutation: Mutation) -> None:
    monkeypatch.setattr(proofs, "COUNTS", {"gpt2_small": proofs.COUNTS["gpt2_small"]})  # the large ones take 1 s
    plant(monkeypatch, mutation)
    if mutation.module == LOSSES:
        monkeypatch.setattr(learning, "PROOFS", learning.PROOFS[1:2])
    found = failures()
    assert found
    assert any(mutation.named in result.detail for result in found), [result.detail for result in found]
    assert all(result.hint for result in found)


def test_a_mistake_is_named_by_the_check_of_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, MUTATIONS[1])
    result = doctor.run_check("logits", proofs.prove_logits)
    assert not result.ok
    assert "they are those of a model with this mistake: the exact (erf) GELU" in result.detail


def test_an_unknown_mistake_is_caught_and_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, Mutation("eps", GPT2, "x = self.drop(x)", "x = self.drop(x) * 1.01", ""))
    result = doctor.run_check("logits", proofs.prove_logits)
    assert not result.ok
    assert oracle.UNKNOWN in result.detail


def test_every_proof_holds_on_this_machine() -> None:
    results = list(doctor.run_checks(machine=False))
    assert [f"{r.name}: {r.detail}" for r in results if not r.ok] == []
    assert len(results) >= 18
    assert all(r.detail and r.hint is None for r in results)


# ---------------------------------------------------------------- the oracle itself


def test_the_oracle_agrees_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=23, n_positions=16, n_embd=15, n_layer=2, n_head=3)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    weights = {k.removeprefix("transformer."): p.detach().numpy() for k, p in model.named_parameters()}
    ids = list(range(3, 14))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = oracle.logits(weights, ids, oracle.Shape(heads=3))
    assert oracle.error(found, expected) < 1e-12
    losses = torch.nn.functional.cross_entropy(torch.tensor(expected), torch.tensor(ids), reduction="none")
    np.testing.assert_allclose(oracle.nll(found, ids), losses.numpy(), rtol=1e-12)


def test_every_mistake_gives_its_own_logits() -> None:
    model = proofs.tiny(n_inner=15)
    weights, shape = proofs.weights_of(model), proofs.shape_of(model.config)
    ids = proofs.random_ids(model, 9).tolist()
    outcomes = {name: oracle.logits(weights, ids, shape, name) for name in oracle.MISTAKES}
    outcomes["right"] = oracle.logits(weights, ids, shape)
    names = list(outcomes)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert oracle.error(outcomes[a], outcomes[b]) > 5e-5, (a, b)  # exact GELU is the nearest
    for name, words in oracle.MISTAKES.items():
        assert oracle.diagnose(outcomes[name], weights, ids, shape, 1e-9) == words
    assert oracle.diagnose(outcomes["right"] + 0.1, weights, ids, shape, 1e-9) is None


def test_a_logit_that_is_not_finite_is_never_close() -> None:
    assert oracle.error(np.array([np.nan]), np.array([1.0])) == math.inf
    assert oracle.error(np.zeros((2, 3)), np.zeros((3, 2))) == math.inf


# ---------------------------------------------------------------- proofs that other code could break


def test_a_loss_that_is_a_mean_or_counts_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = losses.next_token
    monkeypatch.setattr(losses, "next_token", lambda m, b: (original(m, b)[0] / 27, 27))
    assert "a mean instead of a sum" in doctor.run_check("loss", learning.prove_loss).detail
    monkeypatch.setattr(losses, "next_token", lambda m, b: (original(m, b)[0], 26))
    assert "counts 26 targets, there are 27" in doctor.run_check("loss", learning.prove_loss).detail


def test_a_normalisation_inside_the_batch_breaks_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    original = losses.next_token
    monkeypatch.setattr(losses, "next_token", lambda m, b: (original(m, b)[0] / len(b), original(m, b)[1]))
    assert "accumulated over 16 x 1" in doctor.run_check("accumulation", learning.prove_accumulation).detail


def test_a_mask_that_is_shifted_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = losses.cross_entropy
    monkeypatch.setattr(losses, "cross_entropy", lambda m, h, t, *s: original(m, h, t.roll(1, dims=1), *s))
    assert "with ignored targets" in doctor.run_check("masked", learning.prove_masked_loss).detail


def test_another_activation_in_the_fused_parts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "gelu", torch.nn.functional.relu)
    assert "fused parts give a loss" in doctor.run_check("fused", learning.prove_fast_parts).detail
    monkeypatch.undo()
    monkeypatch.setattr(fast, "plain", lambda model: None)
    assert "after training's fused parts" in doctor.run_check("fused", learning.prove_fast_parts).detail


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = learning.gradients

    def wrong(*args: object) -> dict[str, oracle.Array]:
        found = original(*args)  # type: ignore[arg-type]
        return found | {"wpe.weight": 1.001 * found["wpe.weight"]}

    monkeypatch.setattr(learning, "gradients", wrong)
    assert "wpe.weight" in doctor.run_check("gradients", learning.prove_gradients).detail


@pytest.mark.parametrize("check", [decoding.prove_sampler, decoding.prove_frequencies])
def test_a_sampler_that_prefers_low_ids_is_caught(monkeypatch: pytest.MonkeyPatch, check: object) -> None:
    sampling = importlib.import_module("gpt2kit.model.sampling")
    original = sampling.sample

    def skewed(row: np.ndarray, settings: object, **more: object) -> object:
        return original(row - 0.02 * np.arange(len(row)), settings, **more)

    monkeypatch.setattr(sampling, "sample", skewed)
    assert not doctor.run_check("sampler", check).ok  # type: ignore[arg-type]


def test_padding_that_is_attended_to_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        Mutation("padding", GPT2, "seen = mask & ~padding[:, None, : past + T]", "seen = mask", ""),
    )
    result = doctor.run_check("padding", proofs.prove_padding)
    assert not result.ok
    assert "padding is attended to" in result.detail or "stopped by" in result.detail


# ---------------------------------------------------------------- results and the machine


def test_a_check_that_raises_becomes_a_result_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ZeroDivisionError("three")

    def refused() -> str:
        raise UserError("no such thing", hint="do this")

    monkeypatch.setattr(machine, "CHECKS", (("a", broken), ("b", refused), ("c", lambda: "fine")))
    results = list(doctor.run_checks(proofs=False))
    assert [r.ok for r in results] == [False, False, True]
    assert results[0].detail == "stopped by ZeroDivisionError: three"
    assert (results[1].detail, results[1].hint) == ("no such thing", "do this")


def test_the_machine_checks_report_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    results = {r.name: r for r in doctor.run_checks(proofs=False)}
    assert all(r.ok for r in results.values()), results
    assert torch.__version__ in results["versions"].detail
    assert "GB/s" in results["memory"].detail
    assert "fp32" in results["matrix products"].detail
    assert "MB/s" in results["disk"].detail
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_too_little_memory_or_disk_fails_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "available_memory", lambda: 100 << 20)
    result = doctor.run_check("memory", machine.check_memory)
    assert not result.ok
    assert "0.10 GiB" in result.detail
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: machine.shutil._ntuple_diskusage(9, 8, 1))
    assert "free" in (doctor.run_check("disk", machine.check_disk).hint or "")


def test_a_folder_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    result = doctor.run_check("disk", lambda: machine.check_disk(tmp_path))
    assert not result.ok
    assert "Permission denied" in result.detail


def test_a_product_that_torch_lacks_is_reported_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(dtype: str, backend: str) -> float:
        if dtype == "int8":
            raise RuntimeError("not implemented")
        return 5e9

    monkeypatch.setattr(runtime, "matmul_speed", absent)
    assert "int8 none" in machine.check_products()


# ---------------------------------------------------------------- one model folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    from gpt2kit.text.training import train_tokenizer

    tokenizer = train_tokenizer(["Once upon a time there was a king.", "从前有一个国王。"] * 8, vocab_size=300)
    model = proofs.tiny("float32", vocab_size=tokenizer.vocab_size)
    folders.save(tmp_path / "model", model, tokenizer, {})
    return tmp_path / "model"


def check_folder(folder: Path) -> dict[str, doctor.CheckResult]:
    results = doctor.run_checks(folder, machine=False, proofs=False)
    return {r.name.removeprefix(f"{folder.name}: "): r for r in results}


def test_a_good_folder_passes(model_folder: Path) -> None:
    results = check_folder(model_folder)
    assert all(r.ok for r in results.values()), results
    assert "are what the manifest says" in results["manifest"].detail
    assert "300" in results["config and weights"].detail
    assert "round trips byte by byte" in results["tokenizer"].detail
    assert "agree with the formulas" in results["forward pass"].detail


def test_a_flipped_bit_in_the_weights_is_named(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    result = check_folder(model_folder)["manifest"]
    assert not result.ok
    assert "model.safetensors has changed" in result.detail


def test_a_missing_file_is_named(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    result = check_folder(model_folder)["manifest"]
    assert not result.ok
    assert "tokenizer.json is missing" in result.detail


def test_a_folder_of_another_tool_has_no_manifest_and_is_proved_all_the_same(tmp_path: Path) -> None:
    source = proofs.tiny("float32", n_head=5)
    sizes = {"vocab_size": 23, "n_positions": 16, "n_embd": 15, "n_layer": 2, "n_head": 5}
    storage.write_checkpoint(tmp_path, proofs.weights_of(source), sizes)
    results = check_folder(tmp_path)
    assert all(r.ok for r in results.values()), results
    assert "made by another tool" in results["manifest"].detail
    assert "no tokenizer" in results["tokenizer"].detail


def test_sharded_and_prefixed_weights_are_read_by_the_oracle_too(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    weights = proofs.weights_of(proofs.tiny("float32"))
    sizes = {"vocab_size": 23, "n_positions": 16, "n_embd": 15, "n_layer": 2, "n_head": 3}
    storage.write_checkpoint(tmp_path, {}, sizes)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for i, part in enumerate((names[:9], names[9:])):
        tensors = {f"transformer.{n}": np.ascontiguousarray(weights[n], dtype=np.float32) for n in part}
        save_file(tensors, tmp_path / f"model-{i}.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, f"model-{i}.safetensors")
    text = json.dumps({"metadata": {}, "weight_map": index})
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    results = check_folder(tmp_path)
    assert all(r.ok for r in results.values()), results


def test_weights_that_are_not_finite_fail_by_name(model_folder: Path) -> None:
    storage.forget()
    model, _ = storage._loaded(model_folder)
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[0, 0] = math.nan
    result = doctor.run_check("weights", lambda: storage.check_weights(model_folder))
    assert not result.ok
    assert "h.1.mlp.c_fc.weight" in result.detail


def test_a_model_that_is_not_its_file_fails(model_folder: Path) -> None:
    storage.forget()
    model, _ = storage._loaded(model_folder)
    with torch.no_grad():
        for block in model.h:
            block.attn.c_proj.weight.copy_(block.attn.c_proj.weight.t().clone())
    result = doctor.run_check("forward", lambda: storage.check_folder_logits(model_folder))
    assert not result.ok
    assert "Conv1D untransposed" in result.detail


def test_a_folder_that_is_no_model_is_refused_in_every_check(tmp_path: Path) -> None:
    results = check_folder(tmp_path)
    assert not any(r.ok for r in results.values())
    assert all(r.hint for r in results.values())
    assert "stopped by" not in " ".join(r.detail for r in results.values())


def test_the_manifest_of_the_checks_is_the_one_that_commit_writes(model_folder: Path) -> None:
    manifest = commit.manifest(model_folder)
    assert manifest is not None
    assert f"{len(manifest['files'])} files" in check_folder(model_folder)["manifest"].detail
