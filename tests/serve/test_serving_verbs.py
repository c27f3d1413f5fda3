"""`gpt2kit serve` and `gpt2kit key` as they are typed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpt2kit
from gpt2kit import cli
from gpt2kit.errors import UserError
from gpt2kit.serve import server
from gpt2kit.serve.keys import SCOPES, Key, Keys
from gpt2kit.serve.settings import FIELDS, ServeSettings
from gpt2kit.verbs import Verb
from gpt2kit.verbs.serving import VERBS


def parse(verb: str, *words: str) -> Any:
    """As cli.main does, from the flags on."""
    found: Verb = VERBS[verb]
    return cli._parse(verb, found, list(words))


def run(verb: str, *words: str) -> int:
    return VERBS[verb].run(parse(verb, *words))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """The settings that would have been served."""
    found: list[ServeSettings] = []

    def serve(settings: ServeSettings, on_ready: Any, on_progress: Any) -> int:
        found.append(settings)
        on_progress("compiling", 0, 1)
        on_progress("compiling", 0, 1)
        on_ready("http://127.0.0.1:8000")
        return 0

    monkeypatch.setattr(server, "serve", serve)
    for name in FIELDS:
        monkeypatch.delenv(f"GPT2KIT_{name.upper()}", raising=False)
    return found


def test_one_model_is_served_with_the_defaults(served: list[ServeSettings], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "runs/mine") == 0
    assert served == [ServeSettings(models=("runs/mine",))]
    out, err = capsys.readouterr()
    assert out == "serving mine at http://127.0.0.1:8000\n"
    assert err == "note: first run on this machine: compiling the engine, some ten seconds\n"


def test_every_setting_has_a_flag(served: list[ServeSettings], tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("")
    wanted = ServeSettings(
        models=("a=runs/x", "runs/y"), adapters=("b=runs/b/adapter", "c@y=runs/c"), host="::1", port=0,
        precision="int8", threads=1, max_batch=2, cache_memory=3,
        model_memory=4, preload=("y", "a"), api_key_file="keys.json", insecure=True, max_queued=0, shutdown_timeout=0.0,
        max_connections=7, body_limit=8, head_limit=900, head_timeout=1.5, body_rate=0, body_grace=0.0, keep_alive=2.5,
        json_depth=3, max_list=4, max_stop=0, max_n=5, max_tokens_total=6, response_cache=7,
        allowed_hosts=("a.example", "b.example"), log_level="error", config=str(tmp_path / "serve.toml"),
    )  # fmt: skip
    words: list[str] = [*wanted.models]
    for field in dataclasses.fields(wanted):
        value = getattr(wanted, field.name)
        assert value != field.default, f"{field.name} is not tried"
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "insecure":
            words.append(flag)
        elif field.name != "models":
            for one in value if isinstance(value, tuple) else (value,):
                words += [flag, str(one)]
    assert run("serve", *words) == 0
    assert served == [wanted]


def test_several_adapters_may_stand_behind_one_flag(
    served: list[ServeSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    run("serve", "runs/base", "--adapters", "a=runs/a/adapter", "b=runs/b", "--adapters", "c=runs/c")
    assert served[0].adapters == ("a=runs/a/adapter", "b=runs/b", "c=runs/c")
    assert served[0].models == ("runs/base",)
    assert capsys.readouterr().out.startswith("serving base, a, b, c at")


def test_a_flag_wins_even_where_it_says_the_default(
    served: list[ServeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2KIT_PORT", "9000")
    monkeypatch.setenv("GPT2KIT_MODELS", "runs/a,runs/b")
    run("serve", "--port", "8000")
    run("serve")
    assert [(one.port, one.models) for one in served] == [(8000, ("runs/a", "runs/b")), (9000, ("runs/a", "runs/b"))]


def test_to_serve_without_keys_is_said(served: list[ServeSettings], capsys: pytest.CaptureFixture[str]) -> None:
    run("serve", "runs/mine", "--insecure", "--api-key-file", "keys.json")
    assert "--insecure" not in capsys.readouterr().err
    run("serve", "runs/mine", "--insecure")
    assert "--insecure: whoever reaches" in capsys.readouterr().err


def test_a_wrong_flag_is_named(served: list[ServeSettings]) -> None:
    with pytest.raises(UserError, match="port must be from 0 to 65,535"):
        run("serve", "runs/mine", "--port", "70000")
    assert served == []


def test_the_help_says_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("serve", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "None" not in text
    assert "gpt2kit serve runs/mine" in text
    for field in dataclasses.fields(ServeSettings):
        if field.default not in (None, ()):
            assert f"(default: {field.default})" in text


def test_a_key_is_printed_alone_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    assert run("key", "商店", "--file", str(file)) == 0
    first, note = capsys.readouterr()
    assert note.startswith("note: ")
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "5000", "--concurrency", "2"]
    assert run("key", "trial", "--file", str(file), "--scopes", "generate", "--scopes", "models", *limits) == 0
    second, _ = capsys.readouterr()
    keys = Keys.load(file)
    assert keys.find(first.removesuffix("\n")) == Key("商店", frozenset(SCOPES))
    assert keys.find(second.strip()) == Key("trial", frozenset({"generate", "models"}), 60, 5000, 2)
    assert first.strip() not in file.read_text(encoding="utf-8")
    assert json.loads(file.read_bytes())["version"] == 1


def test_a_name_twice_is_refused_and_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    run("key", "shop", "--file", file)
    capsys.readouterr()
    with pytest.raises(UserError, match="'shop' is there already"):
        run("key", "shop", "--file", file)
    assert capsys.readouterr().out == ""


def test_the_verbs_load_neither_torch_nor_a_server() -> None:
    code = "import sys, gpt2kit.verbs.serving; print(*sys.modules)"
    root = str(Path(gpt2kit.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert not loaded & {"torch", "numpy", "numba", "uvicorn", "starlette", "fastapi", "prometheus_client"}
