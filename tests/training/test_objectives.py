"""Masking and fill-in-the-middle: the right shares, nothing lost, and the same for the same (seed, step, row)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer
from gpt2kit.training import losses
from gpt2kit.training.objectives import FIM, MASK, TextObjective

TEXT = "the quick brown fox jumps over the lazy dog 0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], "char").with_special([MASK, *FIM])


def windows(n: int, length: int = 129, seed: int = 0) -> np.ndarray[Any, Any]:
    """Ids below 50: none of them a special token."""
    return np.random.default_rng(seed).integers(0, 50, (n, length))


def objective(toy: Any, tokenizer: Tokenizer, name: str, seed: int = 0) -> TextObjective:
    return TextObjective(toy.settings(objective=name, seed=seed), tokenizer.vocab_size, tokenizer)


def test_next_token_leaves_windows_alone(toy: Any, tokenizer: Tokenizer) -> None:
    given = windows(3)
    assert objective(toy, tokenizer, "next").prepare(given, 5, 0)[0] is given


def test_masking_follows_bert(toy: Any, tokenizer: Tokenizer) -> None:
    """15 % of the tokens count; of these 80 % become the mask, 10 % another token, 10 % stay (51,200 tokens)."""
    given = windows(400)
    inputs, targets = objective(toy, tokenizer, "masked").prepare(given, 0, 0)
    assert inputs.shape == targets.shape == (400, 128)
    counted = targets != losses.IGNORED
    assert np.array_equal(targets[counted], given[:, :-1][counted])
    assert np.array_equal(inputs[~counted], given[:, :-1][~counted])
    assert counted.mean() == pytest.approx(0.15 + 0.85 / 128, abs=0.01)  # one more is always chosen
    mask = tokenizer.special_tokens[MASK]
    fate = inputs[counted]
    assert (fate == mask).mean() == pytest.approx(0.8, abs=0.02)
    stayed = (fate == targets[counted]).mean()
    assert stayed == pytest.approx(0.1 + 0.1 / tokenizer.vocab_size, abs=0.015)
    changed = fate[(fate != mask) & (fate != targets[counted])]
    assert len(np.unique(changed)) > tokenizer.vocab_size * 0.8  # drawn from all of the vocabulary
    assert inputs.max() < tokenizer.vocab_size


def test_every_masked_row_counts_something(toy: Any, tokenizer: Tokenizer) -> None:
    _, targets = objective(toy, tokenizer, "masked").prepare(windows(200, 5), 0, 0)
    assert ((targets != losses.IGNORED).sum(1) >= 1).all()


def split(row: np.ndarray[Any, Any], tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """(prefix, suffix, middle) of a rearranged row."""
    prefix, suffix, middle = (tokenizer.special_tokens[name] for name in FIM)
    ids = row.tolist()
    assert [ids.count(marker) for marker in (prefix, suffix, middle)] == [1, 1, 1]
    assert ids[0] == prefix
    a, b = ids.index(suffix), ids.index(middle)
    assert 0 < a < b
    return ids[1:a], ids[a + 1 : b], ids[b + 1 :]


def test_fim_moves_the_middle_last_and_loses_nothing(toy: Any, tokenizer: Tokenizer) -> None:
    given = windows(400, 65)
    (out,) = objective(toy, tokenizer, "fim").prepare(given, 0, 0)
    assert out.shape == given.shape
    assert out.dtype == np.int64
    moved = 0
    lengths = []
    for before, after in zip(given, out, strict=True):
        if np.array_equal(before, after):
            continue
        moved += 1
        prefix, suffix, middle = split(after, tokenizer)
        assert prefix + middle + suffix == before[:-3].tolist()
        lengths.append(len(middle))
    assert moved / len(given) == pytest.approx(0.5, abs=0.08)
    assert np.mean(lengths) == pytest.approx(62 / 3, rel=0.15)  # two uniform cuts: a third of the text lies between
    assert min(lengths) < 5
    assert max(lengths) > 45


def test_fim_leaves_short_windows_alone(toy: Any, tokenizer: Tokenizer) -> None:
    given = windows(50, 7)
    assert np.array_equal(objective(toy, tokenizer, "fim").prepare(given, 0, 0)[0], given)


def test_fim_is_trained_by_next_token(toy: Any, tokenizer: Tokenizer) -> None:
    assert objective(toy, tokenizer, "fim").loss.func is losses.next_token
    assert objective(toy, tokenizer, "masked").loss.func is losses.masked


@pytest.mark.parametrize("name", ["masked", "fim"])
def test_a_slice_is_prepared_as_in_the_whole_batch(toy: Any, tokenizer: Tokenizer, name: str) -> None:
    given, one = windows(12, 33), objective(toy, tokenizer, name, seed=4)
    whole = one.prepare(given, 7, 0)
    part = one.prepare(given[5:9], 7, 5)
    assert np.array_equal(part, [array[5:9] for array in whole])
    assert np.array_equal(objective(toy, tokenizer, name, seed=4).prepare(given, 7, 0), whole)


@pytest.mark.parametrize("name", ["masked", "fim"])
@pytest.mark.parametrize(("seed", "step", "row"), [(5, 7, 0), (4, 8, 0), (4, 7, 12)])
def test_another_seed_step_or_row_is_prepared_otherwise(
    toy: Any, tokenizer: Tokenizer, name: str, seed: int, step: int, row: int
) -> None:
    given = np.repeat(windows(1, 33), 12, axis=0)
    before = objective(toy, tokenizer, name, seed=4).prepare(given, 7, 0)
    after = objective(toy, tokenizer, name, seed=seed).prepare(given, step, row)
    assert not np.array_equal(before, after)
    assert len(np.unique(before[-1], axis=0)) > 4  # rows differ from each other


def test_windows_are_not_changed_in_place(toy: Any, tokenizer: Tokenizer) -> None:
    given = windows(20)
    kept = given.copy()
    for name in ("masked", "fim"):
        objective(toy, tokenizer, name).prepare(given, 0, 0)
    assert np.array_equal(given, kept)


@pytest.mark.parametrize(("name", "missing"), [("masked", [MASK]), ("fim", list(FIM))])
def test_missing_special_tokens_are_named_with_the_fix(toy: Any, name: str, missing: list[str]) -> None:
    bare = train_tokenizer([TEXT], "char")
    for given in (bare, None):
        with pytest.raises(UserError) as caught:
            TextObjective(toy.settings(objective=name), 65, given)
        for token in missing:
            assert token in caught.value.message
            assert token in str(caught.value.hint)


def test_label_smoothing_is_for_training_only(toy: Any, tokenizer: Tokenizer) -> None:
    one = TextObjective(toy.settings(label_smoothing=0.2), 65, tokenizer)
    model, batch = toy.model(), toy.ids(2, 17)
    assert float(one.loss(model, batch)[0].detach()) != float(one.judge(model, batch).loss.detach())
    assert float(one.judge(model, batch).loss.detach()) == float(losses.next_token(model, batch)[0].detach())
