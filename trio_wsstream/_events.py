"""What a subscriber sees, and the channels that carry it.

A full channel loses new events, and yet must be able to take the `EventsLost` that tells so
and the `StreamClosed` that ends it. A Trio memory channel cannot be asked to make room, but
it does ask its capacity whether there is some. `_Capacity` answers yes while it is stretched:
for those two events only, so that everybody else sees the capacity that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs
import trio

from ._errors import WsStreamError

_SHOWN = 32  # bytes or characters of a payload in a repr: enough to know it by


def shown(payload: bytes | str) -> str:
    """The beginning of it, for people."""
    more = f"... ({len(payload)} in all)" if len(payload) > _SHOWN else ""
    return f"{payload[:_SHOWN]!r}{more}"


@attrs.frozen
class WsEvent:
    """What happened on the connection that a byte stream cannot carry."""


@attrs.frozen
class PingReceived(WsEvent):
    """A Ping came (RFC 6455, 5.5.2).

    Its Pong is on its way, unless a Close was, or 64 newer Pings wait for theirs (5.5.3).
    """

    payload: bytes = attrs.field(repr=shown)


@attrs.frozen
class PongReceived(WsEvent):
    """A Pong came (RFC 6455, 5.5.3), asked for or not."""

    payload: bytes = attrs.field(repr=shown)


@attrs.frozen
class CloseReceived(WsEvent):
    """The peer's Close came (RFC 6455, 5.5.1); code 1005 if it gave none (7.1.5)."""

    code: int
    reason: str


@attrs.frozen
class TextReceived(WsEvent):
    """A text message came, under `TextPolicy.AS_EVENTS`."""

    text: str = attrs.field(repr=shown)


@attrs.frozen
class ErrorOccurred(WsEvent):
    """The stream failed. What its methods raise has the same error as cause.

    But after the peer's Close `~WsByteStream.receive_some` goes on to tell that.
    """

    error: WsStreamError


@attrs.frozen
class EventsLost(WsEvent):
    """So many events found this subscriber's channel full. Passes every filter of kinds."""

    count: int


@attrs.frozen
class StreamClosed(WsEvent):
    """The transport has been closed; every subscriber's last event. Passes every filter.

    Attributes:
      code (int): the code of the peer's Close, 1005 if it gave none, 1006 if none came
          (RFC 6455, 7.1.5).
      reason (str): its reason.
      clean (bool): both Closes have passed (7.1.4).
      error (WsStreamError or None): why the stream broke, if it did.
    """

    code: int
    reason: str
    clean: bool
    error: WsStreamError | None


Kinds = type[WsEvent] | Iterable[type[WsEvent]]


class _Capacity(int):
    """A channel's capacity, in events, that can be stretched. See the top of this module."""

    stretched = False

    def __gt__(self, used: int) -> bool:  # what Python asks for in ``used < capacity``
        return self.stretched or super().__gt__(used)


class Subscription:
    """One subscriber: its channel, what it wants, and how many events it has lost."""

    def __init__(self, max_buffer_size: int | float, kinds: Kinds, backpressure: bool) -> None:
        if max_buffer_size != math.inf and type(max_buffer_size) is not int:
            raise TypeError(f"max_buffer_size must be an int or math.inf, not {max_buffer_size!r}")
        if max_buffer_size < 0:
            raise ValueError(f"max_buffer_size must be at least 0 events, not {max_buffer_size!r}")
        self._kinds = (kinds,) if isinstance(kinds, type) else tuple(kinds)
        for kind in self._kinds:
            if not (isinstance(kind, type) and issubclass(kind, WsEvent)):
                raise TypeError(f"kinds must be WsEvent classes, not {kind!r}")
        self.backpressure = backpressure
        self._lost = 0
        self._capacity = _Capacity(0 if max_buffer_size == math.inf else max_buffer_size)
        self._capacity.stretched = max_buffer_size == math.inf
        self._send, self.receive_channel = trio.open_memory_channel[WsEvent](self._capacity)

    @property
    def is_over(self) -> bool:
        """The subscriber has closed its channel."""
        return self._send.statistics().open_receive_channels == 0

    def offer(self, event: WsEvent) -> bool:
        """Deliver or lose ``event``; False if it must wait for room instead."""
        if not isinstance(event, self._kinds) or self.is_over:
            return True
        statistics = self._send.statistics()
        if self._capacity > statistics.current_buffer_used or statistics.tasks_waiting_receive:
            self.force(event)
        elif self.backpressure:
            return False
        else:
            self._lost += 1
        return True

    async def wait_and_deliver(self, event: WsEvent) -> None:
        """Deliver ``event`` once there is room. Cancelled, it was not delivered."""
        try:
            await self._send.send(event)
        except trio.BrokenResourceError:
            pass  # the subscriber has closed its channel

    def force(self, event: WsEvent) -> None:
        """Deliver ``event``, room or not, after telling what was lost before."""
        if self._lost:
            self._stretch(EventsLost(self._lost))
            self._lost = 0
        self._stretch(event)

    def end(self, last: StreamClosed) -> None:
        """Deliver the last event, and end the channel."""
        if not self.is_over:
            self.force(last)
        self._send.close()

    def _stretch(self, event: WsEvent) -> None:
        stretched, self._capacity.stretched = self._capacity.stretched, True
        self._send.send_nowait(event)
        self._capacity.stretched = stretched
