"""`WsByteStream`: Trio's stream contract, tasks, turns and timeouts.

Theory of operation
-------------------

*Reading is a turn that one task at a time has* (`_is_reading`). A caller who finds nothing unread
and nobody reading reads the transport itself, with no task switch between it and the socket.
The stream's own task, `_attend`, reads only when no caller has for `GRACE_PERIOD`, so that pings
and Closes are answered while nobody receives; at once while a `ping` waits or the stream closes.
It reads ahead `receive_buffer_size` bytes at the most. A caller who comes while it reads parks in
`_news`. Otherwise it naps until something is due: the end of the grace period, keepalive, the
closing deadline. A caller's reads move none of these; but if the task naps with no end of a grace
period to wait for (`_is_dozing`), a caller who leaves sets it one.

*Writing is a turn too* (`_WriteTurn`), taken for a whole `send_all`, and for each of `_flush`:
the short-lived task that sends what `Protocol` owes the peer, so that no caller's cancellation
loses it. What a socket takes at once needs no task (`_flush_soon`). Between its writes a `send_all`
passes the turn on if something is owed; what comes to be owed while it waits for the socket goes
out behind what that was offered, two messages at the most. Reading never waits for writing; it
only starts a `_flush`.

*Whatever came is digested at once, without awaiting* (`_digest`): decoded, events published,
answers owed. Two things stop that: an event for a full channel with backpressure (`_stalled`),
and `STEPS_A_TURN`, so that a flood of tiny frames leaves others their turn. Then the next to
read waits for the subscriber, or for a schedule point, instead (`_has_undigested`).

*Everybody who waits* for something to happen parks in `_news`, is woken by any change, and
looks again: the conditions are facts of `Protocol` and of this class, never messages.

*Ends.* `_begin_closing` starts the clock of `close_timeout`; `_is_over` says when there is nothing
left to wait for; then `_attend` closes the transport and `_conclude` tells everybody. Who must not
wait calls `_drop` instead. No task of the stream raises for what peer, network or callers do.
Ctrl-C is not raised there either, nor where it would leave something half told
(`enable_ki_protection`): Trio's main task gets it.
"""

from __future__ import annotations

import logging
import math
import operator
import os
import socket
from types import SimpleNamespace, TracebackType
from typing import Final, final

import trio
from trio_websocket import Endpoint, WebSocketConnection

from . import _takeover
from ._config import StreamConfig, check_config
from ._errors import (
    AbnormalClosure,
    ConnectionLost,
    KeepaliveTimeout,
    ProtocolViolation,
    TakeoverError,
)
from ._events import Kinds, StreamClosed, Subscription, WsEvent, shown
from ._frames import MAX_CONTROL_PAYLOAD, MAX_HEADER, Buffer, is_valid_close_code
from ._protocol import HALF_CLOSE, MAX_REASON, Close, Protocol
from ._transport import Receive, adapt, why_broken

_logger = logging.getLogger(__name__)

GRACE_PERIOD = 0.05
"""For how many seconds after a caller's read the stream's own task leaves reading to callers."""

STEPS_A_TURN = 32
"""Control frames, pieces of text, or runs of binary frames, that are digested in one go."""

READ_SIZE: Final = 65536
"""Bytes of payload for each read, so that messages of the default size stay aligned with reads."""

_PATIENCE: Final = 16  # reads, until one of twice the size is tried again
_TWO_FRAMES: Final = 4  # buffers
_LONG_MESSAGE: Final = 4 * READ_SIZE  # bytes: longer ones are not masked, or joined, at once

_READ_ERRORS: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,
    ProtocolViolation,
)
_SCHEDULE_POINTS: Final = 20  # no transport takes as many for two writes, if it need not wait


class _WriteTurn:
    """A lock that costs next to nothing while it is free; first come, first served."""

    __slots__ = ("_queue", "is_taken")

    def __init__(self) -> None:
        self.is_taken = False
        self._queue: trio.lowlevel.ParkingLot | None = None  # made when somebody waits

    async def take(self) -> None:
        if self.is_taken:
            self._queue = self._queue or trio.lowlevel.ParkingLot()
            await self._queue.park()
        self.is_taken = True

    def pass_on(self) -> None:
        if self._queue:
            self._queue.unpark()
        else:
            self.is_taken = False


@final
class WsByteStream(trio.abc.HalfCloseableStream):
    """A WebSocket as a Trio byte stream.

    It takes the connection over: afterwards, ``connection`` itself is spent, its ``send_message``
    and ``ping`` raise ``ConnectionClosed``, and its ``aclose`` drops the stream.

    Args:
      connection (trio_websocket.WebSocketConnection): with a finished opening handshake.
      nursery (trio.Nursery): where the stream's tasks run. Its cancellation drops the
          transport. They never raise into it.
      config (StreamConfig): the settings.

    Raises:
      TakeoverError: if ``connection`` cannot be taken over, or ``nursery`` is closed. Nothing
          has been touched then.

    Attributes:
      connection (WebSocketConnection), config (StreamConfig): as given.
      closed (StreamClosed or None): how the stream ended, once its transport is closed.
      subprotocol (str or None), path (str or None), handshake_headers (tuple): of the
          opening handshake (RFC 6455, 4): on a client the headers of the response; on a
          server those of the request, if `WsListener` has made the stream, else none. Those
          that only the handshake itself needs may be left out.
      state (types.SimpleNamespace or None): what a server's ``accept=`` hook has left there for the
          handler; None where there was no such hook.
      local, remote (trio_websocket.Endpoint or str): the transport's addresses; its `repr`
          where it has none (Unix sockets, AF_VSOCK, memory).

    ``async with stream`` closes it: with 1000 if the block ended well, with 1011 after an
    `Exception`, so that the peer never reads a clean end of half the data; after anything
    else (`trio.Cancelled`, say) the transport is dropped at once.
    """

    __slots__ = (  # a third less memory than a dict takes
        "__dict__",  # for what others may want to attach; made when they do
        "__weakref__",
        "_caller_read_size",
        "_clock",
        "_close_deadline",
        "_close_is_out",
        "_handover",
        "_has_sent_eof",
        "_has_undigested",
        "_heard_at",
        "_held_since",
        "_is_closed_here",
        "_is_closing",
        "_is_dozing",
        "_is_reading",
        "_is_receiving",
        "_is_sending",
        "_is_stalled",
        "_napping",
        "_news",
        "_nursery",
        "_patience",
        "_pinged_at",
        "_pinged_with",
        "_pings_waiting",
        "_protocol",
        "_receive",
        "_scope",
        "_stall_scope",
        "_stalled",
        "_subscriptions",
        "_transport",
        "_visited_at",
        "_wire",
        "_write_turn",
        "closed",
        "config",
        "connection",
        "handshake_headers",
        "local",
        "path",
        "remote",
        "state",
        "subprotocol",
    )

    @trio.lowlevel.enable_ki_protection
    def __init__(
        self,
        connection: WebSocketConnection,
        nursery: trio.Nursery,
        config: StreamConfig = StreamConfig(),
    ) -> None:
        check_config(config)
        _takeover.check(connection)
        self.connection: WebSocketConnection = connection
        self.config: StreamConfig = config
        self.closed: StreamClosed | None = None
        self.subprotocol: str | None = connection.subprotocol
        self.path: str | None = connection.path
        self.handshake_headers: tuple[tuple[bytes, bytes], ...] = connection.handshake_headers
        self.state: SimpleNamespace | None = None
        self.local: Endpoint | str
        self.remote: Endpoint | str
        self.local, self.remote = endpoints(_takeover.transport_of(connection))
        try:
            nursery.start_soon(self._attend)
        except RuntimeError as error:
            raise TakeoverError(f"the nursery cannot be used: {error}") from error

        self._nursery = nursery
        self._clock = trio.lowlevel.current_clock()  # two calls less for the hot path
        self._handover = handover = _takeover.Handover(connection, self._drop)
        self._transport = handover.transport
        self._protocol = Protocol(
            client=handover.client,
            config=config,
            close_sent=handover.close_sent,
            name=connection,
        )
        self._is_closed_here = False  # by aclose, or because its transport was dropped
        self._has_sent_eof = False
        self._is_closing = False
        self._close_deadline = math.inf  # of the closing
        self._news = trio.lowlevel.ParkingLot()

        self._is_receiving = False  # a caller is in receive_some
        self._caller_read_size = self._read_size(0)
        self._patience = 0  # for how many reads it stays as it is
        self._is_reading = False  # somebody has the turn
        self._scope: trio.CancelScope | None = None  # of what _attend waits for
        self._napping: trio.lowlevel.Task | None = None  # it, while it only waits
        self._is_dozing = False
        self._heard_at = self._visited_at = trio.current_time()  # by the peer; by a caller
        self._pings_waiting = 0  # of callers
        self._pinged_at: float | None = None  # by keepalive
        self._pinged_with = b""  # its last ping's payload
        self._held_since: float | None = None  # since when reading is held back by our own side

        self._wire = wire = adapt(handover.transport)
        # In the end, the transport's own.
        self._receive: Receive = wire.receive_some if handover.is_over else self._receive_handover
        self._write_turn = _WriteTurn()
        self._is_sending = False  # a caller is in one of the three sending methods
        self._close_is_out = handover.close_sent is not None and not handover.is_sending

        self._subscriptions: list[Subscription] = []
        self._stalled: list[tuple[Subscription, WsEvent]] = []  # waiting for room
        self._has_undigested = False  # something that came waits, for these or for others' turns
        self._is_stalled = False  # until the last of them has been delivered
        self._stall_scope: trio.CancelScope | None = None  # of the task that waits with them

        if handover.is_sending:
            self._write_turn.is_taken = True
            nursery.start_soon(self._wait_for_trio_websocket)

    def __repr__(self) -> str:
        side = "client" if self._protocol.client else "server"
        return f"<WsByteStream {side} {self.remote!r} {self.closed or 'open'}>"

    # Receiving

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive bytes of the peer's messages, as they come, with no regard to messages.

        Args:
          max_bytes (int or None): how many bytes at the most; None: what is there.

        Returns:
          bytes or bytearray: at least one byte, or ``b""`` at the end: the peer has closed
          with 1000, 1001 or no code, and our answer, if it is due, is with the transport.

        Raises:
          trio.BrokenResourceError: after the last byte, if the peer did not end the stream
              like that. The cause is a `WsStreamError`.
          trio.ClosedResourceError: this side has closed the stream, or does so meanwhile.
          trio.BusyResourceError: another task is receiving.
          ValueError, TypeError: ``max_bytes`` is not a positive integer.

        Cancelled, it loses nothing.
        """
        if max_bytes is not None:
            max_bytes = operator.index(max_bytes)
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        if self._is_receiving and not self._is_closed_here:
            raise trio.BusyResourceError("another task is receiving on this stream")
        protocol = self._protocol
        has_yielded = False
        self._is_receiving = True
        try:
            while True:
                if self._is_closed_here:
                    await trio.lowlevel.checkpoint_if_cancelled()  # by the same nursery, perhaps
                    raise trio.ClosedResourceError("this side has closed the stream")
                if protocol.unread.size:
                    if has_yielded:
                        return protocol.unread.take(max_bytes)
                    await trio.lowlevel.checkpoint()
                elif protocol.ended and self._may_tell_end():
                    if has_yielded:
                        return self._tell_end()
                    await trio.lowlevel.checkpoint()
                elif protocol.ended or self._is_reading:
                    await self._news.park()
                elif self._has_undigested:
                    await self._read(1)
                else:
                    # As _read does it; but one coroutine less is 5 % of a round trip.
                    self._is_reading = True
                    try:
                        data = await self._receive(self._caller_read_size)
                        self._heard_at = self._visited_at = self._clock.current_time()
                        if len(data) >= READ_SIZE:
                            self._adapt_read_size(len(data))
                        message = protocol.receive_message(data)
                        if message is None:
                            self._take_in(data)
                        elif max_bytes is None or len(message) <= max_bytes:
                            return message  # with nothing to digest
                        else:
                            protocol.unread.add([message])
                    except _READ_ERRORS as error:
                        self._take_in_error(error)
                    finally:
                        self._end_read()
                    self._digest()
                has_yielded = True
        finally:
            self._is_receiving = False
            if self._is_dozing:
                self._end_doze()

    def _may_tell_end(self) -> bool:
        """A caller that leaves at the end must not overtake our answer to the peer's Close."""
        protocol = self._protocol
        if isinstance(protocol.verdict, KeepaliveTimeout):
            return self.closed is not None  # at once
        return (
            protocol.close_received is None
            or protocol.is_held
            or self._close_is_out
            or bool(self._wire.failure)
            or protocol.tcp_ended
            or self.closed is not None
        )

    def _tell_end(self) -> bytes:
        verdict = self._protocol.verdict
        if verdict is None:
            return b""
        raise self._broken(f"the stream broke: {verdict}", verdict)

    def _read_size(self, unread: int) -> int:
        header = MAX_HEADER - 4 if self._protocol.client else MAX_HEADER  # a server does not mask
        return min(READ_SIZE + header, max(1, self.config.receive_buffer_size - unread))

    def _adapt_read_size(self, got: int) -> None:
        """Callers read two frames at once as long as that brings more than one."""
        one_frame = READ_SIZE + MAX_HEADER
        if self._protocol.frame_left > 4 * READ_SIZE:
            # No room for headers, as none will come: so reads stay aligned with the peer's writes.
            # If not, they leave remainders of all sizes, which malloc keeps and does not join.
            self._caller_read_size = min(2 * READ_SIZE, self.config.receive_buffer_size)
        elif got > one_frame:
            self._patience = 0
        elif self._caller_read_size > one_frame:
            self._caller_read_size = self._read_size(0)
            self._patience = _PATIENCE
        elif self._patience:
            self._patience -= 1
        else:
            two_frames = 2 * self._read_size(0)
            self._caller_read_size = min(two_frames, self.config.receive_buffer_size)

    async def _read(self, size: int) -> None:
        """With the turn to read: read once, and digest it. Always a checkpoint."""
        self._is_reading = True
        try:
            if self._has_undigested and not self._protocol.ended:
                await self._wait_for_subscribers()
            else:
                self._take_in(await self._receive(size))
                self._heard_at = trio.current_time()
        except _READ_ERRORS as error:
            self._take_in_error(error)
        finally:
            self._end_read()
        self._digest()

    def _take_in(self, data: bytes | bytearray) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    def _take_in_error(self, error: Exception) -> None:
        if isinstance(error, ProtocolViolation):  # trio-websocket met it
            self._protocol.fail(error)
        else:
            self._protocol.receive_eof(why_broken(error))

    def _end_read(self) -> None:
        self._is_reading = False
        if self._news:
            self._news.unpark_all()

    async def _receive_handover(self, size: int) -> bytes | bytearray:
        await self._handover.wait_for_reader()
        if not self._handover.is_over:
            return await self._handover.receive_some(size)
        self._receive = self._wire.receive_some
        return await self._receive(size)

    def _digest(self) -> None:
        """Decode what came, as far as subscribers allow, and do what follows from it."""
        protocol = self._protocol
        protocol.steps_left = STEPS_A_TURN
        while not self._stalled:
            event = protocol.next_event()
            if protocol.ended and not protocol.is_held:
                self._begin_closing()
            if event is None:
                break
            self._publish(event)
        self._has_undigested = self._is_stalled or not protocol.steps_left
        if protocol.owes:
            self._flush_soon()

    # The stream's own task

    @trio.lowlevel.enable_ki_protection
    async def _attend(self) -> None:
        """Read while no caller does, keep alive, and close the transport in the end."""
        try:
            while not self._is_over():
                now = trio.current_time()
                self._heard_at = max(self._heard_at, self._wire.accepted_at)
                self._settle_hold(now)
                if now >= self._keepalive_due_at():
                    await self._keep_alive(now)
                    continue
                wake_at = min(self._close_deadline, self._keepalive_looks_at(now))
                reads_at = self._reads_at()
                if now >= reads_at:
                    _logger.debug("%s: no caller reads, so the stream's task does", self.connection)
                    with trio.CancelScope(deadline=wake_at) as self._scope:
                        await self._read(self._read_size(self._protocol.unread.size))
                    if self._is_receiving:
                        self._visited_at = trio.current_time()
                else:
                    self._is_dozing = reads_at == math.inf
                    with trio.CancelScope(deadline=min(wake_at, reads_at)) as self._scope:
                        self._napping = trio.lowlevel.current_task()
                        await trio.lowlevel.wait_task_rescheduled(self._end_nap)
                self._scope = None
                self._is_dozing = False
            await self._close_transport()
        except trio.Cancelled:
            self._is_closed_here = True
            raise
        finally:
            if self.closed is None:
                await self._close_forcefully()

    def _reads_at(self) -> float:
        """From when on it is the task's turn to read."""
        protocol = self._protocol
        if self._is_reading:
            return math.inf
        if protocol.ended or self._is_closed_here:
            return -math.inf
        if self._is_receiving or self._is_full():
            return math.inf
        if self._pings_waiting:
            return -math.inf
        return self._visited_at + GRACE_PERIOD

    def _is_full(self) -> bool:
        return self._protocol.unread.size >= self.config.receive_buffer_size

    def _end_doze(self) -> None:
        """A caller leaves: the task may have to take over."""
        self._visited_at = trio.current_time()
        if self._held_since is not None:
            self._wake()
        else:
            reads_at = self._reads_at()
            self._is_dozing = reads_at == math.inf
            assert self._scope is not None
            self._scope.deadline = min(self._scope.deadline, reads_at)

    @trio.lowlevel.enable_ki_protection
    def _wake(self) -> None:
        """Have the task look again at what is due."""
        if self._napping is not None:  # as its scope would, but that takes longer
            trio.lowlevel.reschedule(self._napping)
            self._napping = None
        elif self._scope is not None:
            self._scope.cancel()
        self._scope = None
        self._is_dozing = False

    def _end_nap(self, _: object) -> trio.lowlevel.Abort:
        self._napping = None
        return trio.lowlevel.Abort.SUCCEEDED

    # Keepalive

    def _keepalive_due_at(self) -> float:
        """When to send a ping, or to give the peer up."""
        interval, timeout = self.config.ping_interval, self.config.ping_timeout
        protocol = self._protocol
        if (
            interval is None
            or protocol.ended
            or not protocol.can_send
            or self._held_since is not None
        ):
            return math.inf
        if self._pinged_at is not None and self._heard_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is None:
            return self._heard_at + interval
        return self._pinged_at + (interval if timeout is None else timeout)

    def _keepalive_looks_at(self, now: float) -> float:
        """When to look next: an interval from now at the latest, as a caller who takes the Pong in
        does not wake this task, and the next ping may be due before the timeout would have been.
        """
        due_at, interval = self._keepalive_due_at(), self.config.ping_interval
        return due_at if interval is None or due_at == math.inf else min(due_at, now + interval)

    async def _keep_alive(self, now: float) -> None:
        """Do it."""
        if self._pinged_at is None or self.config.ping_timeout is None:
            _logger.debug("%s: a keepalive ping", self.connection)
            self._pinged_at = now
            if self._pinged_with:  # a peer that never answers costs no memory
                self._protocol.pings.pop(self._pinged_with, None)
            self._pinged_with = self._fresh_ping_payload()
            self._protocol.ping(self._pinged_with)
            self._flush_soon()
            return
        self._protocol.time_out()
        self._digest()
        await self._let_close_go_out()
        self._close_deadline = now

    def _settle_hold(self, now: float) -> None:
        """Keepalive's clock stands still while our own side holds reading back."""
        is_held = self._is_stalled or (self._is_full() and not self._is_reading)
        if is_held and self._held_since is None:
            self._held_since = now
        elif not is_held and self._held_since is not None:
            self._heard_at = min(now, self._heard_at + now - self._held_since)
            if self._pinged_at is not None:
                self._pinged_at += now - self._held_since
            self._held_since = None

    # Sending

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` as binary messages of at most ``config.max_message_size`` bytes.

        Nothing is sent for ``b""``.

        Raises:
          trio.ClosedResourceError: this side has closed the stream, or its sending side with
              `send_eof`, or does so meanwhile.
          trio.BrokenResourceError: the peer has closed, or the connection is broken. The cause
              is a `WsStreamError`; after a Close of the peer an `AbnormalClosure` with its code.
          trio.BusyResourceError: another task is in `send_all`, `send_eof` or
              `wait_send_all_might_not_block`.

        Cancelled before anything was sent, it did nothing. Cancelled later, part of the data
        is sent. Over a `trio.SocketStream` the stream remains usable all the same, as it does
        between two messages; inside a message, over any other transport, it is broken.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        # One long function: each call and context manager less is 1 % of what 64 KiB take.
        # Two messages are encoded for each write; it says how many buffers of them it has written.
        protocol, wire, turn = self._protocol, self._wire, self._write_turn
        limit = self.config.max_message_size
        is_bytes = type(data) is bytes
        view = data if is_bytes and len(data) <= limit else memoryview(data).cast("B")
        size = len(view)
        self._is_sending = True
        try:
            if not size:
                await trio.lowlevel.checkpoint()
            start = 0
            frames: tuple[Buffer, ...] = ()  # encoded, and not written yet
            while (frames or start < size) and protocol.can_send and not wire.failure:
                if turn.is_taken:
                    _logger.debug("%s: a sender waits for its turn to write", self.connection)
                    await turn.take()
                else:
                    turn.is_taken = True
                try:
                    while protocol.can_send and not wire.failure:
                        if size > _LONG_MESSAGE and min(size - start, limit) > _LONG_MESSAGE:
                            # No frame waits before it: only the last message may be shorter.
                            with memoryview(view)[start : start + limit] as message:
                                await wire.write_long(*protocol.encode_long_message(message))
                            start += limit
                        else:
                            while start < size and len(frames) < _TWO_FRAMES:
                                frames += protocol.encode_message(
                                    view if size <= limit else view[start : start + limit]
                                )
                                start += limit
                            written = await wire.write(frames)
                            frames = frames[written:]
                        if protocol.owes or not (frames or start < size):
                            break
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # the wire has noted why, or the next write will
                finally:
                    self._release_write_turn()  # to a _flush, if something is owed
            if not protocol.can_send or wire.failure:
                await trio.lowlevel.checkpoint_if_cancelled()
                raise self._send_error()
        finally:
            self._is_sending = False
            if not is_bytes:  # an exception's traceback would keep the caller's buffer exported
                for buffer in (view, *frames):
                    if isinstance(buffer, memoryview):
                        buffer.release()

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport would probably take some bytes without delay.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as `send_all`.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        protocol, wire = self._protocol, self._wire
        self._is_sending = True
        try:
            if protocol.can_send and not wire.failure:
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._write_turn.take()
                try:
                    await self._transport.wait_send_all_might_not_block()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    wire.note_failure(error)
                finally:
                    self._release_write_turn()
            if not protocol.can_send or wire.failure:
                await trio.lowlevel.checkpoint_if_cancelled()
                raise self._send_error()
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """Half-close: send Close 1000 with the reason ``half-close``, and go on receiving.

        A peer that knows the convention (another `WsByteStream`) may still send what it has;
        any other answers at once (RFC 6455, 5.5.1), and this closes the stream plainly. Does
        nothing if a Close has been sent before.

        Raises:
          trio.ClosedResourceError: this side has closed the stream.
          trio.BrokenResourceError: the connection is broken.
          trio.BusyResourceError: as `send_all`.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        protocol = self._protocol
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint()
            if self._is_closed_here:
                raise trio.ClosedResourceError("this side has closed the stream")
            if not (self._close_is_out or self._cannot_send_close()):
                self._has_sent_eof = True
                protocol.close(HALF_CLOSE)
                self._flush_soon()
                while not (self._close_is_out or self._cannot_send_close()):
                    await self._news.park()
            is_given_up = isinstance(protocol.error, KeepaliveTimeout)
            if not self._close_is_out or protocol.has_failed or is_given_up:
                await trio.lowlevel.checkpoint_if_cancelled()
                self._has_sent_eof = False
                raise self._send_error()
            self._has_sent_eof = True
        finally:
            self._is_sending = False

    def _cannot_send_close(self) -> bool:
        return bool(self._wire.failure) or self.closed is not None or self._protocol.tcp_ended

    def _send_error(self) -> trio.ClosedResourceError | trio.BrokenResourceError:
        """Why nothing can be sent."""
        protocol = self._protocol
        if self._is_closed_here or self._has_sent_eof:
            return trio.ClosedResourceError("this side has closed the stream")
        has_broken = bool(protocol.error or self._wire.failure)
        if protocol.close_received is not None and not (protocol.is_held and has_broken):
            cause: Exception = AbnormalClosure(*protocol.close_received)
        else:
            cause = protocol.error or ConnectionLost(self._wire.failure or "the transport ended")
        return self._broken(f"nothing can be sent: {cause}", cause)

    def _broken(self, text: str, cause: Exception) -> trio.BrokenResourceError:
        """For callers. `is_end_of` knows it again by the stream's `id`, which holds no stream."""
        error = trio.BrokenResourceError(text)
        error.__cause__ = cause
        error.__dict__["_broken_stream"] = id(self)
        return error

    def _release_write_turn(self) -> None:
        self._write_turn.pass_on()
        if self._wire.failure:
            self._after_flush()  # what is owed never goes out
        elif self._protocol.owes:
            self._flush_soon()

    def _flush_soon(self) -> None:
        """Have what is owed sent: now, or when who has the turn to write passes it on."""
        if self._write_turn.is_taken or self.closed:
            return
        protocol, wire = self._protocol, self._wire
        rest = b"" if wire.failure else wire.write_now(protocol.data_to_send())
        if wire.failure:
            self._after_flush()
        elif rest or protocol.has_failed:
            _logger.debug("%s: a task has the turn to write what is owed", self.connection)
            self._write_turn.is_taken = True
            self._nursery.start_soon(self._flush, rest)
        else:
            self._close_is_out = protocol.close_sent is not None
            self._after_flush()

    @trio.lowlevel.enable_ki_protection
    async def _flush(self, data: bytes) -> None:
        """With the turn to write: send what is left of that, and end TCP after a failure."""
        protocol = self._protocol
        try:
            if data:
                await self._wire.write((data,))
            self._close_is_out = protocol.close_sent is not None
            if (
                protocol.has_failed
                and not protocol.owes  # or it would end before the Close that is owed by now
                and not protocol.client
                and isinstance(self._transport, trio.abc.HalfCloseableStream)
            ):
                await self._transport.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the wire has noted why
        finally:
            self._release_write_turn()
            self._after_flush()

    def _after_flush(self) -> None:
        if self._close_is_out and self._protocol.close_received is not None:
            self._begin_closing()
        if self._close_is_out or self._wire.failure:
            self._news.unpark_all()
            self._wake()

    @trio.lowlevel.enable_ki_protection
    async def _wait_for_trio_websocket(self) -> None:
        """Its tasks were in the transport with frames when it was taken over."""
        try:
            await self._handover.wait_sent()
        finally:
            self._close_is_out = self._protocol.close_sent is not None
            self._release_write_turn()
            self._after_flush()

    # Closing

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the stream (RFC 6455, 7.1.2): send Close, unless one was sent; wait for the
        peer's and for the end of TCP. What still comes in is dropped.

        Takes at most ``config.close_timeout`` seconds. May be called again, and from several
        tasks; all return when the stream is closed.

        Args:
          code (int): 1000 to 1003, 1007 to 1014, 3000 to 4999.
          reason (str): at most 123 bytes of UTF-8; not ``half-close``.

        Raises:
          ValueError, TypeError: ``code`` or ``reason`` is none of these. Nothing is sent then.

        Cancelled, it drops the transport at once.
        """
        close = _checked_close(code, reason)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self._is_closed_here:
                self._is_closed_here = True
                self._protocol.stop_receiving()
                self._protocol.close(close)
                self._begin_closing()
                self._news.unpark_all()
                self._wake()
                self._flush_soon()
            if self.closed is not None:
                await trio.lowlevel.checkpoint()
            while self.closed is None:
                await self._news.park()
        except BaseException:
            await self._drop()
            self._is_closed_here = True
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_value is None:
            await self.aclose()
            return
        try:
            if isinstance(exc_value, Exception):
                await self.aclose(1011)
            else:
                await self._drop()
        except trio.Cancelled:
            pass  # what comes out of the block is the exception that tells more

    def _begin_closing(self) -> None:
        """Start the clock, and let nobody hold up the end."""
        if self._is_closed_here or self._protocol.close_received is None:
            for subscription in self._subscriptions:
                subscription.backpressure = False
            if self._stall_scope is not None:
                self._stall_scope.cancel()
        if not self._is_closing:
            self._is_closing = True
            _logger.debug("%s: closing begins", self.connection)
            self._close_deadline = trio.current_time() + self.config.close_timeout
            self._news.unpark_all()
            self._wake()

    def _is_over(self) -> bool:
        """Whether nothing is left to do but to close the transport."""
        protocol = self._protocol
        if self.closed is not None or protocol.tcp_ended:
            return True
        if not self._is_closing:
            return False
        if trio.current_time() >= self._close_deadline:
            return True
        if self._wire.is_cut_off and not self._close_is_out:
            return True  # no Close can go out any more
        both_closes = protocol.close_received is not None and self._close_is_out
        return both_closes and not protocol.client and not protocol.has_failed

    async def _let_close_go_out(self) -> None:
        """Our Close is due or under way: let it go out, if it need not wait for that."""
        for _ in range(_SCHEDULE_POINTS):
            if not self._close_is_out and not self._wire.failure:
                await trio.lowlevel.checkpoint()

    async def _close_transport(self) -> None:
        if self._protocol.close_sent is not None or self._protocol.owes:
            await self._let_close_go_out()
        self._protocol.abandon()
        deadline = min(self._close_deadline, trio.current_time() + self.config.close_timeout)
        try:
            await self._wire.aclose(deadline)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # there is nothing left that it could lose
        self._conclude()

    async def _drop(self) -> None:
        """Close the transport with no word to the peer."""
        if self.closed is None:
            self._is_closed_here = True
            await self._close_forcefully()

    async def _close_forcefully(self) -> None:
        self._protocol.abandon()
        try:
            await trio.aclose_forcefully(self._transport)
        finally:  # it is closed, even if that was cancelled
            self._conclude()

    @trio.lowlevel.enable_ki_protection
    def _conclude(self) -> None:
        """The transport is closed: tell everybody."""
        if self.closed is None:
            for subscription, event in self._stalled:
                subscription.backpressure = False
                subscription.offer(event)
            self.closed = self._protocol.closed(close_is_out=self._close_is_out)
            _logger.debug("%s: %r", self.connection, self.closed)
            for subscription in self._subscriptions:
                subscription.end(self.closed)
            self._subscriptions.clear()
            self._handover.retire(self.closed.code, self.closed.reason)
            self._news.unpark_all()
            self._wake()

    # Out of band

    def subscribe(
        self,
        max_buffer_size: int | float = 64,
        *,
        kinds: Kinds = WsEvent,
        backpressure: bool = False,
    ) -> trio.MemoryReceiveChannel[WsEvent]:
        """Subscribe to what happens on the connection from now on.

        Args:
          max_buffer_size (int or math.inf): how many events the channel holds.
          kinds (a `WsEvent` class, or several): what the subscriber wants to see. `EventsLost`
              and `StreamClosed` come in any case.
          backpressure (bool): a full channel stops the reading of the connection until the
              subscriber has room, until `aclose` or a failure. Without it, a full channel
              loses new events, and `EventsLost` tells how many.

        Returns:
          trio.MemoryReceiveChannel: its last event is `StreamClosed`, however late it was
          subscribed; then it ends. Closing it ends the subscription.

        Raises:
          ValueError, TypeError: an argument is none of these.
        """
        subscription = Subscription(max_buffer_size, kinds, backpressure)
        if self.closed is not None:
            subscription.end(self.closed)
        else:
            count = len(self._subscriptions)
            if count & (count - 1) == 0:  # rarely, so that many do not cost more each
                self._subscriptions = [s for s in self._subscriptions if not s.is_over]
            self._subscriptions.append(subscription)
            if self._is_closing:
                subscription.backpressure = False
        return subscription.receive_channel

    def _publish(self, event: WsEvent) -> None:
        for subscription in self._subscriptions:
            if not subscription.offer(event):
                if self._protocol.ended:  # an end waits for nobody
                    subscription.force(event)
                else:
                    self._stalled.append((subscription, event))
                    self._is_stalled = True
                    self._wake()

    async def _wait_for_subscribers(self) -> None:
        """Deliver the events that found no room. Cancelled, it loses none."""
        await trio.lowlevel.checkpoint()
        with trio.CancelScope() as self._stall_scope:
            while self._stalled:
                subscription, event = self._stalled.pop(0)
                if not subscription.offer(event):
                    try:
                        await subscription.wait_and_deliver(event)
                    except trio.Cancelled:
                        self._stalled.insert(0, (subscription, event))
                        raise
            self._is_stalled = False
        self._wake()

    async def ping(self, payload: bytes | None = None) -> float:
        """Send a Ping (RFC 6455, 5.5.2) and wait for its Pong. Any number of tasks may.

        Args:
          payload (bytes or None): at most 125 bytes; None: random ones.

        Returns:
          float: the seconds until the Pong, which may be that of a later ping (5.5.3).

        Raises:
          ValueError: ``payload`` is too long, or in flight already.
          trio.ClosedResourceError, trio.BrokenResourceError: as `send_all`, as soon as a
              Close has passed either way.

        Cancelled, it breaks nothing. The Ping may still be sent, and its payload stays in flight
        until its Pong comes, or that of a later one.
        """
        if payload is None:
            payload = self._fresh_ping_payload()
        payload = bytes(memoryview(payload))
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(
                f"payload must be at most 125 bytes, not {len(payload)}: {shown(payload)}"
            )
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_can_ping()
        ping = self._protocol.ping(payload)
        started_at = trio.current_time()
        self._flush_soon()
        self._pings_waiting += 1
        self._wake()
        try:
            while not ping.is_answered:
                await trio.lowlevel.checkpoint_if_cancelled()
                self._check_can_ping()  # its sending may have failed at once
                await self._news.park()
            return trio.current_time() - started_at
        finally:
            self._pings_waiting -= 1

    def _check_can_ping(self) -> None:
        protocol = self._protocol
        if protocol.ended or not protocol.can_send or self._wire.failure:
            raise self._send_error()

    def _fresh_ping_payload(self) -> bytes:
        while (payload := os.urandom(4)) in self._protocol.pings:
            pass
        return payload


def _checked_close(code: int, reason: str) -> Close:
    if not is_valid_close_code(operator.index(code)):
        raise ValueError(f"code must be 1000-1003, 1007-1014 or 3000-4999, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {reason!r}")
    if len(reason.encode()) > MAX_REASON:
        raise ValueError(f"reason must be at most {MAX_REASON} bytes of UTF-8, not {shown(reason)}")
    if reason == HALF_CLOSE.reason:
        raise ValueError(f"reason must not be {reason!r}: that is what send_eof says")
    return Close(code, reason)


def is_end_of(stream: WsByteStream, error: BaseException | None) -> bool:
    """Whether ``stream`` has raised ``error`` because it broke, or it has that as its cause.

    So has what a `trio.SSLStream` raises that goes over ``stream``. Of an exception group all
    must be of that kind.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_end_of(stream, each) for each in error.exceptions)
    while isinstance(error, trio.BrokenResourceError):
        if error.__dict__.get("_broken_stream") == id(stream):
            return True
        error = error.__cause__
    return False


def endpoints(transport: trio.abc.Stream) -> tuple[Endpoint | str, Endpoint | str]:
    """The local and the remote address of ``transport``, or its `repr` twice if it has none.

    Only TCP has addresses that an `Endpoint` can tell: those of Unix sockets are paths, or bytes
    that the kernel makes up, and those of AF_VSOCK are numbers of machines.
    """
    beneath = transport
    while isinstance(beneath, trio.SSLStream):
        beneath = beneath.transport_stream
    if isinstance(beneath, trio.SocketStream):
        sock, is_ssl = beneath.socket, beneath is not transport
        try:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                (host, port, *_), (peer, peer_port, *_) = sock.getsockname(), sock.getpeername()
                return Endpoint(host, port, is_ssl), Endpoint(peer, peer_port, is_ssl)
        except OSError:  # it is not connected any more
            pass
    return repr(transport), repr(transport)
