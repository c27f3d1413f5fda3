"""Token sequences equal to transformers' `generate` on tiny random models, greedy and beam search."""

from __future__ import annotations

import pytest
import torch
import transformers

from gpt2kit.model.completion import Completion
from gpt2kit.model.generate import generate, model_beams
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.model.sampling import SamplingSettings

V, N = 61, 48
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D [in, out] -> Linear [out, in]


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request: pytest.FixtureRequest) -> tuple[GPT2, transformers.GPT2LMHeadModel]:
    shape = {"vocab_size": V, "n_positions": N, "n_embd": 24, "n_layer": 2, "n_head": 3}
    ours = GPT2(GPT2Config(initializer_range=0.4, **shape), torch.Generator().manual_seed(request.param))
    ours.eval()
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=None, eos_token_id=None, **shape))
    state = {
        f"transformer.{name}": value.T if name.endswith(TRANSPOSED) else value
        for name, value in ours.state_dict().items()
    }
    theirs.load_state_dict({**state, "lm_head.weight": ours.wte.weight.detach()})
    return ours, theirs.eval()


def prompts(seed: int, lengths: tuple[int, ...] = (1, 5, 12)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return [torch.randint(V, (length,), generator=generator).tolist() for length in lengths]


def reference(theirs: transformers.GPT2LMHeadModel, prompt: list[int], **options: object) -> list[list[int]]:
    """Transformers' completions without the prompt, cut behind the first EOS."""
    eos = options.get("eos_token_id")
    out = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    found = []
    for row in out[:, len(prompt) :].tolist():
        found.append(row[: row.index(eos) + 1] if eos in row else row)
    return found


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def common_token(ours: GPT2, prompt: list[int]) -> int:
    """A token that greedy decoding says neither first nor last: an EOS in the middle."""
    [[plain]] = generate(ours, [prompt], SamplingSettings(temperature=0, max_tokens=12))
    return plain.token_ids[5]


OPTIONS = [
    ({}, {}),
    ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ({"no_repeat_ngram": 2}, {"no_repeat_ngram_size": 2}),
    ({"bad_words": [[5], [7, 8]]}, {"bad_words_ids": [[5], [7, 8]]}),
]


@pytest.mark.parametrize(("settings", "options"), OPTIONS)
def test_greedy_tokens_equal_transformers(pair, settings, options) -> None:
    ours, theirs = pair
    for prompt in prompts(1):
        got = generate(ours, [prompt], SamplingSettings(temperature=0, max_tokens=30, **settings))
        assert tokens(got[0]) == reference(theirs, prompt, max_new_tokens=30, **options)


def test_greedy_stops_at_the_same_eos_as_transformers(pair) -> None:
    ours, theirs = pair
    for prompt in prompts(2):
        eos = common_token(ours, prompt)
        for least in (0, 9):
            settings = SamplingSettings(temperature=0, max_tokens=30, min_tokens=least)
            [[got]] = generate(ours, [prompt], settings, eos_id=eos)
            options = {"min_new_tokens": least} if least else {}
            [want] = reference(theirs, prompt, max_new_tokens=30, eos_token_id=eos, **options)
            assert got.token_ids == want
            assert (got.finish_reason == "stop") == (eos in want)


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
def test_beam_search_equals_transformers(pair, beams: int, length_penalty: float) -> None:
    ours, theirs = pair
    stopped = 0
    for prompt in prompts(3, (2, 12)):
        for eos in (None, common_token(ours, prompt)):
            settings = SamplingSettings(
                temperature=0, max_tokens=14, num_beams=beams, n=beams, length_penalty=length_penalty
            )
            got = generate(ours, [prompt], settings, eos_id=eos)[0]
            want = reference(
                theirs,
                prompt,
                max_new_tokens=14,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=length_penalty,
                early_stopping=False,
                eos_token_id=eos,
            )
            assert tokens(got) == want
            stopped += sum(completion.finish_reason == "stop" for completion in got)
            scores = [completion.score for completion in got]
            assert scores == sorted(scores, reverse=True)
    assert stopped > 0 or length_penalty > 1  # the case that is easy to get wrong did occur


@pytest.mark.parametrize(("settings", "options"), OPTIONS)
def test_beam_search_with_penalties_equals_transformers(pair, settings, options) -> None:
    ours, theirs = pair
    for prompt in prompts(4, (3, 9)):
        eos = common_token(ours, prompt)
        got = generate(
            ours,
            [prompt],
            SamplingSettings(temperature=0, max_tokens=12, num_beams=3, **settings),
            eos_id=eos,
        )
        want = reference(
            theirs, prompt, max_new_tokens=12, num_beams=3, early_stopping=False, eos_token_id=eos, **options
        )
        assert tokens(got[0]) == want


def test_one_beam_is_greedy(pair) -> None:
    ours, _ = pair
    for prompt in prompts(5):
        eos = common_token(ours, prompt)
        settings = SamplingSettings(temperature=0, max_tokens=20, logprobs=0)
        [[greedy]] = generate(ours, [prompt], settings, eos_id=eos)
        [beam] = model_beams(ours, prompt, settings, eos)
        assert beam.token_ids == greedy.token_ids
        assert beam.finish_reason == greedy.finish_reason
        assert [c.logprob for c in beam.logprobs] == pytest.approx([c.logprob for c in greedy.logprobs])
