"""docs/scores.md: its example runs, every metric and every kind of interval is in it. And what scores/ may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2kit.scores
from gpt2kit.scores import names

FOLDER = Path(gpt2kit.scores.__path__[0])
DOCS = Path(__file__).resolve().parents[2] / "docs" / "scores.md"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def test_the_example_runs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra 'scores'")
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("accuracy 0.8333 [0.3333, 1]")
    assert 'lang="zh-CN"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_every_metric_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    text += "".join(
        f" {level}{rest}" for level in ("detection", "correction") for rest in re.findall(r"`(_\w+)`", text)
    )
    found = set(re.findall(r"[\w@.]+", text)) | {f"rep_{n}" for n in range(1, 5)}
    for pattern in names.patterns():
        assert any(re.fullmatch(pattern, word) for word in found), pattern


def test_every_kind_of_interval_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    kinds = {"not drawn"}
    for name in MODULES:
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        kinds |= set(re.findall(r'"(bca|percentile|jackknife|exact|none)"', source))
    assert kinds == {"bca", "percentile", "jackknife", "exact", "none", "not drawn"}
    assert all(f"| `{kind}` |" in text for kind in kinds)


@pytest.mark.parametrize("name", MODULES)
def test_metrics_know_no_models(name: str) -> None:
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            root, _, rest = module.partition(".")
            assert root != "torch"
            assert root != "gpt2kit" or rest.split(".")[0] in ("", "errors", "commit", "scores"), module


def test_importing_the_scores_loads_none_of_the_libraries() -> None:
    code = "import sys; " + "; ".join(f"import gpt2kit.scores.{name}" for name in MODULES) + "; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in result.stdout.split()}
    assert not loaded & {"torch", "sklearn", "scipy", "sacrebleu", "rouge_score", "nltk", "matplotlib"}
