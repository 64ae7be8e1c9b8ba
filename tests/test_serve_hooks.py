"""What servers need: the hooks, listeners of any kind, and what a handler's exceptions do."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionRejected, Endpoint, WebSocketRequest

from trio_wsstream import (
    AbnormalClosure,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    WsListener,
    WsRequest,
    _handshake,
    open_ws_stream,
    serve_ws,
)
from trio_wsstream._transport import Endpoints

from .support.handshakes import CLIENT_HANDSHAKE, receive_head, request
from .support.raw_peer import RawPeer
from .support.receiving import receive_all
from .support.servers import MemoryListener, assert_works, echo, memory_server, open_over
from .support.tasks import background
from .support.transports import AUTHORITY, CLIENT_TLS, SERVER_TLS
from .test_serve import unix_listener

Refused = list[tuple[Any, int | None, str]]


async def serving(nursery: trio.Nursery, handler: Any, **options: Any) -> MemoryListener:
    """Run `serve_ws` over memory."""
    memory = MemoryListener()
    await nursery.start(partial(serve_ws, handler, listeners=[memory], **options))
    return memory


def of_level(caplog: pytest.LogCaptureFixture, level: int) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.levelno == level]


# A handler's exceptions


async def receive_for_ever(stream: WsByteStream) -> None:
    async for _ in stream:
        pass
    await trio.sleep_forever()


async def receive_over_tls(stream: WsByteStream) -> None:
    await trio.SSLStream(stream, SERVER_TLS, server_side=True).receive_some()


async def catch_and_raise_a_group(stream: WsByteStream) -> None:
    try:
        await receive_for_ever(stream)
    except trio.BrokenResourceError as error:
        raise ExceptionGroup("mine", [error]) from None


@pytest.mark.parametrize("end", ["a bad frame", "no Close", "Close 4000"])
@pytest.mark.parametrize(
    "handler",
    [receive_for_ever, receive_over_tls, catch_and_raise_a_group],
    ids=lambda f: f.__name__,
)
async def test_the_end_of_a_stream_ends_its_handler_and_no_other(
    handler: Any, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_wsstream")
    unexpected: list[object] = []
    async with background() as nursery:
        listener = await serving(
            nursery, handler, on_error=lambda *arguments: unexpected.append(arguments)
        )
        other = await open_over(nursery, await listener.connect())
        transport = await listener.connect()
        await transport.send_all(CLIENT_HANDSHAKE)
        await receive_head(transport)
        peer = RawPeer(transport, masked=True)
        if end == "a bad frame":
            await transport.send_all(b"\xff\xff")
        elif end == "Close 4000":
            await peer.send(8, (4000).to_bytes(2, "big"))
        await transport.send_eof()
        await receive_all(transport)
        await wait_all_tasks_blocked()
        assert not unexpected
        (record,) = of_level(caplog, logging.INFO)
        _, _, why = record.getMessage().partition(" ended its handler: ")
        assert (why == "the peer closed with code 4000 and reason ''") is (end == "Close 4000")
        assert why
        assert "sub-exception" not in why
        assert not of_level(caplog, logging.ERROR)
        await other.send_all(b"still there")
        assert other.closed is None


async def test_a_streams_end_that_two_tasks_of_its_handler_get_is_still_its_own() -> None:
    async def handler(stream: WsByteStream) -> None:
        ended = trio.Event()
        has_broken = False

        async def receive() -> None:
            nonlocal has_broken
            try:
                await receive_for_ever(stream)
            except trio.BrokenResourceError:
                has_broken = True
                raise
            finally:
                ended.set()

        async def send() -> None:
            with trio.CancelScope(shield=True):
                await ended.wait()
                if has_broken:  # and not cancelled at the end of the test
                    await stream.send_all(b"x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)

    async with background() as nursery:
        listener = await serving(nursery, handler)
        stream = await open_over(nursery, await listener.connect())
        await trio.aclose_forcefully(stream)
        await wait_all_tasks_blocked()
        await open_over(nursery, await listener.connect())


async def test_the_end_of_another_stream_is_not_that_of_the_handlers_own() -> None:
    """A relay may lose its server, for example. A clean end would then hide a truncation."""
    errors: list[tuple[WsByteStream, Exception]] = []

    async def relay(stream: WsByteStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        async with trio.open_nursery() as inner:
            listener = MemoryListener()
            inner.start_soon(partial(serve_ws, drop, listeners=[listener]))
            other = await open_over(inner, await listener.connect())
            await other.receive_some()

    async def drop(stream: WsByteStream) -> None:
        await trio.aclose_forcefully(stream)

    async with background() as nursery:
        listener = await serving(nursery, relay, on_error=lambda *each: errors.append(each))
        stream = await open_over(nursery, await listener.connect())
        await trio.aclose_forcefully(stream)
        await wait_all_tasks_blocked()
        ((told, error),) = errors
        assert told.closed is not None
        assert isinstance(error, ExceptionGroup)


async def test_any_other_exception_goes_to_on_error_once_the_stream_is_closed() -> None:
    errors: list[tuple[Exception, StreamClosed | None]] = []

    async def handler(stream: WsByteStream) -> None:
        raise LookupError("not found")

    async with background() as nursery:
        listener = await serving(
            nursery, handler, on_error=lambda stream, error: errors.append((error, stream.closed))
        )
        for _ in range(2):  # the server goes on
            stream = await open_over(nursery, await listener.connect())
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.receive_some()
            assert isinstance(broken.value.__cause__, AbnormalClosure)
            assert broken.value.__cause__.code == 1011
            await stream.aclose()
        await wait_all_tasks_blocked()
    for error, closed in errors:
        assert isinstance(error, LookupError)
        assert error.__traceback__ is not None
        assert closed is not None
    assert len(errors) == 2


async def test_what_on_error_raises_ends_the_server() -> None:
    def give_up(stream: WsByteStream, error: Exception) -> None:
        raise error

    async def handler(stream: WsByteStream) -> None:
        raise LookupError("not found")

    with pytest.RaisesGroup(LookupError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            config = StreamConfig(close_timeout=0.1)  # the client does not answer the Close
            listener = await serving(nursery, handler, on_error=give_up, config=config)
            transport = await listener.connect()
            await transport.send_all(CLIENT_HANDSHAKE)
            await receive_all(transport)
            await trio.sleep_forever()


async def test_a_stream_that_is_used_after_it_was_closed_is_a_bug_of_the_handler() -> None:
    errors: list[Exception] = []

    async def handler(stream: WsByteStream) -> None:
        await stream.aclose()
        await stream.send_all(b"x")

    async with background() as nursery:
        listener = await serving(nursery, handler, on_error=lambda _, error: errors.append(error))
        stream = await open_over(nursery, await listener.connect())
        assert await stream.receive_some() == b""
        await stream.aclose()
        await wait_all_tasks_blocked()
    assert [type(error) for error in errors] == [trio.ClosedResourceError]


# Who was refused


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET /?token=secret HTTP/1.1\r\nHost: a\r\n\r\n", 426, "WebSocket"),
        (b"GET http://me:secret@a/ HTTP/1.0\r\n\r\n", 426, "WebSocket"),
        (b"no HTTP, secret\r\n\r\n", 400, ""),
        (request(line=b"GET /other?token=secret HTTP/1.1"), 404, "no WebSocket at this path"),
        (request(b"Origin: https://evil.example"), 403, "origin is not admitted"),
        (request(line=b"GET ?token=secret HTTP/1.1"), 400, "no path"),
    ],
)
async def test_on_refused_is_told_of_each_refusal(
    data: bytes, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    refused: Refused = []
    async with memory_server(
        path="/", allowed_origins=[None], on_refused=lambda *each: refused.append(each)
    ) as listener:
        transport = await listener.connect()
        await transport.send_all(data)
        answered = (await receive_all(transport)).split(b" ")[1]
        await transport.aclose()
        await wait_all_tasks_blocked()
    ((remote, told, words),) = refused
    assert "Stream" in remote  # memory has no address
    assert told == status == int(answered)
    assert reason in words
    assert words
    assert "secret" not in caplog.text + words


async def test_on_refused_is_told_of_handshakes_that_failed_and_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refused: Refused = []
    async with memory_server(
        max_pending=1, connect_timeout=5, on_refused=lambda *each: refused.append(each)
    ) as listener:
        leaving = await listener.connect()
        await leaving.aclose()
        await wait_all_tasks_blocked()
        for _ in range(2):
            await listener.connect()
        await trio.sleep(10)
    assert [status for _, status, _ in refused] == [None] * 3
    reasons = [reason for *_, reason in refused]
    assert "ended the connection" in reasons[0]
    assert reasons[1:] == [
        "the opening handshake took too long, and others were waiting",
        "the opening handshake took more than 5 seconds",
    ]


async def test_on_refused_is_told_once_of_a_refused_client_that_does_not_hang_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refused: Refused = []
    async with memory_server(
        path="/", connect_timeout=1, on_refused=lambda *each: refused.append(each)
    ) as listener:
        transport = await listener.connect()
        await transport.send_all(request(line=b"GET /other HTTP/1.1"))
        await trio.sleep(10)
        await transport.aclose()
    assert [status for _, status, _ in refused] == [404]


async def test_on_refused_has_the_clients_address_also_where_tls_fails() -> None:
    refused: Refused = []
    was_told = trio.Event()

    def on_refused(*each: Any) -> None:
        refused.append(each)
        was_told.set()

    async with background() as nursery:
        serve = partial(serve_ws, echo, "127.0.0.1", 0, SERVER_TLS, on_refused=on_refused)
        (listener,) = await nursery.start(serve)
        async with await trio.open_tcp_stream("127.0.0.1", listener.port) as transport:
            await transport.send_all(CLIENT_HANDSHAKE)
            await was_told.wait()
            port = transport.socket.getsockname()[1]
    ((remote, status, reason),) = refused
    assert isinstance(remote, Endpoint)
    assert (str(remote.address), remote.port, remote.is_ssl) == ("127.0.0.1", port, True)
    assert status is None
    assert reason == "the other end does not speak TLS"


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (None, "the other end does not speak TLS"),
        ("no certificate", "peer did not return a certificate"),
        ("another authority's", "unable to get local issuer certificate"),
    ],
)
async def test_on_refused_says_in_words_why_tls_failed(client: str | None, words: str) -> None:
    wanting = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cadata=AUTHORITY.cert_pem.bytes().decode()
    )
    AUTHORITY.issue_cert("localhost").configure_cert(wanting)
    wanting.verify_mode = ssl.CERT_REQUIRED
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    if client == "another authority's":
        trustme.CA().issue_cert("client").configure_cert(context)
    told: trio.MemorySendChannel[str]
    told, reasons = trio.open_memory_channel[str](1)
    async with background() as nursery:
        (listener,) = await nursery.start(
            partial(
                serve_ws,
                echo,
                "127.0.0.1",
                0,
                wanting,
                on_refused=lambda *each: told.send_nowait(each[2]),
            )
        )
        transport: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", listener.port)
        if client is not None:
            transport = trio.SSLStream(transport, context, server_hostname="localhost")
        await transport.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with trio.fail_after(10):
            assert await reasons.receive() == words
        await trio.aclose_forcefully(transport)


def test_a_refusal_needs_no_module_that_a_server_has_not_imported() -> None:
    """Out of descriptors, it could not be imported."""
    code = (
        "import sys, trio_wsstream; trio_wsstream.serve_ws; before = {*sys.modules}\n"
        "from trio_wsstream._http import encode_response, refusal\n"
        "refusal(503, 'full'); encode_response(503, [], b'full')\n"
        "sys.exit(' '.join({*sys.modules} - before) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_what_on_refused_raises_is_logged_and_the_listener_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_refused(*_: object) -> None:
        raise LookupError("no log")

    async with memory_server(path="/", on_refused=on_refused) as listener:
        transport = await listener.connect()
        await transport.send_all(request(line=b"GET /other HTTP/1.1"))
        assert (await receive_all(transport)).startswith(b"HTTP/1.1 404 ")
        await transport.aclose()
        await assert_works(listener)
    (record,) = of_level(caplog, logging.ERROR)
    assert record.exc_info
    assert isinstance(record.exc_info[1], LookupError)


@pytest.mark.parametrize("path", ["/a", "/b"])
async def test_the_log_tells_address_path_and_origin_of_who_is_refused_and_of_who_is_not(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    line = f"GET {path}?token=secret HTTP/1.1".encode()
    async with background() as nursery:
        (listener,) = await nursery.start(partial(serve_ws, echo, "127.0.0.1", 0, path="/a"))
        async with await trio.open_tcp_stream("127.0.0.1", listener.port) as transport:
            await transport.send_all(request(b"Origin: https://me", b"Cookie: secret=1", line=line))
            await receive_head(transport)
            port = transport.socket.getsockname()[1]
    (text,) = [
        record.getMessage()
        for record in caplog.records
        if record.name == "trio_wsstream._serve" and "origin" in record.getMessage()
    ]
    assert ("refused" if path == "/b" else "opened") in text
    assert f"port={port}" in text
    assert f"path {path!r}, origin 'https://me'" in text
    assert "secret" not in caplog.text


# HTTP


async def health(method: str, path: str, headers: Any) -> Any:
    if path.partition("?")[0] == "/health":
        return 200, [(b"Content-Type", b"text/plain")], b"well\n"
    return None


async def test_http_answers_what_is_no_opening_handshake() -> None:
    refused: Refused = []
    async with memory_server(
        http=health, path="/ws", on_refused=lambda *each: refused.append(each)
    ) as listener:
        transport = await listener.connect()
        await transport.send_all(b"GET /health?a HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, body = (await receive_all(transport)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"content-type: text/plain" in head.lower()
        assert body == b"well\n"
        await transport.aclose()
        other = await listener.connect()
        await other.send_all(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
        assert int((await receive_all(other)).split(b" ")[1]) >= 400
        await other.aclose()
        await assert_works(listener, url="ws://localhost/ws")
    assert len(refused) == 1  # a health check is no refusal


# What accept= hands on


async def test_what_accept_leaves_in_state_becomes_the_state_of_the_stream() -> None:
    states: list[Any] = []

    async def hook(request: WsRequest) -> None:
        assert isinstance(request, WebSocketRequest)
        request.state.path = request.path

    async def handler(stream: WsByteStream) -> None:
        states.append(stream.state)

    async with background() as nursery:
        listener = await serving(nursery, handler, accept=hook)
        for path in "ab":
            url = f"ws://localhost/{path}"
            stream = await open_over(nursery, await listener.connect(), url)
            await stream.receive_some()
            assert stream.state is None
    assert [state.path for state in states] == ["/a", "/b"]


async def refuse_in_a_nursery(request: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)

        async def check() -> None:
            async with trio.open_nursery():
                raise ConnectionRejected(401, (), b"Who are you?")

        nursery.start_soon(check)


async def test_an_accept_hook_can_refuse_from_within_its_own_nursery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with memory_server(accept=refuse_in_a_nursery) as listener, background() as nursery:
        with pytest.raises(ConnectionRejected) as caught:
            await open_over(nursery, await listener.connect())
        assert caught.value.status_code == 401
    assert not of_level(caplog, logging.ERROR)


# Listeners of any kind, ports and addresses


async def test_a_listener_tells_its_port_and_address_whatever_lies_between() -> None:
    async with background() as nursery:
        for context in (None, SERVER_TLS):
            listeners = await nursery.start(serve_ws, echo, "127.0.0.1", 0, context)
            (listener,) = listeners
            assert listener.addresses == (("127.0.0.1", listener.port),)
            assert f"on ('127.0.0.1', {listener.port}): 0 opening" in repr(listener)
            scheme = "wss" if context else "ws"
            url = f"{scheme}://localhost:{listener.port}"
            async with open_ws_stream(url, CLIENT_TLS if context else None):
                pass


async def test_a_listener_with_no_port_says_so(socket_folder: Path) -> None:
    async with background() as nursery:
        memory = WsListener(MemoryListener(), nursery)
        transport_listener, _ = await unix_listener(socket_folder / "socket")
        unix = WsListener(transport_listener, nursery)
        assert memory.addresses == ()
        assert unix.addresses == (str(socket_folder / "socket"),)
        for listener in (memory, unix):
            with pytest.raises(RuntimeError, match="has no port"):
                listener.port  # noqa: B018
        await unix.aclose()
        assert repr(unix).endswith("closed>")


async def test_a_request_has_the_addresses_that_its_stream_has(socket_folder: Path) -> None:
    requests: list[WsRequest] = []

    async def keep(request: WsRequest) -> None:
        await trio.lowlevel.checkpoint()
        requests.append(request)

    unix, connect = await unix_listener(socket_folder / "socket")
    async with background() as nursery:
        listener = WsListener(unix, nursery, accept=keep)
        transport = await connect()
        await transport.send_all(CLIENT_HANDSHAKE)
        async with await listener.accept() as stream:
            (request,) = requests
            assert request.local == request.remote == stream.local == stream.remote
            assert "SocketStream" in str(request.local)
            await transport.aclose()
        await listener.aclose()


async def test_a_stream_knows_its_addresses_after_it_was_closed() -> None:
    async with background() as nursery:
        (listener,) = await nursery.start(partial(serve_ws, echo, "127.0.0.1", 0))
        async with open_ws_stream(f"ws://127.0.0.1:{listener.port}") as stream:
            pass
        assert isinstance(stream.remote, Endpoint)
        assert stream.remote.port == listener.port
        assert stream.remote is stream.remote


@pytest.mark.parametrize("tls", [False, True])
async def test_serve_ws_serves_on_listeners_that_are_there(tls: bool, socket_folder: Path) -> None:
    unix, connect = await unix_listener(socket_folder / "socket")
    memory = MemoryListener()
    options: dict[str, Any] = {"subprotocols": iter(["a"]), "allowed_origins": iter([None])}
    if tls:
        options["ssl_context"] = SERVER_TLS
    async with background() as nursery:
        serve = partial(serve_ws, echo, listeners=iter([unix, memory]), **options)
        listeners = await nursery.start(serve)
        assert len(listeners) == 2
        for transport in (await connect(), await memory.connect()):
            async with open_ws_stream(
                "wss://localhost" if tls else "ws://localhost",
                CLIENT_TLS if tls else None,
                transport=transport,
                subprotocols=["a"],
            ) as stream:
                assert stream.subprotocol == "a"
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
    with pytest.raises(trio.ClosedResourceError):
        await unix.accept()


async def test_a_bad_option_closes_the_listeners_that_were_given(socket_folder: Path) -> None:
    unix, _ = await unix_listener(socket_folder / "socket")
    with pytest.raises(ValueError, match="path"):
        await serve_ws(echo, listeners=[unix], path="bad")
    with pytest.raises(trio.ClosedResourceError):
        await unix.accept()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a port"),
        ({"host": "127.0.0.1"}, "needs a port"),
        ({"port": 0, "listeners": [MemoryListener()]}, "not both"),
        ({"host": "a", "listeners": [MemoryListener()]}, "not both"),
        ({"listeners": []}, "must not be empty"),
        ({"listeners": MemoryListener()}, r"must be an iterable.*\[listener\]"),
        ({"listeners": [5]}, "not 5; .*SocketListener"),
        ({"port": 0, "on_error": 5}, "on_error.*5"),
        ({"port": 0, "on_refused": echo}, "on_refused must be a plain function"),
        ({"port": 0, "http": 5}, "http.*5"),
        ({"port": 0, "accept": 5}, "accept.*5"),
        ({"port": 0, "max_header_size": 0}, "max_header_size.*0"),
        ({"port": 0, "subprotocols": ["a b"]}, "subprotocol.*'a b'"),
        ({"port": 0, "subprotocols": [5]}, "subprotocol must be a str, not 5"),
        ({"port": 0, "path": "/a b"}, "percent-encoded.*'/a b'"),
        ({"port": 0, "path": "/caf\u00e9"}, "percent-encoded"),
        ({"port": 0, "allowed_origins": ["*"]}, "leave allowed_origins out"),
        ({"port": 0, "allowed_origins": ["https://a/"]}, "no slash at the end"),
        ({"port": 0, "allowed_origins": ["https://a/b"]}, "no path"),
        ({"port": 0, "allowed_origins": ["https://a?b"]}, "no path"),
        ({"port": 0, "allowed_origins": ["https://A"]}, "small letters"),
        ({"port": 0, "allowed_origins": ["HTTPS://a"]}, "small letters"),
        ({"port": 0, "allowed_origins": ["a.example"]}, "like 'https://example.com'"),
        ({"port": 0, "allowed_origins": [""]}, "not ''"),
        ({"port": 0, "allowed_origins": ["https://"]}, "not 'https://'"),
        ({"port": 0, "allowed_origins": ["https://*.a"]}, "no client sends"),
        ({"port": 0, "allowed_origins": ["https://a:443"]}, "leave out the port"),
        ({"port": 0, "allowed_origins": ["http://a:80"]}, "leave out the port"),
        ({"port": 0, "allowed_origins": ["https://f\u00fc.de"]}, "xn--"),
        ({"port": 0, "allowed_origins": ["https://me@a"]}, "no client sends"),
        ({"port": 0, "allowed_origins": ["https://a "]}, "no client sends"),
        ({"port": 0, "allowed_origins": ["https://a:65536"]}, "at most 65535"),
        ({"port": 0, "allowed_origins": ["https://a:0443"]}, "no client sends"),
        ({"port": 0, "allowed_origins": ["https://[zz]"]}, "no client sends"),
        ({"port": 0, "allowed_origins": [b"https://a"]}, "strings or None"),
    ],
)
async def test_serve_ws_refuses_arguments_that_cannot_be_right(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message), trio.fail_after(30):
        await serve_ws(echo, **options)


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "http://localhost:8000",
        "http://a:443",
        "https://a:80",
        "http://[::1]:8000",
        "https://xn--strae-oqa.de",
        "http://my_host",
        "null",
        "file://",
        "chrome-extension://abcdefghijklmnop",
        "moz-extension://0a1b-2c",
        "capacitor://localhost",
    ],
)
async def test_origins_as_clients_send_them_are_admitted(origin: str) -> None:
    async with memory_server(allowed_origins=[origin]) as listener:
        transport = await listener.connect()
        await transport.send_all(request(b"Origin: " + origin.encode()))
        assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")


async def test_wss_and_a_listener_with_tls_exclude_each_other() -> None:
    listener = trio.SSLListener(MemoryListener(), SERVER_TLS)
    with pytest.raises(ValueError, match="ssl_context must be None"):
        await serve_ws(echo, ssl_context=SERVER_TLS, listeners=[listener])


async def test_tls_that_has_agreed_on_h2_is_logged_once_also_if_the_client_does_not_mind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_handshake, "_warned_of", set())
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    AUTHORITY.configure_trust(client_context)
    for context in (server_context, client_context):
        context.set_alpn_protocols(["h2", "http/1.1"])
    async with background() as nursery:
        memory = MemoryListener()
        await nursery.start(partial(serve_ws, echo, listeners=[memory], ssl_context=server_context))
        for _ in range(2):
            tls = trio.SSLStream(
                await memory.connect(),
                client_context,
                server_hostname="localhost",
                https_compatible=True,
            )
            await tls.send_all(CLIENT_HANDSHAKE)  # a client that does not look at it
            assert (await receive_head(tls)).startswith(b"HTTP/1.1 101 ")
    (record,) = of_level(caplog, logging.WARNING)
    assert "set_alpn_protocols" in record.getMessage()


# Addresses


async def test_an_abstract_unix_socket_has_no_address_but_a_repr() -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as connecting:
        listening.bind("")  # the kernel makes up an abstract one
        assert isinstance(listening.getsockname(), bytes)
        listening.listen()
        connecting.bind("")
        connecting.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(connecting))
            endpoints = Endpoints(stream, client=False)
            assert (endpoints.local, endpoints.remote) == (repr(stream), repr(stream))


async def test_a_socket_to_a_virtual_machine_has_no_address_but_a_repr() -> None:
    class Vsock:
        """A socket of AF_VSOCK, which not every kernel has."""

        family = socket.AF_VSOCK

        def getsockname(self) -> tuple[int, int]:
            return 2, 1024

        getpeername = getsockname

    client, server = socket.socketpair()
    with client, server:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        stream.socket = Vsock()  # type: ignore[assignment]
        endpoints = Endpoints(stream, client=False)
        assert (endpoints.local, endpoints.remote) == (repr(stream), repr(stream))
