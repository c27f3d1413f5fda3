"""`gpt2kit serve` and `gpt2kit key`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from gpt2kit.serve.keys import SCOPES, Scope, new_key
from gpt2kit.serve.settings import FIELDS, PREFIX, ServeSettings, read_settings
from gpt2kit.verbs import Verb
from gpt2kit.verbs.generating import tell_stages
from gpt2kit.verbs.output import print_notes

SERVE_HELP = f"""\
Serve models to OpenAI's clients, with a page to try them on at the same address.

Every flag can also be {PREFIX}<NAME> in the environment (lists with commas), or a line of the file that --config names.
A flag wins over the environment, that over the file. Ctrl-C lets running requests finish; a second one does not.

Examples:
  gpt2kit serve runs/mine
  gpt2kit serve small=runs/a large=runs/b --preload large --port 9000
  gpt2kit serve runs/base --adapters reviews=runs/reviews/adapter poems=runs/poems/adapter
  gpt2kit serve runs/mine --host 0.0.0.0 --api-key-file keys.json --allowed-hosts models.example.org
"""


def _serve_options() -> type:
    """A flag for each field of ServeSettings; None or empty where it was not given."""
    found: list[tuple[str, Any, Any]] = []
    defaults = {field.name: field.default for field in dataclasses.fields(ServeSettings)}
    for name, (kind, flag) in FIELDS.items():
        default = defaults[name]
        hint = "" if default in (None, ()) else f"(default: {default})"
        about = arg(help=flag.help, help_behavior_hint=hint)
        if name == "models":
            found.append((name, Positional[Annotated[list[str], about]], _empty_list()))
        elif name == "adapters":  # several behind one flag, too
            found.append((name, UseAppendAction[Annotated[list[list[str]], about]], _empty_list()))
        elif kind == tuple[str, ...]:
            found.append((name, UseAppendAction[Annotated[list[str], about]], _empty_list()))
        elif kind is bool:
            found.append((name, Annotated[bool, about], False))
        else:
            found.append((name, Annotated[kind | None, about], None))
    return dataclasses.make_dataclass("ServeOptions", found)


def _empty_list() -> Any:
    return dataclasses.field(default_factory=list)


def run_serve(options: Any) -> int:
    from gpt2kit.serve.server import serve

    given = {
        name: value for name, value in vars(options).items() if not (value is None or value is False or value == [])
    }
    if "adapters" in given:
        given["adapters"] = [one for group in given["adapters"] for one in group]
    settings = read_settings(given)
    if settings.insecure and settings.api_key_file is None:
        print_notes(["--insecure: whoever reaches this address may use the models, no key is asked for"])

    def say(address: str) -> None:
        print(f"serving {', '.join([*settings.folders, *settings.laid])} at {address}", flush=True)

    return serve(settings, say, tell_stages())


@dataclass
class KeyOptions:
    """Make an API key for gpt2kit serve --api-key-file, and print it. The file keeps a hash: it is shown this once.

    Examples:
      gpt2kit key shop --file keys.json
      gpt2kit key prometheus --file keys.json --scopes metrics
      gpt2kit key trial --file keys.json --scopes generate --scopes models --tokens-per-minute 20000
    """

    name: Positional[str]  # whose key it is; logs say it
    file: str  # the key file; it is made if it is not there
    # what the key may do, one each time; not given: everything
    scopes: UseAppendAction[list[Scope]] = dataclasses.field(default_factory=list)
    requests_per_minute: int | None = None  # not given: no limit
    tokens_per_minute: int | None = None  # of prompts and completions; not given: no limit
    concurrency: int | None = None  # requests at a time; not given: no limit


def run_key(options: KeyOptions) -> int:
    secret = new_key(
        options.file, options.name, options.scopes or SCOPES, options.requests_per_minute, options.tokens_per_minute,
        options.concurrency,
    )  # fmt: skip
    print(secret, flush=True)
    print_notes([f"{options.file} keeps its hash alone: this is the one time that the key can be read"])
    return 0


VERBS = {"serve": Verb(_serve_options(), run_serve, SERVE_HELP), "key": Verb(KeyOptions, run_key)}
