"""Label words: classification by a model that was not tuned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpt2kit.data.families import LabelRow, Where
from gpt2kit.engine import Engine
from gpt2kit.errors import UserError
from gpt2kit.tasks import prompted
from gpt2kit.tasks.prompted import CONTENT_FREE, TEMPLATES, Prompted, calibrated, check_template, try_templates
from gpt2kit.tasks.shots import Shots

HERE = Where("test")
TEMPLATE = "Text: {text}\nCategory: {label}"
finite = st.floats(-50, 50)


def row(text: str, *labels: str) -> LabelRow:
    return LabelRow(text, labels, where=HERE)


@settings(deadline=None, max_examples=50)
@given(arrays(float, (5, 3), elements=finite), arrays(float, (3,), elements=finite),
       arrays(float, (3,), elements=finite))  # fmt: skip
def test_probabilities_do_not_depend_on_what_a_word_is_worth_without_content(
    found: np.ndarray, prior: np.ndarray, shift: np.ndarray
) -> None:
    plain = calibrated(found, prior[None])
    assert plain.sum(1) == pytest.approx(np.ones(5))
    assert calibrated(found + shift, (prior + shift)[None]) == pytest.approx(plain, abs=1e-9)


def shifted(monkeypatch: pytest.MonkeyPatch, by: Sequence[float]) -> None:
    """A model that likes some words more, whatever they stand behind."""
    real = prompted.continuations

    def liking(engine: Engine, prompts: object, groups: object) -> list[list[float]]:
        return [[x + b for x, b in zip(row, by, strict=True)] for row in real(engine, prompts, groups)]  # type: ignore

    monkeypatch.setattr(prompted, "continuations", liking)


@pytest.mark.parametrize("shots", [None, Shots([row("lazy dog", "good"), row("brown fox", "bad")], 2)])
def test_a_calibrated_classifier_is_unmoved_by_a_prior_for_its_words(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, shots: Shots | None
) -> None:
    rows = [row("the quick fox"), row("春眠不觉晓"), row("")]
    task = Prompted(("good", "bad"), shots=shots)
    raw = Prompted(("good", "bad"), shots=shots, calibrate=False)
    before, plain = task.answer(engine, rows), raw.answer(engine, rows)
    shifted(monkeypatch, (5.0, -5.0))
    after, moved = task.answer(engine, rows), raw.answer(engine, rows)
    for a, b in zip(before, after, strict=True):
        assert b.details["probabilities"] == pytest.approx(a.details["probabilities"], abs=1e-9)
        assert a.text == b.text
    assert any(abs(a.details["probabilities"]["good"] - b.details["probabilities"]["good"]) > 0.1
               for a, b in zip(plain, moved, strict=True))  # fmt: skip


def test_the_probabilities_are_the_words_likelihoods_less_the_prior(engine: Engine) -> None:
    assert engine.tokenizer is not None

    def likelihood(text: str, word: str) -> float:
        assert engine.tokenizer is not None
        front = engine.tokenizer.encode(f"Text: {text}\nCategory:")
        tail = engine.tokenizer.encode(" " + word)
        (scored,) = engine.score([front + tail])
        return sum(one.logprob or 0.0 for one in scored[len(front) :] if one is not None)

    task = Prompted(("yes", "no"), ("good", "bad film"), TEMPLATE)
    (answer,) = task.answer(engine, [row("lazy dog")])
    lead = [
        likelihood("lazy dog", word) - np.mean([likelihood(free, word) for free in CONTENT_FREE])
        for word in ("good", "bad film")
    ]
    share = 1 / (1 + np.exp(lead[1] - lead[0]))
    assert answer.details["probabilities"]["yes"] == pytest.approx(share, abs=1e-9)
    assert answer.text == ("yes" if share > 0.5 else "no")
    assert 0.001 < share < 0.999


def test_examples_stand_before_the_text_with_their_words(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = prompted.continuations

    def listening(engine: Engine, prompts: list[list[int]], groups: object) -> list[list[float]]:
        assert engine.tokenizer is not None
        asked.extend(engine.tokenizer.decode(ids) for ids in prompts)
        return real(engine, prompts, groups)  # type: ignore[arg-type]

    monkeypatch.setattr(prompted, "continuations", listening)
    pool = [row("lazy dog", "1"), row("brown fox", "0")]
    task = Prompted(("0", "1"), ("bad", "good"), TEMPLATE, Shots(pool, 1))
    (answer,) = task.answer(engine, [row("the dog")])
    assert answer.details["shots"] == 1
    before = "Text: lazy dog\nCategory: good\n\n"
    assert asked == [f"{before}Text: {text}\nCategory:" for text in ("the dog", *CONTENT_FREE)]


def test_a_text_too_long_for_the_context_is_cut_and_loses_its_examples(engine: Engine) -> None:
    task = Prompted(("good", "bad"), shots=Shots([row("a " * 20, "good"), row("b", "bad")], 2))
    (answer,) = task.answer(engine, [row("the lazy dog " * 60)])
    assert answer.details["shots"] == 0
    (short,) = task.answer(engine, [row("b c")])
    assert 0 < short.details["shots"] <= 2
    with pytest.raises(UserError, match="alone fills"):
        Prompted(("good", "bad"), template="xyz " * 90 + "{text}{label}").answer(engine, [row("a " * 99)])


def test_the_prior_has_the_examples_that_the_text_left_room_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    real = prompted.continuations

    def noting(engine: Engine, prompts: Sequence[Sequence[int]], groups: Sequence[object]) -> list[list[float]]:
        asked.extend(map(list, prompts))
        return real(engine, prompts, groups)  # type: ignore[arg-type]

    monkeypatch.setattr(prompted, "continuations", noting)
    task = Prompted(("good", "bad"), shots=Shots([row("lazy dog", "good"), row("brown fox", "bad")], 2))
    (answer,) = task.answer(engine, [row("the quick fox jumps " * 17)])
    assert engine.tokenizer is not None
    shown = [sum(engine.tokenizer.decode(ids).count(animal) for animal in ("lazy dog", "brown fox")) for ids in asked]
    assert answer.details["shots"] < 2
    assert shown == [answer.details["shots"]] * (1 + len(CONTENT_FREE))


def test_many_texts_are_answered_as_each_by_itself(engine: Engine) -> None:
    rows = [row("lazy dog " * n) for n in range(1, 35)]
    for shots in (None, Shots([row("lazy dog", "good"), row("brown fox", "bad")], 1)):
        task = Prompted(("good", "bad"), shots=shots)
        together = task.answer(engine, rows)
        assert [task.answer(engine, [rows[n]]) for n in (0, 17, 33)] == [[together[n]] for n in (0, 17, 33)]
        assert len({answer.details["probabilities"]["good"] for answer in together}) > 20


def test_a_template_without_words_of_its_own_works_on_no_text(engine: Engine) -> None:
    (answer,) = Prompted(("good", "bad"), template="{text} {label}").answer(engine, [row("")])
    assert sum(answer.details["probabilities"].values()) == pytest.approx(1)


def test_what_is_no_choice_of_words_is_said() -> None:
    for labels, words in ((("one",), ()), (("a", "b"), ("x",)), (("a", "b"), ("x", " "))):
        with pytest.raises(UserError, match="two labels"):
            Prompted(labels, words)
    with pytest.raises(UserError, match="'x' stands for two"):
        Prompted(("a", "b"), ("x", "x"))
    with pytest.raises(UserError, match="must be one of good, bad"):
        Prompted(("good", "bad"), shots=Shots([row("a", "ugly")], 1))._shown(row("b"))
    with pytest.raises(UserError, match="exactly one"):
        Prompted(("good", "bad")).score([row("a", "good", "bad")], [])


@pytest.mark.parametrize("wrong", ["{text}", "{label} {text}", "{text} {text} {label}", "{text} {label}."])
def test_a_template_ends_in_the_label(wrong: str) -> None:
    with pytest.raises(UserError, match="end in"):
        check_template(wrong)


def test_every_template_of_ours_is_one_and_chinese_words_get_a_chinese_one() -> None:
    for templates in TEMPLATES.values():
        for template in templates:
            check_template(template)
    assert Prompted(("好评", "差评")).template == TEMPLATES["zh"][0]
    assert Prompted(("good", "bad")).template == TEMPLATES["en"][0]


def test_the_most_accurate_template_comes_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def knowing(engine: Engine, prompts: list[list[int]], groups: object) -> list[list[float]]:
        """Right behind "story", else always the first label."""
        assert engine.tokenizer is not None
        texts = [engine.tokenizer.decode(ids) for ids in prompts]
        return [[0.0, 1.0] if "story" in text and "dog" in text else [0.5, 0.0] for text in texts]

    monkeypatch.setattr(prompted, "continuations", knowing)
    rows = [row("dog", "b"), row("fox", "a"), row("lazy dog", "b"), row("quick", "a")]
    templates = ["{text} {label}", "story {text} {label}", "{text}: {label}"]
    tried = try_templates(engine, Prompted(("a", "b")), templates, rows)
    assert [one.template for one in tried] == [templates[1], templates[0], templates[2]]
    assert [one.accuracy for one in tried] == [1.0, 0.5, 0.5]
