"""The page in a real browser, before the real server; canned answers only where a model cannot be made to give them."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gpt2kit.serve
from gpt2kit.serve.keys import Keys, new_key

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from live import Live, serving, until  # noqa: E402
from playwright.sync_api import Browser, Page, Route, expect  # noqa: E402

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
UI = Path(gpt2kit.serve.__path__[0]) / "ui"
TOP = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in UI.rglob("*") if path.is_file())
LARGEST = 150_000  # bytes of all files together
TIMEOUT = 30_000  # ms
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>&lt;b&gt;\"'</textarea><svg/onload=alert(3)>"
WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as found:
        one = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


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


@pytest.fixture
def pages(browser: Browser, live: Live) -> Iterator[Pages]:
    expect.set_options(timeout=TIMEOUT)
    found = Pages(browser, live.url)
    yield found
    for context in browser.contexts:
        context.close()
    found.check()


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


# ---------------------------------------------------------------------------------------------- canned answers

Token = tuple[str, dict[str, float], str]  # name, probabilities of the likeliest, the text that it adds


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


# ---------------------------------------------------------------------------------------------- the files themselves


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in FILES) <= LARGEST


def test_the_page_needs_nobody_else_and_holds_nothing_inline() -> None:
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        found = set(re.findall(r"https?://[^\"' )]+", source))
        assert found <= {"http://www.w3.org/2000/svg"}, f"{path.name} names {found}"
        for banned in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "import(",
        ):
            assert banned not in source, f"{path.name} uses {banned}"
    page = (UI / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert re.findall(r"<script(?![^>]*\ssrc=\"/ui/)", page) == []


def words() -> dict[str, list[str]]:
    """words.js is nearly JSON: keys and commas are put right."""
    source = (UI / "words.js").read_text(encoding="utf-8").partition("export const WORDS = ")[2].removesuffix(";\n")
    source = re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)
    source = re.sub(r"^(\s*)(\w+):", r'\1"\2":', source, flags=re.MULTILINE)
    found: dict[str, list[str]] = json.loads(re.sub(r",(\s*[\]}])", r"\1", source))
    return found


def test_every_sentence_exists_in_both_languages() -> None:
    alike = {"plain", "top_k", "min_p", "token.is"}
    for key, pair in words().items():
        assert len(pair) == 2, key
        assert all(one.strip() for one in pair), key
        fields = [sorted(set(re.findall(r"\{\w+\}", one))) for one in pair]
        assert fields[0] == fields[1], f"{key} fills in {fields}"
        if key not in alike and not key.startswith("language."):
            assert re.search(r"[\u4e00-\u9fff]", pair[1]), f"{key} is not Chinese: {pair[1]}"
            assert not re.search(r"[\u4e00-\u9fff]", pair[0]), f"{key} is not English: {pair[0]}"


def test_every_sentence_that_is_asked_for_exists_and_none_is_left_over() -> None:
    known = words()
    sources = [
        path.read_text(encoding="utf-8") for path in FILES if path.suffix in (".js", ".html") and path.stem != "words"
    ]
    used = {key for source in sources for key in re.findall(r"[\"'`]([a-z][\w.]*)[\"'`]", source)}
    asked = (
        r"data-t(?:-\w+)?=\"([^\"]+)\"|(?:say|label|title): \[\"([^\"]+)\""
        r"|\bt\(\"([^\"]+)\"|\bsay\([^\",\[\]]+, \"([\w.]+)\""
    )
    for source in sources:
        for key in filter(None, itertools.chain(*re.findall(asked, source))):
            assert key in known, f"{key} is not in words.js"
    made = ("fact.", "score.", "error.")  # put together from names, or read from a table
    assert {key for key in known if key not in used and not key.startswith(made) and not key.endswith(".why")} <= {
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    }


# ------------------------------------------------------------------------------------------------------- write


@needs_chromium
def test_text_is_written_and_the_same_seed_writes_it_again(pages: Pages, live: Live) -> None:
    page = pages.open()
    write(page, "Once upon", length=12, seed=7)
    first = text(page)
    asked = {"prompt": "Once upon", "max_tokens": 12, "seed": 7, "temperature": 0.8, "top_p": 0.95}
    assert first == live.post("/v1/completions", **asked)["choices"][0]["text"]
    assert "12 tokens" in page.inner_text("#measure")
    assert page.locator("#flow .t").count() > 3
    write(page, "Once upon", length=12, seed=7)
    assert text(page) == first


@pytest.mark.slow
@needs_chromium
def test_an_empty_sheet_offers_beginnings(pages: Pages) -> None:
    page = pages.open()
    asked = canned(page, [token("A")])
    page.click("#starts button:has-text('春')")
    finished(page)
    assert asked[0]["prompt"] == page.input_value("#prompt") == "春"
    assert text(page) == "A"
    assert page.locator("#starts").is_hidden()


@pytest.mark.slow
@needs_chromium
def test_what_the_model_writes_goes_on_where_the_prompt_ends(pages: Pages) -> None:
    """The field and the text over it break their lines alike, or the text would stand beside the prompt's end."""
    page = pages.open()
    canned(page, [token("END")])
    differing = page.evaluate(
        """() => {
            const [field, flow] = ['#prompt', '#flow'].map(one => getComputedStyle(document.querySelector(one)));
            return ['font', 'lineHeight', 'letterSpacing', 'wordSpacing', 'padding', 'whiteSpace', 'overflowWrap',
                'tabSize', 'width'].filter(name => field[name] !== flow[name]);
        }"""
    )
    assert differing == []
    for prompt in ("Once upon a time", "word " * 60, "从前有一座山，山里有一座庙，" * 12, "two\nlines"):
        write(page, prompt)
        lines = page.evaluate(
            """() => {
                const top = document.querySelector('#flow').getBoundingClientRect().top;
                const range = document.createRange();
                range.selectNodeContents(document.querySelector('.ghost'));
                const ghost = [...range.getClientRects()].at(-1);
                const token = document.querySelector('#flow .t').getBoundingClientRect();
                const field = document.querySelector('#prompt');
                return [ghost.bottom, token.bottom, ghost.right, token.left, field.scrollHeight - field.clientHeight];
            }"""
        )
        ghost_bottom, token_bottom, ghost_right, token_left, hidden = lines
        assert hidden <= 0
        assert token_bottom - ghost_bottom < 60
        if abs(token_bottom - ghost_bottom) < 8:
            assert token_left == pytest.approx(ghost_right, abs=1.5)


@needs_chromium
def test_stop_keeps_the_text_and_frees_the_server(pages: Pages, live: Live) -> None:
    page = pages.open()
    endless(page)
    for stop in ("click", "Escape"):
        page.fill("#prompt", "Once")
        page.fill("#set-max_tokens", "4096")
        page.click("#go")
        expect(page.locator("#flow .t").nth(8)).to_be_attached()
        if stop == "click":
            page.click("#stop")
        else:
            page.keyboard.press("Escape")
        expect(page.locator("#go")).to_be_visible()
        kept = text(page)
        assert len(kept) > 8
        until(lambda: live.busy("tiny") == 0)
        assert text(page) == kept
        assert "Stopped" in page.inner_text("#speaker")


@pytest.mark.slow
@needs_chromium
def test_stop_ends_a_request_that_is_not_answered_yet(pages: Pages) -> None:
    page = pages.open()
    pages.expected = ("ERR_ABORTED",)
    page.route("**/v1/completions", lambda route: None)
    page.click("#go")
    expect(page.locator("#measure")).to_contain_text("Waiting")
    with page.expect_event("requestfailed"):
        page.click("#stop")
    expect(page.locator("#go")).to_be_focused()
    assert page.locator("#notice").is_hidden()


@pytest.mark.slow
@needs_chromium
def test_an_alternative_becomes_the_text_and_the_model_writes_on_from_it(pages: Pages) -> None:
    page = pages.open()
    asked = canned(page, [token("A"), token("B", C=0.3), token("D")], [token("E")])
    write(page, "start ")
    page.locator("#flow .t").nth(1).hover()
    expect(page.locator("#card")).to_be_visible()
    assert "30%" in page.inner_text("#card")
    page.locator("#card button.choice", has_text="C").click()
    finished(page)
    expect(page.locator("#flow [role=group]")).to_have_text("ACE")
    assert asked[1]["prompt"] == "start AC"
    assert page.locator("#flow .t.branch").inner_text() == "C"
    page.click("#undo")
    assert text(page) == "ABD"
    expect(page.locator("#undo")).to_be_hidden()
    page.locator("#flow .t").nth(1).click()
    page.locator("#card button.choice", has_text="C").click()
    finished(page)
    page.keyboard.press("Alt+z")
    assert text(page) == "ABD"


@pytest.mark.slow
@needs_chromium
def test_a_branch_reaches_the_real_server(pages: Pages, live: Live) -> None:
    page = pages.open()
    write(page, "Once upon", length=8)
    before = text(page)
    page.locator("#flow .t").nth(2).click()
    choice = page.locator("#card button.choice:enabled:not(.chosen)").first
    choice.click()
    finished(page)
    assert text(page) != before
    page.click("#undo")
    assert text(page) == before


@needs_chromium
def test_the_keyboard_alone_writes_walks_and_branches(pages: Pages) -> None:
    page = pages.open()
    asked = canned(page, [token("A"), token("B", C=0.3), token("D")], [token("E")])
    page.focus("#prompt")
    page.keyboard.type("start ")
    page.keyboard.press("Control+Enter")
    finished(page)
    page.locator("#flow .t").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "B"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "B: 50%"
    page.keyboard.press("Enter")
    expect(page.locator("#card")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#card")).to_be_hidden()
    assert page.evaluate("document.activeElement.textContent") == "B"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#flow [role=group]")).to_have_text("ACE")
    assert asked[1]["prompt"] == "start AC"
    page.focus("#tab-write")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#chat")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


@pytest.mark.slow
@needs_chromium
def test_a_character_of_several_tokens_stays_whole_and_its_last_part_can_be_chosen(pages: Pages) -> None:
    page = pages.open()
    first, last, other, none = "bytes:\\xe6\\x98", "bytes:\\xaf", "bytes:\\xa5", "bytes:\\xff"
    answer = [
        token(first, "", **{"bytes:\\xe5": 0.2}),
        token(last, "是", **{other: 0.2, none: 0.1}),
        token("<|endoftext|>", ""),
    ]
    asked = canned(page, answer, [token("!")])
    write(page, "这")
    assert page.locator("#flow .t").all_inner_texts()[:1] == ["是"]
    assert text(page) == "是"
    assert page.locator("#flow .t.end").count() == 1
    page.locator("#flow .t").first.click()
    card = page.locator("#card")
    assert card.locator("button:disabled").count() == 3  # 1st step: both are parts; 2nd: one that makes no character
    card.locator("button.choice", has_text="春").click()
    finished(page)
    assert asked[1]["prompt"] == "这春"
    assert text(page) == "春!"


@pytest.mark.slow
@needs_chromium
def test_the_end_of_text_can_be_chosen(pages: Pages) -> None:
    page = pages.open()
    asked = canned(page, [token("A", **{"<|endoftext|>": 0.2}), token("B")])
    write(page, "x")
    page.locator("#flow .t").first.click()
    page.locator("#card button.choice", has_text="end of text").click()
    expect(page.locator("#flow .t.end")).to_be_attached()
    assert text(page) == ""
    assert len(asked) == 1


@pytest.mark.slow
@needs_chromium
def test_a_text_beyond_the_view_goes_on_with_its_end(pages: Pages, live: Live) -> None:
    page = pages.open()
    asked = canned(page, [token("A"), token("B")], [token("C"), token("D"), token("E")], finish="length")
    write(page, "x", length=5)
    assert text(page) == "ABCDE"
    assert [one["max_tokens"] for one in asked] == [5, 3]
    assert asked[1]["prompt"] == "xAB"
    page.unroute("**/v1/completions")
    write(page, "Once upon a time there was. " * 40, length=20)
    assert "sees the last" in page.inner_text("#measure")
    assert page.locator("#notice").is_hidden()
    assert len(text(page)) > 0


@pytest.mark.slow
@needs_chromium
def test_versions_stand_side_by_side_and_one_is_kept(pages: Pages) -> None:
    page = pages.open()
    page.click("label[for=n-3]")
    write(page, "Once upon", length=6)
    cards = page.locator(".version")
    assert cards.count() == 3
    tops = [cards.nth(i).bounding_box()["y"] for i in range(3)]  # type: ignore[index]
    assert len(set(tops)) == 1
    second = cards.nth(1).locator(".flow").evaluate("node => node.textContent")
    cards.nth(1).locator("button", has_text="Keep").click()
    assert text(page) == second
    assert cards.count() == 0
    page.click("#undo")
    assert cards.count() == 3
    assert cards.nth(1).locator(".flow").evaluate("node => node.textContent") == second


@needs_chromium
def test_hostile_text_stays_text(pages: Pages, live: Live) -> None:
    page = pages.open()
    canned(page, [token(EVIL, **{f"{EVIL}2": 0.25})])
    said = {"choices": [{"index": 0, "delta": {"content": EVIL}}]}
    streamed(page, "**/v1/chat/completions", f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n")
    write(page, EVIL)
    assert text(page) == EVIL
    assert page.input_value("#prompt") == EVIL
    page.locator("#flow .t").first.click()
    assert EVIL.replace(" ", "␣") in page.inner_text("#card")
    page.keyboard.press("Escape")
    page.click("#tab-tokens")
    page.fill("#cut-0", EVIL)
    expect(page.locator("#cuts .pieces").first).to_contain_text("<")
    page.select_option("#models", "chatty")
    page.click("#tab-chat")
    page.fill("#message", EVIL)
    page.click("#send")
    expect(page.locator("#talk .assistant .said")).to_have_text(EVIL)
    expect(page.locator("#talk .user .said")).to_have_text(EVIL)
    assert page.locator("img, main script, svg[onload]").count() == 0


# ------------------------------------------------------------------------------------------------------- the others


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
