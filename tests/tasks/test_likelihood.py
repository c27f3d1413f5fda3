"""Log-probabilities of what could come next: the engine's own, whichever way they are asked for."""

from __future__ import annotations

import pytest

from gpt2kit.engine import Engine
from gpt2kit.errors import UserError
from gpt2kit.tasks.likelihood import FORCED, continuations, middle_out, nats_of


def by_scoring(engine: Engine, prompt: list[int], one: list[int]) -> float:
    (scored,) = engine.score([prompt + one])
    return sum(choice.logprob or 0.0 for choice in scored[len(prompt) :] if choice is not None)


def test_the_figures_are_those_of_scoring_to_the_bit(engine: Engine) -> None:
    prompts = [[5, 9, 40, 41, 7, 8, 30, 31, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69], [3], [5, 9, 40]]
    long = list(range(20, 20 + FORCED + 3))
    groups = [[[10], [11, 12], [11, 13, 14], long], [[10], [50]], [[7, 8, 9, 10], [2]]]
    engine.clear_cache()
    cold = continuations(engine, prompts, groups)
    assert continuations(engine, prompts, groups) == cold  # from a warm cache
    assert cold == [
        [by_scoring(engine, prompt, one) for one in group] for prompt, group in zip(prompts, groups, strict=True)
    ]
    assert len({round(x, 9) for row in cold for x in row}) == 8


def test_many_prompts_are_told_apart(engine: Engine) -> None:
    prompts = [[n, n + 1, 7] for n in range(40)]
    found = continuations(engine, prompts, [[[3], [4]]] * 40)
    assert found[33] == [by_scoring(engine, prompts[33], [3]), by_scoring(engine, prompts[33], [4])]


def test_a_token_that_no_bias_can_force_is_scored_all_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.generate

    def deaf(self: Engine, prompts: object, settings: list[object], **more: object) -> object:
        import dataclasses

        return real(self, prompts, [dataclasses.replace(one, logit_bias={}) for one in settings])  # type: ignore

    right = continuations(engine, [[5, 6]], [[[9], [10, 11]]])
    monkeypatch.setattr(Engine, "generate", deaf)
    assert continuations(engine, [[5, 6]], [[[9], [10, 11]]]) == right


def test_what_cannot_be_scored_is_said(engine: Engine) -> None:
    with pytest.raises(UserError, match="empty text"):
        continuations(engine, [[1]], [[[2], []]])
    with pytest.raises(UserError, match="96 positions"):
        continuations(engine, [[1] * 95], [[[2], [3, 4]]])
    assert continuations(engine, [[1] * 95], [[[2]]])[0][0] < 0


def test_a_long_text_keeps_its_first_quarter_and_its_end() -> None:
    assert middle_out(list(range(20)), 8) == [0, 1, 14, 15, 16, 17, 18, 19]
    assert middle_out([1, 2, 3], 3) == [1, 2, 3]


def test_a_text_costs_what_all_its_tokens_cost_behind_an_end_of_text_token(engine: Engine) -> None:
    assert engine.tokenizer is not None
    assert engine.tokenizer.eot_id is not None
    long = "the lazy dog " * 60  # past the context
    ids = [engine.tokenizer.encode(text) for text in ("the lazy dog", "春眠")]
    found = nats_of(engine, ["the lazy dog", "春眠", "", long])
    assert found[:2] == [pytest.approx(-by_scoring(engine, [engine.tokenizer.eot_id], one)) for one in ids]
    assert found[2] == 0
    assert found[3] > found[0]
