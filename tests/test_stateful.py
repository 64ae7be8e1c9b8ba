"""Both ends of a connection at once, in any order of calls, against a model of two pipes.

Trio runs in a thread, as hypothesis calls from outside; each rule returns when all of Trio's
tasks wait, and time stands still but for the rule that lets it pass.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    ProtocolViolation,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    WsEvent,
    WsStreamError,
)

from .support.faults import Fault, FaultyTransport, Kind
from .support.pairs import connection_pair
from .support.transports import TRANSPORTS

PATTERN = bytes(range(251)) * 5000  # what is sent, from its beginning on
AFTER_A_CUT = b"\xff"  # what is sent when something has not been sent whole


@attrs.define(eq=False)
class Call:
    """A call that is under way in a task of its own."""

    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    is_done: trio.Event = attrs.Factory(trio.Event)


@attrs.define(eq=False)
class End:
    """One end, and what the model knows of it.

    Attributes:
      sent: how much of `PATTERN` was given to send_all.
      cut (str): why not all of that was sent: "" (all was), "under way", "cancelled", "closed"
          by this end itself, or "broken".
      told (str): the end that receive_some told: "" (none), "clean", "broken", "closed".
    """

    transport: Any
    nursery: trio.Nursery  # with the stream's own tasks only
    stream: WsByteStream
    sent: int = 0
    cut: str = ""
    received: bytearray = attrs.Factory(bytearray)
    told: str = ""
    has_closed: bool = False  # in whatever way
    has_said_so: bool = False  # with a Close, perhaps
    has_half_closed: bool = False
    calls: dict[str, Call] = attrs.Factory(dict)
    channels: list[trio.MemoryReceiveChannel[WsEvent]] = attrs.Factory(list)
    events: list[list[WsEvent]] = attrs.Factory(list)

    @property
    def is_closed(self) -> bool:
        if isinstance(self.transport, FaultyTransport):
            return self.transport.is_closed
        return bool(self.transport.socket.fileno() == -1)

    async def send(self, size: int) -> None:
        before = self.cut
        is_refused = self.has_closed or self.has_half_closed
        if before or is_refused:
            data = AFTER_A_CUT * size
        else:
            data = PATTERN[self.sent : self.sent + size]
            self.sent += size
            self.cut = "under way"
        try:
            await self.stream.send_all(data)
            assert not is_refused
            outcome = ""
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        except trio.ClosedResourceError:
            assert self.has_closed or self.has_half_closed
            outcome = "closed"
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, WsStreamError)
            outcome = "broken"
        finally:
            self.cut = before if before or is_refused else outcome

    async def half_close(self) -> None:
        self.has_half_closed = self.has_said_so = True
        try:
            await self.stream.send_eof()
        except trio.ClosedResourceError:
            assert self.has_closed
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, WsStreamError)

    async def ping(self) -> None:
        try:
            assert await self.stream.ping() >= 0
        except trio.ClosedResourceError:
            assert self.has_closed or self.has_half_closed
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, WsStreamError)

    async def drop(self) -> None:
        self.has_closed = True
        await trio.aclose_forcefully(self.stream)
        await wait_all_tasks_blocked()
        assert self.is_closed
        fault = getattr(self.transport, "fault", None)
        if not (fault and fault.operation == "close"):  # which may have stalled before
            assert not self.nursery.child_tasks

    async def close(self) -> None:
        self.has_closed = self.has_said_so = True
        await self.stream.aclose()
        assert self.stream.closed is not None

    def read_events(self) -> None:
        for channel, events in zip(self.channels, self.events, strict=True):
            try:
                while True:
                    events.append(channel.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                pass


ENDS = st.integers(0, 1)


class TwoEnds(RuleBasedStateMachine):
    """The rules, and what must hold after each of them."""

    @initialize(
        transport=st.sampled_from(["memory", "lockstep", "unix"]),
        config=st.builds(
            StreamConfig,
            max_message_size=st.sampled_from([10, 65536]),
            receive_buffer_size=st.sampled_from([1, 30, 262144]),
            ping_interval=st.sampled_from([None, 20.0]),
        ),
        order=st.random_module(),
    )
    def open(self, transport: str, config: StreamConfig, order: object) -> None:
        self.config = config
        self.has_trouble = False  # of a kind that may break the connection
        self.failures: list[BaseException] = []
        self.clock = MockClock()
        is_running = threading.Event()

        async def run() -> None:
            self.token = trio.lowlevel.current_trio_token()
            async with (
                trio.open_nursery() as self.callers,
                trio.open_nursery() as self.nursery,
                trio.open_nursery() as first,
                trio.open_nursery() as second,
            ):
                self.nurseries = first, second
                self.stop = trio.CancelScope()
                with self.stop:
                    is_running.set()
                    await trio.sleep_forever()
                for nursery in (self.callers, self.nursery, first, second):
                    nursery.cancel_scope.cancel()

        self.thread = threading.Thread(target=trio.run, args=(run,), kwargs={"clock": self.clock})
        self.thread.start()
        is_running.wait()
        self.do(self._connect, transport)

    async def _connect(self, name: str) -> None:
        pair: tuple[Any, Any] = await TRANSPORTS[name]()
        if name != "unix":  # there the socket itself is used
            pair = FaultyTransport(pair[0]), FaultyTransport(pair[1])
        connections = await connection_pair(self.nursery, pair)
        self.ends = [
            End(transport, nursery, WsByteStream(connection, nursery, self.config))
            for transport, nursery, connection in zip(
                pair, self.nurseries, connections, strict=True
            )
        ]

    def do(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run ``function`` in Trio, and wait until all tasks are blocked."""

        async def run() -> None:
            await function(*args)
            await wait_all_tasks_blocked()

        trio.from_thread.run(run, trio_token=self.token)
        if self.failures:
            raise self.failures[0]

    def start(self, end: End, name: str, call: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that makes a call. ``name`` stands for it while it is under way."""

        async def run() -> None:
            try:
                with end.calls[name].scope:
                    await call(*args)
            except Exception as error:  # noqa: BLE001  # the rule raises it
                self.failures.append(error)
            finally:
                end.calls.pop(name).is_done.set()

        async def start() -> None:
            self.callers.start_soon(run)

        end.calls[name] = Call()
        self.do(start)

    # The rules

    @rule(end=ENDS, size=st.sampled_from([1, 9, 10, 11, 50, 1000, 20_000]))
    def send(self, end: int, size: int) -> None:
        if "send" not in self.ends[end].calls:
            self.start(self.ends[end], "send", self.ends[end].send, size)

    @rule(end=ENDS)
    def half_close(self, end: int) -> None:
        if "send" not in self.ends[end].calls:
            self.start(self.ends[end], "send", self.ends[end].half_close)

    @rule(end=ENDS, max_bytes=st.sampled_from([None, 1, 7]))
    def receive(self, end: int, max_bytes: int | None) -> None:
        if "receive" not in self.ends[end].calls:
            self.start(self.ends[end], "receive", self._receive, end, max_bytes)

    @rule(end=ENDS)
    def receive_cancelled(self, end: int) -> None:
        if "receive" not in self.ends[end].calls:
            self.do(self._receive_cancelled, end)

    async def _receive_cancelled(self, index: int) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await self._receive(index, None)

    async def _receive(self, index: int, max_bytes: int | None) -> None:
        end, peer = self.ends[index], self.ends[1 - index]
        try:
            data = await end.stream.receive_some(max_bytes)
        except trio.ClosedResourceError:
            assert end.has_closed
            end.told = "closed"
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, WsStreamError)
            assert not isinstance(error.__cause__, ProtocolViolation)
            assert self.has_trouble
            assert end.told != "clean"
            end.told = "broken"
        else:
            if data:
                assert not end.told
                end.received += data
                self._check_received(end, peer)
            else:
                assert end.told in ("", "clean")
                end.told = "clean"
                self._check_clean_end(end, peer)

    def _check_received(self, end: End, peer: End) -> None:
        whole, *after_a_cut = bytes(end.received).split(AFTER_A_CUT)
        assert PATTERN[: peer.sent].startswith(whole)
        assert not any(after_a_cut)
        assert peer.cut or not after_a_cut

    def _check_clean_end(self, end: End, peer: End) -> None:
        assert peer.has_said_so
        if peer.cut in ("", "broken"):
            assert end.received == PATTERN[: peer.sent]

    @rule(end=ENDS, number=st.integers(0, 2))
    def ping(self, end: int, number: int) -> None:
        if f"ping {number}" not in self.ends[end].calls:
            self.start(self.ends[end], f"ping {number}", self.ends[end].ping)

    @rule(end=ENDS, number=st.integers(0, 1))
    @precondition(lambda self: self.moves > 10)
    def close(self, end: int, number: int) -> None:
        if f"close {number}" not in self.ends[end].calls:
            self.start(self.ends[end], f"close {number}", self.ends[end].close)

    @rule(end=ENDS)
    @precondition(lambda self: self.moves > 30)
    def drop(self, end: int) -> None:
        self.has_trouble = True
        self.start(self.ends[end], "drop", self.ends[end].drop)

    @rule(end=ENDS, name=st.sampled_from(["send", "receive", "ping 0", "ping 1", "close 0"]))
    def cancel(self, end: int, name: str) -> None:
        call = self.ends[end].calls.get(name)
        if call is not None:
            self.has_trouble |= name in ("send", "close 0")
            self.do(self._cancel, call)

    async def _cancel(self, call: Call) -> None:
        call.scope.cancel()

    @rule(
        end=ENDS,
        kind=st.sampled_from([kind for kind in Kind if not kind.garbles]),
        operation=st.sampled_from(["receive", "send", "close"]),
    )
    @precondition(lambda self: self.moves > 10)
    def break_transport(self, end: int, kind: Kind, operation: str) -> None:
        transport = self.ends[end].transport
        if isinstance(transport, FaultyTransport) and transport.fault is None:
            transport.fault = Fault(kind, operation, 0)
            self.has_trouble = True

    @rule(end=ENDS, size=st.integers(0, 3), backpressure=st.booleans())
    def subscribe(self, end: int, size: int, backpressure: bool) -> None:
        async def subscribe() -> None:
            channel = self.ends[end].stream.subscribe(size, backpressure=backpressure)
            self.ends[end].channels.append(channel)
            self.ends[end].events.append([])

        self.do(subscribe)

    @rule(end=ENDS)
    def read_events(self, end: int) -> None:
        async def read() -> None:
            self.ends[end].read_events()

        self.do(read)

    @rule(end=ENDS, limit=st.sampled_from([70, 300]))
    def line_becomes_slow(self, end: int, limit: int | None) -> None:
        """Messages go out in fragments of at most ``limit`` bytes, until the line is fast again."""
        self.ends[end].stream._wire.limit = limit

    @rule(end=ENDS, limit=st.sampled_from([1, 7, 300]), size=st.sampled_from([50, 1000]))
    def cancel_between_fragments(self, end: int, limit: int, size: int) -> None:
        """This is likely to meet a message of which some fragments are written already."""
        self.line_becomes_slow(end, limit)
        self.send(end, size)
        self.cancel(end, "send")
        self.line_becomes_slow(end, None)

    @rule(seconds=st.sampled_from([0.01, 0.06, 5.0, 21.0]))
    def let_time_pass(self, seconds: float) -> None:
        for end in self.ends:
            is_half_closing = end.has_half_closed and "send" in end.calls
            if self.config.ping_interval or end.has_closed or is_half_closing:
                self.has_trouble = True  # a timeout, if the other end does not receive
        self.do(self._jump, seconds)

    async def _jump(self, seconds: float) -> None:
        self.clock.jump(seconds)

    moves = 0

    def check_invariants(self, *args: Any, **kwargs: Any) -> None:
        self.moves += 1
        super().check_invariants(*args, **kwargs)

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "thread"):
            return
        try:
            if not self.failures:
                if not (self.has_trouble or any(end.has_closed for end in self.ends)):
                    self._talk_to_the_end()
                self._close_both()
        finally:
            self.token.run_sync_soon(self.stop.cancel)
            self.thread.join()

    def _talk_to_the_end(self) -> None:
        """If nothing has gone wrong, all bytes that were sent arrive, and both ends."""
        for index, end in enumerate(self.ends):
            self.start(end, "last receive", self._receive_to_the_end, index)
            self.start(end, "last send", self._half_close_at_last, end)
        self.do(self._attend_to_events)
        for end, peer in (self.ends, reversed(self.ends)):
            assert end.told == "clean"
            assert end.received == PATTERN[: peer.sent]

    async def _receive_to_the_end(self, index: int) -> None:
        if call := self.ends[index].calls.get("receive"):
            call.scope.cancel()  # it loses nothing
            await call.is_done.wait()
        while not self.ends[index].told:
            await self._receive(index, None)

    async def _half_close_at_last(self, end: End) -> None:
        if call := end.calls.get("send"):
            await call.is_done.wait()
        await end.half_close()

    async def _attend_to_events(self) -> None:
        """Receive events until both ends have ended, because subscribers must not hold that up."""
        for _ in range(2000):
            if all(end.told for end in self.ends):
                break
            for end in self.ends:
                end.read_events()
            self.clock.jump(0.06)
            await wait_all_tasks_blocked()

    def _close_both(self) -> None:
        """Whatever has gone wrong, closing takes no longer than allowed, and nothing is left."""
        for end in self.ends:
            self.start(end, "closing", end.close)
        self.do(self._jump, self.config.close_timeout + 0.001)
        self.do(self._check_nothing_is_left)

    async def _check_nothing_is_left(self) -> None:
        await wait_all_tasks_blocked()
        assert not self.nursery.child_tasks
        for end in self.ends:
            assert not end.calls
            assert end.is_closed
            assert not end.nursery.child_tasks
            end.read_events()
            for events in end.events:
                assert [e for e in events if isinstance(e, StreamClosed)] == [end.stream.closed]
                assert events[-1] == end.stream.closed
            assert end.stream.closed is not None
            assert not isinstance(end.stream.closed.error, ProtocolViolation)


TwoEnds.TestCase.settings = settings(deadline=None, stateful_step_count=40)
TestTwoEnds = pytest.mark.slow(TwoEnds.TestCase)
