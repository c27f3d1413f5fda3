"""The one error that users see.

    Exception
    └── UserError        what happened, what was got, what to do next

`cli` prints it and exits with code 2; `serve` maps it to an HTTP answer. Everything else that escapes is our bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right: a message that says what was got, and a hint that says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that `name` was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """`unknown key 'lerning_rate'; did you mean 'learning_rate'?`"""
    known = sorted(known)
    near = closest(name, known)
    if near is not None:
        return UserError(f"unknown {what} {name!r}; did you mean {near!r}?", hint=f"known: {', '.join(known)}")
    return UserError(f"unknown {what} {name!r}", hint=f"known: {', '.join(known)}")


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """The error for an optional dependency that is not installed."""
    return UserError(f"{purpose} needs the package {package!r}", hint=f"run: pip install 'gpt2kit[{extra}]'")
