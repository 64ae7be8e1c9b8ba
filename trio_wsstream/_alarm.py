"""What the stream's own task waits under: an alarm that a deadline or another task can ring.

Theory of operation. The task waits either for nothing but the alarm (`sleep_until`), or for
something else, such as bytes from the transport, for as long as the alarm does not ring
(`reading_until`). `ring` ends both kinds of wait. A task that only sleeps is rescheduled directly,
because cancelling its scope would take three times as long.
"""

from __future__ import annotations

import trio


class Alarm:
    """An alarm for one task.

    Attributes:
      has_open_end (bool): the task sleeps, and its deadline does not take into account when the
          last caller has read. A caller that stops reading must call `set_no_later_than`.
    """

    __slots__ = ("_scope", "_sleeper", "has_open_end")

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None
        self._sleeper: trio.lowlevel.Task | None = None
        self.has_open_end = False

    async def sleep_until(self, deadline: float, *, has_open_end: bool) -> None:
        """Wait until ``deadline`` (in the run's clock), or until the alarm rings."""
        self.has_open_end = has_open_end
        with trio.CancelScope(deadline=deadline) as self._scope:
            self._sleeper = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_sleeping)
        self._scope = None
        self.has_open_end = False

    def reading_until(self, deadline: float) -> trio.CancelScope:
        """The cancel scope for another wait, which ends at ``deadline`` or when the alarm rings.

        The task must call `stop_reading` after it.
        """
        self._scope = scope = trio.CancelScope(deadline=deadline)
        return scope

    def stop_reading(self) -> None:
        """The wait under `reading_until` is over."""
        self._scope = None

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

    def _stop_sleeping(self, _: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED
