"""Writing frames to the transport: gathered on a socket, joined on any other stream.

Theory of operation. On a `trio.SocketStream` no frame is lost if its writing is cancelled in the
middle. `SocketWire` keeps what is left of the frame and writes that before anything else. Other
streams do not tell how many bytes they took before they were cancelled. So there the sending side
is broken from then on (`StreamWire`). For TLS over a socket see `_tls`.

*Several frames in one call.* `SocketWire` offers a socket all the frames that it is given, which
saves calls in large writes. If the call takes nothing of a frame, that frame goes back to the
sender. If the call takes a part of a frame, the rest is offered together with the frames that
follow, so that one call fills the socket again. Before that, the sender is asked whether these may
still be sent: a Pong or a Close may have come to be owed while the socket was full.

*On a slow line* a Pong must not wait for long behind what was written before it (`_pace`). So each
frame is short there, and is written only while the kernel holds few unsent bytes.

*A long frame* is written piece by piece (`write_long`). So a message of any size is sent in
constant memory, and masking it does not block other tasks for long. Only if the writing is
cancelled, the rest of the frame is copied.

*System calls.* `SocketWire` reads and writes the file descriptor as `trio.socket` does, but without
the four coroutines that `trio.socket` needs for each call, and without the context managers of
`trio.SocketStream`. Together they take a fifth of the time that 1 KiB needs.

*A read that finds nothing* takes a call and an exception before the wait, 3 % of a round trip. To
wait for bytes that are there already costs twice as much. So after a read that has found nothing,
the next `_PATIENCE` reads wait first. When a read is filled, the next one tries first again.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import logging
import math
import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import trio
from trio_websocket import Endpoint

from ._frames import Buffer
from ._masking import apply_mask
from ._pace import next_limit

try:
    import fcntl
except ImportError:  # on Windows
    pass

_logger = logging.getLogger(__name__)

_NOTICEABLE_WAIT: Final = 0.05  # seconds: a frame that took longer had to wait for the peer
_NOTSENT_LOWAT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_SIOCOUTQ: Final = 0x5411  # of linux/sockios.h
_SIOCOUTQNSD: Final = 0x894B
_MAX_KEEPALIVE: Final = 32767  # seconds: the most that Linux takes
_PATIENCE: Final = 8  # reads
_PIECE: Final = 65536  # bytes of a long frame; a multiple of four, as the masking key is

Receive = Callable[[int], Awaitable[bytes | bytearray]]
MayBegin = Callable[[], bool]


def _always() -> bool:
    return True


def why_broken(error: Exception) -> str:
    """Return in words why the transport broke: the cause of ``error``, or ``error`` itself."""
    return f"the transport broke: {error.__cause__ or error!r}"


def unsent(buffers: Sequence[Buffer], sent: int) -> Buffer:
    """Return the rest of ``buffers``. It is a copy, unless the whole rest is in the last buffer."""
    index = 0
    while sent >= len(buffers[index]):
        sent -= len(buffers[index])
        index += 1
    first, rest = memoryview(buffers[index])[sent:], buffers[index + 1 :]
    return b"".join((first, *rest)) if rest else first


class _Wire(abc.ABC):
    """What `StreamWire` and `SocketWire` have in common.

    Attributes:
      failure (str): why nothing more can be written, or an empty string while writing works.
      is_interrupted (bool): whether a `write` that waits, or would wait, raises instead, until the
          turn to write ends (`Writer`).
      is_truncated (bool): whether writing fails because a frame was cut off.
      accepted_at (float): the time, by Trio's clock, at which the transport last accepted bytes
          that had had to wait for the peer. It is minus infinity if no bytes had to wait.
      limit (int or None): how many bytes of payload a frame should have at most, because writes
          have to wait. None means no limit.
      rest (buffer): what is left of frames that were begun. Everything else goes out after it. It
          may be a view of the buffers that `write` was given.
    """

    __slots__ = (
        "_stream",
        "accepted_at",
        "failure",
        "is_interrupted",
        "is_truncated",
        "limit",
        "rest",
    )

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.failure = ""
        self.is_truncated = self.is_interrupted = False
        self.accepted_at = -math.inf
        self.limit: int | None = None
        self.rest: Buffer = b""

    def _note_wait(self, seconds: float) -> None:
        """A write had to wait for so long."""
        limit = next_limit(self.limit, seconds)
        if limit != self.limit:
            self.limit = limit
            _limit_unsent(socket_beneath(self._stream), limit)

    def note_failure(self, error: Exception) -> None:
        """Remember that the transport has failed, so that nothing more can be written."""
        self.failure = why_broken(error)
        self.rest = b""  # It may be a view of a caller's buffer.
        _logger.debug("nothing more can be sent: %s", self.failure)

    @abc.abstractmethod
    async def write(self, buffers: Sequence[Buffer], may_begin: MayBegin | None = None) -> int:
        """Write a frame, or the first of several.

        If this is cancelled before anything of the frame is written, the frame is not sent.

        Args:
          buffers (sequence of buffers): header and payload of the frame, and perhaps headers and
              payloads of more. It may also be a single buffer of whole frames.
          may_begin (function or None): is asked, after a wait, whether a frame may still begin. If
              there is such a function, this may return while there is a `rest`. Then the caller
              must call `write_rest` before it lets go of the buffers.

        Returns:
          int: how many of the buffers were written, or begun. A frame of which nothing was written
          does not count. It is 0 if none may begin any more.

        Raises:
          trio.BrokenResourceError: the transport broke, or this was interrupted.
          trio.ClosedResourceError: the transport has been closed on this side.
        """

    def is_acknowledged(self) -> bool:
        """Return whether the peer's TCP is known to acknowledge what it receives."""
        sock = socket_beneath(self._stream)
        return sock is not None and _acknowledges(sock)

    def probe_silent_peer(self, idle: float, timeout: float) -> None:
        """Let the kernel probe whether the peer's TCP still acknowledges, while nothing passes.

        Args:
          idle (float): after how many seconds of silence it sends the first probe.
          timeout (float): for how many more seconds it sends at least four.
        """
        sock = socket_beneath(self._stream)
        if sock is not None and sys.platform == "linux":
            with contextlib.suppress(OSError):  # It is not TCP, or is closed.
                for option, seconds in (
                    (socket.TCP_KEEPIDLE, idle),
                    (socket.TCP_KEEPINTVL, timeout / 4),
                ):
                    value = min(max(1, math.ceil(seconds)), _MAX_KEEPALIVE)
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def awaited(self) -> SocketWire | None:
        """Return this wire if the next read begins with a wait for its socket, else None."""
        return None

    async def wait_might_not_block(self) -> None:
        """Do what `trio.abc.SendStream.wait_send_all_might_not_block` does for the stream."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """End our direction of TCP, where there is one, also beneath TLS.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: from a stream that is no socket.
        """
        beneath = self._stream
        while isinstance(beneath, trio.SSLStream):  # which has no half-close of its own
            beneath = beneath.transport_stream
        sock = own_socket(beneath)
        if sock is not None:
            # An error of trio.SocketStream would be part of a reference cycle, with our caller.
            shut_down(sock, socket.SHUT_WR)
        elif isinstance(beneath, trio.abc.HalfCloseableStream):
            await beneath.send_eof()

    def is_readable(self) -> bool:
        """Return whether bytes or the end of TCP can be read from the socket without waiting.

        If the transport has no socket, the result is False.
        """
        sock = socket_beneath(self._stream)
        try:
            return sock is not None and sock.is_readable()
        except (OSError, ValueError):  # it is closed
            return True

    def interrupt(self) -> bool:
        """Interrupt a `write` that waits for the peer, and return True if that is possible.

        That `write` raises `trio.BrokenResourceError`. The rest of its frame is written before
        anything else. On a transport that would lose the rest, the result is False.
        """
        return False

    def must_read_first(self) -> bool:
        """Return whether a failing write would lose bytes that the peer sent before it hung up."""
        return False

    async def aclose(self, deadline: float) -> None:
        """Close the stream. After ``deadline``, close it without waiting for anything.

        TCP ends in both directions, even if a process that was forked in the meantime still has the
        socket.

        Args:
          deadline (float): a time by Trio's clock.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: from the stream.
        """
        with trio.CancelScope(deadline=deadline), _ending_tcp(self._stream):
            await self._stream.aclose()

    async def aclose_forcefully(self) -> None:
        """Close the stream without waiting for anything, and end TCP as `aclose` does."""
        with _ending_tcp(self._stream):
            await trio.aclose_forcefully(self._stream)

    @abc.abstractmethod
    async def write_rest(self) -> None:
        """Write the `rest`, if there is one. Errors are those of `write`."""

    async def write_long(self, header: bytes, payload: memoryview, key: bytes) -> None:
        """Write a frame piece by piece. This may return while there is a `rest`, as `write` may.

        Args:
          header (bytes): the header of the frame, with the masking key if there is one.
          payload (memoryview): the payload, which is not masked yet.
          key (bytes): the masking key, or an empty value if the frame is not masked.
        """
        await self.write_rest()
        start = stop = 0  # of a piece
        try:
            while stop < len(payload):
                start, stop = stop, min(stop + _PIECE, len(payload))
                with payload[start:stop] as piece:
                    masked = apply_mask(piece, key) if key else piece
                    await self.write((header, masked), _always)
                header = b""
        except BaseException:
            if not self.failure:
                self._leave(payload, key, start, stop)
            raise

    @abc.abstractmethod
    def _leave(self, payload: memoryview, key: bytes, start: int, stop: int) -> None:
        """Handle that the writing of a long frame ended early.

        Args:
          start, stop (int): where in the payload the piece is whose writing failed.
        """


class StreamWire(_Wire):
    """Writes to any stream.

    Attributes:
      receive_some: reads from the stream, as the stream's own method does. It may raise an OSError
          in place of `trio.BrokenResourceError`.
    """

    __slots__ = ("receive_some",)

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.receive_some: Receive = stream.receive_some

    def write_now(self, data: bytes) -> bytes:
        """Write as much of ``data`` as possible without waiting, and return the rest.

        Args:
          data (bytes): whole frames. The rest may begin inside a frame.
        """
        return data

    async def write(self, buffers: Sequence[Buffer], may_begin: MayBegin | None = None) -> int:
        """Write a frame, or the first of several: see `_Wire.write`. There is never a `rest`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        since = trio.current_time()
        has_begun = False
        try:
            if self.limit is not None and socket_beneath(self._stream) is not None:
                # The kernel would take more than the limit, as that does not hold for its last
                # packet. But it tells the truth to those who ask first.
                await self.wait_might_not_block()
            has_begun = True
            await self._stream.send_all(b"".join(buffers[:2]))
            now = trio.current_time()
            if now - since >= _NOTICEABLE_WAIT:
                self.accepted_at = now
            self._note_wait(now - since)
            return 2
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.note_failure(error)
            raise
        except BaseException:
            if has_begun:
                self._truncate()
            raise

    async def write_rest(self) -> None:
        """Do nothing, as a frame that was cut off is lost here."""

    def _leave(self, payload: memoryview, key: bytes, start: int, stop: int) -> None:
        if start:
            self._truncate()

    def _truncate(self) -> None:
        self.failure = "a frame was cut off when its sending was cancelled"
        self.is_truncated = True

    def must_read_first(self) -> bool:
        # A failed write breaks a trio.SSLStream for reading too.
        sock = socket_beneath(self._stream)
        return sock is not None and _has_hung_up(sock)


class SocketWire(_Wire):
    """Writes to a `trio.SocketStream`, and does not copy payload to put a header before it.

    Attributes:
      socket (trio.socket.SocketType): Trio's own.
    """

    __slots__ = ("_waits_first", "socket")

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.socket = stream.socket
        self._waits_first = 0  # how many of the next reads wait before they try

    async def receive_some(self, max_bytes: int) -> bytes:
        """Receive at least one byte, or ``b""`` at the end; see `StreamWire`."""
        data = None
        if self._waits_first and self.awaited():
            self._waits_first -= 1
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
            data = self.read_now(max_bytes)
            if data is None:
                self._waits_first = _PATIENCE
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
        while data is None:
            try:
                await trio.lowlevel.wait_readable(self.socket)
            except trio.ClosedResourceError:
                if self.socket.fileno() < 0:
                    raise
                # It was `wake`, for somebody else.
            data = self.read_now(max_bytes)
        return data

    def read_now(self, max_bytes: int) -> bytes | None:
        """Read without waiting: the same, or None if nothing has come.

        Raises:
          OSError: TCP or TLS has failed, or the socket is closed.
        """
        # A separate function, so that a waiting task does not keep the BlockingIOError's traceback
        # alive. The same goes for _writev.
        try:
            data = os.read(self.socket.fileno(), max_bytes)
        except BlockingIOError:
            return None
        if len(data) == max_bytes:
            self._waits_first = 0
        return data

    def write_now(self, data: bytes) -> bytes:
        """Write without waiting: see `StreamWire.write_now`. After a failure the rest is empty."""
        if self.rest:
            return data
        try:
            return data[os.write(self.socket.fileno(), data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            self.note_failure(error)
            return b""

    async def write(self, buffers: Sequence[Buffer], may_begin: MayBegin | None = None) -> int:
        """Write a frame, or several: see `_Wire.write`.

        A frame is written whole if the socket takes a part of it together with those before. If
        this is cancelled in the middle of a frame, the rest of that frame is kept and written first
        by the next call.
        """
        try:
            sent = 0
            if not self.rest:
                await trio.lowlevel.checkpoint_if_cancelled()
                sent = self._writev(buffers)
                if sent:
                    await trio.lowlevel.cancel_shielded_checkpoint()
            while not sent:
                await self._wait_writable()
                if may_begin and not may_begin():
                    await self._write_rest()
                    return 0
                sent = self._write_behind_rest(buffers)
            if sent == sum(map(len, buffers)):
                return len(buffers)
            stop = 0
            while sent > 0:
                frame = buffers[stop : stop + 2]
                stop += len(frame)
                size = sum(map(len, frame))
                if sent < size:
                    self.rest = unsent(frame, sent)
                sent -= size
            if not may_begin:
                await self._write_rest()
            return stop
        except OSError as error:
            self.note_failure(error)
            raise trio.BrokenResourceError(self.failure) from error

    async def write_rest(self) -> None:
        """Write the `rest`, if there is one: see `_Wire.write_rest`."""
        if self.rest:
            try:
                await self._write_rest()
            except OSError as error:
                self.note_failure(error)
                raise trio.BrokenResourceError(self.failure) from error

    async def _write_rest(self) -> None:
        while self.rest:
            await self._wait_writable()
            self._write_behind_rest(())

    def _write_behind_rest(self, buffers: Sequence[Buffer]) -> int:
        """Write the `rest` and then ``buffers``, as far as possible without waiting.

        Returns:
          int: how many bytes of ``buffers`` were written.
        """
        if not self.rest:
            return self._writev(buffers)
        sent = self._writev((self.rest, *buffers))
        of_rest = min(sent, len(self.rest))
        # An empty memoryview would keep the caller's buffer from being resized.
        self.rest = self.rest[of_rest:] if of_rest < len(self.rest) else b""
        return sent - of_rest

    def _leave(self, payload: memoryview, key: bytes, start: int, stop: int) -> None:
        if 0 < start < len(payload):
            left = payload[start:]
            self._keep(apply_mask(left, key) if key else left)

    def _keep(self, data: Buffer) -> None:
        self.rest = b"".join((self.rest, data))

    async def _wait_writable(self) -> None:
        """Wait until the socket takes something, for a write.

        Raises:
          OSError, trio.ClosedResourceError: as `_comes_to_take_bytes`.
          trio.BrokenResourceError: it `is_interrupted`.
        """
        since = trio.current_time()
        try:
            while not (self.is_interrupted or await self._comes_to_take_bytes()):
                pass  # It was `wake`. If this was not meant, it waits again.
            if self.is_interrupted:
                raise trio.BrokenResourceError("the peer takes no more")
        except BaseException:
            self.rest = bytes(self.rest)  # The caller may let go of its buffers.
            raise
        self.accepted_at = now = trio.current_time()
        self._note_wait(now - since)

    async def aclose(self, deadline: float) -> None:
        """Close the socket, and end TCP as `_Wire.aclose` does. This waits for nothing."""
        await self.aclose_forcefully()

    async def aclose_forcefully(self) -> None:
        """Close the socket, and end TCP as `_Wire.aclose` does. This is no checkpoint.

        `trio.SocketStream.aclose` does no more. But its checkpoint, and the cancel scope around it,
        would take a tenth of the time in which a connection is opened and closed.
        """
        shut_down(self.socket)
        self.socket.close()

    def interrupt(self) -> bool:
        """Interrupt a `write` that waits for the peer: see `_Wire.interrupt`.

        A cancel scope around every wait would take a third of the time that the wait takes.
        """
        self.is_interrupted = True
        self.wake()
        return True

    def wake(self) -> None:
        """Wake whoever waits for the socket, to read or to write. Who was not meant waits again."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)

    def awaited(self) -> SocketWire | None:
        """See `_Wire.awaited`. A read of a closed socket does not wait."""
        return self if self.socket.fileno() >= 0 else None

    async def wait_might_not_block(self) -> None:
        """Wait until the socket takes something: see `_Wire.wait_might_not_block`."""
        try:
            while not await self._comes_to_take_bytes():
                pass  # It was `wake`, for somebody else.
        except OSError as error:
            raise trio.BrokenResourceError(os.strerror(error.errno or 0)) from error

    async def _comes_to_take_bytes(self) -> bool:
        """Wait until the socket takes something. Return False if `wake` came first.

        Raises:
          OSError: the socket was closed before, or the kernel refused the wait.
          trio.ClosedResourceError: the socket has been closed meanwhile.
        """
        if self.socket.fileno() < 0:
            # Waiting for a descriptor of -1 would corrupt Trio's own records.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            await trio.lowlevel.wait_writable(self.socket)
            return True
        except trio.ClosedResourceError as error:
            if self.socket.fileno() < 0:
                self.note_failure(error)
                raise
            return False

    def _writev(self, buffers: Sequence[Buffer]) -> int:
        if self.limit is not None and unsent_in(self.socket) >= self.limit:
            return 0  # The kernel would take more, as the limit does not hold for its last packet.
        try:
            return os.writev(self.socket.fileno(), buffers)
        except BlockingIOError:
            return 0


def own_socket(stream: trio.abc.AsyncResource) -> trio.socket.SocketType | None:
    """Return the socket of a `trio.SocketStream`, or None if it is not one of Trio's own class."""
    if not isinstance(stream, trio.SocketStream):
        return None
    is_trios_own = type(stream.socket).__module__.partition(".")[0] == "trio"
    return stream.socket if is_trios_own else None


class Endpoints:
    """The two addresses of a transport, or its `repr` if it has none.

    The socket is asked at once, because a closed socket has no addresses any more. An `Endpoint` is
    made of an address when somebody asks for it: that takes longer than all the rest. Until then
    both addresses are kept as one string, which takes a quarter of the memory.

    Only TCP has addresses that an `Endpoint` can hold. The address of a Unix socket is a path, or
    bytes that the kernel has chosen, and that of AF_VSOCK has the number of a machine.
    """

    __slots__ = ("_client", "_found", "_is_ssl", "_made")

    def __init__(self, transport: trio.abc.Stream, *, client: bool) -> None:
        self._client = client
        beneath = transport
        while isinstance(beneath, trio.SSLStream):
            beneath = beneath.transport_stream
        self._is_ssl = beneath is not transport
        self._made: tuple[Endpoint | str, Endpoint | str] | None = None
        if isinstance(beneath, trio.SocketStream):
            sock = beneath.socket
            try:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    (host, port, *_), (peer, peer_port, *_) = sock.getsockname(), sock.getpeername()
                    self._found = f"{host} {port} {peer} {peer_port}"
                    return
            except (OSError, AttributeError, NotImplementedError):
                pass  # The socket is not connected any more, or it is no real socket.
        self._made = repr(transport), repr(transport)

    def __str__(self) -> str:
        """What a `WsByteStream` over the transport is called: its side and its peer."""
        side = "client" if self._client else "server"
        return f"trio_wsstream.WsByteStream {side}, peer {_shown(self.remote)}"

    @property
    def local(self) -> Endpoint | str:
        """The address on this side."""
        return self._both()[0]

    @property
    def remote(self) -> Endpoint | str:
        """The address on the peer's side."""
        return self._both()[1]

    def _both(self) -> tuple[Endpoint | str, Endpoint | str]:
        if self._made is None:
            host, port, peer, peer_port = self._found.split()
            self._made = (
                Endpoint(host, int(port), self._is_ssl),
                Endpoint(peer, int(peer_port), self._is_ssl),
            )
        return self._made


def _shown(address: Endpoint | str) -> str:
    if isinstance(address, str):
        return address
    host = f"[{address.address}]" if address.address.version == 6 else str(address.address)
    return f"{host}:{address.port}"


def socket_beneath(stream: trio.abc.AsyncResource) -> trio.socket.SocketType | None:
    """Return Trio's own socket under a stream, also under TLS, or None if there is none."""
    while (beneath := getattr(stream, "transport_stream", None)) is not None:
        stream = beneath
    return own_socket(stream)


def unsent_in(sock: trio.socket.SocketType) -> int:
    """Return how many bytes the kernel has not sent yet, or 0 where it does not tell."""
    return _queued_in(sock, _SIOCOUTQNSD)


def unacknowledged_in(sock: trio.socket.SocketType) -> int:
    """Return how many bytes the peer's kernel has not acknowledged; a FIN counts as one.

    The result is 0 where the kernel does not tell, and for sockets other than TCP.
    """
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
    return _queued_in(sock, _SIOCOUTQ) if is_tcp else 0


def _queued_in(sock: trio.socket.SocketType, request: int) -> int:
    if sys.platform != "linux":
        return 0
    try:
        answer = fcntl.ioctl(sock.fileno(), request, bytes(4))
    except (OSError, ValueError):  # It is not TCP, or is closed.
        return 0
    return int.from_bytes(answer, sys.byteorder)


def _limit_unsent(sock: trio.socket.SocketType | None, limit: int | None) -> None:
    """Limit how many bytes the kernel takes before it sends them, where it can do that."""
    if sock is not None and _NOTSENT_LOWAT is not None:
        with contextlib.suppress(OSError):  # It is not TCP, or is closed.
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, limit or 0)


@contextlib.contextmanager
def _ending_tcp(stream: trio.abc.Stream) -> Iterator[None]:
    """Shut down the connection under a stream that is closed in this block.

    Closing is not enough: TCP goes on while another process has the same socket. TLS says goodbye
    while it is closed, so its socket is shut down after that, through a second descriptor.
    """
    sock = socket_beneath(stream)
    if sock is not None and sock is own_socket(stream):
        shut_down(sock)
        sock = None
    try:
        twin = None if sock is None else sock.dup()
    except OSError:  # The socket is closed, or the process has no descriptor left.
        twin = None
    try:
        yield
    finally:
        if twin is not None:
            shut_down(twin)
            twin.close()


def shut_down(sock: trio.socket.SocketType, how: int = socket.SHUT_RDWR) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # The connection has ended already.


def _acknowledges(sock: trio.socket.SocketType) -> bool:
    """Return whether the peer's TCP acknowledges what it receives, also while its window is closed.

    A single segment, or a single window probe, that has no answer yet means nothing. Only Linux
    tells this; elsewhere the result is False.
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
    """Return whether the peer's end of TCP has arrived, maybe after bytes that were not read yet.

    Only Linux tells this; elsewhere the result is False.
    """
    if not hasattr(select, "POLLRDHUP") or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
