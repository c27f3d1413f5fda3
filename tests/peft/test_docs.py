"""docs/peft.md: its examples run, its figures are those of the formulas."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpt2kit.model.config import gpt2_small
from gpt2kit.peft import PRESETS, method, trainable_parameters

DOCS = Path(__file__).parents[2] / "docs" / "peft.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_examples_run(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[block], f"{DOCS.name}, example {block + 1}", "exec"), {})


def test_the_table_has_every_method_and_its_count() -> None:
    rows = [line.split("|")[1:] for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    found = {}
    for row in rows:
        names = re.findall(r"`([\w-]+)`", row[0])
        found |= dict(zip(names, re.findall(r"[\d,]{4,}", row[3]), strict=True))
        assert all(row[4].strip() == ("yes" if type(method(name)).mergeable else "no") for name in names)
        assert all(row[5].strip() == ("yes" if type(method(name)).known_to_peft else "no") for name in names)
    assert found == {name: f"{trainable_parameters(gpt2_small(), method(name)):,}" for name in PRESETS}
