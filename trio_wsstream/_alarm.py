"""What the stream's own task waits under: an alarm that a deadline or another task can ring.

Theory of operation. The task waits for nothing but the alarm (`sleep`), or for bytes from the
transport as well. `ring` ends every kind of wait. A task that only sleeps is rescheduled directly,
because cancelling its scope would take three times as long. Mostly it has no scope at all, as only
closing has a deadline.

*Bytes from a socket* are what the tasks of idle streams wait for (`wait_readable`). A cancel scope
and the coroutines of a read would be a sixth of the memory of such a stream. So the task awaits
Trio's own `wait_readable`, and to ring is to tell Trio that the socket is about to be closed. This
wakes whoever waits for the socket; who was not meant waits again. There is no deadline then. From
any other transport, and while there is a deadline, the task reads in a scope (`read_until`).

*For keepalive* the task need not wake. To wake it, and to have it begin its wait anew, would take a
third of the processor time of an idle stream. A cancel scope with a deadline would take a twelfth
of its memory. So one task of the run, the `_Timer`, calls the streams at their times (`call_by`).

*The end of the grace period* is another such time (`look_by`). Mostly the caller has read on, and
only if it has not, the stream wakes its task. To wake the process costs more than a message does.
So if there are many streams, these times are rounded up to whole ticks, and the streams of one tick
share a wake-up.

The alarm is also a weak reference to the stream, and a waiting task holds no other. Once the stream
is garbage, nobody can close it any more. Then the alarm warns and rings, and the task, which finds
no stream, closes the transport.
"""

from __future__ import annotations

import heapq
import itertools
import math
import warnings
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from ._errors import ProtocolViolation
from ._keepalive import CROWD, next_tick
from ._transport import Endpoints, SocketWire

Stream = TypeVar("Stream")
_TICK: Final = 0.01  # seconds
_MOST_OF_EACH: Final = 4  # times in the timer's heap for each stream, those of ended ones included
READ_ERRORS: Final = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    OSError,
    ProtocolViolation,
)


class Alarm(weakref.ref[Stream]):
    """An alarm for the task of one stream. A call returns the stream, or None if it is garbage.

    Args:
      stream: which the task belongs to.
      endpoints: what a warning calls it.
      call: is called with the stream at the time that `call_by` has set. It must not raise.
      look: the same, for `look_by`.

    Attributes:
      has_open_end (bool): the task sleeps and no look is due, so a caller that stops reading must
          ask for one (`look_by`).
      keeps: the stream, while it must not become garbage; else None.
    """

    __slots__ = (
        "_call",
        "_called_at",
        "_endpoints",
        "_look",
        "_looks_at",
        "_scope",
        "_sleeper",
        "_timer",
        "_token",
        "_wire",
        "has_open_end",
        "keeps",
    )

    def __new__(
        cls,
        stream: Stream,
        endpoints: Endpoints,
        call: Callable[[Stream], None],
        look: Callable[[Stream], None],
    ) -> Alarm[Stream]:
        return super().__new__(cls, stream, _abandon)

    def __init__(
        self,
        stream: Stream,
        endpoints: Endpoints,
        call: Callable[[Stream], None],
        look: Callable[[Stream], None],
    ) -> None:
        self._endpoints = endpoints
        self._call = call
        self._look = look
        self._called_at = self._looks_at = math.inf
        self._timer: _Timer | None = None
        self._token: trio.lowlevel.TrioToken | None = trio.lowlevel.current_trio_token()
        self._scope: trio.CancelScope | None = None
        self._sleeper: trio.lowlevel.Task | None = None
        self._wire: SocketWire | None = None  # whose socket the task waits for
        self.has_open_end = False
        self.keeps: Stream | None = None

    def sleep(self, *, has_open_end: bool) -> Awaitable[None]:
        """Wait until the alarm rings. The task must await the result at once."""
        self.has_open_end = has_open_end
        self._sleeper = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._stop_sleeping)  # noqa: ASYNC105

    async def sleep_until(self, deadline: float, *, has_open_end: bool) -> None:
        """The same, but at the longest until ``deadline``, in the run's clock."""
        with trio.CancelScope(deadline=deadline):
            await self.sleep(has_open_end=has_open_end)

    def wait_readable(self, wire: SocketWire) -> Awaitable[None]:
        """Wait until something can be read from the socket of ``wire``, or until the alarm rings.

        Afterwards the task must call `stop_waiting`.

        Raises:
          trio.ClosedResourceError: the alarm has rung, or somebody else who waits for the socket
              was woken, or the socket has been closed.
        """
        self._wire = wire
        return trio.lowlevel.wait_readable(wire.socket)  # noqa: ASYNC105  # The caller awaits it.

    def stop_waiting(self) -> None:
        """The task does not wait for the socket any more."""
        self._wire = None

    async def read_until(
        self, deadline: float, reading: Awaitable[bytes | bytearray]
    ) -> bytes | bytearray | Exception | None:
        """Await ``reading`` until ``deadline``, or until the alarm rings.

        Returns:
          What has been read, one of `READ_ERRORS`, or None if the wait has ended before that.
        """
        try:
            with trio.CancelScope(deadline=deadline) as self._scope:
                return await reading
        except READ_ERRORS as error:
            return error
        finally:
            self._scope = None
        return None

    @trio.lowlevel.enable_ki_protection
    def ring(self) -> None:
        """End the wait of the task, if it waits. The next wait is not affected."""
        if self._sleeper is not None:
            trio.lowlevel.reschedule(self._sleeper)
            self._sleeper = None
        elif self._scope is not None:
            self._scope.cancel()
        elif self._wire is not None:
            self._wire.wake()
        self._scope = None
        self.has_open_end = False

    def call_by(self, time: float) -> None:
        """Have the stream called at ``time`` at the latest."""
        if time < self._called_at:
            self._timer = self._timer or _Timer.for_one_more()
            self._called_at = time
            self._timer.add(time, self)

    def look_by(self, time: float) -> None:
        """Have the stream look whether its task must read: at ``time``, or one tick later at the
        most, or earlier if that was asked for before.

        Infinity means: at no time. The next caller that stops reading asks again.
        """
        self.has_open_end = time == math.inf and self._sleeper is not None
        if time < math.inf and self._looks_at == math.inf:
            self._timer = self._timer or _Timer.for_one_more()
            if self._timer.is_crowded:
                time = next_tick(time, _TICK)
            self._looks_at = time
            self._timer.add(time, self)

    def is_called_at(self, time: float) -> bool:
        """Whether the stream is to be called at a ``time`` that has been set."""
        return time in (self._called_at, self._looks_at)  # and no earlier one was set after it

    def be_called(self, time: float) -> None:
        """The timer calls this at a ``time`` that has been set."""
        stream = self()
        if stream is None:
            return
        try:
            if time == self._looks_at:
                self._looks_at = math.inf
                self._look(stream)
            if time == self._called_at:
                self._called_at = math.inf
                self._call(stream)
        except Exception:  # noqa: BLE001  # The stream's task meets and raises it again.
            self.ring()

    def retire(self) -> None:
        """The stream has ended: ring for the last time, and do not warn of garbage."""
        self.ring()
        self._token = self.keeps = None
        self._called_at = self._looks_at = -math.inf
        if self._timer is not None:
            self._timer.forget_one()
            self._timer = None

    def _stop_sleeping(self, _: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        self.has_open_end = False
        return trio.lowlevel.Abort.SUCCEEDED


def _abandon(alarm: Alarm[Stream]) -> None:
    """The stream of ``alarm`` is garbage. The garbage collector may call this from any thread."""
    if alarm._token is not None:
        try:
            alarm._token.run_sync_soon(alarm.ring)
        except trio.RunFinishedError:
            pass
        message = (
            f"<{alarm._endpoints}> was never closed: use it in an `async with`, or call its aclose"
        )
        warnings.warn(message, ResourceWarning, stacklevel=2)


class _Timer:
    """Calls the streams of one Trio run. Its task lives as long as there are any."""

    __slots__ = ("_count", "_is_running", "_number", "_scope", "_times")

    def __init__(self) -> None:
        self._times: list[tuple[float, int, Alarm[Any]]] = []  # a heap
        self._number = itertools.count()  # of equal times the first is first
        self._count = 0  # of streams
        self._is_running = False
        self._scope = trio.CancelScope()  # what its task sleeps under

    @classmethod
    def for_one_more(cls) -> _Timer:
        """Return the timer of this run, for one more stream."""
        timer = _timers.get(None)
        if timer is None:
            timer = cls()
            _timers.set(timer)
        timer._count += 1
        return timer

    @property
    def is_crowded(self) -> bool:
        return self._count >= CROWD

    def add(self, time: float, alarm: Alarm[Any]) -> None:
        """Have ``alarm`` called at ``time``."""
        heapq.heappush(self._times, (time, next(self._number), alarm))
        if not self._is_running:
            self._is_running = True
            trio.lowlevel.spawn_system_task(self._run)
        elif time < self._scope.deadline:
            self._scope.deadline = time

    def forget_one(self) -> None:
        """One of the streams has ended."""
        self._count -= 1
        if not self._count:
            self._times.clear()
            self._scope.cancel()
        elif len(self._times) > _MOST_OF_EACH * self._count + _MOST_OF_EACH:
            self._times = [each for each in self._times if each[2].is_called_at(each[0])]
            heapq.heapify(self._times)

    async def _run(self) -> None:
        while self._count:
            wakes_at = self._times[0][0] if self._times else math.inf
            with trio.CancelScope(deadline=wakes_at) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._times and self._times[0][0] <= now:
                time, _, alarm = heapq.heappop(self._times)
                alarm.be_called(time)
        self._is_running = False


_timers: Final = trio.lowlevel.RunVar[_Timer | None]("timer of trio_wsstream")
