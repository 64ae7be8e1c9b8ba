"""The README's code does what it says, and the documents name what there is."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_wsstream
from trio_wsstream import StreamClosed, StreamConfig, WsEvent, WsStreamError

from .support.pairs import stream_pair
from .support.tasks import background

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text()
DOCUMENTS = [ROOT / "README.rst", ROOT / "CHANGELOG.rst", *(ROOT / "docs").glob("*.rst")]


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


async def test_the_first_example_says_what_is_shown() -> None:
    (shown,) = re.findall(r"examples/echo\.py\n\n.*?::\n\n(.*?)\n(?=\S)", README, re.DOTALL)
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, str(ROOT / "examples" / "echo.py")], capture_stdout=True
        )
    lines = [
        sorted(re.sub(r"took \S+", "took ...", text).splitlines())
        for text in (textwrap.dedent(shown).strip(), done.stdout.decode())
    ]
    assert lines[0] == lines[1]


async def test_the_log_says_what_is_shown(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    async with background() as nursery:
        stream, peer = await stream_pair(nursery)
        await stream.send_all(b"hello\n")
        await stream.send_eof()
        await peer.aclose()
        async for _ in stream.subscribe():
            pass  # until it is closed, which nobody reads
    name = str(stream.connection)
    said = [f"{each.levelname}:{each.name}:{each.getMessage()}" for each in caplog.records]
    shown = re.findall(r"^    (DEBUG:.*)$", README, re.MULTILINE)
    assert shown
    for line in shown:
        assert line.replace("client-0", name) in said


def kinds_of(base: type) -> dict[str, Any]:
    """The public classes below ``base``, by name."""
    public = {name: getattr(trio_wsstream, name) for name in trio_wsstream.__all__}
    return {name: each for name, each in public.items() if base in getattr(each, "__mro__", ())[1:]}


def test_the_tables_have_every_setting_and_every_event() -> None:
    settings = dict(re.findall(r"^``(\w+)``  +(\S+)  ", README, re.MULTILINE))
    for field in attrs.fields(StreamConfig):
        default = str(field.default)
        assert settings.pop(field.name) in (default, f"``{default}``")
    assert not settings
    events = dict(re.findall(r"^``(\w+)\((.*?)\)``  ", README, re.MULTILINE))
    assert events == {
        name: ", ".join(field.name for field in attrs.fields(kind))
        for name, kind in kinds_of(WsEvent).items()
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    for path in re.findall(r"\b((?:docs|examples|tests|benchmarks)/[\w./]+\w|\.ci/[\w-]+)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"<(?!https:)(\S+)>`__", text):
        assert (document.parent / path).exists(), path
    sessions = re.findall(
        r"^def (\w+)\(session: nox", (ROOT / "noxfile.py").read_text(), re.MULTILINE
    )
    for session in re.findall(r"nox -s (\w+)", text):
        assert session in sessions


def test_the_changelog_has_every_public_name_but_those_of_events_and_errors() -> None:
    changelog = (ROOT / "CHANGELOG.rst").read_text()
    for name in set(trio_wsstream.__all__) - {*kinds_of(WsEvent), *kinds_of(WsStreamError)}:
        assert f"``{name}``" in changelog
