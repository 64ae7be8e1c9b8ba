"""Taking a connection over: the one file that knows trio-websocket's and wsproto's insides.

Theory of operation. Whatever trio-websocket has received and nobody has got yet is written
down again as the frames that it came in (`_replay`): queued messages, the part of one that is
half assembled, the header that wsproto has read and what it holds undecoded, the peer's Close.
So there is one decoder, ours, for what came before the takeover and for what comes after it.
The rewritten frames keep wsproto's place: the payload that is still to come, the masking key
turned to it, and the bytes that its text decoder holds.

trio-websocket's reader task may be in one of two places. Either it is in the transport, and
then it alone can say what its read got: nobody else reads until it has left. A stand-in for
the connection's wsproto object keeps those bytes, and lets the task end. (At a socket it need not
wait for bytes: told that the socket is about to be closed, it goes.) Or it is busy with an
event (answering a ping, putting a message in a full queue); then it will find a closed
transport when it comes to read, and nobody waits for it. Which of the two, wsproto's generator
of frames tells: if the last thing it gave out was a frame, that frame is being handled.

Everything that is under way lives on `Takeover`, not in a coroutine, so that a cancelled read
loses nothing. Closing the transport frees every task in it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
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

_logger = logging.getLogger(__name__)

_TAKEN_OVER: Final = CloseReason(1000, "taken over by trio_wsstream.WsByteStream")

_HAS_HAPPENED: Final = trio.Event()
_HAS_HAPPENED.set()


class _StandIn:
    """What trio-websocket finds where its wsproto object was, and its message channels."""

    __slots__ = ("client", "reader_has_left", "received")

    def __init__(self, *, client: bool) -> None:
        self.client = client
        self.received = b""
        self.reader_has_left: trio.Event | None = None  # the transport; if somebody waits for it

    @property
    def state(self) -> ConnectionState:
        # What the reader task asks for first when a read of its has ended, however it did.
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


class _NoStream:
    """What a reader task finds that was not in the transport: it is not to go there."""

    def __init__(self, transport: trio.abc.Stream) -> None:
        self._transport = transport

    def __repr__(self) -> str:
        return repr(self._transport)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise trio.ClosedResourceError

    async def send_all(self, data: bytes) -> None:
        await self._transport.send_all(data)  # a frame that was made before the takeover

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def transport_of(connection: WebSocketConnection) -> trio.abc.Stream:
    """The stream that ``connection`` goes over."""
    return connection._stream


def check(connection: WebSocketConnection) -> None:
    """Raise `TakeoverError` if ``connection`` cannot be taken over. Touches nothing."""
    if not isinstance(connection, WebSocketConnection):
        hint = ": await its accept()" if isinstance(connection, WebSocketRequest) else ""
        raise TypeError(f"connection must be a WebSocketConnection, not {connection!r}{hint}")
    try:
        if isinstance(connection._wsproto, _StandIn):
            raise TakeoverError("the connection has been taken over before")
        if not connection._open_handshake.is_set():
            raise TakeoverError("the opening handshake is not finished")
        if not _knows_insides(connection):
            raise TakeoverError(_versions())
        _check_state(connection)
    except (AttributeError, TypeError) as error:
        raise TakeoverError(f"{_versions()}: {error}") from error


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


def _knows_insides(connection: Any) -> bool:
    """Whether everything that this file touches is there, and what it was."""
    inner = connection._wsproto
    frames = inner.connection._proto
    decoder, message = frames._frame_decoder, frames._message_decoder
    header, masker = decoder.header, decoder.masker
    return (
        isinstance(connection._stream, trio.abc.Stream)
        and isinstance(connection._stream_lock, trio.StrictFIFOLock)
        and isinstance(connection._send_channel, trio.MemorySendChannel)
        and isinstance(connection._recv_channel, trio.MemoryReceiveChannel)
        and isinstance(connection._recv_channel._closed, bool)
        and isinstance(connection._message_parts, list)
        and isinstance(connection._reader_running, bool)
        and isinstance(connection._close_reason, CloseReason | None)
        and all(isinstance(pong, trio.Event) for pong in connection._pings.values())
        and callable(connection._aclose)
        and isinstance(inner, wsproto.WSConnection)
        and isinstance(inner.client, bool)
        and isinstance(inner.state, ConnectionState)
        and isinstance(frames.client, bool)
        and isinstance(inner.handshake._h11_connection.trailing_data[0], bytes)
        and isinstance(frames.extensions, list)
        and "frame" in frames._parse_more.gi_code.co_varnames
        and isinstance(message.opcode, int | None)
        and (message.decoder is None or isinstance(message.decoder.getstate()[0], bytes))
        and isinstance(decoder.buffer.buffer, bytearray)
        and isinstance(decoder.payload_consumed, int)
        and (header is None or isinstance(header.fin + header.opcode + header.payload_len, int))
        and (header is None or frames.client or len(masker._masking_key) == 4)
    )


def _versions() -> str:
    return (
        f"trio-websocket {trio_websocket.__version__} or wsproto {wsproto.__version__} "
        "is not one that trio_wsstream knows how to take over"
    )


def _is_lost(connection: WebSocketConnection) -> bool:
    """Whether trio-websocket has found the transport gone."""
    reason = connection._close_reason
    return reason is not None and reason.code == 1006


def _has_broken(connection: WebSocketConnection) -> bool:
    """Whether trio-websocket has found the transport gone, or a violation, and no Close.

    It makes its wsproto object send a Close all the same, and throws that away. But after a
    violation, what is being sent may be the Close of an ``aclose``.
    """
    reason = connection._close_reason
    has_violation = reason is not None and reason.code in (1002, 1007)
    return _is_lost(connection) or (has_violation and not connection._stream_lock.locked())


class Takeover:
    """A connection that has been taken over.

    Args:
      connection (WebSocketConnection): one that `check` has passed.
      drop: what ``connection.aclose`` does from now on.

    Attributes:
      transport (trio.abc.Stream): what the frames go over.
      client (bool): whether this side is the client.
      close_sent (Close or None): the Close that trio-websocket has sent, or is about to.
    """

    __slots__ = (
        "_connection",
        "_drop",
        "_is_closed",
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
        inner = connection._wsproto
        reason = connection._close_reason
        self._connection = connection
        self._drop = drop
        self._stand_in = _StandIn(client=inner.client)
        self._is_lost = _is_lost(connection)
        self._is_closed = reason is not None and not self._is_lost
        self._violation: ProtocolViolation | None = None
        self.transport: trio.abc.Stream = connection._stream
        self.client = inner.client
        self.close_sent: Close | None = None
        if reason is not None and not self._is_lost:
            close = Close(int(reason.code), reason.reason or "")
            if inner.state is ConnectionState.CLOSED:
                self.close_sent = close  # the answer
            else:  # what closed the connection was no Close
                self._violation = ProtocolViolation(*close)
        is_reading = connection._reader_running and _is_reading(inner)
        self._reader_ends = connection._recv_channel.clone() if is_reading else None
        # This empties the queue, so that a reader task that was blocked in it goes on.
        self._keep_for_replay(_replay(connection, self.close_sent, self._is_closed))

        _logger.debug("%s: taken over, with %d bytes to replay", connection, len(self._replay))

        connection._recv_channel.close()
        connection._recv_channel = connection._send_channel = self._stand_in  # type: ignore[assignment]
        connection._reader_running = False
        connection._close_reason = reason or _TAKEN_OVER
        connection._wsproto = self._stand_in  # type: ignore[assignment]
        # Nobody waits for these any more, and each takes 270 bytes or more.
        connection._open_handshake = _HAS_HAPPENED
        connection._for_testing_peer_closed_connection = _HAS_HAPPENED
        connection._connection_proposal = None
        if reason is None:
            connection._close_handshake = _HAS_HAPPENED
        if self._is_closed or not is_reading:
            connection._stream = _NoStream(self.transport)  # type: ignore[assignment]
        elif isinstance(self.transport, trio.SocketStream) and not self.is_sending:
            # From a socket the task can be sent away, before anything comes.
            trio.lowlevel.notify_closing(self.transport.socket)

        connection._aclose = self._aclose  # type: ignore[method-assign]

    async def _aclose(self, code: int, reason: str | None) -> None:
        await self._drop()

    def _keep_for_replay(self, data: bytes) -> None:
        self._replay: bytes | memoryview = memoryview(data) if data else b""  # a view has 200 bytes

    @property
    def is_sending(self) -> bool:
        """Whether trio-websocket's tasks are in the transport with frames of theirs."""
        return self._connection._stream_lock.locked()

    async def wait_sent(self) -> None:
        """Wait until they have left it."""
        async with self._connection._stream_lock:
            pass

    @property
    def is_over(self) -> bool:
        """Only the transport is left to read from, and only by us."""
        return not (self._replay or self._reader_ends or self._is_closed or self._is_lost)

    @property
    def is_readable(self) -> bool:
        """Whether trio-websocket has left something to be read: bytes, a violation or an end."""
        return bool(self._replay or self._violation or self._is_closed or self._is_lost)

    async def wait_for_reader(self) -> None:
        """Wait until trio-websocket's reader task has left the transport."""
        if not self._replay and self._reader_ends and not self._is_closed and not self._is_lost:
            with contextlib.suppress(trio.EndOfChannel):
                if self._reader_ends.statistics().open_send_channels:
                    await self._reader_ends.receive()
            self._reader_ends = None
            self._keep_for_replay(self._stand_in.received)

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        """As of the transport, after what trio-websocket has received.

        Raises:
          ProtocolViolation: trio-websocket met one there. Once.
          trio.BrokenResourceError, trio.ClosedResourceError: as from the transport.
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
                # The reader task of a client waits there for the end of TCP, as we do. It has
                # closed its channel before, and what else it may get does not count any more.
                self._stand_in.reader_has_left = trio.Event()
                await self._stand_in.reader_has_left.wait()

    def retire(self, code: int, reason: str) -> None:
        """The stream has ended: let ``connection.closed`` tell how."""
        self._connection._close_reason = CloseReason(code, reason or None)


def _is_reading(inner: wsproto.WSConnection) -> bool:
    """Whether trio-websocket's reader task is in the transport, or has ended."""
    assert inner.connection is not None
    return inspect.getgeneratorlocals(inner.connection._proto._parse_more).get("frame") is None


def _replay(connection: WebSocketConnection, close: Close | None, is_closed: bool) -> bytes:
    """What trio-websocket has received and not given out, as frames of the peer."""
    assert connection._wsproto.connection is not None
    frames = connection._wsproto.connection._proto
    decoder, message = frames._frame_decoder, frames._message_decoder
    key = b"" if frames.client else bytes(4)
    mask = 0 if frames.client else MASKED
    replay = bytearray()

    def add(first: int, payload: bytes) -> None:
        replay.extend(encode_header(first, len(payload), mask) + key + payload)

    if not frames.client:  # what a client sent with its request, too early: h11 holds it
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
        # A generator of events that is under way must find nothing more.
        decoder.header = None
        decoder.buffer.buffer.clear()
    return bytes(replay)


def _drain(channel: trio.MemoryReceiveChannel[bytes | str]) -> Iterator[bytes | str]:
    # That it is empty is asked for, as an exception that says so takes as long as ten calls.
    while (now := channel.statistics()).current_buffer_used or now.tasks_waiting_send:
        yield channel.receive_nowait()


# wsproto's handshakes, of a client and a server, which nobody uses: each connection must have one.
_UNUSED: Final = {
    True: wsproto.WSConnection(wsproto.ConnectionType.CLIENT).handshake,
    False: wsproto.WSConnection(wsproto.ConnectionType.SERVER).handshake,
}


def new_connection(transport: trio.abc.Stream, *, client: bool) -> WebSocketConnection:
    """A connection before its opening handshake, which trio-websocket is not to do."""
    inner = wsproto.WSConnection.__new__(wsproto.WSConnection)  # its own would make a handshake
    inner.client = client
    inner.handshake = _UNUSED[client]
    inner.connection = None
    connection = WebSocketConnection(transport, inner, host="", path="")
    connection._reader_running = False
    return connection


def open_connection(
    connection: WebSocketConnection,
    path: str,
    subprotocol: str | None,
    handshake_headers: tuple[tuple[bytes, bytes], ...],
    received: bytes,
) -> None:
    """Let the opening handshake of a `new_connection` be finished.

    Args:
      path (str), subprotocol (str or None), handshake_headers (tuple): what the connection shows.
      received (bytes): what came behind the peer's head.
    """
    inner = connection._wsproto
    kind = wsproto.ConnectionType.CLIENT if inner.client else wsproto.ConnectionType.SERVER
    inner.connection = wsproto.connection.Connection(kind, [], received)
    connection._path = path
    connection._subprotocol = subprotocol
    connection._handshake_headers = handshake_headers
    connection._initial_request = None
    connection._open_handshake.set()
