"""The page beside writing: chat, tokens, model, status, languages, themes, small screens, keys."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    TIMEOUT,
    Browser,
    Pages,
    Route,
    chunk,
    endless,
    expect,
    needs_chromium,
    streamed,
    text,
    token,
    write,
)
from live import Live, serving, until

from gpt2kit.serve.keys import Keys, new_key

TOP = Path(__file__).resolve().parents[2]


@needs_chromium
def test_chat_answers_keeps_the_conversation_and_begins_anew(pages: Pages) -> None:
    page = pages.open()
    page.fill("#set-max_tokens", "8")
    page.select_option("#models", "chatty")
    page.click("#tab-chat")
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "chat" in request.url else None)
    for turn in (1, 2):
        page.fill("#message", f"Hello {turn}")
        page.press("#message", "Enter")
        expect(page.locator("#talk li")).to_have_count(2 * turn)
        expect(page.locator("#send")).to_be_visible()
    answer = page.locator("#talk .assistant .said").first.evaluate("node => node.textContent")
    roles = [(one["role"], one["content"]) for one in sent[1]["messages"]]
    assert roles == [("user", "Hello 1"), ("assistant", answer), ("user", "Hello 2")]
    page.click("#forget")
    expect(page.locator("#talk .user")).to_have_count(0)


@pytest.mark.slow
@needs_chromium
def test_a_conversation_that_begins_while_another_is_answered_has_nothing_of_it(pages: Pages) -> None:
    page = pages.open()
    page.fill("#set-max_tokens", "4")
    page.select_option("#models", "chatty")
    page.click("#tab-chat")
    page.fill("#message", "first")
    page.press("#message", "Enter")
    expect(page.locator("#forget")).to_be_visible()
    held: list[Any] = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))  # the second answer never comes
    page.fill("#message", "second")
    page.press("#message", "Enter")
    expect(page.locator("#chat-stop")).to_be_visible()
    page.click("#forget")
    expect(page.locator("#send")).to_be_visible()
    page.unroute("**/v1/chat/completions")
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "chat" in request.url else None)
    page.fill("#message", "third")
    page.press("#message", "Enter")
    expect(page.locator("#talk li")).to_have_count(2)
    assert [one["content"] for one in sent[0]["messages"]] == ["third"]


@pytest.mark.parametrize("how", [pytest.param("isComposing: true", marks=pytest.mark.slow), "keyCode: 229"])  # Safari's
@needs_chromium
def test_enter_belongs_to_the_input_method_while_chinese_is_typed(pages: Pages, how: str) -> None:
    page = pages.open()
    page.select_option("#models", "chatty")
    page.click("#tab-chat")
    page.fill("#message", "ni hao")
    press = f"new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, cancelable: true, {how}}})"
    page.evaluate(f"document.querySelector('#message').dispatchEvent({press})")
    assert page.input_value("#message") == "ni hao"
    assert page.locator("#talk .user").count() == 0


@pytest.mark.slow
@needs_chromium
def test_a_model_without_a_template_says_how_one_learns_to_chat(pages: Pages) -> None:
    page = pages.open()
    page.click("#tab-chat")
    expect(page.locator("#chat-none")).to_be_visible()
    expect(page.locator("#chat-room")).to_be_hidden()
    assert "chat_template.jinja" in page.inner_text("#chat-none")
    page.click("#chat-to-write")
    expect(page.locator("#prompt")).to_be_visible()


@pytest.mark.slow
@needs_chromium
def test_tokens_show_how_a_text_is_cut(pages: Pages, live: Live) -> None:
    page = pages.open()
    page.click("#tab-tokens")
    for field, given in (("#cut-0", "Once upon a time 🤗"), ("#cut-1", "春眠不觉晓，龘")):
        page.fill(field, given)
        found = live.post("/tokenize", prompt=given)
        box = page.locator(".cut", has=page.locator(field))
        expect(box.locator(".id")).to_have_text([str(one) for one in found["tokens"]])
        expect(box.locator(".figures")).to_contain_text(f"{found['count']} tokens")
        words = "".join(box.locator(".pieces > li .word").all_inner_texts())
        assert words == given.replace(" ", "␣")


@pytest.mark.slow
@needs_chromium
def test_the_model_tab_tells_what_the_card_says(pages: Pages, model_folder: Path) -> None:
    (model_folder / "loss.png").write_bytes((TOP / "docs/pictures/tang-loss.png").read_bytes())
    try:
        page = pages.open()
        page.click("#tab-model")
        expect(page.locator("#model img")).to_be_visible()
        assert page.locator("#model img").evaluate("node => node.complete && node.naturalWidth > 0")
        assert "2 layers, 32 wide, 2 heads, sees 128 tokens" in page.inner_text("#model")
    finally:
        (model_folder / "loss.png").unlink()


@pytest.mark.slow
@needs_chromium
def test_the_status_tab_looks_each_second_and_rests_when_it_is_not_seen(pages: Pages) -> None:
    page = pages.open()
    page.clock.install()
    asked: list[str] = []
    page.on("response", lambda response: asked.append(response.url) if "status" in response.url else None)
    page.click("#tab-status")

    def looked(times: int) -> bool:
        page.clock.run_for(1000)
        page.wait_for_timeout(20)
        return len(asked) >= times

    until(lambda: looked(3))
    expect(page.locator("#status .facts")).to_contain_text("waiting in line")
    assert page.locator("#status path.line").get_attribute("d")
    page.click("#tab-write")
    looked(0)  # an answer that was under way
    seen = len(asked)
    for _ in range(5):
        looked(0)
    assert len(asked) == seen


# ------------------------------------------------------------------------------------------------------- everybody


@pytest.mark.slow
@needs_chromium
def test_the_language_is_the_browsers_until_it_is_switched_and_stays_so(pages: Pages) -> None:
    page = pages.open(locale="zh-CN")
    expect(page.locator("#tab-write")).to_have_text("续写")
    assert page.get_attribute("html", "lang") == "zh-CN"
    write_chinese = page.locator("#prompt")
    write_chinese.fill("春")
    page.fill("#set-max_tokens", "4")
    page.click("#go")
    expect(page.locator("#measure")).to_contain_text("种子")
    page.click("#language")
    expect(page.locator("#tab-write")).to_have_text("Write")
    expect(page.locator("#measure")).to_contain_text("seed")
    assert page.get_attribute("html", "lang") == "en"
    page.reload()
    expect(page.locator("#tab-write")).to_have_text("Write")


@needs_chromium
def test_in_chinese_nothing_is_left_in_english(pages: Pages) -> None:
    page = pages.open(locale="zh-CN")
    write_button = page.locator("#go")
    page.fill("#set-max_tokens", "4")
    page.fill("#prompt", "春")
    write_button.click()
    expect(page.locator("#measure")).to_contain_text("种子")
    for tab in ("chat", "tokens", "model", "status", "write"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(150)
    english = page.evaluate(
        """() => [...document.querySelectorAll('[data-t]')]
            .filter(node => /^[A-Za-z ,.;:']{6,}$/.test(node.textContent.trim()) && node.dataset.t !== 'plain')
            .map(node => node.textContent).filter(text => !['English'].includes(text))"""
    )
    assert english == []


@pytest.mark.slow
@needs_chromium
def test_the_theme_is_the_systems_until_it_is_switched_and_stays_so(pages: Pages) -> None:
    page = pages.open(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    light = page.evaluate(paper)
    assert sum(map(int, re.findall(r"\d+", light)[:3])) > 600 > 150 > sum(map(int, re.findall(r"\d+", dark)[:3]))
    page.reload()
    assert page.evaluate(paper) == light


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_screen_of_375_pixels_never_scrolls_sideways(pages: Pages, locale: str) -> None:
    page = pages.open(width=375, locale=locale, has_touch=True, is_mobile=True)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    endless(page)
    page.click("#settings summary")
    page.fill("#set-max_tokens", "30")
    page.fill("#set-seed", "1")
    page.fill("#prompt", "Unbreakable" * 20)
    page.tap("#go")
    expect(page.locator("#stop")).to_be_hidden()
    assert page.evaluate(overflow) <= 0
    page.locator("#flow .t").nth(3).tap()
    expect(page.locator("#card.docked")).to_be_visible()
    assert page.evaluate(overflow) <= 0
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('#models').append(new Option('x'.repeat(120)))")
    for tab in ("chat", "tokens", "model", "status"):
        page.tap(f"#tab-{tab}")
        page.wait_for_timeout(150)
        assert page.evaluate(overflow) <= 0, tab


@pytest.mark.slow
@needs_chromium
def test_screen_readers_find_landmarks_names_and_whole_sentences(pages: Pages) -> None:
    page = pages.open()
    spoken = "window.said = []; new MutationObserver(() => said.push(document.querySelector('#speaker').textContent))"
    page.evaluate(f"{spoken}.observe(document.querySelector('#speaker'), {{childList: true}})")
    write(page, "Once", length=60)
    said = page.evaluate("said")
    assert 1 <= len(said) <= 6  # not one a token
    assert "Done" in said[-1]
    for role in ("main", "tablist", "tabpanel", "banner"):
        assert page.get_by_role(role).count() >= 1, role
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea')].filter(node => {
            const label = node.getAttribute('aria-label') || node.textContent || node.labels?.[0]?.textContent;
            return !label?.trim();
        }).map(node => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("#flow .t[tabindex='0']").count() == 1


@pytest.mark.slow
@needs_chromium
def test_what_the_server_refuses_is_said_in_plain_words(pages: Pages) -> None:
    page = pages.open()
    pages.expected = ("400", "503", "Failed to load resource")
    message = {"message": "this cannot be", "type": "invalid_request_error", "param": None, "code": None}
    answers = iter([(400, {}), (503, {"retry-after": "7"})])

    def refuse(route: Route) -> None:
        status, headers = next(answers)
        route.fulfill(status=status, headers=headers, json={"error": message})

    page.route("**/v1/completions", refuse)
    page.click("#go")
    notice = page.locator("#notice")
    expect(notice).to_contain_text("It says: this cannot be")
    page.click("#language")
    expect(notice).to_contain_text("它说：this cannot be")
    page.click("#go")
    expect(notice).to_contain_text("请在 7 秒后重试")
    page.unroute("**/v1/completions")
    page.route("**/v1/completions", lambda route: route.abort())
    page.click("#go")
    expect(notice).to_contain_text("服务器没有回应")
    page.unroute("**/v1/completions")
    begun = f"data: {json.dumps(chunk(token('A'), None))}\n\n"
    for rest, words in (("", "中断"), (f"data: {json.dumps({'error': message})}\n\n", "它说：this cannot be")):
        streamed(page, "**/v1/completions", begun + rest)
        page.click("#go")
        expect(notice).to_contain_text(words)
        assert text(page) == "A"
        page.unroute("**/v1/completions")


@pytest.mark.slow
@needs_chromium
def test_a_key_is_asked_for_tried_and_kept_in_the_tab_alone(
    browser: Browser, model_folder: Path, tmp_path: Path
) -> None:
    secret = new_key(tmp_path / "keys.json", "somebody")
    with serving({"tiny": model_folder}, Keys.load(tmp_path / "keys.json"), shutdown_timeout=2.0) as locked:
        pages = Pages(browser, locked.url)
        pages.expected = ("401",)
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("console", lambda message: pages.problems.append(f"{message.type}: {message.text}"))
        page.goto(f"{locked.url}/#/status")
        expect(page.locator("#key")).to_be_visible()
        page.press("#secret", "Escape")
        page.wait_for_timeout(2500)  # longer than the status tab waits between two looks
        expect(page.locator("#key")).to_be_hidden()
        page.goto("about:blank")
        page.goto(locked.url)
        expect(page.locator("#key")).to_be_visible()
        page.fill("#secret", "wrong")
        page.press("#secret", "Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        page.fill("#secret", secret)
        page.click("#key .main")
        expect(page.locator("#models option")).to_have_count(1)
        write(page, "Once", length=4)
        assert text(page)
        assert secret not in page.evaluate("JSON.stringify(localStorage) + document.cookie + document.body.outerHTML")
        assert secret in page.evaluate("JSON.stringify(sessionStorage)")
        context.close()
        pages.check()
