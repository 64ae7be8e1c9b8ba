"""Connected pairs: both ends of a WebSocket. The client comes first."""

from __future__ import annotations

from typing import Any

import trio
import trio_websocket
from trio_websocket import WebSocketConnection

from trio_wsstream import StreamConfig, WsByteStream

from .transports import TRANSPORTS

SHORT = StreamConfig(close_timeout=0.2)


async def connection_pair(
    nursery: trio.Nursery, transport: str | tuple[Any, Any] = "memory", **options: Any
) -> tuple[WebSocketConnection, WebSocketConnection]:
    """Return both ends of a WebSocket as connections of trio-websocket, client first.

    Args:
      transport: the name of one of `TRANSPORTS`, or both ends of a transport.
      options: arguments of trio-websocket.
    """
    client, server = await TRANSPORTS[transport]() if isinstance(transport, str) else transport
    ends: dict[str, WebSocketConnection] = {}

    async def connect() -> None:
        ends["client"] = await trio_websocket.wrap_client_stream(
            nursery, client, "localhost", "/", **options
        )

    async def accept() -> None:
        request = await trio_websocket.wrap_server_stream(nursery, server, **options)
        ends["server"] = await request.accept()

    async with trio.open_nursery() as opening:
        opening.start_soon(connect)
        opening.start_soon(accept)
    return ends["client"], ends["server"]


async def stream_pair(
    nursery: trio.Nursery,
    transport: str = "memory",
    config: StreamConfig = StreamConfig(),
    server_config: StreamConfig | None = None,
) -> tuple[WsByteStream, WsByteStream]:
    """Return both ends of a WebSocket as streams, client first."""
    client, server = await connection_pair(nursery, transport)
    return (
        WsByteStream(client, nursery, config),
        WsByteStream(server, nursery, server_config or config),
    )
