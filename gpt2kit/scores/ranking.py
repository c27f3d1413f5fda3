"""Ranked candidates: mean reciprocal rank, hits at k, NDCG.

Of candidates with equal scores the relevant ones count as last in reciprocal rank and hits (a model that gives all the
same score has ranked nothing; scikit-learn's label ranking does so too); NDCG takes the mean over their orders, as
scikit-learn does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2kit.errors import UserError
from gpt2kit.scores.classification import sklearn_metrics
from gpt2kit.scores.intervals import Floats, Resampling
from gpt2kit.scores.result import Scores, TestSet, check_pairs, mean_of

HITS = (1, 5, 10)
NDCG = (10,)


def ranking(
    relevance: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]],
    hits: Sequence[int] = HITS,
    ndcg: Sequence[int] = NDCG,
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """mrr, hits@k and ndcg@k of Q queries, each with its own number of candidates; accuracy where one of them is right.

    `relevance[q][c]` is 0 or more (above 0 is relevant; NDCG uses the amount), `scores[q][c]` the model's score.
    A k of at least the largest number of candidates is left out and noted: every query would hit. UserError for an
    empty set, unequal lengths, a query without a relevant candidate, numbers that are not finite.
    """
    check_pairs(relevance, scores, inputs)
    if min((*hits, *ndcg), default=1) < 1:
        raise UserError("k must be at least 1")
    rows = [_checked(q, a, b) for q, (a, b) in enumerate(zip(relevance, scores, strict=True))]
    resampling, test = resampling or Resampling(), TestSet.of([row[0].tolist() for row in rows], inputs)
    most = max(len(row[0]) for row in rows)
    ranks = np.array([first_rank(*row) for row in rows], dtype=np.float64)
    said = "1 / rank of the first relevant candidate, ties counted last"
    found = [mean_of("mrr", 1 / ranks, test, resampling, definition=said)]
    if most > 1 and all((row[0] > 0).sum() == 1 for row in rows):
        said = "share of queries whose right candidate is the first, ties counted last"
        found.append(mean_of("accuracy", (ranks == 1).astype(np.float64), test, resampling, definition=said))
    for k in hits:
        if k < most:
            said = f"share of queries with a relevant candidate among the first {k}, ties counted last"
            found.append(mean_of(f"hits@{k}", (ranks <= k).astype(np.float64), test, resampling, definition=said))
    for k in ndcg:
        values = np.array([_ndcg(*row, k) for row in rows])
        said = f"NDCG at {k}, linear gain, ties averaged"
        found.append(mean_of(f"ndcg@{k}", values, test, resampling, definition=said))
    idle = [k for k in hits if k >= most]
    notes = (f"hits@{', @'.join(map(str, idle))} left out: no query has more candidates",) if idle else ()
    return Scores(tuple(found), notes)


def _checked(q: int, relevance: Any, scores: Any) -> tuple[Floats, Floats]:
    try:
        true, found = np.asarray(relevance, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"query {q}: relevance and scores must be numbers") from None
    if true.shape != found.shape or true.ndim != 1:
        raise UserError(f"query {q} has {true.size} relevances and {found.size} scores", hint="give one for each")
    if not (np.isfinite(true).all() and np.isfinite(found).all()) or (true < 0).any():
        raise UserError(f"query {q}: relevance must be 0 or more and scores finite")
    if not true.any():
        raise UserError(f"query {q} has no relevant candidate", hint="leave it out: it has no rank")
    return true, found


def first_rank(relevance: Floats, scores: Floats) -> int:
    """The rank, from 1, of the best relevant candidate; candidates that tie with it and are not relevant come first."""
    best = scores[relevance > 0].max()
    return 1 + int(((scores >= best) & (relevance <= 0)).sum())


def _ndcg(relevance: Floats, scores: Floats, k: int) -> float:
    if len(relevance) == 1:
        return 1.0  # one candidate, and it is relevant; scikit-learn wants two
    return float(sklearn_metrics().ndcg_score(relevance[None], scores[None], k=k))
