"""The routes, asked over real sockets: answers, streams, errors, and clients that go away."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import CONTEXT, ENGINE, LIMIT, Live, serving, until

import gpt2kit
from gpt2kit.engine import Engine
from gpt2kit.model import files
from gpt2kit.model.completion import Completion
from gpt2kit.model.sampling import SamplingSettings
from gpt2kit.serve import app as app_module
from gpt2kit.serve.app import Application, read_page
from gpt2kit.serve.keys import Keys, new_key
from gpt2kit.serve.stream import Lines
from gpt2kit.text.chat import ChatTemplate

LONG = "春眠不觉晓，处处闻啼鸟。Once upon a time there was a small model 🤗."


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[Engine]:
    """What the server's answers are compared with."""
    with Engine.load(model_folder, **ENGINE) as one:
        yield one


def alone(engine: Engine, prompt: Any, **settings: Any) -> list[Completion]:
    found = engine.generate([prompt], SamplingSettings(**settings), window="stop")[0]
    return found if isinstance(found, list) else [found]


def refused(live: Live, path: str, status: int, **body: Any) -> dict[str, Any]:
    """The error of an answer in OpenAI's shape."""
    got, headers, found = live.ask("POST", path, {"model": "tiny", **body})
    assert got == status, found
    assert headers["content-type"] == "application/json"
    error: dict[str, Any] = json.loads(found)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---------------------------------------------------------------- completions


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Once upon", "春眠", "", [5, 6, 7]])
def test_a_completion_is_what_the_engine_writes(live: Live, engine: Engine, prompt: Any, stream: bool) -> None:
    (want,) = alone(engine, prompt, max_tokens=30, temperature=0.9, seed=7)
    body = {"prompt": prompt, "max_tokens": 30, "temperature": 0.9, "seed": 7}
    if stream:
        chunks = live.stream("/v1/completions", **body)
        text = "".join(one["choices"][0]["text"] for one in chunks)
        finish = chunks[-1]["choices"][0]["finish_reason"]
        assert len({(one["id"], one["created"]) for one in chunks}) == 1
        assert all("usage" not in one for one in chunks)
    else:
        answer = live.post("/v1/completions", **body)
        (choice,) = answer["choices"]
        text, finish = choice["text"], choice["finish_reason"]
        ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt  # type: ignore[union-attr]
        assert answer["usage"]["prompt_tokens"] == max(1, len(ids))
        assert answer["usage"]["completion_tokens"] == len(want.token_ids)
    assert (text, finish) == (want.text, want.finish_reason)


def test_several_prompts_with_several_completions_each(live: Live, engine: Engine) -> None:
    prompts = ["Once", "春", "a"]
    body = {"prompt": prompts, "n": 2, "max_tokens": 12, "temperature": 1.0, "seed": 3}
    want = [one.text for prompt in prompts for one in alone(engine, prompt, n=2, max_tokens=12, seed=3)]
    answer = live.post("/v1/completions", **body)
    assert [one["index"] for one in answer["choices"]] == list(range(6))
    assert [one["text"] for one in answer["choices"]] == want
    assert answer["usage"]["prompt_tokens"] == sum(len(engine.tokenizer.encode(one)) for one in prompts)  # type: ignore[union-attr]
    texts = [""] * 6
    chunks = live.stream("/v1/completions", **body, stream_options={"include_usage": True})
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == want
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], answer["usage"]["total_tokens"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("prompts", [["Once 春", "a"], [[5, 6], [7]]])
def test_echo_with_and_without_logprobs(
    live: Live, engine: Engine, prompts: list[Any], logprobs: int | None, stream: bool
) -> None:
    body = {"prompt": prompts, "echo": True, "logprobs": logprobs, "max_tokens": 4, "temperature": 0}
    columns: list[dict[str, list[Any]]] = [{}, {}]
    texts = ["", ""]
    chunks = live.stream("/v1/completions", **body) if stream else [live.post("/v1/completions", **body)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                columns[choice["index"]].setdefault(name, []).extend(values)
    for number, prompt in enumerate(prompts):
        tokenizer = engine.tokenizer
        assert tokenizer is not None
        (want,) = alone(engine, prompt, max_tokens=4, temperature=0, logprobs=logprobs)
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        assert texts[number] == text + (want.text or "")
        if logprobs is None:
            assert not columns[number]
            continue
        scores = engine.score([prompt], logprobs)[0]
        assert want.logprobs is not None
        assert columns[number]["token_logprobs"] == [None if one is None else one.logprob for one in scores] + [
            one.logprob for one in want.logprobs
        ]


def test_a_harness_scores_a_text_without_generating(live: Live, engine: Engine) -> None:
    answer = live.post("/v1/completions", prompt=[5, 6, 7, 8], echo=True, logprobs=1, max_tokens=0, temperature=0)
    found = answer["choices"][0]["logprobs"]
    assert found["token_logprobs"][1:] == [one.logprob for one in engine.score([[5, 6, 7, 8]], 1)[0][1:]]  # type: ignore[union-attr]
    assert found["token_logprobs"][0] is None
    assert all(len(top) in (1, 2) for top in found["top_logprobs"][1:])
    assert answer["usage"]["completion_tokens"] == 0


def test_the_best_of_many_by_mean_logprob(live: Live, engine: Engine) -> None:
    made = alone(engine, "Once", n=5, max_tokens=6, seed=1, logprobs=0, ignore_eos=True)
    means = {one.text: np.mean([choice.logprob for choice in one.logprobs or ()]) for one in made}
    answer = live.post("/v1/completions", prompt="Once", n=2, best_of=5, max_tokens=6, seed=1, ignore_eos=True)
    assert [one["text"] for one in answer["choices"]] == sorted(means, key=lambda text: -means[text])[:2]
    assert answer["usage"]["completion_tokens"] == 30


def test_a_stream_with_logprobs_has_those_of_the_whole_answer(live: Live) -> None:
    body = {"prompt": "春", "max_tokens": 20, "seed": 5, "logprobs": 2}
    whole = live.post("/v1/completions", **body)["choices"][0]["logprobs"]
    columns: dict[str, list[Any]] = {name: [] for name in whole}
    for chunk in live.stream("/v1/completions", **body):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            columns[name] += values
    assert columns == whole


def test_tokens_that_were_cached_are_told(live: Live) -> None:
    body = {"prompt": LONG, "max_tokens": 1, "temperature": 0}
    live.post("/v1/completions", **body)
    found = live.post("/v1/completions", **body)["usage"]
    assert 0 < found["prompt_tokens_details"]["cached_tokens"] < found["prompt_tokens"]


def test_a_prompt_beyond_the_context_is_a_400_with_the_numbers(live: Live) -> None:
    error = refused(live, "/v1/completions", 400, prompt=[[5], [5] * (CONTEXT + 1)])
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert error["message"].endswith("128 tokens, the prompt has 129")
    assert f" {CONTEXT} " in error["message"]
    assert f" {CONTEXT + 1}" in error["message"]
    answer = live.post("/v1/completions", prompt=[5] * CONTEXT, max_tokens=5)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")
    answer = live.post("/v1/completions", prompt=[5] * (CONTEXT - 2), max_tokens=50, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_cannot_do_is_a_400_also_for_a_stream(live: Live, stream: bool) -> None:
    error = refused(live, "/v1/completions", 400, prompt=[100_000], stream=stream)
    assert "100000" in error["message"]
    error = refused(live, "/v1/completions", 400, prompt="a", logit_bias={"99999": 1}, stream=stream)
    assert "logit_bias" in error["message"]


@pytest.mark.parametrize(
    ("path", "param", "body"),
    [
        ("/v1/completions", "prompt", {"prompt": [[5], [400]]}),
        ("/v1/completions", "logit_bias", {"prompt": "a", "logit_bias": {"400": 1}}),
        ("/v1/completions", "stop_token_ids", {"prompt": "a", "stop_token_ids": [5, 400]}),
        ("/v1/embeddings", "input", {"input": [400]}),
    ],
)
def test_a_token_that_the_model_has_not_is_told_by_the_field(live: Live, path: str, param: str, body: Any) -> None:
    error = refused(live, path, 400, **body)
    assert error["param"] == param
    assert "400" in error["message"]
    assert error["message"].endswith("outside the vocabulary of 300 tokens")


def test_a_completion_without_a_prompt_is_a_new_text(live: Live) -> None:
    asked = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
    texts = [
        live.post("/v1/completions", **more, **asked)["choices"] for more in ({}, {"prompt": None}, {"prompt": ""})
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("stream", [False, True])
def test_echoed_prompts_count_as_often_as_they_are_given_back(live: Live, stream: bool) -> None:
    before = live.app.engines.loaded["tiny"].engine.stats().totals.prompt_tokens
    body = {"prompt": [[5] * 100] * 50, "max_tokens": 0, "echo": True, "logprobs": 5, "stream": stream}
    error = refused(live, "/v1/completions", 400, n=16, **body)
    assert error["param"] == "echo"
    assert "16 times 5000 tokens of prompts and 0 new ones are more than 65536" in error["message"]
    assert live.app.engines.loaded["tiny"].engine.stats().totals.prompt_tokens == before


def test_the_chunks_of_a_long_echo_are_made_beside_the_event_loop(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    real = Lines.events

    def noting(self: Lines, came: Any) -> str:
        threads.append(threading.current_thread().name)
        return real(self, came)

    monkeypatch.setattr(Lines, "events", noting)
    body = {"prompt": [[5] * 120] * 8, "max_tokens": 0, "echo": True, "stream": True}
    assert len(live.stream("/v1/completions", **body, logprobs=5)) == 8
    assert {name.split("_")[0] for name in threads} == {"gpt2kit-text"}
    threads.clear()
    live.stream("/v1/completions", prompt="a", max_tokens=2)
    assert "gpt2kit-text" not in {name.split("_")[0] for name in threads}


def test_line_ends_of_other_standards_are_escaped_in_a_stream(live: Live) -> None:
    text = "a\u2028b\u2029c\u0085d 春"
    body = {"model": "tiny", "prompt": text, "echo": True, "max_tokens": 1, "stream": True, "ignore_eos": True}
    _, _, found = live.ask("POST", "/v1/completions", body)
    lines = found.decode().splitlines()  # which ends a line at all three
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"].startswith(text)
    assert "春" in lines[0]


def test_an_unknown_model_is_a_404(live: Live) -> None:
    for path, body in {
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
        "/v1/embeddings": {"input": "a"},
        "/tokenize": {"prompt": "a"},
        "/v1/rank": {"query": "a", "documents": ["b"]},
    }.items():
        assert refused(live, path, 404, **body, model="gpt-5")["code"] == "model_not_found"


def test_a_keys_tokens_are_counted_with_the_prompts_and_as_they_were_used(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = new_key(file, "shop", tokens_per_minute=100)
    with serving({"tiny": model_folder}, Keys.load(file), api_key_file=str(file)) as live:
        live.headers["authorization"] = f"Bearer {secret}"

        def ask(prompt: int, max_tokens: int, n: int = 1) -> int:
            body = {"model": "tiny", "prompt": [5] * prompt, "max_tokens": max_tokens, "n": n, "temperature": 0}
            return live.ask("POST", "/v1/completions", {**body, "logit_bias": {"299": 100}})[0]  # EOS at once

        assert ask(51, 50) == 429  # more than a minute's, whatever comes of it
        assert live.get("/v1/status")["models"]["tiny"]["generation_tokens"] == 0  # the engine heard nothing of it
        assert live.app.engines.loaded["tiny"].engine.stats().totals.requests == 0
        assert ask(1, 50, n=2) == 429
        assert ask(50, 50) == 200
        used = live.get("/v1/status")["models"]["tiny"]["generation_tokens"]
        assert used < 10  # it ended early: the rest was given back
        assert ask(50 - used, 1) == 429
        assert ask(49 - used, 1) == 200


# ---------------------------------------------------------------- chat


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|endoftext|> 春"}]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_goes_through_the_models_template(live: Live, chat_folder: Path, stream: bool) -> None:
    with Engine.load(chat_folder, **ENGINE) as engine:
        assert engine.tokenizer is not None
        ids = ChatTemplate().encode(engine.tokenizer, TURNS)
        (want,) = alone(engine, ids, max_tokens=10, temperature=0.8, seed=2)
    body = {"model": "chatty", "messages": TURNS, "max_completion_tokens": 10, "temperature": 0.8, "seed": 2}
    if not stream:
        answer = live.post("/v1/chat/completions", **body)
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": want.text, "refusal": None}
        assert answer["usage"]["prompt_tokens"] == len(ids)
        return
    chunks = live.stream("/v1/chat/completions", **body)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == want.text
    assert chunks[-1]["choices"][0]["finish_reason"] == want.finish_reason


def test_chat_without_a_limit_goes_on_to_the_end_of_the_context(live: Live) -> None:
    answer = live.post("/v1/chat/completions", model="chatty", messages=TURNS, ignore_eos=True, temperature=0)
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


def test_chat_needs_a_template_and_room(live: Live) -> None:
    error = refused(live, "/v1/chat/completions", 400, messages=TURNS)
    assert error["code"] == "no_chat_template"
    turns = [{"role": "user", "content": "春" * 100}]
    error = refused(live, "/v1/chat/completions", 400, model="chatty", messages=turns)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert re.fullmatch(r".* length is 128 tokens, the messages have \d+", error["message"])
    error = refused(live, "/v1/chat/completions", 400, model="chatty", messages=TURNS, tools=[])
    assert error["param"] == "tools"


# ---------------------------------------------------------------- vectors, tokens, heads


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_of_unit_length(live: Live, engine: Engine, pooling: str) -> None:
    inputs = ["Once upon", "春眠不觉晓", "Once upon"]
    vectors = engine.embed(inputs, pooling)  # type: ignore[arg-type]
    answer = live.post("/v1/embeddings", input=inputs, pooling=pooling)
    found = np.array([one["embedding"] for one in answer["data"]])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.allclose(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    packed = live.post("/v1/embeddings", input=inputs, pooling=pooling, encoding_format="base64")
    for one, other in zip(packed["data"], found, strict=True):
        data = base64.b64decode(one["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == other.tolist()
    assert refused(live, "/v1/embeddings", 400, input=[[5] * (CONTEXT + 1)])["code"] == "context_length_exceeded"


def test_many_inputs_at_once(live: Live) -> None:
    answer = live.post("/v1/embeddings", input=[[5, 6, i % 50 + 1] for i in range(300)])
    assert len(answer["data"]) == 300
    assert answer["usage"] == {"prompt_tokens": 900, "total_tokens": 900}
    assert answer["data"][0]["embedding"] == answer["data"][250]["embedding"]


@pytest.mark.parametrize("repeat", [1, 40])  # at once; in a thread
def test_a_text_is_cut_and_joined(live: Live, engine: Engine, repeat: int) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(LONG * repeat)
    found = live.post("/tokenize", prompt=LONG * repeat)
    assert found["tokens"] == ids
    assert (found["count"], found["max_model_len"]) == (len(ids), CONTEXT)
    assert b"".join(bytes.fromhex(one["bytes"]) for one in found["pieces"]).decode() == LONG * repeat
    first = live.ask("POST", "/tokenize", {"prompt": LONG})  # the first model is the default
    assert json.loads(first[2])["tokens"] == ids[: len(ids) // repeat]
    assert live.post("/detokenize", tokens=ids[:1500])["prompt"] == engine.tokenizer.decode(ids[:1500])
    assert refused(live, "/detokenize", 400, tokens=[100_000])["message"]


def test_heads_that_no_model_has(live: Live) -> None:
    assert refused(live, "/v1/classify", 400, input="a")["code"] == "no_such_head"
    assert refused(live, "/v1/rank", 400, query="a", documents=["b"])["code"] == "no_such_head"


# ---------------------------------------------------------------- models, server, page


def test_the_models_are_listed_with_what_is_known_of_them(live: Live, model_folder: Path) -> None:
    found = live.get("/v1/models")
    assert (found["object"], [one["id"] for one in found["data"]]) == ("list", ["tiny", "chatty"])
    tiny = live.get("/v1/models/tiny")
    assert tiny == found["data"][0]
    assert (tiny["object"], tiny["created"]) == ("model", int((model_folder / "config.json").stat().st_mtime))
    about = tiny["gpt2kit"]
    assert about["config"]["n_positions"] == about["context"] == CONTEXT
    assert about["parameters"] == files.describe(model_folder)["parameters"]
    assert (about["chat"], live.get("/v1/models/chatty")["gpt2kit"]["chat"]) == (False, True)
    assert (about["loaded"], about["precision"]) == (True, ENGINE["precision"])
    assert str(model_folder.parent) not in json.dumps(found)
    answer = live.post("/v1/completions", prompt="a", max_tokens=1)
    assert answer["system_fingerprint"] == files.identity(model_folder)[:12]


@pytest.mark.parametrize("name", ["nobody", "..", "%2e%2e%2ftiny", "tiny%00", "%e6%98", "x" * 300])
def test_a_model_that_is_not_there_is_a_404_whatever_its_name(live: Live, name: str) -> None:
    for path in (f"/v1/models/{name}", f"/v1/models/{name}/loss.png"):
        assert live.ask("GET", path)[0] == 404


def test_the_loss_curve_of_a_run(tmp_path: Path, model_folder: Path) -> None:
    for name, has_curve in {"with": True, "without": False, "linked": False}.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in model_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if has_curve:
            (folder / "loss.png").write_bytes(b"\x89PNG curve")
    (tmp_path / "linked" / "loss.png").symlink_to("/etc/passwd")
    folders = {name: tmp_path / name for name in ("with", "without", "linked")}
    with serving(folders) as live:
        status, headers, body = live.ask("GET", "/v1/models/with/loss.png")
        assert (status, headers["content-type"], body) == (200, "image/png", b"\x89PNG curve")
        assert live.ask("GET", "/v1/models/without/loss.png")[0] == 404
        assert live.ask("GET", "/v1/models/linked/loss.png")[0] == 404
        assert [one["gpt2kit"]["loss_picture"] for one in live.get("/v1/models")["data"]] == [True, False, False]
        (tmp_path / "without" / "config.json").write_text("{")
        assert [one["id"] for one in live.get("/v1/models")["data"]] == list(folders)


def test_the_status_says_how_busy_the_server_is(live: Live) -> None:
    before = live.get("/v1/status")
    live.post("/v1/completions", prompt="Once", max_tokens=50, ignore_eos=True)
    found = live.get("/v1/status")
    assert found["version"] == gpt2kit.__version__
    assert found["uptime"] >= before["uptime"] >= 0
    made = found["models"]["tiny"]["generation_tokens"] - before["models"]["tiny"]["generation_tokens"]
    assert made == 50
    assert (found["running"], found["waiting"], found["draining"]) == (0, 0, False)
    until(lambda: live.get("/v1/status")["tokens_per_second"] > 0)


def test_health_and_version_need_nothing(live: Live) -> None:
    assert live.get("/health") == {"status": "ok"}
    assert live.get("/version") == {"version": gpt2kit.__version__}


def test_health_is_503_before_the_models_are_there(live: Live) -> None:
    app: Application = live.app
    app.engines.is_ready = False
    try:
        status, headers, body = live.ask("GET", "/health")
        assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "1", "loading")
    finally:
        app.engines.is_ready = True


def test_a_server_that_drains_refuses_everything_new_before_it_reads_it(live: Live) -> None:
    live.app.admission.draining = True
    try:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"):
            status, headers, body = live.ask("POST", path, b"not even JSON")
            assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
            assert "retry-after" in headers
        assert live.ask("GET", "/health")[0] == 503
        assert live.ask("GET", "/metrics")[0] == 200
    finally:
        live.app.admission.draining = False


def test_what_is_not_there_is_told_in_the_same_shape(live: Live) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("PUT", "/v1/completions", 405), ("POST", "/health", 405)):
        got, headers, body = live.ask(method, path, {} if method != "GET" else None)
        assert got == status
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert ("allow" in headers) == (status == 405)


def test_the_page_is_served_from_memory(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("index.html", "app.js", "deep/icon.svg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(app_module, "UI", tmp_path)
    assert set(read_page()) == {"/", "/ui/app.js", "/ui/deep/icon.svg"}
    for path in ("/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/", "/ui/nothing.js", "//etc/passwd"):
        assert live.ask("GET", path)[0] == 404
    status, headers, body = live.ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body == (Path(app_module.__file__).parent / "ui" / "index.html").read_bytes()


def test_the_documents_name_every_route_and_the_error_shape(live: Live) -> None:
    found = live.get("/openapi.json")
    assert set(found["paths"]) == {
        "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/classify", "/v1/rank", "/tokenize",
        "/detokenize", "/v1/models", "/v1/models/{id}", "/v1/models/{id}/loss.png", "/v1/status", "/health",
        "/version", "/metrics",
    }  # fmt: skip
    for path, item in found["paths"].items():
        for operation in item.values():
            assert "422" not in operation["responses"]
            assert {"400", "401", "403", "503"} <= set(operation["responses"]), path
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    names = found["components"]["schemas"]["CompletionRequest"]["properties"]["model"]["enum"]
    assert names == ["tiny", "chatty"]


# ---------------------------------------------------------------- answers that are remembered


@pytest.fixture(scope="module")
def remembering(model_folder: Path) -> Iterator[Live]:
    with serving({"tiny": model_folder}, response_cache=1 << 20) as one:
        yield one


def misses_and_steps(live: Live) -> tuple[int, int, int]:
    found = live.get("/v1/status")["remembered"]
    return found["hits"], found["misses"], live.app.engines.loaded["tiny"].engine.stats().totals.steps


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"n": 2}, {"stop": "a"}])
def test_a_remembered_answer_is_the_same_whole_or_streamed(remembering: Live, more: dict[str, Any]) -> None:
    body = {"prompt": ["春", "Once"], "max_tokens": 15, "seed": 11, **more}

    def told(answer: Any) -> Any:
        return [answer["choices"], answer["usage"]["total_tokens"]]

    def joined() -> Any:
        choices: dict[int, dict[str, Any]] = {}
        for chunk in remembering.stream("/v1/completions", **body):
            for one in chunk["choices"]:
                known = choices.setdefault(one["index"], {**one, "text": "", "logprobs": None})
                known["text"] += one["text"]
                known["finish_reason"] = one["finish_reason"] or known["finish_reason"]
                if one["logprobs"] is not None:
                    columns = known["logprobs"] or {name: [] for name in one["logprobs"]}
                    known["logprobs"] = {name: columns[name] + values for name, values in one["logprobs"].items()}
        return [choices[index] for index in sorted(choices)]

    streamed = joined()
    hits, misses, steps = misses_and_steps(remembering)
    first = remembering.post("/v1/completions", **body)
    assert told(first) == told(remembering.post("/v1/completions", **body))
    assert first["choices"] == streamed == joined()
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"]
    assert misses_and_steps(remembering) == (hits + 6, misses, steps)


def test_one_prompt_of_several_may_be_remembered(remembering: Live) -> None:
    body = {"max_tokens": 9, "temperature": 0}
    known = remembering.post("/v1/completions", prompt="known", **body)["choices"][0]["text"]
    new = remembering.post("/v1/completions", prompt=["new", "known", "newer"], **body)
    assert new["choices"][1]["text"] == known
    for stream in (False, True):
        body["max_tokens"] += 1
        remembering.post("/v1/completions", prompt="known", **body)
        if stream:
            texts = ["", "", ""]
            for chunk in remembering.stream("/v1/completions", prompt=["new", "known", "newer"], **body):
                texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        else:
            answer = remembering.post("/v1/completions", prompt=["new", "known", "newer"], **body)
            texts = [one["text"] for one in answer["choices"]]
        alone = [
            remembering.post("/v1/completions", prompt=one, **body)["choices"][0]["text"]
            for one in ("new", "known", "newer")
        ]
        assert texts == alone


def test_what_is_drawn_anew_each_time_is_not_remembered(remembering: Live) -> None:
    before = misses_and_steps(remembering)
    texts = {remembering.post("/v1/completions", prompt="a", max_tokens=20)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) > 1
    assert misses_and_steps(remembering)[:2] == before[:2]


# ---------------------------------------------------------------- clients that go away


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_places(live: Live, stream: bool) -> None:
    """Hundreds of steps of work are asked for; a few are made."""
    counters = live.app.engines.loaded["tiny"].engine.stats().totals
    body = {"prompt": "Once", "max_tokens": 100, "n": 16, "best_of": 16, "ignore_eos": True, "stream": stream}
    del body["best_of"]
    for _ in range(5):
        with live.leaving_after("/v1/completions", **body) as client:
            if stream:
                client.recv(1)
            else:
                until(lambda: live.busy("tiny") > 0)
        until(lambda: live.busy("tiny") == 0 and live.app.admission.running == 0)
    after = live.app.engines.loaded["tiny"].engine.stats().totals
    assert after.cancelled > counters.cancelled
    assert after.generation_tokens - counters.generation_tokens < 5 * 16 * 100
    assert live.app.engines.loaded["tiny"].engine.stats().blocks_used == 0


def test_a_client_that_goes_in_line_is_forgotten(live: Live) -> None:
    admission = live.app.admission
    with live.leaving_after("/v1/completions", prompt="a", max_tokens=100, n=16, ignore_eos=True, stream=True):
        if live.busy("tiny"):
            with live.leaving_after("/v1/completions", prompt="b"):
                pass
    until(lambda: not admission.running and not admission.waiting and not live.busy("tiny"))


def test_clients_that_go_while_they_wait_are_no_errors_of_the_server(model_folder: Path) -> None:
    with serving({"tiny": model_folder}, max_batch=1) as live:
        admission = live.app.admission
        full = {"prompt": "a", "max_tokens": 120, "n": 16, "ignore_eos": True, "stream": True}
        with live.leaving_after("/v1/completions", **full) as first:
            first.recv(1)
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    stack.enter_context(live.leaving_after("/v1/completions", prompt="b"))
                until(lambda: admission.waiting == 3 or not live.busy("tiny"))
        until(lambda: not admission.running and not admission.waiting and not live.busy("tiny"))
        assert "gpt2kit_request_errors_total{" not in live.ask("GET", "/metrics")[2].decode()


def test_a_client_that_goes_while_it_sends_its_body_leaves_nothing(live: Live) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", live.port), timeout=LIMIT) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert live.get("/health") == {"status": "ok"}
    assert live.app.admission.running == 0


def test_an_error_behind_the_headers_is_one_event_and_no_done(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2kit.serve import inference

    def fail(outcomes: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr(inference.answers, "usage_of", fail)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 100, "n": 4, "stream": True, "ignore_eos": True}
    status, _, found = live.ask("POST", "/v1/completions", body)
    if status == 500:  # everything came at once: no header had gone
        assert "secret" not in found.decode()
        return
    *chunks, error = [json.loads(one.removeprefix("data: ")) for one in found.decode().split("\n\n")[:-1]]
    assert b"[DONE]" not in found
    assert all("choices" in one for one in chunks)
    assert error == {"error": {"message": "the server failed", "type": "server_error", "param": None, "code": None}}
