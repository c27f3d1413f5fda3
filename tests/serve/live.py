"""A tiny model folder, and real servers on free ports of this machine, in threads of their own."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2kit.engine import Models
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.serve.app import Application, create_app
from gpt2kit.serve.keys import Keys
from gpt2kit.serve.server import Server, address_of, listen
from gpt2kit.serve.settings import ServeSettings
from gpt2kit.text.training import train_tokenizer

TEXT = ["春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "Once upon a time there was a small model 🤗."]
CONTEXT = 128
LIMIT = 20.0  # seconds that a test may wait for anything
ENGINE: dict[str, Any] = {"precision": "fp32", "threads": 1, "max_batch": 8}


def make_model(path: Path, seed: int = 0, n_embd: int = 32, n_layer: int = 2) -> None:
    """Random weights, large enough that no two tokens are equally likely."""
    tokenizer = train_tokenizer(TEXT * 3, "bpe", vocab_size=300)
    config = GPT2Config(tokenizer.vocab_size, CONTEXT, n_embd, n_layer, n_head=2)
    torch.manual_seed(seed)
    model = GPT2(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0)
    folder.save(path, model, tokenizer)


@dataclass
class Live:
    """A server that listens, in a thread of its own."""

    app: Application
    server: Server
    url: str
    port: int
    thread: threading.Thread
    models: Models
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body. `body`: bytes, or what JSON holds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of an answer that must be 200."""
        status, _, found = self.ask("POST", path, {"model": "tiny", **body})
        assert status == 200, found
        return json.loads(found)

    def get(self, path: str) -> Any:
        status, _, found = self.ask("GET", path)
        assert status == 200, found
        return json.loads(found)

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream that ends as it should."""
        status, headers, found = self.ask("POST", path, {"model": "tiny", "stream": True, **body})
        assert status == 200, found
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["x-accel-buffering"] == "no"  # a proxy shall not hold the events back
        return events(found)

    @contextlib.contextmanager
    def leaving_after(self, path: str, **body: Any) -> Iterator[socket.socket]:
        """A client that sends a request and goes away at the end of the block, wherever its answer is."""
        data = json.dumps({"model": "tiny", **body}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT) as client:
            client.sendall(head.encode() + data)
            yield client

    def busy(self, model: str) -> int:
        """Completions that the engine works on or has in line."""
        now = self.app.engines.loaded[model].engine.stats()
        return now.running + now.waiting


def events(body: bytes) -> list[Any]:
    *found, done, rest = body.decode().split("\n\n")
    assert rest == ""
    assert done == "data: [DONE]"
    return [json.loads(one.removeprefix("data: ")) for one in found]


def until(what: Any, seconds: float = LIMIT) -> None:
    """Poll until what() holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(folders: dict[str, Path], keys: Keys | None = None, **settings: Any) -> Iterator[Live]:
    """Serve these folders. `settings`: of ServeSettings."""
    options = {**ENGINE, "models": tuple(f"{name}={path}" for name, path in folders.items()), "port": 0, **settings}
    chosen = ServeSettings(**options)
    models = Models(
        chosen.folders, chosen.model_memory, precision=chosen.precision, threads=chosen.threads,
        max_batch=chosen.max_batch, cache_memory=chosen.cache_memory,
    )  # fmt: skip
    ready = threading.Event()
    app = create_app(models, chosen, keys)
    with listen(chosen) as listener, models:
        url = address_of(listener)
        server = Server(app, chosen, ready.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), name="server")
        thread.start()
        try:
            until(lambda: ready.is_set() or not thread.is_alive(), LIMIT * 3)  # the first run on a machine compiles
            assert ready.is_set(), server.failure
            yield Live(app, server, url, int(url.rsplit(":", 1)[1]), thread, models)
        finally:
            server.stop()
            thread.join(LIMIT * 2)
            assert not thread.is_alive()


@contextlib.contextmanager
def process(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server as users start it, of a model "tiny": the process and its port. Killed at the end if it is there."""
    code = "import sys; from gpt2kit.verbs.serving import VERBS; import tyro\n"
    code += "verb = VERBS['serve']; sys.exit(verb.run(tyro.cli(verb.options, args=sys.argv[1:])))"
    flags = (f"tiny={folder}", "--port", "0", "--precision", "fp32", "--threads", "1", "--max-batch", "8", *flags)
    command = [sys.executable, "-c", code, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as one:
        try:
            assert one.stdout is not None
            line = one.stdout.readline()
            assert " at http://127.0.0.1:" in line, line
            yield one, int(line.rsplit(":", 1)[1])
        finally:
            one.kill()
