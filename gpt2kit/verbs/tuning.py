"""`gpt2kit finetune`, `gpt2kit run` and `gpt2kit data check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from gpt2kit.data.families import RankRow
from gpt2kit.errors import UserError
from gpt2kit.recipes.ask_options import AskOptions
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_columns
from gpt2kit.verbs import Verb
from gpt2kit.verbs.generating import tell_stages
from gpt2kit.verbs.output import print_json, print_notes

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
    """Ask a model one text, a file with one example a line, or - for standard input.

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
    from gpt2kit.tasks.reference import open_for_tasks

    task = choose(lineage(options.model).get("task"), options.task, options)
    _check(options)
    notes: list[str] = []
    one = options.text != "-" and not _is_file(options.text)
    with open_for_tasks(options.model, options.precision, options.threads, tell_stages()) as engine:
        task, _ = with_best_prompt(engine, task, options, notes.append)
        answer = _answerer(engine, task, options, notes.append)
        print_notes(notes)
        told: list[Answer] = []
        for examples in _batches(_maker(task, options), options.text):
            for example, found in zip(examples, answer(examples), strict=True):
                _print(example, found, options.json, one)
                told += [found] if options.summary else []
    if options.summary:
        _summarise(told, options.json)
    return 0


def _check(options: RunOptions) -> None:
    for flag, task in (("candidates", "rank"), ("documents", "answer"), ("summary", "classify")):
        if getattr(options, flag) and options.task != task:
            raise UserError(f"--{flag} is of {task}, not of {options.task}")
    if options.documents is None and options.passages != RunOptions.passages:
        raise UserError("--passages says how many of the --documents are read", hint="add --documents FOLDER")
    if options.passages < 1:
        raise UserError(f"passages must be at least 1, got {options.passages}")


def _answerer(
    engine: Engine, task: Asked, options: RunOptions, note: Callable[[str], None]
) -> Callable[[list[Row]], list[Answer]]:
    if options.documents is None:
        return lambda examples: task.answer(engine, examples)
    from gpt2kit.data.passages import open_library
    from gpt2kit.recipes.retrieve import answer_from

    library = open_library(options.documents, note)
    return lambda examples: answer_from(engine, task, library, [row.key for row in examples], options.passages)


def _maker(task: Asked, options: RunOptions) -> Callable[[str], Row]:
    """A line, or the text given, to an example."""
    if options.candidates is not None:
        from gpt2kit.tasks.rank import question

        given = options.candidates
        return lambda text: question(text, given)
    if options.documents is not None:
        from gpt2kit.data.families import AnswerRow, Where

        return lambda text: AnswerRow(text, "", (), where=Where("the text given"))
    return task.example


BATCH = 256  # lines that are answered together


def _is_file(text: str) -> bool:
    """Whether a text is a file's path: a long one cannot be, and the system says so by an error."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _batches(make: Callable[[str], Row], given: str) -> Iterator[list[Row]]:
    if given != "-" and not _is_file(given):
        yield [make(given)]
        return
    data = sys.stdin.buffer.read() if given == "-" else Path(given).read_bytes()
    try:
        lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError("the input is not UTF-8 text", hint="convert it: iconv -f GB18030 -t UTF-8") from None
    for a in range(0, len(lines), BATCH):
        yield [make(line) for line in lines[a : a + BATCH]]


def _print(example: Row, answer: Answer, as_json: bool, one: bool) -> None:
    details = answer.details
    if as_json:
        print_json({"input": example.key, "answer": answer.text, **details})
    elif "ranking" in details:
        assert isinstance(example, RankRow)
        for place in details["ranking"]:
            print(f"{details['scores'][place]:.4f}  {example.candidates[place]}", flush=True)
    elif details.get("source"):
        print(f"{answer.text}  [{details['source']['file']}:{details['source']['line']}]", flush=True)
    else:
        print(answer.text if one else answer.text.replace("\n", " "), flush=True)


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
