"""Fast, exact inference: requests in, tokens out. The same bytes alone, in a batch, from a warm cache, speculated."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.engine.engine import Engine, Request, Stats
    from gpt2kit.engine.handle import Handle
    from gpt2kit.engine.models import Models

__all__ = ["Engine", "Handle", "Models", "Request", "Stats"]

_HOMES = {"Handle": "handle", "Models": "models"}


def __getattr__(name: str) -> Any:
    """Load on first use: importing a part of this folder does not import the others."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpt2kit.engine.{_HOMES.get(name, 'engine')}"), name)
