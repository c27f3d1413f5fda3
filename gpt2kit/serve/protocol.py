"""What clients may ask, in OpenAI's fields: strict, bounded, and nothing silently ignored.

    request = parse(CompletionRequest, body, settings)      # ApiError 400 with the field's name in `param`
    request.prompts(), request.settings()

null stands for a field's default. A field of OpenAI's that would change the answer and is not supported is refused by
name, and so is an unknown one. Accepted without effect: `user`, `metadata`, `store`. No message repeats a value.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpt2kit.errors import closest
from gpt2kit.model.sampling import INTEGERS, LARGEST_ID, REALS, SamplingSettings
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.strict_json import read_json, shown

if TYPE_CHECKING:
    from gpt2kit.serve.settings import ServeSettings

# ------------------------------------------------------------------------------------------------ requests


def _nullable(schema: dict[str, Any]) -> None:
    """JSON schema: null is allowed wherever a field has a default."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", ()) and {"type": "null"} not in (field, *field.get("anyOf", ())):
            kept = {key: field.pop(key) for key in ("default", "title", "description") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **kept}


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, frozen=True, hide_input_in_errors=True,
        json_schema_extra=_nullable,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}

    def check(self, settings: ServeSettings) -> None:
        """ApiError 400 for what the server's settings forbid, or what two fields make wrong together."""


Request = TypeVar("Request", bound=Body)


def _of(name: str) -> Any:
    """The bounds that the sampler has for a setting."""
    low, high = INTEGERS.get(name) or REALS[name]
    return Field(ge=low, le=high)


Name = Annotated[str, Field(min_length=1, max_length=256)]
User = Annotated[str, Field(max_length=256, description="accepted, not used")]
Token = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]
Prompt = str | Annotated[list[str], Field(min_length=1, fail_fast=True)] | Tokens | TokenLists
Input = Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)] | Tokens | TokenLists
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, _of("n")]
Limit = Annotated[int, _of("max_tokens")]
Penalty = Annotated[float, _of("presence_penalty")]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Bias = Annotated[
    dict[Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=300, json_schema_extra={"additionalProperties": False}, description="token id: bias"),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16, description="accepted, not used"),
]


SAME = (  # as the sampler has them
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("stop_token_ids", "ignore_eos", "min_tokens"),
)


class StreamOptions(Body):
    include_usage: bool = False


class Sampled(Body):
    """What completions and chat share."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, _of("top_p")] = 1.0
    n: Count = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop | list[Stop] = []
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Bias = {}
    seed: Seed | None = None
    user: User | None = None
    metadata: Metadata | None = None
    store: Annotated[bool, Field(description="accepted, not used")] = False
    # beyond OpenAI's, as other servers name them
    top_k: Annotated[int, _of("top_k")] | None = None
    min_p: Annotated[float, _of("min_p")] = 0.0
    repetition_penalty: Annotated[float, _of("repetition_penalty")] = 1.0
    stop_token_ids: list[Token] = []
    ignore_eos: bool = False
    min_tokens: Annotated[int, _of("min_tokens")] = 0

    @property
    def wants_usage(self) -> bool:
        """A stream that ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _check(self, settings: ServeSettings, completions: int, max_tokens: int | None) -> None:
        """`completions`: of all prompts; `max_tokens` None: as many as fit."""
        _at_most("n", self.n, settings.max_n)
        if not isinstance(self.stop, str) and len(self.stop) > settings.max_stop:
            raise ApiError(400, f"stop must hold at most {settings.max_stop} strings", param="stop")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        if max_tokens is None:
            return
        if self.min_tokens > max_tokens:
            raise ApiError(400, f"min_tokens exceeds the limit of {max_tokens} new tokens", param="min_tokens")
        if completions * max_tokens > settings.max_tokens_total:
            raise ApiError(
                400,
                f"{completions} completions of {max_tokens} tokens are more than {settings.max_tokens_total} in all",
                param="max_tokens",
            )

    def _sampling(self, max_tokens: int, n: int, logprobs: int | None) -> SamplingSettings:
        return SamplingSettings(
            max_tokens=max_tokens,
            n=n,
            logprobs=logprobs,
            seed=None if self.seed is None else self.seed % 2**64,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            **{name: getattr(self, name) for name in SAME},
        )


class CompletionRequest(Sampled):
    """POST /v1/completions. An empty prompt starts a new text."""

    prompt: Prompt = ""
    max_tokens: Annotated[Limit, Field(description="0 only with echo")] = 16
    best_of: Annotated[Count, Field(description="the n likeliest per token of so many")] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    suffix: Annotated[str, Field(max_length=0, description="not supported")] = ""

    @property
    def candidates(self) -> int:
        """Completions to make of each prompt, of which n are given back."""
        return self.n if self.best_of is None else self.best_of

    def prompts(self) -> list[str | list[int]]:
        return _listed(self.prompt)

    def check(self, settings: ServeSettings) -> None:
        if self.best_of is not None:
            _at_most("best_of", self.best_of, settings.max_n)
            if self.best_of < self.n:
                raise ApiError(400, f"best_of {self.best_of} must be at least n {self.n}", param="best_of")
            if self.best_of > self.n and self.stream:
                raise ApiError(400, "best_of more than n cannot be streamed", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens must be at least 1, or 0 with echo: true", param="max_tokens")
        self._check(settings, self.candidates * len(self.prompts()), self.max_tokens)

    def settings(self) -> SamplingSettings:
        """For the engine; to choose among best_of, it reports log-probabilities even where the client asks for none."""
        logprobs = 0 if self.logprobs is None and self.candidates > self.n else self.logprobs
        return self._sampling(self.max_tokens, self.candidates, logprobs)


def _listed(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One text or list of ids as a list of one."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]
    return list(given)


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[str, Field(max_length=64)] | None = None
    # not supported: null alone
    refusal: None = None
    annotations: None = None
    audio: None = None
    tool_calls: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[Limit, Field(ge=1, description="the older name of max_completion_tokens")] | None = None
    max_completion_tokens: Annotated[Limit, Field(ge=1, description="null: as many as fit")] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # not supported: null alone
    tools: None = None
    tool_choice: None = None
    parallel_tool_calls: None = None
    functions: None = None
    function_call: None = None
    response_format: None = None
    modalities: None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    service_tier: None = None
    web_search_options: None = None
    prompt_cache_key: None = None
    safety_identifier: None = None

    @property
    def limit(self) -> int | None:
        """New tokens at most; None: as many as fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def conversation(self) -> list[dict[str, str]]:
        """For the chat template: parts joined by line ends, developer as system."""
        return [
            {"role": "system" if one.role == "developer" else one.role, "content": one.text}
            | ({} if one.name is None else {"name": one.name})
            for one in self.messages
        ]

    def check(self, settings: ServeSettings) -> None:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.limit:
            raise ApiError(400, "max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        self._check(settings, self.n, self.limit)

    def settings(self, room: int = 16) -> SamplingSettings:
        """For the engine. `room`: the tokens that fit behind the prompt, taken where the client sets no limit."""
        limit = max(room, self.min_tokens, 1) if self.limit is None else self.limit
        return self._sampling(limit, self.n, (self.top_logprobs or 0) if self.logprobs else None)


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: Name
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Annotated[Literal["mean", "last"], Field(description="of the tokens' last hidden states")] = "mean"
    user: User | None = None
    dimensions: None = None  # not supported

    def inputs(self) -> list[str | list[int]]:
        return _listed(self.input)


class TokenizeRequest(Body):
    """POST /tokenize."""

    model: Name | None = None
    prompt: str
    add_special_tokens: Annotated[bool, Field(description="accepted, not used: GPT-2 adds none")] = True


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: Name | None = None
    tokens: list[Token]


class ClassifyRequest(Body):
    """POST /v1/classify."""

    model: Name
    input: Input
    text_pair: Annotated[
        Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)] | None,
        Field(description="for a model of pairs: the second text of each input"),
    ] = None
    user: User | None = None

    def inputs(self) -> list[str | list[int]]:
        return _listed(self.input)

    def pairs(self) -> list[str]:
        """The second texts; none where there are none."""
        return [self.text_pair] if isinstance(self.text_pair, str) else self.text_pair or []

    def check(self, settings: ServeSettings) -> None:
        texts = [one for one in self.inputs() if isinstance(one, str)]
        if self.text_pair is not None and len(self.pairs()) != len(texts):
            said = f"text_pair has {len(self.pairs())} texts and input {len(texts)}: each input has one of its own"
            raise ApiError(400, said, param="text_pair")


class RankRequest(Body):
    """POST /v1/rank: documents by how well they answer the query."""

    model: Name
    query: str
    documents: Annotated[list[str], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1, le=LARGEST_ID)] | None = None
    user: User | None = None

    def inputs(self) -> list[str]:
        return [f"{self.query}\n{document}" for document in self.documents]


def parse(kind: type[Request], body: bytes, settings: ServeSettings) -> Request:
    """The request in a body. ApiError 400 with `param` for whatever is wrong with it."""
    value = read_json(body, settings.json_depth, settings.max_list)
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        request = kind.model_validate(value)
    except ValidationError as error:
        raise _explain(kind, error) from None
    request.check(settings)
    return request


# ---------------------------------------------------------------------------- what is wrong with a request

SHAPES = {  # of fields that can be several things, or hold a client's own names
    "prompt": "a string, a list of strings, a list of token ids, or a list of lists of token ids; lists are not empty",
    "input": "a string, a list of strings, a list of token ids, or a list of lists of token ids; none of them empty",
    "stop": "a string or a list of strings, each of 1 to 256 characters",
    "content": "a string, or a list of parts of type text that is not empty",
    "logit_bias": "an object of token ids, written as strings, and numbers from -100 to 100",
    "metadata": "an object of strings: at most 64 characters a name, 512 a value",
}
WORDS = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
}


def _at_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise ApiError(400, f"{name} must be at most {most}", param=name)


def _explain(kind: type[Body], error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    loc, what = first["loc"], first["type"]
    if what == "extra_forbidden":
        name = str(loc[-1])
        near = closest(name, kind.model_fields) if len(loc) == 1 else None
        tip = "" if near is None else f"; did you mean {near}?"
        param = _dotted([*_path(loc[:-1]), shown(name)])
        return ApiError(400, f"unknown field {param}{tip}", param=param, code="unknown_parameter")
    path = _path(loc)
    param = _dotted(path)
    if len(loc) > len(path) and loc[len(path) - 1] in SHAPES:
        return ApiError(400, f"{param} must be {SHAPES[str(path[-1])]}", param=param)
    if what == "none_required" or path == ["suffix"]:
        return ApiError(400, f"{param} is not supported by this server", param=param, code="unsupported_parameter")
    says = WORDS.get(what, "is not valid").format_map(first.get("ctx", {}))
    return ApiError(400, f"{param} {says}", param=param)


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    """Down to the field; what follows is the branch of a union, or a client's own name."""
    return list(itertools.takewhile(lambda part: isinstance(part, int) or part in FIELDS, loc))


def _dotted(path: list[str | int]) -> str:
    """messages[0].content"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


KINDS: tuple[type[Body], ...] = (
    CompletionRequest, ChatRequest, Message, TextPart, StreamOptions, EmbeddingRequest, TokenizeRequest,
    DetokenizeRequest, ClassifyRequest, RankRequest,
)  # fmt: skip
FIELDS = frozenset(name for kind in KINDS for name in kind.model_fields)
