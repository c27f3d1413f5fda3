"""How fast byte-level BPE encodes: gpt2kit beside tiktoken, tokenizers and transformers, one run, one
vocabulary.

    python benchmarks/tokenize.py [FILE ...] [--vocabulary FOLDER] [--threads N]

Every engine gets the same documents, in memory, and the same vocabulary: FOLDER's, or one of 32,000 tokens
trained on the files first. Rounds are interleaved; the median of --rounds is printed, in MB (10^6 bytes of
UTF-8) a second, and its ratio to the fastest peer. "1 core" allows each engine one thread, "N cores" all of
them. Before anything is timed all engines are compared: a line is printed only for engines whose ids are the
same.
"""

from __future__ import annotations

import os
import sys

# Python puts this folder first on its path, where this file would hide the standard library's `tokenize`.
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != HERE]

import argparse
import gzip
import json
import lzma
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from gpt2kit.text.bytelevel import TIKTOKEN_PATTERN, cores
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

Engine = Callable[[list[str], int], Sequence[Any]]


def read(path: Path) -> list[str]:
    """The documents of a .txt or .jsonl file (field "text"), plain, .gz or .xz."""
    openers: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
    with openers.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        if ".jsonl" in path.name:
            return [str(json.loads(line)["text"]) for line in file]
        return [file.read()]


def default_documents() -> dict[str, list[str]]:
    """English that every Python carries, twelve times over in another order, so that there is enough to
    time.
    """
    names = sorted(topics)
    return {"pydoc topics x12": [topics[name] for n in range(12) for name in names[n:] + names[:n]]}


def engines(tokenizer: Tokenizer) -> dict[str, Engine]:
    """Each engine by name: (documents, threads) -> ids of each. Peers that are not installed are left out."""
    import tiktoken
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        library = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        found: dict[str, Engine] = {"gpt2kit": lambda texts, threads: tokenizer.encode_batch(texts, threads)}
        ranks = {tokenizer.token_bytes(n): n for n in range(tokenizer.vocab_size) if tokenizer.token_bytes(n)}
        peer = tiktoken.Encoding("peer", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens={})
        found["tiktoken"] = lambda texts, threads: peer.encode_ordinary_batch(texts, num_threads=threads)

        def by_library(texts: list[str], threads: int) -> Sequence[Any]:
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
            return [one.ids for one in library.encode_batch_fast(texts, add_special_tokens=False)]

        found["tokenizers"] = by_library
        try:
            from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

            theirs = GPT2TokenizerFast.from_pretrained(folder)
        except ImportError:
            return found

    def by_transformers(texts: list[str], threads: int) -> Sequence[Any]:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"

        return list(theirs(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])

    found["transformers"] = by_transformers
    return found


def agreeing(found: dict[str, Engine], texts: list[str], threads: int) -> dict[str, Engine]:
    """The engines whose ids equal those of `tokenizers`; this run also warms every engine up."""
    expected = [list(ids) for ids in found["tokenizers"](texts, threads)]
    kept = {}
    for name, engine in found.items():
        if [[int(number) for number in ids] for ids in engine(texts, threads)] == expected:
            kept[name] = engine
        else:
            print(f"  {name}: other ids, left out")
    return kept


def rates(found: dict[str, Engine], texts: list[str], threads: int, rounds: int) -> dict[str, float]:
    """Median MB/s of each engine, rounds interleaved."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, engine in found.items():
            begun = time.perf_counter()
            engine(texts, threads)
            seconds[name].append(time.perf_counter() - begun)
    return {name: size / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Print one table for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help=".txt or .jsonl, also .gz and .xz; default: pydoc's")
    parser.add_argument("--vocabulary", type=Path, help="folder with a GPT-2 tokenizer; default: train one")
    parser.add_argument("--threads", type=int, default=cores(), help="for the parallel rows; default: all cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=10.0, help="take so much of each file; default: 10")
    arguments = parser.parse_args()
    inputs = {path.name: read(path) for path in arguments.files} or default_documents()
    if arguments.vocabulary is not None:
        tokenizer = Tokenizer.load(arguments.vocabulary)
    else:
        tokenizer = train_tokenizer([text for texts in inputs.values() for text in texts], vocab_size=32_000)
    if tokenizer.kind != "bpe":
        sys.exit(f"{arguments.vocabulary} holds a {tokenizer.kind} tokenizer; this measures byte-level BPE")
    found = engines(tokenizer)
    print(f"{tokenizer!r}, medians of {arguments.rounds}, MB/s (ratio to the fastest peer)")
    for name, texts in inputs.items():
        texts = limited(texts, arguments.megabytes * 1e6)
        size = sum(len(text.encode()) for text in texts) / 1e6
        print(f"\n{name}: {len(texts):,} documents, {size:.1f} MB")
        kept = agreeing(found, texts, arguments.threads)
        for threads in sorted({1, arguments.threads}):
            measured = rates(kept, texts, threads, arguments.rounds)
            best = max((rate for engine, rate in measured.items() if engine != "gpt2kit"), default=float("nan"))
            row = "  ".join(f"{engine} {rate:.1f} ({rate / best:.2f}x)" for engine, rate in measured.items())
            print(f"  {threads} core{'s' if threads > 1 else ' '}  {row}", flush=True)


def limited(texts: list[str], size: float) -> list[str]:
    """The first documents, of about `size` bytes together."""
    kept: list[str] = []
    for text in texts:
        if size <= 0:
            break
        kept.append(text)
        size -= len(text.encode())
    return kept


if __name__ == "__main__":
    main()
