"""Connected transports, and wrappers that make a transport slow. The client's end comes first."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

AUTHORITY = trustme.CA()
SERVER_TLS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
AUTHORITY.issue_cert("localhost", "127.0.0.1").configure_cert(SERVER_TLS)
CLIENT_TLS = ssl.create_default_context()
AUTHORITY.configure_trust(CLIENT_TLS)


def tls_for(url: str) -> ssl.SSLContext | None:
    """Return the ``ssl_context`` that `open_ws_stream` needs in order to connect to ``url``."""
    return CLIENT_TLS if url.startswith("wss:") else None


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
    """Return two sockets with small buffers. Bytes that one has sent can be read at once."""
    ends = trio.socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return trio.SocketStream(ends[0]), trio.SocketStream(ends[1])


OLD_TLS = ssl.create_default_context()
AUTHORITY.configure_trust(OLD_TLS)
OLD_TLS.maximum_version = ssl.TLSVersion.TLSv1_2


async def tls_transport() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return await over_tls(await tcp_transport())


async def old_tls_transport() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    return await over_tls(await tcp_transport(), OLD_TLS)


async def over_tls(
    ends: tuple[trio.abc.Stream, trio.abc.Stream], client_context: ssl.SSLContext = CLIENT_TLS
) -> tuple[trio.SSLStream[Any], trio.SSLStream[Any]]:
    """Do the handshake of TLS over a transport."""
    client, server = ends
    client_tls = trio.SSLStream(
        client, client_context, server_hostname="localhost", https_compatible=True
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
    "TLS 1.2": old_tls_transport,
    "unix": unix_transport,
}


def reset(stream: trio.SocketStream) -> None:
    """Close ``stream`` so that the other end gets a reset and not an end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def close_when_cancelled(transport: trio.abc.AsyncResource) -> None:
    """Close ``transport`` when the test ends, so that no socket stays open."""
    try:
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(transport)


class SlowSender(trio.abc.Stream):
    """A transport that sends only the first half of its data while its gate is shut."""

    def __init__(self, transport: trio.abc.Stream) -> None:
        self._transport = transport
        self.gate = trio.Event()
        self.gate.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        half = len(data) // 2
        await self._transport.send_all(data[:half])
        await self.gate.wait()
        await self._transport.send_all(data[half:])

    async def wait_send_all_might_not_block(self) -> None:
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._transport.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.gate.set()
        await self._transport.aclose()


@attrs.define
class Gate:
    """Wraps our transport of a `meeting`, so that a test can shut it and open it again."""

    sender: SlowSender | None = None

    def __call__(self, transport: trio.abc.Stream) -> SlowSender:
        self.sender = SlowSender(transport)
        return self.sender

    def shut(self) -> None:
        assert self.sender is not None
        self.sender.gate = trio.Event()

    def open(self) -> None:
        assert self.sender is not None
        self.sender.gate.set()


def beneath(transport: Any) -> trio.SocketStream:
    """Return the socket stream of a transport, which may be beneath TLS."""
    stream: trio.SocketStream = getattr(transport, "transport_stream", transport)
    return stream


def take(monkeypatch: pytest.MonkeyPatch, counts: Sequence[int], then: Callable[[], bool]) -> None:
    """Make sockets take so many bytes, where 0 is a full one, and then nothing until ``then()``."""
    real, left = os.writev, list(counts)

    def writev(fd: int, buffers: Sequence[bytes]) -> int:
        if not left and not then():
            raise BlockingIOError
        if not left:
            return real(fd, buffers)
        if not left[0]:
            del left[0]
            raise BlockingIOError
        taken = real(fd, [b"".join(buffers)[: left[0]]])
        left[0] -= taken
        if not left[0]:
            del left[0]
        return taken

    monkeypatch.setattr(os, "writev", writev)
