"""What the command line can do, a module for each group of verbs: the flags as a dataclass, beside what they run.

Importing a module of these loads nothing heavy: `gpt2kit VERB --help` needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """`run` gets an instance of `options` and returns the exit code; `help` None: the docstring of `options`."""

    options: type
    run: Callable[[Any], int]
    help: str | None = None
