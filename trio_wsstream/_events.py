"""What a subscriber sees: values only."""

from __future__ import annotations

import attrs

from ._errors import WsStreamError

_SHOWN = 32  # bytes or characters of a payload in a repr: enough to know it by


def shown(payload: bytes | str) -> str:
    """The beginning of it, for people."""
    more = f"... ({len(payload)} in all)" if len(payload) > _SHOWN else ""
    return f"{payload[:_SHOWN]!r}{more}"


@attrs.frozen
class WsEvent:
    """What happened on the connection that a byte stream cannot carry."""


@attrs.frozen
class PingReceived(WsEvent):
    """A Ping came (RFC 6455, 5.5.2).

    Its Pong is on its way, unless a Close was, or 64 newer Pings wait for theirs (5.5.3).
    """

    payload: bytes = attrs.field(repr=shown)


@attrs.frozen
class PongReceived(WsEvent):
    """A Pong came (RFC 6455, 5.5.3), asked for or not."""

    payload: bytes = attrs.field(repr=shown)


@attrs.frozen
class CloseReceived(WsEvent):
    """The peer's Close came (RFC 6455, 5.5.1); code 1005 if it gave none (7.1.5)."""

    code: int
    reason: str


@attrs.frozen
class TextReceived(WsEvent):
    """A text message came, under `TextPolicy.AS_EVENTS`."""

    text: str = attrs.field(repr=shown)


@attrs.frozen
class ErrorOccurred(WsEvent):
    """The stream failed. What its methods raise has the same error as cause.

    But after the peer's Close `~WsByteStream.receive_some` goes on to tell that.
    """

    error: WsStreamError


@attrs.frozen
class EventsLost(WsEvent):
    """So many events found this subscriber's channel full. Passes every filter of kinds."""

    count: int


@attrs.frozen
class StreamClosed(WsEvent):
    """The transport has been closed; every subscriber's last event. Passes every filter.

    Attributes:
      code (int): the code of the peer's Close, 1005 if it gave none, 1006 if none came
          (RFC 6455, 7.1.5).
      reason (str): its reason.
      clean (bool): both Closes have passed (7.1.4).
      error (WsStreamError or None): why the stream broke, if it did.
    """

    code: int
    reason: str
    clean: bool
    error: WsStreamError | None
