"""What a search looks through: `learning_rate=1e-5..1e-3:log, dropout=0|0.1` over the fields of a verb's options."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from gpt2kit.errors import UserError, unknown
from gpt2kit.search.values import Choice, Range, Space

FORM = 'write it as: --space "learning_rate=1e-5..1e-3:log, dropout=0|0.1|0.2, batch=8..32"'
FIXED = (
    *("data", "out", "resume", "task", "validation", "columns", "classes", "field", "hub", "threads", "tensorboard"),
    *("replay", "probe", "remember", "sample"),
)
UNLIKE = ("tokenizer", "vocab_size", "objective")  # another unit of the loss, so that the lowest is not the best
COMBINATIONS = 1000  # that are tried to find one that suits a value


def read_space(text: str, options: Any, check: Callable[[Any], object]) -> dict[str, Choice | Range]:
    """The space that `text` describes over the fields of the dataclass `options`.

    `check` looks at options with values of the space put in. UserError names what is wrong: a field that there is not,
    with the near one; a value of another type; a range upside down; a value that the verb refuses in any company.
    """
    hints = typing.get_type_hints(type(options))
    space: dict[str, Choice | Range] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not values:
            raise UserError(f"--space: {part!r} is not a field and its values", hint=FORM)
        name = _field(name, options)
        if name in space:
            raise UserError(f"--space names {name} twice", hint=FORM)
        space[name] = _values(name, values, hints[name])
    if not space:
        raise UserError("--space is empty", hint=FORM)
    for name, held in space.items():
        _check(name, held, space, options, check)
    return space


def _field(name: str, options: Any) -> str:
    name = name.lstrip("-").replace("-", "_")
    name = "from_" if name == "from" else name
    known = [field.name for field in dataclasses.fields(options)]
    if name in FIXED and name in known:
        raise UserError(f"--space: {name} stays the same in a search", hint="give it as a flag")
    if name in UNLIKE and name in known:
        raise UserError(f"--space: losses under another {name} are in unlike units, so they cannot be compared")
    if name not in known:
        raise unknown("field in --space", name, [k.rstrip("_") for k in known if k not in (*FIXED, *UNLIKE)])
    default = next(field.default for field in dataclasses.fields(options) if field.name == name)
    if name != "from_" and getattr(options, name) != default:
        flag = name.replace("_", "-")
        raise UserError(f"--{flag} is given, and --space looks through it", hint="leave one of the two out")
    return name


def _values(name: str, text: str, hint: Any) -> Choice | Range:
    low, dots, high = text.partition("..")
    if not dots:
        values = tuple(_value(name, one.strip(), hint) for one in text.split("|"))
        if len(set(values)) != len(values):
            raise UserError(f"--space: a value of {name} is there twice: {text}")
        return Choice(values)
    high, colon, how = high.partition(":")
    if colon and how.strip() != "log":
        raise unknown("kind of range in --space", how.strip(), ("log",))
    ends = [_value(name, end.strip(), hint) for end in (low, high)]
    if not all(type(end) in (int, float) for end in ends):
        raise UserError(f"--space: {name} has no ranges, it is no number", hint=f"list its values: {name}=a|b")
    if ends[0] >= ends[1]:
        raise UserError(f"--space: the range of {name} must go upwards, got {text}")
    if colon and ends[0] <= 0:
        raise UserError(f"--space: a logarithmic range begins above 0, got {name}={text}")
    return Range(ends[0], ends[1], bool(colon), type(ends[0]) is int)


def _value(name: str, text: str, hint: Any) -> Any:
    """One value as the field's type has it."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if text == "none" and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise unknown(f"{name} in --space", text, typing.get_args(kind))
        return text
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            if math.isfinite(number):
                return number
    if kind is str:
        return text
    said = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a value that can be typed")
    raise UserError(f"--space: {name} must be {said}, got {text!r}", hint=FORM)


def _check(name: str, held: Choice | Range, space: Space, options: Any, check: Callable[[Any], object]) -> None:
    """Each end and each choice must suit the verb together with some values of the other fields."""
    others = {other: values.ends for other, values in space.items() if other != name}
    for value in held.ends:
        refused: UserError | None = None
        for company in itertools.islice(itertools.product(*others.values()), COMBINATIONS):
            try:
                check(dataclasses.replace(options, **dict(zip(others, company, strict=True)), **{name: value}))
            except UserError as error:
                refused = error
            else:
                break
        else:
            assert refused is not None
            raise UserError(f"--space: {name}={value} cannot be: {refused.message}", hint=refused.hint)
