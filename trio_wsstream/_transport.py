"""The transport: on a socket, frames are gathered; on any other stream they are joined.

On a `trio.SocketStream` a frame that is cancelled in the middle is not lost: what is left of it
is kept, and goes out before anything else (`SocketWire`). Other streams do not say how far
they got, so there the sending side is broken (`StreamWire`).

*A socket is offered two frames at once*, which halves the calls for large writes. Only the first is
waited for. If the same call takes some of the second, that is finished, too; if it takes none, the
second goes back to its sender, who looks first whether it may still be sent. A second frame of at
most a sixteenth of the first (what TLS makes of 64 KiB ends with one) counts as part of the first.

*A long frame* is written piece by piece (`write_long`), so that a message of any size is sent in
constant memory, and its masking holds up nobody. Only who cancels it has what is left copied.

A socket's file descriptor is read and written as `trio.socket` itself does it, but without its
four coroutines for each call, and without `trio.SocketStream`'s context managers: together they
take a fifth of what 1 KiB costs.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import trio

from ._frames import Buffer
from ._masking import apply_mask

_logger = logging.getLogger(__name__)

_NOTICEABLE_WAIT: Final = 0.05  # seconds: a frame that took longer was waiting for the peer
_SHORT: Final = 16  # times shorter than the first frame
_PIECE: Final = 65536  # bytes of a long frame; a multiple of four, as the masking key is

Receive = Callable[[int], Awaitable[bytes | bytearray]]


def why_broken(error: Exception) -> str:
    """A transport's error, or the one that it stands for, in words."""
    return f"the transport broke: {error.__cause__ or error!r}"


def _waited_for(buffers: Sequence[Buffer]) -> Sequence[Buffer]:
    """The first frame, and a second that is short."""
    is_short = sum(map(len, buffers[2:])) * _SHORT <= sum(map(len, buffers[:2]))
    return buffers if is_short else buffers[:2]


def _unsent(buffers: Sequence[Buffer], sent: int) -> Buffer:
    """What is left of ``buffers``: copied, unless all of it is in the last."""
    index = 0
    while sent >= len(buffers[index]):
        sent -= len(buffers[index])
        index += 1
    first, rest = memoryview(buffers[index])[sent:], buffers[index + 1 :]
    return b"".join((first, *rest)) if rest else first


class _Wire(abc.ABC):
    """What can be said of both kinds.

    Attributes:
      failure (str): why nothing more can be written; empty while it can.
      is_truncated (bool): because a frame was cut off.
      accepted_at (float): when it last took something that had had to wait for the peer, by
          Trio's clock; minus infinity if nothing had to.
    """

    __slots__ = ("_stream", "accepted_at", "failure", "is_truncated")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.failure = ""
        self.is_truncated = False
        self.accepted_at = -math.inf

    def note_failure(self, error: Exception) -> None:
        """The transport has failed."""
        self.failure = why_broken(error)
        _logger.debug("nothing more can be sent: %s", self.failure)

    @abc.abstractmethod
    async def write(self, buffers: Sequence[Buffer]) -> int:
        """As `StreamWire.write`."""

    def is_acknowledged(self) -> bool:
        """Whether the peer's TCP is known to acknowledge what it gets."""
        sock = _socket_beneath(self._stream)
        return sock is not None and _acknowledges(sock)

    async def send_eof(self) -> None:
        """End our direction of TCP, where there is one, also beneath TLS.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: as from the stream.
        """
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        elif (sock := _socket_beneath(self._stream)) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def is_readable(self) -> bool:
        """Whether bytes, or the end of TCP, wait in the socket to be read. False where there is no
        socket to ask.
        """
        sock = _socket_beneath(self._stream)
        try:
            return sock is not None and sock.is_readable()
        except (OSError, ValueError):  # it is closed
            return True

    def interrupt(self) -> bool:
        """End a `write` that waits, if that is possible: it raises BrokenResourceError, and what is
        left of its frame goes out before anything else. Return False if it is not possible.
        """
        return False

    def must_read_first(self) -> bool:
        """Whether a failed write would break the reading of what the peer sent before."""
        return False

    async def aclose(self, deadline: float) -> None:
        """Close the stream, and from ``deadline`` on without waiting for anything.

        TCP ends in both directions even if another process, forked meanwhile, has the socket, too.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: as from the stream.
        """
        sock = _socket_beneath(self._stream)
        with trio.CancelScope(deadline=deadline), _ending_tcp(sock):
            await self._stream.aclose()

    async def aclose_forcefully(self) -> None:
        """Close the stream at once, and TCP as `aclose`."""
        with _ending_tcp(_socket_beneath(self._stream)):
            await trio.aclose_forcefully(self._stream)

    async def write_long(self, header: bytes, payload: memoryview, key: bytes) -> None:
        """Write a frame piece by piece, masked with ``key`` if that is not empty. As `write`."""
        written = 0
        try:
            while written < len(payload):
                with payload[written : written + _PIECE] as piece:
                    await self.write((header, apply_mask(piece, key) if key else piece))
                    written += len(piece)
                header = b""
        except BaseException:
            if not self.failure:
                self._leave(payload, key, written)
            raise

    @abc.abstractmethod
    def _leave(self, payload: memoryview, key: bytes, written: int) -> None:
        """The writing of a long frame is cancelled, after so many bytes in whole pieces."""


class StreamWire(_Wire):
    """Any stream.

    Attributes:
      receive_some: as the stream's; it may also raise an OSError for a broken transport.
    """

    __slots__ = ("receive_some",)

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.receive_some: Receive = stream.receive_some

    def write_now(self, data: bytes) -> bytes:
        """Write what can be written of ``data``, whole frames, without waiting; return the rest,
        which may begin inside one.
        """
        return data

    async def write(self, buffers: Sequence[Buffer]) -> int:
        """Write a frame, or the first of two.

        Args:
          buffers: the frame's header and payload, and those of a second one perhaps. Or one
              buffer with whole frames.

        Returns:
          int: how many of the buffers were written: 2 if nothing was of the second frame.

        Cancelled before anything is written, it did nothing.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: as from the stream.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        since = trio.current_time()
        try:
            await self._stream.send_all(b"".join(buffers[:2]))
            if trio.current_time() - since >= _NOTICEABLE_WAIT:
                self.accepted_at = trio.current_time()
            return 2
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.note_failure(error)
            raise
        except BaseException:
            self._truncate()
            raise

    def _leave(self, payload: memoryview, key: bytes, written: int) -> None:
        if written:
            self._truncate()

    def _truncate(self) -> None:
        self.failure = "a frame was cut off when its sending was cancelled"
        self.is_truncated = True

    def must_read_first(self) -> bool:
        """As `_Wire.must_read_first`: a failed write breaks a `trio.SSLStream` for reading, too."""
        sock = _socket_beneath(self._stream)
        return sock is not None and _has_hung_up(sock)


class SocketWire(_Wire):
    """A `trio.SocketStream`, whose payload is not copied to be framed. As `StreamWire`."""

    __slots__ = ("_rest", "_socket", "_wait")

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._socket = stream.socket
        self._rest: Buffer = b""  # of a frame whose writing was cancelled
        self._wait: trio.CancelScope | None = None  # until the socket takes some more

    async def receive_some(self, max_bytes: int) -> bytes:
        """As `StreamWire.receive_some`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        data = self._read_now(max_bytes)
        if data is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
        while data is None:
            await trio.lowlevel.wait_readable(self._socket)
            data = self._read_now(max_bytes)
        return data

    def _read_now(self, max_bytes: int) -> bytes | None:
        # Apart, as who waits would keep the exception and its traceback. So in _writev.
        try:
            return os.read(self._socket.fileno(), max_bytes)
        except BlockingIOError:
            return None

    def write_now(self, data: bytes) -> bytes:
        """As `StreamWire.write_now`; after a failure nothing is left."""
        if self._rest:
            return data
        try:
            return data[os.write(self._socket.fileno(), data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            self.note_failure(error)
            return b""

    async def write(self, buffers: Sequence[Buffer]) -> int:
        """As `StreamWire.write`, and the second frame, too, if it is short, or if the socket
        takes any of it with the first. Cancelled in the middle of a frame, it keeps what is left.
        """
        try:
            if self._rest:
                await self._write_rest()
            await trio.lowlevel.checkpoint_if_cancelled()
            sent = self._writev(buffers)
            if sent:
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                buffers = _waited_for(buffers)
                sent = await self._write_when_writable(buffers)
            left = sum(map(len, buffers)) - sent
            if left and left >= sum(map(len, buffers[2:])):  # nothing of a second frame was taken
                buffers = _waited_for(buffers)
                left = sum(map(len, buffers)) - sent
            if left:
                self._rest = _unsent(buffers, sent)
                await self._write_rest()
            return len(buffers)
        except OSError as error:
            self.note_failure(error)
            raise trio.BrokenResourceError(self.failure) from error

    async def write_long(self, header: bytes, payload: memoryview, key: bytes) -> None:
        """As `write`."""
        if self._rest:  # of another frame
            await self._write_rest()
        await super().write_long(header, payload, key)

    def _leave(self, payload: memoryview, key: bytes, written: int) -> None:
        if self._rest:  # of a piece
            written += _PIECE
        if written:
            left = payload[written:]
            self._rest = b"".join((self._rest, apply_mask(left, key) if key else left))

    async def _write_when_writable(self, buffers: Sequence[Buffer]) -> int:
        # It writes before it waits: that the socket has been closed must be noticed here. To wait
        # for a descriptor of -1 would break Trio's own books.
        while not (sent := self._writev(buffers)):
            with trio.CancelScope() as self._wait:
                await trio.lowlevel.wait_writable(self._socket)
            if self._wait.cancelled_caught:
                raise trio.BrokenResourceError("the peer takes no more")
            self._wait = None
            self.accepted_at = trio.current_time()
        return sent

    def interrupt(self) -> bool:
        """As `_Wire.interrupt`."""
        if self._wait is not None:
            self._wait.cancel()
        return True

    def _writev(self, buffers: Sequence[Buffer]) -> int:
        try:
            return os.writev(self._socket.fileno(), buffers)
        except BlockingIOError:
            return 0

    async def _write_rest(self) -> None:
        rest = memoryview(self._rest)
        try:
            while rest:
                rest = rest[await self._write_when_writable((rest,)) :]
        except OSError as error:
            self.note_failure(error)
            raise trio.BrokenResourceError(self.failure) from error
        finally:
            self._rest = bytes(rest)
            rest.release()  # the caller's buffer is its own again


def adapt(stream: trio.abc.Stream) -> StreamWire | SocketWire:
    """The wire for a stream: the fast one for Trio's own sockets only, because a socket of somebody
    else's (`trio.socket.set_custom_socket_factory`) may do more than its descriptor does.
    """
    is_trios_own = type(stream) is trio.SocketStream and (
        type(stream.socket).__module__.partition(".")[0] == "trio"
    )
    if is_trios_own and hasattr(os, "writev"):
        assert isinstance(stream, trio.SocketStream)
        return SocketWire(stream)
    return StreamWire(stream)


def _socket_beneath(stream: trio.abc.AsyncResource) -> trio.socket.SocketType | None:
    """The socket that a stream, or the TLS on it, goes over; None where there is none."""
    while (beneath := getattr(stream, "transport_stream", None)) is not None:
        stream = beneath
    return stream.socket if isinstance(stream, trio.SocketStream) else None


@contextlib.contextmanager
def _ending_tcp(sock: trio.socket.SocketType | None) -> Iterator[None]:
    """Shut ``sock`` down at the end of a block that closes it."""
    try:
        twin = None if sock is None else sock.dup()
    except (OSError, AttributeError):  # no descriptor is left, or the socket has none
        twin = None
    try:
        yield
    finally:
        if twin is not None:
            with contextlib.suppress(OSError):  # the connection has ended already
                twin.shutdown(socket.SHUT_RDWR)
            twin.close()


def _acknowledges(sock: trio.socket.SocketType) -> bool:
    """Whether the peer's TCP acknowledges what it gets, a closed window among it; Linux tells.

    That one segment, or one question about the window, is not answered yet means nothing.
    """
    if sys.platform != "linux":
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 4)
    except OSError:
        return False
    _, _, retransmits, probes = info
    return max(retransmits, probes) <= 1


def _has_hung_up(sock: trio.socket.SocketType) -> bool:
    """Whether the peer's end of TCP has arrived, before or behind other bytes; Linux tells."""
    if not hasattr(select, "POLLRDHUP") or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
