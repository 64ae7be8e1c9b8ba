"""The events that subscribers receive. This module has values only."""

from __future__ import annotations

import attrs

from ._errors import WsStreamError

_SHOWN = 32  # bytes or characters of a payload in a repr: enough to recognize it


def shown(payload: bytes | str) -> str:
    """Return the beginning of a payload, and its length if that is not all, for a repr."""
    more = f"... ({len(payload)} in all)" if len(payload) > _SHOWN else ""
    return f"{payload[:_SHOWN]!r}{more}"


@attrs.frozen
class WsEvent:
    """The base class of the events: what happens on a connection beside its byte stream."""


@attrs.frozen
class PingReceived(WsEvent):
    """The peer has sent a Ping (RFC 6455, 5.5.2).

    The stream answers it with a Pong. There are two exceptions: no Pong is sent after a Close of
    this side, and if more than 64 Pings wait for their Pongs, the oldest get none (5.5.3).

    Attributes:
      payload (bytes): the payload of the Ping, at most 125 bytes.
    """

    payload: bytes = attrs.field(repr=shown)


@attrs.frozen
class PongReceived(WsEvent):
    """The peer has sent a Pong (RFC 6455, 5.5.3): an answer to a Ping, or one without a Ping.

    Attributes:
      payload (bytes): the payload of the Pong, at most 125 bytes.
    """

    payload: bytes = attrs.field(repr=shown)


@attrs.frozen
class CloseReceived(WsEvent):
    """The peer has sent a Close (RFC 6455, 5.5.1).

    Attributes:
      code (int): the code of the Close, or 1005 if it has none (7.1.5).
      reason (str): the reason of the Close. It is empty if the Close has none.
    """

    code: int
    reason: str


@attrs.frozen
class TextReceived(WsEvent):
    """The peer has sent a text message, and the policy is `TextPolicy.AS_EVENTS`.

    Attributes:
      text (str): the whole message.
    """

    text: str = attrs.field(repr=shown)


@attrs.frozen
class ErrorOccurred(WsEvent):
    """The stream has failed.

    The exceptions that the stream's methods raise from now on have this error as their cause. There
    is one exception: if the peer's Close came before the failure, `~WsByteStream.receive_some`
    still reports that Close.

    Attributes:
      error (WsStreamError): what has gone wrong.
    """

    error: WsStreamError


@attrs.frozen
class EventsLost(WsEvent):
    """Events were dropped because this subscriber's channel was full.

    Every subscriber gets this event, whichever kinds it has asked for.

    Attributes:
      count (int): how many events were dropped since the last event that was delivered.
    """

    count: int


@attrs.frozen
class StreamClosed(WsEvent):
    """The transport has been closed. This is the last event of every subscription.

    Every subscriber gets this event, whichever kinds it has asked for.

    Attributes:
      code (int): the code of the peer's Close. It is 1005 if the Close had no code, and 1006 if
          no Close came (RFC 6455, 7.1.5).
      reason (str): the reason of the peer's Close.
      clean (bool): whether a Close was sent and a Close was received (7.1.4).
      error (WsStreamError or None): why the stream broke, or None if it did not break.
    """

    code: int
    reason: str
    clean: bool
    error: WsStreamError | None
