"""An event loop that was held up gives nobody up whose answer lies in the socket, whoever reads.

Time jumps at the worst moment: the loop has just asked the kernel what there is, and the peer's
Pong comes afterwards. So in the same step the deadline is past, and nobody knows of the Pong.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import StreamConfig, WsByteStream

from .support.frames import BINARY, PING, PONG
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events
from .support.tasks import background
from .support.transports import beneath

CONFIG = StreamConfig(ping_interval=20, ping_timeout=5)
SEEDS = range(20)
READERS = pytest.mark.parametrize("reader", ["a caller", "the task", "a caller now and then"])


class HeldUp(trio.abc.Instrument):
    """Once, after the kernel was asked: the peer's bytes come, and the time has passed."""

    def __init__(self, clock: MockClock, peer: RawPeer) -> None:
        self._clock = clock
        self._socket = beneath(peer.transport)
        self._corked = bytearray()
        self._real: Any = self._socket.send_all

    async def _cork(self, data: bytes) -> None:
        self._corked += data

    async def prepare(self, peer: RawPeer, opcode: int, payload: bytes) -> None:
        """Encode, and encrypt, but do not send."""
        self._socket.send_all = self._cork
        await peer.send(opcode, payload)
        self._socket.send_all = self._real

    def after_io_wait(self, timeout: float) -> None:
        if self._corked:
            sent = os.write(self._socket.socket.fileno(), self._corked)
            assert sent == len(self._corked)
            self._corked.clear()
            self._clock.jump(60)


async def receive_ping(peer: RawPeer) -> bytes:
    """The payload of the next Ping; heartbeats may come before it."""
    while True:
        opcode, payload = await peer.receive()
        if opcode == PING:
            return payload


async def read(stream: WsByteStream, reader: str) -> None:
    if reader == "a caller":
        await stream.receive_some()
    while reader == "a caller now and then":
        with trio.move_on_after(0.7):
            await stream.receive_some()
        await trio.sleep(0.3)


@READERS
@pytest.mark.parametrize("transport", ["tcp", "tls"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_pong_that_lies_in_the_socket_is_found(
    transport: str, reader: str, seed: int, autojump_clock: MockClock
) -> None:
    trio._core._run._r.seed(seed)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, CONFIG)
        nursery.start_soon(read, stream, reader)
        for _ in range(3):
            payload = await receive_ping(peer)
            held_up = HeldUp(autojump_clock, peer)
            await held_up.prepare(peer, PONG, payload)
            trio.lowlevel.add_instrument(held_up)
            await trio.sleep(1)
            trio.lowlevel.remove_instrument(held_up)
            assert stream.closed is None


@READERS
@pytest.mark.parametrize("transport", ["memory", "tcp", "tls"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_pong_that_comes_as_the_time_passes_is_found(
    transport: str, reader: str, seed: int, autojump_clock: MockClock
) -> None:
    trio._core._run._r.seed(seed)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, CONFIG)
        nursery.start_soon(read, stream, reader)
        for _ in range(3):
            payload = await receive_ping(peer)
            async with trio.open_nursery() as sending:
                sending.start_soon(peer.send, PONG, payload)
                autojump_clock.jump(60)
            await trio.sleep(1)
            assert stream.closed is None


@READERS
@pytest.mark.parametrize("transport", ["memory", "tcp", "tls"])
async def test_a_loop_that_was_held_up_gives_a_silent_peer_up_after_the_look(
    transport: str, reader: str, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, CONFIG)
        nursery.start_soon(read_to_the_end, stream, reader)
        await receive_ping(peer)
        await wait_all_tasks_blocked()  # or the loop is held up while the Ping is being written
        autojump_clock.jump(60)
        await trio.sleep(0.04)
        assert stream.closed is None
        with trio.fail_after(1):
            await all_events(stream.subscribe())


async def read_to_the_end(stream: WsByteStream, reader: str) -> None:
    try:
        await read(stream, reader)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_half_close_that_can_go_out_although_its_time_is_up_goes_out(
    seed: int, mock_clock: MockClock
) -> None:
    trio._core._run._r.seed(seed)
    config = StreamConfig(ping_interval=None)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", config)
        nursery.start_soon(stream.send_eof)
        await wait_all_tasks_blocked()
        nursery.start_soon(peer.receive)
        mock_clock.jump(2 * config.close_timeout)
        await wait_all_tasks_blocked()
        assert stream.closed is None
        await peer.send(BINARY, b"the answer")
        assert await stream.receive_some() == b"the answer"
