"""The one error that clients see, in OpenAI's shape.

    Exception
    └── ApiError        raised inside a request, answered as {"error": {"message", "type", "param", "code"}}

What else escapes a request is our bug, and answered as a server_error that says nothing of it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from gpt2kit.errors import UserError

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
    "overloaded_error",
]
TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """What a request is answered with instead of a result. `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        type: ErrorType | None = None,  # None: the one that goes with the status
        param: str | None = None,  # the field that is wrong
        code: str | None = None,  # for programs, such as context_length_exceeded
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type = type or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The answer's JSON; a lone surrogate, which UTF-8 cannot hold, is shown escaped."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {key: None if text is None else _whole(text) for key, text in fields.items()}}

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, at least 1, where there is one."""
        return {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def from_user_error(error: UserError) -> ApiError:
    """What the user can put right, as a 400; message and hint in one text."""
    return ApiError(400, error.message if error.hint is None else f"{error.message}; {error.hint}")
