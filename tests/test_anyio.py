"""`trio_wsstream.anyio`: its contract, and anyio's own streams and an HTTP client on it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.streams.text
import anyio.streams.tls
import h11
import httpcore
import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import AbnormalClosure, StreamClosed, WsByteStream
from trio_wsstream.anyio import ByteStream, WsAttribute

from .support.pairs import stream_pair
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


async def test_what_breaks_has_the_same_cause() -> None:
    async with pair() as (stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.aclose, 4000, "why")
        for operation in (stream.receive, lambda: stream.send(b"x")):
            with pytest.raises(anyio.BrokenResourceError) as caught:
                await operation()
            assert caught.value.__cause__ == AbnormalClosure(4000, "why")


async def test_two_at_once_are_busy() -> None:
    async with pair() as (stream, _):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive)
                await wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError, match="reading from"):
                    await stream.receive()
                scope.cancel()


@pytest.mark.parametrize("max_bytes", [0, -1])
async def test_max_bytes_is_positive(max_bytes: int) -> None:
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


async def test_typed_attributes() -> None:
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


class HttpcoreStream(httpcore.AsyncNetworkStream):
    """As httpcore's own over anyio."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self.stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.stream.send(buffer)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return HttpcoreStream(
            await anyio.streams.tls.TLSStream.wrap(
                self.stream,
                ssl_context=ssl_context,
                hostname=server_hostname,
                standard_compatible=False,
            )
        )

    def get_extra_info(self, info: str) -> Any:
        return None


class Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return HttpcoreStream(self.stream)


async def serve_http(stream: trio.abc.Stream) -> None:
    """One request; its body comes back."""
    http = h11.Connection(h11.SERVER)
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
    response = h11.Response(status_code=200, headers=[("Content-Length", str(len(body)))])
    for answer in (response, h11.Data(data=body), h11.EndOfMessage()):
        await stream.send_all(http.send(answer) or b"")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_httpx_request_goes_through(scheme: str) -> None:
    async with pair() as (stream, peer), background() as nursery:
        served: trio.abc.Stream = peer
        if scheme == "https":
            served = trio.SSLStream(peer, SERVER_TLS, server_side=True, https_compatible=True)
        nursery.start_soon(serve_http, served)
        transport = httpx.AsyncHTTPTransport()
        transport._pool = httpcore.AsyncConnectionPool(
            network_backend=Backend(stream), ssl_context=CLIENT_TLS
        )
        body = bytes(range(256)) * 2000
        async with httpx.AsyncClient(transport=transport) as client:
            response = await client.post(f"{scheme}://localhost/", content=body)
            assert response.status_code == 200
            assert response.content == body
        assert stream.stream.closed == StreamClosed(1000, "", True, None)
