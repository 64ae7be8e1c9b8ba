"""Opening handshakes of a peer that uses no WebSocket library."""

from __future__ import annotations

import re
from typing import Any, Final

import trio
import trio_websocket
import wsproto.utilities
from trio_websocket import WebSocketConnection

CLIENT_HANDSHAKE: Final = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def request(
    *headers: bytes, leave_out: bytes = b"Nothing", line: bytes = b"GET / HTTP/1.1"
) -> bytes:
    """Return a client's opening handshake.

    Args:
      headers: header lines to add.
      leave_out: the beginning of the header line to leave out.
      line: the request line.
    """
    _, *rest = CLIENT_HANDSHAKE.strip().split(b"\r\n")
    kept = [header for header in rest if not header.startswith(leave_out)]
    return b"\r\n".join([line, *kept, *headers, b"", b""])


def server_handshake(request: bytes) -> bytes:
    key = re.split(rb"(?i)sec-websocket-key: ", request)[1].split(b"\r\n")[0]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + wsproto.utilities.generate_accept_token(key) + b"\r\n\r\n"
    )


async def receive_head(transport: Any) -> bytes:
    """Receive an HTTP head, and no byte after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await transport.receive_some(1)
    return head


async def handshake(
    nursery: trio.Nursery, ours: Any, theirs: Any, *, client: bool, **options: Any
) -> WebSocketConnection:
    """Do the opening handshake between trio-websocket on ``ours`` and a bare transport, ``theirs``.

    Returns:
      The connection on ``ours``.
    """
    result: list[WebSocketConnection] = []

    async def open_ours() -> None:
        if client:
            result.append(
                await trio_websocket.wrap_client_stream(nursery, ours, "localhost", "/", **options)
            )
        else:
            request = await trio_websocket.wrap_server_stream(nursery, ours, **options)
            result.append(await request.accept())

    async with trio.open_nursery() as opening:
        opening.start_soon(open_ours)
        if client:
            await theirs.send_all(server_handshake(await receive_head(theirs)))
        else:
            await theirs.send_all(CLIENT_HANDSHAKE)
            await receive_head(theirs)
    return result[0]
