"""Ctrl-C at the worst moments: it comes out as KeyboardInterrupt, and breaks nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import StreamClosed, WsByteStream, _stream, _takeover, _writing, wrap_websocket
from trio_wsstream._subscriptions import _Subscription as Subscription

from .support.frames import BINARY, PING, frame
from .support.pairs import connection_pair
from .support.raw_peer import raw_pair
from .support.tasks import background
from .support.transports import memory_transport

pytestmark = pytest.mark.usefixtures("ctrl_c_is_heard")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def run(main: Any) -> None:
    """In a `trio.run` of its own, out of which KeyboardInterrupt must come, and nothing else."""
    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
        trio.run(main)


def test_in_the_takeover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's task has been started, and finds a stream that is complete."""

    class Interrupted(_takeover.Takeover):
        def __init__(self, *args: Any) -> None:
            interrupt()
            super().__init__(*args)

    monkeypatch.setattr(_takeover, "Takeover", Interrupted)

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
                    task = stream._alarm._sleeper
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


@pytest.mark.parametrize("taken", [0, 1, 3000])
def test_after_the_socket_took_a_part(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the frame goes out before anything else."""
    real, sizes = os.writev, [taken]

    def writev(fd: int, buffers: Sequence[bytes]) -> int:
        if not sizes:
            return real(fd, buffers)
        size = sizes.pop()
        interrupt()
        if not size:
            raise BlockingIOError
        return real(fd, [b"".join(buffers)[:size]])

    async def main() -> None:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery, "tcp")
            monkeypatch.setattr(os, "writev", writev)
            with pytest.raises(KeyboardInterrupt):
                await stream.send_all(bytes(5000))
                await trio.sleep_forever()
            await stream.send_all(b"next")
            assert await peer.receive() == (BINARY, bytes(5000))
            assert await peer.receive() == (BINARY, b"next")

    trio.run(main)


def test_after_the_socket_gave_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are received, and Ctrl-C is heard after that."""
    real, is_over = os.read, []

    def read(fd: int, size: int) -> bytes:
        data = real(fd, size)
        if not is_over:
            is_over.append(True)
            interrupt()
        return data

    async def main() -> None:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery, "tcp")
            await peer.send(BINARY, b"data")
            monkeypatch.setattr(os, "read", read)
            received = b""
            with pytest.raises(KeyboardInterrupt):
                received = await stream.receive_some()
                await trio.sleep_forever()
            assert received == b"data"

    trio.run(main)


def test_while_a_sender_has_the_turn_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed on."""
    take = _writing.Writer.take_turn

    async def interrupted_take(turn: Any) -> None:
        await take(turn)
        interrupt()

    async def main() -> None:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery, "tcp")
            monkeypatch.setattr(_writing.Writer, "take_turn", interrupted_take)
            with pytest.raises(KeyboardInterrupt):
                await stream.wait_send_all_might_not_block()
                await trio.sleep_forever()
            await stream.send_all(b"next")
            assert await peer.receive() == (BINARY, b"next")

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
