"""The settings of a stream."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Final

import attrs

from ._checks import check_seconds
from ._frames import is_valid_close_code


class TextPolicy(enum.Enum):
    """What the stream does with a text message, for which a byte stream has no place."""

    REJECT = "reject"
    """The connection is failed with close code 1003."""
    AS_BYTES = "as bytes"
    """The UTF-8 of the message becomes part of the stream."""
    AS_EVENTS = "as events"
    """The message is not part of the stream. Subscribers receive it as `TextReceived`."""


class HalfClose(enum.Enum):
    """When the stream defers its answer to the peer's Close, so that this side can still send."""

    AUTO = "auto"
    """The answer to the half-close of another `WsByteStream` is deferred. That is a Close with code
    1000 and the reason ``half-close``.

    This is the default. REQUIRE is not, because most peers answer every Close at once when they
    have nothing more to send, and because some (websocat, Azure Relay, Envoy, Go's x/net) defer
    their answer without saying so.
    """
    ALWAYS = "always"
    """The answer to every Close whose code is in ``end_codes`` is deferred.

    The peer may do the same without saying so, as websocat does. So after our half-close a silent
    peer is given up only when its TCP does not answer any more, which Linux can tell.
    """
    NEVER = "never"
    """No answer is deferred."""
    REQUIRE = "require"
    """Like AUTO, but the peer must honour our half-close. Both ends must be a `WsByteStream` with
    this setting.

    After `~WsByteStream.send_eof`, the peer must say that it has deferred its answer. If it ends
    the stream without saying so, the error is `HalfCloseIgnored`, because something between the two
    ends may have cut its answer off.
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
        raise TypeError(f"end_codes must be an iterable of close codes, not {codes!r}")
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
    """The settings of a `WsByteStream`.

    Args:
      max_message_size (int): bytes. `~WsByteStream.send_all` sends its data in messages of at most
          this size. Many peers refuse messages of more than 1 MiB. Messages of any size are sent
          and received in constant memory.
      receive_buffer_size (int): bytes. While no task receives, the stream reads ahead at most this
          much. It is also the maximum size of a text message under `TextPolicy.AS_EVENTS`.
      text (TextPolicy): what the stream does with text messages.
      half_close (HalfClose): when the stream defers its answer to the peer's Close.
      close_timeout (float): seconds. If closing takes longer, the transport is dropped.
      ping_interval (float or None): seconds. If this side has sent nothing for so long, it sends a
          sign of life, so that the peer does not take it for dead. This is a Ping if nothing was
          received either, otherwise a Pong with the payload ``heartbeat`` (RFC 6455, 5.5.3). While
          more than 100 streams are open in this process, each new one has an interval of its own,
          which is up to 10 % shorter, so that they do not all speak at the same moment. None
          switches keepalive off.
      ping_timeout (float or None): seconds. If the peer gives no sign of life for ``ping_interval``
          seconds and then for this time too, the stream ends with `KeepaliveTimeout`. Any byte from
          the peer is a sign of life. Bytes of this side that the peer accepts after a wait are one
          too. Time in which this side does not read is not counted. None: the stream never gives a
          peer up.
      end_codes (frozenset of int): the close codes that mean that the stream is complete, so that
          receiving ends with ``b""``. 1005 stands for a Close without a code. Any other code is an
          `AbnormalClosure`. One of these is 1001, which servers send when they are shut down, maybe
          in the middle of a transfer.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument has a value that is not allowed.
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
    """Raise TypeError if ``config`` is no `StreamConfig`."""
    if not isinstance(config, StreamConfig):
        raise TypeError(f"config must be a StreamConfig, not {config!r}")
