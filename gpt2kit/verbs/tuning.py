"""`gpt2kit finetune`, `gpt2kit run` and `gpt2kit data check`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from tyro.conf import Positional, arg

from gpt2kit.data.families import TASKS, AnswerRow, RankRow
from gpt2kit.errors import UserError
from gpt2kit.recipes.ask_options import AskOptions
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_columns
from gpt2kit.verbs import Verb
from gpt2kit.verbs.generating import tell_stages
from gpt2kit.verbs.output import print_json, print_notes
from gpt2kit.wording import plural

if TYPE_CHECKING:
    from gpt2kit.data.families import Row
    from gpt2kit.engine import Engine
    from gpt2kit.recipes.events import Event, Reading
    from gpt2kit.tasks.task import Answer, Asked


def run_finetune(options: FinetuneOptions) -> int:
    from gpt2kit.recipes import finetune
    from gpt2kit.verbs.training import follow

    def events(stop: Callable[[], bool], report: Callable[[Reading], None]) -> Generator[Event, None, None]:
        if options.resume is not None:
            yield from finetune.resume(options.resume, stop)
        else:
            yield from finetune.start(options, stop)

    return follow(events)


@dataclass
class RunOptions(AskOptions):
    """Ask a model one text, a file with one example a line, or - for standard input. An example is a text, or a JSON
    object or a table's row with the fields that labelled data has.

    A model that was tuned for the task needs no more flags. Others are asked by a prompt: classify needs the labels,
    examples of a labelled file may stand before the question; rank, embed and write work with every model.

    Examples:
      gpt2kit run classify runs/reviews "A fine film."
      gpt2kit run classify runs/mine "A fine film." --labels good,bad --examples train.tsv --shots 4
      gpt2kit run answer runs/mine "Who wrote it?" --documents manuals/
      gpt2kit run rank runs/mine "A hot day" --candidates "ice cream" "a fur coat"
      gpt2kit run correct runs/corrector - --json < sentences.txt
    """

    task: Positional[str]  # classify, translate, summarise, correct, edit, instruct, chat, answer, rank, write, embed
    model: Positional[str]  # its folder
    text: Positional[str] = "-"  # a text, a file that is there, or -
    candidates: list[str] | None = None  # of rank; without it each line is {"query": …, "candidates": […]}
    documents: str | None = None  # of answer: a folder or file to find the answer in
    passages: int = 5  # of the documents that are read for a question
    summary: bool = False  # of classify: at the end the share of each label, with its 95 % interval
    json: bool = False  # one JSON object a line: the answer, and what is known of it
    precision: Literal["int8", "fp32", "auto"] = "auto"  # of the engine
    threads: int | None = None  # None: every core


def run_task(options: RunOptions) -> int:
    from gpt2kit.model.files import lineage
    from gpt2kit.recipes.asking import choose, with_best_prompt
    from gpt2kit.tasks.asked import is_file
    from gpt2kit.tasks.reference import open_for_tasks

    kept = lineage(options.model).get("task")
    task = choose(kept, options.task, options, note=_note)
    _check(options)
    if _leaves_head(kept, task):
        _note("asked by a prompt, not by the head it was tuned with")
    rows = _rows(task, options)
    show = _print_json if options.json else _printer(one=not is_file(options.text))
    cut = 0
    told: list[Answer] = []
    with open_for_tasks(options.model, options.precision, options.threads, tell_stages()) as engine:
        task, _ = with_best_prompt(engine, task, options, _note)
        answer = _answerer(engine, task, options)
        while examples := list(itertools.islice(rows, BATCH)):
            for example, found in zip(examples, answer(examples), strict=True):
                show(example, found)
                cut += found.details.get("cut", False)
                told += [found] if options.summary else []
        positions = engine.config.n_positions
    if cut:
        were = "was" if cut == 1 else "were"
        _note(f"{plural(cut, 'text')} did not fit the model's {positions:,} positions and {were} cut")
    if options.summary:
        _summarise(told, options.json)
    return 0


def _note(text: str) -> None:
    print_notes([text])


def _leaves_head(kept: Any, task: Asked) -> bool:
    """Whether a model is asked without the head that it has for this very task."""
    from gpt2kit.tasks import task_of
    from gpt2kit.tasks.classify import Classify
    from gpt2kit.tasks.rank import Rank
    from gpt2kit.tasks.spans import Spans

    tuned = None if kept is None else task_of({"task": kept})
    return isinstance(tuned, Classify | Rank | Spans) and tuned.name == task.name and tuned != task


def _check(options: RunOptions) -> None:
    for flag, task in (("candidates", "rank"), ("documents", "answer"), ("summary", "classify")):
        if getattr(options, flag) and options.task != task:
            raise UserError(f"--{flag} is of {task}, not of {options.task}")
    if options.documents is None and options.passages != RunOptions.passages:
        raise UserError("--passages says how many of the --documents are read", hint="add --documents FOLDER")
    if options.passages < 1:
        raise UserError(f"passages must be at least 1, got {options.passages}")


def _rows(task: Asked, options: RunOptions) -> Iterator[Row]:
    """What the model is asked, one example after the other."""
    from gpt2kit.tasks.asked import Input
    from gpt2kit.tasks.rank import question
    from gpt2kit.tasks.spans import Spans
    from gpt2kit.tasks.task import GIVEN

    family, given = TASKS[options.task], options.candidates
    if given is not None:
        return Input(family, lambda text: question(text, given), {"candidates": given}).rows(options.text, _note)
    if options.documents is not None:
        found = Input(family, lambda text: AnswerRow(text, "", (), where=GIVEN)).rows(options.text, _note)
        return (dataclasses.replace(cast(AnswerRow, row), passage="") for row in found)
    found = Input(family, task.example).rows(options.text, _note)
    return map(Spans.needing_passage, found) if isinstance(task, Spans) else found


def _answerer(engine: Engine, task: Asked, options: RunOptions) -> Callable[[list[Row]], list[Answer]]:
    if options.documents is None:
        return lambda examples: task.answer(engine, examples)
    from gpt2kit.data.passages import open_library
    from gpt2kit.recipes.retrieve import answer_from

    library = open_library(options.documents, _note)
    return lambda examples: answer_from(
        engine, task, library, [cast(AnswerRow, row).question for row in examples], options.passages
    )


BATCH = 256  # examples that are answered together


def _print_json(example: Row, answer: Answer) -> None:
    asked = {"input": example.key}
    if isinstance(example, AnswerRow):
        asked = {"input": example.question} | ({"passage": example.passage} if example.passage else {})
    print_json({**asked, "answer": answer.text, **answer.details})


def _printer(one: bool) -> Callable[[Row, Answer], None]:
    """For people: of `one` text the answer with its line breaks, of many a line each."""

    def show(example: Row, answer: Answer) -> None:
        details = answer.details
        if "ranking" in details:
            assert isinstance(example, RankRow)
            for place in details["ranking"]:
                print(f"{details['scores'][place]:.4f}  {example.candidates[place]}", flush=True)
            return
        text = answer.text if one else answer.text.replace("\n", " ")
        if details.get("source"):
            text += f"  [{details['source']['file']}:{details['source']['line']}]"
        elif details.get("changes") and sys.stdout.isatty():
            text += f"  {_marked(details['changes'])}"
        print(text, flush=True)

    return show


def _marked(changes: Sequence[dict[str, Any]]) -> str:
    """`[-克-]{+课+}`, as `git diff --word-diff` writes it."""
    return " ".join(
        (f"[-{one['before']}-]" if one["before"] else "") + (f"{{+{one['after']}+}}" if one["after"] else "")
        for one in changes
    )


def _summarise(answers: Sequence[Answer], as_json: bool) -> None:
    """The share of each label: for opinions in many texts."""
    from gpt2kit.scores.shares import shares

    labels = list(answers[0].details["probabilities"]) if answers else []
    found = shares([answer.details["labels"] for answer in answers], labels)
    if as_json:
        print_json({"summary": found.to_dict()["metrics"]})
        return
    for score in found:
        low, high = (100 * (end or 0.0) for end in (score.low, score.high))
        print(f"{score.name}  {100 * score.value:.1f} % [{low:.1f}, {high:.1f}] of {score.n:,}")


@dataclass
class DataCheckOptions:
    """Look at a task's data before tuning: what it is, what is wrong, balance, lengths, duplicates, leaks.

    Example:
      gpt2kit data check reviews.tsv --task classify --from runs/mine
      gpt2kit data check train.tsv --test test.tsv --task classify
    """

    data: Positional[list[str]]  # labelled rows; files of a folder are told apart by their names: train, dev, test
    validation: list[str] | None = None  # files of validation rows: what of them is in the training data too
    test: list[str] | None = None  # files of test rows, likewise
    task: str | None = None  # what it is for; None: what its fields are made for
    # the model that will be tuned: lengths are then in its tokens
    from_: Annotated[str | None, arg(name="from")] = None
    columns: str | None = None  # which field is what, as text=review,label=stars
    classes: str | None = None  # a file with one class a line, for labels that are numbers
    json: bool = False  # one JSON object


def run_data_check(options: DataCheckOptions) -> int:
    from gpt2kit.data.check import check
    from gpt2kit.data.examples import Examples, read_examples
    from gpt2kit.model.files import read_head, resolve

    def read(paths: list[str]) -> Examples:
        return read_examples(paths, options.task, read_columns(options.columns), classes=options.classes)

    found = read(options.data)
    given = {"validation": options.validation, "test": options.test}
    more = {name: read(paths) for name, paths in given.items() if paths is not None}
    tokenizer, context = None, None
    if options.from_ is not None:
        config, tokenizer = read_head(resolve(options.from_)[0], [])
        context = config.n_positions
    report = check(found, tokenizer=tokenizer, context=context, splits=more)
    if options.json:
        print_json(report.to_dict())
    else:
        print("\n".join(report.lines()))
    return 0


VERBS = {
    "finetune": Verb(FinetuneOptions, run_finetune),
    "run": Verb(RunOptions, run_task),
    "data check": Verb(DataCheckOptions, run_data_check),
}
