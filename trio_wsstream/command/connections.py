"""The connections that are open, and the line that is said of each when it ends."""

from __future__ import annotations

import itertools
import logging
import os
import re
import ssl
import struct
import weakref
from typing import Any

import attrs
import trio

from trio_wsstream import BridgeEnd, BridgeResult, WsByteStream, bridge

from . import log


@attrs.define(eq=False)
class Connection:
    """One that is open, or is being opened.

    Attributes:
      number (str): its number in the log.
      client (str): who has connected.
      target (str): what to, in words.
      path (str): the path of the client's request; empty where there is none.
      user (str): the name of its token, or the subject of its certificate.
      result (BridgeResult): what it has carried.
      ws (WsByteStream or None): its WebSocket, once that is open.
      local (trio.SocketStream or None): its other side, until `Connections.carry` has it.
    """

    number: str
    client: str
    target: str
    path: str = ""
    user: str = ""
    began_at: float = attrs.field(factory=trio.current_time)
    result: BridgeResult = attrs.field(factory=BridgeResult)
    ws: WsByteStream | None = None
    local: trio.SocketStream | None = None
    why_stopped: str = ""
    is_failure: bool = False

    def stop(self, why: str, *, is_failure: bool) -> None:
        """Its WebSocket is about to be closed by this side."""
        self.why_stopped = why
        self.is_failure = is_failure

    def __del__(self) -> None:
        """The client left while it was let in, so nobody has taken over the other side."""
        if self.local is not None:
            self.local.socket.close()

    @property
    def route(self) -> str:
        """``client (user) path to target``."""
        user = f" ({self.user})" if self.user else ""
        path = f" {self.path}" if self.path else ""
        return f"#{self.number} {self.client}{user}{path} to {self.target}"

    @property
    def traffic(self) -> str:
        sent, received = self.result.a_to_b.bytes_carried, self.result.b_to_a.bytes_carried
        seconds = trio.current_time() - self.began_at
        return f"{sent} bytes there, {received} back, {seconds:.1f} s"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "client": self.client,
            "user": self.user or None,
            "path": self.path or None,
            "target": self.target,
            "bytes_to_target": self.result.a_to_b.bytes_carried,
            "bytes_from_target": self.result.b_to_a.bytes_carried,
            "seconds": round(trio.current_time() - self.began_at, 3),
        }


class Counters:
    """How many connections each worker has, in memory that they share."""

    def __init__(self, workers: int) -> None:
        import mmap  # A connect has no use for it.

        self._memory = mmap.mmap(-1, 4 * workers)
        self._format = struct.Struct("I")

    def set(self, worker: int, count: int) -> None:
        self._format.pack_into(self._memory, 4 * worker, count)

    def total(self) -> int:
        return sum(count for (count,) in self._format.iter_unpack(self._memory[:]))


class Connections:
    """All of them.

    Args:
      limit (int or None): how many there may be, of all workers together.
      counters (Counters or None): shared by the workers; None: nobody asks for the count.
      worker (int or None): which of them this is; None: the only process.
    """

    def __init__(
        self, limit: int | None, counters: Counters | None = None, worker: int | None = None
    ) -> None:
        self.open: dict[Connection, None] = {}
        self.is_draining = False
        self._limit = limit
        self._counters = counters
        self._worker = worker
        self._numbers = itertools.count(1)
        # Those that are being opened. One that fails is nobody's any more, and goes by itself.
        self._opening: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._changed = trio.lowlevel.ParkingLot()

    def begin(self, client: str, target: str, path: str = "", user: str = "") -> Connection:
        """One that is being opened."""
        prefix = "" if self._worker is None else f"{self._worker + 1}."
        connection = Connection(f"{prefix}{next(self._numbers)}", client, target, path, user)
        self._opening.add(connection)
        self._count()
        return connection

    def is_full(self) -> bool:
        self._count()
        limit, counters = self._limit, self._counters
        return limit is not None and counters is not None and counters.total() >= limit

    def _count(self) -> None:
        if self._counters is not None:
            self._counters.set(self._worker or 0, len(self._opening) + len(self.open))

    async def carry(
        self,
        connection: Connection,
        ws: WsByteStream,
        local: Any,
        *,
        names: tuple[str, str],
        ws_first: bool,
    ) -> bool:
        """Carry it to its end, and say how it ended. Whether nothing was lost.

        Args:
          names: what the side that connected is called, and the other one.
          ws_first: whether the WebSocket is the side that connected.
        """
        connection.ws = ws
        connection.local = None
        self._opening.discard(connection)
        self.open[connection] = None
        self._count()
        a, b = (ws, local) if ws_first else (local, ws)
        if log.is_told(logging.DEBUG):
            log.tell("open", f"{connection.route}: open", logging.DEBUG, **connection.facts)
        why, has_failed = "dropped", True
        try:
            result = await bridge(a, b, result=connection.result)
            why = connection.why_stopped or why_ended(result, *names)
            has_failed = connection.is_failure if connection.why_stopped else bool(result.error)
        finally:
            del self.open[connection]
            self._count()
            self._changed.unpark_all()
            level = logging.WARNING if has_failed else logging.INFO
            if log.is_told(level):
                text = f"{connection.route}: {connection.traffic}: {why}"
                log.tell("end", text, level, **connection.facts, failed=has_failed, why=why)
        return not has_failed

    def forget(self, connection: Connection) -> None:
        """It could not be opened."""
        self._opening.discard(connection)
        self._count()
        self._changed.unpark_all()

    async def wait_until_none(self, *, of_all: bool) -> None:
        """Wait until none is open.

        Args:
          of_all: nor being opened.
        """
        while self.open or (of_all and self._opening):
            await self._changed.park()

    async def close_all(self) -> None:
        """Close the WebSocket of each with 1001, and wait until they have ended."""
        async with trio.open_nursery() as nursery:
            for connection in self.open:
                connection.stop("closed with 1001: stopping", is_failure=True)
                if connection.ws is not None:
                    nursery.start_soon(connection.ws.aclose, 1001)
            await self.wait_until_none(of_all=False)

    def tell_all(self) -> None:
        """Write a table of what is open."""
        count = len(self.open)
        log.warn("table", f"{count} connection{'' if count == 1 else 's'} open", count=count)
        for connection in self.open:
            log.warn("row", f"{connection.route}: {connection.traffic}", **connection.facts)


def why_ended(result: BridgeResult, a: str, b: str) -> str:
    """In words.

    Args:
      a, b: what the two sides are called.
    """
    there, back = result.a_to_b, result.b_to_a
    for direction, source, sink in ((there, a, b), (back, b, a)):
        if direction.error is not None:
            side = sink if direction.end in (BridgeEnd.SINK_FAILED, BridgeEnd.CUT_OFF) else source
            return f"{side} failed: {describe(direction.error)}"
    for direction, sink in ((there, b), (back, a)):
        if direction.end is BridgeEnd.CUT_OFF:
            return f"{sink} closed the WebSocket"
    return "both directions ended"


def describe(error: BaseException) -> str:
    """An error in words: what the system says, if it was the system's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return re.sub(r"^\[SSL: \w+\] | \(_ssl\.c:\d+\)$", "", cause.args[-1])
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        # Trio has a group, of one for each address that it has tried.
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__
    return re.sub(r"\w+Error\(\d+, '([^']*)'\)", r"\1", str(error) or repr(error))
