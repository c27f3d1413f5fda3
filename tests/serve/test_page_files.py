"""The page's files themselves: small, alone, nothing inline, every sentence in both languages."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import gpt2kit.serve

UI = Path(gpt2kit.serve.__path__[0]) / "ui"
FILES = sorted(path for path in UI.rglob("*") if path.is_file())
LARGEST = 150_000  # bytes of all files together


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
