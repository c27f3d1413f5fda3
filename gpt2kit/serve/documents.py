"""What /openapi.json says of the routes: their bodies, their answers, and every status that can come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from gpt2kit.serve import answers
from gpt2kit.serve.protocol import (
    Body,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RankRequest,
    TokenizeRequest,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
ABOUT = "with stream: true, server-sent events: a chunk as JSON each, at last [DONE]"
STREAM = {"text/event-stream": {"schema": {**EVENT, "description": ABOUT}}}
OBJECT = {"application/json": {"schema": {"type": "object"}}}
SUMMARIES = {
    "/v1/completions": "Go on from a prompt",
    "/v1/chat/completions": "Answer in a conversation",
    "/v1/embeddings": "A vector of unit length for each text",
    "/v1/classify": "Labels of texts; needs a model with such a head",
    "/v1/rank": "Documents by how well they answer a query; needs a model with such a head",
    "/tokenize": "How a text is cut into tokens",
    "/detokenize": "The text of tokens",
    "/v1/models": "The models",
    "/v1/models/{id}": "One model: shape, lineage, scores",
    "/v1/models/{id}/loss.png": "Its loss curve",
    "/v1/status": "How busy the server is",
    "/health": "200 when requests are welcome, 503 while models load or the server shuts down",
    "/version": "The version of gpt2kit",
    "/metrics": "Figures for Prometheus",
}
BODIES: Mapping[str, type[Body]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/classify": ClassifyRequest,
    "/v1/rank": RankRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
ANSWERS: Mapping[str, dict[str, Any]] = {
    "/v1/completions": {"model": answers.CompletionAnswer, "content": STREAM},
    "/v1/chat/completions": {"model": answers.ChatAnswer, "content": STREAM},
    "/v1/embeddings": {"model": answers.EmbeddingAnswer},
    "/v1/classify": {"model": answers.ClassifyAnswer},
    "/v1/rank": {"model": answers.RankAnswer},
    "/tokenize": {"model": answers.TokenizeAnswer},
    "/detokenize": {"model": answers.DetokenizeAnswer},
    "/v1/models/{id}/loss.png": {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
    "/metrics": {"content": {"text/plain": {"schema": {"type": "string"}}}},
}
ERRORS = {
    400: "The request is wrong; param names the field",
    401: "No key, or none of this server's",
    403: "The key's scopes do not cover this, or the request comes from another site",
    404: "No such model",
    408: "The request came too slowly",
    413: "The body is too large",
    429: "A limit of the key is reached",
    431: "The headers are too large",
    500: "The server failed",
    503: "The server is full, loading, or shutting down",
}
OF_GET = (400, 401, 403, 408, 413, 431, 500, 503)


def of(path: str) -> dict[str, Any]:
    """The arguments of FastAPI's add_api_route that describe a route."""
    body = BODIES.get(path)
    statuses = set(OF_GET) | ({404} if "{id}" in path else set()) if body is None else set(ERRORS)
    responses: dict[int | str, dict[str, Any]] = {200: ANSWERS.get(path, {"content": OBJECT})}
    for status in sorted(statuses):
        responses[status] = {"model": answers.ErrorAnswer, "description": ERRORS[status]}
    found: dict[str, Any] = {"summary": SUMMARIES[path], "responses": responses, "response_class": Response}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        found["openapi_extra"] = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        }
    return found


def document(api: FastAPI, names: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI document, with the served models' names where a request takes one."""
    found = get_openapi(title=api.title, version=api.version, routes=api.routes)
    schemas = found["components"]["schemas"]
    for body in BODIES.values():
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        _limit_names(schema, names)
        schemas[body.__name__] = schema
    for item in found["paths"].values():
        for operation in item.values():
            operation["responses"].pop("422", None)  # FastAPI's own; ids are any text
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = {"type": "string", "enum": list(names)}
    return found


def _limit_names(schema: dict[str, Any], names: Sequence[str]) -> None:
    field = schema["properties"]["model"]
    for one in (field, *field.get("anyOf", ())):
        if one.get("type") == "string":
            one["enum"] = list(names)
