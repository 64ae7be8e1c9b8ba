"""Connected pairs, and peers made by hand: everything that tests connect with."""

from __future__ import annotations

import re
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
import trio.testing
import trio_websocket
import trustme
import wsproto.utilities
from trio_websocket import WebSocketConnection

from trio_wsstream import StreamConfig, WsByteStream
from trio_wsstream._frames import FIN, MASKED, apply_mask, encode_header

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
SHORT = StreamConfig(close_timeout=0.2)

AUTHORITY = trustme.CA()
SERVER_TLS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
AUTHORITY.issue_cert("localhost", "127.0.0.1").configure_cert(SERVER_TLS)
CLIENT_TLS = ssl.create_default_context()
AUTHORITY.configure_trust(CLIENT_TLS)


# Transports


async def memory_transport() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return trio.testing.memory_stream_pair()


async def lockstep_transport() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return trio.testing.lockstep_stream_pair()


async def tcp_transport() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream(*listener.socket.getsockname())
        return client, await listener.accept()


async def unix_transport() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two sockets that hold little. What one has sent, the other has: nothing is on the way."""
    ends = trio.socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return trio.SocketStream(ends[0]), trio.SocketStream(ends[1])


async def tls_transport() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    client, server = await tcp_transport()
    client_tls = trio.SSLStream(
        client, CLIENT_TLS, server_hostname="localhost", https_compatible=True
    )
    server_tls = trio.SSLStream(server, SERVER_TLS, server_side=True, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_tls.do_handshake)
        nursery.start_soon(server_tls.do_handshake)
    return client_tls, server_tls


TRANSPORTS: dict[str, Callable[[], Awaitable[tuple[Any, Any]]]] = {
    "memory": memory_transport,
    "lockstep": lockstep_transport,
    "tcp": tcp_transport,
    "tls": tls_transport,
    "unix": unix_transport,
}


# trio-websocket's connections


async def connection_pair(
    nursery: trio.Nursery, transport: str | tuple[Any, Any] = "memory", **options: Any
) -> tuple[WebSocketConnection, WebSocketConnection]:
    """Both ends of a WebSocket, client first; ``options`` are trio-websocket's.

    Args:
      transport: one of `TRANSPORTS`, or both ends of one.
    """
    client, server = await TRANSPORTS[transport]() if isinstance(transport, str) else transport
    ends: dict[str, WebSocketConnection] = {}

    async def connect() -> None:
        ends["client"] = await trio_websocket.wrap_client_stream(
            nursery, client, "localhost", "/", **options
        )

    async def accept() -> None:
        request = await trio_websocket.wrap_server_stream(nursery, server, **options)
        ends["server"] = await request.accept()

    async with trio.open_nursery() as opening:
        opening.start_soon(connect)
        opening.start_soon(accept)
    return ends["client"], ends["server"]


async def stream_pair(
    nursery: trio.Nursery,
    transport: str = "memory",
    config: StreamConfig = StreamConfig(),
    server_config: StreamConfig | None = None,
) -> tuple[WsByteStream, WsByteStream]:
    """Both ends of a WebSocket as streams, client first."""
    client, server = await connection_pair(nursery, transport)
    return (
        WsByteStream(client, nursery, config),
        WsByteStream(server, nursery, server_config or config),
    )


# What is done to any stream


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Until its end."""
    return b"".join([chunk async for chunk in stream])


def reset(stream: trio.SocketStream) -> None:
    """Have the other end see a reset instead of an end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def cancel_when_all_is_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


# A peer made by hand


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool) -> bytes:
    """The bytes of one frame, right or wrong."""
    first = (FIN if fin else 0) | opcode
    if not masked:
        return encode_header(first, len(payload)) + payload
    key = b"\x01\x23\x45\x67"
    return encode_header(first, len(payload), MASKED) + key + apply_mask(payload, key)


def close_payload(code: int, reason: str = "") -> bytes:
    return code.to_bytes(2, "big") + reason.encode()


class RawPeer:
    """The other end of a stream's transport, which says and sees frames.

    Args:
      transport: its end of the transport.
      masked: whether it is the client, whose frames are masked.
    """

    def __init__(self, transport: Any, *, masked: bool) -> None:
        self.transport = transport
        self.masked = masked
        self._data = b""

    async def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        await self.transport.send_all(self.frame(opcode, payload, fin=fin))

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
        return frame(opcode, payload, fin=fin, masked=self.masked)

    async def _receive_exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            data = await self.transport.receive_some(65536)
            if not data:
                raise EOFError(self._data)
            self._data += data
        data, self._data = self._data[:count], self._data[count:]
        return data

    async def receive(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; EOFError at the end of the transport."""
        first, second = await self._receive_exactly(2)
        assert first & FIN
        assert bool(second & MASKED) is not self.masked
        length = second & 127
        if length > 125:
            length = int.from_bytes(await self._receive_exactly(2 if length == 126 else 8), "big")
        key = b"" if self.masked else await self._receive_exactly(4)
        payload = await self._receive_exactly(length)
        return first & 15, apply_mask(payload, key) if key else payload

    async def expect_eof(self) -> None:
        try:
            unexpected = await self.receive()
        except EOFError as error:
            assert error.args == (b"",)
        else:
            raise AssertionError(f"a frame where TCP should end: {unexpected}")


async def raw_pair(
    nursery: trio.Nursery,
    transport: str = "memory",
    config: StreamConfig = StreamConfig(),
    *,
    client: bool = False,
) -> tuple[WsByteStream, RawPeer]:
    """A stream, and a raw peer at the other end of its transport.

    Args:
      client: whether the stream is the client; else it is the server.
    """
    ends = await TRANSPORTS[transport]()
    ours, theirs = ends if client else reversed(ends)
    nursery.start_soon(close_when_cancelled, theirs)
    connection = await handshake(nursery, ours, theirs, client=client)
    return WsByteStream(connection, nursery, config), RawPeer(theirs, masked=not client)


async def close_when_cancelled(transport: trio.abc.AsyncResource) -> None:
    """Leave no socket open when a test ends."""
    try:
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(transport)


async def handshake(
    nursery: trio.Nursery, ours: Any, theirs: Any, *, client: bool, **options: Any
) -> WebSocketConnection:
    """Open a trio-websocket connection on ``ours``; ``theirs`` remains a bare transport."""
    result: list[WebSocketConnection] = []

    async def open_ours() -> None:
        if client:
            result.append(
                await trio_websocket.wrap_client_stream(nursery, ours, "localhost", "/", **options)
            )
        else:
            request = await trio_websocket.wrap_server_stream(nursery, ours, **options)
            result.append(await request.accept())

    async with trio.open_nursery() as opening:
        opening.start_soon(open_ours)
        if client:
            await theirs.send_all(server_handshake(await receive_head(theirs)))
        else:
            await theirs.send_all(CLIENT_HANDSHAKE)
            await receive_head(theirs)
    return result[0]


def server_handshake(request: bytes) -> bytes:
    key = re.split(rb"(?i)sec-websocket-key: ", request)[1].split(b"\r\n")[0]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + wsproto.utilities.generate_accept_token(key) + b"\r\n\r\n"
    )


CLIENT_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def receive_head(transport: Any) -> bytes:
    """An HTTP head, and not one byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await transport.receive_some(1)
    return head


@asynccontextmanager
async def background() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery whose tasks are cancelled when the block is left."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


# Schedules


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
