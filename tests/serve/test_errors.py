"""Errors as OpenAI's clients read them."""

from __future__ import annotations

import http.server
import json
import threading

import openai
import pytest

from gpt2kit.errors import UserError
from gpt2kit.serve.errors import ApiError, ErrorType, from_user_error


def seen_by_openai(error: ApiError) -> openai.APIStatusError:
    """What the official client makes of the answer, over a socket."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(error.body()).encode()
            self.send_response(error.status)
            for name, value in {"content-length": str(len(body)), **error.headers()}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with (
            openai.OpenAI(api_key="x", base_url=url, max_retries=0, timeout=10) as client,
            pytest.raises(openai.APIStatusError) as caught,
        ):
            client.models.list()
        thread.join(10)
    return caught.value


def test_the_official_client_reads_every_field() -> None:
    error = seen_by_openai(ApiError(400, "n must be at most 16", param="n", code="too_large"))
    assert isinstance(error, openai.BadRequestError)
    assert "n must be at most 16" in error.message
    assert (error.type, error.param, error.code) == ("invalid_request_error", "n", "too_large")


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "invalid_request_error", openai.BadRequestError),
        (401, "authentication_error", openai.AuthenticationError),
        (403, "permission_error", openai.PermissionDeniedError),
        (404, "not_found_error", openai.NotFoundError),
        (413, "invalid_request_error", openai.APIStatusError),
        (429, "rate_limit_error", openai.RateLimitError),
        (500, "server_error", openai.InternalServerError),
        (503, "overloaded_error", openai.InternalServerError),
    ],
)
def test_the_type_goes_with_the_status(status: int, kind: str, raised: type[Exception]) -> None:
    error = seen_by_openai(ApiError(status, "no"))
    assert isinstance(error, raised)
    assert error.type == kind


def test_a_type_that_is_given_is_kept() -> None:
    kind: ErrorType = "permission_error"
    assert ApiError(400, "no", kind).type == kind


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.01, "1"), (1.0, "1"), (1.2, "2"), (60, "60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    assert ApiError(429, "later", retry_after=seconds).headers() == {"retry-after": header}


def test_without_a_time_there_is_no_retry_after() -> None:
    assert ApiError(429, "later").headers() == {}


def test_a_lone_surrogate_in_a_message_does_not_break_the_answer() -> None:
    body = ApiError(404, "no model 春\ud800", param="\udfff").body()
    assert json.loads(json.dumps(body, ensure_ascii=False).encode())["error"]["message"] == "no model 春\\ud800"


def test_a_user_error_becomes_a_400_with_its_hint() -> None:
    error = from_user_error(UserError("the prompt is empty", hint="give a token"))
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert error.message == "the prompt is empty; give a token"
    assert from_user_error(UserError("no hint")).message == "no hint"
