"""The settings of a stream."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Final

import attrs

from ._checks import check_seconds
from ._frames import is_valid_close_code


class TextPolicy(enum.Enum):
    """What becomes of a text message, which a byte stream has no place for."""

    REJECT = "reject"
    """Fail the connection with 1003."""
    AS_BYTES = "as bytes"
    """Its UTF-8 becomes part of the stream."""
    AS_EVENTS = "as events"
    """It is kept out of the stream and told as `TextReceived`."""


class HalfClose(enum.Enum):
    """When the answer to the peer's Close is deferred, so that this side may go on sending."""

    AUTO = "auto"
    """The answer to the half-close of another `WsByteStream` is deferred: to Close 1000 with the
    reason ``half-close``. This is the default, and not REQUIRE, as most peers answer every Close at
    once when they have nothing more to send, and as some (websocat, Azure Relay, Envoy, Go's x/net)
    defer their answer without saying so.
    """
    ALWAYS = "always"
    """The answer to every Close whose code is in ``end_codes`` is deferred."""
    NEVER = "never"
    """No answer is deferred."""
    REQUIRE = "require"
    """Like AUTO, for connections whose two ends are both a `WsByteStream` with this setting. After
    `~WsByteStream.send_eof`, a peer that ends the stream without having said that it deferred its
    answer is a `HalfCloseIgnored`: something between the two ends may have cut its answer off.
    """


def _a_count(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not int:
        raise TypeError(f"{attribute.name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1 byte, not {value!r}")


def _an_enum(kind: type[enum.Enum]) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{attribute.name} must be a {kind.__name__}, not {value!r}")

    return check


_MIN_INTERVAL: Final = 0.001  # seconds


def _a_timeout(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value)


def _an_interval(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and check_seconds(attribute.name, value) < _MIN_INTERVAL:
        raise ValueError(
            f"{attribute.name} must be at least {_MIN_INTERVAL} seconds or None, not {value!r}"
        )


def _end_codes(codes: Iterable[int]) -> frozenset[int]:
    if isinstance(codes, str | bytes) or not isinstance(codes, Iterable):
        raise TypeError(f"end_codes must be several close codes, not {codes!r}")
    checked = tuple(codes)
    for code in checked:
        if type(code) is not int:
            raise TypeError(f"end_codes must be integers, not {code!r}")
        if code != 1005 and not is_valid_close_code(code):
            raise ValueError(
                f"end_codes must be 1005 or codes that a Close may carry (1000-1003, 1007-1014, "
                f"3000-4999), not {code}"
            )
    return frozenset(checked)


@attrs.frozen
class StreamConfig:
    """The settings of a `WsByteStream`; a wrong one is a `ValueError` or a `TypeError`.

    Args:
      max_message_size (int): bytes. `~WsByteStream.send_all` cuts what it sends into messages of
          at most this size. Many peers refuse messages of more than 1 MiB. Messages of any size are
          sent, and received, in constant memory.
      receive_buffer_size (int): bytes. So much is read ahead while no task receives, and so long
          may a text message be under `TextPolicy.AS_EVENTS`.
      text (TextPolicy): what becomes of text messages.
      half_close (HalfClose): when the answer to the peer's Close is deferred.
      close_timeout (float): seconds that closing may take before the transport is dropped.
      ping_interval (float or None): seconds. An end that has sent nothing for so long sends a sign
          of life, so that the peer does not take it for dead: a Ping if it has heard nothing
          either, else a Pong with the payload ``heartbeat`` (RFC 6455, 5.5.3). None switches
          keepalive off.
      ping_timeout (float or None): seconds. A peer that has given no sign of life for
          ``ping_interval`` and then for so long ends the stream with `KeepaliveTimeout`. Any byte
          from the peer is a sign of life, and so are bytes of ours that it takes after a wait. The
          time in which this side itself does not read does not count. None: no peer is given up.
      end_codes (frozenset of int): the codes of a Close that ends the stream (``b""``); 1005
          stands for a Close without a code. Any other code is an `AbnormalClosure`: 1001, for
          one, is what a server says that is shut down in the middle of a transfer.
    """

    max_message_size: int = attrs.field(default=65536, validator=_a_count)
    receive_buffer_size: int = attrs.field(default=262144, validator=_a_count)
    text: TextPolicy = attrs.field(default=TextPolicy.REJECT, validator=_an_enum(TextPolicy))
    half_close: HalfClose = attrs.field(default=HalfClose.AUTO, validator=_an_enum(HalfClose))
    close_timeout: float = attrs.field(default=10.0, validator=_a_timeout)
    ping_interval: float | None = attrs.field(default=20.0, validator=_an_interval)
    ping_timeout: float | None = attrs.field(default=20.0, validator=_an_interval)
    end_codes: frozenset[int] = attrs.field(default=frozenset({1000, 1005}), converter=_end_codes)


def check_config(config: object) -> None:
    if not isinstance(config, StreamConfig):
        raise TypeError(f"config must be a StreamConfig, not {config!r}")
