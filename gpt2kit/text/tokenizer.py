"""Strings to ids and back: the one Tokenizer of the project, read from and saved as a `tokenizer.json`.

The file defines the ids: `tokenizers.Tokenizer.from_file(saved)` gives the same ones for ordinary text.
Special tokens are ordinary text unless the caller allows them, so a user's typed `<|endoftext|>` ends
nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gpt2kit.commit import write_json
from gpt2kit.errors import UserError, unknown
from gpt2kit.text import reading, wordpiece, words
from gpt2kit.text.bytelevel import ByteLevelEncoder, Ids, canonical, cores, token_to_bytes, utf8

Kind = Literal["bpe", "char", "word", "wordpiece"]
REPLACEMENT = "\ufffd"  # what an unknown token decodes to
SAMPLES = ("Hello world! It's 2024.", "从前有一座山，山里有一座庙。")


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str], threads: int) -> Sequence[npt.NDArray[Any]]: ...


class _LibraryEncoder:
    """Through `tokenizers` itself: WordPiece, and the rare BPE that tiktoken's way of merging cannot
    express.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, text: str) -> list[int]:
        utf8(text)
        return self._backend.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[npt.NDArray[np.int64]]:
        for text in texts:
            utf8(text)
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int64) for one in found]


class Tokenizer:
    """A vocabulary and the way to cut text into it. Make one with `load`, `find` or `train_tokenizer`.

    kind: "bpe" (byte-level, lossless for every text), "char", "word" (lossless for what the vocabulary
    knows) or "wordpiece" (lossy by design). vocab_size: largest id + 1. eot_id: the document separator's id,
    `<|endoftext|>` where there is one, else the configured EOS, else WordPiece's [SEP]; None where there is
    none.
    """

    def __init__(self, backend: Any, config: dict[str, Any] | None = None, path: Path = Path("tokenizer.json")) -> None:
        self._backend = backend
        self._config = config or {}
        backend.no_truncation()  # nothing is silently cut or padded
        backend.no_padding()
        backend.encode_special_tokens = True
        self._document: dict[str, Any] = json.loads(backend.to_str())
        self.kind: Kind = reading.identify(self._document, path)  # type: ignore[assignment]
        self._vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocabulary.values()) + 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        added = self._document["added_tokens"]
        self.special_tokens: dict[str, int] = {token["content"]: token["id"] for token in added if token["special"]}
        self._plain_added = {token["content"]: token["id"] for token in added if not token["special"]}
        self.eot_id = self._find_eot()

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size:,} tokens, {self.hash[:8]})"

    # Files

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model folder's tokenizer, or one file of it. UserError where there is none, or it is not
        ours.
        """
        path = Path(path)
        file = reading.find_files(path) if path.is_dir() else path
        if file is None or not file.is_file():
            raise UserError(
                f"no tokenizer in {path}" if path.is_dir() else f"{path} does not exist",
                hint="known: tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe, vocab.txt",
            )
        backend, config = reading.read(file)
        return cls(backend, config, file)

    @classmethod
    def find(cls, folder: str | Path) -> Tokenizer | None:
        """The tokenizer of a model folder, or None where the folder has none."""
        return None if reading.find_files(Path(folder)) is None else cls.load(folder)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json (and a WordPiece's vocab.txt) into `folder`; same
        bytes always.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / reading.TOKENIZER).write_bytes((self._backend.to_str(pretty=True) + "\n").encode())
        write_json(folder / reading.CONFIG, self._config or self._default_config())
        tokens = self._tokens
        if self.kind == "wordpiece" and not any("\n" in token for token in tokens):
            (folder / reading.WORDPIECE).write_bytes("".join(token + "\n" for token in tokens).encode())

    def with_special(self, names: Sequence[str]) -> Tokenizer:
        """The same vocabulary with special tokens `names` added behind it, where they are missing."""
        from tokenizers import AddedToken

        backend = type(self._backend).from_str(self._backend.to_str())
        missing = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        if missing and backend.get_vocab_size() != self.vocab_size:  # the library would fill the holes between ids
            document = json.loads(backend.to_str())
            document["model"]["vocab"] |= {token["content"]: token["id"] for token in document["added_tokens"]}
            document["model"]["vocab"] |= {name: self.vocab_size + i for i, name in enumerate(missing)}
            backend = type(backend).from_str(json.dumps(document, ensure_ascii=False))
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return Tokenizer(backend, self._config)

    def _default_config(self) -> dict[str, Any]:
        """What transformers' AutoTokenizer needs to know."""
        if self.kind == "wordpiece":
            normalizer = self._document["normalizer"]
            return {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": normalizer["lowercase"],
                "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
                "strip_accents": normalizer["strip_accents"],
            }
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        if self.eot_id is not None:
            config["eos_token"] = config["bos_token"] = self._tokens[self.eot_id]
        if self.kind == "bpe" and words.END_OF_TEXT in self.special_tokens:
            config |= {
                "tokenizer_class": "GPT2Tokenizer",
                "add_prefix_space": False,
                "unk_token": words.END_OF_TEXT,
            }
        elif self.kind != "bpe":
            config["unk_token"] = words.UNKNOWN
        if self.kind == "word" and self._pattern is None:
            config["segmentation"] = "jieba: cut the text first, then encode(words, is_pretokenized=True)"
        return config

    # What is in it

    def _find_eot(self) -> int | None:
        configured = self._config.get("eos_token")
        if isinstance(configured, dict):
            configured = configured.get("content")
        fallback = wordpiece.SEPARATOR if self.kind == "wordpiece" else None
        for name in (words.END_OF_TEXT, configured, fallback):
            if isinstance(name, str) and name in self.special_tokens:
                return self.special_tokens[name]
        return None

    @cached_property
    def _tokens(self) -> list[str]:
        """Token of each id; "" for an id that no token has."""
        tokens = [""] * self.vocab_size
        for token, number in self._vocabulary.items():
            tokens[number] = token
        return tokens

    @cached_property
    def _unknown_id(self) -> int | None:
        return None if self.kind == "bpe" else self._vocabulary.get(self._document["model"]["unk_token"])

    @cached_property
    def _pattern(self) -> str | None:
        splitter = self._document["pre_tokenizer"]
        return splitter["pattern"]["Regex"] if splitter else None

    @cached_property
    def hash(self) -> str:
        """SHA-256, 64 hex digits, over kind, tokens in the order of their ids, merges, special tokens and
        what cuts text.

        The same before a save and after a load, and after `tokenizers` or transformers wrote the file anew.
        """
        model = self._document["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
        cuts = self._document["normalizer"] if self.kind == "wordpiece" else None
        if self.kind == "word":
            cuts = self._pattern
        content = [
            self.kind,
            sorted((number, token) for token, number in self._vocabulary.items()),
            merges,
            sorted(self.special_tokens.items()),
            sorted(self._plain_added.items()),
            cuts,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def _encoder(self) -> _Encoder:
        if self._plain_added or self.kind == "wordpiece":
            return _LibraryEncoder(self._backend)
        if self.kind != "bpe":
            return words.PieceEncoder(self._vocabulary, self._pattern)
        merges = [(left, right) for left, right in self._document["model"]["merges"]]
        if not canonical(self._backend.model, self._vocabulary, merges):
            return _LibraryEncoder(self._backend)
        return ByteLevelEncoder(self._vocabulary, merges)

    # Text to ids

    def encode(self, text: str, allowed_special: AbstractSet[str] | Literal["all"] = frozenset()) -> list[int]:
        """Ids of one text. Special tokens named in `allowed_special` are recognised; all others are ordinary
        text.

        Raises UserError for a lone surrogate, and for a name that is no special token of this tokenizer.
        """
        allowed = self.special_tokens.keys() if allowed_special == "all" else allowed_special
        for name in allowed:
            if name not in self.special_tokens:
                raise unknown("special token", name, self.special_tokens)
        if not any(name in text for name in allowed):
            return self._encoder.encode(text)
        longest_first = sorted(allowed, key=lambda name: (-len(name), name))
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, longest_first))})", text):
            if part in allowed:
                ids.append(self.special_tokens[part])
            elif part:
                ids.extend(self._encoder.encode(part))
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """A text's ids, and of each the characters [from, to) that it has a part in."""
        ids = self.encode(text)
        if self.kind == "wordpiece":  # it drops blanks and case, so its pieces do not join to the text
            return ids, list(self._backend.encode(text, add_special_tokens=False).offsets)
        if self.kind == "bpe":
            sizes = [len(self.token_bytes(token)) for token in ids]
        else:  # an unknown piece has its length, too
            sizes = [len(piece.encode()) for piece in words.splitter(self._pattern)(text)]
        ends = np.cumsum([len(character.encode()) for character in text])  # in bytes, of each character
        stops = np.cumsum(sizes, dtype=np.int64)
        first = np.searchsorted(ends, stops - np.array(sizes, np.int64), "right")
        last = np.searchsorted(ends, stops, "left") + 1
        return ids, list(zip(first.tolist(), last.tolist(), strict=True))

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[Ids]:
        """Ids of many ordinary texts, arrays of `self.dtype` (uint16, or uint32 beyond 65,536 tokens); the
        hot path.

        Every core that the process may use, or `threads`. Equal to `encode` of each text.
        """
        found = self._encoder.encode_batch(texts, threads or cores())
        return [ids.astype(self.dtype, copy=False) for ids in found]

    # Ids to text

    @cached_property
    def _bytes(self) -> list[bytes]:
        special = set(self.special_tokens.values())
        table = []
        for number, token in enumerate(self._tokens):
            if number == self._unknown_id:
                table.append(REPLACEMENT.encode())
            elif number in special:
                table.append(b"")
            elif self.kind == "bpe" and token not in self._plain_added:
                table.append(self._bpe_bytes(token))
            else:
                shown = token.removeprefix(wordpiece.CONTINUES) if self.kind == "wordpiece" else token
                table.append(shown.encode())
        return table

    @staticmethod
    def _bpe_bytes(token: str) -> bytes:
        try:
            return token_to_bytes(token)
        except KeyError:  # an entry outside the byte alphabet: no text leads to it, but a model may emit its id
            return token.encode()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: b"" for special tokens, U+FFFD for the unknown token, without WordPiece's
        ##.
        """
        if not 0 <= token_id < self.vocab_size:
            raise UserError(
                f"token {token_id} is outside the vocabulary of {self.vocab_size:,}",
                hint="the ids come from another tokenizer, or the model's vocabulary is padded",
            )
        return self._bytes[token_id]

    def _joined(self, previous: str, token_id: int) -> bytes:
        """The bytes that `token_id` adds to decoded text after the token `previous` ("" at the start)."""
        data = self.token_bytes(token_id)
        if self.kind != "wordpiece":
            return data
        token = REPLACEMENT if token_id == self._unknown_id else self._tokens[token_id]
        return wordpiece.joiner(previous, token if data else "").encode() + data

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids' text; special tokens leave nothing."""
        if self.kind != "wordpiece":
            return b"".join([self.token_bytes(int(number)) for number in ids])
        text, previous = b"", ""
        parts = []
        for number in ids:
            text = self._joined(previous, int(number))
            parts.append(text)
            previous = text.decode() or previous
        return b"".join(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """The ids' text; bytes that are not UTF-8 (a character cut in half) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # For people

    def pieces(
        self, text: str, allowed_special: AbstractSet[str] | Literal["all"] = frozenset()
    ) -> list[tuple[int, str]]:
        """How a text is cut: (id, the token's text); a part of a character is shown as its bytes,
        `\\xe6\\x98`.
        """
        return [(number, self._shown(number)) for number in self.encode(text, allowed_special)]

    def _shown(self, token_id: int) -> str:
        data = self.token_bytes(token_id)
        if not data:
            return self._tokens[token_id]
        return data.decode("utf-8", errors="backslashreplace")

    def describe(self) -> dict[str, Any]:
        """What `gpt2kit tokenizer info` shows; plain values that JSON holds."""
        longest = sorted(range(self.vocab_size), key=lambda number: (-len(self._bytes[number]), number))[:10]
        return {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "hash": self.hash,
            "eot_id": self.eot_id,
            "special_tokens": dict(self.special_tokens),
            "longest_tokens": [self._shown(number) for number in longest],
            "samples": [
                {
                    "text": text,
                    "pieces": [shown for _, shown in self.pieces(text)],
                    "tokens_per_character": measure(self, [text]).tokens_per_character,
                }
                for text in SAMPLES
            ],
        }


class StreamDecoder:
    """Ids to text as they come: never half a character. All pushes and `finish` together equal `decode` of
    all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._previous = ""

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" while a character is still incomplete."""
        text = self._utf8.decode(self._tokenizer._joined(self._previous, token_id))
        self._previous = text or self._previous
        return text

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole, else "". The decoder starts anew."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._previous = ""
        return text


@dataclass(frozen=True)
class TokenCounts:
    """What a text costs. characters are code points, bytes are UTF-8."""

    tokens: int
    characters: int
    bytes: int

    @property
    def tokens_per_character(self) -> float:
        """Tokens a character; 0 for no text."""
        return self.tokens / self.characters if self.characters else 0.0

    @property
    def tokens_per_byte(self) -> float:
        """Tokens a byte; 0 for no text."""
        return self.tokens / self.bytes if self.bytes else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Bytes a token; 0 for no tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenCounts:
    """Count tokens, characters and bytes of `texts`."""
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    return TokenCounts(tokens, sum(map(len, texts)), sum(len(utf8(text)) for text in texts))


def repair_eos(config_eos: object, tokenizer: Tokenizer) -> tuple[int | None, str | None]:
    """The EOS id to use for a config.json's `eos_token_id` (an id, a list of ids or None), and a note where
    it differs.

    An id outside the vocabulary (50256 of 21128 in the Chinese GPT-2 family) is replaced by the tokenizer's
    own separator; a tokenizer without one raises UserError.
    """
    if config_eos is None:
        return tokenizer.eot_id, None
    candidates = config_eos if isinstance(config_eos, list) else [config_eos]
    valid = [number for number in candidates if type(number) is int and 0 <= number < tokenizer.vocab_size]
    if valid:
        return valid[0], None
    size = f"{tokenizer.vocab_size:,}"
    said = f"eos_token_id {config_eos!r} in config.json is outside the vocabulary of {size} tokens"
    if tokenizer.eot_id is None:
        raise UserError(said, hint="set eos_token_id in config.json to the id of the token that ends a text")
    return (
        tokenizer.eot_id,
        f"{said}; using {tokenizer._shown(tokenizer.eot_id)} ({tokenizer.eot_id}) instead",
    )
