"""Connected pairs on asyncio. They are for comparison only: no Trio program can use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

from .makers import HOST, UNLIMITED, End, Maker, Meeting, MessageEnd

T = TypeVar("T")


@asynccontextmanager
async def hosted(
    runner: asyncio.Runner, manager: AbstractAsyncContextManager[T]
) -> AsyncGenerator[T, None]:
    """Enter and leave an asyncio context manager from a Trio task, which blocks meanwhile."""

    async def enter() -> T:
        return await manager.__aenter__()

    async def leave() -> None:
        await manager.__aexit__(None, None, None)

    value = runner.run(enter())
    try:
        yield value
    finally:
        runner.run(leave())


async def asyncio_both(*functions: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run ``functions`` at the same time."""
    return list(await asyncio.gather(*(function() for function in functions)))


@asynccontextmanager
async def _meet_websockets() -> AsyncGenerator[Meeting, None]:
    from websockets.asyncio.client import connect as connector
    from websockets.asyncio.connection import Connection
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosed

    accepted: asyncio.Queue[End] = asyncio.Queue()

    def end_of(connection: Connection) -> End:
        return MessageEnd(connection.send, connection.recv, connection.close)

    async def handle(connection: Connection) -> None:
        accepted.put_nowait(end_of(connection))
        await connection.wait_closed()

    async def connect(port: int) -> End:
        uri = f"ws://{HOST}:{port}/"
        return end_of(await connector(uri, compression=None, max_size=None, proxy=None))

    async with serve(handle, HOST, 0, compression=None, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield Meeting(port, connect, accepted.get, asyncio_both, (ConnectionClosed,))


@asynccontextmanager
async def _meet_aiohttp() -> AsyncGenerator[Meeting, None]:
    import aiohttp
    from aiohttp import web

    accepted: asyncio.Queue[End] = asyncio.Queue()

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        is_closed = asyncio.Event()

        async def close() -> None:
            await socket.close()
            is_closed.set()

        accepted.put_nowait(MessageEnd(socket.send_bytes, socket.receive_bytes, close))
        await is_closed.wait()
        return socket

    async def connect(port: int) -> End:
        socket = await session.ws_connect(f"ws://{HOST}:{port}/", max_msg_size=0)
        return MessageEnd(socket.send_bytes, socket.receive_bytes, socket.close)

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    unlimited = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=unlimited) as session:
            await web.TCPSite(runner, HOST, 0).start()
            port = runner.addresses[0][1]
            yield Meeting(port, connect, accepted.get, asyncio_both, (aiohttp.WSMessageTypeError,))
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _meet_picows() -> AsyncGenerator[Meeting, None]:
    import picows

    accepted: asyncio.Queue[End] = asyncio.Queue()
    binary = picows.WSMsgType.BINARY

    class Listener(picows.WSListener):
        """Turn the callbacks of picows into a queue, so that a task can wait for data."""

        def __init__(self) -> None:
            super().__init__()
            self._received: asyncio.Queue[bytes] = asyncio.Queue()
            self._may_write = asyncio.Event()
            self._may_write.set()

        def on_ws_connected(self, transport: Any) -> None:
            self._transport = transport
            self.end = MessageEnd(self.send, self._received.get, self.close)
            if not transport.is_client_side:
                accepted.put_nowait(self.end)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == binary:
                self._received.put_nowait(frame.get_payload_as_bytes())
            elif frame.msg_type == picows.WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()

        def on_ws_disconnected(self, transport: Any) -> None:
            self._received.put_nowait(b"")
            self._may_write.set()

        def pause_writing(self) -> None:
            self._may_write.clear()

        def resume_writing(self) -> None:
            self._may_write.set()

        async def send(self, data: bytes) -> None:
            if not self._may_write.is_set():
                await self._may_write.wait()
            self._transport.send(binary, data)

        async def close(self) -> None:
            self._transport.send_close(picows.WSCloseCode.OK)
            await self._transport.wait_disconnected()

    async def connect(port: int) -> End:
        listener = Listener()
        url = f"ws://{HOST}:{port}/"
        await picows.ws_connect(lambda: listener, url, max_frame_size=UNLIMITED)
        return listener.end

    server = await picows.ws_create_server(
        lambda request: Listener(), HOST, 0, max_frame_size=UNLIMITED
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Meeting(port, connect, accepted.get, asyncio_both)


def _maker(name: str, meet: Callable[[], AbstractAsyncContextManager[Meeting]]) -> Maker:
    return Maker(f"{name} (asyncio)", meet, requires=name, loop="asyncio")


ASYNCIO_MAKERS: Final = (
    _maker("websockets", _meet_websockets),
    _maker("aiohttp", _meet_aiohttp),
    _maker("picows", _meet_picows),
)
