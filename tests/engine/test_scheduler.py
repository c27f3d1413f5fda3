"""Whatever the company, the order, the memory or the drafts: a request gets what it gets alone."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from schedules import ADAPTERS, Asked, N, V, alone, by_definition, run, scheduler

from gpt2kit.engine.scheduler import Scheduler
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Event


def some_request(rng: random.Random) -> dict[str, Any]:
    """A random request; many begin alike, some pass the context, some ask for several completions or for scores."""
    seeded = random.Random(rng.randrange(3))
    stem = [seeded.randrange(1, V) for _ in range(rng.choice([0, 0, 7, 16, 33, 48]))]
    prompt = stem + [rng.randrange(1, V) for _ in range(rng.choice([1, 2, 5, 17, 40]))]
    if rng.random() < 0.1:
        prompt = prompt * 3
    if rng.random() < 0.1:
        return {
            "prompt": prompt[:N],
            "pooling": rng.choice(["mean", "last"]),
            "salt": rng.choice(["", "b"]),
            "adapter": rng.choice([None, *ADAPTERS]),
        }
    options: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": rng.choice([0, 1, 2, 9, 20, 45]),
        "salt": rng.choice(["", "", "b"]),
        "speculate": rng.random() < 0.7,
        "ignore_eos": rng.random() < 0.5,
        "adapter": rng.choice([None, None, *ADAPTERS]),
    }
    if rng.random() < 0.4:
        options |= {"temperature": 0.8, "seed": rng.randrange(1000), "n": rng.choice([1, 1, 2, 3])}
    if rng.random() < 0.15:
        options |= {"max_tokens": 0 if rng.random() < 0.5 else 3, "echo": True}
    if rng.random() < 0.2:
        options |= {"window": "stop", "prompt": prompt[:N]}
    if rng.random() < 0.1:
        options |= {"repetition_penalty": 1.3, "no_repeat_ngram": 3}
    return options


def fix_cost(made: Scheduler, share: float = 0.06) -> None:
    """Each further row of a step is taken to cost this share of one, whatever is measured."""
    made.cost.base, made.cost.slope = 1.0, share
    made.cost.observe = lambda rows, seconds: None  # type: ignore[method-assign]


def run_schedule(seed: int) -> None:
    """Random requests at random times over a random engine; some are cancelled; each answer is compared."""
    rng = random.Random(seed)
    world = {"repeats": rng.choice([0.0, 0.85, 1.0]), "poison": rng.choice([-1, -1, 5])}
    made = scheduler(
        blocks=rng.choice([4, 5, 8, 30]),
        chunk=rng.choice([1, 7, 16, 40]),
        max_batch=rng.choice([1, 2, 6]),
        max_rows=rng.choice([24, 48]),
        max_logits=rng.choice([7, 16]),
        **world,
    )
    if rng.random() < 0.8:
        fix_cost(made, rng.choice([0.0, 0.02, 0.06]))
    todo = [some_request(rng) for _ in range(rng.randrange(1, 10))]
    asked: list[tuple[dict[str, Any], Asked]] = []
    cancelled = set()
    while todo or made.busy:
        if todo and (rng.random() < 0.3 or not made.busy):
            options = todo.pop()
            job = Asked(**options)
            made.check_fits(job)
            made.add(job)
            asked.append((options, job))
        if asked and rng.random() < 0.02:
            job = rng.choice(asked)[1]
            if not job.ended:
                made.cancel(job)
                cancelled.add(job)
                made.pool.check()
                assert not any(lease.root is None for lease in made.pool.leases)
        if rng.random() < 0.01:
            made.pool.clear()
        made.step()
        made.pool.check()
    assert not made.pool.leases
    for options, job in asked:
        assert job.done
        if job not in cancelled:
            assert job.answer() == alone(**options, **world), (seed, options)


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "one token": {"max_tokens": 1},
    "sampled": {"temperature": 0.9, "seed": 5, "max_tokens": 30, "ignore_eos": True},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram": 2, "max_tokens": 20},
    "several": {"temperature": 0.9, "seed": 5, "n": 4},
    "past the context": {"max_tokens": 100, "ignore_eos": True},
    "past the context, sampled": {"max_tokens": 70, "ignore_eos": True, "temperature": 1.1, "seed": 8},
    "stop at the context": {"max_tokens": 100, "ignore_eos": True, "window": "stop"},
    "a prompt longer than the context": {"prompt": PROMPT * 9, "max_tokens": 30},
    "scores": {"echo": True, "max_tokens": 5},
    "scores only": {"echo": True, "max_tokens": 0},
    "scores past the context": {"prompt": PROMPT * 9, "echo": True, "max_tokens": 3},
    "scores only, past the context": {"prompt": PROMPT * 4, "echo": True, "max_tokens": 0},
    "scores of one token": {"prompt": [7], "echo": True, "max_tokens": 0},
    "no room": {"max_tokens": 0},
    "a full context": {"prompt": (PROMPT * 4)[:N], "window": "stop"},
    "a stop token": {"stop_token_ids": list(range(1, V, 2)), "max_tokens": 30},
}


@pytest.mark.parametrize("repeats", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_that_of_the_definition(name: str, repeats: float) -> None:
    options = {"prompt": PROMPT, **CASES[name]}
    made = scheduler(repeats=repeats)
    job = Asked(**options)
    run(made, [job])
    assert job.answer() == by_definition(**options, repeats=repeats)


@pytest.mark.parametrize("length", [33, 47, 48])
def test_a_context_that_is_no_multiple_of_a_block(length: int) -> None:
    options = {"prompt": PROMPT, "max_tokens": 80, "ignore_eos": True, "N": length}
    made = scheduler(N=length, repeats=0.9)
    job = Asked(**options)
    run(made, [job])
    assert job.answer() == by_definition(**options, repeats=0.9)
    assert made.counters.slides > 1


@pytest.mark.parametrize(("max_tokens", "slides"), [(44, 0), (45, 0), (46, 1), (46 + 16, 1), (46 + 17, 2)])
def test_the_view_slides_when_it_is_full_and_not_before(max_tokens: int, slides: int) -> None:
    made = scheduler()
    run(made, [Asked(PROMPT, max_tokens=max_tokens, ignore_eos=True)])
    assert made.counters.slides == slides


@pytest.mark.parametrize("seed", range(60))
def test_a_random_schedule_changes_no_answer(seed: int) -> None:
    run_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_thousand_random_schedules_change_no_answer(part: int) -> None:
    for seed in range(1000 + part * 100, 1100 + part * 100):
        run_schedule(seed)


# ---------------------------------------------------------------- prefixes


def test_a_known_beginning_is_not_computed_again() -> None:
    made = scheduler()
    stem = PROMPT + PROMPT
    first, second = Asked([*stem, 1], max_tokens=1), Asked([*stem, 2], max_tokens=1)
    run(made, [first])
    before = made.counters.rows
    run(made, [second])
    assert second.found == 32
    assert made.counters.rows - before == len(stem) + 1 - 32
    assert second.answer() == by_definition([*stem, 2], max_tokens=1)


def test_a_continued_conversation_finds_its_own_answer() -> None:
    made = scheduler()
    first = Asked(PROMPT, max_tokens=20, ignore_eos=True)
    run(made, [first])
    again = Asked([*first.generations[0].ids, 1, 2], max_tokens=2)
    run(made, [again])
    assert again.found == 32  # 20 + 20 tokens, the last of which was never computed


def test_another_adapter_computes_for_itself() -> None:
    made = scheduler()
    answers = []
    for adapter in (None, *ADAPTERS, None, *ADAPTERS):
        job = Asked(PROMPT, adapter=adapter)
        run(made, [job])
        assert job.answer() == by_definition(PROMPT, adapter=adapter)
        answers.append((job.found, job.generations[0].output))
    assert [found for found, _ in answers] == [0, 0, 0, 16, 16, 16]
    assert len({tuple(output) for _, output in answers}) == 3


def test_another_tenant_computes_for_itself() -> None:
    made = scheduler()
    run(made, [Asked(PROMPT, salt="a")])
    other = Asked(PROMPT, salt="b")
    run(made, [other])
    assert other.found == 0


def test_completions_of_one_prompt_share_one_prefill() -> None:
    made = scheduler(blocks=30)
    copied = []
    copy_block = made.pool.copy_block
    made.pool.copy_block = lambda a, b: (copied.append((a, b)), copy_block(a, b))  # type: ignore[func-returns-value]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "n": 5, "max_tokens": 4, "ignore_eos": True}
    job = Asked(PROMPT, **options)
    run(made, [job])
    assert len(copied) == 4
    assert made.counters.rows <= len(PROMPT) + 5 * 4
    assert job.answer() == by_definition(PROMPT, **options)
    assert len({tuple(row.output) for row in job.generations}) > 1


def test_more_completions_than_slots_and_memory() -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "n": 20, "max_tokens": 9, "ignore_eos": True}
    made = scheduler(blocks=4, max_batch=3)
    job = Asked(PROMPT, **options)
    run(made, [job])
    assert job.answer() == by_definition(PROMPT, **options)


def test_a_completion_that_starts_after_the_first_has_slid() -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "n": 12, "max_tokens": 80}
    made = scheduler(max_batch=3)
    job = Asked(PROMPT, **options)
    run(made, [job])
    assert made.counters.slides > 0
    assert job.answer() == by_definition(PROMPT, **options)


# ---------------------------------------------------------------- who is computed when


def test_no_stream_stalls_while_a_long_prompt_is_computed() -> None:
    made = scheduler(chunk=8, blocks=30)
    stream = Asked(PROMPT[:3], max_tokens=30, ignore_eos=True, speculate=False)
    made.add(stream)
    made.step()
    made.add(Asked(PROMPT * 3, max_tokens=1))
    while made.prefilling or made.waiting:
        before, rows = len(stream.events), made.counters.rows
        made.step()
        assert len(stream.events) == before + 1
        assert made.counters.rows - rows <= 1 + 8


def test_on_a_slow_machine_a_step_takes_fewer_rows_of_prompts() -> None:
    made = scheduler(chunk=100, blocks=30, max_rows=200, N=256)
    prompt = PROMPT * 10
    made.add(Asked([1], max_tokens=100, ignore_eos=True, N=256))
    made.step()
    made.forward.step = slowly(made.forward.step, 0.001)  # type: ignore[method-assign]
    made.add(Asked(prompt, max_tokens=1, N=256))
    sizes = []
    while made.prefilling or made.waiting:
        rows = made.counters.rows
        made.step()
        sizes.append(made.counters.rows - rows - 1)
    assert sizes[0] == 100  # nothing is known yet
    assert 32 <= sizes[1] <= 50


def slowly(step: Any, seconds: float) -> Any:
    """The step, told to have taken so long for each row."""

    def slow(tokens: Any, *rest: Any) -> Any:
        end = time.perf_counter() + len(tokens) * seconds
        found = step(tokens, *rest)
        while time.perf_counter() < end:
            pass
        return found

    return slow


def test_first_come_first_served() -> None:
    made = scheduler(max_batch=1)
    jobs = [Asked([i], max_tokens=3) for i in range(1, 6)]
    for job in jobs:
        made.add(job)
    order = []
    while made.step():
        order += [i for i, job in enumerate(jobs) if job.done and i not in order]
    assert order == [0, 1, 2, 3, 4]


def test_a_small_request_does_not_overtake_one_that_waits_for_memory() -> None:
    made = scheduler(blocks=4, max_batch=4)
    long, large, small = Asked(PROMPT, max_tokens=30, ignore_eos=True), Asked(PROMPT * 2, max_tokens=20), Asked([1])
    for job in (long, large, small):
        made.add(job)
    made.step()
    assert made.running == 1
    while not large.events:
        made.step()
        assert not small.events or large.events
    while made.step():
        pass
    assert small.done


def test_short_prompts_share_a_step() -> None:
    made = scheduler(max_rows=48)
    for i in range(6):
        made.add(Asked([i + 1, 2, 3], max_tokens=2))
    made.step()
    assert made.counters.rows == 18


def test_a_request_that_can_never_fit_is_refused() -> None:
    made = scheduler(blocks=3)
    with pytest.raises(UserError, match="64 tokens of cache, the engine has 48"):
        made.check_fits(Asked(PROMPT, max_tokens=500))
    made.check_fits(Asked(PROMPT, max_tokens=28))


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 60])
def test_cancelling_frees_at_once(steps: int) -> None:
    made = scheduler(chunk=4)
    other = Asked([2, 3], max_tokens=30, ignore_eos=True)
    job = Asked(PROMPT, max_tokens=80, ignore_eos=True, n=3, temperature=1.0, seed=1)
    made.add(other)
    made.add(job)
    for _ in range(steps):
        made.step()
    made.cancel(job)
    assert job.done
    assert made.pool.used <= 3
    told = len(job.events)
    made.cancel(job)  # twice is fine
    while made.step():
        made.pool.check()
    assert len(job.events) == told
    assert other.answer() == by_definition([2, 3], max_tokens=30, ignore_eos=True)
    assert made.counters.cancelled == 1


def test_an_error_in_one_request_leaves_the_others_alone() -> None:
    made = scheduler(poison=5, repeats=0.5)
    good = Asked([1, 2], max_tokens=20, bad_words=[[5]])
    bad = Asked([1, 5, 2], max_tokens=20)
    scored = Asked([1, 5, 2, 3], max_tokens=0, echo=True)
    banned = Asked([1, 3], max_tokens=20, bad_words=[[i] for i in range(V)])
    run(made, [good, bad, scored, banned])
    assert good.error is None
    assert "NaN" in str(bad.error)
    assert "NaN" in str(scored.error)
    assert "every token is banned" in str(banned.error)
    assert all(isinstance(job.error, UserError) for job in (bad, scored, banned))
    assert good.answer() == by_definition([1, 2], max_tokens=20, bad_words=[[5]], repeats=0.5)


@pytest.mark.parametrize("echo", [False, True])
def test_nothing_comes_of_a_request_after_its_end(echo: bool) -> None:
    """One completion fails while others of the same request are in the same step."""
    for seed in range(12):
        made = scheduler(poison=5, blocks=40)
        options: dict[str, Any] = {"n": 5, "temperature": 1.0, "seed": seed, "max_tokens": 40, "echo": echo}
        bad, good = Asked(PROMPT[:3], **options), Asked([1, 2], max_tokens=20, bad_words=[[5]])
        run(made, [bad, good])
        assert "NaN" in bad.answer()
        assert good.error is None


def test_a_listener_that_raises_ends_its_own_request_only() -> None:
    made = scheduler()
    good, bad = Asked([1, 2], max_tokens=9), Asked([1, 3], max_tokens=9)

    def fails(index: int, event: Event) -> None:
        raise RuntimeError("the client has gone")

    bad.on_event = fails  # type: ignore[method-assign]
    run(made, [good, bad])
    assert str(bad.error) == "the client has gone"
    assert good.answer() == by_definition([1, 2], max_tokens=9)


def test_a_listener_that_raises_before_the_first_step() -> None:
    made = scheduler()
    job = Asked([1, 2], max_tokens=0, n=3, temperature=1.0, seed=1)

    def fails(index: int, event: Event) -> None:
        raise RuntimeError("the client has gone")

    job.on_event = fails  # type: ignore[method-assign]
    made.add(job)
    assert job.done
    assert str(job.error) == "the client has gone"
    assert not made.busy


def test_a_listener_that_raises_at_the_end_disturbs_nobody() -> None:
    made = scheduler()
    jobs = [Asked([1, i], max_tokens=9) for i in range(3)]

    def fails() -> None:
        raise RuntimeError("the client has gone")

    jobs[0].on_end = jobs[1].on_end = fails  # type: ignore[method-assign]
    for job in jobs:
        made.add(job)
    made.step()
    made.cancel(jobs[0])
    while made.step():
        made.pool.check()
    assert jobs[1].ended
    assert jobs[2].answer() == by_definition([1, 2], max_tokens=9)


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_hidden_states_do_not_depend_on_chunks_or_company(pooling: str) -> None:
    vectors = []
    for chunk, company in ((1, 2), (7, 0), (40, 3)):
        made = scheduler(chunk=chunk, blocks=40)
        others = [Asked([i + 1], max_tokens=40) for i in range(company)]
        for job in others:
            made.add(job)
        made.step()
        asked = Asked(PROMPT * 2, pooling=pooling)
        run(made, [asked])
        vectors.append(asked.states)
    assert vectors[0] is not None
    assert len(vectors[0]) == (40 if pooling == "mean" else 1)
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[0] == vectors[2]).all()


def test_the_last_state_may_come_from_a_known_beginning_but_the_mean_needs_all() -> None:
    made = scheduler()
    run(made, [Asked(PROMPT * 2)])
    last, mean = Asked(PROMPT * 2, pooling="last"), Asked(PROMPT * 2, pooling="mean")
    run(made, [last, mean])
    assert (last.found, mean.found) == (32, 0)
    assert (last.states[0] == mean.states[-1]).all()


# ---------------------------------------------------------------- drafts


def test_drafts_save_steps_where_the_text_repeats() -> None:
    steps = {}
    for speculate in (False, True):
        made = scheduler(repeats=1.0, blocks=40, N=512)
        job = Asked(PROMPT, max_tokens=400, ignore_eos=True, speculate=speculate, N=512)
        fix_cost(made)
        run(made, [job], check=False)
        steps[speculate] = made.counters.steps
    assert steps[True] < steps[False] / 3


@pytest.mark.parametrize("max_tokens", range(14, 36, 3))
def test_a_draft_ends_where_the_request_does(max_tokens: int) -> None:
    circles = Asked(PROMPT, max_tokens=400, ignore_eos=True, N=512)
    run(scheduler(repeats=1.0, blocks=40, N=512), [circles], check=False)
    prompt = circles.generations[0].ids[-25:]
    made = scheduler(repeats=1.0)
    fix_cost(made)
    run(made, [Asked(prompt, max_tokens=max_tokens, ignore_eos=True)])
    assert made.counters.accepted_tokens > max_tokens / 2
    assert made.forward.furthest == len(prompt) + max_tokens - 2  # the last token is never computed


def test_hardly_a_draft_where_the_text_does_not_repeat() -> None:
    made = scheduler(repeats=0.0, blocks=40, N=512)
    fix_cost(made)
    run(made, [Asked(PROMPT, max_tokens=300, ignore_eos=True, temperature=1.0, seed=3, N=512)], check=False)
    assert made.counters.draft_tokens * made.cost.FIRST_SHARE < 0.02 * 300


def test_the_cost_is_measured_on_steps_without_prompts() -> None:
    made = scheduler()
    run(made, [Asked(PROMPT, max_tokens=1)])
    assert made.cost.weight == 0
    run(made, [Asked(PROMPT, max_tokens=10, ignore_eos=True)])
    assert 8 < made.cost.weight <= 9
    assert 0 < made.cost.base < 0.5


def test_expensive_rows_switch_drafts_off() -> None:
    made = scheduler(repeats=1.0)
    fix_cost(made, 1000.0)
    run(made, [Asked([i + 1], max_tokens=40, ignore_eos=True) for i in range(4)])
    assert made.counters.draft_tokens == 0
