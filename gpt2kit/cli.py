"""The command line: find the verb, parse its flags, run it, turn errors into messages.

Exit codes: 0 done, 1 a check failed (doctor), 2 something for the user to put right, 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import UserError, unknown
from gpt2kit.runtime import calm_spinning

if TYPE_CHECKING:
    from gpt2kit.verbs import Verb

USAGE = """\
gpt2kit: GPT-2, whole, on the machine you have.

  gpt2kit demo                                       train a small GPT-2 in about two minutes and see it write
  gpt2kit train my.txt --out runs/mine --minutes 10  train on your own text, as well as the time allows
  gpt2kit generate runs/mine "Once"                  write on from a prompt
  gpt2kit evaluate runs/mine other.txt               perplexity, bits per byte and per character
  gpt2kit finetune DATA --from runs/mine --task T    tune it: classify, translate, summarise, correct, chat, answer …
  gpt2kit run TASK runs/tuned "text"                 ask the tuned model
  gpt2kit search finetune|train … --space S          look for the settings with the lowest validation loss
  gpt2kit merge ADAPTER --from runs/mine --out M     an adapter's weights (--method lora, or peft's own) into its base
  gpt2kit data check DATA --task T                   what labelled data holds, and what is wrong with it
  gpt2kit info runs/mine                             what a model is, where it comes from, its scores
  gpt2kit tokenizer train|info|extend                learn a vocabulary; see how it cuts text; add tokens to a model's
  gpt2kit pack text/ --out packed --tokenizer M      tokenise once, train many times
  gpt2kit serve runs/mine                            an OpenAI-compatible server and its page, on this machine
  gpt2kit key NAME --file keys.json                  a key for the server, shown once
  gpt2kit doctor [MODEL]                             prove that all of this is right on this machine

  gpt2kit VERB --help                                every flag, with an example
  gpt2kit --version
"""
GROUPS = {
    "tokenizer": """\
gpt2kit tokenizer train my.txt --out vocab --vocab-size 8000    learn a vocabulary
gpt2kit tokenizer info vocab "How is this cut? 这句话呢？"        its size, its hash, and how it cuts a text
gpt2kit tokenizer extend runs/mine zh.txt --out runs/zh         tokens of your text for a model that has few of them
""",
    "search": """\
gpt2kit search finetune DATA --from runs/mine --task T --out runs/search --space "learning_rate=1e-5..1e-3:log"
gpt2kit search train my.txt --steps 300 --out runs/search --space "learning_rate=1e-3..1e-2:log, n_layer=2|4"
""",
    "data": """\
gpt2kit data check reviews.tsv --task classify    what labelled data holds, and what is wrong with it
""",
}
VERBS = {  # -> the module of verbs/ that has it, imported when it runs
    "demo": "training",
    "train": "training",
    "generate": "generating",
    "evaluate": "looking",
    "info": "looking",
    "doctor": "looking",
    "tokenizer train": "data",
    "tokenizer info": "data",
    "tokenizer extend": "data",
    "pack": "data",
    "serve": "serving",
    "key": "serving",
    "finetune": "tuning",
    "run": "tuning",
    "merge": "adapters",
    "data check": "tuning",
    "search finetune": "searching",
    "search train": "searching",
}
LISTS = ("--validation", "--special", "--candidates", "--replay", "--remember", "--probe")  # take several values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    calm_spinning()
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


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if verb == "--version":
        from gpt2kit import __version__

        print(f"gpt2kit {__version__}")
        return 0
    if verb in GROUPS:
        if not arguments or arguments[0].startswith("-"):
            print(GROUPS[verb], end="")
            return 0 if {"-h", "--help"} & set(arguments) else 2
        verb = f"{verb} {arguments.pop(0)}"
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    found: Verb = importlib.import_module(f"gpt2kit.verbs.{VERBS[verb]}").VERBS[verb]
    try:
        return found.run(_parse(verb, found, arguments))
    except UserError as error:
        raise _in_flags(error, found.options) from error


def _parse(name: str, verb: Verb, arguments: list[str]) -> Any:
    """The verb's options; help and wrong flags are answered here, and end the process."""
    import tyro

    for flag in LISTS:  # tyro would silently keep the last one's values only
        if sum(word == flag or word.startswith(f"{flag}=") for word in arguments) > 1:
            raise UserError(f"{flag} is given twice", hint=f"give it once, with all its values: {flag} A B")
    return tyro.cli(
        verb.options, prog=f"gpt2kit {name}", args=arguments,
        description=inspect.cleandoc(verb.options.__doc__ or "") if verb.help is None else verb.help,
        config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName),
    )  # fmt: skip


def _in_flags(error: UserError, options: type) -> UserError:
    """The same in the shell's words: `temperature=0` is `--temperature 0`, `n_embd 33 must` is `--n-embd 33 must`."""
    names = [field.name for field in dataclasses.fields(options)]
    message, hint = error.message, error.hint
    begun = re.match(rf"({'|'.join(names)}) (must|exceeds|-?\d)", message)
    if begun is not None:
        known = [begun[1], *(name for name in names if "_" in name)]
        message = re.sub(rf"\b({'|'.join(known)})\b", lambda name: _flag(name[0]), message)
    if hint is not None:
        given = re.compile(rf"\x22[^\x22]*\x22|(?<![\w-])({'|'.join(names)})=(?=\S)")  # but for what is quoted
        hint = given.sub(lambda name: name[0] if name[1] is None else f"{_flag(name[1])} ", hint)
    return UserError(message, hint)


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _print_error(error: UserError) -> None:
    """On stderr: what happened, and what to do next."""
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


if __name__ == "__main__":
    sys.exit(main())
