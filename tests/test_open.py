"""Opening streams, over real sockets, to peers that are not ours; and leaving them."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
import websockets.sync.client
import websockets.sync.server
from trio_websocket import WebSocketRequest

from trio_wsstream import (
    AbnormalClosure,
    StreamClosed,
    StreamConfig,
    TakeoverError,
    WsByteStream,
    open_ws_stream,
    wrap_websocket,
)
from trio_wsstream._open import open_nursery

from .support.pairs import SHORT, connection_pair
from .support.raw_peer import raw_pair
from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS


@asynccontextmanager
async def echo_server(tls: bool = False) -> AsyncGenerator[str, None]:
    """trio-websocket's server with streams that echo; its URL."""

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


async def exchange(stream: WsByteStream, data: bytes) -> bytes:
    """Send ``data`` with a half-close, and receive until the end."""

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        return await receive_all(stream)


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
        assert await exchange(stream, data) == data
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
async def test_a_wrong_option_is_refused_where_it_is_given(option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{option} must be .*, not {value!r}"):
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
async def test_what_cannot_be_sent_is_no_handshake_error(options: dict[str, Any]) -> None:
    transport, _ = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match="subprotocols or extra_headers"):
        async with open_ws_stream("ws://localhost", transport=transport, **options):
            raise AssertionError("it was opened")


@pytest.mark.parametrize("error", [ValueError("of the user"), KeyboardInterrupt(), SystemExit(3)])
async def test_an_exception_comes_out_as_it_was(error: BaseException) -> None:
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
        assert stream.closed.error == AbnormalClosure(1011)


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
async def test_an_exception_and_that_of_a_task_come_out_together(
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
async def test_another_connection_is_a_type_error(connection: object) -> None:
    async with background() as nursery:
        with pytest.raises(TypeError, match="WebSocketConnection"):
            WsByteStream(connection, nursery)  # type: ignore[arg-type]


async def test_another_config_is_a_type_error() -> None:
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
    """It has no half-close: nothing that was sent is lost, and the end is a plain close."""
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
                assert await exchange(stream, b"x" * 2500) == b""
            assert await trio.to_thread.run_sync(has_ended.wait, 10)
            assert [len(message) for message in received] == [1000, 1000, 500]
            assert stream.closed == StreamClosed(1000, "half-close", True, None)
            server.shutdown()
