"""The command line: parse, call a recipe, print. Verbs import what they need when they run.

Exit codes: 0 done, 1 a check failed (doctor), 2 something for the user to put right, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional, UseAppendAction

from gpt2kit.errors import UserError, unknown

if TYPE_CHECKING:
    from gpt2kit.recipes.options import TrainOptions

USAGE = """\
gpt2kit: GPT-2, whole, on the machine you have.

  gpt2kit demo                                       train a small GPT-2 in about two minutes and see it write
  gpt2kit train my.txt --out runs/mine --minutes 10  train on your own text, as well as the time allows
  gpt2kit generate runs/mine "Once"                  write on from a prompt
  gpt2kit evaluate runs/mine other.txt               perplexity, bits per byte and per character
  gpt2kit info runs/mine                             what a model is, where it comes from, its scores
  gpt2kit tokenizer train|info                       learn a vocabulary; look at how it cuts text
  gpt2kit pack text/ --out packed --tokenizer M      tokenise once, train many times
  gpt2kit doctor [MODEL]                             prove that all of this is right on this machine

  gpt2kit VERB --help                                every flag, with an example
  gpt2kit --version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _speak_utf8()
    try:
        code = _run(arguments[0] if arguments else "help", arguments[1:])
        sys.stdout.flush()  # here, so that a reader who has gone is met below and not at the interpreter's exit
        return code
    except UserError as error:
        _print_error(error)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print_error(error: UserError) -> None:
    """On stderr: what happened, and what to do next. Not in display.py, which imports torch."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.hint is not None:
        console.print(Text.assemble(("hint:  ", "bold"), error.hint))


def _speak_utf8() -> None:
    """Chinese goes through a pipe on every platform: Windows and the C locale would pick a narrower encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from gpt2kit import __version__

        print(f"gpt2kit {__version__}")
        return 0
    import tyro

    name = verb
    if verb == "tokenizer":
        name = f"tokenizer {arguments.pop(0)}" if arguments and not arguments[0].startswith("-") else "tokenizer"
        if name == "tokenizer":
            print(_TOKENIZER_USAGE, end="")
            return 0 if {"-h", "--help"} & set(arguments) else 2
    if name not in VERBS:
        raise unknown("verb", name, VERBS)
    options, run = VERBS[name]()
    for flag in ("--validation", "--special"):  # tyro would silently keep the last one's values only
        if sum(word == flag or word.startswith(f"{flag}=") for word in arguments) > 1:
            raise UserError(f"{flag} is given twice", hint=f"give it once, with all its values: {flag} A B")
    description = _TRAIN_HELP if name == "train" else inspect.cleandoc(options.__doc__ or "")
    parsed: Any = tyro.cli(
        options, prog=f"gpt2kit {name}", args=arguments, description=description,
        config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip
    return run(parsed)


_TOKENIZER_USAGE = """\
gpt2kit tokenizer train my.txt --out vocab --vocab-size 8000    learn a vocabulary
gpt2kit tokenizer info vocab "How is this cut? 这句话呢？"        its size, its hash, and how it cuts a text
"""


# ---------------------------------------------------------------- training


_TRAIN_HELP = """\
Train a GPT-2 on text, into a run folder: the model, its checkpoints, metrics, samples and a loss curve.

Give --minutes for the best model in that time, or --preset, or a shape flag by flag. What is not given is chosen,
and said in the plan before the start. Ctrl-C writes a checkpoint and prints the command that goes on from it.

Examples:
  gpt2kit train my.txt --out runs/mine --minutes 10
  gpt2kit train corpus/ --out runs/mini --preset mini --steps 2000
  gpt2kit train more.txt --out runs/tuned --from runs/mine --minutes 5
  gpt2kit train --resume runs/mine
"""


def _train() -> tuple[type, Callable[[Any], int]]:
    from gpt2kit.recipes.options import TrainOptions

    return TrainOptions, run_training


def run_training(options: TrainOptions) -> int:
    from gpt2kit.display import TrainingDisplay
    from gpt2kit.recipes import pretrain
    from gpt2kit.recipes.events import Finished, Note

    with _signals() as signals, TrainingDisplay() as display:
        if options.resume is not None:
            events = pretrain.resume(options.resume, signals.asked)
        else:
            events = pretrain.start(options, signals.asked, display.packing)
        unfinished = False
        for event in events:
            signals.training = signals.training or not isinstance(event, Note)
            unfinished = isinstance(event, Finished) and event.resume is not None
            display.show(event)
    return 128 + signals.received[0] if unfinished else 0


@dataclass
class _Signals:
    """SIGINT and SIGTERM. While training they are kept until the step ends; before it there is nothing to save."""

    received: list[int] = dataclasses.field(default_factory=list)
    training: bool = False

    def asked(self) -> bool:
        return bool(self.received)

    def note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and (self.received or not self.training):
            raise KeyboardInterrupt
        if not self.training:
            raise SystemExit(128 + number)
        self.received.append(number)
        # straight to the descriptor: the interrupted step may be inside a write to the same Python stream
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Collect signals, so that a step can end and a checkpoint be written; a second SIGINT ends at once."""
    signals = _Signals()
    before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class DemoOptions:
    """Train a small GPT-2 from scratch on Python's own documentation, then write with it.

    Example:
      gpt2kit demo
    """

    out: str = "runs/demo"  # the run folder; an earlier demo there is replaced
    seconds: float = 90.0  # of training
    seed: int = 0


def _demo() -> tuple[type, Callable[[Any], int]]:
    from gpt2kit.recipes.demo import demo

    def run(options: DemoOptions) -> int:
        return demo(options.out, options.seconds, options.seed, run_training)

    return DemoOptions, run


# ---------------------------------------------------------------- generating


@dataclass
class GenerateOptions:
    """Write on from a prompt. Text appears as it is chosen.

    A prompt that looks like a flag goes last, behind --.

    Examples:
      gpt2kit generate runs/mine "Once upon a time" --max-tokens 200
      gpt2kit generate runs/mine "春" --temperature 0.7 --n 3 --seed 1 --json
      gpt2kit generate runs/mine --stop "。" --stop "！" -- "--help 的意思是"
    """

    model: Positional[str]  # a model, run or checkpoint folder
    prompt: Positional[str] = ""  # the text to go on from; - reads standard input
    max_tokens: int = 128  # at most so many new tokens
    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 0  # 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.0  # drop tokens below this share of the likeliest one's probability; 0: off
    typical_p: float = 1.0  # keep the most typical tokens up to this probability; 1: off
    repetition_penalty: float = 1.0  # divides the logits of tokens that occurred; 1: off
    presence_penalty: float = 0.0  # taken off the logit of each token that occurred
    frequency_penalty: float = 0.0  # taken off for each time that it occurred
    no_repeat_ngram: int = 0  # no run of so many tokens occurs twice; 0: off
    num_beams: int = 1  # beam search with so many beams; 1: off
    length_penalty: float = 1.0  # of beam search; above 1 favours longer texts
    seed: int | None = None  # same seed, same text; None: a new one each time, which --json reports
    n: int = 1  # completions
    # ends the text; one string each time: --stop A --stop B
    stop: UseAppendAction[list[str]] = dataclasses.field(default_factory=list)
    logprobs: int | None = None  # alternatives a token, with --json
    json: bool = False  # one JSON object a completion
    reference: bool = False  # the model file's own decoder; the only one so far
    hub: bool = False  # let MODEL be a name on the Hugging Face hub


def _generate() -> tuple[type, Callable[[Any], int]]:
    return GenerateOptions, run_generate


def run_generate(options: GenerateOptions) -> int:
    from gpt2kit.model import folder
    from gpt2kit.model.generate import generate, stream
    from gpt2kit.model.sampling import SamplingSettings

    notes: list[str] = []
    model, tokenizer = folder.load(options.model, allow_hub=options.hub, notes=notes)
    _print_notes(notes)
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer, so it cannot read a prompt")
    prompt = _prompt(options.prompt)
    own = {f.name for f in dataclasses.fields(SamplingSettings)}
    values = {k: v for k, v in dataclasses.asdict(options).items() if k in own}
    settings = SamplingSettings(**values)
    ids = tokenizer.encode(prompt)
    if options.json or settings.n > 1 or settings.num_beams > 1:
        for completion in generate(model, [ids], settings, tokenizer=tokenizer)[0]:
            if options.json:
                print(json.dumps({"prompt": prompt, **dataclasses.asdict(completion)}, ensure_ascii=False))
            else:
                print(f"{prompt}{completion.text}\n---")
        return 0
    print(prompt, end="", flush=True)
    slid = False
    for event in stream(model, ids, settings, tokenizer=tokenizer):
        print(event.text, end="", flush=True)
        slid |= event.window_slid
    print()
    if slid:
        _print_notes([f"the text outgrew the model's {model.config.n_positions} positions: the window slid on"])
    return 0


def _prompt(given: str) -> str:
    """The prompt, from standard input where it is `-`; it must be text."""
    try:
        return sys.stdin.buffer.read().decode("utf-8") if given == "-" else given.encode("utf-8").decode("utf-8")
    except UnicodeError:
        raise UserError("the prompt is not UTF-8 text", hint="convert it: iconv -f GB18030 -t UTF-8") from None


# ---------------------------------------------------------------- evaluating


@dataclass
class EvaluateOptions:
    """Perplexity per token, bits per byte and per character on a text, with the protocol beside the figures.

    Example:
      gpt2kit evaluate runs/mine other.txt --context 256 --stride 128
    """

    model: Positional[str]  # a model, run or checkpoint folder
    data: Positional[list[str]]  # text files, folders, a packed folder (its validation split), or - for standard input
    context: int | None = None  # tokens in a window; None: the model's
    stride: int | None = None  # tokens from window to window; None: half the context
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet
    json: bool = False  # one JSON object with every figure


def _evaluate() -> tuple[type, Callable[[Any], int]]:
    return EvaluateOptions, run_evaluate


def run_evaluate(options: EvaluateOptions) -> int:
    from gpt2kit.recipes.evaluate import evaluate_files

    if not options.data:
        raise UserError("nothing to evaluate on", hint=f"gpt2kit evaluate {options.model} other.txt")
    notes: list[str] = []
    result = evaluate_files(options.model, options.data, options.context, options.stride, options.field, notes.append)
    _print_notes(notes)
    if options.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return 0
    print(f"perplexity          {result.perplexity:.4f} per {result.unit}")
    print(f"bits per byte       {result.bits_per_byte:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    print(f"loss                {result.loss:.4f} nats per {result.unit}")
    print(f"on                  {result.tokens:,} tokens, {result.bytes:,} bytes, {result.characters:,} characters")
    print(f"context {result.context}, stride {result.stride}, tokenizer {result.tokenizer_hash[:16]}")
    print(f"protocol: {result.protocol}")
    return 0


# ---------------------------------------------------------------- looking


@dataclass
class InfoOptions:
    """What a model folder is: shape, size, tokenizer, lineage, scores. Every file is checked against its SHA-256.

    Example:
      gpt2kit info runs/mine
    """

    model: Positional[str]  # a model, run or checkpoint folder
    json: bool = False  # one JSON object
    hub: bool = False  # let MODEL be a name on the Hugging Face hub


def _info() -> tuple[type, Callable[[Any], int]]:
    return InfoOptions, run_info


def run_info(options: InfoOptions) -> int:
    from gpt2kit.model import folder

    found = folder.describe(options.model, allow_hub=options.hub)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    config, tokenizer = found["config"], found["tokenizer"]
    print(f"{found['folder']}: a {found['kind']} folder, {'verified' if found['verified'] else 'not verified'}")
    shape = (
        f"{config['n_layer']} layers, {config['n_head']} heads, {config['n_embd']} wide, "
        f"{config['n_positions']} positions"
    )
    print(f"shape       {shape}: {found['parameters']:,} parameters, {found['bytes'] / 1e6:,.1f} MB")
    if tokenizer is not None:
        print(f"tokenizer   {tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens, {tokenizer['hash'][:16]}")
    for name, value in {**found["lineage"], "scores": found["scores"]}.items():
        if value and name not in ("tokenizer", "parameters"):
            print(f"{name:<11} {_plain(value)}")
    _print_notes(found["notes"])
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


def _doctor() -> tuple[type, Callable[[Any], int]]:
    return DoctorOptions, run_doctor


def run_doctor(options: DoctorOptions) -> int:
    from gpt2kit.doctor import run_checks

    failed = 0
    for result in run_checks(options.model):
        failed += not result.ok
        if options.json:
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False), flush=True)
            continue
        print(f"{'ok  ' if result.ok else 'FAIL'}  {result.name}: {result.detail}", flush=True)
        if not result.ok and result.hint:
            print(f"      {result.hint}")
    if not options.json:
        print("\neverything holds" if not failed else f"\n{failed} {'check' if failed == 1 else 'checks'} failed")
    return 1 if failed else 0


# ---------------------------------------------------------------- data


@dataclass
class TokenizerTrainOptions:
    """Learn a vocabulary from text.

    Example:
      gpt2kit tokenizer train my.txt --out vocab --vocab-size 8000
    """

    data: Positional[list[str]]  # text files and folders
    out: str  # the folder to make
    kind: str = "bpe"  # bpe, char or word
    vocab_size: int | None = None  # tokens; None: GPT-2's for bpe, all characters for char
    segmenter: str = "unicode"  # of the word kind; jieba for Chinese
    special: list[str] = dataclasses.field(default_factory=list)  # more special tokens, such as <|mask|>
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet


def _tokenizer_train() -> tuple[type, Callable[[Any], int]]:
    def run(options: TokenizerTrainOptions) -> int:
        from gpt2kit.recipes.data import learn

        tokenizer = learn(
            options.data, options.field, options.kind, options.vocab_size, options.special, options.segmenter
        )
        tokenizer.save(options.out)
        print(f"{options.out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens, {tokenizer.hash[:16]}")
        return 0

    return TokenizerTrainOptions, run


@dataclass
class TokenizerInfoOptions:
    """What a vocabulary is, and how it cuts a text.

    Example:
      gpt2kit tokenizer info vocab "How is this cut? 这句话呢？"
    """

    folder: Positional[str]  # a folder or file that has one
    text: Positional[str | None] = None  # to cut
    json: bool = False  # one JSON object


def _tokenizer_info() -> tuple[type, Callable[[Any], int]]:
    def run(options: TokenizerInfoOptions) -> int:
        from gpt2kit.text.tokenizer import Tokenizer, measure

        tokenizer = Tokenizer.load(options.folder)
        found = tokenizer.describe()
        if options.text is not None:
            counts = measure(tokenizer, [options.text])
            found["pieces"] = [[id_, piece] for id_, piece in tokenizer.pieces(options.text)]
            found["tokens_per_character"] = counts.tokens_per_character
            found["tokens_per_byte"] = counts.tokens_per_byte
        if options.json:
            print(json.dumps(found, ensure_ascii=False))
            return 0
        for name, value in found.items():
            if name != "pieces":
                print(f"{name:<21} {_plain(value)}")
        if "pieces" in found:
            print("cut                   " + "|".join(str(piece) for _, piece in found["pieces"]))
            print("ids                   " + " ".join(str(id_) for id_, _ in found["pieces"]))
        return 0

    return TokenizerInfoOptions, run


@dataclass
class PackOptions:
    """Tokenise text once into memory-mapped shards, to train on many times.

    Example:
      gpt2kit pack corpus/ --out packed --tokenizer runs/mine
    """

    data: Positional[list[str]]  # text files, folders, or - for standard input
    out: str  # the folder to make
    tokenizer: str | None = None  # a folder that has one, or bpe, char, word to learn one
    vocab_size: int | None = None  # of a vocabulary that is learned here
    field: str | None = None  # the text field of .jsonl, .csv, .tsv and .parquet
    validation: list[str] = dataclasses.field(default_factory=list)  # files that become the validation split
    validation_fraction: float = 0.05  # of the documents, where no --validation is given


def _pack() -> tuple[type, Callable[[Any], int]]:
    def run(options: PackOptions) -> int:
        from gpt2kit.data.pack import pack
        from gpt2kit.recipes.data import describe, pick_tokenizer

        notes: list[str] = []
        tokenizer = pick_tokenizer(options.data, options.field, options.tokenizer, options.vocab_size, (), notes.append)
        report = pack(
            options.data, tokenizer, options.out, field=options.field,
            validation_fraction=options.validation_fraction, validation=options.validation or None,
        )  # fmt: skip
        _print_notes([*notes, *report.notes])
        print(f"{options.out}: {describe(report)}")
        return 0

    return PackOptions, run


def _plain(value: object) -> str:
    return str(value) if isinstance(value, (str, int, float)) else json.dumps(value, ensure_ascii=False)


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


VERBS: dict[str, Callable[[], tuple[type, Callable[[Any], int]]]] = {
    "demo": _demo,
    "train": _train,
    "generate": _generate,
    "evaluate": _evaluate,
    "info": _info,
    "doctor": _doctor,
    "tokenizer train": _tokenizer_train,
    "tokenizer info": _tokenizer_info,
    "pack": _pack,
}

if __name__ == "__main__":
    sys.exit(main())
