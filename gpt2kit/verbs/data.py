"""`gpt2kit pack` and `gpt2kit tokenizer`: text into tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from gpt2kit.errors import UserError
from gpt2kit.verbs import Verb
from gpt2kit.verbs.output import print_fact, print_json, print_notes


@dataclass
class TokenizerTrainOptions:
    """Learn a vocabulary from text.

    Example:
      gpt2kit tokenizer train my.txt --out vocab --vocab-size 8000
    """

    data: Positional[list[str]]  # text files and folders
    out: str  # the folder to make
    kind: str = "bpe"  # bpe, char or word
    vocab_size: int | None = None  # tokens; None: 32,000 for bpe, 50,000 for word, every character for char
    segmenter: str = "unicode"  # of the word kind; jieba for Chinese
    special: list[str] = dataclasses.field(default_factory=list)  # more special tokens, such as <|mask|>
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet


def run_tokenizer_train(options: TokenizerTrainOptions) -> int:
    from pathlib import Path

    from gpt2kit import commit
    from gpt2kit.progress import Progress
    from gpt2kit.recipes.data import learn

    lineage: dict[str, Any] = {"data": {"sources": [Path(path).name for path in options.data]}}
    with commit.folder(Path(options.out), "tokenizer", lineage) as staging, Progress(transient=True) as shown:
        tokenizer = learn(
            options.data, options.field, options.kind, options.vocab_size, options.special, options.segmenter,
            lambda read, total: shown.reading("learning", read, total),
        )  # fmt: skip
        tokenizer.save(staging)
        lineage["tokenizer"] = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash}
    print(f"{options.out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, {tokenizer.hash[:16]}")
    return 0


@dataclass
class TokenizerInfoOptions:
    """What a vocabulary is, and how it cuts a text.

    Example:
      gpt2kit tokenizer info vocab "How is this cut? 这句话呢？"
    """

    folder: Positional[str]  # a folder or file that has one
    text: Positional[str | None] = None  # to cut
    json: bool = False  # one JSON object


def run_tokenizer_info(options: TokenizerInfoOptions) -> int:
    from gpt2kit.text.tokenizer import Tokenizer, measure

    tokenizer = Tokenizer.load(options.folder)
    found = tokenizer.describe()
    pieces = None
    if options.text is not None:
        counts = measure(tokenizer, [options.text])
        pieces = [[id_, piece] for id_, piece in tokenizer.pieces(options.text)]
        found["tokens_per_character"] = counts.tokens_per_character
        found["tokens_per_byte"] = counts.tokens_per_byte
    if options.json:
        print_json(found if pieces is None else {**found, "pieces": pieces})
        return 0
    samples = found.pop("samples")
    found["longest_tokens"] = " ".join(map(repr, found["longest_tokens"]))
    for name, value in found.items():
        print_fact(name, value, 21)
    for sample in samples:
        rate = f"{sample['tokens_per_character']:.2f} tokens per character"
        print_fact("sample", f"{'|'.join(sample['pieces'])}  ({rate})", 21)
    if pieces is not None:
        print(f"{'cut':<21} " + "|".join(str(piece) for _, piece in pieces))
        print(f"{'ids':<21} " + " ".join(str(id_) for id_, _ in pieces))
    return 0


@dataclass
class TokenizerExtendOptions:
    """Add tokens of your text to a model's vocabulary, and rows for them to its embedding; then train it on.

    The ids of the old tokens stay, and so does how they are cut. A new row starts from the old pieces that the token is
    made of (transplant), from the mean of all rows, or at random.

    Examples:
      gpt2kit tokenizer extend gpt2 novels.txt --add 4000 --out runs/zh
      gpt2kit train novels.txt --from runs/zh --out runs/novels --minutes 30
    """

    model: Positional[str]  # the model folder to start from; it is not changed
    data: Positional[list[str]]  # text files and folders
    out: str  # the model folder to make
    add: int = 4000  # tokens, at most; a token must occur twice
    init: Literal["transplant", "mean", "random"] = "transplant"  # how the new rows start
    seed: int = 0  # of random rows
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet


def run_tokenizer_extend(options: TokenizerExtendOptions) -> int:
    from gpt2kit.progress import Progress
    from gpt2kit.recipes.extend import extend_model
    from gpt2kit.wording import command

    notes: list[str] = []
    with Progress(transient=True) as shown:
        made = extend_model(
            options.model, options.data, options.out, options.add, options.init, options.field, options.seed,
            notes.append, lambda read, total: shown.reading("learning", read, total),
        )  # fmt: skip
    print_notes(notes)
    fewer = "" if made.added == options.add else f" (the text gives no more of the {options.add:,} asked for)"
    print(f"{options.out}: {made.added:,} tokens added{fewer}, {made.vocab_size:,} now, {made.parameters:,} parameters")
    print(f"tokens per character of this text: {made.before:.3f} before, {made.after:.3f} after")
    trained = f"{options.out.rstrip('/')}-trained"
    print(f"next: {command('train', *options.data, '--from', options.out, '--out', trained)}")
    return 0


@dataclass
class PackOptions:
    """Tokenise text once into memory-mapped shards, to train on many times.

    Example:
      gpt2kit pack corpus/ --out packed --tokenizer runs/mine
    """

    data: Positional[list[str]]  # text files, folders, or - for standard input
    out: str  # the folder to make
    tokenizer: str | None = None  # a folder that has one, or bpe, char, word to learn one
    vocab_size: int | None = None  # of a vocabulary that is learned here
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet
    validation: list[str] = dataclasses.field(default_factory=list)  # files that become the validation split
    validation_fraction: float = 0.05  # of the documents, where no --validation is given


def run_pack(options: PackOptions) -> int:
    from gpt2kit.data.pack import pack
    from gpt2kit.progress import Progress
    from gpt2kit.recipes.data import describe, pick_tokenizer

    if options.validation and options.validation_fraction != PackOptions.validation_fraction:
        raise UserError("--validation and --validation-fraction both say what is held out", hint="give one of them")
    notes: list[str] = []
    with Progress(transient=True) as shown:
        tokenizer = pick_tokenizer(
            options.data, options.field, options.tokenizer, options.vocab_size, (), notes.append,
            lambda read, total: shown.reading("learning", read, total),
        )  # fmt: skip
        report = pack(
            options.data, tokenizer, options.out, field=options.field,
            validation_fraction=options.validation_fraction, validation=options.validation or None,
            progress=lambda p: shown.reading("packing", p.read, p.total, p.tokens),
        )  # fmt: skip
    print_notes([*notes, *report.notes])
    print(f"{options.out}: {describe(report)}")
    return 0


VERBS = {
    "tokenizer train": Verb(TokenizerTrainOptions, run_tokenizer_train),
    "tokenizer info": Verb(TokenizerInfoOptions, run_tokenizer_info),
    "tokenizer extend": Verb(TokenizerExtendOptions, run_tokenizer_extend),
    "pack": Verb(PackOptions, run_pack),
}
