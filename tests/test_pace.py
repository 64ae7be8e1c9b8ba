"""On a slow line a ping does not wait for long behind what is sent."""

from __future__ import annotations

import itertools
import sys

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import StreamConfig, WsByteStream, _transport
from trio_wsstream._pace import LARGEST, SLOW, SMALLEST, next_limit
from trio_wsstream._tls import adapt

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, close_payload
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import CancelAtStep, background
from .support.transports import tcp_transport


@pytest.mark.parametrize("seconds", [0, 0.001, 0.04])
def test_short_waits_limit_nothing(seconds: float) -> None:
    assert next_limit(None, seconds) is None


def test_a_long_wait_begins_to_limit() -> None:
    assert next_limit(None, SLOW) == LARGEST


def test_long_waits_halve_the_limit_down_to_the_smallest() -> None:
    limit: int | None = LARGEST
    seen = []
    for _ in range(7):
        limit = next_limit(limit, 0.1)
        seen.append(limit)
    assert seen == [32768, 16384, 8192, 4096, 2048, 1024, 1024]
    assert seen[-1] == SMALLEST


def test_waits_of_the_right_length_leave_the_limit() -> None:
    assert next_limit(8192, 0.005) == next_limit(8192, 0.002) == 8192


def test_short_waits_double_the_limit_and_end_it() -> None:
    limit: int | None = 16384
    seen = []
    for _ in range(3):
        limit = next_limit(limit, 0.001)
        seen.append(limit)
    assert seen == [32768, 65536, None]


async def sizes_of(size: int, config: StreamConfig, count: int) -> list[list[int]]:
    """Of the frames of the first messages that a peer gets which takes 0.1 s for each frame."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        nursery.start_soon(stream.send_all, bytes(size))
        messages = []
        for _ in range(count):
            messages.append(sizes := [])
            fin = False
            while not fin:
                await trio.sleep(0.1)
                fin, opcode, payload = await peer.receive_frame()
                assert opcode == (CONT if sizes else BINARY)
                sizes.append(len(payload))
        return messages


@pytest.mark.parametrize("max_message_size", [65536, 200_000])
async def test_on_a_slow_line_frames_are_short_and_messages_as_long_as_ever(
    max_message_size: int, autojump_clock: MockClock
) -> None:
    messages = await sizes_of(2_000_000, StreamConfig(max_message_size=max_message_size), 4)
    assert [sum(sizes) for sizes in messages] == [max_message_size] * 4
    assert messages[0] == [max_message_size]  # Nobody knows yet that the line is slow.
    assert max(messages[1]) <= LARGEST  # Also what had been encoded by then goes out in fragments.
    frames = [size for sizes in messages for size in sizes[:-1] or sizes]
    assert frames == sorted(frames, reverse=True)
    assert max(messages[3]) == SMALLEST


async def slow_pair(
    nursery: trio.Nursery,
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    client: bool = False,
    fragment: int = 1000,
) -> tuple[WsByteStream, RawPeer]:
    """A stream that sends fragments of so many bytes, and a peer made by hand."""
    monkeypatch.setattr(_transport, "next_limit", lambda limit, seconds: fragment)
    config = StreamConfig(ping_interval=None, max_message_size=len(LONG_DATA))
    stream, peer = await raw_pair(nursery, transport, config, client=client)
    stream._wire._note_wait(1)
    return stream, peer


def payload_of(frames: list[tuple[int, bytes]]) -> bytes:
    """Of the data frames of one message, whose opcodes are checked."""
    data = [(opcode, payload) for opcode, payload in frames if opcode < CLOSE]
    assert [opcode for opcode, _ in data] == [BINARY] + [CONT] * (len(data) - 1)
    return b"".join(payload for _, payload in data)


DATA = bytes(range(250)) * 30
LONG_DATA = bytes(range(250)) * 1200  # on a fast line it would be written piece by piece
"""Both fit one message."""


async def test_on_a_slow_line_pongs_go_between_the_fragments_of_a_message(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "lockstep", monkeypatch)
        nursery.start_soon(stream.send_all, DATA)
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        await peer.send(PING, b"first")
        await wait_all_tasks_blocked()
        assert await peer.receive_frame() == (False, BINARY, DATA[:1000])
        assert await peer.receive() == (PONG, b"first")
        assert await peer.receive_frame() == (False, CONT, DATA[1000:2000])
        assert payload_of([(BINARY, b""), *await peer.receive_message()]) == DATA[2000:]


@SIDES
async def test_on_a_slow_socket_a_message_is_whole_with_pongs_between_its_fragments(
    client: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "unix", monkeypatch, client=client)
        nursery.start_soon(stream.receive_some)
        nursery.start_soon(stream.send_all, LONG_DATA)
        await wait_all_tasks_blocked()
        await peer.send(PING, b"from there")
        await trio.sleep(1)
        frames = await peer.receive_message()
        assert payload_of(frames) == LONG_DATA
        assert (PONG, b"from there") in frames


async def call_and_cancel(
    step: int, earlier: bytes, client: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[bool, list[bytes]]:
    """Fill a socket with ``earlier``, call `send_all`, and cancel that at a step of its task.

    Returns:
      Whether it was cancelled, and the messages that the peer got up to the half-close.
    """
    messages: list[bytes] = []
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "unix", monkeypatch, client=client, fragment=5000)
        with trio.move_on_after(1):
            while True:
                await stream.send_all(earlier)

        async def receive() -> None:
            while b"next" not in messages:
                messages.append(payload_of(await peer.receive_message()))
            assert await peer.receive() == (CLOSE, close_payload(1000, "half-close"))

        async with trio.open_nursery() as receiving:
            receiving.start_soon(receive)
            data = bytearray(4 * DATA)
            with trio.CancelScope() as scope:
                trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, step))
                await stream.send_all(data)
            trio.lowlevel.remove_instrument(instrument)
            data.clear()  # it is the caller's again
            await stream.send_all(b"next")
            await stream.send_eof()
    return scope.cancelled_caught, messages


@SIDES
@pytest.mark.parametrize("size", [len(LONG_DATA), 5000, 1000])
async def test_a_call_cancelled_at_any_step_on_a_slow_socket_is_a_whole_message_or_none(
    size: int, client: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, is_cancelled = b"e" * size, True
    outcomes = set()
    for step in itertools.count():
        is_cancelled, messages = await call_and_cancel(step, earlier, client, monkeypatch)
        assert messages.pop() == b"next"
        is_whole = messages[-1] != earlier
        if is_whole:
            assert messages.pop() == 4 * DATA
        assert set(messages) == {earlier}
        if not is_cancelled:
            break
        outcomes.add(is_whole)
    assert outcomes == {True, False}


def block_after(stream: WsByteStream, written: int) -> None:
    """Let the transport take so many fragments, then none, and all of them after that."""
    real, calls = stream._transport.wait_send_all_might_not_block, 0

    async def wait() -> None:
        nonlocal calls
        calls += 1
        if calls == written + 1:
            await trio.sleep_forever()
        await real()

    stream._transport.wait_send_all_might_not_block = wait  # type: ignore[method-assign]


@pytest.mark.parametrize("written", range(8))
async def test_a_call_cancelled_between_fragments_under_tls_1_2_is_a_whole_message_or_none(
    written: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "TLS 1.2", monkeypatch)
        block_after(stream, written)
        with trio.move_on_after(1) as scope:
            await stream.send_all(DATA)
        assert scope.cancelled_caught
        await stream.send_all(b"next")
        await stream.send_eof()
        if written:
            assert payload_of(await peer.receive_message()) == DATA
        assert await peer.receive() == (BINARY, b"next")
        assert await peer.receive() == (CLOSE, close_payload(1000, "half-close"))


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
@pytest.mark.parametrize("next_size", [4, 1000, len(LONG_DATA)])
@pytest.mark.parametrize("written", [1, 3, 7])
async def test_the_rest_of_a_message_comes_before_the_next_one_although_the_peer_has_hung_up(
    written: int, next_size: int, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the peer sent before is read first, and until then the turn to write is free. Time
    stands still, so nobody reads.
    """
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "TLS 1.2", monkeypatch)
        await peer.send(BINARY, b"read by trio-websocket")
        await stream.receive_some()
        await peer.transport.transport_stream.send_eof()
        block_after(stream, written)
        async with trio.open_nursery() as sending:
            sending.start_soon(stream.send_all, DATA)
            await wait_all_tasks_blocked()
            sending.cancel_scope.cancel()
        assert stream._wire.must_read_first()
        nursery.start_soon(stream.send_all, b"n" * next_size)
        assert payload_of(await peer.receive_message()) == DATA
        assert payload_of(await peer.receive_message()) == b"n" * next_size


async def test_a_stream_that_is_about_to_be_dropped_begins_no_message_inside_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancelled nursery stops what writes the rest a moment before it drops the transport."""
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "unix", monkeypatch)
        stream._protocol.unfinished = (b"the rest", 0, 8)
        stream._protocol.finish_message()
        stream._writer.stop()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"next")

        async with trio.open_nursery() as sending:
            sending.start_soon(send)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            await stream._drop()
        await peer.expect_eof()


async def test_a_call_cancelled_while_a_pong_goes_between_its_fragments_is_a_whole_message(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "lockstep", monkeypatch)
        nursery.start_soon(stream.receive_some)

        async def send() -> None:
            with scope:
                await stream.send_all(DATA)
            await stream.send_all(b"next")

        scope = trio.CancelScope()
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await peer.send(PING, b"between")
        await wait_all_tasks_blocked()
        assert await peer.receive_frame() == (False, BINARY, DATA[:1000])
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert await peer.receive() == (PONG, b"between")
        assert await peer.receive_frame() == (True, CONT, DATA[1000:])
        assert await peer.receive() == (BINARY, b"next")


@pytest.mark.parametrize("closes_here", [True, False])
async def test_a_close_comes_after_the_message_of_which_fragments_are_sent(
    closes_here: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "lockstep", monkeypatch)
        errors = []

        async def send() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)) as caught:
                await stream.send_all(LONG_DATA)
            errors.append(caught.type)

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        if closes_here:
            nursery.start_soon(stream.aclose)
        else:
            nursery.start_soon(stream.receive_some)
            await peer.send(CLOSE, close_payload(1000))
        await wait_all_tasks_blocked()
        assert payload_of(await peer.receive_message()) == LONG_DATA
        assert await peer.receive() == (CLOSE, close_payload(1000))
        await wait_all_tasks_blocked()
        assert errors == [trio.ClosedResourceError if closes_here else trio.BrokenResourceError]


async def test_a_message_is_cut_short_by_a_close_that_is_no_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "lockstep", monkeypatch)

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError, match="4000"):
                await stream.send_all(LONG_DATA)

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await peer.send(CLOSE, close_payload(4000))
        await trio.sleep(0.5)  # until the stream's own task has read it
        assert await peer.receive_frame() == (False, BINARY, LONG_DATA[:1000])
        assert await peer.receive() == (CLOSE, close_payload(4000))


@SIDES
async def test_when_a_line_is_slow_no_more_a_message_goes_on_in_long_fragments(
    client: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with background() as nursery:
        stream, peer = await slow_pair(nursery, "lockstep", monkeypatch, client=client)
        nursery.start_soon(stream.send_all, 2 * LONG_DATA)
        fin, opcode, payload = await peer.receive_frame()
        assert (fin, opcode, payload) == (False, BINARY, LONG_DATA[:1000])
        await wait_all_tasks_blocked()
        monkeypatch.setattr(_transport, "next_limit", lambda limit, seconds: None)
        assert len((await peer.receive_frame())[2]) == 1000
        sizes = [len(payload) for _, payload in await peer.receive_message()]
        assert sizes == [LARGEST] * 4 + [len(LONG_DATA) - 2000 - 4 * LARGEST]
        assert await peer.receive() == (BINARY, LONG_DATA)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
async def test_a_slow_socket_that_is_closed_is_an_error_of_writing_like_any_other() -> None:
    ours, theirs = await tcp_transport()
    async with theirs:
        wire = adapt(ours)
        wire.limit = SMALLEST
        await trio.aclose_forcefully(ours)
        with pytest.raises(trio.BrokenResourceError):
            await wire.write((b"header", b"payload"))
        assert wire.failure


async def test_a_cancelled_wait_for_a_slow_line_under_tls_1_2_cuts_nothing_off(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "TLS 1.2", StreamConfig(ping_interval=None))
        wire = stream._wire
        wire.limit = SMALLEST
        real = stream._transport.wait_send_all_might_not_block
        stream._transport.wait_send_all_might_not_block = trio.sleep_forever  # type: ignore[method-assign]
        with trio.move_on_after(1):
            await stream.send_all(b"is not begun")
        stream._transport.wait_send_all_might_not_block = real  # type: ignore[method-assign]
        await stream.send_all(b"x")
        assert await peer.receive() == (BINARY, b"x")


async def test_all_bytes_arrive_however_the_limit_changes(autojump_clock: MockClock) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(250_000))
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.send_all, data)
        received = b""
        number = 0
        while len(received) < len(data):
            await trio.sleep(0.1 if number % 20 < 8 else 0)
            number += 1
            received += (await peer.receive_frame())[2]
        assert received == data


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
async def test_the_kernel_holds_little_unsent_on_a_slow_line(
    clock_that_jumps: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the question before each write it takes up to 64 KiB more, into its last packet."""
    monkeypatch.setattr(_transport, "next_limit", lambda limit, seconds: SMALLEST)
    config = StreamConfig(max_message_size=1000, ping_interval=None)
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "tcp", config)
        stream._wire._note_wait(1)
        held = 0
        for number in range(1000):  # cancelled in the middle of a message, it goes on there
            with trio.move_on_after(1):
                await stream.send_all(bytes(20_000_000))
            held = _transport.unsent_in(stream._transport.socket)  # type: ignore[attr-defined]
            if held and number >= 20:  # On a busy machine the kernel may not have filled up before.
                break
        assert 0 < held < SMALLEST + 2000
