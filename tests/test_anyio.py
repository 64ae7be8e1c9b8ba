"""`trio_wsstream.anyio`: its contract, and anyio's own streams and an HTTP client on it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.streams.text
import anyio.streams.tls
import httpcore
import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    StreamClosed,
    WsByteStream,
    open_ws_stream,
    serve_ws,
)
from trio_wsstream.anyio import ByteStream, WsAttribute
from trio_wsstream.testing import ws_server

from .support.pairs import stream_pair
from .support.programs import load
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS


@asynccontextmanager
async def pair(transport: str = "memory") -> AsyncGenerator[tuple[ByteStream, WsByteStream], None]:
    async with background() as nursery:
        client, server = await stream_pair(nursery, transport)
        yield ByteStream(client), server


async def test_bytes_go_both_ways_and_the_ends_are_anyios() -> None:
    async with pair() as (stream, peer):
        assert isinstance(stream, anyio.abc.ByteStream)
        await stream.send(b"there")
        assert await peer.receive_some() == b"there"
        await peer.send_all(b"back")
        assert await stream.receive(3) == b"bac"
        assert type(await stream.receive()) is bytes
        await peer.send_all(b"all at once")
        assert type(await stream.receive()) is bytes
        await stream.send_eof()
        await stream.send_eof()
        assert await peer.receive_some() == b""
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"more")
        await peer.aclose()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.aclose()
        assert stream.stream.closed == StreamClosed(1000, "", True, None)
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send_eof()


async def test_a_broken_anyio_stream_has_the_cause_of_the_trio_stream() -> None:
    async with pair() as (stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.aclose, 4000, "why")
        for operation in (stream.receive, lambda: stream.send(b"x")):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await operation()
            assert caught.value.__cause__ == AbnormalClosure(4000, "why")


async def test_two_tasks_that_receive_or_send_at_once_are_busy() -> None:
    async with pair() as (stream, _):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive)
                await wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError, match="reading from"):
                    await stream.receive()
                scope.cancel()


@pytest.mark.parametrize("max_bytes", [0, -1])
async def test_receive_refuses_a_max_bytes_that_is_not_positive(max_bytes: int) -> None:
    async with pair() as (stream, _):
        with pytest.raises(ValueError, match=str(max_bytes)):
            await stream.receive(max_bytes)


async def test_leaving_the_block_by_an_exception_is_no_clean_end() -> None:
    async with pair() as (stream, peer):
        with pytest.raises(LookupError):
            async with stream:
                raise LookupError
        with pytest.raises(trio.BrokenResourceError) as caught:
            await peer.receive_some()
        assert caught.value.__cause__ == AbnormalClosure(1011, "")


async def test_typed_attributes_are_those_of_the_stream_and_its_transport() -> None:
    async with pair("tcp") as (stream, peer):
        assert stream.extra(WsAttribute.path) == "/"
        assert stream.extra(WsAttribute.subprotocol) is None
        assert stream.extra(WsAttribute.handshake_headers) == stream.stream.handshake_headers
        address = stream.extra(anyio.abc.SocketAttribute.remote_address)
        assert address == ("127.0.0.1", stream.extra(anyio.abc.SocketAttribute.remote_port))
        assert address == ByteStream(peer).extra(anyio.abc.SocketAttribute.local_address)
        assert address[1] == ByteStream(peer).extra(anyio.abc.SocketAttribute.local_port)
    async with pair() as (stream, _):
        with pytest.raises(anyio.TypedAttributeLookupError):
            stream.extra(anyio.abc.SocketAttribute.remote_address)


async def test_tls_and_text_streams_of_anyio() -> None:
    async with pair() as (stream, peer):

        async def serve() -> None:
            async with await anyio.streams.tls.TLSStream.wrap(
                ByteStream(peer), server_side=True, ssl_context=SERVER_TLS
            ) as tls:
                text = anyio.streams.text.TextStream(tls)
                await text.send((await text.receive()).upper())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            tls = await anyio.streams.tls.TLSStream.wrap(
                stream, hostname="localhost", ssl_context=CLIENT_TLS
            )
            text = anyio.streams.text.TextStream(tls)
            await text.send("grüße")
            assert await text.receive() == "GRÜSSE"
            with pytest.raises(anyio.EndOfStream):
                await text.receive()
            assert tls.extra(WsAttribute.path) == "/"
            await tls.aclose()
        assert stream.stream.closed == StreamClosed(1000, "", True, None)


http_over_ws = load("http_over_ws")


@asynccontextmanager
async def http_client(
    *, is_secure: bool = False, code: int = 1000, **options: Any
) -> AsyncGenerator[tuple[httpx.AsyncClient, list[WsByteStream], trio.Event], None]:
    """A client of the example, the server's streams, one for each WebSocket that is opened, and an
    event that is set when the server has closed one.
    """
    streams: list[WsByteStream] = []

    async def handler(stream: WsByteStream) -> None:
        streams.append(stream)
        inner: trio.abc.Stream = stream
        if is_secure:
            inner = trio.SSLStream(stream, SERVER_TLS, server_side=True, https_compatible=True)
        await http_over_ws.serve_http(inner)
        await stream.aclose(code)
        has_closed.set()

    has_closed = trio.Event()
    async with background() as nursery:
        (listener,) = await nursery.start(partial(serve_ws, handler, "127.0.0.1", 0, **options))
        connect = partial(open_ws_stream, f"ws://127.0.0.1:{listener.port}")
        backend = http_over_ws.NetworkBackend(nursery, connect)
        transport = http_over_ws.Transport(backend, CLIENT_TLS)
        async with httpx.AsyncClient(transport=transport) as client:
            yield client, streams, has_closed


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_httpx_uses_one_websocket_for_many_requests(scheme: str) -> None:
    body = bytes(range(256)) * 2000
    async with http_client(is_secure=scheme == "https") as (client, streams, _):
        for _ in range(5):
            response = await client.post(f"{scheme}://localhost/", content=body)
            assert response.status_code == 200
            assert response.content == body
        assert len(streams) == 1


@pytest.mark.parametrize("code", [1000, 1001])
async def test_httpx_opens_a_new_websocket_when_the_server_has_closed_the_first(code: int) -> None:
    async with http_client(code=code) as (client, streams, has_closed):
        await client.post("http://localhost/last", content=b"one")
        await has_closed.wait()
        response = await client.post("http://localhost/", content=b"two")
        assert response.content == b"two"
        assert len(streams) == 2


async def test_httpx_tells_that_a_websocket_could_not_be_opened() -> None:
    async with http_client(allowed_origins=["https://example.com"]) as (client, _, _):
        with pytest.raises(httpcore.ConnectError, match="403"):
            await client.get("http://localhost/")


# What can be asked without waiting


async def test_a_stream_is_readable_when_there_is_something_to_receive() -> None:
    async with pair("tcp") as (stream, peer):
        client = stream.stream
        assert not client.is_readable()
        await peer.send_all(b"two bytes, and more")
        assert client.is_readable()  # although nobody has read it yet
        assert stream.extra(WsAttribute.is_readable)
        await client.receive_some(3)
        assert client.is_readable()
        await client.receive_some()
        assert not client.is_readable()
        assert not stream.extra(WsAttribute.is_readable)


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls"])
async def test_a_stream_is_readable_once_the_end_has_come(transport: str) -> None:
    async with pair(transport) as (stream, peer):
        client = stream.stream
        if transport != "tls":  # where a session ticket may wait to be read
            assert not client.is_readable()
        assert client.close_received is None
        events = client.subscribe(kinds=CloseReceived)
        await peer.send_eof()
        assert await events.receive() == CloseReceived(1000, "half-close")
        assert client.close_received == CloseReceived(1000, "half-close")
        assert client.closed is None
        assert client.is_readable()
        assert await client.receive_some() == b""
        assert client.is_readable()


async def test_a_closed_or_broken_stream_is_readable() -> None:
    async with pair() as (stream, peer):
        await trio.aclose_forcefully(peer)
        await wait_all_tasks_blocked(0.1)
        assert stream.stream.is_readable()
        assert peer.is_readable()
        await stream.aclose()
        assert stream.stream.is_readable()


async def test_a_ping_makes_a_stream_readable_only_until_it_is_answered() -> None:
    async with pair("tcp") as (stream, peer):
        await peer.ping()
        assert not stream.stream.is_readable()


async def test_what_came_with_the_opening_handshake_is_readable() -> None:
    async def handler(stream: WsByteStream) -> None:
        await stream.send_all(b"first")
        await stream.aclose()

    async with ws_server(handler) as listener, listener.open_ws_stream() as stream:
        await wait_all_tasks_blocked(0.1)
        assert stream.is_readable()
        assert await stream.receive_some() == b"first"


async def test_serve_ws_knows_the_end_of_a_stream_when_anyio_tells_it() -> None:
    """Otherwise the exception would end the server."""

    async def handler(stream: WsByteStream) -> None:
        await ByteStream(stream).receive()

    async with ws_server(handler) as listener:
        for _ in range(2):
            async with listener.open_ws_stream() as stream:
                await stream.aclose(4000)


async def test_the_repr_of_a_wrapped_stream_tells_address_and_state() -> None:
    async with pair("tcp") as (stream, _):
        address = "{}:{}".format(*stream.extra(anyio.abc.SocketAttribute.remote_address))
        assert f"client, peer {address}: open" in repr(stream)
        await stream.send_eof()
        assert "sending has ended" in repr(stream)
