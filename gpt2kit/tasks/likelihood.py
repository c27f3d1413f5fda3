"""How likely the model finds what could come next: the words of labels, the candidates of a ranking.

The log-probabilities are those that `Engine.score` gives, to the bit. But that computes the logits behind every token
of the prompt, where only those behind its last one and inside the completion are wanted. So a completion's token is
the one token of a request, forced by its bias (what is reported is the model's own view, before any bias), and
requests that share a prompt share its keys and values: 3.3 times as fast with 100 tokens and two labels.

Shapes: P prompts, K completions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from gpt2kit.errors import UserError
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.tasks.task import end_of_text

if TYPE_CHECKING:
    from gpt2kit.engine import Engine
    from gpt2kit.model.completion import Completion

Ids = Sequence[int]

FORCED = 4  # tokens: longer completions are scored in one piece, with their prompt
TOGETHER = 16  # prompts whose keys and values are surely still there when their other completions come


def continuations(engine: Engine, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]]) -> list[list[float]]:
    """[P][K]: the log-probability, in nats, of each completion behind its prompt. A prompt holds at least one token.

    UserError where a completion is empty, or does not fit the context with its prompt.
    """
    N = engine.config.n_positions
    for prompt, group in zip(prompts, completions, strict=True):
        if not all(group) or not prompt:
            raise UserError("there is an empty text to be scored", hint="give every candidate a text")
        if max(map(len, group)) + len(prompt) > N:
            raise UserError(f"prompt and completion exceed the model's {N} positions")
    wanted = [(tuple(prompt), tuple(one)) for prompt, group in zip(prompts, completions, strict=True) for one in group]
    known: dict[tuple[Ids, int], float] = {}
    for a in range(0, len(prompts), TOGETHER):
        _force(engine, prompts[a : a + TOGETHER], completions[a : a + TOGETHER], known)
    long = [prompt + one for prompt, one in wanted if len(one) > FORCED]
    scored = iter(engine.score(long) if long else ())
    totals = []
    for prompt, one in wanted:
        if len(one) > FORCED:
            totals.append(sum(choice.logprob or 0.0 for choice in next(scored)[len(prompt) :] if choice is not None))
        else:
            totals.append(sum(known[prompt + one[:n], token] for n, token in enumerate(one)))
    found = iter(totals)
    return [[next(found) for _ in group] for group in completions]


def _force(
    engine: Engine, prompts: Sequence[Ids], completions: Sequence[Sequence[Ids]], known: dict[tuple[Ids, int], float]
) -> None:
    """Into `known`: {(ids before, token): its log-probability} for all tokens of the short completions."""
    rounds: tuple[list[tuple[Ids, int]], list[tuple[Ids, int]]] = [], []
    for prompt, group in zip(prompts, completions, strict=True):
        steps = dict.fromkeys(
            (tuple(prompt) + tuple(one[:n]), token)
            for one in group
            if len(one) <= FORCED
            for n, token in enumerate(one)
        )
        new = [step for step in steps if step not in known]
        rounds[0].extend(new[:1])  # this one computes the prompt, the others find it
        rounds[1].extend(new[1:])
    for steps_now in rounds:
        settings = [
            SamplingSettings(max_tokens=1, temperature=0.0, logit_bias={token: 100.0}, logprobs=0, ignore_eos=True)
            for _, token in steps_now
        ]
        found = engine.generate([list(before) for before, _ in steps_now], settings) if steps_now else []
        for (before, token), one in zip(steps_now, cast("list[Completion]", found), strict=True):
            assert one.logprobs is not None
            choice = one.logprobs[0]
            if choice.token != token:  # 100 nats below the best one, before the bias: as good as impossible
                (scored,) = engine.score([[*before, token]])
                choice = next(one for one in reversed(scored) if one is not None)
            assert choice.logprob is not None
            known[before, token] = choice.logprob


def nats_of(engine: Engine, texts: Sequence[str]) -> list[float]:
    """What each text costs behind an end-of-text token, in nats; past the context the view slides. An empty one: 0."""
    tokenizer, eos = end_of_text(engine.tokenizer)
    scored = engine.score([[eos, *tokenizer.encode(text)] for text in texts])
    return [-sum(choice.logprob or 0.0 for choice in row if choice is not None) for row in scored]


def middle_out(ids: list[int], room: int) -> list[int]:
    """At most `room` of a text's tokens: its first quarter and its end, where texts say what they are about and what
    they think.
    """
    if len(ids) <= room:
        return ids
    head = room // 4
    return ids[:head] + ids[len(ids) - (room - head) :]
