"""Makers of connected pairs: what a maker is, and the makers of all streams that run on Trio."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol

import trio

HOST: Final = "127.0.0.1"
UNLIMITED: Final = 2**31  # bytes, for libraries that require a limit to the size of a message

TCP: Final = "trio.SocketStream"
OURS: Final = "WsByteStream"
TRIO_WEBSOCKET: Final = "trio-websocket"
WEBSOCKETS_TRIO: Final = "websockets.trio"
TLS_TCP: Final = "SSLStream over TCP"
TLS_OURS: Final = "SSLStream over WsByteStream"


class End(Protocol):
    """One end of a connection, with the methods of a Trio stream.

    Other libraries send and receive messages; `MessageEnd` gives their methods these names.
    """

    @property
    def send_all(self) -> Callable[[bytes], Awaitable[object]]: ...

    @property
    def receive_some(self) -> Callable[[], Awaitable[bytes | bytearray]]: ...

    @property
    def aclose(self) -> Callable[[], Awaitable[object]]: ...


async def receive_exactly(end: End, size: int) -> None:
    """Receive and drop ``size`` bytes."""
    while size > 0:
        size -= len(await end.receive_some())


class MessageEnd(NamedTuple):
    """An `End` made of another library's methods, so that calling them costs no extra call."""

    send_all: Callable[[bytes], Awaitable[object]]
    receive_some: Callable[[], Awaitable[Any]]  # Any, because some libraries declare text as well
    aclose: Callable[[], Awaitable[object]]


Both = Callable[..., Awaitable[list[Any]]]


@dataclass(frozen=True)
class Meeting:
    """A listening server, and the functions that connect clients to it.

    Attributes:
      port (int): the port on which the server listens.
      connect: an async function that connects to a port and returns the client's end.
      accept: an async function that returns the server's end of the next connection.
      both: an async function that runs functions at the same time and returns their results.
      end_errors: the exceptions that ``receive_some`` raises at the end of the connection; empty if
          it returns ``b""`` there.
    """

    port: int
    connect: Callable[[int], Awaitable[End]]
    accept: Callable[[], Awaitable[End]]
    both: Both
    end_errors: tuple[type[Exception], ...] = ()

    async def pair(self) -> tuple[End, End]:
        """Return the two ends, client and server, of a new connection."""

        async def connect() -> End:
            return await self.connect(self.port)

        client, server = await self.both(connect, self.accept)
        return client, server

    async def close(self, client: End, server: End) -> None:
        """Close a pair in the usual way: the client closes, and the server reads to the end."""

        async def read_to_end() -> None:
            try:
                while await server.receive_some():
                    pass
            except self.end_errors:
                pass
            await server.aclose()

        await self.both(client.aclose, read_to_end)


@dataclass(frozen=True)
class Maker:
    """One kind of stream.

    Attributes:
      name (str): the name in the table.
      meet: a function that returns an async context manager, which yields a `Meeting`.
      requires (str): the module that must be installed.
      loop (str): the event loop that the stream runs on.
      speaks_websocket (bool): whether the bytes on the wire are WebSocket frames.
    """

    name: str
    meet: Callable[[], AbstractAsyncContextManager[Meeting]]
    requires: str = "trio"
    loop: Literal["trio", "asyncio"] = "trio"
    speaks_websocket: bool = True

    @property
    def is_installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.requires) is not None
        except ModuleNotFoundError:  # Not even the package of the module is installed.
            return False


async def trio_both(*functions: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run ``functions`` at the same time."""
    results = [None] * len(functions)

    async def run(index: int) -> None:
        results[index] = await functions[index]()

    async with trio.open_nursery() as nursery:
        for index in range(len(functions)):
            nursery.start_soon(run, index)
    return results


@asynccontextmanager
async def _listening() -> AsyncGenerator[tuple[trio.SocketListener, int], None]:
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    async with listener:
        yield listener, listener.socket.getsockname()[1]


@asynccontextmanager
async def _background() -> AsyncGenerator[trio.Nursery, None]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _meet_tcp() -> AsyncGenerator[Meeting, None]:
    async with _listening() as (listener, port):

        async def connect(port: int) -> End:
            return await trio.open_tcp_stream(HOST, port)

        yield Meeting(port, connect, listener.accept, trio_both)


@asynccontextmanager
async def _meet_ours() -> AsyncGenerator[Meeting, None]:
    """With the handshakes of `open_ws_stream` and `WsListener`, in the tasks of the meeting."""
    from trio_wsstream import WsByteStream, _connecting, _handshake

    async def welcome(request: _handshake.WsRequest) -> tuple[None, tuple[()]]:
        return None, ()

    async def connect(port: int) -> End:
        request = _handshake.make_request(f"{HOST}:{port}", "/")
        transport = await _connecting.open_tcp(HOST, port, HOST)
        return WsByteStream(await _handshake.connect(transport, request), nursery)

    async def accept() -> End:
        transport = await listener.accept()
        connection, _ = await _handshake.accept(transport, welcome, max_header_size=16384)
        return WsByteStream(connection, nursery)

    async with _listening() as (listener, port), _background() as nursery:
        yield Meeting(port, connect, accept, trio_both)


@asynccontextmanager
async def _meet_messages() -> AsyncGenerator[Meeting, None]:
    from trio_websocket import (
        ConnectionClosed,
        WebSocketConnection,
        connect_websocket,
        wrap_server_stream,
    )

    def end_of(connection: WebSocketConnection) -> End:
        return MessageEnd(connection.send_message, connection.get_message, connection.aclose)

    async def connect(port: int) -> End:
        return end_of(
            await connect_websocket(
                nursery, HOST, port, "/", use_ssl=False, max_message_size=UNLIMITED
            )
        )

    async def accept() -> End:
        stream = await listener.accept()
        request = await wrap_server_stream(nursery, stream, max_message_size=UNLIMITED)
        return end_of(await request.accept())

    async with _listening() as (listener, port), _background() as nursery:
        yield Meeting(port, connect, accept, trio_both, (ConnectionClosed,))


@asynccontextmanager
async def _meet_websockets() -> AsyncGenerator[Meeting, None]:
    from websockets.exceptions import ConnectionClosed
    from websockets.trio.client import connect as connector
    from websockets.trio.connection import Connection
    from websockets.trio.server import serve

    accepted_send, accepted_receive = trio.open_memory_channel[End](1)

    def end_of(connection: Connection) -> End:
        return MessageEnd(connection.send, connection.recv, connection.aclose)

    async def connect(port: int) -> End:
        uri = f"ws://{HOST}:{port}/"
        with_options = connector(uri, compression=None, max_size=None, proxy=None)
        return end_of(await with_options.connect(nursery))

    async def handle(connection: Connection) -> None:
        await accepted_send.send(end_of(connection))
        await connection.wait_closed()

    async def listen(listener: trio.SocketListener) -> None:
        await serve(handle, listeners=[listener], compression=None, max_size=None)

    async with _listening() as (listener, port), _background() as nursery:
        nursery.start_soon(listen, listener)
        yield Meeting(port, connect, accepted_receive.receive, trio_both, (ConnectionClosed,))


def over_tls(maker: Maker, name: str) -> Maker:
    """Return a maker of `trio.SSLStream` pairs that run over the streams of ``maker``."""

    @asynccontextmanager
    async def meet() -> AsyncGenerator[Meeting, None]:
        import ssl

        import trustme

        authority = trustme.CA()
        server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(server_context)
        client_context = ssl.create_default_context()
        authority.configure_trust(client_context)

        async def connect(port: int) -> End:
            stream: Any = await inner.connect(port)
            tls = trio.SSLStream(
                stream, client_context, server_hostname="localhost", https_compatible=True
            )
            await tls.do_handshake()
            return tls

        async def accept() -> End:
            stream: Any = await inner.accept()
            tls = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
            await tls.do_handshake()
            return tls

        async with maker.meet() as inner:
            yield Meeting(inner.port, connect, accept, trio_both)

    return Maker(name, meet, requires="trustme")


TRIO_MAKERS: Final = (
    Maker(TCP, _meet_tcp, speaks_websocket=False),
    Maker(OURS, _meet_ours),
    Maker(TRIO_WEBSOCKET, _meet_messages),
    Maker(WEBSOCKETS_TRIO, _meet_websockets, requires="websockets.trio"),
)
TLS_MAKERS: Final = (
    over_tls(TRIO_MAKERS[0], TLS_TCP),
    over_tls(TRIO_MAKERS[1], TLS_OURS),
)


def by_name(name: str, makers: Iterable[Maker]) -> Maker:
    """Return the maker whose name is ``name``."""
    return next(maker for maker in makers if maker.name == name)
