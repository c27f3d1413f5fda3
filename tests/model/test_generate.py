from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit.errors import UserError
from gpt2kit.model.completion import Completion, TextStream, end_id, view_start
from gpt2kit.model.decoder import Decoder
from gpt2kit.model.generate import echo, generate, model_beams, score, stream
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer
from gpt2kit.text.training import train_tokenizer

V, N = 80, 32
CONFIG = GPT2Config(vocab_size=V, n_positions=N, n_embd=24, n_layer=2, n_head=3, initializer_range=0.4)
GREEDY = SamplingSettings(temperature=0, max_tokens=12)
DRAWN = SamplingSettings(seed=5, max_tokens=12, logprobs=2)


def make_model(config: GPT2Config = CONFIG, seed: int = 0) -> GPT2:
    return GPT2(config, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model()


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE, so that random ids make text whose characters are cut between tokens."""
    return train_tokenizer(["人之初，性本善。🤗 naïve café 東京 hello hello world " * 20], "bpe", 400)


@pytest.fixture(scope="module")
def byte_model(byte_tokenizer: Tokenizer) -> GPT2:
    return make_model(dataclasses.replace(CONFIG, vocab_size=byte_tokenizer.vocab_size))


def prompts_of(lengths: tuple[int, ...], size: int = V) -> list[list[int]]:
    return [np.random.default_rng(length).integers(0, size, length).tolist() for length in lengths]


PROMPTS = prompts_of((1, 4, 9, 20))


def tokens(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in group] for group in groups]


def rep_n(ids: list[int], n: int) -> float:
    """The share of n-grams that occurred before (Welleck et al. 2020)."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


# --- Cache, batches, padding ------------------------------------------------------------------------------


def test_the_test_model_has_opinions(model: GPT2) -> None:
    """Greedy tests prove nothing where logits are flat or one token always wins."""
    logits = Decoder(model, None, 0).logits([PROMPTS[2]])[0]
    assert logits.std() > 1
    said = {token for [row] in tokens(generate(model, PROMPTS, GREEDY)) for token in row}
    assert len(said) > 8


@pytest.mark.parametrize("s", [GREEDY, DRAWN])
@pytest.mark.parametrize("length", [1, N - 1, N, N + 1, 2 * N + 5])
def test_cached_tokens_equal_uncached_ones_also_across_slides(model, s, length: int) -> None:
    s = dataclasses.replace(s, max_tokens=3 * N)
    [prompt] = prompts_of((length,))
    [[cached]] = generate(model, [prompt], s)
    [[plain]] = generate(model, [prompt], s, cache=False)
    assert cached.token_ids == plain.token_ids
    assert len(cached.token_ids) == 3 * N
    assert cached.window_slid


def test_cached_logits_equal_full_ones(model: GPT2) -> None:
    [ids] = prompts_of((3 * N,))
    decoder, plain = Decoder(model, None, 3 * N), Decoder(model, None, 3 * N, cache=False)
    for end in range(5, 3 * N):
        view = ids[view_start(end, N) : end]
        with torch.no_grad():
            want = model(torch.tensor([view]))[0, -1].numpy()
        scale = np.abs(want).max()
        # 2e-5: fp32 sums of a few dozen terms in another order, over two layers
        np.testing.assert_allclose(decoder.logits([ids[:end]])[0], want, atol=2e-5 * scale)
        np.testing.assert_allclose(plain.logits([ids[:end]])[0], want, atol=2e-5 * scale)


def test_a_sequence_gives_the_same_bytes_alone_in_a_batch_and_in_a_stream(model: GPT2) -> None:
    together = generate(model, PROMPTS, DRAWN)
    for prompt, group in zip(PROMPTS, together, strict=True):
        alone = generate(model, [prompt], DRAWN)[0]
        assert alone == group  # log-probabilities too, bit for bit
        events = list(stream(model, prompt, DRAWN))
        assert [event.token for event in events] == group[0].token_ids
        assert [event.choice for event in events] == group[0].logprobs
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason == group[0].finish_reason


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("s", [GREEDY, DRAWN])
@pytest.mark.parametrize("cache", [True, False])
def test_a_padded_batch_gives_the_tokens_of_single_sequences(model, side, s, cache) -> None:
    s = dataclasses.replace(s, n=2, max_tokens=2 * N)  # slides in the middle, at another step in every row
    assert tokens(generate(model, PROMPTS, s, batched=True, padding=side, cache=cache)) == tokens(
        generate(model, PROMPTS, s)
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_every_length_on_either_side_does_not_change_logits(model: GPT2, side) -> None:
    [ids, long] = prompts_of((6, 30))
    for pad in range(20):
        decoder = Decoder(model, None, 8, padding=side)
        for step in range(5):
            rows = [ids[: 2 + step], long[: 2 + pad + step]]
            for got, row in zip(decoder.logits(rows), rows, strict=True):
                want = Decoder(model, None, 8).logits([row])[0]
                np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())  # fp32, other blocking


def test_rows_that_end_early_leave_the_batch_and_change_nothing(model: GPT2) -> None:
    plain = tokens(generate(model, PROMPTS, GREEDY))
    each = [dataclasses.replace(GREEDY, max_tokens=k) for k in (12, 1, 5, 0)]
    for side in ("left", "right"):
        got = generate(model, PROMPTS, each, batched=True, padding=side)
        assert tokens(got) == [[row[0][:k]] for row, k in zip(plain, (12, 1, 5, 0), strict=True)]


def test_dropping_a_row_keeps_the_cache_of_the_others(model: GPT2) -> None:
    short, long = prompts_of((4, 2 * N))  # their views start at different tokens
    decoder = Decoder(model, None, 8)
    decoder.logits([long, short])
    kept = decoder.cache
    decoder.reorder([1])
    got = decoder.logits([[*short, 5]])[0]
    assert decoder.cache is kept
    want = Decoder(model, None, 8).logits([[*short, 5]])[0]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())  # fp32, other blocking


def test_a_stop_at_each_row_of_a_batch_is_its_own(model: GPT2) -> None:
    plain = tokens(generate(model, PROMPTS, GREEDY))
    eos = plain[1][0][3]
    got = generate(model, PROMPTS, GREEDY, eos_id=eos, batched=True)
    for [row], [completion] in zip(plain, got, strict=True):
        end = row.index(eos) + 1 if eos in row else len(row)
        assert completion.token_ids == row[:end]
        assert completion.finish_reason == ("stop" if eos in row else "length")
        assert completion.stop_reason == (eos if eos in row else None)


# --- Past n_positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5, 32, 1024])
def test_the_view_never_exceeds_the_positions_and_slides_by_a_quarter(positions: int) -> None:
    starts = [view_start(length, positions) for length in range(1, 6 * positions + 1)]
    views = [length - start for length, start in enumerate(starts, 1)]
    assert max(views) <= positions
    assert min(views[positions - 1 :]) == max(1, positions * 3 // 4)
    assert starts == sorted(starts)
    assert starts[positions - 1] == 0
    slides = sum(a != b for a, b in itertools.pairwise(starts))
    assert slides <= 6 * positions / max(1, positions // 4)


@pytest.mark.parametrize("cache", [True, False])
def test_continuing_a_text_is_generating_it_at_once(model: GPT2, cache: bool) -> None:
    s = SamplingSettings(temperature=0, max_tokens=80)
    [[whole]] = generate(model, [PROMPTS[1]], s, cache=cache)
    for cut in (1, 27, 28, 29, 50):
        rest = dataclasses.replace(s, max_tokens=80 - cut)
        [[tail]] = generate(model, [PROMPTS[1] + whole.token_ids[:cut]], rest, cache=cache)
        assert whole.token_ids[:cut] + tail.token_ids == whole.token_ids


def test_sliding_is_said_from_the_first_token_on_that_misses_the_beginning(model: GPT2) -> None:
    s = SamplingSettings(temperature=0, max_tokens=40)
    said = [event.window_slid for event in stream(model, PROMPTS[2], s)]
    assert said == [9 + i > N for i in range(40)]
    assert generate(model, [PROMPTS[2]], s)[0][0].window_slid
    assert not generate(model, [PROMPTS[2]], GREEDY)[0][0].window_slid


def test_window_stop_ends_where_the_positions_end(model: GPT2) -> None:
    s = SamplingSettings(temperature=0, max_tokens=100)
    for length in (1, N - 1, N):
        [prompt] = prompts_of((length,))
        for beams in (1, 2):
            one = dataclasses.replace(s, num_beams=beams)
            [[completion]] = generate(model, [prompt], one, window="stop")
            assert len(completion.token_ids) == N - length
            assert completion.finish_reason == "length"
            assert not completion.window_slid
    with pytest.raises(UserError, match=f"{N + 1} tokens, the model sees {N}"):
        generate(model, prompts_of((N + 1,)), s, window="stop")


def test_beams_slide_too(model: GPT2) -> None:
    s = SamplingSettings(temperature=0, max_tokens=50, num_beams=3)
    [[cached]] = generate(model, [PROMPTS[2]], s)
    [[plain]] = generate(model, [PROMPTS[2]], s, cache=False)
    assert cached.token_ids == plain.token_ids
    assert cached.window_slid
    [prompt] = prompts_of((N + 9,))
    greedy = dataclasses.replace(GREEDY, max_tokens=30)
    [one] = model_beams(model, prompt, greedy)
    assert one.token_ids == generate(model, [prompt], greedy)[0][0].token_ids


# --- Text -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.7, 1.0, 3.0]))
@settings(deadline=None, max_examples=25)
def test_a_stream_never_splits_a_character(byte_model, byte_tokenizer, seed, temperature) -> None:
    s = SamplingSettings(seed=seed, temperature=temperature, max_tokens=25)
    pieces = [event.text for event in stream(byte_model, [1, 2], s, tokenizer=byte_tokenizer)]
    [[whole]] = generate(byte_model, [[1, 2]], s, tokenizer=byte_tokenizer)
    visible = whole.token_ids[:-1] if whole.finish_reason == "stop" else whole.token_ids
    assert "".join(pieces) == whole.text == byte_tokenizer.decode(visible)


@given(text=st.text(st.sampled_from("人东🤗é👩‍👩‍👧ab "), max_size=40))
@settings(deadline=None, max_examples=60)
def test_whole_characters_stay_whole_through_any_tokens(byte_tokenizer: Tokenizer, text: str) -> None:
    streamed = TextStream(byte_tokenizer, ())
    pieces = [streamed.push(token) for token in byte_tokenizer.encode(text)] + [streamed.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def first_stop(text: str, stops: list[str]) -> str:
    """The text before the stop string that is completed first: character by character, the slow way."""
    for end in range(1, len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)]
    return text


@given(
    text=st.text(st.sampled_from("ab東🤗"), max_size=24),
    stops=st.lists(st.text(st.sampled_from("ab東🤗"), min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_stop_strings_work_across_tokens_and_are_never_partly_emitted(byte_tokenizer, text, stops) -> None:
    for ids in (byte_tokenizer.encode(text), list(text.encode())):
        if ids and ids == list(text.encode()):
            ids = [next(i for i in range(300) if byte_tokenizer.token_bytes(i) == bytes([b])) for b in ids]
        streamed, emitted = TextStream(byte_tokenizer, stops), ""
        want = first_stop(text, stops)
        for token in ids:
            emitted += streamed.push(token)
            assert want.startswith(emitted)
            if streamed.stop is not None:
                break
        else:
            emitted += streamed.finish()
        assert emitted == want
        assert (streamed.stop is None) == (want == text and not any(stop in text for stop in stops))


@pytest.mark.parametrize(
    ("stops", "before"),
    [
        (["b", "ab"], "x"),
        (["ab", "b"], "x"),
        (["llo", "e"], "xab h"),
        (["o", "ell"], "xab h"),
        (["lo"], "xab hel"),
    ],
)
def test_the_stop_string_that_is_completed_first_wins_then_the_longer(byte_tokenizer, stops, before) -> None:
    ids = byte_tokenizer.encode("xab hello")
    assert byte_tokenizer.token_bytes(ids[-1]) == b" hello"  # one token holds several ends
    streamed, text = TextStream(byte_tokenizer, stops), ""
    for token in ids:
        text += streamed.push(token)
        if streamed.stop is not None:
            break
    assert text == before


def test_a_stop_string_ends_completion_stream_and_beam_alike(byte_model, byte_tokenizer) -> None:
    prompt, s = [3, 4], SamplingSettings(seed=3, max_tokens=40, ignore_eos=True)
    [[plain]] = generate(byte_model, [prompt], s, tokenizer=byte_tokenizer)
    found = False
    for start in range(len(plain.text) - 3):
        stop = plain.text[start : start + 3]
        cut = dataclasses.replace(s, stop=stop)
        [[got]] = generate(byte_model, [prompt], cut, tokenizer=byte_tokenizer)
        assert got.text == plain.text[: plain.text.index(stop)]
        assert (got.finish_reason, got.stop_reason) == ("stop", stop)
        assert got.token_ids == plain.token_ids[: len(got.token_ids)]
        events = list(stream(byte_model, prompt, cut, tokenizer=byte_tokenizer))
        assert "".join(event.text for event in events) == got.text
        assert events[-1].stop_reason == stop
        found = True
    assert found
    beams = SamplingSettings(temperature=0, max_tokens=12, num_beams=2, ignore_eos=True)
    [[plain]] = generate(byte_model, [prompt], beams, tokenizer=byte_tokenizer)
    stop = plain.text[2]
    cut = dataclasses.replace(beams, stop=stop, n=2)
    [group] = generate(byte_model, [prompt], cut, tokenizer=byte_tokenizer)
    assert any(completion.stop_reason == stop for completion in group)
    assert all(stop not in completion.text for completion in group)


def test_min_tokens_holds_every_kind_of_stop_off(byte_model, byte_tokenizer) -> None:
    s = SamplingSettings(temperature=0, max_tokens=20, ignore_eos=True)
    [[plain]] = generate(byte_model, [[3, 4]], s, tokenizer=byte_tokenizer)
    early = dataclasses.replace(s, min_tokens=10, stop=plain.text[1], stop_token_ids=[plain.token_ids[2]])
    [[got]] = generate(byte_model, [[3, 4]], early, tokenizer=byte_tokenizer)
    assert len(got.token_ids) >= 10
    assert plain.token_ids[2] not in got.token_ids[:9]
    beams = dataclasses.replace(early, num_beams=2, n=2)
    for completion in generate(byte_model, [[3, 4]], beams, tokenizer=byte_tokenizer)[0]:
        assert len(completion.token_ids) >= 10


def test_beams_live_with_fewer_tokens_than_beams() -> None:
    few = make_model(dataclasses.replace(CONFIG, vocab_size=3))
    s = SamplingSettings(temperature=0, max_tokens=3, num_beams=8, n=8, bad_words=[[0]])
    got = [tuple(completion.token_ids) for completion in generate(few, [[0]], s)[0]]
    assert sorted(got) == list(itertools.product([1, 2], repeat=3))


def test_ignore_eos_goes_on_past_it_but_stop_tokens_still_stop(model: GPT2) -> None:
    [[plain]] = generate(model, [PROMPTS[1]], GREEDY)
    eos = plain.token_ids[4]
    going = dataclasses.replace(GREEDY, ignore_eos=True)
    assert generate(model, [PROMPTS[1]], going, eos_id=eos)[0][0].token_ids == plain.token_ids
    stopping = dataclasses.replace(going, stop_token_ids=[eos])
    [[got]] = generate(model, [PROMPTS[1]], stopping, eos_id=eos)
    assert got.token_ids == plain.token_ids[: plain.token_ids.index(eos) + 1]
    assert (got.finish_reason, got.stop_reason) == ("stop", eos)


def test_eos_is_in_the_tokens_but_not_in_the_text(byte_model, byte_tokenizer) -> None:
    s = SamplingSettings(temperature=0, max_tokens=12, ignore_eos=True)
    [[plain]] = generate(byte_model, [[3, 4]], s, tokenizer=byte_tokenizer)
    eos = plain.token_ids[5]
    for beams in (1, 2):
        one = dataclasses.replace(s, ignore_eos=False, num_beams=beams)
        [[got]] = generate(byte_model, [[3, 4]], one, tokenizer=byte_tokenizer, eos_id=eos)
        if beams == 1:
            assert got.token_ids == plain.token_ids[: plain.token_ids.index(eos) + 1]
        if got.finish_reason == "stop":
            assert got.text == byte_tokenizer.decode(got.token_ids[:-1])


def test_scores_of_a_padded_vocabulary_are_what_generation_reports(byte_tokenizer) -> None:
    padded = make_model(dataclasses.replace(CONFIG, vocab_size=byte_tokenizer.vocab_size + 500))
    s = SamplingSettings(max_tokens=6, temperature=0, ignore_eos=True, logprobs=1)
    (one,) = generate(padded, [[3, 4]], s, tokenizer=byte_tokenizer)[0]
    ids = [3, 4, *one.token_ids]
    said = [choice.logprob for choice in one.logprobs]
    np.testing.assert_allclose(score(padded, ids, byte_tokenizer)[1:], said, atol=1e-5)
    assert [choice.logprob for choice in echo(padded, ids, 1, byte_tokenizer)[2:]] == pytest.approx(said, abs=1e-5)
    with pytest.raises(UserError, match="outside the vocabulary"):
        generate(padded, [[byte_tokenizer.vocab_size]], s, tokenizer=byte_tokenizer)


def test_a_models_own_end_comes_before_the_vocabularys(byte_tokenizer) -> None:
    """As transformers has it: a ChatML model ends at <|im_end|>, though <|endoftext|> is in its vocabulary."""
    config = dataclasses.replace(CONFIG, vocab_size=byte_tokenizer.vocab_size, eos_token_id=7)
    assert end_id(config, None, byte_tokenizer) == 7
    assert end_id(config, 5, byte_tokenizer) == 5
    assert end_id(dataclasses.replace(config, eos_token_id=None), None, byte_tokenizer) == byte_tokenizer.eot_id


def test_a_vocabulary_padded_beyond_the_tokenizers_is_never_drawn_from(byte_tokenizer) -> None:
    padded = make_model(dataclasses.replace(CONFIG, vocab_size=byte_tokenizer.vocab_size + 500))
    s = SamplingSettings(seed=1, temperature=5.0, max_tokens=50, n=3, ignore_eos=True)
    for completion in generate(padded, [[3]], s, tokenizer=byte_tokenizer)[0]:
        assert max(completion.token_ids) < byte_tokenizer.vocab_size
    assert max(generate(padded, [[3]], s)[0][0].token_ids) >= byte_tokenizer.vocab_size


# --- Seeds, n, logprobs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [14, 60])  # 60: past a slide, where the prompt's cache is lost
def test_one_completion_is_the_first_of_four(model: GPT2, count: int) -> None:
    four = dataclasses.replace(DRAWN, n=4, max_tokens=count)
    [alone] = generate(model, [PROMPTS[2]], four)
    [[one]] = generate(model, [PROMPTS[2]], dataclasses.replace(four, n=1))
    assert alone[0] == one
    assert len({tuple(completion.token_ids) for completion in alone}) == 4
    for completion in alone:  # each can be repeated from the seed that it reports, bit for bit
        again = dataclasses.replace(four, n=1, seed=completion.seed)
        assert generate(model, [PROMPTS[2]], again) == [[completion]]
    [batch] = generate(model, [PROMPTS[2]], four, batched=True)
    assert tokens([batch]) == tokens([alone])


def test_without_a_seed_one_is_drawn_and_reported(model: GPT2) -> None:
    s = SamplingSettings(max_tokens=20)
    [[one]], [[two]] = generate(model, PROMPTS[:1], s), generate(model, PROMPTS[:1], s)
    assert one.seed != two.seed
    assert one.token_ids != two.token_ids
    again = dataclasses.replace(s, seed=one.seed)
    assert generate(model, PROMPTS[:1], again)[0][0].token_ids == one.token_ids
    seeds = {event.seed for event in stream(model, PROMPTS[0], s)}
    assert len(seeds) == 1
    assert None not in seeds
    assert generate(model, PROMPTS[:1], GREEDY)[0][0].seed is None


def test_temperature_near_zero_and_one_of_top_k_are_greedy(model: GPT2) -> None:
    greedy = tokens(generate(model, PROMPTS, GREEDY))
    for fields in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        s = SamplingSettings(seed=1, max_tokens=12, **fields)
        assert tokens(generate(model, PROMPTS, s)) == greedy


@pytest.mark.parametrize("length", [2, N, N + 1, 2 * N + 7])
def test_score_is_what_generation_reports(model: GPT2, length: int) -> None:
    [prompt] = prompts_of((length,))
    s = dataclasses.replace(DRAWN, max_tokens=2 * N)
    [[completion]] = generate(model, [prompt], s)
    got = score(model, prompt + completion.token_ids)
    assert got.shape == (length + 2 * N - 1,)
    want = [choice.logprob for choice in completion.logprobs]
    np.testing.assert_allclose(got[length - 1 :], want, atol=1e-4)  # fp32, with and without a cache


def test_score_equals_log_softmax_and_echo_tells_the_same(model: GPT2) -> None:
    [ids] = prompts_of((20,))
    with torch.no_grad():
        logp = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    want = logp[torch.arange(19), torch.tensor(ids[1:])].numpy()
    np.testing.assert_allclose(score(model, ids), want, atol=1e-6)
    first, *rest = echo(model, ids, 3)
    assert first is None
    assert [choice.token for choice in rest] == ids[1:]
    np.testing.assert_array_equal([choice.logprob for choice in rest], score(model, ids))
    assert [choice.alternatives[0][0] for choice in rest] == logp[:-1].argmax(-1).tolist()
    assert score(model, []).shape == score(model, [3]).shape == (0,)
    assert (echo(model, []), echo(model, [3])) == ([], [None])


def test_logits_of_a_broken_model_are_refused(model: GPT2) -> None:
    broken = make_model()
    with torch.no_grad():
        broken.wte.weight[7] = float("nan")
    for call in (
        lambda: generate(broken, [[1]], GREEDY),
        lambda: generate(broken, [[1]], dataclasses.replace(GREEDY, num_beams=2)),
        lambda: list(stream(broken, [1], DRAWN)),
        lambda: score(broken, [1, 2]),
    ):
        with pytest.raises(UserError, match="NaN"):
            call()


# --- Repetition -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_samplers_against_repetition_lower_rep_n() -> None:
    """Greedy decoding of a small model loops; every sampler made against that must lower rep-n."""
    loops = make_model(dataclasses.replace(CONFIG, initializer_range=0.3), seed=1)
    base = SamplingSettings(temperature=0, max_tokens=100, seed=1)
    cures = {
        "repetition_penalty": {"repetition_penalty": 1.5},
        "presence": {"presence_penalty": 2.0},
        "frequency": {"frequency_penalty": 1.0},
        "ngram": {"no_repeat_ngram": 3},
        "temperature": {"temperature": 1.0},
        "top_k": {"temperature": 1.0, "top_k": 20},
        "top_p": {"temperature": 1.0, "top_p": 0.9},
        "min_p": {"temperature": 1.0, "min_p": 0.02},
        "typical_p": {"temperature": 1.0, "typical_p": 0.9},
    }

    def measured(fields: dict[str, float]) -> dict[int, float]:
        said = tokens(generate(loops, PROMPTS, dataclasses.replace(base, **fields)))
        return {n: float(np.mean([rep_n(row, n) for [row] in said])) for n in (1, 3)}

    before = measured({})
    assert before[3] > 0.3
    for name, fields in cures.items():
        after = measured(fields)
        assert after[3] < before[3] / 2, (name, before, after)
        assert after[1] < before[1], (name, before, after)
    assert measured(cures["ngram"])[3] == 0
    assert rep_n([1, 2, 1, 2, 1], 2) == 0.5


def test_bad_words_and_bias_reach_the_output(model: GPT2) -> None:
    plain = generate(model, [PROMPTS[1]], GREEDY)[0][0].token_ids
    banned = dataclasses.replace(GREEDY, bad_words=[plain[:1], plain[3:5]])
    got = generate(model, [PROMPTS[1]], banned)[0][0].token_ids
    assert plain[0] not in got
    assert tuple(plain[3:5]) not in set(itertools.pairwise(got))
    forced = dataclasses.replace(GREEDY, logit_bias={7: 100.0})
    assert generate(model, [PROMPTS[1]], forced)[0][0].token_ids == [7] * 12


# --- Edges and refusals -----------------------------------------------------------------------------------


def test_no_tokens_at_all(model: GPT2) -> None:
    none = SamplingSettings(temperature=0, max_tokens=0, n=2, num_beams=2)
    for s in (none, SamplingSettings(max_tokens=0, seed=1, n=2)):
        for batched in (False, s.num_beams == 1):
            [group] = generate(model, [[1]], s, batched=batched)
            assert [(c.token_ids, c.finish_reason) for c in group] == [([], "length")] * 2
    [event] = stream(model, [1], SamplingSettings(max_tokens=0))
    assert (event.token, event.text, event.finish_reason) == (None, "", "length")
    assert generate(model, [], GREEDY) == []
    assert generate(model, [], GREEDY, batched=True) == []


def test_an_empty_prompt_starts_from_eos_or_is_refused(model: GPT2) -> None:
    assert (
        tokens(generate(model, [[]], GREEDY, eos_id=9))[0][0]
        == (tokens(generate(model, [[9]], GREEDY, eos_id=9))[0][0])
    )
    with pytest.raises(UserError, match="empty"):
        generate(model, [[]], GREEDY)


def test_eos_comes_from_argument_tokenizer_or_config(byte_model, byte_tokenizer) -> None:
    plain = generate(byte_model, [[3, 4]], GREEDY, tokenizer=byte_tokenizer)[0][0].token_ids
    config = dataclasses.replace(byte_model.config, eos_token_id=plain[4])
    other = GPT2(config).eval()
    other.load_state_dict(byte_model.state_dict())
    assert len(generate(other, [[3, 4]], GREEDY)[0][0].token_ids) == plain.index(plain[4]) + 1
    eot = byte_tokenizer.eot_id
    [[got]] = generate(byte_model, [[]], GREEDY, tokenizer=byte_tokenizer)
    assert got.token_ids == generate(byte_model, [[eot]], GREEDY, eos_id=eot)[0][0].token_ids


@pytest.mark.parametrize("bad", [[V], [-1], [1, 10**12], [1.0], ["a"], [True], "text", 5, None])
def test_a_prompt_that_is_no_list_of_known_ids_is_refused(model: GPT2, bad: object) -> None:
    for call in (
        lambda: generate(model, [[1], bad], GREEDY),  # type: ignore[list-item]
        lambda: stream(model, bad, GREEDY),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match="prompt"):
            call()


def test_wrong_arguments_are_refused_at_the_call(model: GPT2) -> None:
    cases = [
        ({"padding": "middle"}, GREEDY, "padding"),
        ({"window": "grow"}, GREEDY, "window"),
        ({"eos_id": V}, GREEDY, "EOS"),
        ({}, dataclasses.replace(GREEDY, stop="x"), "tokenizer"),
        ({}, dataclasses.replace(GREEDY, stop_token_ids=[V]), "stop_token_ids"),
        ({}, [GREEDY, GREEDY], "2 settings for 1 prompts"),
        ({"batched": True}, dataclasses.replace(GREEDY, num_beams=2), "beam"),
    ]
    for options, s, message in cases:
        with pytest.raises(UserError, match=message):
            generate(model, [[1]], s, **options)
    for s in (dataclasses.replace(GREEDY, n=2), dataclasses.replace(GREEDY, num_beams=2)):
        with pytest.raises(UserError, match="one completion"):
            stream(model, [1], s)
    with pytest.raises(UserError, match="window"):
        stream(model, [1], GREEDY, window="grow")


def test_generation_has_no_dropout_and_leaves_the_model_in_training(model: GPT2) -> None:
    training = make_model()
    training.train()
    training.h[0].eval()  # a part that someone keeps frozen stays so
    modes = [module.training for module in training.modules()]
    assert tokens(generate(training, PROMPTS, GREEDY)) == tokens(generate(model, PROMPTS, GREEDY))
    np.testing.assert_array_equal(score(training, PROMPTS[3]), score(model, PROMPTS[3]))
    events = stream(training, PROMPTS[1], GREEDY)
    next(events)
    assert [module.training for module in training.modules()] == modes
    assert torch.is_grad_enabled()
    events.close()
    assert list(events) == []
    assert [module.training for module in training.modules()] == modes


def test_a_half_precision_model_decodes(model: GPT2) -> None:
    half = make_model().to(torch.bfloat16)
    [[one]] = generate(half, [PROMPTS[1]], DRAWN)
    [[again]] = generate(half, [PROMPTS[1], PROMPTS[0]], DRAWN)[:1]
    assert one == again
    assert len(one.token_ids) == 12
