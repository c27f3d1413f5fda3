"""Seconds to a validation loss of 1.88 on tinyshakespeare's characters, beside nanoGPT's published CPU settings.

    GPT2KIT_DATA=... python benchmarks/time_to_loss.py [--nanogpt DIR] [--long]

The text's first nine tenths train, the rest validates, all of it, in windows of 64 characters: nanoGPT's split and
metric. nanoGPT's settings: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps, AdamW 1e-3 to 1e-4 by cosine
after 100 steps of warm-up, beta2 0.99, decay 0.1, no dropout; evaluation every 250 steps on 20 batches of each split.
They run around nanoGPT's own model where --nanogpt names a checkout, else around this project's model file without its
training kernels (the same operations). Text: the `char-rnn` repository's tinyshakespeare/input.txt, public domain.
--long trains towards nanoGPT's GPU figure, 1.47, instead (context 256, windows of 256).
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: its tokenize.py must not stand in for the standard library's

import argparse
import contextlib
import io
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpt2kit import runtime
from gpt2kit.data.loader import Batches
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.training import loop, optim
from gpt2kit.training.checkpoint import State
from gpt2kit.training.config import TrainConfig

WINDOW = 64
SHORT = (
    GPT2Config(65, 64, n_embd=160, n_layer=3, n_head=5, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    TrainConfig(steps=225, batch=32, context=64, learning_rate=4e-3, matrix_learning_rate=0.04, warmup=10, workers=2),
)
LONG = (
    GPT2Config(vocab_size=65, n_positions=256, n_embd=256, n_layer=6, n_head=4, resid_pdrop=0.2, embd_pdrop=0.2,
               attn_pdrop=0),
    TrainConfig(steps=4000, batch=16, context=256, learning_rate=3e-3, matrix_learning_rate=0.02, warmup=50, workers=2,
                dropout=0.2),
)  # fmt: skip


def tokens() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    root = os.environ.get("GPT2KIT_DATA")
    if root is None:
        raise SystemExit("set GPT2KIT_DATA to a folder that holds text/tinyshakespeare.txt")
    text = (Path(root) / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    data = np.array([ids[c] for c in text], dtype=np.int64)
    cut = int(0.9 * len(data))
    return data[:cut], data[cut:]


def windows(validation: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    n = (len(validation) - 1) // size
    return np.stack([validation[i * size : i * size + size + 1] for i in range(n)])


@torch.no_grad()
def whole_loss(logits: Any, held_out: np.ndarray[Any, Any]) -> float:
    total = 0.0
    for part in np.array_split(held_out, 1 + len(held_out) // 128):
        x = torch.from_numpy(part)
        out = logits(x[:, :-1])
        total += float(F.cross_entropy(out.reshape(-1, out.shape[-1]).float(), x[:, 1:].reshape(-1), reduction="sum"))
    return total / (held_out.shape[0] * (held_out.shape[1] - 1))


def ours(shape: tuple[GPT2Config, TrainConfig], seed: int = 0, log: bool = False) -> tuple[float, float]:
    """(seconds of training, validation loss), with gpt2kit's loop."""
    train, validation = tokens()
    model_config, config = shape
    runtime.set_threads()
    runtime.tune_allocator()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        network = GPT2(model_config, torch.Generator().manual_seed(seed))
        every = windows(validation, config.context) if log else None
        run = loop.Run(
            Path(folder), network, None, config, Batches(train, config.context, config.batch, seed), every,
            runtime.choose_precision(), {},
        )  # fmt: skip
        for event in loop.fit(run, optim.build(network, config), State(total=config.steps)):
            if log and isinstance(event, loop.Evaluated):
                print(f"    step {event.step}: {event.loss:.4f} after {time.perf_counter() - start:.0f} s", flush=True)
        seconds = time.perf_counter() - start
    return seconds, whole_loss(network, windows(validation, config.context))


def nanogpt(directory: str | None) -> tuple[float, float]:
    """The same with nanoGPT's settings in a plain loop."""
    train, validation = tokens()
    torch.manual_seed(1337)
    if directory is None:
        network = GPT2(GPT2Config(65, 64, 128, 4, 4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
        logits: Any = network
    else:
        sys.path.insert(0, directory)
        from model import GPT, GPTConfig  # type: ignore[import-not-found]

        with contextlib.redirect_stdout(io.StringIO()):
            network = GPT(
                GPTConfig(block_size=64, vocab_size=65, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False)
            )
        logits = lambda x: network(x, x)[0]  # noqa: E731
    groups = [
        {"params": [p for p in network.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def batch(data: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(data) - WINDOW, (12,))
        x = torch.stack([torch.from_numpy(data[i : i + WINDOW + 1]) for i in starts.tolist()])
        return x[:, :-1], x[:, 1:]

    def loss_on(data: np.ndarray[Any, Any]) -> torch.Tensor:
        x, y = batch(data)
        out = logits(x)
        return F.cross_entropy(out.reshape(-1, 65), y.reshape(-1))

    start = time.perf_counter()
    for step in range(2000):
        if step % 250 == 0:
            with torch.no_grad():
                for data in (train, validation):
                    _ = sum(float(loss_on(data)) for _ in range(20)) / 20
        progress = (step - 100) / (2000 - 100)
        rate = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * progress)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_on(train)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    return seconds, whole_loss(logits, windows(validation, WINDOW))


def main(directory: str | None = None, rounds: int = 3) -> None:
    ours(SHORT)  # compile the kernels before the clock runs
    pairs = []
    for _ in range(rounds):
        us, them = ours(SHORT), nanogpt(directory)
        pairs.append((us, them))
        print(
            f"to 1.88: ours {us[0]:.1f} s (loss {us[1]:.4f}), nanoGPT's settings {them[0]:.1f} s (loss {them[1]:.4f}): "
            f"{us[0] / them[0]:.2f} of their time",
            flush=True,
        )
    ratio = sorted(us[0] / them[0] for us, them in pairs)[rounds // 2]
    print(f"median ratio {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--long", action="store_true")
    arguments = parser.parse_args()
    if arguments.long:
        print("to 1.47: {:.0f} s, loss {:.4f}".format(*ours(LONG, log=True)))
    else:
        main(arguments.nanogpt)
