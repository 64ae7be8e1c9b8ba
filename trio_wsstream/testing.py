"""For tests of code that uses WebSocket streams: no network, and any clock of Trio.

`ws_stream_pair` gives two connected streams. `ws_server` runs a server with all of its hooks, for
clients that connect through a `MemoryListener`. A `FaultyStream` is a transport that breaks, falls
silent or is slow when the test says so.

Nothing here waits for time to pass by itself. Under a `trio.testing.MockClock`, let the clock jump
(``autojump_threshold=0``) or move it: a stream answers pings and Closes by itself only when nobody
has received from it for 50 ms, and its keepalive and timeouts follow the clock, too.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, final

import trio
import trio.testing

from . import _takeover, serve_ws
from ._checks import check_half_closeable, check_seconds
from ._config import StreamConfig
from ._open import open_nursery, open_ws_stream
from ._serve import Handler
from ._stream import WsByteStream

__all__ = ["FaultyStream", "MemoryListener", "ws_server", "ws_stream_pair"]


@asynccontextmanager
async def ws_stream_pair(
    client_config: StreamConfig = StreamConfig(),
    server_config: StreamConfig = StreamConfig(),
    *,
    path: str = "/",
    subprotocol: str | None = None,
    transports: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
) -> AsyncGenerator[tuple[WsByteStream, WsByteStream], None]:
    """Two connected `WsByteStream` in memory: the client's and the server's.

    There is no opening handshake, so the first byte on the transports is that of a frame. When
    the block is left, streams that are still open are dropped at once; a test that wants the close
    handshake calls `~WsByteStream.aclose`. An exception comes out of the block as it was.

    Args:
      client_config, server_config (StreamConfig): the settings of each end.
      path (str), subprotocol (str or None): what both streams show as theirs.
      transports (pair of trio.abc.Stream or None): the two ends of what the frames go over, the
          client's first; None: those of a `trio.testing.memory_stream_pair`. Either may be a
          `FaultyStream`.

    Raises:
      ValueError, TypeError: an argument is none of these.
    """
    client_end, server_end = transports or trio.testing.memory_stream_pair()
    for end in (client_end, server_end):
        if not isinstance(end, trio.abc.Stream):
            raise TypeError(f"transports must be two trio.abc.Streams, not {transports!r}")
    async with open_nursery() as nursery:

        def stream(transport: trio.abc.Stream, config: StreamConfig, client: bool) -> WsByteStream:
            connection = _takeover.open_connection(
                transport, client=client, path=path, subprotocol=subprotocol
            )
            return WsByteStream(connection, nursery, config)

        # These names keep the streams from being garbage, if the caller has no names for them.
        client = stream(client_end, client_config, True)
        server = stream(server_end, server_config, False)
        yield client, server
        nursery.cancel_scope.cancel()


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener whose clients connect to it in memory, for `serve_ws` and `WsListener`.

    Clients may connect before a task is in `accept`. But an opening handshake needs both sides, and
    a `WsListener` does its part only while a task is in its ``accept``, as `serve_ws` always is.
    """

    def __init__(self) -> None:
        self._connect, self._accept = trio.open_memory_channel[trio.abc.Stream](math.inf)

    async def connect(self) -> trio.abc.Stream:
        """Connect, and return the client's end of the transport.

        Raises:
          trio.BrokenResourceError: the listener is closed.
        """
        ours, theirs = trio.testing.memory_stream_pair()
        await self._connect.send(theirs)
        return ours

    def open_ws_stream(
        self, url: str = "ws://localhost/", *args: Any, **options: Any
    ) -> AbstractAsyncContextManager[WsByteStream]:
        """`trio_wsstream.open_ws_stream` over a transport of this listener.

        Args:
          url (str): its path and query reach the server, its host only as the Host header.

          The others: as of `trio_wsstream.open_ws_stream`, but for ``transport`` and ``proxy``.
        """

        @asynccontextmanager
        async def connected() -> AsyncGenerator[WsByteStream, None]:
            transport = await self.connect()
            async with open_ws_stream(url, *args, transport=transport, **options) as stream:
                yield stream

        return connected()

    async def accept(self) -> trio.abc.Stream:
        """Wait for the next client, and return the server's end of the transport.

        Raises:
          trio.ClosedResourceError: the listener is closed.
        """
        return await self._accept.receive()

    async def aclose(self) -> None:
        """Close the listener. Clients that nobody has accepted find their transports closed."""
        waiting = []
        while self._accept.statistics().current_buffer_used:
            waiting.append(self._accept.receive_nowait())
        self._accept.close()
        for transport in waiting:
            await trio.aclose_forcefully(transport)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def ws_server(handler: Handler, **options: Any) -> AsyncGenerator[MemoryListener, None]:
    """`serve_ws` in memory: yields the `MemoryListener` through which clients connect.

    When the block is left the server is cancelled, with its handlers. What ends the server, such as
    an exception of a handler without an ``on_error``, comes out of the block as out of `serve_ws`.

    Args:
      handler: as of `serve_ws`.

      The others: as of `serve_ws`, but for ``host``, ``port``, ``listeners`` and ``task_status``.
    """
    listener = MemoryListener()
    async with open_nursery() as nursery:
        await nursery.start(partial(serve_ws, handler, listeners=[listener], **options))
        yield listener
        nursery.cancel_scope.cancel()


@final
class FaultyStream(trio.abc.HalfCloseableStream):
    """A transport over another one, on which what the test wants goes wrong.

    Args:
      transport (trio.abc.HalfCloseableStream): one end of a transport. Faults strike what this end
          sends and receives.
    """

    def __init__(self, transport: trio.abc.HalfCloseableStream) -> None:
        check_half_closeable("transport", transport)
        self._transport = transport
        self._left = math.inf  # bytes that may still be sent
        self._passes = trio.Event()  # what is sent and received, while this is set
        self._passes.set()
        self._unsent = bytearray()
        self._unread: bytes | bytearray | None = None
        self._chunk: int | None = None
        self._delay = 0.0

    def __repr__(self) -> str:
        return f"<trio_wsstream.testing.FaultyStream over {self._transport!r}>"

    def cut_after(self, count: int) -> None:
        """Let the transport break, for both ends, after ``count`` more bytes that this end sends.

        The other end gets these bytes, and then the end of the transport. This end gets a
        `trio.BrokenResourceError` from the send that would have been longer, and ever after.
        """
        if type(count) is not int or count < 0:
            raise ValueError(f"count must be a number of bytes, at least 0, not {count!r}")
        self._left = count

    def silence(self) -> None:
        """Let nothing pass in either direction, as over a dead link: sends succeed all the same."""
        if self._passes.is_set():
            self._passes = trio.Event()

    async def resume(self) -> None:
        """End the silence: what was sent meanwhile arrives."""
        unsent, self._unsent = self._unsent, bytearray()
        self._passes.set()
        if unsent:
            await self.send_all(unsent)

    def slow_down(self, seconds: float, chunk: int = 1) -> None:
        """Let every ``chunk`` bytes take ``seconds``, in each direction."""
        self._delay = check_seconds("seconds", seconds)
        if type(chunk) is not int or chunk < 1:
            raise ValueError(f"chunk must be a number of bytes, at least 1, not {chunk!r}")
        self._chunk = chunk

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        step = self._chunk or size or 1
        for start in range(0, size, step):
            if self._chunk:
                await trio.sleep(self._delay)
            await self._send(bytes(data[start : start + step]))
        if not size:
            await self._send(b"")

    async def _send(self, data: bytes) -> None:
        if not self._passes.is_set():
            self._unsent += data
            await trio.lowlevel.checkpoint()
            return
        cut, self._left = self._left, self._left - len(data)
        if self._left >= 0:
            await self._transport.send_all(data)
            return
        if cut > 0:
            await self._transport.send_all(data[: int(cut)])
        await trio.aclose_forcefully(self._transport)
        raise self._broken()

    @property
    def _is_cut(self) -> bool:
        return self._left < 0

    def _broken(self) -> trio.BrokenResourceError:
        return trio.BrokenResourceError("a FaultyStream was cut")

    async def wait_send_all_might_not_block(self) -> None:
        if self._is_cut:
            raise self._broken()
        if self._passes.is_set():
            await self._transport.wait_send_all_might_not_block()
        else:
            await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if self._is_cut:
            raise self._broken()
        await self._passes.wait()
        await self._transport.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._chunk:
            await trio.sleep(self._delay)
            max_bytes = min(self._chunk, max_bytes or self._chunk)
        while True:
            await self._passes.wait()
            if self._unread is None:
                try:
                    self._unread = await self._transport.receive_some(max_bytes)
                except trio.ClosedResourceError:
                    if self._is_cut:
                        raise self._broken() from None
                    raise
            if self._passes.is_set():
                data, self._unread = self._unread, None
                return data

    async def aclose(self) -> None:
        self._passes.set()  # who waits finds a closed transport
        await self._transport.aclose()
