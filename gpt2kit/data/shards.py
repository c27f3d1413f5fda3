"""The token shard: a header of 256 bytes, then the ids, little-endian, to be memory-mapped.

0  8s  magic b"GPT2KIT\\0"        24  Q   tokens            48  32s  tokenizer hash
8  I   version                   32  Q   vocabulary size   80..239   zero
12 I   bytes per id: 2 or 4      40  Q   largest id        240 16s   blake2b of bytes 0..239
16 Q   index of the shard
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import UserError

MAGIC = b"GPT2KIT\0"
VERSION = 1
HEADER = 256
SHARD_TOKENS = 100_000_000  # 200 MB of uint16
_FIELDS = struct.Struct("<8sIIQQQQ32s")
_SEAL = 240  # where the header's own hash begins
_AGAIN = "run gpt2kit pack again: this file is damaged"


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself. `itemsize`: bytes per id."""

    index: int
    tokens: int
    vocab_size: int
    largest: int
    itemsize: int
    tokenizer_hash: str  # 64 hex digits

    def to_bytes(self) -> bytes:
        fields = _FIELDS.pack(
            *(MAGIC, VERSION, self.itemsize, self.index, self.tokens, self.vocab_size, self.largest),
            bytes.fromhex(self.tokenizer_hash),
        ).ljust(_SEAL, b"\0")
        return fields + hashlib.blake2b(fields, digest_size=16).digest()


def id_size(vocab_size: int) -> int:
    """Bytes per id: 2 where every id fits, else 4."""
    return 2 if vocab_size <= 1 << 16 else 4


def read_header(path: Path) -> ShardHeader:
    """The header of a shard, checked against the file's size. Raises UserError that names what is wrong."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEADER)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}", hint=_AGAIN) from None
    if not head.startswith(MAGIC):
        raise UserError(f"{path} is not a token shard", hint="run: gpt2kit pack TEXT --out FOLDER")
    if len(head) < HEADER:
        raise UserError(f"{path} is truncated: {size} bytes, the header alone has {HEADER}", hint=_AGAIN)
    _, version, itemsize, index, tokens, vocab_size, largest, digest = _FIELDS.unpack(head[: _FIELDS.size])
    if version != VERSION:
        raise UserError(
            f"{path} has shard version {version}, this gpt2kit reads {VERSION}", hint="run gpt2kit pack again"
        )
    if hashlib.blake2b(head[:_SEAL], digest_size=16).digest() != head[_SEAL:]:
        raise UserError(f"{path} has a damaged header", hint=_AGAIN)
    if itemsize != id_size(vocab_size):
        raise UserError(
            f"{path} has {itemsize} bytes per id, a vocabulary of {vocab_size} has {id_size(vocab_size)}",
            hint=_AGAIN,
        )
    expected = HEADER + tokens * itemsize
    if size != expected:
        what = "truncated" if size < expected else "longer than its header says"
        raise UserError(f"{path} is {what}: {size:,} bytes, {expected:,} for {tokens:,} tokens", hint=_AGAIN)
    if not tokens or largest >= vocab_size:
        raise UserError(
            f"{path} holds {tokens} ids up to {largest}, which lie outside the vocabulary of {vocab_size}",
            hint=_AGAIN,
        )
    return ShardHeader(index, tokens, vocab_size, largest, itemsize, digest.hex())


class ShardWriter:
    """Writes ids as they come to `<split>-00000.bin`, `-00001.bin`, ... of `shard_tokens` ids at most."""

    def __init__(self, folder: Path, split: str, vocab_size: int, tokenizer_hash: str, shard_tokens: int) -> None:
        assert shard_tokens > 0, shard_tokens
        self.names: list[str] = []
        self.tokens = 0
        self._folder = folder
        self._split = split
        self._vocab_size = vocab_size
        self._tokenizer_hash = tokenizer_hash
        self._shard_tokens = shard_tokens
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._written = 0  # ids in the open shard
        self._largest = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sha256(self) -> str:
        """SHA-256 of all ids written, as they lie in the shards."""
        return self._hash.hexdigest()

    def write(self, ids: NDArray[Any]) -> None:
        """Append ids [N] of any integer type."""
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= self._vocab_size):
            raise AssertionError(f"ids {ids.min()}..{ids.max()} outside the vocabulary of {self._vocab_size}")
        packed = ids.astype(f"<u{id_size(self._vocab_size)}")
        while len(packed):
            if self._file is None:
                self._open()
            part = packed[: self._shard_tokens - self._written]
            packed = packed[len(part) :]
            data = part.tobytes()
            assert self._file is not None
            self._file.write(data)
            self._hash.update(data)
            self._largest = max(self._largest, int(part.max()))
            self._written += len(part)
            self.tokens += len(part)
            if self._written == self._shard_tokens:
                self.close()

    def _open(self) -> None:
        self.names.append(f"{self._split}-{len(self.names):05d}.bin")
        self._file = open(self._folder / self.names[-1], "wb")  # noqa: SIM115  closed by close()
        self._file.write(b"\0" * HEADER)  # no magic yet: until it is closed this is not a shard
        self._written = self._largest = 0

    def close(self) -> None:
        """Seal the open shard with its header."""
        if self._file is None:
            return
        header = ShardHeader(
            index=len(self.names) - 1,
            tokens=self._written,
            vocab_size=self._vocab_size,
            largest=self._largest,
            itemsize=id_size(self._vocab_size),
            tokenizer_hash=self._tokenizer_hash,
        )
        with self._file as file:
            file.seek(0)
            file.write(header.to_bytes())
        self._file = None


@dataclass(frozen=True)
class SplitInfo:
    """What pack.json says of a split. `bytes` and `characters` count text, `tokens` also the separators."""

    shards: tuple[str, ...]
    documents: int  # pieces of a long text count each
    tokens: int
    separators: int
    bytes: int
    characters: int


class PackedTokens:
    """The ids of a split, memory-mapped over its shards: `len()`, `tokens[i]`, `tokens[a:b]` -> array."""

    def __init__(self, paths: Sequence[Path], info: SplitInfo, tokenizer_hash: str, vocab_size: int) -> None:
        self.info = info
        self.tokenizer_hash = tokenizer_hash
        self.vocab_size = vocab_size
        self.bytes = info.bytes
        self.characters = info.characters
        self.tokens = info.tokens
        dtype = np.dtype(f"<u{id_size(vocab_size)}")
        # asarray: slicing a plain view of the mapping costs a tenth of slicing np.memmap itself
        self._shards = [np.asarray(np.memmap(path, dtype, mode="r", offset=HEADER)) for path in paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        # the ids as one array, where they lie in one shard: batches are then gathered by one call
        self.whole: NDArray[Any] | None = self._shards[0] if len(self._shards) == 1 else None
        assert self._ends[-1] == info.tokens, (self._ends[-1], info.tokens)

    def __len__(self) -> int:
        return self.tokens

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> NDArray[Any]: ...
    def __getitem__(self, at: int | slice) -> int | NDArray[Any]:
        if isinstance(at, slice):
            start, stop, step = at.indices(self.tokens)
            assert step == 1, "packed tokens are sliced without a step"
            return self._slice(start, max(start, stop))
        index = range(self.tokens)[at]
        return int(self._slice(index, index + 1)[0])

    def _slice(self, start: int, stop: int) -> NDArray[Any]:
        if len(self._shards) == 1:
            return self._shards[0][start:stop]
        first = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        for shard, end in zip(self._shards[first:], self._ends[first:], strict=True):
            begin = int(end) - len(shard)
            parts.append(shard[max(start - begin, 0) : max(stop - begin, 0)])
            if stop <= end:
                break
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else self._shards[0][:0]
