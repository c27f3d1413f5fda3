"""Cores, memory, device and precision: the machine's limits are read, its speed is measured."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt2kit import runtime
from gpt2kit.errors import UserError


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup tree of our own; /proc/self/cgroup says that we are in a/b of v2 and of v1's."""
    monkeypatch.setattr(runtime, "CGROUP", tmp_path)
    original = runtime._read
    text = "4:memory:/a/b\n3:cpu,cpuacct:/a/b\n0::/a/b\nodd line\n"
    monkeypatch.setattr(runtime, "_read", lambda path: text if str(path) == "/proc/self/cgroup" else original(path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_nothing_heavy_is_imported() -> None:
    run("import sys, gpt2kit.runtime, gpt2kit.evaluation, gpt2kit.doctor; assert 'torch' not in sys.modules")


def test_cores_respect_affinity_and_both_kinds_of_quota(cgroups: Path) -> None:
    assert runtime.cores() == 8
    write(cgroups / "a" / "b" / "cpu.max", "max 100000\n")
    assert runtime.cores() == 8
    write(cgroups / "a" / "cpu.max", "250000 100000\n")  # of the parent, which binds too
    assert runtime.cores() == 3
    write(cgroups / "cpu" / "a" / "b" / "cpu.cfs_quota_us", "200000\n")
    write(cgroups / "cpu" / "a" / "b" / "cpu.cfs_period_us", "100000\n")
    assert runtime.cores() == 2
    write(cgroups / "cpu" / "a" / "b" / "cpu.cfs_quota_us", "10000\n")
    assert runtime.cores() == 1
    write(cgroups / "cpu" / "a" / "b" / "cpu.cfs_quota_us", "-1\n")
    assert runtime.cores() == 3


def test_a_container_that_sees_only_its_own_root_is_bound_by_it(cgroups: Path) -> None:
    write(cgroups / "cpu.max", "100000 100000\n")
    assert runtime.cores() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_available_memory_is_the_tightest_limit(cgroups: Path) -> None:
    free = runtime.available_memory()
    assert 1 << 20 < free < 1 << 50
    write(cgroups / "a" / "memory.max", "2000000\n")
    write(cgroups / "a" / "memory.current", "1500000\n")
    write(cgroups / "a" / "memory.stat", "anon 5\ninactive_file 100000\n")
    assert runtime.available_memory() == 600_000
    write(cgroups / "memory" / "a" / "b" / "memory.limit_in_bytes", "1000000\n")
    write(cgroups / "memory" / "a" / "b" / "memory.usage_in_bytes", "900000\n")
    assert runtime.available_memory() == 100_000
    write(cgroups / "a" / "memory.max", "1000\n")
    assert runtime.available_memory() == 0


def test_memory_of_other_systems_is_parsed() -> None:
    text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:   100.\nPages active: 9.\n"
    text += "Pages inactive: 20.\nPages speculative: 3.\nPages purgeable: 1.\n"
    assert runtime._mac_memory(text, "0") == 124 * 16384
    assert runtime._mac_memory("", "8000\n") == 4000
    assert runtime._meminfo("MemFree: 5 kB\nMemAvailable: 7 kB\n") == 7 * 1024
    assert runtime._meminfo("MemFree: 5 kB\n") == 5 * 1024


def test_windows_memory_is_read_through_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windows:
        ok = 1

        class kernel32:  # noqa: N801
            class GetCurrentProcess:
                restype: object = None

                def __new__(cls) -> int:  # type: ignore[misc]
                    return 7

            @staticmethod
            def GlobalMemoryStatusEx(pointer: object) -> int:  # noqa: N802
                status = pointer._obj  # type: ignore[attr-defined]
                assert status.length == 64 or ctypes.sizeof(ctypes.c_ulong) == 8
                status.available = 12345
                return Windows.ok

        class psapi:  # noqa: N801
            @staticmethod
            def GetProcessMemoryInfo(process: object, pointer: object, length: int) -> int:  # noqa: N802
                pointer._obj.peak = 678  # type: ignore[attr-defined]
                return Windows.ok

    monkeypatch.setattr(ctypes, "windll", Windows, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert runtime.available_memory() == 12345
    assert runtime.peak_memory() == 678
    assert not runtime.tune_allocator()
    Windows.ok = 0
    with pytest.raises(OSError, match="GlobalMemoryStatusEx"):
        runtime.available_memory()
    with pytest.raises(OSError, match="GetProcessMemoryInfo"):
        runtime.peak_memory()


def test_macos_is_asked_through_its_own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def output(*command: str) -> str:
        asked.append(command[0])
        return "4000" if command[0] == "sysctl" else ""

    monkeypatch.setattr(runtime, "_output", output)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.available_memory() == 2000
    assert asked == ["vm_stat", "sysctl"]
    runtime.cpu_name.cache_clear()
    assert runtime.cpu_name() == "4000"
    monkeypatch.undo()
    runtime.cpu_name.cache_clear()
    assert runtime.cpu_name()


def test_a_tool_that_is_missing_gives_nothing() -> None:
    assert runtime._output("gpt2kit-no-such-program") == ""
    assert runtime._output(sys.executable, "-c", "print('yes')").strip() == "yes"


def test_peak_memory_grows_with_what_is_used() -> None:
    code = """
from gpt2kit import runtime
before = runtime.peak_memory()
assert 1 << 20 < before < 1 << 30
block = b"x" * (64 << 20)
assert 60 << 20 < runtime.peak_memory() - before < 70 << 20
"""
    run(code)


def test_peak_memory_without_proc_is_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = runtime.peak_memory()
    monkeypatch.setattr(runtime, "_read", lambda path: "")
    assert runtime.peak_memory() >= 0.9 * expected


def run(code: str, **env: str) -> str:
    """The output of Python code in a process of its own."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, env=os.environ | path | env, stdout=subprocess.PIPE, text=True)
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_allocator_keeps_freed_memory_once_tuned() -> None:
    code = """
import resource, torch
from gpt2kit import runtime
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
# The heap grows over the first rounds, then nothing faults any more.
print(int(runtime.tune_allocator()), plain, min(faults() for _ in range(6)))
"""
    out = run(code, THP_MEM_ALLOC_ENABLE="0")
    tuned, plain, after = map(int, out.split())
    assert bool(tuned) == (platform.libc_ver()[0] == "glibc"), out
    assert not tuned or after < plain / 10, out


def test_threads_are_set_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        assert runtime.set_threads(2) == 2
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(runtime, "cores", lambda: 3)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert runtime.set_threads(None) == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "64")
        assert runtime.set_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert runtime.set_threads() == 3
        with pytest.raises(UserError, match="at least 1, got 0"):
            runtime.set_threads(0)
    finally:
        torch.set_num_threads(before)


def test_devices_are_found_or_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.device() == torch.device("cpu")
    assert runtime.device("cpu").type == "cpu"
    for name, words in (
        ("cuda:1", "0 CUDA devices"),
        ("cpuu", "did you mean 'cpu'"),
        ("meta", "unknown device"),
        ("mps", "Metal"),
    ):
        with pytest.raises(UserError, match=words):
            runtime.device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.device() == torch.device("cuda")
    assert runtime.device("cuda:1") == torch.device("cuda:1")


def test_versions_name_everything() -> None:
    found = runtime.versions()
    assert set(found) == {"gpt2kit", "python", "torch", "numpy", "platform", "cpu"}
    assert all(found.values())
    assert found["torch"] == str(torch.__version__)


def test_a_source_tree_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "gpt2kit" / "runtime.py"))
    assert runtime.package_version() == "source tree"
    for text, version in (
        ('[project]\nname = "gpt2kit"\nversion = "7.8.9"\n', "7.8.9+source"),
        ('[project]\nname = "another"\nversion = "1"\n', "source tree"),
        ('[project]\nname = "gpt2kit"\n', "source tree"),
        ("[project", "source tree"),
    ):
        (tmp_path / "pyproject.toml").write_text(text)
        assert runtime.package_version() == version


def test_the_measured_precision_is_data_and_quick() -> None:
    runtime.choose_precision(budget=0.0)
    start = time.perf_counter()
    found = runtime.choose_precision()
    assert time.perf_counter() - start < 5.0  # 0.3 s when nothing else runs
    assert found.dtype in ("bf16", "fp32")
    assert "GFLOP/s" in found.reason
    assert runtime.Precision(**found.to_dict()) == found


@pytest.mark.parametrize(
    ("speeds", "name", "expected"),
    [
        ((100, 220, 455), "auto", ("bf16", "aten")),  # Zen 5
        ((205, 190, 110), "auto", ("fp32", "aten")),  # Sapphire Rapids without AMX
        ((100, 220, 325), "auto", ("fp32", "onednn")),  # 1.48 times the best fp32 is not enough
        ((100, 220, 335), "auto", ("bf16", "aten")),
        ((100, 140, 50), "auto", ("fp32", "aten")),  # level, but for noise
        ((100, 220, 455), "fp32", ("fp32", "onednn")),
        ((205, 190, 110), "bf16", ("bf16", "aten")),
    ],
)
def test_the_choice_follows_the_measured_speeds(
    monkeypatch: pytest.MonkeyPatch, speeds: tuple[int, int, int], name: str, expected: tuple[str, str]
) -> None:
    known = dict(zip([("fp32", "aten"), ("fp32", "onednn"), ("bf16", "aten")], speeds, strict=True))
    monkeypatch.setattr(runtime, "has_onednn", lambda: True)
    monkeypatch.setattr(runtime, "_race", lambda candidates, _: {c: known[c] * 1e9 for c in candidates})
    found = runtime.choose_precision(name)
    assert (found.dtype, found.backend) == expected
    assert str(max(speeds)) in found.reason or name != "auto"


def test_without_onednn_fp32_is_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_onednn", lambda: False)
    assert runtime.choose_precision("fp32").backend == "aten"
    with pytest.raises(UserError, match="no oneDNN"):
        runtime.matmul_speed("fp32", "onednn")


def test_an_emulated_type_drops_out_of_the_race_after_one_small_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    original = runtime._product

    def product(dtype: str, backend: str, shape: tuple[int, int, int]) -> object:
        def crawl() -> None:
            calls.append(shape[0])
            time.sleep(0.05)

        return crawl if dtype == "bf16" else original(dtype, backend, shape)

    monkeypatch.setattr(runtime, "_product", product)
    assert runtime.choose_precision(budget=0.02).dtype == "fp32"
    assert set(calls) == {64}


def test_who_meets_a_busy_moment_stays_in_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    speeds = {"fp32": 0.001, "bf16": 0.004}

    def product(dtype: str, backend: str, shape: tuple[int, int, int]) -> object:
        def run() -> None:
            calls.append(dtype)
            time.sleep(speeds[dtype] + (0.1 if dtype == "fp32" and calls.count("fp32") <= 2 else 0))

        return run

    monkeypatch.setattr(runtime, "_product", product)
    monkeypatch.setattr(runtime, "has_onednn", lambda: False)
    assert runtime.choose_precision(budget=0.0).dtype == "fp32"


def test_a_winner_other_than_the_default_must_win_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when four trainings begin together: the first race saw one product between the others' work."""
    races = [{("fp32", "aten"): 90e9, ("fp32", "onednn"): 270e9, ("bf16", "aten"): 160e9},
             {("fp32", "aten"): 280e9, ("fp32", "onednn"): 260e9, ("bf16", "aten"): 150e9}]  # fmt: skip
    monkeypatch.setattr(runtime, "has_onednn", lambda: True)
    monkeypatch.setattr(runtime, "_race", lambda candidates, _: races.pop(0))
    found = runtime.choose_precision()
    assert (found.dtype, found.backend) == ("fp32", "aten")
    assert "fp32 aten 280, fp32 onednn 270" in found.reason
    assert not races


@pytest.mark.parametrize("wrong", [("fp16", "aten"), ("fp32", "mkl")])
def test_unknown_types_and_backends_are_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="unknown"):
        runtime.matmul_speed(*wrong)
    with pytest.raises(UserError, match="unknown"):
        runtime.Precision(*wrong, "")
    with pytest.raises(UserError, match="unknown precision"):
        runtime.choose_precision(wrong[0] + wrong[1])


def test_speeds_are_plausible() -> None:
    assert 1e8 < runtime.memory_speed(16, 0.01) < 1e13
    for dtype in runtime.DTYPES:
        assert 1e7 < runtime.matmul_speed(dtype, budget=0.01) < 1e15
    if runtime.has_onednn():
        assert 1e8 < runtime.matmul_speed("fp32", "onednn", budget=0.01) < 1e15


@pytest.mark.skipif(not runtime.has_onednn(), reason="this torch has no oneDNN")
def test_the_onednn_product_is_the_linear() -> None:
    x, w, b = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    found = torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    torch.testing.assert_close(found, torch.nn.functional.linear(x, w, b))
