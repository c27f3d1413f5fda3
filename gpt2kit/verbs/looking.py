"""`gpt2kit evaluate`, `info` and `doctor`: what a model is, how good it is, and whether all is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from gpt2kit.errors import UserError
from gpt2kit.recipes.ask_options import AskOptions
from gpt2kit.verbs import Verb
from gpt2kit.verbs.output import print_fact, print_json, print_notes
from gpt2kit.wording import command, plural

if TYPE_CHECKING:
    from gpt2kit.recipes.evaluate import Measured
    from gpt2kit.scores.report import Beside


@dataclass
class EvaluateOptions(AskOptions):
    """How good a model is: on a text, perplexity per token, bits per byte and per character, with their protocol.

    A model that was tuned for a task is asked the task's examples instead, and its answers are scored. With --task, so
    is a model that was not tuned, by a prompt. Each figure has its 95 % interval.

    With --against another model is asked the same, and the differences are paired: of each metric this model's figure
    less the other's, its interval and p. Figures of unlike units are not compared, and the reason is said.

    Examples:
      gpt2kit evaluate runs/mine other.txt --context 256 --stride 128
      gpt2kit evaluate runs/reviews test.tsv --report runs/reviews/test
      gpt2kit evaluate runs/mine other.txt --against runs/before
      gpt2kit evaluate runs/mine test.tsv --task classify --examples train.tsv --shots 4
      gpt2kit evaluate runs/mine lambada-test.jsonl --last-word
    """

    model: Positional[str]  # a model, run or checkpoint folder
    data: Positional[list[str]]  # text files, folders, a packed folder (its validation split), or - for standard input
    context: int | None = None  # tokens in a window; None: the model's
    stride: int | None = None  # tokens from window to window; None: half the context
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet
    json: bool = False  # one JSON object with every figure
    hub: bool = False  # let MODEL be a name on the Hugging Face hub
    perplexity: bool = False  # also for a tuned model: the perplexity of a text, not its task's scores
    last_word: bool = False  # does the model know the last word of each text, given the rest? (LAMBADA)
    task: str | None = None  # classify, translate, answer, rank …; None: what the model was tuned for
    against: str | None = None  # another model, to compare with on the same text or examples
    report: str | None = None  # a folder for report.html and report.json
    columns: str | None = None  # of a task's data: which field is what, as text=review,label=stars
    fluency_by: str | None = None  # of written answers: another model's folder; its bits per character of them
    classes: str | None = None  # of a classifier's data: a file with one class a line, for labels that are numbers
    tune_threshold: bool = False  # of extractive answers: keep the threshold in the model that is best on this data
    precision: Literal["int8", "fp32", "auto"] = "auto"  # of the engine that answers a task
    threads: int | None = None  # None: every core


def run_evaluate(options: EvaluateOptions) -> int:
    from gpt2kit.model.files import lineage, resolve

    if not options.data:
        raise UserError("nothing to evaluate on", hint=command("evaluate", options.model, "other.txt"))
    path, _ = resolve(options.model, options.hub)
    if options.against is not None:
        options.against = str(resolve(options.against, options.hub)[0])
    if options.last_word:
        return _last_words(options)
    kept = lineage(path).get("task") or {}
    if not options.perplexity and (options.task or kept.get("name")) not in (None, "write"):
        return _score(options, path)
    return _text(options, path)


def _text(options: EvaluateOptions, path: Path) -> int:
    from gpt2kit.recipes.evaluate import evaluate_files, write

    names = ("fluency_by", "tune_threshold", "columns", "classes", *sorted(options.given))
    idle = next((name for name in names if getattr(options, name)), None)
    if options.precision == "int8":
        raise UserError("a text's perplexity is computed in float32", hint="leave out --precision")
    if idle is not None:
        flag = idle.replace("_", "-")
        raise UserError(f"--{flag} is of a task's answers", hint="name the task: --task classify")
    notes: list[str] = []
    found = evaluate_files(
        options.model, options.data, options.context, options.stride, options.field, notes.append, options.hub,
        options.threads, options.against,
    )  # fmt: skip
    print_notes([*notes, *found.scores.notes])
    if options.json:
        print_json({**found.to_dict(), **_against(found.beside)})
    else:
        _print_text(found)
    if options.report is not None:
        print_notes([f"the report: {write(options.report, path, found)}"])
    return 0


def _print_text(found: Measured) -> None:
    result = found.evaluation
    for name, value, per in (
        ("perplexity", result.perplexity, f" per {result.unit}"),
        ("bits_per_byte", result.bits_per_byte, ""),
        ("bits_per_character", result.bits_per_character, ""),
        ("loss", result.loss, f" nats per {result.unit}"),
    ):
        interval = found.scores[name].interval_text(".4f") if name in found.scores else ""
        print(f"{name.replace('_', ' '):<18}  {value:.4f}{per} {interval}".rstrip())
    print(f"on                  {result.tokens:,} tokens, {result.bytes:,} bytes, {result.characters:,} characters")
    print(f"intervals           95 %, over {plural(len(result.blocks), 'document')} or stretches of long ones")
    print(f"context {result.context}, stride {result.stride}, tokenizer {result.tokenizer_hash[:16]}")
    if not result.lossless:
        print("lossless            no: the tokens do not give this text back, so bits per byte flatter the model")
    print(f"protocol: {result.protocol}")
    _print_beside(found.beside)


def _against(beside: Sequence[Beside]) -> dict[str, object]:
    """What --json says of the other model."""
    return {"against": beside[0].to_dict()} if beside else {}


def _print_beside(beside: Sequence[Beside]) -> None:
    for other in beside:
        print(f"\nless {other.name}, paired:")
        for compared in other.comparisons:
            print(compared)
            print_notes(f"{compared.metric}: {note}" for note in compared.notes)
        for name, why in other.refused.items():
            print(f"{name} not compared: {why}")


def _last_words(options: EvaluateOptions) -> int:
    from gpt2kit.progress import Progress
    from gpt2kit.recipes.last_word import score_last_words
    from gpt2kit.verbs.generating import tell_stages

    names = ("context", "stride", "perplexity", "task", "columns", "classes", "report", "against",
             "tune_threshold", "hub", "fluency_by")  # fmt: skip
    idle = next((name for name in (*names, *sorted(options.given)) if getattr(options, name)), None)
    if idle is not None:
        raise UserError(f"--{idle.replace('_', '-')} says nothing of a last word", hint="leave one of the two out")
    notes: list[str] = []
    with Progress(transient=True) as progress:
        found = score_last_words(
            options.model, options.data, options.field, options.precision, options.threads, notes.append,
            lambda done, total: progress.show("asking", done, total, f"{done:,} of {total:,}"), tell_stages(),
        )  # fmt: skip
    print_notes([*notes, *found.notes])
    if options.json:
        print_json(found.to_dict())
    else:
        print("\n".join(f"{score}  {score.unit}" for score in found))
    return 0


def _score(options: EvaluateOptions, path: Path) -> int:
    from gpt2kit.model.files import lineage
    from gpt2kit.progress import Progress
    from gpt2kit.recipes.fluency import add_fluency, check_fluency
    from gpt2kit.recipes.score import score_files, tune_threshold
    from gpt2kit.recipes.score_report import write
    from gpt2kit.recipes.tuning_options import read_columns
    from gpt2kit.verbs.generating import tell_stages

    idle = next((name for name in ("context", "stride", "field") if getattr(options, name) is not None), None)
    if idle is not None:
        raise UserError(f"--{idle} is of a text's perplexity, not of a task's answers", hint="add --perplexity")
    if options.fluency_by is not None:
        check_fluency(options.task or lineage(path)["task"]["name"], path, options.fluency_by)
    if options.tune_threshold and options.against is not None:
        raise UserError(
            "--tune-threshold fits the model to this data, which would flatter it beside another",
            hint="compare with --against on other data",
        )
    notes: list[str] = []
    with Progress(transient=True) as progress:
        found = score_files(
            path, options.data, read_columns(options.columns), options.classes, options.task, options,
            options.precision, options.threads, notes.append,
            lambda done, total: progress.show("answering", done, total, f"{done:,} of {total:,}"), tell_stages(),
            options.against,
        )  # fmt: skip
        if options.fluency_by is not None:
            found = add_fluency(
                found, options.fluency_by, options.precision, options.threads, notes.append,
                lambda done, total: progress.show("reading", done, total, f"{done:,} of {total:,}"), tell_stages(),
            )  # fmt: skip
    more: dict[str, object] = _against(found.beside)
    if options.tune_threshold:
        more["threshold"], found = tune_threshold(path, found)
        notes.append(f"the threshold {more['threshold']:.4f} is kept in {options.model}; the scores are with it")
    if found.prompts:
        more["prompts"] = [{"template": one.template, "accuracy": one.accuracy} for one in found.prompts]
    print_notes([*notes, *found.scores.notes])
    if options.json:
        print_json({"task": found.task, **found.scores.to_dict(), **more})
    else:
        for score in found.scores:
            print(score)
        _print_beside(found.beside)
    if options.report is not None:
        print_notes([f"the report: {write(options.report, path, found)}"])
    return 0


@dataclass
class InfoOptions:
    """What a model folder is: shape, size, tokenizer, lineage, scores. Every file is checked against its SHA-256.

    Example:
      gpt2kit info runs/mine
    """

    model: Positional[str]  # a model, run or checkpoint folder
    json: bool = False  # one JSON object
    hub: bool = False  # let MODEL be a name on the Hugging Face hub


def run_info(options: InfoOptions) -> int:
    from gpt2kit.model import files

    found = files.describe(options.model, allow_hub=options.hub)
    if options.json:
        print_json(found)
        return 0
    config, tokenizer = found["config"], found["tokenizer"]
    article = "an" if found["kind"].startswith("a") else "a"
    print(f"{found['folder']}: {article} {found['kind']} folder, {'verified' if found['verified'] else 'not verified'}")
    print_fact(
        "shape",
        f"{plural(config['n_layer'], 'layer')}, {plural(config['n_head'], 'head')}, {config['n_embd']} wide, "
        f"{plural(config['n_positions'], 'position')}: {plural(found['parameters'], 'parameter')}, "
        f"{found['bytes'] / 1e6:,.1f} MB",
    )
    if tokenizer is not None:
        size = plural(tokenizer["vocab_size"], "token")
        print_fact("tokenizer", f"{tokenizer['kind']}, {size}, {tokenizer['hash'][:16]}")
    for name, value in {**found["lineage"], "scores": found["scores"]}.items():
        if value not in (None, "", [], {}) and name not in ("tokenizer", "parameters"):
            print_fact(name, value)
    print_notes(found["notes"])
    return 0


@dataclass
class DoctorOptions:
    """Prove on this machine that the model is GPT-2, that decoding is exact, that files are whole; measure its speed.

    Exits with 1 where a check fails.

    Examples:
      gpt2kit doctor
      gpt2kit doctor runs/mine
    """

    model: Positional[str | None] = None  # a model folder to check too
    json: bool = False  # one JSON object a check
    hub: bool = False  # let MODEL be a name on the Hugging Face hub


def run_doctor(options: DoctorOptions) -> int:
    from gpt2kit.doctor import run_checks
    from gpt2kit.model import files

    folder = options.model if options.model is None or not options.hub else files.resolve(options.model, True)[0]
    failed = 0
    for result in run_checks(folder):
        failed += not result.ok
        if options.json:
            print_json(dataclasses.asdict(result))
            continue
        print(f"{'ok  ' if result.ok else 'FAIL'}  {result.name}: {result.detail}", flush=True)
        if not result.ok and result.hint:
            print(f"      {result.hint}")
    if not options.json:
        print(f"\n{plural(failed, 'check')} failed" if failed else "\neverything holds")
    return 1 if failed else 0


VERBS = {
    "evaluate": Verb(EvaluateOptions, run_evaluate),
    "info": Verb(InfoOptions, run_info),
    "doctor": Verb(DoctorOptions, run_doctor),
}
