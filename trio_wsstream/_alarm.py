"""What the stream's own task waits under: an alarm that a deadline or another task can ring.

Theory of operation. The task waits either for nothing but the alarm (`sleep_until`), or for bytes
from the transport as well (`read_until`). `ring` ends both kinds of wait. A task that only sleeps
is rescheduled directly, because cancelling its scope would take three times as long.

The alarm is also a weak reference to the stream, and a waiting task holds no other. Once the stream
is garbage, nobody can close it any more. Then the alarm warns and rings, and the task, which finds
no stream, closes the transport.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Awaitable
from typing import Final, TypeVar

import trio

from ._errors import ProtocolViolation
from ._transport import Endpoints

Stream = TypeVar("Stream")
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

    Attributes:
      has_open_end (bool): the task sleeps, and its deadline does not take into account when the
          last caller has read. A caller that stops reading must call `set_no_later_than`.
      keeps: the stream, while it must not become garbage; else None.
    """

    __slots__ = ("_endpoints", "_scope", "_sleeper", "_token", "has_open_end", "keeps")

    def __new__(cls, stream: Stream, endpoints: Endpoints) -> Alarm[Stream]:
        return super().__new__(cls, stream, _abandon)

    def __init__(self, stream: Stream, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._token: trio.lowlevel.TrioToken | None = trio.lowlevel.current_trio_token()
        self._scope: trio.CancelScope | None = None
        self._sleeper: trio.lowlevel.Task | None = None
        self.has_open_end = False
        self.keeps: Stream | None = None

    async def sleep_until(self, deadline: float, *, has_open_end: bool) -> None:
        """Wait until ``deadline`` (in the run's clock), or until the alarm rings."""
        self.has_open_end = has_open_end
        with trio.CancelScope(deadline=deadline) as self._scope:
            self._sleeper = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_sleeping)
        self._scope = None
        self.has_open_end = False

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
        self._scope = None
        self.has_open_end = False

    def set_no_later_than(self, deadline: float, *, has_open_end: bool) -> None:
        """Let the sleep that is under way end at ``deadline`` at the latest."""
        self.has_open_end = has_open_end
        assert self._scope is not None
        self._scope.deadline = min(self._scope.deadline, deadline)

    def retire(self) -> None:
        """The stream has ended: ring for the last time, and do not warn of garbage."""
        self.ring()
        self._token = self.keeps = None

    def _stop_sleeping(self, _: object) -> trio.lowlevel.Abort:
        self._sleeper = None
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
