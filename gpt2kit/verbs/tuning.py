"""`gpt2kit finetune`, `gpt2kit run` and `gpt2kit data check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from gpt2kit.errors import UserError
from gpt2kit.recipes.tuning_options import FinetuneOptions, read_columns
from gpt2kit.verbs import Verb
from gpt2kit.verbs.generating import tell_stages
from gpt2kit.verbs.output import print_json

if TYPE_CHECKING:
    from gpt2kit.data.families import Row
    from gpt2kit.recipes.events import Event, Reading
    from gpt2kit.tasks.task import Answer


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
class RunOptions:
    """Ask a model that was tuned for a task: one text, a file with one example a line, or - for standard input.

    Examples:
      gpt2kit run classify runs/reviews "A fine film."
      gpt2kit run translate runs/translator sentences.txt
      gpt2kit run correct runs/corrector - --json < sentences.txt
    """

    task: Positional[str]  # what the model was tuned for; it is checked
    model: Positional[str]  # its folder
    text: Positional[str] = "-"  # a text, a file that is there, or -
    json: bool = False  # one JSON object a line: the answer, and what is known of it
    precision: Literal["int8", "fp32", "auto"] = "auto"  # of the engine
    threads: int | None = None  # None: every core


def run_task(options: RunOptions) -> int:
    from gpt2kit.engine import Engine
    from gpt2kit.model.files import lineage
    from gpt2kit.tasks import task_of

    task = task_of(lineage(options.model))
    if task.name != options.task:
        raise UserError(
            f"{options.model} was tuned for {task.name}, not for {options.task}",
            hint=f"gpt2kit run {task.name} {options.model} …",
        )
    engine = Engine.load(options.model, options.precision, options.threads, on_progress=tell_stages())
    for examples in _batches(task.example, options.text):
        for example, answer in zip(examples, task.answer(engine, examples), strict=True):
            _print(example, answer, options.json)
    return 0


BATCH = 256  # lines that are answered together


def _batches(make: Callable[[str], Row], given: str) -> Iterator[list[Row]]:
    if given != "-" and not Path(given).is_file():
        yield [make(given)]
        return
    data = sys.stdin.buffer.read() if given == "-" else Path(given).read_bytes()
    try:
        lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError("the input is not UTF-8 text", hint="convert it: iconv -f GB18030 -t UTF-8") from None
    for a in range(0, len(lines), BATCH):
        yield [make(line) for line in lines[a : a + BATCH]]


def _print(example: Row, answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json({"input": example.key, "answer": answer.text, **answer.details})
    else:
        print(answer.text.replace("\n", " "), flush=True)


@dataclass
class DataCheckOptions:
    """Look at a task's data before tuning: what it is, what is wrong, balance, lengths, duplicates, leaks.

    Example:
      gpt2kit data check reviews.tsv --task classify --from runs/mine
    """

    data: Positional[list[str]]
    task: str | None = None  # what it is for; None: what its fields are made for
    # the model that will be tuned: lengths are then in its tokens
    from_: Annotated[str | None, arg(name="from")] = None
    columns: str | None = None  # which field is what, as text=review,label=stars
    classes: str | None = None  # a file with one class a line, for labels that are numbers
    json: bool = False


def run_data_check(options: DataCheckOptions) -> int:
    from gpt2kit.data.check import check
    from gpt2kit.data.examples import read_examples
    from gpt2kit.model.files import read_head, resolve

    found = read_examples(options.data, options.task, read_columns(options.columns), classes=options.classes)
    tokenizer, context = None, None
    if options.from_ is not None:
        config, tokenizer = read_head(resolve(options.from_)[0], [])
        context = config.n_positions
    report = check(found, tokenizer=tokenizer, context=context)
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
