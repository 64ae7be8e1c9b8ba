"""Real proxies between a client and a server of ours: tinyproxy, squid, microsocks."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio_websocket import HandshakeError

from trio_wsstream import ProxyRejected, StreamClosed, WsByteStream, open_ws_stream, serve_ws

from ..support.programs import LIMIT, Program, free_port
from ..support.tasks import background
from ..support.transports import AUTHORITY, tls_for
from .proxies import NAME, USER, microsocks, squid, tinyproxy

PASSWORD = "s3cret"
DATA: Final = os.urandom(1_000_003)

SERVER_TLS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
AUTHORITY.issue_cert("localhost", "127.0.0.1", "::1", NAME).configure_cert(SERVER_TLS)

Start = Callable[..., AbstractAsyncContextManager[tuple[str, Program]]]


@pytest.fixture(autouse=True)
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's default settings for TLS trust the tests' authority."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


PROXIES: Final[dict[str, tuple[str, Start]]] = {
    "tinyproxy": ("http", tinyproxy),
    "squid": ("http", squid),
    "squid with TLS": ("https", partial(squid, tls=True)),
    "microsocks": ("socks5", microsocks),
    "microsocks, socks5h": ("socks5h", microsocks),
}


@pytest.fixture(params=PROXIES)
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a proxy; it gives its URL."""
    scheme, program = PROXIES[request.param]

    @asynccontextmanager
    async def start(user_info: str = "", **options: Any) -> AsyncGenerator[str, None]:
        async with program(**options) as (address, _):
            yield f"{scheme}://{user_info}{address}"

    return start


# Through them


@asynccontextmanager
async def echo_server(host: str = "127.0.0.1") -> AsyncGenerator[dict[str, int], None]:
    """The ports of a server, for ``ws`` and for ``wss``."""

    async def echo(stream: WsByteStream) -> None:
        async for chunk in stream:
            await stream.send_all(chunk)

    async with background() as nursery:
        (plain,) = await nursery.start(partial(serve_ws, echo, host, 0))
        (tls,) = await nursery.start(partial(serve_ws, echo, host, 0, SERVER_TLS))
        yield {
            "ws": plain.transport_listener.socket.getsockname()[1],
            "wss": tls.transport_listener.transport_listener.socket.getsockname()[1],
        }


async def assert_echoes(url: str, proxy: str) -> None:
    """Bytes pass both ways at once, then a half-close, and a clean end."""
    with trio.fail_after(LIMIT):
        async with (
            open_ws_stream(url, tls_for(url), proxy=proxy) as stream,
            trio.open_nursery() as nursery,
        ):

            async def send() -> None:
                await stream.send_all(DATA)
                await stream.send_eof()

            nursery.start_soon(send)
            assert b"".join([chunk async for chunk in stream]) == DATA
        assert stream.closed == StreamClosed(1000, "", clean=True, error=None)


async def rejection(url: str, proxy: str) -> ProxyRejected:
    with trio.fail_after(LIMIT), pytest.raises(ProxyRejected) as rejected:
        async with open_ws_stream(url, tls_for(url), proxy=proxy):
            raise AssertionError("it was opened")
    assert PASSWORD not in str(rejected.value)
    assert proxy.rpartition("//")[2].rpartition("@")[2] in str(rejected.value)
    return rejected.value


@pytest.mark.parametrize("password", ["", PASSWORD])
async def test_bytes_pass_with_a_password_and_without(start: Any, password: str) -> None:
    user_info = f"{USER}:{password}@" if password else ""
    async with echo_server() as ports, start(user_info, password=password) as proxy:
        for scheme, port in ports.items():
            await assert_echoes(f"{scheme}://127.0.0.1:{port}/", proxy)
            await assert_echoes(f"{scheme}://localhost:{port}/", proxy)


@pytest.mark.parametrize("name", ["tinyproxy", "squid", "microsocks"])
async def test_bytes_pass_over_ipv6(name: str) -> None:
    scheme, program = PROXIES[name]
    async with echo_server("::1") as ports, program(host="::1") as (address, _):
        for server_scheme, port in ports.items():
            await assert_echoes(f"{server_scheme}://[::1]:{port}/", f"{scheme}://{address}")


async def test_a_name_that_only_the_proxy_knows_is_resolved_by_it() -> None:
    async with echo_server() as ports, squid() as (address, _):
        for scheme, port in ports.items():
            await assert_echoes(f"{scheme}://{NAME}:{port}/", f"http://{address}")


@pytest.mark.parametrize(("scheme", "said"), [("socks5", "127.0.0.1"), ("socks5h", "localhost")])
async def test_who_resolves_a_name_is_said_by_the_scheme(scheme: str, said: str) -> None:
    async with echo_server() as ports, microsocks() as (address, program):
        await assert_echoes(f"ws://localhost:{ports['ws']}/", f"{scheme}://{address}")
        with trio.fail_after(LIMIT):
            await program.says(f"connected to {said}:{ports['ws']}")


@pytest.mark.parametrize("user_info", ["", f"{USER}:wrong@"])
async def test_without_the_right_password_nothing_passes(start: Any, user_info: str) -> None:
    async with echo_server() as ports, start(user_info, password=PASSWORD) as proxy:
        error = await rejection(f"wss://127.0.0.1:{ports['wss']}/", proxy)
    if proxy.startswith("socks"):
        assert error.status is None
    else:
        assert error.status in (401, 407)  # 401: tinyproxy, if there is none
    if not user_info:
        assert "needs a user and a password" in str(error)
    elif error.status is not None:
        assert "does not accept the user and password" in str(error)


@pytest.mark.parametrize("name", ["tinyproxy", "squid"])
async def test_a_proxy_for_port_443_alone_refuses_others(name: str) -> None:
    """squid does this unless it is told otherwise."""
    async with echo_server() as ports, PROXIES[name][1](only_443=True) as (address, _):
        error = await rejection(f"wss://localhost:{ports['wss']}/", f"http://{address}")
    assert error.status == 403
    assert error.target == f"localhost:{ports['wss']}"


async def test_a_server_that_is_not_there_is_told(start: Any) -> None:
    async with start() as proxy:
        error = await rejection(f"ws://127.0.0.1:{free_port()}/", proxy)
    if proxy.startswith("socks"):
        assert "Connection refused" in str(error)
    else:
        assert error.status in (500, 503)


async def test_a_name_that_nobody_knows_is_told() -> None:
    async with tinyproxy() as (address, _):
        error = await rejection("ws://nobody.invalid:8000/", f"http://{address}")
        assert error.status == 500
    async with microsocks() as (address, _):
        await rejection("ws://nobody.invalid:8000/", f"socks5h://{address}")
        with pytest.raises(HandshakeError, match=r"nobody\.invalid is not known on this"):
            async with open_ws_stream("ws://nobody.invalid:8000/", proxy=f"socks5://{address}"):
                raise AssertionError("it was opened")
