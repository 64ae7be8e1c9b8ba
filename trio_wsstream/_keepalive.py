"""When to send a sign of life, and when to give the peer up: arithmetic. No I/O, no clock, no Trio.

Theory of operation. There are two promises, each with its own clock.

*To the peer*: an end that has sent nothing for `interval` seconds sends something. It sends a Ping
if it has heard nothing for as long, and otherwise an unsolicited Pong (RFC 6455, 5.5.3). So a peer
that counts any byte as life never takes a slow or paused reader for dead. This clock never stands
still.

*To the caller*: when nothing has been heard for `interval` seconds, a Ping goes out. When nothing
has been heard for `timeout` seconds more, the peer is given up. The silence begins anew when our
own side holds reading back, because a peer that we do not listen to may well be alive. It goes on
when no Ping can go out, because a connection that takes no bytes may well be dead.

*A last look*: an event loop that was held up may find the deadline past while the peer's Pong lies
in the socket. So the peer is given up only after `LAST_LOOK` seconds in which somebody really read.

*Many connections* of one process, opened together, would all speak at the same moment. So if there
are many, a new one has an interval of its own. It is shorter than what was asked for, because the
first promise still holds. The two ends then seldom speak at the same moment either, and the second
one need not: what it has heard from the first is a sign of life. But to wake the process for each
of them would cost twice as much. So they are due at ticks, and those of a tick speak together.

The owner notes when bytes came and went. It asks `next_action` whenever `due_at` has come, or
something has changed, and does what it is told, and asks again until it is told nothing.
"""

from __future__ import annotations

import enum
import math
import random
from typing import Final

LAST_LOOK: Final = 0.05
"""Seconds of reading that come before a peer is given up, unless `timeout` is shorter than twice
that."""


SOON: Final = 0.5
"""Seconds until the sign of life that `Keepalive.speak_soon` asks for, unless `interval` is shorter
than four times that."""


CROWD: Final = 100
"""If so many connections are open, a new one has an interval of its own."""

_SPREAD: Final = 0.1  # of an interval: how much shorter it becomes at the most
_TICK: Final = 0.01  # of an interval


class Action(enum.Enum):
    """What is due."""

    PING = enum.auto()
    HEARTBEAT = enum.auto()  # an unsolicited Pong
    GIVE_UP = enum.auto()


def next_tick(time: float, tick: float) -> float:
    """Return a multiple of ``tick`` that is not before ``time``, and not more than a tick later."""
    return max(time, math.ceil(time / tick) * tick)  # A rounded product may be before it.


class Keepalive:
    """The two clocks of one connection. All times are seconds of one clock.

    Args:
      interval (float or None): `StreamConfig.ping_interval`; None switches both clocks off.
      timeout (float or None): `StreamConfig.ping_timeout`; None: the peer is never given up.
      now (float): the time.
      others (int): how many connections are open.

    Attributes, to be set:
      last_heard_at (float): when the peer last gave a sign of life.
      last_sent_at (float): when bytes last went out.

    Attributes, to be read:
      due_at (float): when to ask `next_action` again at the latest.
      is_held (bool): our own side held reading back when `next_action` was last asked.
      is_looking (bool): the last look is under way, so that somebody must read.
    """

    __slots__ = (
        "_interval",
        "_looks_since",
        "_overdue_since",
        "_speaks_at",
        "_tick",
        "_timeout",
        "due_at",
        "is_held",
        "last_heard_at",
        "last_sent_at",
    )

    def __init__(
        self, interval: float | None, timeout: float | None, now: float, others: int = 0
    ) -> None:
        self._tick: float | None = None
        if interval is not None and others >= CROWD:
            self._tick = _TICK * interval
            interval *= 1 - _TICK - (_SPREAD - _TICK) * random.random()
        self._interval = math.inf if interval is None else interval
        self._timeout = math.inf if timeout is None else timeout
        self.last_heard_at = self.last_sent_at = now
        self._overdue_since: float | None = None  # a sign of life: since its Ping, if one may go
        self._looks_since: float | None = None
        self._speaks_at = math.inf
        self.is_held = False
        self.due_at = self._at_tick(now + self._interval)

    @property
    def is_looking(self) -> bool:
        return self._looks_since is not None

    @property
    def gives_up(self) -> bool:
        """Whether a silent peer is ever given up."""
        return self._interval + self._timeout < math.inf

    def speak_soon(self, now: float) -> None:
        """Let a sign of life go out soon, although none is due."""
        self._speaks_at = now + min(SOON, self._interval / 4)

    def next_action(self, now: float, *, can_send: bool, is_held: bool) -> Action | None:
        """What to do now; None: nothing before `due_at`.

        Args:
          now: the time.
          can_send: whether control frames may be sent.
          is_held: our own side holds reading back.
        """
        if is_held or self.is_held:  # or has done so until now
            self.last_heard_at = now
        self.is_held = is_held
        if self._overdue_since is not None and self.last_heard_at >= self._overdue_since:
            self._overdue_since = self._looks_since = None

        is_silent = now >= self.last_heard_at + self._interval
        begins_to_ask = is_silent and self._overdue_since is None
        if begins_to_ask:
            self._overdue_since = now
        sends_at = min(self.last_sent_at + self._interval, self._speaks_at)
        if can_send and (begins_to_ask or now >= sends_at):
            self.last_sent_at, self._speaks_at = now, math.inf
            return Action.PING if is_silent else Action.HEARTBEAT

        gives_up_at = self._gives_up_at(now)
        if now >= gives_up_at:
            return Action.GIVE_UP
        self.due_at = sends_at if can_send else math.inf
        if self._overdue_since is None:
            self.due_at = min(self.due_at, self.last_heard_at + self._interval)
        elif self.is_looking:
            self.due_at = min(self.due_at, gives_up_at)
        else:
            self.due_at = min(self.due_at, gives_up_at - self._look)
        self.due_at = self._at_tick(self.due_at)
        return None

    def _at_tick(self, time: float) -> float:
        """Return the next tick, if there are ticks."""
        if self._tick is None or time == math.inf:
            return time
        return next_tick(time, self._tick)

    @property
    def _look(self) -> float:
        return min(LAST_LOOK, self._timeout / 2)

    def _gives_up_at(self, now: float) -> float:
        """When the peer is given up, unless it gives a sign of life; this begins the last look."""
        if self._overdue_since is None:
            return math.inf
        patience_ends_at = self._overdue_since + self._timeout
        if self._looks_since is None and now >= patience_ends_at - self._look:
            self._looks_since = now
        if self._looks_since is None:
            return patience_ends_at
        return max(patience_ends_at, self._looks_since + self._look)
