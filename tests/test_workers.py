"""``examples/workers.py``: several processes that share one listening socket, as real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio_websocket import HandshakeError

from trio_wsstream import ConnectionLost, WsByteStream, open_ws_stream

from .support.programs import EXAMPLES, Program, running

pytestmark = pytest.mark.slow


@asynccontextmanager
async def workers(count: int) -> AsyncGenerator[tuple[Program, str], None]:
    """Run the parent until its workers serve. The block gets the parent and the URL."""
    command = [sys.executable, EXAMPLES / "workers.py", "0", "--workers", str(count)]
    async with running(command, r"worker \d+: serving", start_new_session=True) as parent:
        await parent.says(r"serving", count)
        port = (await parent.says(r"listening on port (\d+)"))[1]
        yield parent, f"ws://127.0.0.1:{port}/"


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[tuple[WsByteStream, int], None]:
    """Return a client's stream and the worker that serves it."""
    async with open_ws_stream(url) as stream:
        yield stream, int(await stream.receive_some())


async def echoes(stream: WsByteStream) -> bool:
    await stream.send_all(b"still there?")
    return await stream.receive_some() == b"still there?"


async def wait_until_nobody_is_admitted(url: str) -> None:
    while True:
        try:
            async with open_ws_stream(url):
                pass
        except (HandshakeError, trio.BrokenResourceError):
            return


async def test_a_worker_that_dies_is_replaced_and_the_others_go_on() -> None:
    async with workers(2) as (parent, url), connected(url) as (stream, victim):
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        assert isinstance(broken.value.__cause__, ConnectionLost)
        async with connected(url) as (other, worker):
            assert worker != victim
            await parent.says(rf"worker {victim} has died \(-9\); starting another")
            await parent.says(r"serving", 3)
            assert await echoes(other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_workers(number: int) -> None:
    async with workers(2) as (parent, url):
        async with connected(url) as (stream, _):
            os.killpg(parent.process.pid, number)  # as a terminal does
            await parent.says("waiting for the open ones")
            await wait_until_nobody_is_admitted(url)
            assert await echoes(stream)
        assert await parent.process.wait() == 0
        await parent.says(r": ended", 3)
        assert not any("Traceback" in line for line in parent.lines)


async def test_a_second_signal_drops_what_is_open() -> None:
    async with workers(1) as (parent, url), connected(url) as (stream, _):
        parent.process.terminate()
        await parent.says("waiting for the open ones")
        parent.process.terminate()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert await parent.process.wait() == 0


async def test_workers_whose_parent_was_killed_drain_too() -> None:
    async with workers(2) as (parent, url):
        async with connected(url) as (stream, _):
            parent.process.kill()
            await wait_until_nobody_is_admitted(url)
            assert await echoes(stream)
        await parent.says(r": ended", 2)
