"""What can go wrong, one class each.

These are never raised in band: Trio's stream contract knows only its own errors. What
`WsByteStream` raises is a `trio.BrokenResourceError`, whose ``__cause__`` is one of these.
Two are raised as they are: `TakeoverError`, by its constructor, and `ProxyRejected`, by
`open_ws_stream`.
"""

from __future__ import annotations

from trio_websocket import HandshakeError


class _Comparable(Exception):
    """Two errors are equal when type and args are."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, _Comparable)
        return self.args == other.args

    def __hash__(self) -> int:
        return hash((type(self), self.args))


class WsStreamError(_Comparable):
    """Everything that this library reports of a stream. Errors are equal when type and args are."""


class _FailTheConnection(WsStreamError):
    """The peer did what cannot be accepted: the connection is failed (RFC 6455, 7.1.7).

    Args:
      close_code (int): the code of the Close that this side sends (7.4.1).
      reason (str): what was wrong; it goes into the Close too.
    """

    def __init__(self, close_code: int, reason: str = "") -> None:
        super().__init__(close_code, reason)
        self.close_code = close_code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason or 'connection failed'} (close code {self.close_code})"


class ProtocolViolation(_FailTheConnection):
    """The peer broke RFC 6455."""


class TextRejected(_FailTheConnection):
    """A text message came that `TextPolicy` does not admit: 1003 any, 1009 too long."""


class AbnormalClosure(WsStreamError):
    """The peer's Close says that what it sent is not complete.

    Its code is none of 1000, 1001 and 1005, or it came inside a fragmented message. It is
    also the cause of a failed send after any Close of the peer, to tell its code.

    Args:
      code (int): the peer's close code, 1005 if it gave none (RFC 6455, 7.1.5).
      reason (str): the peer's close reason.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"the peer closed with code {self.code} and reason {self.reason!r}"


class HalfCloseIgnored(AbnormalClosure):
    """The peer answered our half-close at once, so it may have had more to send.

    This happens under `HalfClose.REQUIRE` only. Args and attributes are those of `AbnormalClosure`.
    """

    def __str__(self) -> str:
        return (
            f"the peer did not honour the half-close: it closed with code {self.code} and reason "
            f"{self.reason!r}, so what it had still to send may be missing"
        )


class ConnectionLost(WsStreamError):
    """The transport ended or broke before both Closes had passed (RFC 6455, 7.1.4).

    Before the peer's Close, the stream is truncated (close code 1006). After it, only our answer
    is lost: what the peer sent is complete, what was sent to it may not be.
    """


class KeepaliveTimeout(WsStreamError):
    """The peer gave no sign of life in time after a keepalive ping."""


class TakeoverError(WsStreamError):
    """The connection, or the nursery, cannot be used for a stream. Nothing was touched."""


class ProxyRejected(HandshakeError, _Comparable):
    """The proxy refused to connect to the server. Errors are equal when type and args are.

    Args:
      proxy (str): the proxy's host and port.
      target (str): the server's host and port.
      status (int or None): the status of an HTTP proxy's answer (RFC 9110, 15); None from a
          SOCKS proxy.
      reason (str): what the proxy said, and what to do if that is known.
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
