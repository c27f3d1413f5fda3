"""The sampler: one row of logits to one token. Reference decoder, engine and server all use this file.

What happens to a row, in this order (that of Hugging Face transformers where it defines one):

    1. repetition_penalty      over prompt and output, once per distinct token (Keskar et al. 2019)
    2. presence, frequency     over the output only, as OpenAI defines them: - presence - count * frequency
    3. no_repeat_ngram         over prompt and output
    4. bad_words               over prompt and output
    5. logit_bias
    6. min_tokens              EOS and stop_token_ids are banned until so many tokens are out
    7. temperature             0: the most likely token, and nothing below is looked at
    8. top_k                   exactly k tokens are kept (transformers keeps all that tie with the k-th)
    9. top_p                   the fewest most likely tokens that together reach top_p (Holtzman et al. 2020)
    10. min_p                  those at least min_p times as likely as the likeliest (Nguyen et al. 2024)
    11. typical_p              those whose surprise is nearest to the entropy (Meister et al. 2022)
    12. one draw               inverse of the cumulative sum, in the order of the ids, in float64

8 to 11 each see the distribution that the step before left, renormalised. Ties always go to the lowest id.
The random number of token i is a pure function of (seed, i). A row is computed by itself, so its outcome
depends neither on the batch around it nor on threads. Reported log-probabilities are the model's own, before
step 1.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import UserError

Row = NDArray[np.floating[Any]]  # V
Indices = NDArray[np.intp]

LARGEST_ID = 2**31 - 1
INTEGERS = {  # field: (lowest, highest)
    "max_tokens": (0, 10_000_000),
    "top_k": (0, LARGEST_ID),
    "no_repeat_ngram": (0, 10_000),
    "seed": (0, 2**64 - 1),
    "n": (1, 1024),
    "min_tokens": (0, 10_000_000),
    "logprobs": (0, 100),
    "num_beams": (1, 256),
}
REALS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),  # OpenAI's range
    "frequency_penalty": (-2.0, 2.0),
    "length_penalty": (-10.0, 10.0),
}
OPTIONAL = ("top_k", "seed", "logprobs")
DRAW_BLOCK = 256


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose tokens and when to stop. The defaults draw from the model's own distribution.

    Every value is checked: wrong types (booleans too), NaN and values out of range raise UserError with the
    range.
    """

    max_tokens: int = 128
    temperature: float = 1.0  # 0: greedy
    top_k: int | None = None  # None or 0: off
    top_p: float = 1.0  # 1: off; 0 keeps the most likely token alone
    min_p: float = 0.0  # 0: off
    typical_p: float = 1.0  # 1: off; 0 keeps the most typical token alone
    repetition_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0  # 0: off; 3: no three tokens in a row occur twice
    bad_words: Sequence[Sequence[int]] = ()  # token id sequences that are never completed
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # -100 to 100
    seed: int | None = None  # None: drawn when generation starts, and reported with the result
    n: int = 1  # completions per prompt
    stop: Sequence[str] = ()  # the text ends before the first of these to be completed
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False  # EOS is a token like any other
    min_tokens: int = 0  # nothing stops the text before this many tokens
    logprobs: int | None = None  # how many alternatives to report; 0: the chosen token's alone; None: nothing
    num_beams: int = 1  # more than 1: beam search; needs temperature 0
    length_penalty: float = 1.0  # a beam's score is its log-probability / tokens ** length_penalty

    def __post_init__(self) -> None:
        for name, (low, high) in INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                self._set(name, _integer(name, value, low, high))
        for name, (low_, high_) in REALS.items():
            self._set(name, _real(name, getattr(self, name), low_, high_))
        if not isinstance(self.ignore_eos, bool):
            raise UserError(f"ignore_eos must be true or false, got {self.ignore_eos!r}")
        self._set("stop", _stops(self.stop))
        self._set("stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        self._set("bad_words", _bad_words(self.bad_words))
        self._set("logit_bias", _bias(self.logit_bias))
        if self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError("beam search draws nothing at random: it needs temperature 0", hint="temperature=0")
        if self.num_beams > 1 and self.n > self.num_beams:
            raise UserError(f"n must be at most num_beams {self.num_beams}, got {self.n}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @cached_property
    def largest_id(self) -> int:
        """The largest token id that any field names, or -1."""
        words = (token for word in self.bad_words for token in word)
        return max([*words, *self.logit_bias, *self.stop_token_ids], default=-1)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse a field that names a token outside the vocabulary."""
        if self.largest_id >= vocab_size:
            fields = {
                "bad_words": [t for w in self.bad_words for t in w],
                "logit_bias": list(self.logit_bias),
                "stop_token_ids": list(self.stop_token_ids),
            }
            name, token = next((k, t) for k, ids in fields.items() for t in ids if t >= vocab_size)
            raise UserError(f"{name} names token {token}, outside the vocabulary of {vocab_size} tokens")

    def for_completion(self, index: int) -> SamplingSettings:
        """These settings with the seed of completion `index` of a prompt; the first keeps the seed."""
        if index == 0 or self.seed is None:
            return self
        return dataclasses.replace(self, seed=derive_seed(self.seed, index))


@dataclass(frozen=True)
class Choice:
    """A token and, where asked for, its natural log-probability and the likeliest (id, logprob) pairs."""

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] | None = None


def _got(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, got {_got(value)}")
    return int(value)


def _real(name: str, value: object, low: float, high: float) -> float:
    # `low <= NaN` is false, so NaN is refused here too.
    if (
        not isinstance(value, (int, float, np.integer, np.floating))
        or isinstance(value, bool)
        or not low <= value <= high
    ):
        raise UserError(f"{name} must be a number from {low:g} to {high:g}, got {_got(value)}")
    return float(value)


def _ids(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UserError(f"{name} must be a list of token ids, got {_got(value)}")
    return tuple(_integer(f"a token id in {name}", token, 0, LARGEST_ID) for token in value)


def _bad_words(value: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UserError(f"bad_words must be a list of token id lists, got {_got(value)}")
    words = tuple(_ids("bad_words", word) for word in value)
    if not all(words):
        raise UserError("bad_words holds an empty list of token ids")
    return words


def _bias(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise UserError(f"logit_bias must map token ids to numbers, got {_got(value)}")
    return {
        _integer("a token id in logit_bias", token, 0, LARGEST_ID): _real("a logit_bias", bias, -100.0, 100.0)
        for token, bias in value.items()
    }


def _stops(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise UserError(f"stop must be a string or a list of strings, got {_got(value)}")
    stops = tuple(value)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise UserError(f"stop must hold non-empty strings, got {_got(stop)}")
    return stops


# --- Random numbers ---------------------------------------------------------------------------------------

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014), a bijection of 64 bits."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, step: int) -> float:
    """The random number in [0, 1) for token `step` under `seed`: SplitMix64 from a mixed seed, 53 bits."""
    return (_mix((_mix((seed + _GOLDEN) & _MASK) + (step + 1) * _GOLDEN) & _MASK) >> 11) * 2.0**-53


def derive_seed(seed: int, index: int) -> int:
    """The seed of completion `index` of a prompt, 53 bits. Index 0 keeps it: n = 1 is the first of n = 4."""
    return seed if index == 0 else _mix((_mix(seed ^ 0xD1B54A32D192ED03) + index * _GOLDEN) & _MASK) >> 11


def random_seed() -> int:
    """A seed from the operating system; 53 bits, so that JSON readers with doubles keep it whole."""
    return int.from_bytes(os.urandom(8), "little") >> 11


# --- Steps 1 to 6: logits to logits -----------------------------------------------------------------------


def process(
    logits: Row,
    settings: SamplingSettings,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos_id: int | None = None,
) -> Row:
    """Steps 1 to 6 on logits [V]; the input itself where nothing applies, otherwise a copy."""
    s = settings
    if s.largest_id >= len(logits):
        s.check_vocabulary(len(logits))
    scores = logits.copy() if _touches(s, output) else logits
    if s.repetition_penalty != 1 or s.no_repeat_ngram or s.bad_words:
        context = np.concatenate([np.asarray(prompt, np.int64), np.asarray(output, np.int64)])
        if s.repetition_penalty != 1:
            seen = np.unique(context)
            x = scores[seen]
            scores[seen] = np.where(x < 0, x * s.repetition_penalty, x / s.repetition_penalty)
    if len(output) and (s.presence_penalty or s.frequency_penalty):
        seen, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
        scores[seen] -= (s.presence_penalty + s.frequency_penalty * counts).astype(scores.dtype)
    if s.no_repeat_ngram:
        scores[repeating(context, s.no_repeat_ngram)] = -np.inf
    for word in s.bad_words:
        prefix = len(word) - 1
        if prefix == 0 or (prefix <= len(context) and tuple(context[-prefix:]) == tuple(word[:-1])):
            scores[word[-1]] = -np.inf
    if s.logit_bias:
        scores[list(s.logit_bias)] += np.array(list(s.logit_bias.values()), scores.dtype)
    if len(output) < s.min_tokens:
        scores[list(s.stop_token_ids)] = -np.inf
        if eos_id is not None and not s.ignore_eos:
            scores[eos_id] = -np.inf
    return scores


def _touches(s: SamplingSettings, output: Sequence[int]) -> bool:
    penalties = s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty
    return bool(penalties or s.no_repeat_ngram or s.bad_words or s.logit_bias or len(output) < s.min_tokens)


def repeating(ids: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The tokens that would complete an n-gram which `ids` [T] already holds."""
    if len(ids) < n:
        return ids[:0]
    windows = np.lib.stride_tricks.sliding_window_view(ids, n)  # T-n+1 n
    found: NDArray[np.int64] = windows[(windows[:, :-1] == ids[len(ids) + 1 - n :]).all(1), -1]
    return found


# --- Steps 7 to 12: logits to a token ---------------------------------------------------------------------


def largest(values: Row, k: int) -> Indices:
    """The indices, ascending, of the k largest values [V]; of equal values the first."""
    n = len(values)
    return np.arange(n) if k >= n else _at_least(values, np.partition(values, n - k)[n - k], k)


def _at_least(values: Row, kth: np.floating[Any], k: int) -> Indices:
    """The k largest, given the k-th largest value; too many because of ties: the last of the ties go."""
    kept = np.flatnonzero(values >= kth)
    if len(kept) > k:
        ties = np.flatnonzero(values[kept] == kth)
        kept = np.delete(kept, ties[k - len(kept) :])
    return kept


def ranked(values: Row, k: int) -> Indices:
    """The indices of the k largest values [V], largest first; of equal values the first."""
    kept = largest(values, k)
    return kept[np.argsort(-values[kept], kind="stable")]


def _nucleus(weights: Row, top_p: float) -> Indices:
    """The fewest largest weights that reach top_p of the sum. Only what can be among them is sorted."""
    total = weights.sum()
    # All weights under this floor together are at most half of 1 - top_p: surely cut. The rest is few.
    ordered = np.sort(weights[weights > 0.5 * (1 - top_p) * total / len(weights)])[::-1]
    k = min(int(np.searchsorted(np.cumsum(ordered), top_p * total)) + 1, len(ordered))
    return _at_least(weights, ordered[k - 1], k)


def _typical(weights: Row, mass: float) -> Indices:
    """The tokens nearest to the entropy in surprise until they reach `mass`, and ties with the last."""
    alive = np.flatnonzero(weights)
    p = weights[alive] / weights[alive].sum()
    surprise = -np.log(p)
    distance = np.abs(surprise - (p * surprise).sum())
    order = np.argsort(distance)  # not stable: all ties with the last are kept anyway; 0.7 ms, stable 4 ms
    last = min(int(np.searchsorted(np.cumsum(p[order]), mass)), len(order) - 1)
    kept: Indices = alive[distance <= distance[order[last]]]
    return kept


def warp(scores: Row, settings: SamplingSettings) -> tuple[Indices | None, NDArray[np.float64]]:
    """Steps 7 to 11: the ids kept, ascending (None: all), and their probabilities relative to the likeliest.

    `scores` [V] must have a finite maximum; settings.temperature must be above 0.
    """
    s = settings
    ids: Indices | None = None
    if s.top_k and s.top_k < len(scores):  # before the division: dividing does not change the order
        ids = largest(scores, s.top_k)
        scores = scores[ids]
    weights = scores.astype(np.float64)
    weights -= weights.max()  # first, so that no temperature overflows
    if s.temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature sends the others to -inf, as it should
            weights /= s.temperature
    np.exp(weights, out=weights)
    if s.top_p < 1:
        ids, weights = _take(ids, weights, _nucleus(weights, s.top_p))
    if s.min_p > 0:  # the likeliest weighs exactly 1 and survives top-k and top-p
        ids, weights = _take(ids, weights, np.flatnonzero(weights >= s.min_p))
    if s.typical_p < 1:
        ids, weights = _take(ids, weights, _typical(weights, s.typical_p))
    return ids, weights


def _take(ids: Indices | None, weights: NDArray[np.float64], kept: Indices) -> tuple[Indices, NDArray[np.float64]]:
    return (kept if ids is None else ids[kept]), weights[kept]


def draw(weights: NDArray[np.float64], u: float) -> int:
    """The first index at which the cumulative sum passes u of the total; never one of weight 0."""
    index = _draw_by_blocks(weights, u)
    if index is not None:
        return index
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])  # u * total may round to total


def _draw_by_blocks(weights: NDArray[np.float64], u: float) -> int | None:
    """The same index from the sums of blocks (V = 50,257: 27 us instead of 154), or None where it is too near to call.

    Sums in another order differ by less than 1e-12 of the total; a draw within 1e-9 of a border is left to the one sum.
    """
    whole = len(weights) // DRAW_BLOCK * DRAW_BLOCK
    if whole < 4 * DRAW_BLOCK:
        return None
    ends = np.cumsum(weights[:whole].reshape(-1, DRAW_BLOCK).sum(1))
    total = float(ends[-1] + weights[whole:].sum())
    block = int(np.searchsorted(ends, u * total, side="right"))
    rest = u * total - (float(ends[block - 1]) if block else 0.0)
    inside = np.cumsum(weights[block * DRAW_BLOCK : (block + 1) * DRAW_BLOCK])
    i = int(np.searchsorted(inside, rest, side="right"))
    if i == len(inside):
        return None
    below = float(inside[i - 1]) if i else 0.0
    near = min(rest - below, float(inside[i]) - rest) <= 1e-9 * total
    return None if near else block * DRAW_BLOCK + i


def log_softmax(logits: Row) -> NDArray[np.float64]:
    """Natural log-probabilities [V] in float64."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= math.log(np.exp(x).sum())
    return x


def describe(logits: Row, token: int, logprobs: int | None) -> Choice:
    """`token` with its log-probability under the model's logits [V] and the `logprobs` likeliest tokens'."""
    if logprobs is None:
        return Choice(token)
    logp = log_softmax(logits)
    best = ranked(logits, logprobs) if logprobs else ()
    return Choice(token, float(logp[token]), tuple((int(i), float(logp[i])) for i in best))


def check_logits(highest: float, banned: bool) -> None:
    """Refuse a row whose maximum is NaN or infinite, and say why. `banned`: the settings have been at it."""
    if math.isfinite(highest):
        return
    if highest == -math.inf and banned:
        raise UserError(
            "every token is banned: no_repeat_ngram, bad_words, logit_bias and min_tokens leave none",
            hint="loosen one of them",
        )
    what = "NaN" if math.isnan(highest) else "infinite"
    raise UserError(
        f"the model's logits are {what}, so no token can be chosen",
        hint="its weights or its training have diverged: take an earlier checkpoint",
    )


def sample(
    logits: Row,
    settings: SamplingSettings,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    eos_id: int | None = None,
    step: int | None = None,
) -> Choice:
    """Logits [V] to a token, by the steps at the top of this file. The logits are not changed.

    `prompt` and `output` are the ids before this one; `step` is this token's number in the output (None:
    len(output)). settings.seed must be set unless the temperature is 0. Raises UserError when the logits are
    NaN or infinite, or when the settings leave no token.
    """
    scores = process(logits, settings, prompt, output, eos_id)
    if scores is not logits:
        check_logits(float(logits.max()), banned=False)
    if settings.temperature == 0:
        token = int(scores.argmax())  # the first of equals; a NaN counts as the largest
        check_logits(float(scores[token]), banned=scores is not logits)
        return describe(logits, token, settings.logprobs)
    check_logits(float(scores.max()), banned=scores is not logits)
    if settings.seed is None:
        raise UserError("sampling needs a seed", hint="set seed, or temperature=0")
    ids, weights = warp(scores, settings)
    index = draw(weights, uniform(settings.seed, len(output) if step is None else step))
    return describe(logits, index if ids is None else int(ids[index]), settings.logprobs)
