"""Encoded rows on disk, one safetensors file a split: ids end to end, lengths, starts, labels with their counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gpt2kit import commit
from gpt2kit.training.rows import Row


def save_rows(folder: Path, parts: Mapping[str, Sequence[Row]]) -> None:
    """Commit the folder, atomically."""
    from safetensors.numpy import save_file

    with commit.folder(folder, "rows", {}) as staging:
        for name, rows in parts.items():
            tensors = {
                "ids": np.concatenate([row.ids for row in rows]).astype(np.int32),
                "lengths": np.array([len(row) for row in rows], np.int32),
                "starts": np.array([row.start for row in rows], np.int32),
                "labels": np.array([label for row in rows for label in row.labels], np.int32),
                "label_counts": np.array([len(row.labels) for row in rows], np.int32),
            }
            save_file(tensors, staging / f"{name}.safetensors")


def load_rows(folder: Path) -> dict[str, list[Row]]:
    """What `save_rows` wrote. UserError where a file was changed."""
    from safetensors.numpy import load_file

    commit.verify(folder)
    parts = {}
    for path in sorted(folder.glob("*.safetensors")):
        held = load_file(path)
        ends, label_ends = np.cumsum(held["lengths"]), np.cumsum(held["label_counts"])
        parts[path.stem] = [
            Row(held["ids"][b - n : b].astype(np.int64), int(start), tuple(held["labels"][d - k : d].tolist()))
            for b, n, start, d, k in zip(
                ends, held["lengths"], held["starts"], label_ends, held["label_counts"], strict=True
            )
        ]
    return parts
