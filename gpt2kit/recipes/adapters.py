"""From `gpt2kit finetune`'s flags to an adapter over a model, and from a run's record to the same again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from gpt2kit import peft, runtime
from gpt2kit.errors import UserError
from gpt2kit.model import folder as model_folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.files import resolve
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.peft.method import MethodConfig
from gpt2kit.recipes.places import check_parent
from gpt2kit.recipes.sitting import Feed
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_pairs
from gpt2kit.runtime import Precision
from gpt2kit.tasks.reference import with_head
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import plan
from gpt2kit.training.config import TrainConfig
from gpt2kit.wording import command

OWN_FLAGS = {"name": "method", "seed": "seed", "rank": "rank"}  # of finetune: --method-settings must not contradict
TARGET_SHARE = 2 / 3  # of AdaLoRA's first rank that is left on average, as in its defaults


def method_of(options: FinetuneOptions, config: GPT2Config | None = None) -> MethodConfig | None:
    """The adapter that the flags name, checked against a model's shape if one is given; None: all weights are tuned."""
    if options.method == "full":
        return None
    method = peft.method(options.method, seed=options.seed)
    known = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    changes: dict[str, Any] = {}
    if options.rank is not None:
        if "rank" not in known:
            others = ", ".join(name for name in known if name not in ("seed", "also"))
            raise UserError(f"{options.method} has no rank", hint=f"set with --method-settings: {others or 'also'}")
        changes["rank"] = options.rank
        if "target_rank" in known:
            changes["target_rank"] = max(1, round(options.rank * TARGET_SHARE))
    if options.method_settings is not None:
        given = read_pairs(options.method_settings, "--method-settings", "alpha=32,targets=.*")
        for name in given:
            if name in OWN_FLAGS and (name != "rank" or options.rank is not None):
                flag = OWN_FLAGS[name]
                raise UserError(f"--method-settings: {name} has a flag of its own", hint=f"give --{flag} alone")
        changes |= {name: _value(name, text, known.get(name)) for name, text in given.items()}
    method = peft.method(options.method, seed=options.seed, **changes)
    if config is not None:
        method.check(config)
    return method


def _value(name: str, text: str, default: Any) -> Any:
    """A setting's text as the type of its default; what is no such thing stays text, and is refused by name."""
    if name == "also" or isinstance(default, tuple):  # several, with + between
        return tuple(int(part) if part.isdigit() else part for part in text.split("+"))
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return type(default)(text) if isinstance(default, int | float) else text
    except ValueError:
        return text


def sliced(config: TrainConfig, model: GPT2Config, adapter: bool) -> TrainConfig:
    """With the threads and the rows of a forward pass that suit the model's size."""
    threads = torch.get_num_threads() if runtime.device().type == "cpu" else 1
    workers = plan.choose_workers(model.parameters, config.batch, threads)
    micro = plan.choose_micro_batch(config, workers, adapter)
    return dataclasses.replace(config, workers=workers, micro_batch=micro)


def said_before(
    model: GPT2Config, config: TrainConfig, method: MethodConfig | None, precision: Precision, options: FinetuneOptions
) -> str:
    """What is trained, and the memory that it takes; UserError where that much is not free."""
    whole = trained = model.parameters
    if method is None:
        needed = plan.memory(model, config, precision.dtype == "bf16")
        what = f"all {whole:,} parameters are tuned"
    else:
        trained = peft.trainable_parameters(model, method)
        needed = plan.adapter_memory(model, config, trained, precision.dtype == "bf16", options.int8_base)
        if options.int8_base:
            peft.check_over_int8(method, model)
        share = 100 * trained / whole
        shown = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
        what = f"{options.method}: {trained:,} parameters are tuned beside {whole:,}, {shown} %"
    needed += plan.keeping_memory(model, config, trained, bool(options.ewc), bool(options.lwf))
    plan.check_memory(needed, "use --method lora, --int8-base, a smaller --context or a smaller --batch")
    return f"{what}; at most {needed / 1e9:.2f} GB of memory"


def recorded(method: MethodConfig | None, options: FinetuneOptions, parent: str) -> dict[str, Any]:
    """The method's part of a run's record. The base goes by the name that was given, and the way from the run to it."""
    if method is None:
        return {"method": None}
    try:
        way = Path(os.path.relpath(resolve(parent)[0], Path(options.out).resolve())).as_posix()
    except ValueError:  # another drive on Windows
        way = None
    base = {"name": options.from_, "path": way}
    return {"method": method.to_dict(), "int8_base": options.int8_base, "base": base}


def begin(record: dict[str, Any], path: Path | None) -> tuple[GPT2, peft.Adapted | None, Tokenizer | None]:
    """What a sitting trains: to be filled from the checkpoint at `path`, or as at step 0.

    At step 0 it is the parent's weights; a head that it has not is drawn by the seed, and so is the adapter.
    """
    parent, config, seed = record["parents"][0], GPT2Config(**record["model"]), record["settings"]["seed"]
    if record.get("method") is None and path is not None:
        return GPT2(config), None, Tokenizer.find(path)
    check_parent(parent)
    torch.manual_seed(seed)
    network, tokenizer = model_folder.load(parent["folder"])
    network.config = dataclasses.replace(network.config, eos_token_id=config.eos_token_id)
    if network.config.labels != config.labels:
        network = with_head(network, config, torch.Generator().manual_seed(seed))
    if record.get("method") is None:
        return network, None, tokenizer
    if record["int8_base"]:
        peft.quantise_base(network, record["precision"]["backend"])
    return network, peft.inject(network, peft.from_settings(record["method"])), tokenizer


def into_feed(feed: Feed, adapted: peft.Adapted, tokenizer: Tokenizer | None, record: dict[str, Any]) -> Feed:
    """The feed of a run that trains the adapter alone."""
    return dataclasses.replace(
        feed,
        artefact=peft.AdapterOnly(adapted, tokenizer, record["base"]["name"]),
        penalty=adapted.penalty,
        after_step=adapted.after_step,
        lineage={**feed.lineage, "method": record["method"], "base": record["base"]},
    )


def next_commands(out: Path, task: str, adapted: peft.Adapted | None) -> tuple[str, ...]:
    """What to type when the run is over."""
    serve = (command("serve", out),) if adapted is None or adapted.method.mergeable else ()
    asked = '"query" --candidates "one" "another"' if task == "rank" else '"text"'
    return (command("evaluate", out, "TEST"), f"{command('run', task, out)} {asked}", *serve)
