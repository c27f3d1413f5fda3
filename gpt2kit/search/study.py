"""A search's memory: optuna's journal in the search folder, and what it proposes next.

The values of trial n are a function of (seed, n, the results before it), so a search that was stopped goes on as if it
had not been, where trials run one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import missing_extra
from gpt2kit.search.options import Sampler
from gpt2kit.search.values import Choice, Range, Space

if TYPE_CHECKING:
    from optuna.study import Study

JOURNAL = "trials.journal"
STARTUP = 4  # whole trials before any is ended early
EARLIEST = 3  # evaluation at which a trial may be ended: the first ones favour what learns fast and not far
SEEDS = 1_000_003  # between the seeds of two searches


@dataclass(frozen=True)
class Tried:
    """A trial. state: "complete", "pruned", "fail" or "running"; value: the lowest validation loss, of a pruned trial
    the one that it came to.
    """

    number: int
    state: str
    value: float | None
    values: Mapping[str, Any]  # as they are typed
    why: str = ""  # it failed


def library() -> Any:
    """optuna, quiet."""
    try:
        import optuna
    except ImportError:
        raise missing_extra("optuna", "search", "gpt2kit search") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(folder: Path) -> Study:
    """The study of a search folder, begun where there is none."""
    optuna = library()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = folder / JOURNAL
    backend = JournalFileBackend(str(path), JournalFileOpenLock(str(path)))
    pruner = optuna.pruners.MedianPruner(STARTUP, EARLIEST)
    study: Study = optuna.create_study(
        storage=JournalStorage(backend), study_name="search", direction="minimize", pruner=pruner, load_if_exists=True
    )
    return study


def mend(folder: Path) -> None:
    """Cut off a line that a power failure left half written; only while no trial runs."""
    path = folder / JOURNAL
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)


def ask(study: Study, space: Space, sampler: Sampler, seed: int, given: Mapping[str, Any] | None) -> Any:
    """The next trial, its values drawn (or, of a grid, `given`) and noted."""
    optuna = library()
    number = len(study.trials)
    if given is not None:
        study.enqueue_trial(dict(given))
    kind = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
    study.sampler = kind(seed=seed * SEEDS + number)
    return study.ask(_distributions(space))


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, held in space.items():
        if isinstance(held, Choice):
            found[name] = CategoricalDistribution(held.values)
        elif held.whole:
            found[name] = IntDistribution(int(held.low), int(held.high), log=held.log)
        else:
            found[name] = FloatDistribution(held.low, held.high, log=held.log)
    return found


def trial(study: Study, number: int) -> Any:
    """A trial that was asked for, to report to; from another process than the one that asked, too."""
    optuna = library()
    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def report(trial: Any, evaluation: int, loss: float) -> bool:
    """Note an evaluation's loss, once; whether the trial should be ended."""
    if evaluation not in trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        trial.report(loss, evaluation)
    return bool(trial.should_prune())


def tell(study: Study, number: int, state: str, value: float | None, why: str) -> None:
    """The end of a trial. A failed one's reason is kept."""
    optuna = library()
    states = {"pruned": optuna.trial.TrialState.PRUNED, "fail": optuna.trial.TrialState.FAIL}
    if why:
        trial(study, number).set_user_attr("why", why)
    study.tell(number, value if state == "complete" else None, states.get(state))


def values_of(trial: Any, space: Space) -> dict[str, Any]:
    """A trial's values as they are used and typed."""
    drawn = {name: trial.params[name] for name in space if name in trial.params}
    return {n: held.rounded(v) if isinstance(held := space[n], Range) else v for n, v in drawn.items()}


def tried(study: Study, space: Space) -> list[Tried]:
    """All trials, in order."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        value = trial.value
        if value is None and trial.intermediate_values:
            value = min(trial.intermediate_values.values())
        why = str(trial.user_attrs.get("why", ""))
        found.append(Tried(trial.number, trial.state.name.lower(), value, values_of(trial, space), why))
    return found


def best(trials: list[Tried]) -> Tried | None:
    """The complete trial with the lowest loss; of equal ones the first."""
    done = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    return min(done, key=lambda trial: (trial.value, trial.number), default=None)
