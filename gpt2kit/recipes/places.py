"""Where a run begins and ends: its own folder, which one process fills at a time, and the model that it starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from gpt2kit import commit
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.wording import command


@contextlib.contextmanager
def new_folder(out: Path, verb: str, but: str = "") -> Iterator[None]:
    """Hold a new run's folder. UserError where it holds anything, hidden files and `but` aside, or is another's."""
    _check_unused(out, verb, but)
    with commit.alone(out):
        _check_unused(out, verb, but)  # another process may just have ended there
        yield


def _check_unused(out: Path, verb: str, but: str) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", hint="choose another --out")
    if out.exists() and any(path.name != but and not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(
            f"{out} already holds something",
            hint=f"go on with it: {command(verb, '--resume', out)}, or choose another --out",
        )


def parent_of(name: str, hub: bool) -> dict[str, str]:
    """The model to start from, by the name to remember it by and the folder: here, or downloaded where `hub`."""
    if hub and not Path(name).exists():
        return {"name": name, "folder": str(model_folder.resolve(name, allow_hub=True)[0])}
    return {"name": Path(name).resolve().name, "folder": str(Path(name).resolve())}


def check_parent(parent: Mapping[str, str]) -> None:
    """UserError where the folder of a run's parent does not hold the weights that the run started from."""
    if model_folder.identity(parent["folder"]) != parent["hash"]:
        raise UserError(
            f"{parent['folder']} is no longer the model that the run started from", hint="put that model back there"
        )
