"""WordPiece: `vocab.txt` folders (BertTokenizer + GPT-2, the Chinese GPT-2 family), and how their tokens
join to text.

WordPiece is lossy by design: it folds spaces, may fold case, and knows no unseen character. Decoding puts a
space between words, none beside Han characters, kana and closing or full-width marks.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from gpt2kit.errors import UserError

CONTINUES = "##"
UNKNOWN = "[UNK]"
SEPARATOR = "[SEP]"
SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", SEPARATOR, "[MASK]")
NO_SPACE_BEFORE = frozenset(".,!?;:%)]}'’”…")
NO_SPACE_AFTER = frozenset("([{‘“#$")


def read_vocabulary(path: Path, config: dict[str, Any]) -> Any:
    """`vocab.txt`, a token a line, and BertTokenizer's options from tokenizer_config.json ->
    tokenizers.Tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text", hint="a vocab.txt holds one token a line") from None
    if lines[-1] == "":
        lines.pop()
    vocabulary = {line: number for number, line in enumerate(lines)}
    if UNKNOWN not in vocabulary:
        raise UserError(f"{path} has no {UNKNOWN} line: it is not a WordPiece vocabulary")
    options: dict[str, bool | None] = {
        "do_lower_case": True,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
    }
    for name, default in options.items():
        options[name] = config.get(name, default)
        if options[name] not in (True, False, None):
            raise UserError(f"tokenizer_config.json beside {path} has {name} = {options[name]!r}, not true or false")
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(options["tokenize_chinese_chars"]),
        strip_accents=options["strip_accents"],
        lowercase=bool(options["do_lower_case"]),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUES)
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL if name in vocabulary])
    return backend


def _unspaced(character: str) -> bool:
    """Han, kana, full-width marks and the like: written without spaces around."""
    return character >= "\u2e80" and unicodedata.east_asian_width(character) in "WF"


def joiner(previous: str, token: str) -> str:
    """What stands between two tokens in decoded text: a space or nothing. `previous` is "" at the start."""
    if not previous or token.startswith(CONTINUES) or not token:
        return ""
    left, right = previous[-1], token[0]
    if _unspaced(left) or _unspaced(right) or right in NO_SPACE_BEFORE or left in NO_SPACE_AFTER:
        return ""
    return " "
