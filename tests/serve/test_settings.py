"""Where a setting comes from, and what each may be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.errors import UserError
from gpt2kit.serve.settings import FIELDS, ServeSettings, is_loopback, read_settings


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nmax_queued = 1\nkeep_alive = 1\nmodels = ["春=runs/a", "runs/b"]\n', encoding="utf-8")
    environment = {"GPT2KIT_PORT": "2", "GPT2KIT_MAX_QUEUED": "2", "GPT2KIT_CONFIG": str(file), "UNRELATED": "x"}
    found = read_settings({"port": 3}, environment)
    assert (found.port, found.max_queued, found.keep_alive, found.max_n) == (3, 2, 1.0, 16)
    assert found.folders == {"春": "runs/a", "b": "runs/b"}


def test_a_flag_names_another_file_than_the_environment(tmp_path: Path) -> None:
    for name, port in (("a.toml", 1), ("b.toml", 2)):
        (tmp_path / name).write_text(f"port = {port}")
    environment = {"GPT2KIT_CONFIG": str(tmp_path / "a.toml")}
    assert read_settings({"config": str(tmp_path / "b.toml")}, environment).port == 2


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MODELS", "a=runs/x, runs/y", "models", ("a=runs/x", "runs/y")),
        ("HOST", "::1", "host", "::1"),
        ("PORT", "0", "port", 0),
        ("PRECISION", "int8", "precision", "int8"),
        ("THREADS", "2", "threads", 2),
        ("CACHE_MEMORY", "1000000", "cache_memory", 1_000_000),
        ("API_KEY_FILE", "/run/secrets/keys", "api_key_file", "/run/secrets/keys"),
        ("INSECURE", "true", "insecure", True),
        ("INSECURE", "0", "insecure", False),
        ("INSECURE", "Yes", "insecure", True),
        ("SHUTDOWN_TIMEOUT", "2.5", "shutdown_timeout", 2.5),
        ("BODY_RATE", "0", "body_rate", 0),
        ("ALLOWED_HOSTS", "a.example.org,b", "allowed_hosts", ("a.example.org", "b")),
        ("LOG_LEVEL", "warning", "log_level", "warning"),
        ("PORT", "", "port", 8000),
        ("PORT", "tcp://10.0.0.7:8000", "port", 8000),  # Kubernetes' word for a service of our name
    ],
)
def test_the_environment_is_read_in_each_field_s_type(variable: str, text: str, field: str, value: Any) -> None:
    assert getattr(read_settings({}, {f"GPT2KIT_{variable}": text}), field) == value


def test_every_field_has_a_flag_with_help_and_a_variable() -> None:
    assert list(FIELDS) == [field.name for field in dataclasses.fields(ServeSettings)]
    assert all(flag.help for _, flag in FIELDS.values())


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("PORT", "x", "GPT2KIT_PORT: port must be a whole number, got 'x'"),
        ("PORT", "1.5", "GPT2KIT_PORT: port must be a whole number, got '1.5'"),
        ("PORT", "65536", "GPT2KIT_PORT: port must be from 0 to 65,535, got 65,536"),
        ("PORT", "-1", "GPT2KIT_PORT: port must be from 0"),
        ("HEAD_TIMEOUT", "nan", "GPT2KIT_HEAD_TIMEOUT: head_timeout must be from 0.01"),
        ("HEAD_TIMEOUT", "inf", "GPT2KIT_HEAD_TIMEOUT: head_timeout must be from 0.01"),
        ("HEAD_TIMEOUT", "0", "GPT2KIT_HEAD_TIMEOUT: head_timeout must be from 0.01"),
        ("INSECURE", "maybe", "GPT2KIT_INSECURE: insecure must be true or false, got 'maybe'"),
        ("PRECISION", "int9", "GPT2KIT_PRECISION: unknown precision 'int9'; did you mean 'int8'"),
        ("ALLOWED_HOSTS", "a:80", "GPT2KIT_ALLOWED_HOSTS: allowed_hosts must be a host name or an address"),
        ("HOST", "http://a", "GPT2KIT_HOST: host must be a host name"),
        ("HOST", "[::1]", "GPT2KIT_HOST: host must be a host name"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        read_settings({}, {f"GPT2KIT_{variable}": text})
    assert caught.value.message.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prot = 1", "unknown setting 'prot'; did you mean 'port'?"),
        ("config = 'x'", "unknown setting 'config'"),
        ("port = '1'", "port must be a whole number, got '1'"),
        ("port = true", "port must be a whole number, got True"),
        ("port = 1.0", "port must be a whole number, got 1.0"),
        ("insecure = 1", "insecure must be true or false, got 1"),
        ("host = ''", "host must not be empty"),
        ("models = 'runs/a'", "models must be a list of texts"),
        ("models = [1]", "models must be a list of texts"),
        ("models = ['']", "models must be a list of texts"),
        ("port = ", "is not valid TOML"),
        ("port = 1\nport = 2", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_settings({"config": str(file)}, {})
    assert str(file) in caught.value.message
    assert problem in caught.value.message


def test_a_file_that_is_missing_or_not_text_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml cannot be read"):
        read_settings({"config": str(tmp_path / "none.toml")}, {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not valid TOML"):
        read_settings({"config": str(tmp_path / "bytes.toml")}, {})


@pytest.mark.parametrize(
    ("model", "name", "folder"),
    [
        ("runs/mine", "mine", "runs/mine"),
        ("runs/mine/", "mine", "runs/mine/"),
        ("春=runs/mine", "春", "runs/mine"),
        ("a=b=c", "a", "b=c"),
        ("runs/lr=3", "lr=3", "runs/lr=3"),  # the folder's own name has one
        ("./a=b", "a=b", "./a=b"),
        (".", Path.cwd().name, "."),
    ],
)
def test_a_model_has_the_name_that_is_given_or_its_folder_s(model: str, name: str, folder: str) -> None:
    assert ServeSettings(models=(model,)).folders == {name: folder}


@pytest.mark.parametrize("model", ["=a", "a=", "a b=c", "x/a b", "/", "a\n=b", "x" * 129 + "=a"])
def test_a_model_without_a_usable_name_is_refused(model: str) -> None:
    with pytest.raises(UserError, match="a model is a folder or NAME=FOLDER"):
        ServeSettings(models=(model,))


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two models have one name: x, x"):
        ServeSettings(models=("a/x", "x"))


def test_the_first_model_is_loaded_unless_others_are_named() -> None:
    models = ("runs/a", "runs/b")
    assert ServeSettings(models=models).first_loaded == ("a",)
    assert ServeSettings(models=models, preload=("b", "a")).first_loaded == ("b", "a")
    assert ServeSettings().first_loaded == ()
    with pytest.raises(UserError, match="unknown model in preload 'c'"):
        ServeSettings(models=models, preload=("c",))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("LocalHost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("localhost.evil.com", False), ("", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
