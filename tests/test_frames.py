"""RFC 6455, section 5, with bytes alone: what a frame may be, and that no cut of it matters."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trio_wsstream import ProtocolViolation, _masking
from trio_wsstream._frames import (
    FIN,
    MASKED,
    MAX_HEADER,
    Buffer,
    Decoder,
    Frame,
    decode_close_payload,
    encode,
    encode_close_payload,
    encode_header,
    is_valid_close_code,
)
from trio_wsstream._masking import apply_mask

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, chop, close_payload, frame

LENGTHS = [0, 1, 125, 126, 65535, 65536]
"""Both ends of each of the three ways to encode a length (5.2)."""

"""Which side is tested: a server's peer masks, a client's does not."""


class Decoded(NamedTuple):
    payload: bytes
    """Of data frames, text and binary."""
    frames: list[Frame]
    """Control frames, and the last pieces of text messages, without their payload."""
    violation: tuple[int, str] | None

    @property
    def close_code(self) -> int | None:
        return None if self.violation is None else self.violation[0]


def decode_step(decoder: Decoder, chunk: bytes) -> Decoded:
    """Feed one chunk, and decode all of it."""
    decoder.feed(chunk)
    payload: list[Buffer] = []
    frames = []
    try:
        while (seen := decoder.decode(payload)) is not None:
            if seen.opcode == TEXT:
                payload.append(seen.payload)
                seen = seen._replace(payload=b"")
            if seen.ends_message:
                frames.append(seen)
    except ProtocolViolation as error:
        return Decoded(b"".join(payload), frames, (error.close_code, error.reason))
    return Decoded(b"".join(payload), frames, None)


def decode(chunks: Iterable[bytes], *, client: bool) -> Decoded:
    """Decode chunk after chunk, up to a violation."""
    decoder = Decoder(client=client)
    payload, frames = b"", []
    for chunk in chunks:
        step = decode_step(decoder, chunk)
        payload += step.payload
        frames += step.frames
        if step.violation:
            return Decoded(payload, frames, step.violation)
    return Decoded(payload, frames, None)


def pattern(length: int) -> bytes:
    """Return payload in which no piece is equal to its neighbour."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def header_length(length: int, *, masked: bool) -> int:
    return 2 + (0 if length < 126 else 2 if length < 65536 else 8) + (4 if masked else 0)


def cuts(length: int, *, masked: bool) -> list[int]:
    """Return where to cut a frame: everywhere if it is short, else where something changes."""
    header = header_length(length, masked=masked)
    total = header + length
    if total < 200:
        return list(range(total + 1))
    middle = [total // 3, 4096, total // 2 + 1]
    return [*range(header + 9), *middle, *range(total - 5, total + 1)]


def one_by_one(data: bytes) -> list[bytes]:
    return chop(data, range(len(data)))


# Payload on its way


@pytest.mark.parametrize("length", LENGTHS)
@SIDES
def test_payload_comes_out_as_it_comes_in_wherever_a_frame_is_cut(
    length: int, client: bool
) -> None:
    payload = pattern(length)
    data = frame(BINARY, payload, masked=not client)
    header = header_length(length, masked=not client)
    assert len(data) == header + length <= MAX_HEADER + length
    for cut in cuts(length, masked=not client):
        decoder = Decoder(client=client)
        before = decode_step(decoder, data[:cut])
        assert before == (payload[: max(0, cut - header)], [], None)
        assert decoder.is_inside_message is (header <= cut < len(data))
        after = decode_step(decoder, data[cut:])
        assert before.payload + after.payload == payload
        assert after[1:] == ([], None)
        assert not decoder.is_inside_message


@SIDES
@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, 140_000), max_size=10))
def test_frames_of_all_lengths_in_a_row_come_out_however_they_are_cut(
    client: bool, cuts: list[int]
) -> None:
    data = b"".join(frame(BINARY, pattern(length), masked=not client) for length in LENGTHS)
    decoded = decode(chop(data, cuts), client=client)
    assert decoded == (b"".join(map(pattern, LENGTHS)), [], None)


@SIDES
def test_a_fragmented_message_comes_out_one_byte_at_a_time_and_pings_with_it(
    client: bool,
) -> None:
    frames = [(BINARY, b"ab", False), (PING, b"?", True), (CONT, b"", False), (CONT, b"c", True)]
    data = b"".join(
        frame(opcode, payload, fin=fin, masked=not client) for opcode, payload, fin in frames
    )
    whole = decode([data], client=client)
    assert whole == (b"abc", [Frame(PING, b"?", True)], None)
    assert decode(one_by_one(data), client=client) == whole


@SIDES
def test_the_legal_first_bytes_change_with_each_message(client: bool) -> None:
    message = [(BINARY, b"a", False), (CONT, b"b", True), (TEXT, b"c", False), (CONT, b"d", True)]
    data = b"".join(
        frame(opcode, payload, fin=fin, masked=not client) for opcode, payload, fin in message * 2
    )
    assert decode([data], client=client).payload == b"abcdabcd"


def test_a_chunk_that_is_all_payload_is_handed_on_uncopied() -> None:
    decoder = Decoder(client=True)
    payload: list[Buffer] = []
    decoder.feed(encode_header(FIN | BINARY, 30_000))
    assert decoder.decode(payload) is None
    for chunk in [bytes(1000), bytes(25_000)]:
        decoder.feed(chunk)
        assert decoder.decode(payload) is None
        assert payload[-1] is chunk


def test_text_that_is_a_whole_chunk_is_handed_on_uncopied() -> None:
    decoder = Decoder(client=True)
    decoder.feed(encode_header(FIN | TEXT, 3000))
    assert decoder.decode([]) == (TEXT, b"", False)
    chunk = b"t" * 1000
    decoder.feed(chunk)
    seen = decoder.decode([])
    assert seen is not None
    assert seen.payload is chunk


def test_a_long_piece_of_text_is_a_bytes_object() -> None:
    decoder = Decoder(client=True)
    decoder.feed(encode_header(FIN | TEXT, 90_000) + b"t" * 40_000)
    first = decoder.decode([])
    decoder.feed(b"t" * 50_000 + encode_header(FIN | PING, 0))
    for seen, size in [(first, 40_000), (decoder.decode([]), 50_000)]:
        assert seen is not None
        assert type(seen.payload) is bytes
        assert len(seen.payload) == size


@SIDES
@pytest.mark.parametrize("cut", [20_000, 70_000, 70_014])
@pytest.mark.parametrize("unfinished", [b"", b"\x82"])
def test_decoded_bytes_are_not_kept(unfinished: bytes, cut: int, client: bool) -> None:
    """A stream that is idle after a long read must keep none of its bytes."""
    decoder = Decoder(client=client)
    data = frame(BINARY, bytes(70_000), masked=not client)[:cut] + unfinished
    before = sys.getrefcount(data)
    decoder.feed(data)
    payload: list[Buffer] = []
    assert decoder.decode(payload) is None
    assert sum(map(len, payload)) == decoder.left * -1 + 70_000
    payload.clear()
    assert sys.getrefcount(data) == before


def test_a_bytearray_can_be_reused_after_it_was_fed() -> None:
    decoder = Decoder(client=True)
    data = bytearray(frame(BINARY, b"payload", masked=False))
    decoder.feed(data)
    data[:] = bytes(len(data))
    payload: list[Buffer] = []
    decoder.decode(payload)
    assert payload == [b"payload"]


@SIDES
def test_a_message_of_enormous_length_passes_piece_by_piece(client: bool) -> None:
    key = b"" if client else b"\x01\x23\x45\x67"
    header = encode_header(FIN | BINARY, 2**62, 0 if client else MASKED) + key
    decoder = Decoder(client=client)
    assert decode_step(decoder, header) == (b"", [], None)
    for size in [65536, 1, 2, 65533, 3]:  # the masking key goes on across uneven pieces
        piece = pattern(size)
        masked = apply_mask(piece, key) if key else piece
        assert decode_step(decoder, masked).payload == piece
        key = key[size % 4 :] + key[: size % 4]
    assert decoder.is_inside_message


@SIDES
def test_decoding_stops_at_each_frame_that_somebody_must_look_at(client: bool) -> None:
    sent = [(PING, b"1"), (BINARY, b"a"), (PONG, b"2"), (TEXT, b"t"), (BINARY, b"b"), (CLOSE, b"")]
    decoder = Decoder(client=client)
    decoder.feed(b"".join(frame(*each, masked=not client) for each in sent))
    payload: list[Buffer] = []
    seen = []
    while (each := decoder.decode(payload)) is not None:
        seen.append((*each, b"".join(payload)))
    assert seen == [
        (PING, b"1", True, b""),
        (PONG, b"2", True, b"a"),
        (TEXT, b"t", True, b"a"),
        (CLOSE, b"", True, b"ab"),
    ]


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
@pytest.mark.parametrize("length", [0, 1, 125])
@SIDES
def test_a_control_frame_comes_when_all_of_it_is_there(
    opcode: int, length: int, client: bool
) -> None:
    data = frame(opcode, pattern(length), masked=not client)
    for cut in range(len(data)):
        decoder = Decoder(client=client)
        assert decode_step(decoder, data[:cut]) == (b"", [], None)
        last = decode_step(decoder, data[cut:])
        assert last.frames == [Frame(opcode, pattern(length), True)]


# Violations


def header_outside_or_inside(first: int, *, inside: bool, client: bool) -> bytes:
    """Return frames. The last one begins with ``first``, after or inside a message."""
    begun = frame(BINARY, b"begun", fin=False, masked=not client)
    ended = b"" if inside else frame(CONT, masked=not client)
    return begun + ended + frame(first & 0x7F, fin=bool(first & FIN), masked=not client)


@pytest.mark.parametrize(
    ("inside", "legal"),
    [
        (False, {0x01, 0x02, 0x81, 0x82, 0x88, 0x89, 0x8A}),
        (True, {0x00, 0x80, 0x88, 0x89, 0x8A}),
    ],
    ids=["outside", "inside"],
)
@SIDES
def test_of_all_first_bytes_only_the_legal_ones_pass(
    inside: bool, legal: set[int], client: bool
) -> None:
    passed = set()
    for first in range(256):
        data = header_outside_or_inside(first, inside=inside, client=client)
        decoded = decode([data], client=client)
        assert decoded.payload == b"begun"
        assert decoded.close_code in (None, 1002)
        if decoded.violation is None:
            passed.add(first)
    assert passed == legal


def bad(first: int, second: int, rest: bytes = b"") -> Callable[[bool], bytes]:
    """Return the first bytes of a bad frame to a client, and of a masked one to a server."""
    return lambda client: bytes((first, second | (0 if client else MASKED))) + rest


VIOLATIONS = {
    "reserved bit 1": (bad(FIN | 0x40 | BINARY, 0), "reserved bits 100"),
    "reserved bit 2": (bad(FIN | 0x20 | TEXT, 0), "reserved bits 010"),
    "reserved bit 3": (bad(FIN | 0x10 | PING, 0), "reserved bits 001"),
    **{
        f"opcode {opcode}": (bad(FIN | opcode, 0), f"unknown opcode {opcode:#x}")
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    "fragmented ping": (bad(PING, 0), "a fragmented control frame"),
    "fragmented pong": (bad(PONG, 0), "a fragmented control frame"),
    "fragmented Close": (bad(CLOSE, 0), "a fragmented control frame"),
    "ping of 126 bytes": (bad(FIN | PING, 126), "longer than 125"),
    "pong of 126 bytes": (bad(FIN | PONG, 126), "longer than 125"),
    "Close of 65536 bytes": (bad(FIN | CLOSE, 127), "longer than 125"),
    "0 in 16 bits": (bad(FIN | BINARY, 126, b"\x00\x00"), "a length of 0"),
    "125 in 16 bits": (bad(FIN | BINARY, 126, b"\x00\x7d"), "a length of 125"),
    "125 in 64 bits": (bad(FIN | BINARY, 127, bytes(7) + b"\x7d"), "a length of 125"),
    "65535 in 64 bits": (bad(BINARY, 127, bytes(6) + b"\xff\xff"), "a length of 65535"),
    "top bit of the length": (bad(FIN | BINARY, 127, b"\x80" + bytes(7)), f"of {2**63}"),
    "all bits of the length": (bad(FIN | TEXT, 127, b"\xff" * 8), f"of {2**64 - 1}"),
    "continuation of nothing": (bad(CONT, 0), "a continuation of no message"),
    "last continuation of nothing": (bad(FIN | CONT, 0), "a continuation of no message"),
    "unmasked, or masked": (
        lambda client: bytes((FIN | BINARY, MASKED if client else 0)),
        "masked frame from a",
    ),
}


@pytest.mark.parametrize(("make", "said"), VIOLATIONS.values(), ids=VIOLATIONS)
@SIDES
def test_a_bad_header_is_refused_at_its_last_byte_and_what_came_before_counts(
    make: Callable[[bool], bytes], said: str, client: bool
) -> None:
    before = frame(BINARY, b"before", masked=not client) + frame(PONG, b"p", masked=not client)
    header = make(client)
    assert decode([before + header[:-1]], client=client).violation is None
    decoded = decode([before + header], client=client)
    assert decoded[:2] == (b"before", [Frame(PONG, b"p", True)])
    assert decoded.violation is not None
    assert decoded.close_code == 1002
    assert said in decoded.violation[1]
    assert decode(one_by_one(before + header), client=client) == decoded


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [False, True])
@SIDES
def test_a_new_message_inside_a_fragmented_one_is_refused(
    opcode: int, fin: bool, client: bool
) -> None:
    data = frame(BINARY, b"a", fin=False, masked=not client) + frame(
        opcode, b"b", fin=fin, masked=not client
    )
    assert decode([data], client=client) == (
        b"a",
        [],
        (1002, "a new message inside a fragmented one"),
    )


@SIDES
def test_masking_is_checked_for_every_frame(client: bool) -> None:
    good = frame(BINARY, b"good", masked=not client)
    for opcode in [BINARY, TEXT, PING, PONG, CLOSE]:
        decoded = decode([good + frame(opcode, masked=client)], client=client)
        assert decoded[:2] == (b"good", [])
        assert decoded.close_code == 1002


# Close


def decode_close(payload: bytes) -> tuple[int, str] | ProtocolViolation:
    try:
        return decode_close_payload(payload)
    except ProtocolViolation as violation:
        return violation


def test_a_close_may_have_the_registered_codes_and_no_other() -> None:
    allowed = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in range(65536):
        assert decode_close(close_payload(code, "why")) == (
            (code, "why")
            if code in allowed
            else ProtocolViolation(1002, f"a Close with code {code}")
        )
    assert {code for code in range(-1, 70000) if is_valid_close_code(code)} == allowed


@pytest.mark.parametrize(
    ("payload", "close_code"),
    [
        (b"\x03", 1002),
        (b"\x00\x00", 1002),
        (close_payload(1005), 1002),
        (close_payload(1005) + b"\xff", 1002),
        (close_payload(1000) + b"\xff", 1007),
        (close_payload(1000) + "cut: ä".encode()[:-1], 1007),
        (close_payload(4000) + b"surrogate: \xed\xa0\x80", 1007),
    ],
)
def test_a_bad_close_is_a_violation(payload: bytes, close_code: int) -> None:
    violation = decode_close(payload)
    assert isinstance(violation, ProtocolViolation)
    assert violation.close_code == close_code


@pytest.mark.parametrize("close", [(1005, ""), (1000, ""), (1014, "wörter"), (4999, "x" * 123)])
def test_a_close_payload_decodes_to_what_was_encoded(close: tuple[int, str]) -> None:
    payload = encode_close_payload(*close)
    assert len(payload) == (0 if close[0] == 1005 else 2 + len(close[1].encode()))
    assert decode_close_payload(payload) == close


# Text


def what_is_wrong_with(data: bytes) -> str | None:
    """Return in Python's words why ``data`` is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason
    return None


def viable(data: bytes) -> bytes:
    """Return the longest beginning of ``data`` that could still become UTF-8."""
    beginnings = (data[:stop] for stop in range(len(data), -1, -1))
    return next(
        each for each in beginnings if what_is_wrong_with(each) in (None, "unexpected end of data")
    )


SEQUENCES = [
    *(char.encode() for char in "aä€\ud7ff\ue000\U00010000\U0010ffff"),
    b"\x80",
    b"\xc0\x80",
    b"\xc3",
    b"\xe0\x80\x80",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xed\xbf",
    b"\xf0\x80\x80\x80",
    b"\xf0\x90\x80",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
]
"""Characters of each length, and everything that is none: overlong, surrogate, cut, too high."""

utf8_or_not = st.lists(st.sampled_from(SEQUENCES), max_size=8).map(b"".join)


def text_message(data: bytes, fragments: Iterable[int], *, client: bool) -> bytes:
    """Return the frames of a text message that is cut into fragments."""
    pieces = chop(data, fragments) or [b""]
    return b"".join(
        frame(
            CONT if number else TEXT,
            piece,
            fin=number == len(pieces) - 1,
            masked=not client,
        )
        for number, piece in enumerate(pieces)
    )


@SIDES
@settings(deadline=None, max_examples=300)
@given(
    text=utf8_or_not,
    fragments=st.lists(st.integers(0, 32), max_size=4),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
@example(text="a€".encode() + b"\xe2\x82A", fragments=[], cuts=[])
@example(text=b"ok\xf0\x90\x80", fragments=[3], cuts=[])
def test_text_comes_out_up_to_the_first_wrong_byte_however_it_is_cut(
    client: bool, text: bytes, fragments: list[int], cuts: list[int]
) -> None:
    before, after = (frame(BINARY, piece, masked=not client) for piece in (b"<", b">"))
    data = before + text_message(text, fragments, client=client) + after
    good = what_is_wrong_with(text) is None
    for chunks in ([data], chop(data, cuts), one_by_one(data)):
        decoded = decode(chunks, client=client)
        assert decoded.payload == b"<" + (text + b">" if good else viable(text))
        assert decoded.frames == ([Frame(TEXT, b"", True)] if good else [])
        assert decoded.close_code == (None if good else 1007)


@pytest.mark.parametrize("cuts", [[4], [5], [6], [4, 5], [4, 5, 6], [5, 7], [6, 8]])
def test_a_surrogate_in_a_text_message_ends_it_at_the_same_byte_wherever_it_is_cut(
    cuts: list[int],
) -> None:
    data = frame(TEXT, b"ab\xed\xa0\x80cdefg", masked=False)
    assert decode(chop(data, cuts), client=True).payload == b"ab\xed"


def test_text_is_refused_as_soon_as_it_cannot_become_utf8() -> None:
    for sequence in SEQUENCES:
        wrong = len(viable(sequence))
        if wrong < len(sequence):
            header = encode_header(FIN | TEXT, 1000)
            assert decode([header + sequence[:wrong]], client=True).violation is None
            assert decode([header + sequence[: wrong + 1]], client=True).close_code == 1007


@SIDES
def test_a_character_may_be_cut_by_a_fragment_and_a_ping(client: bool) -> None:
    first, second = "€".encode()[:1], "€".encode()[1:]
    data = (
        frame(TEXT, first, fin=False, masked=not client)
        + frame(PING, b"?", masked=not client)
        + frame(CONT, second, masked=not client)
    )
    expected = ("€".encode(), [Frame(PING, b"?", True), Frame(TEXT, b"", True)], None)
    assert decode([data], client=client) == expected
    assert decode(one_by_one(data), client=client) == expected


def test_each_text_message_is_validated_on_its_own() -> None:
    first, second = frame(TEXT, b"\xe2", masked=False), frame(TEXT, b"\x82\xac", masked=False)
    assert decode([first + second], client=True) == (
        b"\xe2",
        [],
        (1007, "a text message that is not UTF-8"),
    )


# Everything at once


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Generates frames to a client, valid or not. The last one is cut off."""
    frames = draw(
        st.lists(
            st.builds(
                frame,
                st.sampled_from([CONT, TEXT, BINARY, PING, PONG, CLOSE]),
                st.one_of(st.binary(max_size=20), utf8_or_not),
                fin=st.booleans(),
                masked=st.just(False),
            ),
            max_size=6,
        )
    )
    return b"".join(frames) + draw(st.binary(max_size=12))


@settings(deadline=None, max_examples=300)
@given(data=streams(), cuts=st.lists(st.integers(0, 100), max_size=8))
def test_bytes_fed_singly_decode_like_bytes_fed_at_once(data: bytes, cuts: list[int]) -> None:
    whole = decode([data], client=True)
    assert decode(one_by_one(data), client=True) == whole
    assert decode(chop(data, cuts), client=True) == whole


# A message that comes alone


@pytest.mark.parametrize("length", [*LENGTHS[1:], 8191, 8192, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
@SIDES
def test_decode_at_once_returns_the_payload_of_exactly_one_message(
    length: int, kind: Callable[[bytes], bytes | bytearray], client: bool
) -> None:
    decoder = Decoder(client=client)
    decoder.feed(frame(TEXT, b"before", masked=not client))
    while decoder.decode([]) is not None:
        pass
    data = kind(frame(BINARY, pattern(length), masked=not client))
    assert decoder.decode_at_once(data) == pattern(length)
    decoder.feed(data)  # as if nothing had happened
    payload: list[Buffer] = []
    assert decoder.decode(payload) is None
    assert b"".join(payload) == pattern(length)


@pytest.mark.parametrize(("length", "count"), [(65_536, 2), (65_536, 4), (65_533, 3), (70_000, 3)])
@pytest.mark.parametrize("kind", [bytes, bytearray])
@SIDES
def test_decode_at_once_returns_the_payload_of_several_messages_of_one_length(
    length: int, count: int, kind: Callable[[bytes], bytes | bytearray], client: bool
) -> None:
    payload = pattern(count * length)
    pieces = [payload[start : start + length] for start in range(0, len(payload), length)]
    data = kind(b"".join(frame(BINARY, piece, masked=not client) for piece in pieces))
    decoder = Decoder(client=client)
    assert decoder.decode_at_once(data) == payload
    assert not decoder.is_inside_message
    data += b"\x82"  # A view of it would forbid that.


@SIDES
@pytest.mark.parametrize(
    "second",
    [
        lambda masked: frame(TEXT, bytes(65_536), masked=masked),
        lambda masked: frame(BINARY, bytes(65_536), fin=False, masked=masked),
        lambda masked: frame(CONT, bytes(65_536), masked=masked),
        lambda masked: frame(BINARY, bytes(65_536), masked=not masked),
        lambda masked: (
            frame(PING, b"ping", masked=masked)
            + frame(BINARY, bytes(65_530 - (4 if masked else 0)), masked=masked)
        ),
        lambda masked: frame(BINARY, bytes(65_535), masked=masked),
        lambda masked: frame(BINARY, bytes(65_536), masked=masked)[:-1],
    ],
    ids=["text", "fragment", "continuation", "mask", "ping", "shorter", "part"],
)
def test_decode_at_once_leaves_a_message_with_something_else_behind_it_to_decode(
    second: Callable[[bool], bytes], client: bool
) -> None:
    first = frame(BINARY, pattern(65_536), masked=not client)
    data = first + second(not client)
    decoder = Decoder(client=client)
    assert decoder.decode_at_once(data) is None
    assert decode_step(decoder, data) == decode([data], client=client)
    decoder = Decoder(client=client)
    decode_step(decoder, frame(BINARY, b"before", fin=False, masked=not client))
    assert decoder.decode_at_once(first + first) is None


def not_one_message(*, client: bool) -> list[bytes]:
    mask, key = (0, b"") if client else (MASKED, b"1234")
    one = frame(BINARY, b"one", masked=not client)
    return [
        b"",
        one[:1],
        one[:-1],
        one + b"\x82",
        one + one,
        frame(BINARY, masked=not client),
        frame(BINARY, b"one", masked=client),
        frame(TEXT, b"one", masked=not client),
        frame(PING, b"one", masked=not client),
        frame(BINARY, b"one", fin=False, masked=not client),
        frame(CONT, b"one", masked=not client),
        bytes((one[0] | 0x40,)) + one[1:],
        *(
            bytes((FIN | BINARY, mask | 126)) + length.to_bytes(2, "big") + key + bytes(length)
            for length in (0, 1, 123, 124, 125)
        ),
        *(
            bytes((FIN | BINARY, mask | 127)) + length.to_bytes(8, "big") + key + bytes(length)
            for length in (0, 1, 119, 125, 126, 65529, 65535)
        ),
        *(  # frames that say another length than they have
            encode_header(FIN | BINARY, length, mask) + key + bytes(length + more)
            for length in (122, 123, 124, 125, 126, 127, 65533, 65534, 65535, 65536, 65537)
            for more in (-6, -4, -2, -1, 1, 2, 4, 6)
        ),
    ]


@SIDES
def test_decode_at_once_leaves_anything_else_to_decode(client: bool) -> None:
    for data in not_one_message(client=client):
        decoder = Decoder(client=client)
        assert decoder.decode_at_once(data) is None
        assert decode_step(decoder, data) == decode([data], client=client)


@SIDES
@pytest.mark.parametrize(
    "before",
    [
        lambda masked: frame(BINARY, b"before", masked=masked)[:1],
        lambda masked: frame(BINARY, b"before", masked=masked)[:-1],
        lambda masked: frame(BINARY, b"before", fin=False, masked=masked),
        lambda masked: frame(PING, b"before", masked=masked)[:-1],
    ],
    ids=["part of a header", "part of a frame", "a fragment", "part of a ping"],
)
def test_decode_at_once_leaves_a_message_after_unfinished_bytes_to_decode(
    before: Callable[[bool], bytes], client: bool
) -> None:
    decoder = Decoder(client=client)
    decode_step(decoder, before(not client))
    assert decoder.decode_at_once(frame(BINARY, b"one", masked=not client)) is None


@SIDES
def test_decode_at_once_returns_a_part_of_a_payload_up_to_its_last_byte(client: bool) -> None:
    whole = frame(BINARY, pattern(100_000), masked=not client)
    end = len(whole)
    header = end - 100_000
    decoder = Decoder(client=client)
    assert decoder.decode_at_once(whole[: header + 1]) is None
    decode_step(decoder, whole[: header + 1])
    assert decoder.decode_at_once(b"") is None  # the end of TCP
    assert decoder.decode_at_once(whole[header + 1 : header + 3]) == pattern(3)[1:]
    assert decoder.decode_at_once(whole[header + 3 :] + b"\x82") is None  # the next frame begins
    assert decoder.decode_at_once(whole[header + 3 :]) == pattern(100_000)[3:]
    assert not decoder.is_inside_message
    message = frame(BINARY, b"next", masked=not client)
    assert decoder.decode_at_once(message) == b"next"


@SIDES
def test_decode_at_once_leaves_parts_of_text_to_decode(client: bool) -> None:
    data = frame(TEXT, b"\xc3\xa9t\xc3\xa9", masked=not client)
    decoder = Decoder(client=client)
    decode_step(decoder, data[:-2])
    assert decoder.decode_at_once(data[-2:-1]) is None


@settings(deadline=None, max_examples=500)
@given(data=streams(), cuts=st.lists(st.integers(0, 400), max_size=10))
def test_decode_at_once_returns_what_decode_would_have_decoded(
    data: bytes, cuts: list[int]
) -> None:
    decoder = Decoder(client=True)
    payload, frames, violation = b"", [], None
    for chunk in chop(data, cuts):
        piece = decoder.decode_at_once(chunk)
        if piece is None:
            step = decode_step(decoder, chunk)
        else:
            assert piece
            step = Decoded(bytes(piece), [], None)
        payload += step.payload
        frames += step.frames
        violation = step.violation
        if violation:
            break
    assert Decoded(payload, frames, violation) == decode([data], client=True)


# Encoding


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@SIDES
def test_a_message_decodes_to_what_was_encoded(
    length: int, kind: Callable[[bytes], Buffer], client: bool
) -> None:
    header, payload = encode(FIN | BINARY, kind(pattern(length)), client=client)
    assert len(header) == header_length(length, masked=client)
    assert len(payload) == length
    assert decode([header + payload], client=not client) == (pattern(length), [], None)
    whole = decode([header, payload, header, payload], client=not client)
    assert whole == (pattern(length) * 2, [], None)


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "82 00"),
        (125, "82 7d"),
        (126, "82 7e 00 7e"),
        (65535, "82 7e ff ff"),
        (65536, "82 7f 00 00 00 00 00 01 00 00"),
        (2**63 - 1, "82 7f 7f ff ff ff ff ff ff ff"),
    ],
)
def test_a_length_is_encoded_in_as_few_bytes_as_can_be(length: int, header: str) -> None:
    assert encode_header(FIN | BINARY, length).hex(" ") == header
    masked = bytearray.fromhex(header)
    masked[1] |= MASKED
    assert encode_header(FIN | BINARY, length, MASKED) == masked


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_server_does_not_copy_what_it_sends(kind: Callable[[bytes], Buffer]) -> None:
    payload = kind(pattern(1000))
    assert encode(FIN | BINARY, payload, client=False)[1] is payload


def test_a_client_masks_each_frame_with_a_fresh_key() -> None:
    payload = bytes(100)
    frames = [encode(FIN | BINARY, payload, client=True) for _ in range(3000)]
    keys = [header[-4:] for header, _ in frames]
    assert len(set(keys)) > 2990  # two random ones may be the same
    for key, (header, masked) in zip(keys, frames, strict=True):
        assert masked == key * 25
        assert decode([header + masked], client=False).payload == payload


FORK = """
import os
from trio_wsstream._frames import BINARY, FIN, encode

def keys():
    return {encode(FIN | BINARY, b"", client=True)[0][-4:] for _ in range(100)}

keys()
receive, send = os.pipe()
if os.fork() == 0:
    os.write(send, b"".join(keys()))
    os._exit(0)
os.wait()
said = os.read(receive, 400)
childs = {said[i : i + 4] for i in range(0, len(said), 4)}
print(len(childs), len(childs & keys()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_masking_keys_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    different, common = map(int, done.stdout.split())
    assert different > 98  # two random ones may be the same
    assert common < 2


# The mask


MASK_AS_THE_RFC_HAS_IT = [(b"Hello", b"\x37\xfa\x21\x3d", b"\x7f\x9f\x4d\x51\x58")]  # (5.7)


@pytest.fixture
def fallback(monkeypatch: pytest.MonkeyPatch) -> Callable[[Buffer, bytes], bytes]:
    """Return the function that `_masking` uses if websockets has no compiled extension."""
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    return runpy.run_path(str(_masking.__file__))["apply_mask"]


@pytest.mark.parametrize(("payload", "key", "masked"), MASK_AS_THE_RFC_HAS_IT)
def test_masking_falls_back_to_python(
    fallback: Callable[[Buffer, bytes], bytes], payload: bytes, key: bytes, masked: bytes
) -> None:
    assert fallback.__module__ == "websockets.utils"
    assert fallback(payload, key) == masked


@pytest.mark.parametrize(("payload", "key", "masked"), MASK_AS_THE_RFC_HAS_IT)
def test_masking_is_in_c_if_websockets_has_its_extension(
    payload: bytes, key: bytes, masked: bytes
) -> None:
    speedups = pytest.importorskip("websockets.speedups")
    assert apply_mask is speedups.apply_mask
    assert apply_mask(payload, key) == masked


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@settings(deadline=None)
@given(payload=st.binary(max_size=100), key=st.binary(min_size=4, max_size=4))
def test_both_ways_of_masking_agree_and_masking_twice_changes_nothing(
    kind: Callable[[bytes], Buffer], payload: bytes, key: bytes
) -> None:
    from websockets.utils import apply_mask as in_python

    masked = apply_mask(kind(payload), key)
    assert type(masked) is bytes
    assert masked == in_python(kind(payload), key)
    assert apply_mask(masked, key) == payload
