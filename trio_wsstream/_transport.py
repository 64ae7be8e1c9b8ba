"""Writing a frame: gathered on a socket, joined on any other stream.

On a `trio.SocketStream` a frame that is cancelled in the middle is not lost: what is left of it
is kept, and goes out before anything else (`SocketWriter`). Other streams do not say how far
they got, so there the sending side is broken (`StreamWriter`).
"""

from __future__ import annotations

import errno
import socket

import trio

from ._frames import Buffer


class StreamWriter:
    """Writes to any stream.

    Attributes:
      failure (str): why nothing more can be written; empty while it can.
      is_cut_off (bool): because a frame was cut off.
    """

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream
        self.failure = ""
        self.is_cut_off = False

    async def write(self, header: bytes, payload: Buffer) -> None:
        """Write a frame; or several frames as ``payload``.

        Cancelled before anything is written, it did nothing.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: as from the stream.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        data = b"".join((header, payload)) if header else payload
        try:
            await self._stream.send_all(data)
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


class SocketWriter:
    """Writes to a `trio.SocketStream`, without copying the payload. As `StreamWriter`."""

    is_cut_off = False

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._rest: Buffer = b""  # of a frame whose writing was cancelled
        self.failure = ""

    async def write(self, header: bytes, payload: Buffer) -> None:
        """As `StreamWriter.write`. Cancelled in the middle, it keeps what is left."""
        try:
            if self._rest:
                await self._write_rest()
            sent = await self._socket.sendmsg((header, payload))
            left = len(header) + len(payload) - sent
            if left:
                in_payload = left <= len(payload)
                self._rest = memoryview(payload)[-left:] if in_payload else header[sent:] + payload
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


def make_writer(stream: trio.abc.Stream) -> StreamWriter | SocketWriter:
    """The writer for a transport."""
    if isinstance(stream, trio.SocketStream) and hasattr(socket.socket, "sendmsg"):
        return SocketWriter(stream)
    return StreamWriter(stream)
