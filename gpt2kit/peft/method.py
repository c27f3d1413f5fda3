"""What every method has in common: its settings, the Linears that it names, and the parts that it lays over a model.

A method is a frozen dataclass. `build` gives the parts of one adapter, of three kinds, any of which may be empty:

    deltas     a module for each wrapped Linear: forward(base, x) -> y
    front      virtual tokens before every row
    replaced   parameters that stand in the place of the model's own, by name (`replaces` lists them)

`inject.py` puts them in place and knows nothing else of methods; `saved.py` reads and writes them.

Shapes: B batch, T time, C channels, I inner (MLP) size, L layers, r rank, P virtual tokens.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from gpt2kit.errors import UserError, closest, unknown
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.headers import is_transposed, stored_shapes
from gpt2kit.training.fast import SeededDropout

if TYPE_CHECKING:
    from gpt2kit.peft.front import Front

ALSO = ("score", "lm_head", "ln_f", "wpe")  # modules outside the blocks that can be trained whole


class Base(Protocol):
    """The model under all adapters, as its folder has it."""

    @property
    def config(self) -> GPT2Config: ...

    def linear(self, name: str) -> Any:
        """The frozen Linear, plain or int8: `weight` [out, in], `bias` [out]."""

    def parameter(self, name: str) -> nn.Parameter:
        """By the checkpoint's name."""


class Delta(nn.Module):
    """What one adapter adds to one Linear."""

    def forward(self, base: Any, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]; `base` is the frozen Linear."""
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The weight [out, in] and bias [out] of a plain Linear that does the same; float64 in and out."""
        raise NotImplementedError


@dataclass
class Parts:
    """One adapter's modules and parameters, by the names of what they belong to."""

    deltas: dict[str, Delta] = field(default_factory=dict)  # Linear's name ->
    replaced: dict[str, nn.Parameter] = field(default_factory=dict)  # parameter's name ->
    front: Front | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers: `h.0.attn.c_attn.lora_A`, `score.weight`, `front.embedding`."""
        found: dict[str, Tensor] = dict(self.replaced)
        modules = {**self.deltas, **({} if self.front is None else {"front": self.front})}
        for name, module in modules.items():
            found |= {f"{name}.{leaf}": tensor for leaf, tensor in module.state_dict(keep_vars=True).items()}
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """What training changes."""
        return {name: tensor for name, tensor in self.tensors().items() if isinstance(tensor, nn.Parameter)}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The settings that all methods share. Each method adds its own."""

    name: ClassVar[str] = ""
    peft_type: ClassVar[str] = ""
    known_to_peft: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    leaves: ClassVar[Mapping[str, str]] = {}  # a delta's parameter -> its name in PEFT's file

    also: tuple[str, ...] | None = (
        None  # modules trained whole besides (PEFT: modules_to_save); None: a classifier's head
    )
    seed: int = 0  # of the adapter's first values and of its dropout

    def __post_init__(self) -> None:
        if self.also is not None:
            object.__setattr__(self, "also", tuple(self.also))  # JSON has lists only
            for module in self.also:
                if module == "wte":
                    raise UserError("wte cannot be trained beside an adapter", hint="it is the output matrix, too")
                if module not in ALSO:
                    raise unknown("module", str(module), ALSO)
        within(self, "seed", 0, 2**53)

    @property
    def virtual_tokens(self) -> int:
        """Positions of the model that the adapter takes from every row."""
        return 0

    def check(self, config: GPT2Config) -> None:
        """Raise UserError where the settings do not fit a model of this shape."""

    def count(self, config: GPT2Config) -> int:
        """Trainable parameters of deltas and front, by formula."""
        return 0

    def replaces(self, config: GPT2Config) -> list[str]:
        """The model's own parameters that the adapter has in its place, without those of `also`."""
        return []

    def build(self, base: Base) -> Parts:
        """New deltas and front. torch's global generator is seeded by the caller."""
        return Parts()

    def after_step(self, parts: Parts, step: int, total: int) -> None:
        """Called after each optimiser step, the gradients still in place: `step` of `total` are done."""

    def penalty(self, parts: Parts) -> Tensor | None:
        """What the method adds to the mean loss, in nats a token."""
        return None

    def pack(self, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the adapter's file holds of the deltas, by our names, and what adapter_config.json has to say of it."""
        names = [f"{module}.{leaf}" for module in parts.deltas for leaf in self.leaves]
        own = parts.parameters()
        return {name: own[name].detach() for name in names if name in own}, {}

    def unpack(self, parts: Parts, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Fill the deltas with what `pack` gave. UserError by name for what is missing, strange or of another shape."""
        self.fill_deltas(parts, tensors)

    def fill_deltas(self, parts: Parts, tensors: Mapping[str, Tensor]) -> None:
        own = {f"{m}.{leaf}": p for m, delta in parts.deltas.items() for leaf, p in delta.named_parameters()}
        strange = sorted(set(own) ^ set(tensors))
        if strange:
            what = "lacks" if strange[0] in own else "holds what this method does not have:"
            raise UserError(f"the adapter {what} {strange[0]}")
        for name, tensor in own.items():
            fill(name, tensor, tensors[name])

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read settings; an unknown key or a value of another type is a UserError that names it."""
        known = {item.name: item for item in dataclasses.fields(cls)}
        given = {key: value for key, value in values.items() if key != "name"}
        for key, value in given.items():
            if key not in known:
                raise unknown(f"setting of {cls.name}", key, known)
            default = known[key].default
            if key == "also":
                right = value is None or isinstance(value, list | tuple)
            elif isinstance(default, float):
                right = isinstance(value, int | float) and not isinstance(value, bool)
            elif isinstance(default, tuple):
                right = isinstance(value, list | tuple)
            else:
                right = type(value) is type(default)
            if not right:
                raise UserError(f"setting {key} of {cls.name} must be a {type(default).__name__}, got {value!r}")
        return cls(**given)

    def to_peft(self, config: GPT2Config, modules: list[str]) -> dict[str, Any]:
        """The method's part of adapter_config.json; `modules` are the wrapped Linears."""
        return {}

    @classmethod
    def from_peft(cls, values: Mapping[str, Any], modules: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Settings from adapter_config.json and the tensors beside it, by our names. UserError for what is not read."""
        raise NotImplementedError


def within(
    settings: MethodConfig, name: str, low: float, high: float, below: bool = False, above: bool = False
) -> None:
    """UserError unless the setting lies in [low, high]; `below`, `above`: without that end. Whole if its default is."""
    value = getattr(settings, name)
    default = next(item.default for item in dataclasses.fields(settings) if item.name == name)
    whole = type(default) is int
    good = type(value) is int if whole else isinstance(value, int | float) and not isinstance(value, bool)
    good = good and math.isfinite(value) and low <= value <= high
    if not good or (below and value == high) or (above and value == low):
        ends = f"{'(' if above else '['}{low:,}, {high:,}{')' if below else ']'}"
        kind = "a whole number " if whole else ""
        raise UserError(f"the adapter's {name} must be {kind}in {ends}, got {value!r}")


def one_of(settings: MethodConfig, name: str, known: Iterable[str]) -> None:
    if getattr(settings, name) not in (known := tuple(known)):
        raise unknown(name, str(getattr(settings, name)), known)


def check_over_int8(method: MethodConfig, config: GPT2Config) -> None:
    """UserError where the adapter trains weights that an int8 base holds in int8."""
    fixed = next((name for name in replaced_sizes(method, config) if is_transposed(name)), None)
    if fixed is not None:
        raise UserError(f"{fixed} cannot be trained: --int8-base keeps it in int8", hint="leave out --int8-base")


def replaced_sizes(method: MethodConfig, config: GPT2Config) -> dict[str, int]:
    """Every parameter that the adapter has in its place, those of `also` too, and its size."""
    sizes = {name: math.prod(shape) for name, shape in stored_shapes(config).items()}
    also = method.also
    if also is None:
        also = ("score",) if config.labels else ()
    for module in also:
        if f"{module}.weight" not in sizes:
            raise UserError(
                f"this model has no {module} to train",
                hint="score is the head of a classifier, lm_head that of a model with an untied output matrix",
            )
    names = [*method.replaces(config), *(name for name in sizes if name.split(".")[0] in also)]
    return {name: sizes[name] for name in names}


# ---------------------------------------------------------------- the Linears of a GPT-2


def shapes(config: GPT2Config) -> dict[str, tuple[int, int]]:
    """Linears of one block: name -> (out, in)."""
    C, I = config.n_embd, config.inner_size  # noqa: E741
    return {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (I, C), "mlp.c_proj": (C, I)}


def linears(config: GPT2Config) -> dict[str, tuple[int, int]]:
    """Every Linear in the blocks: name -> (out, in)."""
    return {f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in shapes(config).items()}


def check_pattern(pattern: object, name: str = "targets") -> None:
    if not isinstance(pattern, str) or not pattern:
        raise UserError(f"{name} must be a pattern of Linears' names, got {pattern!r}", hint="for example c_attn")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{name} {pattern!r} is not a regular expression: {error}") from None


def matched(config: GPT2Config, pattern: str, name: str = "targets") -> dict[str, tuple[int, int]]:
    """The Linears whose name, or the end of it behind a dot, the pattern matches: `c_attn`, `mlp.c_proj`, `h.0.attn.*`.

    Raises UserError where there are none.
    """
    compiled = re.compile(rf"(?:.*\.)?(?:{pattern})")
    found = {linear: shape for linear, shape in linears(config).items() if compiled.fullmatch(linear)}
    if not found:
        ends = [*shapes(config), "c_attn", "c_fc", "c_proj"]
        near = closest(pattern, ends)
        raise UserError(
            f"{name} {pattern!r} matches no Linear" + (f"; did you mean {near!r}?" if near else ""),
            hint=f"each of the {config.n_layer} blocks h.0, h.1, ... has {', '.join(shapes(config))}",
        )
    return found


def shortest(config: GPT2Config, modules: Iterable[str]) -> list[str]:
    """Names for PEFT's target_modules, which match as ends: one for all layers where every layer takes part."""
    modules = set(modules)
    names: list[str] = []
    for end in shapes(config):
        here = {f"h.{i}.{end}" for i in range(config.n_layer)}
        if here <= modules:
            names.append("c_attn" if end == "attn.c_attn" else "c_fc" if end == "mlp.c_fc" else end)
        else:
            names += sorted(here & modules)
    return names


def pattern_of(names: Iterable[str]) -> str:
    """The pattern that matches what such names do."""
    return "|".join(re.escape(name) for name in names)


# ---------------------------------------------------------------- dropout


class AdapterDropout:
    """Dropout before an adapter, a pure function of (seed, name, step, row, column): a resumed run makes the same bits.

    No nn.Module: `fast.accelerate` and `fast.plain` exchange the model's own dropouts and must leave this one alone.
    """

    def __init__(self, p: float, seed: int, name: str) -> None:
        self.p, self._dropout = p, SeededDropout(p, seed, name)

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        if not training or self.p == 0:
            return x
        dropped: Tensor = self._dropout(x)
        return dropped


@torch.no_grad()
def fill(name: str, own: Tensor, stored: Tensor) -> None:
    if own.shape != stored.shape:
        raise UserError(
            f"{name} has shape {list(stored.shape)}, this model makes it {list(own.shape)}",
            hint="the adapter belongs to a model of another shape",
        )
    own.copy_(stored)


def check_finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{name} holds NaN or infinity", hint="go back to a checkpoint from before the loss exploded")


def new_parameter(*shape: int, like: Tensor) -> nn.Parameter:
    """Float32 zeros where `like` is."""
    return nn.Parameter(torch.zeros(*shape, device=like.device))
