"""The loss of a span's two ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.training.rows import Row
from gpt2kit.training.spans import SpanEnds

ROWS = [
    Row(np.array([1, 2, 3, 4, 5, 6]), 2, (3, 4)),
    Row(np.array([7, 8, 9, 6]), 1, (3, 3)),  # no answer: the last token
    Row(np.array([2, 4, 6, 8, 10, 12, 14, 6]), 3, (3, 6)),
]


@pytest.fixture(scope="module")
def model() -> GPT2:
    config = GPT2Config(16, 8, 16, 1, 2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, labels=("start", "end"),
                        initializer_range=0.5)  # fmt: skip
    return GPT2(config, torch.Generator().manual_seed(0)).eval()


def loss_of(model: GPT2, rows: list[Row], smoothing: float = 0.0) -> tuple[Tensor, int]:
    objective = SpanEnds(smoothing)
    return objective.loss(model, *map(torch.from_numpy, objective.prepare(rows, 0, 0)))


def test_the_loss_is_over_the_passage_and_the_end_alone(model: GPT2) -> None:
    expected = []
    for row in ROWS:
        scores = model.score(model.hidden(torch.from_numpy(row.ids)[None]))[0]  # T 2
        logs = scores[row.start :].log_softmax(0)
        expected += [-float(logs[place - row.start, column].detach()) for column, place in enumerate(row.labels)]
    loss, count = loss_of(model, ROWS)
    assert count == 6
    assert float(loss.detach()) == pytest.approx(sum(expected), rel=1e-5)
    assert len({round(x, 4) for x in expected}) == 6


def test_smoothing_spreads_over_what_may_be_chosen(model: GPT2) -> None:
    row = ROWS[0]
    logs = model.score(model.hidden(torch.from_numpy(row.ids)[None]))[0, row.start :].log_softmax(0)
    right = logs[1, 0] + logs[2, 1]
    expected = -0.9 * right - 0.1 * logs.mean(0).sum()
    loss, _ = loss_of(model, [row], 0.1)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


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
