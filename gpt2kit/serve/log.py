"""One JSON object a line, without anything that a client sent: no prompt, key, query string, path or header."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("gpt2kit.serve")
FRAMES = 12  # of an error, the innermost
CAUSES = 8  # of an error, one behind the other


def new_id() -> str:
    """What one request's lines, answer and errors have in common."""
    return secrets.token_hex(12)


def write(level: int, **fields: object) -> None:
    """A line of these fields, with the time before them."""
    if LOG.isEnabledFor(level):
        line = {"time": _now(), "level": logging.getLevelName(level).lower(), **fields}
        LOG.log(level, json.dumps(line, ensure_ascii=False), extra={"is_json": True})


def places(error: BaseException) -> list[str]:
    """Where an error comes from, without its text, which may quote a request: types, files, lines, functions."""
    found: list[str] = []
    for _ in range(CAUSES):
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        found += [type(error).__name__, *(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)]
        if isinstance(error, BaseExceptionGroup):  # of a task group; one of its errors tells enough
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    return found


class JsonLines(logging.Formatter):
    """Other loggers' messages in the same form: the first line only, since asyncio quotes errors in the others."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if getattr(record, "is_json", False):
            return message
        line: dict[str, Any] = {
            "time": _now(), "level": record.levelname.lower(), "logger": record.name,
            "message": message.split("\n", 1)[0],
        }  # fmt: skip
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = places(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def configure(level: str) -> None:
    """Lines on standard error, from this level on; of other libraries from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    LOG.setLevel(level.upper())
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each bad request; http.py says more


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
