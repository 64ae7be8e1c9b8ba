"""Ctrl-C at the worst moments: it comes out as KeyboardInterrupt, and breaks nothing."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_wsstream
from trio_wsstream import StreamClosed, WsByteStream, _stream, _takeover, _writing, wrap_websocket
from trio_wsstream._subscriptions import _Subscription as Subscription

from .support.frames import BINARY, PING, frame
from .support.pairs import connection_pair, stream_pair
from .support.raw_peer import raw_pair
from .support.tasks import background
from .support.transports import memory_transport

pytestmark = pytest.mark.usefixtures("ctrl_c_is_heard")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def run(main: Any) -> None:
    """Run ``main`` with `trio.run`, which must raise KeyboardInterrupt and nothing else."""
    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
        trio.run(main)


def test_an_interrupt_in_the_takeover_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's own task has been started and must find a stream that is complete."""

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
def test_an_interrupt_in_the_streams_own_tasks_comes_out(reads: bool) -> None:
    """The main task gets it in the block of the stream, and in no exception group."""

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


def test_an_interrupt_while_the_streams_own_task_is_woken_wakes_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trio would break if the task was woken twice."""

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
def test_an_interrupt_after_the_socket_took_a_part_loses_nothing(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the frame is sent before anything else; one that had not begun is not sent."""
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
            if taken:
                assert await peer.receive() == (BINARY, bytes(5000))
            assert await peer.receive() == (BINARY, b"next")

    trio.run(main)


def test_an_interrupt_after_the_socket_gave_bytes_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes are received, and KeyboardInterrupt is raised after that."""
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


def test_an_interrupt_of_a_sender_passes_its_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn goes to the next sender."""
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


def test_an_interrupt_while_the_end_is_reported_still_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tasks that wait for the end are told, also in a shielded scope."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            client, _ = await connection_pair(nursery)
            stream = WsByteStream(client, nursery)
            events = stream.subscribe()

            async def see_the_end() -> None:
                with trio.CancelScope(shield=True), trio.fail_after(30):
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


# At every line

PACKAGE = str(Path(trio_wsstream.__file__).parent)


class InterruptAtLine:
    """Ctrl-C when the package comes to its line of number ``at``, in the task that arms this or in
    one of the package's own.

    Attributes:
      has_struck (bool): it has come that far.
    """

    def __init__(self, at: int) -> None:
        self.has_struck = False
        self._left = at

    def __call__(self, frame: FrameType, event: str, _: object) -> InterruptAtLine | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and not self.has_struck and self._is_ours():
            if not self._left:
                self.has_struck = True
                interrupt()  # Trio's handler looks at whose frame this is called from
            self._left -= 1
        return self

    def _is_ours(self) -> bool:
        try:
            task = trio.lowlevel.current_task()
        except RuntimeError:  # Trio itself calls, to abort a wait
            return False
        return task is self._task or task.coro.cr_code.co_filename.startswith(PACKAGE)

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._task = trio.lowlevel.current_task()
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


async def echo(stream: WsByteStream) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            async for data in stream:
                await stream.send_all(data)


async def check_that_all_works(stream: WsByteStream, sent: int) -> None:
    """Check that all calls work after ``sent`` bytes, of which none was received."""
    await stream.send_all(b"after")
    await stream.wait_send_all_might_not_block()
    assert await stream.ping() > 0
    await check_half_close(stream, sent)


async def check_sending(stream: WsByteStream, sent: int) -> None:
    """A frame that was cut off cannot be finished over every transport."""
    try:
        await stream.send_all(b"")
    except trio.BrokenResourceError as error:
        assert "a frame was cut off" in str(error)
        await check_close(stream)
    else:
        await check_that_all_works(stream, sent)


async def check_half_close(stream: WsByteStream, sent: int) -> None:
    events = stream.subscribe()
    await stream.send_eof()
    received = b"".join([bytes(data) async for data in stream])
    assert received.strip(b"x") in (b"after", b"")
    assert received.count(b"x") <= sent
    await check_close(stream)
    assert stream.closed == StreamClosed(1000, "", True, None)
    assert [event async for event in events][-1] == stream.closed


async def check_close(stream: WsByteStream) -> None:
    await stream.aclose()
    assert stream.closed is not None
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


SENT = 12_000  # bytes: more than a Unix socket of these tests takes

CALLS: dict[str, tuple[Callable[[WsByteStream], Awaitable[object]], Callable[..., Any]]] = {
    "receive_some": (lambda stream: stream.receive_some(), check_that_all_works),
    "send_all": (lambda stream: stream.send_all(b"x" * SENT), check_sending),
    "send_all, short": (lambda stream: stream.send_all(b"x"), check_sending),
    "wait": (lambda stream: stream.wait_send_all_might_not_block(), check_that_all_works),
    "ping": (lambda stream: stream.ping(), check_that_all_works),
    "send_eof": (lambda stream: stream.send_eof(), check_half_close),
    "aclose": (lambda stream: stream.aclose(), lambda stream, _: check_close(stream)),
}


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["unix", "memory"])
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_line_of_a_call_comes_out(name: str, transport: str) -> None:
    """The same call, and every other one, works afterwards as if there had been no Ctrl-C, but for
    bytes that have not been sent.
    """
    call, check = CALLS[name]

    async def main(interrupt_at: InterruptAtLine) -> None:
        async with background() as nursery:
            client, server = await stream_pair(nursery, transport)
            nursery.start_soon(echo, server)
            await client.send_all(b"x")
            with trio.fail_after(30):
                try:
                    with interrupt_at.armed():
                        await call(client)
                        await trio.lowlevel.checkpoint()
                    was_heard = False
                except KeyboardInterrupt:
                    was_heard = True
                assert was_heard == interrupt_at.has_struck
                await check(client, SENT + 1)

    for at in itertools.count():
        interrupt_at = InterruptAtLine(at)
        trio.run(main, interrupt_at)
        if not interrupt_at.has_struck:
            assert at > 20
            break
