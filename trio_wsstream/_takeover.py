"""Taking a connection over: the one file that knows the insides of trio-websocket and wsproto.

Theory of operation. Some bytes have been received by trio-websocket and have not been given to a
caller. `_replay` writes all of them down again as the frames that they came in: messages in the
queue, the assembled part of an unfinished message, the header that wsproto has decoded, the bytes
that it has not decoded, and the peer's Close. So one decoder, ours, reads what came before the
takeover and what comes after it. The rewritten frames continue at the byte where wsproto stopped:
they announce the payload that is still to come, with the masking key rotated to that position, and
they contain the bytes that wsproto's text decoder holds of an unfinished character.

At the takeover trio-websocket's reader task is in one of two places:

- It waits in the transport. Then nobody else may read before the task has left, because only the
  task gets the bytes of that read. A stand-in replaces the connection's wsproto object, keeps these
  bytes, and lets the task end. If the transport is a socket, also beneath TLS, we need not wait for
  bytes: Trio can tell the task that the socket is about to be closed, and the task ends.
- It handles an event: it answers a ping, or puts a message into a full queue. Then nobody waits for
  the task. It finds a closed transport when it wants to read again, and ends.

wsproto's generator of frames tells these two apart. While its last frame is still being handled,
the generator holds that frame in a local variable.

Everything that is under way is stored on `Takeover` and not in a coroutine, so that a cancelled
read loses nothing. Closing the transport wakes every task that waits in it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import trio
import trio_websocket
import wsproto
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection, WebSocketRequest
from wsproto.connection import ConnectionState

from ._errors import ProtocolViolation, TakeoverError
from ._frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    MASKED,
    TEXT,
    encode_close_payload,
    encode_header,
)
from ._protocol import Close
from ._transport import own_socket, socket_beneath

_logger = logging.getLogger(__name__)

_TAKEN_OVER: Final = CloseReason(1000, "taken over by trio_wsstream.WsByteStream")

_SET_EVENT: Final = trio.Event()
_SET_EVENT.set()
_FREE_LOCK: Final = trio.StrictFIFOLock()
_NO_PINGS: Final[OrderedDict[bytes, trio.Event]] = OrderedDict()


class _StandIn:
    """Replaces the connection's wsproto object and both ends of its message channel.

    Attributes:
      client (bool): whether this side is the client, as trio-websocket asks of wsproto.
      received (bytes): what the read got that the reader task had under way. If the connection is
          from `open_connection`, it is what came after the opening handshake.
      is_taken (bool): whether the connection has been taken over. Only one from `open_connection`
          has a stand-in before that.
      reader_has_left (trio.Event or None): set when the reader task leaves the transport. It is
          None while nobody waits for that.
    """

    __slots__ = ("client", "is_taken", "reader_has_left", "received")

    def __init__(self, *, client: bool, received: bytes = b"", is_taken: bool = True) -> None:
        self.client = client
        self.received = received
        self.is_taken = is_taken
        self.reader_has_left: trio.Event | None = None

    @property
    def state(self) -> ConnectionState:
        # However its read has ended, the reader task asks for the state next. So a call of this
        # property means that the task has left the transport.
        if self.reader_has_left is not None:
            self.reader_has_left.set()
        return ConnectionState.LOCAL_CLOSING

    def receive_data(self, data: bytes) -> None:
        self.received = data

    def send(self, event: object) -> bytes:
        raise ConnectionClosed(_TAKEN_OVER)

    async def receive(self) -> str | bytes:
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _SendOnlyTransport:
    """Replaces the transport for a reader task that was not reading.

    The task stops at its next read. Frames that were made before the takeover are still sent.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: trio.abc.Stream) -> None:
        self._transport = transport

    def __repr__(self) -> str:
        return repr(self._transport)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise trio.ClosedResourceError

    async def send_all(self, data: bytes) -> None:
        await self._transport.send_all(data)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def transport_of(connection: WebSocketConnection) -> trio.abc.Stream:
    """Return the transport that ``connection`` reads from and writes to."""
    return connection._stream


def check(connection: WebSocketConnection) -> None:
    """Check that ``connection`` can be taken over, and change nothing.

    Raises:
      TypeError: it is not a `WebSocketConnection`.
      TakeoverError: it cannot be taken over.
    """
    if not isinstance(connection, WebSocketConnection):
        hint = ": await its accept()" if isinstance(connection, WebSocketRequest) else ""
        raise TypeError(f"connection must be a WebSocketConnection, not {connection!r}{hint}")
    with _REFUSING_UNKNOWN_VERSIONS:
        inner: Any = connection._wsproto
        if isinstance(inner, _StandIn):
            if inner.is_taken:
                raise TakeoverError("the connection has been taken over before")
            return  # `open_connection` has made it.
        if not connection._open_handshake.is_set():
            raise TakeoverError("the opening handshake is not finished")
        _check_parts(connection)
        _check_state(connection)


def _check_state(connection: Any) -> None:
    if connection._wsproto.connection._proto.extensions:
        raise TakeoverError("an extension was negotiated")
    is_closing = connection._wsproto.state is ConnectionState.LOCAL_CLOSING
    if connection._recv_channel._closed or (is_closing and not _has_broken(connection)):
        raise TakeoverError(f"this side has closed the connection: {connection.closed}")
    if connection._pings and (
        connection._stream_lock.locked()
        or any(pong.statistics().tasks_waiting for pong in connection._pings.values())
    ):
        raise TakeoverError("a ping() of the connection is under way")


_PARTS: Final[dict[str, Any]] = {
    "_close_handshake": trio.Event,
    "_close_reason": CloseReason | None,
    "_connection_proposal": object,
    "_for_testing_peer_closed_connection": trio.Event,
    "_handshake_headers": tuple,
    "_initial_request": object,
    "_message_parts": list,
    "_open_handshake": trio.Event,
    "_path": str,
    "_pings": dict,
    "_reader_running": bool,
    "_recv_channel": trio.MemoryReceiveChannel,
    "_send_channel": trio.MemorySendChannel,
    "_stream": trio.abc.Stream,
    "_stream_lock": trio.StrictFIFOLock,
    "_subprotocol": str | None,
}
"""The private attributes of a connection that this file reads or sets, and their types.

There is one more, ``_wsproto``."""


def _check_connection_parts(connection: Any, inner: type = wsproto.WSConnection) -> None:
    """Raise `TakeoverError` if an attribute of the connection itself is not what it was.

    Args:
      inner (type): the class of the connection's ``_wsproto``.
    """
    for name, kind in {**_PARTS, "_wsproto": inner}.items():
        if not isinstance(getattr(connection, name), kind):
            raise TakeoverError(f"{_versions()}: WebSocketConnection.{name} has changed")
    if not callable(connection._aclose):
        raise TakeoverError(f"{_versions()}: WebSocketConnection._aclose has changed")


def _check_parts(connection: Any) -> None:
    """Raise `TakeoverError` if anything that the takeover touches is not what it was."""
    _check_connection_parts(connection)
    if not _has_known_wsproto(connection._wsproto):
        raise TakeoverError(f"{_versions()}: wsproto's objects have changed")
    if not isinstance(connection._recv_channel._closed, bool):
        raise TakeoverError(f"{_versions()}: Trio's memory channels have changed")
    if not all(isinstance(pong, trio.Event) for pong in connection._pings.values()):
        raise TakeoverError(f"{_versions()}: WebSocketConnection._pings has changed")


def _has_known_wsproto(inner: Any) -> bool:
    """Return whether an open wsproto connection has the parts that `_replay` reads and clears."""
    frames = inner.connection._proto
    decoder, message = frames._frame_decoder, frames._message_decoder
    header, masker = decoder.header, decoder.masker
    return (
        isinstance(inner.client, bool)
        and isinstance(inner.state, ConnectionState)
        and isinstance(inner.handshake._h11_connection.trailing_data[0], bytes)
        and isinstance(frames.client, bool)
        and isinstance(frames.extensions, list)
        and "frame" in frames._parse_more.gi_code.co_varnames
        and isinstance(message.opcode, int | None)
        and (message.decoder is None or isinstance(message.decoder.getstate()[0], bytes))
        and isinstance(decoder.buffer.buffer, bytearray)
        and isinstance(decoder.payload_consumed, int)
        and (header is None or isinstance(header.fin + header.opcode + header.payload_len, int))
        and (header is None or frames.client or len(masker._masking_key) == 4)
    )


class _RefusingUnknownVersions:
    """Turns the errors of a block that misses a part into a `TakeoverError`.

    Each connection enters two of these, so it is no generator, which would take longer.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, AttributeError | TypeError):
            raise TakeoverError(f"{_versions()}: {error}") from error


_REFUSING_UNKNOWN_VERSIONS: Final = _RefusingUnknownVersions()


def _versions() -> str:
    return (
        f"trio_wsstream cannot take over connections of trio-websocket "
        f"{trio_websocket.__version__} with wsproto {wsproto.__version__}"
    )


def _is_lost(connection: WebSocketConnection) -> bool:
    """Return whether trio-websocket has found that the transport is gone."""
    reason = connection._close_reason
    return reason is not None and reason.code == 1006


def _has_broken(connection: WebSocketConnection) -> bool:
    """Return whether the transport or the peer has failed, so that this side has not closed.

    After a lost transport or a violation, trio-websocket makes its wsproto object encode a Close,
    so that wsproto's state says that this side has closed. But that Close is thrown away. After a
    violation, however, the send lock may be held by an ``aclose`` that sends its own Close.
    """
    reason = connection._close_reason
    has_violation = reason is not None and reason.code in (1002, 1007)
    return _is_lost(connection) or (has_violation and not connection._stream_lock.locked())


def _share_unused_parts(connection: WebSocketConnection) -> None:
    """Let all connections have the same parts where none of these are used any more.

    This saves 270 bytes for each connection.
    """
    connection._open_handshake = _SET_EVENT
    connection._for_testing_peer_closed_connection = _SET_EVENT
    connection._connection_proposal = None
    connection._pings = _NO_PINGS


class Takeover:
    """A connection that has been taken over.

    Args:
      connection (WebSocketConnection): a connection that `check` has accepted.
      drop (async function): called by ``connection.aclose`` from now on.

    Attributes:
      transport (trio.abc.Stream): what the frames are sent and received over.
      client (bool): whether this side is the client.
      close_sent (Close or None): the Close that trio-websocket has sent or is about to send.
    """

    __slots__ = (
        "_connection",
        "_drop",
        "_is_closed",
        "_is_leaving_tls",
        "_is_lost",
        "_reader_ends",
        "_replay",
        "_stand_in",
        "_violation",
        "client",
        "close_sent",
        "transport",
    )

    def __init__(
        self, connection: WebSocketConnection, drop: Callable[[], Awaitable[None]]
    ) -> None:
        inner: Any = connection._wsproto
        self._connection = connection
        self._drop = drop
        self._is_lost = self._is_closed = self._is_leaving_tls = False
        self._violation: ProtocolViolation | None = None
        self._reader_ends: trio.MemoryReceiveChannel[bytes | str] | None = None
        self.transport: trio.abc.Stream = connection._stream
        self.client: bool = inner.client
        self.close_sent: Close | None = None
        if isinstance(inner, _StandIn):  # `open_connection` has made the connection.
            self._stand_in = inner
            inner.is_taken = True
            self._keep_for_replay(inner.received)
            inner.received = b""
            connection._recv_channel = connection._send_channel = inner  # type: ignore[assignment]
            connection._close_reason = _TAKEN_OVER
        else:
            self._stand_in = _StandIn(client=inner.client)
            self._take_from_trio_websocket(connection, inner)
        _logger.debug("%s: taken over, with %d bytes to replay", connection, len(self._replay))
        connection._aclose = self._aclose  # type: ignore[method-assign]

    def _take_from_trio_websocket(
        self, connection: WebSocketConnection, inner: wsproto.WSConnection
    ) -> None:
        reason = connection._close_reason
        self._is_lost = _is_lost(connection)
        self._is_closed = reason is not None and not self._is_lost
        if reason is not None and not self._is_lost:
            close = Close(int(reason.code), reason.reason or "")
            if inner.state is ConnectionState.CLOSED:
                self.close_sent = close  # trio-websocket's answer to the peer's Close
            else:  # trio-websocket met a violation and no Close
                self._violation = ProtocolViolation(*close)
        is_reading = connection._reader_running and _is_reading(inner)
        self._reader_ends = connection._recv_channel.clone() if is_reading else None
        # This empties the message queue. A reader task that waited for room in it goes on.
        self._keep_for_replay(_replay(connection, self.close_sent, self._is_closed))

        connection._recv_channel.close()
        connection._recv_channel = connection._send_channel = self._stand_in  # type: ignore[assignment]
        connection._reader_running = False
        connection._close_reason = reason or _TAKEN_OVER
        connection._wsproto = self._stand_in  # type: ignore[assignment]
        _share_unused_parts(connection)
        if reason is None:
            connection._close_handshake = _SET_EVENT
        if not self.is_sending:
            connection._stream_lock = _FREE_LOCK
        if self._is_closed or not is_reading:
            connection._stream = _SendOnlyTransport(self.transport)  # type: ignore[assignment]
        elif (sock := socket_beneath(self.transport)) and not self.is_sending:
            # The reader task of a socket can be woken at once; it need not wait for more bytes.
            trio.lowlevel.notify_closing(sock)
            self._is_leaving_tls = sock is not own_socket(self.transport)

    async def _aclose(self, code: int, reason: str | None) -> None:
        await self._drop()

    def _keep_for_replay(self, data: bytes) -> None:
        # An empty memoryview would take 200 bytes in each idle stream.
        self._replay: bytes | memoryview = memoryview(data) if data else b""

    @property
    def is_sending(self) -> bool:
        """Whether a task of trio-websocket is sending a frame over the transport."""
        return self._connection._stream_lock.locked()

    @property
    def is_in_use(self) -> bool:
        """Whether a task of trio-websocket is sending, or has just been woken from a read of TLS.

        A read of TLS may have to send something.
        """
        return self.is_sending or self._is_leaving_tls

    async def wait_unused(self) -> None:
        """Wait until it is not `is_in_use` any more."""
        async with self._connection._stream_lock:
            pass
        if self._is_leaving_tls and self._reader_ends is not None:
            await _wait_for_end(self._reader_ends.clone())
            self._is_leaving_tls = False

    @property
    def stays_in_use(self) -> bool:
        """Whether that may take long: it waits for the peer."""
        return self.is_sending or self._is_closed

    @property
    def is_over(self) -> bool:
        """Whether only the transport is left to read from, and no other task reads it."""
        return not (self._replay or self._reader_ends or self._is_closed or self._is_lost)

    @property
    def is_readable(self) -> bool:
        """Whether trio-websocket has left something to be read: bytes, a violation or an end."""
        return bool(self._replay or self._violation or self._is_closed or self._is_lost)

    async def wait_for_reader(self) -> None:
        """Wait until trio-websocket's reader task has left the transport."""
        if not self._replay and self._reader_ends and not self._is_closed and not self._is_lost:
            await _wait_for_end(self._reader_ends)
            self._reader_ends = None
            self._keep_for_replay(self._stand_in.received)

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """Return bytes that trio-websocket has received, and after the last of them read more.

        Returns:
          At most ``max_bytes`` bytes; ``b""`` if the transport has ended.

        Raises:
          ProtocolViolation: trio-websocket has met a violation. This is raised only once.
          trio.BrokenResourceError, trio.ClosedResourceError: from the transport.
        """
        await trio.lowlevel.checkpoint()
        if self._replay:
            data = bytes(self._replay[:max_bytes])
            self._replay = self._replay[max_bytes:] or b""
            return data
        if self._violation is not None:
            violation, self._violation = self._violation, None
            raise violation
        if self._is_lost:
            return b""
        while True:
            try:
                return await self.transport.receive_some(max_bytes)
            except trio.BusyResourceError:
                if not self._is_closed:
                    raise
                # After the peer's Close, the reader task of a client waits in the transport for the
                # end of TCP, as we do. It has closed its message channel before that, so
                # `wait_for_reader` cannot tell when it leaves. Bytes that it gets have no meaning.
                self._stand_in.reader_has_left = trio.Event()
                await self._stand_in.reader_has_left.wait()

    def retire(self, code: int, reason: str) -> None:
        """Make ``connection.closed`` tell how the stream has ended, and let go of the stream.

        What is left is part of no reference cycle, so it is freed as soon as nobody holds it.
        """
        self._connection._close_reason = _close_reason(code, reason or None)
        self._connection._aclose = _do_nothing  # type: ignore[assignment, method-assign]
        self._drop = _do_nothing


async def _wait_for_end(channel: trio.MemoryReceiveChannel[bytes | str]) -> None:
    """Wait until the other end of ``channel``, into which nothing is put, is closed."""
    with contextlib.suppress(trio.EndOfChannel):
        if channel.statistics().open_send_channels:
            await channel.receive()


async def _do_nothing(*_: object) -> None:
    pass


@functools.lru_cache(maxsize=8)  # Most are alike, and each takes longer to make than to find.
def _close_reason(code: int, reason: str | None) -> CloseReason:
    return CloseReason(code, reason)


def _is_reading(inner: wsproto.WSConnection) -> bool:
    """Return whether trio-websocket's reader task is in the transport or has ended."""
    assert inner.connection is not None
    return inspect.getgeneratorlocals(inner.connection._proto._parse_more).get("frame") is None


def _replay(connection: WebSocketConnection, close: Close | None, is_closed: bool) -> bytes:
    """Take what trio-websocket has received and kept; return it as frames of the peer."""
    assert connection._wsproto.connection is not None
    frames = connection._wsproto.connection._proto
    decoder, message = frames._frame_decoder, frames._message_decoder
    key = b"" if frames.client else bytes(4)
    mask = 0 if frames.client else MASKED
    replay = bytearray()

    def add(first: int, payload: bytes) -> None:
        replay.extend(encode_header(first, len(payload), mask) + key + payload)

    if not frames.client:
        # A client may send frames together with its request, although that is too early. h11
        # keeps them, and wsproto never asks for them.
        replay += connection._wsproto.handshake._h11_connection.trailing_data[0]
    for queued in _drain(connection._recv_channel):
        if isinstance(queued, str):
            add(FIN | TEXT, queued.encode())
        else:
            add(FIN | BINARY, queued)
    if message.opcode is not None:
        parts = [p.encode() if isinstance(p, str) else p for p in connection._message_parts]
        held = message.decoder.getstate()[0] if message.decoder else b""
        add(message.opcode, b"".join(parts) + held)
    if close is not None:
        add(FIN | CLOSE, encode_close_payload(*close))
    if not is_closed:
        if (header := decoder.header) is not None:
            consumed = decoder.payload_consumed
            first = (FIN if header.fin else 0) | (CONTINUATION if consumed else header.opcode)
            replay += encode_header(first, header.payload_len - consumed, mask)
            replay += getattr(decoder.masker, "_masking_key", b"")
        replay += decoder.buffer.buffer
        # trio-websocket's reader task may be between two events of wsproto. It must get no more.
        decoder.header = None
        decoder.buffer.buffer.clear()
    return bytes(replay)


def _drain(channel: trio.MemoryReceiveChannel[bytes | str]) -> Iterator[bytes | str]:
    # Asking whether the queue is empty is ten times faster than catching trio.WouldBlock.
    while (now := channel.statistics()).current_buffer_used or now.tasks_waiting_send:
        yield channel.receive_nowait()


_checked_classes: Final[set[type]] = set()


def open_connection(
    transport: trio.abc.Stream,
    *,
    client: bool,
    path: str,
    subprotocol: str | None = None,
    handshake_headers: tuple[tuple[bytes, bytes], ...] = (),
    received: bytes = b"",
) -> WebSocketConnection:
    """Return a connection whose opening handshake this library has done, to be taken over.

    The connection has no task and no wsproto object, because neither would ever be used.

    Args:
      transport (trio.abc.Stream): what the connection goes over.
      client (bool): whether this side is the client.
      path (str): the path of the request.
      subprotocol (str or None): the subprotocol that was chosen.
      handshake_headers (tuple): the headers of the peer's request or response.
      received (bytes): what was received after the peer's request or response.

    Raises:
      TakeoverError: this version of trio-websocket is not known.
    """
    stand_in: Any = _StandIn(client=client, received=received, is_taken=False)
    with _REFUSING_UNKNOWN_VERSIONS:
        connection = WebSocketConnection(transport, stand_in, host="", path=path)
        if type(connection) not in _checked_classes:  # A check takes a part of the time to connect.
            _check_connection_parts(connection, inner=_StandIn)
            _checked_classes.add(type(connection))
        connection._recv_channel.close()
    connection._subprotocol = subprotocol
    connection._handshake_headers = handshake_headers
    connection._initial_request = None
    connection._reader_running = False
    connection._close_handshake = _SET_EVENT
    connection._stream_lock = _FREE_LOCK
    _share_unused_parts(connection)
    return connection
