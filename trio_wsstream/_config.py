"""The settings of a stream."""

from __future__ import annotations

import enum
import math
from typing import Any

import attrs


class TextPolicy(enum.Enum):
    """What becomes of a text message, which a byte stream has no place for."""

    REJECT = "reject"
    """Fail the connection with 1003."""
    AS_BYTES = "as bytes"
    """Its UTF-8 becomes part of the stream."""
    AS_EVENTS = "as events"
    """It is kept out of the stream and told as `TextReceived`."""


class HalfClose(enum.Enum):
    """When the answer to the peer's Close is held back, so that this side may go on sending."""

    AUTO = "auto"
    """For the half-close of another `WsByteStream`: Close 1000 with the reason ``half-close``."""
    ALWAYS = "always"
    """For every Close 1000, 1001 and 1005."""
    NEVER = "never"
    """For none."""


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


def check_seconds(name: str, value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    assert isinstance(value, int | float)
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be at least 0 seconds, not {value!r}")
    return value


def check_several(name: str, value: object) -> None:
    if isinstance(value, str | bytes):
        raise TypeError(f"{name} must be several, not {value!r}")


def _a_timeout(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_seconds(attribute.name, value)


def _an_interval(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and check_seconds(attribute.name, value) == 0:
        raise ValueError(f"{attribute.name} must be more than 0 seconds or None, not {value!r}")


@attrs.frozen
class StreamConfig:
    """The settings of a `WsByteStream`; a wrong one is a `ValueError` or a `TypeError`.

    Args:
      max_message_size (int): `~WsByteStream.send_all` cuts what it sends into messages of at
          most this many bytes. Many peers refuse messages of more than 1 MiB. Messages of any
          size are sent, and received, in constant memory.
      receive_buffer_size (int): how many unread bytes are read ahead while no task receives,
          and how long (in bytes) a text message may be under `TextPolicy.AS_EVENTS`.
      text (TextPolicy): what becomes of text messages.
      half_close (HalfClose): when the answer to the peer's Close is held back.
      close_timeout (float): how many seconds closing may take before the transport is dropped.
      ping_interval (float or None): after how many seconds without a sign of life from the
          peer a keepalive ping is sent. None switches keepalive off.
      ping_timeout (float or None): how many more seconds without a sign of life end the
          stream with `KeepaliveTimeout`. None: pings are sent, but nothing is demanded. That
          suits peers that may pause for long while this side sends: then pings cannot pass. Nor
          can they after a frame that was cut off; a peer that is silent then is given up, too.
    """

    max_message_size: int = attrs.field(default=65536, validator=_a_count)
    receive_buffer_size: int = attrs.field(default=262144, validator=_a_count)
    text: TextPolicy = attrs.field(default=TextPolicy.REJECT, validator=_an_enum(TextPolicy))
    half_close: HalfClose = attrs.field(default=HalfClose.AUTO, validator=_an_enum(HalfClose))
    close_timeout: float = attrs.field(default=10.0, validator=_a_timeout)
    ping_interval: float | None = attrs.field(default=20.0, validator=_an_interval)
    ping_timeout: float | None = attrs.field(default=20.0, validator=_an_interval)


def check_config(config: object) -> None:
    if not isinstance(config, StreamConfig):
        raise TypeError(f"config must be a StreamConfig, not {config!r}")
