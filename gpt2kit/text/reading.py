"""Tokenizer files to `tokenizers.Tokenizer`, and the kinds that we accept. Everything else is refused by
name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2kit.commit import read_json
from gpt2kit.errors import UserError
from gpt2kit.text import wordpiece, words
from gpt2kit.text.bytelevel import byte_alphabet

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's names, OpenAI's names
WORDPIECE = "vocab.txt"
LARGEST_ID = 1 << 24  # beyond it, a table of all ids would cost gigabytes: a corrupt file, not a vocabulary
KINDS = "gpt2kit reads byte-level BPE (GPT-2's), character, word and WordPiece (vocab.txt) tokenizers"


def find_files(folder: Path) -> Path | None:
    """The tokenizer's main file in a folder, or None."""
    names = [
        TOKENIZER,
        *(name for pair in PAIRS if (folder / pair[1]).is_file() for name in pair[:1]),
        WORDPIECE,
    ]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """A tokenizer file -> (tokenizers.Tokenizer, tokenizer_config.json's content). UserError where it is
    corrupt.
    """
    config = _read_config(path.parent / CONFIG)
    try:
        if path.name == WORDPIECE:
            return wordpiece.read_vocabulary(path, config), config
        for vocabulary, merges in PAIRS:
            if path.name in (vocabulary, merges):
                return _read_pair(path.parent / vocabulary, path.parent / merges), config
        return _from_json(path), config
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not an object of settings")
    config.pop("auto_map", None)  # names code to import; we never do, nor pass it on
    return config


def _guard(path: Path, build: Any, *arguments: Any) -> Any:
    """Call into the Rust library; its errors, and its panics (a BaseException), become UserErrors."""
    try:
        return build(*arguments)
    except Exception as error:
        raise UserError(f"{path} is not a tokenizer that `tokenizers` can load: {error}") from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise UserError(f"{path} is not a tokenizer that `tokenizers` can load: {error}") from None
        raise


def _from_json(path: Path) -> Any:
    from tokenizers import Tokenizer

    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise UserError(f'{path} is not a tokenizer.json: it has no "model"', hint=KINDS)
    added = document.get("added_tokens") or []
    if not isinstance(added, list):
        raise UserError(f"{path} has added_tokens that are not a list")
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise UserError(f"{path} lists an added token without content")
    _check_ids(path, document["model"].get("vocab"))
    return _guard(path, Tokenizer.from_str, json.dumps(document, ensure_ascii=False))


def _check_ids(path: Path, vocabulary: Any) -> None:
    if not isinstance(vocabulary, dict):
        return  # Unigram's list; the kind is refused later, by name
    ids = list(vocabulary.values())
    if not ids:
        raise UserError(f"{path} has an empty vocabulary")
    if not all(type(number) is int and 0 <= number < LARGEST_ID for number in ids):
        raise UserError(f"{path} has an id that is not a whole number from 0 to {LARGEST_ID - 1}")
    if len(set(ids)) != len(ids):
        raise UserError(f"{path} gives one id to two tokens")


def _read_pair(vocabulary_path: Path, merges_path: Path) -> Any:
    """GPT-2's original pair of files: token -> id, and the merges, best first, after a `#version` line."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = read_json(vocabulary_path)
    if not isinstance(vocabulary, dict) or not all(isinstance(token, str) for token in vocabulary):
        raise UserError(f"{vocabulary_path} is not an object of tokens and ids")
    _check_ids(vocabulary_path, vocabulary)
    added = vocabulary_path.parent / "added_tokens.json"
    extra = read_json(added) if added.is_file() else {}
    if not isinstance(extra, dict) or not set(extra) <= set(vocabulary):
        raise UserError(
            f"{added} adds tokens to {vocabulary_path.name}, which gpt2kit reads only from tokenizer.json",
            hint="save the tokenizer once with transformers to get a tokenizer.json",
        )
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{merges_path} is not a UTF-8 text") from None
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(token in vocabulary for token in (*pair, "".join(pair))):
            raise UserError(
                f"{merges_path}, line {number}: {line[:60]!r} does not join two tokens of "
                f"{vocabulary_path.name} into a third"
            )
        merges.append((pair[0], pair[1]))
    backend = Tokenizer(_guard(vocabulary_path, models.BPE, vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    if words.END_OF_TEXT in vocabulary:
        backend.add_special_tokens([AddedToken(words.END_OF_TEXT, special=True)])
    return backend


def identify(document: dict[str, Any], path: Path) -> str:
    """The kind of a tokenizer, from the content of its tokenizer.json as `tokenizers` wrote it; UserError if
    not ours.
    """
    model = document["model"]
    normalizer, splitter = document.get("normalizer") or {}, document.get("pre_tokenizer") or {}
    found = f"{path} is a {model.get('type')} tokenizer"
    parts = f"normalizer {normalizer.get('type', 'none')} and pre-tokenizer {splitter.get('type', 'none')}"
    if model.get("type") == "BPE":
        _check_bpe(model, normalizer, splitter, found, parts)
        return "bpe"
    if model.get("type") == "WordPiece":
        if normalizer.get("type") != "BertNormalizer" or splitter.get("type") != "BertPreTokenizer":
            raise UserError(f"{found} with {parts}, not BERT's", hint=KINDS)
        if model.get("continuing_subword_prefix") != wordpiece.CONTINUES or wordpiece.UNKNOWN not in model["vocab"]:
            raise UserError(f"{found} without {wordpiece.CONTINUES} or {wordpiece.UNKNOWN}", hint=KINDS)
        return "wordpiece"
    if model.get("type") == "WordLevel" and not normalizer:
        pattern = str((splitter.get("pattern") or {}).get("Regex"))
        kind = {words.CHARACTER: "char", words.WORD: "word"}.get(pattern, "word" if not splitter else "")
        if kind and model.get("unk_token") == words.UNKNOWN and words.UNKNOWN in model["vocab"]:
            return kind
    raise UserError(f"{found} with {parts}, which gpt2kit does not know", hint=KINDS)


def _check_bpe(model: dict[str, Any], normalizer: Any, splitter: dict[str, Any], found: str, parts: str) -> None:
    if normalizer or splitter.get("type") != "ByteLevel" or not splitter.get("use_regex", True):
        raise UserError(f"{found} with {parts}, not GPT-2's (no normalizer, ByteLevel with its regex)", hint=KINDS)
    if splitter.get("add_prefix_space"):
        raise UserError(
            f"{found} that adds a space before the text (add_prefix_space), which GPT-2 does not",
            hint="set add_prefix_space to false in tokenizer.json if the model was trained without it",
        )
    for name in (
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "ignore_merges",
    ):
        if model.get(name):
            raise UserError(f"{found} with {name} = {model[name]!r}, which GPT-2's does not have", hint=KINDS)
    missing = sum(character not in model["vocab"] for character in byte_alphabet().values())
    if missing:
        raise UserError(
            f"{found} without tokens for {missing} of the 256 bytes: some texts could not be encoded",
            hint="train one: gpt2kit tokenizer train my.txt",
        )
