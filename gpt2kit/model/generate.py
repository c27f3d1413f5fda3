"""Reference decode: prompts to completions over `gpt2.py`, as plainly as possible.

**What is exact.** By default every sequence is computed on its own, [1, T]: its tokens and
log-probabilities are the same bytes alone, in a batch and in a stream, because the same operations run.
`batched=True` pads the prompts to one batch instead. A matrix product over more rows may add in another
order, so its logits agree to about 1e-6 of their size only, and a token may differ where two are that
close. The same holds of `cache=False`, which computes the whole view for every token: the definition that
the cache is held against. Another number of torch threads may change last bits, too.

What happens past n_positions: `decoder.py`. Beam search: `beam.py`. How a token is chosen: `sampling.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from gpt2kit.errors import UserError
from gpt2kit.model.beam import beam_search
from gpt2kit.model.decoder import (
    Completion,
    Decoder,
    Finish,
    Logits,
    Padding,
    TextStream,
    Window,
    evaluating,
    room,
    stop_ids,
    view_start,
    vocabulary,
)
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.model.sampling import (
    Choice,
    SamplingSettings,
    check_logits,
    describe,
    log_softmax,
    random_seed,
    sample,
)

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

SCORE_CHUNK = 128  # positions whose logits exist at once while scoring: 26 MB at V = 50,257


@dataclass(frozen=True)
class Event:
    """One step of a stream. The pieces of text joined are the text of the completion."""

    token: int | None  # None only when max_tokens or the window leave no room for any
    text: str = ""  # what is certain by now: whole characters, no possible beginning of a stop string
    choice: Choice | None = None
    finish_reason: Finish | None = None  # set on the last event
    stop_reason: int | str | None = None
    seed: int | None = None
    window_slid: bool = False


class Generation:
    """One completion in progress: takes a row of logits a step, until `finish_reason` is set."""

    def __init__(
        self,
        prompt: Sequence[int],
        settings: SamplingSettings,
        eos_id: int | None,
        tokenizer: Tokenizer | None,
        n_positions: int,
        window: Window,
    ) -> None:
        self.prompt, self.settings, self.eos_id, self.n_positions = prompt, settings, eos_id, n_positions
        self.ids = list(prompt)
        self.output: list[int] = []
        self.choices: list[Choice] = []
        self.stream = None if tokenizer is None else TextStream(tokenizer, settings.stop)
        self.text: list[str] = []
        self.stop_ids = stop_ids(settings, eos_id)
        self.limit = room(len(prompt), settings, n_positions, window)
        self.window_slid = False
        self.stop_reason: int | str | None = None
        self.finish_reason: Finish | None = "length" if self.limit == 0 else None

    def advance(self, logits: Logits) -> Event:
        """Choose the next token from logits [V] and say what became of it."""
        assert self.finish_reason is None, "this completion has ended"
        self.window_slid |= view_start(len(self.ids), self.n_positions) > 0
        choice = sample(logits, self.settings, self.prompt, self.output, self.eos_id)
        self.ids.append(choice.token)
        self.output.append(choice.token)
        self.choices.append(choice)
        long_enough = len(self.output) >= self.settings.min_tokens
        text = ""
        if choice.token in self.stop_ids and long_enough:
            self.stop_reason, self.finish_reason = choice.token, "stop"
        else:
            if self.stream is not None:
                text = self.stream.push(choice.token, long_enough)
            if len(self.output) == self.limit:
                self.finish_reason = "length"
        if self.stream is not None:
            if self.finish_reason is not None and self.stream.stop is None:
                text += self.stream.finish()
            if self.stream.stop is not None:
                self.stop_reason, self.finish_reason = self.stream.stop, "stop"
        self.text.append(text)
        return self._event(choice, text)

    def _event(self, choice: Choice | None, text: str = "") -> Event:
        token = None if choice is None else choice.token
        return Event(token, text, choice, self.finish_reason, self.stop_reason, self.settings.seed, self.window_slid)

    def run(self, decoder: Decoder, logits: Logits | None) -> Iterator[Event]:
        """The events until the end. `logits` [1, V] are those after the prompt, where they are known."""
        if self.finish_reason is not None:
            yield self._event(None)
        while self.finish_reason is None:
            logits = decoder.logits([self.ids]) if logits is None else logits
            yield self.advance(logits[0])
            logits = None

    def completion(self) -> Completion:
        assert self.finish_reason is not None, "this completion has not ended"
        text = None if self.stream is None else "".join(self.text)
        logprobs = None if self.settings.logprobs is None else self.choices
        seed = self.settings.seed
        return Completion(self.output, text, self.finish_reason, self.stop_reason, logprobs, seed, self.window_slid)


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
    eos_id = _eos(model, eos_id, tokenizer)
    _one_of("padding", padding, ("left", "right"))
    _one_of("window", window, ("slide", "stop"))
    pairs = _pair(prompts, settings)
    each = [_check_settings(one, model, tokenizer) for _, one in pairs]
    ids = [_check_prompt(f"prompt {i}", pairs[i][0], model, eos_id, window) for i in range(len(pairs))]
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
            out.append(beam_search(model, prompt, one, eos_id, tokenizer, cache, window))
        else:
            group = rows(prompt, one)
            _run_alone(Decoder(model, tokenizer, group[0].limit, cache), group)
            out.append([row.completion() for row in group])
    return out


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
    eos_id = _eos(model, eos_id, tokenizer)
    _one_of("window", window, ("slide", "stop"))
    ids = _check_prompt("the prompt", prompt, model, eos_id, window)
    settings = _check_settings(settings or SamplingSettings(), model, tokenizer)
    if settings.n > 1 or settings.num_beams > 1:
        raise UserError("a stream is of one completion: n and num_beams must be 1", hint="use generate instead")
    row = Generation(ids, settings, eos_id, tokenizer, model.config.n_positions, window)
    return row.run(Decoder(model, tokenizer, row.limit, cache), None)


def score(model: GPT2, ids: Sequence[int]) -> NDArray[np.float64]:
    """Natural log-probabilities [T - 1] of ids[1:], each given the tokens before it.

    Past n_positions the view slides as in generation, so these are the figures that generating `ids` would
    report.
    """
    tokens = np.asarray(_check_ids("the text", ids, model))
    out = [log_softmax(logits)[tokens[t + 1]] for t, logits in _rows(model, tokens)]
    return np.array(out, np.float64)


def echo(model: GPT2, ids: Sequence[int], logprobs: int = 0) -> list[Choice | None]:
    """For each token of a prompt its log-probability and the likeliest alternatives; None for the first."""
    tokens = np.asarray(_check_ids("the prompt", ids, model))
    found = [describe(logits, int(tokens[t + 1]), logprobs) for t, logits in _rows(model, tokens)]
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


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def _eos(model: GPT2, eos_id: int | None, tokenizer: Tokenizer | None) -> int | None:
    if eos_id is None and tokenizer is not None:
        eos_id = tokenizer.eot_id
    if eos_id is None:
        eos_id = model.config.eos_token_id
    V = vocabulary(model, tokenizer)
    if eos_id is not None and not 0 <= eos_id < V:
        raise UserError(f"EOS {eos_id} is outside the vocabulary of {V} tokens")
    return eos_id


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


def _check_settings(settings: SamplingSettings, model: GPT2, tokenizer: Tokenizer | None) -> SamplingSettings:
    """The settings with a seed, if they fit this model."""
    settings.check_vocabulary(vocabulary(model, tokenizer))
    if settings.stop and tokenizer is None:
        raise UserError("stop strings need a tokenizer", hint="pass tokenizer=, or use stop_token_ids")
    if settings.seed is None and settings.temperature > 0:
        settings = dataclasses.replace(settings, seed=random_seed())
    return settings


def _check_ids(what: str, ids: Sequence[int], model: GPT2) -> list[int]:
    V = model.config.vocab_size
    out = []
    for i, token in enumerate(ids):
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool):
            raise UserError(f"{what} must be a list of token ids, got {token!r} at {i}")
        if not 0 <= token < V:
            raise UserError(f"{what} holds id {token} at {i}, outside the vocabulary of {V} tokens")
        out.append(int(token))
    return out


def _check_prompt(what: str, prompt: Sequence[int], model: GPT2, eos_id: int | None, window: Window) -> list[int]:
    if isinstance(prompt, str) or not hasattr(prompt, "__iter__"):
        raise UserError(f"{what} must be a list of token ids, got {prompt!r}", hint="encode the text first")
    ids = _check_ids(what, prompt, model)
    if not ids:
        if eos_id is None:
            raise UserError(f"{what} is empty and there is no EOS to start from", hint="give at least one token")
        return [eos_id]
    N = model.config.n_positions
    if window == "stop" and len(ids) > N:
        raise UserError(
            f"{what} has {len(ids)} tokens, the model sees {N}",
            hint='cut it, or generate with window="slide"',
        )
    return ids
