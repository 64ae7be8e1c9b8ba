"""Writing: messages, turns, and what a cancelled send leaves behind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import ConnectionLost, StreamConfig, WsByteStream
from trio_wsstream.testing import ws_stream_pair

from .support.frames import BINARY, CLOSE, PING, PONG, SIDES, close_payload
from .support.memory import bounded_memory
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background, cancel_when_all_is_blocked
from .support.transports import take


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "TLS 1.2"])
@SIDES
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_send_all_sends_messages_of_at_most_max_message_size(
    kind: type, client: bool, transport: str
) -> None:
    config = StreamConfig(max_message_size=300)
    data = bytes(range(256)) * 3
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config, client=client)
        await stream.send_all(kind(data))
        assert await peer.receive() == (BINARY, data[:300])
        assert await peer.receive() == (BINARY, data[300:600])
        assert await peer.receive() == (BINARY, data[600:])


async def test_a_memoryview_of_any_format_is_sent_as_its_bytes() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await stream.send_all(memoryview(b"12345678").cast("I"))
        assert await peer.receive() == (BINARY, b"12345678")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_to_send_nothing_can_be_cancelled(kind: Any) -> None:
    async with ws_stream_pair() as (stream, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(kind(b""))
        assert scope.cancelled_caught


async def test_send_all_sends_nothing_for_no_bytes() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await stream.send_all(b"")
        await stream.send_all(b"x")
        assert await peer.receive() == (BINARY, b"x")


@pytest.mark.parametrize("data", [b"", bytearray(), b"x"])
async def test_to_send_nothing_after_the_end_of_sending_is_an_error_too(data: Any) -> None:
    async with ws_stream_pair() as (stream, _):
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(data)
    async with ws_stream_pair() as (stream, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.aclose, 1001)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(data)


async def test_each_frame_of_a_client_has_a_fresh_masking_key() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=True)
        keys = set()
        for _ in range(50):
            await stream.send_all(bytes(4))  # the mask of zeros is the key itself
            wire = await peer.transport.receive_some(100)
            assert wire[2:6] == wire[6:]
            keys.add(bytes(wire[2:6]))
        assert len(keys) == 50


@pytest.mark.parametrize("method", ["send_all", "send_eof", "wait_send_all_might_not_block"])
@pytest.mark.parametrize("first", ["send_all", "wait_send_all_might_not_block"])
async def test_a_second_sender_is_busy(first: str, method: str) -> None:
    def call(stream: WsByteStream, name: str) -> object:
        return getattr(stream, name)(*([b"x"] if name == "send_all" else []))

    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "lockstep")

        async def send_first() -> None:
            await call(stream, first)  # type: ignore[misc]

        nursery.start_soon(send_first)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await call(stream, method)  # type: ignore[misc]


async def test_pings_and_pongs_take_their_turn_and_are_never_busy() -> None:
    """Frames of several tasks never interleave. They are sent between messages."""
    config = StreamConfig(max_message_size=1000)
    data = bytes(3000)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        nursery.start_soon(stream.send_all, data)
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        nursery.start_soon(stream.ping, b"from here")
        await peer.send(PING, b"from there")
        await wait_all_tasks_blocked()
        assert await peer.receive() == (BINARY, data[:1000])
        assert await peer.receive() == (PING, b"from here")
        assert await peer.receive() == (PONG, b"from there")
        assert await peer.receive() == (BINARY, data[:1000])
        assert await peer.receive() == (BINARY, data[:1000])


async def test_a_turn_that_is_passed_on_is_not_taken_by_another() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.receive_some)
        await peer.send(PING, b"has the turn")
        await wait_all_tasks_blocked()
        nursery.start_soon(stream.send_all, b"is next")
        await peer.send(PING, b"comes late")
        await wait_all_tasks_blocked()
        assert await peer.receive() == (PONG, b"has the turn")
        assert await peer.receive() == (BINARY, b"is next")
        assert await peer.receive() == (PONG, b"comes late")


async def test_writes_of_several_tasks_never_interleave_within_a_frame() -> None:
    config = StreamConfig(max_message_size=100_000)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", config, client=True)
        data = bytes(range(256)) * 4000
        nursery.start_soon(stream.send_all, data)
        for number in range(20):
            nursery.start_soon(stream.ping, bytes([number]) * 100)
        received, pings = bytearray(), 0
        while len(received) < len(data) or pings < 20:
            opcode, payload = await peer.receive()
            if opcode == PING:
                assert payload == bytes([payload[0]]) * 100
                pings += 1
            else:
                received += payload
        assert received == data


async def test_wait_send_all_might_not_block_holds_the_turn() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.wait_send_all_might_not_block)
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        await peer.send(PING, b"waits")
        await wait_all_tasks_blocked()
        assert await peer.receive() == (PONG, b"waits")


async def test_wait_send_all_might_not_block_waits_for_its_turn() -> None:
    async with background() as nursery, trio.open_nursery() as waiting:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.receive_some)
        await peer.send(PING, b"first")
        await wait_all_tasks_blocked()
        waiting.start_soon(stream.wait_send_all_might_not_block)
        await wait_all_tasks_blocked()
        assert await peer.receive() == (PONG, b"first")
        nursery.start_soon(peer.receive)


async def test_a_transport_that_breaks_in_wait_send_all_might_not_block_breaks_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wait() -> None:
        raise trio.BrokenResourceError

    async with background() as nursery:
        stream, _ = await raw_pair(nursery)
        monkeypatch.setattr(stream._transport, "wait_send_all_might_not_block", wait)
        for send in (stream.wait_send_all_might_not_block, stream.send_eof):
            with pytest.raises(trio.BrokenResourceError) as broken:
                await send()
            assert isinstance(broken.value.__cause__, ConnectionLost)


async def test_a_sender_whose_turn_comes_after_the_peers_close_sends_nothing() -> None:
    async with background() as nursery, trio.open_nursery() as sending:
        stream, peer = await raw_pair(nursery, "lockstep")

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")

        nursery.start_soon(stream.receive_some)
        await peer.send(PING)
        await wait_all_tasks_blocked()
        sending.start_soon(send)
        await wait_all_tasks_blocked()
        await peer.send(CLOSE, close_payload(1000))
        await wait_all_tasks_blocked()
        assert await peer.receive() == (PONG, b"")
        assert await peer.receive() == (CLOSE, close_payload(1000))


async def cancel_inside_a_frame(stream: WsByteStream, data: bytes | bytearray) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def receive_all(peer: RawPeer, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        opcode, payload = await peer.receive()
        assert opcode == BINARY
        received += payload
    return bytes(received)


@SIDES
async def test_a_send_cancelled_inside_a_frame_over_a_socket_leaves_the_stream_whole(
    client: bool,
) -> None:
    """The rest of the frame is sent before anything else, so no byte is in doubt."""
    config = StreamConfig(max_message_size=1 << 26)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", config, client=client)
        data = bytearray(b"0123456789" * 3_000_000)  # no socket buffer takes so much
        sent = bytes(data)
        await cancel_inside_a_frame(stream, data)
        data[:] = bytes(len(data))  # it is the caller's again
        nursery.start_soon(stream.send_all, b"what comes next")
        assert await receive_all(peer, len(sent)) == sent
        assert await peer.receive() == (BINARY, b"what comes next")


@pytest.mark.parametrize("transport", ["memory", "lockstep", "tcp", "tls", "unix"])
@SIDES
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_long_messages_are_sent_as_one_frame_each(
    kind: type, client: bool, transport: str
) -> None:
    config = StreamConfig(max_message_size=300_000)
    data = bytes(range(250)) * 4000
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config, client=client)

        async def send() -> None:
            await stream.send_all(kind(data))
            await stream.send_all(b"short")

        nursery.start_soon(send)
        for start in range(0, len(data), 300_000):
            assert await peer.receive() == (BINARY, data[start : start + 300_000])
        assert await peer.receive() == (BINARY, b"short")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
@SIDES
async def test_a_message_of_any_size_is_sent_in_constant_memory(
    client: bool, transport: str
) -> None:
    config = StreamConfig(max_message_size=1 << 30)
    data, left = bytes(20_000_000), 20_000_000
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config, client=client)
        async with bounded_memory(1_500_000):
            nursery.start_soon(stream.send_all, data)
            while left > 0:
                left -= len(await peer.transport.receive_some(65536))


@SIDES
async def test_a_pong_and_then_a_close_wait_for_the_end_of_a_long_message(client: bool) -> None:
    async with background() as nursery:
        config = StreamConfig(max_message_size=1 << 30)
        stream, peer = await raw_pair(nursery, "tcp", config, client=client)
        data = bytes(range(250)) * 100_000
        events = stream.subscribe()

        nursery.start_soon(stream.send_all, data * 2)  # all of it arrives, so the call succeeds
        await wait_all_tasks_blocked()
        await peer.send(PING)
        await peer.send(CLOSE, close_payload(1000))
        for _ in range(2):
            await events.receive()
        assert await peer.receive() == (BINARY, data * 2)
        assert await peer.receive() == (PONG, b"")
        assert await peer.receive() == (CLOSE, close_payload(1000))


@pytest.mark.parametrize("max_message_size", [65536, 1 << 26])
@pytest.mark.parametrize("transport", ["lockstep", "tcp", "tls"])
@SIDES
async def test_a_buffer_can_be_resized_as_soon_as_its_sending_was_cancelled(
    client: bool, transport: str, max_message_size: int
) -> None:
    config = StreamConfig(max_message_size=max_message_size)
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, transport, config, client=client)
        data = bytearray(30_000_000)
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_all_is_blocked, scope)
            try:
                await stream.send_all(data)
            finally:
                data.clear()  # with the exception and its traceback still there
        assert scope.cancelled_caught


# Several frames in one write


TEN_BYTES = StreamConfig(max_message_size=10)
FOUR_MESSAGES = b"0123456789" * 4
TAKEN = pytest.mark.parametrize(
    ("whole", "part"),
    [(0, 0), (0, 1), (0, 11), (1, 0), (1, 1), (1, 2), (1, 3), (1, 11), (2, 0), (3, 0), (3, 7)],
)
"""How many whole frames a socket takes before it is full, and how many bytes of the next one."""


def take_only(
    monkeypatch: pytest.MonkeyPatch,
    stream: WsByteStream,
    whole: int,
    part: int,
    then: Callable[[], bool],
) -> None:
    """Make the stream's socket take some bytes, and then nothing until ``then()`` is true."""
    size = whole * (16 if stream._protocol.client else 12) + part
    take(monkeypatch, [size] if size else [], then)


@TAKEN
@SIDES
async def test_however_much_of_several_frames_a_socket_takes_all_is_sent(
    whole: int, part: int, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", TEN_BYTES, client=client)
        answers = itertools.chain([False, False], itertools.repeat(True))
        take_only(monkeypatch, stream, whole, part, lambda: next(answers))
        await stream.send_all(FOUR_MESSAGES + b"rest")
        for _ in range(4):
            assert await peer.receive() == (BINARY, b"0123456789")
        assert await peer.receive() == (BINARY, b"rest")


@pytest.mark.parametrize(
    ("client", "offers"), [(True, [2 * 16, 11 + 2 * 16]), (False, [8 * 12, 7 + 8 * 12])]
)
async def test_the_rest_of_a_frame_goes_out_in_one_call_with_the_frames_that_follow(
    client: bool, offers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", TEN_BYTES, client=client)
        take_only(monkeypatch, stream, 0, 5, lambda: True)
        writev, offered = os.writev, []

        def count(fd: int, buffers: Sequence[bytes]) -> int:
            offered.append(sum(map(len, buffers)))
            return writev(fd, buffers)

        monkeypatch.setattr(os, "writev", count)
        await stream.send_all(FOUR_MESSAGES * 4)
        for _ in range(16):
            assert await peer.receive() == (BINARY, b"0123456789")
        assert offered[:2] == offers


@TAKEN
@SIDES
async def test_a_cancelled_send_finishes_the_frame_that_has_begun_and_no_other(
    whole: int, part: int, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", TEN_BYTES, client=client)
        with trio.CancelScope() as scope:

            def cancel() -> bool:
                scope.cancel()
                return False

            take_only(monkeypatch, stream, whole, part, cancel)
            await stream.send_all(FOUR_MESSAGES)
        assert scope.cancelled_caught
        monkeypatch.undo()
        await stream.send_all(b"next")
        for _ in range(whole + bool(part)):
            assert await peer.receive() == (BINARY, b"0123456789")
        assert await peer.receive() == (BINARY, b"next")


def say_at_once(peer: RawPeer, stream: WsByteStream, opcode: int, payload: bytes) -> Any:
    """Return a function that makes the peer send a frame, and says whether it was read."""
    events = stream.subscribe()
    frames = [peer.frame(opcode, payload)]

    def has_been_seen() -> bool:
        if frames:
            os.write(peer.transport.socket.fileno(), frames.pop())
        return events.statistics().current_buffer_used > 0

    return has_been_seen


@TAKEN
@SIDES
async def test_a_pong_goes_out_after_the_frame_that_has_begun(
    whole: int, part: int, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", TEN_BYTES, client=client)
        nursery.start_soon(stream.receive_some)
        ping = say_at_once(peer, stream, PING, b"answer me")
        take_only(monkeypatch, stream, whole, part, ping)
        await stream.send_all(FOUR_MESSAGES)
        begun = whole + bool(part)
        for _ in range(begun):
            assert await peer.receive() == (BINARY, b"0123456789")
        assert await peer.receive() == (PONG, b"answer me")
        for _ in range(4 - begun):
            assert await peer.receive() == (BINARY, b"0123456789")


@TAKEN
@SIDES
async def test_a_close_of_the_peer_stops_a_send_after_the_frame_that_has_begun(
    whole: int, part: int, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", TEN_BYTES, client=client)
        nursery.start_soon(stream.receive_some)
        close = say_at_once(peer, stream, CLOSE, close_payload(1000))
        take_only(monkeypatch, stream, whole, part, close)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(FOUR_MESSAGES * 2)
        for _ in range(whole + bool(part)):
            assert await peer.receive() == (BINARY, b"0123456789")
        assert await peer.receive() == (CLOSE, close_payload(1000))


# What is owed to the peer, and need not wait


@pytest.mark.parametrize("count", [0, 1, 5, 100])
@SIDES
async def test_an_answer_of_which_a_socket_takes_but_a_part_goes_out_whole(
    count: int, client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = os.write, []

    def write(fd: int, data: bytes) -> int:
        if fd != stream._transport.socket.fileno():  # type: ignore[attr-defined]
            return real(fd, data)
        taken.append(data)
        if not count:
            raise BlockingIOError
        return real(fd, data[:count])

    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", client=client)
        nursery.start_soon(stream.receive_some)
        monkeypatch.setattr(os, "write", write)
        await peer.send(PING, b"answer me")
        assert await peer.receive() == (PONG, b"answer me")
        await peer.send(PING, b"and me")
        assert await peer.receive() == (PONG, b"and me")
        assert len(taken) == 2


async def test_an_answer_that_finds_the_socket_broken_breaks_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise BrokenPipeError

    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", StreamConfig(close_timeout=1000))
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(os, "write", write)
        await peer.send(PING)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError) as broken:
            while True:
                await stream.send_all(b"x")
        monkeypatch.undo()
        assert isinstance(broken.value.__cause__, ConnectionLost)


async def test_the_rest_of_a_cancelled_frame_goes_out_before_an_answer() -> None:
    config = StreamConfig(max_message_size=1 << 26)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", config)
        data = b"0123456789" * 3_000_000
        await cancel_inside_a_frame(stream, data)
        nursery.start_soon(stream.receive_some)
        await peer.send(PING, b"answer me")
        assert await receive_all(peer, len(data)) == data
        assert await peer.receive() == (PONG, b"answer me")


async def test_a_cancelled_send_loses_no_pong_that_is_owed() -> None:
    config = StreamConfig(max_message_size=1 << 26)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", config)
        nursery.start_soon(stream.receive_some)
        data = b"0123456789" * 3_000_000
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as sending:
                sending.start_soon(stream.send_all, data)
                await wait_all_tasks_blocked()
                await peer.send(PING, b"answer me")
                await wait_all_tasks_blocked()
                scope.cancel()
        assert await receive_all(peer, len(data)) == data
        assert await peer.receive() == (PONG, b"answer me")


async def test_nothing_is_owed_after_a_frame_that_was_cut_off() -> None:
    """No task spins for a Pong that can never be sent. All tasks come to rest."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        await cancel_inside_a_frame(stream, b"x" * 100)
        nursery.start_soon(stream.receive_some)
        await peer.send(PING)
        with trio.fail_after(30):
            await wait_all_tasks_blocked()


@pytest.mark.parametrize("method", ["ping", "aclose"])
async def test_a_cut_off_frame_ends_what_waits_behind_it(
    method: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with background() as nursery, trio.open_nursery() as waiting:
        stream, _ = await raw_pair(nursery, "lockstep", StreamConfig(ping_interval=None))

        async def wait() -> None:
            with pytest.raises(trio.BrokenResourceError) if method == "ping" else nullcontext():
                await getattr(stream, method)()
            assert trio.current_time() == started

        started = trio.current_time()
        waiting.cancel_scope.deadline = started + 100
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as sending:
                sending.start_soon(stream.send_all, b"x")
                await wait_all_tasks_blocked()
                waiting.start_soon(wait)
                await wait_all_tasks_blocked()
                scope.cancel()
    assert not waiting.cancel_scope.cancelled_caught


@pytest.mark.parametrize("size", [100_000, 30_000_000])
async def test_a_clogged_socket_that_is_dropped_tells_its_sender_so(size: int) -> None:
    """The sender gets ClosedResourceError, whatever it was doing when the socket was closed."""
    config = StreamConfig(max_message_size=1 << 26, close_timeout=0.05)
    async with background() as nursery, trio.open_nursery() as sending:
        for _ in range(4):
            stream, _ = await raw_pair(nursery, "tcp", config)

            async def send(stream: WsByteStream) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    while True:
                        await stream.send_all(bytes(size))

            sending.start_soon(send, stream)
            await wait_all_tasks_blocked()
            await stream.aclose()


async def test_the_rest_of_a_cancelled_frame_goes_out_before_a_close() -> None:
    config = StreamConfig(max_message_size=1 << 26)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", config)
        data = b"0123456789" * 3_000_000
        await cancel_inside_a_frame(stream, data)
        nursery.start_soon(stream.aclose)
        assert await receive_all(peer, len(data)) == data
        assert (await peer.receive())[1][:2] == (1000).to_bytes(2, "big")


async def test_a_send_cancelled_inside_a_frame_over_another_stream_breaks_the_sending_side() -> (
    None
):
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "lockstep")
        await cancel_inside_a_frame(stream, b"x" * 100)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"y")
        assert isinstance(broken.value.__cause__, ConnectionLost)
        with pytest.raises(trio.BrokenResourceError):
            await stream.wait_send_all_might_not_block()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await stream.ping()


async def test_a_stream_with_a_broken_sending_side_receives_and_drops_without_a_close() -> None:
    """The peer sees a truncation and never a clean end."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "memory")
        send_stream = stream._transport.send_stream  # type: ignore[attr-defined]
        pump = send_stream.send_all_hook

        async def pump_and_never_return() -> None:
            await pump()
            await trio.sleep_forever()

        send_stream.send_all_hook = pump_and_never_return
        await cancel_inside_a_frame(stream, b"x" * 100)
        await peer.send(BINARY, b"still here")
        assert await stream.receive_some() == b"still here"
        await stream.aclose()
        assert await peer.receive() == (BINARY, b"x" * 100)  # this transport took it all
        await peer.expect_eof()


@pytest.mark.parametrize("transport", ["lockstep", "tcp"])
async def test_a_send_cancelled_between_messages_leaves_the_stream_whole(transport: str) -> None:
    """Over lockstep each message waits for its reader. The second one is cancelled."""
    config = StreamConfig(max_message_size=10)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config)
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"cancelled before anything was sent")
        assert scope.cancelled_caught
        nursery.start_soon(stream.send_all, b"next")
        assert await peer.receive() == (BINARY, b"next")


@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_sending_to_a_peer_that_is_gone_breaks_in_the_end(transport: str) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport)
        await peer.transport.aclose()
        with pytest.raises(trio.BrokenResourceError) as broken:
            while True:
                await stream.send_all(bytes(1000))
        assert isinstance(broken.value.__cause__, ConnectionLost)
