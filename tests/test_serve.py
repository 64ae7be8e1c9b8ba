"""Servers: `WsListener` and `serve_ws`, and what opening handshakes may do to them."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionRejected, ConnectionTimeout, HandshakeError, WebSocketRequest

from trio_wsstream import (
    ConnectionLost,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    WsListener,
    open_ws_stream,
    serve_ws,
)

from .support.frames import BINARY, CLOSE, PING, PONG, close_payload, frame
from .support.handshakes import CLIENT_HANDSHAKE, receive_head, request
from .support.pairs import SHORT
from .support.raw_peer import RawPeer
from .support.receiving import receive_all
from .support.servers import MemoryListener, assert_works, echo, memory_server, open_over
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS


def address_of(listener: WsListener) -> tuple[str, int]:
    host, port = listener.addresses[0][:2]
    return host, port


# The listener


async def unix_listener(path: Path) -> tuple[trio.abc.Listener[Any], Callable[[], Awaitable[Any]]]:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await sock.bind(str(path))
    sock.listen()
    return trio.SocketListener(sock), partial(trio.open_unix_socket, str(path))


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_serve_listeners_serves_a_stream_handler_over_any_transport(
    kind: str, socket_folder: Path
) -> None:
    transport_listener: Any
    url, transport = "ws://localhost/", None
    if kind == "unix":
        transport_listener, connect = await unix_listener(socket_folder / "socket")
    else:
        (transport_listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        connect = partial(trio.open_tcp_stream, *transport_listener.socket.getsockname())
    if kind == "tls":
        transport_listener = trio.SSLListener(transport_listener, SERVER_TLS, https_compatible=True)
        url = "wss://localhost/"
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery)
        assert listener.transport_listener is transport_listener
        await nursery.start(trio.serve_listeners, echo, [listener])
        transport = await connect()
        tls = CLIENT_TLS if kind == "tls" else None
        async with open_ws_stream(url, tls, transport=transport) as stream:
            await stream.send_all(b"over " + kind.encode())
            await stream.send_eof()
            assert await receive_all(stream) == b"over " + kind.encode()
        assert stream.closed == StreamClosed(1000, "", True, None)


async def test_a_handler_that_only_returns_shows_the_peer_a_truncation() -> None:
    async def handler(stream: WsByteStream) -> None:
        await stream.send_all(b"half of the da")

    async with memory_server(handler) as listener, background() as nursery:
        stream = await open_over(nursery, await listener.connect())
        assert await stream.receive_some() == b"half of the da"
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionLost)


async def test_streams_have_the_config_and_what_the_handshake_said() -> None:
    streams: list[WsByteStream] = []

    async def handler(stream: WsByteStream) -> None:
        streams.append(stream)
        await echo(stream)

    async with memory_server(handler, config=SHORT, subprotocols=["b", "a"]) as listener:
        await assert_works(
            listener,
            url="ws://localhost:99/some/path?query",
            extra_headers=[(b"Cookie", b"a cookie")],
            subprotocols=["a", "b"],
        )
        (stream,) = streams
        assert stream.config is SHORT
        assert stream.path == "/some/path?query"
        assert stream.subprotocol == "b"
        assert (b"cookie", b"a cookie") in stream.handshake_headers
        assert (b"host", b"localhost:99") in stream.handshake_headers


@pytest.mark.parametrize(
    ("offered", "chosen"), [((), None), (("c",), None), (("c", "a"), "a"), (("a", "b"), "b")]
)
async def test_the_servers_first_subprotocol_that_is_offered_is_chosen(
    offered: tuple[str, ...], chosen: str | None
) -> None:
    async with (
        memory_server(subprotocols=iter(["b", "a"])) as listener,
        background() as nursery,
    ):
        stream = await open_over(nursery, await listener.connect(), subprotocols=offered)
        assert stream.subprotocol == chosen


async def test_a_second_accept_is_busy_and_a_cancelled_one_loses_nobody() -> None:
    transport_listener = MemoryListener()
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery)
        async with background() as accepting:
            accepting.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await listener.accept()
            transports = [await transport_listener.connect() for _ in range(3)]
            await wait_all_tasks_blocked()
        for number, transport in enumerate(transports):  # while nobody is in accept
            hello = frame(BINARY, b"%d" % number, masked=True)
            await transport.send_all(CLIENT_HANDSHAKE + hello)
            assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")
            await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        streams = [await listener.accept() for _ in transports]
        for number, stream in enumerate(streams):  # first come, first served
            assert await stream.receive_some() == b"%d" % number


async def test_of_two_accepts_that_begin_at_once_one_is_busy_and_one_gets_the_client() -> None:
    transport_listener = MemoryListener()
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery)
        results: list[WsByteStream | trio.BusyResourceError] = []

        async def accept() -> None:
            try:
                results.append(await listener.accept())
            except trio.BusyResourceError as error:
                results.append(error)

        with trio.fail_after(30):
            async with trio.open_nursery() as accepting:
                accepting.start_soon(accept)
                accepting.start_soon(accept)
                await open_over(nursery, await transport_listener.connect())
        assert {type(result) for result in results} == {trio.BusyResourceError, WsByteStream}


async def test_with_a_nursery_that_has_ended_no_transport_is_left_open() -> None:
    transport_listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        listener = WsListener(transport_listener, nursery)
    transport = await transport_listener.connect()
    with pytest.raises(RuntimeError, match="Nursery is closed"):
        await listener.accept()
    assert await transport.receive_some() == b""


async def test_errors_of_the_transports_accept_come_out_of_accept() -> None:
    transport_listener = MemoryListener()
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery)
        await transport_listener.fail(OSError(errno.EMFILE, "too many open files"))
        nursery.start_soon(open_over, nursery, await transport_listener.connect())
        with pytest.raises(OSError, match="too many open files"):
            await listener.accept()
        stream = await listener.accept()
        assert isinstance(stream, WsByteStream)


async def test_aclose_closes_the_listener_and_drops_all_that_was_not_accepted() -> None:
    transport_listener = MemoryListener()
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery, connect_timeout=math.inf)
        accepted, opened, silent = [await transport_listener.connect() for _ in range(3)]
        streams: list[WsByteStream] = []  # A stream that nobody holds gives a warning.

        async def accept() -> None:
            streams.append(await listener.accept())

        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept)
            await wait_all_tasks_blocked()
            await accepted.send_all(CLIENT_HANDSHAKE)
        await opened.send_all(CLIENT_HANDSHAKE)
        for transport in (accepted, opened):
            await receive_head(transport)
        with trio.CancelScope() as scope:
            scope.cancel()  # it does all of this at once
            await listener.aclose()
        with trio.fail_after(30):
            assert await silent.receive_some() == b""
        assert await opened.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        with pytest.raises(trio.BrokenResourceError):
            await transport_listener.connect()
        peer = RawPeer(accepted, masked=True)  # is still there
        await peer.send(PING, b"?")
        assert await peer.receive() == (PONG, b"?")


class SlowListener(MemoryListener):
    """What it and its transports have done is done, and then others have their turn, as with
    sockets; only longer.
    """

    async def accept(self) -> trio.abc.Stream:
        transport: Any = await super().accept()
        send = transport.send_stream.send_all_hook

        async def send_and_wait() -> None:
            await send()
            await self.wait()

        transport.send_stream.send_all_hook = send_and_wait
        await self.wait()
        return transport

    async def wait(self) -> None:
        for _ in range(3):
            await trio.lowlevel.cancel_shielded_checkpoint()


@pytest.mark.parametrize("steps", range(20))
async def test_aclose_in_the_middle_of_any_step_leaves_no_client_behind(steps: int) -> None:
    transport_listener = SlowListener()
    accepted = []
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery, connect_timeout=math.inf)

        async def accept() -> None:
            with contextlib.suppress(trio.ClosedResourceError):
                accepted.append(await listener.accept())

        async def connect() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                transport = await transport_listener.connect()
                await transport.send_all(CLIENT_HANDSHAKE)

        async with trio.open_nursery() as running:
            running.start_soon(accept)
            await wait_all_tasks_blocked()
            running.start_soon(connect)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await listener.aclose()
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == len(accepted)  # each stream has one task


async def test_aclose_wakes_a_blocked_accept() -> None:
    (transport_listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery)

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept)
            await wait_all_tasks_blocked()
            await listener.aclose()
            await listener.aclose()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subprotocols": "mqtt"}, "subprotocols.*mqtt"),
        ({"allowed_origins": "https://a"}, "allowed_origins.*https://a"),
        ({"path": "chat"}, "path.*chat"),
        ({"path": "/chat?x"}, "path.*x"),
        ({"path": b"/chat"}, "path.*b'/chat'"),
        ({"connect_timeout": -1}, "connect_timeout.*-1"),
        ({"connect_timeout": "1"}, "connect_timeout.*'1'"),
        ({"max_pending": 0}, "max_pending.*0"),
        ({"config": 5}, "config.*5"),
    ],
)
async def test_a_listener_refuses_a_wrong_option_in_its_constructor(
    options: dict[str, Any], message: str
) -> None:
    async with background() as nursery:
        with pytest.raises((ValueError, TypeError), match=message):
            WsListener(MemoryListener(), nursery, **options)
        with pytest.raises((ValueError, TypeError), match=message), trio.fail_after(30):
            await serve_ws(echo, "127.0.0.1", 0, **options)  # and no socket is left


# Clients that are none


BAD = {
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
    "a body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123456789", 400),
    "HEAD": (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 426),
    "a POST": (request(line=b"POST / HTTP/1.1"), 400),
    "HTTP/1.0": (request(line=b"GET / HTTP/1.0"), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "garbage": (b"\xff" * 5000 + b"\r\n\r\n", 400),
    "an endless line": (b"GET /" + b"a" * 100_000, 431),
    "an endless header": (request()[:-2] + b"A: " + b"a" * 100_000, 431),
    "a thousand headers": (request(*[b"A: b"] * 10_000), 431),
    "no host": (request(leave_out=b"Host"), 400),
    "two hosts": (request(b"Host: another"), 400),
    "a host that is no name": (request(b"Host: \xff\xfe", leave_out=b"Host"), 400),
    "no upgrade": (request(leave_out=b"Upgrade"), 400),
    "another upgrade": (request(b"Upgrade: h2c", leave_out=b"Upgrade"), 400),
    "no connection": (request(leave_out=b"Connection"), 400),
    "no key": (request(leave_out=b"Sec-WebSocket-Key"), 400),
    "two keys": (request(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400),
    "a short key": (
        request(b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", leave_out=b"Sec-WebSocket-Key"),
        400,
    ),
    "a key of 15 bytes": (
        request(b"Sec-WebSocket-Key: " + b"A" * 20, leave_out=b"Sec-WebSocket-Key"),
        400,
    ),
    "a key of 17 bytes": (
        request(b"Sec-WebSocket-Key: " + b"A" * 23 + b"=", leave_out=b"Sec-WebSocket-Key"),
        400,
    ),
    "a key that is no base64": (
        request(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ!==", leave_out=b"Sec-WebSocket-Key"),
        400,
    ),
    "no version": (request(leave_out=b"Sec-WebSocket-Version"), 400),
    "two versions": (request(b"Sec-WebSocket-Version: 13"), 400),
    "a header that is not ASCII": (request(b"Sec-WebSocket-Protocol: \xe4"), 400),
    "a length": (request(b"Content-Length: 5") + b"12345", 400),
    "chunks": (request(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "a length and chunks": (
        request(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
        400,
    ),
    "another version": (
        request(b"Sec-WebSocket-Version: 8", leave_out=b"Sec-WebSocket-Version"),
        426,
    ),
    "another origin": (request(b"Origin: https://evil.example"), 403),
    "two origins": (request(b"Origin: https://a", b"Origin: https://a"), 403),
    "another path": (request(line=b"GET /other HTTP/1.1"), 404),
    "a URL with no host": (request(line=b"GET http:/// HTTP/1.1"), 400),
    "another path in a URL": (request(line=b"GET http://localhost/other HTTP/1.1"), 404),
}


@pytest.mark.parametrize("kind", BAD)
async def test_what_is_no_opening_handshake_gets_an_http_response_and_an_end(
    kind: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    started_at = trio.current_time()
    data, status = BAD[kind]
    origins = ["https://a", None]
    async with memory_server(allowed_origins=origins, path="/") as listener:
        transport = await listener.connect()
        await transport.send_all(data)
        http = h11.Connection(h11.CLIENT)
        http.send(
            h11.Request(
                method="HEAD" if kind == "HEAD" else "GET", target="/", headers=[("Host", "a")]
            )
        )
        http.receive_data(await receive_all(transport))
        http.receive_data(b"")
        assert trio.current_time() == started_at
        response = http.next_event()
        assert isinstance(response, h11.Response)
        assert response.status_code == status
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
        headers = dict(response.headers)
        connection = [value for name, value in response.headers if name == b"connection"]
        assert connection == ([b"upgrade", b"close"] if status == 426 else [b"close"])
        if status == 426:
            assert headers[b"sec-websocket-version"] == b"13"
            assert headers[b"upgrade"] == b"websocket"
        event = http.next_event()
        while isinstance(event, h11.Data):
            event = http.next_event()
        assert isinstance(event, h11.EndOfMessage)
        await transport.aclose()
        await assert_works(listener)


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        (b"GET /?a=b HTTP/1.1", [b"Origin: https://a"]),
        (b"GET http://localhost HTTP/1.1", []),
        (b"GET http://localhost/?a HTTP/1.1", [b"Content-Length: 0"]),
    ],
)
async def test_a_valid_opening_handshake_is_accepted(line: bytes, headers: list[bytes]) -> None:
    async with memory_server(allowed_origins=["https://a", None], path="/") as listener:
        transport = await listener.connect()
        await transport.send_all(request(*headers, line=line))
        assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        (None, b"https://a", 101),
        (None, None, 101),
        (["https://a"], b"https://a", 101),
        (["https://a"], b"http://a", 403),
        (["https://a"], b"HTTPS://A", 403),
        (["https://a"], b"null", 403),
        (["https://a"], None, 403),
        ([None], None, 101),
        ([None], b"https://a", 403),
        ([], b"https://a", 403),
    ],
)
async def test_only_clients_of_allowed_origins_are_accepted(
    allowed: Any, origin: bytes | None, status: int
) -> None:
    async with memory_server(allowed_origins=allowed) as listener:
        transport = await listener.connect()
        await transport.send_all(request(*([b"Origin: " + origin] if origin else [])))
        assert (await receive_head(transport)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_path_is_compared_as_it_is_written() -> None:
    async with memory_server(path="/chat") as listener:
        for path, status in ((b"/chat", 101), (b"/Chat", 404), (b"/chat/", 404)):
            transport = await listener.connect()
            await transport.send_all(request(line=b"GET %s HTTP/1.1" % path))
            assert (await receive_head(transport)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_response_arrives_although_the_request_is_still_being_sent() -> None:
    (transport_listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = transport_listener.socket.getsockname()
    async with background() as nursery:
        await nursery.start(trio.serve_listeners, echo, [WsListener(transport_listener, nursery)])
        async with await trio.open_tcp_stream(*address) as transport:
            await transport.send_all(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n"
            )
            await transport.send_all(bytes(9_999_999))
            response = await receive_all(transport)
            assert response.startswith(b"HTTP/1.1 400 ")


async def test_a_refused_client_that_does_not_hang_up_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server() as listener:
        transport = await listener.connect()
        await transport.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await receive_all(transport)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await transport.send_all(b"more")
                await trio.sleep(0.1)
        assert trio.current_time() < 3


async def test_a_client_that_is_silent_in_tls_is_dropped_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    transport_listener = MemoryListener()
    async with background() as nursery:
        tls = trio.SSLListener(transport_listener, SERVER_TLS)
        listener = WsListener(tls, nursery, connect_timeout=3)
        nursery.start_soon(listener.accept)
        silent = await transport_listener.connect()
        with trio.fail_after(4):
            assert await silent.receive_some() == b""


async def test_no_extension_is_agreed_on() -> None:
    async with memory_server() as listener:
        transport = await listener.connect()
        await transport.send_all(request(b"Sec-WebSocket-Extensions: permessage-deflate"))
        head = await receive_head(transport)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"extensions" not in head.lower()
        peer = RawPeer(transport, masked=True)
        await peer.send(BINARY, b"plain")
        assert await peer.receive() == (BINARY, b"plain")
        await peer.send(CLOSE, close_payload(1000))
        assert await peer.receive() == (CLOSE, close_payload(1000))


async def test_silent_and_slow_clients_are_dropped_in_time_and_delay_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(connect_timeout=5) as listener:
        silent = await listener.connect()
        slow = await listener.connect()

        async def a_byte_a_second() -> None:
            with pytest.raises(trio.BrokenResourceError):
                for byte in CLIENT_HANDSHAKE:
                    await slow.send_all(bytes([byte]))
                    await trio.sleep(1)

        started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a_byte_a_second)
            await assert_works(listener)
            assert trio.current_time() == started_at
            assert await silent.receive_some() == b""
            assert trio.current_time() == started_at + 5
        assert trio.current_time() <= started_at + 6


async def test_a_handshake_that_has_ended_is_not_pending_any_more() -> None:
    async with memory_server(max_pending=2) as listener:
        slow = await listener.connect()
        for _ in range(5):
            await assert_works(listener)
        await slow.send_all(CLIENT_HANDSHAKE)
        assert (await receive_head(slow)).startswith(b"HTTP/1.1 101 ")


async def test_a_transport_that_breaks_in_the_handshake_is_not_logged_as_a_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise trio.BrokenResourceError

    async with memory_server() as listener:
        _, theirs = trio.testing.memory_stream_pair()
        theirs.receive_stream.receive_some_hook = fail
        await listener.arrive(theirs)
        await wait_all_tasks_blocked()
        await assert_works(listener)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_a_client_that_hangs_up_anywhere_in_the_handshake_leaves_nothing() -> None:
    async with memory_server() as listener:
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        for length in range(len(CLIENT_HANDSHAKE)):
            transport = await listener.connect()
            await transport.send_all(CLIENT_HANDSHAKE[:length])
            await wait_all_tasks_blocked()
            await (transport.aclose() if length % 2 else transport.send_eof())
            await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await assert_works(listener)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", CLIENT_HANDSHAKE])
@pytest.mark.parametrize("path", ["/", "/elsewhere"])
async def test_a_client_that_hangs_up_before_it_is_answered_is_no_error_of_ours(
    path: str, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_server(path=path) as listener:
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(said)
        await ours.aclose()
        await listener.arrive(theirs)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await theirs.receive_some()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("error", [OSError("a bug"), RuntimeError("a bug")])
async def test_a_transport_with_a_bug_does_not_affect_other_clients(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(trio.abc.Stream):
        is_closed = False

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise error

        async def send_all(self, data: bytes) -> None:
            raise error

        async def wait_send_all_might_not_block(self) -> None:
            raise error

        async def aclose(self) -> None:
            self.is_closed = True
            await trio.lowlevel.checkpoint()

    bad = Bad()
    async with memory_server() as listener:
        await listener.arrive(bad)
        await assert_works(listener)
        await wait_all_tasks_blocked()
        assert bad.is_closed
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("cut", [0, 1, 5])
async def test_what_a_client_sends_with_its_request_is_not_lost(cut: int) -> None:
    glued = frame(BINARY, b"too early", masked=True)
    async with memory_server() as listener:
        transport = await listener.connect()
        await transport.send_all(CLIENT_HANDSHAKE + glued[:cut])
        await receive_head(transport)
        await transport.send_all(glued[cut:])
        peer = RawPeer(transport, masked=True)
        assert await peer.receive() == (BINARY, b"too early")


# The hook


async def test_an_accept_hook_sees_the_request_and_adds_headers_to_the_response() -> None:
    async def hook(request: WebSocketRequest) -> list[tuple[bytes, bytes]]:
        await trio.lowlevel.checkpoint()
        assert dict(request.headers)[b"host"] == b"localhost"
        assert request.path == "/a?token=b"
        return [(b"X-Token", b"b")]

    async with memory_server(accept=hook) as listener, background() as nursery:
        stream = await open_over(nursery, await listener.connect(), "ws://localhost/a?token=b")
        assert (b"x-token", b"b") in stream.handshake_headers


async def refuse(request: WebSocketRequest) -> None:
    raise ConnectionRejected(401, ((b"WWW-Authenticate", b"Basic"),), b"Who are you?")


async def reject(request: WebSocketRequest) -> None:
    await request.reject(401, extra_headers=[(b"WWW-Authenticate", b"Basic")], body=b"Who are you?")


@pytest.mark.parametrize("hook", [refuse, reject])
async def test_an_accept_hook_can_refuse_a_client(
    hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_server(accept=hook) as listener, background() as nursery:
        with pytest.raises(ConnectionRejected) as caught:
            await open_over(nursery, await listener.connect())
        assert caught.value.status_code == 401
        assert (b"www-authenticate", b"Basic") in caught.value.headers
        assert caught.value.body == b"Who are you?"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_accept_hook_may_accept_the_request_itself() -> None:
    async def hook(request: WebSocketRequest) -> None:
        await request.accept(subprotocol="a")

    async with memory_server(accept=hook) as listener, background() as nursery:
        stream = await open_over(nursery, await listener.connect(), subprotocols=["a"])
        assert stream.subprotocol == "a"
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize(
    "outcome", [ValueError("a bug"), [(b"a header", b"with a\r\nnewline")], 5], ids=repr
)
async def test_an_accept_hook_with_a_bug_refuses_the_client_and_is_logged(
    outcome: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(request: WebSocketRequest) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with memory_server(accept=hook) as listener, background() as nursery:
        with pytest.raises(HandshakeError) as caught:
            await open_over(nursery, await listener.connect())
        assert isinstance(caught.value, ConnectionRejected)
        assert caught.value.status_code == 500
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info


async def test_connect_timeout_includes_the_accept_hook(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hook(request: WebSocketRequest) -> None:
        await trio.sleep_forever()

    async with memory_server(accept=hook, connect_timeout=3) as listener, background() as nursery:
        with pytest.raises(HandshakeError):
            await open_over(nursery, await listener.connect())
        assert trio.current_time() == 3


# serve_ws


@pytest.mark.parametrize("tls", [False, True])
async def test_serve_ws_serves_and_closes_when_the_handler_returns(tls: bool) -> None:
    async def handler(stream: WsByteStream) -> None:
        await stream.send_all(await stream.receive_some())

    async with background() as nursery:
        listeners = await nursery.start(
            partial(serve_ws, handler, "127.0.0.1", 0, SERVER_TLS if tls else None, path="/x")
        )
        assert all(type(listener) is WsListener for listener in listeners)
        _, port = address_of(listeners[0])
        url = f"wss://localhost:{port}/x" if tls else f"ws://127.0.0.1:{port}/x"
        async with open_ws_stream(url, CLIENT_TLS if tls else None) as stream:
            await stream.send_all(b"hello")
            assert await receive_all(stream) == b"hello"
        assert stream.closed == StreamClosed(1000, "", True, None)


async def test_a_client_that_ends_tcp_inside_tls_has_ended_it_as_any_other() -> None:
    """Many clients do so. Neither HTTPS nor WebSockets need the closing message of TLS."""
    lost: list[BaseException | None] = []
    has_ended = trio.Event()

    async def handler(stream: WsByteStream) -> None:
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        lost.append(broken.value.__cause__)
        has_ended.set()

    async with background() as nursery:
        serve = partial(serve_ws, handler, "127.0.0.1", 0, SERVER_TLS)
        _, port = address_of((await nursery.start(serve))[0])
        transport = await trio.open_ssl_over_tcp_stream(
            "localhost", port, ssl_context=CLIENT_TLS, https_compatible=True
        )
        await transport.send_all(CLIENT_HANDSHAKE)
        await receive_head(transport)
        await transport.aclose()
        await has_ended.wait()
    assert lost == [ConnectionLost("the transport ended before the peer's Close")]


async def test_serve_ws_has_the_options_of_the_listener() -> None:
    configs: list[StreamConfig] = []

    async def handler(stream: WsByteStream) -> None:
        configs.append(stream.config)

    async def hook(request: WebSocketRequest) -> list[tuple[bytes, bytes]]:
        return [(b"X-Path", request.path.encode())]

    serve = partial(
        serve_ws,
        handler,
        "127.0.0.1",
        0,
        subprotocols=["a"],
        allowed_origins=["http://good"],
        path="/x",
        config=SHORT,
        accept=hook,
    )
    async with background() as nursery:
        _, port = address_of((await nursery.start(serve))[0])
        good = partial(open_ws_stream, subprotocols=["b", "a"])
        for path, origin, status in [("/y", b"http://good", 404), ("/x", b"http://bad", 403)]:
            with pytest.raises(ConnectionRejected) as caught:
                url = f"ws://127.0.0.1:{port}{path}"
                async with good(url, extra_headers=[(b"Origin", origin)]):
                    raise AssertionError("it was admitted")
            assert caught.value.status_code == status
        url = f"ws://127.0.0.1:{port}/x?y"
        async with good(url, extra_headers=[(b"Origin", b"http://good")]) as stream:
            assert stream.subprotocol == "a"
            assert (b"x-path", b"/x?y") in stream.handshake_headers
            assert await stream.receive_some() == b""
    assert configs == [SHORT]


@pytest.mark.parametrize(
    "option", [{"connect_timeout": 5}, {"connect_timeout": math.inf, "max_pending": 1}]
)
async def test_serve_ws_drops_silent_clients_as_the_listener_does(
    option: dict[str, Any], autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport_listener = MemoryListener()

    async def open_tcp_listeners(port: int, host: str) -> list[MemoryListener]:
        await trio.lowlevel.checkpoint()
        return [transport_listener]

    monkeypatch.setattr(trio, "open_tcp_listeners", open_tcp_listeners)
    async with background() as nursery:
        await nursery.start(partial(serve_ws, echo, "127.0.0.1", 0, **option))
        silent, _ = [await transport_listener.connect() for _ in range(2)]
        with trio.fail_after(6):
            assert await silent.receive_some() == b""


async def test_a_handler_that_raises_closes_with_1011_and_the_exception_goes_on() -> None:
    async def handler(stream: WsByteStream) -> None:
        raise LookupError("not found")

    closed: list[StreamClosed | None] = []

    async def connect(listeners: list[WsListener]) -> None:
        _, port = address_of(listeners[0])
        async with open_ws_stream(f"ws://127.0.0.1:{port}") as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        closed.append(stream.closed)

    with pytest.RaisesGroup(
        pytest.RaisesGroup(pytest.RaisesExc(LookupError, match="not found"))
    ):  # ours, and that of serve_ws, as with trio.serve_tcp
        async with trio.open_nursery() as nursery:
            connecting = await nursery.start(partial(serve_ws, handler, "127.0.0.1", 0))
            with trio.CancelScope(shield=True):
                await connect(connecting)
    assert [end.code for end in closed if end] == [1011]


async def test_an_exception_of_serve_ws_itself_drops_its_streams() -> None:
    """Ctrl-C is raised in `serve_ws` too, and must not wait until the clients leave."""
    async with background() as clients:
        streams: list[WsByteStream] = []

        async def serve_a_while() -> None:
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(partial(serve_ws, echo, "127.0.0.1", 0))
                transport = await trio.open_tcp_stream(*address_of(listeners[0]))
                streams.append(await open_over(clients, transport))
                await listeners[0].transport_listener.aclose()

        with pytest.RaisesGroup(trio.ClosedResourceError, flatten_subgroups=True):
            await serve_a_while()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await streams[0].receive_some()
        assert isinstance(caught.value.__cause__, ConnectionLost)


async def test_serve_ws_drops_its_streams_when_it_is_cancelled() -> None:
    async with trio.open_nursery() as outer:
        async with background() as nursery:
            listeners = await nursery.start(partial(serve_ws, echo, "127.0.0.1", 0))
            _, port = address_of(listeners[0])
            transport = await trio.open_tcp_stream("127.0.0.1", port)
            stream = await open_over(outer, transport)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionLost)
        outer.cancel_scope.cancel()


async def test_with_a_handler_nursery_open_streams_go_on_after_accepting_has_stopped() -> None:
    async with background() as handlers, background() as clients:
        async with background() as accepting:
            listeners = await accepting.start(
                partial(serve_ws, echo, "127.0.0.1", 0, handler_nursery=handlers)
            )
            _, port = address_of(listeners[0])
            transport = await trio.open_tcp_stream("127.0.0.1", port)
            stream = await open_over(clients, transport)
            pending = await trio.open_tcp_stream("127.0.0.1", port)
            await pending.send_all(b"GET / HT")
            await wait_all_tasks_blocked()
        assert await pending.receive_some() == b""  # it was not open
        await pending.aclose()
        with pytest.raises(OSError, match=r".*"):
            await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"still there?")
        assert await stream.receive_some() == b"still there?"
        await stream.aclose()
        assert stream.closed == StreamClosed(1000, "", True, None)
        await wait_all_tasks_blocked()
        assert not handlers.child_tasks


# A client over a transport that is there


async def test_a_websocket_carries_another_websocket_with_tls() -> None:
    """A WebSocket, over TLS, over a WebSocket. Closing waits for no timeout."""
    config = StreamConfig(close_timeout=1000)

    async def carry(stream: WsByteStream) -> None:
        async with background() as nursery:
            inner = MemoryListener()
            tls_listener = trio.SSLListener(inner, SERVER_TLS)
            listener = WsListener(tls_listener, nursery, config=config)
            await nursery.start(trio.serve_listeners, echo, [listener])
            await inner.arrive(stream)
            await trio.sleep_forever()

    async with memory_server(carry) as listener, background() as nursery:
        outer = await open_over(nursery, await listener.connect())
        with trio.fail_after(30):
            async with open_ws_stream(
                "wss://localhost", CLIENT_TLS, transport=outer, config=config
            ) as stream:
                await stream.send_all(b"inside of inside")
                await stream.send_eof()
                assert await receive_all(stream) == b"inside of inside"
        assert stream.closed == StreamClosed(1000, "", True, None)
        assert outer.closed is not None


@pytest.mark.parametrize("url", ["ws://localhost", "wss://localhost"])
async def test_a_transport_is_closed_if_the_connection_fails(
    url: str, autojump_clock: trio.testing.MockClock
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(ConnectionTimeout):
        async with open_ws_stream(url, transport=ours, connect_timeout=1):
            raise AssertionError("connected to nobody")
    await receive_all(theirs)
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")


async def test_a_transport_is_closed_if_the_config_is_invalid() -> None:
    async def wait(stream: WsByteStream) -> None:
        await trio.sleep_forever()

    async with memory_server(wait) as listener:
        transport = await listener.connect()
        with pytest.raises(TypeError, match="config must be a StreamConfig, not 5"):
            async with open_ws_stream("ws://localhost", transport=transport, config=5):  # type: ignore[arg-type]
                raise AssertionError("it was opened")
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive_some()
