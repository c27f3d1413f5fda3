"""The house keeps its order: who imports whom, what is heavy, how long files are; and no file runs code."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gpt2kit
from gpt2kit.model import folder
from gpt2kit.model.gpt2 import GPT2, GPT2Config
from gpt2kit.text.training import train_tokenizer

ROOT = Path(gpt2kit.__path__[0])
ORDER = [
    "errors",
    "wording",
    "commit",
    "runtime",
    "jit",
    "text",
    "data",
    "model",
    "training",
    "evaluation",
    "engine",
    "peft",
    "scores",
    "tasks",
    "serve",
    "doctor",
    "recipes",
    "search",
    "api",
    "progress",
    "display",
    "verbs",
    "cli",
]
FILES = sorted(path for path in ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
HEAVY = {"torch", "transformers", "matplotlib", "safetensors"}
LIGHT_FOLDERS = ("text", "data")
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def part(path: Path) -> str:
    """The folder, or top-level file, of the package that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.AST) -> list[str]:
    """What one import statement brings in, by full name; `from a import b` gives a.b, perhaps a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_import(module: ast.Module) -> list[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(module.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo += node.orelse
            continue
        found.append(node)
        todo += ast.iter_child_nodes(node)
    return found


def test_every_part_of_the_package_has_its_place() -> None:
    assert {part(path) for path in FILES} - {"__init__", "__main__"} <= set(ORDER)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_imports_only_from_folders_above_it(name: str) -> None:
    here = part(ROOT / name)
    if here in ("__init__", "__main__", "cli"):
        return
    for node in ast.walk(tree(ROOT / name)):
        for target in imported(node):
            if target.split(".")[0] != "gpt2kit" or target == "gpt2kit":
                continue
            there = target.split(".")[1]
            if there not in ORDER:  # an attribute of the package itself, such as its version
                continue
            assert ORDER.index(there) <= ORDER.index(here), f"{name} imports {target}"


@pytest.mark.parametrize("name", NAMES)
def test_light_files_import_nothing_heavy(name: str) -> None:
    """text/ and data/ never name torch; the package itself, errors, commit, runtime, verbs/ and cli not at import.

    Nor does engine/, which serves an int8 model without it: torch only helps to make one.
    """
    module = tree(ROOT / name)
    here = part(ROOT / name)
    if here in LIGHT_FOLDERS:
        used = {target.split(".")[0] for node in ast.walk(module) for target in imported(node)}
        assert "torch" not in used
    if here in (*LIGHT_FOLDERS, "__init__", "__main__", "errors", "wording", "commit", "runtime", "verbs", "cli"):
        loaded = {target.split(".")[0] for node in at_import(module) for target in imported(node)}
        assert not loaded & HEAVY
    if here == "engine" and name != "engine/calibrate.py":  # which is imported to make int8 weights
        loaded = {target.split(".")[0] for node in at_import(module) for target in imported(node)}
        assert not loaded & {"torch", "transformers", "matplotlib"}


@pytest.mark.parametrize("name", NAMES)
def test_no_file_can_run_code_from_data(name: str) -> None:
    for node in ast.walk(tree(ROOT / name)):
        for target in imported(node):
            assert target.split(".")[0] not in UNSAFE_MODULES, f"{name} imports {target}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in UNSAFE_CALLS, f"{name}:{node.lineno} calls {called}"
            assert called not in ("torch.load", "torch.save"), f"{name}:{node.lineno} calls {called}"
            assert not any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
            ), f"{name}:{node.lineno} allows pickle"
            assert not any(
                keyword.arg == "shell" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
            ), f"{name}:{node.lineno} runs a shell"


def test_files_keep_their_length() -> None:
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        most = 150 if part(path) == "recipes" else 350 if path.name == "gpt2.py" else 600
        assert lines <= most, f"{path.name} has {lines} lines, more than {most}"


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, gpt2kit; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "gpt2kit" in loaded
    assert not loaded & (HEAVY | {"numpy", "numba", "tokenizers", "tiktoken"})


@pytest.mark.parametrize("name", ["completion", "sampling", "config", "config_file", "headers", "files"])
def test_decoding_and_model_folders_are_known_without_torch(name: str) -> None:
    code = f"import sys, gpt2kit.model.{name}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in result.stdout.split()}
    assert "gpt2kit" in loaded
    assert not loaded & {"torch", "transformers", "matplotlib"}


@pytest.mark.parametrize("code", ["import gpt2kit.engine", "from gpt2kit.engine import Engine, Models, Request"])
def test_the_engine_is_imported_without_torch(code: str) -> None:
    code = f"import sys; {code}; import gpt2kit.engine.forward, gpt2kit.engine.quantise; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in result.stdout.split()}
    assert {"gpt2kit", "numba"} <= loaded
    assert not loaded & {"torch", "transformers", "matplotlib"}


def test_a_model_folder_is_described_without_torch(tmp_path: Path) -> None:
    """Not only the import: reading, checking and hashing it, too; and a prompt and its text."""
    tokenizer = train_tokenizer(["once upon a time"], "char")
    config = GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    folder.save(tmp_path / "model", GPT2(config), tokenizer)
    use = """
        import sys
        from pathlib import Path
        import numpy as np
        from gpt2kit.model import completion, files
        from gpt2kit.model.sampling import SamplingSettings
        files.describe("model"), files.identity("model"), files.lineage("model")
        (config, tokenizer), _ = files.read_steadily(Path("model"), lambda notes: files.read_head(Path("model"), notes))
        settings = completion.check_settings(SamplingSettings(max_tokens=1, temperature=0), config, tokenizer)
        ids = completion.check_prompt("it", tokenizer.encode("once"), config, None, "slide")
        row = completion.Generation(ids, settings, None, tokenizer, config.n_positions, "slide")
        likely = np.arange(config.vocab_size) == tokenizer.encode("m")[0]
        assert row.advance(likely.astype(np.float32)).finish_reason == "length"
        assert row.completion().text == "m"
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(use)], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["gpt2kit", "gpt2kit.model.folder", "gpt2kit.model.gpt2", "gpt2kit.commit"])
def test_exported_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    for exported in getattr(module, "__all__", []):
        assert getattr(module, exported) is not None
