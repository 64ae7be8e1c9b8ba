"""A connection of ours that is taken over while a peer made by hand talks and listens."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked
from trio_websocket import WebSocketConnection

from trio_wsstream import StreamConfig, TextPolicy, WsByteStream, WsEvent

from .frames import CLOSE
from .handshakes import handshake
from .raw_peer import RawPeer
from .transports import TRANSPORTS

CONFIG = StreamConfig(text=TextPolicy.AS_BYTES)
Heard = list[tuple[int, bytes]]
"""Opcode and payload of what a peer heard from us."""


@attrs.define
class Meeting:
    """A connection of ours, and a peer made by hand, who listens until TCP ends.

    Attributes:
      heard: the whole frames that the peer got.
      cut_off: what it got of one that was not whole.
    """

    nursery: trio.Nursery
    connection: WebSocketConnection
    peer: RawPeer
    heard: Heard = attrs.field(factory=list)
    cut_off: bytes = b""

    async def listen(self) -> None:
        """After a Close, a server ends TCP (RFC 6455, 7.1.1)."""
        try:
            while self.peer.masked or CLOSE not in dict(self.heard):
                self.heard.append(await self.peer.receive())
        except EOFError as error:
            self.cut_off = error.args[0]
        except trio.ClosedResourceError:
            pass  # the peer has hung up
        finally:
            await self.peer.transport.aclose()

    async def say(self, *frames: tuple[int, bytes] | tuple[int, bytes, bool]) -> None:
        """Each an opcode and a payload, and False if it is not the message's last one."""
        for opcode, payload, *fin in frames:
            await self.peer.send(opcode, payload, fin=all(fin))
        await wait_all_tasks_blocked()

    def take_over(self, config: StreamConfig = CONFIG) -> tuple[WsByteStream, list[WsEvent]]:
        """The stream, and what happens on it, up to the moment."""
        stream = WsByteStream(self.connection, self.nursery, config)
        happened: list[WsEvent] = []
        self.nursery.start_soon(collect, stream.subscribe(math.inf), happened)
        return stream, happened


async def collect(events: trio.MemoryReceiveChannel[WsEvent], happened: list[WsEvent]) -> None:
    async for event in events:
        happened.append(event)  # noqa: PERF401  # to be seen at once


@asynccontextmanager
async def meeting(
    *,
    client: bool,
    transport: str = "memory",
    wrap: Callable[[Any], Any] = lambda stream: stream,
    **options: Any,
) -> AsyncGenerator[Meeting, None]:
    """When it is left, all has been said, and no task may remain.

    Args:
      client: whether we are the client.
      wrap: what our transport is wrapped in.
      options: trio-websocket's.
    """
    with trio.fail_after(10):
        ends = await TRANSPORTS[transport]()
        ours, theirs = ends if client else reversed(ends)
        async with trio.open_nursery() as nursery:
            connection = await handshake(nursery, wrap(ours), theirs, client=client, **options)
            peer = RawPeer(theirs, masked=not client)
            it = Meeting(nursery, connection, peer)
            nursery.start_soon(it.listen)
            yield it
