"""Send bytes through a WebSocket between two sockets. Server and client share one process."""

from __future__ import annotations

from functools import partial

import trio
from trio_websocket import WebSocketRequest, serve_websocket

from trio_wsstream import PingReceived, WsByteStream, open_ws_stream, wrap_websocket


async def handle(request: WebSocketRequest) -> None:
    """Send back everything, and the end of the stream too: the server's handler."""
    async with wrap_websocket(await request.accept()) as stream:
        pings = stream.subscribe(kinds=PingReceived)
        total = 0
        async for chunk in stream:
            await stream.send_all(chunk)
            total += len(chunk)
        print(f"server: echoed {total} bytes, then the client's half-close")
        print(f"server: {pings.receive_nowait()}")


async def send(stream: WsByteStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()
    print(f"client: sent {len(data)} bytes and a half-close")


async def main() -> None:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_websocket, handle, "127.0.0.1", 0, None)
        server = await nursery.start(serve)

        async with open_ws_stream(f"ws://127.0.0.1:{server.port}/") as stream:
            print(f"client: connected; a ping took {await stream.ping(b'hello'):.4f} seconds")
            data = bytes(range(256)) * 4000
            received = b""
            async with trio.open_nursery() as sending:
                sending.start_soon(send, stream, data)
                async for chunk in stream:
                    received += chunk
            assert received == data
            print(f"client: received {len(received)} bytes, the same, and their end")
        print(f"client: {stream.closed}")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
