"""A second decoder of RFC 6455, written as plainly as possible, for a whole stream of bytes.

It has all bytes at once, so no read cuts a frame, and it need not be fast. The fuzz targets compare
the library with it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import NamedTuple

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Binary(NamedTuple):
    """The payload of a binary frame, as far as it is there."""

    payload: bytes


class Text(NamedTuple):
    """The payload of a text frame, as far as it is there and is valid UTF-8."""

    payload: bytes
    ends_message: bool


class Control(NamedTuple):
    """A control frame. Everything after a Close is ignored."""

    opcode: int
    payload: bytes
    is_inside_message: bool


class Wrong(NamedTuple):
    """A frame or a text that broke the rules. Everything after it is ignored."""

    code: int


Part = Binary | Text | Control | Wrong


def read(data: bytes, *, from_client: bool, beyond_close: bool = False) -> Iterator[Part]:
    """Yield what ``data`` means. An incomplete data frame yields the payload that is there."""
    opcode_of_message = None  # while one is unfinished
    text = b""
    while len(data) >= 2:
        is_last, reserved, opcode = data[0] >> 7, data[0] >> 4 & 7, data[0] & 15
        is_masked, length = data[1] >> 7, data[1] & 127
        starts, goes_on = opcode in (TEXT, BINARY), opcode == CONT
        is_control = opcode in (CLOSE, PING, PONG)
        if (
            reserved
            or not (starts or goes_on or is_control)
            or bool(is_masked) is not from_client
            or (is_control and (not is_last or length > 125))
            or (starts and opcode_of_message is not None)
            or (goes_on and opcode_of_message is None)
        ):
            yield Wrong(1002)
            return
        start = 2
        if length > 125:
            size, least = (2, 126) if length == 126 else (8, 65536)
            start += size
            if len(data) < start:
                return
            length = int.from_bytes(data[2:start], "big")
            if not least <= length < 1 << 63:
                yield Wrong(1002)
                return
        start += 4 * is_masked
        if len(data) < start + (length if is_control else 0):
            return
        key = itertools.cycle(data[start - 4 : start] if is_masked else b"\0")
        payload = bytes(a ^ b for a, b in zip(data[start : start + length], key, strict=False))
        is_complete = len(payload) == length
        data = data[start + length :]
        if is_control:
            yield Control(opcode, payload, opcode_of_message is not None)
            if opcode == CLOSE and not beyond_close:
                return
            continue
        opcode = opcode or opcode_of_message or 0
        ends_message = bool(is_last and is_complete)
        if opcode == TEXT:
            text = text + payload if goes_on else payload
            valid = longest_valid(text, is_whole=ends_message)
            if valid < len(text) or (ends_message and not is_utf8(text)):
                yield Text(payload[: len(payload) + valid - len(text)], False)
                yield Wrong(1007)
                return
            yield Text(payload, ends_message)
        else:
            yield Binary(payload)
        opcode_of_message = None if ends_message else opcode


TAILS = [bytes(tail) for n in range(4) for tail in itertools.product((0x80, 0xBF), repeat=n)]
"""One of these completes any UTF-8 character whose first bytes are there."""


def longest_valid(text: bytes, *, is_whole: bool) -> int:
    """Return how many bytes come before the first one after which ``text`` cannot be UTF-8."""
    if is_utf8(text):
        return len(text)

    def is_wrong(length: int) -> bool:
        return not any(is_utf8(text[:length] + tail) for tail in TAILS)

    return bisect.bisect_left(range(len(text) + 1), True, key=is_wrong) - 1


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_close(payload: bytes) -> tuple[int, str] | Wrong:
    """Return the code and the reason in the payload of a Close."""
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    unassigned = code in (1004, 1005, 1006, 1015) or 1015 < code < 3000
    if len(payload) == 1 or not 1000 <= code < 5000 or unassigned:
        return Wrong(1002)
    if not is_utf8(payload[2:]):
        return Wrong(1007)
    return code, payload[2:].decode()
