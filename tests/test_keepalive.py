"""Keepalive, on Trio's mock clock: what is on the wire and when, and when a peer is given up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    CloseReceived,
    ErrorOccurred,
    KeepaliveTimeout,
    PingReceived,
    PongReceived,
    StreamClosed,
    StreamConfig,
    WsByteStream,
)
from trio_wsstream._keepalive import CROWD
from trio_wsstream._protocol import HEARTBEAT

from .support.frames import BINARY, CLOSE, PING, PONG
from .support.memory import bounded_memory
from .support.pairs import stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events
from .support.tasks import background
from .support.wire import send_each, watched

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
        wire = watched(nursery, peer)
        for byte in peer.frame(BINARY, b"123"):
            await trio.sleep(19)
            await peer.transport.send_all(bytes([byte]))
        await trio.sleep(21)
        heartbeats = [(20.0 * number, PONG, HEARTBEAT) for number in range(1, 9)]
        assert wire == [*heartbeats, (180, PONG, HEARTBEAT), (9 * 19 + 20, PING, b"?")]


@READERS
async def test_an_end_that_hears_and_sends_nothing_sends_a_heartbeat(
    caller_reads: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        _, peer = await keepalive_pair(nursery, caller_reads)
        wire = watched(nursery, peer)
        nursery.start_soon(send_each, peer, 7, BINARY)
        await trio.sleep(70)
        assert wire == [(seconds, PONG, HEARTBEAT) for seconds in (20, 40, 60)]


async def test_the_heartbeat_comes_an_interval_after_what_was_sent_last(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery)
        wire = watched(nursery, peer)
        nursery.start_soon(send_each, peer, 6, PONG)
        for _ in range(6):
            await trio.sleep(5)
            await stream.send_all(b"x")
        await trio.sleep(45)
        data = [(5 * number, BINARY, b"x") for number in range(1, 7)]
        assert wire == [*data, (50, PONG, HEARTBEAT), (70, PONG, HEARTBEAT)]


async def test_an_end_that_answers_pings_sends_no_heartbeat(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        _, peer = await keepalive_pair(nursery)
        wire = watched(nursery, peer)
        nursery.start_soon(send_each, peer, 15, PING)
        await trio.sleep(100)
        assert wire == [(15 * number, PONG, b"alive") for number in range(1, 7)]


async def test_a_heartbeat_is_a_pong_received_at_the_other_end(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, server_config=StreamConfig(ping_interval=None))
        events = server.subscribe()
        with trio.move_on_after(50):
            while True:
                await server.send_all(b"x")
                await client.receive_some()
                await trio.sleep(6)
        assert events.receive_nowait() == PongReceived(b"heartbeat")
        assert events.receive_nowait() == PongReceived(b"heartbeat")
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()


async def test_no_heartbeat_is_added_to_what_waits_for_the_transport_already(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, transport="lockstep")
        nursery.start_soon(send_each, peer, 6)
        nursery.start_soon(stream.send_all, b"takes its time")
        await trio.sleep(90)
        wire = watched(nursery, peer)
        await trio.sleep(39)
        assert wire == [(0, BINARY, b"takes its time"), (20, PONG, HEARTBEAT)]


async def test_a_ping_that_meets_a_frame_on_its_way_goes_out_behind_it(
    autojump_clock: MockClock,
) -> None:
    """Otherwise a sender whose frames need not wait would give up a peer that got no Ping."""
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, transport="lockstep")
        await trio.sleep(19.99)
        nursery.start_soon(stream.send_all, b"under way")
        await trio.sleep(0.02)
        wire = watched(nursery, peer)
        await trio.sleep(4.9)
        assert wire == [(0, BINARY, b"under way"), (0, PING, b"?")]


@pytest.mark.parametrize("timeout", [5, 100])
async def test_pings_do_not_gather_behind_a_frame_that_waits(
    timeout: float, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        config = StreamConfig(ping_interval=1, ping_timeout=None)
        stream, peer = await keepalive_pair(nursery, config=config, transport="lockstep")
        nursery.start_soon(stream.send_all, b"takes its time")
        await trio.sleep(timeout)
        assert (await peer.receive())[0] == BINARY
        wire = watched(nursery, peer)
        await trio.sleep(1.5)
        assert wire == [(0, PING, b"?"), (1, PING, b"?")]


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
    """So a handler that ends with this error cannot overtake the Close."""
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
        (closed,) = await all_events(stream.subscribe())  # an error was told when that was cut off
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


async def test_a_socket_that_takes_a_frame_at_once_is_no_sign_of_life(
    autojump_clock: MockClock,
) -> None:
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
    """The socket takes ten bytes every twelve seconds."""
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
    """The kernel's buffer takes frames for a dead peer too."""
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


async def test_while_a_slow_caller_holds_reading_back_the_peer_gets_heartbeats_and_is_not_given_up(
    autojump_clock: MockClock,
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=5, receive_buffer_size=10)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=config)
        wire = watched(nursery, peer)
        await peer.send(BINARY, bytes(10))
        await trio.sleep(1010)
        assert stream.closed is None
        assert len(await stream.receive_some()) == 10
        await trio.sleep(24)
        heartbeats = [(20 * number, PONG, HEARTBEAT) for number in range(1, 52)]
        assert wire == [*heartbeats, (1030, PING, b"?")]
        await trio.sleep(2)
        close = (CLOSE, b"\x03\xf3keepalive timeout")
        assert wire[-2:] == [(1035, *close), (1035, -1, b"")]


async def test_while_a_slow_subscriber_holds_reading_back_the_peer_gets_heartbeats(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=CONFIG)
        events = stream.subscribe(1, backpressure=True)
        wire = watched(nursery, peer)
        for _ in range(2):
            await peer.send(PING)
        await trio.sleep(1010)
        assert stream.closed is None
        assert await events.receive() == PingReceived(b"")
        assert await events.receive() == PingReceived(b"")
        await trio.sleep(24)
        pongs = [(0.05, PONG, b"")] * 2  # when the stream's own task read the pings
        heartbeats = [(20 * number + 0.05, PONG, HEARTBEAT) for number in range(1, 52)]
        assert wire == [*pongs, *heartbeats, (1030, PING, b"?")]
        await trio.sleep(2)
        assert wire[-1] == (1035, -1, b"")


@pytest.mark.parametrize("transport", ["lockstep", "unix"])
@pytest.mark.parametrize("by_client", [True, False])
async def test_a_reader_that_pauses_is_not_given_up_by_who_sends(
    by_client: bool, transport: str, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        ends = await stream_pair(nursery, transport)
        sender, reader = ends if by_client else reversed(ends)
        size = 3_000_000

        async def send() -> None:
            await sender.send_all(bytes(size))
            await sender.send_eof()

        nursery.start_soon(send)
        received = 0
        for pause in (41, 120, 3600):
            await trio.sleep(pause)
            received += len(await reader.receive_some(100_000))
        while data := await reader.receive_some():
            received += len(data)
        assert received == size


@pytest.mark.parametrize("transport", ["lockstep", "unix"])
async def test_a_reader_of_a_kilobyte_each_second_is_not_given_up(
    transport: str, autojump_clock: MockClock
) -> None:
    """The buffers are small, so that the test is short. Its time is proportional to them."""
    config = StreamConfig(receive_buffer_size=1024)
    async with background() as nursery:
        sender, reader = await stream_pair(nursery, transport, config)
        nursery.start_soon(sender.send_all, bytes(300_000))
        for _ in range(290):
            await trio.sleep(1)
            await reader.receive_some(1024)
        assert sender.closed is None


@READERS
async def test_echo_under_back_pressure_in_both_directions_is_not_given_up(
    caller_reads: bool, autojump_clock: MockClock
) -> None:
    """No end reads for two minutes, so both ends are stuck in sending."""
    config = StreamConfig(receive_buffer_size=1000)
    async with background() as nursery:
        ends = await stream_pair(nursery, "unix", config)
        for end in ends:
            nursery.start_soon(end.send_all, bytes(1_000_000))
        await trio.sleep(120)
        received = [0, 0]
        for index, end in enumerate(ends):
            while received[index] < 1_000_000:
                received[index] += len(await end.receive_some())


@pytest.mark.parametrize("timeout", [5, None])
async def test_a_reader_that_pauses_and_says_nothing_is_given_up_unless_there_is_no_timeout(
    timeout: float | None, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, _peer = await raw_pair(
            nursery, "lockstep", StreamConfig(ping_interval=20, ping_timeout=timeout)
        )
        nursery.start_soon(read_on, stream)
        ended_at: list[float] = []

        async def send() -> None:
            try:
                await stream.send_all(bytes(100_000))
            except trio.BrokenResourceError as error:
                assert isinstance(error.__cause__, KeepaliveTimeout)
                ended_at.append(trio.current_time() - started)

        started = trio.current_time()
        nursery.start_soon(send)
        await trio.sleep(1000)
        assert ended_at == ([] if timeout is None else [pytest.approx(25)])


async def test_a_frame_accepted_while_reading_is_held_back_does_not_put_the_ping_off(
    autojump_clock: MockClock,
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=5, receive_buffer_size=10)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        await peer.send(BINARY, bytes(10))
        nursery.start_soon(stream.send_all, b"takes its time")
        await trio.sleep(25)
        wire = watched(nursery, peer)
        await trio.sleep(5)
        await stream.receive_some()
        await trio.sleep(24)
        assert wire == [(0, BINARY, b"takes its time"), (20, PONG, HEARTBEAT), (25, PING, b"?")]


@pytest.mark.parametrize("peer_speaks", [True, False])
async def test_no_interval_switches_keepalive_off(
    peer_speaks: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await keepalive_pair(nursery, config=StreamConfig(ping_interval=None))
        if peer_speaks:
            nursery.start_soon(send_each, peer, 10)
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


async def test_many_streams_that_were_opened_together_do_not_ping_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, heard_at = 4 * CROWD, list[float]()

    async def note(stream: WsByteStream) -> None:
        async for _ in stream.subscribe(kinds=PingReceived):
            heard_at.append(trio.current_time())

    monkeypatch.setattr(WsByteStream, "_open_streams", 0)
    async with background() as nursery:
        opened_at = trio.current_time()
        for _ in range(pairs):
            for stream in await stream_pair(nursery):
                nursery.start_soon(note, stream)
        await trio.sleep(1.5 * 20)
        moments = Counter(round(at - opened_at, 2) for at in heard_at)
        assert max(moments.values()) <= 2 * CROWD
        # Who hears its peer's Ping in time need not send one.
        assert len(heard_at) < 1.5 * pairs
        assert min(moments) >= 18
        assert max(moments) <= 20.1
    assert WsByteStream._open_streams == 0
