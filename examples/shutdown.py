"""A server that stops gracefully: it accepts no more connections and lets the open ones finish.

SIGTERM or Ctrl-C stops the server. A second signal, or the end of `PATIENCE`, drops the connections
that are still open. As Trio's documentation recommends, the connections live in a nursery of their
own (``handler_nursery``). So the server can cancel the accepting alone, and it waits for the
connections when it leaves their nursery.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from trio_websocket import HandshakeError

from trio_wsstream import WsByteStream, WsListener, open_ws_stream, serve_ws

PATIENCE = 30.0  # seconds


async def serve_until_signal(
    handler: Callable[[WsByteStream], Awaitable[object]],
    *where: Any,
    task_status: trio.TaskStatus[list[WsListener]] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Run `serve_ws` until a signal has come and the last connection has ended."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as connections:
                accepting = trio.CancelScope()
                nursery.start_soon(stop_on_signals, signals, accepting, connections)
                with accepting:
                    await serve_ws(
                        handler,
                        *where,
                        handler_nursery=connections,
                        task_status=task_status,
                        **options,
                    )
            nursery.cancel_scope.cancel()


async def stop_on_signals(
    signals: AsyncIterator[int], accepting: trio.CancelScope, connections: trio.Nursery
) -> None:
    await anext(signals)
    print("server: accepting no more connections, and waiting for the open ones", flush=True)
    accepting.cancel()
    connections.cancel_scope.deadline = trio.current_time() + PATIENCE
    await anext(signals)
    print("server: dropping the connections that are still open", flush=True)
    connections.cancel_scope.cancel()


# The server at work


async def echo(stream: WsByteStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)
    print("server: a connection has ended")


async def is_admitted(url: str) -> bool:
    try:
        async with open_ws_stream(url):
            return True
    except HandshakeError:
        return False


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve_until_signal, echo, "127.0.0.1", 0)
        url = f"ws://127.0.0.1:{listeners[0].port}/"

        async with open_ws_stream(url) as stream:
            await stream.send_all(b"before")
            print("client: received", bytes(await stream.receive_some()))
            signal.raise_signal(signal.SIGTERM)
            while await is_admitted(url):  # The server has not seen the signal yet.
                pass
            print("client: the server accepts no new connection")
            await stream.send_all(b"after")
            print("client: received", bytes(await stream.receive_some()))
        print("client:", stream.closed)
    print("server: has ended")


if __name__ == "__main__":
    trio.run(main)
