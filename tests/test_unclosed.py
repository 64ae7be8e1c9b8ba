"""A stream that nobody has closed, and that nobody but its own task knows any more."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import WebSocketConnection

from trio_wsstream import StreamClosed, StreamConfig, WsByteStream

from .support.frames import BINARY, PING, PONG, SIDES
from .support.handshakes import handshake
from .support.raw_peer import RawPeer
from .support.tasks import background
from .support.transports import TRANSPORTS, close_when_cancelled

NEVER_PINGS = StreamConfig(ping_interval=None)


@asynccontextmanager
async def a_connection(
    transport: str = "tcp", *, client: bool = True
) -> AsyncGenerator[tuple[list[WebSocketConnection], trio.Nursery, RawPeer], None]:
    """Yield a list with a connection, a nursery for its stream, and the peer.

    The block takes the connection out of the list, so that nothing here holds it any more. After
    the block the stream's tasks must end.
    """
    async with background() as nursery:
        ends = await TRANSPORTS[transport]()
        ours, theirs = ends if client else reversed(ends)
        nursery.start_soon(close_when_cancelled, theirs)
        connections = [await handshake(nursery, ours, theirs, client=client)]
        with trio.fail_after(30):
            async with trio.open_nursery() as of_stream:
                yield connections, of_stream, RawPeer(theirs, masked=not client)


async def collect_garbage() -> None:
    """Collect garbage while the stream's task waits, and let follow what does."""
    await wait_all_tasks_blocked(0.1)
    gc.collect()
    await wait_all_tasks_blocked(0.01)


async def check_is_kept(peer: RawPeer) -> None:
    """Check that garbage collection leaves the stream alone, so that it answers a Ping."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await collect_garbage()
    await peer.send(PING, b"still there?")
    assert await peer.receive() == (PONG, b"still there?")


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls"])
@SIDES
async def test_a_stream_that_is_garbage_gives_a_warning_and_its_transport_ends(
    client: bool, transport: str
) -> None:
    async with a_connection(transport, client=client) as (connections, nursery, peer):
        stream = WsByteStream(connections.pop(), nursery, NEVER_PINGS)
        side, remote = ("client", "server")[not client], str(stream).partition("peer ")[2][:9]
        await peer.send(BINARY, b"data")
        assert await stream.receive_some() == b"data"
        del stream
        with pytest.warns(ResourceWarning) as warned:
            await collect_garbage()
        (warning,) = warned
        assert f"WsByteStream {side}, peer {remote}" in str(warning.message)
        await peer.expect_eof()


async def test_a_stream_that_was_never_used_is_garbage_too() -> None:
    async with a_connection() as (connections, nursery, peer):
        WsByteStream(connections.pop(), nursery, NEVER_PINGS)
        with pytest.warns(ResourceWarning, match="never closed"):
            await collect_garbage()
        await peer.expect_eof()


async def test_garbage_while_the_task_sleeps(mock_clock: MockClock) -> None:
    """It sleeps until the grace period is over, which this clock never lets happen."""
    async with a_connection() as (connections, nursery, peer):
        WsByteStream(connections.pop(), nursery)
        await wait_all_tasks_blocked()
        with pytest.warns(ResourceWarning, match="never closed"):
            gc.collect()
        await peer.expect_eof()


async def test_a_garbage_collector_in_another_thread() -> None:
    async with a_connection() as (connections, nursery, peer):
        WsByteStream(connections.pop(), nursery, NEVER_PINGS)
        await wait_all_tasks_blocked(0.1)
        with pytest.warns(ResourceWarning, match="never closed"):
            await trio.to_thread.run_sync(gc.collect)
        await peer.expect_eof()


async def test_a_warning_that_is_an_error_reaches_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: unraisable.append(hook.exc_type))
    async with a_connection() as (connections, nursery, peer):
        WsByteStream(connections.pop(), nursery, NEVER_PINGS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await collect_garbage()
        assert unraisable == [ResourceWarning]
        await peer.expect_eof()


async def test_a_stream_lives_as_long_as_its_connection_is_held() -> None:
    async with a_connection() as (connections, nursery, peer):
        WsByteStream(connections[0], nursery, NEVER_PINGS)
        await check_is_kept(peer)
        await connections.pop().aclose()


async def test_a_stream_lives_as_long_as_a_task_waits_in_it() -> None:
    async with a_connection() as (connections, nursery, peer):
        stream = WsByteStream(connections.pop(), nursery, NEVER_PINGS)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(partial(stream.ping, b"question"))
            del stream
            assert await peer.receive() == (PING, b"question")
            await check_is_kept(peer)
            await peer.send(PONG, b"question")
        with pytest.warns(ResourceWarning, match="never closed"):
            await collect_garbage()


@pytest.mark.parametrize("is_waiting_already", [True, False])
async def test_a_stream_lives_as_long_as_a_subscriber_listens(is_waiting_already: bool) -> None:
    async with a_connection() as (connections, nursery, peer):
        stream = WsByteStream(connections.pop(), nursery, NEVER_PINGS)
        if is_waiting_already:
            await wait_all_tasks_blocked(0.1)
        events = stream.subscribe(kinds=())
        del stream
        for _ in range(2):
            await check_is_kept(peer)
        await peer.transport.aclose()
        assert [type(event) async for event in events] == [StreamClosed]


async def test_a_stream_whose_last_subscriber_has_left_is_garbage_when_its_task_looks() -> None:
    async with a_connection() as (connections, nursery, peer):
        events = WsByteStream(connections.pop(), nursery, NEVER_PINGS).subscribe()
        await check_is_kept(peer)
        events.close()
        await check_is_kept(peer)  # This Ping wakes the task.
        with pytest.warns(ResourceWarning, match="never closed"):
            await collect_garbage()


async def test_a_stream_that_has_ended_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with a_connection() as (connections, nursery, peer):
            WsByteStream(connections.pop(), nursery)
            await peer.transport.aclose()
        await collect_garbage()
