"""The house keeps its order: who imports whom, what is heavy, how long files are; and no file runs code."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2kit

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
    "doctor",
    "recipes",
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
    """text/ and data/ never name torch; the package itself, errors, commit, runtime, verbs/ and cli not at import."""
    module = tree(ROOT / name)
    here = part(ROOT / name)
    if here in LIGHT_FOLDERS:
        used = {target.split(".")[0] for node in ast.walk(module) for target in imported(node)}
        assert "torch" not in used
    if here in (*LIGHT_FOLDERS, "__init__", "__main__", "errors", "wording", "commit", "runtime", "verbs", "cli"):
        loaded = {target.split(".")[0] for node in at_import(module) for target in imported(node)}
        assert not loaded & HEAVY


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


@pytest.mark.parametrize("name", ["gpt2kit", "gpt2kit.model.folder", "gpt2kit.model.gpt2", "gpt2kit.commit"])
def test_exported_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    for exported in getattr(module, "__all__", []):
        assert getattr(module, exported) is not None
