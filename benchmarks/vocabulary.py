"""Bits per character after equal minutes of further training, for the starts that new tokens' rows can have.

    GPT2KIT_DATA=... python benchmarks/vocabulary.py --minutes 5 --base-minutes 8 --out vocabulary.json

An English model (--base FOLDER, or one trained here on film reviews for --base-minutes) gets --add tokens learned from
Chinese poems. Four contestants then train on the same poems, in turn, --slice seconds at a time, so that a machine that
slows down slows all of them: rows transplanted, at the mean, at random, and the old vocabulary as it is. All have the
same settings, the same seed and the same order of windows; each stops when its own training has taken --minutes.
Held-out poems are scored in bits per character, which no vocabulary flatters, at eight moments. At the end the
difference to transplant is given with a paired bootstrap over the poems.

The base learns from English with --chinese of other poems among it, 2 % unless told otherwise: the web text of
published English models holds some Chinese. At 0 the base never sees a Chinese byte, and a token's pieces say little.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import dataclasses
import json
import lzma
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit import runtime
from gpt2kit.data.loader import Batches
from gpt2kit.evaluation import token_losses
from gpt2kit.model import folder as model_folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.recipes.extend import begun as begin
from gpt2kit.scores.intervals import Resampling, Sample, ratio
from gpt2kit.text.extend import extend
from gpt2kit.text.tokenizer import Tokenizer, measure
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training import loop, optim, plan
from gpt2kit.training.checkpoint import State
from gpt2kit.training.config import TrainConfig

STARTS = ("transplant", "mean", "random")
OLD = "old vocabulary"
MOMENTS = 8  # scores on the way, besides the one before the first step
HELD_OUT = 400  # poems
FOREVER = 1_000_000  # steps: the clock ends a run
ENGLISH_CHARACTERS, ENGLISH_TOKENS = 30_000_000, 4096


def texts(name: str) -> list[str]:
    root = os.environ.get("GPT2KIT_DATA")
    if root is None:
        raise SystemExit("set GPT2KIT_DATA to the folder of the data sets")
    with lzma.open(Path(root) / "text" / name, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def poems(seed: int) -> tuple[list[str], list[str], list[str]]:
    """(to train on, held out, for the base): different ones, in an order drawn by `seed`."""
    found = sorted(set(texts("tang-poems.jsonl.xz")))
    random.Random(seed).shuffle(found)
    return found[2 * HELD_OUT :: 2], found[:HELD_OUT], found[2 * HELD_OUT + 1 :: 2]


def stream(tokenizer: Tokenizer, documents: Sequence[str]) -> NDArray[np.uint32]:
    """Ids end to end, the end-of-text token behind each document."""
    assert tokenizer.eot_id is not None
    eot = np.array([tokenizer.eot_id], np.uint32)
    return np.concatenate([part for ids in tokenizer.encode_batch(documents) for part in (ids.astype(np.uint32), eot)])


def english_base(minutes: float, chinese: list[str], share: float, shape: plan.Preset) -> tuple[GPT2, Tokenizer]:
    """A model of English film reviews, with a share (of characters) of Chinese among them."""
    reviews: list[str] = []
    room = ENGLISH_CHARACTERS
    for review in texts("imdb-unsup.jsonl.xz"):
        reviews.append(review)
        room -= len(review)
        if room < 0:
            break
    tokenizer = train_tokenizer(reviews, "bpe", ENGLISH_TOKENS)
    left = int(share * ENGLISH_CHARACTERS)
    for poem in chinese:
        if left <= 0:
            break
        reviews.append(poem)
        left -= len(poem)
    random.Random(0).shuffle(reviews)
    config = GPT2Config(
        tokenizer.vocab_size, shape.context, shape.n_embd, shape.n_layer, shape.n_head, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.eot_id, eos_token_id=tokenizer.eot_id,
    )  # fmt: skip
    model = GPT2(config)
    run = Contestant("base", model, tokenizer, reviews, settings(shape, 1.0, 0))
    while run.seconds < 60 * minutes:
        run.advance(5.0)
        print(f"base: {run.seconds:.0f} s, {run.steps} steps, loss {run.loss:.3f} nats per token", flush=True)
    run.close()
    return model, tokenizer


def settings(shape: plan.Preset, factor: float, seed: int) -> TrainConfig:
    """A constant rate after the warm-up, so that what a moment shows does not hang on how long the run will be."""
    return TrainConfig(
        steps=FOREVER, batch=shape.batch, context=shape.context, learning_rate=shape.learning_rate * factor,
        matrix_learning_rate=shape.matrix_learning_rate * factor, schedule="constant", seed=seed,
        evaluate_every=FOREVER, checkpoint_every=FOREVER,
    )  # fmt: skip


class Contestant:
    """A model that trains for as long as it is asked to, with gpt2kit's loop. Only its steps are on its clock."""

    def __init__(self, name: str, model: GPT2, tokenizer: Tokenizer, documents: list[str], config: TrainConfig) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        workers = plan.choose_workers(model.config.parameters, config.batch, runtime.cores())
        config = dataclasses.replace(config, workers=workers)
        batches = Batches(stream(tokenizer, documents), config.context, config.batch, config.seed)
        self.folder = tempfile.TemporaryDirectory()
        precision = runtime.choose_precision("auto")
        run = loop.Run(Path(self.folder.name), model, tokenizer, config, batches, None, precision, {"name": name})
        self.events: Iterator[loop.Event] = loop.fit(run, optim.build(model, config), State())
        self.seconds, self.steps, self.loss = 0.0, 0, math.nan

    def advance(self, seconds: float) -> None:
        """Train for so many seconds, at least a step. The first step, which compiles and warms up, is not counted."""
        if self.steps == 0:
            self._step()
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            self._step()
        self.seconds += time.perf_counter() - begun

    def _step(self) -> None:
        event = next(self.events)
        assert isinstance(event, loop.Stepped), event
        self.steps, self.loss = event.step, event.loss

    def nats(self, documents: list[str]) -> NDArray[np.float64]:
        """[N] nats of each document."""
        found = token_losses(self.model, self.tokenizer, documents)
        document = np.cumsum(found.ids == self.tokenizer.eot_id) - 1
        return np.bincount(document, np.nan_to_num(found.nll), len(documents))

    def close(self) -> None:
        self.events.close()  # type: ignore[attr-defined]
        self.folder.cleanup()


def bits_per_character(nats: NDArray[np.float64], documents: list[str]) -> float:
    return float(nats.sum()) / math.log(2) / sum(map(len, documents))


def against(first: NDArray[np.float64], other: NDArray[np.float64], documents: list[str]) -> dict[str, float]:
    """How many bits per character `other` is above `first`, with the interval of paired resamples of the documents."""
    rows = np.column_stack([(other - first) / math.log(2), [len(text) for text in documents]])
    found = Sample(rows).interval(ratio, Resampling())
    return {"difference": found.value, "low": found.low, "high": found.high}


def contest(arguments: argparse.Namespace, model: GPT2, tokenizer: Tokenizer, shape: plan.Preset) -> dict[str, Any]:
    training, held_out, _ = poems(arguments.seed)
    made = extend(tokenizer, training, arguments.add)
    both = {"before": tokenizer, "after": made.tokenizer}
    rates = {name: measure(one, held_out).tokens_per_character for name, one in both.items()}
    print(f"{len(made.parts):,} tokens added; tokens per character {rates['before']:.2f} -> {rates['after']:.2f}")
    config = settings(shape, arguments.rate, arguments.seed)
    begun = {start: begin(model, made, start, arguments.seed, training[:200]) for start in STARTS}
    runs = [Contestant(start, grown, made.tokenizer, training, config) for start, (grown, _) in begun.items()]
    print(f"transplanted rows are shifted by {begun['transplant'][1]} of the way to the mean of all rows")
    old = GPT2(model.config)
    old.load_state_dict(model.state_dict())
    runs.append(Contestant(OLD, old, tokenizer, training, config))
    rows: list[dict[str, float]] = []
    goal = 60 * arguments.minutes
    nats: dict[str, NDArray[np.float64]] = {}
    for moment in range(MOMENTS + 1):
        until = goal * moment / MOMENTS
        turn = 0
        while any(run.seconds < until for run in runs):
            order = runs[turn % len(runs) :] + runs[: turn % len(runs)]  # nobody is always first
            turn += 1
            for run in order:
                if run.seconds < until:
                    run.advance(min(arguments.slice, until - run.seconds))
        nats = {run.name: run.nats(held_out) for run in runs}
        rows.append({"seconds": until, **{name: bits_per_character(n, held_out) for name, n in nats.items()}})
        print("  ".join([f"{until:6.0f} s"] + [f"{n} {rows[-1][n]:.3f}" for n in nats]), flush=True)
    for run in runs:
        run.close()
    return {
        "tokens_added": len(made.parts),
        "shift": begun["transplant"][1],
        "tokens_per_character": rates,
        "unit": "bits per character of held-out poems",
        "curve": rows,
        "above_transplant": {n: against(nats["transplant"], nats[n], held_out) for n in nats if n != "transplant"},
        "steps": {run.name: run.steps for run in runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="an English model folder; without it one is trained")
    parser.add_argument("--base-minutes", type=float, default=8.0)
    parser.add_argument("--chinese", type=float, default=0.02, help="share of Chinese in what the base learns")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each contestant")
    parser.add_argument("--slice", type=float, default=2.0, help="seconds of training before it is the next one's turn")
    parser.add_argument("--add", type=int, default=2000, help="tokens")
    parser.add_argument("--rate", type=float, default=0.5, help="of the preset's learning rates, for further training")
    parser.add_argument("--preset", default="tiny", choices=["tiny", "mini"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file for the figures")
    arguments = parser.parse_args()
    runtime.calm_spinning()
    runtime.set_threads()
    runtime.tune_allocator()
    shape = plan.preset(arguments.preset)
    if arguments.base is not None:
        model, found = model_folder.load(arguments.base)
        assert found is not None, "the base has no tokenizer"
        tokenizer = found
        shape = dataclasses.replace(shape, context=min(shape.context, model.config.n_positions))
    else:
        model, tokenizer = english_base(arguments.base_minutes, poems(arguments.seed)[2], arguments.chinese, shape)
    result = contest(arguments, model, tokenizer, shape)
    for name, row in result["above_transplant"].items():
        print(f"{name} above transplant: {row['difference']:+.3f} bits per character "
              f"[{row['low']:+.3f}, {row['high']:+.3f}]")  # fmt: skip
    if arguments.out:
        record = {"arguments": vars(arguments), **result}
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
