"""One sitting of a training run: open the data, restore the state, follow the loop, commit the model at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit import runtime
from gpt2kit.data.loader import Batches
from gpt2kit.data.packed import open_packed, read_report
from gpt2kit.errors import UserError
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes import watch
from gpt2kit.recipes.events import Event, Finished, Note, Sampled
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.training import checkpoint, loop, optim
from gpt2kit.training.checkpoint import Artefact, State, WholeModel
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.objectives import Objective, Rows
from gpt2kit.training.track import Track
from gpt2kit.wording import command


@dataclass(frozen=True)
class Feed:
    """What a run learns from."""

    batches: loop.Source
    validation: Rows | None
    objective: Objective | None = None  # None: the one that the settings name, on windows of text
    lineage: Mapping[str, Any] = field(default_factory=dict)  # more to remember in the model folder
    extra: Mapping[str, str] = field(default_factory=dict)  # more files for the model folder, name -> content
    artefact: Artefact | None = None  # what checkpoints keep and the folder holds in the end; None: the whole model
    penalty: loop.Penalty | None = None
    after_step: Callable[[int, int], None] | None = None
    verb: str = "train"  # the one that goes on with the run
    next: tuple[str, ...] = ()  # commands to try on what was made; none: those of a model that writes


def packed_feed(out: Path, record: dict[str, Any], tokenizer: Tokenizer | None) -> Feed:
    """Windows of packed text."""
    config = TrainConfig.from_dict(record["settings"])
    packed = out / record["data"]["folder"]
    if read_report(packed).data_hash != record["data"]["hash"]:
        raise UserError(f"{packed} no longer holds the data that the run began with", hint="start a new run")
    tokens = open_packed(packed, "train", tokenizer.hash if tokenizer else None)
    batches = Batches(tokens, config.context, config.batch, config.seed)
    return Feed(batches, watch.validation_windows(packed, config))


def sit(
    out: Path, record: dict[str, Any], network: GPT2, tokenizer: Tokenizer | None, feed: Feed, path: Path | None,
    stop: Callable[[], bool],
) -> Iterator[Event]:  # fmt: skip
    """Train to the end, or until asked to stop, from the checkpoint at `path` (None: from the beginning)."""
    config = TrainConfig.from_dict(record["settings"])
    device = runtime.device()
    network.to(device)
    optimizers = optim.build(network, config)
    artefact = WholeModel(network, tokenizer) if feed.artefact is None else feed.artefact
    state = State(total=config.steps) if path is None else checkpoint.restore(path, artefact, optimizers)
    lineage = {k: record[k] for k in ("name", "settings", "precision", "threads")}
    lineage["parents"] = [{"folder": parent["name"], "hash": parent["hash"]} for parent in record["parents"]]
    lineage["data"] = {k: v for k, v in record["data"].items() if k != "folder"}  # no path of this machine
    run = loop.Run(
        out, network, tokenizer, config, feed.batches, feed.validation, runtime.Precision(**record["precision"]),
        {**lineage, **feed.lineage, "seed": config.seed}, device, record["minutes"], stop, feed.objective,
        feed.penalty, feed.after_step, artefact,
    )  # fmt: skip
    track = Track(out, state.step, config.tensorboard)
    reason = "asked"
    try:
        for event in loop.fit(run, optimizers, state):
            track.write(event)
            yield event
            if isinstance(event, loop.Evaluated) and record["sample"] and tokenizer is not None:
                text = watch.sample(network, tokenizer, config)
                track.sample(event.step, text)
                yield Sampled(event.step, text)
            if isinstance(event, loop.Stopped):
                reason = event.reason
    finally:
        track.close()
    yield from finish(run, artefact, state, reason, feed)


def finish(run: loop.Run, artefact: Artefact, state: State, reason: str, feed: Feed) -> Iterator[Event]:
    """Make the run folder of the best checkpoint; a run that was asked to stop only says how to go on."""
    if reason == "asked":
        go_on = command(feed.verb, "--resume", run.folder)
        yield Finished(run.folder, state.step, {}, state.seconds, reason, go_on)
        return
    step, notes = checkpoint.best_whole(run.folder, state)
    yield from map(Note, notes)
    lineage = {**run.lineage, "step": step, "scores": state.scores(step)}
    artefact.publish(run.folder, checkpoint.folder_of(run.folder, step), lineage, feed.extra)
    yield Finished(run.folder, step, state.scores(step), state.seconds, reason, None, feed.next)
