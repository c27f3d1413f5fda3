"""What tests of several folders share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2kit import runtime

runtime.calm_spinning()  # before any test imports torch, as the command line does

Download = Callable[[str, Path], None]


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
