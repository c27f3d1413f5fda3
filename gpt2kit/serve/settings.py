"""The settings of `gpt2kit serve`: one frozen dataclass, from flags, environment variables, a TOML file and defaults.

A flag wins over GPT2KIT_<NAME> in the environment, that over the config file, that over the default. No value here is a
secret: keys stay in the file that api_key_file names, hashed.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from gpt2kit.errors import UserError, unknown

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
Precision = Literal["auto", "int8", "fp32"]

PREFIX = "GPT2KIT_"
LARGEST = 1 << 62  # bytes, tokens: more is a slip of the hand
MODEL_NAME = re.compile(r"[^\s/\\\x00-\x1f\x7f]{1,128}")  # of a model: it stands in a path of the API
HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


class Flag(NamedTuple):
    """What a field's flag says in its help, and the field's bounds."""

    help: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class ServeSettings:
    """How to serve. Sizes are in bytes, times in seconds. A wrong value is a UserError that names its field."""

    models: Annotated[
        tuple[str, ...], Flag("model folders, or NAME=FOLDER; without a name, the folder's last part is the name")
    ] = ()
    adapters: Annotated[
        tuple[str, ...],
        Flag("NAME=FOLDER: an adapter over the first model, a model of its own to clients; NAME@MODEL=FOLDER: another"),
    ] = ()
    host: Annotated[str, Flag("address to listen on; beyond this machine only with --api-key-file")] = "127.0.0.1"
    port: Annotated[int, Flag("port to listen on; 0: one that is free", 0, 65535)] = 8000
    precision: Annotated[Precision, Flag("of the engine; auto is int8 unless that costs over 1 % in bits")] = "auto"
    threads: Annotated[int | None, Flag("threads of an engine; not given: every core", 1, 1024)] = None
    max_batch: Annotated[int, Flag("completions that are computed together", 1, 1024)] = 32
    cache_memory: Annotated[
        int | None, Flag("bytes for an engine's keys and values; not given: what a full batch takes", 1, LARGEST)
    ] = None
    model_memory: Annotated[
        int | None,
        Flag("bytes for all loaded models, the one used least recently goes; not given: no limit", 1, LARGEST),
    ] = None
    preload: Annotated[tuple[str, ...], Flag("name of a model to load at the start; not given: the first")] = ()
    api_key_file: Annotated[str | None, Flag("the API keys, made by gpt2kit key; not given: none is asked for")] = None
    insecure: Annotated[bool, Flag("listen beyond this machine without keys")] = False
    max_queued: Annotated[int, Flag("requests that may wait for a place; more are answered 503", 0, 1_000_000)] = 256
    shutdown_timeout: Annotated[float, Flag("seconds that running requests get after SIGTERM", 0, 86400)] = 30.0
    max_connections: Annotated[int, Flag("open connections; more are answered 503", 1, 1_000_000)] = 1024
    body_limit: Annotated[int, Flag("bytes of a request's body", 1, 1 << 30)] = 1 << 20
    head_limit: Annotated[int, Flag("bytes of a request's line and headers", 256, 1 << 20)] = 16384
    head_timeout: Annotated[float, Flag("seconds in which a request's head must arrive", 0.01, 86400)] = 10.0
    body_rate: Annotated[int, Flag("bytes/s that a body must keep up after body_grace; 0: off", 0, 1 << 30)] = 1024
    body_grace: Annotated[float, Flag("seconds of a body before body_rate counts", 0, 86400)] = 10.0
    keep_alive: Annotated[float, Flag("seconds that a connection may idle between requests", 0.01, 86400)] = 75.0
    json_depth: Annotated[int, Flag("levels of nesting in a body", 1, 256)] = 16
    max_list: Annotated[int, Flag("entries of a list in a body", 1, 1_000_000)] = 2048
    max_stop: Annotated[int, Flag("stop strings of a request", 0, 1024)] = 16
    max_n: Annotated[int, Flag("completions of a prompt", 1, 1024)] = 16
    max_tokens_total: Annotated[
        int,
        Flag(
            "tokens that a request may ask for: prompts x n x max_tokens, and with echo the prompts n times", 1, LARGEST
        ),
    ] = 65536
    response_cache: Annotated[int, Flag("bytes for the answers of deterministic requests; 0: off", 0, LARGEST)] = 0
    allowed_hosts: Annotated[
        tuple[str, ...], Flag("host name that requests may be addressed to, besides --host and this machine's loopback")
    ] = ()
    log_level: Annotated[LogLevel, Flag("the least severe messages that are logged")] = "info"
    config: Annotated[str | None, Flag("TOML file of these settings, by their names with underscores")] = None

    def __post_init__(self) -> None:
        for name in FIELDS:
            object.__setattr__(self, name, _check(name, getattr(self, name)))
        if len(self.folders) < len(self.models):
            names = ", ".join(_split(model)[0] for model in self.models)
            raise UserError(f"two models have one name: {names}", hint="give one of them another name: NAME=FOLDER")
        self._check_adapters()
        for name in self.preload:
            if name not in self.folders:
                raise unknown("model in preload", name, self.folders)

    @property
    def folders(self) -> dict[str, str]:
        """Names of models and their folders, in the order given."""
        return dict(_split(model) for model in self.models)

    @property
    def laid(self) -> dict[str, tuple[str, str]]:
        """Names of adapters: the model that each lies over, and its folder."""
        found = {}
        for name, folder in map(_split, self.adapters):
            before, at, base = name.rpartition("@")
            found[before if at else name] = base if at else next(iter(self.folders), ""), folder
        return found

    def _check_adapters(self) -> None:
        laid, folders = self.laid, self.folders
        if len(laid) < len(self.adapters) or laid.keys() & folders.keys():
            names = ", ".join([*folders, *(_split(one)[0] for one in self.adapters)])
            raise UserError(f"two models or adapters have one name: {names}", hint="give one another: NAME=FOLDER")
        for name, (base, _) in laid.items():
            if not MODEL_NAME.fullmatch(name):
                raise UserError(f"{name!r} cannot be an adapter's name", hint="give it one: NAME=FOLDER")
            if base not in folders and folders:
                raise unknown(f"model below adapter {name!r}", base, folders)

    @property
    def first_loaded(self) -> tuple[str, ...]:
        """The names to load at the start."""
        return self.preload or tuple(self.folders)[:1]


def _fields() -> dict[str, tuple[Any, Flag]]:
    hints = get_type_hints(ServeSettings, include_extras=True)
    return {name: (get_args(hint)[0], get_args(hint)[1]) for name, hint in hints.items()}


FIELDS = _fields()  # name -> type, flag


def is_loopback(host: str) -> bool:
    """Whether this host name or address, without a port or brackets, means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------- checks


def _check(name: str, value: Any) -> Any:
    """The value in the field's type and bounds; a whole number serves as a float, a list as a tuple."""
    kind, flag = FIELDS[name]
    choices = get_args(kind)
    if value is None and type(None) in choices:
        return None
    if kind == tuple[str, ...]:
        return _check_list(name, value)
    if get_origin(kind) is Literal:
        if value not in choices:
            raise unknown(name, str(value), choices)
        return value
    wanted = _plain_type(kind)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise UserError(f"{name} must be {WORDS[wanted]}, got {value!r}")
    if flag.least is not None and flag.most is not None and not flag.least <= value <= flag.most:  # NaN is in no range
        raise UserError(f"{name} must be from {flag.least:,} to {flag.most:,}, got {value:,}")
    if wanted is str and not value:
        raise UserError(f"{name} must not be empty")
    if name == "host":
        _check_host(name, value)
    return value


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _plain_type(kind: Any) -> Any:
    """bool, int, float or str, also where None may stand for it."""
    return next(one for one in WORDS if one is kind or one in get_args(kind))


def _check_list(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
        raise UserError(f"{name} must be a list of texts, got {value!r}")
    for one in value:
        if name in ("models", "adapters") and not (MODEL_NAME.fullmatch(_split(one)[0]) and _split(one)[1]):
            raise UserError(
                f"{'a model' if name == 'models' else 'an adapter'} is a folder or NAME=FOLDER, got {one!r}",
                hint="a name has no blanks, slashes or control characters; give the folder one: NAME=FOLDER",
            )
        if name == "allowed_hosts":
            _check_host(name, one)
    return tuple(value)


def _check_host(name: str, host: str) -> None:
    """A host name or an address; neither a port nor the brackets of IPv6."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not HOST_NAME.fullmatch(host):
            raise UserError(
                f"{name} must be a host name or an address without a port, got {host!r}",
                hint="such as models.example.org",
            ) from None


def _split(model: str) -> tuple[str, str]:
    """A model's name and folder. An equals sign after a separator belongs to the folder: runs/lr=3."""
    name, equals, folder = model.partition("=")
    if equals and not re.search(r"[/\\]", name):
        return name, folder
    return Path(model).name or Path(model).resolve().name, model


# ---------------------------------------------------------------- where values come from


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> ServeSettings:
    """The settings from the flags that were given, the environment (None: this process's), the config file, defaults.

    Raises UserError that names the variable, or the file and its key.
    """
    variables = _from_environment(os.environ if environment is None else environment)
    path = flags.get("config", variables.get("config"))
    file = {} if path is None else _from_file(Path(path))
    return ServeSettings(**{**file, **variables, **flags})


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name in FIELDS:
        variable = f"{PREFIX}{name.upper()}"
        text = environment.get(variable, "")
        if text and not (name == "port" and text.startswith("tcp://")):  # Kubernetes' word for a service named gpt2kit
            found[name] = _check_from(variable, name, _parse(name, text))
    return found


def _parse(name: str, text: str) -> Any:
    """The text in the type of its field, or as it is where it is none; a list has commas between its entries."""
    kind = FIELDS[name][0]
    if kind == tuple[str, ...]:
        return [one.strip() for one in text.split(",") if one.strip()]
    if kind is bool:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower(), text)
    for number in (int, float):
        if number is kind or number in get_args(kind):
            try:
                return number(text)
            except ValueError:
                return text
    return text


def _from_file(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise UserError(f"the config file {path} is not valid TOML: {error}") from None
    known = FIELDS.keys() - {"config"}
    for name, value in found.items():
        if name not in known:
            problem = unknown("setting", name, known)
            raise UserError(f"{path}: {problem.message}", problem.hint)
        found[name] = _check_from(str(path), name, value)
    return found


def _check_from(origin: str, name: str, value: Any) -> Any:
    try:
        return _check(name, value)
    except UserError as error:
        raise UserError(f"{origin}: {error.message}", error.hint) from None
