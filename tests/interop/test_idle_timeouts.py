"""A half-closed connection behind haproxy or nginx, which cut what is silent for two seconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from trio_wsstream import (
    ConnectionLost,
    PongReceived,
    StreamClosed,
    StreamConfig,
)

from ..support.programs import LIMIT, free_port, running
from ..support.receiving import end_of, receive_all
from .peer import need_program
from .test_nginx import nginx, through

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 2s
    timeout server 2s
    timeout tunnel 2s
frontend outside
    bind 127.0.0.1:{port}
    default_backend inside
backend inside
    server only 127.0.0.1:{server_port}
"""
KEEPALIVE = StreamConfig(ping_interval=0.5, ping_timeout=LIMIT)
SIGNS = 7  # of life: two seconds, and half as much again

Proxy = Callable[[Path, int], AbstractAsyncContextManager[str]]


@asynccontextmanager
async def haproxy(folder: Path, server_port: int) -> AsyncGenerator[str, None]:
    port = free_port()
    file = folder / "haproxy.cfg"
    file.write_text(HAPROXY.format(port=port, server_port=server_port))
    command = [need_program("haproxy"), "-W", "-db", "-f", file]
    async with running(command, "Loading success"):
        yield f"ws://127.0.0.1:{port}/"


PROXIES = pytest.mark.parametrize(
    "proxy", [haproxy, partial(nginx, timeout=2)], ids=["haproxy", "nginx"]
)


@PROXIES
@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_half_closed_connection_lives_for_as_long_as_the_answer_takes(
    proxy: Proxy, first: str, tmp_path: Path
) -> None:
    async with through(partial(proxy, tmp_path), KEEPALIVE, KEEPALIVE) as ends:
        asking, answering = ends if first == "client" else reversed(ends)
        await asking.send_all(b"question")
        await asking.send_eof()
        assert await receive_all(answering) == b"question"
        for end in (asking, answering):
            pongs = end.subscribe(kinds=PongReceived)
            for _ in range(SIGNS):
                assert isinstance(await pongs.receive(), PongReceived)
        await answering.send_all(b"answer")
        await answering.send_eof()
        assert await end_of(asking) == (b"answer", None)
        assert asking.half_close_honoured is True
    for end in ends:
        assert end.closed == StreamClosed(1000, "half-close", clean=True, error=None)


@PROXIES
@pytest.mark.parametrize("first", ["client", "server"])
async def test_without_keepalive_it_is_cut(proxy: Proxy, first: str, tmp_path: Path) -> None:
    """Without this test, the test above would show nothing."""
    async with through(partial(proxy, tmp_path)) as ends:
        asking, _ = ends if first == "client" else reversed(ends)
        await asking.send_eof()
        received, error = await end_of(asking)
        assert received == b""
        assert isinstance(error, ConnectionLost)
