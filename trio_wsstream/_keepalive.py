"""When to send a sign of life, and when to give the peer up: arithmetic. No I/O, no clock, no Trio.

Theory of operation. There are two promises, each with its own clock.

*To the peer*: an end that has sent nothing for `interval` seconds sends something. It sends a Ping
if it has heard nothing for as long, and otherwise an unsolicited Pong (RFC 6455, 5.5.3). So a peer
that counts any byte as life never takes a slow or paused reader for dead. This clock never stands
still.

*To the caller*: when nothing has been heard for `interval` seconds, a Ping goes out. When nothing
has been heard for `timeout` seconds more, the peer is given up. This clock stands still while our
own side holds reading back, because a peer that we do not listen to may well be alive. It runs on
when no Ping can go out, because a connection that takes no bytes may well be dead.

*A last look*: an event loop that was held up may find the deadline past while the peer's Pong lies
in the socket. So the peer is given up only after `LAST_LOOK` seconds in which somebody really read.

The owner sets `last_heard_at` whenever bytes came. It asks `next_action` whenever `due_at` has
come, or something has changed, and does what it is told. Writing is too frequent to read a clock
each time, so the owner only tells whether anything was written since it asked before. The exact
time is then unknown. `next_action` takes the earliest possible one, and wants to be asked more
often.
"""

from __future__ import annotations

import enum
import math
from typing import Final

LAST_LOOK: Final = 0.05
"""Seconds of reading that come before a peer is given up, unless `timeout` is shorter than twice
that."""


class Action(enum.Enum):
    """What is due."""

    PING = enum.auto()
    HEARTBEAT = enum.auto()  # an unsolicited Pong
    GIVE_UP = enum.auto()


class Keepalive:
    """The two clocks of one connection. All times are seconds of one clock.

    Args:
      interval (float or None): `StreamConfig.ping_interval`; None switches both clocks off.
      timeout (float or None): `StreamConfig.ping_timeout`; None: the peer is never given up.
      now (float): the time.

    Attributes:
      last_heard_at (float): when bytes last came; the owner sets it.
      due_at (float): when to ask `next_action` again at the latest.
      is_held (bool): as the owner last said.
      is_looking (bool): the last look is under way, so that somebody must read.
    """

    __slots__ = (
        "_asked_at",
        "_held_since",
        "_interval",
        "_last_sent_at",
        "_looks_since",
        "_pinged_at",
        "_timeout",
        "due_at",
        "last_heard_at",
    )

    def __init__(self, interval: float | None, timeout: float | None, now: float) -> None:
        self._interval = math.inf if interval is None else interval
        self._timeout = math.inf if timeout is None else timeout
        self.last_heard_at = self._last_sent_at = self._asked_at = now
        self._pinged_at: float | None = None  # since when a sign of life is overdue
        self._looks_since: float | None = None
        self._held_since: float | None = None
        self.due_at = now + self._interval

    @property
    def is_held(self) -> bool:
        return self._held_since is not None

    @property
    def is_looking(self) -> bool:
        return self._looks_since is not None

    @property
    def gives_up(self) -> bool:
        """Whether a silent peer is ever given up."""
        return self._interval + self._timeout < math.inf

    def note_accepted(self, at: float) -> None:
        """Bytes of ours that had to wait were accepted then: both sides have shown life."""
        self.last_heard_at = max(self.last_heard_at, at)
        self._last_sent_at = max(self._last_sent_at, at)

    def next_action(
        self, now: float, *, can_send: bool, is_held: bool, has_written: bool
    ) -> Action | None:
        """What to do now; None: nothing before `due_at`.

        Args:
          now: the time.
          can_send: whether control frames may be sent.
          is_held: our own side holds reading back.
          has_written: something was written since this was called before.
        """
        self._hold(now, is_held)
        if has_written:
            self._last_sent_at = max(self._last_sent_at, self._asked_at)
        self._asked_at = now
        if self._pinged_at is not None and self.last_heard_at >= self._pinged_at:
            self._pinged_at = self._looks_since = None
        is_quiet = not is_held and now >= self.last_heard_at + self._interval
        if can_send and (now >= self._last_sent_at + self._interval):
            self._last_sent_at = now
            if not is_quiet:
                return Action.HEARTBEAT
            if self._pinged_at is None:
                self._pinged_at = now
            return Action.PING
        if is_quiet and self._pinged_at is None:
            self._pinged_at = now
            if can_send:
                self._last_sent_at = now
                return Action.PING
        if not is_held and now >= self._gives_up_at(now):
            return Action.GIVE_UP
        self._set_due(now, can_send, is_held, has_written)
        return None

    def _hold(self, now: float, is_held: bool) -> None:
        """The second clock stands still from when reading is held back until it is not."""
        if is_held and self._held_since is None:
            self._held_since = now
        elif not is_held and self._held_since is not None:
            pause = now - self._held_since
            self.last_heard_at = min(now, self.last_heard_at + pause)
            if self._pinged_at is not None:
                self._pinged_at += pause
            self._looks_since = self._held_since = None

    def _gives_up_at(self, now: float) -> float:
        """When the peer is given up, if no sign of life comes before and the last look is taken."""
        if self._pinged_at is None:
            return math.inf
        silent_until = self._pinged_at + self._timeout
        look = min(LAST_LOOK, self._timeout / 2)
        if self._looks_since is None and now >= silent_until - look:
            self._looks_since = now
        if self._looks_since is None:
            return silent_until
        return max(silent_until, self._looks_since + look)

    def _set_due(self, now: float, can_send: bool, is_held: bool, has_written: bool) -> None:
        self.due_at = now + (self._interval / 2 if has_written else self._interval)
        if can_send:
            self.due_at = min(self.due_at, self._last_sent_at + self._interval)
        if not is_held:
            if self._pinged_at is None:
                self.due_at = min(self.due_at, self.last_heard_at + self._interval)
            elif self._looks_since is not None:
                self.due_at = min(self.due_at, self._gives_up_at(now))
            else:
                look = min(LAST_LOOK, self._timeout / 2)
                self.due_at = min(self.due_at, self._pinged_at + self._timeout - look)
