"""Answers to questions: exact match and token F1, as SQuAD and CMRC 2018 define them.

    squad   lower case, without punctuation and a, an, the; F1 over the bag of words. (Rajpurkar et al. 2016, 2018)
    cmrc    lower case, without CMRC's punctuation; characters, and words of other scripts; the match of two answers is
            their longest common run, F1 over its length. (Cui et al. 2019, evaluation script v5)

Both take the best of several references. Values are fractions; the official scripts print a hundred times that.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

from gpt2kit.errors import UserError, missing_extra, unknown
from gpt2kit.scores.intervals import Floats, Resampling
from gpt2kit.scores.result import Scores, TestSet, check_pairs, mean_of
from gpt2kit.scores.segment import language_of

Protocol = Literal["squad", "cmrc"]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The script's list. Its "……" is compared with single characters and so never removed.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CMRC_CHARACTER = re.compile("[\u4e00-\u9fa5]")
DEFINITIONS = {
    "squad": "SQuAD: lower case, without punctuation and articles; bag of words; the best reference",
    "cmrc": "CMRC 2018: lower case, without punctuation; by character; longest common run; the best reference",
}


def squad_normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def cmrc_normalised(text: str) -> str:
    """Lower case, without CMRC's punctuation marks."""
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def cmrc_tokens(text: str) -> list[str]:
    """Chinese characters one by one; what lies between them by NLTK's word tokeniser, as in the script.

    A run of letters and digits needs no tokeniser. UserError without nltk where one is needed.
    """
    tokens: list[str] = []
    for piece in re.split(f"({_CMRC_CHARACTER.pattern})", cmrc_normalised(text)):
        words = piece.split()
        if all(word.isalnum() for word in words):
            tokens += words
        else:
            tokens += _nltk_words(piece)
    return tokens


def _nltk_words(text: str) -> list[str]:
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError:
        raise missing_extra("nltk", "scores", "scoring answers with mixed punctuation as CMRC does") from None
    words: list[str] = NLTKWordTokenizer().tokenize(text)
    return words


def _f1(common: int, predicted: int, gold: int) -> float:
    """By SQuAD 2.0's rule for empty answers: 1 where both are empty, 0 where one is."""
    if predicted == 0 or gold == 0:
        return float(predicted == gold)
    return 2 * common / (predicted + gold)


def squad_f1(gold: str, predicted: str) -> float:
    """Words that both answers hold, as a bag: 2 common / (words + words)."""
    true, found = squad_normalised(gold).split(), squad_normalised(predicted).split()
    return _f1((Counter(true) & Counter(found)).total(), len(found), len(true))


def cmrc_f1(gold: str, predicted: str) -> float:
    """Length of the longest common run of tokens: 2 length / (tokens + tokens)."""
    true, found = cmrc_tokens(gold), cmrc_tokens(predicted)
    common = SequenceMatcher(None, true, found, autojunk=False).find_longest_match().size
    return _f1(common, len(found), len(true))


_RULES: dict[str, tuple[Callable[[str], str], Callable[[str, str], float]]] = {
    "squad": (squad_normalised, squad_f1),
    "cmrc": (cmrc_normalised, cmrc_f1),
}


def answers(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[str],
    protocol: str | None = None,
    inputs: Sequence[str] | None = None,
    resampling: Resampling | None = None,
) -> Scores:
    """Exact match and token F1 of one predicted answer a question against its references.

    No reference, or an empty one, marks a question without an answer: an empty prediction is then right. Where the set
    has both kinds, exact_match and token_f1 are also given for each. `protocol` None: "cmrc" where the references are
    Chinese. UserError for an empty set or unequal lengths.
    """
    check_pairs(gold, predicted, inputs)
    if any(isinstance(row, str) for row in gold):
        raise UserError("each question needs a list of reference answers, got one string", hint="give [[answer], ...]")
    protocol = _protocol(gold, protocol)
    resampling = resampling or Resampling()
    normalise, _ = _RULES[protocol]
    rows = [list(row) or [""] for row in gold]
    exact = np.array([
        float(any(normalise(answer) == normalise(found) for answer in row))
        for row, found in zip(rows, predicted, strict=True)
    ])  # fmt: skip
    overlap = best_f1(gold, predicted, protocol)
    test = TestSet.of(rows, inputs)
    values = {"exact_match": exact, "token_f1": overlap}
    said = DEFINITIONS[protocol]
    scores = [mean_of(name, value, test, resampling, definition=said) for name, value in values.items()]
    answered = np.array([any(normalise(answer) for answer in row) for row in rows])
    if answered.any() and not answered.all():
        for kind, chosen in (("answerable", answered), ("unanswerable", ~answered)):
            part = TestSet(f"{test.name}, the {kind} ones", test.order)
            scores += [
                mean_of(f"{name}_{kind}", value[chosen], part, resampling, definition=said)
                for name, value in values.items()
            ]
    return Scores(tuple(scores))


def best_f1(gold: Sequence[Sequence[str]], predicted: Sequence[str], protocol: str | None = None) -> Floats:
    """[N] the token F1 of each predicted answer with the best of its references; as in `answers`."""
    _, f1 = _RULES[_protocol(gold, protocol)]
    pairs = zip(gold, predicted, strict=True)
    return np.array([max(f1(answer, found) for answer in (list(row) or [""])) for row, found in pairs])


def _protocol(gold: Sequence[Sequence[str]], given: str | None) -> str:
    if given is None:
        return "cmrc" if language_of(answer for row in gold for answer in row) == "zh" else "squad"
    if given not in _RULES:
        raise unknown("protocol", given, _RULES)
    return given
