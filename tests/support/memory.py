"""How much memory a block of code allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def bounded_memory(size: int) -> AsyncGenerator[None, None]:
    """The block allocates no more than ``size`` bytes at any time."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= size
