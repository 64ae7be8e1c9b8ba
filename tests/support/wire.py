"""What a peer made by hand sees on the wire, and when."""

from __future__ import annotations

import trio

from .frames import PING, PONG
from .raw_peer import RawPeer

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


async def send_each(peer: RawPeer, seconds: float, opcode: int = PONG) -> None:
    """Let the peer send a frame each so many seconds."""
    while True:
        await trio.sleep(seconds)
        await peer.send(opcode, b"alive")
