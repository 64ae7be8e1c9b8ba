"""Reading: who has the turn, what is answered meanwhile, what is buffered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import (
    CloseReceived,
    PingReceived,
    StreamConfig,
    TextPolicy,
    WsByteStream,
    _stream,
)
from trio_wsstream._protocol import MAX_PONGS_OWED, ReceiveBuffer

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, close_payload, frame
from .support.pairs import stream_pair
from .support.raw_peer import raw_pair
from .support.tasks import background


async def test_payload_is_handed_on_in_the_middle_of_a_frame() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        data = peer.frame(BINARY, b"half a line now, half a line later\n")
        await peer.transport.send_all(data[:17])
        first = await stream.receive_some()
        assert first == b"half a line"
        await peer.transport.send_all(data[17:])
        assert first + await stream.receive_some() == b"half a line now, half a line later\n"


async def test_receive_some_gives_what_is_there_up_to_max_bytes() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        frames = peer.frame(BINARY, b"ab") + peer.frame(BINARY) + peer.frame(BINARY, b"cdefgh")
        await peer.transport.send_all(frames)
        assert await stream.receive_some(3) == b"abc"
        assert await stream.receive_some(1) == b"d"
        assert await stream.receive_some(None) == b"efgh"


@pytest.mark.parametrize("max_bytes", [0, -1])
async def test_max_bytes_must_be_positive(max_bytes: int) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)
        with pytest.raises(ValueError, match=f"{max_bytes}"):
            await stream.receive_some(max_bytes)


@pytest.mark.parametrize("max_bytes", ["1", 1.0, b"1"])
async def test_max_bytes_must_be_an_integer(max_bytes: Any) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with pytest.raises(TypeError):
            await stream.receive_some(max_bytes)
        await peer.send(BINARY, b"not lost")
        assert await stream.receive_some() == b"not lost"


async def test_a_second_receive_some_is_busy_and_does_not_disturb_the_first() -> None:
    async with background() as nursery, trio.open_nursery() as receiving:
        stream, peer = await raw_pair(nursery)

        async def receive() -> None:
            assert await stream.receive_some() == b"x"

        receiving.start_soon(receive)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        await peer.send(BINARY, b"x")


@SIDES
async def test_a_ping_is_answered_while_nobody_reads_and_shows_as_an_event(
    client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        await peer.send(PING, b"are you there?")
        assert await peer.receive() == (PONG, b"are you there?")
        assert await events.receive() == PingReceived(b"are you there?")


async def test_a_ping_is_answered_while_a_caller_waits_for_data() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        await peer.send(PING, b"1")
        assert await peer.receive() == (PONG, b"1")


async def test_a_ping_between_fragments_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(BINARY, b"a", fin=False)
        await peer.send(PING, b"in between")
        await peer.send(CONT, b"b")
        assert await peer.receive() == (PONG, b"in between")
        assert await stream.receive_some() == b"ab"


async def test_a_flood_of_pings_is_answered_with_the_latest_pongs_in_order() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.send_all, b"clogs the transport")
        await wait_all_tasks_blocked()
        nursery.start_soon(stream.receive_some)
        for number in range(1000):
            await peer.send(PING, b"%d" % number)
        await wait_all_tasks_blocked()
        assert await peer.receive() == (BINARY, b"clogs the transport")
        pongs = [await peer.receive() for _ in range(MAX_PONGS_OWED)]
        assert pongs == [(PONG, b"%d" % n) for n in range(1000 - MAX_PONGS_OWED, 1000)]


async def test_reading_never_waits_for_writing() -> None:
    """Two peers that both send before they read do not deadlock on a ping's answer."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.receive_some)
        await peer.send(PING, b"1")
        await wait_all_tasks_blocked()  # the answer is in the transport, and nobody takes it
        await peer.send(PING, b"2")
        await peer.send(BINARY, b"data")
        await wait_all_tasks_blocked()
        assert await peer.receive() == (PONG, b"1")
        assert await peer.receive() == (PONG, b"2")


async def test_no_more_is_read_ahead_than_the_config_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    config = StreamConfig(receive_buffer_size=1000, ping_interval=None)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await peer.transport.send_all(peer.frame(BINARY, bytes(100)))
                sent += 100

        nursery.start_soon(send)
        await trio.sleep(1)
        assert 900 <= sent <= 1000
        await stream.receive_some(500)
        await trio.sleep(1)
        assert 1400 <= sent <= 1500


async def test_a_ping_behind_a_full_receive_buffer_waits_until_it_is_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=StreamConfig(receive_buffer_size=10))
        events = stream.subscribe()
        await peer.send(BINARY, bytes(20))
        await peer.send(PING)
        await trio.sleep(1)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
        for _ in range(20):
            await stream.receive_some(1)
        assert await events.receive() == PingReceived(b"")


async def test_a_read_ahead_is_no_longer_than_there_is_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=StreamConfig(receive_buffer_size=1000))
        events = stream.subscribe()
        await peer.send(BINARY, bytes(900))
        await trio.sleep(1)
        await peer.transport.send_all(peer.frame(BINARY, bytes(200)) + peer.frame(PING))
        await trio.sleep(1)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
        await stream.receive_some()
        assert await events.receive() == PingReceived(b"")


async def test_the_streams_own_task_leaves_reading_to_a_caller_who_comes_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        readers = []
        original = stream._wire.receive_some

        async def spy(size: int) -> bytes | bytearray:
            readers.append(trio.lowlevel.current_task())
            return await original(size)

        stream._wire.receive_some = spy  # type: ignore[method-assign]
        for _ in range(100):
            await peer.send(BINARY, b"x")
            await stream.receive_some()
            await trio.sleep(_stream.GRACE_PERIOD / 2)
        assert len(readers) >= 99  # the takeover may have had the first
        assert set(readers) == {trio.lowlevel.current_task()}


async def test_the_streams_own_task_reads_after_the_grace_period_and_stands_back_again(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(BINARY, b"1")
        assert await stream.receive_some() == b"1"
        events = stream.subscribe()
        await peer.send(PING)
        mock_clock.jump(_stream.GRACE_PERIOD * 0.9)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
        mock_clock.jump(_stream.GRACE_PERIOD * 0.2)
        await wait_all_tasks_blocked()
        assert events.receive_nowait() == PingReceived(b"")


@pytest.mark.parametrize("reads_again", [False, True])
async def test_the_streams_own_task_reads_a_grace_period_after_the_last_read_of_a_caller(
    reads_again: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with trio.move_on_after(1.0037):  # Only among many streams is it rounded up to a tick.
            await stream.receive_some()
        if reads_again:
            await trio.sleep(_stream.GRACE_PERIOD * 0.8)
            await peer.send(BINARY, b"x")
            await stream.receive_some()
        left_at = trio.current_time()
        await peer.send(PING)
        assert await peer.receive() == (PONG, b"")
        assert trio.current_time() - left_at == pytest.approx(_stream.GRACE_PERIOD)


async def test_an_idle_stream_does_not_poll(autojump_clock: trio.testing.MockClock) -> None:
    """While a caller reads the transport, and without keepalive, nothing is due."""
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, config=StreamConfig(ping_interval=None))
        nursery.start_soon(stream.receive_some)
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def cancelled_after(steps: int, function: Callable[..., Any], *args: object) -> Any:
    """Call ``function``, cancel it after ``count`` checkpoints, and return its result or None."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            nursery.start_soon(cancel)
            result = await function(*args)
            nursery.cancel_scope.cancel()
            return result


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "TLS 1.2"])
@pytest.mark.parametrize("grace_period", [0, math.inf])
async def test_a_cancelled_receive_some_loses_nothing(
    transport: str, grace_period: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stream, "GRACE_PERIOD", grace_period)
    data = bytes(range(256)) * 40
    async with background() as nursery:
        client, server = await stream_pair(nursery, transport)
        nursery.start_soon(client.send_all, data)
        received = b""
        steps = 0
        while len(received) < len(data):
            received += await cancelled_after(steps % 7, server.receive_some, 100) or b""
            steps += 1
        assert received == data


@pytest.mark.parametrize("read_size", [1, 300, None])
async def test_a_message_of_any_size_passes_in_constant_memory(read_size: int | None) -> None:
    """The stream keeps no more of a long message than one read."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=StreamConfig(receive_buffer_size=1000))
        await peer.transport.send_all(peer.frame(BINARY, bytes(1 << 20))[:14] + bytes(5000))
        total = 0
        while total < 5000:
            total += len(await stream.receive_some(read_size))
            assert stream._protocol.unread.size < 1000
        assert total == 5000


async def test_after_a_part_of_a_frame_the_next_read_ends_with_a_frame(reads: list[int]) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp")
        message = peer.frame(BINARY, bytes(65536))
        await peer.transport.send_all(message[:30_000])
        assert await stream.receive_some() == bytes(29_986)
        reads.clear()
        await peer.transport.send_all(message[30_000:] + message)
        received = bytearray(29_986)
        while len(received) < 2 * 65536:
            received += await stream.receive_some()
        assert reads[0] == len(message) - 30_000 + len(message)


@pytest.mark.parametrize("receive_buffer_size", [1, 7, 262144])
async def test_all_bytes_arrive_whatever_the_size_of_the_receive_buffer(
    receive_buffer_size: int,
) -> None:
    config = StreamConfig(receive_buffer_size=receive_buffer_size)
    data = bytes(range(256)) * 8
    async with background() as nursery:
        client, server = await stream_pair(nursery, config=config)
        async with trio.open_nursery() as sending:
            sending.start_soon(client.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await server.receive_some(13)
        assert received == data


@pytest.mark.parametrize(
    ("policy", "in_stream", "events"),
    [
        (TextPolicy.AS_BYTES, "bytes, text: ü, bytes".encode(), []),
        (TextPolicy.AS_EVENTS, b"bytes, , bytes", ["text: ü"]),
    ],
)
async def test_text_is_part_of_the_stream_or_an_event(
    policy: TextPolicy, in_stream: bytes, events: list[str]
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=StreamConfig(text=policy))
        subscription = stream.subscribe()
        text = "text: ü".encode()
        await peer.send(BINARY, b"bytes, ")
        await peer.send(TEXT, text[:7], fin=False)  # in the middle of the ü
        await peer.send(CONT, text[7:])
        await peer.send(BINARY, b", bytes")
        await peer.send(CLOSE, close_payload(1000))
        received = await read_to_end(stream)
        assert received == in_stream
        seen = []
        while not isinstance(event := await subscription.receive(), CloseReceived):
            seen.append(event.text)  # type: ignore[attr-defined]
        assert seen == events


@pytest.mark.parametrize("receive_buffer_size", [100_000, 262_144])
async def test_two_frames_are_read_at_once_while_more_than_one_comes(
    receive_buffer_size: int, mock_clock: trio.testing.MockClock
) -> None:
    config = StreamConfig(receive_buffer_size=receive_buffer_size)
    one = frame(BINARY, bytes(65536), masked=False)
    single, double = len(one), min(2 * len(one), receive_buffer_size)
    sizes = []
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "memory", config, client=True)

        async def read(size: int, data: bytes) -> None:
            async def receive(size: int) -> bytes:
                sizes.append(size)
                await trio.lowlevel.checkpoint()
                return data

            stream._receive = receive
            await stream.receive_some()
            assert sizes.pop() == size

        await read(single, frame(BINARY, b"short", masked=False))
        await read(single, one)
        await read(double, one + one)
        await read(double, frame(BINARY, b"short", masked=False))
        await read(double, one)
        for _ in range(17):
            await read(single, one)
        await read(double, one)
        # And what belongs to one long frame, without room for the headers of others.
        rest, payload = frame(BINARY, bytes(2**20), masked=False), min(131072, receive_buffer_size)
        for size in (single, single, payload, payload, payload):
            await read(size, rest[:size])
            rest = rest[size:]


@pytest.mark.parametrize("max_bytes", [None, 1, 4, 5, 6])
async def test_a_message_that_comes_alone_is_handed_on_up_to_max_bytes(
    max_bytes: int | None,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp")
        for message in (b"first", b"secnd"):
            await peer.send(BINARY, message)
            received = b""
            while len(received) < len(message):
                piece = await stream.receive_some(max_bytes)
                assert len(piece) == min(max_bytes or 5, 5 - len(received))
                received += piece
            assert received == message


async def test_a_message_that_comes_while_this_side_closes_is_not_handed_on() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "memory")

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        nursery.start_soon(stream.aclose)
        await wait_all_tasks_blocked()
        await peer.send(BINARY, b"too late")
        await wait_all_tasks_blocked()


async def read_to_end(stream: WsByteStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


class CountedList(list[Any]):
    """A list that counts how many items are moved when items before them are removed."""

    moved = 0

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        self.moved += len(self)

    def pop(self, index: Any = -1) -> Any:
        if index != -1:
            self.moved += len(self)
        return super().pop(index)


@pytest.mark.parametrize("max_bytes", [1000, 5000, 7000, 100_000])
def test_taking_costs_no_more_the_more_there_is(max_bytes: int) -> None:
    buffer = ReceiveBuffer()
    buffer._pieces = pieces = CountedList()
    for number in range(1000):
        buffer.add([bytes([number % 251]) * 5000])
    received = []
    while buffer.size:
        received.append(buffer.take(max_bytes))
        assert len(pieces) <= 2 * (buffer.size // 5000 + 2)  # what is taken is not kept
    assert b"".join(received) == b"".join(bytes([number % 251]) * 5000 for number in range(1000))
    assert pieces.moved <= 1000
