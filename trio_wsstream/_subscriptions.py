"""The subscribers' channels, and the events that wait for room in them.

Theory of operation. `Subscriptions.publish` offers an event to each subscriber. A full channel
loses the event and counts it, or, with backpressure, makes the event wait in `_waiting`; then the
stream decodes nothing more until `deliver_waiting` has found room. So an event is always in exactly
one place: in a channel, in `_waiting`, or counted as lost. While `deliver_waiting` sends an event
it stays the first of `_waiting`. Nothing but `_withdraw` ends that sending early (hence the
shield), and it asks the channel first whether the subscriber has taken the event already.

A full channel must still take the `EventsLost` that tells of losses and the `StreamClosed` that
ends it. Trio's channel has no way to ask for more room, so `_Subscription._force` raises the
capacity in the channel's state for that one send. Everybody else sees the capacity that was asked
for.

A subscription is over when its subscriber has closed the channel, or when nobody can reach the
channel any more: only a weak reference to it is kept here. Trio does not tell of its clones, so if
there are any, they must be closed.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Final

import trio

from ._events import EventsLost, StreamClosed, WsEvent

Kinds = type[WsEvent] | Iterable[type[WsEvent]]


class _Subscription:
    """One subscriber: its channel, the kinds it wants, and how many events it has lost."""

    __slots__ = ("_kinds", "_lost", "_reader", "_send", "backpressure")

    def __init__(
        self,
        send: trio.MemorySendChannel[WsEvent],
        reader: trio.MemoryReceiveChannel[WsEvent],
        kinds: tuple[type[WsEvent], ...],
        backpressure: bool,
    ) -> None:
        self._send = send
        self._kinds = kinds
        self._lost = 0
        self.backpressure = backpressure
        token = trio.lowlevel.current_trio_token()

        def close() -> None:
            if send.statistics().open_receive_channels <= 1:  # there is no clone of it
                send.close()

        def abandon(_: object) -> None:  # the garbage collector may call from any thread
            try:
                token.run_sync_soon(close)
            except trio.RunFinishedError:
                pass

        self._reader = weakref.ref(reader, abandon)

    @property
    def is_over(self) -> bool:
        """Nobody can receive from the channel any more."""
        open_channels = self._send.statistics().open_receive_channels
        return open_channels == 0 or (open_channels == 1 and self._reader() is None)

    @property
    def is_sending(self) -> bool:
        """Whether `send` waits: the subscriber has not taken its event."""
        return self._send.statistics().tasks_waiting_send > 0

    def offer(self, event: WsEvent) -> bool:
        """Deliver or lose ``event``. Return False if the event must wait for room instead."""
        if not isinstance(event, self._kinds) or self.is_over:
            return True
        statistics = self._send.statistics()
        has_slot = statistics.current_buffer_used < statistics.max_buffer_size
        if has_slot or statistics.tasks_waiting_receive:
            self.force(event)
        elif self.backpressure:
            return False
        else:
            self._lost += 1
        return True

    async def send(self, event: WsEvent) -> None:
        """Deliver ``event`` when there is room, if the subscription does not end before."""
        try:
            await self._send.send(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def force(self, event: WsEvent) -> None:
        """Deliver ``event``, whether or not there is room, after the number of events lost."""
        if self._lost:
            self._force(EventsLost(self._lost))
            self._lost = 0
        self._force(event)

    def _force(self, event: WsEvent) -> None:
        state = self._send._state
        capacity, state.max_buffer_size = state.max_buffer_size, math.inf
        try:
            self._send.send_nowait(event)
        finally:
            state.max_buffer_size = capacity

    def end(self, last: StreamClosed) -> None:
        """Deliver the last event, and end the channel."""
        if not self.is_over:
            self.force(last)
        self._send.close()


# Most streams have no subscribers, so all of these share their empty lists, which nobody changes.
_NOBODY: Final[list[_Subscription]] = []
_NOTHING: Final[list[tuple[_Subscription, WsEvent]]] = []


class Subscriptions:
    """The subscribers of one stream.

    Attributes, to be read only:
      is_waiting (bool): events wait for room in a channel with backpressure.
    """

    __slots__ = ("_all", "_has_backpressure", "_scope", "_sending_to", "_waiting", "is_waiting")

    def __init__(self) -> None:
        self._all = _NOBODY
        self._waiting = _NOTHING
        self._has_backpressure = True  # as long as subscribers may hold up the stream
        self._scope: trio.CancelScope | None = None  # of the task in deliver_waiting
        self._sending_to: _Subscription | None = None  # while that task sends
        self.is_waiting = False

    def __len__(self) -> int:
        return len(self._all)

    @property
    def has_readers(self) -> bool:
        """Whether anybody can receive from one of the channels."""
        return bool(self._all) and not all(subscription.is_over for subscription in self._all)

    def add(
        self, max_buffer_size: int | float, kinds: Kinds, backpressure: bool
    ) -> trio.MemoryReceiveChannel[WsEvent]:
        """Start a subscription, and return its channel. See `WsByteStream.subscribe`."""
        if max_buffer_size != math.inf and type(max_buffer_size) is not int:
            hint = "; kinds are given by name, kinds=" if isinstance(max_buffer_size, type) else ""
            raise TypeError(
                f"max_buffer_size must be an int or math.inf, not {max_buffer_size!r}{hint}"
            )
        if max_buffer_size < 0:
            raise ValueError(f"max_buffer_size must be at least 0 events, not {max_buffer_size!r}")
        if isinstance(kinds, str) or not isinstance(kinds, Iterable):
            kinds = (kinds,)
        kinds = tuple(kinds)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, WsEvent)):
                raise TypeError(f"kinds must be WsEvent classes, not {kind!r}")
        send, reader = trio.open_memory_channel[WsEvent](max_buffer_size)
        count = len(self._all)
        if count & (count - 1) == 0:  # rarely, so that each of many subscribers costs the same
            self._all = [s for s in self._all if not s.is_over]
        self._all.append(
            _Subscription(send, reader, kinds, backpressure and self._has_backpressure)
        )
        return reader

    def publish(self, event: WsEvent, *, may_wait: bool) -> bool:
        """Offer an event to each subscriber.

        Args:
          may_wait: whether it may wait for room. An event that comes with the end may not; a
              full channel with backpressure takes it all the same.

        Returns:
          Whether it waits for room, so that `deliver_waiting` must be run.
        """
        for subscription in self._all:
            if not subscription.offer(event):
                if may_wait:
                    self._waiting = [*self._waiting, (subscription, event)]
                    self.is_waiting = True
                else:
                    subscription.force(event)
        return self.is_waiting

    async def deliver_waiting(self) -> None:
        """Deliver the events that wait for room; for a task of its own."""
        with trio.CancelScope(shield=True) as self._scope:
            while self._waiting:
                subscription, event = self._waiting[0]
                if not subscription.offer(event):
                    self._sending_to = subscription
                    await subscription.send(event)
                    if self._sending_to is None:
                        return  # _withdraw has seen to what waited
                    self._sending_to = None
                del self._waiting[0]
            self.is_waiting = False

    def _withdraw(self) -> None:
        """End `deliver_waiting`. An event that no subscriber has taken stays in `_waiting`."""
        if self._sending_to is not None and not self._sending_to.is_sending:
            del self._waiting[0]  # the subscriber has just taken it
        self._sending_to = None
        if self._scope is not None:
            self._scope.cancel()

    def stop_backpressure(self) -> None:
        """From now on no subscriber holds up the stream. What waits is delivered, or lost."""
        self._has_backpressure = False
        self._withdraw()
        for subscription in self._all:
            subscription.backpressure = False
        for subscription, event in self._waiting:
            subscription.offer(event)
        self._waiting = _NOTHING
        self.is_waiting = False

    def end(self, last: StreamClosed) -> None:
        """Deliver the last event to each subscriber, and end its channel."""
        self.stop_backpressure()
        for subscription in self._all:
            subscription.end(last)
        self._all = _NOBODY
