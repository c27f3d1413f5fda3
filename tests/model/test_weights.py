"""The weights on disk: byte for byte transformers', read in all its forms, refused by name where damaged."""

from __future__ import annotations

import dataclasses
import json
import random
import resource
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.model.headers import INDEX, WEIGHTS, check_headers, read_headers, stored_shapes
from gpt2kit.model.weights import load_weights, save_weights

CONFIG = GPT2Config(vocab_size=61, n_positions=16, n_embd=12, n_layer=2, n_head=3)
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
ATOL = 2e-5  # fp32, other summation order


def make(config: GPT2Config = CONFIG, seed: int = 0) -> GPT2:
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def equal(a: GPT2, b: GPT2) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def theirs(config: GPT2Config, kind: Any = transformers.GPT2LMHeadModel) -> Any:
    torch.manual_seed(0)
    values = dataclasses.asdict(config)
    return kind(transformers.GPT2Config(**values)).eval()


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_weights(tmp_path / WEIGHTS, make())
    return tmp_path


# Both directions


@pytest.mark.parametrize("config", [CONFIG, UNTIED, dataclasses.replace(CONFIG, n_inner=7)])
def test_written_file_is_byte_equal_to_transformers_own(tmp_path: Path, config: GPT2Config) -> None:
    reference = theirs(config)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_weights(tmp_path / "theirs", config).eval()
    x = torch.arange(14).reshape(2, 7)
    torch.testing.assert_close(model(x), reference(x).logits, atol=ATOL, rtol=0)
    save_weights(tmp_path / WEIGHTS, model)
    assert (tmp_path / WEIGHTS).read_bytes() == (tmp_path / "theirs" / WEIGHTS).read_bytes()
    assert equal(load_weights(tmp_path, config), model)


def test_written_file_is_byte_equal_to_the_safetensors_library(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    save_file(tensors, saved / "again.safetensors", metadata={"format": "pt"})
    assert (saved / "again.safetensors").read_bytes() == (saved / WEIGHTS).read_bytes()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        f"transformer.{name}": shape for name, shape in stored_shapes(CONFIG).items()
    }


def test_bare_names_of_gpt2model_are_read(tmp_path: Path) -> None:
    reference = theirs(CONFIG, transformers.GPT2Model)
    reference.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / WEIGHTS)
    x = torch.arange(14).reshape(2, 7)
    hidden = load_weights(tmp_path, CONFIG).eval().hidden(x)
    torch.testing.assert_close(hidden, reference(x).last_hidden_state, atol=ATOL, rtol=0)


def test_sharded_files_are_read(tmp_path: Path) -> None:
    reference = theirs(CONFIG)
    reference.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / INDEX).exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    x = torch.arange(14).reshape(2, 7)
    torch.testing.assert_close(load_weights(tmp_path, CONFIG).eval()(x), reference(x).logits, atol=ATOL, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_fp32_exactly(saved: Path, dtype: torch.dtype) -> None:
    change(saved, lambda t: t.update({name: tensor.to(dtype) for name, tensor in t.items()}))
    model = load_weights(saved, CONFIG)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.h[0].mlp.c_fc.weight, make().h[0].mlp.c_fc.weight.to(dtype).float())
    half = load_weights(saved, CONFIG, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}


def test_a_half_precision_model_is_written_as_fp32(tmp_path: Path) -> None:
    model = make().to(torch.bfloat16)
    save_weights(tmp_path / WEIGHTS, model)
    assert equal(load_weights(tmp_path, CONFIG), model.float())


def test_mask_buffers_and_a_second_copy_of_the_tied_head_are_ignored(saved: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        for layer in range(2):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    change(saved, add)
    assert equal(load_weights(saved, CONFIG), make())


def test_loading_neither_draws_random_numbers_nor_leaves_anything_untouched(saved: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = load_weights(saved, CONFIG)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(model, make())


MEMORY = """
import sys, threading
from pathlib import Path
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.model.weights import load_weights, save_weights

def anonymous():  # bytes, without the pages of mapped files
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def most_memory(action):
    peak, done = 0, threading.Event()
    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous())
    base = anonymous()
    thread = threading.Thread(target=watch)
    thread.start()
    action()
    done.set()
    thread.join()
    print((peak - base) / (4 * config.parameters))

folder = Path(sys.argv[1])
config = GPT2Config(vocab_size=1000, n_positions=64, n_embd=512, n_layer=8, n_head=8)
model = GPT2(config)
most_memory(lambda: save_weights(folder / "model.safetensors", model))
del model
most_memory(lambda: load_weights(folder, config))
"""


def test_loading_and_saving_hold_one_copy_of_the_weights(tmp_path: Path) -> None:
    """Of 98 MB of weights in 100 tensors. Loading needs them once, saving one tensor more than the model."""
    if not Path("/proc/self/status").exists():  # Linux only
        return
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    saving, loading = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(saving) < 0.15
    assert float(loading) < 1.15


# Refusals


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: tensor})


def poke(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[3] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("transformer.h.1.mlp.c_fc.bias"), r"lack the tensor 'h\.1\.mlp\.c_fc\.bias'"),
        (drop("transformer.wte.weight"), r"lack the tensor 'wte\.weight'"),
        (put("transformer.h.0.attn.q.weight", torch.zeros(1)), r"'transformer\.h\.0\.attn\.q\.weight'"),
        (put("score.weight", torch.zeros(2, 12)), r"'score\.weight', which a GPT-2 language"),
        (put("wte.weight", torch.zeros(61, 12)), r"is there too"),
        (put("transformer.h.0.mlp.c_fc.weight", torch.zeros(48, 12)), r"\[48, 12\].*makes it \[12, 48\]"),
        (put("transformer.wpe.weight", torch.zeros(17, 12)), r"wpe\.weight has shape \[17, 12\]"),
        (put("transformer.wte.weight", torch.zeros(61, 12, dtype=torch.int8)), r"wte\.weight has dtype I8"),
        (put("transformer.wte.weight", torch.zeros(61, 12, dtype=torch.float64)), r"has dtype F64"),
        (poke("transformer.h.1.ln_2.weight", float("nan")), r"h\.1\.ln_2\.weight holds NaN"),
        (poke("transformer.wpe.weight", float("-inf")), r"wpe\.weight holds NaN or infinity"),
        (put("lm_head.weight", torch.ones(61, 12)), r"lm_head\.weight differs from wte\.weight"),
        (put("transformer.h.2.ln_1.weight", torch.ones(12)), r"n_layer 2, the weights in .* have 3 layers"),
        (lambda t: [t.pop(n) for n in list(t) if ".h.1." in n], r"have 1 layers"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused_by_name(saved: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    change(saved, edit)
    with pytest.raises(UserError, match=message):
        load_weights(saved, CONFIG)


def test_an_untied_model_needs_its_head(saved: Path) -> None:
    with pytest.raises(UserError, match=r"lack the tensor 'lm_head\.weight'"):
        load_weights(saved, UNTIED)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1, -1000])
def test_truncated_files_are_refused(saved: Path, length: int) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:length])
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        load_weights(saved, CONFIG)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights"):
        load_weights(tmp_path, CONFIG)
    folder = tmp_path / "o'my 模型"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 anything")
    with pytest.raises(UserError, match=r"only in pytorch_model\.bin") as caught:
        load_weights(folder, CONFIG)
    words = shlex.split(str(caught.value).rpartition("run: ")[2])
    assert words[:2] == ["python", "-c"]
    assert f'M.from_pretrained("{folder}").save_pretrained("{folder}-safetensors")' in words[2]
    compile(words[2], "hint", "exec")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 10**9, "n_head": 1}, r"has shape .* config\.json makes it"),
        ({"n_positions": 2**31 - 1}, r"wpe\.weight has shape"),
        ({"n_layer": 2**31 - 1}, "n_layer 2147483647, the weights in .* have 2 layers"),
        ({"n_inner": 2**31 - 1}, r"c_fc\.\w+ has shape"),
    ],
)
def test_a_huge_config_is_refused_before_anything_is_allocated(
    saved: Path, fields: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(CONFIG, **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        load_weights(saved, config)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000 * (
        1024 if sys.platform == "darwin" else 1
    )


def test_layers_are_counted_not_believed(saved: Path) -> None:
    change(saved, put("transformer.h.2147483646.ln_1.weight", torch.ones(12)))
    with pytest.raises(UserError, match="have 3 layers"):
        load_weights(saved, dataclasses.replace(CONFIG, n_layer=2**31 - 1))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    theirs(CONFIG).save_pretrained(tmp_path, max_shard_size="5KB")
    return tmp_path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update({"transformer.wte.weight": "../x.safetensors"}), "outside the folder"),
        (lambda m: m.update({"transformer.wte.weight": "/x.safetensors"}), "outside the folder"),
        (lambda m: m.update({"transformer.wte.weight": "x.bin"}), r"'x\.bin': only safetensors"),
        (lambda m: m.update({"transformer.wte.weight": "x.safetensors"}), r"x\.safetensors is missing"),
        (lambda m: m.update({"transformer.wte.weight": 3}), "has no weight_map"),
        (lambda m: m.update({"extra": m["transformer.wte.weight"]}), "lacks 'extra'"),
        (
            lambda m: m.pop("transformer.ln_f.bias"),
            r"holds 'transformer\.ln_f\.bias', which .* does not list",
        ),
        (lambda m: m.clear(), "has no weight_map"),
    ],
)
def test_a_wrong_shard_index_is_refused(sharded: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    value = json.loads((sharded / INDEX).read_text())
    edit(value["weight_map"])
    (sharded / INDEX).write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        load_weights(sharded, CONFIG)


def test_models_that_would_not_load_again_are_not_saved(tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN"):
        save_weights(tmp_path / WEIGHTS, model)
    with pytest.raises(UserError, match=r"as float32: it is torch\.float64"):
        save_weights(tmp_path / WEIGHTS, make().double())
    model = make()
    model.h[0].attn.c_attn = torch.nn.Sequential(model.h[0].attn.c_attn)
    with pytest.raises(UserError, match="merge adapters first"):
        save_weights(tmp_path / WEIGHTS, model)


# Fuzz: success or UserError, nothing else, and no more memory than the file has bytes


def attempt(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    try:
        check_headers(read_headers(folder), CONFIG, folder)
        load_weights(folder, CONFIG)
    except UserError as error:
        assert error.message  # noqa: PT017


def test_mutated_bytes_load_or_are_refused(saved: Path) -> None:
    data = (saved / WEIGHTS).read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    rng = random.Random(0)
    for trial in range(400):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(8 if trial % 8 == 0 else header if trial % 8 < 7 else len(data))
            mutated[place] = rng.choice(b'0123456789",:[]{}\x00\xff') if trial % 2 else rng.randrange(256)
        cut = rng.random() < 0.1
        attempt(saved, bytes(mutated[: rng.randrange(len(mutated))] if cut else mutated))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["transformer.wte.weight", "transformer.h.0.ln_1.bias", "__metadata__", "new"]),
    key=st.sampled_from(["dtype", "shape", "data_offsets", None]),
    value=json_values | st.lists(st.integers(-(2**70), 2**70), max_size=3) | st.sampled_from(["F64", "I64"]),
)
def test_mutated_headers_load_or_are_refused(saved: Path, name: str, key: str | None, value: Any) -> None:
    original = saved / "original"
    if not original.exists():
        original.write_bytes((saved / WEIGHTS).read_bytes())
    data = original.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    entry = header.setdefault(name, {})
    if key is None:
        header[name] = value
    else:
        entry[key] = value
    text = json.dumps(header).encode()
    attempt(saved, struct.pack("<Q", len(text)) + text + data[8 + size :])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values)
def test_any_index_loads_or_is_refused(saved: Path, value: Any) -> None:
    if (saved / WEIGHTS).exists():
        (saved / WEIGHTS).rename(saved / "model-1.safetensors")
    for content in (value, {"weight_map": value}, {"weight_map": {"transformer.wte.weight": value}}):
        (saved / INDEX).write_text(json.dumps(content))
        with pytest.raises(UserError):
            load_weights(saved, CONFIG)
