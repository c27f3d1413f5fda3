"""Which task a model is asked: the one that it was tuned for, or another by a prompt, perhaps with examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import UserError, unknown
from gpt2kit.recipes.ask_options import SEARCHED, SHOTS, USED, AskOptions
from gpt2kit.recipes.tuning_options import read_columns, read_pairs

if TYPE_CHECKING:
    from gpt2kit.data.examples import Examples
    from gpt2kit.engine import Engine
    from gpt2kit.tasks.prompted import Prompted, Tried
    from gpt2kit.tasks.shots import Shots
    from gpt2kit.tasks.task import Asked


def choose(
    kept: Any, name: str | None, options: AskOptions, data: Examples | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Asked:  # fmt: skip
    """The task to ask. `kept`: what the model's lineage says of its task, or None; `name`: what the user calls it.

    A model that was tuned is asked without a prompt, unless flags for one are given. `data` may tell the labels.
    `note` is told how --examples were read. UserError for flags that mean nothing here, and for tasks that need tuning.
    """
    from gpt2kit.tasks import NAMES, NEVER_TUNED, task_of
    from gpt2kit.tasks.write import Write

    if name not in (None, *NAMES, *NEVER_TUNED):
        raise unknown("task", str(name), (*NAMES, *NEVER_TUNED))
    tuned = None if kept is None else task_of({"task": kept})
    if tuned is not None and name in (None, tuned.name) and options.given <= {"seed"}:
        if options.given and not isinstance(tuned, Write):
            raise UserError(f"--seed means nothing for a model that was tuned for {tuned.name}", hint="leave it out")
        return dataclasses.replace(tuned, seed=options.seed) if isinstance(tuned, Write) else tuned
    if name is None and tuned is not None:
        name = tuned.name
    if tuned is not None and tuned.name != name and name != "embed" and not options.given:
        raise UserError(f"the model was tuned for {tuned.name}, not for {name}", hint=f"gpt2kit run {tuned.name} …")
    if name not in USED:
        said = "the model was not tuned for a task" if name is None else f"{name} needs a model that was tuned for it"
        raise UserError(said, hint=f"gpt2kit finetune DATA --from MODEL --task {name or 'TASK'}")
    wrong = sorted(options.given - USED[name])
    if wrong:
        raise UserError(f"--{wrong[0].replace('_', '-')} means nothing for {name}")
    return _by_prompt(name, options, data, note)


def _by_prompt(name: str, options: AskOptions, data: Examples | None, note: Callable[[str], None]) -> Asked:
    from gpt2kit.tasks import task_named
    from gpt2kit.tasks.answer import Answer
    from gpt2kit.tasks.embed import Embed
    from gpt2kit.tasks.pairs import Pairs
    from gpt2kit.tasks.rank import TEMPLATE, Rank
    from gpt2kit.tasks.shown import Shown
    from gpt2kit.tasks.write import Write

    template = (options.template or "").replace("\\n", "\n")
    if name == "classify":
        return _label_words(options, template, data, note)
    if name == "rank":
        return Rank(template or TEMPLATE, "likelihood", options.per, options.unconditional)
    if name == "embed":
        return Embed(options.pooling)
    if name == "write":
        return Write(seed=options.seed)
    task = task_named(name, {"template": template} if template else {})
    assert isinstance(task, Pairs | Answer)
    return Shown(task, _shots(options, name, _examples(options, name, note)))


def _examples(options: AskOptions, name: str, note: Callable[[str], None] = lambda text: None) -> Examples | None:
    from gpt2kit.data.examples import read_examples

    if options.examples is None:
        wanting = ("example_columns", "shots", "balanced", "search_prompts")
        missing = next((flag for flag in wanting if flag in options.given), None)
        if missing is not None:
            raise UserError(f"--{missing.replace('_', '-')} needs labelled examples", hint="--examples train.tsv")
        return None
    try:
        found = read_examples(options.examples, name, read_columns(options.example_columns, "--example-columns"))
    except UserError as error:
        hint = None if error.hint is None else error.hint.replace("--columns", "--example-columns")
        raise UserError(error.message, hint=hint) from None
    for line in found.report.lines():
        note(line)
    return found.to_learn_from()


def _shots(options: AskOptions, name: str, examples: Examples | None) -> Shots | None:
    from gpt2kit.tasks.shots import Shots

    if examples is None or (options.shots is None and options.search_prompts is not None):
        return None
    return Shots(examples.rows, SHOTS if options.shots is None else options.shots, options.seed, options.balanced)


def _label_words(
    options: AskOptions, template: str, data: Examples | None, note: Callable[[str], None]
) -> Prompted:  # fmt: skip
    from gpt2kit.tasks.prompted import Prompted

    examples = _examples(options, "classify", note)
    known = examples or data
    if options.label_words is not None:
        if options.labels is not None:
            raise UserError("give --labels or --label-words, not both")
        given = read_pairs(options.label_words, "--label-words", "positive=good,negative=bad")
        labels, words = list(given), list(given.values())
    elif options.labels is not None:
        labels = words = [one.strip() for one in options.labels.split(",")]
    elif known is not None:
        labels = words = list(known.labels)
    else:
        raise UserError(
            "the model was not tuned to classify, so it needs the labels",
            hint="--labels positive,negative, or --examples train.tsv, or tune it: gpt2kit finetune",
        )
    shots = _shots(options, "classify", examples)
    return Prompted(tuple(labels), tuple(words), template, shots, not options.no_calibration)


def with_best_prompt(
    engine: Engine, task: Asked, options: AskOptions, note: Callable[[str], None]
) -> tuple[Asked, list[Tried]]:
    """The task with the template that does best on --examples, where --search-prompts asks for that; and the table."""
    from gpt2kit.scores.segment import language_of
    from gpt2kit.tasks.prompted import TEMPLATES, Prompted, read_templates, try_templates

    if options.search_prompts is None or not isinstance(task, Prompted):
        return task, []
    examples = _examples(options, "classify")
    assert examples is not None
    if options.search_prompts == "builtin":
        templates = list(TEMPLATES[language_of(task.words)])
    else:
        templates = read_templates(Path(options.search_prompts))
    rows = examples.rows[:: max(1, -(-len(examples.rows) // SEARCHED))]
    tried = try_templates(engine, task, templates, rows)
    for one in tried:
        note(f"{one.scores['accuracy']} of {len(rows):,} examples with {one.template!r}")
    return dataclasses.replace(task, template=tried[0].template), tried
