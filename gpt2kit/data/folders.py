"""Folders of labelled data -> files: splits from their names, classes from their folders, lists of class names.

data/train-00000-of-00001.parquet, train.jsonl, test.jsonl    split by the file's name
train/pos/1.txt, train/neg/2.txt                              split and label by the folders' names
topics-train.tsv, topics-classes.txt                          names of integer labels, one a line
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2kit.data import sources
from gpt2kit.data.decode import STDIN
from gpt2kit.data.families import LabelRow, Row, TextRow
from gpt2kit.data.records import JSON, TABLES, whole_text
from gpt2kit.data.sources import SourceReport
from gpt2kit.data.values import Classes
from gpt2kit.errors import UserError

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
_SPLIT = re.compile(rf"(?:^|[-_. ])({'|'.join(sorted(_SPLIT_NAMES, key=len, reverse=True))})(?=[-_. ]|$)")
_UNLABELLED = re.compile(r"(?:^|[-_. ])(?:unsup|unsupervised|unlabell?ed)(?=[-_. ]|$)")
_CLASSES = re.compile(r"(?:^|[-_. ])(?:class(?:es)?(?:[-_]names)?|labels?(?:[-_]names)?)\.txt$")
_ABOUT = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|readme.*|licen[cs]e.*|requirements\.txt")


@dataclass(frozen=True)
class File:
    """A file to read, its split ("": the data names none) and the label of all its text, if its folder is a class."""

    path: str | Path
    split: str = ""
    label: str | None = None


def plan(paths: Sequence[str | Path], family: type[Row] | None, report: SourceReport) -> list[File]:
    """The files behind `paths`, in order. Files of a folder that hold no rows are passed over, with a note.

    Raises UserError for a path that does not exist, and where no file is left.
    """
    files: list[File] = []
    for path in paths:
        if str(path) != STDIN and Path(path).is_dir():
            files += _folder(Path(path), family, report)
        else:
            files += [File(file) for file in sources.expand(path, report)]
    if not files:
        readable = f"{' '.join((*JSON, *TABLES))} .parquet, and folders of them or of a folder of .txt a class"
        arrow = any(Path(path).is_dir() and next(Path(path).rglob("*.arrow"), None) for path in paths)
        raise UserError(
            f"no file with rows in {', '.join(map(str, paths)) or 'an empty list'}",
            hint="datasets.load_from_disk(FOLDER)[\"train\"].to_parquet(\"train.parquet\") writes what is read here"
            if arrow else f"readable: {readable}",
        )  # fmt: skip
    report.files_total = len(files)
    if not any(str(file.path) == STDIN for file in files):
        report.total = sum(sources.size_of(Path(file.path)) for file in files)
    return files


def is_plain(path: str | Path) -> bool:
    """Whether a file is plain text by its suffix; standard input is."""
    return str(path) == STDIN or sources.kind_of(path)[0] not in (*JSON, *TABLES, ".parquet")


def _folder(root: Path, family: type[Row] | None, report: SourceReport) -> list[File]:
    found = [Path(path) for path in sources.expand(root, report)]
    tables = any(not is_plain(path) and not _ABOUT.fullmatch(path.name.lower()) for path in found)
    labels = {path: _class_of(path.relative_to(root)) for path in found if family is LabelRow and is_plain(path)}
    classes = not tables and any(labels.values())
    kept: list[File] = []
    for path in found:
        inside = path.relative_to(root)
        why = _no_rows(inside, family)
        if why is None and is_plain(path) and family is not TextRow and (tables or (classes and not labels[path])):
            why = "it is plain text in a folder of tables" if tables else "it is in no folder of a class"
        if why is None:
            kept.append(File(path, _split_of(inside), labels.get(path)))
        else:
            report.skipped.append(str(path))
            report.notes.append(f"{path} passed over: {why}")
    # Nothing would be left to learn from: then the names mean little.
    if all(file.split in ("validation", "test") for file in kept):
        return [File(file.path, "", file.label) for file in kept]
    return [File(file.path, file.split or "train", file.label) for file in kept]


def _class_of(inside: Path) -> str | None:
    """The label that a plain text file gets from its folder; None right under the root or a split's folder."""
    name = inside.parent.name
    return None if not name or _split_of(Path(name)) else name


def _no_rows(inside: Path, family: type[Row] | None) -> str | None:
    """Why a file of a folder holds no rows, by its name; else None."""
    name = inside.name.lower()
    if _ABOUT.fullmatch(name):
        return "it tells about the data"
    if _CLASSES.search(name):
        return "it lists names of classes"
    if family is not TextRow and any(_UNLABELLED.search(_bare(part)) for part in inside.parts):
        return "its name says that it has no labels"
    return None


def _bare(name: str) -> str:
    """A file's name without suffixes, in lower case."""
    form, packing = sources.kind_of(name)
    return name.lower().removesuffix(packing).removesuffix(form)


def _split_of(inside: Path) -> str:
    """The split that a path names: by the file, else by the nearest folder; "" where none does."""
    for part in reversed(inside.parts):
        found = _SPLIT.findall(_bare(part))
        if found:
            return _SPLIT_NAMES[found[-1]]
    return ""


# Names of classes


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line, in the order of their numbers. UserError for none, and for a name twice."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of class names", hint="a text file with one name a line")
    names = [line.strip() for line in whole_text(path, SourceReport()).rstrip().split("\n")]
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    why = None if twice is None else f"the class {twice[:40]!r} is named twice"
    if "" in names:
        why = f"line {names.index('') + 1} names no class"
    if why is not None:
        raise UserError(f"{path}: {why}", hint="one name a line, in the order of the labels' numbers")
    return tuple(names)


def classes_beside(path: str | Path, columns: Iterable[str]) -> Classes | None:
    """Names of integer labels that lie with the data: in a file beside it, or in the head of a Parquet file."""
    if str(path) == STDIN:
        return None
    path = Path(path)
    if sources.kind_of(path)[0] == ".parquet":
        return _parquet_classes(path, columns)
    base = re.sub(rf"[-_. ]?(?:{'|'.join(_SPLIT_NAMES)})$", "", _bare(path.name))
    words = ("classes", "class", "labels", "label", "label_names", "class_names")
    wanted = [f"{base}{mark}{word}.txt" for word in words for mark in "-_."] if base else []
    wanted += [f"{word}.txt" for word in words]
    there = {name.lower(): name for name in sources.names_in(path.parent)}
    file = next((there[name] for name in wanted if name in there), None)
    if file is None or there[file.lower()] == path.name:
        return None
    return Classes(read_classes(path.parent / file), str(path.parent / file))


def _parquet_classes(path: Path, columns: Iterable[str]) -> Classes | None:
    """The names that Hugging Face's `datasets` writes beside a column of class labels."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_schema(path).metadata or {}
    try:
        described = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        for column in columns:
            names = described.get(column, {}).get("names")
            if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
                return Classes(tuple(names), f"{path}'s own list")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None
