from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.model.sampling import (
    INTEGERS,
    REALS,
    SamplingSettings,
    _draw_by_blocks,
    derive_seed,
    describe,
    draw,
    largest,
    log_softmax,
    process,
    random_seed,
    ranked,
    sample,
    uniform,
    warp,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from transformers.generation import logits_process as hf

V = 50
GREEDY = SamplingSettings(temperature=0)


def logits_of(seed: int, size: int = V, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def context_of(seed: int, length: int = 40) -> list[int]:
    return np.random.default_rng(seed + 999).integers(0, V, length).tolist()


def theirs(processors: list[object], context: list[int], logits: np.ndarray) -> np.ndarray:
    scores = torch.from_numpy(logits)[None]
    for processor in processors:
        scores = processor(torch.tensor([context]), scores)
    return scores[0].numpy()


def ours(logits: np.ndarray, s: SamplingSettings) -> np.ndarray:
    """Probabilities over the whole vocabulary after the warpers."""
    ids, weights = warp(logits, s)
    p = np.zeros(len(logits))
    p[slice(None) if ids is None else ids] = weights / weights.sum()
    return p


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores.astype(np.float64) - scores.max())
    return e / e.sum()


# --- Against transformers ---------------------------------------------------------------------------------

PROCESSORS = [
    ({"repetition_penalty": 1.3}, [hf.RepetitionPenaltyLogitsProcessor(1.3)]),
    ({"repetition_penalty": 0.7}, [hf.RepetitionPenaltyLogitsProcessor(0.7)]),
    ({"no_repeat_ngram": 1}, [hf.NoRepeatNGramLogitsProcessor(1)]),
    ({"no_repeat_ngram": 2}, [hf.NoRepeatNGramLogitsProcessor(2)]),
    ({"no_repeat_ngram": 3}, [hf.NoRepeatNGramLogitsProcessor(3)]),
    ({"bad_words": [[3], [5, 9], [1, 2, 4]]}, [hf.NoBadWordsLogitsProcessor([[3], [5, 9], [1, 2, 4]])]),
    ({"logit_bias": {4: 2.5, 9: -7.0}}, [hf.SequenceBiasLogitsProcessor([[[4], 2.5], [[9], -7.0]])]),
    ({"min_tokens": 60}, [hf.MinNewTokensLengthLogitsProcessor(0, 60, 7)]),
]


@pytest.mark.parametrize(("fields", "processors"), PROCESSORS)
def test_logits_processors_equal_transformers_bit_for_bit(fields, processors) -> None:
    s, changed = SamplingSettings(**fields), 0
    for seed in range(20):
        logits, context = logits_of(seed), [*context_of(seed), *(([5], [1, 2], [3, 8])[seed % 3])]
        if "no_repeat_ngram" in fields:  # make sure that something repeats
            context = [*context, *context[:7], *context[:4]]
        before = logits.copy()
        got = process(logits, s, context[:20], context[20:], eos_id=7)
        np.testing.assert_array_equal(got, theirs(processors, context, logits))
        np.testing.assert_array_equal(logits, before)
        changed += bool((got != logits).any())
    assert changed == 20


WARPERS = [
    ({"temperature": 0.7}, [hf.TemperatureLogitsWarper(0.7)]),
    ({"temperature": 2.5}, [hf.TemperatureLogitsWarper(2.5)]),
    ({"top_k": 1}, [hf.TopKLogitsWarper(1)]),
    ({"top_k": 7}, [hf.TopKLogitsWarper(7)]),
    ({"top_k": 10_000}, []),
    ({"top_p": 0.9}, [hf.TopPLogitsWarper(0.9)]),
    ({"top_p": 0.3}, [hf.TopPLogitsWarper(0.3)]),
    ({"top_p": 0.0}, [hf.TopPLogitsWarper(0.0)]),
    ({"min_p": 0.05}, [hf.MinPLogitsWarper(0.05)]),
    ({"min_p": 1.0}, [hf.MinPLogitsWarper(1.0)]),
    ({"typical_p": 0.9}, [hf.TypicalLogitsWarper(0.9)]),
    ({"typical_p": 0.2}, [hf.TypicalLogitsWarper(0.2)]),
    (
        {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "min_p": 0.03, "typical_p": 0.8},
        [
            hf.TemperatureLogitsWarper(1.4),
            hf.TopKLogitsWarper(20),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.03),
            hf.TypicalLogitsWarper(0.8),
        ],
    ),
]


@pytest.mark.parametrize(("fields", "warpers"), WARPERS)
@pytest.mark.parametrize("size", [V, 5000])
def test_warpers_equal_transformers(fields, warpers, size: int) -> None:
    for seed in range(20):
        logits = logits_of(seed, size)
        if seed % 2:
            logits[::3] = -np.inf  # what an earlier ban leaves
        want = softmax(theirs(warpers, [0], logits))
        got = ours(logits, SamplingSettings(**fields))
        assert ((got > 0) == (want > 0)).all()
        np.testing.assert_allclose(got, want, rtol=3e-5)  # theirs divides by the temperature in float32


def test_the_order_is_that_of_transformers() -> None:
    fields = {"repetition_penalty": 1.5, "no_repeat_ngram": 2, "bad_words": [[3]], "logit_bias": {4: 3.0}}
    chain = [
        hf.RepetitionPenaltyLogitsProcessor(1.5),
        hf.NoRepeatNGramLogitsProcessor(2),
        hf.NoBadWordsLogitsProcessor([[3]]),
        hf.SequenceBiasLogitsProcessor([[[4], 3.0]]),
    ]
    for seed in range(10):
        logits, context = logits_of(seed), context_of(seed)
        got = process(logits, SamplingSettings(**fields), context[:10], context[10:])
        np.testing.assert_array_equal(got, theirs(chain, context, logits))


# --- Definitions that are not transformers' ---------------------------------------------------------------


def test_presence_and_frequency_penalties_are_openais_and_look_at_the_output_only() -> None:
    logits = logits_of(0)
    s = SamplingSettings(presence_penalty=0.5, frequency_penalty=0.25)
    got = process(logits, s, prompt=[1, 1, 2], output=[3, 3, 3, 4])
    want = logits.copy()
    want[3] -= 0.5 + 3 * 0.25
    want[4] -= 0.5 + 0.25
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_min_tokens_bans_eos_and_stop_tokens_only_so_long() -> None:
    s = SamplingSettings(min_tokens=3, stop_token_ids=[8])
    early = process(logits_of(0), s, [1], [2, 2], eos_id=7)
    assert np.isneginf(early[[7, 8]]).all()
    assert np.isfinite(np.delete(early, [7, 8])).all()
    assert process(logits_of(0), s, [1], [2, 2, 2], eos_id=7)[7] == logits_of(0)[7]
    ignoring = dataclasses.replace(s, ignore_eos=True)
    assert np.isfinite(process(logits_of(0), ignoring, [1], [2], eos_id=7)[7])


def test_top_k_keeps_exactly_k_and_ties_go_to_the_lowest_id() -> None:
    logits = np.array([1, 3, 2, 3, 2, 2, 0], np.float32)
    ids, _ = warp(logits, SamplingSettings(top_k=4))
    assert ids.tolist() == [1, 2, 3, 4]
    assert ranked(logits, 5).tolist() == [1, 3, 2, 4, 5]
    assert sample(logits, GREEDY).token == 1
    assert sample(logits, SamplingSettings(top_k=1, seed=3)).token == 1


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_largest_is_the_head_of_a_stable_sort(values: list[int], k: int) -> None:
    row = np.array(values, np.float32)
    want = np.argsort(-row, kind="stable")[:k]
    assert ranked(row, k).tolist() == want.tolist()
    assert largest(row, k).tolist() == sorted(want.tolist())


@given(st.integers(0, 10_000), st.floats(0.01, 0.999), st.sampled_from([0.01, 1.0, 8.0]))
@settings(deadline=None, max_examples=60)
def test_top_p_without_a_full_sort_is_top_p_with_one(seed: int, top_p: float, scale: float) -> None:
    logits = logits_of(seed, 700, scale)
    _, weights = warp(logits, SamplingSettings())
    order = np.argsort(-weights, kind="stable")
    k = int((np.cumsum(weights[order]) < top_p * weights.sum()).sum()) + 1
    ids, _ = warp(logits, SamplingSettings(top_p=top_p))
    assert ids.tolist() == sorted(order[:k].tolist())


@pytest.mark.parametrize("scale", [0.05, 2.0, 5.0])
@pytest.mark.parametrize("mass", [0.1, 0.5, 0.95])
def test_typical_without_a_full_sort_is_typical_with_one(scale: float, mass: float) -> None:
    logits = logits_of(1, 20_000, scale)
    p = softmax(logits)
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(distance, kind="stable")
    k = int((np.cumsum(p[order]) < mass).sum()) + 1
    ids, _ = warp(logits, SamplingSettings(typical_p=mass))
    assert ids.tolist() == sorted(order[:k].tolist())


def test_a_draw_is_the_inverse_of_the_cumulative_sum_also_at_its_edges() -> None:
    weights = np.array([0.0, 1.0, 0.0, 3.0, 0.0])
    assert [draw(weights, u) for u in (0.0, 0.2, 0.25, 0.9, 1 - 2.0**-53)] == [1, 1, 3, 3, 3]
    assert draw(weights, 1.0) == 3  # u times the total, rounded up to the total


def test_logprobs_are_the_models_own_and_natural() -> None:
    logits = logits_of(1)
    s = SamplingSettings(temperature=0.5, top_k=3, repetition_penalty=2.0, seed=1, logprobs=4)
    choice = sample(logits, s, prompt=[1, 2, 3])
    want = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    assert choice.logprob == pytest.approx(want[choice.token].item(), abs=1e-12)
    top = want.topk(4)
    assert [i for i, _ in choice.alternatives] == top.indices.tolist()
    assert [p for _, p in choice.alternatives] == pytest.approx(top.values.tolist(), abs=1e-12)
    assert describe(logits, 5, 0).alternatives == ()
    assert describe(logits, 5, None).logprob is None
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)


# --- Randomness -------------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """The statistic in units of its standard deviation from its mean, over cells that expect 5 or more."""
    expected = p * counts.sum()
    big = expected >= 5
    observed = np.append(counts[big], counts[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


SHAPES = [
    {},
    {"temperature": 0.6},
    {"top_k": 12},
    {"top_p": 0.8},
    {"min_p": 0.05, "temperature": 1.5},
    {"typical_p": 0.8},
]


@pytest.mark.parametrize("fields", SHAPES)
@pytest.mark.parametrize("over", ["steps", "seeds"])
def test_frequencies_pass_chi_square_against_softmax(fields: dict[str, float], over: str) -> None:
    logits = logits_of(5, 40, 1.5)
    s = SamplingSettings(seed=11, **fields)
    p = ours(logits, s)
    draws = 5_000
    if over == "steps":
        tokens = [sample(logits, s, step=i).token for i in range(draws)]
    else:  # the same step under seeds 0, 1, 2...: neighbouring seeds must be independent, too
        seeds = (dataclasses.replace(s, seed=i) for i in range(draws))
        tokens = [sample(logits, one, step=3).token for one in seeds]
    counts = np.bincount(tokens, minlength=40)
    assert counts[p == 0].sum() == 0
    assert chi_square(counts, p) < 4


def test_a_wrong_distribution_fails_chi_square() -> None:
    logits = logits_of(5, 40, 1.5)
    s = SamplingSettings(seed=11, temperature=1.1)
    counts = np.bincount([sample(logits, s, step=i).token for i in range(5_000)], minlength=40)
    assert chi_square(counts, softmax(logits)) > 4


def test_top_k_of_all_and_top_p_of_one_are_plain() -> None:
    for seed in range(30):
        logits = logits_of(seed)
        plain = sample(logits, SamplingSettings(seed=seed)).token
        off = SamplingSettings(seed=seed, top_k=V, top_p=1.0, min_p=0.0, typical_p=1.0)
        assert sample(logits, off).token == plain


def test_temperature_near_zero_is_greedy() -> None:
    for seed in range(30):
        logits = logits_of(seed)
        want = sample(logits, GREEDY).token
        assert want == int(np.argmax(logits))
        for temperature in (1e-4, 1e-30, 5e-324):
            s = SamplingSettings(seed=seed, temperature=temperature)
            assert sample(logits, s).token == want


def test_a_draw_by_blocks_is_the_draw_from_one_long_sum() -> None:
    rng = np.random.default_rng(0)
    decided = 0
    for vocabulary in (1024, 1025, 1279, 5000, 50257) * 20:
        weights = np.exp(rng.normal(size=vocabulary) * rng.choice([0.1, 1, 4, 20]))
        weights /= weights.max()
        if rng.random() < 0.3:
            weights[rng.random(vocabulary) < 0.9] = 0
        cumulative = np.cumsum(weights)
        border = cumulative[rng.integers(vocabulary)] / cumulative[-1]  # where rounding decides
        for u in (0.0, 1 - 2.0**-53, min(border, 1 - 2.0**-53), *rng.random(5)):
            index = _draw_by_blocks(weights, u)
            if index is not None:
                assert index == np.searchsorted(cumulative, u * cumulative[-1], side="right")
                decided += 1
            assert weights[draw(weights, u)] > 0
    assert decided > 400  # of 800: the short way is taken


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    logits = logits_of(2)
    s = SamplingSettings(seed=42)
    first = [sample(logits, s, output=[0] * i).token for i in range(20)]
    backwards = [sample(logits, s, step=i).token for i in reversed(range(20))]
    assert first == backwards[::-1]
    assert len(set(first)) > 5
    assert first != [sample(logits, dataclasses.replace(s, seed=43), step=i).token for i in range(20)]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 9}, {"typical_p": 0.7}])
def test_a_row_does_not_depend_on_its_neighbours_or_its_place_in_memory(fields: dict[str, float]) -> None:
    rows = logits_of(3, 7 * 1001).reshape(7, 1001)  # rows of an odd length lie at every alignment
    wide = np.full((1001, 7), np.nan, np.float32)  # columns of the transposed are strided, with NaN beside
    for r, row in enumerate(rows):
        s = SamplingSettings(seed=r, logprobs=3, **fields)
        alone = sample(row.copy(), s, step=r)
        wide[:, r] = row
        assert sample(row, s, step=r) == alone
        assert sample(wide[:, r], s, step=r) == alone
        wide[:, r] = np.nan


def test_the_random_numbers_stay_as_they_are() -> None:
    """A seed that someone wrote down must give the same text in the next release."""
    assert [uniform(0, 0), uniform(0, 1), uniform(1, 0), uniform(2**64 - 1, 7)] == pytest.approx(
        [0.6524484863740322, 0.7012121095215252, 0.36818951565166946, 0.7238582745899125], abs=0
    )
    assert [derive_seed(7, j) for j in range(3)] == [7, 6315939623829251, 1160616749145043]


def test_uniform_is_uniform_and_uncorrelated() -> None:
    grid = np.array([[uniform(seed, step) for step in range(100)] for seed in range(200)])
    assert grid.min() >= 0
    assert grid.max() < 1
    counts = np.histogram(grid, 50, (0, 1))[0]
    assert chi_square(counts, np.full(50, 1 / 50)) < 4
    for a, b in [(grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)


def test_completions_have_seeds_of_their_own_and_the_first_keeps_the_seed() -> None:
    s = SamplingSettings(seed=7, n=4)
    assert s.for_completion(0) is s
    seeds = [s.for_completion(j).seed for j in range(1000)]
    assert len(set(seeds)) == 1000
    assert SamplingSettings().for_completion(3).seed is None
    assert random_seed() != random_seed()
    assert 0 <= random_seed() < 2**53


# --- What is refused --------------------------------------------------------------------------------------

BAD = [math.nan, math.inf, -math.inf, True, False, "1", 10**12, -(10**12), [1], {}, 1j, b"1"]


@pytest.mark.parametrize("name", [*INTEGERS, *REALS])
@pytest.mark.parametrize("value", BAD)
def test_a_bad_number_is_refused_with_field_and_range(name: str, value: object) -> None:
    if name == "seed" and value == 10**12:
        return
    low, high = {**INTEGERS, **REALS}[name]
    with pytest.raises(UserError, match=name) as error:
        SamplingSettings(**{name: value})
    assert f"{low:g}" in str(error.value) or str(low) in str(error.value)
    assert f"{high:g}" in str(error.value) or str(high) in str(error.value)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [1.0, 1.5, -1, 2**64])
def test_whole_numbers_are_not_guessed_from_others(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name):
        SamplingSettings(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": None}, "temperature"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": b"a"}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop_token_ids": "12"}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"bad_words": [[]]}, "bad_words"),
        ({"bad_words": [3]}, "bad_words"),
        ({"bad_words": "abc"}, "bad_words"),
        ({"bad_words": [[10**12]]}, "bad_words"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": {"1": 1.0}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"num_beams": 2}, "temperature 0"),
        ({"num_beams": 2, "n": 3, "temperature": 0}, "num_beams"),
        ({"min_tokens": 5, "max_tokens": 4}, "max_tokens"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingSettings(**fields)


def test_settings_are_normalised_frozen_and_hashable() -> None:
    s = SamplingSettings(
        stop="\n",
        stop_token_ids=np.array([3]),
        bad_words=[[np.int64(1)]],
        temperature=np.float32(0.5),
        top_k=0,
    )
    assert s.stop == ("\n",)
    assert s.stop_token_ids == (3,)
    assert s.bad_words == ((1,),)
    assert type(s.temperature) is float
    assert hash(s) == hash(dataclasses.replace(s))
    assert s == dataclasses.replace(s)
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("field", [{"logit_bias": {V: 1.0}}, {"bad_words": [[V]]}, {"stop_token_ids": [V]}])
def test_a_token_outside_the_vocabulary_is_refused_by_field(field: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(field))):
        sample(logits_of(0), SamplingSettings(temperature=0, **field))


@pytest.mark.parametrize("s", [GREEDY, SamplingSettings(seed=1), SamplingSettings(seed=1, top_k=3, min_tokens=1)])
@pytest.mark.parametrize(("poison", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_logits_that_are_not_finite_are_refused(s: SamplingSettings, poison: float, word: str) -> None:
    logits = logits_of(0)
    logits[13] = poison
    with pytest.raises(UserError, match=word):
        sample(logits, s, eos_id=2)
    with pytest.raises(UserError, match="infinite"):
        sample(np.full(V, -np.inf, np.float32), s, eos_id=2)


@pytest.mark.parametrize("s", [GREEDY, SamplingSettings(seed=1)])
def test_settings_that_ban_every_token_are_refused_as_such(s: SamplingSettings) -> None:
    s = dataclasses.replace(s, bad_words=[[i] for i in range(4)])
    with pytest.raises(UserError, match="every token is banned"):
        sample(logits_of(0, 4), s)


def test_sampling_without_a_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed"):
        sample(logits_of(0), SamplingSettings())


def test_a_banned_token_is_never_drawn_whatever_the_random_number() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    drawn = {sample(logits, SamplingSettings(seed=1), step=i).token for i in range(200)}
    assert drawn == {1, 3}
