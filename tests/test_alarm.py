"""The timer of a run, which calls all streams for keepalive."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    PingReceived,
    PongReceived,
    StreamConfig,
    WsByteStream,
    _alarm,
    _stream,
)
from trio_wsstream._keepalive import CROWD
from trio_wsstream.testing import ws_stream_pair

from .support.pairs import stream_pair
from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import TRANSPORTS

CONFIG = StreamConfig(ping_interval=20, ping_timeout=5)


class CountSteps(trio.abc.Instrument):
    """Counts the steps of each kind of task."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps[task.name] += 1


def has_timer() -> bool:
    """Whether this run has the timer's task."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    return "trio_wsstream._alarm._Timer._run" in {task.name for task in tasks}


async def test_a_bug_in_keepalive_raises_into_the_nursery_of_the_stream_and_ends_no_run(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("a bug")

    with pytest.raises(ExceptionGroup) as told:
        async with background() as nursery:
            stream, _ = await stream_pair(nursery, "memory", CONFIG, CONFIG)
            await trio.sleep(25)
            assert has_timer()
            monkeypatch.setattr(type(stream._keepalive), "next_action", fail)
            await trio.sleep(1000)
    assert told.group_contains(LookupError)


@pytest.mark.parametrize("callers_read", [True, False])
async def test_keepalive_wakes_no_task_but_to_read_what_comes(
    callers_read: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        pair = await stream_pair(nursery, "unix", CONFIG, CONFIG)
        if callers_read:
            for stream in pair:
                nursery.start_soon(receive_all, stream)
        await trio.sleep(1)  # The tasks of the streams wait.
        events = [stream.subscribe(1000, kinds=(PingReceived, PongReceived)) for stream in pair]
        trio.lowlevel.add_instrument(count := CountSteps())
        await trio.sleep(200)
        trio.lowlevel.remove_instrument(count)
        received = sum(each.statistics().current_buffer_used for each in events)
        assert received >= 18
        reads = 0 if callers_read else received
        assert count.steps["trio_wsstream._stream.WsByteStream._run"] <= reads
        for each in events:
            each.close()


@pytest.mark.parametrize(
    ("pause", "waits", "looks"),
    [(0.2, True, 20), (0.8, True, 50), (3, True, 100), (0.4, False, 50)],
)
async def test_messages_for_a_caller_who_reads_on_wake_no_other_task(
    pause: float, waits: bool, looks: int, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, "unix", CONFIG, CONFIG)
        nursery.start_soon(receive_all, client)
        if waits:
            nursery.start_soon(receive_all, server)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(count := CountSteps())
        for _ in range(100):
            await client.send_all(b"data")
            if not waits:
                await server.receive_some()  # The data is there.
            await trio.sleep(pause * _stream.GRACE_PERIOD)
        trio.lowlevel.remove_instrument(count)
        assert count.steps["trio_wsstream._stream.WsByteStream._run"] == 0
        assert count.steps["trio_wsstream._alarm._Timer._run"] <= looks


async def test_the_timer_forgets_streams_that_have_ended(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        streams = [*await stream_pair(nursery, "unix", CONFIG, CONFIG)]
        await wait_all_tasks_blocked()
        timer = _alarm._timers.get()
        assert timer is not None
        for _ in range(100):
            async with background() as short:
                streams += await stream_pair(short, "unix", CONFIG, CONFIG)
                await wait_all_tasks_blocked()
        assert timer._count == sum(stream.closed is None for stream in streams) == 2
        assert len(timer._times) <= 20


async def receive_and_pause(
    nursery: trio.Nursery, client: WsByteStream, server: WsByteStream, pause: float, count: int
) -> None:
    """Let the server receive ``count`` times, and pause after each time for so many seconds."""
    for _ in range(count):
        nursery.start_soon(server.receive_some)
        await wait_all_tasks_blocked()
        await client.send_all(b"data")
        await trio.sleep(pause)


async def test_for_a_caller_who_comes_back_late_again_and_again_the_task_reads_on(
    autojump_clock: MockClock,
) -> None:
    """So each message wakes it once. When the caller reads on, the task stands back again."""
    async with background() as nursery:
        client, server = await stream_pair(nursery, "unix", CONFIG, CONFIG)
        nursery.start_soon(receive_all, client)

        async def take(pause: float, count: int) -> int:
            trio.lowlevel.add_instrument(steps := CountSteps())
            await receive_and_pause(nursery, client, server, pause, count)
            trio.lowlevel.remove_instrument(steps)
            return steps.steps["trio_wsstream._stream.WsByteStream._run"]

        for _ in range(2):
            await take(3 * _stream.GRACE_PERIOD, 2)
            assert await take(3 * _stream.GRACE_PERIOD, 10) == 10
            await take(0.5 * _stream.GRACE_PERIOD, 2)
            assert await take(0.5 * _stream.GRACE_PERIOD, 10) == 0


async def test_a_task_that_reads_on_stops_when_enough_is_unread(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        small = StreamConfig(receive_buffer_size=1000, ping_interval=None)
        client, server = await stream_pair(nursery, "memory", CONFIG, small)
        await receive_and_pause(nursery, client, server, 3 * _stream.GRACE_PERIOD, 4)
        assert server._reads_on
        for _ in range(100):
            await client.send_all(bytes(100))
            await trio.sleep(0.01)
        assert 1000 <= server._protocol.unread.size <= 2000
        received = 0
        while received < 10_000:
            received += len(await server.receive_some())


async def test_messages_for_many_callers_share_few_wakeups_of_the_timer(
    autojump_clock: MockClock,
) -> None:
    pairs, period = CROWD + 1, 0.97
    async with background() as nursery:
        clients = []
        for _ in range(pairs):
            client, server = await stream_pair(nursery, "unix", CONFIG, CONFIG)
            nursery.start_soon(receive_all, server)
            clients.append(client)
        await trio.sleep(1)
        trio.lowlevel.add_instrument(count := CountSteps())
        began_at = trio.current_time()
        for _ in range(3):
            for client in clients:
                await client.send_all(b"data")
                await trio.sleep(period / pairs)
        trio.lowlevel.remove_instrument(count)
        ticks = (trio.current_time() - began_at) / _alarm._TICK
        assert count.steps["trio_wsstream._stream.WsByteStream._run"] == 0
        assert count.steps["trio_wsstream._alarm._Timer._run"] <= ticks + 1 < 3 * pairs


async def test_among_many_streams_a_caller_who_has_left_is_noticed_a_tick_later_at_the_most(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        pairs = [await stream_pair(nursery, "unix", CONFIG, CONFIG) for _ in range(CROWD)]
        client, server = pairs[0]
        await trio.sleep(1)  # The timer has them all.
        async with trio.open_nursery() as receiving:
            receiving.start_soon(server.receive_some)
            await wait_all_tasks_blocked()
            await client.send_all(b"data")  # From now on it is the caller who reads.
        with trio.move_on_after(0.123):
            await server.receive_some()
        left_at = trio.current_time()
        await client.ping()
        took = trio.current_time() - left_at
        assert _stream.GRACE_PERIOD <= took <= _stream.GRACE_PERIOD + _alarm._TICK


@pytest.mark.parametrize("callers_read", [True, False])
@pytest.mark.parametrize("transport", ["memory", "unix"])
async def test_the_timer_lives_as_long_as_there_are_streams(
    transport: str, callers_read: bool, autojump_clock: MockClock
) -> None:
    for _ in range(2):
        assert not has_timer()
        async with contextlib.AsyncExitStack() as stack:
            pairs = [
                await stack.enter_async_context(
                    ws_stream_pair(CONFIG, CONFIG, transports=await TRANSPORTS[transport]())
                )
                for _ in range(3)
            ]
            nursery = await stack.enter_async_context(background())
            if callers_read:
                for stream in itertools.chain(*pairs):
                    nursery.start_soon(receive_all, stream)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
            for client, server in pairs:
                assert has_timer()
                async with trio.open_nursery() as closing:
                    closing.start_soon(server.aclose)
                    await client.aclose()
        await wait_all_tasks_blocked()


async def test_a_stream_that_is_younger_and_in_more_of_a_hurry_is_called_in_time(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        slow = await stream_pair(nursery, "memory", CONFIG, CONFIG)
        await trio.sleep(30)
        fast = StreamConfig(ping_interval=1, ping_timeout=1)
        client, server = await stream_pair(
            nursery, "memory", fast, StreamConfig(ping_interval=None)
        )
        events = server.subscribe(1000, kinds=PingReceived)
        await trio.sleep(100.5)
        assert events.statistics().current_buffer_used == 100
        assert client.closed is slow[0].closed is None


def idle_for_a_while(pings: list[int]) -> None:
    async def main() -> None:
        async with background() as nursery:
            client, server = await stream_pair(
                nursery, "memory", CONFIG, StreamConfig(ping_interval=None)
            )
            events = server.subscribe(1000, kinds=PingReceived)
            await trio.sleep(205)
            pings.append(events.statistics().current_buffer_used)
            assert client.closed is None

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_each_run_has_a_timer_of_its_own() -> None:
    """One after the other in a thread, and in several threads at the same time."""
    pings: list[int] = []
    for _ in range(2):
        threads = [threading.Thread(target=partial(idle_for_a_while, pings)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        idle_for_a_while(pings)
    assert pings == [10] * 8


async def test_streams_whose_nursery_is_cancelled_leave_the_timer(
    autojump_clock: MockClock,
) -> None:
    streams: list[WsByteStream] = []
    async with background() as nursery:
        streams += await stream_pair(nursery, "memory", CONFIG, CONFIG)
        await trio.sleep(100)
        assert has_timer()
    await wait_all_tasks_blocked()
    assert not has_timer()
    assert all(stream.closed is not None for stream in streams)
