"""After the takeover: the spent connection, and leaving the context managers that made it."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final

import pytest
import trio
import trio.testing
import trio_websocket
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from trio_wsstream import (
    ConnectionLost,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    open_ws_stream,
    wrap_websocket,
)

from .support.frames import BINARY, CLOSE, PING, SIDES, close_payload
from .support.handshakes import CLIENT_HANDSHAKE, receive_head, server_handshake
from .support.meeting import meeting
from .support.pairs import SHORT
from .support.raw_peer import RawPeer
from .support.receiving import receive_all, receive_and_break
from .support.tasks import cancel_when_all_is_blocked
from .support.transports import Gate

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
@pytest.mark.parametrize("queued", [0, 1, 3])
@SIDES
async def test_a_connection_that_was_taken_over_says_so_when_it_is_used(
    client: bool,
    queued: int,
    use: Callable[[WebSocketConnection], Awaitable[object]],
    mock_clock: MockClock,  # stands still, so that the stream has not met the Close before
) -> None:
    """This must hold too if its reader waited at a full queue with a Close behind it."""
    async with meeting(client=client, message_queue_size=1) as our:
        said = our.peer.frame(BINARY, b"hello") * queued
        if queued > 1:
            said += our.peer.frame(CLOSE)
        await our.peer.transport.send_all(said)
        await wait_all_tasks_blocked()
        stream, _ = our.take_over()
        await wait_all_tasks_blocked()
        await check_spent(our.connection, use)
        if queued <= 1:
            await our.say((CLOSE, b""))
        assert await receive_all(stream) == b"hello" * queued
        await stream.aclose()
    assert our.heard == [(CLOSE, b"")]


@SIDES
async def test_a_task_that_waits_for_a_message_at_the_takeover_is_told_at_once(
    client: bool,
) -> None:
    async with meeting(client=client) as our:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_spent, our.connection, SPEND["get_message"])
            await wait_all_tasks_blocked()
            stream, _ = our.take_over()
        await our.say((BINARY, b"not for him"), (CLOSE, b""))
        assert await receive_all(stream) == b"not for him"
        await stream.aclose()


@SIDES
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
@SIDES
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


@SIDES
async def test_a_stream_that_this_side_drops_does_not_report_a_lost_connection(
    client: bool,
) -> None:
    """A task that reads from the transport finds that it is gone, but this side has closed it."""
    async with meeting(client=client) as our:
        stream, happened = our.take_over()
        await our.say((BINARY, b"hello"))
        assert await stream.receive_some() == b"hello"

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        our.nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await our.connection.aclose()
    assert happened == [StreamClosed(1006, "", False, None)]


@SIDES
@pytest.mark.parametrize(
    "said",
    [
        [],
        [(BINARY, b"one")],
        [(BINARY, b"one"), (BINARY, b"two"), (BINARY, b"three")],
        [(PING, b"still there?")],
        [(CLOSE, b"")],
    ],
    ids=["reading", "reading on", "putting into a full queue", "sending a Pong", "closing"],
)
@pytest.mark.parametrize("is_shut", [True, False], ids=["clogged", "free"])
async def test_the_end_of_the_streams_nursery_ends_trio_websockets_tasks(
    client: bool, said: list[tuple[int, bytes]], is_shut: bool
) -> None:
    """This must hold whatever trio-websocket's reader task was doing at the takeover."""
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        if is_shut:
            gate.shut()
        await our.say(*said)
        async with trio.open_nursery() as nursery:
            stream = WsByteStream(our.connection, nursery)
            nursery.cancel_scope.cancel()
        assert stream.closed is not None
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()


# Leaving, over TCP


Body = Callable[[WsByteStream], Awaitable[None]]
Peer = Callable[[RawPeer], Awaitable[None]]
Home = Callable[[Body, Peer, StreamConfig], Awaitable[None]]
"""Runs both over a new TCP connection, and returns when both have ended and no task is left."""


@asynccontextmanager
async def in_its_block(
    connection: WebSocketConnection, config: StreamConfig
) -> AsyncGenerator[WsByteStream, None]:
    async with trio.open_nursery() as nursery, WsByteStream(connection, nursery, config) as stream:
        yield stream


@asynccontextmanager
async def later(
    connection: WebSocketConnection, config: StreamConfig
) -> AsyncGenerator[WsByteStream, None]:
    """Take the connection over after trio-websocket has read all that it can."""
    await wait_all_tasks_blocked(0.01)
    async with wrap_websocket(connection, config) as stream:
        yield stream


@asynccontextmanager
async def served(
    handle: Callable[[WebSocketRequest], Awaitable[None]], **options: int
) -> AsyncGenerator[int, None]:
    """Run serve_websocket until all its handlers have ended. The block gets its port."""
    async with trio.open_nursery() as serving:
        async with trio.open_nursery() as handlers:
            serve = partial(
                trio_websocket.serve_websocket,
                handle,
                "127.0.0.1",
                0,
                None,
                handler_nursery=handlers,
                **options,
            )
            server = await serving.start(serve)
            yield server.port
        serving.cancel_scope.cancel()


Wrap = Callable[[WebSocketConnection, StreamConfig], AbstractAsyncContextManager[WsByteStream]]


async def as_server(wrap: Wrap, body: Body, peer: Peer, config: StreamConfig) -> None:
    """Run ``body`` in a handler of serve_websocket."""

    async def handle(request: WebSocketRequest) -> None:
        connection = await request.accept()
        async with wrap(connection, config) as stream:
            await body(stream)

    async with (
        served(handle) as port,
        await trio.open_tcp_stream("127.0.0.1", port) as transport,
    ):
        await transport.send_all(CLIENT_HANDSHAKE)
        await receive_head(transport)
        await peer(RawPeer(transport, masked=True))


@asynccontextmanager
async def raw_server(peer: Peer) -> AsyncGenerator[int, None]:
    """Run a server of one client, which is ``peer``. The block gets its port."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        async with listener, await listener.accept() as transport:
            await transport.send_all(server_handshake(await receive_head(transport)))
            await peer(RawPeer(transport, masked=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield listener.socket.getsockname()[1]


async def as_client(wrap: Wrap, body: Body, peer: Peer, config: StreamConfig) -> None:
    """Run ``body`` in a block of open_websocket."""
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


LIMIT: Final = 30  # seconds: a bound against hanging
PAUSE: Final = 1  # seconds, from one message of a talkative peer to its next
NEVER: Final = 1e6  # seconds: a close_timeout that would hang the test if anything waited for it

HOMES: Final[dict[str, Home]] = {
    "open_ws_stream": as_client_by_url,
    "open_websocket, wrap_websocket": partial(as_client, wrap_websocket),
    "open_websocket, WsByteStream": partial(as_client, in_its_block),
    "serve_websocket, wrap_websocket": partial(as_server, wrap_websocket),
    "serve_websocket, WsByteStream": partial(as_server, in_its_block),
    "open_websocket, later": partial(as_client, later),
    "serve_websocket, later": partial(as_server, later),
}
every_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES)


async def leave(home: Home, body: Body, peer: Peer, close_timeout: float = NEVER) -> WsByteStream:
    """Run both, check that nothing is left, and return the stream."""
    streams = []

    async def note(stream: WsByteStream) -> None:
        streams.append(stream)
        await body(stream)

    with trio.fail_after(LIMIT):
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
    """Answer our Close. Then a server ends TCP, and a client waits for that (RFC 6455, 7.1.1)."""
    while (heard := await peer.receive())[0] != CLOSE:
        pass
    await peer.send(*heard)
    if peer.masked:
        await peer.expect_eof()


async def close_first(peer: RawPeer) -> None:
    """Close before our side does, or at the same time."""
    await peer.send(BINARY, b"hello")
    await peer.send(CLOSE, close_payload(1000, "bye"))
    assert (await peer.receive())[0] == CLOSE
    if peer.masked:
        await peer.expect_eof()


async def say_much(peer: RawPeer) -> None:
    """Send more messages than the queue of a trio-websocket holds."""
    await peer.send(PING, b"still there?")
    for _ in range(10):
        await peer.send(BINARY, b"hello")
    await listen(peer)


async def be_silent(peer: RawPeer) -> None:
    """Receive our Close and send nothing until TCP ends."""
    while (await peer.receive())[0] != CLOSE:
        pass
    await expect_the_worst(peer)


async def expect_the_worst(peer: RawPeer) -> None:
    """Expect that TCP ends without a Close. It is reset if our side has not read all bytes."""
    try:
        await peer.expect_eof()
    except trio.BrokenResourceError:
        pass


async def expect_1011(peer: RawPeer) -> None:
    code, payload = await peer.receive()
    assert (code, payload) == (CLOSE, close_payload(1011))
    await peer.send(code, payload)
    if peer.masked:
        await peer.expect_eof()


async def talk_and_never_listen(peer: RawPeer) -> None:
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await peer.send(BINARY, bytes(65536))
            await trio.sleep(PAUSE)  # so that `clock_that_jumps` moves on


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
    assert set((await receive_all(stream)).split(b"hello")) == {b""}


async def read_until_broken(stream: WsByteStream) -> None:
    received, error = await receive_and_break(stream)
    assert received in (b"hello", b"")  # a reset may overtake it
    assert isinstance(error, ConnectionLost)


async def wait_until_closed(stream: WsByteStream) -> None:
    assert [event async for event in stream.subscribe(kinds=())] == [stream.closed]


async def send_too_much(stream: WsByteStream) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_all_is_blocked, scope)
            await stream.send_all(bytes(50_000_000))


@pytest.mark.parametrize(
    ("body", "peer", "closed"),
    [
        (do_nothing, say_much, StreamClosed(1000, "", True, None)),
        (close, listen, StreamClosed(1000, "", True, None)),
        (do_nothing, listen, StreamClosed(1000, "", True, None)),
        (read_all, close_first, StreamClosed(1000, "bye", True, None)),
        (
            wait_until_closed,
            close_first,
            StreamClosed(1000, "bye", True, None),
        ),
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
async def test_leaving_a_block_ends_everything_at_once(
    home: Home, body: Body, peer: Peer, closed: StreamClosed | None
) -> None:
    stream = await leave(home, body, peer)
    assert closed in (None, stream.closed)


@pytest.mark.parametrize(
    ("body", "peer"),
    [
        (do_nothing, be_silent),
        (close, be_silent),
        (do_nothing, talk_and_never_listen),
        (send_too_much, talk_and_never_listen),
    ],
)
@every_home
async def test_leaving_a_block_takes_no_longer_than_close_timeout(
    home: Home, body: Body, peer: Peer, clock_that_jumps: MockClock
) -> None:
    started_at = trio.current_time()
    stream = await leave(home, body, peer, close_timeout=7)
    assert 7 <= trio.current_time() - started_at <= 7 + PAUSE
    assert stream.closed == StreamClosed(1006, "", False, None)


async def send_three(stream: WsByteStream) -> None:
    for _ in range(3):
        await stream.send_all(b"hello")


async def test_leaving_a_server_whose_message_queue_is_full() -> None:
    left = trio.Event()

    async def handle(request: WebSocketRequest) -> None:
        await request.accept()
        await left.wait()

    with trio.fail_after(LIMIT):
        async with served(handle, message_queue_size=0) as port:
            async with open_ws_stream(f"ws://127.0.0.1:{port}/", config=SHORT) as stream:
                await send_three(stream)
            assert stream.closed == StreamClosed(1006, "", False, None)
            left.set()


async def test_leaving_a_client_whose_message_queue_is_full() -> None:
    streams = []
    left = trio.Event()

    async def handle(request: WebSocketRequest) -> None:
        async with wrap_websocket(await request.accept(), SHORT) as stream:
            streams.append(stream)
            await send_three(stream)
        left.set()

    with trio.fail_after(LIMIT):
        async with (
            served(handle) as port,
            trio_websocket.open_websocket(
                "127.0.0.1", port, "/", use_ssl=False, message_queue_size=0
            ),
        ):
            await left.wait()
    assert [stream.closed for stream in streams] == [StreamClosed(1006, "", False, None)]


# Exceptions


class Mistake(Exception):
    pass


class Catastrophe(BaseException):
    pass


def catching(kind: type[BaseException]) -> Wrap:
    """Return a `wrap_websocket` that must raise an exception of exactly this kind."""

    @asynccontextmanager
    async def wrap(
        connection: WebSocketConnection, config: StreamConfig
    ) -> AsyncGenerator[WsByteStream, None]:
        with pytest.raises(kind) as caught:
            async with wrap_websocket(connection, config) as stream:
                yield stream
        assert type(caught.value) is kind

    return wrap


@pytest.mark.parametrize("make_home", [as_client, as_server])
@pytest.mark.parametrize(
    ("kind", "peer", "clean"),
    [(Mistake, expect_1011, True), (Catastrophe, expect_the_worst, False)],
)
async def test_an_exception_comes_out_of_wrap_websocket_as_it_was(
    make_home: Callable[..., Awaitable[None]], kind: type[BaseException], peer: Peer, clean: bool
) -> None:
    async def fail(stream: WsByteStream) -> None:
        raise kind

    stream = await leave(partial(make_home, catching(kind)), fail, peer)
    assert stream.closed is not None
    assert stream.closed.clean is clean


@pytest.mark.parametrize("make_home", [as_client, as_server])
@pytest.mark.parametrize(
    ("peer", "seconds"),
    # The peer that answers is not waited for.
    [(be_silent, 7), (expect_1011, 0)],
)
async def test_an_exception_waits_no_longer_than_close_timeout(
    make_home: Callable[..., Awaitable[None]],
    peer: Peer,
    seconds: float,
    clock_that_jumps: MockClock,
) -> None:
    async def fail(stream: WsByteStream) -> None:
        raise Mistake

    home = partial(make_home, catching(Mistake))
    started_at = trio.current_time()
    stream = await leave(home, fail, peer, close_timeout=7)
    assert trio.current_time() == started_at + seconds
    assert stream.closed is not None
    assert stream.closed.clean is (peer is expect_1011)


@asynccontextmanager
async def cancelled_inside(
    connection: WebSocketConnection, config: StreamConfig
) -> AsyncGenerator[WsByteStream, None]:
    with trio.CancelScope() as scope:
        async with wrap_websocket(connection, config) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_all_is_blocked, scope)
            yield stream
    assert scope.cancelled_caught


async def wait_for_ever(stream: WsByteStream) -> None:
    await stream.receive_some()
    raise AssertionError


@pytest.mark.parametrize("make_home", [as_client, as_server])
async def test_a_cancelled_block_drops_the_transport_at_once(
    make_home: Callable[..., Awaitable[None]],
) -> None:
    stream = await leave(partial(make_home, cancelled_inside), wait_for_ever, expect_the_worst)
    assert stream.closed == StreamClosed(1006, "", False, None)


# The stream outlives the block of its connection


@pytest.mark.parametrize("make_home", [as_client, as_server])
@pytest.mark.parametrize("message", [b"hello", bytes(1_000_000)], ids=["short", "long"])
@pytest.mark.parametrize("is_late", [True, False], ids=["late", "early"])
async def test_leaving_the_block_of_the_connection_drops_an_open_stream(
    make_home: Callable[..., Awaitable[None]], message: bytes, is_late: bool
) -> None:
    left = trio.Event()

    async def be_deaf(peer: RawPeer) -> None:
        with pytest.raises((EOFError, trio.BrokenResourceError)):
            for _ in range(5):
                await peer.send(BINARY, b"hello")
            await left.wait()
            while True:
                assert (await peer.receive())[0] == BINARY

    async with trio.open_nursery() as outer:

        @asynccontextmanager
        async def only_open(
            connection: WebSocketConnection, config: StreamConfig
        ) -> AsyncGenerator[WsByteStream, None]:
            if is_late:
                await wait_all_tasks_blocked(0.01)
            yield WsByteStream(connection, outer, config)
            left.set()

        async def use(stream: WsByteStream) -> None:
            outer.start_soon(receive_until_closed, stream)
            outer.start_soon(send_until_closed, stream, message)
            if len(message) > 1000:
                await wait_all_tasks_blocked(0.01)  # until no more fits into the transport

        stream = await leave(partial(make_home, only_open), use, be_deaf)
        assert stream.closed == StreamClosed(1006, "", False, None)
        await stream.aclose()


async def receive_until_closed(stream: WsByteStream) -> None:
    with pytest.raises(trio.ClosedResourceError):
        while True:
            await stream.receive_some()


async def send_until_closed(stream: WsByteStream, message: bytes) -> None:
    with pytest.raises(trio.ClosedResourceError):
        while True:
            await stream.send_all(message)
