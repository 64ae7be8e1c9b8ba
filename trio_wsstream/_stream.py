"""`WsByteStream`: Trio's stream contract, the reading turn, and the stream's own task.

Theory of operation
-------------------

*Reading is a turn that one task at a time has* (`_is_reading`). A caller that finds nothing unread
and nobody reading reads the transport itself, with no task switch between it and the socket. The
stream's own task (`_run`) reads only when no caller has read for `GRACE_PERIOD`, so that pings and
Closes are answered while nobody receives. It reads at once while a `ping` waits, while keepalive
takes its last look, and while the stream closes. It reads ahead `receive_buffer_size` bytes at the
most. A caller that comes while the task reads waits for what it reads. Then the task stands back.
But if it had to take over again and no caller had read since, standing back was in vain. Then it
reads on (`_reads_on`), which saves a wake-up of it for each message, until a caller comes back
within the grace period.

*The task sleeps* under an `Alarm` until there is something for it to do. The alarm's timer sees to
keepalive (`_see_to_keepalive`), and looks at the end of a grace period whether a caller has read
since (`_see_to_reading`). A caller's reads move none of these times, because that would cost too
much. But if no end of a grace period is in view, a caller that stops reading sets one
(`_stop_receiving`). While the task waits it holds no stream, so a stream that everybody else has
forgotten is garbage; then the alarm warns, and the task closes the transport.

*What came is processed at once, without awaiting* (`_process_input`): it is decoded, events are
published, answers become owed. Two things interrupt that: an event that waits for room in a channel
with backpressure, and `STEPS_A_TURN`, so that a flood of tiny frames leaves other tasks their turn.

*Writing is a turn, too* (`Writer`). Reading never waits for writing.

*On a slow line* a message goes out in fragments (`_write_fragment`), so that Pongs fit between
them. If its sender is cancelled, or a Close stops it, the rest of the message becomes owed to the
peer, and goes out as one last fragment. So the peer gets the same messages as on a fast line.

*Everybody who waits for a change* parks in `_changed`, is woken by every change, and looks again.
What they look at are facts of `Protocol`, `Writer` and `Closing`, never messages. Pings have
wake-ups of their own, so that many of them do not wake each other.

*Ends.* `_begin_closing` starts the clock of ``close_timeout``. `Closing.is_over` says when nothing
is left to wait for; then `_run` closes the transport, and `_conclude` tells everybody. Who must not
wait calls `_drop` instead. No task of the stream raises because of what the peer, the network or a
caller did. A KeyboardInterrupt is raised at checkpoints only, never where it would leave half a
change behind (`enable_ki_protection`).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Awaitable, Callable
from types import SimpleNamespace, TracebackType
from typing import Any, Final, final

import trio
from trio_websocket import Endpoint, WebSocketConnection

from . import _takeover
from ._alarm import READ_ERRORS, Alarm
from ._checks import check_buffer, check_integer, check_nursery, check_trio
from ._closing import Closing
from ._config import HalfClose, StreamConfig, check_config
from ._errors import AbnormalClosure, KeepaliveTimeout, ProtocolViolation, TakeoverError
from ._events import CloseReceived, StreamClosed, WsEvent, shown
from ._frames import MAX_CONTROL_PAYLOAD, Buffer, is_valid_close_code
from ._keepalive import Action, Keepalive
from ._pace import LARGEST
from ._protocol import HALF_CLOSE, MAX_REASON, Close, Protocol
from ._read_size import PAYLOAD_SIZE, ReadSize
from ._subscriptions import Kinds, Subscriptions
from ._tls import adapt
from ._transport import Endpoints, Receive, SocketWire, StreamWire, why_broken
from ._writing import Writer

_logger = logging.getLogger(__name__)

Read = bytes | bytearray | Exception | None
"""What a read of the stream's task has brought; None: it was interrupted."""
AndThen = Callable[["WsByteStream", Any], None]

GRACE_PERIOD = 0.05
"""For how many seconds after a caller's read the stream's own task leaves reading to callers."""

STEPS_A_TURN = 32
"""How many control frames, pieces of text, or runs of binary frames are processed in one go."""

_AHEAD: Final = {True: 4, False: 16}
"""How many buffers of encoded frames a client, and a server, offers at once. What a server sends is
not copied. To mask more would make a client's writes no faster, and would take more memory.
"""

_LONG_MESSAGE: Final = 4 * PAYLOAD_SIZE  # bytes: longer ones are not masked, or joined, at once
_FRAME_TIMEOUT: Final = 1.0  # seconds for a frame to be finished after a Close that is no end
_REASON_TIMEOUT: Final = 1.0  # seconds for the peer's Close to be read after a failed write
_SCHEDULE_POINTS: Final = 20  # no transport takes as many for two writes, if it need not wait


@final
class WsByteStream(trio.abc.HalfCloseableStream):
    """A WebSocket as a Trio byte stream.

    The stream takes the connection over. Afterwards ``connection`` itself is spent: its
    ``send_message`` and ``ping`` raise ``ConnectionClosed``, and its ``aclose`` drops the stream.

    Args:
      connection (trio_websocket.WebSocketConnection): with a finished opening handshake.
      nursery (trio.Nursery): where the stream's tasks run. Its cancellation drops the
          transport. They never raise into it.
      config (StreamConfig): the settings.

    Raises:
      TakeoverError: if ``connection`` cannot be taken over, or ``nursery`` is closed. Nothing
          has been touched then.

    Attributes:
      connection (trio_websocket.WebSocketConnection): as given.
      config (StreamConfig): as given.
      closed (StreamClosed or None): how the stream ended, once its transport is closed.
      subprotocol (str or None): the subprotocol that both sides agreed on.
      path (str or None): the path of the opening handshake's request, with its query.
      handshake_headers (tuple): headers of the opening handshake (RFC 6455, 4). On a client they
          are those of the response. On a server they are those of the request if `WsListener`
          has made the stream, else there are none. Headers that only the handshake itself needs
          may be left out.
      state (types.SimpleNamespace or None): what a server's ``accept=`` hook has left there for the
          handler; None where there was no such hook.
      local (trio_websocket.Endpoint or str): the address of this end of the transport, or the
          transport's `repr` if it has no address (Unix sockets, AF_VSOCK, memory).
      remote (trio_websocket.Endpoint or str): the address of the other end, in the same form.

    ``async with stream`` closes it: with 1000 if the block ended well, with 1011 after an
    `Exception`, so that the peer never reads a clean end of half the data; after anything
    else (`trio.Cancelled`, say) the transport is dropped at once.

    A stream that is not closed keeps its nursery open until the peer ends the connection. If such a
    stream becomes garbage, a `ResourceWarning` names it, and its transport is dropped.
    """

    __slots__ = (  # a third less memory than a dict takes
        "__dict__",  # for what others may want to attach; made when they do
        "__weakref__",
        "_alarm",
        "_changed",
        "_clock",
        "_closing",
        "_endpoints",
        "_handed_over_at",
        "_has_unprocessed",
        "_idle_wait",
        "_is_reading",
        "_is_receiving",
        "_is_sending",
        "_keepalive",
        "_keepalive_payload",
        "_nursery",
        "_pings_waiting",
        "_protocol",
        "_read_size",
        "_reads_on",
        "_receive",
        "_subscriptions",
        "_takeover",
        "_transport",
        "_visited_at",
        "_wire",
        "_writer",
        "config",
        "connection",
        "handshake_headers",
        "path",
        "state",
        "subprotocol",
    )

    _open_streams = 0  # in this process

    @trio.lowlevel.enable_ki_protection
    def __init__(
        self,
        connection: WebSocketConnection,
        nursery: trio.Nursery,
        config: StreamConfig = StreamConfig(),
    ) -> None:
        check_trio()
        check_config(config)
        _takeover.check(connection)
        check_nursery("nursery", nursery)
        self.connection: WebSocketConnection = connection
        self.config: StreamConfig = config
        self.subprotocol: str | None = connection.subprotocol
        self.path: str | None = connection.path
        self.handshake_headers: tuple[tuple[bytes, bytes], ...] = connection.handshake_headers
        self.state: SimpleNamespace | None = None
        self._endpoints = Endpoints(_takeover.transport_of(connection), client=connection.is_client)
        try:
            nursery.start_soon(self._run)
        except RuntimeError as error:
            raise TakeoverError(f"the nursery cannot be used: {error}") from error

        now = trio.current_time()
        self._nursery = nursery
        self._clock = trio.lowlevel.current_clock()  # two calls less for the hot path
        self._takeover = takeover = _takeover.Takeover(connection, self._drop)
        self._transport = takeover.transport
        self._protocol = protocol = Protocol(
            client=takeover.client,
            config=config,
            close_sent=takeover.close_sent,
            name=connection,
        )
        self._wire = wire = adapt(takeover.transport, is_shared=takeover.stays_in_use)
        # In the end, the transport's own.
        self._receive: Receive = wire.receive_some if takeover.is_over else self._receive_taken_over
        self._writer = writer = Writer(protocol, wire, nursery, self._after_write, connection)
        self._closing = Closing(protocol, writer)
        self._keepalive = Keepalive(
            config.ping_interval, config.ping_timeout, now, WsByteStream._open_streams
        )
        WsByteStream._open_streams += 1
        self._keepalive_payload = b""  # of its last ping
        self._subscriptions = Subscriptions()
        # What _run waits under:
        self._alarm = Alarm(
            self, self._endpoints, WsByteStream._see_to_keepalive, WsByteStream._see_to_reading
        )
        self._changed: trio.lowlevel.ParkingLot | None = None  # made when somebody waits
        self._read_size = ReadSize(
            client=takeover.client,
            limit=config.receive_buffer_size,
            of_records=type(wire) is StreamWire and isinstance(takeover.transport, trio.SSLStream),
        )
        self._is_reading = False  # somebody has the turn
        self._is_receiving = False  # a caller is in receive_some
        self._idle_wait: trio.CancelScope | None = None  # of wait_send_all_might_not_block
        self._is_sending = False  # a caller is in one of the three sending methods
        self._visited_at = now  # by a caller that reads
        self._handed_over_at = -math.inf  # when the task's read last ended while a caller waited
        self._reads_on = False  # the task does not stand back for callers
        self._has_unprocessed = (
            False  # something that came waits for subscribers or a schedule point
        )
        self._pings_waiting = 0  # of callers

        if takeover.is_in_use:
            writer.start_behind(takeover.wait_unused)
        else:
            writer.close_written = takeover.close_sent is not None

    def __repr__(self) -> str:
        return f"<{self._endpoints}: {self.closed or self._closing.state}>"

    @property
    def local(self) -> Endpoint | str:
        """The transport's address on this side."""
        return self._endpoints.local

    @property
    def remote(self) -> Endpoint | str:
        """The transport's address on the peer's side."""
        return self._endpoints.remote

    @property
    def closed(self) -> StreamClosed | None:
        """How the stream ended, once its transport is closed; before that None."""
        return self._closing.closed

    @property
    def half_close_honoured(self) -> bool | None:
        """Whether the peer honours the half-close of this side, so that what it still sends
        arrives.

        True: the peer, a `WsByteStream`, has said so. False: the peer's Close came, and the peer
        had not said so; then something that it had still to send may be missing. None: it is not
        known yet, or this side has not half-closed.
        """
        protocol = self._protocol
        if protocol.close_sent != HALF_CLOSE:
            return None
        if protocol.peer_defers_answer:
            return True
        return None if protocol.close_received is None else False

    @property
    def close_received(self) -> CloseReceived | None:
        """Code and reason of the peer's Close (RFC 6455, 5.5.1), as soon as it has come.

        The code is 1005 if the Close has none (7.1.5). None: no Close has come yet, or the
        connection ended without one. A Close that comes behind more data than
        ``config.receive_buffer_size`` is seen when that data has been received.
        """
        close = self._protocol.close_received
        return None if close is None else CloseReceived(*close)

    # Receiving

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive bytes of the peer's messages, as they come. Message boundaries have no meaning.

        Args:
          max_bytes (int or None): how many bytes to return at the most; None: what there is.

        Returns:
          bytes or bytearray: at least one byte, or ``b""`` at the end of the stream. The stream
          has ended when the peer has closed with a code in ``config.end_codes`` and our answer, if
          one is due, is with the transport.

        Raises:
          trio.BrokenResourceError: the stream broke. This is raised after the last byte that
              arrived; its cause is a `WsStreamError`.
          trio.ClosedResourceError: this side has closed the stream, or does so meanwhile.
          trio.BusyResourceError: another task is receiving.
          ValueError, TypeError: ``max_bytes`` is not a positive integer.

        A cancelled call loses nothing.
        """
        if max_bytes is not None:
            max_bytes = check_integer("max_bytes", max_bytes)
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        protocol, closing = self._protocol, self._closing
        if self._is_receiving and not closing.is_closed_here:
            raise trio.BusyResourceError("another task is receiving on this stream")
        has_yielded = False
        self._is_receiving = True
        try:
            while True:
                if closing.is_closed_here:
                    await trio.lowlevel.checkpoint_if_cancelled()  # by the same nursery, perhaps
                    raise trio.ClosedResourceError("this side has closed the stream")
                if protocol.unread.size:
                    if has_yielded:
                        return protocol.unread.take(max_bytes)
                    await trio.lowlevel.checkpoint()
                elif protocol.ended and closing.may_tell_end():
                    if has_yielded:
                        return self._tell_end()
                    await trio.lowlevel.checkpoint()
                elif protocol.ended or self._is_reading:
                    if trio.current_time() < self._handed_over_at + GRACE_PERIOD:
                        self._reads_on = False
                    await self._wait_for_change()
                elif self._has_unprocessed:
                    if self._subscriptions.is_waiting:
                        await self._wait_for_change()
                    else:
                        await self._process_more()
                else:
                    # No coroutine of its own: one less is 5 % of a round trip.
                    self._is_reading = True
                    try:
                        data = await self._receive(self._read_size.of_caller)
                        now = self._clock.current_time()
                        self._keepalive.last_heard_at = self._visited_at = now
                        if len(data) >= PAYLOAD_SIZE:
                            self._read_size.adapt(len(data), protocol.frame_left)
                        message = protocol.receive_at_once(data)
                        if message is None:
                            self._take_in(data)
                        elif max_bytes is None or len(message) <= max_bytes:
                            return message  # with nothing to process
                        else:
                            protocol.unread.add([message])
                    except READ_ERRORS as error:
                        self._take_in_error(error)
                    finally:
                        self._is_reading = False
                        if self._changed:
                            self._changed.unpark_all()
                    self._process_input()
                    self._read_size.align(protocol.frame_left)
                has_yielded = True
        finally:
            self._is_receiving = False
            if self._alarm.has_open_end:
                self._stop_receiving()

    def is_readable(self) -> bool:
        """Whether there is something to receive: bytes, an end or an error. This does not wait.

        A pool of connections asks this of one that is idle. If there is something to receive,
        although the peer was asked nothing, the connection has ended or is of no more use.

        Returns:
          bool: False: nothing has come that the stream knows of. True: something has, as far as can
          be told without decoding it. For at most 60 ms after a Ping or a Pong has come it may be
          only that.
        """
        if self._protocol.unread.size or self._protocol.ended or self._closing.is_closed_here:
            return True
        return self._has_unprocessed or self._takeover.is_readable or self._wire.is_readable()

    def _tell_end(self) -> bytes:
        verdict = self._protocol.verdict
        if verdict is None:
            return b""
        raise self._marked(trio.BrokenResourceError(f"the stream broke: {verdict}")) from verdict

    def _marked(self, error: Exception) -> Exception:
        """An error for callers, which `is_end_of` knows again. An id does not keep the stream."""
        if isinstance(error, trio.BrokenResourceError):
            error.__dict__["_broken_stream"] = id(self)
        return error

    def _stop_receiving(self) -> None:
        """A caller stops reading: the task may have to take over."""
        self._visited_at = trio.current_time()
        if self._keepalive.is_held:
            self._alarm.ring()
        else:
            self._see_to_reading()

    def _see_to_reading(self) -> None:
        """Wake the task if it is its turn to read, or see to that later."""
        reads_at = self._reads_at()
        if trio.current_time() >= reads_at:
            self._alarm.ring()
        else:
            self._alarm.look_by(reads_at)

    def _stop_reading(self, data: Read) -> None:
        """Process what the task has read; None: it was interrupted."""
        self._is_reading = False
        now = trio.current_time()
        if self._is_receiving:
            self._visited_at = self._handed_over_at = now
        self._tell_change()
        if data is None:
            return
        if isinstance(data, Exception):
            self._take_in_error(data)
        else:
            self._take_in(data)
            self._keepalive.last_heard_at = now
        self._process_input()

    def _take_in(self, data: bytes | bytearray) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._receive_eof("the transport ended")

    def _take_in_error(self, error: Exception) -> None:
        if isinstance(error, ProtocolViolation):  # which trio-websocket has met
            self._protocol.fail(error)
        else:
            self._receive_eof(why_broken(error))

    def _receive_eof(self, why: str) -> None:
        self._protocol.receive_eof(why, close_written=self._writer.close_written)

    async def _receive_taken_over(self, size: int) -> bytes | bytearray:
        await self._takeover.wait_for_reader()
        if not self._takeover.is_over:
            return await self._takeover.receive_some(size)
        self._receive = receive = self._wire.receive_some
        del self  # The stream's task may wait here.
        return await receive(size)

    def _process_input(self) -> None:
        """Decode what came, as far as subscribers allow, and do what follows from it."""
        protocol, subscriptions = self._protocol, self._subscriptions
        protocol.steps_left = STEPS_A_TURN
        while not subscriptions.is_waiting:
            event = protocol.next_event()
            if protocol.ended and not protocol.answer_is_deferred:
                self._begin_closing()
            if event is None:
                break
            # An end waits for nobody.
            if subscriptions.publish(event, may_wait=not protocol.ended):
                self._nursery.start_soon(self._deliver_waiting)
        self._has_unprocessed = subscriptions.is_waiting or not protocol.steps_left
        if protocol.must_speak_soon:
            protocol.must_speak_soon = False
            self._keepalive.speak_soon(trio.current_time())
            self._alarm.ring()
        self._writer.flush_soon()

    @trio.lowlevel.enable_ki_protection
    async def _deliver_waiting(self) -> None:
        await self._subscriptions.deliver_waiting()
        self._tell_change()
        self._alarm.ring()

    # Changes

    async def _wait_for_change(self) -> None:
        self._changed = self._changed or trio.lowlevel.ParkingLot()
        await self._changed.park()

    def _tell_change(self) -> None:
        if self._changed:
            self._changed.unpark_all()

    # The stream's own task

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        """Read while no caller does, keep alive, and close the transport in the end.

        While the task waits it holds the transport, and not the stream.
        """
        stream: WsByteStream | None = self
        alarm, wire = self._alarm, self._wire
        del self
        try:
            while stream is not None:
                waiting, and_then = stream._next_wait()
                if waiting is None:
                    if await stream._close_goes_out_late():
                        continue
                    await stream._close_transport()
                    break
                stream = None
                try:
                    data = await waiting
                except trio.ClosedResourceError:
                    # The alarm has rung. Or the socket was closed, as a read will tell.
                    data = None
                except OSError as error:  # The kernel refuses the wait.
                    data = error
                finally:
                    alarm.stop_waiting()
                    stream = alarm()
                if and_then is not None and stream is not None:
                    and_then(stream, data)
                data = None  # It may be an error, whose traceback holds this frame.
        except trio.Cancelled:
            if stream is not None:
                stream._closing.is_closed_here = True
            raise
        finally:
            WsByteStream._open_streams -= 1
            if stream is None:  # Nobody else held it.
                alarm.retire()
                await wire.aclose_forcefully()
            elif stream.closed is None:
                await stream._close_forcefully()

    def _next_wait(self) -> tuple[Awaitable[Read] | None, AndThen | None]:
        """What the task awaits next, None when nothing is left to do; and what it calls then with
        the stream and the result.
        """
        now = trio.current_time()
        if self._closing.is_over(now):
            return None, None
        if self._keep_alive(now):
            return self._give_up(now), None
        wakes_at, alarm = self._closing.wakes_at, self._alarm
        reads_at = self._reads_at()
        if now < reads_at:
            has_open_end = reads_at == math.inf
            alarm.look_by(reads_at)
            if wakes_at == math.inf:
                return alarm.sleep(has_open_end=has_open_end), None
            return alarm.sleep_until(wakes_at, has_open_end=has_open_end), None
        if self._has_unprocessed and self._protocol.is_decoding:
            return self._process_more(), None
        _logger.debug("%s: no caller reads, so the stream's task does", self.connection)
        self._is_reading = True
        if self._keepalive.last_heard_at == self._handed_over_at:
            self._reads_on = True  # No caller has read since the task stood back.
        if wire := self._awaited_wire():
            return alarm.wait_readable(wire), WsByteStream._read_what_came
        reading = self._receive(self._size_of_read())
        return alarm.read_until(wakes_at, reading), WsByteStream._stop_reading

    def _awaited_wire(self) -> SocketWire | None:
        """Whose socket the task awaits, if it need not wake at a time of its own.

        While trio-websocket uses the socket, too, nobody may be woken there.
        """
        if self._closing.wakes_at < math.inf:
            return None
        if not self._takeover.is_over or self._takeover.is_in_use:
            return None
        return self._wire.awaited()

    def _size_of_read(self) -> int:
        return self._read_size.of_task(0 if self._protocol.ended else self._protocol.unread.size)

    def _read_what_came(self, error: OSError | None) -> None:
        """Read from the socket, which the task has waited for. There may be nothing."""
        self._stop_reading(error or self._read_now())

    def _read_now(self) -> Read:
        # A function of its own, so that no frame holds an error whose traceback holds that frame.
        assert isinstance(self._wire, SocketWire)
        try:
            return self._wire.read_now(self._size_of_read())
        except READ_ERRORS as error:
            return error

    async def _process_more(self) -> None:
        await trio.lowlevel.checkpoint()
        self._tell_change()
        self._process_input()

    def _reads_at(self) -> float:
        """From when on it is the task's turn to read."""
        protocol = self._protocol
        if self._is_reading or self._subscriptions.is_waiting:
            return math.inf
        if protocol.ended or self._closing.is_closed_here:
            return -math.inf
        if self._is_full() or (self._is_receiving and not self._reads_on):
            return math.inf
        if (
            self._reads_on
            or self._pings_waiting
            or self._wire.failure
            or self._keepalive.is_looking
        ):
            return -math.inf
        return self._visited_at + GRACE_PERIOD

    def _is_full(self) -> bool:
        return self._protocol.unread.size >= self.config.receive_buffer_size

    # Keepalive

    def _needs_keepalive(self) -> bool:
        """Closing has a clock of its own."""
        return not (self._closing.has_begun or self._protocol.tcp_ended)

    def _see_to_keepalive(self) -> None:
        """Its time has come. The task is not woken, unless there is something for it to do."""
        if self._keep_alive(trio.current_time()) or self._keepalive.is_looking:
            self._alarm.ring()

    def _keep_alive(self, now: float) -> bool:
        """Send the signs of life that are due. Return whether the peer is to be given up."""
        self._alarm.keeps = self if self._subscriptions.has_readers else None
        if not self._needs_keepalive():
            return False
        keepalive = self._keepalive
        # That bytes of ours are accepted after they had to wait is a sign of life of both sides.
        accepted_at = self._wire.accepted_at
        keepalive.last_heard_at = max(keepalive.last_heard_at, accepted_at)
        keepalive.last_sent_at = max(keepalive.last_sent_at, accepted_at, self._writer.written_at)
        is_held = self._subscriptions.is_waiting or (self._is_full() and not self._is_reading)
        while True:
            can_send = self._protocol.may_send_control
            action = keepalive.next_action(now, can_send=can_send, is_held=is_held)
            if action is None:
                self._alarm.call_by(keepalive.due_at)
                return False
            if action is Action.GIVE_UP:
                return True
            self._send_sign_of_life(action)

    def _send_sign_of_life(self, action: Action) -> None:
        if action is Action.PING:
            if self._protocol.owes_ping:
                return  # it waits for the transport, and would have to wait for the first
            _logger.debug("%s: a keepalive ping", self.connection)
            if self._keepalive_payload:  # a peer that never answers costs no memory
                self._protocol.pings.pop(self._keepalive_payload, None)
            self._keepalive_payload = self._fresh_ping_payload()
            self._protocol.ping(self._keepalive_payload)
            self._writer.flush_soon()
        elif not self._writer.turn_is_taken:  # else bytes of ours are on their way already
            _logger.debug("%s: a heartbeat", self.connection)
            self._protocol.heartbeat()
            self._writer.flush_soon()

    async def _give_up(self, now: float) -> None:
        """Give up a peer that was silent for too long, unless its TCP shows that it lives."""
        if self._is_acknowledged():
            self._keepalive.last_heard_at = now
            return
        self._protocol.time_out()
        self._process_input()
        await self._let_close_go_out()
        self._closing.deadline = now

    def _is_acknowledged(self) -> bool:
        """Whether the peer owes no sign of life, and its TCP gives one.

        A peer that has sent its Close need not answer a Ping (RFC 6455, 5.5.1), unless it has shown
        that it does so. And a peer that defers its answer without saying so gets no Pings that it
        could answer. Whether the peer is of that kind, only the caller knows (HalfClose.ALWAYS).
        """
        protocol = self._protocol
        if protocol.answer_is_deferred:
            owes_nothing = not protocol.peer_speaks_on
        else:
            is_half_closed = self._closing.has_sent_eof and self._writer.close_written
            may_defer = self.config.half_close is HalfClose.ALWAYS
            owes_nothing = may_defer and is_half_closed and self.half_close_honoured is None
        return owes_nothing and self._wire.is_acknowledged()

    # Sending

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` as binary messages of at most ``config.max_message_size`` bytes.

        Nothing is sent for ``b""``.

        Raises:
          trio.ClosedResourceError: this side has closed the stream, or its sending side with
              `send_eof`, or closes it meanwhile.
          trio.BrokenResourceError: the peer has closed, or the connection is broken, before all
              of ``data`` was with the transport. The cause is a `WsStreamError`; after a Close of
              the peer it is an `AbnormalClosure` with its code.
          trio.BusyResourceError: another task is in `send_all`, `send_eof` or
              `wait_send_all_might_not_block`.
          TypeError, BufferError: ``data`` is no buffer, or is not contiguous.

        A call that is cancelled before anything was sent did nothing. A call that is cancelled
        later has sent part of the data. Over a `trio.SocketStream`, and over TLS 1.3 on one, the
        stream remains usable all the same, as it does after a cancellation between two messages.
        Inside a message, over any other transport, the sending side is broken then. Any other
        `trio.SSLStream` breaks as a whole, so after what this stream has read already, receiving
        raises `trio.BrokenResourceError`, too.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        # One long function: each call and context manager less is 1 % of what 64 KiB take.
        # Messages are encoded ahead. A write says how many buffers of them it has written.
        protocol, wire, writer = self._protocol, self._wire, self._writer
        limit = self.config.max_message_size
        ahead = _AHEAD[protocol.client]
        is_bytes = type(data) is bytes
        view = data if is_bytes and len(data) <= limit else _flat(data)
        size = len(view)
        start = 0
        frames: tuple[Buffer, ...] = ()  # encoded, and not written yet
        is_inside = False  # a message of which fragments are written
        is_all_written = False
        self._is_sending = True
        try:
            if not size:
                await trio.lowlevel.checkpoint()
                is_all_written = self._can_send()  # else it is an error, as for any bytes
            while not is_all_written and protocol.can_send and not wire.failure:
                if writer.turn_is_taken or protocol.owes:
                    await writer.take_turn()
                    if protocol.owes_rest or not self._can_send():
                        writer.pass_turn()
                        continue
                else:
                    writer.turn_is_taken = True
                try:
                    while True:
                        if is_inside or wire.limit is not None:
                            # What was encoded before the line was slow goes out in fragments, too.
                            start -= len(frames) // 2 * limit
                            frames = ()
                            start = await self._write_fragment(view, start)
                            is_inside = protocol.unfinished is not None
                        elif size > _LONG_MESSAGE and min(size - start, limit) > _LONG_MESSAGE:
                            # No frame waits before it: only the last message may be shorter.
                            await wire.write_rest()
                            if not self._may_begin():
                                break
                            with memoryview(view)[start : start + limit] as message:
                                await wire.write_long(*protocol.encode_long_message(message))
                            start += limit
                        else:
                            while start < size and len(frames) < ahead:
                                frames += protocol.encode_message(
                                    view[start : start + limit] if start or size > limit else view
                                )
                                start += limit
                            frames = frames[await wire.write(frames, self._may_begin_whole) :]
                        writer.written_at = self._clock.current_time()
                        is_all_written = not (frames or start < size)
                        if is_all_written or not self._may_begin():
                            if wire.rest:
                                await wire.write_rest()
                            break
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    is_all_written = False  # The wire has noted why, or the next write will.
                finally:
                    writer.pass_turn()  # to a task that flushes, if something is owed
            if (self._closing.is_closed_here or not is_all_written) and not self._can_send():
                raise await self._explained_send_error()
        finally:
            self._is_sending = False
            if protocol.unfinished is not None:
                protocol.finish_message()
                writer.flush_soon()
            if not is_bytes:  # an exception's traceback would keep the caller's buffer exported
                for buffer in (view, *frames):
                    if isinstance(buffer, memoryview):
                        buffer.release()

    async def _write_fragment(self, view: Buffer, start: int) -> int:
        """Write the fragment that starts at ``start``, and return where the next one starts."""
        protocol, wire, limit = self._protocol, self._wire, self.config.max_message_size
        offset = start % limit  # in its message
        end = min(start - offset + limit, len(view))  # of its message
        stop = min(start + (wire.limit or LARGEST), end)
        await wire.write_rest()  # of what went before
        if not self._may_begin():
            return start
        with memoryview(view)[start:stop] as piece:
            frame = protocol.encode_fragment(piece, begins=not offset, ends=stop == end)
            has_begun = True
            try:
                await wire.write(frame)
            except BaseException:
                has_begun = bool(wire.rest)
                raise
            finally:
                if has_begun:
                    protocol.unfinished = (view, stop, end) if stop < end else None
        return stop

    def _may_begin(self) -> bool:
        """Whether the next frame of a message may begin, so that nothing else is due."""
        return self._can_send() and not self._protocol.owes

    def _may_begin_whole(self) -> bool:
        """Whether it may also begin whole, and not as a fragment: the line is not slow."""
        return self._may_begin() and self._wire.limit is None

    def _can_send(self) -> bool:
        return self._protocol.can_send and not self._wire.failure

    async def _explained_send_error(self, *, of_ping: bool = False) -> Exception:
        """Why nothing can be sent. A Close that has arrived may tell more than a reset does."""
        protocol = self._protocol
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._wire.failure and not self._wire.is_truncated and not self._is_full():
            self._alarm.ring()
            with trio.move_on_after(_REASON_TIMEOUT):
                while not (protocol.ended or self._is_full() or self.closed):
                    await self._wait_for_change()
        return self._marked(self._closing.send_error(of_ping=of_ping))

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport would probably take some bytes without delay.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as `send_all`.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._is_sending = True
        try:
            if self._can_send():
                await trio.lowlevel.checkpoint_if_cancelled()
                await self._writer.take_turn()
                try:
                    with trio.CancelScope() as self._idle_wait:
                        await self._wire.wait_might_not_block()
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    self._wire.note_failure(error)
                finally:
                    self._idle_wait = None
                    self._writer.pass_turn()
            if not self._can_send():
                raise await self._explained_send_error()
        finally:
            self._is_sending = False

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Half-close: send Close 1000 with the reason ``half-close``, and go on receiving.

        The call returns when the Close is with the transport. Another `WsByteStream` may still send
        what it has. Any other peer answers at once (RFC 6455, 5.5.1), and that closes the stream.
        `half_close_honoured` tells which of the two happened. The call does nothing if a Close has
        been sent before.

        When both sides have ended their sending, a client waits for the server to end TCP, but no
        longer than ``config.close_timeout`` seconds. Then the client closes its transport. What the
        server has not read by then still arrives, as it does after the close of any TCP socket.

        Raises:
          trio.ClosedResourceError: this side has closed the stream.
          trio.BrokenResourceError: the connection is broken, or is given up before the transport
              has taken the Close: by keepalive, or, where that is switched off, after
              ``config.close_timeout`` seconds.
          trio.BusyResourceError: as `send_all`.
        """
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        protocol, closing, writer = self._protocol, self._closing, self._writer
        self._is_sending = True
        try:
            await trio.lowlevel.checkpoint()
            if closing.is_closed_here:
                raise trio.ClosedResourceError("this side has closed the stream")
            if not (writer.close_written or closing.cannot_send_close()):
                closing.has_sent_eof = True
                if self.config.half_close is HalfClose.ALWAYS and self._keepalive.gives_up:
                    self._wire.probe_silent_peer(
                        self.config.ping_interval or 0, self.config.ping_timeout or 0
                    )
                protocol.close(HALF_CLOSE)
                writer.flush_soon()
                if not (writer.close_written or self._keepalive.gives_up):
                    closing.close_is_due_by = trio.current_time() + self.config.close_timeout
                    self._alarm.ring()
                while not (writer.close_written or closing.cannot_send_close()):
                    if isinstance(protocol.verdict, AbnormalClosure):
                        break  # the peer takes no more
                    await self._wait_for_change()
            is_given_up = isinstance(protocol.error, KeepaliveTimeout)
            if not writer.close_written or protocol.has_failed or is_given_up:
                closing.has_sent_eof = False
                raise await self._explained_send_error()
            closing.has_sent_eof = True
        finally:
            self._is_sending = False

    def _after_write(self) -> None:
        """Our Close is with the transport, or nothing can be written any more."""
        protocol = self._protocol
        if self._writer.close_written and protocol.close_received is not None:
            self._begin_closing()
        elif self._wire.failure and protocol.fail_to_send(self._wire.failure):
            self._process_input()
        self._tell_change()
        self._alarm.ring()

    # Closing

    @trio.lowlevel.enable_ki_protection
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the stream (RFC 6455, 7.1.2) and return when its transport is closed.

        Close is sent, unless one was sent before. Then the peer's Close and the end of TCP are
        waited for, ``config.close_timeout`` seconds at the most; what still comes in is dropped.
        The method may be called again, and from several tasks. All calls return when the stream is
        closed.

        Args:
          code (int): 1000 to 1003, 1007 to 1014, or 3000 to 4999.
          reason (str): at most 123 bytes of UTF-8, and not ``half-close``.

        Raises:
          ValueError, TypeError: ``code`` or ``reason`` is none of these. Nothing is sent then.

        A call that is cancelled drops the transport at once.
        """
        close = _checked_close(code, reason)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self._closing.is_closed_here:
                self._closing.is_closed_here = True
                self._protocol.stop_receiving()
                self._protocol.close(close)
                self._begin_closing()
                self._tell_change()
                self._alarm.ring()
                self._writer.flush_soon()
            if self.closed is not None:
                await trio.lowlevel.checkpoint()
            while self.closed is None:
                await self._wait_for_change()
        except BaseException:
            await self._drop()
            self._closing.is_closed_here = True
            raise

    @trio.lowlevel.enable_ki_protection
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
        closing, protocol = self._closing, self._protocol
        if closing.is_closed_here or protocol.close_received is None:
            self._subscriptions.stop_backpressure()
        if not closing.has_begun:
            _logger.debug("%s: closing begins", self.connection)
            closing.begin(trio.current_time() + self.config.close_timeout)
            if isinstance(protocol.verdict, AbnormalClosure) and self._is_sending:
                self._interrupt_sender()
            self._tell_change()
            self._alarm.ring()

    def _interrupt_sender(self) -> None:
        """The peer takes no more: a frame that is under way helps nobody."""
        writer = self._writer
        if self._idle_wait is not None:
            self._idle_wait.cancel()
        elif writer.turn_is_taken and (writer.is_flushing or not self._wire.interrupt()):
            # The frame may still be finished, if that is soon.
            self._closing.close_is_due_by = trio.current_time() + _FRAME_TIMEOUT

    async def _close_goes_out_late(self) -> bool:
        """Whether the Close of a half-close, whose time is up, goes out at the last moment.

        An event loop that was held up may find that time is up although the transport takes it.
        """
        closing = self._closing
        if closing.has_begun or trio.current_time() < closing.wakes_at:
            return False
        await self._let_close_go_out()
        return not closing.is_over(trio.current_time())

    async def _let_close_go_out(self) -> None:
        """Let our Close go out that is due or under way, if it need not wait for that."""
        for _ in range(_SCHEDULE_POINTS):
            if self._writer.close_written or self._wire.failure:
                return
            await trio.lowlevel.checkpoint()

    async def _close_transport(self) -> None:
        closing, protocol = self._closing, self._protocol
        if not closing.has_begun and trio.current_time() >= closing.wakes_at:
            self._receive_eof("the Close could not be sent in time, so the connection was given up")
            self._process_input()
        if protocol.close_sent is not None or protocol.owes:
            await self._let_close_go_out()
        self._abandon()
        deadline = min(closing.deadline, trio.current_time() + self.config.close_timeout)
        try:
            await self._wire.aclose(deadline)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # there is nothing left that it could lose
        self._conclude()

    async def _drop(self) -> None:
        """Close the transport with no word to the peer."""
        if self.closed is None:
            self._closing.is_closed_here = True
            await self._close_forcefully()

    def _abandon(self) -> None:
        """The transport is about to be closed: nothing more is read or written."""
        self._protocol.abandon()
        self._writer.stop()

    async def _close_forcefully(self) -> None:
        self._abandon()
        try:
            await self._wire.aclose_forcefully()
        finally:  # it is closed, even if that was cancelled
            self._conclude()

    @trio.lowlevel.enable_ki_protection
    def _conclude(self) -> None:
        """The transport is closed: tell everybody."""
        if self.closed is None:
            closed = self._protocol.closed(close_written=self._writer.close_written)
            self._closing.closed = closed
            _logger.debug("%s: %r", self.connection, closed)
            self._subscriptions.end(closed)
            self._takeover.retire(closed.code, closed.reason)
            self._receive = self._wire.receive_some  # and not what would hold the stream itself
            self._tell_change()
            self._alarm.retire()

    # Out of band

    @trio.lowlevel.enable_ki_protection
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
          subscribed; then the channel ends. The subscription ends when the channel is closed, or
          when nobody holds it any more.

        Raises:
          ValueError, TypeError: an argument is none of these.
        """
        receive_channel = self._subscriptions.add(max_buffer_size, kinds, backpressure)
        if self.closed is not None:
            self._subscriptions.end(self.closed)
        else:
            self._alarm.keeps = self
        return receive_channel

    @trio.lowlevel.enable_ki_protection
    async def ping(self, payload: bytes | None = None) -> float:
        """Send a Ping (RFC 6455, 5.5.2) and wait for its Pong. Any number of tasks may.

        Args:
          payload (bytes or None): at most 125 bytes; None: random ones.

        Returns:
          float: the seconds until the Pong, which may be that of a later ping (5.5.3).

        Raises:
          ValueError: ``payload`` is too long, or in flight already.
          trio.ClosedResourceError, trio.BrokenResourceError: as `send_all`, as soon as a Close has
              passed either way. But after a half-close that the peer honours, pings go on in both
              directions.

        A cancelled call breaks nothing. The Ping may still be sent, and its payload stays in flight
        until its Pong comes, or that of a later one.
        """
        if payload is None:
            payload = self._fresh_ping_payload()
        payload = bytes(check_buffer("payload", payload))
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(
                f"payload must be at most 125 bytes, not {len(payload)}: {shown(payload)}"
            )
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._check_can_ping()
        settled = trio.Event()
        ping = self._protocol.ping(payload, settled.set)
        started_at = trio.current_time()
        self._pings_waiting += 1
        try:
            self._writer.flush_soon()
            self._alarm.ring()
            await self._check_can_ping()  # its sending may have failed at once
            await settled.wait()
            if not ping.is_answered:
                raise await self._explained_send_error(of_ping=True)
            return trio.current_time() - started_at
        finally:
            self._pings_waiting -= 1

    async def _check_can_ping(self) -> None:
        if not self._protocol.pings_are_answered or self._wire.failure:
            raise await self._explained_send_error(of_ping=True)

    def _fresh_ping_payload(self) -> bytes:
        while (payload := os.urandom(4)) in self._protocol.pings:
            pass
        return payload


def _flat(data: bytes | bytearray | memoryview) -> memoryview:
    """A view of the bytes of any contiguous buffer; else what a `trio.SocketStream` would raise."""
    view = check_buffer("data", data)
    if not view.ndim:
        raise TypeError("data must be a buffer of bytes, not a single item without a dimension")
    if not view.nbytes:
        return memoryview(b"")
    if not view.c_contiguous:
        raise BufferError("data must be a contiguous buffer")
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # a format that cannot be cast, such as a big-endian one
        return memoryview(view.tobytes())


def _checked_close(code: int, reason: str) -> Close:
    code = check_integer("code", code)
    if not is_valid_close_code(code):
        raise ValueError(f"code must be 1000-1003, 1007-1014 or 3000-4999, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {reason!r}")
    if not _is_unicode(reason):
        raise ValueError(f"reason must be text that UTF-8 can encode, not {shown(reason)}")
    if len(reason.encode()) > MAX_REASON:
        raise ValueError(f"reason must be at most {MAX_REASON} bytes of UTF-8, not {shown(reason)}")
    if reason == HALF_CLOSE.reason:
        raise ValueError(f"reason must not be {reason!r}: that is what send_eof says")
    return Close(code, reason)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_end_of(stream: WsByteStream, error: BaseException | None) -> bool:
    """Whether ``stream`` has raised ``error`` because it broke, or it has that as its cause.

    So has what a `trio.SSLStream` raises that goes over ``stream``. Of an exception group all
    must be of that kind.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_end_of(stream, each) for each in error.exceptions)
    while error is not None:
        if error.__dict__.get("_broken_stream") == id(stream):
            return True  # anyio's has the mark, too
        error = error.__cause__ if isinstance(error, trio.BrokenResourceError) else None
    return False


async def loss_of(stream: WsByteStream) -> Exception:
    """Wait until nothing more can come from ``stream``: it has broken, or this side has closed it.

    A stream that has ended well, and is not closed yet, may still have bytes for its reader.

    Returns:
      Why: what a reader would get, or the cause of that.
    """
    with stream.subscribe(kinds=StreamClosed) as events:
        async for _ in events:
            pass
    while True:
        if stream._closing.is_closed_here:
            return trio.ClosedResourceError("this side has closed the stream")
        if stream.closed is not None and stream.closed.error is not None:
            return stream.closed.error
        await stream._wait_for_change()
