"""What bytes from the peer mean, what they are answered with, and how it ends. No I/O."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ConnectionLost,
    ErrorOccurred,
    HalfClose,
    KeepaliveTimeout,
    PingReceived,
    PongReceived,
    ProtocolViolation,
    StreamClosed,
    StreamConfig,
    TextPolicy,
    TextReceived,
    TextRejected,
    WsEvent,
)
from trio_wsstream._frames import FIN, MASKED, Decoder, encode_header
from trio_wsstream._masking import apply_mask
from trio_wsstream._protocol import ANSWER_DEFERRED, HALF_CLOSE, Close, Protocol, ReceiveBuffer

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, close_payload, frame

NORMAL = Close(1000, "")


# Talking to a Protocol


def make(*, client: bool = False, close_sent: Close | None = None, **options: Any) -> Protocol:
    return Protocol(client=client, config=StreamConfig(**options), close_sent=close_sent)


def events_of(protocol: Protocol) -> list[WsEvent]:
    return list(iter(protocol.next_event, None))


def tell(protocol: Protocol, data: bytes) -> list[WsEvent]:
    """Give ``protocol`` bytes of the peer, and return the events that follow."""
    protocol.receive_data(data)
    return events_of(protocol)


def hear(
    protocol: Protocol, opcode: int, payload: bytes = b"", *, fin: bool = True
) -> list[WsEvent]:
    """Give ``protocol`` one frame of the peer, and return the events that follow."""
    return tell(protocol, frame(opcode, payload, fin=fin, masked=not protocol.client))


def hear_close(protocol: Protocol, close: Close) -> list[WsEvent]:
    """Give ``protocol`` the peer's Close. 1005 stands for a Close without a code."""
    return hear(protocol, CLOSE, b"" if close.code == 1005 else close_payload(*close))


def hear_text(protocol: Protocol, text: str | bytes, *, fin: bool = True) -> list[WsEvent]:
    return hear(protocol, TEXT, text if isinstance(text, bytes) else text.encode(), fin=fin)


def sent_by(protocol: Protocol) -> list[tuple[int, bytes]]:
    """Return opcode and payload of each control frame that ``protocol`` wants to send now."""
    decoder = Decoder(client=not protocol.client)
    decoder.feed(protocol.data_to_send())
    assert not protocol.owes
    return [each[:2] for each in iter(lambda: decoder.decode([]), None) if each.ends_message]


def send_close(protocol: Protocol, close: Close = NORMAL) -> None:
    protocol.close(close)
    assert sent_by(protocol) == [(CLOSE, close_payload(*close))]


def read(protocol: Protocol) -> bytes:
    return bytes(protocol.unread.take(None))


def memory_taken_by(run: Callable[[], None]) -> int:
    """Return how many more bytes are in use after ``run()`` than before it."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


# Data and events


@SIDES
def test_data_is_there_to_be_read_as_it_comes(client: bool) -> None:
    protocol = make(client=client)
    data = frame(BINARY, b"0123456789", masked=not client)
    assert tell(protocol, data[:-5]) == []
    assert read(protocol) == b"01234"
    assert tell(protocol, data[-5:]) == []
    assert read(protocol) == b"56789"
    assert not protocol.ended


@SIDES
def test_a_message_is_encoded_as_its_receiver_decodes_it(client: bool) -> None:
    peer = make(client=not client)
    header, payload = make(client=client).encode_message(b"payload")
    assert tell(peer, header + bytes(payload)) == []
    assert read(peer) == b"payload"


@SIDES
def test_a_long_message_is_encoded_alike_and_left_to_be_masked(client: bool) -> None:
    peer, data = make(client=not client), memoryview(bytes(range(250)) * 1000)
    header, payload, key = make(client=client).encode_long_message(data)
    assert payload is data
    assert bool(key) is client
    assert tell(peer, header + (apply_mask(data, key) if client else bytes(data))) == []
    assert read(peer) == data


@SIDES
def test_logging_changes_nothing_of_what_is_encoded_and_decoded(
    client: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    test_a_message_is_encoded_as_its_receiver_decodes_it(client)
    test_a_long_message_is_encoded_alike_and_left_to_be_masked(client)
    assert "> a binary message of 7 bytes" in caplog.text
    assert "> a binary message of 250000 bytes" in caplog.text
    assert "< 7 bytes of binary payload" in caplog.text


def test_decoding_stops_after_a_number_of_steps_and_continues_when_asked() -> None:
    protocol = make()
    ping, byte = (frame(opcode, b"x", masked=True) for opcode in (PING, BINARY))
    protocol.steps_left = 3
    assert tell(protocol, 5 * ping) == 3 * [PingReceived(b"x")]
    protocol.steps_left = 3
    assert tell(protocol, 1000 * byte) == 2 * [PingReceived(b"x")]
    assert read(protocol) == 256 * b"x"
    protocol.steps_left = -1
    assert tell(protocol, b"") == []
    assert read(protocol) == 744 * b"x"


def test_events_come_in_the_order_of_the_wire_and_wait_to_be_asked_for() -> None:
    protocol = make(text=TextPolicy.AS_EVENTS)
    protocol.receive_data(
        b"".join(
            frame(opcode, payload, masked=True)
            for opcode, payload in [
                (BINARY, b"a"),
                (PING, b"1"),
                (BINARY, b"b"),
                (TEXT, b"2"),
                (BINARY, b"c"),
                (PONG, b"3"),
                (CLOSE, close_payload(1000)),
            ]
        )
    )
    assert read(protocol) == b""
    assert protocol.next_event() == PingReceived(b"1")
    assert read(protocol) == b"a"
    assert protocol.next_event() == TextReceived("2")
    assert read(protocol) == b"b"
    assert protocol.next_event() == PongReceived(b"3")
    assert read(protocol) == b"c"
    assert not protocol.ended
    assert protocol.next_event() == CloseReceived(1000, "")
    assert protocol.ended
    assert protocol.next_event() is None


# Pings of the peer


@SIDES
def test_every_ping_is_owed_a_pong_in_order(client: bool) -> None:
    protocol = make(client=client)
    assert not protocol.owes
    pings = [b"", b"1", b"1", b"x" * 125]
    for payload in pings:
        assert hear(protocol, PING, payload) == [PingReceived(payload)]
        assert protocol.owes
    assert sent_by(protocol) == [(PONG, payload) for payload in pings]
    assert protocol.data_to_send() == b""


@pytest.mark.parametrize("pings", [63, 64, 65, 200])
def test_of_many_pongs_the_64_newest_are_owed(pings: int) -> None:
    protocol = make()
    payloads = [b"%d" % number for number in range(pings)]
    events = tell(protocol, b"".join(frame(PING, each, masked=True) for each in payloads))
    assert events == [PingReceived(payload) for payload in payloads]
    assert sent_by(protocol) == [(PONG, payload) for payload in payloads[-64:]]


def test_a_ping_inside_a_fragmented_message_is_answered() -> None:
    protocol = make()
    hear(protocol, BINARY, b"a", fin=False)
    assert hear(protocol, PING, b"?") == [PingReceived(b"?")]
    assert sent_by(protocol) == [(PONG, b"?")]


def test_a_ping_after_our_close_is_told_and_not_answered() -> None:
    protocol = make()
    send_close(protocol)
    assert hear(protocol, PING, b"?") == [PingReceived(b"?")]
    assert not protocol.owes
    assert protocol.data_to_send() == b""


def test_pongs_go_out_before_our_close_and_in_one_write() -> None:
    protocol = make()
    hear(protocol, PING, b"1")
    protocol.close(NORMAL)
    hear(protocol, PING, b"2")  # the Close is owed, but not sent
    close = (CLOSE, close_payload(1000))
    assert sent_by(protocol) == [(PONG, b"1"), (PONG, b"2"), close]


def test_pongs_go_out_before_the_answer_to_a_close() -> None:
    protocol = make()
    hear(protocol, PING, b"1")
    hear_close(protocol, Close(1001, "bye"))
    assert sent_by(protocol) == [(PONG, b"1"), (CLOSE, close_payload(1001, "bye"))]


# Our own pings


@SIDES
def test_a_ping_is_sent_and_answered(client: bool) -> None:
    protocol = make(client=client)
    ping = protocol.ping(b"payload")
    assert protocol.owes
    assert sent_by(protocol) == [(PING, b"payload")]
    assert not ping.is_answered
    assert hear(protocol, PONG, b"payload") == [PongReceived(b"payload")]
    assert ping.is_answered
    assert protocol.pings == {}


def test_our_pings_go_out_in_order_before_pongs_and_close() -> None:
    protocol = make()
    hear(protocol, PING, b"theirs")
    protocol.ping(b"1")
    protocol.ping(b"2")
    protocol.close(NORMAL)
    assert sent_by(protocol) == [
        (PING, b"1"),
        (PING, b"2"),
        (PONG, b"theirs"),
        (CLOSE, close_payload(1000)),
    ]


def test_a_pong_answers_its_ping_and_all_earlier_ones() -> None:
    protocol = make()
    pings = [protocol.ping(payload) for payload in (b"1", b"2", b"3")]
    hear(protocol, PONG, b"2")
    assert [ping.is_answered for ping in pings] == [True, True, False]
    assert list(protocol.pings) == [b"3"]


@pytest.mark.parametrize("payload", [b"", b"0", b"11"])
def test_a_pong_that_nobody_asked_for_answers_nothing(payload: bytes) -> None:
    protocol = make()
    ping = protocol.ping(b"1")
    assert hear(protocol, PONG, payload) == [PongReceived(payload)]
    assert not ping.is_answered
    assert list(protocol.pings) == [b"1"]


def test_a_second_pong_answers_no_later_ping() -> None:
    protocol = make()
    protocol.ping(b"1")
    hear(protocol, PONG, b"1")
    later = protocol.ping(b"2")
    assert hear(protocol, PONG, b"1") == [PongReceived(b"1")]
    assert not later.is_answered


def test_a_payload_in_flight_is_refused_until_its_pong_has_come() -> None:
    protocol = make()
    protocol.ping(b"1")
    sent_by(protocol)
    with pytest.raises(ValueError, match="b'1' is already in flight"):
        protocol.ping(b"1")
    assert not protocol.owes
    hear(protocol, PONG, b"1")
    assert not protocol.ping(b"1").is_answered


@pytest.mark.parametrize("close", [NORMAL, HALF_CLOSE, Close(4000, "")])
def test_after_a_close_of_the_peer_no_ping_waits_any_more(close: Close) -> None:
    protocol = make()
    ping = protocol.ping(b"1")
    hear_close(protocol, close)
    assert protocol.pings == {}
    assert not ping.is_answered


def test_after_a_close_of_ours_no_ping_waits_any_more() -> None:
    protocol = make()
    protocol.ping(b"1")
    protocol.close(NORMAL)
    assert protocol.pings == {}


# Closing


@pytest.mark.parametrize(
    "close",
    [
        NORMAL,
        Close(1000, "done"),
        Close(1001, "going"),
        Close(1002, "you"),
        Close(1014, ""),
        Close(3000, "wörter"),
        Close(4999, "x" * 123),
    ],
)
@SIDES
def test_a_close_is_answered_with_the_same_code_and_reason(close: Close, client: bool) -> None:
    protocol = make(client=client)
    assert hear_close(protocol, close) == [CloseReceived(*close)]
    assert protocol.close_received == close
    assert protocol.close_sent is None
    assert not protocol.can_send
    assert protocol.owes
    assert sent_by(protocol) == [(CLOSE, close_payload(*close))]
    assert protocol.close_sent == close


@SIDES
def test_a_close_without_a_code_is_answered_without_one(client: bool) -> None:
    protocol = make(client=client)
    assert hear_close(protocol, Close(1005, "")) == [CloseReceived(1005, "")]
    assert sent_by(protocol) == [(CLOSE, b"")]
    assert protocol.close_sent == (1005, "")


def test_a_close_is_answered_once() -> None:
    protocol = make()
    hear_close(protocol, NORMAL)
    sent_by(protocol)
    protocol.close(Close(1001, "again"))
    assert not protocol.owes
    assert protocol.data_to_send() == b""
    assert protocol.close_sent == NORMAL


@SIDES
def test_nothing_is_sent_after_our_close(client: bool) -> None:
    protocol = make(client=client)
    assert protocol.can_send
    protocol.close(Close(1001, "bye"))
    assert not protocol.can_send
    assert protocol.close_sent is None  # until it is encoded
    protocol.close(NORMAL)
    assert sent_by(protocol) == [(CLOSE, close_payload(1001, "bye"))]
    assert protocol.close_sent == (1001, "bye")
    protocol.close(NORMAL)
    protocol.ping(b"1")
    assert protocol.data_to_send() == b""
    assert not protocol.ended  # the peer may go on


def test_the_answer_to_our_close_ends_it_and_is_not_answered() -> None:
    protocol = make()
    send_close(protocol)
    hear(protocol, BINARY, b"more")
    assert hear_close(protocol, NORMAL) == [CloseReceived(1000, "")]
    assert protocol.ended
    assert protocol.verdict is None
    assert not protocol.owes
    assert read(protocol) == b"more"


def test_a_close_of_the_peer_that_crosses_ours_changes_nothing_of_ours() -> None:
    protocol = make()
    protocol.close(Close(4000, "ours"))
    assert hear_close(protocol, Close(4001, "theirs")) == [CloseReceived(4001, "theirs")]
    assert sent_by(protocol) == [(CLOSE, close_payload(4000, "ours"))]


def test_a_close_that_trio_websocket_has_sent_counts_as_sent() -> None:
    protocol = make(close_sent=Close(4000, "before"))
    assert not protocol.can_send
    protocol.close(NORMAL)
    hear(protocol, PING)
    assert hear_close(protocol, HALF_CLOSE) == [CloseReceived(*HALF_CLOSE)]
    assert not protocol.answer_is_deferred
    assert not protocol.owes
    assert protocol.data_to_send() == b""


# Half-close

AUTO, ALWAYS, REQUIRE = HalfClose.AUTO, HalfClose.ALWAYS, HalfClose.REQUIRE


@pytest.mark.parametrize(
    ("close", "held_under"),
    [
        (HALF_CLOSE, {AUTO, ALWAYS, REQUIRE}),
        (NORMAL, {ALWAYS}),
        (Close(1000, "half-close "), {ALWAYS}),
        (Close(1000, "Half-Close"), {ALWAYS}),
        (Close(1001, ""), set()),
        (Close(1001, "half-close"), set()),
        (Close(1005, ""), {ALWAYS}),
        (Close(1002, "half-close"), set()),
        (Close(1011, ""), set()),
        (Close(4000, "half-close"), set()),
    ],
)
@pytest.mark.parametrize("policy", HalfClose)
@SIDES
def test_the_answer_is_held_back_as_the_policy_says(
    close: Close, held_under: set[HalfClose], policy: HalfClose, client: bool
) -> None:
    protocol = make(client=client, half_close=policy)
    assert hear_close(protocol, close) == [CloseReceived(*close)]
    held = policy in held_under
    assert protocol.answer_is_deferred is held
    assert protocol.can_send is held
    assert protocol.owes is (not held or close == HALF_CLOSE)  # the word that it is deferred
    assert protocol.ended


@pytest.mark.parametrize("policy", HalfClose)
@pytest.mark.parametrize("is_out", [False, True], ids=["owed", "sent"])
def test_nothing_is_held_back_once_we_have_closed(policy: HalfClose, is_out: bool) -> None:
    protocol = make(half_close=policy)
    protocol.close(HALF_CLOSE)
    if is_out:
        sent_by(protocol)
    hear_close(protocol, HALF_CLOSE)
    assert not protocol.answer_is_deferred
    assert not protocol.can_send
    assert protocol.owes is not is_out


@pytest.mark.parametrize("policy", HalfClose)
def test_a_close_inside_a_fragmented_message_is_not_held_back(policy: HalfClose) -> None:
    protocol = make(half_close=policy)
    hear(protocol, BINARY, b"half of", fin=False)
    hear_close(protocol, HALF_CLOSE)
    assert not protocol.answer_is_deferred
    assert sent_by(protocol) == [(CLOSE, close_payload(*HALF_CLOSE))]
    assert protocol.verdict == AbnormalClosure(*HALF_CLOSE)


def test_while_the_answer_is_held_back_pongs_go_out_and_our_close_ends_it() -> None:
    protocol = make()
    hear(protocol, PING, b"1")
    hear_close(protocol, HALF_CLOSE)
    assert protocol.owes
    assert sent_by(protocol) == [(PONG, b"1"), (PONG, ANSWER_DEFERRED)]
    assert protocol.answer_is_deferred
    protocol.close(Close(1001, "done"))
    assert not protocol.answer_is_deferred
    assert not protocol.can_send
    assert sent_by(protocol) == [(CLOSE, close_payload(1001, "done"))]
    assert protocol.closed(close_written=True) == StreamClosed(1000, "half-close", True, None)


@pytest.mark.parametrize("ours", [NORMAL, HALF_CLOSE])
def test_the_word_goes_before_a_close_that_was_owed_when_the_half_close_came(ours: Close) -> None:
    protocol = make(half_close=REQUIRE)
    protocol.close(ours)
    hear_close(protocol, HALF_CLOSE)
    assert sent_by(protocol) == [
        (PONG, ANSWER_DEFERRED),
        (CLOSE, close_payload(*ours)),
    ]


def test_the_word_goes_out_once_however_the_stream_is_closed_after_it() -> None:
    protocol = make(half_close=REQUIRE)
    hear_close(protocol, HALF_CLOSE)
    assert sent_by(protocol) == [(PONG, ANSWER_DEFERRED)]
    protocol.close(NORMAL)
    assert sent_by(protocol) == [(CLOSE, close_payload(*NORMAL))]


# How it ends


@pytest.mark.parametrize("close", [NORMAL, Close(1000, "x"), Close(1005, "")])
@pytest.mark.parametrize("was_open", [False, True], ids=["after our Close", "open"])
def test_a_normal_close_is_a_clean_end(close: Close, was_open: bool) -> None:
    protocol = make()
    if not was_open:
        send_close(protocol)
    hear(protocol, BINARY, b"last")
    assert hear_close(protocol, close) == [CloseReceived(*close)]
    assert (protocol.ended, protocol.verdict, protocol.error) == (True, None, None)
    assert read(protocol) == b"last"
    assert protocol.closed(close_written=True) == StreamClosed(*close, True, None)


@pytest.mark.parametrize("code", [1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1014, 3000, 4999])
@pytest.mark.parametrize("was_open", [False, True], ids=["after our Close", "open"])
def test_any_other_close_is_an_abnormal_end_and_no_error_event(code: int, was_open: bool) -> None:
    protocol = make()
    if not was_open:
        send_close(protocol)
    hear(protocol, BINARY, b"last")
    assert hear_close(protocol, Close(code, "why")) == [CloseReceived(code, "why")]
    error = AbnormalClosure(code, "why")
    assert (protocol.ended, protocol.verdict, protocol.error) == (True, error, error)
    assert not protocol.has_failed
    assert read(protocol) == b"last"
    assert protocol.closed(close_written=True) == StreamClosed(code, "why", True, error)


@pytest.mark.parametrize("close", [NORMAL, Close(1001, ""), Close(1005, "")])
@pytest.mark.parametrize("opcode", [BINARY, TEXT])
@pytest.mark.parametrize("continued", [False, True])
def test_any_close_inside_a_fragmented_message_is_an_abnormal_end(
    close: Close, opcode: int, continued: bool
) -> None:
    protocol = make(text=TextPolicy.AS_BYTES)
    hear(protocol, opcode, b"ab", fin=False)
    if continued:
        hear(protocol, CONT, b"cd", fin=False)
    assert hear_close(protocol, close) == [CloseReceived(*close)]
    assert protocol.verdict == AbnormalClosure(*close)
    assert read(protocol) == (b"abcd" if continued else b"ab")
    assert sent_by(protocol) == [(CLOSE, b"" if close.code == 1005 else close_payload(*close))]


def test_a_close_after_a_whole_fragmented_message_is_a_clean_end() -> None:
    protocol = make()
    hear(protocol, BINARY, b"ab", fin=False)
    hear(protocol, CONT, fin=True)
    hear_close(protocol, NORMAL)
    assert protocol.ended
    assert protocol.verdict is None


VIOLATIONS = {
    "reserved bits": (frame(BINARY | 0x40, masked=True), 1002),
    "unknown opcode": (frame(3, masked=True), 1002),
    "unmasked": (frame(BINARY, masked=False), 1002),
    "fragmented ping": (frame(PING, fin=False, masked=True), 1002),
    "continuation of nothing": (frame(CONT, masked=True), 1002),
    "Close of one byte": (frame(CLOSE, b"\x03", masked=True), 1002),
    "Close 1005": (frame(CLOSE, close_payload(1005), masked=True), 1002),
    "Close 1006": (frame(CLOSE, close_payload(1006), masked=True), 1002),
    "Close 1015": (frame(CLOSE, close_payload(1015), masked=True), 1002),
    "Close reason not UTF-8": (frame(CLOSE, close_payload(1000) + b"\xff", masked=True), 1007),
    "text not UTF-8": (frame(TEXT, b"\xff", masked=True), 1007),
}


@pytest.mark.parametrize(("data", "close_code"), VIOLATIONS.values(), ids=VIOLATIONS)
@pytest.mark.parametrize("was_open", [False, True], ids=["after our Close", "open"])
def test_a_violation_fails_the_connection(data: bytes, close_code: int, was_open: bool) -> None:
    protocol = make(text=TextPolicy.AS_BYTES)
    if not was_open:
        send_close(protocol)
    events = tell(protocol, frame(BINARY, b"before", masked=True) + data)
    error = protocol.error
    assert isinstance(error, ProtocolViolation)
    assert error.close_code == close_code
    assert events == [ErrorOccurred(error)]
    assert protocol.verdict is error
    assert protocol.ended
    assert protocol.has_failed
    assert protocol.error is not None
    assert protocol.error.__traceback__ is None  # it would keep what was read
    assert protocol.close_received is None
    assert not protocol.can_send
    assert read(protocol) == b"before"
    assert protocol.owes  # the end of TCP, where the Close is out
    close = [(CLOSE, close_payload(close_code, error.reason))]
    assert sent_by(protocol) == (close if was_open else [])
    assert protocol.closed(close_written=True) == StreamClosed(1006, "", False, error)


@pytest.mark.parametrize("was_open", [False, True], ids=["after our Close", "open"])
def test_a_transport_that_ends_without_a_close_is_lost(was_open: bool) -> None:
    protocol = make()
    if not was_open:
        send_close(protocol)
    hear(protocol, BINARY, b"before")
    protocol.receive_eof()
    error = protocol.error
    assert isinstance(error, ConnectionLost)
    assert events_of(protocol) == [ErrorOccurred(error)]
    assert protocol.verdict is error
    assert (protocol.ended, protocol.tcp_ended, protocol.can_send) == (True, True, False)
    assert not protocol.has_failed
    assert read(protocol) == b"before"
    assert protocol.closed(close_written=not was_open) == StreamClosed(1006, "", False, error)


@pytest.mark.parametrize("has_closed", [False, True])
def test_a_lost_connection_says_why_it_was_lost(has_closed: bool) -> None:
    protocol = make()
    if has_closed:
        hear_close(protocol, NORMAL)
    protocol.receive_eof("the cable was cut")
    assert isinstance(protocol.error, ConnectionLost)
    assert str(protocol.error).startswith("the cable was cut")


def test_a_transport_that_ends_inside_a_frame_is_lost_and_what_came_counts() -> None:
    protocol = make()
    tell(protocol, frame(BINARY, b"0123456789", masked=True)[:-3])
    protocol.receive_eof()
    assert isinstance(protocol.verdict, ConnectionLost)
    assert read(protocol) == b"0123456"


@pytest.mark.parametrize("close", [NORMAL, Close(4000, "")])
def test_a_transport_that_ends_after_both_closes_is_no_event(close: Close) -> None:
    protocol = make()
    hear_close(protocol, close)
    sent_by(protocol)
    verdict, error = protocol.verdict, protocol.error
    protocol.receive_eof()
    assert protocol.tcp_ended
    assert events_of(protocol) == []
    assert (protocol.verdict, protocol.error) == (verdict, error)


@pytest.mark.parametrize("close", [NORMAL, HALF_CLOSE], ids=["owed", "held back"])
def test_a_transport_that_ends_before_our_answer_breaks_sending_only(close: Close) -> None:
    protocol = make()
    hear_close(protocol, close)
    protocol.receive_eof()
    error = protocol.error
    assert isinstance(error, ConnectionLost)
    assert events_of(protocol) == [ErrorOccurred(error)]
    assert protocol.verdict is None  # all that the peer had to say has come
    assert not protocol.can_send
    assert protocol.closed(close_written=False) == StreamClosed(*close, False, error)


def test_a_transport_that_ends_after_an_abnormal_close_is_no_other_error() -> None:
    protocol = make()
    hear_close(protocol, Close(4000, ""))
    protocol.receive_eof()
    assert events_of(protocol) == []
    assert protocol.verdict == protocol.error == AbnormalClosure(4000, "")


@pytest.mark.parametrize("was_open", [False, True], ids=["after our Close", "open"])
def test_a_peer_that_gives_no_sign_of_life_is_given_up(was_open: bool) -> None:
    protocol = make()
    if not was_open:
        send_close(protocol)
    protocol.ping(b"1")
    protocol.time_out()
    error = protocol.error
    assert isinstance(error, KeepaliveTimeout)
    assert events_of(protocol) == [ErrorOccurred(error)]
    assert protocol.verdict is error
    assert protocol.pings == {}
    assert not protocol.can_send
    close = (CLOSE, close_payload(1011, "keepalive timeout"))
    assert sent_by(protocol) == ([(PING, b"1"), close] if was_open else [])


def test_an_error_is_reported_only_once() -> None:
    protocol = make()
    events = hear(protocol, 3)
    first = protocol.error
    protocol.receive_eof()
    protocol.time_out()
    protocol.fail(ProtocolViolation(1002, "another"))
    assert events + events_of(protocol) == [ErrorOccurred(first)]
    assert protocol.error is protocol.verdict is first


def test_a_long_reason_is_cut_between_two_characters() -> None:
    protocol = make()
    protocol.fail(ProtocolViolation(1002, "x" + "€" * 100))
    assert sent_by(protocol) == [(CLOSE, close_payload(1002, "x" + "€" * 40))]


def close_normally(protocol: Protocol) -> None:
    hear_close(protocol, NORMAL)


def close_abnormally(protocol: Protocol) -> None:
    hear_close(protocol, Close(4000, ""))


def violate(protocol: Protocol) -> None:
    hear(protocol, 3)


def mistake_it_for_a_chat(protocol: Protocol) -> None:
    hear_text(protocol, "refused")


@pytest.mark.parametrize(
    "end",
    [
        close_normally,
        close_abnormally,
        violate,
        mistake_it_for_a_chat,
        Protocol.receive_eof,
        Protocol.time_out,
        Protocol.abandon,
    ],
)
@pytest.mark.parametrize("in_one_read", [False, True])
def test_whatever_comes_after_the_end_is_ignored(end: Any, in_one_read: bool) -> None:
    more = b"".join(
        frame(opcode, payload, masked=True)
        for opcode, payload in [
            (BINARY, b"data"),
            (PING, b"ping"),
            (PONG, b"pong"),
            (TEXT, b"text"),
            (CLOSE, close_payload(4001, "late")),
            (3, b""),
        ]
    )
    protocol = make()
    hear(protocol, BINARY, b"before")
    end(protocol)
    events_of(protocol)
    sent_by(protocol)

    def state() -> list[Any]:
        names = ["verdict", "error", "close_received", "answer_is_deferred", "can_send"]
        names += ["has_failed", "owes"]
        return [getattr(protocol, name) for name in names]

    before = state()
    assert protocol.receive_at_once(frame(BINARY, b"data", masked=True)) is None
    for chunk in [more] if in_one_read else [more[i : i + 1] for i in range(len(more))]:
        assert tell(protocol, chunk) == []
    assert state() == before
    assert read(protocol) == b"before"
    assert protocol.data_to_send() == b""


def test_of_what_comes_after_a_half_close_only_control_frames_count() -> None:
    protocol = make()
    hear_close(protocol, HALF_CLOSE)
    sent_by(protocol)
    assert not protocol.peer_speaks_on
    hear(protocol, BINARY, b"data")
    hear_text(protocol, "text")
    assert hear(protocol, PING, b"ping") == [PingReceived(b"ping")]
    assert sent_by(protocol) == [(PONG, b"ping")]
    assert protocol.peer_speaks_on
    assert hear(protocol, PONG, b"pong") == [PongReceived(b"pong")]
    hear(protocol, 3)  # no violation counts any more, and nothing after it
    assert hear(protocol, PING, b"ping") == []
    assert (protocol.verdict, protocol.error, protocol.has_failed) == (None, None, False)
    assert protocol.answer_is_deferred
    assert read(protocol) == b""


def test_what_comes_behind_the_end_in_the_same_read_is_ignored() -> None:
    protocol = make()
    data = frame(CLOSE, masked=True) + frame(BINARY, b"late", masked=True) + b"\xff\xff"
    assert tell(protocol, frame(BINARY, b"in time", masked=True) + data) == [
        CloseReceived(1005, "")
    ]
    assert read(protocol) == b"in time"
    assert protocol.error is None


def test_what_comes_after_the_end_takes_no_memory() -> None:
    protocol = make()
    hear_close(protocol, NORMAL)

    def say_more() -> None:
        for _ in range(100):
            protocol.receive_data(bytes(10_000))

    assert memory_taken_by(say_more) < 10_000


@pytest.mark.parametrize("end", [Protocol.receive_eof, Protocol.abandon])
def test_the_end_of_tcp_is_handled_only_once(end: Any) -> None:
    protocol = make()
    end(protocol)
    events_of(protocol)
    error = protocol.error
    protocol.receive_eof("it ended again")
    assert events_of(protocol) == []
    assert protocol.error is error


# Once the reader is gone


def test_without_readers_data_is_dropped_and_pings_and_close_still_count() -> None:
    protocol = make(text=TextPolicy.REJECT)
    hear(protocol, BINARY, b"unread")
    protocol.stop_receiving()
    assert read(protocol) == b""
    assert hear(protocol, BINARY, b"dropped") == []
    assert hear_text(protocol, "dropped, and not refused") == []
    assert hear(protocol, PING, b"?") == [PingReceived(b"?")]
    assert hear_close(protocol, NORMAL) == [CloseReceived(1000, "")]
    assert read(protocol) == b""
    assert protocol.error is None


def test_without_readers_no_text_is_reported() -> None:
    protocol = make(text=TextPolicy.AS_EVENTS)
    hear_text(protocol, "a", fin=False)
    protocol.stop_receiving()
    assert hear(protocol, CONT, b"b") == []
    assert hear_text(protocol, "c") == []


def test_without_readers_a_violation_still_fails_the_connection() -> None:
    protocol = make()
    protocol.stop_receiving()
    hear(protocol, 3)
    assert isinstance(protocol.error, ProtocolViolation)


@pytest.mark.parametrize(
    ("received", "is_out", "expected"),
    [
        (None, False, StreamClosed(1006, "", False, None)),
        (None, True, StreamClosed(1006, "", False, None)),
        (Close(1000, "r"), False, StreamClosed(1000, "r", False, None)),
        (Close(1000, "r"), True, StreamClosed(1000, "r", True, None)),
        (Close(1005, ""), True, StreamClosed(1005, "", True, None)),
        (Close(4000, "r"), True, StreamClosed(4000, "r", True, AbnormalClosure(4000, "r"))),
    ],
)
def test_the_last_event_tells_the_peers_close_and_whether_both_have_passed(
    received: Close | None, is_out: bool, expected: StreamClosed
) -> None:
    protocol = make()
    protocol.ping(b"1")
    if received is not None:
        hear_close(protocol, received)
    protocol.abandon()
    assert (protocol.tcp_ended, protocol.ended, protocol.can_send) == (True, True, False)
    assert protocol.pings == {}
    assert protocol.closed(close_written=is_out) == expected


# Text


@SIDES
def test_text_is_rejected_at_its_header(client: bool) -> None:
    protocol = make(client=client)
    hear(protocol, BINARY, b"before")
    header = encode_header(FIN | TEXT, 1000, 0 if client else MASKED) + (b"" if client else b"mask")
    rejected = TextRejected(1003, "Text messages are not supported.")
    assert tell(protocol, header) == [ErrorOccurred(rejected)]
    assert protocol.verdict == rejected
    assert protocol.has_failed
    assert read(protocol) == b"before"
    assert sent_by(protocol) == [(CLOSE, close_payload(1003, "Text messages are not supported."))]


@pytest.mark.parametrize("text", [b"", b"text", b"not UTF-8: \xff"])
@pytest.mark.parametrize("fin", [False, True])
def test_any_text_is_rejected_even_if_it_is_not_utf8(text: bytes, fin: bool) -> None:
    protocol = make()
    hear_text(protocol, text, fin=fin)
    assert isinstance(protocol.verdict, TextRejected)
    assert read(protocol) == b""


def test_text_as_bytes_is_part_of_the_stream_as_it_comes() -> None:
    protocol = make(text=TextPolicy.AS_BYTES)
    hear(protocol, BINARY, b"a")
    data = frame(TEXT, "b€c".encode(), masked=True)
    assert tell(protocol, data[:-3]) == []
    assert read(protocol) == b"a" + "b€c".encode()[:-3]
    assert tell(protocol, data[-3:]) == []
    hear(protocol, BINARY, b"d")
    assert read(protocol) == "b€c".encode()[-3:] + b"d"


def test_text_as_bytes_may_be_longer_than_the_receive_buffer() -> None:
    protocol = make(text=TextPolicy.AS_BYTES, receive_buffer_size=1)
    assert hear_text(protocol, "x" * 1000) == []
    assert read(protocol) == b"x" * 1000


@pytest.mark.parametrize("pieces", [["text"], [""], ["", ""], ["te", "x", "", "t"]])
def test_text_as_events_is_told_when_it_is_whole_and_kept_out_of_the_stream(
    pieces: Sequence[str],
) -> None:
    protocol = make(text=TextPolicy.AS_EVENTS)
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        events = hear(protocol, CONT if number else TEXT, piece.encode(), fin=last)
        assert events == ([TextReceived("".join(pieces))] if last else [])
        hear(protocol, PING)
    hear(protocol, BINARY, b"data")
    assert read(protocol) == b"data"


def test_text_as_events_may_be_cut_inside_a_character() -> None:
    protocol = make(text=TextPolicy.AS_EVENTS)
    data = frame(TEXT, "€".encode(), masked=True)
    events = [event for i in range(len(data)) for event in tell(protocol, data[i : i + 1])]
    assert events == [TextReceived("€")]


def test_each_text_event_may_be_as_long_as_the_receive_buffer() -> None:
    protocol = make(text=TextPolicy.AS_EVENTS, receive_buffer_size=4)
    assert hear_text(protocol, "abcd") == [TextReceived("abcd")]
    assert hear_text(protocol, "€x") == [TextReceived("€x")]
    assert protocol.error is None


@pytest.mark.parametrize("pieces", [[b"abcde"], [b"abcd", b"e"], ["€€".encode()]])
def test_a_text_event_longer_than_the_receive_buffer_is_rejected(pieces: Sequence[bytes]) -> None:
    protocol = make(text=TextPolicy.AS_EVENTS, receive_buffer_size=4)
    hear(protocol, BINARY, b"before")
    for number, piece in enumerate(pieces):
        hear(protocol, CONT if number else TEXT, piece, fin=False)
    assert protocol.verdict == TextRejected(1009, "The text message is too long.")
    assert sent_by(protocol) == [(CLOSE, close_payload(1009, "The text message is too long."))]
    assert read(protocol) == b"before"


@pytest.mark.parametrize("policy", [TextPolicy.AS_BYTES, TextPolicy.AS_EVENTS])
@pytest.mark.parametrize(
    ("text", "fin"), [(b"ok\xff!", True), (b"ok\xff!", False), (b"ok\xe2\x82", True)]
)
def test_text_that_is_not_utf8_fails_the_connection(
    policy: TextPolicy, text: bytes, fin: bool
) -> None:
    protocol = make(text=policy)
    hear_text(protocol, text, fin=fin)
    violation = protocol.verdict
    assert isinstance(violation, ProtocolViolation)
    assert violation.close_code == 1007
    good = text.removesuffix(b"\xff!")
    assert read(protocol) == (good if policy is TextPolicy.AS_BYTES else b"")
    assert sent_by(protocol) == [(CLOSE, close_payload(1007, violation.reason))]


# The receive buffer

pieces_to_add = st.lists(st.binary(max_size=5) | st.integers(0, 5000).map(bytes), max_size=3)
steps = st.lists(
    st.one_of(
        pieces_to_add.filter(bool),
        st.integers(0, 6000),
        st.none(),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(steps=steps)
def test_a_receive_buffer_returns_what_plain_bytes_would(
    steps: list[list[bytes] | int | None],
) -> None:
    buffer, model = ReceiveBuffer(), b""
    for step in steps:
        if isinstance(step, list):
            buffer.add(step)
            model += b"".join(step)
        else:
            taken = buffer.take(step)
            assert taken == model[:step]
            model = model[len(taken) :]
        assert buffer.size == len(model)
    assert buffer.take(None) == model
    assert buffer.size == 0


def test_what_was_taken_from_a_receive_buffer_does_not_change() -> None:
    buffer = ReceiveBuffer()
    for piece in (b"ab", b"cd"):
        buffer.add([piece])
    first = buffer.take(1)
    buffer.add([b"ef"])
    rest = buffer.take(None)
    buffer.add([b"gh"])
    assert (first, rest, buffer.take(None)) == (b"a", b"bcdef", b"gh")


def test_a_receive_buffer_that_is_cleared_is_empty() -> None:
    buffer = ReceiveBuffer()
    buffer.add([b"abc"])
    buffer.take(1)
    buffer.clear()
    assert buffer.size == 0
    assert buffer.take(None) == b""
    buffer.add([b"def"])
    assert buffer.take(None) == b"def"


@pytest.mark.parametrize("max_bytes", [None, 100_000, 100_001])
def test_a_whole_piece_goes_through_a_receive_buffer_uncopied(max_bytes: int | None) -> None:
    buffer, piece = ReceiveBuffer(), bytes(100_000)
    buffer.add([piece])
    assert buffer.take(max_bytes) is piece


def test_a_whole_piece_is_uncopied_too_after_another_in_two_parts_and_after_nothing() -> None:
    buffer, piece = ReceiveBuffer(), bytes(100_000)
    buffer.add([piece])
    assert buffer.take(1) + buffer.take(None) == piece
    buffer.add([b""])
    buffer.add([piece])
    assert buffer.take(None) is piece


@pytest.mark.parametrize("size", [1, 2, 3, 100, 4096])
@pytest.mark.parametrize("alike", [False, True])
def test_many_small_pieces_take_little_more_memory_than_their_bytes(size: int, alike: bool) -> None:
    buffer = ReceiveBuffer()
    count = 65536 // size

    def add_all() -> None:
        for number in range(count):
            buffer.add([bytes([0 if alike else number % 256]) * size])

    assert memory_taken_by(add_all) < 2 * 65536
    assert buffer.size == count * size
