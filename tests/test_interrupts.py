"""Ctrl-C at the worst moments: it comes out as KeyboardInterrupt, and breaks nothing."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import StreamClosed, WsByteStream, _stream, _takeover, wrap_websocket
from trio_wsstream._events import Subscription

from .pairs import PING, background, connection_pair, frame, memory_transport

pytestmark = pytest.mark.usefixtures("ctrl_c_is_heard")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def run(main: Any) -> None:
    """In a `trio.run` of its own, out of which KeyboardInterrupt must come, and nothing else."""
    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
        trio.run(main)


def test_in_the_takeover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's task has been started, and finds a stream that is complete."""

    class Interrupted(_takeover.Handover):
        def __init__(self, *args: Any) -> None:
            interrupt()
            super().__init__(*args)

    monkeypatch.setattr(_takeover, "Handover", Interrupted)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            client, _ = await connection_pair(nursery)
            WsByteStream(client, nursery)
            await trio.sleep_forever()

    run(main)


@pytest.mark.parametrize("reads", [True, False])
def test_in_the_streams_own_tasks(reads: bool) -> None:
    """The main task gets it, in the block of the stream: in no group."""

    async def main() -> None:
        client, server = await memory_transport()
        async with background() as nursery:
            connection, _ = await connection_pair(nursery, (client, server))
            with pytest.raises(KeyboardInterrupt):
                async with wrap_websocket(connection) as stream:
                    await wait_all_tasks_blocked(0.1)
                    if reads:
                        client.receive_stream.receive_some_hook = interrupting
                    else:
                        client.send_stream.send_all_hook = interrupting
                    await server.send_all(frame(PING, masked=False))
                    await trio.sleep_forever()
            assert stream.closed == StreamClosed(1006, "", False, None)

    async def interrupting() -> None:
        interrupt()

    trio.run(main)


def test_while_the_streams_own_task_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio would break if it was woken twice."""

    async def main() -> None:
        async with background() as nursery:
            client, _ = await connection_pair(nursery)
            with pytest.raises(KeyboardInterrupt):
                async with wrap_websocket(client) as stream:
                    await wait_all_tasks_blocked()
                    task = stream._napping
                    monkeypatch.setattr(_stream.trio.lowlevel, "reschedule", reschedule)
                    await stream.ping()
                    await trio.sleep_forever()
            assert woken == [task]

    woken = []
    trio_reschedule = trio.lowlevel.reschedule

    def reschedule(task: trio.lowlevel.Task, *outcome: Any) -> None:
        trio_reschedule(task, *outcome)
        if not woken:
            woken.append(task)
            interrupt()

    trio.run(main)


def test_when_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who waits for it is told, also in a shielded scope."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            client, _ = await connection_pair(nursery)
            stream = WsByteStream(client, nursery)
            events = stream.subscribe()

            async def see_the_end() -> None:
                with trio.CancelScope(shield=True), trio.fail_after(4):
                    assert [event async for event in events] == [stream.closed]

            nursery.start_soon(see_the_end)
            await wait_all_tasks_blocked()
            monkeypatch.setattr(Subscription, "end", interrupted_end)
            await trio.aclose_forcefully(stream)
            await trio.sleep_forever()

    end = Subscription.end

    def interrupted_end(subscription: Subscription, last: StreamClosed) -> None:
        interrupt()
        end(subscription, last)

    run(main)
