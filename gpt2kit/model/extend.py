"""A model for a longer vocabulary: more rows in the token embedding, and in the head where it is not tied to it.

Starts of a new row: "transplant", half the mean of the rows of the old tokens that the new one is made of; "mean", the
mean of all old rows (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"); "random",
N(0, 0.02) as in a new model.

Half, because long rows turn slowly: of Chinese poems in a young English model, after 63 and 84 s of training, half the
mean gave 7.759 and 7.592 bits per character, all of it 7.800 and 7.611, a quarter 7.794 and 7.619 (LOG.md).

Transplanted rows can be shifted together, towards the mean of all old rows. Pieces that the model has hardly seen, such
as the bytes of Chinese in an English model, have rows that make them unlikely everywhere, and tokens made of them would
start as unlikely; pieces that it knows say where they belong, and that is lost by a shift. `recipes/extend.py` tries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from gpt2kit.errors import unknown
from gpt2kit.model.gpt2 import GPT2

Start = Literal["transplant", "mean", "random"]
SHARE = 0.5  # of the mean of a transplanted row's pieces


@torch.no_grad()
def grow(
    model: GPT2, first: int, parts: Sequence[Sequence[int]], start: Start = "transplant", seed: int = 0,
    shift: float = 0.0,
) -> GPT2:  # fmt: skip
    """A copy of `model` whose token `first + i` is made of the old tokens `parts[i]`, all of them below `first`.

    `shift`: of transplanted rows, 0 to leave them, 1 for a mean of theirs that is the mean of the old rows. Rows of a
    padded embedding beyond `first` are taken first. Old rows and all other weights are equal, bit by bit.
    """
    if start not in get_args(Start):
        raise unknown("start of embedding rows", start, get_args(Start))
    size = max(model.config.vocab_size, first + len(parts))
    grown = GPT2(dataclasses.replace(model.config, vocab_size=size), torch.Generator().manual_seed(seed))
    weights = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in ("wte.weight", "lm_head.weight"):
        if name in weights:
            old = weights[name]
            rows = _rows(old, first, parts, start, model.config.initializer_range, generator, shift)
            rest = old[first + len(parts) :]
            weights[name] = torch.cat([old[:first], rows.to(old.dtype), rest])
    grown.load_state_dict(weights)
    return grown.to(next(model.parameters()).dtype).eval()


def _rows(
    old: Tensor, first: int, parts: Sequence[Sequence[int]], start: Start, std: float, generator: torch.Generator,
    shift: float,
) -> Tensor:  # fmt: skip
    """[n, C] for the new tokens, out of the old rows [V, C]."""
    if start == "random":
        return torch.empty(len(parts), old.shape[1]).normal_(0.0, std, generator=generator)
    middle = old[:first].double().mean(0)
    if start == "mean":
        return middle.expand(len(parts), -1)
    rows = SHARE * torch.stack([old[list(ids)].double().mean(0) for ids in parts])
    return rows + shift * (middle - rows.mean(0))
