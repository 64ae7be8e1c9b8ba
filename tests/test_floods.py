"""Frames that cost the peer next to nothing, by the ten thousand, from a peer that never reads.

``--flood=1000000`` makes it a million. What it costs here is counted, not timed: the memory that
Python has allocated at the most, and how much is done between two schedule points.
"""

from __future__ import annotations

import math

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import EventsLost, StreamClosed, StreamConfig, TextPolicy
from trio_wsstream._stream import STEPS_A_TURN

from .support.frames import BINARY, CONT, PING, PONG, SIDES, TEXT
from .support.memory import bounded_memory
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background

pytestmark = pytest.mark.slow

BUFFER = 16384
SLACK = 1_000_000  # bytes, for one read of 64 KiB, the flood's own pieces, and Trio
BINARY_FRAMES_A_TURN = STEPS_A_TURN * 256


@attrs.frozen
class Flood:
    """What comes again and again.

    Args:
      opcode, payload, fin: of the frame.
      begin (int or None): the opcode of an empty fragment that comes first.
    """

    opcode: int
    payload: bytes = b""
    fin: bool = True
    begin: int | None = None
    text: TextPolicy = TextPolicy.REJECT

    @property
    def config(self) -> StreamConfig:
        return StreamConfig(receive_buffer_size=BUFFER, text=self.text)

    async def pour(self, peer: RawPeer, count: int) -> None:
        """Send ``count`` frames, 64 KiB at a time."""
        if self.begin is not None:
            await peer.send(self.begin, fin=False)
        one = peer.frame(self.opcode, self.payload, fin=self.fin)
        left = count
        while left:
            some = min(left, 65536 // len(one))
            await peer.transport.send_all(one * some)
            left -= some
        if self.begin is not None:
            await peer.send(CONT)


CONTROL = {
    "pings": Flood(PING),
    "full pings": Flood(PING, bytes(125)),
    "pongs": Flood(PONG),
}
SILENT = {
    "empty frames": Flood(BINARY),
    "empty fragments": Flood(CONT, fin=False, begin=BINARY),
    "empty text": Flood(TEXT, text=TextPolicy.AS_BYTES),
    "empty text fragments": Flood(CONT, fin=False, begin=TEXT, text=TextPolicy.AS_EVENTS),
}
DATA = {
    "one-byte frames": Flood(BINARY, b"x"),
    "one-byte fragments": Flood(CONT, b"x", fin=False, begin=BINARY),
    "one-byte text": Flood(TEXT, b"x", text=TextPolicy.AS_BYTES),
}


def floods(*kinds: dict[str, Flood]) -> pytest.MarkDecorator:
    named = {name: flood for kind in kinds for name, flood in kind.items()}
    return pytest.mark.parametrize("flood", named.values(), ids=named)


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("flood"))


async def receive_all_of(peer: RawPeer, *expected: tuple[int, bytes]) -> None:
    missing = set(expected)
    while missing:
        missing.discard(await peer.receive())


@pytest.mark.slow
@SIDES
@pytest.mark.parametrize("is_receiving", [True, False], ids=["receiving", "idle"])
@floods(CONTROL, SILENT)
async def test_a_flood_that_carries_no_data_takes_no_memory(
    flood: Flood, is_receiving: bool, client: bool, count: int, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix", flood.config, client=client)
        events = stream.subscribe()  # and never reads
        received: list[bytes | bytearray] = []

        async def receive() -> None:
            received.append(await stream.receive_some())

        if is_receiving:
            nursery.start_soon(receive)
        async with bounded_memory(SLACK):
            await flood.pour(peer, count)
            await wait_all_tasks_blocked()

        # The peer has read nothing yet. The connection still works, both ways.
        await peer.send(PING, b"the last")
        await peer.send(BINARY, b"after the flood")
        if not is_receiving:
            nursery.start_soon(receive)
        nursery.start_soon(stream.send_all, b"too")
        await receive_all_of(peer, (PONG, b"the last"), (BINARY, b"too"))
        await wait_all_tasks_blocked()
        assert received == [b"after the flood"]

        await trio.aclose_forcefully(stream)
        told = [event async for event in events]
        assert isinstance(told[-1], StreamClosed)
        if flood.opcode in (PING, PONG):
            assert told[-2] == EventsLost(count + 1 - 64)
            assert len(told) == 64 + 2


@pytest.mark.slow
@SIDES
@floods(DATA)
async def test_a_flood_of_data_that_nobody_receives_takes_one_buffer(
    flood: Flood, client: bool, count: int, autojump_clock: MockClock
) -> None:
    count = max(count, 2 * BUFFER)  # or nothing would have to wait
    async with background() as nursery:
        _, peer = await raw_pair(nursery, "unix", flood.config, client=client)
        async with bounded_memory(SLACK + BUFFER):
            with trio.move_on_after(1) as is_waiting:
                await flood.pour(peer, count)
            assert is_waiting.cancelled_caught


@SIDES
@floods(DATA)
async def test_a_flood_of_data_is_received_in_little_memory(
    flood: Flood, client: bool, count: int, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix", flood.config, client=client)
        async with bounded_memory(SLACK + BUFFER):
            nursery.start_soon(flood.pour, peer, count)
            received = 0
            while received < count:
                chunk = await stream.receive_some()
                assert chunk == b"x" * len(chunk)
                received += len(chunk)
        await stream.send_all(b"too")
        assert await peer.receive() == (BINARY, b"too")


@SIDES
@pytest.mark.parametrize("is_receiving", [True, False], ids=["receiving", "idle"])
@floods({name: CONTROL[name] for name in ("pings", "pongs")})
async def test_a_flood_leaves_others_their_turn(
    flood: Flood, is_receiving: bool, client: bool, count: int, autojump_clock: MockClock
) -> None:
    """Whenever another task runs, only a few frames have been handled since its last turn."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "memory", client=client)
        events = stream.subscribe(math.inf)
        if is_receiving:
            nursery.start_soon(stream.receive_some)
        else:
            await trio.sleep(1)  # the stream's own task reads
        nursery.start_soon(flood.pour, peer, count)
        handled = 0
        while handled < count:
            await trio.lowlevel.checkpoint()
            before, handled = handled, events.statistics().current_buffer_used
            # Trio may run the two in either order, so that two steps can come together.
            assert handled - before <= 2 * STEPS_A_TURN


@floods(DATA)
async def test_one_byte_frames_leave_others_their_turn(
    flood: Flood, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        config = StreamConfig(text=flood.text)
        stream, peer = await raw_pair(nursery, "memory", config, client=True)
        nursery.start_soon(flood.pour, peer, 40_000)
        sizes = [0]
        while sum(sizes) < 40_000:
            sizes.append(len(await stream.receive_some()))
        # The stream's own task may have read once for us before.
        assert max(sizes) <= 2 * BINARY_FRAMES_A_TURN


async def test_empty_frames_leave_others_their_turn(autojump_clock: MockClock) -> None:
    """This counts the turns of another task, because nothing tells how far the flood has come."""
    count = 20 * BINARY_FRAMES_A_TURN
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "memory", client=True)
        events = stream.subscribe()
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        await peer.transport.send_all(peer.frame(BINARY) * count + peer.frame(PONG))
        turns = 0
        while not events.statistics().current_buffer_used:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= 20


@SIDES
@floods(CONTROL)
async def test_backpressure_holds_a_flood_up_and_no_end(
    flood: Flood, client: bool, count: int, autojump_clock: MockClock
) -> None:
    """A subscriber that never reads costs its buffer and one read. Closing does not wait for it."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix", flood.config, client=client)
        events = stream.subscribe(10, backpressure=True)
        async with bounded_memory(SLACK):
            with trio.move_on_after(1000) as is_waiting:
                await flood.pour(peer, count)
            assert is_waiting.cancelled_caught
        assert stream.closed is None  # and keepalive holds nothing against the peer
        started_at = trio.current_time()
        await stream.aclose()
        assert trio.current_time() - started_at <= stream.config.close_timeout
        assert [event async for event in events][-1] == stream.closed
