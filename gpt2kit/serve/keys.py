"""API keys: a JSON file of names, SHA-256 digests, scopes and limits. The secrets themselves are nowhere.

    {"version": 1, "keys": [{"name": "shop", "sha256": "9f86…", "scopes": ["generate"], "requests_per_minute": 60}]}

Without "scopes" a key may do everything; a limit that is missing or null is none. A key is revoked by deleting its
entry; the server reads the file when it starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2kit.commit import fsync_path, read_json, write_json
from gpt2kit.errors import UserError, unknown

Scope = Literal["generate", "embed", "classify", "metrics", "models"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")
MOST = 1_000_000_000  # of a limit: more is a slip of the hand
VERSION = 1
NAME = re.compile(r"[\w.-]{1,64}")  # it is written to logs
PREFIX = "gpt2kit-"  # scanners for leaked secrets find it
SECRET_BYTES = 32  # random: a plain SHA-256 of so many cannot be turned back, no slow hash is needed


@dataclass(frozen=True)
class Key:
    """Who asks, what for, and how much. A limit of None is no limit."""

    name: str
    scopes: frozenset[Scope] = frozenset(SCOPES)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompts and completions together
    concurrency: int | None = None  # requests at a time

    @property
    def salt(self) -> str:
        """Tenants with different salts never share blocks of the engine's prefix cache."""
        return self.name


ANONYMOUS = Key("anonymous")  # everybody, where there is no key file


class Keys:
    """The keys of a file, found by their secrets."""

    def __init__(self, entries: Iterable[tuple[bytes, Key]]) -> None:
        """`entries`: SHA-256 digests of the secrets (32 bytes), and their keys."""
        self._entries = tuple(entries)

    @classmethod
    def load(cls, file: str | Path) -> Keys:
        """UserError that names the entry and the field where something is wrong with the file."""
        return cls((bytes.fromhex(entry["sha256"]), _key(entry)) for entry in _read(Path(file)))

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, secret: str) -> Key | None:
        """The key of this secret. Every entry is compared, whole: the time tells nothing about any of them."""
        digest = _digest(secret)
        found = None
        for known, key in self._entries:
            if hmac.compare_digest(known, digest):
                found = key
        return found


def new_key(
    file: str | Path,
    name: str,
    scopes: Iterable[Scope] = SCOPES,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    concurrency: int | None = None,
) -> str:
    """Add a key to a file, which is made if it is not there, and return its secret: nothing can show it again.

    A new file is readable by its owner alone (mode 0600, where there are modes); one that is there keeps its mode.
    UserError for a name that is taken, a wrong limit, or a file that cannot be read or written.
    """
    path = Path(file).resolve()  # a link stays one
    entries = _read(path) if path.exists() else []
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    entry: dict[str, Any] = {"name": name, "sha256": _digest(secret).hex(), "scopes": list(scopes)}
    entries.append(entry | {limit: value for limit, value in limits.items() if value is not None})
    _check_entries(entries, str(path))
    try:
        _write(path, {"version": VERSION, "keys": entries})
    except OSError as error:
        raise UserError(f"the key file {path} cannot be written: {error.strerror or error}") from None
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _key(entry: dict[str, Any]) -> Key:
    scopes = entry.get("scopes")
    limits = {name: entry.get(name) for name in LIMITS}
    return Key(entry["name"], frozenset(SCOPES if scopes is None else scopes), **limits)


# ---------------------------------------------------------------- the file


def _read(path: Path) -> list[dict[str, Any]]:
    """The entries of a key file, checked."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION or not isinstance(found.get("keys"), list):
        raise UserError(
            f'{path} is not a key file: it must be {{"version": {VERSION}, "keys": [...]}}',
            hint=f"make one: gpt2kit key NAME --file {path}",
        )
    if extra := found.keys() - {"version", "keys"}:
        raise UserError(f"{path} has the unknown key {min(extra)!r} beside version and keys")
    entries: list[dict[str, Any]] = found["keys"]
    if not entries:
        raise UserError(f"{path} has no keys, so nobody could come in", hint=f"run: gpt2kit key NAME --file {path}")
    _check_entries(entries, str(path))
    return entries


def _check_entries(entries: list[Any], path: str) -> None:
    seen: dict[str, set[str]] = {"name": set(), "sha256": set()}
    for number, entry in enumerate(entries):
        where = f"{path}: keys[{number}]"
        if not isinstance(entry, dict):
            raise UserError(f"{where} must be an object")  # not shown: it may be a secret
        for field, value in entry.items():
            _check_field(where, field, value)
        for field, others in seen.items():
            if field not in entry:
                raise UserError(f"{where} has no {field}")
            if entry[field] in others:
                raise UserError(
                    f"{where}: {field} {entry[field]!r} is there already", hint="give each key its own name"
                )
            others.add(entry[field])


def _check_field(where: str, field: str, value: Any) -> None:
    if field == "name":
        if not isinstance(value, str) or not NAME.fullmatch(value) or value == ANONYMOUS.name:
            raise UserError(
                f"{where}: name must be 1 to 64 letters, digits, dots, dashes or underscores, got {value!r}",
                hint=f"{ANONYMOUS.name} is taken, for requests without a key" if value == ANONYMOUS.name else None,
            )
    elif field == "sha256":
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):  # not shown: it may be a secret
            raise UserError(
                f"{where}: sha256 must be 64 lowercase hexadecimal digits", hint="the digest of a key, never the key"
            )
    elif field == "scopes":
        if value is not None and (not isinstance(value, list) or not value):
            raise UserError(f"{where}: scopes must be a list of some of {', '.join(SCOPES)}, got {value!r}")
        for scope in value or ():
            if scope not in SCOPES:
                problem = unknown("scope", str(scope), SCOPES)
                raise UserError(f"{where}: {problem.message}", problem.hint)
    elif field in LIMITS:
        if value is not None and (type(value) is not int or not 1 <= value <= MOST):
            raise UserError(f"{where}: {field} must be a whole number from 1 to {MOST:,}, got {value!r}")
    else:
        problem = unknown("field", field, ("name", "sha256", "scopes", *LIMITS))
        raise UserError(f"{where}: {problem.message}", problem.hint)


def _write(path: Path, value: Any) -> None:
    """Whole or not at all; at no moment readable by more than the file that it replaces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        write_json(temporary, value)
        temporary.chmod(mode)
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
