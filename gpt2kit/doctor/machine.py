"""What this machine is and how fast: torch's set-up, memory, matrix products, the disk. Figures, not
verdicts.

A check here fails only where work would fail: too little memory or disk, or a folder that cannot be written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from gpt2kit import runtime
from gpt2kit.doctor.proofs import Failed
from gpt2kit.errors import UserError

GIB = 1 << 30


def check_versions() -> str:
    import torch

    found = runtime.versions()
    backends: Any = torch.backends
    capability = backends.cpu.get_cpu_capability()
    parts = [f"{name} {found[name]}" for name in ("gpt2kit", "python", "torch", "numpy")]
    libraries = [
        f"MKL {'yes' if backends.mkl.is_available() else 'no'}",
        f"oneDNN {'yes' if runtime.has_onednn() else 'no'}",
        f"CUDA {torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no'}",
    ]
    return (
        f"{', '.join(parts)}; {found['cpu']}; {found['platform']}; "
        f"torch computes with {capability}, {', '.join(libraries)}, "
        f"on {torch.get_num_threads()} of {runtime.cores()} usable cores"
    )


def check_memory() -> str:
    """Reading speed on one thread and on all, and what is free."""
    free = runtime.available_memory()
    if free < GIB // 2:
        raise Failed(f"only {free / GIB:.2f} GiB of memory are free", "close other programs before training")
    megabytes = min(256, free // (8 << 20))
    figures = []
    for threads in thread_counts():
        with threads_set(threads):
            figures.append(f"{runtime.memory_speed(megabytes) / 1e9:.1f}")
    return f"{free / GIB:.1f} GiB free; reading {' / '.join(figures)} GB/s on {shown_counts()} thread(s)"


def check_products() -> str:
    """GFLOP/s of a Linear in each type and by each backend, on one thread and on all; int8 in GOP/s."""
    figures = []
    kinds = [("fp32", "aten")] + [("fp32", "onednn")] * runtime.has_onednn() + [("bf16", "aten"), ("int8", "aten")]
    for dtype, backend in kinds:
        values = []
        for threads in thread_counts():
            with threads_set(threads):
                try:
                    values.append(f"{runtime.matmul_speed(dtype, backend) / 1e9:.0f}")
                except (RuntimeError, UserError):  # this torch cannot: said, not an error
                    values.append("none")
        by = " (oneDNN)" if backend == "onednn" else ""
        figures.append(f"{dtype}{by} {' / '.join(values)}")
    return f"GFLOP/s on {shown_counts()} thread(s): {', '.join(figures)}"


def check_precision() -> str:
    choice = runtime.choose_precision()
    return f"training will compute in {choice.dtype} through {choice.backend}: {choice.reason}"


def check_disk(folder: Path = Path(), megabytes: int = 32) -> str:
    """Write and fsync a file in `folder`; the price of a checkpoint."""
    free = shutil.disk_usage(folder).free
    if free < 4 * megabytes << 20:
        raise Failed(f"only {free / GIB:.2f} GiB are free on the disk of {folder.absolute()}", "free some space")
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            for _ in range(megabytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds = time.perf_counter() - start
    except OSError as error:
        raise Failed(
            f"cannot write to {folder.absolute()}: {error.strerror or error}", "run it in a folder of yours"
        ) from error
    return f"{free / GIB:.1f} GiB free here; write and fsync {megabytes / seconds:.0f} MB/s"


def thread_counts() -> tuple[int, ...]:
    most = runtime.cores()
    return (1, most) if most > 1 else (1,)


def shown_counts() -> str:
    return " / ".join(map(str, thread_counts()))


class threads_set:  # noqa: N801 - a context manager
    """torch on `n` threads inside the block."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        torch.set_num_threads(self.n)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)


CHECKS = (
    ("versions", check_versions),
    ("memory", check_memory),
    ("matrix products", check_products),
    ("precision", check_precision),
    ("disk", check_disk),
)
