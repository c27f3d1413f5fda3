"""Writing on the page: text, its alternatives and its versions."""

from __future__ import annotations

import json

import pytest
from browsing import (
    Pages,
    canned,
    endless,
    expect,
    finished,
    needs_chromium,
    streamed,
    text,
    token,
    write,
)
from live import Live, until

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>&lt;b&gt;\"'</textarea><svg/onload=alert(3)>"


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
