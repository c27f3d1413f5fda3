"""What tests of several folders share."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from gpt2kit import runtime

runtime.calm_spinning()  # before any test imports torch, as the command line does
# Children that are started in a checkout would import its folder, not what is installed, and compile all kernels again.
os.environ["PYTHONSAFEPATH"] = "1"
settings.register_profile("quick", max_examples=30)  # where a test names no number; Hypothesis itself takes 100
settings.load_profile("quick")

Download = Callable[[str, Path], None]


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """torch's threads and its generator are afterwards what they were before."""
    import torch

    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(generator)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Download:
    """Stand without a network before a Hugging Face cache of this test's own; call it to put a model there."""
    import huggingface_hub.constants

    root = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def download(name: str, source: Path) -> None:
        """The cache's layout: snapshots of links into blobs."""
        repo = root / f"models--{name.replace('/', '--')}"
        revision = "0123456789abcdef0123456789abcdef01234567"
        for place in ("refs", "blobs", f"snapshots/{revision}"):
            (repo / place).mkdir(parents=True)
        (repo / "refs" / "main").write_text(revision)
        for index, path in enumerate(p for p in source.iterdir() if p.is_file()):
            shutil.copy(path, repo / "blobs" / str(index))
            (repo / "snapshots" / revision / path.name).symlink_to(f"../../blobs/{index}")

    return download


# Two processes that both need the engine on a fresh machine would both compile it, 20 seconds each. So one begins with
# the engine and the other with what does not need it for as long. Long files come early: none is left for the end.
FIRST = (
    "engine/test_exact.py", "training/test_plan.py", "training/test_kill.py", "engine/test_forward.py",
    "journeys/test_stopping.py", "engine/test_engine.py", "journeys/test_adapters.py", "serve/test_page_write.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of files; pytest-xdist hands them out one by one."""
    root, sizes = Path(__file__).parent, Counter(item.path for item in items)
    rank = {root / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: (rank.get(item.path, len(FIRST)), -sizes[item.path], str(item.path)))
