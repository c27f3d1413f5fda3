"""Documents -> train and validation tokens on disk -> memory-mapped tokens.

A packed folder holds pack.json, the shards `train-00000.bin` ... and `val-00000.bin` ..., the tokenizer's
files and the manifest. The same documents, tokenizer and settings give the same bytes.

Which split a document goes to depends on its text alone: on 64 bits of its hash, compared with the fraction.
Documents that are added later move none of the others. Should the first 4 M characters leave the validation
split with less than half its share (tiny inputs), the documents with the smallest hashes join it until it has
that much; should they leave nothing to train on, the one with the largest hash is for training.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit import commit
from gpt2kit.data.packed import KIND, REPORT, SPLITS, PackReport, open_packed, read_report
from gpt2kit.data.seen import SeenHashes, text_hashes
from gpt2kit.data.shards import SHARD_TOKENS, PackedTokens, ShardWriter, SplitInfo
from gpt2kit.data.sources import Document, SourceReport, read_documents
from gpt2kit.errors import UserError

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

__all__ = ["PackProgress", "PackReport", "PackedTokens", "SplitInfo", "open_packed", "pack", "read_report"]

VALIDATION_FRACTION = 0.05  # not by size: it would move documents between the splits when text is added
BATCH = 1_000_000  # characters tokenised at a time
HELD = 4_000_000  # characters looked at before the first is written, to see that both splits get their share
_NOTES = 100  # notes kept in pack.json


@dataclass(frozen=True)
class PackProgress:
    """Where packing is. `total` bytes are None where they cannot be known (standard input, an iterator)."""

    read: int
    total: int | None
    documents: int
    characters: int
    tokens: int


@dataclass
class _Item:
    """A document that is kept, with its place in the order of hashes."""

    document: Document
    size: int  # bytes in UTF-8
    key: int  # 0 .. 2^64 - 1
    follows: bool  # directly follows the item before


@dataclass
class _Split:
    """A split that is being written."""

    writer: ShardWriter
    documents: int = 0
    separators: int = 0
    bytes: int = 0
    characters: int = 0
    waiting: list[Any] = dataclass_field(default_factory=list)  # arrays of ids

    def info(self) -> SplitInfo:
        return SplitInfo(
            shards=tuple(self.writer.names),
            documents=self.documents,
            tokens=self.writer.tokens,
            separators=self.separators,
            bytes=self.bytes,
            characters=self.characters,
        )


def pack(
    source: str | Path | Sequence[str | Path] | Iterable[Document],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    field: str | None = None,
    validation_fraction: float = VALIDATION_FRACTION,
    validation: str | Path | Sequence[str | Path] | None = None,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[PackProgress], None] | None = None,
) -> PackReport:
    """Tokenise paths or documents into the folder `out`, which appears whole or not at all.

    `validation` names files that become the validation split; then nothing else does, and training documents
    that are also in them are dropped. Memory does not grow with the input, but for 24 to 48 bytes a document
    (seen.py). Raises UserError for sources that cannot be read, an `out` that holds something else, and where
    no text is left.
    """
    if not 0 <= validation_fraction < 1:
        raise UserError(
            f"validation fraction {validation_fraction} is not between 0 and 1",
            hint="0.05 puts a twentieth of the documents aside; 0 puts none aside",
        )
    out = Path(out)
    _check_target(out)
    report = SourceReport()
    documents, given = _documents(source, field, report)
    held_out = None if validation is None else _documents(validation, field, checked := SourceReport())[0]
    lineage: dict[str, Any] = {}
    with commit.folder(out, KIND, lineage) as staging:
        packer = _Packer(tokenizer, staging, shard_tokens)
        packer.on_batch = progress and (lambda: progress(packer.progress(report)))
        with packer:
            if held_out is not None:
                packer.write_all(held_out, "val")
                if not packer.splits["val"].documents:
                    raise UserError("the validation files hold no text")
                packer.hold_out()
                packer.write_all(documents, "train")
            elif validation_fraction == 0:
                packer.write_all(documents, "train")
            else:
                packer.split(documents, validation_fraction)
        result = packer.report()
        result.settings = {
            "field": field,
            "validation": "files" if held_out is not None else "hash",
            "validation_fraction": None if held_out is not None else validation_fraction,
            "shard_tokens": shard_tokens,
        }
        result.sources = _summary(report, given)
        result.notes = [*report.notes, *([] if held_out is None else checked.notes), *result.notes]
        _check_content(result, given)
        if validation_fraction > 0 and not result.splits["val"].documents:
            result.notes.append("the validation split is empty: there is only one document (or piece of text)")
        stored = asdict(result) | {"notes": result.notes[:_NOTES]}
        commit.write_json(staging / REPORT, stored)
        tokenizer.save(staging)
        lineage |= {"data_hash": result.data_hash, "tokenizer_hash": result.tokenizer_hash}
    return result


def _check_target(out: Path) -> None:
    """Replace nothing but a packed folder: `--out .` must not cost anybody their files."""
    commit.recover(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = commit.manifest(out) if out.is_dir() else None
    if manifest is None or manifest.get("kind") != KIND:
        raise UserError(f"{out} exists and is not a packed folder: it would be replaced", hint="choose another --out")


def _documents(source: Any, field: str | None, report: SourceReport) -> tuple[Iterable[Document], str]:
    """(documents, how to call them in a message)."""
    paths = [source] if isinstance(source, (str, Path)) else source
    if isinstance(paths, Sequence) and paths and all(isinstance(p, (str, Path)) for p in paths):
        return read_documents(paths, field, report), ", ".join(map(str, paths))
    return source, "the documents given"


def _summary(report: SourceReport, given: str) -> dict[str, Any]:
    encodings: dict[str, int] = {}
    for encoding in report.encodings.values():
        encodings[encoding] = encodings.get(encoding, 0) + 1
    return {
        "given": given,
        "files": report.files,
        "documents": report.documents,
        "characters": report.characters,
        "bytes": report.bytes,
        "encodings": encodings,
        "replaced": report.replaced,
        "empty_files": report.empty_files,
        "empty_documents": report.empty_documents,
        "skipped_files": len(report.skipped),
        "guessed_fields": sorted(set(report.fields.values())),
    }


def _check_content(report: PackReport, given: str) -> None:
    train = report.splits["train"]
    if train.tokens - train.separators > 0:
        return
    if report.leaks:
        raise UserError(
            f"every document of {given} is also in the validation files: no text is left to train on",
            hint="give other validation files",
        )
    raise UserError(f"{given}: no text to pack", hint="give at least one file with text in it")


class _Packer:
    """The two splits while they are written, and the hashes of what they have seen."""

    def __init__(self, tokenizer: Tokenizer, folder: Path, shard_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        self._seen = SeenHashes(folder.parent)
        self._held_out: SeenHashes | None = None
        self._duplicates = self._leaks = self._characters = self._documents = 0
        self._notes: list[str] = []
        self._previous: str | None = None  # split of the document before, None where that was dropped
        self._stack = ExitStack()
        self.on_batch: Callable[[], None] | None = None
        self.splits = {
            name: _Split(ShardWriter(folder, name, tokenizer.vocab_size, tokenizer.hash, shard_tokens))
            for name in SPLITS
        }

    def __enter__(self) -> None:
        for split in self.splits.values():
            self._stack.enter_context(split.writer)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hold_out(self) -> None:
        """From here on, what was seen so far is a leak."""
        self._held_out, self._seen = self._seen, SeenHashes(self._folder.parent)
        self._previous = None

    def write_all(self, documents: Iterable[Document], split: str) -> None:
        for items in self._kept(documents):
            self._write(items, [split] * len(items))

    def split(self, documents: Iterable[Document], fraction: float) -> None:
        """Write every document to the split that its hash says."""
        below = int(fraction * 2**64)
        batches = self._kept(documents)
        held: list[list[_Item]] = []
        characters = 0
        while characters < HELD and (batch := next(batches, None)) is not None:
            held.append(batch)
            characters += sum(len(item.document.text) for item in batch)
        chosen = self._shares([item for batch in held for item in batch], below, fraction)
        for batch in itertools.chain(held, batches):
            self._write(batch, ["val" if chosen.get(item.key, item.key < below) else "train" for item in batch])

    def _shares(self, items: list[_Item], below: int, fraction: float) -> dict[int, bool]:
        """Exceptions to the rule of hashes among the first documents: key -> whether it is for validation."""
        ordered = sorted(items, key=lambda item: item.key)
        share = sum(item.key < below for item in ordered)
        wanted = fraction / 2 * sum(len(item.document.text) for item in items)
        have, count = 0, 0
        for item in ordered[:-1]:  # the last one is for training
            if have >= wanted and count >= share:
                break
            have += len(item.document.text)
            count += 1
        if count == share:
            return {}
        self._notes.append(
            f"small input: by their hashes alone {share} of its first {len(items)} documents would go to "
            f"validation; the {count} with the smallest hashes were taken"
        )
        return {item.key: number < count for number, item in enumerate(ordered)}

    def _kept(self, documents: Iterable[Document]) -> Iterator[list[_Item]]:
        """Batches of the documents that are neither duplicates nor leaks."""
        last_kept = False
        for batch in _batches(documents):
            texts = [document.text.encode() for document in batch]
            hashes = text_hashes(texts)
            new = self._seen.add(hashes)
            leaks = np.zeros(len(batch), np.bool_) if self._held_out is None else self._held_out.contains(hashes)
            self._leaks += int(leaks.sum())
            self._duplicates += int((~new & ~leaks).sum())
            items = []
            rows = zip(batch, texts, hashes[:, 1].tolist(), (new & ~leaks).tolist(), strict=True)
            for document, text, key, keep in rows:
                if keep:
                    items.append(_Item(document, len(text), key, document.continues and last_kept))
                last_kept = keep
            yield items

    def _write(self, items: list[_Item], splits: list[str]) -> None:
        eot = self._tokenizer.eot_id
        encoded = self._tokenizer.encode_batch([item.document.text for item in items])
        for item, name, ids in zip(items, splits, encoded, strict=True):
            split = self.splits[name]
            if eot is not None and not (item.follows and self._previous == name):
                split.waiting.append(np.array([eot]))
                split.separators += 1
            self._previous = name
            split.waiting.append(ids)
            split.documents += 1
            split.bytes += item.size
            split.characters += len(item.document.text)
        for split in self.splits.values():
            if split.waiting:
                split.writer.write(np.concatenate(split.waiting))
                split.waiting.clear()
        if self.on_batch is not None:
            self.on_batch()

    def progress(self, report: SourceReport) -> PackProgress:
        return PackProgress(
            read=report.read,
            total=report.total,
            documents=sum(split.documents for split in self.splits.values()),
            characters=sum(split.characters for split in self.splits.values()),
            tokens=sum(split.writer.tokens for split in self.splits.values()),
        )

    def report(self) -> PackReport:
        hashes = ":".join(split.writer.sha256 for split in self.splits.values())
        return PackReport(
            tokenizer_hash=self._tokenizer.hash,
            vocab_size=self._tokenizer.vocab_size,
            data_hash=hashlib.sha256(hashes.encode()).hexdigest(),
            splits={name: split.info() for name, split in self.splits.items()},
            duplicates=self._duplicates,
            leaks=self._leaks,
            settings={},
            sources={},
            notes=self._notes,
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
