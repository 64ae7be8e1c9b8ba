"""Tests with ``websockify``, which carries the bytes of a WebSocket to a TCP server.

websockify is a server only. The tests themselves are the TCP server.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from trio_wsstream import (
    ConnectionLost,
    PingReceived,
    StreamClosed,
    WsByteStream,
    open_ws_stream,
)

from ..support.receiving import receive_all
from .checks import closed_with, echo_odd_sizes
from .peer import LIMIT, need_module

RESET = struct.pack("ii", 1, 0)  # This value of SO_LINGER makes a close send RST.


@attrs.frozen
class Websockify:
    """A running websockify.

    Attributes:
      port: the port on which websockify listens.
      target: the listening socket of the TCP server to which websockify connects.
    """

    port: int
    target: socket.socket

    @asynccontextmanager
    async def meet(self) -> AsyncGenerator[tuple[WsByteStream, trio.SocketStream], None]:
        """Yield a stream through websockify, and the TCP server's end of the connection."""
        with trio.fail_after(LIMIT):
            server = trio.SocketListener(trio.socket.from_stdlib_socket(self.target.dup()))
            async with (
                server,
                open_ws_stream(f"ws://127.0.0.1:{self.port}") as stream,
                await server.accept() as target,
            ):
                yield stream, target


@pytest.fixture(scope="module")
def websockify() -> Iterator[Websockify]:
    need_module("websockify")
    with (
        socket.create_server(("127.0.0.1", 0)) as front,
        socket.create_server(("127.0.0.1", 0)) as target,
    ):
        command = [sys.executable, "-m", "websockify", "--heartbeat=1", "--inetd"]
        process = subprocess.Popen([*command, f"127.0.0.1:{target.getsockname()[1]}"], stdin=front)
        with process:
            yield Websockify(front.getsockname()[1], target)
            process.terminate()


async def test_bytes_in_odd_sizes_come_back_through_websockify(websockify: Websockify) -> None:
    async with websockify.meet() as (stream, target):
        await echo_odd_sizes(stream, target)


async def test_websockify_answers_pings_and_gets_pongs(websockify: Websockify) -> None:
    async with websockify.meet() as (stream, _):
        pings = stream.subscribe(kinds=PingReceived)
        assert 0 < await stream.ping(b"x" * 125) < LIMIT
        assert await pings.receive() == PingReceived(b"")


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4002, "gr\u00fc\u00dfe \u2713")])
async def test_our_close_ends_tcp_behind_websockify(
    websockify: Websockify, code: int, reason: str
) -> None:
    """The TCP server cannot tell an abrupt end from an ordinary one."""
    async with websockify.meet() as (stream, target):
        await stream.send_all(b"hello")
        await stream.aclose(code, reason)
        assert stream.closed == StreamClosed(code, reason, clean=True, error=None)
        assert b"".join([data async for data in target]) == b"hello"


async def test_the_end_of_the_tcp_server_ends_the_stream(websockify: Websockify) -> None:
    """A half-close by the TCP server ends both directions too."""
    async with websockify.meet() as (stream, target):
        await target.send_all(b"hello")
        await target.send_eof()
        assert await receive_all(stream) == b"hello"
        await stream.aclose()
        assert stream.closed == closed_with(1000, "Target closed")
        assert await target.receive_some() == b""


async def test_a_half_close_ends_tcp_behind_websockify(websockify: Websockify) -> None:
    """The TCP server receives everything, but it can no longer answer."""
    data = os.urandom(1_000_003)
    async with websockify.meet() as (stream, target):

        async def serve() -> None:
            received = b"".join([data async for data in target])
            assert received == data
            await target.send_all(b"late")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await stream.send_all(data)
            await stream.send_eof()
            assert await receive_all(stream) == b""
        await stream.aclose()
        assert stream.closed == closed_with(1000, "half-close")


async def test_our_abrupt_end_is_a_clean_one_for_the_tcp_server(websockify: Websockify) -> None:
    async with websockify.meet() as (stream, target):
        await stream.send_all(b"half of the da")
        await trio.aclose_forcefully(stream)
        assert b"".join([data async for data in target]) == b"half of the da"


async def test_a_reset_of_the_tcp_server_is_no_clean_end_for_us(websockify: Websockify) -> None:
    async with websockify.meet() as (stream, target):
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await trio.aclose_forcefully(target)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        assert isinstance(broken.value.__cause__, ConnectionLost)
        await stream.aclose()
        assert stream.closed is not None
        assert not stream.closed.clean
