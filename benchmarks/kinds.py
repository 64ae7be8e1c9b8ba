"""The kinds of stream that are measured: how each serves and connects, by its public functions.

Other libraries' methods are given the names of a Trio stream's, `send_all` and `receive_some`, so
that all kinds run the same loops. The methods are the library's own, so this costs no extra call.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import trio

HOST: Final = "127.0.0.1"
UNLIMITED: Final = 2**31  # bytes, for libraries that require a limit to the size of a message

BARE: Final = "bare Trio"
OURS: Final = "WsByteStream"
OURS_INSIDE: Final = "TLS inside WsByteStream"

TLS = ssl.SSLContext | None


class End(NamedTuple):
    """One end of a connection: a Trio stream, or what looks like one."""

    send_all: Callable[[bytes], Awaitable[object]]
    receive_some: Callable[[], Awaitable[Any]]


Handler = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """One kind of stream.

    Attributes:
      name (str): the name in the tables.
      serving: a function of a handler and a TLS context, which returns an async context manager:
          while it is open, a server runs; it yields the port.
      connect: a function of a port and a TLS context, which returns an async context manager that
          yields the client's `End`.
      requires (str): the module that must be installed.
      loop (str): the event loop that the kind runs on.
    """

    name: str
    serving: Callable[[Handler, TLS], AbstractAsyncContextManager[int]]
    connect: Callable[[int, TLS], AbstractAsyncContextManager[Any]]
    requires: str = "trio"
    loop: Literal["trio", "asyncio"] = "trio"

    @property
    def is_installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.requires) is not None
        except ModuleNotFoundError:  # Not even the package of the module is installed.
            return False


@asynccontextmanager
async def _background(serve: Callable[..., Any], *arguments: Any) -> AsyncGenerator[Any, None]:
    """Run a server of Trio's kind in the background, and yield what it has started."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve, *arguments)
        nursery.cancel_scope.cancel()


# Bare Trio: TCP, or TLS over TCP


@asynccontextmanager
async def _serving_bare(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    serve = partial(trio.serve_tcp, host=HOST)
    if tls:
        serve = partial(trio.serve_ssl_over_tcp, ssl_context=tls, host=HOST, https_compatible=True)
    async with _background(serve, handler, 0) as (listener,):
        yield getattr(listener, "transport_listener", listener).socket.getsockname()[1]


@asynccontextmanager
async def _connect_bare(port: int, tls: TLS) -> AsyncGenerator[Any, None]:
    if tls is None:
        stream: Any = await trio.open_tcp_stream(HOST, port)
    else:
        stream = await trio.open_ssl_over_tcp_stream(
            HOST, port, ssl_context=tls, https_compatible=True
        )
    async with stream:
        yield stream


# WsByteStream


@asynccontextmanager
async def _serving_ours(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    from trio_wsstream import serve_ws

    async with _background(serve_ws, handler, HOST, 0, tls) as (listener,):
        yield listener.port


def _connect_ours(port: int, tls: TLS) -> AbstractAsyncContextManager[Any]:
    from trio_wsstream import open_ws_stream

    return open_ws_stream(f"{'wss' if tls else 'ws'}://{HOST}:{port}/", tls)


def _serving_inside(handler: Handler, tls: TLS) -> AbstractAsyncContextManager[int]:
    assert tls is not None

    async def handle(stream: Any) -> None:
        await handler(trio.SSLStream(stream, tls, server_side=True, https_compatible=True))

    return _serving_ours(handle, None)


@asynccontextmanager
async def _connect_inside(port: int, tls: TLS) -> AsyncGenerator[Any, None]:
    assert tls is not None
    async with _connect_ours(port, None) as stream:
        yield trio.SSLStream(stream, tls, server_hostname=HOST, https_compatible=True)


# The other libraries for Trio


@asynccontextmanager
async def _serving_trio_websocket(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

    async def handle(request: WebSocketRequest) -> None:
        connection = await request.accept()
        with contextlib.suppress(ConnectionClosed):
            await handler(End(connection.send_message, connection.get_message))

    serve = partial(serve_websocket, max_message_size=UNLIMITED)
    async with _background(serve, handle, HOST, 0, tls) as server:
        yield server.port


@asynccontextmanager
async def _connect_trio_websocket(port: int, tls: TLS) -> AsyncGenerator[End, None]:
    from trio_websocket import open_websocket_url

    url = f"{'wss' if tls else 'ws'}://{HOST}:{port}/"
    async with open_websocket_url(url, tls, max_message_size=UNLIMITED) as connection:
        yield End(connection.send_message, connection.get_message)


@asynccontextmanager
async def _serving_websockets_trio(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    from websockets.exceptions import ConnectionClosed
    from websockets.trio.connection import Connection
    from websockets.trio.server import serve

    async def handle(connection: Connection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await handler(End(connection.send, connection.recv))

    async def listen(listener: trio.SocketListener) -> None:
        await serve(handle, listeners=[listener], ssl=tls, compression=None, max_size=None)

    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, listener)
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _connect_by(module: str, port: int, tls: TLS) -> AsyncGenerator[End, None]:
    """Connect with one of the clients of `websockets`, which differ in their module only."""
    connect = importlib.import_module(module).connect
    url = f"{'wss' if tls else 'ws'}://{HOST}:{port}/"
    async with connect(url, ssl=tls, compression=None, max_size=None, proxy=None) as connection:
        yield End(connection.send, connection.recv)


_connect_websockets_trio: Final = partial(_connect_by, "websockets.trio.client")


# The libraries for asyncio. They are for comparison only: no Trio program can use them.


@asynccontextmanager
async def _serving_websockets(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed

    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await handler(End(connection.send, connection.recv))

    async with serve(handle, HOST, 0, ssl=tls, compression=None, max_size=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


_connect_websockets: Final = partial(_connect_by, "websockets.asyncio.client")


@asynccontextmanager
async def _serving_aiohttp(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    import aiohttp
    from aiohttp import web

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        with contextlib.suppress(aiohttp.WSMessageTypeError):
            await handler(End(socket.send_bytes, socket.receive_bytes))
        return socket

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


_session: Any = None  # of aiohttp; a program has one for all its connections


@asynccontextmanager
async def _connect_aiohttp(port: int, tls: TLS) -> AsyncGenerator[End, None]:
    import aiohttp

    global _session
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    url = f"{'wss' if tls else 'ws'}://{HOST}:{port}/"
    async with _session.ws_connect(url, max_msg_size=0, ssl=tls or True) as socket:
        yield End(socket.send_bytes, socket.receive_bytes)


def _picows_listener(connected: Callable[[Any], None]) -> Any:
    import picows

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
            self.end = End(self.send, self._received.get)
            connected(self)

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

    return Listener()


@asynccontextmanager
async def _serving_picows(handler: Handler, tls: TLS) -> AsyncGenerator[int, None]:
    import picows

    tasks = set()

    def connected(listener: Any) -> None:
        task = asyncio.ensure_future(handler(listener.end))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await picows.ws_create_server(
        lambda request: _picows_listener(connected), HOST, 0, max_frame_size=UNLIMITED, ssl=tls
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def _connect_picows(port: int, tls: TLS) -> AsyncGenerator[End, None]:
    import picows

    listener = _picows_listener(lambda listener: None)
    url = f"{'wss' if tls else 'ws'}://{HOST}:{port}/"
    await picows.ws_connect(lambda: listener, url, ssl_context=tls, max_frame_size=UNLIMITED)
    yield listener.end
    await listener.close()


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(BARE, _serving_bare, _connect_bare),
        Kind(OURS, _serving_ours, _connect_ours, "trio_wsstream"),
        Kind(OURS_INSIDE, _serving_inside, _connect_inside, "trio_wsstream"),
        Kind("trio-websocket", _serving_trio_websocket, _connect_trio_websocket, "trio_websocket"),
        Kind(
            "websockets.trio",
            _serving_websockets_trio,
            _connect_websockets_trio,
            "websockets.trio",
        ),
        Kind(
            "websockets (asyncio)",
            _serving_websockets,
            _connect_websockets,
            "websockets.asyncio",
            "asyncio",
        ),
        Kind("aiohttp", _serving_aiohttp, _connect_aiohttp, "aiohttp", "asyncio"),
        Kind("picows", _serving_picows, _connect_picows, "picows", "asyncio"),
    )
}
OTHERS: Final = tuple(name for name in KINDS if name not in (BARE, OURS, OURS_INSIDE))
