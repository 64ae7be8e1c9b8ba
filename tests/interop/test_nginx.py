"""Tests with nginx as a reverse proxy in front of a server of ours, with and without TLS.

nginx knows the opening handshake only. After that it carries bytes, and so carries pings and
half-closes too. When TCP ends on one side, nginx ends it on the other side. It also ends a
connection on which nothing has passed for a while.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio_websocket import ConnectionRejected

from trio_wsstream import (
    AbnormalClosure,
    ConnectionLost,
    PongReceived,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    open_ws_stream,
    serve_ws,
)

from ..support.programs import LIMIT, free_port, running
from ..support.receiving import receive_all
from ..support.transports import AUTHORITY, tls_for
from .peer import need_program

Meet = Callable[..., AbstractAsyncContextManager[tuple[WsByteStream, WsByteStream]]]

CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log stderr notice;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port} {tls};
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/certificate.pem;
        location / {{
            proxy_pass http://127.0.0.1:{server_port};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout {timeout}s;
        }}
    }}
}}
"""
QUIET = StreamConfig(ping_interval=None)
KEEPALIVE = StreamConfig(ping_interval=0.3, ping_timeout=LIMIT)
DATA = os.urandom(3_000_003)


@pytest.fixture(autouse=True)
def need_nginx() -> None:
    need_program("nginx", "nginx-light")


@asynccontextmanager
async def nginx(
    folder: Path, server_port: int, *, tls: bool = False, timeout: int = 60
) -> AsyncGenerator[str, None]:
    """Run nginx in front of a server, and yield its URL.

    Args:
      timeout: after how many seconds of silence nginx ends a connection. Its default is 60.
    """
    port = free_port()
    certificate = AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem
    certificate.write_to_path(folder / "certificate.pem")
    configuration = CONFIGURATION.format(
        folder=folder,
        port=port,
        server_port=server_port,
        tls="ssl" if tls else "",
        timeout=timeout,
    )
    (folder / "nginx.conf").write_text(configuration)
    command = [need_program("nginx"), "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"]
    async with running(command, "start worker process "):
        yield f"{'wss' if tls else 'ws'}://localhost:{port}/"


@pytest.fixture(params=["plain", "tls"])
def meet(request: pytest.FixtureRequest, tmp_path: Path) -> Meet:
    return partial(through_nginx, tmp_path, tls=request.param == "tls")


@asynccontextmanager
async def through(
    proxy: Callable[[int], AbstractAsyncContextManager[str]],
    client_config: StreamConfig = QUIET,
    server_config: StreamConfig = QUIET,
) -> AsyncGenerator[tuple[WsByteStream, WsByteStream], None]:
    """Yield both ends of a connection through a proxy, client first.

    Args:
      proxy: starts the proxy in front of a server's port, and tells its URL.
    """
    arrive, arrived = trio.open_memory_channel[WsByteStream](0)

    async def handle(stream: WsByteStream) -> None:
        await arrive.send(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        serve = partial(serve_ws, handle, "127.0.0.1", 0, config=server_config)
        (listener,) = await nursery.start(serve)
        server_port = listener.transport_listener.socket.getsockname()[1]
        async with (
            proxy(server_port) as url,
            open_ws_stream(url, tls_for(url), config=client_config) as client,
        ):
            yield client, await arrived.receive()
        nursery.cancel_scope.cancel()


def through_nginx(
    folder: Path, *, tls: bool, timeout: int = 60, **configs: StreamConfig
) -> AbstractAsyncContextManager[tuple[WsByteStream, WsByteStream]]:
    """Do as `through` does, with nginx as the proxy."""
    return through(partial(nginx, folder, tls=tls, timeout=timeout), **configs)


async def expect_lost(stream: WsByteStream) -> None:
    with pytest.raises(trio.BrokenResourceError) as broken:
        await stream.receive_some()
    assert isinstance(broken.value.__cause__, ConnectionLost)


async def test_bytes_pass_through_nginx_both_ways_at_once(meet: Meet) -> None:
    async def echo(stream: WsByteStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)
        await stream.send_eof()

    async def send(stream: WsByteStream) -> None:
        for start in range(0, len(DATA), 99_991):
            await stream.send_all(DATA[start : start + 99_991])
        await stream.send_eof()

    async with meet() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        nursery.start_soon(send, client)
        assert await receive_all(client) == DATA


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_half_close_passes_through_nginx(meet: Meet, first: str) -> None:
    async with meet() as ends:
        asking, answering = ends if first == "client" else reversed(ends)
        await asking.send_all(b"question")
        await asking.send_eof()
        assert await receive_all(answering) == b"question"
        await answering.send_all(b"answer")
        await answering.send_eof()
        assert await receive_all(asking) == b"answer"
        await asking.aclose()
        await answering.aclose()
    for stream in ends:
        assert stream.closed == StreamClosed(1000, "half-close", clean=True, error=None)


@pytest.mark.parametrize("closing", ["client", "server"])
@pytest.mark.parametrize(("code", "reason"), [(1001, "going away"), (4002, "gr\u00fc\u00dfe")])
async def test_a_close_passes_through_nginx(
    meet: Meet, closing: str, code: int, reason: str
) -> None:
    async with meet() as ends:
        closer, other = ends if closing == "client" else reversed(ends)
        error = AbnormalClosure(code, reason)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closer.aclose, code, reason)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await other.receive_some()
            assert broken.value.__cause__ == error
        await other.aclose()
    assert closer.closed == StreamClosed(code, reason, clean=True, error=None)
    assert other.closed == StreamClosed(code, reason, clean=True, error=error)


@pytest.mark.parametrize("ending", ["client", "server"])
async def test_an_abrupt_end_passes_through_nginx(meet: Meet, ending: str) -> None:
    async with meet() as ends:
        dropped, other = ends if ending == "client" else reversed(ends)
        await trio.aclose_forcefully(dropped)
        await expect_lost(other)


async def test_nginx_cuts_a_silent_connection(meet: Meet) -> None:
    """nginx ends TCP on both sides when nothing has passed for its timeout."""
    async with meet(timeout=1) as (client, server):
        await expect_lost(client)
        await expect_lost(server)


@pytest.mark.parametrize("pinging", ["client", "server"])
async def test_keepalive_keeps_a_silent_connection_through_nginx_alive(
    meet: Meet, pinging: str
) -> None:
    """Pings from either end keep the connection open for longer than nginx's timeout."""
    async with meet(timeout=1, **{f"{pinging}_config": KEEPALIVE}) as (client, server):
        pongs = (client if pinging == "client" else server).subscribe(kinds=PongReceived)
        for _ in range(5):
            assert isinstance(await pongs.receive(), PongReceived)
        await client.send_all(b"still there?")
        assert await server.receive_some() == b"still there?"


async def test_nginx_refuses_the_handshake_if_there_is_no_server_behind_it(tmp_path: Path) -> None:
    async with nginx(tmp_path, free_port()) as url:
        with pytest.raises(ConnectionRejected) as refused:
            async with open_ws_stream(url):
                pass
    assert refused.value.status_code == 502
