"""`gpt2kit generate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional, UseAppendAction

from gpt2kit.errors import UserError
from gpt2kit.verbs import Verb
from gpt2kit.verbs.output import print_json, print_notes

if TYPE_CHECKING:
    from gpt2kit.model.completion import Completion, Event
    from gpt2kit.model.sampling import SamplingSettings
    from gpt2kit.text.tokenizer import Tokenizer

STAGES = {  # what takes seconds the first time, as the engine names it
    "compiling": "first run on this machine: compiling the engine, some ten seconds",
    **dict.fromkeys(("sampling", "smoothing", "rounding"), "first run of this model: making its int8 weights"),
}
TEMPERATURE = 0.8  # where neither a temperature nor beam search is asked for


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
    temperature: float | None = None  # 0: always the likeliest token; None: 0.8, and 0 with --num-beams
    top_k: int = 0  # 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.0  # drop tokens below this share of the likeliest one's probability; 0: off
    typical_p: float = 1.0  # keep the most typical tokens up to this probability; 1: off
    repetition_penalty: float = 1.0  # divides the logits of tokens that occurred; 1: off
    presence_penalty: float = 0.0  # taken off the logit of each token that occurred
    frequency_penalty: float = 0.0  # taken off for each time that it occurred
    no_repeat_ngram: int = 0  # no run of so many tokens occurs twice; 0: off
    num_beams: int = 1  # beam search with so many beams, at temperature 0; 1: off
    length_penalty: float = 1.0  # of beam search; above 1 favours longer texts
    seed: int | None = None  # same seed, same text; None: a new one each time, which --json reports
    n: int = 1  # completions
    # ends the text; one string each time: --stop A --stop B
    stop: UseAppendAction[list[str]] = dataclasses.field(default_factory=list)
    allow_special: bool = False  # special tokens in the prompt, such as <|endoftext|>, are not ordinary text
    logprobs: int | None = None  # alternatives a token, with --json
    json: bool = False  # one JSON object a completion
    # of the engine; auto is int8 unless that costs this model over 1 % in bits
    precision: Literal["int8", "fp32", "auto"] = "auto"
    threads: int | None = None  # None: every core
    reference: bool = False  # the model file's own decoder in float32 instead of the engine: slow, and the definition
    hub: bool = False  # let MODEL be a name on the Hugging Face hub


def run_generate(options: GenerateOptions) -> int:
    from gpt2kit.model.sampling import SamplingSettings

    if options.reference and options.precision == "int8":
        raise UserError("--reference computes in float32", hint="leave out one of --reference and --precision")
    if options.logprobs is not None and not options.json:
        raise UserError("log-probabilities are shown by --json alone", hint="add --json")
    prompt = _prompt(options.prompt)
    own = {f.name for f in dataclasses.fields(SamplingSettings)}
    values = {k: v for k, v in dataclasses.asdict(options).items() if k in own}
    if options.temperature is None:
        values["temperature"] = TEMPERATURE if options.num_beams == 1 else 0.0
    settings = SamplingSettings(**values)
    one_stream = not (options.json or settings.n > 1 or settings.num_beams > 1)
    decode = _with_reference if options.reference else _with_engine
    completions, events, n_positions = decode(options, prompt, settings, one_stream)
    for completion in completions:
        if options.json:
            print_json({"prompt": prompt, **dataclasses.asdict(completion)})
        else:
            print(f"{prompt}{completion.text}\n---")
    slid = False
    for event in events:
        print(event.text, end="", flush=True)
        slid |= event.window_slid
    if one_stream:
        print()
    if slid:
        print_notes([f"the text outgrew the model's {n_positions} positions: the window slid on"])
    return 0


def _with_engine(
    options: GenerateOptions, prompt: str, settings: SamplingSettings, one_stream: bool
) -> tuple[Iterable[Completion], Iterable[Event], int]:
    """Completions, or the events of one, and the model's positions."""
    from gpt2kit.engine import Engine

    engine = Engine.load(
        options.model, options.precision, options.threads, max_batch=min(max(settings.n, settings.num_beams), 32),
        on_progress=tell_stages(), allow_hub=options.hub,
    )  # fmt: skip
    print_notes(engine.notes)
    tokenizer = _need_tokenizer(options, engine.tokenizer)
    ids = tokenizer.encode(prompt, "all" if options.allow_special else frozenset())
    if not one_stream:
        found = engine.generate([ids], settings)[0]
        return (found if isinstance(found, list) else [found]), (), engine.config.n_positions
    print(prompt, end="", flush=True)
    return (), engine.stream(ids, settings), engine.config.n_positions


def _with_reference(
    options: GenerateOptions, prompt: str, settings: SamplingSettings, one_stream: bool
) -> tuple[Iterable[Completion], Iterable[Event], int]:
    """The same by the model file."""
    from gpt2kit import runtime
    from gpt2kit.model import folder
    from gpt2kit.model.generate import generate, stream

    runtime.set_threads(options.threads)
    notes: list[str] = []
    model, tokenizer = folder.load(options.model, allow_hub=options.hub, notes=notes)
    print_notes(notes)
    tokenizer = _need_tokenizer(options, tokenizer)
    ids = tokenizer.encode(prompt, "all" if options.allow_special else frozenset())
    if not one_stream:
        return generate(model, [ids], settings, tokenizer=tokenizer)[0], (), model.config.n_positions
    print(prompt, end="", flush=True)
    return (), stream(model, ids, settings, tokenizer=tokenizer), model.config.n_positions


def tell_stages() -> Callable[[str, int, int], None]:
    """For Engine.load: say once what takes seconds the first time."""
    told: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        if stage in STAGES and STAGES[stage] not in told:
            told.add(STAGES[stage])
            print_notes([STAGES[stage]])

    return tell


def _need_tokenizer(options: GenerateOptions, tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer, so it cannot read a prompt")
    return tokenizer


def _prompt(given: str) -> str:
    """The prompt, from standard input where it is `-`; it must be text."""
    try:
        return sys.stdin.buffer.read().decode("utf-8") if given == "-" else given.encode("utf-8").decode("utf-8")
    except UnicodeError:
        raise UserError("the prompt is not UTF-8 text", hint="convert it: iconv -f GB18030 -t UTF-8") from None


VERBS = {"generate": Verb(GenerateOptions, run_generate)}
