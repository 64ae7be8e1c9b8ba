"""A connection of ours that is taken over, and a `RawPeer` that talks and listens."""

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

LIMIT = 30  # seconds: a bound against hanging
CONFIG = StreamConfig(text=TextPolicy.AS_BYTES)
Heard = list[tuple[int, bytes]]
"""The opcode and the payload of each frame that the peer has received from us."""


@attrs.define
class Meeting:
    """A connection of ours, and a `RawPeer` that listens until the transport ends.

    Attributes:
      nursery: runs the tasks of both ends.
      connection: our connection, before it is taken over.
      peer: the other end.
      heard: the whole frames that the peer has received.
      cut_off: the bytes that the peer has received of a frame that was cut off.
    """

    nursery: trio.Nursery
    connection: WebSocketConnection
    peer: RawPeer
    heard: Heard = attrs.field(factory=list)
    cut_off: bytes = b""

    async def listen(self) -> None:
        """Receive until the transport ends. A server ends TCP after a Close (RFC 6455, 7.1.1)."""
        try:
            while self.peer.masked or CLOSE not in dict(self.heard):
                self.heard.append(await self.peer.receive())
        except EOFError as error:
            self.cut_off = error.args[0]
        except trio.ClosedResourceError:
            pass  # The test has closed the peer's transport.
        finally:
            await self.peer.transport.aclose()

    async def say(self, *frames: tuple[int, bytes] | tuple[int, bytes, bool]) -> None:
        """Send frames from the peer, and wait until our side has handled them.

        Args:
          frames: opcode and payload of each frame, and False for a frame that does not end its
              message.
        """
        for opcode, payload, *fin in frames:
            await self.peer.send(opcode, payload, fin=all(fin))
        await wait_all_tasks_blocked()

    def take_over(self, config: StreamConfig = CONFIG) -> tuple[WsByteStream, list[WsEvent]]:
        """Take our connection over. Return the stream and a list that its events are added to."""
        stream = WsByteStream(self.connection, self.nursery, config)
        happened: list[WsEvent] = []
        self.nursery.start_soon(collect, stream.subscribe(math.inf), happened)
        return stream, happened


async def collect(events: trio.MemoryReceiveChannel[WsEvent], happened: list[WsEvent]) -> None:
    async for event in events:
        happened.append(event)  # noqa: PERF401  # The test reads the list meanwhile.


@asynccontextmanager
async def meeting(
    *,
    client: bool,
    transport: str = "memory",
    wrap: Callable[[Any], Any] = lambda stream: stream,
    **options: Any,
) -> AsyncGenerator[Meeting, None]:
    """Open a connection between our side and a `RawPeer`.

    After the block the peer listens until the transport ends, and all tasks of our side must end.

    Args:
      client: whether our side is the client.
      transport: the name of one of `TRANSPORTS`.
      wrap: wraps our end of the transport.
      options: arguments of trio-websocket.
    """
    with trio.fail_after(LIMIT):
        ends = await TRANSPORTS[transport]()
        ours, theirs = ends if client else reversed(ends)
        async with trio.open_nursery() as nursery:
            connection = await handshake(nursery, wrap(ours), theirs, client=client, **options)
            peer = RawPeer(theirs, masked=not client)
            it = Meeting(nursery, connection, peer)
            nursery.start_soon(it.listen)
            yield it
