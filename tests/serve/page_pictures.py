"""Pictures of the page for the docs, of real models that write in it.

    python tests/serve/page_pictures.py --english runs/a --chinese runs/b --chat runs/c --out docs/pictures

Needs chromium, and fonts for Chinese. The folders' last parts are the names in the pictures.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from live import serving

SEED = 4
TIMEOUT = 120_000  # ms


def open_page(
    browser: Browser,
    url: str,
    model: str,
    locale: str = "en-US",
    theme: str = "light",
    width: int = 1280,
    height: int = 830,
) -> Page:
    context = browser.new_context(
        locale=locale, color_scheme="dark" if theme == "dark" else "light", viewport={"width": width, "height": height},
        device_scale_factor=2 if width < 500 else 1.5, has_touch=width < 500,
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(url)
    page.select_option("#models", model)
    return page


def write(page: Page, prompt: str, length: int, seed: int = SEED) -> None:
    page.fill("#prompt", prompt)
    page.locator("#set-max_tokens").evaluate(f"node => node.value = {length}")
    page.locator("#set-seed").evaluate(f"node => node.value = {seed}")
    page.click("#go")
    expect(page.locator("#measure button")).to_be_visible(timeout=TIMEOUT)
    expect(page.locator("#stop")).to_be_hidden(timeout=TIMEOUT)
    page.locator("#set-seed").evaluate("node => node.value = ''")


def open_card(page: Page, number: int) -> None:
    """The card of the first word from token `number` on that was not certain."""
    place = page.locator("#flow .t").evaluate_all(
        f"nodes => nodes.findIndex((node, i) => i >= {number} && Number(node.style.getPropertyValue('--s')) > 0.2"
        " && /[\\p{L}]{2}|\\p{Script=Han}/u.test(node.textContent))"
    )
    page.locator("#flow .t").nth(max(place, 0)).click()
    page.wait_for_timeout(400)


def take(browser: Browser, url: str, english: str, chinese: str, chat: str | None, out: Path) -> None:
    page = open_page(browser, url, english)
    write(page, "What light is this,", 110)
    open_card(page, 26)
    page.screenshot(path=out / "page-write.png")
    page.keyboard.press("Escape")

    page.click("#tab-tokens")
    expect(page.locator(".piece").first).to_be_visible()
    page.screenshot(path=out / "page-tokens.png")
    page.click("#tab-model")
    expect(page.locator("#model img")).to_be_visible()
    page.screenshot(path=out / "page-model.png", full_page=True)

    page = open_page(browser, url, chinese, locale="zh-CN")
    write(page, "春風", 60, seed=9)
    open_card(page, 37)
    page.screenshot(path=out / "page-zh.png")

    page = open_page(browser, url, english, theme="dark")
    page.click("label[for=n-3]")
    write(page, "The king", 70)
    page.mouse.move(0, 0)
    page.wait_for_timeout(400)  # until the token under it has lost its frame
    page.screenshot(path=out / "page-dark.png")

    page = open_page(browser, url, chinese, locale="zh-CN", width=375, height=812)
    write(page, "明月", 64, seed=1)
    open_card(page, 12)
    page.screenshot(path=out / "page-phone.png")

    if chat is not None:
        page = open_page(browser, url, chat)
        page.locator("#set-temperature").fill("0.5")
        page.fill("#set-seed", "17")
        page.click("#tab-chat")
        for turn, message in enumerate(("Hello!", "What is a token?"), 1):
            page.fill("#message", message)
            page.press("#message", "Enter")
            expect(page.locator("#talk li")).to_have_count(2 * turn)
            expect(page.locator("#send")).to_be_visible()
        page.screenshot(path=out / "page-chat.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", type=Path, required=True)
    parser.add_argument("--chinese", type=Path, required=True)
    parser.add_argument("--chat", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    asked = parser.parse_args()
    chosen = [path for path in (asked.english, asked.chinese, asked.chat) if path is not None]
    folders = {path.name: path for path in chosen}
    chat = None if asked.chat is None else asked.chat.name
    with serving(folders, precision="auto", preload=tuple(folders)) as live, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(browser, live.url, asked.english.name, asked.chinese.name, chat, asked.out)
        browser.close()
    for path in asked.out.glob("page-*.png"):  # 256 colours are plenty, and half of the bytes
        Image.open(path).convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
