"""A peer that sends and receives single frames, as a test asks it to."""

from __future__ import annotations

from typing import Any

import trio

from trio_wsstream import StreamConfig, WsByteStream
from trio_wsstream._frames import FIN, MASKED, apply_mask

from .frames import CLOSE, PING, frame
from .handshakes import handshake
from .transports import TRANSPORTS, close_when_cancelled


class RawPeer:
    """The other end of a stream's transport, which sends and receives single frames.

    Args:
      transport: this end of the transport.
      masked: whether this end is the client, whose frames are masked.
    """

    def __init__(self, transport: Any, *, masked: bool) -> None:
        self.transport = transport
        self.masked = masked
        self._data = bytearray()  # Appending to bytes would copy all of them each time.

    async def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        await self.transport.send_all(self.frame(opcode, payload, fin=fin))

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
        return frame(opcode, payload, fin=fin, masked=self.masked)

    async def _receive_exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            data = await self.transport.receive_some(65536)
            if not data:
                raise EOFError(bytes(self._data))
            self._data += data
        received = bytes(self._data[:count])
        del self._data[:count]
        return received

    async def receive(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the next frame.

        Raises:
          EOFError: the transport has ended. Its argument has the bytes of a frame that was cut off.
        """
        fin, opcode, payload = await self.receive_frame()
        assert fin
        return opcode, payload

    async def receive_message(self) -> list[tuple[int, bytes]]:
        """Return the frames up to the end of a message, control frames between them included."""
        frames = []
        fin = False
        opcode = PING
        while not fin or opcode >= CLOSE:
            fin, opcode, payload = await self.receive_frame()
            frames.append((opcode, payload))
        return frames

    async def receive_frame(self) -> tuple[bool, int, bytes]:
        """Return FIN, the opcode and the payload of the next frame. Errors are `receive`'s."""
        first, second = await self._receive_exactly(2)
        assert bool(second & MASKED) is not self.masked
        length = second & 127
        if length > 125:
            length = int.from_bytes(await self._receive_exactly(2 if length == 126 else 8), "big")
        key = b"" if self.masked else await self._receive_exactly(4)
        payload = await self._receive_exactly(length)
        return bool(first & FIN), first & 15, apply_mask(payload, key) if key else payload

    async def expect_eof(self) -> None:
        try:
            unexpected = await self.receive()
        except EOFError as error:
            assert error.args == (b"",)
        else:
            raise AssertionError(f"the transport should end, but a frame came: {unexpected}")


async def raw_pair(
    nursery: trio.Nursery,
    transport: str = "memory",
    config: StreamConfig = StreamConfig(),
    *,
    client: bool = False,
) -> tuple[WsByteStream, RawPeer]:
    """Return a stream and a `RawPeer` at the other end of its transport.

    Args:
      transport: the name of one of `TRANSPORTS`.
      client: whether the stream is the client. Otherwise it is the server.
    """
    ends = await TRANSPORTS[transport]()
    ours, theirs = ends if client else reversed(ends)
    nursery.start_soon(close_when_cancelled, theirs)
    connection = await handshake(nursery, ours, theirs, client=client)
    return WsByteStream(connection, nursery, config), RawPeer(theirs, masked=not client)
