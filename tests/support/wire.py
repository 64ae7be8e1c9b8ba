"""What a peer made by hand sees on the wire, and when."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from trio_wsstream import StreamConfig, WsByteStream

from .frames import PING, PONG
from .raw_peer import RawPeer, raw_pair
from .tasks import background

Wire = list[tuple[float, int, bytes]]
"""Seconds, opcode and payload. The payload of a Ping, which is random, is ``b"?"`` here. The end of
the transport has the opcode -1."""


async def watch(peer: RawPeer, wire: Wire) -> None:
    """Note every frame that the peer receives from now on."""
    started = trio.current_time()
    opcode = 0
    while opcode >= 0:
        try:
            opcode, payload = await peer.receive()
        except EOFError:
            opcode, payload = -1, b""
        seconds = round(trio.current_time() - started, 2)
        wire.append((seconds, opcode, b"?" if opcode == PING else payload))


def watched(nursery: trio.Nursery, peer: RawPeer) -> Wire:
    """Return what the peer receives from now on. A task in ``nursery`` goes on filling it."""
    wire: Wire = []
    nursery.start_soon(watch, peer, wire)
    return wire


@asynccontextmanager
async def watched_pair(
    transport: str, config: StreamConfig, *, client: bool
) -> AsyncGenerator[tuple[WsByteStream, RawPeer, Wire]]:
    """Yield a stream, its peer, and what the peer receives."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config, client=client)
        yield stream, peer, watched(nursery, peer)


async def send_each(peer: RawPeer, seconds: float, opcode: int = PONG) -> None:
    """Let the peer send a frame each so many seconds."""
    while True:
        await trio.sleep(seconds)
        await peer.send(opcode, b"alive")
