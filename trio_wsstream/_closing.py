"""Is it over, may the end be told, why can nothing be sent: predicates over facts.

Theory of operation. What has passed on the wire stands in `Protocol`; whether our frames have
gone out stands in `Writer`; what this side has decided stands here: whether it has closed the
stream, whether it has half-closed it, and whether the clock of ``close_timeout`` runs. Nothing here
waits, sends or reads a clock, and no answer depends on the order in which the facts came to be.

Closing begins (`begin`) when this side closes or fails the connection, or when the peer's Close
comes and is not held back. From then on everything ends by `deadline`. A half-close is no closing:
the connection lives on, and keepalive with it. Only where keepalive is switched off does a clock of
its own, `close_is_due_by`, bound how long the Close of a half-close may wait for the socket. The
same clock bounds how long our answer waits behind a frame that the peer may never read.
"""

from __future__ import annotations

import math

import trio

from ._errors import AbnormalClosure, ConnectionLost, KeepaliveTimeout
from ._events import StreamClosed
from ._protocol import Protocol
from ._writing import Writer


class Closing:
    """What this side knows of the end of one stream.

    Attributes:
      is_closed_here (bool): this side has closed the stream, by ``aclose`` or by dropping it.
      has_sent_eof (bool): this side has half-closed it.
      has_begun (bool): the clock of ``close_timeout`` runs.
      deadline (float): when the transport is dropped.
      close_is_due_by (float): when a Close of ours that is still not written is given up.
      closed (StreamClosed or None): how the stream ended, once its transport is closed.
    """

    __slots__ = (
        "_protocol",
        "_writer",
        "close_is_due_by",
        "closed",
        "deadline",
        "has_begun",
        "has_sent_eof",
        "is_closed_here",
    )

    def __init__(self, protocol: Protocol, writer: Writer) -> None:
        self._protocol = protocol
        self._writer = writer
        self.is_closed_here = False
        self.has_sent_eof = False
        self.has_begun = False
        self.deadline = math.inf
        self.close_is_due_by = math.inf
        self.closed: StreamClosed | None = None

    def begin(self, deadline: float) -> None:
        """Start the clock."""
        self.has_begun = True
        self.deadline = deadline

    @property
    def state(self) -> str:
        """What can still be done with the stream, in words."""
        protocol = self._protocol
        if self.closed is not None:
            return "closed"
        if self.is_closed_here:
            return "closing"
        if protocol.verdict is not None or self._writer.failure:
            return "broken"
        if self.has_begun:
            return "closed by the peer"
        if self.has_sent_eof:
            return "sending has ended"
        return "receiving has ended" if protocol.ended else "open"

    @property
    def wakes_at(self) -> float:
        """When `is_over` may change because time has passed."""
        return (
            self.deadline
            if self._writer.close_written
            else min(self.deadline, self.close_is_due_by)
        )

    def is_over(self, now: float) -> bool:
        """Whether nothing is left to do but to close the transport."""
        protocol, writer = self._protocol, self._writer
        if self.closed is not None or protocol.tcp_ended or now >= self.wakes_at:
            return True
        if not self.has_begun:
            return False
        if writer.is_truncated and not writer.close_written:
            return True  # no Close can go out any more
        both_closes = protocol.close_received is not None and writer.close_written
        return both_closes and not protocol.client and not protocol.peer_may_send_on

    def may_tell_end(self) -> bool:
        """Whether ``receive_some`` may tell the end: a caller that returns at the end must not
        overtake our answer to the peer's Close.
        """
        protocol, writer = self._protocol, self._writer
        if isinstance(protocol.verdict, KeepaliveTimeout):
            return self.closed is not None  # which comes at once
        return (
            protocol.close_received is None
            or protocol.answer_is_deferred
            or writer.close_written
            or bool(writer.failure)
            or protocol.tcp_ended
            or self.closed is not None
        )

    def cannot_send_close(self) -> bool:
        """Whether a Close that is not written never will be."""
        return bool(self._writer.failure) or self.closed is not None or self._protocol.tcp_ended

    def send_error(
        self, *, of_ping: bool = False
    ) -> trio.ClosedResourceError | trio.BrokenResourceError:
        """Why nothing can be sent. After `send_eof` pings may go on until the connection breaks."""
        if self.is_closed_here:
            return trio.ClosedResourceError("this side has closed the stream")
        protocol, failure = self._protocol, self._writer.failure
        has_broken = bool(protocol.error or failure)
        if self.has_sent_eof and not (of_ping and has_broken):
            return trio.ClosedResourceError("this side has ended its sending with send_eof")
        if isinstance(protocol.error, KeepaliveTimeout):
            cause: Exception = protocol.error
        elif protocol.close_received and (protocol.peer_has_closed or not has_broken):
            cause = AbnormalClosure(*protocol.close_received)
        else:
            cause = protocol.error or ConnectionLost(failure or "the transport ended")
        error = trio.BrokenResourceError(f"nothing can be sent: {cause}")
        error.__cause__ = cause
        return error
