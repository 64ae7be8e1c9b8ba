"""After the takeover: the spent connection, and leaving the context managers that made it."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final

import attrs
import pytest
import trio
import trio.testing
import trio_websocket
import wsproto.utilities
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from trio_wsstream import (
    AbnormalClosure,
    ConnectionLost,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    open_ws_stream,
    wrap_websocket,
)

from .pairs import BINARY, CLOSE, PING, RawPeer, close_payload
from .test_takeover import both_sides, meeting, receive_all, receive_and_break, receive_exactly

# The spent connection

SPEND: Final[dict[str, Callable[[WebSocketConnection], Awaitable[object]]]] = {
    "send_message": lambda connection: connection.send_message(b"hello"),
    "ping": lambda connection: connection.ping(),
    "pong": lambda connection: connection.pong(),
    "get_message": lambda connection: connection.get_message(),
}


async def check_spent(
    connection: WebSocketConnection, use: Callable[[WebSocketConnection], Awaitable[object]]
) -> None:
    with pytest.raises(ConnectionClosed) as closed:
        await use(connection)
    assert closed.value.reason is not None
    assert "WsByteStream" in str(closed.value.reason.reason)


@pytest.mark.parametrize("use", SPEND.values(), ids=SPEND)
@both_sides
async def test_a_spent_connection_says_who_took_it(
    client: bool, use: Callable[[WebSocketConnection], Awaitable[object]]
) -> None:
    async with meeting(client=client, message_queue_size=1) as our:
        await our.say((BINARY, b"one"), (BINARY, b"two"))
        stream, _ = our.take_over()
        await check_spent(our.connection, use)
        await our.say((CLOSE, b""))
        assert await receive_all(stream) == b"onetwo"
        await stream.aclose()
    assert our.heard == [(CLOSE, b"")]


@both_sides
async def test_who_waits_for_a_message_at_the_takeover_is_told(client: bool) -> None:
    async with meeting(client=client) as our:
        our.nursery.start_soon(check_spent, our.connection, SPEND["get_message"])
        await wait_all_tasks_blocked()
        stream, _ = our.take_over()
        await our.say((BINARY, b"not for him"), (CLOSE, b""))
        assert await receive_all(stream) == b"not for him"
        await stream.aclose()


@both_sides
async def test_aclose_of_the_connection_drops_the_open_stream_at_once(
    client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with meeting(client=client) as our:
        stream, happened = our.take_over()

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        our.nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        started_at = trio.current_time()
        await our.connection.aclose()
        assert trio.current_time() == started_at
        assert stream.closed == StreamClosed(1006, "", False, None)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"too late")
        await our.connection.aclose()
    assert (our.heard, happened) == ([], [stream.closed])
    assert our.connection.closed is not None
    assert our.connection.closed.code == 1006


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("code", "reason"), [(1000, None), (1001, "going"), (1005, None), (4000, "enough")]
)
@both_sides
async def test_the_connection_tells_the_real_code_and_reason_in_the_end(
    client: bool, code: int, reason: str | None, before: bool
) -> None:
    close = (CLOSE, b"" if code == 1005 else close_payload(code, reason or ""))
    async with meeting(client=client) as our:
        if before:
            await our.say(close)
        stream, _ = our.take_over()
        if not before:
            assert our.connection.closed is not None
            assert "WsByteStream" in str(our.connection.closed.reason)
            await our.say(close)
        await stream.aclose(4321, "ours")
        await our.connection.aclose()
    assert our.connection.closed is not None
    assert (our.connection.closed.code, our.connection.closed.reason) == (code, reason)


# Leaving, over TCP


def server_handshake(request: bytes) -> bytes:
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + wsproto.utilities.generate_accept_token(key) + b"\r\n\r\n"
    )


CLIENT_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def receive_head(transport: trio.SocketStream) -> bytes:
    """An HTTP head, and not one byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await transport.receive_some(1)
    return head


Body = Callable[[WsByteStream], Awaitable[None]]
Peer = Callable[[RawPeer], Awaitable[None]]
Home = Callable[[Body, Peer, StreamConfig], Awaitable[None]]
"""Runs both over a new TCP connection; returns when both have, and no task is left of ours."""


@asynccontextmanager
async def in_its_block(
    connection: WebSocketConnection, config: StreamConfig
) -> AsyncGenerator[WsByteStream, None]:
    async with trio.open_nursery() as nursery, WsByteStream(connection, nursery, config) as stream:
        yield stream


Wrap = Callable[[WebSocketConnection, StreamConfig], AbstractAsyncContextManager[WsByteStream]]


async def as_server(wrap: Wrap, body: Body, peer: Peer, config: StreamConfig) -> None:
    """In a handler of serve_websocket."""

    async def handle(request: WebSocketRequest) -> None:
        connection = await request.accept()
        async with wrap(connection, config) as stream:
            await body(stream)

    async with trio.open_nursery() as serving:
        async with trio.open_nursery() as handlers:
            serve = partial(
                trio_websocket.serve_websocket,
                handle,
                "127.0.0.1",
                0,
                None,
                handler_nursery=handlers,
            )
            server = await serving.start(serve)
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as transport:
                await transport.send_all(CLIENT_HANDSHAKE)
                await receive_head(transport)
                await peer(RawPeer(transport, masked=True))
        serving.cancel_scope.cancel()


@asynccontextmanager
async def raw_server(peer: Peer) -> AsyncGenerator[int, None]:
    """The port at which ``peer`` awaits its only client."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        async with listener, await listener.accept() as transport:
            await transport.send_all(server_handshake(await receive_head(transport)))
            await peer(RawPeer(transport, masked=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield listener.socket.getsockname()[1]


async def as_client(wrap: Wrap, body: Body, peer: Peer, config: StreamConfig) -> None:
    """In a block of open_websocket."""
    async with (
        raw_server(peer) as port,
        trio_websocket.open_websocket("127.0.0.1", port, "/", use_ssl=False) as connection,
        wrap(connection, config) as stream,
    ):
        await body(stream)


async def as_client_by_url(body: Body, peer: Peer, config: StreamConfig) -> None:
    async with (
        raw_server(peer) as port,
        open_ws_stream(f"ws://127.0.0.1:{port}/", config=config) as stream,
    ):
        await body(stream)


HOMES: Final[dict[str, Home]] = {
    "open_ws_stream": as_client_by_url,
    "open_websocket, wrap_websocket": partial(as_client, wrap_websocket),
    "open_websocket, WsByteStream": partial(as_client, in_its_block),
    "serve_websocket, wrap_websocket": partial(as_server, wrap_websocket),
    "serve_websocket, WsByteStream": partial(as_server, in_its_block),
}
every_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)


async def leave(home: Home, body: Body, peer: Peer, close_timeout: float = 5) -> WsByteStream:
    """Run both, see that nothing is left, and return the stream."""
    streams = []

    async def note(stream: WsByteStream) -> None:
        streams.append(stream)
        await body(stream)

    with trio.fail_after(4):
        await home(note, peer, StreamConfig(close_timeout=close_timeout))
    (stream,) = streams
    assert isinstance(stream._transport, trio.SocketStream)
    assert stream._transport.socket.fileno() == -1
    assert stream.closed is not None
    assert stream.connection.closed is not None
    assert stream.connection.closed.code == stream.closed.code
    return stream


# Peers


async def listen(peer: RawPeer) -> None:
    """Answers our Close; then a server ends TCP, and a client waits for it (RFC 6455, 7.1.1)."""
    while (heard := await peer.receive())[0] != CLOSE:
        pass
    await peer.send(*heard)
    if peer.masked:
        await peer.expect_eof()


async def close_first(peer: RawPeer) -> None:
    await peer.send(BINARY, b"hello")
    await peer.send(CLOSE, close_payload(1001, "bye"))
    assert await peer.receive() == (CLOSE, close_payload(1001, "bye"))
    if peer.masked:
        await peer.expect_eof()


async def be_silent(peer: RawPeer) -> None:
    """Takes our Close and says nothing, until TCP ends."""
    try:
        while True:
            await peer.receive()
    except (EOFError, trio.BrokenResourceError):
        pass


async def stop_reading(peer: RawPeer) -> None:
    """Its own buffers are full, and so are ours, until TCP is reset."""
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await peer.send(BINARY, bytes(65536))


async def hang_up(peer: RawPeer) -> None:
    await peer.send(BINARY, b"hello")


async def reset(peer: RawPeer) -> None:
    await peer.send(BINARY, b"hello")
    linger = struct.pack("ii", 1, 0)
    peer.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


# Bodies


async def do_nothing(stream: WsByteStream) -> None:
    pass


async def close(stream: WsByteStream) -> None:
    await stream.send_all(b"hello")
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()


async def read_all(stream: WsByteStream) -> None:
    assert await receive_all(stream) == b"hello"


async def read_until_broken(stream: WsByteStream) -> None:
    received, error = await receive_and_break(stream)
    assert received in (b"hello", b"")  # a reset may overtake it
    assert isinstance(error, ConnectionLost)


async def wait_until_closed(stream: WsByteStream) -> None:
    assert [event async for event in stream.subscribe(kinds=())] == [stream.closed]


async def send_too_much(stream: WsByteStream) -> None:
    with trio.move_on_after(0.1):
        await stream.send_all(bytes(50_000_000))


@pytest.mark.parametrize(
    ("body", "peer", "closed"),
    [
        (close, listen, StreamClosed(1000, "", True, None)),
        (do_nothing, listen, StreamClosed(1000, "", True, None)),
        (read_all, close_first, StreamClosed(1001, "bye", True, None)),
        (wait_until_closed, close_first, StreamClosed(1001, "bye", True, None)),
        (do_nothing, close_first, None),
        (read_until_broken, hang_up, None),
        (wait_until_closed, hang_up, None),
        (do_nothing, hang_up, None),
        (read_until_broken, reset, None),
        (wait_until_closed, reset, None),
        (do_nothing, reset, None),
    ],
)
@every_home
async def test_leaving_ends_everything_at_once(
    home: Home, body: Body, peer: Peer, closed: StreamClosed | None
) -> None:
    started_at = trio.current_time()
    stream = await leave(home, body, peer)
    assert trio.current_time() - started_at < 2
    assert closed in (None, stream.closed)
