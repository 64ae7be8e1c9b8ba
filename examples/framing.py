"""Send messages and lines over a byte stream, with tricycle (``pip install tricycle``).

A stream keeps no message boundaries, so a protocol over a stream has framing of its own. This
example shows two kinds: a length before each message, and lines that end with a newline. Both have
a maximum size, which is checked before the data is kept. Without it, a peer that announces 4 GiB or
never ends its line could use up all memory.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from tricycle import BufferedReceiveStream, TextReceiveStream

from trio_wsstream import WsByteStream, open_ws_stream, serve_ws

MAX_MESSAGE = 65536  # bytes
MAX_LINE = 1000  # characters, with the newline

LENGTH = struct.Struct("!I")


class TooLong(ValueError):
    """The peer sends or announces more than the maximum size."""


class MessageStream:
    """Messages over any stream. Each message is its length, in four bytes, and its payload."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = BufferedReceiveStream(stream)

    async def send(self, message: bytes) -> None:
        await self._stream.send_all(LENGTH.pack(len(message)) + message)

    async def receive(self) -> bytes | None:
        """Return the next message, or None at the end of the stream.

        Raises:
          TooLong: The peer announced a message of more than `MAX_MESSAGE` bytes. None of it was
              received.
          ValueError: The stream ended inside a message.
        """
        prefix = await self._received.receive_all_or_none(LENGTH.size)
        if prefix is None:
            return None
        (length,) = LENGTH.unpack(prefix)
        if length > MAX_MESSAGE:
            raise TooLong(f"a message of {length} bytes")
        return await self._received.receive_exactly(length) if length else b""


class LineStream:
    """Lines of UTF-8 over any stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = TextReceiveStream(stream, "utf-8", newline="\n")

    async def send(self, line: str) -> None:
        await self._stream.send_all(f"{line}\n".encode())

    async def receive(self) -> str | None:
        """Return the next line without its newline, or None at the end of the stream.

        Raises:
          TooLong: The line has more than `MAX_LINE` characters.
          ValueError: The line is not UTF-8, or the stream ended inside it.
        """
        line = await self._received.receive_line(MAX_LINE)
        if line.endswith("\n"):
            return line.removesuffix("\n")
        if len(line) == MAX_LINE:
            raise TooLong(f"a line of {MAX_LINE} characters or more")
        if line:
            raise ValueError("the stream ended inside a line")
        return None


# A server and a client that use the two classes


async def handle(stream: WsByteStream) -> None:
    """Send back messages or lines in capitals: the server's handler."""
    framed: Any = LineStream(stream) if stream.path == "/lines" else MessageStream(stream)
    try:
        while (received := await framed.receive()) is not None:
            await framed.send(received.upper())
    except TooLong as error:
        print("server: refused", error)
        await stream.aclose(1009, str(error))
    except (ValueError, trio.BrokenResourceError) as error:
        print("server:", error)
        await stream.aclose(1007)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(serve_ws, handle, "127.0.0.1", 0)
        port = listeners[0].port
        url = f"ws://127.0.0.1:{port}"

        async with open_ws_stream(f"{url}/messages") as stream:
            messages = MessageStream(stream)
            for message in (b"one", b"", b"three" * 10000):
                await messages.send(message)
                assert await messages.receive() == message.upper()
            print("client: three messages came back")
            await stream.send_all(LENGTH.pack(2**32 - 1))
            await tell_refusal(messages.receive)

        async with open_ws_stream(f"{url}/lines") as stream:
            lines = LineStream(stream)
            for line in ("one", "", "drei gr\u00fc\u00dfe"):
                await lines.send(line)
                assert await lines.receive() == line.upper()
            print("client: three lines came back")
            await stream.send_all(b"x" * MAX_LINE)
            await tell_refusal(lines.receive)

        nursery.cancel_scope.cancel()


async def tell_refusal(receive: Callable[[], Awaitable[object]]) -> None:
    try:
        await receive()
    except trio.BrokenResourceError as error:
        print("client:", error.__cause__)


if __name__ == "__main__":
    trio.run(main)
