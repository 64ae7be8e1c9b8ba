"""A server over memory, and clients that use it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from trio_wsstream import WsByteStream, WsListener, open_ws_stream, testing

from .tasks import background


class MemoryListener(testing.MemoryListener):
    """A memory listener that a test can also give any transport, or an error to raise."""

    async def arrive(self, arrives: Any) -> None:
        await self._connect.send(arrives)

    async def fail(self, error: Exception) -> None:
        await self.arrive(error)

    async def accept(self) -> trio.abc.Stream:
        arrived = await super().accept()
        if isinstance(arrived, Exception):
            raise arrived
        return arrived


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


@asynccontextmanager
async def memory_server(
    handler: Callable[[WsByteStream], Awaitable[object]] = echo, **options: Any
) -> AsyncGenerator[MemoryListener, None]:
    """Run a `WsListener` over memory with `trio.serve_listeners` while the block runs."""
    listener = MemoryListener()
    async with background() as nursery:
        ours = WsListener(listener, nursery, **options)
        await nursery.start(trio.serve_listeners, handler, [ours])
        yield listener


async def open_over(
    nursery: trio.Nursery, transport: trio.abc.Stream, url: str = "ws://localhost/", **options: Any
) -> WsByteStream:
    """Open a client's stream over ``transport``. It lives until ``nursery`` is cancelled."""

    async def run(task_status: trio.TaskStatus[WsByteStream]) -> None:
        async with open_ws_stream(url, transport=transport, **options) as stream:
            task_status.started(stream)
            await trio.sleep_forever()

    stream: WsByteStream = await nursery.start(run)
    return stream


async def assert_works(listener: MemoryListener, **options: Any) -> None:
    async with background() as nursery:
        stream = await open_over(nursery, await listener.connect(), **options)
        await stream.send_all(b"does it work?")
        assert await stream.receive_some() == b"does it work?"
        await stream.aclose()
