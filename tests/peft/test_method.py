"""Settings: what is refused, with which words; patterns and presets."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.peft import (
    PRESETS,
    AdaLoraConfig,
    BottleneckConfig,
    LastConfig,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
    PromptConfig,
    PTuningConfig,
    method,
    trainable_parameters,
)
from gpt2kit.peft.method import linears, matched, pattern_of, shortest

CONFIG = GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_layer=12, n_head=4)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (LoraConfig, {"rank": 0}, "rank must be a whole number in"),
        (LoraConfig, {"rank": 4.0}, "rank must be a whole number in"),
        (LoraConfig, {"rank": True}, "rank must be a whole number in"),
        (LoraConfig, {"alpha": 0}, r"alpha must be in \(0"),
        (LoraConfig, {"alpha": float("nan")}, "alpha"),
        (LoraConfig, {"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        (LoraConfig, {"targets": "("}, "not a regular expression"),
        (LoraConfig, {"targets": ""}, "targets must be a pattern"),
        (LoraConfig, {"also": ("scor",)}, "did you mean 'score'"),
        (LoraConfig, {"also": ("wte",)}, "wte cannot be trained"),
        (LoraConfig, {"seed": -1}, "seed"),
        (AdaLoraConfig, {"target_rank": 13}, "target_rank must be a whole number in"),
        (AdaLoraConfig, {"start": 0.5, "settle": 0.5}, "leave no steps"),
        (AdaLoraConfig, {"every": 0}, "every"),
        (BottleneckConfig, {"places": "houlsbi"}, "did you mean 'houlsby'"),
        (BottleneckConfig, {"activation": "rellu"}, "did you mean 'relu'"),
        (PTuningConfig, {"encoder": "ltsm"}, "did you mean 'lstm'"),
        (PrefixConfig, {"width": 8}, "width is that of the projection"),
        (PromptConfig, {"tokens": 0}, "tokens"),
        (PromptConfig, {"start": (-1,)}, "token ids"),
        (LastConfig, {"layers": -1}, "layers"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(kind: type[MethodConfig], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        kind(**changes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (LoraConfig(targets="c_atn"), r"matches no Linear; did you mean '(attn\.)?c_attn'"),
        (LoraConfig(targets="proj"), "matches no Linear"),  # a whole part of the name, not its tail
        (LoraConfig(rank=25), "rank 25 exceeds h.0.attn.c_attn, which is 72 x 24"),
        (AdaLoraConfig(rank=25), "rank 25 exceeds"),
        (LastConfig(layers=13), "layers is 13, the model has 12"),
        (PromptConfig(start=(97,)), "id 97, the vocabulary 97"),
        (PrefixConfig(tokens=32), "leave no room"),
        (LoraConfig(also=("score",)), "no score"),
        (LoraConfig(also=("lm_head",)), "no lm_head"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: MethodConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        trainable_parameters(CONFIG, settings)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        *(("c_attn", 12), ("c_proj", 24), ("mlp.c_proj", 12), (".*", 48), ("attn.*", 24), (r"h\.1\..*", 4)),
        *((r"h\.(10|11)\.mlp\.c_fc", 2), ("c_attn|c_fc", 24)),
    ],
)
def test_a_pattern_matches_the_end_of_a_name(pattern: str, count: int) -> None:
    assert len(matched(CONFIG, pattern)) == count


@given(st.sets(st.sampled_from(sorted(linears(CONFIG))), min_size=1))
def test_names_for_peft_match_what_they_stand_for(modules: set[str]) -> None:
    names = shortest(CONFIG, modules)
    assert set(matched(CONFIG, pattern_of(names))) == modules
    ends = {name for name in linears(CONFIG) if any(f"transformer.{name}".endswith(f".{end}") for end in names)}
    assert ends == modules  # PEFT's own rule


@pytest.mark.parametrize("name", PRESETS)
def test_settings_go_to_a_dict_and_back(name: str) -> None:
    settings = method(name, seed=5, also=("ln_f",))
    values = settings.to_dict()
    assert values["name"] == type(settings).name
    assert type(settings).from_dict(values) == settings
    with pytest.raises(UserError, match="did you mean 'seed'"):
        type(settings).from_dict({**values, "sed": 1})
    for field in dataclasses.fields(settings):
        with pytest.raises(UserError, match=field.name):
            type(settings).from_dict({**values, field.name: {"of": "another type"}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1  # type: ignore[misc]


def test_a_preset_takes_changes_and_suggests_the_near_name() -> None:
    assert method("lora", rank=16, alpha=4) == LoraConfig(rank=16, alpha=4)
    with pytest.raises(UserError, match="did you mean 'lora'"):
        method("lroa")
    with pytest.raises(UserError, match="unknown setting of lora 'rnak'; did you mean 'rank'"):
        method("lora", rnak=3)
