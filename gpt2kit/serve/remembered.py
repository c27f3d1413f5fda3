"""Answers of deterministic requests, kept in a bounded amount of memory; the one used least recently goes first.

An answer is found by all that it is a function of, and by the tenant's salt, so that nobody learns what others asked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2kit.model.completion import Completion
from gpt2kit.model.sampling import Choice, SamplingSettings

# Bytes, measured with tracemalloc on CPython 3.11 and rounded up
ENTRY, COMPLETION, TOKEN, CHOICE, ALTERNATIVE, CHARACTER = 1200, 500, 40, 150, 130, 4


@dataclass(frozen=True)
class Result:
    """What the engine made of one prompt."""

    completions: Sequence[Completion]
    scores: Sequence[Choice | None] = ()  # of the prompt's tokens


class Remembered:
    """Thread-safe. `limit`: bytes; 0: nothing is kept."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.hits = self.misses = 0
        self._entries: OrderedDict[bytes, tuple[Result, int]] = OrderedDict()
        self._lock = threading.Lock()

    def key(
        self, identity: str, precision: str, settings: SamplingSettings, ids: Sequence[int], salt: str, echo: bool
    ) -> bytes | None:
        """What an answer is found by; None for a request that may be answered in many ways, or with no room for any.

        `identity`: of the weights; `salt`: of the tenant.
        """
        if not self.limit or (settings.temperature > 0 and settings.seed is None):
            return None
        asked = [identity, precision, dataclasses.asdict(settings), list(ids), salt, echo]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()

    def get(self, key: bytes | None) -> Result | None:
        if key is None:
            return None
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: bytes | None, result: Result) -> None:
        """Keep it, if it is not larger than everything that may be kept."""
        if key is None:
            return
        size = weigh(result)
        if size > self.limit:
            return
        with self._lock:
            if key in self._entries:
                self.used -= self._entries.pop(key)[1]
            self._entries[key] = result, size
            self.used += size
            while self.used > self.limit:
                self.used -= self._entries.popitem(last=False)[1][1]


def weigh(result: Result) -> int:
    """Bytes of memory, not less than it takes."""
    choices = [choice for choice in result.scores if choice is not None]
    size = ENTRY + len(result.scores) * TOKEN
    for one in result.completions:
        size += COMPLETION + CHARACTER * len(one.text or "") + TOKEN * len(one.token_ids)
        choices += one.logprobs or ()
    return size + sum(CHOICE + ALTERNATIVE * len(choice.alternatives or ()) for choice in choices)
