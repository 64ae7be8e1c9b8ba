"""The errors of this library: one class for each thing that can go wrong.

Trio's stream contract allows only Trio's own exceptions. So the methods of `WsByteStream` raise
`trio.BrokenResourceError`, and the ``__cause__`` of that is one of the errors of this module. Two
errors are raised directly: `TakeoverError` by the constructor of `WsByteStream`, and
`ProxyRejected` by `open_ws_stream`.
"""

from __future__ import annotations

from trio_websocket import HandshakeError


class _Comparable(Exception):
    """An exception that is equal to another one of the same type with equal arguments."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, _Comparable)
        return self.args == other.args

    def __hash__(self) -> int:
        return hash((type(self), self.args))


class WsStreamError(_Comparable):
    """The base class of the errors of a stream.

    Two of these errors are equal if they have the same type and equal arguments.
    """


class _FailTheConnection(WsStreamError):
    """The peer sent something for which this side fails the connection (RFC 6455, 7.1.7).

    Args:
      close_code (int): the code of the Close that this side sends (7.4.1).
      reason (str): what was wrong. The Close carries this text too.
    """

    def __init__(self, close_code: int, reason: str = "") -> None:
        super().__init__(close_code, reason)
        self.close_code = close_code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason or 'connection failed'} (close code {self.close_code})"


class ProtocolViolation(_FailTheConnection):
    """The peer has broken RFC 6455.

    The arguments are also attributes of the error.

    Args:
      close_code (int): the code of the Close that this side sends: 1002, or 1007 for text that is
          not UTF-8 (RFC 6455, 7.4.1).
      reason (str): what was wrong. The Close carries this text too.
    """


class TextRejected(_FailTheConnection):
    """The peer has sent a text message that the `TextPolicy` of the stream does not allow.

    The arguments are also attributes of the error.

    Args:
      close_code (int): the code of the Close that this side sends: 1003 under `TextPolicy.REJECT`,
          or 1009 for a message that is too long for `TextPolicy.AS_EVENTS` (RFC 6455, 7.4.1).
      reason (str): what was wrong. The Close carries this text too.
    """


class AbnormalClosure(WsStreamError):
    """The peer has closed in a way that does not say that the stream is complete.

    Either the code of its Close is not among the ``end_codes`` of the `StreamConfig`, or the Close
    came inside a fragmented message. This error is also the cause when sending fails after a Close
    of the peer, whatever its code.

    The arguments are also attributes of the error.

    Args:
      code (int): the code of the peer's Close, or 1005 if it has none (RFC 6455, 7.1.5).
      reason (str): the reason of the peer's Close.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"the peer closed with code {self.code} and reason {self.reason!r}"


class HalfCloseIgnored(AbnormalClosure):
    """The peer has answered our half-close without deferring its answer.

    The peer, or something between the two ends, may have had more to send. So the end of the stream
    does not say that it is complete. This error occurs under `HalfClose.REQUIRE` only.

    Arguments and attributes are those of `AbnormalClosure`.
    """

    def __str__(self) -> str:
        return (
            f"the peer did not honour the half-close: it closed with code {self.code} and reason "
            f"{self.reason!r}, so data that it still had to send may be missing"
        )


class ConnectionLost(WsStreamError):
    """The transport has ended or broken before both sides had sent a Close (RFC 6455, 7.1.4).

    If this happened before the peer's Close, the received data is truncated (close code 1006). If
    it happened after the peer's Close, the received data is complete, but the peer may not have
    received everything that was sent to it.
    """


class KeepaliveTimeout(WsStreamError):
    """The peer gave no sign of life within ``ping_timeout`` seconds after a keepalive ping."""


class TakeoverError(WsStreamError):
    """The connection or the nursery cannot be used for a stream. Neither has been changed."""


class ProxyRejected(HandshakeError, _Comparable):
    """The proxy has refused to connect to the server.

    Two of these errors are equal if their arguments are equal.

    The arguments are also attributes of the error.

    Args:
      proxy (str): host and port of the proxy.
      target (str): host and port of the server.
      status (int or None): the status code of an HTTP proxy's response (RFC 9110, 15), or None for
          a SOCKS proxy.
      reason (str): what the proxy said, and what can be done about it if that is known.
    """

    def __init__(self, proxy: str, target: str, status: int | None, reason: str) -> None:
        super().__init__(proxy, target, status, reason)
        self.proxy = proxy
        self.target = target
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        return f"the proxy {self.proxy} refused to connect to {self.target}: {status}{self.reason}"
