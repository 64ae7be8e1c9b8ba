"""`bridge`: two half-closeable streams joined, as a tunnel joins them.

Theory of operation. Two pumps run, one for each direction. Each reads its source, writes its sink,
and passes the source's end on with `send_eof`. What is hard is only what happens when one of them
does not come to such an end, because the sink's reader must then see a truncation.

*A source that fails* ends both directions: nothing more can be had from that stream, nor given to
it. *A sink that fails* does not stop the other direction, which reads from the same stream: what
came before may be whole, and its end says so. There are two exceptions. A TCP socket reports a
reset only once; after a write has reported it, a read returns ``b""``, which is no end. And the
two halves of a `trio.StapledStream` have nothing to do with each other, so that the other one may
never end.

*A WebSocket may break, or be closed by another task, while its pump waits for the sink.* So a pump
that has to wait gets a task that attends to the WebSocket (`_attend`). A sink that is only slow
still gets what came before, as long as it takes each chunk within `_SETTLING`.

*A WebSocket whose receiving side has ended may still vanish*, and only a send would notice. So the
pump that has passed the end on waits for `StreamClosed`, as long as the other direction is open. It
begins with that only after `_SOON`: mostly the other direction has ended by then, and to subscribe
costs a connection 5 % of its processor time.

*How each stream is closed* follows from the two directions alone (`_close`). A TCP socket is set
to be reset when it is closed (``SO_LINGER`` 0) from the beginning, so that its peer sees a reset
also if this process is killed; that is taken back only at a clean end. A reset throws away what the
kernel has not sent yet. So a socket that has got all that is owed to it, and is to be reset only
because what it sends finds no reader, is reset when its peer's kernel has acknowledged everything.

*Each chunk needs one schedule point, and a Trio stream has two of them: one in the read, one in the
write.* Beside a stream of another kind, a `trio.SocketStream` is therefore read and written on its
file descriptor, with no schedule point while the kernel makes nobody wait (`_receiving_from`,
`_sending_to`, `_pass_end_on`). What this saves is about what the frames of the WebSocket cost.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from ._checks import check_half_closeable
from ._errors import ConnectionLost
from ._events import StreamClosed
from ._protocol import HALF_CLOSE
from ._stream import WsByteStream, loss_of
from ._transport import own_socket, unacknowledged_in

_CHUNK: Final = 65536  # bytes in one read of a socket: the default size of a message
_SETTLING: Final = 5.0  # seconds for a sink to take what is left before it is reset
_LOOKS_AGAIN: Final = 0.02  # seconds
_SOON: Final = 0.2  # seconds

_Receive = Callable[[], Awaitable[bytes | bytearray]]
_Send = Callable[[bytes | bytearray | memoryview], Awaitable[None]]


class BridgeEnd(enum.Enum):
    """How one direction of a `bridge` ended."""

    OPEN = "open"
    """It has not ended yet."""
    ENDED = "ended"
    """The source came to its end, and the sink was told so."""
    SOURCE_FAILED = "source failed"
    """Receiving from the source failed, so the sink's reader sees a truncation."""
    SINK_FAILED = "sink failed"
    """Sending to the sink failed."""
    CUT_OFF = "cut off"
    """It was stopped before its end, as the other direction failed, or the sink was closed."""


@attrs.define
class BridgeDirection:
    """What one direction of a `bridge` has carried, and how it ended.

    Attributes:
      bytes_carried (int): how many bytes the sink has taken.
      end (BridgeEnd): how it ended.
      error (Exception or None): why it failed: a `WsStreamError`, an `OSError`, or the error of
          Trio's that the stream raised. None for a direction that ended well, and for one that was
          cut off with nothing lost.
    """

    bytes_carried: int = 0
    end: BridgeEnd = BridgeEnd.OPEN
    error: Exception | None = None


@attrs.define
class BridgeResult:
    """What a `bridge` has carried in each direction, and how each of them ended.

    Attributes:
      a_to_b (BridgeDirection), b_to_a (BridgeDirection): the two directions.
    """

    a_to_b: BridgeDirection = attrs.Factory(BridgeDirection)
    b_to_a: BridgeDirection = attrs.Factory(BridgeDirection)

    @property
    def error(self) -> Exception | None:
        """Why it failed; None if nothing was lost.

        That is so if both directions came to their end; and also if a WebSocket's peer closed it
        cleanly, which ends both directions, when nothing was left to send to it.
        """
        return self.a_to_b.error or self.b_to_a.error


async def bridge(
    a: trio.abc.HalfCloseableStream,
    b: trio.abc.HalfCloseableStream,
    *,
    result: BridgeResult | None = None,
) -> BridgeResult:
    """Join two streams: carry what each of them receives to the other, until both have ended.

    An end of input passes through as a half-close, so the other direction goes on. Between a
    WebSocket and a stream that half-closes, give the `WsByteStream` a ``StreamConfig`` with
    ``half_close=HalfClose.ALWAYS``: then the Close of any peer is taken for the end of one
    direction, as other tunnels mean it.

    A truncation never becomes a clean end. If a stream breaks, the other one is broken too: a TCP
    connection is reset, a WebSocket is closed with 1011, any other stream is closed forcefully. A
    Unix socket has no reset; its peer sees an end.

    Both streams belong to the bridge until it returns or raises, and are closed then. Cancelled, it
    drops both at once: a TCP connection is reset, and a WebSocket gets no Close. If another task
    closes one of them meanwhile, with ``WsByteStream.aclose(1001)`` perhaps, the other one is
    broken as above.

    Args:
      a, b (trio.abc.HalfCloseableStream): any two, of any kinds: `WsByteStream`,
          `trio.SocketStream`, `trio.StapledStream`.
      result (BridgeResult or None): a fresh one that the bridge fills in and returns, for a
          caller who wants to see it meanwhile, or after a cancellation.

    Returns:
      BridgeResult: how many bytes each direction has carried, and how it ended. What the
      streams, the network and the peers do is told here, and never raised.

    Raises:
      trio.BusyResourceError: another task receives from one of the streams, or sends to it. For a
          `trio.SocketStream` this is noticed only when both tasks have to wait for the socket.
      TypeError: ``a`` or ``b`` is no `trio.abc.HalfCloseableStream`, such as a `trio.SSLStream`.
          Nothing has been touched then.
    """
    check_half_closeable("a", a)
    check_half_closeable("b", b)
    result = BridgeResult() if result is None else result
    there, back = _Pump(a, b, result.a_to_b), _Pump(b, a, result.b_to_a)
    there.other, back.other = back, there
    try:
        for stream in (a, b):
            if isinstance(stream, trio.SocketStream):
                _reset_when_closed(stream, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(back.run, nursery)
            await there.run(nursery)
        misuse = there.misuse or back.misuse
        if misuse is not None:
            raise misuse
        await _close_both(a, b, result)
    except BaseException:
        for stream in (a, b):
            with trio.CancelScope(shield=True):  # it does not wait
                await trio.aclose_forcefully(stream)
        raise
    return result


class _Pump:
    """One direction."""

    other: _Pump

    def __init__(
        self,
        source: trio.abc.HalfCloseableStream,
        sink: trio.abc.HalfCloseableStream,
        direction: BridgeDirection,
    ) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.misuse: Exception | None = None  # by the caller of bridge
        self._receive: _Receive = source.receive_some
        self._send: _Send = sink.send_all
        if not (isinstance(source, trio.SocketStream) and isinstance(sink, trio.SocketStream)):
            self._receive = _receiving_from(source)
            self._send = _sending_to(sink, self._sink_is_slow)
        self._nursery: trio.Nursery | None = None
        self._attending: trio.CancelScope | None = None
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._is_watching = False
        self._in_sink = False  # it is waiting for the sink, and not for the source
        self._source_error: Exception | None = None  # of sending to it: its end is none

    async def run(self, nursery: trio.Nursery) -> None:
        """Carry until the end. Raises nothing but `trio.Cancelled`."""
        direction = self.direction
        self._nursery = nursery
        if self._send == self.sink.send_all:  # Nobody will tell that it has to wait.
            self._sink_is_slow()
        try:
            with self._scope:
                await self._carry()
                if direction.end is BridgeEnd.ENDED and isinstance(self.source, WsByteStream):
                    await self._watch(self.source)
        except Exception as error:  # noqa: BLE001  # bridge raises it
            self.misuse = error
            self.other.stop()
        finally:
            if self.is_open:
                direction.end = BridgeEnd.CUT_OFF
            self._over.set()
            if self._attending is not None:
                self._attending.cancel()
            if self.other._is_watching:
                self.other.stop()

    @property
    def is_open(self) -> bool:
        return self.direction.end is BridgeEnd.OPEN

    def stop(self) -> None:
        self._scope.cancel()

    async def _carry(self) -> None:
        receive, send, direction = self._receive, self._send, self.direction
        try:
            while data := await receive():
                self._in_sink = True
                await send(data)
                direction.bytes_carried += len(data)
                self._in_sink = False
            if self._source_error is not None:
                raise self._source_error
            self._in_sink = True
            await self._pass_end_on()
            direction.end = BridgeEnd.ENDED
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self._fail(error)

    async def _pass_end_on(self) -> None:
        # A peer that has closed needs no half-close, whose reason some print: `_close` answers it.
        is_answer = self.other.direction.end is BridgeEnd.ENDED
        if is_answer and isinstance(self.sink, WsByteStream):
            return
        sock = own_socket(self.sink)
        if sock is None:
            await self.sink.send_eof()
        else:
            sock.shutdown(socket.SHUT_WR)  # without a schedule point, as in `_sending_to`

    def _fail(self, error: Exception) -> None:
        cause = error.__cause__
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            error = trio.ClosedResourceError("another task has closed this socket")
        self.direction.error = cause if isinstance(cause, Exception) else error
        self.direction.end = BridgeEnd.SINK_FAILED if self._in_sink else BridgeEnd.SOURCE_FAILED
        if not self._in_sink or isinstance(self.sink, trio.StapledStream):
            self.other.stop()
        elif isinstance(self.sink, trio.SocketStream):
            self.other._source_error = error

    def _sink_is_slow(self) -> None:
        """While the sink makes this pump wait, nobody would notice that the source breaks."""
        if self._attending is None and isinstance(self.source, WsByteStream):
            assert self._nursery is not None
            self._attending = trio.CancelScope()
            self._nursery.start_soon(self._attend, self.source, self._attending)

    async def _attend(self, ws: WsByteStream, scope: trio.CancelScope) -> None:
        with scope:
            error = await loss_of(ws)
            carried = -1
            while carried < self.direction.bytes_carried:
                carried = self.direction.bytes_carried
                await trio.sleep(_SETTLING)
            if self.is_open:
                self._in_sink = False
                self._fail(error)
                self.stop()

    async def _watch(self, ws: WsByteStream) -> None:
        """It has ended: see its transport end, too, which ends the other direction."""
        with trio.move_on_after(_SOON):
            await self.other._over.wait()
        if self.other._over.is_set():  # maybe in the moment in which the time was up
            return
        self._is_watching = True
        with ws.subscribe(kinds=StreamClosed) as events:
            async for event in events:
                if isinstance(event, StreamClosed):
                    self.other._lose_sink(event)

    def _lose_sink(self, closed: StreamClosed) -> None:
        if self.is_open and not self._in_sink:  # else it fails by itself
            if closed.error is not None:
                self.direction.error = closed.error
            elif not closed.clean and closed.reason == HALF_CLOSE.reason:
                self.direction.error = ConnectionLost("the transport ended after a half-close")
            self.stop()


def _receiving_from(source: trio.abc.HalfCloseableStream) -> _Receive:
    """Return what reads ``source``. For a socket this is a schedule point only if it has to wait.

    It may raise an OSError in place of a `trio.BrokenResourceError`.
    """
    sock = own_socket(source)
    if sock is None:
        return source.receive_some

    async def receive() -> bytes:
        while True:
            try:
                return os.read(sock.fileno(), _CHUNK)
            except BlockingIOError:
                pass  # To wait here would keep the traceback alive.
            await trio.lowlevel.wait_readable(sock)

    return receive


def _sending_to(sink: trio.abc.HalfCloseableStream, waits: Callable[[], None]) -> _Send:
    """Return what writes to ``sink``: see `_receiving_from`. It calls ``waits`` before it waits."""
    sock = own_socket(sink)
    if sock is None:
        return sink.send_all

    async def send(data: bytes | bytearray | memoryview) -> None:
        try:
            sent = os.write(sock.fileno(), data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            waits()
            await sink.send_all(memoryview(data)[sent:])

    return send


async def _close_both(
    a: trio.abc.HalfCloseableStream, b: trio.abc.HalfCloseableStream, result: BridgeResult
) -> None:
    how = [(a, result.a_to_b, result.b_to_a), (b, result.b_to_a, result.a_to_b)]
    how.sort(key=lambda each: isinstance(each[0], WsByteStream))
    if isinstance(how[0][0], WsByteStream):  # both may take their time, which is not the other's
        async with trio.open_nursery() as nursery:
            for each in how:
                nursery.start_soon(_close, *each)
    else:
        for each in how:
            await _close(*each)


async def _close(
    stream: trio.abc.HalfCloseableStream, incoming: BridgeDirection, outgoing: BridgeDirection
) -> None:
    """Close a stream, so that its peer sees how the direction to it has ended."""
    is_whole = outgoing.end is BridgeEnd.ENDED
    is_clean = is_whole and incoming.end is BridgeEnd.ENDED
    try:
        if isinstance(stream, WsByteStream):
            await stream.aclose(1000 if is_whole else 1011)
            if is_clean and not (stream.closed and stream.closed.clean):
                outgoing.end = BridgeEnd.SINK_FAILED
                outgoing.error = ConnectionLost("the transport ended before the closing handshake")
        elif isinstance(stream, trio.SocketStream):
            is_alive = is_whole and incoming.end is not BridgeEnd.SOURCE_FAILED
            if is_clean or (is_alive and not await _has_settled(stream)):
                _reset_when_closed(stream, False)
            stream.socket.close()  # as its aclose does, before a schedule point
        elif is_whole:
            await stream.aclose()
        else:
            await trio.aclose_forcefully(stream)
    except trio.BrokenResourceError:
        pass  # it is closed, and its directions have told what they lost


def _is_tcp(stream: trio.SocketStream) -> bool:
    return stream.socket.family in (socket.AF_INET, socket.AF_INET6)


def _reset_when_closed(stream: trio.SocketStream, is_on: bool) -> None:
    """Whether closing ``stream`` resets it, whoever closes it: the kernel, perhaps."""
    if _is_tcp(stream) and stream.socket.fileno() != -1:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_on, 0))


async def _has_settled(stream: trio.SocketStream) -> bool:
    """Wait until the peer's kernel has acknowledged all; False if that takes too long."""
    for _ in range(round(_SETTLING / _LOOKS_AGAIN)):  # no event tells this
        if not unacknowledged_in(stream.socket):
            return True
        await trio.sleep(_LOOKS_AGAIN)
    return False
