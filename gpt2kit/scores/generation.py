"""Generated text against references: BLEU and chrF by sacrebleu, ROUGE by rouge-score.

Chinese: BLEU with sacrebleu's tokenize='zh', which cuts between characters; chrF counts characters in any script; ROUGE
over characters (rouge-score's own tokeniser drops all that is not a-z and 0-9, and gives Chinese 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt2kit.errors import UserError, missing_extra, unknown
from gpt2kit.scores.intervals import Floats, Resampling, Sample
from gpt2kit.scores.result import POINTS, Score, Scores, TestSet, check_pairs, mean_of, measured
from gpt2kit.scores.segment import Language, check_language, units

ROUGE = ("rouge1", "rouge2", "rougeL")
BLEU_TOKENIZER = {"en": "13a", "zh": "zh"}
SCORED_AT_ONCE = ("bleu", "chrf", *ROUGE)


def generation(
    gold: Sequence[str | Sequence[str]],
    predicted: Sequence[str],
    language: str | None = None,
    metrics: Sequence[str] = SCORED_AT_ONCE,
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """BLEU, chrF, ROUGE of one generated text an example against its reference, or several references.

    `language` "en" or "zh"; None: that of the references. `metrics`: some of bleu, chrf, rouge1, rouge2, rougeL,
    rougeLsum. UserError for an empty set, unequal lengths, an example without a reference.
    """
    check_pairs(gold, predicted, inputs)
    rows = [[row] if isinstance(row, str) else list(row) for row in gold]
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise UserError(f"example {empty} has no reference", hint="leave it out, or give it one")
    known = (*SCORED_AT_ONCE, "rougeLsum")
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)
    spoken = check_language(language, (row[0] for row in rows))
    resampling, test = resampling or Resampling(), TestSet.of(rows, inputs)
    found: dict[str, tuple[Score, tuple[str, ...]]] = {}
    for name, scorer in (("bleu", _bleu), ("chrf", _chrf)):
        if name in metrics:
            found[name] = scorer(rows, predicted, spoken, test, resampling)
    kinds = [name for name in metrics if name.startswith("rouge")]
    if kinds:
        rouge = _rouge(rows, predicted, spoken, kinds, test, resampling)
        found |= {score.name: (score, ()) for score in rouge}
    ordered = [found[name] for name in dict.fromkeys(metrics)]
    return Scores(tuple(score for score, _ in ordered), tuple(note for _, notes in ordered for note in notes))


def sacrebleu_metrics(purpose: str = "BLEU and chrF") -> Any:
    try:
        import sacrebleu.metrics
    except ImportError:
        raise missing_extra("sacrebleu", "scores", purpose) from None
    return sacrebleu.metrics


def _streams(rows: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: the first of every example, the second of every example, ..."""
    most = max(len(row) for row in rows)
    return [[row[i] if i < len(row) else None for row in rows] for i in range(most)]


def _corpus(
    metric: Any, rows: Sequence[Sequence[str]], predicted: Sequence[str]
) -> tuple[float, str, Floats, Callable[[Floats], Floats]]:
    """(corpus score, signature, statistics [N, K], combine): every figure by sacrebleu's own code."""
    streams = _streams(rows)
    value = float(metric.corpus_score(list(predicted), streams).score)
    signature = str(metric.get_signature())
    parts = np.array(metric._extract_corpus_statistics(list(predicted), streams), dtype=np.float64)

    def combine(sums: Floats) -> Floats:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_score_from_stats([int(x) for x in row]).score for row in flat]
        return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])

    return value, signature, parts, combine


def _bleu(
    rows: Sequence[Sequence[str]], predicted: Sequence[str], language: Language, test: TestSet, resampling: Resampling
) -> tuple[Score, tuple[str, ...]]:
    metrics = sacrebleu_metrics()
    tokenize = BLEU_TOKENIZER[language]
    value, signature, parts, combine = _corpus(metrics.BLEU(tokenize=tokenize, force=True), rows, predicted)
    interval = Sample(parts).interval(combine, resampling)
    assert abs(value - interval.value) < 1e-9, f"sacrebleu's BLEU is {value}, from its statistics {interval.value}"
    by_sentence = metrics.BLEU(tokenize=tokenize, effective_order=True)
    each = np.array([by_sentence._compute_score_from_stats([int(x) for x in row]).score for row in parts])
    score = measured("bleu", interval, len(rows), POINTS, test, resampling, (parts, combine), each,
                     signature=signature, language=language)  # fmt: skip
    if parts[:, 9].sum() == 0:
        return score, ("BLEU is 0: no generated text has four tokens, so there is no 4-gram to match; read chrF",)
    return score, ()


def _chrf(
    rows: Sequence[Sequence[str]], predicted: Sequence[str], language: Language, test: TestSet, resampling: Resampling
) -> tuple[Score, tuple[str, ...]]:
    value, signature, parts, combine = _corpus(sacrebleu_metrics().CHRF(), rows, predicted)
    interval = Sample(parts).interval(combine, resampling)
    assert abs(value - interval.value) < 1e-9, f"sacrebleu's chrF is {value}, from its statistics {interval.value}"
    score = measured("chrf", interval, len(rows), POINTS, test, resampling, (parts, combine), combine(parts),
                     signature=signature, language=language)  # fmt: skip
    return score, ()


class ByCharacter:
    """rouge-score's tokeniser interface: lower case, Chinese by character, other scripts by word, no punctuation."""

    def tokenize(self, text: str) -> list[str]:
        return units(text.lower(), punctuation=False)


def rouge_scorer(kinds: Sequence[str], language: Language) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise missing_extra("rouge-score", "scores", "ROUGE") from None
    return RougeScorer(list(kinds), use_stemmer=False, tokenizer=ByCharacter() if language == "zh" else None)


def _rouge(
    rows: Sequence[Sequence[str]],
    predicted: Sequence[str],
    language: Language,
    kinds: Sequence[str],
    test: TestSet,
    resampling: Resampling,
) -> list[Score]:
    """F-measures, the mean over examples; of several references the one with the best F-measure."""
    scorer = rouge_scorer(kinds, language)
    table = np.array([
        [scores[kind].fmeasure for kind in kinds]
        for scores in (scorer.score_multi(row, text) for row, text in zip(rows, predicted, strict=True))
    ])  # fmt: skip
    tokens = "by character" if language == "zh" else "by word, a-z and 0-9, lower case, no stemming"
    said = f"F-measure, mean over examples, {tokens}"
    return [
        mean_of(kind, values, test, resampling, definition=said, language=language)
        for kind, values in zip(kinds, table.T, strict=True)
    ]
