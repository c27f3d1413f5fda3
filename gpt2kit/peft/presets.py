"""Ready settings, by the names that the command line knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gpt2kit.errors import unknown
from gpt2kit.peft.adalora import AdaLoraConfig
from gpt2kit.peft.bitfit import BitFitConfig
from gpt2kit.peft.bottleneck import BottleneckConfig
from gpt2kit.peft.ia3 import Ia3Config
from gpt2kit.peft.last import LastConfig
from gpt2kit.peft.lora import LoraConfig
from gpt2kit.peft.method import MethodConfig
from gpt2kit.peft.prefix import PrefixConfig
from gpt2kit.peft.prompt import PromptConfig, PTuningConfig


def lora() -> MethodConfig:
    """Rank 8 on c_attn: 294,912 parameters of GPT-2 small, 0.24 %."""
    return LoraConfig()


def lora_all() -> MethodConfig:
    """Rank 8 on all four Linears of a block: 1,179,648 parameters of GPT-2 small, 0.95 %."""
    return LoraConfig(targets=".*")


def rslora() -> MethodConfig:
    """Rank 32 on c_attn, scaled by alpha / sqrt(rank)."""
    return LoraConfig(rank=32, alpha=16.0, rslora=True)


def dora() -> MethodConfig:
    return LoraConfig(dora=True)


def adalora() -> MethodConfig:
    return AdaLoraConfig()


def houlsby() -> MethodConfig:
    """Adapters behind attention and MLP."""
    return BottleneckConfig(places="houlsby")


def pfeiffer() -> MethodConfig:
    """Adapters behind the MLP alone."""
    return BottleneckConfig(places="pfeiffer")


def prefix() -> MethodConfig:
    return PrefixConfig()


def prefix_mlp() -> MethodConfig:
    """Prefixes out of a small network while they are trained."""
    return PrefixConfig(projection=True)


def prompt() -> MethodConfig:
    return PromptConfig()


def p_tuning() -> MethodConfig:
    return PTuningConfig()


def p_tuning_lstm() -> MethodConfig:
    return PTuningConfig(encoder="lstm")


def ia3() -> MethodConfig:
    return Ia3Config()


def bitfit() -> MethodConfig:
    return BitFitConfig()


def last() -> MethodConfig:
    """The last block and ln_f."""
    return LastConfig()


PRESETS: dict[str, Callable[[], MethodConfig]] = {
    "lora": lora,
    "lora-all": lora_all,
    "rslora": rslora,
    "dora": dora,
    "adalora": adalora,
    "houlsby": houlsby,
    "pfeiffer": pfeiffer,
    "prefix": prefix,
    "prefix-mlp": prefix_mlp,
    "prompt": prompt,
    "p-tuning": p_tuning,
    "p-tuning-lstm": p_tuning_lstm,
    "ia3": ia3,
    "bitfit": bitfit,
    "last": last,
}


def from_settings(values: Mapping[str, Any]) -> MethodConfig:
    """What `MethodConfig.to_dict` gave. UserError for what this version did not write."""
    kinds = {kind.name: kind for kind in (type(make()) for make in PRESETS.values())}
    if values.get("name") not in kinds:
        raise unknown("method", str(values.get("name")), kinds)
    return kinds[values["name"]].from_dict(values)


def method(name: str, /, **changes: Any) -> MethodConfig:
    """A preset, with some settings changed: `method("lora", rank=16)`. UserError with the near name for a typo."""
    if name not in PRESETS:
        raise unknown("method", name, PRESETS)
    settings = PRESETS[name]()
    values = dataclasses.asdict(settings)
    return type(settings).from_dict({**values, **changes})
