"""What may go wrong while a socket is full: each of these once did."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import weakref
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import ConnectionLost, StreamConfig, WsByteStream, _alarm, _pace, _transport
from trio_wsstream.testing import ws_stream_pair

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, close_payload
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background
from .support.transports import TRANSPORTS, beneath, reset, take

SOCKETS = pytest.mark.parametrize("transport", ["tcp", "tls"])
SAID = pytest.mark.parametrize(
    ("opcode", "payload", "answer"), [(PING, b"?", PONG), (CLOSE, close_payload(1000), CLOSE)]
)


# What is owed goes out before the next frame begins


@SAID
@pytest.mark.parametrize(
    ("transport", "size", "counts", "is_slow", "begun"),
    [
        pytest.param("tcp", 327_680, [327_590], False, [BINARY], id="a long message"),
        pytest.param("tls", 327_680, [327_890], False, [BINARY], id="a long message over TLS"),
        pytest.param(
            "tls", 65_536, [5], False, [BINARY] * 2, id="much is left of two frames over TLS"
        ),
        pytest.param("tcp", 1_000, [5, 1_500], True, [BINARY] * 2, id="the line turns slow"),
        pytest.param("tcp", 100_000, [0, 70_000], True, [BINARY, CONT], id="a fragment"),
    ],
)
async def test_no_frame_begins_while_something_is_owed(
    transport: str,
    size: int,
    counts: Sequence[int],
    is_slow: bool,
    begun: list[int],
    opcode: int,
    payload: bytes,
    answer: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_full, has_received = trio.Event(), trio.Event()
    received: list[int] = []

    async def say(peer: RawPeer) -> None:
        await is_full.wait()
        await peer.send(opcode, payload)

    async def receive(peer: RawPeer) -> None:
        while len(received) <= len(begun):
            received.append((await peer.receive_frame())[1])
        has_received.set()
        with contextlib.suppress(EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await peer.receive_frame()

    async with background() as nursery:
        config = StreamConfig(max_message_size=size)
        stream, peer = await raw_pair(nursery, transport, config)
        nursery.start_soon(stream.receive_some)
        events = stream.subscribe()
        nursery.start_soon(say, peer)
        if is_slow:
            monkeypatch.setattr(_pace, "SLOW", 0.0)

        def has_been_heard() -> bool:
            is_full.set()
            return events.statistics().current_buffer_used > 0

        take(monkeypatch, counts, has_been_heard)
        nursery.start_soon(receive, peer)
        with trio.fail_after(30):
            try:
                await stream.send_all(bytes(8 * size))
            except trio.BrokenResourceError:
                assert opcode == CLOSE
            await has_received.wait()
        assert received == [*begun, answer]


@SIDES
@pytest.mark.parametrize("taken", [0, 5, 1_005, 2_500])
async def test_what_was_encoded_before_a_line_was_slow_goes_out_in_fragments(
    taken: int, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        config = StreamConfig(max_message_size=1_000)
        stream, peer = await raw_pair(nursery, "tcp", config, client=client)
        monkeypatch.setattr(_pace, "SLOW", 0.0)
        monkeypatch.setattr(_transport, "next_limit", lambda limit, seconds: 300)
        take(monkeypatch, [taken, 0], lambda: True)
        data = bytearray(range(250)) * 30
        await stream.send_all(data)
        data.clear()  # No view of it is left.
        whole = -(-taken // (1_008 if client else 1_004))
        received, fragments = b"", []
        while len(received) < 7_500:
            fin, _, payload = await peer.receive_frame()
            received += payload
            fragments.append((len(payload), fin))
        assert received == bytes(range(250)) * 30
        message = [(300, False)] * 3 + [(100, True)]
        left = 7 - whole
        assert fragments == [(1_000, True)] * whole + message * left + [(300, False), (200, True)]


async def test_a_peer_that_fails_in_the_middle_of_a_write_takes_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its Close is read between two steps of the sender, when there is no wait to be ended."""
    real, has_said = os.writev, False

    def writev(fd: int, buffers: Sequence[bytes]) -> int:
        nonlocal has_said
        count = real(fd, buffers)
        if not has_said:
            has_said = True
            os.write(
                beneath(peer.transport).socket.fileno(), peer.frame(CLOSE, close_payload(1011))
            )
        return count

    async def receive() -> None:
        with pytest.raises(trio.BrokenResourceError, match="1011"):
            await stream.receive_some()

    async with background() as nursery:
        config = StreamConfig(max_message_size=1 << 22, close_timeout=1000)
        stream, peer = await raw_pair(nursery, "tcp", config)
        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(os, "writev", writev)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError, match="1011"):
            await stream.send_all(bytes(1 << 24))


async def test_an_interruption_ends_with_the_turn_to_write() -> None:
    """What is owed afterwards, a Close for example, may wait again."""
    async with ws_stream_pair(transports=await TRANSPORTS["unix"]()) as (stream, _):
        await stream._writer.take_turn()
        stream._wire.interrupt()
        with pytest.raises(trio.BrokenResourceError, match="takes no more"):
            while True:
                await stream._wire.write((b"", bytes(100_000)))
        stream._writer.pass_turn()
        assert not stream._wire.is_interrupted


# The caller's buffer


@SOCKETS
@pytest.mark.parametrize("size", [65_536, 1 << 20])
async def test_the_buffer_of_a_send_that_is_reset_is_the_callers_again(
    transport: str, size: int
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, StreamConfig(max_message_size=size))
        data = bytearray(16 << 20)

        async def reset_later() -> None:
            await wait_all_tasks_blocked()
            reset(beneath(peer.transport))

        nursery.start_soon(reset_later)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(data)
        data.clear()


@SOCKETS
async def test_the_buffer_of_a_send_whose_stream_is_dropped_is_the_callers_again(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, is_dropped = os.writev, False

    def writev(fd: int, buffers: Sequence[bytes]) -> int:
        nonlocal is_dropped
        count = real(fd, buffers)
        if not is_dropped and count < sum(map(len, buffers)):
            is_dropped = True
            nursery.start_soon(stream._drop)
        return count

    async with background() as nursery:
        stream, _ = await raw_pair(nursery, transport)
        data = bytearray(16 << 20)
        monkeypatch.setattr(os, "writev", writev)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(data)
        data.clear()


# Closed sockets


async def test_who_waits_for_the_turn_is_told_that_the_stream_was_dropped() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix")
        while len(stream._wire.write_now(bytes(100_000))) < 100_000:
            pass  # until the socket is full
        await peer.send(PING, b"whose Pong waits for the socket")
        with trio.fail_after(30):
            while not stream._writer.turn_is_taken:
                await trio.lowlevel.checkpoint()

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.wait_send_all_might_not_block()

        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            await wait_all_tasks_blocked()
            await stream._drop()


@SOCKETS
async def test_a_socket_that_is_closed_before_the_task_waits_is_lost(
    transport: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with ws_stream_pair(transports=await TRANSPORTS[transport]()) as (stream, _):
        beneath(stream._transport).socket.close()
        await trio.sleep(1)
        assert stream.closed is not None
        assert isinstance(stream.closed.error, ConnectionLost)


async def test_a_wait_that_the_kernel_refuses_is_a_loss(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def refuse(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with ws_stream_pair(transports=await TRANSPORTS["tcp"]()) as (stream, _):
        monkeypatch.setattr(trio.lowlevel, "wait_readable", refuse)
        await trio.sleep(1)
        assert stream.closed is not None
        assert "No space left" in str(stream.closed.error)


@SOCKETS
async def test_a_send_whose_socket_somebody_closes_does_not_return(transport: str) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, transport, StreamConfig(max_message_size=1 << 23))

        async def close_later() -> None:
            await wait_all_tasks_blocked()
            beneath(stream._transport).socket.close()

        nursery.start_soon(close_later)
        with (
            trio.fail_after(30),
            pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)),
        ):
            while True:
                await stream.send_all(bytes(200_000))
                assert not stream._wire.rest


# What is kept


async def test_a_stream_whose_task_met_an_error_is_not_kept_by_it() -> None:
    gc.collect()
    gc.disable()
    try:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery, "tcp")
            await peer.send(BINARY, b"x")
            assert await stream.receive_some() == b"x"
            events = stream.subscribe()
            with trio.fail_after(30):
                while stream._alarm._wire is None:  # The task does not wait for its socket yet.
                    await trio.lowlevel.checkpoint()
                reset(beneath(peer.transport))
                async for _ in events:
                    pass
        reference: weakref.ref[WsByteStream] = weakref.ref(stream)
        del stream
        assert reference() is None
    finally:
        gc.enable()


async def test_the_timer_keeps_little_of_streams_that_have_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ws_stream_pair(transports=await TRANSPORTS["unix"]()) as kept:
        await trio.sleep(0.1)
        for _ in range(100):
            async with ws_stream_pair(transports=await TRANSPORTS["unix"]()):
                await trio.sleep(0.1)
        timer = _alarm._timers.get()
        assert timer is not None
        assert 2 <= len(timer._times) <= 20
        wires = [alarm._wire for _, _, alarm in timer._times]
        assert {wire for wire in wires if wire} == {stream._wire for stream in kept}
        await trio.sleep(1000)  # These two are still called in time.
        assert all(stream.closed is None for stream in kept)
