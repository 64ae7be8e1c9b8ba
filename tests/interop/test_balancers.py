"""haproxy and nginx as load balancers of two servers, configured as docs/servers.rst says."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionRejected

from trio_wsstream import WsByteStream, open_ws_stream, serve_ws

from ..support.programs import free_port, running
from ..support.tasks import background
from .peer import need_program
from .test_nginx import CONFIGURATION as NGINX_CONFIGURATION

PAGE = Path(__file__).parents[2] / "docs" / "servers.rst"
NGINX = NGINX_CONFIGURATION.partition("    server {{")[0]


def configuration_of(name: str, ports: Iterable[int]) -> str:
    """The block of the page that follows ``name``, with ports that are free here."""
    match = re.search(
        rf"^{name}, .*?code-block:: text\n\n(.*?)\n(?=\S)", PAGE.read_text(), re.S | re.M
    )
    assert match
    configuration = match[1]
    for documented, port in zip((8080, 8001, 8002), ports, strict=True):
        assert f"127.0.0.1:{documented}" in configuration
        configuration = configuration.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{port}")
    return configuration + "\n"


class Server:
    """One of the two servers."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.port = free_port()
        self.health = 200
        self.checks = 0
        self._scope = trio.CancelScope()

    async def http(self, method: str, path: str, headers: Any) -> Any:
        assert (method, path) == ("GET", "/health")
        self.checks += 1
        return self.health, [(b"Content-Type", b"text/plain")], b"well\n"

    async def handle(self, stream: WsByteStream) -> None:
        await stream.send_all(self.name)
        async for chunk in stream:
            await stream.send_all(chunk)
        await stream.send_eof()

    async def run(self, *, http: bool = True, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with self._scope:
            await serve_ws(
                self.handle,
                "127.0.0.1",
                self.port,
                http=self.http if http else None,
                task_status=task_status,
            )

    def stop(self) -> None:
        self._scope.cancel()


@asynccontextmanager
async def two_servers(**options: Any) -> AsyncGenerator[list[Server], None]:
    servers = [Server(b"one"), Server(b"two")]
    async with background() as nursery:
        for server in servers:
            await nursery.start(partial(server.run, **options))
        yield servers


@asynccontextmanager
async def haproxy(folder: Path, servers: list[Server]) -> AsyncGenerator[tuple[Any, str], None]:
    """The program, and its URL."""
    port = free_port()
    file = folder / "haproxy.cfg"
    file.write_text(configuration_of("haproxy", [port, *(each.port for each in servers)]))
    command = [need_program("haproxy"), "-W", "-db", "-f", file]
    async with running(command, "Loading success") as program:
        yield program, f"ws://127.0.0.1:{port}/"


@asynccontextmanager
async def nginx(folder: Path, servers: list[Server]) -> AsyncGenerator[tuple[Any, str], None]:
    port = free_port()
    inside = configuration_of("nginx", [port, *(each.port for each in servers)])
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder) + inside + "}")
    command = [need_program("nginx", "nginx-light"), "-e", "stderr", "-p", folder, "-c", file]
    async with running(command, "start worker process ") as program:
        yield program, f"ws://127.0.0.1:{port}/"


Balancer = Callable[[Path, list[Server]], AbstractAsyncContextManager[tuple[Any, str]]]


async def name_of(stream: WsByteStream) -> bytes:
    return bytes(await stream.receive_some())


async def served_by(url: str) -> bytes:
    async with open_ws_stream(url) as stream:
        return await name_of(stream)


@pytest.mark.parametrize("balancer", [haproxy, nginx])
async def test_clients_are_spread_over_both_servers(balancer: Balancer, tmp_path: Path) -> None:
    async with (
        two_servers() as servers,
        balancer(tmp_path, servers) as (_, url),
        AsyncExitStack() as stack,
    ):
        streams = [await stack.enter_async_context(open_ws_stream(url)) for _ in range(6)]
        names = [await name_of(stream) for stream in streams]
        assert names.count(b"one") == names.count(b"two") == 3
        for stream in streams:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert b"".join([bytes(chunk) async for chunk in stream]) == b"hello"


@pytest.mark.parametrize("balancer", [haproxy, nginx])
async def test_a_server_that_has_gone_is_passed_over(balancer: Balancer, tmp_path: Path) -> None:
    async with two_servers() as servers, balancer(tmp_path, servers) as (program, url):
        one, _ = servers
        one.stop()
        if balancer is haproxy:
            await program.says("servers/one is DOWN")
        for _ in range(6):
            assert await served_by(url) == b"two"


async def test_haproxys_check_is_answered_by_http(tmp_path: Path) -> None:
    async with two_servers() as servers, haproxy(tmp_path, servers) as (program, url):
        for server in servers:
            server.health = 503  # So answers a server that is about to stop.
            await program.says(f"servers/{server.name.decode()} is DOWN, reason: Layer7")
        with pytest.raises(ConnectionRejected) as refused:
            await served_by(url)
        assert refused.value.status_code == 503
        servers[1].health = 200
        await program.says("servers/two is UP")
        assert await served_by(url) == b"two"
        assert all(server.checks for server in servers)
        assert await served_by(url) == b"two"


async def test_an_open_connection_outlives_a_check_that_fails(tmp_path: Path) -> None:
    async with (
        two_servers() as servers,
        haproxy(tmp_path, servers) as (program, url),
        open_ws_stream(url) as stream,
    ):
        name = await name_of(stream)
        (server,) = [each for each in servers if each.name == name]
        server.health = 503
        await program.says(f"servers/{name.decode()} is DOWN")
        await stream.send_all(b"still there?")
        assert await stream.receive_some() == b"still there?"
        assert await served_by(url) != name


async def test_without_http_haproxys_check_fails(tmp_path: Path) -> None:
    async with two_servers(http=False) as servers, haproxy(tmp_path, servers) as (program, url):
        for name in ("one", "two"):
            await program.says(f"servers/{name} is DOWN, reason: Layer7 wrong status")
        with pytest.raises(ConnectionRejected):
            await served_by(url)
