"""Which examples stand before a question."""

from __future__ import annotations

import pytest

from gpt2kit.data.families import AnswerRow, LabelRow, PairRow, Where
from gpt2kit.errors import UserError
from gpt2kit.tasks.shots import Shots, before

from gpt2kit.text.tokenizer import Tokenizer  # isort: skip

HERE = Where("test")


def row(text: str, label: str) -> LabelRow:
    return LabelRow(text, (label,), where=HERE)


POOL = [
    row("The soup was cold.", "bad"), row("The waiter was kind and the soup hot.", "good"),
    row("A film about a whale.", "good"), row("A film about nothing.", "bad"),
    row("这家店的汤很好喝。", "good"), row("电影太长了。", "bad"),
]  # fmt: skip


@pytest.mark.parametrize(("question", "likest"), [
    ("I liked the soups.", {0, 1}), ("a long film", {2, 3}), ("汤不好喝", {4}), ("电影", {5}),
])  # fmt: skip
def test_the_likest_examples_are_shown_in_english_and_chinese(question: str, likest: set[int]) -> None:
    found = Shots(POOL, len(likest)).of(row(question, ""))
    assert {POOL.index(one) for one in found} == likest  # type: ignore[arg-type]


def test_the_question_itself_is_never_shown() -> None:
    for count in (1, 5, 6):
        shown = Shots(POOL, count).of(row("the soup was COLD", ""))
        assert POOL[0] not in shown
        assert len(shown) == min(count, 5)


def test_the_order_and_what_is_drawn_depend_on_seed_and_question_alone() -> None:
    asked = [row(f"question {n}", "") for n in range(8)]  # no word in common: all are drawn
    first = [Shots(POOL, 4, seed=1).of(one) for one in asked]
    assert [Shots(POOL, 4, seed=1).of(one) for one in reversed(asked)] == first[::-1]
    assert [Shots(POOL, 4, seed=2).of(one) for one in asked] != first
    assert len({tuple(one.text for one in shown) for shown in first}) > 4  # type: ignore[attr-defined]
    likest = [[one.text for one in Shots(POOL, 2, seed).of(row("cold soup", ""))] for seed in range(8)]  # type: ignore
    assert {tuple(sorted(shown)) for shown in likest} == {tuple(sorted(likest[0]))}
    assert len({tuple(shown) for shown in likest}) == 2  # in both orders


def test_balanced_examples_hold_each_label_alike() -> None:
    pool = [row(f"soup {n}", "good") for n in range(9)] + [row(f"bread {n}", "bad") for n in range(3)]
    shown = Shots(pool, 4, balanced=True).of(row("soup", ""))
    assert sorted(one.labels[0] for one in shown) == ["bad", "bad", "good", "good"]  # type: ignore[attr-defined]
    assert [one.labels[0] for one in Shots(pool, 4).of(row("soup", ""))] == ["good"] * 4  # type: ignore[attr-defined]
    assert len(Shots(pool, 5, balanced=True).of(row("soup", ""))) == 5


def test_pairs_and_questions_are_found_by_what_is_asked() -> None:
    pairs = [PairRow("good morning", "早上好", where=HERE), PairRow("good night", "晚安", where=HERE)]
    assert Shots(pairs, 1).of(PairRow("the night", "", where=HERE)) == [pairs[1]]
    asked = [AnswerRow(q, "the same passage", (), where=HERE) for q in ("Who wrote it?", "Where is it?")]
    assert Shots(asked, 1).of(AnswerRow("Where was that?", "other", (), where=HERE)) == [asked[1]]


def test_what_finds_no_room_is_left_out_from_the_first_on(tokenizer: Tokenizer) -> None:
    ids, kept = before(["aaaa", "bbbb", "cc"], "dd", tokenizer, 12)
    assert tokenizer.decode(ids) == "bbbb\n\ncc\n\ndd"
    assert kept == 2
    assert before(["aaaa"], "d" * 30, tokenizer, 12) == (tokenizer.encode("d" * 30), 0)


def test_nothing_to_show_is_said() -> None:
    with pytest.raises(UserError, match="from 1 to 100"):
        Shots(POOL, 0)
    with pytest.raises(UserError, match="no examples"):
        Shots([], 2)
