"""Frames to bytes and bytes to payload: RFC 6455, section 5. No I/O, no Trio.

Theory of operation. `Decoder` gets the bytes that arrived, in pieces of any size, and returns
payload as it comes, also from the middle of a frame. So a message of any size passes in constant
memory. Which frame may come next depends on one fact only: whether a fragmented message is
unfinished. So there are two sets of legal first bytes, and a first byte that is not in the current
set is a violation (5.2, 5.4, 5.5).

Binary payload is appended to the list that the caller gave, because no code has to look at it. What
some code must look at is returned as a `Frame`: a control frame, once all of its bytes (131 at
most) have arrived, or a validated piece of a text message. Decoding stops after each `Frame`, so
that the caller can handle it before it decodes more, and continues with the next call.

The decoder does not know how connections are closed. After it has raised `ProtocolViolation` or has
returned a Close, the bytes that follow have no meaning, and its owner must not decode any more.
"""

from __future__ import annotations

import codecs
import functools
import os
import struct
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
_MIN_VIEW: Final = 8192  # bytes: a memoryview of so much is cheaper than a copy
_MAX_BATCH: Final = 256  # binary frames that one call of decode() decodes

Buffer = bytes | bytearray | memoryview

_CONTROL: Final = {FIN | CLOSE, FIN | PING, FIN | PONG}
_LEGAL_OUTSIDE: Final = frozenset(_CONTROL | {TEXT, BINARY, FIN | TEXT, FIN | BINARY})
_LEGAL_INSIDE: Final = frozenset(_CONTROL | {CONTINUATION, FIN | CONTINUATION})
"""The first bytes that a frame may have outside and inside a fragmented message (5.4)."""


def is_valid_close_code(code: int) -> bool:
    """Return whether a Close may carry ``code`` (RFC 6455, 7.4, and the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


@functools.lru_cache(maxsize=256)
def encode_header(first: int, length: int, mask: int = 0) -> bytes:
    """Return the header of a frame without the masking key (5.2).

    Args:
      first (int): the first byte: `FIN` or 0, and the opcode.
      length (int): bytes of payload.
      mask (int): `MASKED` if a masking key will follow, otherwise 0.
    """
    if length < 126:
        return bytes((first, mask | length))
    if length < 65536:
        return bytes((first, mask | 126, length >> 8, length & 255))
    return bytes((first, mask | 127)) + length.to_bytes(8, "big")


@functools.lru_cache(maxsize=256)
def _whole_messages(size: int, mask: int) -> tuple[bytes, int, int]:
    """Return the header that whole unfragmented binary messages of one length have if they take
    ``size`` bytes together, where the payload of the first begins, and where the next message does.

    It is one message, or as many as there can be of at least 64 KiB. If there are none of that
    kind, with payload, the header is empty, and the payload begins at 0.
    """
    count = max(1, size // 65536)
    each, left = divmod(size, count)
    key = 4 if mask else 0
    length = each - 2 - key
    if length > 125:
        length -= 2 if length < 65538 else 8
    if length < 1 or left:
        return b"", 0, each
    header = encode_header(FIN | BINARY, length, mask)
    start = len(header) + key
    return (header, start, each) if start + length == each else (b"", 0, each)


_keys: list[bytes] = []


def fresh_key() -> bytes:
    """Return a masking key of four bytes from the operating system's random source (5.3).

    The system is asked for 1024 keys at a time, because a call takes longer than to mask a short
    frame.
    """
    try:
        return _keys.pop()
    except IndexError:
        _keys.extend(struct.unpack(1024 * "4s", os.urandom(4096)))
        return _keys.pop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keys.clear)  # no two processes use the same keys


def encode(first: int, payload: Buffer, *, client: bool) -> tuple[Buffer, ...]:
    """Return a frame in two buffers: header and payload.

    Args:
      first (int): the first byte: `FIN`, or 0 if another fragment follows (5.4), and the opcode.
      payload: the payload. It is masked with a fresh key if this side is the client (5.3).
      client (bool): whether this side is the client.
    """
    if not client:
        return encode_header(first, len(payload)), payload
    key = fresh_key()
    return encode_header(first, len(payload), MASKED) + key, apply_mask(payload, key)


def encode_close_payload(code: int, reason: str) -> bytes:
    """Return the payload of a Close (5.5.1): an empty one for 1005, "no code" (7.1.5)."""
    return b"" if code == 1005 else code.to_bytes(2, "big") + reason.encode()


def decode_close_payload(payload: bytes) -> tuple[int, str]:
    """Return the code and the reason of a Close; the code is 1005 if the Close has none (7.1.5).

    Raises:
      ProtocolViolation: the payload is not that of a Close. It has close code 1002 or 1007.
    """
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
      opcode (int): `CLOSE`, `PING`, `PONG` or `TEXT`. Continuations of a text message are `TEXT`.
      payload (bytes): the whole payload of a control frame, or the next piece of a text message.
      ends_message (bool): whether no more payload of the message follows.
    """

    opcode: int
    payload: bytes
    ends_message: bool


MORE: Final = Frame(CONTINUATION, b"", False)
"""Means that some bytes have not been decoded yet, and `Decoder.decode` can be called again."""


class Decoder:
    """Decodes the frames of one peer.

    Args:
      client (bool): whether this side is the client. A client's peer must not mask (5.1).

    Attributes:
      left (int): bytes of the current data frame's payload that have not been decoded.
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
        self._data = b""  # fed; its bytes from _position on are not decoded yet
        self._position = 0
        self._legal = _LEGAL_OUTSIDE
        self._kind = BINARY  # of the message that the last data frame belongs to: TEXT or BINARY
        self.left = 0
        self._key = b""  # the current data frame's masking key, rotated to its next byte
        self._utf8: codecs.IncrementalDecoder | None = None  # made for the first text message
        self._failure: ProtocolViolation | None = None  # to be raised by the next call

    @property
    def is_inside_message(self) -> bool:
        """Whether a message has begun and its last byte has not been decoded."""
        return self._legal is _LEGAL_INSIDE or self.left > 0

    def decode_at_once(self, data: bytes | bytearray) -> bytes | bytearray | None:
        """Return the payload of ``data`` if it is one unfragmented binary message, several of the
        same length, or a part of one frame's binary payload.

        This is a fast path. If ``data`` is anything else, or an empty message, or if earlier bytes
        are not decoded, the result is None and nothing has changed; then use `feed` and `decode`.
        """
        if self._position < len(self._data):
            return None
        if self.left:
            if self.left < len(data) or not data or self._kind != BINARY:
                return None  # A header may be in it.
            self.left -= len(data)
            return self._unmask(data) if self._mask else data
        header, start, end = _whole_messages(len(data), self._mask)
        if not start or self._legal is _LEGAL_INSIDE or not data.startswith(header):
            return None
        if end < len(data):
            return self._decode_equal(data, header, start, end)
        if not self._mask:
            return data[start:]
        payload = (data if end < _MIN_VIEW else memoryview(data))[start:]
        return apply_mask(payload, data[start - 4 : start])

    def _decode_equal(
        self, data: bytes | bytearray, header: bytes, start: int, size: int
    ) -> bytes | None:
        """Do the same for several messages of ``size`` bytes each, if all have that header."""
        view = memoryview(data)
        payload: list[Buffer] = []
        for begin in range(0, len(data), size):
            if not data.startswith(header, begin):
                return None
            piece: Buffer = view[begin + start : begin + size]
            if self._mask:
                piece = apply_mask(piece, data[begin + start - 4 : begin + start])
            payload.append(piece)
        return b"".join(payload)

    def feed(self, data: bytes | bytearray) -> None:
        """Add bytes that arrived; `decode` decodes them."""
        if self._position < len(self._data):
            self._data = self._data[self._position :] + data
        else:
            self._data = data if type(data) is bytes else bytes(data)
        self._position = 0

    def decode(self, payload: list[Buffer]) -> Frame | None:
        """Decode up to the next `Frame`, or until there is no more to decode.

        Args:
          payload (list): the binary payload that is decoded is appended here. Some of it may be
              memoryviews of the bytes that were fed.

        Returns:
          A control frame or a piece of text; None if there is nothing more to decode; or `MORE`
          after `_MAX_BATCH` binary frames. A read may hold one frame in every two bytes, and other
          tasks must get their turn.

        Raises:
          ProtocolViolation: the peer broke RFC 6455. ``payload`` has what came before that.
        """
        # This is one long function because its loop runs once for every frame. With frames of
        # 1 KiB, a method call for each frame, and attributes in place of local variables, would
        # cost 5 % of the throughput.
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
        for _ in range(_MAX_BATCH):
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
                        1002, f"a length of {length} that is not encoded as RFC 6455 requires"
                    )
            if mask:
                start += 4
                if start > end:
                    break
            # It is a data frame, and its header is complete.
            if first & 15:
                self._kind = first & 15
            self._legal = _LEGAL_OUTSIDE if first & FIN else _LEGAL_INSIDE
            stop = start + length
            if stop <= end and self._kind == BINARY:  # its payload is complete, too
                whole = (data if length < _MIN_VIEW else memoryview(data))[start:stop]
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
        # Do not keep the decoded bytes: they may be many, and the next bytes may come much later.
        self._data, self._position = data[position:], 0
        return None

    def _take_piece(self) -> Buffer:
        """Take the part of the current data frame's payload that has arrived, and unmask it."""
        start = self._position
        end = len(self._data)
        stop = min(end, start + self.left)
        # A slice that is the whole of a bytes object is no copy.
        is_all_or_small = stop - start == end or stop - start < _MIN_VIEW
        piece: Buffer = (self._data if is_all_or_small else memoryview(self._data))[start:stop]
        if self._mask:
            piece = self._unmask(piece)
        self.left -= len(piece)
        self._position = stop
        return piece

    def _unmask(self, piece: Buffer) -> bytes:
        """Unmask the next piece of the current data frame's payload."""
        key = self._key
        if turn := len(piece) & 3:
            self._key = key[turn:] + key[:turn]
        return apply_mask(piece, key)

    def _text(self, piece: bytes) -> Frame:
        """Return a piece of a text message as a `Frame`, after checking that it is UTF-8 (8.1).

        If it is not, the frame has the bytes before the wrong one, and the next call of `decode`
        raises `ProtocolViolation`.
        """
        ends_message = not self.is_inside_message
        wrong = self._find_wrong_byte(piece, ends_message)
        if wrong is not None:
            self._failure = ProtocolViolation(1007, "a text message that is not UTF-8")
            self._data, self._position, self.left = b"", 0, 0
            return Frame(TEXT, piece[:wrong], False)
        return Frame(TEXT, piece, ends_message)

    def _find_wrong_byte(self, piece: bytes, ends_message: bool) -> int | None:
        """Return the index of the first byte of ``piece`` that cannot occur in UTF-8, or None.

        Python's decoder holds the bytes of an unfinished character from one piece to the next.
        """
        if self._utf8 is None:
            self._utf8 = codecs.getincrementaldecoder("utf-8")()
        held = len(self._utf8.getstate()[0])
        try:
            self._utf8.decode(piece, ends_message)
        except UnicodeDecodeError as error:
            # A byte that cannot begin a character is wrong itself. After one that can, the wrong
            # byte is the one that does not continue the character.
            leads = 0xC2 <= error.object[error.start] <= 0xF4
            return (error.end if leads else error.start) - held
        unfinished = self._utf8.getstate()[0]
        if unfinished[:1] == b"\xed" and unfinished[1:2] >= b"\xa0":
            # This is the beginning of a surrogate, which UTF-8 does not have. Python would wait for
            # its third byte before it raises an error.
            return len(piece) - len(unfinished) + 1
        return None

    def _refuse(self, first: int, second: int) -> None:
        """Raise `ProtocolViolation` for the first two bytes of a frame (5.1, 5.2, 5.4, 5.5)."""
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
