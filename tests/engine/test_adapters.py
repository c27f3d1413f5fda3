"""Adapters over one base: the injected model's answers, numpy's bits, and one hash in any company."""

from __future__ import annotations

import gc
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle, Pair, some_smoothing, unsmoothed
from test_forward import BASE, CONFIGS, engine_weights, feed, prompt, tables_for

from gpt2kit import peft, runtime
from gpt2kit.engine import Engine, Request, source, weights
from gpt2kit.engine.forward import Forward
from gpt2kit.engine.weights import PackedWeights, pack
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.peft.method import linears

Factors = dict[str, Pair]


def some_factors(config: GPT2Config, seed: int, targets: str = "c_", size: float = 1.0) -> Factors:
    """Random factors on the Linears whose names hold `targets`, of several ranks, strong enough to change the text."""
    rng, found = np.random.default_rng(seed), {}
    for i, (name, (n_out, n_in)) in enumerate(linears(config).items()):
        if targets in name:
            r = (3, 8, 13, 4)[i % 4]
            a = rng.standard_normal((r, n_in)).astype(np.float32)
            b = rng.standard_normal((n_out, r)) * size / np.sqrt(n_in * r)
            found[name] = a, b.astype(np.float32)
    return found


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("name", ["plain", "one odd head", "odd sizes", "head of 64", "relu"])
def test_int8_with_an_adapter_equals_the_numpy_oracle_to_the_bit(name: str) -> None:
    config = CONFIGS[name]
    model, factors = engine_weights(config), some_factors(config, 3)
    ids = prompt(config, 41)
    with Forward(pack(model), threads=2, blocks=5) as forward:
        forward.use_adapter(0, forward.pack_adapter("a", factors))
        logits = feed(forward, ids, [5, 2, 1, 33], tables_for(forward, 1))
    expected = Oracle(model, unsmoothed(factors, some_smoothing(config))).logits(ids.tolist())
    np.testing.assert_array_equal(logits, expected)
    assert np.abs(expected - Oracle(model).logits(ids.tolist())).max() > 0.1 * np.ptp(expected)


@pytest.mark.parametrize("targets", ["c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_each_linear_takes_an_adapter_by_itself(targets: str) -> None:
    model, factors = engine_weights(BASE), some_factors(BASE, 4, targets)
    ids = prompt(BASE, 20)
    with Forward(pack(model), threads=2, blocks=5) as forward:
        forward.use_adapter(0, forward.pack_adapter("a", factors))
        logits = feed(forward, ids, [1, 19], tables_for(forward, 1))
    expected = Oracle(model, unsmoothed(factors, some_smoothing(BASE))).logits(ids.tolist())
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("name", ["plain", "one odd head", "odd sizes"])
def test_fp32_with_an_adapter_is_the_model_with_the_injected_one(name: str) -> None:
    config = CONFIGS[name]
    tensors = source.random_tensors(config, 7)
    model = GPT2(config).eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    adapted = peft.inject(model, peft.LoraConfig(rank=5, alpha=9.0, targets=".*"))
    factors: Factors = {}
    for i, (linear, delta) in enumerate(adapted.parts.deltas.items()):
        torch.nn.init.normal_(delta.lora_B, std=0.1, generator=torch.Generator().manual_seed(i))
        a, b = (getattr(delta, leaf).detach().numpy() for leaf in ("lora_A", "lora_B"))
        factors[linear] = a, b * np.float32(9.0 / 5)
    ids = prompt(config, 70)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(ids).long()[None])[0].numpy()
    with Forward(pack(source.from_tensors(config, tensors)), threads=2, blocks=5, max_logits=70) as forward:
        plain = feed(forward, ids, [70], tables_for(forward, 1))
        forward.use_adapter(0, forward.pack_adapter("a", factors))
        logits = feed(forward, ids, [1, 63, 6], tables_for(forward, 1))
    assert np.abs(logits - expected).max() <= 2e-5 * np.ptp(expected)  # as without an adapter, see test_forward.py
    assert np.abs(plain - expected).max() > 0.01 * np.ptp(expected)


def test_int8_with_an_adapter_is_near_the_injected_model() -> None:
    """The smoothing is not in what the adapter was trained on; folded the wrong way, it would be e times off."""
    model, factors = engine_weights(BASE, "fp32"), some_factors(BASE, 5, size=0.3)
    ids = prompt(BASE, 30)
    logits = []
    for one in (model, engine_weights(BASE)):
        with Forward(pack(one), threads=1, blocks=5) as forward:
            forward.use_adapter(0, forward.pack_adapter("a", factors))
            logits.append(feed(forward, ids, [30], tables_for(forward, 1)))
            forward.use_adapter(0, None)
            logits.append(feed(forward, ids, [30], tables_for(forward, 1)))
    exact, exact_plain, near, near_plain = logits
    size = np.ptp(exact)
    assert np.abs(near - exact).mean() < 2 * np.abs(near_plain - exact_plain).mean()
    assert np.abs(exact - exact_plain).mean() > 2 * np.abs(near - exact).mean()
    assert size > 0


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_threads_and_chunks_give_the_same_bytes_with_an_adapter(precision: weights.Precision) -> None:
    packed, ids, seen = pack(engine_weights(BASE, precision)), prompt(BASE, 60), []
    factors = some_factors(BASE, 6)
    for threads in (1, 2, 3):
        with Forward(packed, threads, blocks=5) as forward:
            forward.use_adapter(0, forward.pack_adapter("a", factors))
            for chunks in ([60], [1] * 60, [2, 2, 3, 7, 46]):
                seen.append(feed(forward, ids, chunks, tables_for(forward, 1)).tobytes())
    assert len(set(seen)) == 1


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_rows_of_several_adapters_and_of_none_do_not_change_each_other(precision: weights.Precision) -> None:
    lengths = [20, 23, 7, 31, 20]
    sequences = [prompt(BASE, n, seed=i) for i, n in enumerate(lengths)]
    with Forward(pack(engine_weights(BASE, precision)), threads=2, blocks=30) as forward:
        tables = tables_for(forward, 5)
        plain = [feed(forward, ids, [len(ids)], tables, slot) for slot, ids in enumerate(sequences)]
        ranks = {1: "c_", 3: "c_attn", 4: "mlp"}
        for slot, targets in ranks.items():
            forward.use_adapter(slot, forward.pack_adapter(targets, some_factors(BASE, slot, targets)))
        alone = [feed(forward, ids, [len(ids)], tables, slot) for slot, ids in enumerate(sequences)]
        tokens = np.concatenate(sequences)
        positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        slots = np.repeat(np.arange(5, dtype=np.int32), lengths)
        last = np.cumsum(lengths).astype(np.int32) - 1
        together = forward.step(tokens, positions, slots, tables, last)
        for slot in range(5):
            np.testing.assert_array_equal(together[slot], alone[slot][-1])
            assert np.array_equal(alone[slot], plain[slot]) is (slot not in ranks)
        for slot in ranks:
            forward.use_adapter(slot, None)
        again = forward.step(tokens, positions, slots, tables, last)
        for slot in range(5):
            np.testing.assert_array_equal(again[slot], plain[slot][-1])


def test_a_larger_rank_that_comes_later_disturbs_nobody() -> None:
    factors = some_factors(BASE, 1, "c_attn")
    name, (n_out, n_in) = next(iter(linears(BASE).items()))
    large = {name: (np.ones((40, n_in), np.float32), np.full((n_out, 40), 0.01, np.float32))}
    with Forward(pack(engine_weights(BASE)), threads=1, blocks=10) as forward:
        forward.use_adapter(0, forward.pack_adapter("small", factors))
        expected = feed(forward, prompt(BASE, 9), [9], tables_for(forward, 2), 0)
        forward.use_adapter(1, forward.pack_adapter("large", large))
        np.testing.assert_array_equal(feed(forward, prompt(BASE, 9), [9], tables_for(forward, 2), 0), expected)


# ---------------------------------------------------------------- the engine

CONFIG = GPT2Config(vocab_size=384, n_positions=160, n_embd=64, n_layer=2, n_head=2, eos_token_id=0)
NAMES = (None, "a", "b", "c")
TARGETS: Mapping[str, str] = {"a": "c_", "b": "c_attn", "c": "mlp"}
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def packed() -> dict[str, PackedWeights]:
    return {name: pack(source.random_weights(CONFIG, 11, name)) for name in ("int8", "fp32")}


@pytest.fixture
def make(packed: dict[str, PackedWeights]) -> Iterator[Make]:
    made: list[Engine] = []

    def engine(precision: str = "int8", max_batch: int = 8, threads: int = 2, rows: int = 128) -> Engine:
        forward = Forward(packed[precision], threads, 200, rows + max_batch, max_batch + 32, max_batch)
        made.append(Engine(forward, None, max_batch, eos_id=0))
        for name in TARGETS:
            add(made[-1], name)
        return made[-1]

    yield engine
    for one in made:
        one.close()


def add(engine: Engine, name: str, like: str | None = None) -> None:
    """The adapter of this name, or another's under it."""
    like = like or name
    engine.add_adapter(name, some_factors(CONFIG, ord(like), TARGETS[like], 0.6))


def questions() -> tuple[list[list[int]], list[SamplingSettings], list[str | None]]:
    """Each prompt four times: for the base and for three adapters."""
    rng = np.random.default_rng(3)
    stems = [rng.integers(1, 384, int(rng.integers(1, 90))).tolist() for _ in range(4)] + [[5, 6, 7] * 12]
    prompts = [stem for stem in stems for _ in NAMES]
    few = dict.fromkeys(range(10, 14), 100.0)  # a text over four tokens repeats itself
    kinds: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 0.7, "logit_bias": few}]
    each = [
        SamplingSettings(max_tokens=30, seed=i, logprobs=1, ignore_eos=True, **kinds[i // 4 % 3])
        for i in range(len(prompts))
    ]
    return prompts, each, list(NAMES) * len(stems)


def digest(answers: Any) -> str:
    return hashlib.sha256(repr([(one.token_ids, one.logprobs) for one in answers]).encode()).hexdigest()


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_one_hash_alone_and_in_any_mixed_company(make: Make, precision: str) -> None:
    prompts, each, names = questions()
    order = np.random.default_rng(1).permutation(len(prompts))
    mixed = [[list(one)[i] for i in order] for one in (prompts, each, names)]
    seen = {}
    engine = make(precision, max_batch=1)
    alone = [
        engine.generate([p], s, adapter=name, speculate=False)[0]
        for p, s, name in zip(prompts, each, names, strict=True)
    ]
    for way, options in {
        "batches of 8": {},
        "one thread, 32": {"max_batch": 32, "threads": 1},
        "chunks": {"rows": 17},
    }.items():
        engine = make(precision, **options)
        cost = engine._worker.scheduler.cost
        cost.base, cost.slope = 1.0, 0.02  # drafts pay
        cost.observe = lambda rows, seconds: None  # type: ignore[method-assign]
        for again in ("", ", prefixes from the cache"):
            found = engine.generate(mixed[0], mixed[1], adapter=mixed[2], speculate=True)
            answers: list[Any] = [None] * len(prompts)
            for i, one in zip(order, found, strict=True):
                answers[i] = one
            seen[way + again] = digest(answers)
        totals = engine.stats().totals
        assert totals.accepted_tokens > 9
        assert totals.prefix_tokens > 0
    assert set(seen.values()) == {digest(alone)}, seen
    for start in range(0, len(prompts), 4):  # four adapters, four texts
        assert len({tuple(one.token_ids) for one in alone[start : start + 4]}) > 1
    plain = Engine(Forward(engine._worker.scheduler.forward._packed, 2, 200), None, 8, eos_id=0)  # type: ignore[attr-defined]
    with plain:
        assert plain.generate(prompts[::4], each[::4]) == alone[::4]


def test_no_block_is_shared_between_adapters(make: Make) -> None:
    engine, ids = make(), list(range(1, 60))
    settings = SamplingSettings(max_tokens=2, temperature=0.0)
    found = [
        engine.submit(Request(ids, settings, adapter=name)) for name in (*NAMES, *NAMES) for _ in [engine.clear_cache()]
    ]
    for handle in found:
        handle.result(30)
    engine.clear_cache()
    cached = []
    for name in (*NAMES, *NAMES):
        handle = engine.submit(Request(ids, settings, adapter=name))
        handle.result(30)
        cached.append(handle.cached_tokens)
    assert cached == [0] * 4 + [48] * 4
    engine.remove_adapter("a")
    add(engine, "a")
    handle = engine.submit(Request(ids, settings, adapter="a"))
    handle.result(30)
    assert handle.cached_tokens == 0


def test_scores_vectors_and_several_completions_take_an_adapter(make: Make) -> None:
    engine, ids = make("fp32"), list(range(1, 30))
    assert engine.score(ids, adapter="b") == engine.score(ids, adapter="b") != engine.score(ids)
    assert not np.array_equal(engine.embed(ids, adapter="b"), engine.embed(ids))
    assert not np.array_equal(engine.embed(ids, "last", adapter="b"), engine.embed(ids, "last", adapter="c"))
    ((first, second),) = engine.generate(ids, n=2, seed=1, max_tokens=9, adapter="a")
    assert engine.generate(ids, seed=second.seed, max_tokens=9, adapter="a")[0].token_ids == second.token_ids
    assert [event.token for event in engine.stream(ids, seed=first.seed, max_tokens=9, adapter="a")] == first.token_ids


def test_who_runs_keeps_the_adapter_that_is_removed_meanwhile(make: Make) -> None:
    engine = make(max_batch=2)
    long = SamplingSettings(max_tokens=120, temperature=0.0, ignore_eos=True)
    old, new = (engine.generate([7, 8], long, adapter=name)[0].token_ids for name in ("a", "b"))
    assert old != new
    running = [engine.submit(Request([7, 8], long, adapter="a")) for _ in range(4)]  # two of them wait
    next(iter(running[0]))
    removed = weakref.ref(engine._adapters["a"])
    engine.remove_adapter("a")
    with pytest.raises(UserError, match="unknown adapter 'a'"):
        engine.generate([7, 8], adapter="a")
    add(engine, "a", like="b")
    later = engine.submit(Request([7, 8], long, adapter="a"))
    assert [handle.result(60)[0].token_ids for handle in running] == [old] * 4
    assert later.result(60)[0].token_ids == new
    assert engine._worker.scheduler.forward._lent == {}  # type: ignore[attr-defined]
    gc.collect()
    assert removed() is None  # nor does a handle that is kept hold its memory


def test_beams_and_classes_keep_the_adapter_that_is_replaced_meanwhile(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0, "num_beams": 3, "ignore_eos": True}
    old, new = (engine.generate([7, 8], adapter=name, **asked)[0].token_ids for name in ("a", "b"))
    heads = np.random.default_rng(0).normal(size=(2, 3, CONFIG.n_embd)).astype(np.float32)
    engine._heads |= {"a": heads[0], "b": heads[1]}
    classes = engine.classify([[7, 8]], adapter="a")
    real, runs = engine._run, []

    def replacing(handles: Any) -> Any:
        runs.append(1)
        if len(runs) == 2:
            engine.remove_adapter("a")
            add(engine, "a", like="b")
        return real(handles)

    monkeypatch.setattr(engine, "_run", replacing)
    assert engine.generate([7, 8], adapter="a", **asked)[0].token_ids == old
    assert engine.generate([7, 8], adapter="a", **asked)[0].token_ids == new
    engine.remove_adapter("a")
    add(engine, "a")
    engine._heads["a"] = heads[0]
    runs[:] = [1]
    assert engine.classify([[7, 8]], adapter="a").tolist() == classes.tolist()


def test_adapters_come_and_go_under_load(make: Make) -> None:
    engine = make(max_batch=4)
    settings = SamplingSettings(max_tokens=20, temperature=0.0, ignore_eos=True)
    expected = {name: engine.generate([9, 4], settings, adapter=name)[0].token_ids for name in NAMES}
    memory, stop, wrong = engine.memory, threading.Event(), []

    def ask(name: str | None) -> None:
        while not stop.is_set():
            try:
                if engine.generate([9, 4], settings, adapter=name)[0].token_ids != expected[name]:
                    wrong.append(name)
            except UserError as error:
                if "unknown adapter 'a'" not in str(error):
                    wrong.append(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for _ in range(30):
        engine.remove_adapter("a")
        add(engine, "a")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert engine.memory == memory
    assert engine.adapters == ["b", "c", "a"]
    engine._worker.scheduler.pool.check()


# ---------------------------------------------------------------- what users get wrong

A, B = np.ones((4, 64), np.float32), np.ones((192, 4), np.float32)
NAME = "h.0.attn.c_attn"
BAD: dict[str, tuple[Any, str]] = {
    "another Linear": ({"h.0.attn.c_atn": (A, B)}, "did you mean 'h.0.attn.c_attn'"),
    "a layer too many": ({"h.2.attn.c_attn": (A, B)}, "unknown Linear"),
    "the head": ({"lm_head": (A, B)}, "unknown Linear"),
    "nothing": ({}, "has no factors"),
    "a list": ([(A, B)], "has no factors"),
    "A alone": ({NAME: A[:1]}, r"needs floats A \[r, 64\] and B \[192, r\], got ndarray"),
    "two ranks": ({NAME: (A, B[:, :3])}, r"got float32 \[4, 64\], float32 \[192, 3\]"),
    "transposed": ({NAME: (A.T, B.T)}, "another shape"),
    "rank 0": ({NAME: (A[:0], B[:, :0])}, r"float32 \[0, 64\]"),
    "integers": ({NAME: (A.astype(int), B)}, "needs floats"),
    "NaN": ({NAME: (A * np.nan, B)}, "h.0.attn.c_attn holds NaN"),
    "infinity": ({NAME: (A, B * np.inf)}, "holds NaN, infinity"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_adapter_is_a_user_error_and_the_engine_goes_on(make: Make, name: str) -> None:
    engine = make()
    factors, message = BAD[name]
    with pytest.raises(UserError, match=message):
        engine.add_adapter("bad", factors)
    assert engine.adapters == ["a", "b", "c"]
    assert len(engine.generate([[1]], max_tokens=2, adapter="a")) == 1


def test_names_are_checked(make: Make) -> None:
    engine = make()
    with pytest.raises(UserError, match="there is an adapter 'a' already"):
        add(engine, "a")
    with pytest.raises(UserError, match="name must be text"):
        engine.add_adapter("", {NAME: (A, B)})
    add(engine, "poems", like="a")
    for call in (
        lambda: engine.generate([[1]], adapter="poem"),
        lambda: engine.stream([1], adapter="poem"),
        lambda: engine.remove_adapter("poem"),
        lambda: engine.embed([[1]], adapter="poem"),
    ):
        with pytest.raises(UserError, match="did you mean 'poems'"):
            call()
    with pytest.raises(UserError, match="one name for all or one for each"):
        engine.generate([[1]], adapter=["a", "b"])
    with pytest.raises(UserError, match="unknown adapter '5'"):
        engine.generate([[1]], adapter=[5])  # type: ignore[list-item]
    engine.close()
    with pytest.raises(UserError, match="closed"):
        add(engine, "later", like="a")


def test_an_adapter_that_the_memory_cannot_hold_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    monkeypatch.setattr(runtime, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="MB are free"):
        add(engine, "more", like="a")
    assert len(engine.generate([[1]], max_tokens=2, adapter="a")) == 1
