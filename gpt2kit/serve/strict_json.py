"""JSON from strangers: what the standard says and no more, within bounds, in linear time."""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

import numpy as np

from gpt2kit.serve.errors import ApiError

TOO_LARGE = "the body holds a number beyond 64 bits, or beyond what a double can hold"
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # an open one ends with the body: nothing is tried twice
BRACKETS = b"[]{}"
NOT_BRACKETS = bytes(set(range(256)) - set(BRACKETS))


def read_json(body: bytes, depth: int, largest_list: int) -> object:
    """The value of a JSON text: at most `depth` levels and `largest_list` entries in any list or object.

    ApiError 400 for anything else than UTF-8 and strict JSON, and for what Python's reader would let through: NaN,
    1e400, integers beyond 64 bits, lone surrogates, a key given twice.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start}") from None
    if _levels(body) > depth:
        raise ApiError(400, f"the body is nested more than {depth} levels deep")
    try:
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except ValueError:  # Python's own limit for the digits of a whole number
        raise ApiError(400, TOO_LARGE) from None
    _check(value, largest_list)
    if "\\u" in text:  # the only way to a lone surrogate
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(400, "the body holds half of a surrogate pair, which is no character") from None
    return value


def _levels(body: bytes) -> int:
    """How deep the brackets outside strings nest."""
    brackets = np.frombuffer(STRINGS.sub(b"", body).translate(None, NOT_BRACKETS), np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.cumsum(np.where(opens, 1, -1)).max(initial=0))


def _check(value: object, largest_list: int) -> None:
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict | list):
            if len(one) > largest_list:
                raise ApiError(400, f"the body holds a list of {len(one):,} entries, more than {largest_list:,}")
            todo += one.values() if isinstance(one, dict) else one
        elif (type(one) is int and one.bit_length() > 64) or (type(one) is float and not math.isfinite(one)):
            raise ApiError(400, TOO_LARGE)


def _constant(literal: str) -> NoReturn:
    raise ApiError(400, f"the body is not JSON: {literal} is no JSON number")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ApiError(400, f"the body gives the field {shown(twice)} twice", param=shown(twice))
    return found


def shown(name: str) -> str:
    """A client's field name where it looks like one: nothing else of a request stands in a message."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", name) else "(not a field name)"
