"""A TCP server that sends everything back, as a tunnel's target, and clients that ask it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

from .receiving import receive_all
from .tasks import background

DATA: Final = os.urandom(3_000_000)


@asynccontextmanager
async def echo_server() -> AsyncGenerator[str, None]:
    """Run the server while the block runs, and give its address as ``HOST:PORT``.

    The server ends its direction of a connection when the client has ended its own. It takes no
    offence at clients that reset.
    """

    async def handle(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.send_eof()

    async with background() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"


async def ask(stream: Any, data: bytes = DATA) -> bytes:
    """Send ``data`` and the end, and return everything that comes back until its end."""

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return await receive_all(stream)


async def assert_echoes(stream: Any) -> None:
    """One byte goes there and back, so the connection is open all the way."""
    await stream.send_all(b"x")
    assert await stream.receive_some() == b"x"
