"""Mistakes as people make them: learned from pairs of a wrong and a right sentence, or from common ones."""

from __future__ import annotations

import bisect
import difflib
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from gpt2kit.data.augment import is_word, pieces
from gpt2kit.data.families import PairRow, Row
from gpt2kit.errors import UserError

# Taken for each other because they sound or look alike. Each character or word of a group for every other.
CHINESE = (
    "的地得 在再 做作坐座 他她它牠 那哪 以已 须需 像象向 带戴 历厉力利 生声 到道 会汇 有又友由 进近 必毕 和合河 时是事 "
    "只直 两俩 部不步 长常场 工功公 元圆园员 心新 因应 名明 其期 气汽 记计纪 分份 形型 决绝 练炼 州洲 辩辨辫 侯候 己已 "
    "未末 人入 末沫 士土 干千 买卖 拨拔 晴睛 性姓 经径 题提 欢观 想响 清请情 玩完 吗嘛妈 吧把 呢哪 题体 边变便 机几"
)
ENGLISH = (
    "their there they're|its it's|your you're|then than|to too two|of off|were where we're|who's whose|"
    "affect effect|lose loose|accept except|by buy|hear here|know no|new knew|quiet quite|right write|"
    "weather whether|a an|is are|was were|has have|in on at|advice advise|receive recieve|"
    "definitely definately|separate seperate|until untill|which wich|because becuase|believe beleive|their thier"
)
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_COUNTS = (1, 1, 1, 2, 2, 3)  # mistakes in a sentence, where none were learned
_KNOWN = 0.9  # of replacements fall on a word whose confusions are known, if there is one
_PRIOR = 10  # occurrences that a word's own rate is mixed with
_BACK, _SEEN = 1, 2  # weight of a confusion seen the other way round, and as it is

Operation = Literal["replace", "drop", "double", "swap"]
_OPERATIONS: Mapping[Operation, float] = {"replace": 20, "drop": 2, "double": 2, "swap": 1}


class Confusions:
    """What a word is mistaken for, how often, and how many mistakes a sentence has.

    words: right word (in Chinese a character) -> {wrong one: weight}.
    counts: how many mistakes sentences have; 0 for those that are left as they are.
    rates: right word -> how often it is mistaken where it stands; 1 for those that are not named.
    """

    def __init__(
        self,
        words: Mapping[str, Mapping[str, float]],
        counts: Sequence[int] = _COUNTS,
        operations: Mapping[Operation, float] = _OPERATIONS,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.words = {right: dict(sorted(wrong.items())) for right, wrong in sorted(words.items()) if wrong}
        self.counts = tuple(counts)
        self.operations = dict(operations)
        self._rates = {right: (rates or {}).get(right, 1.0) for right in self.words}
        self._characters = sorted({word for wrong in self.words.values() for word in wrong if _is_character(word)})

    @classmethod
    def common(cls) -> Confusions:
        """Everyday confusions of Chinese and English, and slips of the keys."""
        groups = [list(group) for group in CHINESE.split()] + [group.split() for group in ENGLISH.split("|")]
        words: dict[str, dict[str, float]] = {}
        for group in groups:
            for right, wrong in itertools.permutations(group, 2):
                words.setdefault(right, {})[wrong] = _BACK
        return cls(words)

    @classmethod
    def learn(cls, rows: Iterable[Row], clean: float | None = None) -> Confusions:
        """From pairs whose prompt is wrong and whose completion is right, such as SIGHAN's training set.

        A confusion counts double as it was seen, and once the other way round. The everyday ones are added where a
        word was never seen. clean: the share of sentences that get no mistake; None: as in the pairs.
        Raises UserError where no pair differs.
        """
        table: dict[str, Counter[str]] = {}
        counts: list[int] = []
        done: Counter[Operation] = Counter()
        seen: Counter[str] = Counter()  # of right words
        mistaken: Counter[str] = Counter()
        for row in rows:
            if not isinstance(row, PairRow):
                raise UserError(f"{row.where}: confusions are learned from pairs, not from a {type(row).__name__}",
                                hint="read the data for the task correct")  # fmt: skip
            right_words = pieces(row.completion)
            seen.update(right_words)
            found = list(_mistakes(pieces(row.prompt), right_words))
            counts.append(len(found))
            for operation, right, wrong in found:
                done[operation] += 1
                if operation == "replace":
                    mistaken[right] += 1
                    table.setdefault(right, Counter())[wrong] += _SEEN
                    table.setdefault(wrong, Counter())[right] += _BACK
        if not done:
            raise UserError("no pair has a mistake from which confusions could be learned",
                            hint="pairs of a wrong sentence and its correction are needed")  # fmt: skip
        if clean is not None:
            wrong_counts = [n for n in counts if n]
            zeros = round(clean / (1 - clean) * len(wrong_counts)) if clean < 1 else 0
            counts = [0] * zeros + wrong_counts if clean < 1 else [0]
        words: dict[str, Mapping[str, float]] = {**cls.common().words, **table}
        mean = done.total() / seen.total()
        rates = {right: (mistaken[right] + mean * _PRIOR) / (seen[right] + _PRIOR) for right in words}
        return cls(words, sorted(counts), {name: done[name] for name in _OPERATIONS}, rates)

    def spoil(self, text: str, pick: random.Random) -> str:
        """The text with as many mistakes as sentences have, none in blanks, marks and numbers."""
        parts = pieces(text)
        wanted = pick.choice(self.counts)
        left = [n for n, piece in enumerate(parts) if is_word(piece) and not piece.isdecimal()]
        for _ in range(wanted):
            if not left:  # a swap uses two words up
                break
            operation = pick.choices(list(self.operations), list(self.operations.values()))[0]
            at = self._place(parts, left, operation, pick)
            left.remove(at)
            self._apply(parts, at, operation, left, pick)
        return "".join(parts)

    def _place(self, parts: Sequence[str], left: Sequence[int], operation: Operation, pick: random.Random) -> int:
        """Where a mistake falls: words that are often mistaken come first."""
        weights = [self._rates.get(parts[n].lower(), 0.0) for n in left]
        if operation == "replace" and any(weights) and pick.random() < _KNOWN:
            steps = list(itertools.accumulate(weights))
            return left[min(bisect.bisect_right(steps, pick.random() * steps[-1]), len(left) - 1)]
        return pick.choice(left)

    def _apply(self, parts: list[str], at: int, operation: Operation, left: list[int], pick: random.Random) -> None:
        word = parts[at]
        if operation == "replace":
            parts[at] = self._wrong(word, pick)
        elif not _is_character(word):
            parts[at] = slip(word, pick)
        elif operation == "drop" and left:
            parts[at] = ""
        elif operation == "swap" and at + 1 in left and _is_character(parts[at + 1]):
            parts[at], parts[at + 1] = parts[at + 1], word
            left.remove(at + 1)
        else:
            parts[at] = word + word

    def _wrong(self, word: str, pick: random.Random) -> str:
        """What the word is mistaken for: as learned; else a slip, in Chinese any character of a known mistake."""
        wrong = self.words.get(word) or self.words.get(word.lower())
        if wrong:
            found = pick.choices(list(wrong), list(wrong.values()))[0]
            return found.capitalize() if word[0].isupper() and not _is_character(word) else found
        if not _is_character(word):
            return slip(word, pick)
        others = [character for character in (pick.choice(self._characters) for _ in range(3)) if character != word]
        return others[0] if others else word + word


def slip(word: str, pick: random.Random) -> str:
    """A word with a slip of the keys: a neighbouring key, two letters the wrong way round, one left out, one twice."""
    at = pick.randrange(len(word))
    kind = pick.randrange(4)
    if kind == 0 and (near := _near_keys(word[at])):
        key = pick.choice(near)
        return word[:at] + (key.upper() if word[at].isupper() else key) + word[at + 1 :]
    if kind == 1 and at + 1 < len(word) and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 2 and len(word) > 2:
        return word[:at] + word[at + 1 :]
    return word[: at + 1] + word[at:]


def _near_keys(letter: str) -> str:
    for number, row in enumerate(_KEYS):
        at = row.find(letter.lower())
        if at >= 0:
            beside = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
            above = _KEYS[number - 1][at : at + 2] if number else ""
            return beside + above
    return ""


def _is_character(word: str) -> bool:
    return len(word) == 1 and not word.isascii()


def _mistakes(wrong: Sequence[str], right: Sequence[str]) -> Iterable[tuple[Operation, str, str]]:
    """(operation, right word, wrong word) of each place where two sentences differ."""
    if len(wrong) == len(right):
        blocks = [("replace", n, n + 1, n, n + 1) for n in range(len(right)) if wrong[n] != right[n]]
        if 2 * len(blocks) > len(right) + 2:  # shifted, rather than so many mistakes
            blocks = []
    if len(wrong) != len(right) or (not blocks and list(wrong) != list(right)):
        matcher = difflib.SequenceMatcher(None, wrong, right, autojunk=False)
        blocks = [block for block in matcher.get_opcodes() if block[0] != "equal"]
    for _, start, end, begin, stop in blocks:
        both = min(end - start, stop - begin)
        for n in range(both):
            if is_word(wrong[start + n]) and is_word(right[begin + n]):
                yield "replace", right[begin + n], wrong[start + n]
        for n in range(begin + both, stop):
            if is_word(right[n]):
                yield "drop", right[n], ""
        for n in range(start + both, end):
            if is_word(wrong[n]):
                yield "double", "", wrong[n]
