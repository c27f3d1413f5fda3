"""Numba with a cache on disk that may be absent, read-only, full or damaged."""

from __future__ import annotations

import functools
import hashlib
import importlib
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])
# What compiled code alone calls needs no way in from Python, which takes as long to compile as some of these functions.
INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
TRIED = {(0, minor) for minor in range(61, 69)}  # versions of Numba whose inside is as `_linked_only` needs it


def compiled(function: F, parts: Sequence[types.ModuleType] = (), **options: Any) -> F:
    """Compile on the first call, without the GIL; the machine code stays on disk where a cache folder is writable.

    `parts` are the modules whose functions become part of the code. Numba looks at the function's own file only when it
    asks whether its cache is still true; with `parts` a change in any of them makes it compile anew.
    """
    options = {"nogil": True, **options}
    try:
        dispatcher = numba.njit(function, cache=True, **options)
    except RuntimeError:  # "cannot cache function: no locator available"
        return numba.njit(function, **options)  # type: ignore[no-any-return]
    stored = getattr(dispatcher, "_cache", None)
    file: Any = getattr(stored, "_cache_file", None)
    for name, mend in (("load_overload", None), ("save_overload", functools.partial(_mend, file))):
        if hasattr(stored, name):
            setattr(stored, name, _optional(getattr(stored, name), mend))
    if parts and hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, *(_hash(part) for part in parts))
    return dispatcher  # type: ignore[no-any-return]


def inner(**options: Any) -> Callable[[F], F]:
    """Decorates what compiled code alone calls: it becomes part of each caller's code and gets none of its own.

    Numba optimises every function and makes machine code of it, and does so again in each that calls it. Done once, at
    the end, the 50 functions of the int8 step take 11.2 s of CPU instead of 21.0 (fp32 6.4 instead of 10.0).
    """
    return numba.njit(**INNER, **_linked_only(), **options)  # type: ignore[no-any-return]


@functools.cache
def _linked_only() -> dict[str, Any]:
    """What has Numba leave a function as LLVM code for its callers; nothing for versions that were not tried.

    It replaces methods that are in no manual, though the same from the first of these versions to the last.
    """
    if numba.version_info.short not in TRIED:
        return {}
    codegen, compiler, machinery, passes = (
        importlib.import_module(f"numba.core.{name}")
        for name in ("codegen", "compiler", "compiler_machinery", "typed_passes")
    )

    class Linked(codegen.CPUCodeLibrary):  # type: ignore[misc, name-defined]
        codegen = property(lambda self: self)

        def set_env(self, name: str, environment: Any) -> None:
            """It would be written into machine code that there is not; of ours no function asks for it."""

        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            return 0

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._finalized = True

    class LinkOnly(machinery.FunctionPass):  # type: ignore[misc, name-defined]
        _name = "link_only"

        def __init__(self) -> None:
            super().__init__()

        def run_pass(self, state: Any) -> bool:
            state.library = Linked(state.targetctx.codegen(), state.func_id.func_qualname)
            return False

    machinery.register_pass(mutates_CFG=False, analysis_only=True)(LinkOnly)

    class Compiler(compiler.CompilerBase):  # type: ignore[misc, name-defined]
        def define_pipelines(self) -> list[Any]:
            pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
            pipeline.add_pass_after(LinkOnly, passes.NopythonTypeInference)
            pipeline.finalize()
            return [pipeline]

    return {"pipeline_class": Compiler}


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether a call will find machine code, in memory or on disk; the answer may be wrong for other argument types."""
    if getattr(function, "overloads", None):
        return True
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    try:
        return bool(file._load_index())  # type: ignore[union-attr]
    except Exception:
        return False


def _hash(module: types.ModuleType) -> str:
    source = getattr(module.__loader__, "get_data", None)
    return "" if source is None or module.__file__ is None else hashlib.sha256(source(module.__file__)).hexdigest()


def renamed(function: F, name: str) -> F:
    """A copy under another name: Numba's cache knows functions by name, not by the options they are compiled with."""
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
    copy.__qualname__ = name
    copy.__module__ = function.__module__
    return copy  # type: ignore[return-value]


def _optional(call: Callable[..., Any], mend: Callable[[], bool] | None = None) -> Callable[..., Any]:
    """A full disk or a damaged cache file costs a compilation, not the run. Where `mend` says so, it is tried again."""

    def guarded(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception:
            if mend is None:
                return None
        try:
            return call(*arguments) if mend() else None
        except Exception:
            return None

    return guarded


def _mend(file: Any) -> bool:
    """Empty an index that cannot be read: Numba reads it before it writes, so it would stay broken."""
    try:
        file._load_index()
    except Exception:
        file.flush()
        return True
    return False
