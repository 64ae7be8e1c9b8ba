"""Frames to bytes, bytes to payload: RFC 6455, section 5. No I/O, no Trio.

Theory of operation. `Decoder` is given the bytes that arrived, in pieces of any size, and
hands out payload as it comes, also in the middle of a frame: a message of any size passes in
constant memory. What the next frame may be depends on one thing only, whether a fragmented
message is unfinished; so there are two sets of first bytes that are legal, and everything
that is not in the current set is a violation (5.2, 5.4, 5.5).

Binary payload goes straight to the list that the caller gave; nobody has to look at it. Only
what somebody must look at comes back as a `Frame`: a control frame, when all its bytes (131 at
the most) are there, and text, piece by piece and validated. Decoding stops at each of these,
so that its reader can make it wait, and goes on with the next call.

The decoder knows nothing of closing. After it has raised `ProtocolViolation`, or has handed
out a Close, what follows has no meaning, and its owner asks no more.
"""

from __future__ import annotations

import codecs
import functools
import os
from typing import Final, NamedTuple

from ._errors import ProtocolViolation
from ._masking import apply_mask

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FIN: Final = 0x80
MASKED: Final = 0x80
MAX_CONTROL_PAYLOAD: Final = 125
MAX_HEADER: Final = 14
_VIEWED: Final = 8192
_SILENT_FRAMES: Final = 256  # binary frames that one call decodes

Buffer = bytes | bytearray | memoryview

_CONTROL: Final = {FIN | CLOSE, FIN | PING, FIN | PONG}
_LEGAL_OUTSIDE: Final = frozenset(_CONTROL | {TEXT, BINARY, FIN | TEXT, FIN | BINARY})
_LEGAL_INSIDE: Final = frozenset(_CONTROL | {CONTINUATION, FIN | CONTINUATION})
"""The first bytes that a frame may have outside and inside a fragmented message."""


def is_valid_close_code(code: int) -> bool:
    """Whether a Close may carry ``code`` (RFC 6455, 7.4, and the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


@functools.lru_cache(maxsize=256)
def encode_header(first: int, length: int, mask: int = 0) -> bytes:
    """The header of a frame, without the masking key (5.2)."""
    if length < 126:
        return bytes((first, mask | length))
    if length < 65536:
        return bytes((first, mask | 126, length >> 8, length & 255))
    return bytes((first, mask | 127)) + length.to_bytes(8, "big")


_keys: list[bytes] = []


def fresh_key() -> bytes:
    """A masking key from the operating system's random source (5.3), asked once for many."""
    try:
        return _keys.pop()
    except IndexError:
        pool = os.urandom(4096)
        _keys.extend([pool[i : i + 4] for i in range(0, 4096, 4)])
        return _keys.pop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keys.clear)  # no key is used twice


def encode(opcode: int, payload: Buffer, *, client: bool) -> tuple[Buffer, ...]:
    """A whole message as one frame: its header and its payload; masked by a client (5.3)."""
    if not client:
        return encode_header(FIN | opcode, len(payload)), payload
    key = fresh_key()
    return encode_header(FIN | opcode, len(payload), MASKED) + key, apply_mask(payload, key)


def encode_close_payload(code: int, reason: str) -> bytes:
    """The payload of a Close; none for 1005, which stands for "no code" (5.5.1, 7.1.5)."""
    return b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()


def decode_close_payload(payload: bytes) -> tuple[int, str]:
    """Code and reason of a Close; raises `ProtocolViolation` (1002 or 1007)."""
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise ProtocolViolation(1002, "a Close of one byte")
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_close_code(code):
        raise ProtocolViolation(1002, f"a Close with code {code}")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolViolation(1007, "a Close reason that is not UTF-8") from None


class Frame(NamedTuple):
    """A control frame, or a piece of a text message.

    Attributes:
      opcode (int): `CLOSE`, `PING`, `PONG` or `TEXT` (for its continuations, too).
      payload (bytes): all of a control frame's, what there is of a text message's.
      ends_message (bool): nothing more belongs to it.
    """

    opcode: int
    payload: bytes
    ends_message: bool


MORE: Final = Frame(CONTINUATION, b"", False)
"""Not all is decoded: the decoder can be asked again at once."""


class Decoder:
    """The frames that come from one peer.

    Args:
      client (bool): whether this side is the client, whose peer must not mask (5.1).

    Attributes:
      left (int): bytes of the current data frame's payload that are still to come.
    """

    __slots__ = (
        "_data",
        "_failure",
        "_key",
        "_kind",
        "_legal",
        "_mask",
        "_position",
        "_utf8",
        "left",
    )

    def __init__(self, *, client: bool) -> None:
        self._mask = 0 if client else MASKED
        self._data = b""  # what was fed and is not decoded yet, from _position on
        self._position = 0
        self._legal = _LEGAL_OUTSIDE
        self._kind = BINARY  # of the message that the last data frame belongs to
        self.left = 0
        self._key = b""  # the current data frame's masking key, as its next byte needs it
        self._utf8: codecs.IncrementalDecoder | None = None  # made with the first text message
        self._failure: ProtocolViolation | None = None  # to be raised next time

    @property
    def is_inside_message(self) -> bool:
        """Whether a message has begun whose last byte has not been decoded."""
        return self._legal is _LEGAL_INSIDE or self.left > 0

    def decode_message(self, data: bytes | bytearray) -> bytes | bytearray | None:
        """The payload of ``data`` if it is one unfragmented binary message, no more and no less,
        that is not empty; else None, and nothing has happened: it is for `feed`.
        """
        length = len(data) - (6 if self._mask else 2)
        if length > 125:
            length -= 2 if length < 65538 else 8
        if length < 1 or self.is_inside_message or self._position < len(self._data):
            return None
        start = len(data) - length
        header = encode_header(FIN | BINARY, length, self._mask)
        if not data.startswith(header) or len(header) + (4 if self._mask else 0) != start:
            return None
        if not self._mask:
            return data[start:]
        payload = (data if length < _VIEWED else memoryview(data))[start:]
        return apply_mask(payload, data[start - 4 : start])

    def feed(self, data: bytes | bytearray) -> None:
        """Add bytes that arrived."""
        if self._position < len(self._data):
            self._data = self._data[self._position :] + data
        else:
            self._data = data if type(data) is bytes else bytes(data)
        self._position = 0

    def decode(self, payload: list[Buffer]) -> Frame | None:
        """Decode up to the next `Frame`, or until there is no more to decode.

        Args:
          payload: a list to which the binary payload on the way is appended, partly as views of
              what was fed.

        Returns:
          A frame that somebody must look at; None when all that was fed is decoded; `MORE`
          when that would take long: there may be one frame for every two bytes.

        Raises:
          ProtocolViolation: the peer broke the RFC. ``payload`` has what came before it.
        """
        # One long function, because the loop runs once for every frame: with frames of 1 KiB,
        # a call for each and its attributes in place of locals cost 5 % of all throughput.
        data, position, mask = self._data, self._position, self._mask
        end = len(data)
        if self._failure:
            raise self._failure
        if self.left and position < end:
            piece = self._take_piece()
            if self._kind == TEXT:
                return self._text(bytes(piece))
            payload.append(piece)
            position = self._position
        for _ in range(_SILENT_FRAMES):
            if end - position <= 1:
                break
            first, second = data[position], data[position + 1]
            if first not in self._legal or (second ^ mask) & MASKED:
                self._refuse(first, second)
            length = second & 127
            start = position + 2
            if first & 0x08:  # a control frame
                if length > MAX_CONTROL_PAYLOAD:
                    raise ProtocolViolation(1002, "a control frame longer than 125 bytes")
                stop = start + length + (4 if mask else 0)
                if stop > end:
                    break
                self._position = stop
                if mask:
                    return Frame(
                        first & 15,
                        apply_mask(data[start + 4 : stop], data[start : start + 4]),
                        True,
                    )
                return Frame(first & 15, data[start:stop], True)
            if length > 125:
                start += 2 if length == 126 else 8
                if start > end:
                    break
                shortest = 126 if length == 126 else 65536
                length = int.from_bytes(data[position + 2 : start], "big")
                if length < shortest or length >> 63:
                    raise ProtocolViolation(
                        1002, f"a length of {length} not as RFC 6455 encodes it"
                    )
            if mask:
                start += 4
                if start > end:
                    break
            # A data frame whose header is complete.
            if first & 15:
                self._kind = first & 15
            self._legal = _LEGAL_OUTSIDE if first & FIN else _LEGAL_INSIDE
            stop = start + length
            if stop <= end and self._kind == BINARY:  # and whose payload is, too
                # From some KiB on, a view is cheaper than a copy.
                whole = (data if length < _VIEWED else memoryview(data))[start:stop]
                if mask:
                    payload.append(apply_mask(whole, data[start - 4 : start]))
                elif length:
                    payload.append(whole)
                position = stop
                continue
            self.left = length
            self._position = position = start
            if mask:
                self._key = data[start - 4 : start]
            if self._kind == TEXT:
                return self._text(bytes(self._take_piece()))
            if position < end:
                payload.append(self._take_piece())
                position = self._position
        else:
            self._position = position
            return MORE
        # What is decoded may be long, and the next bytes may be long in coming.
        self._data, self._position = data[position:], 0
        return None

    def _take_piece(self) -> Buffer:
        """What there is of the current data frame's payload."""
        start = self._position
        end = len(self._data)
        stop = min(end, start + self.left)
        # No copy, if it is all; and from some KiB on, a view is cheaper.
        is_all_or_small = stop - start == end or stop - start < _VIEWED
        piece: Buffer = (self._data if is_all_or_small else memoryview(self._data))[start:stop]
        if self._mask:
            piece = apply_mask(piece, self._key)
            turn = len(piece) & 3
            self._key = self._key[turn:] + self._key[:turn]
        self.left -= len(piece)
        self._position = stop
        return piece

    def _text(self, piece: bytes) -> Frame:
        """Validate a piece of a text message (8.1). What comes before a wrong byte comes first."""
        ends_message = not self.is_inside_message
        wrong = self._find_wrong_byte(piece, ends_message)
        if wrong is not None:
            self._failure = ProtocolViolation(1007, "a text message that is not UTF-8")
            self._data, self._position, self.left = b"", 0, 0
            return Frame(TEXT, piece[:wrong], False)
        return Frame(TEXT, piece, ends_message)

    def _find_wrong_byte(self, piece: bytes, ends_message: bool) -> int | None:
        """The index of the byte with which the message cannot be UTF-8 any more."""
        if self._utf8 is None:
            self._utf8 = codecs.getincrementaldecoder("utf-8")()
        held = len(self._utf8.getstate()[0])
        try:
            self._utf8.decode(piece, ends_message)
        except UnicodeDecodeError as error:
            # The first byte of its sequence, or the one that does not go on with it.
            leads = 0xC2 <= error.object[error.start] <= 0xF4
            return (error.end if leads else error.start) - held
        unfinished = self._utf8.getstate()[0]
        if unfinished[:1] == b"\xed" and unfinished[1:2] >= b"\xa0":
            return len(piece) - len(unfinished) + 1  # a surrogate: Python waits for all of it
        return None

    def _refuse(self, first: int, second: int) -> None:
        """Say what is wrong with the first two bytes of a frame (5.1, 5.2, 5.4, 5.5)."""
        opcode = first & 15
        if first & 0x70:
            wrong = f"reserved bits {(first >> 4) & 7:03b}"
        elif opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            wrong = f"unknown opcode {opcode:#x}"
        elif (second ^ self._mask) & MASKED:
            wrong = (
                "an unmasked frame from a client" if self._mask else "a masked frame from a server"
            )
        elif opcode & 0x08:
            wrong = "a fragmented control frame"
        elif opcode == CONTINUATION:
            wrong = "a continuation of no message"
        else:
            wrong = "a new message inside a fragmented one"
        raise ProtocolViolation(1002, wrong)
