"""The order of samples: a pure function of (seed, step, row), each window once an epoch."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.data.loader import BLOCK, Batches, permute
from gpt2kit.data.shards import PackedTokens, ShardWriter, SplitInfo
from gpt2kit.errors import UserError

M64 = 2**64 - 1


def slow_mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def slow_start(n: int, context: int, seed: int, g: int) -> int:
    """The first token of sample g, in plain integers, one at a time."""
    windows = max(1, (n - context) // context)
    shifts = n - windows * context
    epoch, index = divmod(g, windows)
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=64).digest()
    keys = hashlib.blake2b(digest, digest_size=64).digest()
    half = 2
    while 4**half < windows:
        half += 1
    while True:
        left, right = index >> half, index % 2**half
        for k in range(8):
            key = int.from_bytes(keys[8 * k : 8 * k + 8], "little")
            left, right = right, left ^ (slow_mix((right + key) & M64) % 2**half)
        index = left * 2**half + right
        if index < windows:
            return int.from_bytes(digest[:8], "little") % shifts + index * context


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 5000),
    context=st.integers(1, 70),
    batch=st.integers(1, 12),
    seed=st.integers(-(2**70), 2**70),
    step=st.one_of(st.integers(0, 300), st.integers(0, 2**40)),
)
def test_batches_match_the_slow_oracle(n: int, context: int, batch: int, seed: int, step: int) -> None:
    tokens = np.random.default_rng(n).integers(0, 50_000, n).astype(np.uint16)
    if n <= context:
        with pytest.raises(UserError, match="do not fill one window"):
            Batches(tokens, context, batch, seed)
        return
    got = Batches(tokens, context, batch, seed).at(step)
    assert got.dtype == np.int64
    assert got.shape == (batch, context + 1)
    for row in range(batch):
        start = slow_start(n, context, seed, step * batch + row)
        assert got[row].tolist() == tokens[start : start + context + 1].tolist()


def test_a_golden_order_stays() -> None:
    batches = Batches(np.arange(1000), context=10, batch=6, seed=1234)
    assert batches.starts(0, 0, 6).tolist() == GOLDEN[0]
    assert batches.starts(1_000_000, 0, 6).tolist() == GOLDEN[1]


GOLDEN = ([783, 753, 833, 903, 483, 163], [548, 288, 408, 388, 8, 858])


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 3 * BLOCK), st.data())
def test_any_slicing_of_a_batch_gives_the_same_rows(batch: int, data: st.DataObject) -> None:
    batches = Batches(np.arange(3000), context=4, batch=batch, seed=3)
    step = data.draw(st.integers(0, 50))
    cuts = sorted(data.draw(st.lists(st.integers(0, batch), max_size=5)))
    parts = [batches.rows(step, a, b) for a, b in zip([0, *cuts], [*cuts, batch], strict=True)]
    assert (np.concatenate(parts) == batches.at(step)).all()


@pytest.mark.parametrize(("n", "context", "batch"), [(1001, 10, 7), (64, 8, 3), (1000, 1, 32), (17, 8, 5), (9, 8, 2)])
def test_no_window_comes_twice_in_an_epoch_and_none_is_left_out(n: int, context: int, batch: int) -> None:
    batches = Batches(np.arange(n), context, batch, seed=5)
    per_epoch = batches.windows_per_epoch
    starts = np.concatenate([batches.starts(step, 0, batch) for step in range(6 * per_epoch)])
    for epoch in range(5):
        mine = sorted(starts[epoch * per_epoch : (epoch + 1) * per_epoch].tolist())
        shift = mine[0]
        assert 0 <= shift < 2 * context
        assert mine == [shift + i * context for i in range(per_epoch)]
        assert mine[-1] + context + 1 <= n
    assert batches.tokens_per_epoch == per_epoch * context
    assert batches.epoch_of(0) == 0
    assert batches.epoch_of(per_epoch) == batch


def test_window_borders_move_and_every_token_is_seen() -> None:
    batches = Batches(np.arange(105), context=10, batch=9, seed=0)
    assert batches.windows_per_epoch == 9
    firsts = {int(batches.starts(epoch, 0, 9).min()) for epoch in range(200)}
    assert firsts == set(range(15))
    assert set(np.concatenate([batches.at(step).ravel() for step in range(200)]).tolist()) == set(range(105))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100])
def test_permutations_are_permutations_and_look_uniform(size: int) -> None:
    places = np.zeros((size, size))
    rounds = 1000
    for epoch in range(rounds):
        keys = tuple(np.random.default_rng(epoch).integers(0, 2**63, 8).tolist())
        image = permute(np.arange(size), size, keys)
        assert sorted(image.tolist()) == list(range(size))
        places[np.arange(size), image] += 1
    expected = rounds / size
    chi2 = ((places - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert chi2 < freedom + 5 * (2 * freedom + 1) ** 0.5  # five standard deviations


def test_orders_of_three_are_equally_likely() -> None:
    batches = Batches(np.arange(35), context=8, batch=3, seed=9)
    assert batches.windows_per_epoch == 3
    orders = Counter(tuple(np.argsort(batches.starts(step, 0, 3)).tolist()) for step in range(1200))
    assert len(orders) == 6
    assert max(orders.values()) < 260  # 200 expected, 13 the standard deviation
    assert min(orders.values()) > 140


def test_seeds_and_epochs_differ() -> None:
    a, b = (Batches(np.arange(10_000), 10, 100, seed) for seed in (1, 2))
    assert (a.starts(0, 0, 100) != b.starts(0, 0, 100)).any()
    epoch = a.windows_per_epoch
    steps = [a.starts(step, 0, 100) for step in range(3 * epoch // 100)]
    whole = np.concatenate(steps)
    assert (whole[:epoch] != whole[epoch : 2 * epoch]).any()


def test_another_process_gives_the_same_batches() -> None:
    code = (
        "import numpy as np; from gpt2kit.data.loader import Batches;"
        "print(Batches(np.arange(5000), 16, 8, 77).at(123).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(Batches(np.arange(5000), 16, 8, 77).at(123).tolist())


def packed(folder: Path, ids: np.ndarray, vocab_size: int, shard_tokens: int) -> PackedTokens:
    with ShardWriter(folder, "train", vocab_size, "00" * 32, shard_tokens) as writer:
        writer.write(ids)
    info = SplitInfo(tuple(writer.names), 1, writer.tokens, 0, 0, 0)
    return PackedTokens([folder / name for name in writer.names], info, "00" * 32, vocab_size)


@pytest.mark.parametrize("shard_tokens", [7, 100, 10_000])
def test_packed_tokens_give_the_same_batches_as_an_array(tmp_path: Path, shard_tokens: int) -> None:
    ids = np.random.default_rng(0).integers(0, 500, 1234)
    fast = Batches(packed(tmp_path, ids, 500, shard_tokens), 16, 8, 1)
    slow = Batches(ids, 16, 8, 1)
    for step in range(40):
        assert (fast.at(step) == slow.at(step)).all()


def test_ids_that_changed_on_disk_are_refused_not_trained_on(tmp_path: Path) -> None:
    tokens = packed(tmp_path, np.zeros(100, dtype=np.int64), 500, 1000)
    with open(tmp_path / "train-00000.bin", "r+b") as file:
        file.seek(256)
        file.write(b"\xff" * 200)
    with pytest.raises(UserError, match="step 0 holds id 65535, outside the vocabulary of 500"):
        Batches(tokens, 16, 4, 0).at(0)


def test_too_few_tokens_say_how_many_and_what_to_do() -> None:
    with pytest.raises(UserError, match=r"100 tokens do not fill one window of 1,024 \+ 1") as caught:
        Batches(np.arange(100), 1024, 4, 0)
    assert "--context 50" in str(caught.value.hint)
    assert Batches(np.arange(11), 10, 1, 0).at(5).tolist() == [list(range(11))]


# preparing ahead


def threads() -> int:
    return sum(thread.name == "gpt2kit-prefetch" for thread in threading.enumerate())


def test_prefetched_batches_are_the_same_from_any_step() -> None:
    batches = Batches(np.arange(5000), 16, 8, 1)
    for depth in (1, 4):
        got = list(batches.prefetch(37, 60, depth=depth))
        assert len(got) == 23
        assert all((mine == batches.at(step)).all() for step, mine in zip(range(37, 60), got, strict=True))
    some = list(batches.prefetch(5, 9, rows=(2, 5)))
    assert (some[1] == batches.rows(6, 2, 5)).all()
    assert list(batches.prefetch(5, 5)) == []
    assert threads() == 0


def test_closing_ends_the_thread() -> None:
    batches = Batches(np.arange(5000), 16, 8, 1)
    endless = batches.prefetch(0, None)
    assert (next(endless) == batches.at(0)).all()
    assert threads() == 1
    endless.close()
    assert threads() == 0


def test_an_error_in_the_loop_ends_the_thread() -> None:
    batches = Batches(np.arange(5000), 16, 8, 1)
    with pytest.raises(ZeroDivisionError):
        divide_by_zero(batches)
    assert threads() == 0


def divide_by_zero(batches: Batches) -> None:
    for batch in batches.prefetch(0, None):
        batch[0, 0].item() // 0


class Failing:
    """Tokens whose reading fails, as a disk can."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, at: slice) -> np.ndarray:
        if at.start > 500:
            raise OSError("disk gone")
        return np.zeros(at.stop - at.start, dtype=np.int64)


def test_an_error_in_the_thread_is_raised_in_the_consumer() -> None:
    with pytest.raises(OSError, match="disk gone"):
        list(Batches(Failing(), 10, 1, 0).prefetch(0, 10_000))
    assert threads() == 0


def test_no_more_than_depth_batches_are_prepared_ahead() -> None:
    read: list[int] = []
    arrived = threading.Semaphore(0)

    class Counting(Failing):
        def __getitem__(self, at: slice) -> np.ndarray:
            read.append(at.start)
            arrived.release()
            return np.zeros(at.stop - at.start, dtype=np.int64)

    stream = Batches(Counting(), 10, 1, 0).prefetch(0, None, depth=3)
    next(stream)
    for _ in range(4):  # the one consumed and three ahead
        assert arrived.acquire(timeout=10)
    assert not arrived.acquire(timeout=0.05)
    stream.close()
    assert len(read) == 4
