"""What a model was tuned for before, and how the user names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2kit.errors import UserError, unknown
from gpt2kit.tasks import NAMES

Tasks = Sequence[Mapping[str, Any]]  # {"name": of the run, "task": its values}, the oldest first
HEADS = ("classify", "rank")  # tasks whose head and labels only a tuned model has


def earlier_tasks(lineage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a model was tuned for, with what its ancestors were, the oldest first."""
    found = [dict(entry) for entry in lineage.get("earlier", []) if isinstance(entry, Mapping) and "task" in entry]
    if isinstance(lineage.get("task"), Mapping):
        found.append({"name": lineage.get("name", ""), "task": dict(lineage["task"])})
    return found


def named(given: str) -> tuple[str | None, str]:
    """`reviews=test.tsv` -> ("reviews", "test.tsv"); a file that is there goes without a name."""
    name, equals, path = given.partition("=")
    return (name.strip(), path.strip()) if equals and not Path(given).exists() else (None, given)


def find_task(name: str | None, earlier: Tasks) -> dict[str, Any]:
    """The values of the earlier task of that name: of a run or a task, the newest first. None: the newest of all.

    A task that needs no head can be named though the model was never tuned for it.
    """
    for entry in reversed(earlier):
        if name in (None, entry["name"], entry["task"]["name"]):
            return dict(entry["task"])
    if name is not None and name in NAMES and name not in HEADS:
        return {"name": name}
    known = [entry["name"] for entry in earlier]
    if name is None:
        raise UserError("the model was tuned for no earlier task", hint="name one: --remember translate=FILE")
    raise unknown("earlier task", name, known or NAMES)
