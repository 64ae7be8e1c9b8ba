"""The part of HTTP/1.1 (RFC 9112) that an opening handshake needs: heads and refusals.

Theory of operation. `Reader` receives what the peer sends, and h11 parses it. Two things are done
here, and not by h11:

- *The limit of a head.* h11 looks at its limit after each read, so whether a head passes depends
  on how its bytes happen to be cut. `Reader` therefore counts the bytes itself.
- *Plain heads.* h11 takes 30 microseconds or more for a head, a large part of the time that a
  connection takes. So `_parse_plain` first tries a head that arrives in one piece, with two regular
  expressions. It accepts only what h11 would read in the same way, and no message with a body. In
  any doubt h11 reads the head.

A header may be sent in several lines, and these count as one list (RFC 9110, 5.3). `Head.elements`
reads them so.

What this side sends is short, so it is put together here, after each part that a caller gave has
been checked (`check_headers`). Nothing that could end a line reaches the transport.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import h11
import trio
import trio_websocket
from trio_websocket import HandshakeError

from ._transport import SocketWire, StreamWire

Headers = list[tuple[bytes, bytes]]

TOKEN: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(rb"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?|")  # 5.5
_FIELD: Final = re.compile(rb"(%b):[ \t]*(%b)[ \t]*" % (TOKEN.pattern, _VALUE.pattern))  # 5
_REQUEST_LINE: Final = re.compile(rb"(GET) ([!-~]+) HTTP/1\.1")  # RFC 9112, 3
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 (101)(?: ([\t -~\x80-\xff]*))?")  # 4
_LABEL: Final = rb"[-0-9A-Za-z_~!$&'()*+,;=%]{1,63}"  # RFC 1035, 2.3.4, limits its length.
_HOST: Final = re.compile(  # RFC 9110, 7.2
    rb"(?:\[[-0-9A-Za-z:.%_~]+\]|LABEL(?:\.LABEL)*\.?|)(?::[0-9]*)?".replace(b"LABEL", _LABEL)
)

FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})
"""The headers that say where a message ends (RFC 9112, 6). Only this module sets them."""

_COMMON: Final = {
    b"Upgrade: websocket": (b"upgrade", b"websocket"),
    b"Connection: Upgrade": (b"connection", b"Upgrade"),
    b"Sec-WebSocket-Version: 13": (b"sec-websocket-version", b"13"),
}
"""Headers of nearly all handshakes. All streams share them: 0.35 KiB less for each."""

_NAMES: Final = {
    name: name for name in (b"host", b"sec-websocket-key", b"sec-websocket-accept", b"user-agent")
}
"""Names of headers whose values differ. All streams share these, too: 0.1 KiB less for each."""

_READ_SIZE: Final = 4096  # bytes


class HeadTooLong(Exception):
    """The head of a message is longer than its limit."""


class NotHttp(Exception):
    """What the peer sent is not valid HTTP. The text quotes nothing that the peer sent."""


# Reading


class Head(NamedTuple):
    """The head of a request or a response. The names of the headers are in lower case."""

    first: tuple[bytes, ...]
    """Method and target of a request, or status and reason phrase of a response."""
    http_version: bytes
    headers: Headers
    fields: dict[bytes, list[bytes]]
    """The values that each header has, one for each of its lines."""

    def elements(self, name: bytes) -> list[bytes]:
        """Return the elements of a list, which may be in one line or in several."""
        lines = self.fields.get(name, ())
        elements = [each.strip(b" \t") for line in lines for each in line.split(b",")]
        return [each for each in elements if each]

    def has(self, name: bytes, wanted: bytes) -> bool:
        """Return whether a list has an element, in lower or upper case."""
        return any(each.lower() == wanted for each in self.elements(name))


def _make_head(first: tuple[bytes, ...], http_version: bytes, headers: Headers) -> Head:
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value)
    return Head(first, http_version, headers, fields)


def _parse_plain(first_line: re.Pattern[bytes], data: bytes) -> Head | None:
    """Return a head if h11 would read it in the same way, and None in any doubt."""
    first, *lines = data.split(b"\r\n")
    match = first_line.fullmatch(first)
    if match is None:
        return None
    headers = []
    for line in lines:
        header = _COMMON.get(line)
        if header is None:
            field = _FIELD.fullmatch(line)
            if field is None:
                return None
            name = field[1].lower()
            header = _NAMES.get(name, name), field[2]
        headers.append(header)
    head = _make_head(match.groups(), b"1.1", headers)
    if b"content-length" in head.fields or b"transfer-encoding" in head.fields:
        return None
    return head


class Reader:
    """The HTTP that is received from a transport.

    Args:
      wire (StreamWire or SocketWire): the transport, whose ``receive_some`` takes less time.
      role: this side's role, as h11 names it.
      max_header_size (int): how many bytes a head may have, however they are cut.

    Attributes:
      start (bytes): what was received first.
      trailing (bytes): what was received after the head.
    """

    def __init__(self, wire: StreamWire | SocketWire, role: Any, max_header_size: int) -> None:
        self.start = b""
        self.trailing = b""
        self._wire = wire
        self._role = role
        self._max_header_size = max_header_size
        self._received = 0  # bytes
        self._http: h11.Connection | None = None

    async def receive_request(self) -> Head:
        """Receive the head of a request.

        Raises:
          NotHttp, HeadTooLong, HandshakeError, trio.BrokenResourceError: as `receive_event`.
        """
        head = await self._receive_plain(_REQUEST_LINE)
        if head is not None and len(head.fields.get(b"host", ())) == 1:
            return head
        request = await self.receive_event()
        assert isinstance(request, h11.Request)
        first = (request.method, request.target)
        return _make_head(first, request.http_version, list(request.headers))

    async def receive_response(self) -> Head:
        """Receive the head of the final response, or of a 101.

        Raises: as `receive_request`.
        """
        plain = await self._receive_plain(_STATUS_LINE)
        if plain is not None:
            return plain
        if not b"HTTP/".startswith(self.start[:5]):
            raise NotHttp("it does not begin with HTTP/")  # h11 would wait for an empty line.
        while True:
            head = await self.receive_event()
            assert isinstance(head, h11.InformationalResponse | h11.Response)
            if head.status_code == 101 or head.status_code >= 200:
                first = (b"%d" % head.status_code, head.reason)
                return _make_head(first, head.http_version, list(head.headers))
            # Any other response is an interim one, which says nothing (RFC 9110, 15.2).

    async def receive_body(self, limit: int, deadline: float) -> bytes:
        """Receive what comes of a body before ``deadline``, at most ``limit`` bytes.

        A body that is cut off or not framed as it should be is returned as far as it came.
        """
        body = b""
        # What frames the body counts, too: a chunk may have one byte, or an endless header.
        self._max_header_size = self._received + 4 * limit
        with trio.move_on_at(deadline):
            try:
                while len(body) < limit:
                    event = await self.receive_event()
                    if not isinstance(event, h11.Data):
                        break
                    body += event.data
            except (NotHttp, HeadTooLong, HandshakeError, trio.BrokenResourceError):
                pass
        return body[:limit]

    async def receive_event(self) -> Any:
        """Receive the next event of h11: a head, data of a body, or the end of a message.

        Raises:
          NotHttp: the peer sent something else.
          HeadTooLong: more than ``max_header_size`` bytes came, and no event.
          HandshakeError: the peer has ended the connection.
          trio.BrokenResourceError: the connection broke.
        """
        http = self._http or self._start_h11()
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as error:
                # h11 quotes the line that it does not like, and a header may hold a secret.
                text = re.sub(r": (?:b|bytearray)\b.*", "", str(error), flags=re.DOTALL)
                raise NotHttp(text) from None
            if event is not h11.NEED_DATA:
                self.trailing = http.trailing_data[0]
                if self._received - len(self.trailing) > self._max_header_size:
                    raise HeadTooLong
                return event
            if self._received > self._max_header_size:
                raise HeadTooLong
            http.receive_data(await self._receive())

    async def _receive_plain(self, first_line: re.Pattern[bytes]) -> Head | None:
        """Receive once; return the head if it is complete and plain."""
        self.start = data = await self._receive()
        end = data.find(b"\r\n\r\n")
        if not 0 <= end <= self._max_header_size - 4:
            return None
        self.trailing = data[end + 4 :]
        return _parse_plain(first_line, data[:end])

    def _start_h11(self) -> h11.Connection:
        self._http = http = h11.Connection(self._role, max_incomplete_event_size=sys.maxsize)
        if self._role is h11.CLIENT:
            http.send(_UPGRADE_REQUEST)
            http.send(h11.EndOfMessage())
        http.receive_data(self.start)
        return http

    async def _receive(self) -> bytes:
        try:
            data = await self._wire.receive_some(_READ_SIZE)
        except OSError as error:
            if not isinstance(self._wire, SocketWire):
                raise  # A transport should not raise it: that is a bug.
            raise trio.BrokenResourceError(f"the transport broke: {error}") from error
        if not data:
            raise HandshakeError("the peer ended the connection in the opening handshake")
        self._received += len(data)
        return bytes(data)


# h11 understands a response only if it knows that the request asked for an upgrade.
_UPGRADE_REQUEST: Final = h11.Request(
    method="GET",
    target="/",
    headers=[("Host", "a"), ("Upgrade", "websocket"), ("Connection", "Upgrade")],
)


def is_host(value: bytes) -> bool:
    """Return whether ``value`` can be the value of a Host header (RFC 9110, 7.2)."""
    return _HOST.fullmatch(value) is not None


# Writing


def check_headers(headers: object) -> Headers:
    """Return ``headers`` as a list.

    Raises:
      TypeError, ValueError: they cannot be sent. The text names no value.
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
        if not TOKEN.fullmatch(name):
            raise ValueError(f"this is no name of a header: {name!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name!r} has characters it must not have")
        checked.append((name, value))
    return checked


def encode_head(first_line: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a head, whose parts must have been checked."""
    lines = [first_line, *[name + b": " + value for name, value in headers]]
    return b"\r\n".join([*lines, b"", b""])


def encode_response(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes | None,
    *,
    omits_body: bool = False,
) -> bytes:
    """Return the bytes of a response, after which the connection is closed.

    Args:
      omits_body (bool): the request was a HEAD, so the body is announced and not sent.

    Raises:
      TypeError, ValueError: it cannot be sent.
    """
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"a response cannot have the status {status!r}, but 200 to 599")
    if not isinstance(body, bytes | None):
        raise TypeError(f"the body of a response must be bytes, not a {type(body).__name__}")
    fields = [field for field in check_headers(headers) if field[0].lower() not in FRAMING]
    if any(name.lower() == b"upgrade" for name, _ in fields):
        fields.append((b"Connection", b"upgrade"))  # RFC 9110, 7.8
    fields.append((b"Connection", b"close"))
    body = body or b""
    if status in (204, 304):
        body = b""
    else:
        fields.append((b"Content-Length", b"%d" % len(body)))
    first_line = f"HTTP/1.1 {status} {phrase_of(status)}".encode()
    return encode_head(first_line, fields) + (b"" if omits_body else body)


# Refusals


class ConnectionRejected(trio_websocket.ConnectionRejected):
    """An opening handshake was refused. The text says with which status.

    Attributes:
      status_code (int), headers (tuple), body (bytes or None): of the HTTP response.
      reason_phrase (str): of the first line of the response; "" if it has none.
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


def refusal(
    status: int, reason: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> ConnectionRejected:
    """Return what to raise in order to refuse a request.

    Args:
      status (int): the HTTP status.
      reason (str): a sentence for people. It becomes the body of the response.
      headers (iterable of (bytes, bytes)): headers of the response.
    """
    content_type = (b"Content-Type", b"text/plain; charset=utf-8")
    return ConnectionRejected(status, (*headers, content_type), reason.encode() + b"\n")


def reason_of(rejection: trio_websocket.ConnectionRejected) -> str:
    """Return a refusal in words: status, reason phrase, and the Location or a body that is text."""
    status = rejection.status_code
    words = f"{status} {getattr(rejection, 'reason_phrase', '') or phrase_of(status)}".strip()
    fields = [(name.lower(), value) for name, value in rejection.headers]
    for name, value in fields:
        if name == b"location":
            # A query may hold secrets, and so may user and password.
            place = re.sub(r"[?#].*", "", value.decode("latin-1"))
            return f"{words}, Location: {re.sub(r'//[^/]*@', '//', place)}"
    if any(name == b"content-type" and value.startswith(b"text/plain") for name, value in fields):
        text = (rejection.body or b"")[:200].decode("utf-8", "replace").strip()
        if text and text.isprintable():
            return f"{words}: {text}"
    return words


def phrase_of(status: int) -> str:
    """Return the usual reason phrase of a status, or "" if it has none (RFC 9110, 15)."""
    from http import HTTPStatus  # Imported here, because only refusals need it.

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
