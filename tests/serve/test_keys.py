"""The key file: what it holds, who is found by it, and what it refuses."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.errors import UserError
from gpt2kit.serve import keys
from gpt2kit.serve.keys import ANONYMOUS, SCOPES, Key, Keys, new_key


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def write(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps({"version": 1, "keys": list(entries)}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_new_key_is_found_by_its_secret_alone(file: Path) -> None:
    secret = new_key(
        file, "shop", ["generate", "models"], requests_per_minute=60, tokens_per_minute=5000, concurrency=2
    )
    other = new_key(file, "商店")
    found = Keys.load(file)
    assert len(found) == 2
    assert found.find(secret) == Key("shop", frozenset({"generate", "models"}), 60, 5000, 2)
    assert found.find(other) == Key("商店", frozenset(SCOPES), None, None, None)
    for wrong in ("", secret[:-1], secret + " ", secret.upper(), "shop", digest(secret), "\ud800"):
        assert found.find(wrong) is None


def test_secrets_are_long_random_and_not_in_the_file(file: Path) -> None:
    secrets = [new_key(file, f"key{i}") for i in range(5)]
    assert len(set(secrets)) == 5
    for secret in secrets:
        assert re.fullmatch(r"gpt2kit-[\w-]{43}", secret)
        assert secret not in file.read_text()
        assert secret.removeprefix("gpt2kit-") not in file.read_text()


def test_what_is_not_said_is_everything_without_limits(file: Path) -> None:
    write(file, {"name": "a", "sha256": digest("x")}, {"name": "b", "sha256": digest("y"), "scopes": None})
    found = Keys.load(file)
    assert found.find("x") == Key("a", frozenset(SCOPES))
    assert found.find("y") == Key("b", frozenset(SCOPES))


def test_tenants_have_their_own_salts() -> None:
    assert Key("a").salt == "a"
    assert ANONYMOUS.salt == "anonymous"
    assert Key("anonymous", frozenset(SCOPES), None, None, None) == ANONYMOUS


@pytest.mark.parametrize("secret", ["first", "second", "last", "none of them", ""])
def test_every_entry_is_compared_whole_and_by_hmac(file: Path, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, *({"name": one, "sha256": digest(one)} for one in ("first", "second", "last")))
    found = Keys.load(file)
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    key = found.find(secret)
    assert (key and key.name) == (secret if secret in ("first", "second", "last") else None)
    assert [len(a) for pair in compared for a in pair] == [32] * 6
    assert [a.hex() for a, _ in compared] == [digest(one) for one in ("first", "second", "last")]
    assert {b.hex() for _, b in compared} == {digest(secret)}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(file: Path) -> None:
    before = os.umask(0)
    try:
        new_key(file, "a")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o640)  # a group that serves
        new_key(file, "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_a_file_that_is_being_written_is_its_owner_s_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    real = keys.write_json

    def write_json(path: Path, value: Any) -> None:
        real(path, value)
        modes.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(keys, "write_json", write_json)
    before = os.umask(0)
    try:
        new_key(file, "a")
    finally:
        os.umask(before)
    assert modes == [0o600]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_to_the_file_stays_one(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    new_key(file, "a")
    link.symlink_to(file)
    new_key(link, "b")
    assert link.is_symlink()
    assert len(Keys.load(file)) == 2


def other(**fields: Any) -> dict[str, Any]:
    """A second entry, right but for these."""
    return {"name": "b", "sha256": digest("b"), **fields}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("gpt2kit-secret", "must be an object"),
        ({"sha256": digest("b")}, "has no name"),
        ({"name": "b"}, "has no sha256"),
        (other(name=""), "name must be 1 to 64 letters, digits, dots, dashes or underscores, got ''"),
        (other(name="a b"), "name must be"),
        (other(name="b\n"), "name must be"),
        (other(name="b" * 65), "name must be"),
        (other(name=5), "name must be"),
        (other(name="anonymous"), "name must be"),
        (other(name="a"), "name 'a' is there already"),
        (other(sha256=digest("a")), "is there already"),
        (other(sha256="gpt2kit-secret"), "sha256 must be 64 lowercase hexadecimal digits"),
        (other(sha256=digest("b").upper()), "sha256 must be"),
        (other(sha256=None), "sha256 must be"),
        (other(scopes="generate"), "scopes must be a list"),
        (other(scopes=[]), "scopes must be a list"),
        (other(scopes=["genrate"]), "unknown scope 'genrate'; did you mean 'generate'"),
        (other(scopes=[["generate"]]), "unknown scope"),
        (other(concurrency=0), "concurrency must be a whole number from 1 to 1,000,000,000, got 0"),
        (other(concurrency=True), "concurrency must be"),
        (other(tokens_per_minute=1.5), "tokens_per_minute must be"),
        (other(requests_per_minute="9"), "requests_per_minute must be"),
        (other(requests_per_minute=10**12), "requests_per_minute must be"),
        (other(request_per_minute=9), "unknown field 'request_per_minute'; did you mean 'requests_per_minute'"),
    ],
)
def test_a_wrong_entry_is_named_with_its_field_and_no_secret(file: Path, entry: Any, problem: str) -> None:
    write(file, {"name": "a", "sha256": digest("a")}, entry)
    with pytest.raises(UserError, match=re.escape(problem)) as caught:
        Keys.load(file)
    assert caught.value.message.startswith(f"{file}: keys[1]")
    assert "gpt2kit-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"version": 1}', '{"version": 2, "keys": []}', '{"version": 1, "keys": {}}',
     '{"version": 1, "keys": []}', '{"version": 1, "keys": [], "more": 1}', "\x00", "[" * 100_000],
)  # fmt: skip
def test_what_is_not_a_key_file_is_refused_by_name(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(file))):
        Keys.load(file)
    with pytest.raises(UserError):
        new_key(file, "a")
    assert file.read_text() == text


def test_a_missing_file_is_a_user_error(file: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Keys.load(file)


@pytest.mark.parametrize("options", [{"name": "a"}, {"name": "a b"}, {"name": "b", "concurrency": 0}])
def test_a_key_that_cannot_be_added_leaves_the_file_as_it_was(file: Path, options: dict[str, Any]) -> None:
    secret = new_key(file, "a")
    before = file.read_bytes()
    with pytest.raises(UserError):
        new_key(file, **options)
    assert file.read_bytes() == before
    assert Keys.load(file).find(secret) is not None


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        new_key(tmp_path / "file" / "keys.json", "a")
