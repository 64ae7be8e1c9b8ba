"""Print every kind of event as it happens.

The peers are trio-websocket connections, because they do what a stream never does: they send text,
close with a code of their own, or hang up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio
from trio_websocket import (
    WebSocketConnection,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)

from trio_wsstream import StreamConfig, TextPolicy, WsByteStream, WsEvent, wrap_websocket

Peer = Callable[[WebSocketConnection], Awaitable[None]]


async def print_events(events: trio.MemoryReceiveChannel[WsEvent]) -> None:
    async for event in events:
        print("   ", event)


async def read(stream: WsByteStream) -> None:
    """Print the bytes of ``stream``, and how they ended."""
    try:
        async for chunk in stream:
            print("    bytes:", bytes(chunk))
        print("    a clean end")
    except trio.BrokenResourceError as error:
        print("    broken:", repr(error.__cause__))


async def talk(title: str, peer: Peer, nursery: trio.Nursery, is_late: bool = False) -> None:
    """Run ``peer`` as the client of a server that prints the events of its stream.

    Args:
      is_late: the subscriber's channel has room for two events, and the subscriber reads it only
          after the stream has ended.
    """
    print(title)
    done = trio.Event()

    async def handle(request: WebSocketRequest) -> None:
        config = StreamConfig(text=TextPolicy.AS_EVENTS, close_timeout=0.5)
        async with wrap_websocket(await request.accept(), config) as stream:
            events = stream.subscribe(max_buffer_size=2 if is_late else 64)
            async with trio.open_nursery() as printing:
                if not is_late:
                    printing.start_soon(print_events, events)
                await read(stream)
                await stream.aclose()
            if is_late:
                await print_events(events)
        done.set()

    serve = partial(serve_websocket, handle, "127.0.0.1", 0, None)
    server = await nursery.start(serve)
    async with open_websocket_url(f"ws://127.0.0.1:{server.port}/") as connection:
        await peer(connection)
        await done.wait()


async def talkative(connection: WebSocketConnection) -> None:
    await connection.send_message(b"some bytes")
    await connection.ping(b"are you there?")
    await connection.pong(b"nobody asked")
    await connection.send_message("a text message")
    await connection.aclose(1000, "that is all")


async def departing(connection: WebSocketConnection) -> None:
    await connection.aclose(4000, "half of it only")


async def hanging_up(connection: WebSocketConnection) -> None:
    async with wrap_websocket(connection) as stream:
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.aclose()  # A cancelled aclose drops the transport.


async def sending_too_much(connection: WebSocketConnection) -> None:
    too_long = "x" * 300_000  # more than receive_buffer_size
    await connection.send_message(too_long)


async def pinging(connection: WebSocketConnection) -> None:
    for number in range(6):
        await connection.ping(b"%d" % number)
    await connection.aclose()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        await talk("A peer that sends every kind of frame:", talkative, nursery)
        await talk("A peer that closes with a code of its own:", departing, nursery)
        await talk("A peer that hangs up:", hanging_up, nursery)
        await talk("A peer that sends a text longer than allowed:", sending_too_much, nursery)
        await talk("A peer that pings faster than we read:", pinging, nursery, is_late=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
