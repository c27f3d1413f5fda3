"""Reference decode: prompts to completions over `gpt2.py`, as plainly as possible.

**What is exact.** By default every sequence is computed on its own, [1, T]: its tokens and
log-probabilities are the same bytes alone, in a batch and in a stream, because the same operations run.
`batched=True` pads the prompts to one batch instead. A matrix product over more rows may add in another
order, so its logits agree to about 1e-6 of their size only, and a token may differ where two are that
close. The same holds of `cache=False`, which computes the whole view for every token: the definition that
the cache is held against. Another number of torch threads may change last bits, too.

What happens past n_positions: `completion.py`. Beam search: `beam.py`. How a token is chosen: `sampling.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gpt2kit.errors import UserError
from gpt2kit.model.beam import beam_search
from gpt2kit.model.completion import (
    Completion,
    Event,
    Generation,
    Logits,
    Window,
    check_ids,
    check_one_of,
    check_prompt,
    check_settings,
    end_id,
    room,
    view_start,
    vocabulary,
)
from gpt2kit.model.decoder import Decoder, Padding, evaluating
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.sampling import Choice, SamplingSettings, check_logits, describe, log_softmax

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

SCORE_CHUNK = 128  # positions whose logits exist at once while scoring: 26 MB at V = 50,257


def generate(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
    *,
    eos_id: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache: bool = True,
    batched: bool = False,
    padding: Padding = "left",
    window: Window = "slide",
) -> list[list[Completion]]:
    """settings.n completions for each prompt (token ids), in the order of the prompts.

    `settings` is one for all prompts or one for each. eos_id None: the tokenizer's, otherwise the config's,
    otherwise none. An empty prompt starts from EOS. The tokenizer gives `text` and is needed for stop
    strings. Without a seed each prompt draws one, which its completions report. Raises UserError for ids
    outside the vocabulary and, with window="stop", for a prompt that is longer than the model's context.
    """
    eos_id = end_id(model.config, eos_id, tokenizer)
    check_one_of("padding", padding, ("left", "right"))
    check_one_of("window", window, ("slide", "stop"))
    pairs = _pair(prompts, settings)
    each = [check_settings(one, model.config, tokenizer) for _, one in pairs]
    ids = [check_prompt(f"prompt {i}", pairs[i][0], model.config, eos_id, window, tokenizer) for i in range(len(pairs))]
    if batched and any(one.num_beams > 1 for one in each):
        raise UserError("beam search is one batch of beams already", hint="leave out batched")

    def rows(prompt: list[int], one: SamplingSettings) -> list[Generation]:
        own = (one.for_completion(j) for j in range(one.n))
        return [Generation(prompt, s, eos_id, tokenizer, model.config.n_positions, window) for s in own]

    if batched:
        groups = [rows(prompt, one) for prompt, one in zip(ids, each, strict=True)]
        every = [row for group in groups for row in group]
        longest = max((row.limit for row in every), default=0)
        _run_together(Decoder(model, tokenizer, longest, cache, padding), every)
        return [[row.completion() for row in group] for group in groups]
    out = []
    for prompt, one in zip(ids, each, strict=True):
        if one.num_beams > 1:
            out.append(model_beams(model, prompt, one, eos_id, tokenizer, cache, window))
        else:
            group = rows(prompt, one)
            _run_alone(Decoder(model, tokenizer, group[0].limit, cache), group)
            out.append([row.completion() for row in group])
    return out


def model_beams(
    model: GPT2,
    prompt: list[int],
    settings: SamplingSettings,
    eos_id: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache: bool = True,
    window: Window = "slide",
) -> list[Completion]:
    """The settings.n best of settings.num_beams beams, best first. Arguments as checked by `generate`."""
    N = model.config.n_positions
    decoder = Decoder(model, tokenizer, room(len(prompt), settings, N, window), cache)
    return beam_search(decoder, prompt, settings, N, eos_id, tokenizer, window)


def _run_alone(decoder: Decoder, rows: list[Generation]) -> None:
    """Finish the completions of one prompt one after another; the prompt is computed once."""
    prompt = rows[0].prompt
    first = decoder.logits([prompt]) if rows[0].limit else None
    for j, row in enumerate(rows):
        if j and first is not None:
            decoder.rewind(prompt)
        for _ in row.run(decoder, first):
            pass


def _run_together(decoder: Decoder, rows: list[Generation]) -> None:
    live = [row for row in rows if row.finish_reason is None]
    while live:
        for row, logits in zip(live, decoder.logits([row.ids for row in live]), strict=True):
            row.advance(logits)
        going = [r for r, row in enumerate(live) if row.finish_reason is None]
        if 0 < len(going) < len(live):
            decoder.reorder(going)
        live = [live[r] for r in going]


def stream(
    model: GPT2,
    prompt: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    eos_id: int | None = None,
    tokenizer: Tokenizer | None = None,
    cache: bool = True,
    window: Window = "slide",
) -> Iterator[Event]:
    """One completion, token by token, equal to `generate`'s; arguments as there. Wrong ones raise at the
    call.

    The iterator holds no lock and no mode of the model between events, so it may be closed or dropped
    anywhere.
    """
    eos_id = end_id(model.config, eos_id, tokenizer)
    check_one_of("window", window, ("slide", "stop"))
    ids = check_prompt("the prompt", prompt, model.config, eos_id, window, tokenizer)
    settings = check_settings(settings or SamplingSettings(), model.config, tokenizer)
    if settings.n > 1 or settings.num_beams > 1:
        raise UserError("a stream is of one completion: n and num_beams must be 1", hint="use generate instead")
    row = Generation(ids, settings, eos_id, tokenizer, model.config.n_positions, window)
    return row.run(Decoder(model, tokenizer, row.limit, cache), None)


def score(model: GPT2, ids: Sequence[int], tokenizer: Tokenizer | None = None) -> NDArray[np.float64]:
    """Natural log-probabilities [T - 1] of ids[1:], each given the tokens before it.

    Past n_positions the view slides as in generation, so these are the figures that generating `ids` with the same
    tokenizer would report: rows of the vocabulary that it has no token for do not count.
    """
    tokens, V = np.asarray(check_ids("the text", ids, model.config, tokenizer)), vocabulary(model.config, tokenizer)
    out = [log_softmax(logits[:V])[tokens[t + 1]] for t, logits in _rows(model, tokens)]
    return np.array(out, np.float64)


def echo(model: GPT2, ids: Sequence[int], logprobs: int = 0, tokenizer: Tokenizer | None = None) -> list[Choice | None]:
    """For each token of a prompt its log-probability and the likeliest alternatives; None for the first. As `score`."""
    tokens, V = np.asarray(check_ids("the prompt", ids, model.config, tokenizer)), vocabulary(model.config, tokenizer)
    found = [describe(logits[:V], int(tokens[t + 1]), logprobs) for t, logits in _rows(model, tokens)]
    return [None, *found][: len(tokens)]


def _rows(model: GPT2, tokens: NDArray[np.int64]) -> Iterator[tuple[int, Logits]]:
    """(t, the logits [V] that predict token t + 1) for every token but the last, view by view."""
    N, t, last = model.config.n_positions, 0, len(tokens) - 1
    device = model.wte.weight.device
    while t < last:
        start = view_start(t + 1, N)
        end = min(start + N, last)
        with evaluating(model):
            hidden = model.hidden(torch.from_numpy(tokens[start:end]).to(device)[None])[0]  # T C
        while t < end:
            stop = min(t + SCORE_CHUNK, end)
            with torch.no_grad():
                logits = F.linear(hidden[t - start : stop - start], model.head).float().cpu().numpy()  # T V
            for row in logits:
                check_logits(float(row.max()), banned=False)
                yield t, row
                t += 1


def _pair(
    prompts: Sequence[Sequence[int]], settings: SamplingSettings | Sequence[SamplingSettings] | None
) -> list[tuple[Sequence[int], SamplingSettings]]:
    """Each prompt with its settings."""
    if settings is None or isinstance(settings, SamplingSettings):
        return [(prompt, settings or SamplingSettings()) for prompt in prompts]
    if len(settings) != len(prompts):
        raise UserError(
            f"got {len(settings)} settings for {len(prompts)} prompts",
            hint="give one for all or one for each",
        )
    return list(zip(prompts, settings, strict=True))
