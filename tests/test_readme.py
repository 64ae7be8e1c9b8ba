"""The README's code does what it says."""

from __future__ import annotations

import re
import textwrap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import StreamClosed

from .pairs import background, stream_pair

README = (Path(__file__).parent.parent / "README.rst").read_text()


def load(first_words: str) -> dict[str, Any]:
    """The names of the code after the paragraph that begins so; ``run`` is what it runs."""
    (code,) = re.findall(
        rf"^{re.escape(first_words)}.*?::\n\n(.*?)\n(?=\S)", README, re.DOTALL | re.MULTILINE
    )
    code, _, run = textwrap.dedent(code).partition("trio.run(")
    names: dict[str, Any] = {}
    exec(code, names)
    names["run"] = eval(f"({run.strip()}", names) if run else ()
    return names


@asynccontextmanager
async def serving(first_words: str) -> AsyncGenerator[int, None]:
    serve, *arguments = load(first_words)["run"]
    assert arguments[2] == 8000
    arguments[2] = 0
    async with background() as nursery:

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            await serve(*arguments, task_status=task_status)

        started = await nursery.start(run)
        if isinstance(started, list):
            yield started[0].transport_listener.socket.getsockname()[1]
        else:
            yield started.port


@pytest.mark.parametrize("server", ["A server", "A connection that you have already"])
async def test_client_and_server(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = load("A client")
    open_ws_stream = client["open_ws_stream"]
    assert client["run"] is client["main"]
    async with serving(server) as port:

        def open_on_that_port(url: str) -> Any:
            assert url == "ws://127.0.0.1:8000/"
            return open_ws_stream(f"ws://127.0.0.1:{port}/")

        client["open_ws_stream"] = open_on_that_port
        await client["main"]()
    assert capsys.readouterr().out == "b'hello\\n'\n"


async def test_a_client_that_breaks_off_does_not_end_the_server(
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_ws_stream = load("A client")["open_ws_stream"]
    async with serving("A server") as port:
        async with open_ws_stream(f"ws://127.0.0.1:{port}/") as stream:
            await stream.aclose(4000, "no more")
        await wait_all_tasks_blocked()
        assert "no more" in capsys.readouterr().out
        async with open_ws_stream(f"ws://127.0.0.1:{port}/") as stream:
            await stream.send_all(b"still there?")
            assert await stream.receive_some() == b"still there?"


async def test_events(capsys: pytest.CaptureFixture[str]) -> None:
    watch = load("Events")["watch"]
    async with background() as nursery:
        stream, peer = await stream_pair(nursery)
        async with trio.open_nursery() as watching:
            watching.start_soon(watch, stream)
            await wait_all_tasks_blocked()
            await peer.ping(b"hello")
            nursery.start_soon(peer.aclose)
            await stream.aclose()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "PingReceived(payload=b'hello')"
    assert out[-1] == str(StreamClosed(1000, "", True, None))
