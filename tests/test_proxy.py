"""Connecting through proxies made by hand; tests.interop.test_proxies meets real ones."""

from __future__ import annotations

import base64
import logging
import os
import re
import subprocess
import sys
import traceback
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio_websocket import ConnectionTimeout, HandshakeError

from trio_wsstream import ProxyRejected, WsByteStream, open_ws_stream, serve_ws
from trio_wsstream._proxy import Proxy, find_proxy, open_through_proxy

from .support.handshakes import receive_head
from .support.tasks import background
from .support.transports import AUTHORITY, SERVER_TLS, reset, tls_for

Handle = Callable[[trio.abc.HalfCloseableStream], Awaitable[None]]

GRANTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


# Servers


async def echo(stream: WsByteStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


def port_of(listener: Any) -> int:
    listener = getattr(listener, "transport_listener", listener)  # of TLS
    return int(listener.socket.getsockname()[1])


@asynccontextmanager
async def echo_server(tls: bool = False, host: str = "127.0.0.1") -> AsyncGenerator[int, None]:
    """Run a WebSocket server that echoes. The block gets its port."""
    async with background() as nursery:
        serve = partial(serve_ws, echo, host, 0, SERVER_TLS if tls else None)
        (listener,) = await nursery.start(serve)
        yield port_of(listener.transport_listener)


@asynccontextmanager
async def proxy_server(
    handle: Any, *, tls: bool = False, host: str = "127.0.0.1"
) -> AsyncGenerator[int, None]:
    """A proxy that does with each connection what ``handle`` does; its port.

    What ``handle`` raises fails the test, other than that the client has gone.
    """

    async def serve(stream: Any) -> None:
        async with stream:
            try:
                await handle(stream)
            except trio.BrokenResourceError:
                pass

    async with background() as nursery:
        if tls:
            start = partial(trio.serve_ssl_over_tcp, serve, 0, SERVER_TLS, host=host)
        else:
            start = partial(trio.serve_tcp, serve, 0, host=host)
        (listener,) = await nursery.start(partial(start, https_compatible=True) if tls else start)
        yield port_of(listener)


async def relay(one: Any, other: Any) -> None:
    """Pass all bytes on until one side has ended."""

    async def copy(source: Any, sink: Any) -> None:
        async for data in source:
            await sink.send_all(data)
        nursery.cancel_scope.cancel()

    async with other, trio.open_nursery() as nursery:
        nursery.start_soon(copy, one, other)
        nursery.start_soon(copy, other, one)


async def until_it_hangs_up(stream: trio.abc.Stream) -> None:
    """Wait until the client has closed its end, maybe with unread bytes."""
    try:
        assert await stream.receive_some() == b""
    except trio.BrokenResourceError:
        pass


class HttpProxy:
    """Grants each CONNECT.

    Args:
      answer: what it says then.
      names: those that it alone knows, and the addresses that they have.

    Attributes:
      requests (list of bytes): the heads of those that it got.
    """

    def __init__(self, answer: bytes = GRANTED, names: dict[str, str] | None = None) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        self._names = names or {}

    async def __call__(self, stream: trio.abc.Stream) -> None:
        self.requests.append(await receive_head(stream))
        method, target, version = self.requests[-1].split(b"\r\n")[0].split(b" ")
        assert (method, version) == (b"CONNECT", b"HTTP/1.1")
        host, _, port = target.decode().rpartition(":")
        host = host.strip("[]")
        server = await trio.open_tcp_stream(self._names.get(host, host), int(port))
        await stream.send_all(self._answer)
        await relay(stream, server)


async def receive_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more
        data += more
    return data


class SocksProxy:
    """Grants each request (RFC 1928).

    Args:
      credentials: the user and the password that it demands.
      names: as of `HttpProxy`.

    Attributes:
      targets (list of (int, str)): kind and text of the addresses that it was asked for.
    """

    NAME = 3

    def __init__(
        self, credentials: tuple[bytes, bytes] | None = None, names: dict[str, str] | None = None
    ) -> None:
        self.targets: list[tuple[int, str]] = []
        self._credentials = credentials
        self._names = names or {}

    async def __call__(self, stream: trio.abc.Stream) -> None:
        version, count = await receive_exactly(stream, 2)
        methods = await receive_exactly(stream, count)
        method = 2 if self._credentials else 0
        assert version == 5
        if method not in methods:
            await stream.send_all(b"\x05\xff")
            await until_it_hangs_up(stream)
            return
        await stream.send_all(bytes([5, method]))
        if self._credentials and not await self._authenticate(stream):
            return
        host = await self._receive_target(stream)
        port = int.from_bytes(await receive_exactly(stream, 2), "big")
        server = await trio.open_tcp_stream(self._names.get(host, host), port)
        await stream.send_all(b"\x05\0\0\x01\x7f\0\0\x01\0\x07")
        await relay(stream, server)

    async def _authenticate(self, stream: trio.abc.Stream) -> bool:
        """Check user and password (RFC 1929)."""
        assert await receive_exactly(stream, 1) == b"\x01"
        user = await receive_exactly(stream, (await receive_exactly(stream, 1))[0])
        password = await receive_exactly(stream, (await receive_exactly(stream, 1))[0])
        is_right = (user, password) == self._credentials
        await stream.send_all(b"\x01\0" if is_right else b"\x01\x01")
        if not is_right:
            await until_it_hangs_up(stream)
        return is_right

    async def _receive_target(self, stream: trio.abc.Stream) -> str:
        assert await receive_exactly(stream, 3) == b"\x05\x01\0"
        (kind,) = await receive_exactly(stream, 1)
        if kind == self.NAME:
            host = (await receive_exactly(stream, (await receive_exactly(stream, 1))[0])).decode()
        else:
            family = {1: trio.socket.AF_INET, 4: trio.socket.AF_INET6}[kind]
            size = {1: 4, 4: 16}[kind]
            host = trio.socket.inet_ntop(family, await receive_exactly(stream, size))
        self.targets.append((kind, host))
        return host


def answering(answer: bytes, *, hang_up: bool = False) -> Handle:
    """Return a proxy that answers each CONNECT, and then hangs up or waits."""

    async def handle(stream: trio.abc.HalfCloseableStream) -> None:
        await receive_head(stream)
        await stream.send_all(answer)
        if not hang_up:
            await until_it_hangs_up(stream)

    return handle


async def assert_echoes(url: str, proxy: str | None, **options: Any) -> None:
    data = bytes(range(256)) * 1000
    with trio.fail_after(30):
        async with (
            open_ws_stream(url, tls_for(url), proxy=proxy, **options) as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(stream.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await stream.receive_some()
            assert received == data


async def failure(proxy: str, url: str = "ws://server.example:8000/", **options: Any) -> Exception:
    """Return the error with which the connection fails."""
    with trio.fail_after(30):
        try:
            async with open_ws_stream(url, tls_for(url), proxy=proxy, **options):
                raise AssertionError("it was opened")
        except HandshakeError as error:
            return error


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Python's default settings for TLS trust the authority of the tests."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


# Tunnels


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("proxy_scheme", ["http", "https", "socks5", "socks5h", "socks"])
async def test_bytes_pass_through_any_proxy(proxy_scheme: str, scheme: str) -> None:
    handle: Any = HttpProxy() if "http" in proxy_scheme else SocksProxy()
    async with (
        echo_server(tls=scheme == "wss") as port,
        proxy_server(handle, tls=proxy_scheme == "https") as proxy_port,
    ):
        proxy = f"{proxy_scheme}://localhost:{proxy_port}"
        await assert_echoes(f"{scheme}://localhost:{port}/", proxy)


async def test_a_proxy_with_no_scheme_is_an_http_proxy() -> None:
    async with echo_server() as port, proxy_server(HttpProxy()) as proxy_port:
        await assert_echoes(f"ws://127.0.0.1:{port}/", f"127.0.0.1:{proxy_port}")


@pytest.mark.parametrize("proxy_scheme", ["http", "socks5", "socks5h"])
async def test_proxy_and_server_may_have_ipv6_addresses(proxy_scheme: str) -> None:
    handle: Any = HttpProxy() if proxy_scheme == "http" else SocksProxy()
    async with (
        echo_server(host="::1") as port,
        proxy_server(handle, host="::1") as proxy_port,
    ):
        await assert_echoes(f"ws://[::1]:{port}/", f"{proxy_scheme}://[::1]:{proxy_port}")
    if proxy_scheme == "http":
        assert handle.requests[0].startswith(b"CONNECT [::1]:%d HTTP/1.1\r\n" % port)
    else:
        assert handle.targets == [(4, "::1")]


@pytest.mark.parametrize("proxy_scheme", ["http", "socks5h"])
async def test_a_name_that_only_the_proxy_knows_is_its_to_resolve(proxy_scheme: str) -> None:
    names = {"inside.invalid": "127.0.0.1"}
    handle: Any = HttpProxy(names=names) if proxy_scheme == "http" else SocksProxy(names=names)
    async with echo_server() as port, proxy_server(handle) as proxy_port:
        proxy = f"{proxy_scheme}://127.0.0.1:{proxy_port}"
        await assert_echoes(f"ws://inside.invalid:{port}/", proxy)


async def test_socks5_resolves_names_on_this_machine() -> None:
    proxy = SocksProxy()
    async with echo_server() as port, proxy_server(proxy) as proxy_port:
        await assert_echoes(f"ws://localhost:{port}/", f"socks5://127.0.0.1:{proxy_port}")
        assert proxy.targets == [(1, "127.0.0.1")]
        error = await failure(f"socks5://127.0.0.1:{proxy_port}", f"ws://inside.invalid:{port}/")
        assert "inside.invalid" in str(error)
        assert "socks5h" in str(error)


@pytest.mark.parametrize(
    ("host", "name"),
    [("xn--strae-oqa.example", b"xn--strae-oqa.example"), ("fe80::1%eth0", b"[fe80::1]")],
)
async def test_a_proxy_is_told_no_zone_and_only_ascii(host: str, name: bytes) -> None:
    requests = []

    async def handle(stream: Any) -> None:
        requests.append(await receive_head(stream))
        await stream.send_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    async with proxy_server(handle) as port:
        with pytest.raises(ProxyRejected):
            await open_through_proxy(Proxy("http", "127.0.0.1", port), host, 8000)
    assert requests[0].startswith(b"CONNECT " + name + b":8000 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("user_info", "credentials"),
    [
        ("", None),
        ("@", None),
        ("me:secret@", "me:secret"),
        ("me@", "me:"),
        (":secret@", ":secret"),
        ("m%65:s%3Acr%40t%2F%25@", "me:s:cr@t/%"),
        ("me:s:cr@t@", "me:s:cr@t"),
        ("j%C3%B6rg:%E2%9C%93@", "jörg:✓"),
    ],
)
async def test_the_request_names_the_server_and_holds_credentials_if_there_are_any(
    user_info: str, credentials: str | None
) -> None:
    proxy = HttpProxy()
    async with echo_server() as port, proxy_server(proxy) as proxy_port:
        await assert_echoes(f"ws://127.0.0.1:{port}/", f"http://{user_info}127.0.0.1:{proxy_port}")
    line, *headers, _, _ = proxy.requests[0].decode().split("\r\n")
    assert line == f"CONNECT 127.0.0.1:{port} HTTP/1.1"
    expected = {"Host": f"127.0.0.1:{port}", "User-Agent": "trio-wsstream"}
    if credentials is not None:
        token = base64.b64encode(credentials.encode()).decode()
        expected["Proxy-Authorization"] = f"Basic {token}"
    assert dict(header.split(": ") for header in headers) == expected
    assert len(headers) == len(expected)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_socks_proxy_gets_user_and_password_if_it_asks_for_them(scheme: str) -> None:
    async with echo_server() as port:
        for handle in (SocksProxy((b"me", b"s:cr@t")), SocksProxy()):
            async with proxy_server(handle) as proxy_port:
                proxy = f"{scheme}://m%65:s%3Acr%40t@127.0.0.1:{proxy_port}"
                await assert_echoes(f"ws://127.0.0.1:{port}/", proxy)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Wait\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\t6\r\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.0 200 OK\nTRANSFER-ENCODING: identity\nConnection: close\n\n",
    ],
)
async def test_whatever_grants_a_tunnel_opens_one_and_announces_no_body(answer: bytes) -> None:
    async with echo_server() as port, proxy_server(HttpProxy(answer)) as proxy_port:
        await assert_echoes(f"ws://127.0.0.1:{port}/", f"http://127.0.0.1:{proxy_port}")


@pytest.mark.parametrize("max_bytes", [1, 2, None])
async def test_bytes_that_come_with_the_answer_belong_to_the_tunnel(max_bytes: int | None) -> None:
    async def handle(stream: trio.abc.HalfCloseableStream) -> None:
        await receive_head(stream)
        await stream.send_all(GRANTED + b"early\r\n\r\n")
        assert await receive_exactly(stream, 8) == b"question"
        await stream.send_all(b"late")
        await stream.send_eof()
        await until_it_hangs_up(stream)

    async with proxy_server(handle) as port:
        stream = await open_through_proxy(Proxy("http", "127.0.0.1", port), "server.example", 8000)
        with trio.fail_after(30):
            with trio.move_on_after(0):
                await stream.receive_some()  # takes nothing away
            received = b""
            while received != b"early\r\n\r\n":
                received += await stream.receive_some(max_bytes)
            await stream.send_all(b"question")
            assert await receive_exactly(stream, 4) == b"late"
            assert await stream.receive_some() == b""
            await stream.aclose()


# Refusals


@pytest.mark.parametrize(
    ("head", "status", "said"),
    [
        (b"HTTP/1.1 403 Forbidden", 403, "403 Forbidden"),
        (b"HTTP/1.0 403 Access violation", 403, "403 Access violation"),
        (b"HTTP/1.1 400", 400, "400"),
        (b"HTTP/1.1 503 Service Unavailable", 503, "503 Service Unavailable"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login.example/?a=s3cret", 302, "302 Found"),
        (b"HTTP/1.1 500 \xff" + b"x" * 60000, 500, "500 \ufffdxxx"),
    ],
)
@pytest.mark.parametrize(
    "rest",
    [
        b"\r\n\r\n",
        b"\r\nContent-Length: 1000000000\r\n\r\nbegun",
        b"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
        b"\r\nTransfer-Encoding: gzip\r\nContent-Length: -1\r\n\r\nbegun",
    ],
)
async def test_a_refusal_is_told_at_once_whatever_its_body(
    head: bytes, status: int, said: str, rest: bytes
) -> None:
    async with proxy_server(answering(head + rest)) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert isinstance(error, ProxyRejected)
    assert (error.proxy, error.target) == (f"127.0.0.1:{port}", "server.example:8000")
    assert error.status == status
    assert str(error).startswith(
        f"the proxy 127.0.0.1:{port} refused to connect to server.example:8000: {said}"
    )
    assert "s3cret" not in str(error)
    assert len(str(error)) < 400


NEEDS: Final = "needs a user and a password"
NOT_ACCEPTED: Final = "does not accept the user and password"
NO_BASIC: Final = "offers no Basic authentication"


@pytest.mark.parametrize(
    ("user_info", "challenges", "said"),
    [
        ("", [], NEEDS),
        ("", [b'Basic realm="inside"'], NEEDS),
        ("", [b"Negotiate", b'BASIC realm="inside"'], NEEDS),
        ("", [b"NTLM, basic"], NEEDS),
        ("", [b"Negotiate", b"NTLM"], NO_BASIC),
        ("me:s3cret@", [b"Negotiate"], NO_BASIC),
        ("me:s3cret@", [], NOT_ACCEPTED),
        ("me:s3cret@", [b'Basic realm="inside"'], NOT_ACCEPTED),
    ],
)
async def test_an_error_for_status_407_says_what_is_missing(
    user_info: str, challenges: list[bytes], said: str
) -> None:
    lines = [b"HTTP/1.1 407 Proxy Authentication Required"]
    lines += [b"Proxy-Authenticate: " + challenge for challenge in challenges]
    async with proxy_server(answering(b"\r\n".join(lines) + b"\r\n\r\n")) as port:
        error = await failure(f"http://{user_info}127.0.0.1:{port}")
    assert isinstance(error, ProxyRejected)
    assert error.status == 407
    assert "407 Proxy Authentication Required" in str(error)
    assert said in str(error)
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"\x05\0" + b"\x05\x01\0\x01" + bytes(6), "General SOCKS server failure"),
        (b"\x05\0" + b"\x05\x02\0\x01" + bytes(6), "not allowed by ruleset"),
        (b"\x05\0" + b"\x05\x04\0\x01" + bytes(6), "Host unreachable"),
        (b"\x05\0" + b"\x05\x05\0\x01" + bytes(6), "Connection refused"),
        (b"\x05\xff", "put them into the proxy's URL"),
        (b"\x05\x02", "put them into the proxy's URL"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "version"),
        (b"\x05\0" + b"\x05\x63\0\x01" + bytes(6), "0X63"),
        (b"\x05\0" + b"\x05\0\0\x09" + bytes(6), "address type"),
    ],
)
async def test_a_failure_of_socks_is_a_rejection_with_no_status(reply: bytes, said: str) -> None:
    async def handle(stream: trio.abc.Stream) -> None:
        await receive_exactly(stream, 3)
        await stream.send_all(reply)
        if reply.startswith(b"\x05\0"):
            await receive_exactly(stream, 5 + len(b"server.example") + 2)
        await until_it_hangs_up(stream)

    async with proxy_server(handle) as port:
        error = await failure(f"socks5h://127.0.0.1:{port}")
    assert isinstance(error, ProxyRejected)
    assert error.status is None
    assert f"the proxy 127.0.0.1:{port} refused to connect to server.example:8000: " in str(error)
    assert said in str(error)


async def test_a_wrong_password_for_socks_is_a_rejection_that_does_not_show_it() -> None:
    async with proxy_server(SocksProxy((b"me", b"right"))) as port:
        error = await failure(f"socks5h://me:s3cret@127.0.0.1:{port}")
    assert isinstance(error, ProxyRejected)
    assert "authentication failure" in str(error)
    assert "s3cret" not in "".join(traceback.format_exception(error))


# Proxies that are none, or broken


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"does not speak HTTP: its answer begins b'SSH-2.0-"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "does not speak HTTP"),  # TLS, which wants its own
        (b"\x05\xff", "does not speak HTTP"),
        (b"\r\n\r\n", "does not speak HTTP"),
        (b"HTTP", None),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not valid HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nSet-Cookie: a=s3cret\0\r\n\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000, "head of more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n", "head of more than 65536 bytes"),
    ],
)
async def test_an_answer_that_is_not_http_fails_at_once_and_the_transport_is_closed(
    answer: bytes, said: str | None
) -> None:
    """With ``None`` the proxy hangs up."""
    async with proxy_server(answering(answer, hang_up=said is None)) as port:
        error = await failure(f"http://me:s3cret@127.0.0.1:{port}")
    assert not isinstance(error, (ProxyRejected, ConnectionTimeout))
    assert f"the proxy 127.0.0.1:{port}" in str(error)
    assert re.search(said or "hung up before it had answered", str(error))
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("piece", [1000, 10**6])
async def test_a_head_may_have_64_kib_however_it_is_cut(extra: int, piece: int) -> None:
    start, end = b"HTTP/1.1 200 OK\r\nA: ", b"\r\n\r\n"
    head = start + b"b" * (65536 - len(start) - len(end) + extra) + end

    async def handle(stream: trio.abc.Stream) -> None:
        await receive_head(stream)
        for index in range(0, len(head), piece):
            await stream.send_all(head[index : index + piece])
        await until_it_hangs_up(stream)

    async with proxy_server(handle) as port:
        connect = partial(open_through_proxy, Proxy("http", "127.0.0.1", port), "a", 1)
        if extra:
            with pytest.raises(HandshakeError, match="65536"):
                await connect()
        else:
            await (await connect()).aclose()


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
@pytest.mark.parametrize("how", ["ends", "resets"])
async def test_a_proxy_that_hangs_up_is_a_handshake_error(scheme: str, how: str) -> None:
    async def handle(stream: Any) -> None:
        await stream.receive_some()
        if how == "resets":
            reset(stream)

    async with proxy_server(handle) as port:
        error = await failure(f"{scheme}://localhost:{port}", "ws://127.0.0.1:1/")
    assert f"the proxy localhost:{port}" in str(error)


async def test_a_socks_proxy_that_cannot_be_understood_is_a_handshake_error() -> None:
    async def handle(stream: trio.abc.Stream) -> None:
        await receive_exactly(stream, 3)
        await stream.send_all(b"\x05\0" + b"\x05\0\0\x03\x01\xff\0\0")  # a name that is no UTF-8
        await receive_exactly(stream, 5 + len(b"server.example") + 2)
        await until_it_hangs_up(stream)

    async with proxy_server(handle) as port:
        error = await failure(f"socks5h://127.0.0.1:{port}")
    assert str(error) == f"the proxy 127.0.0.1:{port} does not speak SOCKS5"


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_a_proxy_that_cannot_be_reached_is_a_handshake_error_that_names_it(
    scheme: str,
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    error = await failure(f"{scheme}://me:s3cret@127.0.0.1:{port}", "ws://127.0.0.1:1/")
    assert str(error).startswith(f"cannot connect to the proxy 127.0.0.1:{port}: ")
    assert str(error).endswith(": connection refused")
    error = await failure(f"{scheme}://me:s3cret@proxy.invalid:8000", "ws://127.0.0.1:1/")
    assert str(error).startswith("cannot connect to the proxy proxy.invalid:8000: ")


async def test_a_proxy_whose_certificate_is_not_trusted_gets_no_password() -> None:
    """The authorities of ``ssl_context`` are trusted for the server only."""
    proxy = HttpProxy()
    async with proxy_server(proxy, tls=True) as port:
        error = await failure(f"https://me:s3cret@localhost:{port}", "wss://localhost:1/")
    assert f"no TLS with the proxy localhost:{port}: " in str(error)
    assert "certificate" in str(error)
    assert not proxy.requests


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_is_checked_for_the_name_of_the_proxy() -> None:
    async with proxy_server(HttpProxy(), tls=True, host="::1") as port:
        error = await failure(f"https://[::1]:{port}")
    assert f"no TLS with the proxy [::1]:{port}: " in str(error)
    assert "certificate" in str(error)


async def test_a_proxy_that_speaks_no_tls_is_a_handshake_error() -> None:
    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await until_it_hangs_up(stream)

    async with proxy_server(handle) as port:
        error = await failure(f"https://localhost:{port}")
    assert str(error) == (
        f"no TLS with the proxy localhost:{port}: it answered in plain text: use http://"
    )


# Slow ones


async def be_silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


async def grant_silence(stream: trio.abc.Stream) -> None:
    await receive_head(stream)
    await stream.send_all(GRANTED)
    await trio.sleep_forever()


async def dribble(stream: trio.abc.Stream) -> None:
    await receive_head(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\n")
    while True:
        await stream.send_all(b"A: b\r\n")
        await trio.sleep(0.001)


async def never_say_yes(stream: trio.abc.Stream) -> None:
    await receive_head(stream)
    while True:
        await stream.send_all(b"HTTP/1.1 102 Processing\r\n\r\n")
        await trio.sleep(0.001)


@pytest.mark.parametrize(
    ("scheme", "handle"),
    [
        ("http", be_silent),
        ("https", be_silent),
        ("socks5h", be_silent),
        ("http", dribble),
        ("http", never_say_yes),
        ("http", grant_silence),
    ],
)
async def test_a_slow_proxy_is_a_connection_timeout(scheme: str, handle: Any) -> None:
    async with proxy_server(handle) as port:
        error = await failure(f"{scheme}://me:s3cret@127.0.0.1:{port}", connect_timeout=0.1)
    assert isinstance(error, ConnectionTimeout)
    assert f"through the proxy 127.0.0.1:{port} took more than 0.1 seconds" in str(error)
    assert "s3cret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_a_cancelled_connection_to_the_proxy_is_closed(scheme: str) -> None:
    asked, hung_up = trio.Event(), trio.Event()

    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        asked.set()
        await until_it_hangs_up(stream)
        hung_up.set()

    async with proxy_server(handle) as port, trio.open_nursery() as nursery:
        proxy = f"{scheme}://127.0.0.1:{port}"
        nursery.start_soon(partial(failure, proxy, "ws://127.0.0.1:1/"))
        with trio.fail_after(30):
            await asked.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await hung_up.wait()


# What names a proxy, and what does not


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy", Proxy("http", "proxy", 80)),
        ("https://proxy", Proxy("https", "proxy", 443)),
        ("socks5://proxy", Proxy("socks5", "proxy", 1080)),
        ("socks5h://proxy", Proxy("socks5h", "proxy", 1080)),
        ("HTTP://Proxy:3128/", Proxy("http", "proxy", 3128)),
        ("proxy:3128", Proxy("http", "proxy", 3128)),
        ("me:secret@proxy", Proxy("http", "proxy", 80, "me", "secret")),
        (" http://proxy:/\n", Proxy("http", "proxy", 80)),
        ("http://[::1]", Proxy("http", "::1", 80)),
        ("http://[fe80::1%25eth0]:1", Proxy("http", "fe80::1%eth0", 1)),
        ("http://faß.example", Proxy("http", "xn--fa-hia.example", 80)),
        ("socks5://me:p%40ss@10.0.0.1", Proxy("socks5", "10.0.0.1", 1080, "me", "p@ss")),
    ],
)
def test_a_proxy_is_named_by_a_url(url: str, expected: Proxy) -> None:
    assert find_proxy(url, "wss", "server", 443) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "a host"),
        ("http://", "a host"),
        ("http://me:s3cret@", "a host"),
        ("ftp://me:s3cret@proxy", "begin with http://.*, not with ftp://"),
        ("ws://proxy", "begin with http://.*, not with ws://"),
        ("socks4://proxy", "begin with http://.*, not with socks4://"),
        ("http://me:s3/cret@proxy:3128", "'/'.* must be percent-encoded"),
        ("http://me:12/s3cret@proxy:3128", "must be percent-encoded"),
        ("http://me:s3cret?@proxy", "must be percent-encoded"),
        ("http://me:s3cret#@proxy", "must be percent-encoded"),
        ("http://me:s3cret@proxy/path", "end after its host and port"),
        ("http://me:s3cret@proxy?query", "end after its host and port"),
        ("http://me:s3cret@pro xy", "no spaces"),
        ("http://me:s3cret@pro\txy", "no control characters"),
        ("http://me:s3cret@pro\r\nxy", "no control characters"),
        ("http://me:s3cret@proxy:0", "port from 1 to 65535"),
        ("http://me:s3cret@proxy:65536", "port from 1 to 65535"),
        ("http://me:s3cret@proxy:99999999", "port from 1"),
        ("http://me:s3cret@proxy:http", "host:port"),
        ("http://me:s3cret@::1", "host:port"),
        ("http://me:s3cret@[::1", "URL"),
        ("http://me:s3cret@[::1]x", "URL|host:port"),
        ("http://me:s3cret@[proxy]", "URL|IPv6"),
        ("http://me:s3cret@prox\u2100y", "URL"),  # a letter that becomes "a/c"
        ("http://me:s3cret@b\u00fc..cher", "valid host name"),
        ("http://me:s3cret@-proxy", "valid host name"),
        ("http://me:s3cret@a..b", "valid host name"),
        ("http://me:s3cret@pro|xy", "valid host name"),
        ("http://me:s3cret@" + "a" * 64, "at most 63 characters"),
        ("http://me:s3cret@" + "a." * 150 + "a", "at most 253 characters"),
        ("http://me:s3cret@[::g]", "URL|IPv6"),
        ("http://me%FF:s3cret%FF@proxy", "UTF-8"),
        ("http://m%3Ae:s3cret@proxy", "no colon"),
        ("socks5://me@proxy", "1 to 255 ASCII"),
        ("socks5://:s3cret@proxy", "1 to 255 ASCII"),
        ("socks5h://me:s3cret%C3%B6@proxy", "1 to 255 ASCII"),
        (f"socks5h://me:s3cret{'x' * 250}@proxy", "1 to 255 ASCII"),
    ],
)
@pytest.mark.parametrize("where", ["argument", "environment"])
async def test_an_invalid_proxy_url_is_a_value_error_that_shows_no_password(
    url: str, said: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "environment":
        if not url:
            return  # an empty variable is none
        set_environment(monkeypatch, {"all_proxy": url})
        name, proxy = "all_proxy in the environment", "env"
    else:
        name, proxy = "proxy", url
    with pytest.raises(ValueError, match=f"^{name} must .*(?:{said})") as caught:
        async with open_ws_stream("ws://server/", proxy=proxy):
            raise AssertionError("it was opened")
    assert "s3" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("proxy", [b"http://me:s3cret@proxy", True, 3128, ("http", "proxy")])
async def test_a_proxy_of_another_type_is_a_type_error(proxy: Any) -> None:
    with pytest.raises(TypeError, match="proxy must be a str or None, not of type ") as error:
        async with open_ws_stream("ws://server/", proxy=proxy):
            raise AssertionError("it was opened")
    assert type(proxy).__name__ in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("proxy", ["http://proxy", "env"])
async def test_a_proxy_for_a_transport_is_a_value_error(proxy: str) -> None:
    transport, _ = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match="proxy must be None"):
        async with open_ws_stream("ws://server/", transport=transport, proxy=proxy):
            raise AssertionError("it was opened")


async def test_without_python_socks_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'trio-wsstream[socks]'")):
        async with open_ws_stream("ws://127.0.0.1:1/", proxy="socks5://127.0.0.1:1"):
            raise AssertionError("it was opened")


# The environment


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set these environment variables, and remove all others that are for proxies."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "ws", "wss"),
    [
        ({}, None, None),
        ({"http_proxy": "http://a"}, "a", None),
        ({"https_proxy": "http://a"}, None, "a"),
        ({"all_proxy": "http://a"}, "a", "a"),
        ({"ws_proxy": "http://a"}, "a", None),
        ({"wss_proxy": "http://a"}, None, "a"),
        ({"HTTP_PROXY": "http://a"}, "a", None),
        ({"HTTPS_PROXY": "http://a"}, None, "a"),
        ({"ALL_PROXY": "http://a"}, "a", "a"),
        ({"WS_PROXY": "http://a"}, "a", None),
        ({"WSS_PROXY": "http://a"}, None, "a"),
        ({"ftp_proxy": "http://a"}, None, None),
        ({"wss_proxy": "http://a", "https_proxy": "http://b", "all_proxy": "http://c"}, "c", "a"),
        ({"ws_proxy": "http://a", "http_proxy": "http://b", "all_proxy": "http://c"}, "a", "c"),
        ({"https_proxy": "http://b", "http_proxy": "http://d", "all_proxy": "http://c"}, "d", "b"),
        ({"https_proxy": "http://low", "HTTPS_PROXY": "http://up"}, None, "low"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://up"}, None, None),
        ({"all_proxy": "a:3128"}, "a", "a"),
        ({"all_proxy": "socks://a"}, "a", "a"),  # as desktops have it
        ({"HTTP_PROXY": "http://a", "REQUEST_METHOD": "GET"}, None, None),  # a client's, in CGI
        ({"http_proxy": "http://a", "REQUEST_METHOD": "GET"}, "a", None),
    ],
)
def test_the_environment_names_the_proxy(
    variables: dict[str, str], ws: str | None, wss: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, variables)
    for scheme, expected in [("ws", ws), ("wss", wss)]:
        found = find_proxy("env", scheme, "server.example", 8000)
        assert (found and found.host) == expected


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_used"),
    [
        ("*", "server.example", False),
        ("server.example", "server.example", False),
        ("server.example", "server.example.", False),
        ("SERVER.example", "Server.Example", False),
        ("example", "server.example", False),
        (".example", "server.example", False),
        ("other, server.example", "server.example", False),
        ("server.example:8000", "server.example", False),
        ("server.example:8001", "server.example", True),
        ("server.example", "myserver.example", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("::1", "::1", False),
        ("[::1]", "::1", False),
        ("[::1]:8000", "::1", False),
        ("[::1]:8001", "::1", True),
        ("", "server.example", True),
    ],
)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_proxy_names_servers_that_need_no_proxy(
    name: str, no_proxy: str, host: str, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, {"all_proxy": "http://proxy", name: no_proxy})
    assert (find_proxy("env", "wss", host, 8000) is not None) is is_used


@pytest.mark.parametrize("url", ["http://a:1", "socks://a:1", "a:1", "socks5h://a:1"])
def test_a_desktops_setting_for_socks_is_a_socks_proxy(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS that setting begins with "http://"."""
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"socks": url})
    assert find_proxy("env", "wss", "server.example", 8000) == Proxy("socks", "a", 1)


async def test_only_proxy_env_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = HttpProxy()
    async with echo_server() as port, proxy_server(proxy) as proxy_port:
        set_environment(monkeypatch, {"http_proxy": f"http://127.0.0.1:{proxy_port}"})
        await assert_echoes(f"ws://127.0.0.1:{port}/", None)
        assert not proxy.requests
        await assert_echoes(f"ws://127.0.0.1:{port}/", "env")
        assert len(proxy.requests) == 1
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        await assert_echoes(f"ws://127.0.0.1:{port}/", "env")
        assert len(proxy.requests) == 1


# Secrets, and what it costs


async def test_a_password_is_in_no_log_line_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with echo_server() as port:
        for handle, scheme in [(HttpProxy(), "http"), (SocksProxy((b"me", b"s3cret")), "socks5h")]:
            async with proxy_server(handle) as proxy_port:
                proxy = f"{scheme}://me:s3cret@127.0.0.1:{proxy_port}"
                await assert_echoes(f"ws://127.0.0.1:{port}/", proxy)
                assert f"through the proxy 127.0.0.1:{proxy_port}" in caplog.text
    assert "s3cret" not in caplog.text
    assert base64.b64encode(b"me:s3cret").decode() not in caplog.text
    assert "s3cret" not in repr(Proxy("http", "proxy", 1, "me", "s3cret"))


def test_an_import_does_not_bring_in_what_may_not_be_needed() -> None:
    rooms = [f"trio_wsstream._{name}" for name in ("bridge", "handshake", "open", "proxy", "serve")]
    names = ["urllib.request", "python_socks", *rooms]
    code = (
        "import sys, trio_wsstream; "
        f"print([name for name in {names} if name in sys.modules]); "
        "print(set(trio_wsstream.__all__) <= set(dir(trio_wsstream))); "
        "print(all(hasattr(trio_wsstream, name) for name in trio_wsstream.__all__))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert said.stdout == "[]\nTrue\nTrue\n"
