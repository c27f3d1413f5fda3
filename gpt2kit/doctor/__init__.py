"""gpt2kit doctor: proves on this machine that GPT-2 is computed rightly, and says what the machine can do.

    oracle.py    GPT-2 in plain numpy, and every classic mistake
    proofs.py    model, cache and padding against the oracle
    learning.py  gradients and training loss
    decoding.py  sampler and beam search
    storage.py   folder format, tokenizer, and one MODEL folder
    machine.py   versions, memory, matrix products, disk

No pretrained weights are needed. Nothing is printed here: `run_checks` yields results as they are ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt2kit.errors import UserError


@dataclass(frozen=True)
class CheckResult:
    """One check: what was found, in words; where it failed, the likely mistake and what to do."""

    name: str
    ok: bool
    detail: str
    seconds: float
    hint: str | None = None


def run_checks(
    model_folder: str | Path | None = None, machine: bool = True, proofs: bool = True
) -> Iterator[CheckResult]:
    """Run every check in order, yielding each result: this machine, the proofs, then the model folder if one
    is given.

    A check that fails never stops the others. `machine` and `proofs` leave a group out. About 6 s on two
    cores.
    """
    from gpt2kit.doctor import storage

    try:
        for name, check in checks(model_folder, machine, proofs):
            yield run_check(name, check)
    finally:
        storage.forget()


def checks(
    model_folder: str | Path | None = None, machine: bool = True, proofs: bool = True
) -> list[tuple[str, Callable[[], str]]]:
    """The names and functions that `run_checks` runs."""
    from gpt2kit.doctor import decoding, learning, storage
    from gpt2kit.doctor import machine as machines
    from gpt2kit.doctor import proofs as models

    found: list[tuple[str, Callable[[], str]]] = list(machines.CHECKS) if machine else []
    if proofs:
        for name, proof in (*models.PROOFS, *learning.PROOFS, *decoding.PROOFS, *storage.PROOFS):
            found.append((name, partial(models.on_one_thread, proof)))
    if model_folder is not None:
        for name, check in storage.FOLDER_CHECKS:
            found.append((f"{Path(model_folder).name}: {name}", partial(check, Path(model_folder))))
    return found


def run_check(name: str, check: Callable[[], str]) -> CheckResult:
    """Run one check. Whatever it raises becomes its result."""
    from gpt2kit.doctor.proofs import REPORT, Failed

    start = time.perf_counter()
    try:
        ok, detail, hint = True, check(), None
    except Failed as failed:
        ok, detail, hint = False, failed.detail, failed.hint
    except UserError as error:
        ok, detail, hint = False, error.message, error.hint
    except Exception as error:  # a broken installation may raise anything, and the other checks still tell more
        ok, detail, hint = False, f"stopped by {type(error).__name__}: {error}", REPORT
    return CheckResult(name, ok, detail, time.perf_counter() - start, hint)
