"""``websocat``, version 1, between a WebSocket and TCP: a server before TCP, or a client behind it.

A test plays the program at the other end of its TCP.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from trio_wsstream import HalfClose, StreamConfig, WsByteStream, open_ws_stream

from ..support.programs import free_port, running
from ..support.receiving import receive_all
from .checks import echo_odd_sizes
from .peer import LIMIT, built_peer, serve_streams

Ends = tuple[WsByteStream, trio.SocketStream]
ALWAYS = StreamConfig(half_close=HalfClose.ALWAYS)
READY = "serving multiple clients"  # It says this first.
both_sides = pytest.mark.parametrize("side", ["server", "client"])


@asynccontextmanager
async def meet(side: str, config: StreamConfig = StreamConfig()) -> AsyncGenerator[Ends, None]:
    """A stream, and the TCP end beyond websocat."""
    with trio.fail_after(LIMIT):
        async with meet_server(config) if side == "server" else meet_client(config) as ends:
            yield ends


@pytest.fixture(autouse=True)
def websocat() -> None:
    """Skip the test here if websocat is missing. What a task raises would be in a group."""
    built_peer("rust", "websocat")


async def connect(port: int) -> trio.SocketStream:
    """Connect as soon as websocat listens, since it does not say when."""
    while True:
        try:
            return await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(0.01)


@asynccontextmanager
async def meet_server(config: StreamConfig) -> AsyncGenerator[Ends, None]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    target = listener.socket.getsockname()[1]
    port = free_port()
    command = [*built_peer("rust", "websocat"), "--binary", f"ws-l:127.0.0.1:{port}"]
    async with (
        listener,
        running([*command, f"tcp:127.0.0.1:{target}"], READY),
        open_ws_stream(
            f"ws://127.0.0.1:{port}/", transport=await connect(port), config=config
        ) as stream,
        await listener.accept() as tcp,
    ):
        yield stream, tcp


@asynccontextmanager
async def meet_client(config: StreamConfig) -> AsyncGenerator[Ends, None]:
    port = free_port()
    command = [*built_peer("rust", "websocat"), "--binary", f"tcp-l:127.0.0.1:{port}"]
    async with (
        serve_streams(config=config) as (target, streams),
        running([*command, f"ws://127.0.0.1:{target}/"], READY),
        await connect(port) as tcp,
        await streams.receive() as stream,
    ):
        yield stream, tcp


@both_sides
async def test_bytes_in_odd_sizes_come_back_through_websocat(side: str) -> None:
    async with meet(side) as (stream, tcp):
        await echo_odd_sizes(stream, tcp)
        await tcp.send_eof()  # Without this websocat would not answer our Close.


@both_sides
async def test_websocat_defers_its_answer_to_our_half_close(side: str) -> None:
    """It passes it on to TCP, and what TCP answers, although it is no `WsByteStream`."""
    data = os.urandom(1_000_003)
    async with meet(side) as (stream, tcp):
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await receive_all(tcp) == b"question"
        await tcp.send_all(data)
        await tcp.send_eof()
        assert await receive_all(stream) == data


@both_sides
async def test_the_half_close_of_websocat_needs_half_close_always(side: str) -> None:
    data = os.urandom(1_000_003)
    async with meet(side, ALWAYS) as (stream, tcp):
        await tcp.send_all(b"question")
        await tcp.send_eof()
        assert await receive_all(stream) == b"question"
        await stream.send_all(data)
        await stream.send_eof()
        assert await receive_all(tcp) == data
    async with meet(side) as (stream, tcp):
        await tcp.send_all(b"question")
        await tcp.send_eof()
        assert await receive_all(stream) == b"question"
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"answer")
        assert await receive_all(tcp) == b""


@both_sides
async def test_a_stream_that_we_drop_is_a_plain_end_beyond_websocat(side: str) -> None:
    async with meet(side) as (stream, tcp):
        await stream.send_all(b"half of the da")
        await trio.aclose_forcefully(stream)
        assert await receive_all(tcp) == b"half of the da"
