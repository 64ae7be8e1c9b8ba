"""Send HTTP requests with httpx through a WebSocket, several through one connection.

Server and client share one process. ``pip install 'trio-wsstream[anyio]' httpx`` installs what the
client needs. The server is a small one, made of h11.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

import anyio.streams.tls
import h11
import httpcore
import httpx
import trio
from trio_websocket import HandshakeError

from trio_wsstream import WsByteStream, open_ws_stream, serve_ws
from trio_wsstream.anyio import ByteStream, WsAttribute

# The client. httpx asks httpcore to keep connections, and httpcore asks a "network backend" to open
# them. Ours opens a WebSocket to ``url`` for each connection.


class NetworkStream(httpcore.AsyncNetworkStream):
    """What httpcore reads and writes: any byte stream of anyio, over a WebSocket."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore.ReadError(error) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            with anyio.fail_after(timeout):
                await self._stream.send(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore.WriteError(error) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> NetworkStream:
        try:
            with anyio.fail_after(timeout):
                return NetworkStream(
                    await anyio.streams.tls.TLSStream.wrap(
                        self._stream,
                        hostname=server_hostname,
                        ssl_context=ssl_context,
                        standard_compatible=False,
                    )
                )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # if it is, an idle connection is not used again
            return self._stream.extra(WsAttribute.is_readable)
        if info == "ssl_object":
            return self._stream.extra(anyio.streams.tls.TLSAttribute.ssl_object, None)
        return None


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Opens a WebSocket for each connection.

    Args:
      nursery: where the WebSockets live.
      connect: what gives an `open_ws_stream`.
    """

    def __init__(self, nursery: trio.Nursery, connect: Callable[[], Any]) -> None:
        self._nursery = nursery
        self._connect = connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        try:
            with anyio.fail_after(timeout):
                return NetworkStream(ByteStream(await self._nursery.start(self._keep_open)))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        except HandshakeError as error:
            raise httpcore.ConnectError(error) from error

    async def _keep_open(self, task_status: trio.TaskStatus[WsByteStream]) -> None:
        async with self._connect() as stream:
            task_status.started(stream)
            async for _ in stream.subscribe(kinds=()):  # until it is closed
                pass


class Transport(httpx.AsyncBaseTransport):
    """What httpx sends requests with: a pool of connections that are opened by ``backend``."""

    def __init__(
        self, backend: httpcore.AsyncNetworkBackend, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._pool = httpcore.AsyncConnectionPool(ssl_context, network_backend=backend)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore.Request(
                request.method,
                httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=Body(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


# The server


async def serve_http(stream: trio.abc.Stream) -> None:
    """Send the body of each request back. The path ``/last`` ends the connection afterwards."""
    http = h11.Connection(h11.SERVER)
    target, body = b"", b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            target, body = event.target, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            headers = [("Content-Length", str(len(body)))]
            await stream.send_all(
                http.send(h11.Response(status_code=200, headers=headers))
                + http.send(h11.Data(data=body))
                + http.send(h11.EndOfMessage())
            )
            if target == b"/last":
                return
            http.start_next_cycle()
        else:  # the client has closed the connection
            return


async def main() -> None:
    count = 0
    has_closed = trio.Event()

    async def handler(stream: WsByteStream) -> None:
        nonlocal count
        count += 1
        await serve_http(stream)
        await stream.aclose()
        has_closed.set()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(serve_ws, handler, "127.0.0.1", 0))
        connect = partial(open_ws_stream, f"ws://127.0.0.1:{listener.port}/")
        transport = Transport(NetworkBackend(nursery, connect))
        async with httpx.AsyncClient(transport=transport) as client:
            for path in "/", "/again", "/last", "/once-more":
                response = await client.post(f"http://example.com{path}", content=b"a body" * 1000)
                print(f"{path}: {response.status_code}, {len(response.content)} bytes back")
                if path == "/last":
                    await has_closed.wait()
        print(f"4 requests went through {count} WebSockets: the server had closed the first one")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
