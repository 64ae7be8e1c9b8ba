"""The same bytes to us, to websockets and to wsproto: all three must make the same of them.

Where one of the other two does otherwise on purpose or by mistake, `DIFFERENCES` has an
example, and `as_websockets_has_it` and `as_wsproto_has_it` excuse that case alone.
"""

from __future__ import annotations

import bisect
import codecs
import itertools
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import pytest
import websockets.frames
import websockets.protocol
import wsproto.connection
import wsproto.events
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wsstream import (
    HalfClose,
    PingReceived,
    PongReceived,
    ProtocolViolation,
    StreamConfig,
    TextPolicy,
)
from trio_wsstream._frames import FIN, MASKED, is_valid_close_code
from trio_wsstream._protocol import Close, Protocol

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, chop, close_payload, frame

# Three implementations, in one vocabulary


class Closed(NamedTuple):
    """The end of a connection on which the peer's Close was accepted."""

    code: int
    reason: str


class Failed(NamedTuple):
    """The end of a connection that was failed with this code."""

    code: int


class Endpoint:
    """One end of a connection, and what it has understood of the bytes that it got."""

    def __init__(self) -> None:
        self.payload = b""  # of all data frames, text and binary
        self.controls: list[tuple[int, bytes]] = []  # Pings and Pongs
        self.whole_frames = 0  # data frames that were accepted, where it can be seen
        self.end: Closed | Failed | None = None

    def feed(self, data: bytes) -> None:
        raise NotImplementedError


class Ours(Endpoint):
    def __init__(self, *, client: bool) -> None:
        super().__init__()
        config = StreamConfig(text=TextPolicy.AS_BYTES, half_close=HalfClose.NEVER)
        self.protocol = Protocol(client=client, config=config)

    def feed(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        for event in iter(self.protocol.next_event, None):
            if isinstance(event, PingReceived | PongReceived):
                opcode = PING if isinstance(event, PingReceived) else PONG
                self.controls.append((opcode, event.payload))
        self.payload += self.protocol.unread.take(None)
        if self.protocol.close_received is not None:
            self.end = Closed(*self.protocol.close_received)
        elif isinstance(self.protocol.error, ProtocolViolation):
            self.end = Failed(self.protocol.error.close_code)

    @property
    def violation(self) -> str:
        error = self.protocol.error
        return error.reason if isinstance(error, ProtocolViolation) else ""

    @property
    def answer(self) -> tuple[int, str] | None:
        self.protocol.data_to_send()
        return self.protocol.close_sent


class Websockets(Endpoint):
    def __init__(self, *, client: bool) -> None:
        super().__init__()
        side = websockets.protocol.Side.CLIENT if client else websockets.protocol.Side.SERVER
        self.protocol = websockets.protocol.Protocol(side, max_size=None)

    def feed(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            assert isinstance(event, websockets.frames.Frame)
            if event.opcode in (PING, PONG):
                self.controls.append((event.opcode, bytes(event.data)))
            elif event.opcode != CLOSE:
                self.payload += event.data
                self.whole_frames += 1
        close = self.protocol.close_rcvd
        if self.protocol.parser_exc is not None:
            assert self.answer is not None
            self.end = Failed(self.answer[0])
        elif close is not None:
            self.end = Closed(close.code, close.reason)

    @property
    def answer(self) -> tuple[int, str] | None:
        close = self.protocol.close_sent
        return None if close is None else (close.code, close.reason)


class Wsproto(Endpoint):
    def __init__(self, *, client: bool) -> None:
        super().__init__()
        kind = wsproto.connection.ConnectionType
        self.violation = ""
        self.connection = wsproto.connection.Connection(kind.CLIENT if client else kind.SERVER)

    def feed(self, data: bytes) -> None:
        self.connection.receive_data(data)
        for event in self.connection.events():
            if isinstance(event, wsproto.events.Ping):
                self.controls.append((PING, bytes(event.payload)))
            elif isinstance(event, wsproto.events.Pong):
                self.controls.append((PONG, bytes(event.payload)))
            elif isinstance(event, wsproto.events.Message):
                piece = event.data
                self.payload += piece.encode() if isinstance(piece, str) else piece
                self.whole_frames += event.frame_finished
            elif isinstance(event, wsproto.events.CloseConnection):
                # The same event tells of a Close and of a violation.
                failed = self.connection.state is wsproto.connection.ConnectionState.OPEN
                reason = event.reason or ""
                self.end = Failed(event.code) if failed else Closed(event.code, reason)
                self.violation = reason if failed else ""


E = TypeVar("E", bound=Endpoint)


def fed(endpoint: E, chunks: Iterable[bytes]) -> E:
    for chunk in chunks:
        endpoint.feed(chunk)
    return endpoint


# How they are compared

FILLER = b"\xff" * (1 << 17)
"""What finishes a frame that has begun, and begins none: all bits of its first byte are set."""


def where_it_ends(data: bytes, *, client: bool) -> int:
    """Return after how many bytes we see an end.

    It is one more than ``len(data)`` if there is none.
    """

    def has_ended(count: int) -> bool:
        return fed(Ours(client=client), [data[:count]]).end is not None

    return bisect.bisect_left(range(len(data) + 1), True, key=has_ended)


def check_payload_before_the_end(data: bytes, mine: Ours, theirs: Endpoint) -> None:
    if isinstance(theirs, Wsproto):
        # It holds back the bytes of a character that is not complete.
        held = mine.payload[len(theirs.payload) :]
        assert mine.payload == theirs.payload + held
        assert codecs.getincrementaldecoder("utf-8")().decode(held) == ""
    elif mine.payload != theirs.payload:
        # websockets holds back a frame that is not complete. So complete it.
        complete = fed(Websockets(client=mine.protocol.client), [data, FILLER])
        assert mine.payload.startswith(theirs.payload)
        if complete.payload != theirs.payload:  # it has less than 128 KiB
            assert complete.payload.startswith(mine.payload)


def as_websockets_has_it(mine: Ours, theirs: Websockets) -> Closed | Failed | None:
    """Return the end that websockets should see where we have seen ``mine``."""
    if isinstance(mine.end, Closed) and theirs.protocol.current_size is not None:
        return Failed(1002)  # It takes a Close inside a fragmented message for a violation.
    if mine.violation.startswith("a Close with code") and isinstance(
        theirs.protocol.parser_exc, UnicodeDecodeError
    ):
        return Failed(1007)  # It looks at a Close's reason before its code.
    if mine.violation and theirs.end is None:
        return None  # It looks at a whole frame only, and not even FILLER made it whole.
    return mine.end


def is_overlooked_by_websockets(violation: str) -> bool:
    """It looks neither at text nor at how a length is encoded.

    So a control frame may begin like one of more than 125 bytes, and have less.
    """
    return violation in (
        "a text message that is not UTF-8",
        "a control frame longer than 125 bytes",
    ) or violation.startswith("a length of")


def as_wsproto_has_it(mine: Ours, theirs: Wsproto) -> Closed | Failed | None:
    """Return the end that wsproto should see where we have seen ``mine``."""
    accepts_the_code = (
        mine.end.code == 1014
        if isinstance(mine.end, Closed)
        else mine.violation == "a Close reason that is not UTF-8"
    )
    if accepts_the_code and theirs.violation == "CLOSE with unknown reserved code":
        return Failed(1002)  # It does not know 1014, registered after the RFC.
    return mine.end


def is_seen_later_by_wsproto(mine: Ours) -> bool:
    """A surrogate is wrong from its second byte on, but wsproto waits for the third."""
    return "not UTF-8" in mine.violation and mine.payload.endswith(b"\xed")


def check_that_all_agree(data: bytes, cuts: list[int], *, client: bool) -> None:
    whole = fed(Ours(client=client), [data])
    mine = fed(Ours(client=client), chop(data, cuts))
    assert (mine.payload, mine.controls, mine.end) == (whole.payload, whole.controls, whole.end)

    last = where_it_ends(data, client=client) - 1
    before, rest = data[:last], data[last:]
    mine_before = fed(Ours(client=client), [before])
    others: tuple[Websockets, Wsproto] = Websockets(client=client), Wsproto(client=client)
    for theirs in others:
        fed(theirs, chop(before, cuts))
        assert theirs.end is None
        assert theirs.controls == mine_before.controls
        check_payload_before_the_end(before, mine_before, theirs)
        if mine.end is None:
            continue

        frames_before = theirs.whole_frames
        theirs.feed(rest + FILLER)
        if isinstance(theirs, Websockets):
            if is_overlooked_by_websockets(mine.violation):
                continue
            assert theirs.end == as_websockets_has_it(mine, theirs)
            if isinstance(theirs.end, Closed):
                assert theirs.answer == mine.answer
        else:
            if is_seen_later_by_wsproto(mine):
                continue
            assert theirs.end == as_wsproto_has_it(mine, theirs)
        assert theirs.controls == mine.controls
        assert theirs.whole_frames == frames_before


# What comes in

WRONG_TEXTS = [b"\x80", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff"]

binaries = st.binary(max_size=20) | st.sampled_from([125, 126, 65535, 65536]).map(bytes)
right_texts = st.text(max_size=8).map(str.encode)
wrong_texts = st.tuples(right_texts, st.sampled_from(WRONG_TEXTS), st.just(b"") | right_texts).map(
    b"".join
)
texts = st.integers(0, 7).flatmap(lambda which: right_texts if which else wrong_texts)
control_payloads = st.binary(max_size=10) | st.just(bytes(125))
close_codes = (
    st.sampled_from([1000, 1001, 1014, 2999, 3000, 4999, 5000])
    | st.integers(998, 1017)
    | st.integers(0, 65535)
)
close_payloads = st.sampled_from([b"", b"\x03"]) | st.builds(
    lambda code, reason: close_payload(code) + reason,
    close_codes,
    texts,
)


@st.composite
def messages(
    draw: st.DrawFn, opcode: int, payloads: st.SearchStrategy[bytes], *, masked: bool
) -> list[bytes]:
    """Generates the frames of a message, with control frames between them."""
    data = draw(payloads)
    pieces = chop(data, draw(st.lists(st.integers(0, 24), max_size=3))) or [data]
    frames = []
    for number, piece in enumerate(pieces):
        is_last = number == len(pieces) - 1
        frames.append(frame(CONT if number else opcode, piece, fin=is_last, masked=masked))
        if not is_last:
            frames += draw(st.lists(control_frames(masked=masked), max_size=1))
    return frames


def control_frames(*, masked: bool) -> st.SearchStrategy[bytes]:
    return st.builds(frame, st.sampled_from([PING, PONG]), control_payloads, masked=st.just(masked))


def closes(*, masked: bool) -> st.SearchStrategy[bytes]:
    return st.builds(frame, st.just(CLOSE), close_payloads, masked=st.just(masked))


def any_frames(*, masked: bool) -> st.SearchStrategy[bytes]:
    """Generates frames that need not be legal, or that come where they must not."""
    return st.builds(
        frame,
        st.sampled_from([CONT, TEXT, BINARY, CLOSE, PING, PONG]) | st.integers(0, 127),
        st.binary(max_size=5) | st.just(bytes(126)),
        fin=st.booleans(),
        masked=st.sampled_from([masked, masked, masked, not masked]),
    )


def headers(*, masked: bool) -> st.SearchStrategy[bytes]:
    """Generates headers with lengths that may be encoded in a wrong way."""
    first = st.sampled_from([TEXT, BINARY, FIN | TEXT, FIN | BINARY, FIN | CONT, FIN | PING])
    mask = MASKED if masked else 0
    lengths = st.integers(0, 130) | st.integers(65530, 65540) | st.integers(0, 2**64 - 1)
    return st.builds(
        lambda first, is_wide, length: (
            bytes((first, mask | 127)) + length.to_bytes(8, "big")
            if is_wide
            else bytes((first, mask | 126)) + (length & 65535).to_bytes(2, "big")
        ),
        first,
        st.booleans(),
        lengths,
    )


@st.composite
def exchanges(draw: st.DrawFn, *, masked: bool) -> bytes:
    """What a peer says: with at most one frame that is wrong or out of place, and one byte."""
    right = (
        messages(BINARY, binaries, masked=masked)
        | messages(TEXT, texts, masked=masked)
        | st.tuples(control_frames(masked=masked))
    )
    frames = [each for part in draw(st.lists(right, min_size=1, max_size=5)) for each in part]
    if make := draw(st.sampled_from([None, None, closes, any_frames, headers])):
        frames.insert(draw(st.integers(0, len(frames))), draw(make(masked=masked)))
    data = bytearray(b"".join(frames))
    if draw(st.sampled_from([False, False, False, True])):
        data[draw(st.integers(0, 60)) % len(data)] ^= draw(st.integers(1, 255))
    return bytes(data)


@pytest.mark.slow
@SIDES
@settings(deadline=None, max_examples=300)
@given(drawn=st.data(), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_all_libraries_agree_on_an_exchange(
    client: bool, drawn: st.DataObject, cuts: list[int]
) -> None:
    check_that_all_agree(drawn.draw(exchanges(masked=not client)), cuts, client=client)


@SIDES
@settings(deadline=None, max_examples=100)
@given(drawn=st.data())
def test_all_libraries_agree_on_a_close(client: bool, drawn: st.DataObject) -> None:
    check_that_all_agree(drawn.draw(closes(masked=not client)), [], client=client)


@SIDES
@settings(deadline=None, max_examples=100)
@given(drawn=st.data(), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_all_libraries_agree_on_text_that_is_not_utf8(
    client: bool, drawn: st.DataObject, cuts: list[int]
) -> None:
    frames = drawn.draw(messages(TEXT, wrong_texts, masked=not client))
    check_that_all_agree(b"".join(frames), cuts, client=client)


@SIDES
def test_all_libraries_agree_on_each_close_code(client: bool) -> None:
    for code in [0, *range(990, 1020), 2999, 3000, 4999, 5000, 65535]:
        data = frame(CLOSE, close_payload(code, "why"), masked=not client)
        check_that_all_agree(data, [], client=client)


@pytest.mark.slow
@pytest.mark.parametrize("rest", [b"", bytes(4)], ids=["header", "masked or of four bytes"])
def test_all_libraries_agree_on_any_two_first_bytes(rest: bytes) -> None:
    for first, second in itertools.product(range(256), (0, 4, 126, 127, 128, 132, 254, 255)):
        for client in (False, True):
            check_that_all_agree(bytes((first, second)) + rest, [], client=client)


DIFFERENCES = {
    "a Close with code 1014": (
        frame(CLOSE, close_payload(1014), masked=False),
        (Closed(1014, ""), Closed(1014, ""), Failed(1002)),
    ),
    "a Close inside a fragmented message": (
        frame(BINARY, fin=False, masked=False) + frame(CLOSE, close_payload(1000), masked=False),
        (Closed(1000, ""), Failed(1002), Closed(1000, "")),
    ),
    "a Close whose code and reason are wrong": (
        frame(CLOSE, close_payload(1005) + b"\xff", masked=False),
        (Failed(1002), Failed(1007), Failed(1002)),
    ),
    "text that is not UTF-8": (
        frame(TEXT, b"\xff", masked=False),
        (Failed(1007), None, Failed(1007)),
    ),
    "a length that is not as short as can be": (
        bytes((FIN | BINARY, 126, 0, 1)) + b"a",
        (Failed(1002), None, Failed(1002)),
    ),
    "a length of more than 63 bits": (
        bytes((FIN | BINARY, 127)) + b"\x80" + bytes(7),
        (Failed(1002), None, Failed(1002)),
    ),
    "a ping whose length is not as short as can be": (
        bytes((FIN | PING, 126, 0, 1)) + b"a",
        (Failed(1002), None, Failed(1002)),
    ),
    "a wrong frame, but for its payload": (
        bytes((FIN | 0x40 | BINARY, 1)),
        (Failed(1002), None, Failed(1002)),
    ),
    "a continuation of nothing, but for its payload": (
        bytes((FIN | CONT, 1)),
        (Failed(1002), None, None),
    ),
}
"""To a client: what it receives, and the ends that we, websockets and wsproto see."""


@pytest.mark.parametrize(("data", "ends"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_known_differences_from_other_libraries_still_exist(
    data: bytes, ends: tuple[Closed | Failed | None, ...]
) -> None:
    endpoints = (Ours(client=True), Websockets(client=True), Wsproto(client=True))
    assert tuple(fed(endpoint, [data]).end for endpoint in endpoints) == ends
    check_that_all_agree(data, [], client=True)


# What goes out

valid_closes = st.just(Close(1005, "")) | st.builds(
    Close,
    st.integers(1000, 4999).filter(is_valid_close_code).filter(lambda code: code != 1014),
    st.text(max_size=30),
)


def says(protocol: Protocol, opcode: int, payload: bytes) -> bytes:
    """Return the bytes of a frame that ``protocol`` sends."""
    if opcode == BINARY:
        return b"".join(map(bytes, protocol.encode_message(payload)))
    if opcode == PING:
        protocol.ping(payload)
    else:  # a Pong, which a ping of the peer asks for
        protocol.receive_data(frame(PING, payload, masked=not protocol.client))
        assert protocol.next_event() == PingReceived(payload)
    return protocol.data_to_send()


@SIDES
@settings(deadline=None, max_examples=100)
@given(
    frames=st.lists(
        st.tuples(st.just(BINARY), binaries)
        | st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)),
        max_size=8,
        unique=True,  # as pings in flight are
    ),
    close=valid_closes,
)
def test_all_libraries_agree_on_what_we_send(
    client: bool, frames: list[tuple[int, bytes]], close: Close
) -> None:
    protocol = Ours(client=client).protocol
    data = b"".join(says(protocol, *each) for each in frames)
    protocol.close(close)
    close_frame = protocol.data_to_send()
    for kind in (Ours, Websockets, Wsproto):
        peer = fed(kind(client=not client), [data])
        assert peer.payload == b"".join(payload for opcode, payload in frames if opcode == BINARY)
        assert peer.controls == [each for each in frames if each[0] != BINARY]
        assert peer.end is None
        peer.feed(close_frame)
        assert peer.end == Closed(*close)
