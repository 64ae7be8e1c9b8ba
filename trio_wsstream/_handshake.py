"""The opening handshakes of RFC 6455, section 4, of a client and of a server, over any transport.

Theory of operation. `_http` receives heads and encodes what is sent. This module decides what a
head means: `_check_request` and `_check_response` are the rules of section 4, and each of them
names what is wrong.

A handshake starts no task, and no task of its own is left that reads the transport. The result is
an open `trio_websocket.WebSocketConnection`, which `_takeover.open_connection` makes. It also gets
the bytes that came after the peer's head, so the stream can take it over at once.

A server (`accept`) asks ``judge`` about each proper request. Whatever goes wrong there, the client
gets a response: a refusal that ``judge`` raises is sent, and for anything else, and for an answer
that cannot be sent, the client gets a 500 and the log the reason.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Final, NamedTuple

import h11
import trio
import trio_websocket
from trio_websocket import Endpoint, HandshakeError, WebSocketConnection, WebSocketRequest

from . import _takeover
from ._connecting import why_failed
from ._http import (
    FRAMING,
    TOKEN,
    ConnectionRejected,
    Head,
    Headers,
    HeadTooLong,
    NotHttp,
    Reader,
    check_headers,
    encode_head,
    encode_response,
    is_host,
    refusal,
)
from ._tls import adapt
from ._transport import Endpoints
from ._version import VERSION

Judge = Callable[["WsRequest"], Awaitable[tuple[str | None, Iterable[tuple[bytes, bytes]]]]]
HttpHook = Callable[
    [str, str, Headers], Awaitable[tuple[int, Iterable[tuple[bytes, bytes]], bytes] | None]
]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_RESERVED: Final = FRAMING | {b"upgrade", b"sec-websocket-accept", b"sec-websocket-extensions"}
_USER_AGENT: Final = b"trio-wsstream/" + VERSION.encode()

_logger = logging.getLogger(__name__)


def _accept_token(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def check_subprotocols(subprotocols: tuple[object, ...]) -> None:
    """Raise TypeError or ValueError for subprotocols that are no tokens (RFC 6455, 11.3.4)."""
    for name in subprotocols:
        if not isinstance(name, str):
            raise TypeError(f"a subprotocol must be a str, not {name!r}")
        if not name.isascii() or not TOKEN.fullmatch(name.encode()):
            raise ValueError(
                f"the subprotocol {name!r} must be a token: letters, digits, and any of "
                "!#$%&'*+-.^_`|~"
            )
    if len(set(subprotocols)) < len(subprotocols):
        raise ValueError(f"a subprotocol must be named once: {subprotocols!r}")


# The server's


class HttpAnswered(ConnectionRejected):
    """The request was no opening handshake, and ``http=`` has answered it."""


class WsRequest(WebSocketRequest):
    """A client's request for a WebSocket, which ``accept=`` of `WsListener` is called with.

    Attributes:
      state (types.SimpleNamespace): a namespace of this request alone. What ``accept=`` stores
          there, the handler finds in `WsByteStream.state`.

    The other attributes are those of `trio_websocket.WebSocketRequest`: ``headers``, ``path``,
    ``proposed_subprotocols``, ``local`` and ``remote``.
    """

    def __init__(self, transport: trio.abc.Stream, head: Head, trailing: bytes) -> None:
        # The base class would need a connection, which there is not yet, and an event of wsproto.
        self.state: SimpleNamespace = SimpleNamespace()
        self._headers = head.headers
        self._path = head.first[1].decode("ascii")
        self._proposed_subprotocols = tuple(
            each.decode("ascii") for each in head.elements(b"sec-websocket-protocol")
        )
        self._transport = transport
        (self._key,) = head.fields[b"sec-websocket-key"]
        self._trailing = trailing
        self._is_accepted = False
        self._accepted: WebSocketConnection | None = None
        self._rejection: trio_websocket.ConnectionRejected | None = None

    def __repr__(self) -> str:
        return f"<WsRequest for {self.path.partition('?')[0]!r}>"

    async def accept(
        self,
        *,
        subprotocol: str | None = None,
        extra_headers: Iterable[tuple[bytes, bytes]] | None = None,
    ) -> WebSocketConnection:
        """Accept the request, as `WsListener` does after ``accept=``. Return the open connection.

        Args:
          subprotocol (str or None): one of those that the client offers.
          extra_headers (iterable of (bytes, bytes) or None): for the response.

        Raises:
          ValueError, TypeError: the response cannot be sent. The request can still be answered.
          RuntimeError: the request has been answered before.
          trio.BrokenResourceError: the client has ended the connection.
        """
        return await self._accept(*self._acceptance(subprotocol, extra_headers or ()))

    async def reject(
        self,
        status_code: int,
        *,
        extra_headers: Iterable[tuple[bytes, bytes]] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Refuse the request. A `trio_websocket.ConnectionRejected` from ``accept=`` does the same.

        Args:
          status_code (int): the HTTP status, from 200 to 599.
          extra_headers (iterable of (bytes, bytes) or None): headers of the response.
          body (bytes or None): the body of the response.

        Raises:
          ValueError, TypeError: the response cannot be sent. The request can still be answered.
          RuntimeError: the request has been answered before.
        """
        self._check_unanswered()
        headers = tuple(check_headers(extra_headers or ()))
        rejection = ConnectionRejected(status_code, headers, body)
        response = _encode_refusal(rejection)
        self._rejection = rejection
        await _send_refusal(self._transport, response)

    def _acceptance(
        self, subprotocol: str | None, extra_headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[str | None, bytes]:
        """Return the subprotocol, however it was chosen, and the response (RFC 6455, 4.2.2)."""
        self._check_unanswered()
        headers = check_headers(extra_headers)
        for name, _ in headers:
            if name.lower() in _RESERVED:
                raise ValueError(f"the header {name.decode()} is set by the handshake itself")
        chosen = [value for name, value in headers if name.lower() == b"sec-websocket-protocol"]
        if len(chosen) > 1:
            raise ValueError("headers must not have several lines of Sec-WebSocket-Protocol")
        if chosen:
            subprotocol = chosen[0].decode("latin-1")
        elif subprotocol is not None:
            headers.append((b"Sec-WebSocket-Protocol", str(subprotocol).encode()))
        if subprotocol is not None and subprotocol not in self.proposed_subprotocols:
            raise ValueError(f"the client does not offer the subprotocol {subprotocol!r}")
        upgrade = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", _accept_token(self._key)),
        ]
        return subprotocol, encode_head(b"HTTP/1.1 101 Switching Protocols", upgrade + headers)

    async def _accept(self, subprotocol: str | None, response: bytes) -> WebSocketConnection:
        self._is_accepted = True
        await adapt(self._transport).write((response,))
        connection = self._accepted = _takeover.open_connection(
            self._transport,
            client=False,
            path=self.path,
            subprotocol=subprotocol,
            handshake_headers=tuple(self.headers),
            received=self._trailing,
        )
        return connection

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the request. Their names are in lower case."""
        return self._headers

    @property
    def path(self) -> str:
        """The target of the request: the path and the query."""
        return self._path

    @property
    def proposed_subprotocols(self) -> tuple[str, ...]:
        """The subprotocols that the client offers, best first."""
        return self._proposed_subprotocols

    @property
    def local(self) -> Endpoint | str:
        """The address of this side, as of `WsByteStream`."""
        return Endpoints(self._transport, client=False).local

    @property
    def remote(self) -> Endpoint | str:
        """The address of the client, as of `WsByteStream`."""
        return Endpoints(self._transport, client=False).remote

    @property
    def _is_answered(self) -> bool:
        return self._is_accepted or self._rejection is not None

    def _check_unanswered(self) -> None:
        if self._is_answered:
            raise RuntimeError("this request has been answered before")


async def accept(
    transport: trio.abc.Stream,
    judge: Judge,
    *,
    max_header_size: int,
    http: HttpHook | None = None,
) -> tuple[WebSocketConnection, WsRequest]:
    """Do a server's opening handshake (RFC 6455, 4.2) over ``transport``.

    Args:
      judge: an async function that returns the subprotocol and the headers of the response. It
          refuses the request by a `trio_websocket.ConnectionRejected`, which may be in an exception
          group. It may also call ``accept`` or ``reject`` of the request itself. Any other
          exception, and a result that cannot be sent, are logged, and the client gets a 500.
      max_header_size (int): how many bytes the request may have. A longer one is refused with 431
          (RFC 6585, 5).
      http: an async function that answers requests that are no opening handshakes. It is called
          with method, path and headers. It returns status, headers and body, or None to refuse.

    Returns:
      The open connection, and the request.

    Raises:
      trio_websocket.ConnectionRejected: the client was refused. It is a `HttpAnswered` if ``http``
          has answered the request.
      trio_websocket.HandshakeError: the client ended the connection.
      trio.ClosedResourceError: this side closed the transport meanwhile.
    """
    reader = Reader(adapt(transport), h11.SERVER, max_header_size)
    method = b""
    try:
        try:
            head = await _receive_request(reader)
            method = head.first[0]
            if not _is_attempt(head):
                raise await _answer_http(head, http)
            _check_request(head)
            request = _request_of(transport, head, reader.trailing)
        except trio_websocket.ConnectionRejected as rejection:
            check_alpn(transport)
            told = await _refuse(transport, rejection, omits_body=method == b"HEAD")
            raise told from rejection.__cause__
        verdict = await _ask(judge, request)
        if request._rejection is not None:
            raise request._rejection
        if isinstance(verdict, trio_websocket.ConnectionRejected):
            raise await _refuse(transport, verdict)
        if verdict is not None:
            await request._accept(*verdict)
    except trio.BrokenResourceError as error:
        raise HandshakeError("the client broke the connection in the opening handshake") from error
    if request._accepted is None:  # The hook has answered itself, and the client was gone.
        raise HandshakeError("the client broke the connection in the opening handshake")
    return request._accepted, request


async def _receive_request(reader: Reader) -> Head:
    try:
        return await reader.receive_request()
    except NotHttp:
        raise refusal(400, "This is no proper request.") from None
    except HeadTooLong:
        raise refusal(431, "The headers of this request are too long.") from None


# The protocols of which a warning was logged: clients must not be able to fill the log.
_warned_of: Final[set[str]] = set()


def check_alpn(transport: trio.abc.Stream) -> None:
    """Log a warning if TLS has agreed on a protocol other than HTTP/1.1.

    The client can only choose what the server's own context offers.
    """
    if isinstance(transport, trio.SSLStream):
        protocol = transport.selected_alpn_protocol()
        if protocol not in (None, "http/1.1") and protocol not in _warned_of:
            _warned_of.add(protocol)
            _logger.warning(
                "TLS has agreed on %r with a client, but WebSockets need HTTP/1.1: "
                "take it out of set_alpn_protocols() of the server's ssl_context",
                protocol,
            )


def _is_attempt(head: Head) -> bool:
    """Return whether a request is meant to be an opening handshake, valid or not."""
    return b"sec-websocket-key" in head.fields or head.has(b"upgrade", b"websocket")


def _check_request(head: Head) -> None:
    """Raise `ConnectionRejected` for an opening handshake that is not valid (RFC 6455, 4.2.1)."""
    fields = head.fields
    versions = fields.get(b"sec-websocket-version", [])
    keys = fields.get(b"sec-websocket-key", [])
    if head.first[0] != b"GET":
        why = "The method must be GET."
    elif head.http_version != b"1.1":
        why = "The version of HTTP must be 1.1."
    elif not is_host(fields[b"host"][0]):
        why = "The header Host is no host."
    elif not head.has(b"upgrade", b"websocket"):
        why = "The header Upgrade: websocket is missing. Does a proxy take it out?"
    elif not head.has(b"connection", b"upgrade"):
        why = "The header Connection: Upgrade is missing. Does a proxy take it out?"
    elif len(keys) != 1 or not _is_key(keys[0]):
        why = "There must be one Sec-WebSocket-Key, of 16 bytes in base64."
    elif len(versions) == 1 and versions[0] != b"13":
        raise refusal(
            426,
            "The version of WebSockets must be 13.",
            [(b"Sec-WebSocket-Version", b"13"), (b"Upgrade", b"websocket")],
        )
    elif len(versions) != 1:
        why = "There must be one Sec-WebSocket-Version."
    # A proxy in front of this server might take frames for a body, or a body for frames.
    elif b"transfer-encoding" in fields or fields.get(b"content-length", [b"0"]) != [b"0"]:
        why = "An opening handshake has no body."
    else:
        return
    raise refusal(400, why)


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def _request_of(transport: trio.abc.Stream, head: Head, trailing: bytes) -> WsRequest:
    try:
        return WsRequest(transport, head, trailing)
    except UnicodeDecodeError:
        raise refusal(400, "A subprotocol must be ASCII.") from None


async def _answer_http(head: Head, http: HttpHook | None) -> ConnectionRejected:
    """Return the answer to a request that is no opening handshake."""
    if http is not None:
        method, path = (each.decode("ascii") for each in head.first)
        try:
            answer = await http(method, path, head.headers)
            if answer is not None:
                status, headers, body = answer
                return HttpAnswered(status, tuple(check_headers(headers)), body)
        except Exception:
            _logger.exception("http= of a WsListener failed")
            return refusal(500, "The server has failed.")
    if head.first[0] not in (b"GET", b"HEAD"):
        return refusal(400, "This server speaks WebSocket only.")
    upgrade = [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Version", b"13")]
    return refusal(426, "This server speaks WebSocket only: connect with a WebSocket URL.", upgrade)


async def _ask(
    judge: Judge, request: WsRequest
) -> tuple[str | None, bytes] | trio_websocket.ConnectionRejected | None:
    """Return what `WsRequest._acceptance` does, or a refusal, or None if there was an answer.

    Raises:
      HandshakeError: ``judge`` has failed after it had answered the client itself.
    """
    try:
        subprotocol, headers = await judge(request)
        return None if request._is_answered else request._acceptance(subprotocol, headers)
    except Exception as error:
        rejection, others = _rejection_in(error)
        if others is not None:
            _logger.error("accept= of a WsListener failed", exc_info=others)
            rejection = rejection or refusal(500, "The server has failed.")
        if request._is_answered:
            raise HandshakeError("accept= has failed after it had answered") from error
        return rejection


def _rejection_in(
    error: Exception,
) -> tuple[trio_websocket.ConnectionRejected | None, Exception | None]:
    """Return the refusal that a hook, or its own nursery, has raised, and what else it raised."""
    if isinstance(error, trio_websocket.ConnectionRejected):
        return error, None
    if not isinstance(error, ExceptionGroup):
        return None, error
    rejections, others = error.split(trio_websocket.ConnectionRejected)
    first: BaseException | None = rejections
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, trio_websocket.ConnectionRejected | None)
    return first, others


async def _refuse(
    transport: trio.abc.Stream,
    rejection: trio_websocket.ConnectionRejected,
    *,
    omits_body: bool = False,
) -> trio_websocket.ConnectionRejected:
    """Send a refusal to the client, if it is still there, and return what was sent."""
    try:
        response = _encode_refusal(rejection, omits_body=omits_body)
    except (TypeError, ValueError):
        _logger.exception("a refusal by accept= or http= of a WsListener cannot be sent")
        rejection = refusal(500, "The server has failed.")
        response = _encode_refusal(rejection, omits_body=omits_body)
    await _send_refusal(transport, response)
    return rejection


def _encode_refusal(
    rejection: trio_websocket.ConnectionRejected, *, omits_body: bool = False
) -> bytes:
    return encode_response(
        rejection.status_code, rejection.headers, rejection.body, omits_body=omits_body
    )


async def _send_refusal(transport: trio.abc.Stream, response: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # The client has hung up.
        await adapt(transport).write((response,))


# The client's


_MAX_RESPONSE: Final = 65536  # bytes of the head of a response
_MAX_BODY: Final = 65536  # bytes of the body of a refusal
_BODY_TIMEOUT: Final = 2.0  # seconds after the head, for the body of a refusal

_INSTEAD: Final = {
    b"sec-websocket-protocol": "use subprotocols=",
    b"sec-websocket-extensions": "a stream has no extensions",
    b"content-length": "an opening handshake has no body",
    b"transfer-encoding": "an opening handshake has no body",
}


class Request(NamedTuple):
    """A client's opening handshake (RFC 6455, 4.1), ready to be sent."""

    path: str
    subprotocols: tuple[str, ...]
    key: bytes
    head: bytes


def make_request(
    host: str,
    path: str,
    subprotocols: Iterable[str] = (),
    extra_headers: Iterable[tuple[bytes, bytes]] = (),
) -> Request:
    """Return a client's opening handshake.

    Args:
      host (str): the Host header, unless ``extra_headers`` have one.
      path (str): path and query.
      subprotocols (iterable of str): the subprotocols to offer, best first.
      extra_headers (iterable of (bytes, bytes)): more headers.

    Raises:
      ValueError: the request cannot be sent. The text names no value of a header.
    """
    try:
        offered = tuple(subprotocols)
        check_subprotocols(offered)
        extra = check_headers(extra_headers)
        _check_extra(extra)
    except (TypeError, ValueError) as error:
        raise ValueError(f"subprotocols or extra_headers cannot be sent: {error}") from error
    key = base64.b64encode(os.urandom(16))
    names = {name.lower() for name, _ in extra}
    headers = [] if b"host" in names else [(b"Host", host.encode("ascii"))]
    headers += [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
    headers += [(b"Sec-WebSocket-Key", key), (b"Sec-WebSocket-Version", b"13")]
    if offered:
        headers.append((b"Sec-WebSocket-Protocol", ", ".join(offered).encode("ascii")))
    if b"user-agent" not in names:
        headers.append((b"User-Agent", _USER_AGENT))
    head = encode_head(b"GET " + path.encode("ascii") + b" HTTP/1.1", headers + extra)
    return Request(path, offered, key, head)


def _check_extra(headers: Headers) -> None:
    hosts = [value for name, value in headers if name.lower() == b"host"]
    if len(hosts) > 1:
        raise ValueError("Host must be among extra_headers only once")
    if hosts and not is_host(hosts[0]):
        raise ValueError("Host must be a host, or a host and a port (host:port)")
    for raw_name, _ in headers:
        name = raw_name.lower()
        if name in _RESERVED or name.startswith(b"sec-websocket-"):
            instead = _INSTEAD.get(name, "the handshake sets it")
            raise ValueError(f"{raw_name.decode()} must not be among extra_headers: {instead}")


async def connect(transport: trio.abc.Stream, request: Request) -> WebSocketConnection:
    """Do a client's opening handshake (RFC 6455, 4.1) over ``transport``.

    Raises:
      trio_websocket.ConnectionRejected: the server refused. It has as much of the body as came
          within two seconds after the head, and at most 64 KiB.
      trio_websocket.HandshakeError: the handshake failed. The caller has to close the transport.
    """
    wire = adapt(transport)
    reader = Reader(wire, h11.CLIENT, _MAX_RESPONSE)
    try:
        await wire.write((request.head,))
        response = await reader.receive_response()
    except (NotHttp, HeadTooLong) as error:
        raise HandshakeError(_why_no_response(reader, error)) from None
    except HandshakeError:
        if reader.start or isinstance(transport, trio.SSLStream):
            raise
        # Trio's servers, and this library's, do this when they expect TLS.
        raise HandshakeError(
            "the server ended the connection without a response; if it expects TLS, use wss://"
        ) from None
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        why = why_failed(error)
        raise HandshakeError(f"the transport broke in the opening handshake: {why}") from error
    status = int(response.first[0])
    if status != 101:
        now = trio.current_time()
        # The caller's own timeout must not be first, because it would hide the status.
        deadline = min(now + _BODY_TIMEOUT, trio.current_effective_deadline() - 0.05)
        body = await reader.receive_body(_MAX_BODY, deadline)
        phrase = response.first[1].decode("latin-1")
        raise ConnectionRejected(status, tuple(response.headers), body, phrase)
    subprotocol = _check_response(response, request)
    return _takeover.open_connection(
        transport,
        client=True,
        path=request.path,
        subprotocol=subprotocol,
        handshake_headers=tuple(response.headers),
        received=reader.trailing,
    )


def _why_no_response(reader: Reader, error: Exception) -> str:
    start = reader.start
    if isinstance(error, HeadTooLong):
        return f"the head of the server's response is longer than {_MAX_RESPONSE} bytes"
    if start[:1] in (b"\x15", b"\x16") and start[1:2] == b"\x03":
        return "the server answered with TLS: use wss://"
    if not start.startswith(b"HTTP/"):
        return f"the server does not speak HTTP/1.1: its answer begins {start[:16]!r}"
    status = re.match(rb"HTTP/\S+ ([0-9]{3})\b", start)
    which = f" with status {status[1].decode()}" if status else ""
    return f"the server's response{which} is not valid HTTP/1.1: {error}"


def _check_response(response: Head, request: Request) -> str | None:
    """Return the subprotocol of a 101. Raise HandshakeError if it is not valid (RFC 6455, 4.1)."""
    chosen = response.elements(b"sec-websocket-protocol")
    if response.http_version != b"1.1":
        why = "it speaks HTTP/1.0, which has no upgrade"
    elif not response.has(b"upgrade", b"websocket"):
        why = "the header Upgrade: websocket is missing"
    elif not response.has(b"connection", b"upgrade"):
        why = "the header Connection: Upgrade is missing"
    elif response.fields.get(b"sec-websocket-accept") != [_accept_token(request.key)]:
        why = "Sec-WebSocket-Accept does not belong to our key"
    elif response.elements(b"sec-websocket-extensions"):
        why = "it has chosen an extension, and none was offered"
    elif len(chosen) > 1 or (chosen and chosen[0].decode("latin-1") not in request.subprotocols):
        why = "it has chosen a subprotocol that was not offered"
    else:
        return chosen[0].decode("ascii") if chosen else None
    raise HandshakeError(f"the server's 101 is no answer to an opening handshake: {why}")
