"""Proofs of the folder format and the tokenizer, and the checks of one model folder.

The files are read and written here without `model/weights.py`, so that its transposes are held against
something.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit import commit
from gpt2kit.doctor import oracle
from gpt2kit.doctor.proofs import (
    DROPOUT,
    TOLERANCE,
    Failed,
    random_ids,
    require,
    run,
    shape_of,
    tiny,
    weights_of,
)
from gpt2kit.errors import UserError

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

CONV1D = oracle.MISTAKES["conv1d"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = (
    "Hello!! I'm here.  It's 2022. w00t :D 🤗",
    "我说你倒是快点啊，東京",
    "a\r\n\tb\u00a0\u3000c\x00",
    "e\u0301 ﷽ 👩‍👩‍👧",
)


class RawWeights(Mapping[str, oracle.Array]):
    """The tensors of a model folder in float64, read one at a time: the oracle's view of the files
    themselves.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files = [WEIGHTS]
        if not (folder / WEIGHTS).exists():
            files = sorted(set(commit.read_json(folder / INDEX)["weight_map"].values()))
        self.open: list[Any] = [safe_open(folder / name, framework="pt") for name in files]
        self.where: dict[str, tuple[Any, str]] = {}
        for file in self.open:
            names: list[str] = file.keys()
            self.where |= {name.removeprefix("transformer."): (file, name) for name in names}

    def __getitem__(self, name: str) -> oracle.Array:
        file, full = self.where[name]
        value: oracle.Array = file.get_tensor(full).double().numpy()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)


def write_checkpoint(folder: Path, weights: Mapping[str, oracle.Array], config: Mapping[str, Any]) -> None:
    """A folder as Hugging Face writes it: linears as Conv1D [in, out]."""
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}), encoding="utf-8")


def prove_loading() -> str:
    """A checkpoint with square linears, written here as [in, out], gives the formulas' logits once loaded."""
    from gpt2kit.model import folder as folders

    source = tiny("float32", n_inner=15)
    weights, shape, ids = weights_of(source), shape_of(source.config), random_ids(source, 1, 9)
    sizes = {"vocab_size": 23, "n_positions": 16, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_inner": 15}
    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(Path(name), weights, sizes)
        try:
            model, _ = folders.load(Path(name))
        except (UserError, RuntimeError) as error:
            raise Failed(f"a well-formed checkpoint is refused ({error}): perhaps {CONV1D}") from error
    if model.training or not np.array_equal(run(model, ids), run(model, ids)):
        raise Failed(f"a loaded model is in training mode: {DROPOUT}")
    observed = run(model, ids)[0]
    expected = oracle.logits(weights, ids[0].tolist(), shape)
    if not oracle.close(observed, expected, TOLERANCE["float32"]):
        likely = oracle.diagnose(observed, weights, ids[0].tolist(), shape, TOLERANCE["float32"])
        raise Failed(f"the logits of a loaded checkpoint are wrong: {likely or oracle.UNKNOWN}")
    found = oracle.error(observed, expected)
    return f"a checkpoint in Hugging Face's layout gives the formulas' logits; error {found:.0e}"


def prove_saving() -> str:
    """Identity 11: what is saved has the checkpoint's names and layout; save, load, save gives the same
    bytes.
    """
    from gpt2kit.model import folder as folders

    model = tiny("float32", n_inner=15)
    weights = weights_of(model)
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        folders.save(first, model, None, {})
        raw = RawWeights(first)
        if set(raw) - {"lm_head.weight"} != set(weights):
            odd = sorted((set(raw) - {"lm_head.weight"}) ^ set(weights))
            raise Failed(f"the saved tensors' names are not GPT-2's: {', '.join(odd[:4])}")
        for tensor, value in weights.items():
            require(raw[tensor], value, "float32", f"saved {tensor} and its value", f"perhaps {CONV1D}")
        del raw
        folders.save(second, folders.load(first)[0], None, {})
        for file in (WEIGHTS, "config.json"):
            if (first / file).read_bytes() != (second / file).read_bytes():
                raise Failed(f"{file} changes when a model is saved, loaded and saved again")
        commit.verify(second)
    return f"{len(weights)} tensors in the checkpoint's layout; the second save is byte-equal"


def prove_tokenizer() -> str:
    """Any text comes back from its ids, and a saved tokenizer is the same one by hash and by ids."""
    from gpt2kit.text.tokenizer import Tokenizer
    from gpt2kit.text.training import train_tokenizer

    tokenizer = train_tokenizer(TEXTS * 4, kind="bpe", vocab_size=320)
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save(Path(name))
        again = Tokenizer.load(Path(name))
    if again.hash != tokenizer.hash:
        raise Failed("a tokenizer's hash changes when it is saved and loaded")
    for text in TEXTS:
        round_trip(tokenizer, text)
        if list(again.encode(text)) != list(tokenizer.encode(text)):
            raise Failed(f"a saved and loaded tokenizer encodes {text!r} differently")
    return f"{len(TEXTS)} difficult texts round trip byte by byte; hash {tokenizer.hash[:8]}… survives saving"


def round_trip(tokenizer: Tokenizer, text: str) -> None:
    back = tokenizer.decode(tokenizer.encode(text))
    if back != text:
        raise Failed(f"the tokenizer turns {text!r} into {back!r}")


# ---------------------------------------------------------------- one model folder


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[Any, Any]:
    from gpt2kit.model import folder as folders

    return folders.load(folder)


def _resolve(folder: Path) -> Path:
    """The folder itself, or the checkpoint that stands for an unfinished run."""
    from gpt2kit.model import folder as folders

    return folders.resolve(folder)[0]


def check_manifest(folder: Path) -> str:
    """Every file that the manifest lists, by size and SHA-256."""
    folder = _resolve(folder)
    manifest = commit.verify(folder)
    if manifest is None:
        return "no gpt2kit.json: the folder was made by another tool, and nothing vouches for its files"
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    return f"{len(manifest['files'])} files, {size / 1e6:.1f} MB, are what the manifest says"


def check_weights(folder: Path) -> str:
    import torch

    model, _ = _loaded(folder)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise Failed(f"{name} holds NaN or infinity", "training diverged: take an earlier checkpoint")
    config = model.config
    shape = f"{config.n_layer} layers x {config.n_embd}, {config.n_head} heads, {config.n_positions} positions"
    return f"{config.parameters:,} parameters, all finite; {shape}, vocabulary {config.vocab_size}"


def check_folder_tokenizer(folder: Path) -> str:
    model, tokenizer = _loaded(folder)
    if tokenizer is None:
        return "the folder has no tokenizer: the model takes and gives token ids"
    V = model.config.vocab_size
    if tokenizer.vocab_size > V:
        raise Failed(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {V}",
            "use the tokenizer it was trained with",
        )
    lossless = ""
    if tokenizer.kind == "bpe":
        for text in TEXTS:
            round_trip(tokenizer, text)
        lossless = ", round trips byte by byte"
    return f"{tokenizer.kind}, {tokenizer.vocab_size} tokens, hash {tokenizer.hash[:8]}…{lossless}"


def check_folder_logits(folder: Path) -> str:
    """Logits of a few tokens against the oracle, which reads the weights file itself."""
    model, _ = _loaded(folder)
    ids = random_ids(model, 1, min(5, model.config.n_positions))
    observed = run(model, ids)[0]
    raw, shape = RawWeights(_resolve(folder)), shape_of(model.config)
    expected = oracle.logits(raw, ids[0].tolist(), shape)
    if not oracle.close(observed, expected, 2e-4):  # float32 through many layers of trained weights
        likely = oracle.diagnose(observed, raw, ids[0].tolist(), shape, 2e-4)
        raise Failed(f"the logits are not the formulas' on the file's weights: {likely or oracle.UNKNOWN}")
    found = oracle.error(observed, expected)
    return f"logits of {ids.shape[1]} tokens agree with the formulas; error {found:.0e}"


def forget() -> None:
    """Drop the model that the last run of the checks loaded."""
    _loaded.cache_clear()


PROOFS = (
    ("checkpoint layout, loading", prove_loading),
    ("checkpoint layout, saving", prove_saving),
    ("tokenizer", prove_tokenizer),
)
FOLDER_CHECKS = (
    ("manifest", check_manifest),
    ("config and weights", check_weights),
    ("tokenizer", check_folder_tokenizer),
    ("forward pass", check_folder_logits),
)
