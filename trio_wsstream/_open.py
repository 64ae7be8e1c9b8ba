"""Streams as context managers: around a connection, and from a URL."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from ._config import StreamConfig
from ._stream import WsByteStream


@asynccontextmanager
async def wrap_websocket(
    connection: WebSocketConnection,
    config: StreamConfig = StreamConfig(),
) -> AsyncGenerator[WsByteStream, None]:
    """A `WsByteStream` over ``connection``, with a nursery of its own.

    Leaving the block closes the stream as leaving ``async with stream`` does. An exception
    comes out of it as it was, in no group.

    Raises:
      TakeoverError: as `WsByteStream`.
    """
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            async with WsByteStream(connection, nursery, config) as stream:
                yield stream
        except BaseException as exc:  # noqa: BLE001  # raised again, outside of the nursery
            error = exc
    if error is not None:
        raise error


@asynccontextmanager
async def open_ws_stream(
    url: str,
    ssl_context: ssl.SSLContext | None = None,
    *,
    subprotocols: Iterable[str] = (),
    extra_headers: Iterable[tuple[bytes, bytes]] = (),
    connect_timeout: float = 60.0,
    config: StreamConfig = StreamConfig(),
) -> AsyncGenerator[WsByteStream, None]:
    """Connect to ``url`` and yield a `WsByteStream`; left as `wrap_websocket`.

    Args:
      url (str): ``ws://`` or ``wss://``.
      ssl_context (ssl.SSLContext or None): for ``wss``; None: Python's default.
      subprotocols (iterable of str): to offer, best first (RFC 6455, 1.9).
      extra_headers (iterable of (bytes, bytes)): for the opening handshake.
      connect_timeout (float): seconds until a `trio_websocket.ConnectionTimeout`.
      config (StreamConfig): the settings of the stream.

    Raises:
      trio_websocket.HandshakeError: the connection could not be opened. `ConnectionRejected`
          and `ConnectionTimeout` are kinds of it.
      ValueError: ``url`` is no WebSocket URL.
    """
    async with (
        open_websocket_url(
            url,
            ssl_context,
            subprotocols=list(subprotocols),
            extra_headers=list(extra_headers),
            connect_timeout=connect_timeout,
        ) as connection,
        wrap_websocket(connection, config) as stream,
    ):
        yield stream
