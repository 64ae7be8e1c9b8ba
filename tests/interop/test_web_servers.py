"""haproxy in front of a server, configured as docs/web-servers.rst says."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionRejected

from trio_wsstream import open_ws_stream, serve_ws

from ..support.programs import free_port, running
from ..support.receiving import end_of
from ..support.tasks import background
from .peer import need_program

PAGE = Path(__file__).parents[2] / "docs" / "web-servers.rst"
SIZE = 1_000_000  # bytes


def configuration_of(ports: dict[str, str]) -> str:
    """The page's block for haproxy, with addresses that are free here."""
    match = re.search(r"^haproxy\n-+\n.*?text\n\n(.*?\n)(?=\S)", PAGE.read_text(), re.S | re.M)
    assert match
    configuration = match[1]
    for documented, here in ports.items():
        assert documented in configuration
        configuration = configuration.replace(documented, here)
    return configuration


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()


async def test_haproxy_passes_one_path_on_in_both_directions(tmp_path: Path) -> None:
    port = free_port()
    async with background() as nursery:
        serve = partial(serve_ws, echo, "127.0.0.1", 0, path="/stream")
        (listener,) = await nursery.start(serve)
        ports = {
            "bind :80": f"bind 127.0.0.1:{port}",
            "127.0.0.1:8001": f"127.0.0.1:{listener.port}",
        }
        (tmp_path / "haproxy.cfg").write_text(configuration_of(ports))
        command = [need_program("haproxy"), "-W", "-db", "-f", tmp_path / "haproxy.cfg"]
        async with running(command, "Loading success"):
            async with open_ws_stream(f"ws://127.0.0.1:{port}/stream") as stream:
                nursery.start_soon(send_and_half_close, stream)
                assert await end_of(stream) == (bytes(SIZE), None)
                assert stream.half_close_honoured
            with pytest.raises(ConnectionRejected, match="503"):
                async with open_ws_stream(f"ws://127.0.0.1:{port}/other"):
                    pass


async def send_and_half_close(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.send_all(bytes(SIZE))
    await stream.send_eof()
