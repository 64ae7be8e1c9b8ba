"""The ways to end a stream: either side closes, half-closes, or meets a peer that never answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio
from trio_websocket import WebSocketRequest, serve_websocket

from trio_wsstream import StreamConfig, WsByteStream, open_ws_stream, wrap_websocket

Handler = Callable[[WsByteStream], Awaitable[None]]


async def meet(title: str, server: Handler, client: Handler) -> None:
    """Run ``server`` and ``client`` at two ends of a stream, and print how it ended for each."""
    print(title)

    has_ended = trio.Event()

    async def handle(request: WebSocketRequest) -> None:
        async with wrap_websocket(await request.accept()) as stream:
            await server(stream)
        print("    server:", stream.closed)
        has_ended.set()

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(partial(serve_websocket, handle, "127.0.0.1", 0, None))
        async with open_ws_stream(f"ws://127.0.0.1:{listening.port}/") as stream:
            await client(stream)
        print("    client:", stream.closed)
        await has_ended.wait()
        nursery.cancel_scope.cancel()


async def read_to_end(stream: WsByteStream) -> bytes:
    try:
        return b"".join([bytes(chunk) async for chunk in stream])
    except trio.BrokenResourceError as error:
        print("    receive_some raised, because of", repr(error.__cause__))
        return b""


async def read(stream: WsByteStream) -> None:
    await read_to_end(stream)


async def leave(stream: WsByteStream) -> None:
    await stream.aclose(1001, "going away")


async def leave_with_a_code(stream: WsByteStream) -> None:
    await stream.aclose(4321, "a code of our own")


async def ask_with_a_half_close(stream: WsByteStream) -> None:
    await stream.send_all(b"what is the answer?")
    await stream.send_eof()
    print("    client: the answer is", await read_to_end(stream))


async def answer_a_half_close(stream: WsByteStream) -> None:
    question = await read_to_end(stream)
    print("    server: after the end of", question)
    await stream.send_all(b"forty-two")


async def against_silence() -> None:
    """Close a stream whose server accepts the connection, and then neither reads nor writes."""
    print("The peer never answers, and the client waits half a second for it:")

    async def serve(request: WebSocketRequest) -> None:
        connection = await request.accept()
        await connection.get_message()  # One message fits its queue, the second blocks its reader.
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listening = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, None))
        config = StreamConfig(close_timeout=0.5, max_message_size=1)
        async with open_ws_stream(f"ws://127.0.0.1:{listening.port}/", config=config) as stream:
            await stream.send_all(b"a few messages that block the reader of the server")
            started = trio.current_time()
            await stream.aclose()
            print(f"    client: aclose returned after {trio.current_time() - started:.1f} seconds")
        print("    client:", stream.closed)
        nursery.cancel_scope.cancel()


async def main() -> None:
    await meet("The client closes:", read, leave)
    await meet("The server closes with a code that is no clean end:", leave_with_a_code, read)
    await meet(
        "The client half-closes, and still receives the answer:",
        answer_a_half_close,
        ask_with_a_half_close,
    )
    await against_silence()


if __name__ == "__main__":
    trio.run(main)
