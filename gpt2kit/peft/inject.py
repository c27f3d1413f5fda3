"""The one mechanism of all methods: freeze a GPT2, lay adapters over it, switch, merge and take them off again.

Nothing is subclassed and the model file is not touched. Linears are wrapped where they stand, parameters stand in for
others, and a front of virtual tokens stands before `GPT2.hidden`, so whatever takes a GPT2 takes an adapted one.
Several adapters may lie on one base; at most one is active, and only its parameters are trainable.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.errors import UserError, unknown
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2, KVCache
from gpt2kit.peft.int8base import QuantisedLinear, plain_linear
from gpt2kit.peft.method import Delta, MethodConfig, Parts, replaced_sizes

PREFIX, FRONT = "adapter_", "front_"  # of the modules' names: a bare "train" or "half" would hide torch's own


class Wrapped(nn.Module):
    """A Linear with the deltas of several adapters, of which `active` is in force."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.active: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) if self.active is None else self.delta(self.active)(self.base, x)
        return y

    def delta(self, name: str) -> Delta:
        delta = self._modules[PREFIX + name]
        assert isinstance(delta, Delta)
        return delta

    @property
    def names(self) -> list[str]:
        return [name.removeprefix(PREFIX) for name in self._modules if name.startswith(PREFIX)]


class Adapted:
    """One adapter on a model: its settings, its parameters, and what a training loop asks of it."""

    def __init__(self, model: GPT2, name: str, method: MethodConfig, parts: Parts) -> None:
        self.model, self.name, self.method, self.parts = model, name, method, parts

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by names without the adapter's: `h.0.attn.c_attn.lora_A`, `score.weight`."""
        return self.parts.parameters()

    @property
    def trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def room(self) -> int:
        """Tokens that fit into the model's positions, virtual ones left out."""
        front = self.parts.front
        return self.model.config.n_positions - (0 if front is None else front.length)

    def after_step(self, step: int, total: int) -> None:
        """To be called after each optimiser step, the gradients still in place: `step` of `total` are done."""
        self.method.after_step(self.parts, step, total)

    def penalty(self) -> Tensor | None:
        """A term of the loss, in nats a token: add it times the count to the sum. None: there is none."""
        return self.method.penalty(self.parts)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, the optimiser's state apart: parameters and statistics."""
        return {name: tensor.detach() for name, tensor in self.parts.tensors().items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` gave. UserError by name for another set of tensors or another shape."""
        own = self.parts.tensors()
        strange = sorted(set(own) ^ set(tensors))
        if strange:
            raise UserError(f"the state is of another adapter: {strange[0]}")
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape:
                raise UserError(f"{name} has shape {list(tensors[name].shape)}, the adapter {list(tensor.shape)}")
            tensor.copy_(tensors[name])


class Adapters:
    """All adapters on one model, and the model as it was before them. Kept as `model.adapters`."""

    def __init__(self, model: GPT2) -> None:
        self.model = model
        self.all: dict[str, Adapted] = {}
        self.active: str | None = None
        self.merged: str | None = None
        self.wrappers: dict[str, Wrapped] = {}
        self.originals: dict[str, nn.Parameter] = {}  # of the active adapter's replaced parameters
        self.required = {name: p.requires_grad for name, p in model.named_parameters()}
        self.hashed: tuple[Any, str] | None = None  # `saved.base_hash` of weights that have not been written to since
        model.requires_grad_(False)

    # The model under the adapters (method.Base)

    @property
    def config(self) -> GPT2Config:
        return self.model.config

    def linear(self, name: str) -> Any:
        return self.wrappers[name].base if name in self.wrappers else self.model.get_submodule(name)

    def parameter(self, name: str) -> nn.Parameter:
        parameter = self.originals.get(name)
        if parameter is None:
            owner, leaf = self.owner(name)
            parameter = owner._parameters.get(leaf)
        if parameter is None:
            raise UserError(f"{name} is kept in int8 and cannot be trained", hint="use the model as it was loaded")
        return parameter

    def owner(self, name: str) -> tuple[nn.Module, str]:
        module, _, leaf = name.rpartition(".")
        owner: nn.Module = self.linear(module)
        return owner, leaf

    # Laying on, switching, taking off

    def add(self, name: str, method: MethodConfig) -> Adapted:
        sizes = replaced_sizes(method, self.config)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(method.seed)
            parts = method.build(self)
        parts.replaced |= {n: nn.Parameter(self.parameter(n).detach().clone()) for n in sizes}
        if not parts.parameters():
            raise UserError(f"with these settings {method.name} trains nothing")
        for linear, delta in parts.deltas.items():
            if linear not in self.wrappers:
                self.wrappers[linear] = wrapper = Wrapped(self.linear(linear))
                self.place(linear, wrapper)
            self.wrappers[linear].add_module(PREFIX + name, delta)
        if parts.front is not None:
            self.model.add_module(FRONT + name, parts.front)
        for module in (*parts.deltas.values(), *([parts.front] if parts.front else [])):
            module.train(self.model.training)
        self.all[name] = Adapted(self.model, name, method, parts)
        return self.all[name]

    def place(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module.train(self.model.training))

    def activate(self, name: str | None) -> None:
        for parameter, original in self.originals.items():
            setattr(*self.owner(parameter), original)
        self.originals = {}
        self.active = name
        for wrapper in self.wrappers.values():
            wrapper.active = name if name in wrapper.names else None
        self.model.__dict__.pop("hidden", None)
        for adapted in self.all.values():
            for tensor in adapted.parameters.values():
                tensor.requires_grad_(adapted.name == name)
        if name is None:
            return
        parts = self.all[name].parts
        for parameter, replaced in parts.replaced.items():
            self.originals[parameter] = self.parameter(parameter)
            setattr(*self.owner(parameter), replaced)
        if parts.front is not None:
            self.model.__dict__["hidden"] = self.hidden

    def hidden(
        self,
        tokens: Tensor | None = None,
        embeds: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Stands in for `GPT2.hidden` while the active adapter has a front."""
        assert self.active is not None
        front = self.all[self.active].parts.front
        assert front is not None
        plain = partial(GPT2.hidden, self.model)
        return front.hidden(plain, self.model.wte, tokens, embeds, cache, positions, causal)

    def drop(self, name: str) -> None:
        if self.active == name:
            self.activate(None)
        parts = self.all.pop(name).parts
        for linear in parts.deltas:
            wrapper = self.wrappers[linear]
            del wrapper._modules[PREFIX + name]
            if not wrapper.names:
                self.place(linear, self.wrappers.pop(linear).base)
        self.model._modules.pop(FRONT + name, None)

    def release(self) -> None:
        """Leave the model: whatever parameters it has now are trainable as they were."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.required.get(name, False))
        del self.model.__dict__["adapters"]

    # Merging

    @torch.no_grad()
    def merge(self) -> None:
        assert self.active is not None
        adapted = self.all[self.active]
        for linear, wrapper in self.wrappers.items():
            base: Any = wrapper.base
            if wrapper.active is not None:
                delta = wrapper.delta(wrapper.active)
                weight, bias = delta.merged(base.weight.double(), base.bias.double())
                base = plain_linear(weight.float(), bias.float())
            self.place(linear, base)
        for name in [module for module in self.model._modules if module.startswith(FRONT)]:
            del self.model._modules[name]
        self.model.requires_grad_(False)
        self.merged = adapted.name

    def unmerge(self) -> None:
        for linear, wrapper in self.wrappers.items():
            self.place(linear, wrapper)
        for adapted in self.all.values():
            if adapted.parts.front is not None:
                self.model.add_module(FRONT + adapted.name, adapted.parts.front)
        self.activate(self.merged)
        self.merged = None


def inject(model: GPT2, method: MethodConfig, name: str = "default") -> Adapted:
    """Freeze the model, lay a new adapter over it and make it the active one.

    Raises UserError where the settings do not fit the model, or the name is taken.
    """
    method.check(model.config)
    if not name or "." in name:
        raise UserError(f"an adapter's name cannot be {name!r}", hint="use a name without a dot, such as reviews")
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        raise UserError("adapters need a base in float32", hint="load it in float32, or put it into int8")
    held = _held(model)
    if held is not None and name in held.all:
        raise UserError(f"the model already has an adapter {name!r}", hint="give this one another name")
    if held is not None and held.merged is not None:
        raise _merged(held)
    adapters = Adapters(model) if held is None else held
    model.__dict__["adapters"] = adapters
    try:
        adapted = adapters.add(name, method)
    except BaseException:
        if not adapters.all:
            adapters.release()
        raise
    adapters.activate(name)
    return adapted


def activate(model: GPT2, name: str | None) -> Adapted | None:
    """Put this adapter in force and no other; None: the base alone. UserError for an unknown name."""
    adapters = _adapters(model)
    if adapters.merged is not None:
        raise _merged(adapters)
    if name is not None and name not in adapters.all:
        raise unknown("adapter", name, adapters.all)
    adapters.activate(name)
    return None if name is None else adapters.all[name]


def adapted(model: GPT2) -> Adapted | None:
    """The active adapter, or None."""
    held = _held(model)
    return None if held is None or held.active is None else held.all[held.active]


def names(model: GPT2) -> list[str]:
    """The adapters on a model, in the order in which they came."""
    held = _held(model)
    return [] if held is None else list(held.all)


def base_of(model: GPT2) -> Adapters | None:
    """Access to the model under its adapters, or None where it carries none."""
    return _held(model)


def remove(model: GPT2, name: str | None = None) -> None:
    """Take one adapter off, or all of them: the model is then, bit for bit, what it was."""
    adapters = _adapters(model)
    if adapters.merged is not None:
        adapters.unmerge()
    if name is not None and name not in adapters.all:
        raise unknown("adapter", name, adapters.all)
    for one in [name] if name is not None else list(adapters.all):
        adapters.drop(one)
    if not adapters.all:
        adapters.release()


def merge(model: GPT2, keep: bool = True) -> None:
    """Compute the active adapter into the weights, in float64, rounded once: the model is a plain GPT2 again.

    It can then be saved, exported and served as any other. With `keep` the old weights are kept for `unmerge`, which
    costs the memory of the wrapped Linears; without, all adapters are forgotten.
    Raises UserError for methods that are no weights: prefix, prompt, P-tuning, bottleneck.
    """
    adapters = _adapters(model)
    active = adapted(model)
    if adapters.merged is not None:
        raise _merged(adapters)
    if active is None:
        raise UserError("no adapter is active, so there is nothing to merge", hint="activate one first")
    if not active.method.mergeable:
        raise UserError(
            f"{active.method.name} cannot be merged: what it does is not in the weights of a plain GPT-2",
            hint="keep its adapter folder beside the model",
        )
    if any(isinstance(module, QuantisedLinear) for module in model.modules()):
        raise UserError(
            "the base is in int8, a merged model is not",
            hint="lay the adapter over the model as it was loaded, or call dequantise_base first",
        )
    adapters.merge()
    if not keep:
        adapters.release()


def unmerge(model: GPT2) -> None:
    """Undo `merge`: the same bits as before. UserError where nothing is merged."""
    adapters = _adapters(model)
    if adapters.merged is None:
        raise UserError("no adapter is merged into this model")
    adapters.unmerge()


def trainable_parameters(config: GPT2Config, method: MethodConfig) -> int:
    """The number of parameters that the method trains on a model of this shape, by formula."""
    method.check(config)
    return method.count(config) + sum(replaced_sizes(method, config).values())


def _held(model: GPT2) -> Adapters | None:
    held: Adapters | None = model.__dict__.get("adapters")
    return held


def _adapters(model: GPT2) -> Adapters:
    held = _held(model)
    if held is None:
        raise UserError("the model carries no adapter", hint="inject or load one first")
    return held


def _merged(adapters: Adapters) -> UserError:
    return UserError(f"the adapter {adapters.merged!r} is merged into the weights", hint="unmerge it first")
