"""`gpt2kit merge`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from gpt2kit.errors import UserError
from gpt2kit.verbs import Verb
from gpt2kit.wording import command


@dataclass
class MergeOptions:
    """Compute an adapter into its base's weights: a model folder that every verb and transformers can use.

    Examples:
      gpt2kit merge runs/reviews/adapter --from runs/mine --out runs/merged
      gpt2kit merge their-lora --from gpt2 --hub --out runs/merged
    """

    adapter: Positional[str]  # an adapter folder, ours or PEFT's, or the folder of a run that made one
    from_: Annotated[str | None, arg(name="from")] = None  # the model that it was trained on
    out: str = ""  # the model folder to make
    hub: bool = False  # let --from be a name on the Hugging Face hub

    def __post_init__(self) -> None:
        for name in ("from_", "out"):
            if not getattr(self, name):
                raise UserError(
                    f"--{name.rstrip('_')} is missing", hint="gpt2kit merge ADAPTER --from BASE --out runs/merged"
                )


def run_merge(options: MergeOptions) -> int:
    from gpt2kit.recipes.merge import merge

    assert options.from_ is not None
    out = merge(options.adapter, options.from_, options.out, options.hub)
    print(f"merged into {out}\n\nnext:\n  {command('info', out)}")
    return 0


VERBS = {"merge": Verb(MergeOptions, run_merge)}
