"""How varied generated texts are, without references: distinct-n, self-BLEU, repetition within a text.

Units are Chinese characters and words of other scripts, and punctuation marks, which degenerate texts repeat too.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2kit.errors import UserError
from gpt2kit.scores.generation import BLEU_TOKENIZER, sacrebleu_metrics
from gpt2kit.scores.intervals import Floats, Resampling, Sample, jackknife_interval, ratio
from gpt2kit.scores.result import FRACTION, POINTS, Score, Scores, TestSet, check_pairs, mean_of, measured
from gpt2kit.scores.segment import Language, check_language, ngrams, units

DISTINCT = (1, 2)
REPETITION = (1, 2, 3, 4)
ORDER = 4  # of BLEU
COMPARED = 1000  # texts of self-BLEU: all of 3,000 texts of 60 words would take 2 s


def diversity(
    texts: Sequence[str],
    language: str | None = None,
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """distinct_1, distinct_2, rep_1 to rep_4, and self_bleu where there are two texts or more.

    What cannot be measured, for the texts are too short or too few, is left out and noted. UserError for no texts and
    where all of them are empty.
    """
    check_pairs(texts, texts, inputs)
    resampling = resampling or Resampling()
    tokens = [units(text) for text in texts]
    if not any(tokens):
        raise UserError("all generated texts are empty", hint="see the samples; did generation stop at once?")
    test = _test_set(texts, inputs)
    scores, notes = [], []
    for n in DISTINCT:
        if any(len(row) >= n for row in tokens):
            scores.append(distinct(tokens, n, test, resampling))
        else:
            notes.append(f"distinct_{n} is undefined: no text has {n} tokens")
    for n in REPETITION:
        long = sum(len(row) >= n for row in tokens)
        if long:
            scores.append(repetition(tokens, n, test, resampling))
        if long < len(tokens):
            notes.append(f"rep_{n} is over {long} of {len(tokens)} texts: the others have fewer than {n} tokens")
    spoken = check_language(language, texts)
    if len(texts) > 1:
        scores.append(self_bleu(_some(texts, inputs), spoken, test, resampling))
        if len(texts) > COMPARED:
            notes.append(f"self_bleu is over {COMPARED} of {len(texts)} texts")
    else:
        notes.append("self_bleu is undefined: it needs two texts")
    return Scores(tuple(scores), tuple(notes))


def _test_set(texts: Sequence[str], inputs: Sequence[str] | None) -> TestSet:
    if inputs is None:
        return TestSet(f"{len(texts)} texts, inputs not given", "")
    found = TestSet.of(inputs)
    return TestSet(found.name.replace("references", "inputs", 1), found.order)


def _some(texts: Sequence[str], inputs: Sequence[str] | None) -> list[str]:
    """At most COMPARED of the texts: answers to the same inputs whoever wrote them, in whatever order they come."""
    if len(texts) <= COMPARED:
        return list(texts)

    def place(i: int) -> tuple[bytes, bytes]:
        given, text = (hashlib.sha256(one.encode()).digest() for one in ((inputs or texts)[i], texts[i]))
        return given, text

    return [texts[i] for i in sorted(range(len(texts)), key=place)[:COMPARED]]


def distinct(tokens: Sequence[Sequence[str]], n: int, test: TestSet, resampling: Resampling) -> Score:
    """Distinct n-grams over all n-grams, of all texts together. (Li et al. 2016, over n-grams, not tokens)

    It falls as texts get longer or more: compare equal numbers of texts of equal length.
    """
    grams = [Counter(ngrams(row, n)) for row in tokens]
    holders = Counter(gram for counts in grams for gram in counts)
    sizes = np.array([counts.total() for counts in grams], dtype=np.float64)
    own = np.array([sum(holders[gram] == 1 for gram in counts) for counts in grams], dtype=np.float64)
    total = sizes.sum()
    value = len(holders) / float(total)
    # Without a text: its n-grams that no other text holds are gone. Texts without n-grams change nothing.
    kept = sizes < total
    left_out = (len(holders) - own[kept]) / (total - sizes[kept])
    interval = jackknife_interval(value, left_out if kept.all() else left_out[:0], resampling)
    said = f"distinct {n}-grams / {n}-grams, over all texts; characters, words, punctuation"
    return measured(f"distinct_{n}", interval, len(tokens), FRACTION, test, resampling, definition=said)


def repetition(tokens: Sequence[Sequence[str]], n: int, test: TestSet, resampling: Resampling) -> Score:
    """1 - distinct n-grams / n-grams of each text, the mean over texts that have one: seq-rep-n. (Welleck et al. 2020)

    Shorter texts stay as examples without weight, so that two systems are paired text by text.
    """
    grams = [ngrams(row, n) for row in tokens]
    parts = np.array([(1 - len(set(row)) / len(row), 1.0) if row else (0.0, 0.0) for row in grams])
    interval = Sample(parts).interval(ratio, resampling, trials=float(parts[:, 1].sum()))
    said = f"1 - distinct {n}-grams / {n}-grams of a text, mean over texts"
    return measured(f"rep_{n}", interval, len(tokens), FRACTION, test, resampling, (parts, ratio), definition=said)


def self_bleu(texts: Sequence[str], language: Language, test: TestSet, resampling: Resampling) -> Score:
    """Each text's BLEU with all others as references, the mean; low is varied. (Zhu et al. 2018)

    Equal to sacrebleu's sentence_score of each text against the others, but every n-gram is counted once: the best
    count among the others is the best or the second best of all. The interval is over texts, the references being what
    they are.
    """
    metric = sacrebleu_metrics("self-BLEU").BLEU(tokenize=BLEU_TOKENIZER[language], effective_order=True)
    values = self_bleu_values(metric, texts)
    first = float(metric.sentence_score(texts[0], list(texts[1:])).score)
    assert abs(first - values[0]) < 1e-9, f"sacrebleu's BLEU of the first text is {first}, ours {values[0]}"
    said = "sentence BLEU of each text with all others as references, mean over texts"
    signature = str(metric.get_signature())  # known only after sentence_score
    return mean_of("self_bleu", values, test, resampling, POINTS, definition=said, signature=signature)


def self_bleu_values(metric: Any, texts: Sequence[str]) -> Floats:
    """[N] sentence BLEU, each text against all others, by `metric`'s tokeniser and formula."""
    words = [metric._preprocess_segment(text).split() for text in texts]
    lengths = sorted(len(row) for row in words)
    grams = [[Counter(ngrams(row, n)) for n in range(1, ORDER + 1)] for row in words]
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}  # n-gram: the best count, whose, the best of the others
    for i, orders in enumerate(grams):
        for counts in orders:
            for gram, count in counts.items():
                most, owner, second = best.get(gram, (0, -1, 0))
                best[gram] = (count, i, most) if count > most else (most, owner, max(second, count))
    values = []
    for i, orders in enumerate(grams):
        correct, total = [], []
        for counts in orders:
            others = ((count, best[gram]) for gram, count in counts.items())
            correct.append(sum(min(count, second if owner == i else most) for count, (most, owner, second) in others))
            total.append(counts.total())
        reference = _closest(lengths, len(words[i]))
        values.append(metric._compute_score_from_stats([len(words[i]), reference, *correct, *total]).score)
    return np.array(values, dtype=np.float64)


def _closest(lengths: Sequence[int], length: int) -> int:
    """The length nearest to `length` among the others (one such is the text's own); the shorter of two as near."""
    at = bisect_left(lengths, length)
    rest = [*lengths[max(0, at - 1) : at], *lengths[at + 1 : at + 2]]
    return min(rest, key=lambda other: (abs(other - length), other))
