"""OpenVINO GenAI's continuous batching behind POST /v1/completions: `openvino_server.py MODEL PORT THREADS STREAMS`.

OpenVINO's own server is not on PyPI. This is the least that its pipeline needs to be asked over HTTP: streamed greedy
answers, no checks, a table instead of a detokenizer. One thread steps the pipeline, as their server does.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

CACHE = 1  # GB of keys and values


class Worker(threading.Thread):
    """Owns the pipeline. A request: token ids, how many new ones, what is told of them (of None at the end)."""

    def __init__(self, model: Path, threads: int, streams: int) -> None:
        super().__init__(daemon=True)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs = CACHE, streams
        properties = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
        self.inbox: queue.SimpleQueue[tuple[list[int], int, Callable[[Any], None]]] = queue.SimpleQueue()

    def run(self) -> None:
        handles: dict[Any, Callable[[Any], None]] = {}
        number = 0
        while True:
            while not handles or not self.inbox.empty():
                ids, tokens, tell = self.inbox.get()
                settings = openvino_genai.GenerationConfig(max_new_tokens=tokens, do_sample=False)
                number += 1
                tensor = openvino.Tensor(np.array([ids], np.int64))
                handles[self.pipeline.add_request(number, tensor, settings)] = tell
            self.pipeline.step()
            for handle, tell in list(handles.items()):
                ended = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
                while handle.can_read():
                    for output in handle.read().values():
                        tell(output.generated_ids)
                if ended:
                    handles.pop(handle)
                    tell(None)


def application(model: Path, threads: int, streams: int) -> Starlette:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    table = [tokenizer.decode([token], skip_special_tokens=False) for token in range(tokenizer.get_vocab_size())]
    worker = Worker(model, threads, streams)
    worker.start()

    async def complete(request: Request) -> Response:
        body = await request.json()
        ids = tokenizer.encode(body["prompt"]).ids
        loop, found = asyncio.get_running_loop(), asyncio.Queue()
        worker.inbox.put((ids, body["max_tokens"], lambda new: loop.call_soon_threadsafe(found.put_nowait, new)))

        async def events() -> AsyncIterator[str]:
            while (new := await found.get()) is not None:
                yield _event("".join(table[token] for token in new), None)
            yield _event("", "length")
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def health(_: Request) -> Response:
        return Response()

    return Starlette(routes=[Route("/v1/completions", complete, methods=["POST"]), Route("/health", health)])


def _event(text: str, finish: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'text': text, 'finish_reason': finish}]})}\n\n"


if __name__ == "__main__":
    folder, port, threads, streams = Path(sys.argv[1]), *map(int, sys.argv[2:])
    uvicorn.run(application(folder, threads, streams), host="127.0.0.1", port=port, log_level="warning")
