"""Text -> tokenizer -> packed folder, as every training recipe needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpt2kit import commit
from gpt2kit.data.pack import PackProgress, pack
from gpt2kit.data.packed import PackReport, read_report
from gpt2kit.data.sources import SourceReport, is_stream, read_documents
from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import KINDS, train_tokenizer

TOKENIZER_SAMPLE = 64 << 20  # characters of the corpus, from its start, that a vocabulary is learned from
SIZES = (
    (1_500_000, 1024),
    (6_000_000, 2048),
    (30_000_000, 4096),
    (200_000_000, 8192),
    (1_000_000_000, 16384),
)
LARGEST = 32000
Note = Callable[[str], None]
Reading = Callable[[int, int | None], None]  # bytes read from the disk so far; of all of them, where that is known


def vocabulary_for(characters: int) -> int:
    """A BPE size for a corpus: each token should be seen some hundred times, or its embedding is never learned."""
    return next((size for limit, size in SIZES if characters <= limit), LARGEST)


def check_packed(paths: Sequence[str], **given: object) -> None:
    """Refuse flags that say how to read text where the text is packed already: nothing is silently ignored."""
    for name, value in given.items():
        if value is not None and any(is_packed(path) for path in paths):
            raise UserError(f"--{name.replace('_', '-')} says how to read text, but the data is packed already",
                            hint="leave the flag out, or give the text itself")  # fmt: skip


def is_packed(path: str | Path) -> bool:
    manifest = commit.manifest(Path(path)) if Path(path).is_dir() else None
    return manifest is not None and manifest.get("kind") == "packed"


def _texts(
    paths: Sequence[str], field: str | None, limit: int | None = None, reading: Reading | None = None
) -> Iterator[str]:
    report = SourceReport()
    total = 0
    for document in read_documents(paths, field, report):
        if reading is not None:
            reading(report.read, report.total)
        yield document.text
        total += len(document.text)
        if limit is not None and total >= limit:
            return


def make_tokenizer(
    paths: Sequence[str],
    field: str | None,
    kind: str,
    vocab_size: int | None,
    special: Sequence[str],
    note: Note,
    reading: Reading | None = None,
) -> Tokenizer:
    """Learn a vocabulary from the corpus's beginning; `special` tokens are added behind it."""
    once = next((path for path in paths if is_stream(path)), None)
    if once is not None:
        what = "standard input" if once == "-" else once
        raise UserError(f"{what} can be read once only, and learning a vocabulary takes a pass of its own",
                        hint="give --tokenizer FOLDER, or save the text to a file first")  # fmt: skip
    if kind == "bpe" and vocab_size is None:
        vocab_size = vocabulary_for(sum(map(len, _texts(paths, field, LARGEST * 50_000, reading))))
    tokenizer = train_tokenizer(_texts(paths, field, TOKENIZER_SAMPLE, reading), kind, vocab_size)
    note(f"learned a {kind} vocabulary of {tokenizer.vocab_size:,} tokens")
    return tokenizer.with_special(special) if special else tokenizer


def pick_tokenizer(
    paths: Sequence[str],
    field: str | None,
    tokenizer: str | None,
    vocab_size: int | None,
    special: Sequence[str],
    note: Note,
    reading: Reading | None = None,
) -> Tokenizer:
    """`tokenizer`: "bpe", "char" or "word" to learn one, or a folder or file that has one; None: "bpe"."""
    if tokenizer is None or (tokenizer in KINDS and not Path(tokenizer).exists()):
        return make_tokenizer(paths, field, tokenizer or "bpe", vocab_size, special, note, reading)
    if vocab_size is not None:
        raise UserError(f"--vocab-size {vocab_size} with the ready tokenizer {tokenizer}: its size is fixed",
                        hint="leave one of the two out")  # fmt: skip
    return Tokenizer.load(tokenizer)


def prepare(
    paths: Sequence[str],
    out: Path,
    tokenizer: Tokenizer | None,
    make: Callable[[], Tokenizer],
    field: str | None,
    validation: Sequence[str] | None,
    progress: Callable[[PackProgress], None] | None,
) -> tuple[Path, PackReport, Tokenizer]:
    """The packed folder to train on: `paths[0]` itself if it is one, else a new one at `out`."""
    packed = next((path for path in paths if is_packed(path)), None)
    if packed is not None and len(paths) > 1:
        raise UserError(f"{packed} is packed already, and a packed folder is trained on alone",
                        hint="give all of it as text, or pack it together: gpt2kit pack")  # fmt: skip
    if packed is not None:
        report, own = read_report(packed), Tokenizer.load(packed)
        if tokenizer is not None and tokenizer.hash != own.hash:
            raise UserError(f"{packed} was packed with tokenizer {own.hash[:8]}…, the model has {tokenizer.hash[:8]}…",
                            hint="run gpt2kit pack with --tokenizer MODEL, or train on the text itself")  # fmt: skip
        return Path(packed), report, own
    chosen = make() if tokenizer is None else tokenizer
    report = pack(list(paths), chosen, out, field=field, validation=list(validation) if validation else None,
                  progress=progress)  # fmt: skip
    return out, report, chosen


def learn(
    paths: Sequence[str],
    field: str | None,
    kind: str,
    vocab_size: int | None,
    special: Sequence[str],
    segmenter: str,
    reading: Reading | None = None,
) -> Tokenizer:
    """A vocabulary from all of the text (not its beginning only), as `gpt2kit tokenizer train` makes it."""
    tokenizer = train_tokenizer(_texts(paths, field, None, reading), kind, vocab_size, segmenter=segmenter)
    return tokenizer.with_special(special) if special else tokenizer


def describe(report: PackReport) -> str:
    """One line on a packed folder: tokens, what was held out, what was dropped."""
    train, val = report.splits["train"], report.splits.get("val")
    held = "" if val is None else f", {val.tokens:,} for validation"
    dropped = f", {report.duplicates:,} duplicates dropped" if report.duplicates else ""
    rate = train.tokens / max(1, train.characters)
    return f"{train.tokens:,} training tokens{held} ({rate:.2f} tokens per character{dropped})"
