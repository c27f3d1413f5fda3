"""The error that users see says what happened and what to do next."""

from __future__ import annotations

import pytest

from gpt2kit.errors import UserError, closest, missing_extra, unknown


def test_message_and_hint_are_both_shown() -> None:
    assert str(UserError("it failed")) == "it failed"
    error = UserError("it failed", hint="run: gpt2kit doctor")
    assert str(error) == "it failed\nrun: gpt2kit doctor"
    assert (error.message, error.hint) == ("it failed", "run: gpt2kit doctor")


def test_a_near_miss_is_suggested() -> None:
    error = unknown("key", "lerning_rate", ["batch", "learning_rate"])
    assert error.message == "unknown key 'lerning_rate'; did you mean 'learning_rate'?"
    assert error.hint == "known: batch, learning_rate"


def test_a_name_far_from_all_lists_what_is_known() -> None:
    error = unknown("key", "zzz", iter(["b", "a"]))
    assert str(error) == "unknown key 'zzz'\nknown: a, b"


@pytest.mark.parametrize(("name", "expected"), [("contxt", "context"), ("zzz", None), ("", None)])
def test_closest(name: str, expected: str | None) -> None:
    assert closest(name, ["context", "batch"]) == expected


def test_a_missing_extra_says_what_to_install() -> None:
    assert str(missing_extra("jieba", "chinese", "word segmentation")) == (
        "word segmentation needs the package 'jieba'\nrun: pip install 'gpt2kit[chinese]'"
    )
