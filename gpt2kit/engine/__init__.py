"""Fast, exact inference: requests in, tokens out. The same bytes alone, in a batch, from a warm cache, speculated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.engine.engine import Engine, Handle, Request
    from gpt2kit.engine.models import Models

__all__ = ["Engine", "Handle", "Models", "Request"]


def __getattr__(name: str) -> Any:
    """Load on first use: importing a part of this folder does not import the others."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpt2kit.engine import engine, models

    return getattr(models if name == "Models" else engine, name)
