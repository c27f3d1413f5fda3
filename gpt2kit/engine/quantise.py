"""A model folder's weights for the engine: as they are, or in eight bits, and what that costs.

The first int8 load of a folder draws samples from the model (or takes a text), chooses the smoothing on one half of
them, rounds, and measures the cost on the other half. The result is stored in the folder: later loads map it.

The cost is the rise in bits per token, in percent. On the model's own samples it is the mean divergence
KL(fp32 || int8) over the mean entropy: what int8 would lose on average over all that the model might say, without
the noise of what it did say. On a given text it is the rise of the cross-entropy.

Needs torch, and only then: to sample and to run the float model. Loading what is stored needs numpy only.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2kit import commit, runtime
from gpt2kit.engine import stored
from gpt2kit.engine.smoothing import to_int8
from gpt2kit.engine.source import from_folder, from_tensors
from gpt2kit.engine.weights import PackedWeights, pack
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.files import read_head, resolve

if TYPE_CHECKING:
    from gpt2kit.model.gpt2 import GPT2
    from gpt2kit.text.tokenizer import Tokenizer

WARN_PERCENT = 1.0  # a note says what int8 costs from here on, and "auto" takes fp32
TOKENS = 1024  # to calibrate on, and as many to measure on
LENGTH = 128  # of a sequence, where the model has so many positions
SEED = 0

Stage = Literal["sampling", "smoothing", "rounding", "compiling", "measuring"]
Progress = Callable[[Stage, int, int], None]  # stage, done, total
Sequences = NDArray[np.int64]  # [n, T]


@dataclass(frozen=True)
class Cost:
    """What int8 costs, measured on tokens that the smoothing was not chosen on."""

    percent: float  # of bits per token
    bits: float  # per token, of the float model
    tokens: int
    calibration: str  # "samples" or "text <first digits of its SHA-256>"


def load_packed(
    folder: str | Path,
    precision: Literal["int8", "fp32", "auto"] = "auto",
    on_progress: Progress | None = None,
    notes: list[str] | None = None,
    config: GPT2Config | None = None,
) -> PackedWeights:
    """A model folder's weights, ready for `Forward`. "auto" is int8 unless that costs more than 1 %.

    `on_progress` is told of a first int8 load, which computes. `notes` receives what was chosen, or went wrong and
    was put right. `config` saves reading it again. Raises UserError for what is wrong with the folder.
    """
    notes = [] if notes is None else notes
    path, chosen = resolve(folder)
    if chosen is not None:
        notes.append(chosen)
    if precision == "fp32":
        return pack(from_folder(path, "fp32"))
    if config is None:
        config, _ = read_head(path, [])
    packed = stored.read(path, config, notes)
    if packed is None:
        packed = quantise(path, None, on_progress, notes)
    percent = packed.cost_percent or 0.0
    if percent > WARN_PERCENT:
        if precision == "auto":
            notes.append(f"int8 would cost this model {percent:.1f} % in bits per token: fp32 is used")
            return pack(from_folder(path, "fp32"))
        notes.append(f'int8 costs this model {percent:.1f} % in bits per token; precision="fp32" costs none')
    return packed


def quantise(
    folder: str | Path,
    text: str | None = None,
    on_progress: Progress | None = None,
    notes: list[str] | None = None,
) -> PackedWeights:
    """Make a folder's int8 weights and store them there, in place of earlier ones; measured, as `Cost` says.

    Calibrates on `text`, or on samples of the model. Where the folder cannot be written, and for a training
    checkpoint, the weights stay in memory, and a note says so. Raises UserError as loading the folder does, and for
    a text that is too short.
    """
    from gpt2kit.model import folder as folders

    notes = [] if notes is None else notes
    tell: Progress = on_progress or (lambda stage, done, total: None)
    path, _ = resolve(folder)
    source = stored.source_hash(path)
    model, tokenizer = folders.load(path)
    if text is None:
        sequences, calibration = _samples(model, tokenizer, tell), "samples"
    else:
        sequences = _cut(text, model.config, tokenizer)
        calibration = f"text {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    packed = _round(model, sequences[::2], tell)
    cost = measure(model, packed, sequences[1::2], text is None, calibration, tell)
    packed = dataclasses.replace(packed, cost_percent=cost.percent)
    manifest = commit.manifest(path)
    if manifest is not None and manifest.get("kind") != "model":
        return packed  # a checkpoint belongs to a training run, which may delete or replace it at any time
    try:
        stored.write(path, packed, source, dataclasses.asdict(cost))
    except UserError as error:
        found = stored.read(path, model.config, []) if text is None else None
        if found is not None:  # another process was faster; weights calibrated on a text are no other's
            return found
        notes.append(f"the int8 weights stay in memory and are made again at the next load: {error.message}")
        return packed
    return stored.read(path, model.config, notes) or packed


def _round(model: GPT2, sequences: Sequences, tell: Progress) -> PackedWeights:
    import torch

    from gpt2kit.engine import calibrate

    smoothing = calibrate.choose(
        model, torch.from_numpy(sequences.copy()), lambda done, total: tell("smoothing", done, total)
    )
    tell("rounding", 0, 1)
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    packed = pack(to_int8(from_tensors(model.config, tensors), smoothing))
    tell("rounding", 1, 1)
    return packed


# ---------------------------------------------------------------- tokens to calibrate and to measure on


def _count(config: GPT2Config) -> tuple[int, int]:
    """How many sequences, an even number, and how long they are."""
    T = min(config.n_positions, LENGTH)
    return 2 * -(-TOKENS // T), T


def _samples(model: GPT2, tokenizer: Tokenizer | None, tell: Progress) -> Sequences:
    """Sequences [n, T] that the model makes at temperature 1, from its end token, or from any where it has none."""
    from gpt2kit.model.generate import generate
    from gpt2kit.model.sampling import SamplingSettings

    count, T = _count(model.config)
    eos = model.config.eos_token_id if tokenizer is None or tokenizer.eot_id is None else tokenizer.eot_id
    most = model.config.vocab_size if tokenizer is None else min(model.config.vocab_size, tokenizer.vocab_size)
    starts = np.random.default_rng(SEED).integers(0, most, count)
    if eos is not None:
        starts[:] = eos
    if T == 1:
        return starts[:, None]
    rows, group = [], 16
    for first in range(0, count, group):
        tell("sampling", first, count)
        prompts = [[int(start)] for start in starts[first : first + group]]
        settings = [
            SamplingSettings(max_tokens=T - 1, temperature=1.0, seed=SEED + first + i, ignore_eos=True)
            for i in range(len(prompts))
        ]
        made = generate(model, prompts, settings, eos_id=eos, tokenizer=tokenizer, batched=True)
        rows += [prompt + completions[0].token_ids for prompt, completions in zip(prompts, made, strict=True)]
    tell("sampling", count, count)
    return np.array(rows, np.int64)


def _cut(text: str, config: GPT2Config, tokenizer: Tokenizer | None) -> Sequences:
    """Sequences [n, T] from all over a text."""
    if tokenizer is None:
        raise UserError(
            "calibrating on a text needs the model's tokenizer, and its folder has none",
            hint="copy the tokenizer's files into the model folder, or calibrate on samples",
        )
    ids = np.array(tokenizer.encode(text), np.int64)
    count, T = _count(config)
    if len(ids) < 2 * T:
        raise UserError(
            f"the text has {len(ids)} tokens, calibration needs at least {2 * T}", hint="give a longer text"
        )
    count = min(count, len(ids) // T // 2 * 2)
    starts = np.linspace(0, len(ids) - T, count).astype(np.int64)
    out: Sequences = ids[starts[:, None] + np.arange(T)]
    return out


# ---------------------------------------------------------------- the cost


def measure(
    model: GPT2, packed: PackedWeights, sequences: Sequences, sampled: bool, calibration: str, tell: Progress
) -> Cost:
    """The engine's int8 logits against the float model's, over sequences [n, T] that start at position 0.

    `sampled`: by divergence, as for samples of the model; else by cross-entropy.
    """
    import torch

    from gpt2kit.engine.forward import Forward
    from gpt2kit.engine.kernels import BLOCK

    count, T = sequences.shape
    blocks = -(-T // BLOCK)
    rows, zeros = np.arange(T, dtype=np.int32), np.zeros(T, np.int32)
    bits = rise = 0.0
    with (
        Forward(packed, runtime.cores(), blocks, max_rows=T, max_logits=T, max_sequences=1) as forward,
        torch.no_grad(),
    ):
        if not forward.is_compiled:
            tell("compiling", 0, 1)
        table = np.zeros((1, forward.blocks_per_sequence), np.int32)
        table[0, :blocks] = np.arange(blocks)
        for done, ids in enumerate(sequences):
            tell("measuring", done, count)
            got = torch.from_numpy(forward.step(ids.astype(np.int32), rows, zeros, table, rows)).log_softmax(1)
            wanted = model(torch.from_numpy(ids)[None])[0].log_softmax(1)  # T V
            if sampled:
                p = wanted.exp()
                bits -= float((p * wanted).sum())
                rise += float((p * (wanted - got)).sum())
            else:
                targets = torch.from_numpy(ids[1:, None])
                bits -= float(wanted[:-1].gather(1, targets).sum())
                rise += float((wanted[:-1].gather(1, targets) - got[:-1].gather(1, targets)).sum())
    tell("measuring", count, count)
    tokens = count * (T if sampled else T - 1)
    return Cost(100 * rise / max(bits, 1e-9), bits / tokens / float(np.log(2)), tokens, calibration)
