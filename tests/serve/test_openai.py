"""The official openai client against a real server: what it sends, what it reads, how it tries again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from live import CONTEXT, Live, serving
from openai import AsyncOpenAI, OpenAI

from gpt2kit.serve.keys import Keys, new_key
from gpt2kit.text.tokenizer import Tokenizer

TURNS: Any = [{"role": "user", "content": "春眠不觉晓"}]


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=20) as one:
        yield one


def test_models(client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["tiny", "chatty"]
    assert client.models.retrieve("tiny").owned_by == "gpt2kit"


def test_a_completion_with_its_usage(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="Once", max_tokens=5, seed=1, extra_body={"ignore_eos": True}
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer.usage.prompt_tokens_details is not None
    assert answer.system_fingerprint is not None
    assert len(answer.system_fingerprint) == 12


def test_a_streamed_completion_is_the_whole_one(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "春", "max_tokens": 40, "seed": 9}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].text for one in chunks if one.choices) == whole.choices[0].text
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].choices == []


def test_chat(client: OpenAI) -> None:
    asked: Any = {"model": "chatty", "messages": TURNS, "max_completion_tokens": 20, "seed": 4}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_clients_own_stream_helper_rebuilds_the_answer(client: OpenAI) -> None:
    asked: Any = {"model": "chatty", "messages": TURNS, "max_tokens": 40, "seed": 4, "extra_body": {"ignore_eos": True}}
    text = client.chat.completions.create(**asked).choices[0].message.content
    asked["stop"] = next(one for one in (text or "")[3:] if one != "\ufffd")  # the helper refuses what "length" ended
    with client.chat.completions.stream(**asked) as stream:
        found = stream.get_final_completion()
    assert found.choices[0].message.content == client.chat.completions.create(**asked).choices[0].message.content


def test_logprobs_in_both_forms(client: OpenAI, model_folder: Path) -> None:
    answer = client.completions.create(
        model="tiny", prompt="Once 春", max_tokens=0, echo=True, logprobs=3, temperature=0
    )
    found = answer.choices[0].logprobs
    assert found is not None
    ids = Tokenizer.load(model_folder).encode("Once 春")
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert len(found.tokens) == len(found.token_logprobs) == len(ids)
    assert found.token_logprobs[0] is None
    assert all(one < 0 for one in found.token_logprobs[1:])
    assert found.text_offset is not None
    assert found.text_offset == sorted(found.text_offset)

    chat = client.chat.completions.create(
        model="chatty", messages=TURNS, max_tokens=8, logprobs=True, top_logprobs=20, temperature=0
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert all(len(one.top_logprobs) == 20 for one in content)
    assert all(one.logprob == one.top_logprobs[0].logprob for one in content)  # greedy takes the likeliest
    text = b"".join(bytes(one.bytes or ()) for one in content).decode("utf-8", "replace")
    assert text.startswith((chat.choices[0].message.content or "").rstrip("\ufffd"))


def test_embeddings_as_the_client_asks_for_them_and_as_floats(client: OpenAI) -> None:
    packed = client.embeddings.create(model="tiny", input=["Once", "春"])  # base64, unpacked by the client
    plain = client.embeddings.create(model="tiny", input=["Once", "春"], encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
    assert sum(x * x for x in packed.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens


def test_errors_become_the_clients_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="nobody", prompt="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="a", temperature=3)
    assert (wrong.value.param, wrong.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * (CONTEXT + 1), stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model="tiny", messages=TURNS)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="chatty", messages=TURNS, tools=[{"type": "function"}])  # type: ignore[list-item]


def test_the_request_id_is_the_clients_to_read(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=1, extra_headers={"x-request-id": "mine-1"})
    assert answer._request_id == "mine-1"


def test_keys_and_their_limits(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = new_key(file, "shop", requests_per_minute=2)
    with serving({"tiny": model_folder}, Keys.load(file), api_key_file=str(file)) as live:
        base = f"{live.url}/v1"
        with OpenAI(base_url=base, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with OpenAI(base_url=base, api_key=secret, max_retries=0) as client:
            for _ in range(2):
                client.completions.create(model="tiny", prompt="a", max_tokens=1)
            with pytest.raises(openai.RateLimitError) as found:
                client.completions.create(model="tiny", prompt="a", max_tokens=1)
            assert 0 < int(found.value.response.headers["retry-after"]) <= 60
            assert found.value.code == "requests_limit_exceeded"


def test_the_client_tries_again_when_the_server_had_no_room(model_folder: Path) -> None:
    """A 503 with Retry-After: the client waits as long as it is told, and then gets its answer."""
    with serving({"tiny": model_folder}) as live:
        live.app.admission.draining = True
        with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as found:
                client.completions.create(model="tiny", prompt="a")
            assert found.value.status_code == 503

        async def main() -> float:
            begun = time.perf_counter()
            async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=3) as client:
                asking = asyncio.create_task(client.completions.create(model="tiny", prompt="a", max_tokens=1))
                await asyncio.sleep(0.3)
                live.app.admission.draining = False
                assert (await asking).choices[0].finish_reason
            return time.perf_counter() - begun

        live.app.admission._patience = 1.0  # Retry-After: 1
        assert asyncio.run(main()) >= 1.0


def test_many_at_a_time(live: Live) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=20) as client:

            async def ask(seed: int) -> str:
                asked: Any = {"model": "tiny", "prompt": f"Once {seed}", "seed": seed, "max_tokens": 20}
                if seed % 2:
                    return (await client.completions.create(**asked)).choices[0].text
                stream = await client.completions.create(**asked, stream=True)
                return "".join([one.choices[0].text async for one in stream])

            first = await asyncio.gather(*(ask(seed) for seed in range(40)))
            assert first == [await ask(seed) for seed in range(40)]

    asyncio.run(main())


def test_a_stream_that_is_closed_early_frees_its_place(client: OpenAI, live: Live) -> None:
    asked: Any = {"model": "tiny", "prompt": "a", "max_tokens": 100, "n": 16, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**asked, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 10
    while live.busy("tiny") or live.app.admission.running:
        assert time.monotonic() < end
        time.sleep(0.005)
