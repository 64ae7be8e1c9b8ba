"""Checks how much memory a block of code allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def bounded_memory(size: int) -> AsyncGenerator[None, None]:
    """Check that the block never holds more than ``size`` newly allocated bytes."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= size
