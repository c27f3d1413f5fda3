"""Requests: whatever the bytes, a valid request or an ApiError 400; the official client's requests are valid."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2kit.serve import protocol
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    TokenizeRequest,
    parse,
)
from gpt2kit.serve.settings import ServeSettings
from gpt2kit.serve.strict_json import read_json

SETTINGS = ServeSettings()
KINDS = [kind for kind in protocol.KINDS if kind.__name__.endswith("Request")]
LEAST: dict[str, dict[str, Any]] = {  # the shortest request of each kind
    "CompletionRequest": {"model": "m"},
    "ChatRequest": {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
    "EmbeddingRequest": {"model": "m", "input": "once"},
    "TokenizeRequest": {"prompt": "once"},
    "DetokenizeRequest": {"tokens": [1]},
    "ClassifyRequest": {"model": "m", "input": "once"},
    "RankRequest": {"model": "m", "query": "q", "documents": ["a", "b"]},
}
ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 5, 6, 17, 20, 21, 300, 10**12, 2**63, 2**64 - 1, -0.0, 0.5, 2.5, 1e-320, 100.5]
)
SCALARS = st.none() | st.booleans() | ODD_NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ROLES = st.sampled_from(["role", "content", "type", "text", "system", "user", "assistant", "include_usage", "1", "5"])
VALUES = st.recursive(
    SCALARS | ROLES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ROLES | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted(protocol.FIELDS)) | st.text(max_size=4)


def complete(**fields: object) -> CompletionRequest:
    body = json.dumps({**LEAST["CompletionRequest"], "prompt": "once", **fields})
    return parse(CompletionRequest, body.encode(), SETTINGS)


def chat(**fields: object) -> ChatRequest:
    return parse(ChatRequest, json.dumps({**LEAST["ChatRequest"], **fields}).encode(), SETTINGS)


def refusal(make: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        make()
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def read(body: bytes | str, depth: int = 16, largest: int = 2048) -> object:
    return read_json(body if isinstance(body, bytes) else body.encode(), depth, largest)


# ---------------------------------------------------------------------------------------------------- JSON


def json_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(json_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(json_depth, value), default=0)
    return 0


@settings(deadline=None, max_examples=100)
@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
@example('brackets [{ in \\" a string', True, None)
@example(["\\", "[", '"', "{"], True, None)
def test_what_json_holds_is_read_as_python_reads_it(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read(text, depth=json_depth(value)) == json.loads(text)
    if json_depth(value):
        assert "deep" in refusal(lambda: read(text, depth=json_depth(value) - 1)).message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} x", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'"\x01"', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),  # a surrogate in UTF-8's clothes
        ('"\U0001f600"'.encode("utf-16"), "not UTF-8"),
        (b"NaN", "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"1e400", "a double"),
        (b'{"a": [{"b": -1e400}]}', "a double"),
        (b"1" * 4000 + b".0", "a double"),
        (b"18446744073709551616", "64 bits"),
        (b"9" * 10_000, "64 bits"),  # Python's own reader would raise another error
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'["\\ude00\\ud83d"]', "surrogate"),
        (b'{"a": 1, "b": 2, "a": 3}', "field a twice"),
        (b"[" * 17 + b"]" * 17, "deep"),
        (b"[" * 1_000_000, "deep"),
        (b'{"a":' * 100_000, "deep"),
        (b"[" + b"1," * 2048 + b"1]", "2,049 entries"),
    ],
)
def test_what_is_not_strict_json_is_refused(body: bytes, says: str) -> None:
    assert says in refusal(lambda: read(body)).message


def test_the_limits_themselves_are_allowed() -> None:
    assert read(b"[" * 16 + b"]" * 16) == json.loads("[" * 16 + "]" * 16)
    assert read("[" + "1," * 2047 + "1]") == [1] * 2048
    assert read("18446744073709551615") == 2**64 - 1
    assert read('"\\ud83d\\ude00"') == "\U0001f600"
    assert read(f"[{'[1],' * 2047}[1]]") == [[1]] * 2048


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 500_000,  # a string that never ends: each quote could begin one
        b"\\" * 1_000_000,
        b"[]," * 333_333,
        b'["' + b"x" * 1_000_000,
        b"[" + b"1," * 499_998 + b"1]",
        b"[" + b"9" * 4300 + b",",
        b"[" + b",".join([b"9" * 4300] * 230) + b"]",
        b"[0." + b"7" * 999_990 + b"]",
        b"[1e" + b"7" * 999_990 + b"]",
        b'{"' + b"\\u0061" * 160_000 + b'": 1}',
        b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}",
    ],
)
def test_a_megabyte_of_malice_costs_little(body: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(ApiError):
        parse(CompletionRequest, body, SETTINGS)
    assert time.process_time() - begun < 1.0  # seconds; quadratic scanning takes minutes


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for kind in KINDS:
        refusal(lambda kind=kind: parse(kind, body, SETTINGS))


# ------------------------------------------------------------------------------------------------ requests


def use(request: protocol.Body) -> None:
    """What the server does next with a request."""
    if isinstance(request, CompletionRequest):
        request.settings()
        assert all(isinstance(one, str) or all(type(token) is int for token in one) for one in request.prompts())
    if isinstance(request, ChatRequest):
        request.settings()
        request.settings(room=7)
        assert all(isinstance(text, str) for one in request.conversation() for text in one.values())
    if isinstance(request, EmbeddingRequest):
        assert request.inputs()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_json_is_a_valid_request_or_a_400(kind: type[protocol.Body], data: st.DataObject) -> None:
    own = st.sampled_from(sorted(kind.model_fields))
    value = data.draw(VALUES | st.dictionaries(FIELDS | own, VALUES, max_size=4))
    if isinstance(value, dict) and data.draw(st.booleans()):
        value = {**LEAST[kind.__name__], **value}
    body = json.dumps(value).encode()
    try:
        use(parse(kind, body, SETTINGS))
    except ApiError:
        error = refusal(lambda: parse(kind, body, SETTINGS))
        json.dumps(error.body(), ensure_ascii=False).encode()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_schema_that_is_published_says_what_is_accepted(kind: type[protocol.Body], data: st.DataObject) -> None:
    """But for whole numbers written as 1.0, which JSON schema takes for integers."""
    name = data.draw(st.sampled_from(sorted(kind.model_fields)))
    value = data.draw(VALUES.filter(lambda value: ".0" not in json.dumps(value)))
    request = {**LEAST[kind.__name__], name: value}
    try:
        kind.model_validate(request)
        accepted = True
    except ValueError:
        accepted = False
    assert jsonschema_rs.is_valid(kind.model_json_schema(), request) == accepted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_null_is_the_default_of_every_field_that_has_one(kind: type[protocol.Body]) -> None:
    least = LEAST[kind.__name__]
    nulls = dict.fromkeys(set(kind.model_fields) - set(least)) | least
    found = parse(kind, json.dumps(nulls).encode(), SETTINGS)
    assert found == parse(kind, json.dumps(least).encode(), SETTINGS)
    use(found)
    for name in least:
        assert (
            refusal(lambda name=name: parse(kind, json.dumps({**least, name: None}).encode(), SETTINGS)).param == name
        )


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("model", ["m", "春" * 256], ["", "m" * 257, 3, ["m"], True]),
        (
            "prompt",
            ["", "春", ["a", ""], [1, 2**31 - 1], [[1], [2, 3]]],
            [[], [[]], [1, "a"], [True], [-1], [2**31], 1],
        ),
        ("max_tokens", [1, 65536], [0, -1, 65537, 10**12, 1.0, "3", True, 1.5]),
        ("temperature", [0, 2, 0.7, 1e-300], [-0.1, 2.01, "1", True, [1]]),
        ("top_p", [0, 1, 0.5], [-0.01, 1.01, "1", False]),
        ("min_p", [0, 1], [-0.01, 1.01]),
        ("top_k", [0, 1, 2**31 - 1], [-1, 2**31, 1.0]),
        ("repetition_penalty", [0.01, 1, 100], [0, 100.1, -1]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1, True]),
        ("n", [1, 16], [0, 17, 10**12, "3", True, 1.0]),
        ("best_of", [1, 16], [0, 17]),
        ("logprobs", [0, 5], [-1, 6, True, False]),
        ("seed", [0, -1, 2**63 - 1, -(2**63)], [2**63, -(2**63) - 1, 0.5, "1"]),
        ("stop", ["a", "春" * 256, [], ["a"] * 16], ["", "a" * 257, [""], ["a"] * 17, [1], {"a": 1}]),
        ("stop_token_ids", [[], [0, 2**31 - 1]], [[-1], [2**31], ["1"], 5, [True]]),
        ("min_tokens", [0, 16], [17, -1, 1.0]),
        ("ignore_eos", [True, False], [1, "true"]),
        ("echo", [True, False], [1, "true"]),
        ("stream", [True, False], [1, 0, "true"]),
        ("suffix", [""], ["x", 1]),
        ("user", ["", "u" * 256], ["u" * 257, 3]),
        ("store", [True, False], [1, "yes"]),
        ("metadata", [{}, {"a": "b"}], [{"a": 1}, {"a": "b" * 513}, {str(i): "" for i in range(17)}, []]),
        (
            "logit_bias",
            [{}, {"0": -100, "50256": 100.0}, {str(i): 1 for i in range(300)}],
            [
                {"0": 101},
                {"-1": 0},
                {"01": 0},
                {"a": 0},
                {"1": "1"},
                {"1": True},
                {"१": 1},
                {"1\n": 1},
                [],
                {"9" * 10: 1},
            ],
        ),
        ("logit_bias", [], [{str(i): 1 for i in range(301)}]),
    ],
)
def test_the_bounds_of_completions(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        use(complete(**{field: value}))
    for value in bad:
        error = refusal(lambda value=value: complete(**{field: value}))
        assert (error.param or "").startswith(field), value
        assert error.message.startswith(field) or field == "max_tokens", error.message


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("logprobs", [True, False], [0, 1, "true"]),
        ("max_tokens", [1, 65536], [0, 65537, True]),
        ("max_completion_tokens", [1], [0, 1.0]),
        ("tools", [], [[], [{}], "x"]),
        ("response_format", [], [{"type": "json_object"}]),
        (
            "messages",
            [[{"role": "developer", "content": ""}]],
            [[], {}, ["x"], [{}], [{"role": "tool", "content": "x"}]],
        ),
        ("messages", [], [[{"role": "user"}], [{"role": "user", "content": []}], [{"role": "user", "content": 3}]]),
        ("messages", [], [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]]),
        ("messages", [], [[{"role": "assistant", "content": "a", "tool_calls": [{}]}]]),
    ],
)
def test_the_bounds_of_chat(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        use(chat(**{field: value}))
    for value in bad:
        error = refusal(lambda value=value: chat(**{field: value}))
        assert (error.param or "").startswith(field), value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 16, "max_tokens": 4097}, "max_tokens"),
        ({"best_of": 16, "max_tokens": 4097}, "max_tokens"),
        ({"prompt": ["a"] * 17, "max_tokens": 4096}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"messages": []}, "messages"),  # of another route
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, object], param: str) -> None:
    assert refusal(lambda: complete(**fields)).param == param


def test_max_tokens_zero_only_scores_an_echoed_prompt() -> None:
    settings = complete(max_tokens=0, echo=True, logprobs=1).settings()
    assert (settings.max_tokens, settings.logprobs) == (0, 1)


def test_the_limits_are_those_of_the_server() -> None:
    settings = ServeSettings(max_n=2, max_stop=1, max_list=3, max_tokens_total=20, json_depth=2)

    def error(**fields: object) -> ApiError:
        body = json.dumps({**LEAST["CompletionRequest"], "prompt": "once", **fields}).encode()
        return refusal(lambda: parse(CompletionRequest, body, settings))

    assert error(n=3).message == "n must be at most 2"
    assert error(best_of=3).message == "best_of must be at most 2"
    assert error(stop=["a", "b"]).message == "stop must hold at most 1 strings"
    assert error(max_tokens=21).message == "1 completions of 21 tokens are more than 20 in all"
    assert "3" in error(user="x", n=1).message  # entries of the body's own object
    assert "deep" in error(prompt=[[1]]).message


def test_a_misspelt_field_is_named_with_the_nearest_one() -> None:
    error = refusal(lambda: complete(temprature=1))
    assert error.message == "unknown field temprature; did you mean temperature?"
    assert (error.param, error.code) == ("temprature", "unknown_parameter")


def test_an_unknown_field_is_refused_even_if_it_is_null() -> None:
    assert refusal(lambda: complete(tooles=None)).param == "tooles"


@pytest.mark.parametrize("bias", [{"a": 1}, {"-1": 0}, {"01": 0}])
def test_the_schema_knows_what_a_token_id_looks_like(bias: dict[str, int]) -> None:
    schema = CompletionRequest.model_json_schema()
    assert jsonschema_rs.is_valid(schema, {**LEAST["CompletionRequest"], "logit_bias": {"5": 1}})
    assert not jsonschema_rs.is_valid(schema, {**LEAST["CompletionRequest"], "logit_bias": bias})


def test_a_message_names_the_field_and_no_value_of_the_request() -> None:
    secret = "swordfish"
    wrong: list[dict[str, object]] = [
        {"prompt": {secret: secret}}, {"temperature": secret}, {"stop": [secret * 60]}, {"logit_bias": {secret: 1}},
        {"metadata": {secret: [secret]}}, {f"{secret} {secret}": 1}, {"prompt": [1, secret]}, {"suffix": secret},
    ]  # fmt: skip
    for fields in wrong:
        error = refusal(lambda fields=fields: complete(**fields))
        assert secret not in json.dumps(error.body()), fields
    assert secret not in refusal(lambda: read(f'{{"a": {secret}}}')).message
    error = refusal(lambda: chat(messages=[{"role": secret, "content": secret}]))
    assert secret not in json.dumps(error.body())
    assert error.param == "messages[0].role"


def test_best_of_has_the_engine_report_what_it_chooses_by() -> None:
    request = complete(n=2, best_of=5)
    assert request.candidates == 5
    assert (request.settings().n, request.settings().logprobs) == (5, 0)
    assert complete(n=2, best_of=2).settings().logprobs is None
    assert complete(n=2, best_of=5, logprobs=3).settings().logprobs == 3


def test_every_setting_reaches_the_sampler() -> None:
    asked = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "presence_penalty": -1.0,
        "frequency_penalty": 1.0, "stop_token_ids": [3], "ignore_eos": True, "min_tokens": 2, "seed": 5, "n": 3,
    }  # fmt: skip
    for sampling in (
        complete(**asked, max_tokens=9, stop=["a", "b"], logit_bias={"4": 1.5}, logprobs=2).settings(),
        chat(**asked, max_tokens=9, stop=["a", "b"], logit_bias={"4": 1.5}, logprobs=True, top_logprobs=2).settings(),
    ):
        for name, value in asked.items():
            got = getattr(sampling, name)
            assert (list(got) if isinstance(got, tuple) else got) == value
        assert (sampling.max_tokens, sampling.stop, sampling.logprobs) == (9, ("a", "b"), 2)
        assert sampling.logit_bias == {4: 1.5}


def test_a_chats_alternatives_need_its_log_probabilities() -> None:
    assert refusal(lambda: chat(top_logprobs=2)).param == "top_logprobs"
    assert refusal(lambda: chat(top_logprobs=2, logprobs=False)).param == "top_logprobs"
    assert chat(logprobs=True).settings().logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).settings().logprobs == 20
    assert chat().settings().logprobs is None


def test_negative_seeds_are_seeds_of_their_own() -> None:
    seeds = [complete(seed=seed).settings().seed for seed in (-1, 1, -(2**63), 2**63 - 1, 0)]
    assert len(set(seeds)) == 5
    assert complete(seed=3).settings().seed == 3
    assert complete().settings().seed is None


def test_a_chat_without_a_limit_takes_the_room_that_there_is() -> None:
    assert chat().settings(room=40).max_tokens == 40
    assert chat(min_tokens=50).settings(room=40).max_tokens == 50
    assert chat(max_completion_tokens=5).settings(room=40).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=5).settings(room=40).max_tokens == 5
    assert refusal(lambda: chat(max_tokens=5, max_completion_tokens=6)).param == "max_tokens"


def test_a_conversation_is_plain_text_by_known_roles() -> None:
    parts = [{"type": "text", "text": "看"}, {"type": "text", "text": "this"}]
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts, "name": "li"},
            {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": None},
        ]
    )
    assert request.conversation() == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "看\nthis", "name": "li"},
        {"role": "assistant", "content": "ok"},
    ]


# ------------------------------------------------------------------------------------- the official client


@pytest.fixture(scope="module")
def sent() -> Any:
    """What the official client sends: call it with a use of the client, get the body."""
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(400)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with openai.OpenAI(api_key="x", base_url=url, max_retries=0, timeout=10) as client:

            def body(call: Callable[[openai.OpenAI], object]) -> bytes:
                with pytest.raises(openai.BadRequestError):
                    call(client)
                return bodies.pop()

            yield body
        server.shutdown()
        thread.join(10)


Sent = Callable[[Callable[[openai.OpenAI], object]], bytes]


def test_the_official_clients_completions_are_understood(sent: Sent) -> None:
    plain = parse(CompletionRequest, sent(lambda c: c.completions.create(model="m", prompt="hi")), SETTINGS)
    assert plain == complete(prompt="hi")
    body = sent(
        lambda client: client.completions.create(
            model="m",
            prompt=[[1, 2], [3]],
            max_tokens=0,
            echo=True,
            logprobs=1,
            temperature=0,
            top_p=1,
            n=1,
            best_of=1,
            stop=None,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            logit_bias={"5": 1},
            seed=1,
            user="u",
            stream=True,
            stream_options={"include_usage": True},
            suffix=None,
            extra_body={"top_k": 5, "ignore_eos": True},
        )
    )
    request = parse(CompletionRequest, body, SETTINGS)
    assert request.prompts() == [[1, 2], [3]]
    assert (request.echo, request.logprobs, request.stream, request.wants_usage) == (True, 1, True, True)
    assert (request.settings().top_k, request.settings().ignore_eos) == (5, True)


def test_the_official_clients_chat_is_understood(sent: Sent) -> None:
    body = sent(
        lambda client: client.chat.completions.create(
            model="m",
            messages=[{"role": "developer", "content": "short"}, {"role": "user", "content": "hi"}],
            max_completion_tokens=5,
            logprobs=True,
            top_logprobs=3,
            stop=["x"],
            store=False,
            metadata={"a": "b"},
        )
    )
    request = parse(ChatRequest, body, SETTINGS)
    assert [one["role"] for one in request.conversation()] == ["system", "user"]
    assert (request.settings().max_tokens, request.settings().logprobs) == (5, 3)


def test_an_answer_can_be_put_back_into_the_conversation(sent: Sent) -> None:
    """As users do: messages.append(answer.choices[0].message)"""
    answer = openai.types.chat.ChatCompletionMessage(role="assistant", content="hello", refusal=None)
    messages: Any = [{"role": "user", "content": "hi"}, answer, {"role": "user", "content": "more"}]
    body = sent(lambda client: client.chat.completions.create(model="m", messages=messages))
    assert parse(ChatRequest, body, SETTINGS).conversation()[1] == {"role": "assistant", "content": "hello"}
    dumped: Any = [messages[0], answer.model_dump(), messages[2]]
    body = sent(lambda client: client.chat.completions.create(model="m", messages=dumped))
    assert parse(ChatRequest, body, SETTINGS).conversation()[1] == {"role": "assistant", "content": "hello"}


def test_the_official_clients_embeddings_are_understood(sent: Sent) -> None:
    body = sent(lambda client: client.embeddings.create(model="m", input=["春", "hi"]))
    request = parse(EmbeddingRequest, body, SETTINGS)
    assert (request.inputs(), request.encoding_format) == (["春", "hi"], "base64")


def test_a_tokenize_request_needs_no_model() -> None:
    assert parse(TokenizeRequest, b'{"prompt": "hi", "add_special_tokens": false}', SETTINGS).model is None
