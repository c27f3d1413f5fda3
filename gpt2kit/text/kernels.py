"""Byte-level BPE compiled from Python by Numba: GPT-2's pre-split, the merges, and the counting of pieces
for training.

Imported only where there is enough text to pay for it (`bytelevel.FAST_CHARACTERS`): Numba takes a second to
import and, the first time on a machine, some seconds to compile. All integers are int64: mixing in uint64
would make floats.

Legend: a *piece* is what the pre-split pattern cuts (a word with its leading space, a run of digits, ...). A
*rank* is a token's number inside these kernels: 0..255 are the bytes, 256 + m is what merge m makes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2kit.jit import compiled

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

inlined = partial(compiled, inline="always")  # a plain call of these would cost a tenth of English's speed

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3  # classes of code points in the pre-split pattern
LONGEST_PIECE = 1024  # bytes; the scan for the best pair is quadratic, beyond this tiktoken's heap is faster
# a piece of up to 15 bytes and its length fill two words: the cache compares exactly, no hashing error
CACHED_BYTES = 15
CACHED_IDS = 6  # six ids of 20 bits and their count fill the other two words of a slot
ID_BITS = 20
ID_MASK = (1 << ID_BITS) - 1
NO_PAIR = 1 << 30  # rank of a pair that no merge joins
COUNTED_BYTES = 23  # of a piece in the counting table: three words hold 23 bytes and the length
UNSPACED_BYTES = 12  # four Han characters: longer runs are nearly all different and would fill any table
MIX_1, MIX_2, MIX_3 = -7046029254386353131, -4417276706812531889, 1609587929392839161  # xxHash's primes


@compiled
def _byte(array: Bytes, i: int) -> Any:
    """An element as int64."""
    return np.int64(array[i])


@compiled
def _class_at(buffer: Bytes, i: int, classes: Bytes) -> tuple[int, int]:
    """The class of the UTF-8 character at `i` and its length in bytes. The text is valid UTF-8: it came from
    a str.
    """
    first = _byte(buffer, i)
    if first < 0x80:
        return _byte(classes, first), 1
    second = _byte(buffer, i + 1) & 0x3F
    if first < 0xE0:
        return _byte(classes, ((first & 0x1F) << 6) | second), 2
    third = _byte(buffer, i + 2) & 0x3F
    if first < 0xF0:
        return _byte(classes, ((first & 0x0F) << 12) | (second << 6) | third), 3
    fourth = _byte(buffer, i + 3) & 0x3F
    return _byte(classes, ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth), 4


@compiled
def _contraction(buffer: Bytes, i: int, end: int) -> int:
    """The end of 's 't 're 've 'm 'll 'd at `i`, or `i` where there is none."""
    if i + 1 >= end:
        return i
    a = buffer[i + 1]
    if a == 115 or a == 116 or a == 109 or a == 100:  # s t m d
        return i + 2
    if i + 2 < end:
        b = buffer[i + 2]
        if ((a == 114 or a == 118) and b == 101) or (a == 108 and b == 108):  # re ve ll
            return i + 3
    return i


@compiled
def piece_end(buffer: Bytes, i: int, end: int, classes: Bytes) -> int:
    """Where the piece that starts at byte `i` ends: GPT-2's pattern as a scanner, alternatives in the
    pattern's order.
    """
    if buffer[i] == 39:
        j = _contraction(buffer, i, end)
        if j > i:
            return j
    kind, size = _class_at(buffer, i, classes)
    j = i + size
    if buffer[i] == 32 and j < end:
        kind, size = _class_at(buffer, j, classes)
        if kind != SPACE:
            j += size
    if kind != SPACE:
        while j < end:
            following, size = _class_at(buffer, j, classes)
            if following != kind:
                break
            j += size
        return j
    j, last = i, i
    while j < end:
        following, size = _class_at(buffer, j, classes)
        if following != SPACE:
            return last if last > i else j  # \s+(?!\S) leaves the last space to the next piece
        last = j
        j += size
    return j


@compiled
def _pair_rank(left: int, right: int, pairs: Ints) -> int:
    """The rank of the merge of two ranks, or NO_PAIR. `pairs`: open addressing, a slot is left | right |
    rank.
    """
    key = (left << ID_BITS) | right
    mask = len(pairs) - 1
    h = key * MIX_1
    slot = (h ^ (h >> 29)) & mask
    while True:
        found = pairs[slot]
        if found < 0:
            return NO_PAIR
        if (found >> ID_BITS) == key:
            return int(found & ID_MASK)
        slot = (slot + 1) & mask


@compiled
def fill_pairs(left: Ints, right: Ints, pairs: Ints) -> None:
    """Insert merge m of (left[m], right[m]) with rank 256 + m into an empty table (all -1)."""
    mask = len(pairs) - 1
    for m in range(len(left)):
        key = (left[m] << ID_BITS) | right[m]
        h = key * MIX_1
        slot = (h ^ (h >> 29)) & mask
        while pairs[slot] >= 0:
            slot = (slot + 1) & mask
        pairs[slot] = (key << ID_BITS) | (256 + m)


@compiled
def _merge(buffer: Bytes, i: int, j: int, byte_pairs: Ints, pairs: Ints, tokens: Ints, ranks: Ints) -> int:
    """Byte-pair merges of buffer[i:j] into tokens[:n]; returns n. Lowest rank first, leftmost among
    equals.
    """
    n = j - i
    tokens[0] = _byte(buffer, i)
    for p in range(1, n):
        tokens[p] = _byte(buffer, i + p)
        ranks[p - 1] = byte_pairs[(tokens[p - 1] << 8) | tokens[p]]
    while n > 1:
        best = ranks[0]
        for p in range(1, n - 1):  # a plain minimum: LLVM turns it into vector instructions
            best = min(best, ranks[p])
        if best == NO_PAIR:
            break
        p = 0
        while ranks[p] != best:
            p += 1
        tokens[p] = best
        n -= 1
        for q in range(p + 1, n):
            tokens[q] = tokens[q + 1]
        for q in range(p + 1, n - 1):
            ranks[q] = ranks[q + 1]
        if p > 0:
            ranks[p - 1] = _pair_rank(tokens[p - 1], best, pairs)
        if p < n - 1:
            ranks[p] = _pair_rank(best, tokens[p + 1], pairs)
    return n


@inlined
def _word(buffer: Bytes, i: int, j: int) -> Any:
    """buffer[i:j], at most eight bytes, as one int64; 0 where j <= i."""
    word = np.int64(0)
    for p in range(j - i):
        word |= _byte(buffer, i + p) << (8 * p)
    return word


@inlined
def _cached(low: Any, high: Any, mask: int) -> Any:
    """The slot of a piece of up to CACHED_BYTES, given as two words."""
    h = low * MIX_2 ^ high * MIX_3
    h ^= h >> 31
    return ((h * MIX_1) >> 24) & mask


@inlined
def _recall(cache: Ints, slot: Any, out: npt.NDArray[np.uint32], n: int) -> Any:
    """Write the ids that a slot holds to out[n:]; returns their number."""
    word = cache[slot, 2]
    count = word & 15
    word >>= 4
    for p in range(min(count, 3)):
        out[n + p] = (word >> (ID_BITS * p)) & ID_MASK
    word = cache[slot, 3]
    for p in range(3, count):
        out[n + p] = (word >> (ID_BITS * (p - 3))) & ID_MASK
    return count


@inlined
def _remember(cache: Ints, slot: Any, low: Any, high: Any, ids: Ints, tokens: Ints, count: int) -> None:
    """Keep the ids of tokens[:count], at most CACHED_IDS, for a piece."""
    first, rest = count, 0
    for p in range(min(count, 3)):
        first |= ids[tokens[p]] << (4 + ID_BITS * p)
    for p in range(3, count):
        rest |= ids[tokens[p]] << (ID_BITS * (p - 3))
    cache[slot, 0], cache[slot, 1], cache[slot, 2], cache[slot, 3] = low, high, first, rest


@compiled
def encode(
    buffer: Bytes,
    starts: Ints,
    classes: Bytes,
    byte_pairs: Ints,
    pairs: Ints,
    ids: Ints,
    cache: Ints,
    out: npt.NDArray[np.uint32],
    ends: Ints,
) -> int:
    """Encode documents buffer[starts[d]:starts[d+1]] into `out`; ends[d] is where document d's ids end.

    A document with a piece beyond LONGEST_PIECE gets ends[d] = -1 - its start and no ids: the caller encodes
    it. `cache` [slots, 4] remembers pieces; a slot is overwritten by the next piece that falls on it, so its
    memory is fixed.
    """
    tokens = np.empty(LONGEST_PIECE, np.int64)
    ranks = np.empty(LONGEST_PIECE, np.int64)
    mask = len(cache) - 1
    n = 0
    for d in range(len(starts) - 1):
        i, end, begun = starts[d], starts[d + 1], n
        too_long = False
        while i < end:
            j = piece_end(buffer, i, end, classes)
            size = j - i
            if size > LONGEST_PIECE:
                too_long = True
                break
            slot, low, high = np.int64(0), np.int64(0), np.int64(0)
            if size <= CACHED_BYTES:
                low = _word(buffer, i, min(i + 8, j))
                high = _word(buffer, i + 8, j) | np.int64(size << 56)
                slot = _cached(low, high, mask)
                if cache[slot, 0] == low and cache[slot, 1] == high:
                    n += _recall(cache, slot, out, n)
                    i = j
                    continue
            count = _merge(buffer, i, j, byte_pairs, pairs, tokens, ranks)
            for p in range(count):
                out[n + p] = ids[tokens[p]]
            if size <= CACHED_BYTES and count <= CACHED_IDS:
                _remember(cache, slot, low, high, ids, tokens, count)
            n += count
            i = j
        if too_long:
            n = begun
            ends[d] = -1 - begun
        else:
            ends[d] = n
    return n


@compiled
def _find(low: Any, middle: Any, high: Any, table: Ints) -> Any:
    """The slot of a key in the counting table: where it is, or the empty slot where it belongs."""
    mask = len(table) - 1
    h = low * MIX_2 ^ middle * MIX_3 ^ high * MIX_1
    h ^= h >> 31
    slot = ((h * MIX_1) >> 24) & mask
    while table[slot, 3] != 0 and (table[slot, 0] != low or table[slot, 1] != middle or table[slot, 2] != high):
        slot = (slot + 1) & mask
    return slot


@compiled
def _add(buffer: Bytes, i: int, j: int, count: int, table: Ints) -> int:
    """Count buffer[i:j], at most COUNTED_BYTES long; returns 1 where it is new, else 0."""
    low, middle = _word(buffer, i, min(i + 8, j)), _word(buffer, i + 8, min(i + 16, j))
    high = _word(buffer, i + 16, j) | np.int64((j - i) << 56)
    slot = _find(low, middle, high, table)
    new = 1 if table[slot, 3] == 0 else 0
    table[slot, 0], table[slot, 1], table[slot, 2] = low, middle, high
    table[slot, 3] += count
    return new


@compiled
def count_pieces(buffer: Bytes, starts: Ints, classes: Bytes, table: Ints) -> int:
    """Add the pieces of documents buffer[starts[d]:starts[d+1]] to `table` [slots, 4]; returns how many are
    new.

    A slot is three words of bytes and length, and a count. Long pieces are cut at a character: at
    COUNTED_BYTES, and scripts written without spaces (lead byte E3 and up: kana, Han, hangul) at
    UNSPACED_BYTES.
    """
    new = 0
    for d in range(len(starts) - 1):
        i, end = starts[d], starts[d + 1]
        while i < end:
            j = piece_end(buffer, i, end, classes)
            while i < j:
                first = buffer[i + 1] if buffer[i] == 32 and i + 1 < j else buffer[i]
                cut = i + (UNSPACED_BYTES if 0xE3 <= first < 0xF0 else COUNTED_BYTES)
                if cut >= j:
                    cut = j
                else:
                    while buffer[cut] & 0xC0 == 0x80:
                        cut -= 1
                new += _add(buffer, i, cut, 1, table)
                i = cut
    return new


@compiled
def unpack(row: Ints, scratch: Bytes) -> int:
    """Write a counted piece's bytes into scratch; returns their number."""
    size = int(row[2] >> 56)
    for p in range(size):
        scratch[p] = (row[p >> 3] >> (8 * (p & 7))) & 0xFF
    return size


@compiled
def prune(table: Ints, threshold: int, kept: Ints) -> tuple[int, int]:
    """Move `table` into the empty `kept`; pieces seen at most `threshold` times are counted as their halves.

    Cut at the middle character, so that no character's count is lost; single characters stay. Once `kept` is
    half full they are counted as their characters, which always fits. Returns (entries of `kept`, pieces
    cut).
    """
    scratch = np.empty(COUNTED_BYTES, np.uint8)
    entries, cut = 0, 0
    for slot in range(len(table)):
        count = table[slot, 3]
        if count == 0:
            continue
        size = unpack(table[slot], scratch)
        first = 1
        while first < size and scratch[first] & 0xC0 == 0x80:
            first += 1
        if count > threshold or first == size:
            entries += _add(scratch, 0, size, count, kept)
            continue
        cut += 1
        i = 0
        while i < size:
            j = i + 1
            if entries <= len(kept) // 2:
                j = size if i > 0 else max(size // 2, 1)
            while j < size and scratch[j] & 0xC0 == 0x80:
                j += 1
            entries += _add(scratch, i, j, count, kept)
            i = j
    return entries, cut
