"""Keepalive, on Trio's mock clock: when a ping is sent, and when a peer is given up."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    CloseReceived,
    ErrorOccurred,
    KeepaliveTimeout,
    PingReceived,
    StreamClosed,
    StreamConfig,
    WsByteStream,
)

from .support.frames import BINARY, CLOSE, PING, PONG, close_payload
from .support.memory import bounded_memory
from .support.pairs import stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events
from .support.tasks import background

CONFIG = StreamConfig(ping_interval=20, ping_timeout=5)
READERS = pytest.mark.parametrize("caller_reads", [True, False])


async def keepalive_pair(
    nursery: trio.Nursery,
    caller_reads: bool = True,
    config: StreamConfig = CONFIG,
    transport: str = "memory",
) -> tuple[WsByteStream, RawPeer]:
    stream, peer = await raw_pair(nursery, transport, config)
    if caller_reads:
        nursery.start_soon(read_on, stream)
    await wait_all_tasks_blocked()
    return stream, peer


async def read_on(stream: WsByteStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@READERS
@pytest.mark.parametrize("timeout", [5, 20, 300, None])
async def test_after_the_interval_without_a_sign_of_life_a_ping_goes_out(
    timeout: float | None, caller_reads: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        config = StreamConfig(ping_interval=20, ping_timeout=timeout)
        stream, peer = await keepalive_pair(nursery, caller_reads, config)
        started = trio.current_time()
        for number in range(1, 4):
            opcode, payload = await peer.receive()
            assert opcode == PING
            assert trio.current_time() - started == pytest.approx(20 * number)
            await peer.send(PONG, payload)
        assert stream.closed is None


@READERS
async def test_any_byte_received_is_a_sign_of_life(
    caller_reads: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        _, peer = await keepalive_pair(nursery, caller_reads)
        started = trio.current_time()
        for byte in peer.frame(BINARY, b"123"):
            await trio.sleep(19)
            await peer.transport.send_all(bytes([byte]))
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(9 * 19 + 20)


@READERS
async def test_without_a_sign_of_life_after_a_ping_the_peer_is_given_up(
    caller_reads: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, caller_reads)
        events = stream.subscribe()
        started = trio.current_time()
        assert (await peer.receive())[0] == PING
        opcode, payload = await peer.receive()
        assert (opcode, payload[:2]) == (CLOSE, (1011).to_bytes(2, "big"))
        assert trio.current_time() - started == pytest.approx(25)
        await peer.expect_eof()
        assert trio.current_time() - started == pytest.approx(25)  # it did not wait for us
        error, closed = await all_events(events)
        assert isinstance(error, ErrorOccurred)
        assert isinstance(error.error, KeepaliveTimeout)
        assert closed == StreamClosed(1006, "", False, error.error)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        assert broken.value.__cause__ == error.error
        for send in (stream.send_eof, lambda: stream.send_all(b"x")):  # a Close of 1011 is no EOF
            with pytest.raises(trio.BrokenResourceError) as broken:
                await send()
            assert broken.value.__cause__ == error.error


async def test_a_reader_is_told_that_the_peer_is_given_up_when_the_transport_is_closed(
    autojump_clock: MockClock,
) -> None:
    """So a handler that ends with that error cannot overtake the Close."""
    async with background() as nursery:
        stream, _ = await keepalive_pair(nursery, caller_reads=False, transport="lockstep")
        await stream.subscribe(kinds=ErrorOccurred).receive()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert stream.closed is not None


async def test_a_caller_who_comes_and_leaves_does_not_put_the_ping_off(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, caller_reads=False)
        started = trio.current_time()
        with trio.move_on_after(19.99):
            await stream.receive_some()
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(20)


async def test_a_clogged_transport_is_dropped_without_a_close(autojump_clock: MockClock) -> None:
    async with background() as nursery, trio.open_nursery() as sending:
        stream, _ = await keepalive_pair(nursery, transport="lockstep")

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.send_all(b"nobody takes this")
            assert isinstance(broken.value.__cause__, KeepaliveTimeout)

        started = trio.current_time()
        sending.start_soon(send)
        (_, closed) = await all_events(stream.subscribe())
        assert isinstance(closed, StreamClosed)
        assert trio.current_time() - started == pytest.approx(25)


async def test_a_silent_peer_is_given_up_also_if_no_ping_can_reach_it(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, _ = await keepalive_pair(nursery, transport="lockstep")
        started = trio.current_time()
        with trio.move_on_after(1):
            await stream.send_all(b"cut off")
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"and so this is refused")
        (_, closed) = await all_events(stream.subscribe())
        assert isinstance(closed, StreamClosed)
        assert isinstance(closed.error, KeepaliveTimeout)
        assert trio.current_time() - started == pytest.approx(25)


@pytest.mark.parametrize("taken_at", [21, 24])
async def test_a_frame_accepted_after_it_had_to_wait_is_a_sign_of_life(
    taken_at: float, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, transport="lockstep")
        nursery.start_soon(stream.send_all, b"takes its time")
        started = trio.current_time()
        await trio.sleep(taken_at)
        assert (await peer.receive())[0] == BINARY
        assert (await peer.receive())[0] == PING
        events = stream.subscribe()
        await all_events(events)
        assert trio.current_time() - started == pytest.approx(taken_at + 25, abs=0.1)


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_a_socket_that_takes_a_frame_after_a_while_is_a_sign_of_life(
    taken: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = os.writev, [taken] if taken else []

    def writev(fd: int, buffers: Sequence[bytes]) -> int:
        if sizes:
            return real(fd, [b"".join(buffers)[: sizes.pop()]])
        if trio.current_time() < started + 12:
            raise BlockingIOError
        return real(fd, buffers)

    async def wait_writable(_: object) -> None:
        await trio.sleep_until(started + 12)

    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, transport="tcp")
        started = trio.current_time()
        monkeypatch.setattr(os, "writev", writev)
        monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
        await stream.send_all(b"takes its time")
        assert (await peer.receive())[0] == BINARY
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(12 + 20)


async def test_a_socket_that_takes_a_frame_at_once_is_none(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, transport="tcp")
        started = trio.current_time()
        await trio.sleep(12)
        await stream.send_all(b"takes no time")
        assert (await peer.receive())[0] == BINARY
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(20)


async def test_a_pong_accepted_after_it_had_to_wait_is_a_sign_of_life(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        _, peer = await keepalive_pair(nursery, transport="lockstep")
        started = trio.current_time()
        await peer.send(PING)
        await trio.sleep(15)
        assert (await peer.receive())[0] == PONG
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(15 + 20)


async def test_frames_that_are_accepted_slowly_keep_the_connection_alive_without_a_ping(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        config = StreamConfig(ping_interval=20, ping_timeout=5, max_message_size=10)
        stream, peer = await keepalive_pair(nursery, config=config, transport="lockstep")
        nursery.start_soon(stream.send_all, bytes(1000))
        for _ in range(20):
            await trio.sleep(12)
            assert await peer.receive() == (BINARY, bytes(10))
        assert stream.closed is None


async def test_a_frame_that_a_socket_takes_slowly_keeps_the_connection_alive(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bytes each twelve seconds."""
    real, has_room = os.writev, False

    def writev(fd: int, buffers: Sequence[bytes]) -> int:
        nonlocal has_room
        if not has_room:
            raise BlockingIOError
        has_room = False
        return real(fd, [b"".join(buffers)[:10]])

    async def wait_writable(_: object) -> None:
        nonlocal has_room
        await trio.sleep(12)
        has_room = True

    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, transport="tcp")
        started = trio.current_time()
        monkeypatch.setattr(os, "writev", writev)
        monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
        await stream.send_all(bytes(38))
        assert trio.current_time() - started == 48
        assert await peer.receive() == (BINARY, bytes(38))


@pytest.mark.parametrize("caller_reads", [True, False])
async def test_a_ping_does_not_end_the_standstill_of_a_slow_subscriber(
    caller_reads: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, caller_reads)
        events = stream.subscribe(0, backpressure=True)
        await peer.send(PING, b"waits for the subscriber")
        await trio.sleep(1)
        with trio.move_on_after(5):
            await stream.ping()
        await trio.sleep(200)
        assert stream.closed is None
        events.close()


async def test_a_frame_that_did_not_wait_is_no_sign_of_life(autojump_clock: MockClock) -> None:
    """The kernel's buffer takes frames for a dead peer, too."""
    async with background() as nursery:
        stream, _ = await keepalive_pair(nursery)
        events = stream.subscribe()
        started = trio.current_time()

        async def send() -> None:
            for _ in range(24):
                await trio.sleep(1)
                await stream.send_all(b"x")

        nursery.start_soon(send)
        await all_events(events)
        assert trio.current_time() - started == pytest.approx(25)


async def test_the_clock_stands_still_while_a_slow_caller_holds_reading_back(
    autojump_clock: MockClock,
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=5, receive_buffer_size=10)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=config)
        await peer.send(BINARY, bytes(10))
        await trio.sleep(1000)
        assert stream.closed is None
        assert len(await stream.receive_some()) == 10
        started = trio.current_time()
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(20, abs=0.2)


async def test_the_clock_stands_still_while_a_slow_subscriber_holds_reading_back(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=CONFIG)
        events = stream.subscribe(1, backpressure=True)
        for _ in range(2):
            await peer.send(PING)
        await trio.sleep(1000)
        assert stream.closed is None
        assert await events.receive() == PingReceived(b"")
        assert await events.receive() == PingReceived(b"")
        started = trio.current_time()
        seen = [(await peer.receive())[0] for _ in range(3)]
        assert seen == [PONG, PONG, PING]
        assert trio.current_time() - started == pytest.approx(20, abs=0.2)


@pytest.mark.parametrize("timeout", [5, None])
async def test_who_sends_gives_up_a_reader_that_pauses_unless_it_has_no_timeout(
    timeout: float | None, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        config = StreamConfig(ping_interval=20, ping_timeout=timeout, receive_buffer_size=100)
        sender, reader = await stream_pair(nursery, "lockstep", config)
        failed = trio.Event()

        async def send() -> None:
            try:
                await sender.send_all(bytes(1_000_000))
            except trio.BrokenResourceError as error:
                assert isinstance(error.__cause__, KeepaliveTimeout)
                failed.set()

        nursery.start_soon(send)
        await trio.sleep(1000)
        if timeout is None:
            received = 0
            while received < 1_000_000:
                received += len(await reader.receive_some())
        assert failed.is_set() is (timeout is not None)


async def test_a_frame_accepted_while_the_clock_stands_still_is_no_sign_of_life_to_come(
    autojump_clock: MockClock,
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=5, receive_buffer_size=10)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        await peer.send(BINARY, bytes(10))
        nursery.start_soon(stream.send_all, b"takes its time")
        await trio.sleep(25)
        assert (await peer.receive())[0] == BINARY
        await trio.sleep(5)
        await stream.receive_some()
        started = trio.current_time()
        assert (await peer.receive())[0] == PING
        assert trio.current_time() - started == pytest.approx(20, abs=0.2)


async def test_keepalive_rests_once_the_peer_has_closed(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery)
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        await trio.sleep(1000)
        await stream.send_all(b"x")
        assert await peer.receive() == (BINARY, b"x")


async def test_keepalive_rests_once_this_side_has_half_closed(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery)
        await stream.send_eof()
        await trio.sleep(1000)
        assert stream.closed is None
        assert (await peer.receive())[0] == CLOSE
        await peer.send(CLOSE, close_payload(1000))
        await peer.expect_eof()


async def test_no_interval_switches_keepalive_off(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, config=StreamConfig(ping_interval=None))
        await trio.sleep(1000)
        await stream.send_all(b"x")
        assert await peer.receive() == (BINARY, b"x")


async def test_no_timeout_sends_pings_and_demands_nothing(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        config = StreamConfig(ping_interval=20, ping_timeout=None)
        stream, peer = await keepalive_pair(nursery, config=config)
        started = trio.current_time()
        for number in range(1, 4):
            assert (await peer.receive())[0] == PING
            assert trio.current_time() - started == pytest.approx(20 * number)
        assert stream.closed is None


async def test_pings_that_are_never_answered_take_no_memory(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        config = StreamConfig(ping_interval=1, ping_timeout=None)
        stream, peer = await keepalive_pair(nursery, config=config)
        nursery.start_soon(expect_pings, peer)
        await trio.sleep(100)  # what is allocated once
        async with bounded_memory(50_000):
            await trio.sleep(1000)
        assert stream.closed is None


async def expect_pings(peer: RawPeer) -> None:
    while True:
        assert (await peer.receive())[0] == PING


async def test_two_streams_keep_each_other_alive_with_one_task_each(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        await client.send_all(b"1")
        assert await server.receive_some() == b"1"
        await server.send_all(b"2")
        assert await client.receive_some() == b"2"
        await trio.sleep(10_010)  # no ping is just under way
        assert client.closed is server.closed is None
        assert len(nursery.child_tasks) == 2
        events = server.subscribe(kinds=CloseReceived)
        await client.aclose()
        assert await events.receive() == CloseReceived(1000, "")
