"""Drafts come from the text itself, and only where they pay."""

from __future__ import annotations

import random

import pytest

from gpt2kit.engine.speculate import FIRST_ODDS, HORIZON, LONGEST_DRAFT, Drafter, StepCost


def drafter(ids: list[int]) -> Drafter:
    return Drafter(ids, list(FIRST_ODDS))


def feed(made: Drafter, tokens: list[int]) -> None:
    for token in tokens:
        made.ids.append(token)
        made.push(token)


def test_what_followed_the_same_three_tokens_is_drafted() -> None:
    made = drafter([1, 2, 3, 4, 5, 6, 9, 9, 1, 2, 3])
    assert made.draft(4, 0.0) == [4, 5, 6, 9]
    assert made.match == 3


def test_three_equal_tokens_go_before_two_later_ones() -> None:
    made = drafter([1, 2, 3, 4, 5, 7, 2, 3, 8, 5, 1, 2, 3])
    assert made.draft(1, 0.0) == [4]


def test_two_equal_tokens_do_where_there_are_no_three() -> None:
    assert drafter([7, 2, 3, 8, 5, 1, 2, 3]).draft(2, 0.0) == [8, 5]


def test_the_latest_occurrence_counts() -> None:
    assert drafter([1, 2, 3, 4, 1, 2, 3, 5, 0, 1, 2, 3]).draft(1, 0.0) == [5]


def test_nothing_is_drafted_without_a_match() -> None:
    assert drafter([1, 2, 3, 4, 5, 6]).draft(7, 0.0) == []
    assert drafter([1]).draft(7, 0.0) == []
    assert drafter([]).draft(7, 0.0) == []


def test_a_match_that_reaches_the_end_goes_round() -> None:
    assert drafter([5, 6, 7, 5, 6, 7, 5, 6]).draft(7, 0.0) == [7, 5, 6, 7, 5, 6, 7]
    assert drafter([3, 3, 3, 3]).draft(4, 0.0) == [3, 3, 3, 3]


def test_a_growing_text_is_indexed_as_a_given_one() -> None:
    rng = random.Random(0)
    text = [rng.randrange(5) for _ in range(300)]
    grown = drafter(text[:3])
    feed(grown, text[3:])
    whole = drafter(list(text))
    assert grown.threes == whole.threes
    assert grown.twos == whole.twos


def test_a_long_text_forgets_its_beginning_and_stays_bounded() -> None:
    rng = random.Random(0)
    made = drafter([])
    feed(made, [rng.randrange(10**6) for _ in range(5 * HORIZON)])
    assert len(made.twos) <= 2 * HORIZON + 1
    feed(made, made.ids[-50:-40])
    assert made.draft(3, 0.0) == made.ids[-50:-47]


def test_the_match_is_measured_backwards_and_grows_with_each_hit() -> None:
    text = list(range(20))
    made = drafter([*text, 99, *text[:10]])
    assert made.match == 10
    feed(made, [10])
    assert made.match == 11
    feed(made, [50])
    assert made.source == -1


def test_odds_follow_what_happens_even_when_nothing_is_drafted() -> None:
    rng = random.Random(0)
    made = drafter([])
    feed(made, [rng.randrange(6) for _ in range(400)])
    assert made.odds[0] < 0.35
    noise = made.odds[-1]
    feed(made, list(range(10, 20)) * 8)
    assert made.odds[-1] > noise
    assert made.draft(LONGEST_DRAFT, 0.3) == [10, 11, 12, 13, 14, 15, 16]


def test_a_draft_ends_where_its_odds_fall_below_the_cost() -> None:
    made = drafter([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    chain = [0.35, 0.35 * 0.6, 0.35 * 0.6 * 0.6]
    assert made.expected(3) == pytest.approx(sum(chain))
    assert made.draft(7, chain[0]) == []
    assert made.draft(7, chain[1] - 1e-9) == [4, 5]
    assert len(made.draft(2, 0.0)) == 2


def test_new_streams_begin_with_what_others_have_seen() -> None:
    common = list(FIRST_ODDS)
    made = Drafter([], common)
    rng = random.Random(0)
    feed_on = [rng.randrange(4) for _ in range(500)]
    feed(made, feed_on)
    assert common[0] != FIRST_ODDS[0]
    assert Drafter([], common).odds == common
    assert Drafter([], common).odds is not common


def test_the_cost_of_a_row_is_learnt() -> None:
    cost = StepCost()
    rng = random.Random(0)
    for _ in range(300):
        rows = rng.choice([1, 2, 4, 8])
        cost.observe(rows, 0.004 + 0.0005 * rows + rng.gauss(0, 0.0001))
    assert cost.slope == pytest.approx(0.0005, rel=0.15)
    assert cost.seconds_of(1) == pytest.approx(0.0045, rel=0.1)


def test_steps_of_one_size_say_nothing_about_the_slope() -> None:
    cost = StepCost()
    for _ in range(300):
        cost.observe(1, 0.004)
    assert cost.seconds_of(1) == pytest.approx(0.004)
    assert cost.slope == pytest.approx(0.004 * StepCost.FIRST_SHARE)


def test_one_interrupted_step_hardly_matters() -> None:
    cost = StepCost()
    for i in range(50):
        cost.observe(1 + i % 2, 0.004 + 0.001 * (i % 2))
    cost.observe(1, 3.0)
    assert cost.seconds_of(1) < 0.006
