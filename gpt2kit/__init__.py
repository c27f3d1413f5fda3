"""GPT-2, whole, on the machine you have.

    import gpt2kit
    result = gpt2kit.train("my.txt", out="runs/mine", minutes=10)
    model, tokenizer = gpt2kit.load("runs/mine")
    print(gpt2kit.generate(model, tokenizer, "Once", max_tokens=50)[0].text)

Names are loaded on first use: `import gpt2kit` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.api import generate as generate
    from gpt2kit.api import load as load
    from gpt2kit.api import train as train
    from gpt2kit.errors import UserError as UserError
    from gpt2kit.model.config import GPT2Config as GPT2Config
    from gpt2kit.model.gpt2 import GPT2 as GPT2
    from gpt2kit.model.sampling import SamplingSettings as SamplingSettings
    from gpt2kit.text.tokenizer import Tokenizer as Tokenizer

_HOMES = {
    "GPT2": "gpt2kit.model.gpt2",
    "GPT2Config": "gpt2kit.model.config",
    "SamplingSettings": "gpt2kit.model.sampling",
    "Tokenizer": "gpt2kit.text.tokenizer",
    "UserError": "gpt2kit.errors",
    "generate": "gpt2kit.api",
    "load": "gpt2kit.api",
    "train": "gpt2kit.api",
}
__all__ = ["GPT2", "GPT2Config", "SamplingSettings", "Tokenizer", "UserError", "generate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from gpt2kit.runtime import package_version

        return package_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2kit' has no attribute {name!r}")
    import importlib

    from gpt2kit.runtime import calm_spinning

    calm_spinning()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
