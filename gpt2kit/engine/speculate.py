"""Speculation without a second model: what followed these tokens the last time probably follows now.

A stream's own text is the source: an index from the last three (else two) tokens to where they stood before. The
draft is what came next there. The scheduler computes its tokens as extra rows of a step and keeps those that the
sampler chooses as well, so the text is the same with and without; only the time differs.

**Whether it pays is measured.** Each token that a stream chooses is compared with what the index foretold, drafted or
not: so the odds of a hit are known, by how long the match was, even while nothing is drafted, and a stream whose text
begins to repeat is noticed at once. A draft row is added only where its odds outweigh its cost, the measured seconds
that one more row adds to a step.
"""

from __future__ import annotations

from itertools import pairwise

LONGEST_DRAFT = 7
LONGEST_MATCH = 16  # matches are measured up to here; longer ones count as this long
HORIZON = 4096  # tokens looked back at; the index is made anew when it holds twice as many
RATE = 0.125  # how fast a stream's odds follow what happens: about its last eight forecasts
COMMON_RATE = 0.01  # the same for the odds that new streams begin with
FIRST_ODDS = (0.2, 0.35, 0.6, 0.8, 0.9)  # by level, before anything is measured


def _level(match: int) -> int:
    return 0 if match < 3 else 1 if match < 4 else 2 if match < 8 else 3 if match < LONGEST_MATCH else 4


LEVELS = tuple(_level(match) for match in range(LONGEST_MATCH + LONGEST_DRAFT + 1))


class Drafter:
    """One stream's index and odds. `ids` is the stream's own list, which grows before each `push`."""

    def __init__(self, ids: list[int], common: list[float]) -> None:
        self.ids, self.common = ids, common
        self.odds = list(common)  # of a hit, by level of match length
        self.source = -1  # where in `ids` the forecast of the next token stands; -1: there is none
        self.match = 0  # how many tokens before it equal the last ones
        self._index()

    def _index(self) -> None:
        ids = self.ids
        first = max(0, len(ids) - HORIZON)
        recent = ids[first:-1]
        self.threes = dict(
            zip(zip(recent, recent[1:], recent[2:], strict=False), range(first + 3, len(ids)), strict=False)
        )
        self.twos = dict(zip(pairwise(recent), range(first + 2, len(ids)), strict=False))
        self._find()

    def push(self, token: int) -> None:
        """Take note of the token that `ids` has just grown by."""
        source = self.source
        if source >= 0:
            level = LEVELS[self.match]
            if self.ids[source] == token:
                self.odds[level] += (1.0 - self.odds[level]) * RATE
                self.common[level] += (1.0 - self.common[level]) * COMMON_RATE
                self.source = source + 1
                self.match = min(self.match + 1, LONGEST_MATCH)
            else:
                self.odds[level] -= self.odds[level] * RATE
                self.common[level] -= self.common[level] * COMMON_RATE
                self.source = -1
        if len(self.twos) > 2 * HORIZON:
            self._index()
        else:
            self._find()

    def _find(self) -> None:
        """Look up the last tokens unless the match goes on, then enter them."""
        ids = self.ids
        n = len(ids)
        if n < 3:
            return
        three = (ids[-3], ids[-2], ids[-1])
        two = three[1:]
        if self.source < 0:
            found = self.threes.get(three)
            if found is not None:
                self._measure(found, 3)
            else:
                self.source = self.twos.get(two, -1)
                self.match = 2
        self.threes[three] = self.twos[two] = n

    def _measure(self, source: int, match: int) -> None:
        ids = self.ids
        while match < LONGEST_MATCH and match < source and ids[source - 1 - match] == ids[-1 - match]:
            match += 1
        self.source, self.match = source, match

    def draft(self, most: int, least: float) -> list[int]:
        """At most `most` tokens that may come next, as long as the odds that a row is used stay above `least`."""
        source, match, odds = self.source, self.match, 1.0
        if source < 0:
            return []
        count = 0
        while count < most:
            odds *= self.odds[LEVELS[match + count]]
            if odds <= least:
                break
            count += 1
        ids = self.ids
        found = ids[source : source + count]
        while len(found) < count:  # the match reaches the end: the text repeats itself from there
            found += ids[source : source + count - len(found)]
        return found

    def expected(self, count: int) -> float:
        """How many of the first `count` tokens of a draft will be used, on average."""
        total, odds = 0.0, 1.0
        for i in range(count):
            odds *= self.odds[LEVELS[self.match + i]]
            total += odds
        return total


class StepCost:
    """Seconds of a step as base + slope * rows, fitted to the steps so far; old ones fade.

    While all steps have the same number of rows they say nothing about the slope, which then stays near its first
    value, a share of the step.
    """

    FADE = 0.98
    FIRST_SHARE = 0.06  # of a one-row step, for each further row
    STRENGTH = 4.0  # the first value counts as this much spread of rows

    def __init__(self) -> None:
        self.weight = self.rows = self.seconds = self.rows2 = self.cross = 0.0
        self.base, self.slope = 1.0, self.FIRST_SHARE

    def observe(self, rows: int, seconds: float) -> None:
        if self.weight > 4.0 and seconds > 4.0 * (self.base + self.slope * rows):
            seconds = 4.0 * (self.base + self.slope * rows)  # somebody else had the machine
        f = self.FADE
        self.weight = f * self.weight + 1.0
        self.rows = f * self.rows + rows
        self.seconds = f * self.seconds + seconds
        self.rows2 = f * self.rows2 + rows * rows
        self.cross = f * self.cross + rows * seconds
        rows_mean, mean = self.rows / self.weight, self.seconds / self.weight
        spread = self.rows2 - rows_mean * self.rows
        together = self.cross - rows_mean * self.seconds
        first = self.FIRST_SHARE * mean / (1.0 + self.FIRST_SHARE * (rows_mean - 1.0))
        slope = (together + self.STRENGTH * first) / (spread + self.STRENGTH)
        self.slope = min(max(slope, 0.01 * mean / rows_mean), mean / rows_mean)
        self.base = mean - self.slope * rows_mean

    def seconds_of(self, rows: int) -> float:
        return self.base + self.slope * rows
