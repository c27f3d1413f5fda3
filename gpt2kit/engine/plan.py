"""What an engine may take of this machine: threads, streams at a time, blocks of keys and values."""

from __future__ import annotations

from gpt2kit import runtime
from gpt2kit.engine.cache import BLOCK
from gpt2kit.errors import UserError
from gpt2kit.model.config import GPT2Config

LARGEST_BATCH = 1024
CACHE_SHARE = 0.5  # of the memory that is free after loading, where nothing else is asked for


def plan_blocks(config: GPT2Config, size: int, max_batch: int, wanted: int | None, free: int) -> int:
    """How many blocks of `size` bytes to have: for max_batch full contexts, within `wanted` bytes or half of `free`."""
    each = -(-config.n_positions // BLOCK)
    if wanted is not None and not (isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0):
        raise UserError(f"cache_memory must be a positive number of bytes, got {wanted!r}")
    room = int(free * CACHE_SHARE) if wanted is None else wanted
    if wanted is not None and wanted > free:
        raise UserError(
            f"cache_memory {wanted >> 20:,} MB is more than the {free >> 20:,} MB that are free",
            hint="lower cache_memory, or leave it out",
        )
    blocks = min(max_batch * each, room // size)
    if blocks < each:
        need = each * size
        raise UserError(
            f"one full context needs {need / 2**20:,.0f} MB of cache, {room / 2**20:,.0f} MB are there for it",
            hint=f"set cache_memory to at least {need}"
            if wanted is not None
            else "free some memory, or load a smaller model",
        )
    return blocks


def check_threads(threads: int | None) -> int:
    """The number of threads; None: every core that this process may use. UserError for what it cannot be."""
    cores = runtime.cores()
    if threads is None:
        return cores
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"threads must be a whole number from 1, got {threads!r}")
    if threads > cores:
        raise UserError(
            f"{threads} threads asked for, this process may use {cores} {'core' if cores == 1 else 'cores'}",
            hint=f"use threads={cores}: more than one a core only wait for each other",
        )
    return threads


def check_batch(max_batch: int) -> int:
    """UserError for what it cannot be."""
    if not isinstance(max_batch, int) or isinstance(max_batch, bool) or not 1 <= max_batch <= LARGEST_BATCH:
        raise UserError(f"max_batch must be a whole number from 1 to {LARGEST_BATCH}, got {max_batch!r}")
    return max_batch
