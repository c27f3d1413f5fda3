"""The Python of the pages runs as it stands there, in a folder with two small models and a text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from gpt2kit.model import folder
from gpt2kit.model.config import GPT2Config
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.recipes.demo import corpus
from gpt2kit.text.training import train_tokenizer

DOCS = Path(__file__).parents[1] / "docs"
NEEDS_MORE = {"engine": 1}  # blocks of a page; its second needs a base with an adapter (tests/serve/test_adapters.py)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)


PAGES = [(page, n) for page in ("text", "data", "model", "evaluation", "engine")
         for n in range(NEEDS_MORE.get(page, len(blocks(page))))]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs")
    text = corpus()
    (path / "my.txt").write_text(text[:200_000], encoding="utf-8")
    (path / "other.txt").write_text(text[200_000:204_000], encoding="utf-8")
    tokenizer = train_tokenizer([text[:20_000]], "bpe", 400)
    tokenizer.save(path / "vocab")
    for seed, name in enumerate(("mine", "other")):
        model = GPT2(GPT2Config(tokenizer.vocab_size, 64, 32, 1, 2), torch.Generator().manual_seed(seed))
        folder.save(path / "runs" / name, model, tokenizer, {"name": name})
    return path


@pytest.mark.parametrize(("page", "number"), PAGES)
def test_the_blocks_of_a_page_run(
    page: str, number: int, place: Path, monkeypatch: pytest.MonkeyPatch, torch_as_it_was: None
) -> None:
    monkeypatch.chdir(place)
    exec(compile(blocks(page)[number], f"{page}.md, block {number + 1}", "exec"), {})
