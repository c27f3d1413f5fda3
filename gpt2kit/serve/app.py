"""The server as one ASGI app: the routes, with the guard around them.

    app = create_app(models, settings, keys)
    await app.engines.preload(settings.first_loaded)  # /health is 503 until then

Runs in any ASGI server, and in several processes or replicas: it keeps nothing on disk.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException

import gpt2kit
from gpt2kit.serve import documents
from gpt2kit.serve.admission import Admission
from gpt2kit.serve.errors import ApiError
from gpt2kit.serve.guard import Guard
from gpt2kit.serve.inference import Inference
from gpt2kit.serve.metrics import Metrics, Speed
from gpt2kit.serve.protocol import Body, parse
from gpt2kit.serve.remembered import Remembered
from gpt2kit.serve.running import Engines, Facts
from gpt2kit.serve.stream import to_json

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gpt2kit.engine import Models
    from gpt2kit.serve.keys import Keys
    from gpt2kit.serve.settings import ServeSettings

Endpoint = Callable[..., Awaitable[Response]]
Work = Callable[[Any, "Scope", "Receive", "Send"], Awaitable[None]]

UI = Path(__file__).parent / "ui"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
LARGEST_PICTURE = 1 << 23  # bytes


def create_app(models: Models, settings: ServeSettings, keys: Keys | None = None) -> Application:
    """The whole server, for one event loop. `keys` None: nobody needs one."""
    return Application(models, settings, keys)


class Application:
    """An ASGI app. `api` is FastAPI's, behind the guard."""

    def __init__(self, models: Models, settings: ServeSettings, keys: Keys | None = None) -> None:
        self.engines = Engines(models, settings.laid)
        self.admission = Admission(settings)
        routes = _Routes(settings, self.engines, self.admission, dict(models.folders))
        self.api: FastAPI = _Api(routes)
        self._guard = Guard(self.api, settings, keys, routes.metrics.count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)


class _Api(FastAPI):
    """FastAPI without its own pages for errors: what goes wrong, the guard answers in OpenAI's shape."""

    def __init__(self, routes: _Routes) -> None:
        super().__init__(
            title="gpt2kit serve", version=routes.release, docs_url=None, redoc_url=None, lifespan=self._lifespan
        )
        self._engines, self._admission = routes.engines, routes.admission
        routes.add_to(self)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        self._engines.close()

    def build_middleware_stack(self) -> ASGIApp:
        return AsyncExitStackMiddleware(self.router)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["path"] in documents.BODIES:  # before anything is spent on it
                self._admission.check_room()
            await super().__call__(scope, receive, send)
        except HTTPException as error:  # of the router: no such route, or not with this method
            text = {404: "there is no such route", 405: "this route has no such method"}.get(error.status_code)
            body = ApiError(error.status_code, text or "the request is wrong").body()
            await _json(body, error.status_code, error.headers)(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = documents.document(self, self._engines.names)
        return self.openapi_schema


class Later(Response):
    """An answer that is made while it is sent."""

    def __init__(self, work: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._work(scope, receive, send)


class _Routes:
    """What is behind each route. Small answers are made here, those that need a model by Inference."""

    def __init__(
        self, settings: ServeSettings, engines: Engines, admission: Admission, folders: dict[str, str | Path]
    ) -> None:
        self.settings, self.engines, self.admission, self.folders = settings, engines, admission, folders
        self.metrics = Metrics(engines, admission)
        self.remembered = Remembered(settings.response_cache)
        self.inference = Inference(settings, engines, admission, self.metrics, self.remembered)
        self.speed = Speed()
        self.release = gpt2kit.__version__  # which is read from disk each time
        self.begun = time.monotonic()

    def add_to(self, api: FastAPI) -> None:
        inference = self.inference
        posts: dict[str, Work] = {
            "/v1/completions": inference.generate,
            "/v1/chat/completions": inference.generate,
            "/v1/embeddings": inference.embed,
            "/tokenize": inference.tokenize,
            "/detokenize": inference.detokenize,
            "/v1/classify": inference.classify,
            "/v1/rank": inference.rank,
        }
        for path, work in posts.items():
            endpoint = self._post(documents.BODIES[path], work)
            api.add_api_route(path, endpoint, methods=["POST"], response_model=None, **documents.of(path))
        gets: dict[str, Endpoint] = {
            "/v1/models": self.models,
            "/v1/models/{id}": self.model,
            "/v1/models/{id}/loss.png": self.loss_picture,
            "/v1/status": self.status,
            "/health": self.health,
            "/version": self.version,
            "/metrics": self.figures,
        }
        for path, endpoint in gets.items():
            api.add_api_route(path, endpoint, methods=["GET"], response_model=None, **documents.of(path))
        for path, response in read_page().items():
            api.add_api_route(path, response, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)

    def _post(self, kind: type[Body], work: Work) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            asked = await self.engines.do(len(body), parse, kind, body, self.settings)
            return Later(functools.partial(work, asked))

        return endpoint

    # -------------------------------------------------------------------------------------------- about models

    async def models(self) -> Response:
        found = []
        for name in self.engines.names:
            try:
                found.append(self._card(await self.engines.facts(name)))
            except ApiError:  # one damaged folder does not hide the others; the log has the reason
                found.append({"id": name, "object": "model", "created": 0, "owned_by": "gpt2kit"})
        return _json({"object": "list", "data": found})

    async def model(self, id: str) -> Response:
        return _json(self._card(await self.engines.facts(id)))

    def _card(self, facts: Facts) -> dict[str, Any]:
        known = facts.described
        base = self.engines.base_of(facts.name)
        served = self.engines.loaded.get(base)
        about = {
            "config": known["config"],
            "parameters": known["parameters"],
            "tokenizer": known["tokenizer"],
            "lineage": known["lineage"],
            "scores": known["scores"],
            "context": known["config"]["n_positions"],
            "chat": facts.template is not None,
            "loss_picture": self._loss_picture(facts.name) is not None,
            "loaded": served is not None,
            "precision": None if served is None else served.engine.precision,
        }
        return {
            "id": facts.name,
            "object": "model",
            "created": facts.created,
            "owned_by": "gpt2kit",
            "parent": None if base == facts.name else base,  # of an adapter
            "gpt2kit": about,
        }

    async def loss_picture(self, id: str) -> Response:
        self.engines.check(id)
        path = self._loss_picture(id)
        if path is None:
            raise ApiError(404, "this model's folder has no loss.png")
        return Response(await self.engines.do(LARGEST_PICTURE, path.read_bytes), media_type="image/png")

    def _loss_picture(self, name: str) -> Path | None:
        if name not in self.folders:  # an adapter
            return None
        path = Path(self.folders[name]) / "loss.png"
        is_there = path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST_PICTURE
        return path if is_there else None

    # -------------------------------------------------------------------------------------------- about the server

    async def status(self) -> Response:
        """For the page: how busy the server is, and each loaded model."""
        loaded = {name: served.engine.stats() for name, served in self.engines.loaded.items()}
        made = sum(one.totals.generation_tokens for one in loaded.values())
        models = {
            name: {
                "running": one.running,
                "waiting": one.waiting,
                "cache_usage": one.cache_usage,
                "cached_blocks": one.blocks_cached,
                "blocks": one.blocks,
                "prompt_tokens": one.totals.prompt_tokens,
                "prefix_tokens": one.totals.prefix_tokens,
                "generation_tokens": one.totals.generation_tokens,
                "draft_tokens": one.totals.draft_tokens,
                "accepted_tokens": one.totals.accepted_tokens,
                "adapters": self.engines.loaded[name].engine.adapters,
            }
            for name, one in loaded.items()
        }
        return _json(
            {
                "version": self.release,
                "uptime": time.monotonic() - self.begun,
                "running": sum(one.running for one in loaded.values()),
                "waiting": sum(one.waiting for one in loaded.values()) + self.admission.waiting,
                "tokens_per_second": self.speed.now(made),
                "draining": self.admission.draining,
                "remembered": {"hits": self.remembered.hits, "misses": self.remembered.misses},
                "models": models,
            }
        )

    async def health(self) -> Response:
        """200 when requests are welcome."""
        self.admission.check_open()
        if not self.engines.is_ready:
            raise ApiError(503, "the models are loading", code="loading", retry_after=1.0)
        return _json({"status": "ok"})

    async def version(self) -> Response:
        return _json({"version": self.release})

    async def figures(self) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")


def read_page() -> dict[str, Endpoint]:
    """The page's files by their routes, read once: no path of a request ever reaches the file system."""
    found: dict[str, Endpoint] = {}
    for path in sorted(UI.rglob("*")):
        if path.is_file() and path.suffix in TYPES:
            name = path.relative_to(UI).as_posix()
            found["/" if name == "index.html" else f"/ui/{name}"] = _file(path.read_bytes(), TYPES[path.suffix])
    return found


def _file(content: bytes, media_type: str) -> Endpoint:
    async def endpoint() -> Response:
        return Response(content, media_type=media_type)

    return endpoint
