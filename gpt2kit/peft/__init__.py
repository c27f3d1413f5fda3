"""Parameter-efficient fine-tuning: adapters over a frozen GPT2, saved in PEFT's layout.

adapted = inject(model, method("lora"))      # the model is now frozen but for the adapter
... train: the model is still a GPT2 ...
save("runs/a/adapter", adapted, base="runs/base")
load("runs/a/adapter", model, name="a"); activate(model, "a"); merge(model)
"""

from __future__ import annotations

from gpt2kit.peft.adalora import AdaLoraConfig
from gpt2kit.peft.artefact import AdapterOnly
from gpt2kit.peft.bitfit import BitFitConfig
from gpt2kit.peft.bottleneck import BottleneckConfig
from gpt2kit.peft.ia3 import Ia3Config
from gpt2kit.peft.inject import (
    Adapted,
    activate,
    adapted,
    inject,
    merge,
    names,
    remove,
    trainable_parameters,
    unmerge,
)
from gpt2kit.peft.int8base import QuantisedLinear, dequantise_base, quantise_base
from gpt2kit.peft.last import LastConfig
from gpt2kit.peft.lora import LoraConfig
from gpt2kit.peft.method import MethodConfig, check_over_int8
from gpt2kit.peft.prefix import PrefixConfig
from gpt2kit.peft.presets import PRESETS, from_settings, method
from gpt2kit.peft.prompt import PromptConfig, PTuningConfig
from gpt2kit.peft.saved import Description, base_hash, class_names, describe, load, save

__all__ = [
    "PRESETS",
    "AdaLoraConfig",
    "Adapted",
    "AdapterOnly",
    "BitFitConfig",
    "BottleneckConfig",
    "Description",
    "Ia3Config",
    "LastConfig",
    "LoraConfig",
    "MethodConfig",
    "PTuningConfig",
    "PrefixConfig",
    "PromptConfig",
    "QuantisedLinear",
    "activate",
    "adapted",
    "base_hash",
    "check_over_int8",
    "class_names",
    "dequantise_base",
    "describe",
    "from_settings",
    "inject",
    "load",
    "merge",
    "method",
    "names",
    "quantise_base",
    "remove",
    "save",
    "trainable_parameters",
    "unmerge",
]
