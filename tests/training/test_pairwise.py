"""Bradley and Terry's loss over a query's candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training import fast
from gpt2kit.training.pairwise import Preferences, candidates_row
from gpt2kit.training.rows import Row

ROWS = [
    candidates_row([[1, 2, 3], [4, 5], [6]]),
    candidates_row([[7, 8], [9, 10, 11, 12]]),
    candidates_row([[13], [1, 1, 1, 1, 1], [2, 2], [3]]),
]


@pytest.fixture(scope="module")
def model() -> GPT2:
    config = GPT2Config(16, 8, 16, 1, 2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, labels=("score",),
                        initializer_range=0.5)  # fmt: skip
    return GPT2(config, torch.Generator().manual_seed(0)).eval()


def loss_of(model: GPT2, rows: list[Row], smoothing: float = 0.0) -> tuple[Tensor, int]:
    objective = Preferences(smoothing)
    return objective.loss(model, *map(torch.from_numpy, objective.prepare(rows, 0, 0)))


def score(model: GPT2, ids: list[int]) -> float:
    return float(model.classify(torch.tensor([ids]), torch.tensor([len(ids)])).detach()[0, 0])


def test_the_loss_is_that_of_every_pair_with_the_right_candidate(model: GPT2) -> None:
    loss, count = loss_of(model, ROWS)
    pairs = []
    for row in ROWS:
        first, *others = (part.tolist() for part in np.split(row.ids, np.cumsum(row.labels)[:-1]))
        pairs += [math.log1p(math.exp(score(model, one) - score(model, first))) for one in others]
    assert count == len(pairs) == 6
    assert float(loss.detach()) == pytest.approx(sum(pairs), rel=1e-5)
    assert len({round(x, 4) for x in pairs}) == 6


def test_smoothing_gives_the_wrong_order_its_share(model: GPT2) -> None:
    row = [ROWS[1]]
    lead = score(model, [7, 8]) - score(model, [9, 10, 11, 12])
    right, wrong = math.log1p(math.exp(-lead)), math.log1p(math.exp(lead))
    assert float(loss_of(model, row, 0.2)[0].detach()) == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-5)
    objective = Preferences(0.2)
    plain = objective.judge(model, *map(torch.from_numpy, objective.prepare(row, 0, 0))).loss
    assert float(plain.detach()) == pytest.approx(right, rel=1e-5)


def test_slices_change_no_dropout_mask() -> None:
    config = GPT2Config(16, 8, 16, 1, 2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, labels=("score",))
    model = GPT2(config, torch.Generator().manual_seed(0))
    fast.accelerate(model, 0, 0.3, 0.0)
    model.train()

    def total(slices: list[list[Row]]) -> float:
        found, first = 0.0, 0
        for rows in slices:
            fast.PLACE.first_row = first
            found += float(loss_of(model, rows)[0].detach())
            first += len(rows)
        return found

    whole = total([ROWS])
    assert total([[row] for row in ROWS]) == pytest.approx(whole, rel=1e-6)
    assert total([ROWS[:2], ROWS[2:]]) == pytest.approx(whole, rel=1e-6)
    assert abs(total([ROWS[::-1]]) - whole) > 1e-3  # a row's mask is that of its place
    assert fast.PLACE.rows is None


def test_one_batch_is_the_sum_of_its_slices(model: GPT2) -> None:
    def gradient(parts: list[list[Row]]) -> Tensor:
        model.zero_grad()
        for part in parts:
            loss_of(model, part)[0].backward()
        assert model.wte.weight.grad is not None
        return model.wte.weight.grad.clone()

    together, apart = gradient([ROWS]), gradient([[row] for row in ROWS])
    assert torch.allclose(together, apart, atol=1e-5)  # fp32, another padding and order of sums
    assert together.abs().max() > 0.01
