"""RFC 6455 once more, as plainly as can be: what a whole stream of bytes says.

It knows nothing of reads that cut frames, and is in no hurry. The fuzz targets compare with it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import NamedTuple

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Binary(NamedTuple):
    """What there is of the payload of a binary frame."""

    payload: bytes


class Text(NamedTuple):
    """What there is, and is valid, of the payload of a text frame."""

    payload: bytes
    ends_message: bool


class Control(NamedTuple):
    """A control frame. Nothing counts that comes after a Close."""

    opcode: int
    payload: bytes
    is_inside_message: bool


class Wrong(NamedTuple):
    """The frame that broke the rules, or the text that did; nothing counts after it."""

    code: int


Part = Binary | Text | Control | Wrong


def read(data: bytes, *, from_client: bool) -> Iterator[Part]:
    """What ``data`` says; a frame that is not complete counts as far as it matters."""
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
            if opcode == CLOSE:
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
"""Some of these completes any character of UTF-8 that has begun."""


def longest_valid(text: bytes, *, is_whole: bool) -> int:
    """How many bytes there are before the first with which ``text`` cannot be UTF-8 any more."""
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
    """Code and reason of a Close."""
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    unassigned = code in (1004, 1005, 1006, 1015) or 1015 < code < 3000
    if len(payload) == 1 or not 1000 <= code < 5000 or unassigned:
        return Wrong(1002)
    if not is_utf8(payload[2:]):
        return Wrong(1007)
    return code, payload[2:].decode()
