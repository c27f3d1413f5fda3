"""Compiled code survives a cache that is broken or absent, and is made anew when a part of it changes."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from gpt2kit import jit


def test_a_cache_that_fails_costs_nothing_but_time() -> None:
    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    assert jit._optional(broken)(1, 2) is None
    assert jit._optional(lambda value: value)(3) == 3


def test_no_cache_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def njit(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
        calls.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(numba, "njit", njit)
    assert jit.compiled(len) is len
    assert len(calls) == 2


def test_a_renamed_copy_does_the_same_under_its_own_name() -> None:
    def double(x: int) -> int:
        return 2 * x

    copy = jit.renamed(double, "double_parallel")
    assert copy(4) == 8
    assert copy.__qualname__ == "double_parallel" != double.__qualname__


def calls_of_an_inner_function(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], float]:
    """The functions that get machine code of their own, and what the outer one of two finds."""
    from numba.core.codegen import JITCPUCodegen

    made, add = [], JITCPUCodegen._add_module

    def noted(self: Any, module: Any) -> Any:
        if module.name != "nrt":  # Numba's own, once in a process
            made.append(module.name.split(".")[-1])
        return add(self, module)

    monkeypatch.setattr(JITCPUCodegen, "_add_module", noted)

    @jit.inner(error_model="numpy")
    def halved(x: float) -> float:
        return x / 2

    @jit.inner(forceinline=True)
    def quartered(x: float) -> float:
        return halved(halved(x))

    def outer(x: float) -> float:
        return quartered(x) + halved(x)

    return made, numba.njit(outer)(8.0)


def test_an_inner_function_gets_no_machine_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba compiles it once, within its caller: half of the engine's first start."""
    tried = numba.version_info.short in jit.TRIED
    made, result = calls_of_an_inner_function(monkeypatch)
    assert (sorted(made), result) == (["outer"] if tried else ["halved", "outer", "quartered"], 6.0)


def test_in_another_numba_inner_functions_are_compiled_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "TRIED", {(0, 60)})
    jit._linked_only.cache_clear()
    made, result = calls_of_an_inner_function(monkeypatch)
    jit._linked_only.cache_clear()
    assert (sorted(made), result) == (["halved", "outer", "quartered"], 6.0)


PART = """
from gpt2kit import jit

@jit.inner(forceinline=True)
def grown(x):
    return x + {number}
"""
WHOLE = """
import part
from gpt2kit.jit import compiled, is_compiled

def _twice(x):
    return 2 * part.grown(x)

twice = compiled(_twice, {parts})
before = is_compiled(twice)
"""
Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import `whole`, whose function calls one of `part`, as a new process would."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "whole.py").write_text(WHOLE.format(parts="(part,)"))

    def import_anew(number: int) -> Any:
        (tmp_path / "part.py").write_text(PART.format(number=number))
        for name in ("whole", "part"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module("whole")

    return import_anew


def hits(module: Any) -> int:
    return sum(module.twice.stats.cache_hits.values())


def test_a_changed_part_is_compiled_anew(load: Load) -> None:
    first = load(1)
    assert (first.before, first.twice(10), hits(first)) == (False, 22, 0)
    assert first.is_compiled(first.twice)
    again = load(1)
    assert (again.before, again.twice(10), hits(again)) == (True, 22, 1)
    changed = load(5)
    assert (changed.before, changed.twice(10), hits(changed)) == (False, 30, 0)
    assert load(5).before


def test_without_parts_numba_would_not_notice(load: Load, tmp_path: Path) -> None:
    """Why `parts` exists."""
    (tmp_path / "whole.py").write_text(WHOLE.format(parts="()"))
    assert load(1).twice(10) == 22
    changed = load(5)
    assert (changed.before, changed.twice(10)) == (True, 22)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [emptied, garbled, cut, a_folder])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_cache_costs_a_compilation(
    damage: Callable[[Path], None], ending: str, load: Load, tmp_path: Path
) -> None:
    assert load(1).twice(10) == 22
    found = list((tmp_path / "cache").rglob(f"*.{ending}"))
    assert found
    for path in found:
        damage(path)
    module = load(1)
    assert (module.twice(10), hits(module)) == (22, 0)
    if damage is not a_folder:  # which cannot be replaced
        again = load(1)
        assert (again.twice(10), hits(again)) == (22, 1)


@pytest.mark.slow
def test_where_nothing_can_be_written_code_is_compiled_each_time(tmp_path: Path) -> None:
    """A file stands where each cache folder would be: permissions do not stop an administrator, this does."""
    (tmp_path / "part.py").write_text(PART.format(number=1))
    (tmp_path / "whole.py").write_text(WHOLE.format(parts="(part,)"))
    for name in ("file", "__pycache__"):
        (tmp_path / name).write_text("")
    nowhere = str(tmp_path / "file" / "cache")
    names = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA")
    path = os.pathsep.join([str(Path(jit.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **dict.fromkeys(names, nowhere), "PYTHONPATH": path, "PYTHONSAFEPATH": ""}
    code = "import whole; print(whole.before, whole.twice(10), whole.is_compiled(whole.twice))"
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (result.stdout, result.stderr) == ("False 22 True\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["__pycache__", "file", "part.py", "whole.py"]


def test_a_cache_folder_that_goes_away_is_survived(load: Load, tmp_path: Path) -> None:
    module = load(1)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    assert (module.before, module.twice(10)) == (False, 22)
