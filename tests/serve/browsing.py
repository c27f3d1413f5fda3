"""The page in a real browser: opening it, writing on it; canned answers where a model cannot be made to give them."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, Route, expect  # noqa: E402

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
TIMEOUT = 30_000  # ms
WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
Token = tuple[str, dict[str, float], str]  # name, probabilities of the likeliest, the text that it adds


class Pages:
    """Opens the page; nothing on it may go wrong, but what a test expects."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()  # parts of messages that the browser may write

    def open(self, url: str | None = None, locale: str = "en-US", width: int = 1280, **options: Any) -> Page:
        context = self.browser.new_context(locale=locale, viewport={"width": width, "height": 800}, **options)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url or self.url)
        expect(page.locator("#models option")).not_to_have_count(0)
        return page

    def check(self) -> None:
        assert [one for one in self.problems if not any(part in one for part in self.expected)] == []


def write(page: Page, prompt: str, length: int = 12, seed: int = 1) -> None:
    """A text of at most `length` tokens, until its end."""
    page.fill("#prompt", prompt)
    page.fill("#set-max_tokens", str(length))
    page.fill("#set-seed", str(seed))
    page.click("#go")
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator("#measure")).to_contain_text("seed")
    expect(page.locator("#stop")).to_be_hidden()


def endless(page: Page) -> None:
    """No text ends before its length."""

    def go_on(route: Route) -> None:
        route.continue_(post_data={**route.request.post_data_json, "ignore_eos": True})

    page.route("**/v1/completions", go_on)


def text(page: Page) -> str:
    found: str = page.locator("#flow [role=group]").evaluate("node => node.textContent")
    return found


def token(name: str, added: str | None = None, **others: float) -> Token:
    return name, {name: 0.5, **others}, name if added is None else added


def canned(page: Page, *answers: list[Token], finish: str = "stop") -> list[dict[str, Any]]:
    """Answer /v1/completions with these, one after another. The requests are added to the list as they come."""
    asked: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        asked.append(route.request.post_data_json)
        tokens = answers[min(len(asked), len(answers)) - 1]
        chunks = [chunk(one, finish if i == len(tokens) - 1 else None) for i, one in enumerate(tokens)]
        body = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
        route.fulfill(body=body, content_type="text/event-stream; charset=utf-8")

    page.route("**/v1/completions", answer)
    return asked


def streamed(page: Page, path: str, body: str) -> None:
    page.route(path, lambda route: route.fulfill(body=body, content_type="text/event-stream; charset=utf-8"))


def chunk(one: Token, finish: str | None) -> dict[str, Any]:
    name, top, added = one
    logprobs = {
        "tokens": [name],
        "token_logprobs": [math.log(top[name])],
        "top_logprobs": [{other: math.log(p) for other, p in top.items()}],
        "text_offset": [0],
    }
    return {"choices": [{"index": 0, "text": added, "logprobs": logprobs, "finish_reason": finish}]}
