"""A tiny model folder, one that can chat, and a real server of both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.text.chat import ChatTemplate

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "engine")]  # so that tests here can import live and fake_forward

from live import Live, make_model, serving  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_model(path)
    return path


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chatty"
    make_model(path, seed=1)
    ChatTemplate().save(path)
    (path / "gpt2kit.json").unlink()  # as of another tool's folder: the template was put there by hand
    return path


@pytest.fixture(scope="session")
def live(model_folder: Path, chat_folder: Path) -> Iterator[Live]:
    """A server of "tiny", and of "chatty", which has a chat template; nobody needs a key."""
    with serving(
        {"tiny": model_folder, "chatty": chat_folder}, preload=("tiny", "chatty"), shutdown_timeout=2.0
    ) as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browsing import CHROMIUM, playwright

    with playwright.sync_playwright() as found:
        one = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def pages(browser: Any, live: Live) -> Iterator[Any]:
    from browsing import TIMEOUT, Pages, expect

    expect.set_options(timeout=TIMEOUT)
    found = Pages(browser, live.url)
    yield found
    for context in browser.contexts:
        context.close()
    found.check()
