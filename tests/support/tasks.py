"""Tasks in the background, and tasks that are cancelled at a chosen moment."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
import trio.testing


@asynccontextmanager
async def background() -> AsyncGenerator[trio.Nursery, None]:
    """Open a nursery whose tasks are cancelled at the end of the block."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def cancel_when_all_is_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


class CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope``, which the current task is in, after ``count`` steps of that task."""

    def __init__(self, scope: trio.CancelScope, count: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = count

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            if not self._left:
                self._scope.cancel()
            self._left -= 1
