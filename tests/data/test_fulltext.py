"""Full-text search in English and Chinese."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from gpt2kit.data.fulltext import MOST_TERMS, TextIndex, terms

TEXTS = [
    "The filters were cleaned in March.", "A whale swims in the sea.", "更换滤芯前请先关闭电源。", "鲸鱼在海里游。",
    'Quotes "and" OR NOT * ^ (near)', "",
]  # fmt: skip


@pytest.fixture
def index() -> TextIndex:
    found = TextIndex()
    found.add((text, "even" if n % 2 == 0 else "odd") for n, text in enumerate(TEXTS))
    return found


def numbers(index: TextIndex, query: str, limit: int = 3, group: str | None = None) -> list[int]:
    return [hit.number for hit in index.search(query, limit, group)]


def test_words_are_found_by_their_stem_and_chinese_by_words_of_one_and_two_characters(index: TextIndex) -> None:
    assert numbers(index, "How do I clean a filter?")[0] == 0
    assert numbers(index, "怎么更换滤芯？") == [2]
    assert numbers(index, "海") == [3]
    assert numbers(index, "WHALES") == [1]
    assert numbers(index, "nothing like it") == []


def test_the_rarer_word_counts_more_and_ties_go_to_the_first() -> None:
    index = TextIndex()
    index.add([("red sea", ""), ("red whale", ""), ("red", ""), ("red", "")])
    hits = index.search("red whale", 4)
    assert [hit.number for hit in hits] == [1, 2, 3, 0]
    assert hits[0].score > hits[1].score == hits[2].score > hits[3].score


def test_a_group_limits_the_search(index: TextIndex) -> None:
    assert numbers(index, "in the sea", group="odd") == [1]
    assert numbers(index, "in the sea", group="even") == [0]
    assert numbers(index, "in", group="none") == []


@pytest.mark.parametrize("query", ['"', "'; DROP TABLE texts", "a OR", "(", "* ^ -", "NEAR(x", "", "🤗", "\x00"])
def test_no_query_is_syntax(index: TextIndex, query: str) -> None:
    numbers(index, query)
    assert numbers(index, "whale") == [1]


def test_a_query_of_many_words_is_searched_by_its_first(index: TextIndex) -> None:
    assert numbers(index, " ".join(f"w{n}" for n in range(MOST_TERMS - 1)) + " whale " + "x y " * 9000) == [1]


def test_what_is_added_later_goes_on_counting(index: TextIndex) -> None:
    index.add([("a later text about steam", "")])
    assert numbers(index, "steam") == [len(TEXTS)]


def test_terms_are_words_characters_and_pairs() -> None:
    assert terms("GPT-2是模型") == ["GPT", "2", "是", "是模", "模", "模型", "型"]


def test_a_damaged_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"no database at all" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        TextIndex(tmp_path / "index", read_only=True)
