"""The transport: on a socket, frames are gathered; on any other stream they are joined.

On a `trio.SocketStream` a frame that is cancelled in the middle is not lost: what is left of it
is kept, and goes out before anything else (`SocketTransport`). Other streams do not say how far
they got, so there the sending side is broken (`StreamTransport`).

A socket is used directly, through the stream's public `.socket`: the layer between takes 2 us of
every call, and has no place for a header beside the payload.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from ._frames import Buffer

Receive = Callable[[int], Awaitable[bytes | bytearray]]


class StreamTransport:
    """Any stream.

    Attributes:
      receive_some: as the stream's; it may also raise an OSError for a broken transport.
      failure (str): why nothing more can be written; empty while it can.
      is_cut_off (bool): because a frame was cut off.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.receive_some: Receive = stream.receive_some
        self.failure = ""
        self.is_cut_off = False

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """Write whole frames, in as many pieces as the caller has them.

        Cancelled before anything is written, it did nothing.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: as from the stream.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await self._stream.send_all(b"".join(buffers))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.note_failure(error)
            raise
        except BaseException:
            self.failure = "a frame was cut off when its sending was cancelled"
            self.is_cut_off = True
            raise

    def note_failure(self, error: Exception) -> None:
        """The transport has failed."""
        self.failure = f"the transport broke: {error.__cause__ or error!r}"


class SocketTransport:
    """A `trio.SocketStream`, whose payload is not copied to be framed. As `StreamTransport`."""

    is_cut_off = False

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self.receive_some: Receive = stream.socket.recv
        self._rest: Buffer = b""  # of a frame whose writing was cancelled
        self.failure = ""

    async def write(self, buffers: Sequence[Buffer]) -> None:
        """As `StreamTransport.write`. Cancelled in the middle, it keeps what is left."""
        try:
            if self._rest:
                await self._write_rest()
            left = sum(map(len, buffers)) - await self._socket.sendmsg(buffers)
            if left:
                last = buffers[-1]
                self._rest = memoryview(last if left <= len(last) else b"".join(buffers))[-left:]
                await self._write_rest()
        except OSError as error:
            self.note_failure(error)
            if error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise trio.ClosedResourceError("the socket was closed") from None
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    async def _write_rest(self) -> None:
        rest = memoryview(self._rest)
        try:
            while rest:
                rest = rest[await self._socket.send(rest) :]
        finally:
            self._rest = bytes(rest)  # the caller's buffer is its own again

    def note_failure(self, error: Exception) -> None:
        """The transport has failed."""
        self.failure = f"the transport broke: {error!r}"


def adapt(stream: trio.abc.Stream) -> StreamTransport | SocketTransport:
    """The transport for a stream."""
    if isinstance(stream, trio.SocketStream) and hasattr(socket.socket, "sendmsg"):
        return SocketTransport(stream)
    return StreamTransport(stream)
