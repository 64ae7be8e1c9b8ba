"""`bridge`: what passes through, and what becomes of a stream when the other one breaks."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_wsstream import (
    AbnormalClosure,
    BridgeDirection,
    BridgeEnd,
    BridgeResult,
    ConnectionLost,
    HalfClose,
    StreamConfig,
    WsByteStream,
    bridge,
)
from trio_wsstream._bridge import _SOON

from .support.frames import CLOSE
from .support.pairs import stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import TRANSPORTS, close_when_cancelled, reset, tcp_transport

pytestmark = pytest.mark.slow

DATA = os.urandom(1_000_000)
TUNNEL = StreamConfig(half_close=HalfClose.ALWAYS, close_timeout=0.5)
TIGHT = StreamConfig(receive_buffer_size=1)


class Joined:
    """A bridge that runs, and the far ends of its two streams.

    Attributes:
      left, right: what the two peers have.
      streams: what the bridge has.
      done (trio.Event): it has returned.
      result (BridgeResult): its result.
    """

    def __init__(self, left: Any, right: Any, streams: tuple[Any, Any]) -> None:
        self.left = left
        self.right = right
        self.streams = streams
        self.done = trio.Event()
        self.result = BridgeResult()
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            assert await bridge(*self.streams, result=self.result) is self.result
            self.done.set()

    async def finish(self) -> BridgeResult:
        with trio.fail_after(10):
            await self.done.wait()
        return self.result


async def ends_of(
    kind: str, nursery: trio.Nursery, config: StreamConfig, peer: StreamConfig
) -> tuple[Any, Any]:
    """The far end and the bridge's end of a stream of some kind."""
    if kind == "tcp":
        return await tcp_transport()
    if kind == "memory":
        return trio.testing.memory_stream_pair()
    client, server = await stream_pair(nursery, kind.removeprefix("ws "), peer, config)
    return client, server


@asynccontextmanager
async def joined(
    left: str = "ws tcp",
    right: str = "tcp",
    config: StreamConfig = TUNNEL,
    peer: StreamConfig = TUNNEL,
) -> AsyncGenerator[Joined, None]:
    """A bridge between two kinds of streams."""
    with trio.fail_after(20):
        async with background() as nursery:
            far_left, near_left = await ends_of(left, nursery, config, peer)
            far_right, near_right = await ends_of(right, nursery, config, peer)
            for stream in (far_left, far_right):
                nursery.start_soon(close_when_cancelled, stream)
            pair = Joined(far_left, far_right, (near_left, near_right))
            nursery.start_soon(pair.run)
            yield pair


async def send_and_end(stream: trio.abc.HalfCloseableStream, data: bytes = DATA) -> None:
    await stream.send_all(data)
    await stream.send_eof()


KINDS = ["ws tcp", "ws memory", "ws tls", "tcp", "memory"]


@pytest.mark.parametrize("first", ["left", "right"])
@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("left", KINDS)
async def test_bytes_and_half_closes_pass_both_ways(left: str, right: str, first: str) -> None:
    async with joined(left, right) as pair:
        asking, answering = pair.left, pair.right
        if first == "right":
            asking, answering = answering, asking
        for sending, receiving in ((asking, answering), (answering, asking)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_and_end, sending)
                assert await receive_all(receiving) == DATA
        ended = BridgeDirection(len(DATA), BridgeEnd.ENDED, None)
        assert await pair.finish() == BridgeResult(ended, ended)
        assert pair.result.error is None


async def test_both_sides_may_end_at_once() -> None:
    async with joined() as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, pair.left)
            nursery.start_soon(send_and_end, pair.right)
            assert await receive_all(pair.left) == DATA
            assert await receive_all(pair.right) == DATA
        assert (await pair.finish()).error is None


@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize("who", ["left", "right"])
async def test_a_reset_on_one_side_breaks_the_other(who: str, has_ended: bool) -> None:
    """Also when that other side's own half has ended before."""
    async with joined("tcp", "tcp") as pair:
        dying, other = pair.left, pair.right
        if who == "right":
            dying, other = other, dying
        await dying.send_all(b"half of the da")
        assert await other.receive_some() == b"half of the da"
        if has_ended:
            await other.send_eof()
            assert await dying.receive_some() == b""
        reset(dying)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(other)
        result = await pair.finish()
        failed, fine = result.a_to_b, result.b_to_a
        if who == "right":
            failed, fine = fine, failed
        assert failed.end is BridgeEnd.SOURCE_FAILED
        assert isinstance(failed.error, OSError)
        assert failed.bytes_carried == len(b"half of the da")
        assert fine.end is (BridgeEnd.ENDED if has_ended else BridgeEnd.CUT_OFF)


async def test_a_tcp_side_that_is_reset_closes_the_websocket_with_1011_and_no_reason() -> None:
    async with joined() as pair:
        reset(pair.right)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await pair.left.receive_some()
        assert broken.value.__cause__ == AbnormalClosure(1011, "")


@pytest.mark.parametrize("how", ["abnormal", "lost"])
async def test_a_websocket_that_breaks_resets_tcp(how: str) -> None:
    async with joined() as pair:
        await pair.left.send_all(b"half of the da")
        if how == "abnormal":
            await pair.left.aclose(4000, "tired")
        else:
            await trio.aclose_forcefully(pair.left)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(pair.right)
        result = await pair.finish()
        assert result.a_to_b.end is BridgeEnd.SOURCE_FAILED
        assert result.b_to_a == BridgeDirection(0, BridgeEnd.CUT_OFF, None)
        if how == "abnormal":
            assert result.error == AbnormalClosure(4000, "tired")
        else:
            assert isinstance(result.error, ConnectionLost)


async def test_a_websocket_lost_after_its_half_close_ends_tcp_and_then_resets_it() -> None:
    """What came to its end is whole; but what the target would say finds no reader any more."""
    async with joined() as pair:
        await send_and_end(pair.left, b"whole")
        assert await receive_all(pair.right) == b"whole"
        await trio.aclose_forcefully(pair.left)
        result = await pair.finish()
        assert result.a_to_b == BridgeDirection(5, BridgeEnd.ENDED, None)
        assert result.b_to_a.end is BridgeEnd.CUT_OFF
        assert isinstance(result.error, ConnectionLost)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await pair.right.send_all(b"x")


async def test_a_plain_close_ends_both_directions_and_nothing_is_lost() -> None:
    """The peer has said that it receives no more: the target need not end by itself."""
    async with joined(config=StreamConfig(half_close=HalfClose.AUTO)) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.left.send_all, DATA)
            received = b""
            while len(received) < len(DATA):
                received += await pair.right.receive_some()
        await pair.left.aclose()
        assert received == DATA
        assert await pair.right.receive_some() == b""
        result = await pair.finish()
        assert result.b_to_a == BridgeDirection(0, BridgeEnd.CUT_OFF, None)
        assert result.error is None


async def test_all_that_came_before_a_plain_close_reaches_a_target_that_talks_and_is_slow() -> None:
    """Sending to the WebSocket fails by then; to reset the target would lose what it is owed."""
    async with joined(config=StreamConfig(half_close=HalfClose.AUTO)) as pair:
        near: trio.SocketStream = pair.streams[1]
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.left.send_all, DATA)
            while len(received) < len(DATA) // 2:
                received += await pair.right.receive_some(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.left.aclose)
            await pair.right.send_all(b"I have half of it")
            while len(received) < len(DATA):
                received += await pair.right.receive_some(1000)
            assert received == DATA


async def test_a_read_that_returns_nothing_after_a_write_was_reset_is_no_end() -> None:
    """The kernel reports a reset once: to the write, here."""
    async with background() as nursery:
        client, server = await stream_pair(nursery, "lockstep", TIGHT, TUNNEL)
        far, near = await tcp_transport()
        result = BridgeResult()
        nursery.start_soon(lambda: bridge(server, near, result=result))
        await far.send_all(b"first")
        await trio.testing.wait_all_tasks_blocked()  # it waits for the WebSocket's peer to read
        await far.send_all(b"second")
        reset(far)
        await client.send_all(b"x" * 10)  # which meets the reset
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError) as broken:
            await receive_all(client)
        assert isinstance(broken.value.__cause__, AbnormalClosure | ConnectionLost)
        assert result.b_to_a.end in (BridgeEnd.SOURCE_FAILED, BridgeEnd.SINK_FAILED)


async def test_a_cancelled_bridge_drops_both() -> None:
    async with joined() as pair:
        await pair.left.send_all(b"half of the da")
        assert await pair.right.receive_some() == b"half of the da"
        pair.scope.cancel()
        with pytest.raises(trio.BrokenResourceError) as broken:
            await pair.left.receive_some()
        assert isinstance(broken.value.__cause__, ConnectionLost)
        with pytest.raises(trio.BrokenResourceError):
            await pair.right.receive_some()
        assert pair.result.a_to_b == BridgeDirection(14, BridgeEnd.CUT_OFF, None)


async def test_a_bridge_that_is_cancelled_before_it_begins_closes_both() -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, "tcp")
        far, near = await tcp_transport()
        with trio.CancelScope() as scope:
            scope.cancel()
            await bridge(server, near)
        assert near.socket.fileno() == -1
        assert server.closed is not None
        await trio.aclose_forcefully(far)
        await trio.aclose_forcefully(client)


async def test_a_websocket_that_another_task_closes_gets_its_code_and_tcp_is_reset() -> None:
    async with joined() as pair:
        await pair.left.send_all(b"x")
        assert await pair.right.receive_some() == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.streams[0].aclose, 1001)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await pair.left.receive_some()
            nursery.start_soon(pair.left.aclose)
        assert broken.value.__cause__ == AbnormalClosure(1001, "")
        with pytest.raises(trio.BrokenResourceError):
            await pair.right.receive_some()
        assert isinstance((await pair.finish()).error, trio.ClosedResourceError)


@pytest.mark.parametrize("kind", ["ws tcp", "memory"])
async def test_a_socket_that_another_task_has_closed_is_told(kind: str) -> None:
    async with background() as nursery:
        near_left = (await ends_of(kind, nursery, TUNNEL, TUNNEL))[1]
        far, near = await tcp_transport()
        await near.aclose()
        result = await bridge(near_left, near)
        assert isinstance(result.error, trio.ClosedResourceError)
        await trio.aclose_forcefully(far)


async def test_a_socket_that_never_makes_anybody_wait_leaves_other_tasks_their_turn() -> None:
    """Beside another stream it is read and written without schedule points."""
    async with joined(right="memory", left="tcp") as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.left.send_all, DATA)
        received = 0
        turns = 0

        async def count() -> None:
            nonlocal turns
            while received < len(DATA):
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(count)
        while received < len(DATA):
            received += len(await pair.right.receive_some())
        assert turns > len(DATA) // 65536


async def meet_raw_peer(nursery: trio.Nursery) -> tuple[RawPeer, trio.SocketStream, BridgeResult]:
    """A bridge between a raw WebSocket client and TCP; the two peers, and the bridge's result."""
    stream, peer = await raw_pair(nursery, "tcp", TUNNEL)
    far, near = await tcp_transport()
    nursery.start_soon(close_when_cancelled, far)
    result = BridgeResult()

    async def run() -> None:
        await bridge(stream, near, result=result)

    nursery.start_soon(run)
    return peer, far, result


@pytest.mark.parametrize("payload", [b"", struct.pack("!H", 1000)])
async def test_the_close_that_answers_a_peers_has_no_reason(payload: bytes) -> None:
    """There are tunnels that write a Close's payload into the stream."""
    async with background() as nursery:
        peer, far, _ = await meet_raw_peer(nursery)
        await peer.send(CLOSE, payload)
        assert await far.receive_some() == b""
        await far.send_all(b"answer")
        await far.aclose()
        assert await peer.receive() == (2, b"answer")
        assert await peer.receive() == (CLOSE, struct.pack("!H", 1000))


async def test_the_first_close_is_a_half_close() -> None:
    async with background() as nursery:
        peer, far, result = await meet_raw_peer(nursery)
        await far.send_eof()
        assert await peer.receive() == (CLOSE, struct.pack("!H", 1000) + b"half-close")
        await peer.send(2, b"more")
        assert await far.receive_some() == b"more"
        await peer.send(CLOSE, struct.pack("!H", 1000))
        assert await far.receive_some() == b""
        await peer.expect_eof()
        await far.aclose()
        assert result.error is None


async def test_a_closing_handshake_that_does_not_finish_is_a_failure() -> None:
    """The peer half-closes and vanishes before our own end: what was sent to it may be lost."""
    async with background() as nursery:
        peer, far, result = await meet_raw_peer(nursery)
        await peer.send(CLOSE, struct.pack("!H", 1000) + b"half-close")
        assert await far.receive_some() == b""
        reset(peer.transport)
        await trio.testing.wait_all_tasks_blocked()
        await far.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert result.a_to_b.end is BridgeEnd.ENDED
        assert isinstance(result.error, ConnectionLost)


async def test_a_plain_peer_that_ends_tcp_after_its_close_has_lost_nothing() -> None:
    """It took no half-close for one, and answered nothing; that is RFC 6455's way."""
    async with background() as nursery:
        peer, far, result = await meet_raw_peer(nursery)
        await peer.send(2, b"all")
        await peer.send(CLOSE, struct.pack("!H", 1000))
        assert await receive_all(far) == b"all"
        await peer.transport.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await far.send_all(b"x")
        assert result.a_to_b == BridgeDirection(3, BridgeEnd.ENDED, None)


async def test_the_result_of_a_bridge_can_be_seen_while_it_runs() -> None:
    async with joined() as pair:
        await pair.left.send_all(b"four")
        assert await pair.right.receive_some() == b"four"
        await trio.testing.wait_all_tasks_blocked()
        assert pair.result == BridgeResult(a_to_b=BridgeDirection(4, BridgeEnd.OPEN, None))


async def test_the_kernel_resets_tcp_if_the_process_dies() -> None:
    async with joined() as pair:
        await trio.testing.wait_all_tasks_blocked()
        near: trio.SocketStream = pair.streams[1]
        linger = near.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert linger == struct.pack("ii", 1, 0)


async def test_a_bridge_ends_at_once_when_nobody_reads_its_output_any_more() -> None:
    """As of ``... | head``: the input that belongs to it may never end."""
    async with joined("ws tcp", "memory") as pair:
        await trio.aclose_forcefully(pair.right.receive_stream)
        await pair.left.send_all(b"x")
        result = await pair.finish()
        assert result.a_to_b.end is BridgeEnd.SINK_FAILED
        assert result.b_to_a.end is BridgeEnd.CUT_OFF
        with pytest.raises(trio.BrokenResourceError) as broken:
            await pair.left.receive_some()
        assert broken.value.__cause__ == AbnormalClosure(1011, "")


@pytest.mark.parametrize("which", [0, 1])
async def test_a_stream_that_is_in_use_is_refused_and_both_are_closed(which: int) -> None:
    async with background() as nursery:
        _, server = await stream_pair(nursery, "tcp")
        far, near = await tcp_transport()
        streams: list[WsByteStream | trio.SocketStream] = [server, near]

        async def use() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await streams[which].receive_some()

        async with trio.open_nursery() as users:
            users.start_soon(use)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await bridge(server, near)
        assert near.socket.fileno() == -1
        assert server.closed is not None
        await trio.aclose_forcefully(far)


@pytest.mark.parametrize("which", [0, 1])
async def test_a_stream_to_which_another_task_waits_to_send_is_refused(which: int) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, "tcp")
        far, near = await tcp_transport()
        streams: list[WsByteStream | trio.SocketStream] = [server, near]

        async def use() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await streams[which].send_all(bytes(30_000_000))  # more than the kernel takes

        async with trio.open_nursery() as users:
            users.start_soon(use)
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"x")
            await far.send_all(b"x")
            with pytest.raises(trio.BusyResourceError):
                await bridge(server, near)
        await trio.aclose_forcefully(far)


async def test_a_side_that_pauses_for_hours_is_not_given_up(autojump_clock: MockClock) -> None:
    """Neither by the bridge that has it, nor by the one at the other end of the WebSocket."""
    async with background() as nursery:
        there, here = await stream_pair(nursery, "lockstep", TUNNEL)
        sending, paused = trio.testing.memory_stream_pair(), trio.testing.lockstep_stream_pair()
        for ws, local in ((there, sending[0]), (here, paused[0])):
            nursery.start_soon(bridge, ws, local)
        nursery.start_soon(send_and_end, sending[1])
        await trio.sleep(10_000)
        assert await receive_all(paused[1]) == DATA


CLOGGED = pytest.mark.parametrize("kind", ["unix", "lockstep"])


@CLOGGED
@pytest.mark.parametrize("who", ["this side", "this side, after the peer", "the peer"])
async def test_a_websocket_that_is_over_ends_a_bridge_whose_other_side_takes_nothing(
    who: str, kind: str, autojump_clock: MockClock
) -> None:
    """The bridge waits for its sink, so it reads the WebSocket no more."""
    config = attrs.evolve(TUNNEL, half_close=HalfClose.NEVER)
    async with background() as nursery:
        far, near = await stream_pair(nursery, "memory", config, config)
        local, silent = await TRANSPORTS[kind]()
        nursery.start_soon(close_when_cancelled, silent)
        await far.send_all(DATA[:60_000])
        result = BridgeResult()
        async with trio.open_nursery() as bridging:
            bridging.start_soon(partial(bridge, near, local, result=result))
            await trio.sleep(1)
            if who == "this side, after the peer":
                await far.aclose()
                await trio.sleep(1000)
                assert near.closed is not None
                assert near.closed.clean
                assert result.a_to_b.end is BridgeEnd.OPEN  # What came is still owed to the sink.
            ended_at = trio.current_time()
            if who == "the peer":
                await far.aclose(4000)
            else:
                await near.aclose(1001)
        assert trio.current_time() - ended_at <= 6
        assert result.a_to_b.end is BridgeEnd.SOURCE_FAILED
        assert result.b_to_a.end is BridgeEnd.CUT_OFF
        kind_of_error = AbnormalClosure if who == "the peer" else trio.ClosedResourceError
        assert isinstance(result.error, kind_of_error)


@CLOGGED
async def test_a_slow_side_gets_what_came_before_the_websocket_broke(
    kind: str, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        far, near = await stream_pair(nursery, "memory", TUNNEL, TUNNEL)
        local, slow = await TRANSPORTS[kind]()
        nursery.start_soon(close_when_cancelled, slow)
        for start in range(0, 60_000, 10_000):
            await far.send_all(DATA[start : start + 10_000])
        await far.aclose(4000)
        nursery.start_soon(bridge, near, local)
        received = b""
        while data := await slow.receive_some(1000):
            received += data
            await trio.sleep(0.05)
        assert received == DATA[:60_000]


async def test_a_websocket_that_has_ended_well_waits_for_a_side_that_takes_nothing_for_hours(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        far, near = await stream_pair(nursery, "memory", TUNNEL, TUNNEL)
        local, slow = await TRANSPORTS["lockstep"]()
        await far.send_all(DATA)
        nursery.start_soon(far.aclose)
        nursery.start_soon(bridge, near, local)
        await trio.sleep(10_000)
        assert await receive_all(slow) == DATA


async def test_the_other_direction_may_end_in_the_moment_in_which_the_watch_begins(
    autojump_clock: MockClock,
) -> None:
    """The bridge then waited for its own Close."""
    for _ in range(20):  # Trio chooses the order of tasks that are ready.
        async with background() as nursery:
            far, near = await stream_pair(nursery, "memory", TUNNEL, TUNNEL)
            local, peer = trio.testing.memory_stream_pair()
            result = BridgeResult()
            nursery.start_soon(partial(bridge, near, local, result=result))
            await far.send_eof()
            assert await peer.receive_some() == b""
            for _ in range(10):  # until the pump waits, while time stands still
                await trio.lowlevel.checkpoint()
            peer.send_stream.close()
            autojump_clock.jump(_SOON)
            await far.aclose()
            assert far.closed is not None
            assert far.closed.clean
            await trio.sleep(0.1)
            assert result.error is None
