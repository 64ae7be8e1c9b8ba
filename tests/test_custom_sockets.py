"""Sockets of somebody else's: everything goes through their methods."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from trio_wsstream import StreamClosed, open_ws_stream, serve_ws

from .support.pairs import stream_pair
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS

DATA = bytes(range(256)) * 2000


NO_DESCRIPTOR = 1_000_000
"""What such a socket may say, as Trio asks for its descriptor to see whether it is closed."""


class Flipped(trio.socket.SocketType):
    """A socket that sends and receives every byte flipped, over another, and has no descriptor."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.counted = 0

    @property
    def type(self) -> int:
        return int(self._inner.type)

    @property
    def family(self) -> Any:
        raise NotImplementedError("no family")

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802
        return bool(self._inner.did_shutdown_SHUT_WR)

    def fileno(self) -> int:
        return -1 if self._inner.fileno() == -1 else NO_DESCRIPTOR

    async def wait_writable(self) -> None:
        await self._inner.wait_writable()

    async def send(self, data: Any, flags: int = 0) -> int:
        sent = await self._inner.send(flipped(bytes(data)))
        self.counted += sent
        return int(sent)

    async def recv(self, size: int, flags: int = 0) -> bytes:
        data = flipped(await self._inner.recv(size))
        self.counted += len(data)
        return data

    async def connect(self, address: Any) -> None:
        await self._inner.connect(address)

    def setsockopt(self, *args: Any) -> None:
        self._inner.setsockopt(*args)

    def getsockopt(self, *args: Any) -> Any:
        return self._inner.getsockopt(*args)

    def shutdown(self, how: int) -> None:
        self._inner.shutdown(how)

    def close(self) -> None:
        self._inner.close()


def flipped(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data)


class Counting(trio._socket._SocketType):  # type: ignore[misc]
    """Trio's own, but for what it counts."""

    counted = 0

    async def send(self, data: Any, flags: int = 0) -> int:
        sent = await super().send(data, flags)
        self.counted += sent
        return int(sent)

    async def recv(self, size: int, flags: int = 0) -> bytes:
        data = await super().recv(size, flags)
        self.counted += len(data)
        return bytes(data)


def flipped_pair() -> tuple[Any, Any]:
    first, second = trio.socket.socketpair()
    return Flipped(first), Flipped(second)


def counting_pair() -> tuple[Any, Any]:
    first, second = socket.socketpair()
    for end in (first, second):
        end.setblocking(False)
    return Counting(first), Counting(second)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("make", [flipped_pair, counting_pair])
async def test_everything_goes_through_the_methods_of_a_socket(make: Any, tls: bool) -> None:
    sockets = make()
    client, server = map(trio.SocketStream, sockets)
    ends: Any = (client, server)
    if tls:
        ends = (
            trio.SSLStream(client, CLIENT_TLS, server_hostname="localhost"),
            trio.SSLStream(server, SERVER_TLS, server_side=True),
        )
    async with background() as nursery:
        client_stream, server_stream = await stream_pair(nursery, ends)  # type: ignore[arg-type]
        before = [end.counted for end in sockets]
        async with trio.open_nursery() as sending:
            sending.start_soon(client_stream.send_all, DATA)
            received = b""
            while len(received) < len(DATA):
                received += await server_stream.receive_some()
        assert received == DATA
        assert all(
            end.counted - count >= len(DATA) for end, count in zip(sockets, before, strict=True)
        )
        assert await server_stream.ping() > 0
        async with trio.open_nursery() as closing:
            closing.start_soon(client_stream.aclose)
            closing.start_soon(server_stream.aclose)
        assert client_stream.closed == StreamClosed(1000, "", True, None)


class Factory(trio.abc.SocketFactory):
    """Makes sockets that count."""

    def __init__(self) -> None:
        self.made: list[Counting] = []

    def socket(self, *args: Any) -> Any:
        sock = Counting(socket.socket(*args))
        self.made.append(sock)
        return sock


async def test_a_custom_socket_factory_is_respected() -> None:
    async def echo(stream: Any) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with background() as nursery:
        _, port = await nursery.start(started_port, nursery, echo)
        factory = Factory()
        trio.socket.set_custom_socket_factory(factory)
        async with open_ws_stream(f"ws://127.0.0.1:{port}/") as stream:
            await stream.send_all(b"x" * 5000)
            received = b""
            while len(received) < 5000:
                received += await stream.receive_some()
        assert sum(sock.counted for sock in factory.made) >= 10_000


async def started_port(
    nursery: trio.Nursery, handler: Any, *, task_status: trio.TaskStatus[Any]
) -> None:
    listeners = await nursery.start(serve_ws, handler, "127.0.0.1", 0)
    task_status.started((None, listeners[0].port))
