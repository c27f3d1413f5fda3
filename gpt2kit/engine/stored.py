"""`int8.weights`: int8 weights beside the float weights they were made from, so that a load is a memory map.

A safetensors file, not called so because other tools load every *.safetensors of a folder. Two flat tensors, packed as
`weights.layout` says: "weights" (U8) and "floats" (F32). Its
metadata say what it belongs to and what it costs:
    format, version    of this file; another version is made anew
    config             the model's shape, as JSON
    source             SHA-256 over the names and SHA-256 of the weight files
    stat               their sizes and times, as JSON: where no manifest vouches for them
    sha256             of both tensors
    cost, calibration  as JSON: see `quantise.Cost`

Such a file is only a copy of what the folder holds already. One that is stale or damaged is not an error: it is
passed over with a note, and made anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import secrets
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2kit import commit
from gpt2kit.engine.weights import PackedWeights, layout
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.headers import open_weights, weight_files

NAME = "int8.weights"
FORMAT, VERSION = "gpt2kit int8", "2"
ALIGNMENT = 64  # of the first tensor, a cache line; the second follows a multiple of 1,024 bytes later
STAGING = f"{commit.STAGING}int8-"  # and a random part: two processes may write at a time


def config_text(config: GPT2Config) -> str:
    """All of the config that the arithmetic depends on."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if not k.endswith(("_pdrop", "_token_id"))}
    del values["initializer_range"]
    return json.dumps(values, sort_keys=True)


def source_hash(folder: Path) -> str:
    """64 hex digits that name the float weights; from the manifest where it lists them, else by reading them."""
    known = (commit.manifest(folder) or {"files": {}})["files"]
    hashes = {
        name: known[name]["sha256"] if name in known else commit.sha256_file(commit.inside(folder, name))
        for name in weight_files(folder)
    }
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _stat(folder: Path) -> str:
    """Sizes and times of the weight files."""
    stats = [(name, (folder / name).stat()) for name in weight_files(folder)]
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def _belongs(folder: Path, metadata: Mapping[str, str]) -> bool:
    """Whether the file was made from the weights that the folder holds now. They are read only as a last resort."""
    if commit.manifest(folder) is not None:
        commit.verify(folder, weight_files(folder), sizes_only=True)
    elif metadata.get("stat") == _stat(folder):  # as make and git decide it
        return True
    return metadata.get("source") == source_hash(folder)


def _data_hash(packed: PackedWeights) -> str:
    digest = hashlib.sha256(packed.weights.data)
    digest.update(packed.floats.data)
    return digest.hexdigest()


def read(folder: Path, config: GPT2Config, notes: list[str]) -> PackedWeights | None:
    """The folder's int8 weights, memory-mapped; None where there are none that fit, with a note that says why."""
    path = commit.inside(folder, NAME)
    if not path.exists():
        return None
    try:
        packed, why = _read(path, folder, config)
    except (UserError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        packed, why = None, f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if packed is None:
        notes.append(f"{path} {why}: it is made anew")
    return packed


def _read(path: Path, folder: Path, config: GPT2Config) -> tuple[PackedWeights | None, str]:
    with open_weights(path) as reader:  # safetensors checks header, offsets and length
        metadata = dict(reader.metadata() or {})
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        return None, "is of another version"
    if metadata.get("config") != config_text(config) or not _belongs(folder, metadata):
        return None, "was made from other weights than the folder has now"
    at = layout(config, "int8")
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    wanted = {"weights": ("U8", at.weights_bytes), "floats": ("F32", at.floats_count)}
    parts: dict[str, Any] = {}
    for name, (dtype, count) in wanted.items():
        entry = header[name]
        if (entry["dtype"], entry["shape"]) != (dtype, [count]):
            return None, "has another layout"
        start = 8 + length + entry["data_offsets"][0]
        kind = np.dtype(np.uint8 if dtype == "U8" else "<f4")
        parts[name] = np.memmap(path, kind, "r", start, (count,)).view(np.ndarray)
    cost = float(json.loads(metadata["cost"])["percent"])
    if not math.isfinite(cost):
        return None, "has no cost"
    packed = PackedWeights(config, "int8", at, parts["weights"], parts["floats"], cost)
    if metadata["sha256"] != _data_hash(packed):
        return None, "is damaged"
    return packed, ""


def write(folder: Path, packed: PackedWeights, source: str, cost: Mapping[str, Any]) -> None:
    """Store int8 weights beside the float weights `source` they were made from, with their cost in the lineage.

    Raises UserError where the folder cannot be written, or has changed since `source` was taken.
    """
    made = folder / f"{STAGING}{secrets.token_hex(4)}"
    try:
        _sweep(folder)
        known = commit.manifest(folder)
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "config": config_text(packed.config),
            "source": source,
            "stat": _stat(folder),
            "sha256": _data_hash(packed),
            "cost": json.dumps(cost, ensure_ascii=False),
        }
        if source_hash(folder) != source:
            raise UserError(f"{folder} has got other weights meanwhile", hint="load it again")
        if known is None:
            _replace(folder / NAME, packed, metadata)
            return
        lineage = {key: value for key, value in known.items() if key not in commit.RESERVED}
        with commit.folder(made, known["kind"], lineage | {"int8": dict(cost)}) as staging:
            _write_file(staging / NAME, packed, metadata)
        own = commit.manifest(made)
        assert own is not None, "nobody else knows its name"
        own["files"] = dict(sorted((known["files"] | own["files"]).items()))  # goes on covering what is there
        commit.replace_json(made / commit.MANIFEST, own)
        commit.files_into(folder, made, over=known)
    except OSError as error:
        raise UserError(f"{folder / NAME} could not be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(UserError, OSError):
            commit.discard(made)


def _sweep(folder: Path) -> None:
    """Remove what writers left that were killed long ago."""
    for name in (f"{STAGING}*", f"{commit.STAGING}{STAGING}*"):
        for path in folder.glob(name):
            if time.time() - path.stat().st_mtime > commit.STALE_SECONDS:
                commit.discard(path)


def _replace(path: Path, packed: PackedWeights, metadata: dict[str, str]) -> None:
    """Into a folder that another tool made, which has no manifest."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_file(temporary, packed, metadata)
        commit.fsync_path(temporary)
        os.replace(temporary, path)
        commit.fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write_file(path: Path, packed: PackedWeights, metadata: dict[str, str]) -> None:
    weights, floats = packed.weights.nbytes, packed.floats.nbytes
    header = {
        "__metadata__": metadata,
        "weights": {"dtype": "U8", "shape": [weights], "data_offsets": [0, weights]},
        "floats": {"dtype": "F32", "shape": [floats // 4], "data_offsets": [weights, weights + floats]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(packed.weights.data)
        file.write(packed.floats.astype("<f4", copy=False).data)
