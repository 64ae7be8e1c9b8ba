"""Taking a connection over: wherever trio-websocket was, nothing is lost, nothing comes twice."""

from __future__ import annotations

import ast
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
import trio_websocket
from trio.testing import wait_all_tasks_blocked
from trio_websocket import WebSocketConnection
from wsproto.extensions import Extension

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ConnectionLost,
    ErrorOccurred,
    PingReceived,
    ProtocolViolation,
    StreamClosed,
    StreamConfig,
    TakeoverError,
    TextPolicy,
    TextReceived,
    TextRejected,
    WsByteStream,
    WsEvent,
    _takeover,
)
from trio_wsstream._protocol import ANSWER_DEFERRED

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, close_payload, frame
from .support.handshakes import CLIENT_HANDSHAKE, handshake, receive_head
from .support.meeting import Meeting, meeting
from .support.pairs import connection_pair
from .support.raw_peer import RawPeer
from .support.receiving import receive_all, receive_and_break, receive_exactly
from .support.tasks import CancelAtStep, cancel_when_all_is_blocked
from .support.transports import TRANSPORTS, Gate, reset

TIGHT = StreamConfig(text=TextPolicy.AS_BYTES, receive_buffer_size=1000)
ROOM_FOR_ALL: Final = 100  # messages, in trio-websocket's queue

every_queue = pytest.mark.parametrize("queue", [0, 1, ROOM_FOR_ALL])

# At every byte

QUESTION: Final = b"still there?"
GOODBYE: Final = (1000, "goodbye")
NOISE: Final = random.Random(0).randbytes(65536)
LETTERS: Final = "aé€𝄞".encode()  # of one byte, two, three and four

SPEECH: Final[list[tuple[int, bytes, bool]]] = [
    (BINARY, b"", True),
    (BINARY, b"x", True),
    (BINARY, NOISE[:125], True),
    (BINARY, NOISE[:126], True),
    (BINARY, b"a message ", False),
    (CONT, b"", False),
    (PING, QUESTION, True),
    (CONT, b"in fragments", True),
    (TEXT, LETTERS, True),
    (TEXT, LETTERS[:2], False),
    (CONT, LETTERS[2:7], False),
    (CONT, LETTERS[7:], True),
    (BINARY, NOISE, True),
    (CLOSE, close_payload(*GOODBYE), True),
]
PAYLOAD: Final = b"".join(payload for opcode, payload, _ in SPEECH if opcode < CLOSE)


def spoken(*, client: bool) -> list[bytes]:
    """Return the frames of the speech, to a client or to a server."""
    return [frame(opcode, said, fin=fin, masked=not client) for opcode, said, fin in SPEECH]


def payload_before(cut: int, *, client: bool) -> bytes:
    """Return the part of the stream that is in the first ``cut`` bytes of the speech."""
    payload, start = b"", 0
    for (opcode, said, _), sent in zip(SPEECH, spoken(client=client), strict=True):
        if opcode < CLOSE:
            payload += said[: max(0, cut - start - (len(sent) - len(said)))]
        start += len(sent)
    return payload


def cuts(*, client: bool) -> list[int]:
    """Return every offset, but only some of those deep inside a long payload."""
    result, start = {0}, 0
    for (_, said, _), sent in zip(SPEECH, spoken(client=client), strict=True):
        body, stop = start + len(sent) - len(said), start + len(sent)
        middle = (body + stop) // 2
        result.update(range(start, min(stop, body + 6)))
        result.update(range(middle, min(stop, middle + 4)))  # four turns of the masking key
        result.update(range(max(body, stop - 3), stop + 1))
        start = stop
    return sorted(result)


async def check_takeover(cut: int, *, client: bool, transport: str, queue: int) -> None:
    """Take over after trio-websocket has read all that it can of the bytes before the cut."""
    speech = b"".join(spoken(client=client))
    go_on = trio.Event()
    async with meeting(client=client, transport=transport, message_queue_size=queue) as our:

        async def speak() -> None:
            await our.peer.transport.send_all(speech[:cut])
            await go_on.wait()
            if cut < len(speech):
                await our.peer.transport.send_all(speech[cut:])

        our.nursery.start_soon(speak)
        await wait_all_tasks_blocked()
        # A ping that trio-websocket has answered before is no event of the stream.
        pings = [] if (PONG, QUESTION) in our.heard else [PingReceived(QUESTION)]
        stream, happened = our.take_over()
        before = payload_before(cut, client=client)
        assert await receive_exactly(stream, len(before)) == before
        go_on.set()
        assert before + await receive_all(stream) == PAYLOAD
        await stream.aclose()
    assert our.heard == [(PONG, QUESTION), (CLOSE, close_payload(*GOODBYE))]
    assert happened == [
        *pings,
        CloseReceived(*GOODBYE),
        StreamClosed(*GOODBYE, clean=True, error=None),
    ]
    assert stream.closed == happened[-1]


@pytest.mark.slow
@every_queue
@SIDES
async def test_a_takeover_at_any_byte_loses_nothing(client: bool, queue: int) -> None:
    for cut in cuts(client=client):
        await check_takeover(cut, client=client, transport="memory", queue=queue)


@every_queue
@SIDES
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_takeover_over_any_transport_loses_nothing(
    client: bool, queue: int, transport: str
) -> None:
    for cut in cuts(client=client)[queue % 7 :: 13]:
        await check_takeover(cut, client=client, transport=transport, queue=queue)


@SIDES
async def test_a_ping_is_answered_by_the_side_of_the_takeover_that_its_last_byte_reached(
    client: bool,
) -> None:
    speech = b"".join(spoken(client=client))
    ping = frame(PING, QUESTION, masked=not client)
    end = speech.index(ping) + len(ping)
    for cut in (end - 1, end):
        async with meeting(client=client, message_queue_size=ROOM_FOR_ALL) as our:
            await our.peer.transport.send_all(speech[:cut])
            await wait_all_tasks_blocked()
            assert our.heard == ([(PONG, QUESTION)] if cut == end else [])
            stream, _ = our.take_over()
            await our.connection.aclose()
            assert stream.closed is not None


# Between any two steps


async def receive_until_cancelled(stream: WsByteStream, count: int) -> bytes:
    """Return what a read gets that is cancelled after some steps or when all is blocked."""
    data: bytes | bytearray = b""
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await wait_all_tasks_blocked()
            scope.cancel()

        with trio.CancelScope() as scope:
            nursery.start_soon(give_up)
            instrument = CancelAtStep(scope, count)
            trio.lowlevel.add_instrument(instrument)
            try:
                data = await stream.receive_some(7)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        nursery.cancel_scope.cancel()
    return bytes(data)


@pytest.mark.slow
@every_queue
@SIDES
async def test_a_cancelled_read_after_a_takeover_loses_nothing(client: bool, queue: int) -> None:
    speech = b"".join(spoken(client=client))
    for cut in cuts(client=client)[::9]:
        async with meeting(client=client, message_queue_size=queue) as our:
            await our.peer.transport.send_all(speech[:cut])
            await wait_all_tasks_blocked()
            stream, _ = our.take_over(TIGHT)
            received = b""
            for part in (b"", speech[cut : cut + 5], speech[cut + 5 : -1]):
                if part:
                    await our.peer.transport.send_all(part)
                for count in range(6):
                    received += await receive_until_cancelled(stream, count)
                if not part:  # all that came can be read, with nothing more from the peer
                    before = payload_before(cut, client=client)
                    received += await receive_exactly(stream, len(before) - len(received))
                    assert received == before
            if last := speech[max(cut, len(speech) - 1) :]:
                await our.peer.transport.send_all(last)
            assert received + await receive_all(stream) == PAYLOAD
            await stream.aclose()


@pytest.mark.slow
@every_queue
@SIDES
async def test_a_takeover_between_any_two_steps_of_trio_websockets_reader_loses_nothing(
    client: bool, queue: int
) -> None:
    ends = []

    def note(ours: trio.StapledStream[Any, trio.testing.MemoryReceiveStream]) -> Any:
        ends.append(ours)
        return ours

    for steps in range(40):
        async with meeting(client=client, wrap=note, message_queue_size=queue) as our:
            await wait_all_tasks_blocked()
            ends.pop().receive_stream.put_data(b"".join(spoken(client=client)))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            had_pong = (PONG, QUESTION) in our.heard
            stream, happened = our.take_over()
            assert await receive_all(stream) == PAYLOAD
            await stream.aclose()
        assert our.heard == [(PONG, QUESTION), (CLOSE, close_payload(*GOODBYE))]
        assert happened[-2:] == [
            CloseReceived(*GOODBYE),
            StreamClosed(*GOODBYE, clean=True, error=None),
        ]
        # Whose Pong it is that is on its way, nobody can tell from outside.
        assert happened[:-2] in ([[]] if had_pong else [[], [PingReceived(QUESTION)]])


# What trio-websocket holds


@pytest.mark.parametrize(
    ("policy", "payload", "events", "error"),
    [
        (TextPolicy.AS_BYTES, b"one two three", [], None),
        (TextPolicy.AS_EVENTS, b"one three", [TextReceived(" two")], None),
        (
            TextPolicy.REJECT,
            b"one",
            [],
            TextRejected(1003, "Text messages are not supported."),
        ),
    ],
)
@every_queue
@SIDES
async def test_queued_text_follows_the_text_policy_in_order(
    client: bool,
    queue: int,
    policy: TextPolicy,
    payload: bytes,
    events: list[WsEvent],
    error: TextRejected | None,
) -> None:
    async with meeting(client=client, message_queue_size=queue) as our:
        await our.say((BINARY, b"one"), (TEXT, b" two"), (BINARY, b" three"))
        stream, happened = our.take_over(StreamConfig(text=policy))
        if error is None:
            assert await receive_exactly(stream, len(payload)) == payload
            await our.say((CLOSE, b""))
        else:
            assert await receive_and_break(stream) == (payload, error)
            events = [ErrorOccurred(error)]
        await stream.aclose()
    assert happened[: len(events)] == events


@SIDES
async def test_the_message_limit_of_trio_websocket_ends_with_the_takeover(client: bool) -> None:
    async with meeting(client=client, max_message_size=10) as our:
        message = our.peer.frame(BINARY, NOISE)
        await our.peer.transport.send_all(message[:20])
        await wait_all_tasks_blocked()
        stream, _ = our.take_over()
        await our.peer.transport.send_all(message[20:])
        await our.say((CLOSE, b""))
        assert await receive_all(stream) == NOISE
        await stream.aclose()


@SIDES
async def test_the_taken_over_bytes_are_read_only_as_far_as_the_buffer_has_room(
    client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with meeting(client=client, message_queue_size=0) as our:
        message = our.peer.frame(BINARY, bytes(100))
        await our.peer.transport.send_all(message + our.peer.frame(PING, QUESTION))
        await wait_all_tasks_blocked()
        stream, happened = our.take_over(StreamConfig(receive_buffer_size=10))
        await trio.sleep(1)
        assert (our.heard, happened) == ([], [])
        assert await receive_exactly(stream, 100) == bytes(100)
        await trio.sleep(1)
        assert (our.heard, happened) == ([(PONG, QUESTION)], [PingReceived(QUESTION)])
        await our.say((CLOSE, b""))
        await stream.aclose()


@SIDES
async def test_a_message_that_get_message_was_given_is_not_received_again(client: bool) -> None:
    async with meeting(client=client, message_queue_size=1) as our:
        await our.say((BINARY, b"one"), (BINARY, b"two"), (BINARY, b"three"), (CLOSE, b""))
        assert await our.connection.get_message() == b"one"
        stream, _ = our.take_over()
        assert await receive_all(stream) == b"twothree"
        await stream.aclose()


@SIDES
@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "TLS 1.2"])
async def test_this_side_may_send_before_the_peer_does(client: bool, transport: str) -> None:
    async with meeting(client=client, transport=transport) as our:
        await wait_all_tasks_blocked()
        stream, _ = our.take_over()
        await stream.send_all(b"hello")
        await wait_all_tasks_blocked()
        assert our.heard == [(BINARY, b"hello")]
        await our.say((BINARY, b"hi"), (CLOSE, b""))
        assert await receive_all(stream) == b"hi"
        await stream.aclose()


# After the peer has closed

QUEUED: Final = {
    "nothing": [],
    "a message": [(BINARY, b"one")],
    "messages": [(BINARY, b"one"), (TEXT, LETTERS), (BINARY, b"three")],
}


def what_to_receive(queued: list[tuple[int, bytes]]) -> bytes:
    return b"".join(payload for _, payload in queued)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, "enough"), (1000, "half-close"), (1001, ""), (1005, ""), (4000, "enough")],
)
@pytest.mark.parametrize("queued", QUEUED.values(), ids=QUEUED)
@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "TLS 1.2"])
@SIDES
async def test_a_takeover_after_the_peers_close_reports_that_close(
    client: bool, transport: str, queued: list[tuple[int, bytes]], code: int, reason: str
) -> None:
    close = b"" if code == 1005 else close_payload(code, reason)
    error = AbnormalClosure(code, reason) if code in (1001, 4000) else None
    async with meeting(client=client, transport=transport, message_queue_size=ROOM_FOR_ALL) as our:
        await our.say(*queued, (CLOSE, close))
        assert our.connection.closed is not None
        stream, happened = our.take_over()
        if error is None:
            assert await receive_all(stream) == what_to_receive(queued)
            assert await stream.receive_some() == b""
        else:
            assert await receive_and_break(stream) == (what_to_receive(queued), error)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"too late")
        assert broken.value.__cause__ == AbnormalClosure(code, reason)
        await stream.aclose()
    assert our.heard == [(CLOSE, close)]
    assert happened == [CloseReceived(code, reason), StreamClosed(code, reason, True, error)]


@SIDES
async def test_a_takeover_after_a_close_ends_without_a_reader(client: bool) -> None:
    async with meeting(client=client) as our:
        await our.say((BINARY, b"one"), (CLOSE, close_payload(1000)))
        stream, happened = our.take_over()
        assert [event async for event in stream.subscribe(kinds=())] == [stream.closed]
        assert await receive_all(stream) == b"one"
    assert happened == [CloseReceived(1000, ""), StreamClosed(1000, "", True, None)]


@SIDES
async def test_a_half_close_that_trio_websocket_has_not_seen_is_held_back(client: bool) -> None:
    half_close = (CLOSE, close_payload(1000, "half-close"))
    async with meeting(client=client, message_queue_size=0) as our:
        await our.say((BINARY, b"question"), half_close)
        assert our.connection.closed is None
        stream, happened = our.take_over()
        assert await receive_all(stream) == b"question"
        await stream.send_all(b"answer")
        await stream.aclose(4000)
    assert our.heard == [
        (PONG, ANSWER_DEFERRED),
        (BINARY, b"answer"),
        (CLOSE, close_payload(4000)),
    ]
    assert happened == [
        CloseReceived(1000, "half-close"),
        StreamClosed(1000, "half-close", True, None),
    ]


@SIDES
async def test_a_close_inside_an_unfinished_message_before_the_takeover_was_abnormal(
    client: bool,
) -> None:
    async with meeting(client=client) as our:
        await our.say((BINARY, b"half of it", False), (CLOSE, close_payload(1000)))
        stream, happened = our.take_over()
        error = AbnormalClosure(1000, "")
        assert await receive_and_break(stream) == (b"half of it", error)
        await stream.aclose()
    assert happened == [CloseReceived(1000, ""), StreamClosed(1000, "", True, error)]


@SIDES
async def test_a_client_waits_for_tcp_to_end_but_not_for_ever(
    client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """This must hold too while trio-websocket's reader task waits in the transport for the same."""
    ends = trio.testing.memory_stream_pair()
    ours, theirs = ends if client else reversed(ends)
    async with trio.open_nursery() as nursery:
        connection = await handshake(nursery, ours, theirs, client=client)
        await theirs.send_all(frame(CLOSE, close_payload(1000), masked=not client))
        await wait_all_tasks_blocked()
        stream = WsByteStream(connection, nursery, StreamConfig(close_timeout=7))
        started_at = trio.current_time()
        assert await receive_all(stream) == b""
        assert trio.current_time() == started_at
        await stream.aclose()
        assert trio.current_time() - started_at == (7 if client else 0)


# After a violation, and after a loss

VIOLATIONS: Final = {
    "reserved bits": (1002, b"\xc2\x00"),
    "unknown opcode": (1002, b"\x83\x00"),
    "fragmented ping": (1002, b"\x09\x00"),
    "continuation of nothing": (1002, b"\x80\x00"),
    "close of one byte": (1002, b"\x88\x01\x03"),
    "close with code 1006": (1002, b"\x88\x02" + close_payload(1006)),
    "reason not utf-8": (1007, b"\x88\x03" + close_payload(1000) + b"\xff"),
    "text not utf-8": (1007, b"\x81\x01\xff"),
}


def as_said_to(bare: bytes, *, client: bool) -> bytes:
    """Return a frame of at most 125 bytes of payload. A frame to a server is masked."""
    if client:
        return bare
    return bytes((bare[0], bare[1] | 0x80)) + bytes(4) + bare[2:]


async def check_violation(
    our: Meeting, violation: bytes, code: int, before: bytes, *, is_client: bool
) -> None:
    await our.peer.transport.send_all(violation)
    await wait_all_tasks_blocked()
    assert our.connection.closed is not None
    assert our.connection.closed.code == code
    stream, happened = our.take_over()
    received, error = await receive_and_break(stream)
    assert received == before
    assert isinstance(error, ProtocolViolation)
    assert error.close_code == code
    assert error.reason
    await stream.aclose()
    # On a server, trio-websocket has closed the transport, with no Close.
    assert [said[:2] for _, said in our.heard] == ([close_payload(code)] if is_client else [])
    await wait_all_tasks_blocked()
    assert happened == [ErrorOccurred(error), StreamClosed(1006, "", False, error)]


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS)
@pytest.mark.parametrize("transport", ["memory", "tcp"])
@SIDES
async def test_a_takeover_after_a_violation_reports_that_violation(
    client: bool, transport: str, violation: tuple[int, bytes]
) -> None:
    code, bare = violation
    async with meeting(client=client, transport=transport, message_queue_size=ROOM_FOR_ALL) as our:
        await our.say(*QUEUED["messages"])
        before = what_to_receive(QUEUED["messages"])
        sent = as_said_to(bare, client=client)
        await check_violation(our, sent, code, before, is_client=client)


@SIDES
async def test_a_violation_is_reported_at_any_step_of_trio_websockets_tasks(client: bool) -> None:
    for steps in range(8):
        for _ in range(5):  # in one order or another
            async with meeting(client=client) as our:
                await wait_all_tasks_blocked()
                await our.peer.transport.send_all(as_said_to(b"\xc2\x00", client=client))
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                stream, happened = our.take_over()
                received, error = await receive_and_break(stream)
                assert received == b""
                assert isinstance(error, ProtocolViolation)
                assert error.close_code == 1002
                await stream.aclose()
            assert happened == [ErrorOccurred(error), StreamClosed(1006, "", False, error)]


@SIDES
async def test_a_takeover_after_a_violation_of_a_peer_that_has_hung_up_reports_it(
    client: bool,
) -> None:
    async with meeting(client=client) as our:
        await our.say((BINARY, b"one"))
        await our.peer.transport.send_all(as_said_to(b"\xc2\x00", client=client))
        await wait_all_tasks_blocked()
        await our.peer.transport.aclose()
        await wait_all_tasks_blocked()
        stream, happened = our.take_over()
        received, error = await receive_and_break(stream)
        assert received == b"one"
        assert isinstance(error, ProtocolViolation)
        assert error.close_code == 1002
        await stream.aclose()
    assert happened == [ErrorOccurred(error), StreamClosed(1006, "", False, error)]


@SIDES
async def test_a_takeover_after_a_wrongly_masked_frame_reports_a_violation(client: bool) -> None:
    async with meeting(client=client) as our:
        wrong = frame(BINARY, b"one", masked=client)
        await check_violation(our, wrong, 1002, b"", is_client=client)


@SIDES
async def test_a_takeover_after_a_violation_inside_a_message_keeps_what_came_before(
    client: bool,
) -> None:
    async with meeting(client=client) as our:
        await our.say((BINARY, b"half of it", False))
        wrong = our.peer.frame(BINARY, b"another one")
        await check_violation(our, wrong, 1002, b"half of it", is_client=client)


@SIDES
async def test_the_error_of_a_violation_is_made_of_plain_values(client: bool) -> None:
    async with meeting(client=client) as our:
        await our.peer.transport.send_all(as_said_to(b"\xc2\x00", client=client))
        await wait_all_tasks_blocked()
        stream, _ = our.take_over()
        _, error = await receive_and_break(stream)
        assert isinstance(error, ProtocolViolation)
        assert [type(arg) for arg in error.args] == [int, str]
        await stream.aclose()


@every_queue
@SIDES
async def test_a_violation_behind_a_full_queue_is_met_by_the_stream(
    client: bool, queue: int
) -> None:
    async with meeting(client=client, message_queue_size=queue) as our:
        messages = b"".join(our.peer.frame(*message) for message in QUEUED["messages"])
        violation = as_said_to(b"\xc2\x00", client=client)
        await our.peer.transport.send_all(messages + violation)
        await wait_all_tasks_blocked()
        stream, happened = our.take_over()
        received, error = await receive_and_break(stream)
        assert received == what_to_receive(QUEUED["messages"])
        assert isinstance(error, ProtocolViolation)
        assert error.close_code == 1002
        await stream.aclose()
    assert happened == [ErrorOccurred(error), StreamClosed(1006, "", False, error)]


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "reset"])
@pytest.mark.parametrize("queued", QUEUED.values(), ids=QUEUED)
@pytest.mark.parametrize("rest", [b"", b"\x82", b"\x82\x05abc"])
@SIDES
async def test_a_takeover_after_the_transport_was_lost_reports_the_loss(
    client: bool, rest: bytes, queued: list[tuple[int, bytes]], transport: str
) -> None:
    is_reset = transport == "reset"
    async with meeting(
        client=client,
        transport="tcp" if is_reset else transport,
        message_queue_size=ROOM_FOR_ALL,
    ) as our:
        await our.say(*queued)
        if rest:
            await our.peer.transport.send_all(
                rest if client or len(rest) < 2 else as_said_to(rest, client=False)
            )
            await wait_all_tasks_blocked()
        if is_reset:
            reset(our.peer.transport)
        else:
            await our.peer.transport.aclose()
        await wait_all_tasks_blocked()
        assert our.connection.closed is not None
        assert our.connection.closed.code == 1006
        stream, happened = our.take_over()
        received, error = await receive_and_break(stream)
        assert received == what_to_receive(queued) + rest[2:]
        assert isinstance(error, ConnectionLost)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"too late")
        assert broken.value.__cause__ == error
        await stream.aclose()
    assert happened == [ErrorOccurred(error), StreamClosed(1006, "", False, error)]


@SIDES
async def test_a_lost_transport_is_reported_at_any_step_of_trio_websockets_tasks(
    client: bool,
) -> None:
    for steps in range(4):
        for _ in range(5):  # in one order or another
            async with meeting(client=client) as our:
                await wait_all_tasks_blocked()
                await our.peer.transport.aclose()
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                stream, _ = our.take_over()
                received, error = await receive_and_break(stream)
                assert received == b""
                assert isinstance(error, ConnectionLost)
                await stream.aclose()


@SIDES
async def test_a_lost_transport_that_only_senders_have_noticed_is_reported(client: bool) -> None:
    """The reader task still waits in the transport, and nothing comes."""
    ends = []

    def note(ours: trio.StapledStream[trio.testing.MemorySendStream, Any]) -> Any:
        ends.append(ours.send_stream)
        return ours

    async def fail() -> None:
        ends[-1].get_data_nowait()
        raise trio.BrokenResourceError

    async def send(connection: WebSocketConnection) -> None:
        with pytest.raises(trio_websocket.ConnectionClosed):
            await connection.send_message(b"lost")

    taken_over_at = []
    for steps in range(12):
        async with meeting(client=client, wrap=note) as our:
            await wait_all_tasks_blocked()
            ends[-1].send_all_hook = fail
            for _ in range(2):
                our.nursery.start_soon(send, our.connection)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            if our.connection.closed is None:
                await our.peer.transport.aclose()
                continue
            taken_over_at.append(steps)
            stream, happened = our.take_over()
            received, error = await receive_and_break(stream)
            assert received == b""
            assert isinstance(error, ConnectionLost)
            await stream.aclose()
        assert happened == [ErrorOccurred(error), StreamClosed(1006, "", False, error)]
    assert taken_over_at


# While trio-websocket is sending


@SIDES
async def test_our_frame_goes_after_a_pong_that_is_being_sent_and_reading_does_not_wait(
    client: bool,
) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        gate.shut()
        await our.say((BINARY, b"one"), (PING, QUESTION))
        stream, happened = our.take_over()
        our.nursery.start_soon(stream.send_all, b"after the pong")
        await our.say((BINARY, b"two"), (PING, b"ours"))
        assert await receive_exactly(stream, 6) == b"onetwo"
        await wait_all_tasks_blocked()
        assert our.heard == []
        gate.open()
        await our.say((CLOSE, close_payload(1000)))
        assert await receive_all(stream) == b""
        await stream.aclose()
    assert our.heard[0] == (PONG, QUESTION)
    assert sorted(our.heard[1:-1]) == [(BINARY, b"after the pong"), (PONG, b"ours")]
    assert our.heard[-1] == (CLOSE, close_payload(1000))
    assert happened == [
        PingReceived(b"ours"),
        CloseReceived(1000, ""),
        StreamClosed(1000, "", True, None),
    ]


@SIDES
async def test_frames_that_wait_for_trio_websockets_lock_go_out_whole_and_first(
    client: bool,
) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        gate.shut()
        our.nursery.start_soon(our.connection.send_message, b"one")
        await wait_all_tasks_blocked()
        our.nursery.start_soon(our.connection.send_message, b"two")
        await our.say((BINARY, b"received"), (PING, QUESTION))  # its Pong waits for the lock
        stream, _ = our.take_over()
        our.nursery.start_soon(stream.send_all, b"three")
        assert await receive_exactly(stream, 8) == b"received"
        gate.open()
        await wait_all_tasks_blocked()
        assert our.heard == [
            (BINARY, b"one"),
            (BINARY, b"two"),
            (PONG, QUESTION),
            (BINARY, b"three"),
        ]
        await our.say((CLOSE, b""))
        await stream.aclose()


@SIDES
async def test_a_message_that_is_being_sent_to_a_socket_goes_out_whole(client: bool) -> None:
    ends = await TRANSPORTS["unix"]()
    ours, theirs = ends if client else reversed(ends)
    async with trio.open_nursery() as nursery:
        connection = await handshake(nursery, ours, theirs, client=client)
        nursery.start_soon(connection.send_message, NOISE)
        await wait_all_tasks_blocked()
        stream = WsByteStream(connection, nursery)
        nursery.start_soon(stream.send_all, b"after it")
        await wait_all_tasks_blocked()
        peer = RawPeer(theirs, masked=not client)
        assert await peer.receive() == (BINARY, NOISE)
        assert await peer.receive() == (BINARY, b"after it")
        await peer.send(CLOSE)
        assert await peer.receive() == (CLOSE, b"")
        await theirs.aclose()


@SIDES
async def test_a_close_that_trio_websocket_has_encoded_counts_as_sent(client: bool) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        gate.shut()
        await our.say((BINARY, b"one"), (CLOSE, close_payload(1000, "bye")))
        stream, happened = our.take_over()
        assert await receive_exactly(stream, 3) == b"one"
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"too late")
        assert broken.value.__cause__ == AbnormalClosure(1000, "bye")
        our.nursery.start_soon(stream.aclose)
        await wait_all_tasks_blocked()
        assert (our.heard, stream.closed) == ([], None)
        gate.open()
    assert our.heard == [(CLOSE, close_payload(1000, "bye"))]
    assert happened == [CloseReceived(1000, "bye"), StreamClosed(1000, "bye", True, None)]


@SIDES
async def test_the_end_is_told_once_the_close_of_trio_websocket_is_with_the_transport(
    client: bool,
) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        gate.shut()
        await our.say((CLOSE, close_payload(1000)))
        stream, _ = our.take_over()
        told = trio.Event()

        async def receive_end() -> None:
            assert await stream.receive_some() == b""
            told.set()

        our.nursery.start_soon(receive_end)
        await wait_all_tasks_blocked()
        assert not told.is_set()
        gate.open()
        await told.wait()
        await stream.aclose()


@SIDES
async def test_a_pong_that_never_gets_out_holds_up_no_end(
    client: bool, autojump_clock: trio.testing.MockClock
) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        gate.shut()
        await our.say((PING, QUESTION))
        stream, happened = our.take_over(StreamConfig(close_timeout=3))
        started_at = trio.current_time()
        await stream.aclose()
        assert trio.current_time() == started_at + 3
        await our.peer.transport.aclose()
    assert (our.heard, happened) == ([], [StreamClosed(1006, "", False, None)])


# What becomes of the connection


@SIDES
async def test_a_task_that_waits_for_a_message_of_the_connection_is_told_at_once(
    client: bool,
) -> None:
    async with meeting(client=client) as our:
        told = trio.Event()

        async def get_message() -> None:
            with pytest.raises(trio_websocket.ConnectionClosed, match="taken over"):
                await our.connection.get_message()
            told.set()

        our.nursery.start_soon(get_message)
        await wait_all_tasks_blocked()
        stream, _ = our.take_over()
        await told.wait()  # with nothing from the peer
        await our.say((CLOSE, b""))
        await stream.aclose()


@SIDES
async def test_trio_websockets_reader_leaves_a_socket_at_once(client: bool) -> None:
    async with meeting(client=client, transport="tcp") as our:

        def is_there() -> bool:
            return any("_reader_task" in task.name for task in our.nursery.child_tasks)

        await wait_all_tasks_blocked()
        assert is_there()
        stream, _ = our.take_over()
        await wait_all_tasks_blocked()  # with nothing from the peer
        assert not is_there()
        await our.say((CLOSE, b""))
        await stream.aclose()


async def test_a_request_whose_connection_was_taken_over_sends_nothing_more() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        await theirs.send_all(CLIENT_HANDSHAKE)
        request = await trio_websocket.wrap_server_stream(nursery, ours)
        stream = WsByteStream(await request.accept(), nursery)
        await receive_head(theirs)
        with pytest.raises(trio_websocket.ConnectionClosed, match="taken over"):
            await request.accept()
        with pytest.raises(trio_websocket.ConnectionClosed, match="taken over"):
            await request.reject(403)
        peer = RawPeer(theirs, masked=True)
        await peer.send(CLOSE)
        assert await peer.receive() == (CLOSE, b"")
        await stream.aclose()


# Refusals


async def check_it_works(one: WebSocketConnection, other: WebSocketConnection) -> None:
    """Check that messages and pings pass both ways."""
    for sender, receiver in ((one, other), (other, one)):
        await sender.send_message(b"hello")
        assert await receiver.get_message() == b"hello"
        await sender.ping()


@asynccontextmanager
async def connected(
    *, client: bool, **options: Any
) -> AsyncGenerator[tuple[WebSocketConnection, WebSocketConnection, trio.Nursery], None]:
    """Open a connection. The block gets our end, the peer's end, and a nursery."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            ends = await connection_pair(nursery, **options)
            ours, theirs = ends if client else reversed(ends)
            yield ours, theirs, nursery
            nursery.cancel_scope.cancel()


def check_refused(connection: Any, nursery: trio.Nursery, why: str) -> None:
    tasks = nursery.child_tasks
    with pytest.raises(TakeoverError, match=why):
        WsByteStream(connection, nursery)
    assert nursery.child_tasks == tasks


async def test_a_server_that_has_not_accepted_is_refused() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    clients = []
    async with trio.open_nursery() as nursery:

        async def connect() -> None:
            clients.append(
                await trio_websocket.wrap_client_stream(nursery, theirs, "localhost", "/")
            )

        nursery.start_soon(connect)
        request = await trio_websocket.wrap_server_stream(nursery, ours)
        check_refused(request._connection, nursery, "handshake")
        connection = await request.accept()
        await wait_all_tasks_blocked()
        await check_it_works(connection, clients[0])
        nursery.cancel_scope.cancel()


async def test_a_client_that_is_not_accepted_yet_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    class Noted(WebSocketConnection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(trio_websocket._impl, "WebSocketConnection", Noted)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_websocket.wrap_client_stream, nursery, ours, "localhost", "/")
        request = await trio_websocket.wrap_server_stream(nursery, theirs)
        connection = next(one for one in made if one.is_client)
        check_refused(connection, nursery, "handshake")
        peer = await request.accept()
        await wait_all_tasks_blocked()
        await check_it_works(connection, peer)
        nursery.cancel_scope.cancel()


@SIDES
async def test_a_connection_taken_over_before_is_refused(client: bool) -> None:
    async with connected(client=client) as (ours, theirs, nursery):
        stream = WsByteStream(ours, nursery)
        check_refused(ours, nursery, "taken over before")
        await stream.send_all(b"hello")
        assert await theirs.get_message() == b"hello"
        await theirs.send_message(b"hi")
        assert await stream.receive_some() == b"hi"
        check_refused(ours, nursery, "taken over before")
        await stream.aclose()
        check_refused(ours, nursery, "taken over before")


@SIDES
async def test_a_connection_that_is_closing_or_closed_is_refused(client: bool) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        gate.shut()
        our.nursery.start_soon(our.connection.aclose, 4000, "enough")
        await wait_all_tasks_blocked()  # in the middle of its Close
        check_refused(our.connection, our.nursery, "closed")
        gate.open()
        await wait_all_tasks_blocked()  # before the peer's
        check_refused(our.connection, our.nursery, "closed")
        if not client:  # a peer that is a server has ended TCP, as it was not the first to close
            await our.say((CLOSE, close_payload(4000, "enough")))
        await wait_all_tasks_blocked()  # after both
        check_refused(our.connection, our.nursery, "closed")
    assert our.heard == [(CLOSE, close_payload(4000, "enough"))]


async def test_a_connection_that_is_closing_is_refused_even_if_it_meets_a_violation() -> None:
    gate = Gate()
    async with meeting(client=True, wrap=gate) as our:
        gate.shut()
        our.nursery.start_soon(our.connection.aclose, 4000, "enough")
        await wait_all_tasks_blocked()
        await our.peer.transport.send_all(b"\xc2\x00")
        await wait_all_tasks_blocked()
        check_refused(our.connection, our.nursery, "closed")
        gate.open()


@SIDES
async def test_a_connection_whose_ping_is_under_way_is_refused(client: bool) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate) as our:
        answered = trio.Event()

        async def ping() -> None:
            await our.connection.ping(QUESTION)
            answered.set()

        gate.shut()
        our.nursery.start_soon(ping)
        await wait_all_tasks_blocked()  # in the middle of its frame
        check_refused(our.connection, our.nursery, "ping")
        gate.open()
        await wait_all_tasks_blocked()  # before its Pong
        check_refused(our.connection, our.nursery, "ping")
        await our.say((PONG, QUESTION), (CLOSE, b""))
        await answered.wait()
        stream, _ = our.take_over()
        await stream.aclose()


@SIDES
async def test_a_ping_that_was_given_up_is_no_reason_to_refuse(client: bool) -> None:
    async with meeting(client=client) as our:
        with trio.CancelScope() as scope:
            our.nursery.start_soon(cancel_when_all_is_blocked, scope)
            await our.connection.ping(QUESTION)
        assert scope.cancelled_caught
        stream, _ = our.take_over()
        await our.say((PONG, QUESTION), (BINARY, b"hello"), (CLOSE, b""))
        assert await receive_all(stream) == b"hello"
        await stream.aclose()


@SIDES
async def test_a_connection_that_was_failed_for_size_is_refused(client: bool) -> None:
    gate = Gate()
    async with meeting(client=client, wrap=gate, max_message_size=10) as our:
        gate.shut()
        await our.say((BINARY, b"a long message"))  # in the middle of our Close
        check_refused(our.connection, our.nursery, "1009")
        gate.open()
        await wait_all_tasks_blocked()
        check_refused(our.connection, our.nursery, "1009")
        assert our.heard[0][1][:2] == close_payload(1009)
        await our.peer.transport.aclose()
        await wait_all_tasks_blocked()
        check_refused(our.connection, our.nursery, "1009")
        await our.connection.aclose()
        await trio.aclose_forcefully(gate.sender or our.peer.transport)


class NoExtension(Extension):
    name = "none"

    def offer(self) -> bool:
        return True


@SIDES
async def test_a_connection_with_an_extension_is_refused(client: bool) -> None:
    async with connected(client=client) as (ours, theirs, nursery):
        await check_it_works(ours, theirs)
        ours._wsproto.connection._proto.extensions.append(NoExtension())  # type: ignore[union-attr]
        check_refused(ours, nursery, "extension")
        await check_it_works(ours, theirs)


@SIDES
async def test_a_nursery_that_is_closed_is_refused(client: bool) -> None:
    async with connected(client=client) as (ours, theirs, nursery):
        async with trio.open_nursery() as closed:
            pass
        check_refused(ours, closed, "nursery")
        await check_it_works(ours, theirs)
        WsByteStream(ours, nursery)


INSIDES: Final = [
    "_close_handshake",
    "_close_reason",
    "_connection_proposal",
    "_for_testing_peer_closed_connection",
    "_handshake_headers",
    "_initial_request",
    "_message_parts",
    "_open_handshake",
    "_path",
    "_pings",
    "_reader_running",
    "_recv_channel",
    "_recv_channel._closed",
    "_send_channel",
    "_stream",
    "_stream_lock",
    "_subprotocol",
    "_wsproto",
    "_wsproto.client",
    "_wsproto.connection",
    "_wsproto.connection._state",
    "_wsproto.connection._proto",
    "_wsproto.connection._proto.client",
    "_wsproto.connection._proto.extensions",
    "_wsproto.connection._proto._frame_decoder",
    "_wsproto.connection._proto._frame_decoder.buffer",
    "_wsproto.connection._proto._frame_decoder.buffer.buffer",
    "_wsproto.connection._proto._frame_decoder.header",
    "_wsproto.connection._proto._frame_decoder.masker",
    "_wsproto.connection._proto._frame_decoder.payload_consumed",
    "_wsproto.connection._proto._message_decoder",
    "_wsproto.connection._proto._message_decoder.decoder",
    "_wsproto.connection._proto._message_decoder.opcode",
    "_wsproto.connection._proto._parse_more",
    "_wsproto.handshake",
    "_wsproto.handshake._h11_connection",
]

NOT_OF_AN_OBJECT: Final = {"_aclose", "_impl", "_masking_key"}
"""Private names that have tests of their own below."""


def test_every_private_name_that_the_takeover_touches_is_among_those_checked() -> None:
    tree = ast.parse(Path(_takeover.__file__).read_text())
    touched = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) != "self"
    }
    checked = {name.rpartition(".")[2] for name in INSIDES}
    assert touched <= checked | NOT_OF_AN_OBJECT


def inside(connection: WebSocketConnection, name: str) -> tuple[Any, str]:
    """Return the object that has the attribute, and the name of the attribute."""
    *path, last = name.split(".")
    owner: Any = connection
    for step in path:
        owner = getattr(owner, step)
    return owner, last


@asynccontextmanager
async def met_halfway(*, client: bool) -> AsyncGenerator[Meeting, None]:
    """Stop inside a character, inside a frame, inside a message. Its rest comes after the block."""
    async with meeting(client=client) as our:
        await our.say((TEXT, LETTERS[:2], False))
        last = our.peer.frame(CONT, LETTERS[2:])
        await our.peer.transport.send_all(last[:-1])
        await wait_all_tasks_blocked()
        yield our
        await our.peer.transport.send_all(last[-1:])
        assert await our.connection.get_message() == LETTERS.decode()
        await our.say((CLOSE, b""))


@pytest.mark.parametrize("name", INSIDES)
@SIDES
async def test_a_trio_websocket_that_lacks_something_is_refused(
    client: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met_halfway(client=client) as our:
        with monkeypatch.context() as change:
            change.delattr(*inside(our.connection, name))
            check_refused(our.connection, our.nursery, "trio-websocket .* wsproto")


async def test_a_trio_websocket_that_keeps_the_masking_key_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with met_halfway(client=False) as our:
        name = "_wsproto.connection._proto._frame_decoder.masker._masking_key"
        with monkeypatch.context() as change:
            change.delattr(*inside(our.connection, name))
            check_refused(our.connection, our.nursery, "trio-websocket .* wsproto")


async def test_a_trio_websocket_that_closes_by_other_means_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with met_halfway(client=True) as our:
        with monkeypatch.context() as change:
            change.delattr(WebSocketConnection, "_aclose")
            check_refused(our.connection, our.nursery, "trio-websocket .* wsproto")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("_stream_lock", trio.Lock()),
        ("_message_parts", b"a\xe2"),
        ("_recv_channel", iter(())),
        ("_wsproto.connection._proto._frame_decoder.buffer.buffer", b"a"),
        ("_wsproto.connection._proto._parse_more", (frame_ for frame_ in ())),
    ],
)
async def test_a_trio_websocket_of_other_parts_is_refused(
    name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with met_halfway(client=True) as our:
        with monkeypatch.context() as change:
            change.setattr(*inside(our.connection, name), other)
            check_refused(our.connection, our.nursery, "trio-websocket .* wsproto")


@pytest.mark.parametrize("name", [name for name in INSIDES if "." not in name])
@SIDES
async def test_a_new_connection_that_lacks_something_is_refused(
    client: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lacking(WebSocketConnection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            delattr(self, name)

    monkeypatch.setattr(_takeover, "WebSocketConnection", Lacking)
    transport, _ = trio.testing.memory_stream_pair()
    with pytest.raises(TakeoverError, match=r"trio-websocket .* wsproto"):
        _takeover.open_connection(transport, client=client, path="/")


@SIDES
async def test_a_new_connection_with_another_constructor_is_refused(
    client: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def construct(transport: trio.abc.Stream) -> None:
        raise AssertionError

    monkeypatch.setattr(_takeover, "WebSocketConnection", construct)
    transport, _ = trio.testing.memory_stream_pair()
    with pytest.raises(TakeoverError, match=r"trio-websocket .* wsproto"):
        _takeover.open_connection(transport, client=client, path="/")
