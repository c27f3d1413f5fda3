"""Splits and corpora of the public data sets, for benchmarks/results.py: `python benchmarks/public_data.py OUT`.

Reads the folder that GPT2KIT_DATA names (docs/results.md has each set's source) and writes OUT/<set>/train.jsonl and
test.jsonl, and OUT/english.jsonl and OUT/chinese.jsonl, the texts to learn language from. A set without a test part of
its own is split by a hash of what the model is given. No test row, and no passage of one, is in a corpus.
OUT/modern.jsonl is the Chinese corpus without its poems.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
TEST_SHARE = 0.15  # of a set that has no test part
CLEAN = 6000  # sentences without mistakes that correction learns to copy, beside the 2,338 with mistakes
VERSES = re.compile(r"[，。？！；：、\s]+")
FORMS = {(8, 5): "五言律詩", (8, 7): "七言律詩", (4, 5): "五言絕句", (4, 7): "七言絕句"}
POLARITY = ("negative", "positive")


def read(folder: Path, name: str) -> str:
    data = (folder / name).read_bytes()
    return (lzma.decompress(data) if name.endswith(".xz") else data).decode("utf-8-sig")


def lines(text: str) -> Iterator[Row]:
    return (json.loads(line) for line in text.split("\n") if line)  # splitlines would cut at U+2028 too


def table(text: str, delimiter: str = "\t", quoting: int = csv.QUOTE_NONE) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting) if row]


def divided(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """{"train", "test"} by a hash of the key."""
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for row in rows:
        place = int(hashlib.sha256(key(row).encode()).hexdigest()[:8], 16) / 2**32
        parts["test" if place < TEST_SHARE else "train"].append(row)
    return parts


def imdb(folder: Path) -> dict[str, list[Row]]:
    return {part: list(lines(read(folder, f"sentiment/imdb-{part}.jsonl.xz"))) for part in ("train", "test")}


def sst2(folder: Path) -> dict[str, list[Row]]:
    parts = {"train": "sst2-train.tsv.xz", "test": "sst2-test.tsv"}
    return {
        part: [
            {"text": text.strip(), "label": POLARITY[int(label)]}
            for text, label in table(read(folder, f"sentiment/{name}"))[1:]
        ]
        for part, name in parts.items()
    }


def waimai(folder: Path) -> dict[str, list[Row]]:
    rows = table(read(folder, "sentiment/waimai-10k.csv.xz"), ",", csv.QUOTE_MINIMAL)[1:]
    return divided(({"text": text, "label": POLARITY[int(label)]} for label, text in rows), lambda row: row["text"])


def agnews(folder: Path) -> dict[str, list[Row]]:
    return {
        part: [
            {"text": text, "label": label}
            for text, label in table(read(folder, f"topics/agnews-{part}.tsv.xz"))
            if label.lower() != "label"
        ]
        for part in ("train", "test")
    }


def thucnews(folder: Path) -> dict[str, list[Row]]:
    names = read(folder, "topics/thucnews-classes.txt").split()
    rows = table(read(folder, "topics/thucnews-train.tsv.xz"))
    return divided(({"text": text, "label": names[int(label)]} for text, label in rows), lambda row: row["text"])


def translation(folder: Path) -> dict[str, list[Row]]:
    """English to Chinese; all translations of one sentence lie in one part."""
    rows = table(read(folder, "translation/eng-cmn.tsv.xz"))
    return divided(({"prompt": row[0], "completion": row[1]} for row in rows), lambda row: row["prompt"])


def correction(folder: Path) -> dict[str, list[Row]]:
    return {
        part: [
            {"prompt": wrong, "completion": right}
            for wrong, right in table(read(folder, f"correction/sighan2015-{part}.tsv.xz"))
        ]
        for part in ("train", "test")
    }


def copied(rows: list[Row]) -> list[Row]:
    """Translations as sentences that need no correction."""
    return [{"prompt": text, "completion": text} for text in list(dict.fromkeys(r["completion"] for r in rows))[:CLEAN]]


def cmrc(folder: Path) -> dict[str, list[Row]]:
    """Questions by passage, in SQuAD's layout: a row is one passage."""
    rows = []
    for entry in json.loads(read(folder, "qa/cmrc2018-dev.json.xz")):
        context = entry["context_text"]
        questions = []
        for question in entry["qas"]:
            texts = [text for text in dict.fromkeys(map(str, question["answers"])) if text in context]
            answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
            if answers:
                questions.append({"question": question["query_text"], "id": question["query_id"], "answers": answers})
        rows.append({"context": context, "qas": questions})
    return divided(rows, lambda row: row["context"])


def chat(folder: Path, language: str) -> dict[str, list[Row]]:
    rows = []
    for one in json.loads(read(folder, f"chat/alpaca-{language}.json.xz")):
        asked = "\n".join(part for part in (one["instruction"], one["input"]) if part)
        turns = [("user", asked), ("assistant", one["output"])]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return divided(rows, lambda row: row["messages"][0]["content"])


def poems(folder: Path) -> dict[str, list[Row]]:
    """Title and form -> a regulated poem: 4 or 8 verses of 5 or 7 characters each."""
    rows = []
    for poem in lines(read(folder, "text/tang-poems.jsonl.xz")):
        verses = [verse for verse in VERSES.split(poem["text"]) if verse]
        form = FORMS.get((len(verses), len(verses[0]) if verses else 0))
        if form is not None and len({len(verse) for verse in verses}) == 1:
            rows.append({"prompt": f"{form} {poem['title']}", "completion": poem["text"]})
    return divided(rows, lambda row: row["completion"])


SETS: dict[str, Callable[[Path], dict[str, list[Row]]]] = {
    "imdb": imdb,
    "sst2": sst2,
    "waimai": waimai,
    "agnews": agnews,
    "thucnews": thucnews,
    "translation": translation,
    "correction": correction,
    "cmrc": cmrc,
    "chat-en": lambda folder: chat(folder, "en"),
    "chat-zh": lambda folder: chat(folder, "zh"),
    "poems": poems,
}


def english(folder: Path) -> Iterator[str]:
    yield from (row["text"] for row in lines(read(folder, "text/imdb-unsup.jsonl.xz")))


def old_chinese(folder: Path, sets: dict[str, dict[str, list[Row]]]) -> Iterator[str]:
    """All poems but those of the test."""
    tested = {row["completion"] for row in sets["poems"]["test"]}
    for poem in lines(read(folder, "text/tang-poems.jsonl.xz")):
        if poem["text"] not in tested:
            yield f"{poem['title']}\n{poem['text']}"


def modern_chinese(sets: dict[str, dict[str, list[Row]]]) -> Iterator[str]:
    """Headlines, reviews, passages, sentences with their English, instructions."""
    for name in ("waimai", "thucnews"):
        yield from (row["text"] for row in sets[name]["train"])
    yield from (row["context"] for row in sets["cmrc"]["train"])
    yield from (f"{row['prompt']}\n{row['completion']}" for row in sets["translation"]["train"])
    yield from (row["completion"] for row in sets["correction"]["train"])
    for row in sets["chat-zh"]["train"]:
        yield "\n".join(message["content"] for message in row["messages"])


def write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def squad(rows: list[Row]) -> Row:
    return {"version": "1.1", "data": [{"title": "", "paragraphs": rows}]}


def prepare(folder: Path, out: Path) -> None:
    sets = {name: read_set(folder) for name, read_set in SETS.items()}
    modern = [{"text": text} for text in modern_chinese(sets)]
    write(out / "english.jsonl", ({"text": text} for text in english(folder)))
    write(out / "chinese.jsonl", [*({"text": text} for text in old_chinese(folder, sets)), *modern])
    write(out / "modern.jsonl", modern)
    sets["correction"]["train"] += copied(sets["translation"]["train"])
    for name, parts in sets.items():
        for part, rows in parts.items():
            if name == "cmrc":
                (out / name).mkdir(parents=True, exist_ok=True)
                text = json.dumps(squad(rows), ensure_ascii=False)
                (out / name / f"{part}.json").write_text(text, encoding="utf-8")
            else:
                write(out / name / f"{part}.jsonl", rows)
        print(f"{name:<12} " + ", ".join(f"{part} {len(rows):,}" for part, rows in parts.items()))


if __name__ == "__main__":
    if "GPT2KIT_DATA" not in os.environ or len(sys.argv) != 2:
        sys.exit("GPT2KIT_DATA=DATA python benchmarks/public_data.py OUT")
    prepare(Path(os.environ["GPT2KIT_DATA"]), Path(sys.argv[1]))
