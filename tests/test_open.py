"""Opening streams, over real sockets, to peers that are not ours; and leaving them."""

from __future__ import annotations

import asyncio
import datetime
import errno
import re
import socket
import ssl
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
import websockets.sync.client
import websockets.sync.server
from trio_websocket import WebSocketRequest

from trio_wsstream import (
    StreamClosed,
    StreamConfig,
    TakeoverError,
    WsByteStream,
    open_ws_stream,
    wrap_websocket,
)
from trio_wsstream._open import open_nursery

from .support.echoing import ask
from .support.pairs import SHORT, connection_pair
from .support.raw_peer import raw_pair
from .support.tasks import background
from .support.transports import AUTHORITY, CLIENT_TLS, SERVER_TLS


@asynccontextmanager
async def echo_server(tls: bool = False) -> AsyncGenerator[str, None]:
    """Run trio-websocket's server with streams that echo. The block gets its URL."""

    async def handle(request: WebSocketRequest) -> None:
        wanted = request.proposed_subprotocols
        connection = await request.accept(
            subprotocol=wanted[0] if wanted else None,
            extra_headers=[(b"X-Seen", request.path.encode())],
        )
        async with wrap_websocket(connection) as stream:
            try:
                async for chunk in stream:
                    await stream.send_all(chunk)
            except trio.BrokenResourceError:
                pass  # the client has closed with a code that is no clean end

    async with background() as nursery:
        serve = partial(
            trio_websocket.serve_websocket, handle, "127.0.0.1", 0, SERVER_TLS if tls else None
        )
        server = await nursery.start(serve)
        scheme = "wss://localhost" if tls else "ws://127.0.0.1"
        yield f"{scheme}:{server.port}/a/path?query"


@pytest.mark.parametrize("tls", [False, True])
async def test_a_stream_from_a_url_carries_bytes_both_ways_and_half_closes(tls: bool) -> None:
    data = bytes(range(256)) * 4000
    async with (
        echo_server(tls) as url,
        open_ws_stream(
            url,
            CLIENT_TLS if tls else None,
            subprotocols=["mqtt", "amqp"],
            extra_headers=[(b"Authorization", b"Basic eA==")],
        ) as stream,
    ):
        assert stream.subprotocol == "mqtt"
        assert stream.path == "/a/path?query"
        assert (b"x-seen", b"/a/path?query") in stream.handshake_headers
        assert f":{stream.remote.port}/" in url  # type: ignore[union-attr]
        assert stream.local.url.startswith("wss" if tls else "ws:")  # type: ignore[union-attr]
        assert await ask(stream, data) == data
    assert stream.closed == StreamClosed(1000, "", True, None)


async def test_addresses_are_a_repr_where_the_transport_has_none() -> None:
    async with background() as nursery:
        client, server = await connection_pair(nursery, "memory")
        async with wrap_websocket(client, SHORT) as stream:
            assert "MemorySendStream" in str(stream.local)
            assert stream.local == stream.remote
        await server.aclose()


async def test_a_server_of_trio_websocket_keeps_no_headers() -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)  # whose request has some
        assert stream.handshake_headers == ()
        assert stream.path == "/"
        assert stream.subprotocol is None


async def test_a_refused_tcp_connection_is_a_handshake_error() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(trio_websocket.HandshakeError):
        async with open_ws_stream(f"ws://127.0.0.1:{port}/"):
            raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("url", "port"), [("ws://a", 80), ("wss://a", 443), ("ws://a:443", 443), ("wss://a:80/", 80)]
)
async def test_the_port_is_that_of_the_url_or_of_its_scheme(
    url: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*address: object) -> None:
        assert address == ("a", port)
        raise OSError("seen")

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    with pytest.raises(trio_websocket.HandshakeError, match="seen"):
        async with open_ws_stream(url):
            raise AssertionError("it was opened")


async def test_a_rejected_handshake_is_a_connection_rejected() -> None:
    async def reject(request: WebSocketRequest) -> None:
        await request.reject(403)

    async with background() as nursery:
        serve = partial(trio_websocket.serve_websocket, reject, "127.0.0.1", 0, None)
        server = await nursery.start(serve)
        with pytest.raises(trio_websocket.ConnectionRejected) as rejected:
            async with open_ws_stream(f"ws://127.0.0.1:{server.port}/"):
                raise AssertionError("it was opened")
        assert rejected.value.status_code == 403


async def test_a_silent_server_is_a_connection_timeout() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(trio_websocket.ConnectionTimeout):
            async with open_ws_stream(f"ws://127.0.0.1:{port}/", connect_timeout=0.05):
                raise AssertionError("it was opened")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\nhello", b"\x16\x03\x01 noise"])
async def test_a_server_that_speaks_no_websocket_is_a_handshake_error_at_once(
    answer: bytes,
) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with background() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(trio_websocket.HandshakeError) as error:
            async with open_ws_stream(f"ws://127.0.0.1:{port}/"):
                raise AssertionError("it was opened")
        assert not isinstance(error.value, trio_websocket.ConnectionTimeout)


async def test_a_certificate_that_is_not_trusted_is_a_handshake_error() -> None:
    async with echo_server(tls=True) as url:
        with pytest.raises(trio_websocket.HandshakeError, match="certificate"):
            async with open_ws_stream(url):
                raise AssertionError("it was opened")


async def test_a_certificate_of_another_host_is_a_handshake_error() -> None:
    async with echo_server(tls=True) as url:
        transport = await trio.open_tcp_stream("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        with pytest.raises(trio_websocket.HandshakeError, match="certificate"):
            async with open_ws_stream("wss://example.org/", CLIENT_TLS, transport=transport):
                raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost/", "begin with ws:// or wss://"),
        ("localhost", "begin with ws:// or wss://"),
        ("", "begin with ws:// or wss://"),
        ("//localhost/", "begin with ws:// or wss://"),
        ("ws:///path", "have a host: 'ws://'"),
        ("ws://:80/", "have a host: 'ws://:80'"),
        ("ws://host/#fragment", "no fragment.*'ws://host'"),
        ("ws://host/#", "no fragment.*'ws://host'"),
        ("ws://me@host/", "no user"),
        ("ws://host:0/", "port from 1 to 65535: 'ws://host:0'"),
        ("ws://host:65536/", "port from 1 to 65535"),
        ("ws://host:99999999999999999999/", "port from 1 to 65535"),
        ("ws://host:http/", r"a host and a port \(host:port\)"),
        ("ws://host:-1/", r"a host and a port \(host:port\)"),
        ("ws://a:b:c/", r"a host and a port \(host:port\)"),
        ("ws://[::1]x/", re.escape("a host and a port (host:port): 'ws://[::1]x'")),
        ("ws://[::1/", r"a host and a port \(host:port\)"),
        ("ws://[::g]/", "an IPv6 address in its brackets"),
        ("ws://[]/", "an IPv6 address in its brackets"),
        ("ws://[127.0.0.1]/", "an IPv6 address in its brackets"),
        ("ws://[fe80::1%]/", "interface"),
        ("ws://[fe80::1%25]x/", r"a host and a port \(host:port\)"),
        ("ws://exa mple/", "no space in it: 'ws://exa mple'"),
        ("ws://host/a path", "no space in it"),
        (" ws://host/", "begin with ws://"),
        ("ws://host/ ", "no space in it"),
        ("ws://ho\tst/", "no tab in it"),
        ("ws://host/a\tb", "no tab in it"),
        ("ws://ho\nst/", "no newline in it"),
        ("ws://host/\r\nX: y", "no newline in it"),
        ("ws://host/\0", "no control character in it"),
        ("ws://host/\x7f", "no control character in it"),
        ("ws://a..b/", "valid host name: 'ws://a..b'"),
        ("ws://.a/", "valid host name"),
        ("ws://a../", "valid host name"),
        ("ws://-a/", "valid host name"),
        ("ws://a%20b/", "valid host name"),
        ("ws://a\\b/", "valid host name"),
        ("ws://a,b/", "valid host name"),
        ("ws://\u2024/", "valid host name"),
        ("ws://xn--\xe4/", "valid host name"),
        ("ws://" + "a" * 64 + "/", "at most 63 characters between its dots"),
        ("ws://" + "a." * 127 + "a/", "host of at most 253 characters"),
        ("ws://" + "ä." * 100 + "a/", "host"),
        ("ws://host/å", "percent-encoded: 'ws://host'"),
        ("ws://host/?q=å", "percent-encoded: 'ws://host'"),
    ],
)
async def test_what_is_no_websocket_url_is_a_value_error_that_says_what_is_wrong(
    url: str, words: str
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match=f"url must.*{words}"):
        async with open_ws_stream(url, transport=ours):
            raise AssertionError("it was opened")
    assert await theirs.receive_some() == b""  # the transport was closed, and nothing sent


@pytest.mark.parametrize(
    "url",
    [
        "http://secret:secret@h/secret?secret#secret",
        "ws://secret:secret@h/",
        "ws://h/secret?secret=å",
        "ws://h/secret?secret#secret",
        "ws://h/secret ?secret",
        "wss://h:0/secret?secret",
        "secret",
    ],
)
async def test_an_error_about_a_url_tells_no_secret(url: str) -> None:
    with pytest.raises(ValueError, match="url must") as caught:
        async with open_ws_stream(url):
            raise AssertionError("it was opened")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [None, b"ws://localhost/", 5])
async def test_a_url_that_is_no_str_is_a_type_error(url: Any) -> None:
    with pytest.raises(TypeError, match="url must be a str, not a"):
        async with open_ws_stream(url):
            raise AssertionError("it was opened")


async def test_a_timeout_error_shows_the_authority_and_no_more_of_the_url() -> None:
    transport, _ = trio.testing.memory_stream_pair()
    with pytest.raises(trio_websocket.ConnectionTimeout) as caught:
        async with open_ws_stream("ws://h:1/?secret", transport=transport, connect_timeout=0):
            raise AssertionError("it was opened")
    assert str(caught.value) == "connecting to h:1 took more than 0 seconds"


# Why a connection could not be opened


async def why(url: str, ssl_context: ssl.SSLContext | None = None, **options: Any) -> str:
    with pytest.raises(trio_websocket.HandshakeError) as caught:
        async with open_ws_stream(url, ssl_context, **options):
            raise AssertionError("it was opened")
    return str(caught.value)


async def test_a_refused_connection_is_reported_as_refused() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    text = await why(f"ws://127.0.0.1:{port}/?secret")
    assert text == f"cannot connect to 127.0.0.1:{port}: connection refused"


async def test_each_reason_is_told_when_several_addresses_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*address: object) -> None:
        attempts = [
            OSError(errno.ECONNREFUSED, "Connection refused"),
            OSError(errno.ENETUNREACH, "Network is unreachable"),
            OSError(errno.ECONNREFUSED, "Connection refused"),
        ]
        raise OSError("all attempts to connect failed") from ExceptionGroup("", attempts)

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    assert await why("ws://a/") == (
        "cannot connect to a: connection refused; network is unreachable"
    )


async def test_a_host_that_does_not_exist_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*address: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    assert await why("wss://nowhere.example/") == (
        "cannot connect to nowhere.example: no such host"
    )


@asynccontextmanager
async def tls_server(
    context: ssl.SSLContext = SERVER_TLS,
) -> AsyncGenerator[trio.abc.Stream, None]:
    """Return a transport to a server that speaks TLS and WebSockets."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def serve() -> None:
        tls = trio.SSLStream(theirs, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            await tls.receive_some()
        except trio.BrokenResourceError:
            pass  # the client does not like it
        await tls.aclose()

    async with background() as nursery:
        nursery.start_soon(serve)
        yield ours


async def test_an_expired_certificate_is_told_so() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    expired = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    AUTHORITY.issue_cert("localhost", not_after=expired).configure_cert(context)
    async with tls_server(context) as transport:
        text = await why("wss://localhost/", CLIENT_TLS, transport=transport)
    assert text == "no TLS with localhost: certificate has expired"


async def test_a_certificate_for_another_host_is_told_so() -> None:
    async with tls_server() as transport:
        text = await why("wss://other/", CLIENT_TLS, transport=transport)
    assert text.startswith("no TLS with other: Hostname mismatch, certificate is not valid for")


async def test_the_default_settings_of_tls_are_made_once_and_anew_for_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make() -> ssl.SSLContext:
        made.append(None)
        return create()

    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", make)
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    async with echo_server(tls=True) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        for _ in range(3):
            async with open_ws_stream(url):
                assert len(made) == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
        with pytest.raises(trio_websocket.HandshakeError, match="local issuer certificate"):
            async with open_ws_stream(url):
                pass  # pragma: no cover
    assert len(made) == 2


async def test_a_dot_at_the_end_of_a_host_is_no_part_of_its_certificates_name() -> None:
    names: list[str] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("db.internal").configure_cert(context)
    context.sni_callback = lambda _, name, __: names.append(name)
    async with tls_server(context) as transport:  # which says nothing more
        await why("wss://db.internal./", CLIENT_TLS, transport=transport)
    assert names == ["db.internal"]


@pytest.mark.parametrize("url", ["ws://db.internal./", "ws://[fe80::1%25lo]/"])
async def test_dns_gets_the_dot_and_a_socket_the_zone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(host: str, port: int) -> None:
        raise OSError(f"seen {host}")

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    seen = "db.internal." if "db" in url else "fe80::1%lo"
    assert (await why(url)).endswith(f": seen {seen}")


async def test_plain_text_where_tls_should_be_is_told_so() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    text = await why("wss://localhost/", CLIENT_TLS, transport=ours)
    assert text == "no TLS with localhost: it answered in plain text: use ws://"


async def test_tls_where_plain_text_should_be_is_told_so() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(b"\x15\x03\x01\x00\x02\x02\x46")  # an alert
    await theirs.send_eof()
    assert (
        await why("ws://localhost/", transport=ours) == "the server answered with TLS: use wss://"
    )


async def test_a_server_of_tls_that_ends_without_a_word_is_guessed_at() -> None:
    async with tls_server() as transport:
        assert (await why("ws://localhost/", transport=transport)).endswith(
            "without a response; if it expects TLS, use wss://"
        )


async def test_a_server_that_ends_in_the_tls_handshake_is_told_so() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_eof()
    text = await why("wss://localhost/", CLIENT_TLS, transport=ours)
    assert text == "no TLS with localhost: it ended the connection in the TLS handshake"


async def test_http_2_in_tls_is_told_so() -> None:
    server, client = (ssl.create_default_context(purpose) for purpose in reversed(ssl.Purpose))
    AUTHORITY.issue_cert("localhost").configure_cert(server)
    AUTHORITY.configure_trust(client)
    for context in (server, client):
        context.set_alpn_protocols(["h2", "http/1.1"])
    async with tls_server(server) as transport:
        text = await why("wss://localhost/", client, transport=transport)
    assert text.startswith("TLS with localhost has agreed on 'h2' and not on HTTP/1.1: use an ssl")


async def test_a_context_for_servers_is_a_handshake_error() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    text = await why("wss://localhost/", SERVER_TLS, transport=ours)
    assert text.startswith("no TLS with localhost: ")
    assert await theirs.receive_some() == b""


async def test_an_ssl_context_for_a_url_without_tls_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"ssl_context must be None with a ws:// URL.*wss://h"):
        async with open_ws_stream("ws://h/?secret", CLIENT_TLS):
            raise AssertionError("it was opened")


async def test_extra_headers_as_a_dict_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="extra_headers must be tuples"):
        async with open_ws_stream("ws://h/", extra_headers={b"a": b"b"}):  # type: ignore[arg-type]
            raise AssertionError("it was opened")


@pytest.mark.parametrize("what", ["open_ws_stream", "wrap_websocket"])
def test_without_trio_it_is_told_that_trio_is_needed(what: str) -> None:
    async def main() -> None:
        manager = open_ws_stream("ws://h/") if what == "open_ws_stream" else wrap_websocket(None)  # type: ignore[arg-type]
        async with manager:
            raise AssertionError("it was opened")

    with pytest.raises(RuntimeError, match="needs Trio"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ws://host", ("host", 80)),
        ("wss://host/", ("host", 443)),
        ("ws://host:8000/path", ("host", 8000)),
        ("wss://[::1]:8443/", ("::1", 8443)),
    ],
)
async def test_tcp_goes_to_the_host_and_port_of_the_url(
    url: str, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_tcp_stream(*to: object) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(f"no way to {to}")

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    with pytest.raises(trio_websocket.HandshakeError, match=re.escape(f"no way to {address}")):
        async with open_ws_stream(url):
            raise AssertionError("it was opened")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("subprotocols", "mqtt"),
        ("subprotocols", b"mqtt"),
        ("connect_timeout", None),
        ("connect_timeout", -1),
        ("transport", 5),
    ],
)
async def test_open_ws_stream_refuses_a_wrong_option_before_it_connects(
    option: str, value: Any
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{option} must be .*, not .*{value!r}"):
        async with open_ws_stream("ws://localhost", **{option: value}):
            raise AssertionError("it was opened")


@pytest.mark.parametrize(
    "options",
    [
        {"subprotocols": [1]},
        {"extra_headers": "x"},
        {"extra_headers": [(b"a", b"b\r\nc: d")]},
        {"extra_headers": [(b"a b", b"c")]},
    ],
)
async def test_headers_that_cannot_be_sent_are_no_handshake_error(options: dict[str, Any]) -> None:
    transport, _ = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match="subprotocols or extra_headers"):
        async with open_ws_stream("ws://localhost", transport=transport, **options):
            raise AssertionError("it was opened")


@pytest.mark.parametrize("error", [ValueError("of the user"), KeyboardInterrupt(), SystemExit(3)])
async def test_an_exception_leaves_open_ws_stream_unchanged(error: BaseException) -> None:
    async with echo_server() as url:
        with pytest.raises(type(error)) as caught:
            async with open_ws_stream(url) as stream:
                await stream.send_all(b"x")
                raise error
    assert caught.value is error
    # An Exception was told to the peer with 1011; with any other the transport was dropped.
    assert stream.closed is not None
    assert stream.closed.clean is isinstance(error, Exception)
    if isinstance(error, Exception):
        assert stream.closed == StreamClosed(1011, "", True, None)


class Failing(trio.abc.Stream):
    """A transport whose sending raises an exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def send_all(self, data: object) -> None:
        await trio.lowlevel.checkpoint()
        raise self.error

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "error",
    [trio.BrokenResourceError("gone"), trio.ClosedResourceError("gone"), ConnectionResetError()],
)
async def test_a_transport_that_breaks_in_the_handshake_is_a_handshake_error(
    error: Exception,
) -> None:
    with pytest.raises(trio_websocket.HandshakeError, match="the transport broke") as caught:
        async with open_ws_stream("ws://localhost/", transport=Failing(error)):
            raise AssertionError("it was opened")
    assert caught.value.__cause__ is error


async def test_a_bug_in_the_transport_is_no_handshake_error() -> None:
    with pytest.raises(AttributeError, match="no such method"):
        async with open_ws_stream(
            "ws://localhost/", transport=Failing(AttributeError("no such method"))
        ):
            raise AssertionError("it was opened")


async def test_a_cancelled_block_drops_the_transport_and_hides_nothing() -> None:
    async with echo_server() as url:
        with trio.CancelScope() as scope:
            async with open_ws_stream(url) as stream:
                scope.cancel()
                await stream.receive_some()
        assert scope.cancelled_caught
        assert stream.closed == StreamClosed(1006, "", False, None)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("error", [None, ValueError("of the user"), KeyboardInterrupt()])
async def test_an_exception_under_a_cancelled_scope_comes_out_as_it_was(
    error: BaseException | None, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream's task is cancelled too; that makes no group of it, and hides nothing.

    Without Trio's strict groups, a nursery raises the one Cancelled of its tasks as it is.
    """
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    monkeypatch.setattr(runner, "strict_exception_groups", strict)
    expected = type(error) if error else trio.Cancelled
    async with echo_server() as url:
        with trio.CancelScope() as scope, pytest.raises(expected) as caught:
            async with open_ws_stream(url):
                scope.cancel()
                if error:
                    raise error
                await trio.sleep_forever()
        assert error is None or caught.value is error


@pytest.mark.parametrize("strict", [True, False])
async def test_an_exception_of_the_block_and_one_of_a_task_come_out_together(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    monkeypatch.setattr(runner, "strict_exception_groups", strict)

    async def task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("in its cleanup")

    with pytest.RaisesGroup(KeyboardInterrupt, LookupError, flatten_subgroups=True):
        async with open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyboardInterrupt


async def test_a_takeover_error_comes_out_of_wrap_websocket_in_no_group() -> None:
    async with background() as nursery:
        client, _ = await connection_pair(nursery)
        WsByteStream(client, nursery, SHORT)
        with pytest.raises(TakeoverError, match="before"):
            async with wrap_websocket(client):
                raise AssertionError("it was taken over twice")


async def test_a_closed_nursery_is_a_takeover_error_and_nothing_was_touched() -> None:
    async with background() as nursery:
        client, server = await connection_pair(nursery)
        async with trio.open_nursery() as closed:
            pass
        with pytest.raises(TakeoverError, match="nursery"):
            WsByteStream(client, closed)
        await client.send_message(b"still works")
        assert await server.get_message() == b"still works"


@pytest.mark.parametrize("connection", [None, "connection", object()])
async def test_an_object_that_is_no_connection_is_a_type_error(connection: object) -> None:
    async with background() as nursery:
        with pytest.raises(TypeError, match="WebSocketConnection"):
            WsByteStream(connection, nursery)  # type: ignore[arg-type]


async def test_an_object_that_is_no_config_is_a_type_error() -> None:
    async with background() as nursery:
        client, _ = await connection_pair(nursery)
        with pytest.raises(TypeError, match="StreamConfig"):
            WsByteStream(client, nursery, {"ping_interval": 1})  # type: ignore[arg-type]


# A peer that is not ours: `websockets`, in a thread


@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
async def test_a_client_of_websockets_understands_us(size: int) -> None:
    def client(url: str, data: bytes) -> tuple[int | None, bytes]:
        with websockets.sync.client.connect(url, compression=None) as connection:
            received = b""
            for start in range(0, len(data), 100_000):
                connection.send(data[start : start + 100_000])
            while len(received) < len(data):
                received += connection.recv()  # type: ignore[operator]
            connection.ping().wait()
            connection.close(4002, "enough")
            return connection.close_code, received

    data = bytes(range(251)) * (size // 251 + 1)
    async with echo_server() as url:
        assert await trio.to_thread.run_sync(client, url, data) == (4002, data)


async def test_a_server_of_websockets_understands_us() -> None:
    """It has no half-close. Nothing that was sent is lost, and the end is a plain close."""
    received: list[bytes | str] = []
    has_ended = threading.Event()

    def handle(connection: websockets.sync.server.ServerConnection) -> None:
        received.extend(connection)
        has_ended.set()

    with websockets.sync.server.serve(handle, "127.0.0.1", 0, compression=None) as server:
        port = server.socket.getsockname()[1]
        async with background() as nursery:
            run = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
            nursery.start_soon(run, server.serve_forever)
            config = StreamConfig(max_message_size=1000)
            async with open_ws_stream(f"ws://127.0.0.1:{port}/", config=config) as stream:
                assert 0 < await stream.ping() < 5
                assert await ask(stream, b"x" * 2500) == b""
            assert await trio.to_thread.run_sync(has_ended.wait, 10)
            assert [len(message) for message in received] == [1000, 1000, 500]
            assert stream.closed == StreamClosed(1000, "half-close", True, None)
            server.shutdown()
