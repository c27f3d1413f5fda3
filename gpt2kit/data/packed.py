"""Reading a packed folder: its pack.json, and its shards behind one memory-mapped sequence of ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit import commit
from gpt2kit.data.shards import PackedTokens, SplitInfo, read_header
from gpt2kit.errors import UserError, unknown

KIND = "packed"
REPORT = "pack.json"
VERSION = 1
SPLITS = ("train", "val")


@dataclass
class PackReport:
    """What is in a packed folder: the content of its pack.json."""

    tokenizer_hash: str
    vocab_size: int
    data_hash: str  # of all ids: stands for the data in the lineage of what is trained on it
    splits: dict[str, SplitInfo]
    duplicates: int  # documents dropped because the same text came before
    leaks: int  # training documents dropped because they are in the validation files
    settings: dict[str, Any]
    sources: dict[str, Any]
    notes: list[str]  # for the user: what was decided, replaced or left out
    version: int = VERSION


def read_report(folder: str | Path) -> PackReport:
    """The pack.json of a packed folder. Raises UserError where the folder is not one, or is damaged."""
    folder = Path(folder)
    commit.recover(folder)
    manifest = commit.manifest(folder) if folder.is_dir() else None
    if manifest is None or manifest.get("kind") != KIND:
        raise UserError(f"{folder} is not a packed folder", hint="run: gpt2kit pack TEXT --out FOLDER")
    path = folder / REPORT
    damaged = UserError(f"{path} is damaged", hint="run gpt2kit pack again")
    listed = manifest["files"]
    if REPORT not in listed or not path.is_file() or commit.sha256_file(path) != listed[REPORT]["sha256"]:
        raise damaged
    stored = commit.read_json(path)
    if not isinstance(stored, dict) or stored.get("version") != VERSION:
        raise UserError(f"{path} is not of version {VERSION}, which this gpt2kit reads", hint="run gpt2kit pack again")
    try:
        splits = {name: _split_info(split) for name, split in stored["splits"].items()}
        report = PackReport(**(stored | {"splits": splits}))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise damaged from None
    for shard in (shard for split in splits.values() for shard in split.shards):
        if shard not in listed:
            raise UserError(f"{folder / shard} is not in the folder's manifest", hint="run gpt2kit pack again")
    return report


def _split_info(stored: dict[str, Any]) -> SplitInfo:
    """A split of pack.json; TypeError, ValueError, KeyError or AttributeError where it is not one."""
    info = SplitInfo(**(stored | {"shards": tuple(stored["shards"])}))
    numbers = (info.documents, info.tokens, info.separators, info.bytes, info.characters)
    if not all(isinstance(name, str) for name in info.shards) or not all(type(n) is int for n in numbers):
        raise TypeError("not a split")
    return info


def open_packed(
    folder: str | Path, split: str, tokenizer_hash: str | None = None, verify: bool = False
) -> PackedTokens:
    """The tokens of split "train" or "val", memory-mapped. `verify` reads all bytes and checks their SHA-256.

    Raises UserError for a folder or shard that is damaged, that holds no such split, or that was packed with
    another tokenizer than `tokenizer_hash`.
    """
    folder = Path(folder)
    report = read_report(folder)
    if verify:
        commit.verify(folder)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    info = report.splits.get(split)
    if info is None or not info.tokens:
        raise UserError(f"{folder} has no {split} split", hint="pack more text, or name files with --validation")
    paths = [folder / name for name in info.shards]
    tokens = 0
    for number, path in enumerate(paths):
        header = read_header(path)
        if tokenizer_hash is not None and header.tokenizer_hash != tokenizer_hash:
            raise UserError(
                f"{path} was packed with tokenizer {header.tokenizer_hash[:8]}…, the model has {tokenizer_hash[:8]}…",
                hint=f"run: gpt2kit pack TEXT --out {folder} --tokenizer MODEL",
            )
        expected = (number, report.tokenizer_hash, report.vocab_size)
        if (header.index, header.tokenizer_hash, header.vocab_size) != expected:
            raise UserError(f"{path} does not belong to {folder / REPORT}", hint="run gpt2kit pack again")
        tokens += header.tokens
    if tokens != info.tokens:
        raise UserError(
            f"{folder} holds {tokens:,} {split} tokens, its {REPORT} says {info.tokens:,}",
            hint="run gpt2kit pack again",
        )
    return PackedTokens(paths, info, report.tokenizer_hash, report.vocab_size)
