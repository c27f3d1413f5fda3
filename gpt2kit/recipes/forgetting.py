"""What a model knew before a fine-tune and what it knows after: general text in bits per byte, earlier tasks' scores.

Both models are asked in float32, after the run: nothing has to be remembered while it trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2kit import commit
from gpt2kit.data.examples import read_examples
from gpt2kit.data.sources import read_documents
from gpt2kit.errors import UserError
from gpt2kit.evaluation import evaluate
from gpt2kit.model import folder as model_folder
from gpt2kit.recipes.earlier import Tasks, find_task, named
from gpt2kit.recipes.probe import TEXTS
from gpt2kit.scores.result import Score
from gpt2kit.tasks import task_of
from gpt2kit.tasks.reference import ADAPTER, Reference, open_for_tasks

BITS = "bits per byte"
NOTABLE = 0.01  # bits per byte; a built-in text of some kilobytes does not tell less


@dataclass(frozen=True)
class Figure:
    """One thing, before and after. None: it could not be measured, and `why`."""

    name: str
    unit: str
    before: float | None = None
    after: float | None = None
    why: str = ""

    @property
    def worse(self) -> float | None:
        """How much was lost: bits per byte gained, or score lost. Negative where it got better."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before if self.unit == BITS else self.before - self.after

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{self.name}: not measured ({self.why})"
        least = NOTABLE if self.unit == BITS else 0.001
        word = "forgotten" if round(self.worse or 0.0, 3) >= least else "kept"  # as it is shown
        change = self.after - self.before
        return f"{self.name}: {self.before:.3f} -> {self.after:.3f} {self.unit} ({change:+.3f}, {word})"


def measure(folder: str | Path, probes: Mapping[str, str], tests: Mapping[str, tuple[dict[str, Any], str]]) -> (
    dict[str, Figure]
):  # fmt: skip
    """name -> a figure whose `after` is of the model in `folder`. tests: name -> (a task's values, a file)."""
    path = model_folder.resolve(folder)[0]
    adapted = (path / ADAPTER).is_dir() and not (path / "model.safetensors").exists()
    loaded = Reference.load(path) if adapted else None
    model, tokenizer = (loaded.model, loaded.tokenizer) if loaded is not None else model_folder.load(path)
    found = {}
    for name, text in probes.items():
        try:
            bits = evaluate(model, tokenizer, text, context=None if loaded is None else loaded.config.n_positions)
            found[name] = Figure(name, BITS, after=round(bits.bits_per_byte, 6))
        except UserError as error:
            found[name] = Figure(name, BITS, why=error.message)
    del model, loaded
    for name, (values, file) in tests.items():
        try:
            score = _score(path, values, file)
            found[name] = Figure(f"{name}, {score.name}", score.unit, after=round(score.value, 6))
        except UserError as error:
            found[name] = Figure(name, "", why=error.message)
    return found


def _score(folder: Path, values: dict[str, Any], file: str) -> Score:
    """The first, chief, score of a task on labelled rows."""
    task = task_of({"task": values})
    rows = read_examples([file], task.name).rows
    with open_for_tasks(folder, "fp32") as engine:
        if task.model_config(engine.config) != engine.config:
            raise UserError("its head was replaced by that of another task")
        return task.score(rows, task.answer(engine, rows)).items[0]


def report(
    parent: str | Path, child: str | Path, probe: Iterable[str], remember: Iterable[str], earlier: Tasks
) -> list[Figure]:
    """Every probe and every earlier task, before (`parent`) and after (`child`); those without a file are named, too.

    A file that cannot be read, or a parent that is gone, is a figure that says so: the run itself is over and good.
    """
    probes = {f"general {name}": text for name, text in TEXTS.items()}
    unread = []
    for file in probe:
        try:
            probes[Path(file).name] = "\n\n".join(document.text for document in read_documents([file], None))
        except UserError as error:
            unread.append(Figure(Path(file).name, BITS, why=error.message))
    tests = {}
    for given in remember:
        name, file = named(given)
        values = find_task(name, earlier)
        tests[name or values["name"]] = values, file
    after = measure(child, probes, tests)
    try:
        before = measure(parent, probes, tests)
    except UserError as error:
        before = {name: Figure(name, "", why=error.message) for name in after}
    found = []
    for name, new in after.items():
        old = before[name]
        found.append(Figure(new.name if new.after is not None else old.name, new.unit or old.unit,
                            old.after, new.after, new.why or old.why))  # fmt: skip
    covered = set(tests) | {values["name"] for values, _ in tests.values()}
    silent = [e["name"] for e in earlier if not covered & {e["name"], e["task"]["name"]}]
    return [*found, *unread, *(Figure(name, "", why=f"give --remember {name}=TESTFILE") for name in silent)]


def check(probe: Iterable[str], remember: Iterable[str], earlier: Tasks) -> None:
    """Everything that the report will need, before the run: UserError for a file or a name that there is not."""
    for file in probe:
        next(iter(read_documents([file], None)), None)
    for given in remember:
        name, file = named(given)
        read_examples([file], find_task(name, earlier)["name"])


def tell(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """The report on a run that is over: put into its folder's lineage, and as it is printed."""
    parent, earlier = record["parents"][0]["folder"], record.get("earlier", [])
    figures = report(parent, folder, record.get("probe", []), record.get("remember", []), earlier)
    manifest = commit.manifest(folder)
    assert manifest is not None
    rows = [{k: v for k, v in asdict(figure).items() if v not in (None, "")} for figure in figures]
    commit.replace_json(folder / commit.MANIFEST, manifest | {"forgetting": rows})
    return ["what was known before, and is known after:", *(f"  {figure}" for figure in figures)]
