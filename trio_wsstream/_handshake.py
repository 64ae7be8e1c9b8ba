"""The opening handshakes (RFC 6455, section 4), client and server, over any transport.

Theory of operation. h11 parses what the peer sends. `_Reader` gives h11 the bytes, and counts the
bytes of a head itself, because h11's own limit depends on how the bytes happen to be cut. Parsing
with h11 takes a large part of the time that connecting needs. So a head that arrives in one piece,
and that is as plain as almost all heads are, is read without h11. Any other head is left to h11.

This module checks what section 4 demands of the headers. A header may come in several lines, which
count as one list (RFC 9110, 5.3). What this side sends is short, so it is put together here, after
every part that a caller gave was checked: no part may contain the end of a line.

The handshakes start no task, and after them no task reads the transport. So the connection can be
taken over at once. `_takeover.open_connection` makes an open `trio_websocket.WebSocketConnection`
that has the bytes that came after the peer's head.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import h11
import trio
import trio_websocket
import wsproto.events
from trio_websocket import HandshakeError, WebSocketConnection, WebSocketRequest

from . import _takeover
from ._version import VERSION

Headers = list[tuple[bytes, bytes]]
Judge = Callable[["WsRequest"], Awaitable[tuple[str | None, Iterable[tuple[bytes, bytes]]]]]
HttpHook = Callable[
    [str, str, Headers], Awaitable[tuple[int, Iterable[tuple[bytes, bytes]], bytes] | None]
]

_READ_SIZE: Final = 4096  # bytes
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3

_TOKEN: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(rb"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?|")  # 5.5
_FIELD: Final = re.compile(rb"(%b):[ \t]*(%b)[ \t]*" % (_TOKEN.pattern, _VALUE.pattern))  # 5
_REQUEST_LINE: Final = re.compile(rb"(GET) ([!-~]+) HTTP/1\.1")  # RFC 9112, 3
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 (101)(?: ([\t -~\x80-\xff]*))?")  # 4
_LABEL: Final = rb"[-0-9A-Za-z_~!$&'()*+,;=%]{1,63}"
_HOST: Final = re.compile(  # 7.2; no name of a host has longer labels (RFC 1035, 2.3.4)
    rb"(?:\[[-0-9A-Za-z:.%_~]+\]|LABEL(?:\.LABEL)*\.?|)(?::[0-9]*)?".replace(b"LABEL", _LABEL)
)

# The headers that frame an HTTP message (RFC 9112, 6). Only this module may set them.
_FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_RESERVED: Final = _FRAMING | {b"upgrade", b"sec-websocket-accept", b"sec-websocket-extensions"}

_USER_AGENT: Final = b"trio-wsstream/" + VERSION.encode()

_logger = logging.getLogger(__name__)


# What a refusal says


class ConnectionRejected(trio_websocket.ConnectionRejected):
    """An opening handshake was refused. The text tells the status and the reason.

    Attributes:
      status_code (int): the status of the HTTP response.
      headers (tuple): the headers of the response.
      body (bytes or None): the body of the response.
      reason_phrase (str): the reason phrase of the response, or "" if it has none.
    """

    def __init__(
        self,
        status_code: int,
        headers: tuple[tuple[bytes, bytes], ...],
        body: bytes | None,
        reason_phrase: str = "",
    ) -> None:
        super().__init__(status_code, headers, body)
        self.reason_phrase = reason_phrase

    def __str__(self) -> str:
        return reason_of(self)


class HttpAnswered(ConnectionRejected):
    """The request was no opening handshake, and the ``http=`` hook has answered it."""


def refusal(
    status: int, reason: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> ConnectionRejected:
    """Return the exception to raise in order to refuse a request.

    Args:
      status (int): the HTTP status.
      reason (str): a sentence for people. It becomes the body of the response.
      headers (iterable of (bytes, bytes)): headers for the response.
    """
    content_type = (b"Content-Type", b"text/plain; charset=utf-8")
    return ConnectionRejected(status, (*headers, content_type), reason.encode() + b"\n")


def reason_of(rejection: trio_websocket.ConnectionRejected) -> str:
    """Return a refusal in words: status and reason phrase, and the Location or a text body."""
    status = rejection.status_code
    words = f"{status} {getattr(rejection, 'reason_phrase', '') or _phrase(status)}".strip()
    fields = [(name.lower(), value) for name, value in rejection.headers]
    for name, value in fields:
        if name == b"location":
            # The query may contain secrets, and so may the user and password before the host.
            place = re.sub(r"[?#].*", "", value.decode("latin-1"))
            return f"{words}, Location: {re.sub(r'//[^/]*@', '//', place)}"
    if any(name == b"content-type" and value.startswith(b"text/plain") for name, value in fields):
        text = (rejection.body or b"")[:200].decode("utf-8", "replace").strip()
        if text and text.isprintable():
            return f"{words}: {text}"
    return words


def _phrase(status: int) -> str:
    from http import HTTPStatus  # Imported here, because only refusals need it.

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


# Reading


class _Head(NamedTuple):
    """The head of a request or a response, as h11 parses it. Names are in lower case."""

    first: tuple[bytes, ...]
    """Method and target; or the status and its reason phrase."""
    http_version: bytes
    headers: Headers
    fields: dict[bytes, list[bytes]]
    """The same: the values of each name."""

    def elements(self, name: bytes) -> list[bytes]:
        """Return the elements of a list that is in one or more lines (RFC 9110, 5.6.1)."""
        lines = self.fields.get(name, ())
        elements = [each.strip(b" \t") for line in lines for each in line.split(b",")]
        return [each for each in elements if each]

    def has(self, name: bytes, wanted: bytes) -> bool:
        """Return whether a list has this element, in upper or lower case."""
        return any(each.lower() == wanted for each in self.elements(name))


def _head(first: tuple[bytes, ...], http_version: bytes, headers: Headers) -> _Head:
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value)
    return _Head(first, http_version, headers, fields)


def _usual_head(first_line: re.Pattern[bytes], data: bytes) -> _Head | None:
    """Parse a plain head exactly as h11 would. If the head is not plain, return None.

    h11 needs 30 us or more for a head, which is a large part of the time that connecting takes.
    """
    first, *lines = data.split(b"\r\n")
    match = first_line.fullmatch(first)
    if match is None:
        return None
    headers = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        headers.append((field[1].lower(), field[2]))
    head = _head(match.groups(), b"1.1", headers)
    if b"content-length" in head.fields or b"transfer-encoding" in head.fields:
        return None
    return head


class _Reader:
    """Reads HTTP from a transport.

    Args:
      transport (trio.abc.Stream): the transport.
      role: the role of this side, ``h11.CLIENT`` or ``h11.SERVER``.
      max_header_size (int): bytes that a head may have, however it is cut.
    """

    def __init__(self, transport: trio.abc.Stream, role: Any, max_header_size: int) -> None:
        self._transport = transport
        self._role = role
        self._max_header_size = max_header_size
        self._received = 0
        self.start = b""  # the first bytes that were received
        self.glued = b""  # bytes that were received after the head
        self._http: h11.Connection | None = None

    async def receive_usual_head(self, first_line: re.Pattern[bytes]) -> _Head | None:
        """Return the first head if it is plain and in one piece. If None, use `receive_event`."""
        self.start = data = await self._receive()
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= self._max_header_size - 4:
            return None
        self.glued = data[end + 4 :]
        return _usual_head(first_line, data[:end])

    async def receive_event(self) -> Any:
        """Return the next event of h11: a head, data of a body, or the end of a message.

        Raises:
          h11.RemoteProtocolError: the peer does not send valid HTTP.
          _HeadTooLong: more than ``max_header_size`` bytes have come, and they are no event yet.
          HandshakeError: the peer has ended the connection.
        """
        http = self._http or self._begin()
        while True:
            event = http.next_event()
            if event is not h11.NEED_DATA:
                self.glued = http.trailing_data[0]
                if self._received - len(self.glued) > self._max_header_size:
                    raise _HeadTooLong
                return event
            if self._received > self._max_header_size:
                raise _HeadTooLong
            http.receive_data(await self._receive())

    def _begin(self) -> h11.Connection:
        # The limit is counted here. h11 would apply it to what is not parsed after each read.
        self._http = http = h11.Connection(self._role, max_incomplete_event_size=sys.maxsize)
        if self._role is h11.CLIENT:
            http.send(_ASKED)
            http.send(h11.EndOfMessage())
        http.receive_data(self.start)
        return http

    async def _receive(self) -> bytes:
        data = await self._transport.receive_some(_READ_SIZE)
        if not data:
            raise HandshakeError("the peer ended the connection in the opening handshake")
        self._received += len(data)
        return bytes(data)

    def limit_more(self, size: int) -> None:
        """Allow ``size`` more bytes from now on."""
        self._max_header_size = self._received + size


class _HeadTooLong(Exception):
    pass


# What h11 must know of our request in order to read the response: that it asks for an upgrade.
_ASKED: Final = h11.Request(
    method="GET",
    target="/",
    headers=[("Host", "a"), ("Upgrade", "websocket"), ("Connection", "Upgrade")],
)


def _accept_token(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


# Writing


def check_headers(headers: object) -> Headers:
    """Return ``headers`` as a list.

    Raises:
      TypeError, ValueError: the headers cannot be sent. The text shows no value of a header.
    """
    if isinstance(headers, str | bytes | dict) or not isinstance(headers, Iterable):
        raise TypeError(
            "headers must be several tuples of (name, value), both bytes, "
            f"not a {type(headers).__name__}"
        )
    checked = []
    for pair in headers:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"a header must be a tuple (name, value), not a {type(pair).__name__}")
        name, value = pair
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError(f"the name and the value of a header must be bytes: {name!r}")
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"this is no name of a header: {name!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name!r} has characters it must not have")
        checked.append((name, value))
    return checked


def _lines(first: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([first, *[name + b": " + value for name, value in headers], b"", b""])


def _response(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes | None,
    has_body: bool = True,
) -> bytes:
    """Return a whole response, which says that the connection will be closed.

    Raises:
      TypeError, ValueError: the response cannot be sent.
    """
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"a response cannot have the status {status!r}, but 200 to 599")
    if not isinstance(body, bytes | None):
        raise TypeError(f"the body of a response must be bytes, not a {type(body).__name__}")
    fields = [field for field in check_headers(headers) if field[0].lower() not in _FRAMING]
    if any(name.lower() == b"upgrade" for name, _ in fields):
        fields.append((b"Connection", b"upgrade"))  # RFC 9110, 7.8
    fields.append((b"Connection", b"close"))
    body = body or b""
    if status in (204, 304):
        body = b""
    else:
        fields.append((b"Content-Length", b"%d" % len(body)))
    first = f"HTTP/1.1 {status} {_phrase(status)}".encode()
    return _lines(first, fields) + (body if has_body else b"")


# The server's


class WsRequest(WebSocketRequest):
    """A client's request for a WebSocket, which the ``accept=`` hook of `WsListener` gets.

    Attributes:
      state (types.SimpleNamespace): an empty namespace of this request. What the ``accept=`` hook
          stores there is in `WsByteStream.state` for the handler.

    The other attributes are those of `trio_websocket.WebSocketRequest`: ``headers``, ``path``,
    ``proposed_subprotocols``, ``local`` and ``remote``.
    """

    def __init__(self, transport: trio.abc.Stream, head: _Head, glued: bytes) -> None:
        event = wsproto.events.Request(
            host="",  # The Host header is among the headers.
            target=head.first[1].decode("ascii"),
            extra_headers=head.headers,
            subprotocols=[
                each.decode("ascii") for each in head.elements(b"sec-websocket-protocol")
            ],
        )
        super().__init__(_takeover.new_connection(transport, client=False), event)
        self.state: SimpleNamespace = SimpleNamespace()
        self._transport = transport
        (self._key,) = head.fields[b"sec-websocket-key"]
        self._glued = glued
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
        """Accept the request, and return the open connection.

        `WsListener` does this itself after the ``accept=`` hook has returned.

        Args:
          subprotocol (str or None): one of the subprotocols that the client offers.
          extra_headers (iterable of (bytes, bytes) or None): headers for the response.

        Raises:
          ValueError, TypeError: the arguments cannot be sent. The request can still be answered.
          RuntimeError: the request has been answered already.
          trio.BrokenResourceError: the client has disconnected.
        """
        return await self._accept(*self._acceptance(subprotocol, extra_headers or ()))

    async def reject(
        self,
        status_code: int,
        *,
        extra_headers: Iterable[tuple[bytes, bytes]] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Refuse the request.

        An ``accept=`` hook can also raise `trio_websocket.ConnectionRejected`, which does the same.

        Args:
          status_code (int): the HTTP status, from 200 to 599.
          extra_headers (iterable of (bytes, bytes) or None): headers for the response.
          body (bytes or None): the body of the response.

        Raises:
          ValueError, TypeError: the arguments cannot be sent. The request can still be answered.
          RuntimeError: the request has been answered already.
        """
        self._check_unanswered()
        headers = tuple(check_headers(extra_headers or ()))
        rejection = ConnectionRejected(status_code, headers, body)
        response = _response(status_code, headers, body)
        self._rejection = rejection
        await _send_refusal(self._transport, response)

    def _acceptance(
        self, subprotocol: str | None, extra_headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[str | None, bytes]:
        """Return the subprotocol, in whichever way it was chosen, and the response (4.2.2)."""
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
        return subprotocol, _lines(b"HTTP/1.1 101 Switching Protocols", upgrade + headers)

    async def _accept(self, subprotocol: str | None, response: bytes) -> WebSocketConnection:
        connection = self._accepted = self._connection
        await self._transport.send_all(response)
        _takeover.open_connection(
            connection, self.path, subprotocol, tuple(self.headers), self._glued
        )
        return connection

    @property
    def _is_answered(self) -> bool:
        return self._accepted is not None or self._rejection is not None

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
      transport (trio.abc.Stream): the transport, after the TLS handshake if there is one.
      judge: returns the subprotocol and the headers with which a request is accepted, or raises
          `trio_websocket.ConnectionRejected`, also in a group. It may instead call ``accept`` or
          ``reject`` of the request. If it raises another exception, or returns headers that cannot
          be sent, that is logged, and the request is refused with 500.
      max_header_size (int): bytes. A request whose head is longer is refused with 431
          (RFC 6585, 5).
      http: called with method, path and headers of a request that is no opening handshake. It
          returns status, headers and body of the response, or None to refuse the request.

    Raises:
      trio_websocket.ConnectionRejected: the client was refused, and has got a response if it was
          still connected. It is `HttpAnswered` if ``http`` has answered the request.
      trio_websocket.HandshakeError: the client has disconnected, or has sent nothing at all.
      trio.ClosedResourceError: the transport was closed in the meantime.
    """
    reader = _Reader(transport, h11.SERVER, max_header_size)
    method = b""
    try:
        try:
            head = await _receive_request(reader)
            method = head.first[0]
            if not _is_attempt(head):
                raise await _answer_http(head, http)
            _check_request(head)
            request = _request_of(transport, head, reader.glued)
        except trio_websocket.ConnectionRejected as rejection:
            check_alpn(transport)
            told = await _refuse(transport, rejection, has_body=method != b"HEAD")
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
    return request._connection, request


async def _receive_request(reader: _Reader) -> _Head:
    try:
        head = await reader.receive_usual_head(_REQUEST_LINE)
        if head is not None and len(head.fields.get(b"host", ())) == 1:
            return head
        request = await reader.receive_event()
    except h11.RemoteProtocolError as error:
        raise refusal(400, "This is no proper request.") from error
    except _HeadTooLong:
        raise refusal(431, "The headers of this request are too long.") from None
    assert isinstance(request, h11.Request)
    return _head((request.method, request.target), request.http_version, list(request.headers))


_warned_of: Final[set[str]] = set()  # protocols; a client must not fill the log


def check_alpn(transport: trio.abc.Stream) -> None:
    """Say so if TLS has agreed on something else than HTTP/1.1: our own context has offered it."""
    if isinstance(transport, trio.SSLStream):
        protocol = transport.selected_alpn_protocol()
        if protocol not in (None, "http/1.1") and protocol not in _warned_of:
            _warned_of.add(protocol)
            _logger.warning(
                "TLS has agreed on %r with a client, but WebSockets need HTTP/1.1: "
                "take it out of set_alpn_protocols() of the server's ssl_context",
                protocol,
            )


def _is_attempt(head: _Head) -> bool:
    """Return whether the request is meant to be an opening handshake, valid or not."""
    return b"sec-websocket-key" in head.fields or head.has(b"upgrade", b"websocket")


def _check_request(head: _Head) -> None:
    """Raise `ConnectionRejected` for an invalid opening handshake (RFC 6455, 4.2.1)."""
    fields = head.fields
    versions = fields.get(b"sec-websocket-version", [])
    keys = fields.get(b"sec-websocket-key", [])
    if head.first[0] != b"GET":
        why = "The method must be GET."
    elif head.http_version != b"1.1":
        why = "The version of HTTP must be 1.1."
    elif not _HOST.fullmatch(fields[b"host"][0]):
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
    # A proxy in front of us might take a body for frames, or frames for a body.
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


def _request_of(transport: trio.abc.Stream, head: _Head, glued: bytes) -> WsRequest:
    try:
        return WsRequest(transport, head, glued)
    except UnicodeDecodeError as error:
        raise refusal(400, "A subprotocol must be ASCII.") from error


async def _answer_http(head: _Head, http: HttpHook | None) -> ConnectionRejected:
    """Return the response to a request that is no opening handshake."""
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
    """Return the acceptance or the refusal, or None if ``judge`` has answered the request itself.

    Raises:
      HandshakeError: ``judge`` has answered the request and has failed after that.
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
    """Return the refusal that a hook or its nursery has raised, and its other exceptions."""
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
    has_body: bool = True,
) -> trio_websocket.ConnectionRejected:
    """Send a refusal to the client, if it is still connected, and return what was sent."""
    try:
        response = _response(rejection.status_code, rejection.headers, rejection.body, has_body)
    except (TypeError, ValueError):
        _logger.exception("a refusal by accept= or http= of a WsListener cannot be sent")
        rejection = refusal(500, "The server has failed.")
        response = _response(rejection.status_code, rejection.headers, rejection.body, has_body)
    await _send_refusal(transport, response)
    return rejection


async def _send_refusal(transport: trio.abc.Stream, response: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # The client may have hung up.
        await transport.send_all(response)


# The client's


_MAX_BODY: Final = 65536  # bytes, of a response that refuses
_MAX_RESPONSE: Final = 65536  # bytes, of its head
_BODY_TIMEOUT: Final = 2.0  # seconds, for what comes of its body

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
      host (str): the Host header, unless there is one in ``extra_headers``.
      path (str): path and query.
      subprotocols (iterable of str): the subprotocols to offer, best first.
      extra_headers (iterable of (bytes, bytes)): more headers.

    Raises:
      ValueError: the arguments cannot be sent. The text shows no value of a header.
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
    head = _lines(b"GET " + path.encode("ascii") + b" HTTP/1.1", headers + extra)
    return Request(path, offered, key, head)


def check_subprotocols(subprotocols: tuple[object, ...]) -> None:
    """Raise TypeError or ValueError for names that are no subprotocols (RFC 6455, 11.3.4)."""
    for name in subprotocols:
        if not isinstance(name, str):
            raise TypeError(f"a subprotocol must be a str, not {name!r}")
        if not name.isascii() or not _TOKEN.fullmatch(name.encode()):
            raise ValueError(
                f"the subprotocol {name!r} must be a token: letters, digits, and any of "
                "!#$%&'*+-.^_`|~"
            )
    if len(set(subprotocols)) < len(subprotocols):
        raise ValueError(f"a subprotocol must be named once: {subprotocols!r}")


def _check_extra(headers: Headers) -> None:
    hosts = 0
    for raw_name, _ in headers:
        name = raw_name.lower()
        hosts += name == b"host"
        if name in _RESERVED or name.startswith(b"sec-websocket-"):
            instead = _INSTEAD.get(name, "the handshake sets it")
            raise ValueError(f"{raw_name.decode()} must not be among extra_headers: {instead}")
    if hosts > 1:
        raise ValueError("Host must be among extra_headers only once")


async def connect(transport: trio.abc.Stream, request: Request) -> WebSocketConnection:
    """Do a client's opening handshake (RFC 6455, 4.1) over ``transport``.

    Raises:
      trio_websocket.ConnectionRejected: the server has refused. The error has what came of the
          body in two seconds, at most 64 KiB.
      trio_websocket.HandshakeError: the handshake has failed. The caller must close the transport.
    """
    reader = _Reader(transport, h11.CLIENT, _MAX_RESPONSE)
    try:
        await transport.send_all(request.head)
        response = await _receive_response(reader)
    except (h11.RemoteProtocolError, _HeadTooLong) as error:
        raise HandshakeError(_why_no_response(reader, error)) from error
    except HandshakeError:
        if reader.start or isinstance(transport, trio.SSLStream):
            raise
        # A server that expects TLS and gets none may end the connection like this. Ours does.
        raise HandshakeError(
            "the server ended the connection without a response; if it expects TLS, use wss://"
        ) from None
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        why = str(error.__cause__ or error) or type(error).__name__
        raise HandshakeError(f"the transport broke in the opening handshake: {why}") from error
    status = int(response.first[0])
    if status != 101:
        body = await _receive_body(reader)
        phrase = response.first[1].decode("latin-1")
        raise ConnectionRejected(status, tuple(response.headers), body, phrase)
    subprotocol = _check_response(response, request)
    connection = _takeover.new_connection(transport, client=True)
    _takeover.open_connection(
        connection,
        request.path,
        subprotocol,
        tuple(response.headers),
        reader.glued,
    )
    return connection


async def _receive_response(reader: _Reader) -> _Head:
    usual = await reader.receive_usual_head(_STATUS_LINE)
    if usual is not None:
        return usual
    while True:
        head = await reader.receive_event()
        assert isinstance(head, h11.InformationalResponse | h11.Response)
        if head.status_code == 101 or head.status_code >= 200:
            first = (b"%d" % head.status_code, head.reason)
            return _head(first, head.http_version, list(head.headers))
        # Any other response is an interim one and has no meaning here (RFC 9110, 15.2).


def _why_no_response(reader: _Reader, error: Exception) -> str:
    if isinstance(error, _HeadTooLong):
        return f"the head of the server's response is longer than {_MAX_RESPONSE} bytes"
    if reader.start[:1] in (b"\x15", b"\x16") and reader.start[1:2] == b"\x03":
        return "the server answered with TLS: use wss://"
    return f"the server's response is not HTTP/1.1: {error}"


def _check_response(response: _Head, request: Request) -> str | None:
    """Return the subprotocol of a response. Raise HandshakeError if it is invalid (4.1)."""
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


async def _receive_body(reader: _Reader) -> bytes:
    """Return what comes of a refusal's body in two seconds, at most `_MAX_BODY` bytes."""
    body = b""
    reader.limit_more(4 * _MAX_BODY)  # chunks of one byte, or an endless chunk header
    # This must end before the caller's own timeout, whose error would hide the status.
    deadline = min(trio.current_time() + _BODY_TIMEOUT, trio.current_effective_deadline() - 0.05)
    with (
        contextlib.suppress(
            HandshakeError, h11.RemoteProtocolError, _HeadTooLong, trio.BrokenResourceError
        ),
        trio.move_on_at(deadline),
    ):
        while len(body) < _MAX_BODY:
            event = await reader.receive_event()
            if not isinstance(event, h11.Data):
                break
            body += event.data
    return body[:_MAX_BODY]
