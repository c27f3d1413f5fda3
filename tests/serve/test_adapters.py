"""Several adapters over one base, each a model of its own to clients."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from live import Live, make_model, serving
from openai import BadRequestError, NotFoundError, OpenAI

from gpt2kit import peft
from gpt2kit.errors import UserError
from gpt2kit.model import folder
from gpt2kit.serve.settings import ServeSettings
from gpt2kit.tasks.reference import with_head


def tune(base: Path, out: Path, method: Any, seed: int, lineage: dict[str, Any] | None = None) -> Path:
    """An adapter folder whose B is as if it had been tuned."""
    model, _ = folder.load(base)
    if lineage is not None:
        model = with_head(model, model.config)
    adapted = peft.inject(model, method)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.parameters.items():
            if not name.endswith("lora_A"):
                parameter.normal_(0, 0.3, generator=generator)
    return peft.save(out, adapted, base.name, lineage)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "poems": tune(model_folder, root / "poems", peft.LoraConfig(rank=3, targets=".*"), 1),
        "plays": tune(model_folder, root / "plays", peft.LoraConfig(rank=4, rslora=True), 2),
    }


def flags(adapters: dict[str, Path]) -> tuple[str, ...]:
    return tuple(f"{name}={path}" for name, path in adapters.items())


@pytest.fixture(scope="module")
def live_adapters(model_folder: Path, adapters: dict[str, Path]) -> Iterator[Live]:
    with serving({"tiny": model_folder}, adapters=flags(adapters), response_cache=1 << 20) as one:
        yield one


@pytest.fixture
def client(live_adapters: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live_adapters.url}/v1", api_key="none", max_retries=0, timeout=20) as one:
        yield one


ASKED: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 30, "temperature": 0, "extra_body": {"ignore_eos": True}}


def merged(base: Path, adapter: Path, out: Path) -> Path:
    model, tokenizer = folder.load(base)
    peft.load(adapter, model)
    peft.merge(model, keep=False)
    return folder.save(out, model, tokenizer)


def test_each_adapter_is_a_model_that_answers_as_the_merged_one(
    client: OpenAI, model_folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    texts = {name: client.completions.create(model=name, **ASKED).choices[0].text for name in ("tiny", *adapters)}
    assert len(set(texts.values())) == 3
    with serving({name: merged(model_folder, path, tmp_path / name) for name, path in adapters.items()}) as whole:
        for name in adapters:
            with OpenAI(base_url=f"{whole.url}/v1", api_key="none") as other:
                assert other.completions.create(model=name, **ASKED).choices[0].text == texts[name]


def test_streams_of_several_adapters_at_once_are_the_whole_answers(client: OpenAI) -> None:
    asked: dict[str, Any] = {**ASKED, "temperature": 0.9, "seed": 5}
    names = ["tiny", "poems", "plays"] * 3
    streams = [client.completions.create(model=name, **asked, stream=True) for name in names]
    texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in streams]
    assert texts == [client.completions.create(model=name, **asked).choices[0].text for name in names]
    assert len(set(texts)) == 3


def test_the_list_of_models_names_the_parent(client: OpenAI, live_adapters: Live, model_folder: Path) -> None:
    found = {one.id: one for one in client.models.list()}
    assert list(found) == ["tiny", "poems", "plays"]
    assert [getattr(one, "parent", "") for one in found.values()] == [None, "tiny", "tiny"]
    about = live_adapters.get("/v1/models/poems")["gpt2kit"]
    assert about["lineage"]["method"]["rank"] == 3
    assert about["config"] == live_adapters.get("/v1/models/tiny")["gpt2kit"]["config"]
    assert (about["loaded"], about["precision"]) == (True, "fp32")
    assert str(model_folder.parent) not in json.dumps(live_adapters.get("/v1/models"))
    assert live_adapters.ask("GET", "/v1/models/poems/loss.png")[0] == 404
    prints = {client.completions.create(model=name, prompt="a", max_tokens=1).system_fingerprint for name in found}
    assert len(prints) == 3
    with pytest.raises(NotFoundError, match="known: tiny, poems, plays"):
        client.completions.create(model="poem", prompt="a")


def test_status_and_metrics_tell_adapters_apart(client: OpenAI, live_adapters: Live) -> None:
    client.completions.create(model="plays", prompt="a", max_tokens=7, extra_body={"ignore_eos": True})
    assert live_adapters.get("/v1/status")["models"]["tiny"]["adapters"] == ["poems", "plays"]
    text = live_adapters.ask("GET", "/metrics")[2].decode()
    assert 'gpt2kit_generation_tokens_total{model_name="plays"}' in text
    assert 'gpt2kit_num_requests_running{model_name="plays"}' not in text  # they run in the base's engine
    names = live_adapters.get("/openapi.json")["components"]["schemas"]["CompletionRequest"]["properties"]["model"]
    assert names["enum"] == ["tiny", "poems", "plays"]


def test_vectors_and_remembered_answers_are_the_adapters_own(client: OpenAI) -> None:
    vectors = [client.embeddings.create(model=name, input="春").data[0].embedding for name in ("tiny", "poems")]
    assert vectors[0] != vectors[1]
    first = [client.completions.create(model=name, **ASKED) for name in ("tiny", "poems", "plays")]
    again = [client.completions.create(model=name, **ASKED) for name in ("tiny", "poems", "plays")]
    assert [one.choices[0].text for one in again] == [one.choices[0].text for one in first]


def test_an_adapter_speaks_the_template_it_was_tuned_with(tmp_path: Path, model_folder: Path) -> None:
    from gpt2kit.tasks import task_named

    task = task_named("chat", {})
    lineage = {"task": {"name": "chat", **task.values()}}
    model, _ = folder.load(model_folder)
    path = peft.save(tmp_path / "talk", peft.inject(model, peft.LoraConfig()), "tiny", lineage)
    with (
        serving({"tiny": model_folder}, adapters=(f"talk={path}",)) as live,
        OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        turns: Any = [{"role": "user", "content": "春"}]
        assert client.chat.completions.create(model="talk", messages=turns, max_tokens=4).choices
        with pytest.raises(BadRequestError, match="no chat template"):
            client.chat.completions.create(model="tiny", messages=turns)


def test_a_classifier_over_a_language_model(tmp_path: Path, model_folder: Path) -> None:
    import dataclasses

    from gpt2kit.engine import Engine
    from gpt2kit.tasks import task_named

    task = task_named("classify", {"labels": ["bad", "good"]})
    model, _ = folder.load(model_folder)
    model = with_head(model, dataclasses.replace(model.config, labels=("bad", "good")))
    adapted = peft.inject(model, peft.LoraConfig(rank=2))
    torch.nn.init.normal_(adapted.parameters["score.weight"], generator=torch.Generator().manual_seed(3))
    path = peft.save(tmp_path / "reviews", adapted, "tiny", {"task": {"name": "classify", **task.values()}})
    with serving({"tiny": model_folder}, adapters=(f"reviews={path}",)) as live:
        found = live.post("/v1/classify", model="reviews", input=["春", "Once"])
        assert found["data"][0]["labels"] in (["bad"], ["good"])
        assert len(found["data"][0]["probabilities"]) == 2
        engine = live.app.engines.loaded["tiny"].engine
        assert isinstance(engine, Engine)
        assert engine.classify("春", adapter="reviews").shape == (1, 2)
        assert live.ask("POST", "/v1/classify", {"model": "tiny", "input": "a"})[0] == 400


def test_adapters_come_back_with_a_base_that_had_to_go(
    tmp_path: Path, model_folder: Path, adapters: dict[str, Path]
) -> None:
    make_model(tmp_path / "other", seed=3)
    with serving({"tiny": model_folder}) as probe:
        memory = int(probe.app.engines.loaded["tiny"].engine.memory * 1.5)
    folders = {"tiny": model_folder, "other": tmp_path / "other"}
    laid = (*flags(adapters), f"more@other={tune(tmp_path / 'other', tmp_path / 'more', peft.LoraConfig(), 4)}")
    with serving(folders, adapters=laid, model_memory=memory) as live:
        first = {}
        for name in ("poems", "more", "poems", "other", "plays", "tiny", "more", "poems"):
            answer = live.post("/v1/completions", model=name, prompt="Once", max_tokens=12, temperature=0)
            assert first.setdefault(name, answer["choices"]) == answer["choices"]
            assert len(live.app.engines.loaded) == 1
        assert first["more"] != first["other"]
        assert [one["parent"] for one in live.get("/v1/models")["data"]] == [None, None, "tiny", "tiny", "other"]


def test_an_adapter_of_another_base_stops_the_server_with_the_reason(tmp_path: Path, adapters: dict[str, Path]) -> None:
    make_model(tmp_path / "other", seed=3)
    with (
        pytest.raises(AssertionError, match="belongs to the base tiny with weights"),
        serving({"other": tmp_path / "other"}, adapters=flags(adapters)),
    ):
        pass


def test_a_damaged_adapter_is_told_to_the_owner_alone(
    tmp_path: Path, model_folder: Path, adapters: dict[str, Path]
) -> None:
    shutil.copytree(adapters["poems"], tmp_path / "poems")
    make_model(tmp_path / "other", seed=3)
    with serving(
        {"other": tmp_path / "other", "tiny": model_folder}, adapters=(f"poems@tiny={tmp_path / 'poems'}",)
    ) as live:
        data = bytearray((tmp_path / "poems" / "adapter_model.safetensors").read_bytes())
        data[-3] ^= 1
        (tmp_path / "poems" / "adapter_model.safetensors").write_bytes(data)
        status, _, body = live.ask("POST", "/v1/completions", {"model": "poems", "prompt": "a"})
        assert status == 503
        assert str(tmp_path) not in body.decode()
        assert live.post("/v1/completions", model="other", prompt="a", max_tokens=1)


@pytest.mark.parametrize(
    ("models", "adapters", "message"),
    [
        (("runs/a",), ("a=runs/x",), "one name"),
        (("runs/a",), ("x=runs/x", "x=runs/y"), "one name"),
        (("runs/a", "runs/b"), ("x@bb=runs/x",), "did you mean 'b'"),
        (("runs/a",), ("=runs/x",), "an adapter is a folder or NAME=FOLDER"),
        (("runs/a",), ("@a=runs/x",), "cannot be an adapter's name"),
    ],
)
def test_wrong_adapters_are_refused_at_the_start(
    models: tuple[str, ...], adapters: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ServeSettings(models=models, adapters=adapters)


def test_an_adapter_lies_over_the_first_model_or_the_one_that_is_named() -> None:
    settings = ServeSettings(models=("runs/a", "runs/b"), adapters=("x=runs/x", "y@b=runs/y", "runs/w"))
    assert settings.laid == {"x": ("a", "runs/x"), "y": ("b", "runs/y"), "w": ("a", "runs/w")}
