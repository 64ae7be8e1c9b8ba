"""On a slow line a ping does not wait for long behind what is sent."""

from __future__ import annotations

import sys

import pytest
import trio
from trio.testing import MockClock

from trio_wsstream import StreamConfig, _transport
from trio_wsstream._pace import LARGEST, SLOW, SMALLEST, next_limit

from .support.frames import BINARY
from .support.raw_peer import raw_pair
from .support.tasks import background


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
    assert seen == [32768, 16384, 8192, 4096, 2048, 2048, 2048]
    assert seen[-1] == SMALLEST


def test_waits_of_the_right_length_leave_the_limit() -> None:
    assert next_limit(8192, 0.01) == next_limit(8192, 0.005) == 8192


def test_short_waits_double_the_limit_and_end_it() -> None:
    limit: int | None = 16384
    seen = []
    for _ in range(3):
        limit = next_limit(limit, 0.001)
        seen.append(limit)
    assert seen == [32768, 65536, None]


async def sizes_of(size: int, max_message_size: int, count: int) -> list[int]:
    """Of the first messages that a peer gets which takes a tenth of a second for each."""
    config = StreamConfig(max_message_size=max_message_size)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        nursery.start_soon(stream.send_all, bytes(size))
        sizes = []
        for _ in range(count):
            await trio.sleep(0.1)
            opcode, payload = await peer.receive()
            assert opcode == BINARY
            sizes.append(len(payload))
    return sizes


async def test_what_a_call_sends_in_several_messages_is_cut_smaller_on_a_slow_line(
    autojump_clock: MockClock,
) -> None:
    sizes = await sizes_of(1_000_000, 65536, 8)
    assert sizes[0] == 65536
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == SMALLEST


async def test_what_fits_one_message_remains_one(autojump_clock: MockClock) -> None:
    assert await sizes_of(65536, 65536, 1) == [65536]


async def test_long_messages_that_were_asked_for_are_not_cut(autojump_clock: MockClock) -> None:
    assert await sizes_of(2_000_000, 500_000, 4) == [500_000] * 4


async def test_a_cancelled_wait_for_a_slow_line_under_tls_cuts_nothing_off(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tls", StreamConfig(ping_interval=None))
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
    data = bytes(range(256)) * 4000
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(stream.send_all, data)
        received = b""
        number = 0
        while len(received) < len(data):
            await trio.sleep(0.1 if number % 20 < 8 else 0)
            number += 1
            received += (await peer.receive())[1]
        assert received == data


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
async def test_the_kernel_holds_little_unsent_on_a_slow_line(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the question before each write it takes up to 64 KiB more, into its last packet."""
    monkeypatch.setattr(_transport, "next_limit", lambda limit, seconds: SMALLEST)
    config = StreamConfig(max_message_size=1000, ping_interval=None)
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "tcp", config)
        stream._wire._note_wait(1)
        for _ in range(20):  # cancelled in the middle of a message, it goes on there
            with trio.move_on_after(1):
                await stream.send_all(bytes(20_000_000))
        held = _transport._unsent_in(stream._transport.socket)  # type: ignore[attr-defined]
        assert 0 < held < SMALLEST + 2000
