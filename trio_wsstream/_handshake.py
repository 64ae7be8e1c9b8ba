"""The opening handshakes (RFC 6455, section 4), client and server, over any transport.

They start no task, and leave nobody reading: what they open can be taken over at once.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import trio
import wsproto
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    WebSocketRequest,
)
from wsproto.events import AcceptConnection, RejectConnection, RejectData
from wsproto.utilities import RemoteProtocolError

_MAX_BODY: Final = 65536  # bytes, of a response that refuses


async def connect(
    transport: trio.abc.Stream,
    host: str,
    path: str,
    subprotocols: list[str],
    extra_headers: list[tuple[bytes, bytes]],
) -> WebSocketConnection:
    """A client's opening handshake (RFC 6455, 4.1) over ``transport``.

    As trio-websocket's ``wrap_client_stream``, which waits for ever if the server hangs up in
    the handshake, and keeps all of an endless refusal. It starts no task: afterwards nobody reads
    from the transport.

    Raises:
      trio_websocket.ConnectionRejected: the server refused; with the first 64 KiB of the body.
      trio_websocket.HandshakeError: if the handshake failed. The transport is the caller's.
      ValueError: if the request cannot be encoded.
    """
    connection = WebSocketConnection(
        transport,
        wsproto.WSConnection(wsproto.ConnectionType.CLIENT),
        host=host,
        path=path,
        client_subprotocols=subprotocols,
        client_extra_headers=extra_headers,
    )
    connection._reader_running = False
    assert connection._initial_request is not None
    try:
        request = connection._wsproto.send(connection._initial_request)
    except Exception as error:
        raise ValueError(f"subprotocols or extra_headers cannot be sent: {error}") from error
    try:
        await transport.send_all(request)
        event = await _receive_response(connection)
        if isinstance(event, RejectConnection):
            body = await _receive_body(connection)
            raise ConnectionRejected(event.status_code, tuple(event.headers), body)
        await connection._handle_accept_connection_event(event)
    except HandshakeError:
        raise
    except Exception as error:
        raise HandshakeError(f"the opening handshake failed: {error!r}") from error
    return connection


async def _receive_response(connection: WebSocketConnection) -> AcceptConnection | RejectConnection:
    while True:
        event = await _receive_event(connection)
        assert isinstance(event, AcceptConnection | RejectConnection)
        if isinstance(event, AcceptConnection) or event.status_code >= 200:
            break  # else it is an interim response (RFC 9110, 15.2)
    if isinstance(event, AcceptConnection) and _http_version(connection) == b"1.0":
        raise HandshakeError("the server speaks HTTP/1.0, which has no upgrade")
    return event


async def _receive_body(connection: WebSocketConnection) -> bytes:
    """What comes of the body of a refusal, and no more than `_MAX_BODY`."""
    body = b""
    with contextlib.suppress(HandshakeError, RemoteProtocolError, trio.BrokenResourceError):
        is_finished = False
        while not is_finished and len(body) < _MAX_BODY:
            event = await _receive_event(connection)
            assert isinstance(event, RejectData)
            body += event.data
            is_finished = event.body_finished
    return body[:_MAX_BODY]


Judge = Callable[[WebSocketRequest], Awaitable[tuple[str | None, list[tuple[bytes, bytes]]]]]


async def accept(
    transport: trio.abc.Stream, judge: Judge
) -> tuple[WebSocketConnection, WebSocketRequest]:
    """A server's opening handshake (RFC 6455, 4.2) over ``transport``.

    As trio-websocket's ``wrap_server_stream``, which waits for ever if the client hangs up in
    the handshake or is refused. It starts no task.

    Args:
      judge: gives the subprotocol and headers to accept a request with, or raises
          `ConnectionRejected`. It may also use the request's own ``accept`` and ``reject``.

    Raises:
      trio_websocket.ConnectionRejected: the client was refused, and told if it was still there.
      trio_websocket.HandshakeError: it went away.
      trio.BrokenResourceError, trio.ClosedResourceError: as from the transport.
    """
    connection = WebSocketConnection(transport, wsproto.WSConnection(wsproto.ConnectionType.SERVER))
    connection._reader_running = False
    try:
        request = await _receive_request(connection)
        subprotocol, extra_headers = await judge(request)
        if connection.closed:
            raise ConnectionRejected(0, (), None)
        if not connection._open_handshake.is_set():
            await request.accept(subprotocol=subprotocol, extra_headers=extra_headers)
    except ConnectionRejected as rejection:
        if not connection.closed:
            headers = [*rejection.headers, (b"Connection", b"close")]
            with contextlib.suppress(ConnectionClosed):  # it has hung up
                await connection._reject(rejection.status_code, headers, rejection.body or b"")
        raise
    except ConnectionClosed as error:
        raise HandshakeError("the client ended the connection in the opening handshake") from error
    return connection, request


async def _receive_event(connection: WebSocketConnection) -> wsproto.events.Event:
    while True:
        for event in connection._wsproto.events():
            return event
        data = await connection._stream.receive_some(4096)
        if not data:
            raise HandshakeError("the peer ended the connection in the opening handshake")
        connection._wsproto.receive_data(bytes(data))


def _http_version(connection: WebSocketConnection) -> bytes | None:
    """The peer's."""
    version: bytes | None = connection._wsproto.handshake._h11_connection.their_http_version
    return version


async def _receive_request(connection: WebSocketConnection) -> WebSocketRequest:
    """Raises ConnectionRejected for what is no proper request (RFC 6455, 4.2.1)."""
    try:
        event = await _receive_event(connection)
        assert isinstance(event, wsproto.events.Request)
        headers = event.extra_headers
        headers.insert(0, (b"host", event.host.encode("idna")))  # which wsproto takes out
    except RemoteProtocolError as error:
        hint = error.event_hint
        assert isinstance(hint, RejectConnection)
        answer = list(hint.headers)
        if hint.status_code == 426:  # RFC 9110, 7.8: an Upgrade is named in Connection, too
            answer += [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")]
        raise ConnectionRejected(hint.status_code, tuple(answer), None) from error
    except UnicodeError as error:  # in a header that wsproto decodes
        raise ConnectionRejected(400, (), None) from error
    # What wsproto leaves unchecked:
    names = [name for name, _ in headers]
    values = dict(headers)
    try:
        key = base64.b64decode(values[b"sec-websocket-key"], validate=True)
    except ValueError:
        key = b""
    if (
        len(key) != 16
        or names.count(b"sec-websocket-key") > 1
        or names.count(b"sec-websocket-version") > 1
        or _http_version(connection) == b"1.0"
        # A body would be taken for frames, or frames for a body, by a proxy before us.
        or b"transfer-encoding" in names
        or values.get(b"content-length", b"0") != b"0"
    ):
        raise ConnectionRejected(400, (), None)
    return WebSocketRequest(connection, event)
