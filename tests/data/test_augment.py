"""Augmentation: pure functions of row, seed and index; what they change, and what they never touch."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2kit.data.augment import augment, delete, exchange, insert, is_word, noise, pieces, swap
from gpt2kit.data.confusions import CHINESE, Confusions, slip
from gpt2kit.data.examples import AnswerRow, LabelRow, PairRow, Row, TextRow, Where, read_examples
from gpt2kit.data.neighbours import Neighbours
from gpt2kit.errors import UserError
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

DATA = os.environ.get("GPT2KIT_DATA")
HERE = Where("a.csv", 1)
ENGLISH = "The quick brown fox doesn't jump over the lazy dog, it sleeps."
TAKEAWAY = "菜味道很棒！送餐很及时，下次还来。"
METHODS = {"delete": delete, "swap": swap, "insert": insert}


def labelled(text: str, pair: str | None = None) -> LabelRow:
    return LabelRow(text, ("pos",), pair, where=HERE)


def words(text: str) -> list[str]:
    return [piece for piece in pieces(text) if is_word(piece)]


# Words


@given(st.text())
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_a_word_is_a_word_and_in_chinese_a_character() -> None:
    assert words("I don't like 北京烤鸭 very_much, 42!") == [
        "I", "don't", "like", "北", "京", "烤", "鸭", "very", "much", "42"
    ]  # fmt: skip


# Every method


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("text", [ENGLISH, TAKEAWAY])
def test_a_copy_is_marked_and_keeps_label_and_place(name: str, text: str) -> None:
    new = METHODS[name](labelled(text), 0, 0)
    assert new.augmented == name
    assert new.text != text
    assert (new.labels, new.where) == (("pos",), HERE)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_and_index_give_the_same_copy_and_others_another(name: str) -> None:
    row = labelled(ENGLISH)
    assert METHODS[name](row, 3, 7) == METHODS[name](row, 3, 7)
    copies = {METHODS[name](row, seed, index).text for seed in range(4) for index in range(5)}
    assert len(copies) > 5


def test_another_process_makes_the_same_copies() -> None:
    code = (
        "from gpt2kit.data.augment import *\n"
        "from gpt2kit.data.confusions import Confusions\n"
        "from gpt2kit.data.families import LabelRow, PairRow, Where\n"
        f"row = LabelRow({ENGLISH!r}, ('pos',), where=Where('a.csv', 1))\n"
        f"pair = PairRow('x', {ENGLISH!r}, where=row.where)\n"
        "print(delete(row, 1, 2).text, swap(row, 1, 2).text, insert(row, 1, 2).text, sep='|')\n"
        "print(noise(pair, 1, 2, Confusions.common()).prompt)"
    )
    row = labelled(ENGLISH)
    here = "|".join(METHODS[name](row, 1, 2).text for name in METHODS)
    here += "\n" + noise(PairRow("x", ENGLISH, where=HERE), 1, 2, Confusions.common()).prompt
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == here


@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("ab 你好,.'\n"), min_size=1, max_size=30), index=st.integers(0, 5))
def test_any_text_gives_a_text_and_is_marked_only_where_it_changed(name: str, text: str, index: int) -> None:
    row = labelled(text)
    new = METHODS[name](row, 0, index)
    assert (new is row) == (new.text == text)
    assert bool(new.augmented) == (new.text != text)
    assert bool(words(new.text)) == bool(words(text))


@pytest.mark.parametrize("name", METHODS)
def test_pairs_keep_their_completion_and_second_texts_change_too(name: str) -> None:
    pair = METHODS[name](PairRow(ENGLISH, "right", where=HERE), 0, 0)
    assert (pair.completion, pair.prompt == ENGLISH) == ("right", False)
    two = METHODS[name](labelled(ENGLISH, TAKEAWAY), 0, 0)
    assert two.text_pair != TAKEAWAY


@pytest.mark.parametrize("row", [TextRow(ENGLISH, where=HERE), AnswerRow("q", ENGLISH, (), where=HERE)])
def test_rows_that_are_no_labelled_text_are_refused(row: Row) -> None:
    with pytest.raises(UserError, match=r"a\.csv line 1: only texts with labels"):
        delete(row, 0, 0)


# Deletion, swap, insertion


def test_deletion_takes_a_tenth_of_the_words_and_one_at_least() -> None:
    text = " ".join(f"word{n}" for n in range(50))
    for index in range(20):
        left = words(delete(labelled(text), 0, index).text)
        assert len(left) == 45
        assert left == [word for word in text.split() if word in left]  # in their order
        assert len(words(delete(labelled("one two three"), 0, index).text)) == 2


def test_deletion_leaves_no_double_blanks() -> None:
    for index in range(50):
        text = delete(labelled(ENGLISH), 0, index, rate=0.5).text
        assert "  " not in text
        assert text == text.strip()


def test_one_word_is_never_deleted() -> None:
    assert delete(labelled("word"), 0, 0).augmented == ""
    assert {delete(labelled("one two"), 0, index, rate=1.0).text for index in range(20)} == {"one", "two"}
    assert delete(labelled("好！"), 0, 0, rate=1.0).text == "好！"


def test_a_swap_keeps_the_words() -> None:
    for text in (ENGLISH, TAKEAWAY):
        new = swap(labelled(text), 0, 1, rate=0.3).text
        assert Counter(words(new)) == Counter(words(text))
        assert [p for p in pieces(new) if not is_word(p)] == [p for p in pieces(text) if not is_word(p)]


def test_a_swap_takes_every_pair_of_words() -> None:
    text = "a b c d e"
    changed = {swap(labelled(text), 0, index).text for index in range(200)}
    assert len(changed) == 10  # pairs of five words
    assert text not in changed


def test_an_insertion_repeats_words() -> None:
    for text in (ENGLISH, TAKEAWAY):
        new = words(insert(labelled(text), 0, 1, rate=0.2).text)
        added = Counter(new) - Counter(words(text))
        assert 0 < added.total() == len(new) - len(words(text))
        assert set(added) <= set(words(text))


def test_inserted_english_words_stand_apart() -> None:
    for index in range(30):
        assert set(words(insert(labelled(ENGLISH), 0, index).text)) == set(words(ENGLISH))


# Neighbours


def planted(tokenizer: Tokenizer, groups: list[list[str]]) -> np.ndarray:
    """An embedding in which the words of a group point the same way, and a large part is common to all."""
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(tokenizer.vocab_size, 48)).astype(np.float32)
    for group in groups:
        direction = 4 * generator.normal(size=48)
        for word in group:
            for text in (word, f" {word}"):
                ids = tokenizer.encode(text)
                if len(ids) == 1:
                    matrix[ids[0]] = direction + 0.1 * generator.normal(size=48)
    return matrix + 30 * generator.normal(size=48).astype(np.float32)


GROUPS = [["good", "fine", "great", "Good", "Fine"], ["film", "movie"], ["好吃", "美味"], ["快", "慢"], ["菜", "饭"]]


def corpus() -> list[str]:
    english = "a good film and a fine movie , great film , good movie , fine film , great movie " * 30
    chinese = [f"{what}{how}。" for what in ("好吃", "美味", "快", "慢") for how in "的呢了吗吧啊呀菜饭"] * 20
    return [english, "it is a Good film , it is a Fine film " * 60, *chinese, *["film", "movie", *"菜饭快慢"] * 60]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(corpus(), "bpe", 400)


@pytest.fixture(scope="module")
def neighbours(bpe: Tokenizer) -> Neighbours:
    return Neighbours(planted(bpe, GROUPS), bpe, nearest=1)


def test_neighbours_are_found_by_cosine_though_all_vectors_lie_close(bpe: Tokenizer, neighbours: Neighbours) -> None:
    (film,) = bpe.encode(" film")
    assert neighbours.of(film) == ("movie",)
    (tasty,) = bpe.encode("好吃")
    assert neighbours.of(tasty) == ("美味",)


def test_neighbours_equal_a_plain_search(bpe: Tokenizer) -> None:
    matrix = planted(bpe, GROUPS)
    fast = Neighbours(matrix, bpe, nearest=3)
    texts = {n: bpe.decode([n]) for n in range(bpe.vocab_size)}
    known = [n for n, text in texts.items() if re.fullmatch(" ?[a-zA-Z]+|[一-鿿]+", text) and bpe.encode(text) == [n]]
    alike = [n for n in known if re.fullmatch(" [a-z]+", texts[n])]
    assert len(alike) > 5
    moved = matrix - matrix[known].mean(axis=0)
    for token in alike:
        cosines = {
            other: float(moved[token] @ moved[other] / np.linalg.norm(moved[token]) / np.linalg.norm(moved[other]))
            for other in alike
            if other != token
        }
        best = sorted((other for other in cosines if cosines[other] > 0), key=lambda other: -cosines[other])[:3]
        assert fast.of(token) == tuple(texts[other].strip() for other in best)


def test_replacement_takes_neighbours_and_leaves_the_rest(neighbours: Neighbours) -> None:
    row = labelled("unheard good film , too bad")
    (text,) = {exchange(row, 0, index, neighbours, rate=1.0).text for index in range(5)}
    assert text in ("unheard fine movie , too bad", "unheard great movie , too bad")


def test_replacement_works_on_chinese_words(neighbours: Neighbours) -> None:
    new = exchange(labelled("菜，好吃。"), 0, 0, neighbours, rate=1.0)
    assert new.text == "饭，美味。"
    assert new.augmented == "replace"


@pytest.mark.parametrize("kind", ["char", "word"])
def test_replacement_works_with_other_tokenizers(kind: str) -> None:
    tokenizer = train_tokenizer(corpus(), kind)
    near = Neighbours(planted(tokenizer, GROUPS), tokenizer, nearest=1)
    text = "送餐快" if kind == "char" else "a film"
    assert exchange(labelled(text), 0, 0, near, rate=1.0).text != text


def test_words_in_parts_inside_others_and_in_capitals_are_left(neighbours: Neighbours) -> None:
    assert exchange(labelled("film, film"), 0, 0, neighbours, rate=1.0).text == "movie, movie"
    for text in ("films", "film_2", "FILM", "xfilm", "film's", "2film", "film2", "unheardof"):
        assert exchange(labelled(text), 0, 0, neighbours, rate=1.0).text == text
        assert exchange(labelled(f"no {text}"), 0, 0, neighbours, rate=1.0).text == f"no {text}"


def test_capitals_are_replaced_by_capitals(neighbours: Neighbours) -> None:
    assert exchange(labelled("so Good"), 0, 0, neighbours, rate=1.0).text == "so Fine"


def test_insertion_of_neighbours(neighbours: Neighbours) -> None:
    text = insert(labelled("film film film"), 0, 0, neighbours=neighbours).text
    assert Counter(text.split()) == {"film": 3, "movie": 1}


def test_an_embedding_of_another_vocabulary_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match="take both from one model folder"):
        Neighbours(np.zeros((bpe.vocab_size - 1, 4), np.float32), bpe)


# Noise


def pair(right: str, wrong: str = "") -> PairRow:
    return PairRow(wrong or right, right, where=HERE)


def test_noise_spoils_the_right_sentence_and_keeps_it_as_the_completion() -> None:
    row = pair("我明天再来这里工作。", "我明天在来这里工作。")
    made = [noise(row, 0, index, Confusions.common()) for index in range(20)]
    assert all(new.completion == row.completion for new in made)
    assert all(new.prompt != row.completion and new.augmented == "noise" for new in made if new is not row)
    assert len({new.prompt for new in made}) > 5


def test_learned_confusions_come_up_as_often_as_they_were_seen() -> None:
    pairs = [pair("他带着帽子", "他戴着帽子")] * 30 + [pair("他带着帽子", "他代着帽子")] * 10
    confusions = Confusions.learn(pairs)
    made = Counter(confusions.spoil("他带着帽子", random.Random(n)) for n in range(2000))
    assert made["他戴着帽子"] / made["他代着帽子"] == pytest.approx(3, rel=0.25)
    assert (made["他戴着帽子"] + made["他代着帽子"]) / 2000 > 0.5  # the words that are often mistaken come first
    assert confusions.words["戴"]["带"] < confusions.words["带"]["戴"]


def test_frequent_words_are_mistaken_as_seldom_as_they_were() -> None:
    pairs = [pair("我我我我我我我我我带", "我我我我我我我我我戴")] * 20 + [pair("我我我我", "窝我我我")]
    made = Counter(Confusions.learn(pairs).spoil("我带", random.Random(n)) for n in range(500))
    assert made["我戴"] > 5 * made["窝带"]


def test_the_number_of_mistakes_is_learned() -> None:
    clean = [pair("今天天气不错")] * 50
    two = [pair("今天天气不错", "今夭天汽不错")] * 50
    confusions = Confusions.learn([*clean, *two])
    changed = [
        sum(a != b for a, b in zip("今天天气不错", confusions.spoil("今天天气不错", random.Random(n)), strict=True))
        for n in range(300)
    ]
    assert Counter(changed)[0] / 300 == pytest.approx(0.5, abs=0.1)
    assert set(changed) <= {0, 2}
    assert Counter(Confusions.learn([*clean, *two], clean=0.0).counts) == {2: 50}
    assert Counter(Confusions.learn([*clean, *two], clean=0.8).counts) == {0: 200, 2: 50}


def test_left_out_and_doubled_characters_are_learned_too() -> None:
    pairs = [pair("我们去学校", "我们学校")] * 10 + [pair("我们去学校", "我们去去学校")] * 10
    confusions = Confusions.learn(pairs)
    assert confusions.operations == {"replace": 0, "drop": 10, "double": 10, "swap": 0}
    lengths = {len(confusions.spoil("我们去学校", random.Random(n))) for n in range(50)}
    assert lengths == {4, 6}


def test_english_mistakes_are_homophones_and_slips() -> None:
    right = "I know that their house is quite near."
    made = Counter(Confusions.common().spoil(right, random.Random(n)) for n in range(300))
    assert any("there house" in text for text in made)
    assert any(text.startswith("I no that") for text in made)
    slips = {slip("house", random.Random(n)) for n in range(200)}
    assert {"huose", "hose", "houuse"} <= slips
    assert "house" not in slips


def test_capitals_are_kept() -> None:
    starts = {Confusions.common().spoil("Their.", random.Random(n)) for n in range(100)}
    assert "There." in starts
    assert not any(text.startswith("there") for text in starts)


def test_numbers_and_marks_are_not_spoiled() -> None:
    text = "2024，15：30！ 7"
    assert all(Confusions.common().spoil(text, random.Random(n)) == text for n in range(50))


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("aB c你的在4，.'\n"), max_size=20), seed=st.integers(0, 1000))
@example(text="B你你", seed=106)
def test_any_text_can_be_spoiled(text: str, seed: int) -> None:
    assert isinstance(Confusions.common().spoil(text, random.Random(seed)), str)


def test_every_common_confusion_can_be_told_apart() -> None:
    for group in CHINESE.split():
        assert len(set(group)) == len(group) > 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "no pair has a mistake"), ([pair("对的")], "no pair has a mistake"), ([labelled("x")], "learned from pairs")],
)
def test_confusions_need_pairs_with_mistakes(rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Confusions.learn(rows)


def test_noise_is_for_pairs() -> None:
    with pytest.raises(UserError, match="noise is put into pairs for correction"):
        noise(labelled("x"), 0, 0, Confusions.common())


@pytest.mark.skipif(not DATA, reason="the data sets are not here: set GPT2KIT_DATA")
def test_sighan_teaches_most_of_the_mistakes_of_its_test_set() -> None:
    from gpt2kit.data.confusions import _mistakes

    assert DATA is not None
    train = read_examples(Path(DATA) / "correction/sighan2015-train.tsv.xz", "correct").rows
    test = read_examples(Path(DATA) / "correction/sighan2015-test.tsv.xz", "correct").rows
    confusions = Confusions.learn(train)
    known = [
        wrong in confusions.words.get(right, {})
        for row in test
        if isinstance(row, PairRow)
        for operation, right, wrong in _mistakes(pieces(row.prompt), pieces(row.completion))
        if operation == "replace"
    ]
    assert len(known) == 706
    assert sum(known) / len(known) > 0.6  # 0.64; the common confusions alone know 0.23


# Augmenting a data set


def test_copies_are_appended_marked_and_counted() -> None:
    rows: list[Row] = [labelled(f"{ENGLISH} {n}") for n in range(10)]
    result = augment(rows, [delete, swap], copies=2, seed=1)
    assert result.rows[:10] == rows
    assert result.made == {"delete": 10, "swap": 10}
    assert len(result.rows) == 30
    assert result.lines() == ["augmented rows: 20 (delete 10, swap 10) beside 10 real ones"]
    assert augment(rows, [delete, swap], copies=2, seed=1) == result
    assert augment(rows, [delete, swap], copies=2, seed=2) != result


def test_what_cannot_be_changed_is_counted_not_copied() -> None:
    result = augment([labelled("word"), labelled(ENGLISH)], [delete])
    assert (len(result.rows), result.unchanged) == (3, 1)
    assert result.lines()[1] == "left out: 1 copies in which nothing could be changed"


def test_rows_for_validation_and_test_are_not_copied() -> None:
    splits = ("train", "validation", "test", "")
    rows: list[Row] = [LabelRow(ENGLISH, ("a",), where=HERE, split=split) for split in splits]
    result = augment(rows, [swap])
    assert [row.split for row in result.rows[4:]] == ["train", ""]


def test_augmented_rows_are_not_augmented_again() -> None:
    result = augment([labelled(ENGLISH)], [swap])
    with pytest.raises(UserError, match="augmented already"):
        augment(result.rows, [swap])


def test_text_for_a_language_model_is_never_augmented() -> None:
    with pytest.raises(UserError, match="plain text is learned as it is"):
        augment([TextRow(ENGLISH, where=HERE)], [swap])


@pytest.mark.parametrize(("methods", "copies"), [([], 1), ([swap], 0)])
def test_no_method_or_no_copy_is_refused(methods: list[Any], copies: int) -> None:
    with pytest.raises(UserError, match="are no augmentation"):
        augment([labelled(ENGLISH)], methods, copies)
