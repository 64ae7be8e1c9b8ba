"""Transports that misbehave, and an exchange over them that says what must hold all the same."""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import (
    ErrorOccurred,
    StreamClosed,
    StreamConfig,
    TakeoverError,
    WsByteStream,
    WsEvent,
    WsStreamError,
)

from .pairs import connection_pair
from .tasks import background
from .transports import unix_transport

PATIENCE = 100.0  # seconds until a caller gives up: more than all timeouts together


class Kind(enum.Enum):
    """What goes wrong: from then on, but for the last two."""

    ERROR = "an error"
    RESET = "a reset"
    EOF = "an end"
    PARTIAL = "a part, then an error"
    STALL = "nothing any more"
    DRIBBLE = "one byte at a time"
    DUPLICATED = "a byte twice"
    DROPPED = "a byte less"

    @property
    def garbles(self) -> bool:
        """Whether other bytes arrive than were sent: over TCP, too, all bets are off then."""
        return self in (Kind.DUPLICATED, Kind.DROPPED)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody is told. (A lost byte may leave both ends waiting for a frame's rest.)"""
        return self is Kind.STALL or self.garbles


@attrs.frozen
class Fault:
    """What goes wrong where.

    Args:
      kind (Kind): what.
      operation (str): "receive", "send" or "close".
      at (int): the how-manieth of these (or the how-manieth byte), from 0.
    """

    kind: Kind
    operation: str
    at: int


def garbled(kind: Kind, data: bytes, at: int) -> bytes:
    if kind is Kind.DUPLICATED:
        return data[: at + 1] + data[at:]
    assert kind is Kind.DROPPED
    return data[:at] + data[at + 1 :]


class FaultyTransport(trio.abc.HalfCloseableStream):
    """A stream over ``inner``, on which one operation goes wrong.

    A read counts when it has ended, everything else when it begins.

    Attributes:
      fault (Fault or None): what is to go wrong, counted from when it is set.
      has_struck (bool): it has.
      is_closed (bool): somebody has closed this transport.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.has_struck = False
        self.is_closed = False
        self._closing = trio.Event()
        self._fault: Fault | None = None
        self._count = itertools.count()
        self._lasting: dict[str, Kind] = {}

    @property
    def fault(self) -> Fault | None:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        self._count = itertools.count()

    def _strikes(self, operation: str) -> Kind | None:
        """What is wrong with this operation."""
        fault = self._fault
        if fault and fault.operation == operation and next(self._count) == fault.at:
            self.has_struck = True
            if not fault.kind.garbles:
                self._lasting[operation] = fault.kind
            if fault.kind is Kind.RESET:
                self._lasting = dict.fromkeys(("receive", "send"), Kind.RESET)
            return fault.kind
        return self._lasting.get(operation)

    async def _fail(self, kind: Kind) -> None:
        if kind is Kind.STALL:
            await self._closing.wait()
            raise trio.ClosedResourceError("closed while it stalled")
        if kind is Kind.RESET:
            await trio.aclose_forcefully(self.inner)
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("broken on purpose") from ConnectionResetError(kind.value)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        lasting = self._lasting.get("receive")
        if lasting is Kind.EOF:
            await trio.lowlevel.checkpoint()
            return b""
        if lasting not in (None, Kind.DRIBBLE):
            await self._fail(lasting)
        data = bytes(await self.inner.receive_some(1 if lasting else max_bytes))
        if lasting:
            return data
        kind = self._strikes("receive")
        if kind is None or kind is Kind.DRIBBLE:
            return data
        if kind is Kind.PARTIAL and data:
            return data[: (len(data) + 1) // 2]
        if kind is Kind.EOF:
            return b""
        if not kind.garbles:
            await self._fail(kind)
        return garbled(kind, data, len(data) // 2) or await self.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        lasting = self._lasting.get("send")
        kind = self._strikes("send")
        if kind is None:
            await self.inner.send_all(data)
        elif kind is Kind.DRIBBLE:
            for byte in bytes(data):
                await self.inner.send_all(bytes((byte,)))
        elif kind.garbles:
            await self.inner.send_all(garbled(kind, bytes(data), len(data) // 2))
        else:
            if not lasting and kind is Kind.PARTIAL:
                await self.inner.send_all(bytes(data)[: len(data) // 2])
            if not lasting and kind is Kind.EOF:
                await self.inner.send_eof()
            await self._fail(kind)

    async def wait_send_all_might_not_block(self) -> None:
        await self._instead("send", self.inner.wait_send_all_might_not_block)

    async def send_eof(self) -> None:
        await self._instead("send", self.inner.send_eof)

    async def _instead(self, operation: str, do: Callable[[], Awaitable[None]]) -> None:
        kind = self._strikes(operation)
        if kind is None or kind is Kind.DRIBBLE or kind.garbles:
            await do()
        else:
            await self._fail(kind)

    async def aclose(self) -> None:
        self.is_closed = True
        self._closing.set()
        kind = self._strikes("close")
        try:
            if kind is Kind.STALL:
                await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(self.inner)
        if kind:
            raise trio.BrokenResourceError("broken on purpose")


class Middlebox:
    """Carries bytes between two sockets, until ``fault`` strikes.

    The fault's operation is "send" for what the first end sends and "receive" for the other way;
    it strikes before the byte of that number.
    """

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.has_struck = False
        self._stop = trio.CancelScope()

    async def open(self, nursery: trio.Nursery) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Both ends. Whatever one writes is there for the other once all tasks wait."""
        first, first_inside = await unix_transport()
        second_inside, second = await unix_transport()
        nursery.start_soon(self._run, first_inside, second_inside)
        return first, second

    async def _run(self, first: trio.SocketStream, second: trio.SocketStream) -> None:
        async with first, second:
            with self._stop:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, "send", first, second)
                    nursery.start_soon(self._carry, "receive", second, first)

    async def _carry(
        self, operation: str, source: trio.SocketStream, target: trio.SocketStream
    ) -> None:
        left = math.inf  # bytes until the fault; counted from when it is set
        is_dribbling = False
        try:
            while data := bytes(await source.receive_some(1 if is_dribbling else None)):
                fault = self.fault
                if fault and fault.operation == operation and not self.has_struck:
                    left = min(left, fault.at)
                    if left < len(data):
                        self.has_struck = True
                        if fault.kind is Kind.DRIBBLE:
                            is_dribbling = True
                        elif fault.kind.garbles:
                            data = garbled(fault.kind, data, int(left))
                        else:
                            if left:
                                await target.send_all(data[: int(left)])
                            await self._fail(fault.kind, target)
                            return
                    left -= len(data)
                if data:
                    await target.send_all(data)
            await target.send_eof()
        except trio.BrokenResourceError:
            self._stop.cancel()  # one of the ends has closed: so does the other

    async def _fail(self, kind: Kind, target: trio.SocketStream) -> None:
        if kind is Kind.STALL:
            return
        if kind is Kind.EOF:
            await target.send_eof()
        else:
            self._stop.cancel()


# The exchange


@attrs.frozen
class Plan:
    """What two ends say to each other.

    Args:
      client, server: the pieces that each sends.
      half_close: the server answers the client's half-close with its last piece; else each
          closes when it has all.
      is_late: the server's connection is taken over only when the client waits for it.
      is_hasty: who is told that the connection broke closes it before anything else runs.
      pings: how many pings each side sends.
    """

    client: Sequence[bytes]
    server: Sequence[bytes]
    half_close: bool = True
    is_late: bool = False
    is_hasty: bool = False
    pings: int = 1
    config: StreamConfig = attrs.Factory(StreamConfig)


@attrs.define
class Side:
    """One end of the exchange, and what came of it."""

    plan: Plan
    is_client: bool
    stream: WsByteStream | None = None
    events: list[WsEvent] = attrs.Factory(list)
    received: bytearray = attrs.Factory(bytearray)
    has_said_all: bool = False
    has_ended_cleanly: bool = False
    has_half_closed: bool = False
    error: WsStreamError | None = None
    gave_up: bool = False
    _told: trio.Event = attrs.Factory(trio.Event)  # the end that receive_some told

    @property
    def pieces(self) -> Sequence[bytes]:
        return self.plan.client if self.is_client else self.plan.server

    @property
    def expected(self) -> bytes:
        return b"".join(self.plan.server if self.is_client else self.plan.client)

    async def talk(self, stream: WsByteStream) -> None:
        self.stream = stream
        events = stream.subscribe(math.inf)
        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, stream)
                nursery.start_soon(self._send, stream)
                nursery.start_soon(self._ping, stream)
        self.gave_up = scope.cancelled_caught
        with trio.fail_after(self.plan.config.close_timeout + 0.001):
            await stream.aclose()
        self.events = [event async for event in events]

    async def _receive(self, stream: WsByteStream) -> None:
        try:
            async for chunk in stream:
                assert chunk
                self.received += chunk
                if self._knows_the_end() and len(self.received) >= len(self.expected):
                    break
            else:
                self.has_ended_cleanly = True
                assert await stream.receive_some() == b""
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, WsStreamError)
            self.error = error.__cause__
            if self.plan.is_hasty:
                await stream.aclose()
                return
            with pytest.raises(trio.BrokenResourceError) as again:
                await stream.receive_some()
            assert again.value.__cause__ is self.error
        finally:
            self._told.set()

    def _knows_the_end(self) -> bool:
        return not (self.plan.half_close or self.is_client)

    async def _send(self, stream: WsByteStream) -> None:
        try:
            *pieces, last = self.pieces
            for piece in pieces:
                await stream.send_all(piece)
            if not self.is_client:
                await self._told.wait()
            await stream.wait_send_all_might_not_block()
            await stream.send_all(last)
            self.has_said_all = True
            if self.is_client and self.plan.half_close:
                await stream.send_eof()
                self.has_half_closed = True
        except trio.ClosedResourceError:
            assert self.plan.is_hasty
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, WsStreamError)

    async def _ping(self, stream: WsByteStream) -> None:
        try:
            for _ in range(self.plan.pings):
                await stream.ping()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@attrs.frozen
class Outcome:
    """What an exchange came to."""

    has_struck: bool
    seconds: float
    client: Side
    server: Side


async def exchange(plan: Plan, fault: Fault | None, at_client: bool) -> Outcome:
    """Over two `FaultyTransport`s, one of which has ``fault``."""
    ends = tuple(map(FaultyTransport, trio.testing.memory_stream_pair()))
    faulty = ends[0 if at_client else 1]

    def arm() -> None:
        faulty.fault = fault

    outcome = await _exchange(plan, ends, arm, lambda: faulty.has_struck)
    assert all(end.is_closed for end in ends)
    check(plan, fault if faulty.has_struck else None, outcome)
    return outcome


async def exchange_through_sockets(plan: Plan, fault: Fault | None) -> Outcome:
    """Over two sockets, with a `Middlebox` between them that has ``fault``."""
    middlebox = Middlebox()
    async with trio.open_nursery() as nursery:  # the middlebox ends when both ends have
        ends = await middlebox.open(nursery)

        def arm() -> None:
            middlebox.fault = fault

        outcome = await _exchange(plan, ends, arm, lambda: middlebox.has_struck)
        assert all(end.socket.fileno() == -1 for end in ends)
        nursery.cancel_scope.cancel()  # if it has stalled
    check(plan, fault if middlebox.has_struck else None, outcome)
    return outcome


async def _exchange(
    plan: Plan, ends: Any, arm: Callable[[], None], has_struck: Callable[[], bool]
) -> Outcome:
    client, server = Side(plan, True), Side(plan, False)

    async def take_over_late(nursery: trio.Nursery, connection: Any) -> None:
        await wait_all_tasks_blocked()
        try:
            stream = WsByteStream(connection, nursery, plan.config)
        except TakeoverError:  # trio-websocket has met what was wrong, and closed
            await connection.aclose()
        else:
            await server.talk(stream)

    async with background() as nursery:
        connections = await connection_pair(nursery, ends)
        await wait_all_tasks_blocked()
        started_at = trio.current_time()
        arm()
        async with trio.open_nursery() as talk:
            stream = WsByteStream(connections[0], nursery, plan.config)
            talk.start_soon(client.talk, stream)
            if plan.is_late:
                talk.start_soon(take_over_late, nursery, connections[1])
            else:
                stream = WsByteStream(connections[1], nursery, plan.config)
                talk.start_soon(server.talk, stream)
        seconds = trio.current_time() - started_at
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks, "a task is left"
    return Outcome(has_struck(), seconds, client, server)


def check(plan: Plan, fault: Fault | None, outcome: Outcome) -> None:
    """What must hold, whatever went wrong."""
    kind = fault.kind if fault else None
    for side, peer in ((outcome.client, outcome.server), (outcome.server, outcome.client)):
        if side.stream is None:  # the takeover was refused
            assert kind is not None
            assert kind.garbles
            continue
        assert [e for e in side.events if isinstance(e, StreamClosed)] == [side.stream.closed]
        assert side.events[-1] == side.stream.closed
        assert sum(isinstance(event, ErrorOccurred) for event in side.events) <= 1
        if side.error is not None:
            assert side.stream.closed is not None
            assert side.stream.closed.error == side.error
        if kind is None or not kind.garbles:
            assert side.expected.startswith(side.received)
            if side.has_ended_cleanly:
                assert side.received == side.expected
                assert peer.has_said_all
        if side.gave_up:
            assert kind is not None
            assert kind.is_quiet
            # Keepalive notices a stall, but rests once a Close has passed.
            assert kind.garbles or side.has_half_closed or side.has_ended_cleanly
        if kind in (None, Kind.DRIBBLE):
            assert side.received == side.expected
            assert side.error is None
            assert side.stream.closed == StreamClosed(
                1000, _reason(plan, side), clean=True, error=None
            )


def _reason(plan: Plan, side: Side) -> str:
    return "half-close" if plan.half_close and not side.is_client else ""
