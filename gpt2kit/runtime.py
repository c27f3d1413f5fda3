"""What this machine has and how fast it is: cores, memory, device, precision. Nothing happens at import.

torch is imported inside the functions that need it, so that `gpt2kit --help` does not pay for it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import UserError, unknown

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
BF16_GAIN = 1.5  # bf16 costs accuracy: it must be this much faster than the best fp32 to be chosen
ONEDNN_GAIN = 1.5  # level on Intel, 2.2 on AMD Zen 5: a threshold between them, which noise does not cross
MATMUL_SHAPES = ((512, 768, 768), (512, 768, 3072))  # rows, in, out: GPT-2 small's linears on 512 tokens
DTYPES = ("fp32", "bf16", "int8")
BACKENDS = ("aten", "onednn")


@dataclass(frozen=True)
class Precision:
    """What a training run computes in. Stored in the run folder, so that a resumed run makes the same bits.

    `dtype` is the products' type, "bf16" or "fp32"; `backend` is who computes a Linear: "aten" (`F.linear`:
    MKL for fp32 on x86, oneDNN for bf16) or "onednn" (`mkldnn._linear_pointwise`). `reason` holds the
    measured figures.
    """

    dtype: str
    backend: str
    reason: str

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp32"):
            raise unknown("precision", self.dtype, ("bf16", "fp32"))
        if self.backend not in BACKENDS:
            raise unknown("linear backend", self.backend, BACKENDS)

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


# ---------------------------------------------------------------- cores and threads


def cores() -> int:
    """The CPU cores this process may use: its affinity mask, and the quota of its cgroup (v1 or v2) where
    there is one.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cpu_quota()
    return max(1, count if quota is None else min(count, int(quota + 0.5)))


def _cpu_quota() -> float | None:
    """Cores' worth of time that the cgroups allow, or None where there is no limit."""
    quotas = []
    for folder in _cgroup_folders("cpu"):
        v2 = _words(folder / "cpu.max")
        if len(v2) == 2 and v2[0] != "max":
            quotas.append(int(v2[0]) / int(v2[1]))
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            quotas.append(int(quota[0]) / int(period[0]))
    return min(quotas, default=None)


def _cgroup_folders(controller: str) -> list[Path]:
    """The folders whose limits bind this process: its own cgroup's and all above it, for one controller.

    In a container the path in /proc/self/cgroup may be the host's and absent here: the mount's root is then
    ours.
    """
    folders = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names == "":
            root = CGROUP
        elif controller in names.split(","):
            root = CGROUP / controller
        else:
            continue
        here = root / path.strip("/")
        folders += [f for f in (here, *here.parents) if f == root or root in f.parents]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _read(path).split()


def set_threads(n: int | None = None) -> int:
    """Let torch compute on `n` threads and return the number; None takes OMP_NUM_THREADS, else every core we
    may use.
    """
    import torch

    if n is None:
        wish = os.environ.get("OMP_NUM_THREADS", "")
        n = min(cores(), int(wish)) if wish.isdigit() and int(wish) > 0 else cores()
    if n < 1:
        raise UserError(f"threads must be at least 1, got {n}")
    import numba

    most: Any = numba.config
    numba.set_num_threads(min(n, most.NUMBA_NUM_THREADS))
    if n != torch.get_num_threads():  # behind numba: where its OpenMP starts, it sets torch's threads to all cores
        torch.set_num_threads(n)
    return n


def calm_spinning() -> None:
    """Let OpenMP's waiting threads sleep soon: called before torch is first imported, else without effect.

    GNU's OpenMP spins up to 15 ms at each barrier. With one other busy process on two cores that made a training step
    take 700 ms where 125 suffice; on an idle machine the short spin costs nothing measurable (65 ms against 67).
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def device(name: str = "auto") -> torch.device:
    """The device to compute on. "auto" is CUDA where there is one, else the CPU. UserError for one that is
    not here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "mps")) from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices",
            hint="use --device cpu, or install a torch that fits your GPU's driver",
        )
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' asked for, but torch finds no Metal GPU here", hint="use --device cpu")
    if wanted.type not in ("cpu", "cuda", "mps"):
        raise unknown("device", name, ("auto", "cpu", "cuda", "mps"))
    return wanted


# ---------------------------------------------------------------- memory


def available_memory() -> int:
    """Bytes that can be allocated now without swapping; on Linux the tighter of MemAvailable and the cgroup's
    room.
    """
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        return _mac_memory(_output("vm_stat"), _output("sysctl", "-n", "hw.memsize"))
    free = _meminfo(_read(Path("/proc/meminfo")))
    return max(0, min([free, *_cgroup_rooms()]))


def _meminfo(text: str) -> int:
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines() if len(line.split()) > 1}
    return fields.get("MemAvailable", fields.get("MemFree", 1 << 62))


def _cgroup_rooms() -> list[int]:
    """Limit minus use of each cgroup above us. Inactive file cache is room: the kernel drops it first."""
    rooms = []
    for folder in _cgroup_folders("memory"):
        for limit_name, usage_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _words(folder / limit_name), _words(folder / usage_name)
            if limit and usage and limit[0].isdigit():
                lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
                dropped = sum(int(line[1]) for line in lines if line and line[0] == cache_name)
                rooms.append(int(limit[0]) - int(usage[0]) + dropped)
    return rooms


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _mac_memory(vm_stat: str, memsize: str) -> int:
    """Free, inactive, speculative and purgeable pages of `vm_stat`, in bytes; half of the RAM where it says
    nothing.
    """
    page = next((int(word) for word in vm_stat.partition("page size of")[2].split()[:1] if word.isdigit()), 4096)
    wanted = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    lines = (line.rsplit(":", 1) for line in vm_stat.splitlines() if ":" in line)
    pages = sum(int(value.strip().rstrip(".")) for name, value in lines if name.strip() in wanted)
    return pages * page if pages else int(memsize.strip() or 0) // 2


def _windows_memory() -> int:
    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong), ("load", ctypes.c_ulong), ("total", ctypes.c_ulonglong),
            ("available", ctypes.c_ulonglong), ("total_page", ctypes.c_ulonglong),
            ("available_page", ctypes.c_ulonglong), ("total_virtual", ctypes.c_ulonglong),
            ("available_virtual", ctypes.c_ulonglong), ("extended", ctypes.c_ulonglong),
        )  # fmt: skip

    status = MemoryStatus()
    status.length = ctypes.sizeof(status)
    windll: Any = getattr(ctypes, "windll")  # noqa: B009  (absent from other platforms' types)
    if not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx failed")
    return int(status.available)


def peak_memory() -> int:
    """The most resident memory this process has had so far, in bytes.

    On Linux from VmHWM: getrusage's figure survives exec, so a small child of a large parent reports the
    parent.
    """
    if sys.platform == "win32":
        return _windows_peak()
    status = _read(Path("/proc/self/status")).partition("VmHWM:")[2].split()
    if status:
        return int(status[0]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _windows_peak() -> int:
    class Counters(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong), ("faults", ctypes.c_ulong), ("peak", ctypes.c_size_t),
            ("working_set", ctypes.c_size_t), ("others", ctypes.c_size_t * 6),
        )  # fmt: skip

    counters = Counters()
    counters.length = ctypes.sizeof(counters)
    windll: Any = getattr(ctypes, "windll")  # noqa: B009
    windll.kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(windll.kernel32.GetCurrentProcess())
    if not windll.psapi.GetProcessMemoryInfo(process, ctypes.byref(counters), counters.length):
        raise OSError("GetProcessMemoryInfo failed")
    return int(counters.peak)


def tune_allocator() -> bool:
    """Make glibc keep the big blocks that it is given back; return whether that was done (elsewhere a no-op).

    By default each tensor of more than 32 MB is mapped and unmapped afresh, and every page of it faults each
    time. The price: freed memory stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    huge = 2**31 - 1
    settings = ((mmap_max, 0), (trim_threshold, huge), (top_pad, 64 << 20))
    return all(libc.mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)


# ---------------------------------------------------------------- what is installed


def versions() -> dict[str, str]:
    """Names and versions that explain a result: gpt2kit, python, torch, numpy, platform, cpu."""
    import numpy
    import torch

    return {
        "gpt2kit": package_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
    }


def package_version() -> str:
    """`0.1.0`; run from a source tree `0.1.0+source`, or `source tree` where that does not say its version."""
    from importlib import metadata

    try:
        return metadata.version("gpt2kit")
    except metadata.PackageNotFoundError:
        import tomllib

    try:
        project = tomllib.loads(_read(Path(__file__).parents[1] / "pyproject.toml"))["project"]
        return f"{project['version']}+source" if project["name"] == "gpt2kit" else "source tree"
    except (tomllib.TOMLDecodeError, KeyError):
        return "source tree"


@cache
def cpu_name() -> str:
    """The CPU's own name, such as "AMD EPYC 9B45"; the architecture where it has none."""
    if sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    elif sys.platform == "win32":
        name = os.environ.get("PROCESSOR_IDENTIFIER", "")
    else:
        lines = _read(Path("/proc/cpuinfo")).splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


# ---------------------------------------------------------------- measured speed


def _seconds(run: Callable[[], object], budget: float, most: int = 50) -> float:
    """Median seconds of `run` after one warm-up, repeated until `budget` seconds are spent; once at least."""
    run()
    times: list[float] = []
    end = time.perf_counter() + budget
    while not times or (time.perf_counter() < end and len(times) < most):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _product(dtype: str, backend: str, shape: tuple[int, int, int]) -> Callable[[], object]:
    """A closure that computes one Linear of `shape` (rows, in, out). UserError where torch has none."""
    import torch
    import torch.nn.functional as F

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if backend not in BACKENDS:
        raise unknown("linear backend", backend, BACKENDS)
    if backend == "onednn" and not has_onednn():
        raise UserError("this torch has no oneDNN", hint="use the aten backend")
    rows, inputs, outputs = shape
    if dtype == "int8":
        a = torch.ones(rows, inputs, dtype=torch.int8)
        b = torch.ones(outputs, inputs, dtype=torch.int8).t()
        return lambda: torch._int_mm(a, b)
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    x, w, bias = (
        torch.ones(rows, inputs, dtype=kind),
        torch.ones(outputs, inputs, dtype=kind),
        torch.ones(outputs, dtype=kind),
    )
    if backend == "onednn":
        return lambda: torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")
    return lambda: F.linear(x, w, bias)


def has_onednn() -> bool:
    """Whether torch's direct oneDNN Linear exists in this build."""
    import torch

    backends: Any = torch.backends
    return bool(backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def matmul_speed(dtype: str = "fp32", backend: str = "aten", budget: float = 0.05) -> float:
    """Measured FLOP/s of a Linear 512 x 768 x 3072 in "fp32", "bf16" or "int8" (operations there), about 50
    ms.
    """
    import torch

    shape = MATMUL_SHAPES[1]
    with torch.inference_mode():
        seconds = _seconds(_product(dtype, backend, shape), budget)
    return 2.0 * shape[0] * shape[1] * shape[2] / seconds


def memory_speed(megabytes: int = 256, budget: float = 0.1) -> float:
    """Measured bytes/s of reading memory with torch's threads: the limit of decoding. Use more than the
    caches hold.
    """
    import torch

    x = torch.ones(megabytes << 18)  # float32
    with torch.inference_mode():
        return x.nbytes / _seconds(lambda: torch.dot(x, x), budget, most=20)


def choose_precision(name: str = "auto", budget: float = 0.25, device: str = "cpu") -> Precision:
    """Choose products' type and backend by timing them here: "auto", "bf16" or "fp32" (then only the backend
    is chosen).

    CPU flags do not tell. An Intel Sapphire Rapids VM without AMX has avx512_bf16, yet its bf16 product runs
    at half of fp32's speed (110 against 205 GFLOP/s a core); on AMD Zen 5 bf16 is 4x MKL's fp32 and fp32
    through oneDNN 2.2x.
    """
    if name not in ("auto", "bf16", "fp32"):
        raise unknown("precision", name, ("auto", "bf16", "fp32"))
    if device != "cpu":
        import torch

        bf16 = name == "bf16" or (name == "auto" and device == "cuda" and torch.cuda.is_bf16_supported())
        return Precision("bf16" if bf16 else "fp32", "aten", f"on {device}, by what it supports; not timed")
    candidates = [("fp32", "aten")] + [("fp32", "onednn")] * has_onednn() + [("bf16", "aten")]
    candidates = [c for c in candidates if name in ("auto", c[0])]
    speeds = _race(candidates, budget)
    if max(speeds.values()) >= min(ONEDNN_GAIN, BF16_GAIN) * speeds.get(("fp32", "aten"), float("inf")):
        # a busy neighbour can do this too: four trainings that began together cost one of them 17 %
        speeds = {c: max(speeds[c], speed) for c, speed in _race(candidates, budget).items()}
    figures = ", ".join(f"{dtype} {backend} {speed / 1e9:.0f}" for (dtype, backend), speed in speeds.items())
    figures = f"measured GFLOP/s of a Linear: {figures}"
    if name == "bf16":
        return Precision("bf16", "aten", f"bf16 was asked for; {figures}")
    fp32 = ("fp32", "aten")
    if speeds.get(("fp32", "onednn"), 0.0) >= ONEDNN_GAIN * speeds[fp32]:
        fp32 = ("fp32", "onednn")
    if name == "fp32":
        return Precision(*fp32, f"fp32 was asked for; {figures}")
    gain = speeds.get(("bf16", "aten"), 0.0) / speeds[fp32]
    if gain >= BF16_GAIN:
        return Precision("bf16", "aten", f"bf16 is {gain:.1f}x the best fp32; {figures}")
    return Precision(*fp32, f"bf16 is {gain:.1f}x the best fp32, less than {BF16_GAIN}x; {figures}")


def _race(candidates: list[tuple[str, str]], budget: float) -> dict[tuple[str, str], float]:
    """FLOP/s of each candidate, taking turns so that a busy moment hits them all; the best of the rounds.

    One that is over four times slower than the best at a small product drops out: emulated bf16 takes seconds. That
    product has four turns: with one, a process that started beside another saw fp32 at 5 GFLOP/s instead of 130, and
    the race went to bf16 at half of fp32's speed.
    """
    import torch

    end = time.perf_counter() + budget
    small = (64, *MATMUL_SHAPES[0][1:])
    with torch.inference_mode():
        trials = {c: _product(*c, small) for c in candidates}
        turns = [{c: _seconds(trial, 0.0) for c, trial in trials.items()} for _ in range(4)]
        first = {c: min(turn[c] for turn in turns) for c in candidates}
        slow = {c: t for c, t in first.items() if t > 4 * min(first.values())}
        runs = {c: [_product(*c, shape) for shape in MATMUL_SHAPES] for c in candidates if c not in slow}
        times: dict[tuple[str, str], list[float]] = {c: [] for c in runs}
        for round_ in range(12):
            for c, products in runs.items():
                start = time.perf_counter()
                for product in products:
                    product()
                if round_ > 0:  # the first round warms up
                    times[c].append(time.perf_counter() - start)
            if round_ > 2 and time.perf_counter() > end:
                break
    flops = [2.0 * rows * inputs * outputs for rows, inputs, outputs in (*MATMUL_SHAPES, small)]
    return {c: flops[2] / slow[c] if c in slow else sum(flops[:2]) / min(times[c]) for c in candidates}
