"""Subscriptions: what they see, lose and hold up; and pings."""

from __future__ import annotations

import gc
import itertools
import math
import socket
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ErrorOccurred,
    EventsLost,
    PingReceived,
    PongReceived,
    StreamClosed,
    StreamConfig,
    TextPolicy,
    TextReceived,
    WsByteStream,
    WsEvent,
    _stream,
)
from trio_wsstream._subscriptions import _Subscription as Subscription

from .support.frames import BINARY, CLOSE, PING, PONG, SIDES, TEXT, close_payload
from .support.pairs import stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events
from .support.tasks import background

CLOSED = StreamClosed(1000, "", True, None)


async def send_pings(peer: RawPeer, *numbers: int) -> None:
    for number in numbers:
        await peer.send(PING, b"%d" % number)


def ping(number: int) -> PingReceived:
    return PingReceived(b"%d" % number)


async def read_until_blocked(stream: WsByteStream, nursery: trio.Nursery) -> None:
    """Read what the peer has sent, until reading is held up."""

    async def read() -> None:
        try:
            while await stream.receive_some():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    nursery.start_soon(read)
    await wait_all_tasks_blocked()


async def test_events_come_in_the_order_of_the_wire() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=StreamConfig(text=TextPolicy.AS_EVENTS))
        events = stream.subscribe()
        await peer.send(PING, b"1")
        await peer.send(TEXT, b"2")
        await peer.send(PONG, b"3")
        await peer.send(CLOSE, close_payload(1000))
        await read_until_blocked(stream, nursery)
        assert await all_events(events) == [
            PingReceived(b"1"),
            TextReceived("2"),
            PongReceived(b"3"),
            CloseReceived(1000, ""),
            CLOSED,
        ]


async def test_each_subscriber_sees_the_kinds_it_wants_and_the_end() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        everything = stream.subscribe()
        pings = stream.subscribe(kinds=PingReceived)
        pongs_and_closes = stream.subscribe(kinds=[PongReceived, CloseReceived])
        nothing = stream.subscribe(kinds=[])
        await peer.send(PING, b"1")
        await peer.send(PONG, b"2")
        await peer.send(CLOSE, close_payload(1000))
        await read_until_blocked(stream, nursery)
        close = CloseReceived(1000, "")
        one, two = PingReceived(b"1"), PongReceived(b"2")
        assert await all_events(everything) == [one, two, close, CLOSED]
        assert await all_events(pings) == [one, CLOSED]
        assert await all_events(pongs_and_closes) == [two, close, CLOSED]
        assert await all_events(nothing) == [CLOSED]


async def test_who_subscribes_after_the_end_sees_the_end() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.transport.aclose()
        await read_until_blocked(stream, nursery)
        assert await all_events(stream.subscribe()) == [stream.closed]
        assert await all_events(stream.subscribe(0, kinds=PingReceived)) == [stream.closed]


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_a_full_channel_loses_new_events_and_tells_how_many(size: int) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(size)
        await send_pings(peer, *range(size + 4))
        await read_until_blocked(stream, nursery)
        for number in range(size):
            assert await events.receive() == ping(number)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()
        await send_pings(peer, 100)
        await wait_all_tasks_blocked()
        assert await events.receive() == EventsLost(4)
        assert await events.receive() == ping(100)


@pytest.mark.parametrize("size", [0, 1, 2, 5])
async def test_the_end_comes_through_a_full_channel(size: int) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(size)
        await send_pings(peer, *range(8))
        await peer.send(CLOSE, close_payload(1000))
        await read_until_blocked(stream, nursery)
        expected = [*map(ping, range(size)), EventsLost(9 - size), CLOSED]
        assert await all_events(events) == expected


async def test_loss_is_told_again_at_the_end_if_it_happens_again() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(1)
        await read_until_blocked(stream, nursery)
        for number in range(2):
            await send_pings(peer, number)
            await wait_all_tasks_blocked()
        assert await events.receive() == ping(0)
        for number in range(2, 5):
            await send_pings(peer, number)
            await wait_all_tasks_blocked()
        await peer.transport.aclose()
        lost, third, lost_again, closed = await all_events(events)
        assert (lost, third, lost_again) == (EventsLost(1), ping(2), EventsLost(3))
        assert isinstance(closed, StreamClosed)


async def test_a_channel_without_a_buffer_delivers_to_a_waiting_subscriber() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(0)
        await read_until_blocked(stream, nursery)
        seen: list[WsEvent] = []

        async def collect() -> None:
            seen.extend([await events.receive(), await events.receive()])

        nursery.start_soon(collect)
        await wait_all_tasks_blocked()
        await send_pings(peer, 1)
        await wait_all_tasks_blocked()
        await send_pings(peer, 2)
        await wait_all_tasks_blocked()
        assert seen == [ping(1), ping(2)]


async def test_an_unbounded_channel_loses_nothing() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(math.inf)
        await send_pings(peer, *range(500))
        await peer.send(CLOSE, close_payload(1000))
        await read_until_blocked(stream, nursery)
        assert await all_events(events) == [
            *map(ping, range(500)),
            CloseReceived(1000, ""),
            CLOSED,
        ]


async def test_closing_the_channel_ends_the_subscription() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        for size, backpressure in itertools.product((0, 1), (False, True)):
            stream.subscribe(size, backpressure=backpressure).close()
        await send_pings(peer, 1)
        await peer.send(BINARY, b"x")
        assert await stream.receive_some() == b"x"
        stream.subscribe()
        assert len(stream._subscriptions) == 1


async def test_subscribing_costs_no_more_the_more_have_subscribed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is kept of subscriptions that have ended."""
    asked = 0

    def is_over(subscription: Subscription) -> bool:
        nonlocal asked
        asked += 1
        return real_is_over(subscription)

    real_is_over = Subscription.is_over.fget
    monkeypatch.setattr(Subscription, "is_over", property(is_over))
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)
        channels = [stream.subscribe() for _ in range(1000)]
        assert asked < 2 * len(channels)
        for _ in range(5000):
            stream.subscribe().close()
        assert len(stream._subscriptions) < 2 * len(channels) + 2


@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)]
)
async def test_a_wrong_buffer_size_is_refused(size: int, error: type[Exception]) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)
        with pytest.raises(error, match=str(size)):
            stream.subscribe(size)


@pytest.mark.parametrize("kinds", [int, [int], [PingReceived, "PongReceived"]])
async def test_a_wrong_kind_is_refused(kinds: type[WsEvent]) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)
        with pytest.raises(TypeError, match="kinds must be"):
            stream.subscribe(kinds=kinds)


# Backpressure


async def test_with_backpressure_decoding_stops_at_the_event_that_must_wait() -> None:
    async with background() as nursery, trio.open_nursery() as reading:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(1, backpressure=True)
        wire = peer.frame(BINARY, b"one") + peer.frame(PING, b"1") + peer.frame(PING, b"2")
        await peer.transport.send_all(wire + peer.frame(BINARY, b"two") + peer.frame(PING, b"3"))
        assert await stream.receive_some() == b"one"
        received = []

        async def read() -> None:
            received.append(await stream.receive_some())

        reading.start_soon(read)
        await wait_all_tasks_blocked()
        assert received == []
        assert await events.receive() == ping(1)
        await wait_all_tasks_blocked()
        assert received == [b"two"]
        assert [await events.receive() for _ in range(2)] == [ping(2), ping(3)]


async def test_with_backpressure_nothing_is_lost_and_reading_stops(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        events = stream.subscribe(2, backpressure=True)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(50):
                await send_pings(peer, number)
                sent = number + 1

        nursery.start_soon(send)
        nursery.start_soon(take_all, peer)
        await trio.sleep(5)
        assert sent < 5
        assert [await events.receive() for _ in range(50)] == [ping(n) for n in range(50)]
        await trio.sleep(5)
        assert sent == 50


async def take_all(peer: RawPeer) -> None:
    try:
        while True:
            await peer.receive()
    except EOFError:
        pass


async def test_a_receive_some_cancelled_while_a_subscriber_is_full_loses_no_event() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(0, backpressure=True)
        await send_pings(peer, 1, 2)
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as reading:
                    reading.start_soon(stream.receive_some)
                    await wait_all_tasks_blocked()
                    scope.cancel()
        await read_until_blocked(stream, nursery)
        assert await events.receive() == ping(1)
        assert await events.receive() == ping(2)


async def test_a_full_subscriber_holds_up_data_but_no_aclose() -> None:
    async with background() as nursery, trio.open_nursery() as reading:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(1, backpressure=True)
        await send_pings(peer, 1, 2, 3)

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        reading.start_soon(read)
        await wait_all_tasks_blocked()
        await peer.send(CLOSE, close_payload(1000))
        await stream.aclose()
        assert await all_events(events) == [ping(1), EventsLost(3), CLOSED]


async def test_who_subscribes_while_the_stream_closes_holds_up_no_end() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        nursery.start_soon(stream.aclose)
        await wait_all_tasks_blocked()
        events = stream.subscribe(1, backpressure=True)
        await send_pings(peer, 1, 2)
        await peer.send(CLOSE, close_payload(1000))
        await wait_all_tasks_blocked()
        assert await all_events(events) == [ping(1), EventsLost(2), CLOSED]


async def test_a_full_subscriber_holds_up_no_close_of_the_peer() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(1, backpressure=True)
        await send_pings(peer, 1)
        await peer.send(CLOSE, close_payload(1000))
        assert await stream.receive_some() == b""
        assert await all_events(events) == [ping(1), CloseReceived(1000, ""), CLOSED]


async def test_a_full_subscriber_holds_up_no_failure() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(1, backpressure=True)
        await send_pings(peer, 1)
        await peer.send(3)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await peer.transport.aclose()
        one, lost, closed = await all_events(events)
        assert (one, lost) == (ping(1), EventsLost(1))
        assert isinstance(closed, StreamClosed)


async def test_an_event_that_still_waits_when_the_stream_is_dropped_is_told_as_lost() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(1, backpressure=True)
        nursery.start_soon(stream.receive_some)
        for payload in (b"1", b"2"):
            await peer.send(PING, payload)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [event async for event in events] == [
        PingReceived(b"1"),
        EventsLost(1),
        StreamClosed(1006, "", False, None),
    ]


@pytest.mark.parametrize("size", [0, 1])
async def test_an_event_that_is_taken_just_before_the_stream_closes_comes_once(size: int) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(size, kinds=PingReceived, backpressure=True)
        await send_pings(peer, 1, 2)
        await read_until_blocked(stream, nursery)
        first = [events.receive_nowait()]
        nursery.start_soon(peer.transport.aclose)
        await stream.aclose()
        *rest, last = first + await all_events(events)
        assert isinstance(last, StreamClosed)
        assert rest[0] == ping(1)
        assert sum(getattr(event, "count", 1) for event in rest) == 2


async def test_a_subscriber_that_closes_its_full_channel_lets_reading_go_on() -> None:
    async with background() as nursery, trio.open_nursery() as reading:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(0, backpressure=True)
        await send_pings(peer, 1)
        await peer.send(BINARY, b"x")

        async def read() -> None:
            assert await stream.receive_some() == b"x"

        reading.start_soon(read)
        await wait_all_tasks_blocked()
        events.close()


@pytest.mark.parametrize("waits", [True, False])
async def test_a_loop_over_a_subscription_that_is_left_lets_reading_go_on(waits: bool) -> None:
    gc.disable()
    try:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery)

            async def read_one_event() -> None:
                async for event in stream.subscribe(1, backpressure=True):
                    assert event == ping(1)
                    if waits:
                        await wait_all_tasks_blocked(0.1)  # until an event waits for room
                    break

            await send_pings(peer, 1, 2, 3, 4)
            await read_one_event()
            await peer.send(BINARY, b"data")
            with trio.fail_after(30):
                assert await stream.receive_some() == b"data"
    finally:
        gc.enable()


async def test_a_clone_of_a_channel_keeps_the_subscription() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe().clone()
        await trio.lowlevel.checkpoint()
        await send_pings(peer, 1)
        assert await events.receive() == ping(1)
        await trio.aclose_forcefully(stream)
        assert await all_events(events) == [StreamClosed(1006, "", False, None)]


async def test_a_subscription_may_be_forgotten_in_any_thread_and_after_the_run() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        held = [stream.subscribe(1, backpressure=True)]
        await send_pings(peer, 1, 2, 3)
        await peer.send(BINARY, b"data")
        await wait_all_tasks_blocked(0.1)  # until an event waits for room
        await trio.to_thread.run_sync(held.clear)
        with trio.fail_after(30):
            assert await stream.receive_some() == b"data"

    async def main() -> trio.MemoryReceiveChannel[WsEvent]:
        async with background() as nursery:
            stream, _ = await raw_pair(nursery)
            return stream.subscribe()

    await trio.to_thread.run_sync(lambda: trio.run(main) and None)


async def test_a_subscriber_with_backpressure_holds_up_the_others_together_with_the_data() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        slow = stream.subscribe(1, backpressure=True)
        quick = stream.subscribe(10)
        await send_pings(peer, 1, 2, 3)
        await read_until_blocked(stream, nursery)
        assert [quick.receive_nowait() for _ in range(2)] == [ping(1), ping(2)]
        with pytest.raises(trio.WouldBlock):
            quick.receive_nowait()
        assert await slow.receive() == ping(1)
        await wait_all_tasks_blocked()
        assert quick.receive_nowait() == ping(3)


# Every order of things

DROPS = ("drop", "drop the connection", "cancel the nursery")
CLOSES = ("aclose", "the peer closes", "text")


class Subscriber:
    """A subscriber that takes events at any pace and remembers them."""

    def __init__(self, stream: WsByteStream, size: int, backpressure: bool) -> None:
        self.events: list[WsEvent] = []
        self.backpressure = backpressure
        self.scope = trio.CancelScope()
        self._channel = stream.subscribe(size, backpressure=backpressure)
        self._is_taking = False

    async def start_taking(self, nursery: trio.Nursery) -> None:
        """Take three events, or until `scope` is cancelled."""
        self.scope.cancel()
        await wait_all_tasks_blocked()
        self.scope = trio.CancelScope()
        self._is_taking = True
        nursery.start_soon(self._take)

    async def _take(self) -> None:
        with self.scope, suppress(trio.EndOfChannel):
            for _ in range(3):
                self.events.append(await self._channel.receive())
        self._is_taking = False

    def take_now(self) -> None:
        if self._is_taking:
            return  # the order in which two get events is not that in which they say so
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            self.events.append(self._channel.receive_nowait())

    async def take_all(self) -> None:
        self.events += await all_events(self._channel)

    def check(self, published: list[WsEvent], end: str) -> None:
        """Each event was delivered in its order, or counted as lost in its place.

        With backpressure nothing is lost before the stream closes.
        """
        *events, last = self.events
        assert isinstance(last, StreamClosed)
        position = 0
        for event in events:
            if isinstance(event, EventsLost):
                position += event.count
                if self.backpressure and end in DROPS:
                    assert position == len(published)
            else:
                assert event == published[position]
                position += 1
        assert position == len(published)


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=3),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("ping"), st.integers(1, 4)),
            st.tuples(st.sampled_from(["take", "take now", "cancel"]), st.integers(0, 2)),
            st.tuples(st.sampled_from(["wait", "read", "schedule"]), st.just(0)),
        ),
        max_size=20,
    ),
    end=st.sampled_from(DROPS + CLOSES),
    order=st.random_module(),
)
def test_each_event_is_delivered_or_counted_as_lost_whatever_happens_when(
    sizes: list[tuple[int, bool]], steps: list[tuple[str, int]], end: str, order: object
) -> None:
    async def main() -> None:
        async with background() as taking:
            async with background() as nursery:
                stream, peer = await raw_pair(nursery)
                witness = stream.subscribe(math.inf)
                subscribers = [Subscriber(stream, *size) for size in sizes]
                numbers = itertools.count()
                for step, argument in steps:
                    subscriber = subscribers[argument % len(subscribers)]
                    if step == "ping":
                        await send_pings(peer, *itertools.islice(numbers, argument))
                    elif step == "take":
                        await subscriber.start_taking(taking)
                    elif step == "take now":
                        subscriber.take_now()
                    elif step == "cancel":
                        subscriber.scope.cancel()
                    elif step == "wait":
                        await wait_all_tasks_blocked()
                    elif step == "schedule":
                        await trio.lowlevel.checkpoint()
                    else:
                        with trio.move_on_after(0.01):
                            await stream.receive_some()
                await finish(end, stream, peer, nursery)
            for subscriber in subscribers:
                subscriber.scope.cancel()
            await wait_all_tasks_blocked()
            for subscriber in subscribers:
                await subscriber.take_all()
            *published, last = await all_events(witness)
            assert isinstance(last, StreamClosed)
            for subscriber in subscribers:
                subscriber.check(published, end)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def finish(end: str, stream: WsByteStream, peer: RawPeer, nursery: trio.Nursery) -> None:
    if end == "aclose":
        await stream.aclose()
    elif end == "drop":
        await trio.aclose_forcefully(stream)
    elif end == "drop the connection":
        await stream.connection.aclose()
    elif end == "cancel the nursery":
        nursery.cancel_scope.cancel()
    elif end == "the peer closes":
        await peer.send(CLOSE, close_payload(1000))
        await peer.transport.aclose()
        nursery.start_soon(peer.transport.aclose)
        await stream.aclose()
    else:
        await peer.send(TEXT, b"refused")
        await peer.transport.aclose()
        await stream.aclose()


# StreamClosed


async def test_stream_closed_comes_before_aclose_returns_and_nothing_after_it() -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        events = server.subscribe()
        await client.aclose(3000, "x")
        await wait_all_tasks_blocked()
        await server.aclose()
        error = AbnormalClosure(3000, "x")
        assert events.receive_nowait() == CloseReceived(3000, "x")
        assert events.receive_nowait() == StreamClosed(3000, "x", True, error)
        with pytest.raises(trio.EndOfChannel):
            events.receive_nowait()
        assert server.connection.closed is not None
        assert (server.connection.closed.code, server.connection.closed.reason) == (3000, "x")


# Pings


async def test_ping_returns_the_seconds_until_its_pong(mock_clock: MockClock) -> None:
    async with background() as nursery, trio.open_nursery() as pinging:
        stream, peer = await raw_pair(nursery)

        async def do_ping() -> None:
            assert await stream.ping(b"payload") == 1.5

        pinging.start_soon(do_ping)
        assert await peer.receive() == (PING, b"payload")
        mock_clock.jump(1.5)
        await peer.send(PONG, b"payload")


async def test_ping_works_between_streams_with_nobody_receiving() -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, "tcp")
        events = server.subscribe()
        assert 0 < await client.ping(b"x") < 5
        assert await events.receive() == PingReceived(b"x")
        assert 0 < await server.ping() < 5


async def test_a_pong_answers_its_ping_and_all_earlier_ones() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        answered = []

        async def do_ping(payload: bytes) -> None:
            await stream.ping(payload)
            answered.append(payload)

        for payload in (b"1", b"2", b"3"):
            nursery.start_soon(do_ping, payload)
            await wait_all_tasks_blocked()
        await peer.send(PONG, b"unknown")
        await wait_all_tasks_blocked()
        assert answered == []
        await peer.send(PONG, b"2")
        await wait_all_tasks_blocked()
        assert sorted(answered) == [b"1", b"2"]


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


class CountedPings(OrderedDict[bytes, Any]):
    """Counts how often an item is taken from it or searched in it."""

    count = 0

    def __iter__(self) -> Any:
        for key in super().__iter__():
            self.count += 1
            yield key

    def popitem(self, last: bool = True) -> Any:
        self.count += 1
        return super().popitem(last)


@pytest.mark.parametrize("answers", ["one by one", "backwards", "the last", "none"])
async def test_many_pings_cost_no_more_each_than_few(
    answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stream's own task reads each Pong when it comes, however fast this machine is.
    monkeypatch.setattr(_stream, "GRACE_PERIOD", 0)

    async def cost_of(count: int) -> tuple[float, float]:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery)
            stream._protocol.pings = pings = CountedPings()
            instrument = Steps()
            trio.lowlevel.add_instrument(instrument)

            async def ping(number: int) -> None:
                with suppress(trio.ClosedResourceError):
                    await stream.ping(b"%d" % number)

            async with trio.open_nursery() as pinging:
                pinging.start_soon(stream.wait_send_all_might_not_block)
                for number in range(count):
                    pinging.start_soon(ping, number)
                await wait_all_tasks_blocked()
                order = list(pings)
                if answers == "backwards":
                    order.reverse()
                elif answers == "the last":
                    order = order[-1:]
                elif answers == "none":
                    order = []
                for payload in order:
                    await peer.send(PONG, payload)
                    await wait_all_tasks_blocked()
                if not order:
                    await trio.aclose_forcefully(stream)
            trio.lowlevel.remove_instrument(instrument)
            return instrument.count / count, pings.count / count

    few, many = await cost_of(20), await cost_of(500)
    assert many[0] <= few[0] * 1.2
    assert many[1] <= few[1] * 1.2


async def test_wrong_pings_are_refused() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with pytest.raises(ValueError, match="126"):
            await stream.ping(bytes(126))
        with pytest.raises(TypeError):
            await stream.ping("text")  # type: ignore[arg-type]
        nursery.start_soon(stream.ping, b"same")
        assert await peer.receive() == (PING, b"same")
        with pytest.raises(ValueError, match="same"):
            await stream.ping(b"same")
        nursery.start_soon(stream.ping, bytes(125))
        assert await peer.receive() == (PING, bytes(125))


async def test_a_cancelled_ping_breaks_nothing() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as pinging:
                pinging.start_soon(stream.ping, b"cancelled")
                await wait_all_tasks_blocked()
                scope.cancel()
        await stream.send_all(b"x")
        assert await peer.receive() == (PING, b"cancelled")
        assert await peer.receive() == (BINARY, b"x")
        await peer.send(PONG, b"cancelled")
        await read_until_blocked(stream, nursery)
        nursery.start_soon(stream.ping, b"cancelled")
        assert await peer.receive() == (PING, b"cancelled")


@pytest.mark.parametrize("end", ["close", "half-close", "violation", "tcp"])
async def test_a_ping_never_waits_for_ever(end: str) -> None:
    async with background() as nursery, trio.open_nursery() as pinging:
        stream, peer = await raw_pair(nursery)

        async def do_ping() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.ping()

        pinging.start_soon(do_ping)
        await wait_all_tasks_blocked()
        if end == "tcp":
            await peer.transport.aclose()
        elif end == "violation":
            await peer.send(3)
        else:
            await peer.send(CLOSE, close_payload(1000, end))


@SIDES
async def test_a_ping_that_cannot_be_sent_does_not_wait_for_its_pong(client: bool) -> None:
    """The peer does not read any more, but its end of the transport stays open."""
    async with background() as nursery:
        config = StreamConfig(ping_interval=None)
        stream, peer = await raw_pair(nursery, "unix", config, client=client)
        peer.transport.socket.shutdown(socket.SHUT_RD)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await stream.ping()


async def test_a_ping_ends_when_this_side_half_closes() -> None:
    async with background() as nursery, trio.open_nursery() as pinging:
        stream, _ = await raw_pair(nursery)

        async def do_ping() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.ping()

        pinging.start_soon(do_ping)
        await wait_all_tasks_blocked()
        await stream.send_eof()


async def test_an_error_is_reported_as_one_event() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(kinds=ErrorOccurred)
        await peer.send(3)
        await peer.send(3)
        await peer.transport.aclose()
        await read_until_blocked(stream, nursery)
        error, closed = await all_events(events)
        assert isinstance(error, ErrorOccurred)
        assert isinstance(closed, StreamClosed)
        assert closed.error is error.error
