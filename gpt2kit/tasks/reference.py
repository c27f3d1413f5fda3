"""What answers a task: the engine, or for adapters that are not in any weights the model file's own decoder.

`open_for_tasks` decides by what the folder holds. A run folder of such an adapter has config, tokenizer and `adapter/`,
no weights; its lineage says where the base is ("base": name as it was given, path from the folder), the adapter's own
lineage which weights it must have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from gpt2kit import commit
from gpt2kit.engine import Engine
from gpt2kit.errors import UserError
from gpt2kit.model.completion import Completion, Window
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.files import read_head, resolve
from gpt2kit.model.headers import INDEX, WEIGHTS, stored_shapes
from gpt2kit.model.sampling import Choice, SamplingSettings
from gpt2kit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from gpt2kit.engine.engine import Progress
    from gpt2kit.model.gpt2 import GPT2
    from gpt2kit.peft import Adapted

ADAPTER = "adapter"  # the folder inside a run folder
ADAPTER_STATE = "adapter_state.safetensors"  # what a checkpoint of an adapter has instead of weights
ROWS = 16  # prompts that are computed together
ROW_TOKENS = 4096  # of one forward pass of a classifier


def open_for_tasks(
    folder: str | Path,
    precision: Literal["auto", "int8", "fp32"] = "auto",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Engine:
    """The engine over a model folder, or a `Reference`, which has what tasks use of it, over an adapter's base.

    What was chosen is in its `notes`. Raises UserError for what is wrong with the folder, and where the adapter's base
    is gone or another.
    """
    path, _ = resolve(folder)
    if (path / ADAPTER_STATE).exists():
        raise UserError(f"{folder} has not finished", hint=f"go on with it: gpt2kit finetune --resume {folder}")
    if any((path / name).exists() for name in (WEIGHTS, INDEX)) or not (path / ADAPTER).is_dir():
        return Engine.load(folder, precision, threads, on_progress=on_progress)
    return cast(Engine, Reference.load(path, threads))


def answered_by(engine: Engine) -> str:
    """For people: who answered, and in what precision."""
    if isinstance(engine, Reference):
        return "the model file's own decoder in fp32: this kind of adapter is in no weights that the engine could read"
    return f"the engine in {engine.precision}"


class Reference:
    """A GPT2 with its adapter behind the methods of Engine that tasks use. Exact, and slower than the engine.

    `config` has the positions that the adapter's virtual tokens leave.
    """

    precision = "fp32"

    def __init__(self, adapted: Adapted, tokenizer: Tokenizer | None) -> None:
        self.model: GPT2 = adapted.model.eval()
        self.config: GPT2Config = dataclasses.replace(adapted.model.config, n_positions=adapted.room)
        self.tokenizer = tokenizer
        self.notes = [f"answered by {answered_by(cast(Engine, self))}"]

    @classmethod
    def load(cls, path: Path, threads: int | None = None) -> Self:
        """From a run folder without weights: its base, with the adapter over it."""
        from gpt2kit import peft, runtime
        from gpt2kit.model import folder as model_folder

        runtime.set_threads(threads)
        commit.verify(path)
        config, tokenizer = read_head(path, [])
        base, _ = model_folder.load(find_base(path))
        said = peft.describe(path / ADAPTER)
        _check_shapes(path, base.config, config)
        network = base if base.config.labels == config.labels else with_head(base, config)
        return cls(peft.load(said.folder, network), tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """As the engine's; there is nothing to end."""

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
        *,
        window: Window = "stop",
        **changes: Any,
    ) -> list[Completion]:
        """One completion for each prompt, in their order, `ROWS` of like length at a time. Past the room it stops."""
        from gpt2kit.model.generate import generate

        found = [self._ids(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        given = [settings] * len(found) if settings is None or isinstance(settings, SamplingSettings) else settings
        each = []
        for ids, one in zip(found, given, strict=True):
            one = dataclasses.replace(one or SamplingSettings(), **changes)
            left = self.config.n_positions - max(1, len(ids))
            if left < 0:
                raise UserError(f"a prompt has {len(ids)} tokens, there is room for {self.config.n_positions}")
            each.append(dataclasses.replace(one, max_tokens=min(one.max_tokens, left), n=1))
        completions: dict[int, Completion] = {}
        for places in _together([len(ids) for ids in found], ROWS):
            answers = generate(
                self.model, [found[i] for i in places], [each[i] for i in places], tokenizer=self.tokenizer,
                batched=len(places) > 1, window="stop",
            )  # fmt: skip
            completions |= {i: answer[0] for i, answer in zip(places, answers, strict=True)}
        return [completions[i] for i in range(len(found))]

    def score(self, prompts: Sequence[str | Sequence[int]], logprobs: int = 0) -> list[list[Choice | None]]:
        """For each token of each prompt its log-probability; None for the first."""
        from gpt2kit.model.generate import echo

        return [echo(self.model, self._ids(prompt), logprobs, self.tokenizer) for prompt in prompts]

    def classify(self, prompts: Sequence[str | Sequence[int]]) -> NDArray[np.float32]:
        """[P, labels]: a classifier's scores before softmax (or sigmoid). UserError where the model has no head."""
        import torch

        if not self.config.labels:
            raise UserError("the model has no classification head", hint="gpt2kit finetune DATA --task classify")
        found = [self._ids(prompt) for prompt in prompts]
        scores = np.zeros((len(found), len(self.config.labels)), np.float32)
        for places in _together([len(ids) for ids in found], ROW_TOKENS // self.config.n_positions + 1):
            lengths = [len(found[i]) for i in places]
            rows = np.zeros((len(places), max(lengths)), np.int64)
            for row, i in zip(rows, places, strict=True):
                row[: len(found[i])] = found[i]
            with torch.no_grad():
                scores[places] = self.model.classify(torch.from_numpy(rows), torch.tensor(lengths)).numpy()
        return scores

    def _ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if self.tokenizer is None:
            raise UserError("the model has no tokenizer, so it cannot read text")
        return self.tokenizer.encode(prompt)


def _together(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of like length, at most so many at a time."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[a : a + most] for a in range(0, len(order), most)]


def find_base(path: Path) -> Path:
    """The folder of the model below an adapter: where it was from here, or by the name that was given."""
    record: Any = (commit.manifest(path) or {}).get("base")
    name = record.get("name") if isinstance(record, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{path} does not say which model its adapter belongs to", hint="tune it again")
    way = record.get("path")
    places = [*([path.resolve() / way] if isinstance(way, str) else []), Path(name)]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"the model {name}, which the adapter in {path} was trained on, is gone: looked at "
        f"{' and at '.join(str(place) for place in places)}",
        hint="put it back there, or the adapter's folder where it can see it",
    )


def _check_shapes(path: Path, base: GPT2Config, config: GPT2Config) -> None:
    """The base must be the adapter's but for the head; `peft.load` compares the weights."""
    known, own = (
        {name: shape for name, shape in stored_shapes(one).items() if name != "score.weight"} for one in (base, config)
    )
    strange = sorted(name for name in {*known, *own} if known.get(name) != own.get(name))
    if strange:
        raise UserError(
            f"the adapter in {path} belongs to another base: {strange[0]} is {own.get(strange[0])} there and "
            f"{known.get(strange[0])} in the model found",
            hint="put the model back that the adapter was trained on",
        )


def with_head(model: GPT2, config: GPT2Config, generator: torch.Generator | None = None) -> GPT2:
    """The model itself with the head of `config` in the place of its own, drawn from the generator."""
    from torch import nn

    model.config = config
    model.score = nn.Linear(config.n_embd, len(config.labels), bias=False).train(model.training)
    nn.init.normal_(model.score.weight, 0.0, config.initializer_range, generator=generator)
    return model
