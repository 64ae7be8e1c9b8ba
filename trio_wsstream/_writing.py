"""Whose turn it is to write, and the sending of what is owed to the peer.

Theory of operation. Writing is a turn that one task has at a time. A caller takes it for its whole
``send_all``. Between two of its frames the caller passes the turn on if something is owed: a Ping,
a Pong or a Close. `flush_soon` sends what is owed. What the transport takes at once is
written on the spot; for the rest a short-lived task in the nursery has the turn, so that no
caller's cancellation can lose it. So reading never waits for writing; it only calls `flush_soon`.

A Close counts as written when the transport has taken all of it (`close_written`). That cannot be
derived: the Protocol counts a Close as sent as soon as it is encoded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from ._protocol import Protocol
from ._transport import SocketWire, StreamWire

_logger = logging.getLogger(__name__)


def _do_nothing() -> None:
    pass


class Writer:
    """The sending half of one stream.

    Args:
      protocol: which knows what is owed.
      wire: what frames are written to.
      nursery: for the short-lived task.
      changed: is called when a Close has been written, or when writing has failed.
      name: what the log calls the connection.

    Attributes:
      close_written (bool): our Close is with the transport.
      turn_is_taken (bool): somebody is writing.
      is_flushing (bool): it is the task that sends what is owed, or one of trio-websocket.
      written_at (float): when something was last written; senders set it, too.
    """

    __slots__ = (
        "_changed",
        "_is_stopped",
        "_name",
        "_nursery",
        "_protocol",
        "_queue",
        "_wire",
        "close_written",
        "is_flushing",
        "turn_is_taken",
        "written_at",
    )

    def __init__(
        self,
        protocol: Protocol,
        wire: StreamWire | SocketWire,
        nursery: trio.Nursery,
        changed: Callable[[], None],
        name: object,
    ) -> None:
        self._protocol = protocol
        self._wire = wire
        self._nursery = nursery
        self._changed = changed
        self._name = name
        self._queue: trio.lowlevel.ParkingLot | None = None  # made when somebody waits
        self.turn_is_taken = self.is_flushing = False
        self.close_written = False
        self._is_stopped = False
        self.written_at = -math.inf

    @property
    def failure(self) -> str:
        """Why nothing more can be written; empty while it can."""
        return self._wire.failure

    @property
    def is_truncated(self) -> bool:
        """A frame was cut off in the middle, so no other frame can follow."""
        return self._wire.is_truncated

    async def take_turn(self) -> None:
        """Wait for the turn to write. What is left of an earlier message goes out before that.

        If the stream is dropped meanwhile, `Protocol.owes_rest` may still be true afterwards.
        """
        if self._protocol.owes_rest and not self.turn_is_taken:
            self._flush_at_once()  # A caller that writes does not read first, either.
        if self.turn_is_taken:
            _logger.debug("%s: a sender waits for its turn to write", self._name)
            self._queue = self._queue or trio.lowlevel.ParkingLot()
            await self._queue.park()
        elif self._protocol.owes_rest:
            await trio.lowlevel.checkpoint()
        self.turn_is_taken = True

    @trio.lowlevel.enable_ki_protection
    def pass_turn(self) -> None:
        """Give the turn to the next, and see to what has come to be owed."""
        self._wire.is_interrupted = False
        if self._queue:
            self._queue.unpark()
        else:
            self.turn_is_taken = False
        if self._wire.failure:
            self._changed()  # what is owed never goes out
        elif self._protocol.owes:
            self.flush_soon()

    @trio.lowlevel.enable_ki_protection
    def flush_soon(self) -> None:
        """Have what is owed sent: now, or when the turn is passed on."""
        protocol = self._protocol
        if self.turn_is_taken or not protocol.owes:
            return
        if self._wire.must_read_first() and not protocol.ended:
            return  # the next read comes back here
        self._flush_at_once()

    def _flush_at_once(self) -> None:
        protocol, wire = self._protocol, self._wire
        if self._is_stopped:
            return
        rest = b"" if wire.failure else wire.write_now(protocol.data_to_send())
        if wire.failure:
            self._changed()
        elif rest or wire.rest or self._ends_tcp:
            _logger.debug("%s: a task has the turn to write what is owed", self._name)
            self.turn_is_taken = self.is_flushing = True
            self._nursery.start_soon(self._flush, rest)
        else:
            self._note_written()

    @trio.lowlevel.enable_ki_protection
    async def _flush(self, data: bytes) -> None:
        """With the turn to write: send ``data``, and end our direction of TCP if that is due."""
        try:
            if data:
                await self._wire.write((data,))
            else:
                await self._wire.write_rest()
            self._note_written()
            if self._ends_tcp and not self._protocol.owes:  # not even since a moment
                await self._wire.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the wire has noted why
        except trio.Cancelled:  # with the nursery, so that the stream is dropped
            self.stop()
            raise
        finally:
            self.is_flushing = False
            self.pass_turn()

    @property
    def _ends_tcp(self) -> bool:
        """Whether TCP must end in our direction after the Close, and the peer's end be read."""
        protocol = self._protocol
        has_closed = protocol.close_sent is not None or protocol.has_failed
        return protocol.peer_may_send_on and has_closed and not protocol.client

    def _note_written(self) -> None:
        self.written_at = trio.current_time()
        if self._protocol.close_sent is not None and not self.close_written:
            self.close_written = True
            self._changed()

    def stop(self) -> None:
        """The transport is about to be closed: `flush_soon` does nothing from now on, and the owner
        is told nothing and not held any more.
        """
        self._is_stopped = True
        self._changed = _do_nothing

    def start_behind(self, wait_unused: Callable[[], Awaitable[None]]) -> None:
        """Let trio-websocket's tasks, which write to the transport already, have the first turn."""
        self.turn_is_taken = self.is_flushing = True
        self._nursery.start_soon(self._wait_behind, wait_unused)

    @trio.lowlevel.enable_ki_protection
    async def _wait_behind(self, wait_unused: Callable[[], Awaitable[None]]) -> None:
        try:
            await wait_unused()
        finally:
            self._note_written()
            self.is_flushing = False
            self.pass_turn()
