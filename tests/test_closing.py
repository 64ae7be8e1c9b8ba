"""Ends: what each side is told, what goes over the wire, and that none of it hangs."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ConnectionLost,
    ErrorOccurred,
    HalfClose,
    ProtocolViolation,
    StreamClosed,
    StreamConfig,
    TextPolicy,
    TextRejected,
    WsByteStream,
)
from trio_wsstream._protocol import ANSWER_DEFERRED

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, close_payload
from .support.pairs import SHORT, connection_pair, stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events, end_of
from .support.tasks import background

RESERVED = 3  # an opcode
PLAIN_CODES = pytest.mark.parametrize("code", [1000, 1005])


def payload(code: int, reason: str = "") -> bytes:
    return b"" if code == 1005 else close_payload(code, reason)


# The peer closes


@SIDES
@PLAIN_CODES
async def test_a_plain_close_ends_the_stream_with_what_came_before(code: int, client: bool) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        await peer.send(BINARY, b"before")
        await peer.send(CLOSE, payload(code, "bye"))
        assert await end_of(stream) == (b"before", None)
        assert await peer.receive() == (CLOSE, payload(code, "bye"))
        assert await stream.receive_some() == b""
        if client:  # it waits for the server to close TCP (7.1.1)
            assert stream.closed is None
            await peer.transport.aclose()
        else:
            await peer.expect_eof()
        reason = "" if code == 1005 else "bye"
        closed = StreamClosed(code, reason, True, None)
        assert await all_events(events) == [CloseReceived(code, reason), closed]
        assert stream.closed == closed
        assert await stream.receive_some() == b""


@SIDES
@pytest.mark.parametrize("code", [1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999])
async def test_a_close_with_another_code_is_no_clean_end(code: int, client: bool) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        await peer.send(BINARY, b"half of i")
        await peer.send(CLOSE, close_payload(code, "why"))
        error = AbnormalClosure(code, "why")
        assert await end_of(stream) == (b"half of i", error)
        assert await peer.receive() == (CLOSE, close_payload(code, "why"))
        await peer.transport.aclose()
        assert await all_events(events) == [
            CloseReceived(code, "why"),
            StreamClosed(code, "why", True, error),
        ]


@pytest.mark.parametrize("transport", ["memory", "tcp"])
@pytest.mark.parametrize("is_late", [True, False])
@pytest.mark.parametrize("code", [1000, 1001, 4000])
async def test_the_config_says_which_codes_end_a_stream(
    code: int, is_late: bool, transport: str
) -> None:
    """Also where the Close came before the takeover."""
    async with background() as nursery:
        client, server = await connection_pair(nursery, transport)
        await server.send_message(b"before")
        nursery.start_soon(server.aclose, code, "bye")
        if is_late:
            while not client.closed:
                await wait_all_tasks_blocked()
        config = StreamConfig(end_codes=frozenset({1001, 4000}))
        error = None if code != 1000 else AbnormalClosure(1000, "bye")
        stream = WsByteStream(client, nursery, config)
        assert await end_of(stream) == (b"before", error)
        await stream.aclose()
        assert stream.closed == StreamClosed(code, "bye", True, error)


@pytest.mark.parametrize("theirs", [1000, 1001, 4001])
@pytest.mark.parametrize("ours", [1000, 1001, 1011, 4001])
async def test_an_end_that_this_side_asked_for_is_no_error(ours: int, theirs: int) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe(kinds=ErrorOccurred)
        nursery.start_soon(stream.aclose, ours)
        assert await peer.receive() == (CLOSE, close_payload(ours))
        await peer.send(CLOSE, close_payload(theirs))
        await peer.transport.aclose()
        error = None if theirs in (ours, 1000) else AbnormalClosure(theirs, "")
        closed = StreamClosed(theirs, "", True, error)
        assert await all_events(events) == [closed]


async def test_each_broken_resource_error_is_a_new_one_with_the_same_cause() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(CLOSE, close_payload(4000))
        errors = []
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert errors[0].__cause__ is errors[1].__cause__


async def test_any_close_inside_a_fragmented_message_is_no_clean_end() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(BINARY, b"first fragment", fin=False)
        await peer.send(CLOSE, close_payload(1000))
        assert await end_of(stream) == (b"first fragment", AbnormalClosure(1000))


@SIDES
async def test_a_transport_that_ends_without_a_close_is_lost(client: bool) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        await peer.send(BINARY, b"cut")
        await peer.transport.aclose()
        received, error = await end_of(stream)
        assert received == b"cut"
        assert isinstance(error, ConnectionLost)
        assert await all_events(events) == [
            ErrorOccurred(error),
            StreamClosed(1006, "", False, error),
        ]


async def test_a_transport_that_ends_while_nobody_reads_is_noticed_and_closed(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe()
        await peer.transport.aclose()
        assert isinstance((await all_events(events))[-1], StreamClosed)
        with pytest.raises(trio.ClosedResourceError):
            await stream._transport.receive_some()


async def test_a_close_is_answered_while_nobody_reads(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(BINARY, b"unread")
        await peer.send(CLOSE, close_payload(1000, "away"))
        assert await peer.receive() == (CLOSE, close_payload(1000, "away"))
        await peer.expect_eof()
        assert await end_of(stream) == (b"unread", None)


async def test_a_reader_is_told_the_end_when_the_answer_is_with_the_transport() -> None:
    """So a handler that returns after b"" cannot overtake the answer."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        told = trio.Event()

        async def read() -> None:
            assert await stream.receive_some() == b""
            told.set()

        nursery.start_soon(read)
        await peer.send(CLOSE, close_payload(1000))
        await wait_all_tasks_blocked()
        assert not told.is_set()
        assert await peer.receive() == (CLOSE, close_payload(1000))
        await told.wait()


async def test_a_reader_is_told_the_end_at_the_latest_after_close_timeout(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        await peer.send(CLOSE, close_payload(1000))
        started = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - started == pytest.approx(10, abs=0.1)
        assert await all_events(stream.subscribe()) == [StreamClosed(1000, "", False, None)]


async def test_a_reader_who_has_waited_is_told_the_end_after_close_timeout_too(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        with trio.move_on_after(100):
            async with trio.open_nursery() as reading:
                reading.start_soon(stream.receive_some)
                await trio.sleep(1)
                await peer.send(CLOSE, close_payload(1000))
        assert trio.current_time() == pytest.approx(1 + 10, abs=0.1)


async def test_a_reader_is_told_the_end_at_once_if_the_answer_cannot_go_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise BrokenPipeError

    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix")
        monkeypatch.setattr(os, "write", write)
        started = trio.current_time()
        await peer.send(CLOSE, close_payload(1000))
        assert await stream.receive_some() == b""
        assert trio.current_time() == started
        monkeypatch.undo()


@pytest.mark.parametrize("code", [1000, 4000])
async def test_a_send_under_way_finishes_its_frame_then_the_answer_goes_out(code: int) -> None:
    config = StreamConfig(max_message_size=10)
    async with background() as nursery, trio.open_nursery() as sending:
        stream, peer = await raw_pair(nursery, "lockstep", config)

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.send_all(bytes(100))
            assert broken.value.__cause__ == AbnormalClosure(1000, "away")

        sending.start_soon(send)
        nursery.start_soon(stream.receive_some)
        await wait_all_tasks_blocked()
        await peer.send(CLOSE, close_payload(1000, "away"))
        await wait_all_tasks_blocked()
        assert await peer.receive() == (BINARY, bytes(10))
        assert await peer.receive() == (CLOSE, close_payload(1000, "away"))


async def test_later_sends_tell_the_code_of_the_peers_close() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(CLOSE, close_payload(1000, "done"))
        assert await stream.receive_some() == b""
        for send in (lambda: stream.send_all(b"x"), stream.wait_send_all_might_not_block):
            with pytest.raises(trio.BrokenResourceError) as broken:
                await send()
            assert broken.value.__cause__ == AbnormalClosure(1000, "done")
        with pytest.raises(trio.BrokenResourceError):
            await stream.ping()
        await stream.send_eof()  # nothing is left to do
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_owed_pongs_go_out_before_the_close_in_one_write() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.transport.send_all(
            peer.frame(PING, b"1") + peer.frame(PING, b"2") + peer.frame(CLOSE)
        )
        nursery.start_soon(stream.receive_some)
        wire = await peer.transport.receive_some(100)
        assert wire == b"\x8a\x011\x8a\x012\x88\x00"


async def test_what_comes_after_the_peers_close_is_ignored() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe()
        await peer.transport.send_all(
            peer.frame(CLOSE, close_payload(1000)) + peer.frame(PING) + b"\xff\xff nonsense"
        )
        assert await end_of(stream) == (b"", None)
        assert await peer.receive() == (CLOSE, close_payload(1000))
        await peer.expect_eof()
        assert await all_events(events) == [
            CloseReceived(1000, ""),
            StreamClosed(1000, "", True, None),
        ]


# The connection is failed

VIOLATIONS = {
    "a control frame of 126 bytes": (PING, bytes(126), 1002),
    "an unknown opcode": (3, b"", 1002),
    "a close of one byte": (CLOSE, b"x", 1002),
    "a close with a code that must not be sent": (CLOSE, close_payload(1005), 1002),
    "a continuation of no message": (CONT, b"", 1002),
    "a close reason that is not UTF-8": (CLOSE, b"\x03\xe8\xff", 1007),
}


@SIDES
@pytest.mark.parametrize(("opcode", "data", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_a_violation_fails_the_connection(
    opcode: int, data: bytes, code: int, client: bool
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        await peer.send(BINARY, b"before")
        await peer.send(opcode, data)
        received, error = await end_of(stream)
        assert received == b"before"
        assert isinstance(error, ProtocolViolation)
        assert error.close_code == code
        opcode, close = await peer.receive()
        assert (opcode, close[:2]) == (CLOSE, code.to_bytes(2, "big"))
        await peer.transport.aclose()
        assert await all_events(events) == [
            ErrorOccurred(error),
            StreamClosed(1006, "", False, error),
        ]


@SIDES
async def test_text_fails_the_connection_at_its_header(client: bool) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        header = peer.frame(TEXT, bytes(70))[: 2 if client else 6]
        await peer.transport.send_all(header)
        assert await end_of(stream) == (b"", TextRejected(1003, "Text messages are not supported."))
        close = close_payload(1003, "Text messages are not supported.")
        assert await peer.receive() == (CLOSE, close)
        assert isinstance(await events.receive(), ErrorOccurred)


async def test_text_that_is_too_long_fails_the_connection_with_1009() -> None:
    config = StreamConfig(text=TextPolicy.AS_EVENTS, receive_buffer_size=100)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=config)
        await peer.send(TEXT, b"x" * 100)
        await peer.send(TEXT, b"x" * 101)
        _, error = await end_of(stream)
        assert isinstance(error, TextRejected)
        assert error.close_code == 1009


async def test_send_eof_on_a_failed_connection_is_broken() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await peer.send(RESERVED)
        _, error = await end_of(stream)
        assert (await peer.receive())[0] == CLOSE
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_eof()
        assert broken.value.__cause__ == error


async def test_the_close_goes_out_after_the_data_under_way_when_sending_is_clogged() -> None:
    async with background() as nursery, trio.open_nursery() as sending:
        stream, peer = await raw_pair(nursery, "lockstep")

        async def send() -> None:
            await stream.send_all(b"data under way")  # all of it arrives, so the call succeeds
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.send_all(b"too late")
            assert isinstance(broken.value.__cause__, ProtocolViolation)

        sending.start_soon(send)
        await wait_all_tasks_blocked()
        nursery.start_soon(peer.send, PING, bytes(126))
        _, error = await end_of(stream)  # is told before there is room
        assert isinstance(error, ProtocolViolation)
        assert await peer.receive() == (BINARY, b"data under way")
        opcode, close = await peer.receive()
        assert (opcode, close[:2]) == (CLOSE, b"\x03\xea")


async def test_failing_a_server_ends_its_side_of_tcp_and_waits_for_the_other() -> None:
    """The server waits, so that a reset cannot overtake the Close."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp")
        await peer.send(3)
        _, error = await end_of(stream)
        assert isinstance(error, ProtocolViolation)
        assert (await peer.receive())[0] == CLOSE
        await peer.expect_eof()
        assert stream.closed is None
        for _ in range(100):
            await peer.send(BINARY, bytes(10000))  # is dropped, and no reset comes
        await peer.transport.send_eof()
        events = stream.subscribe()
        assert await all_events(events) == [StreamClosed(1006, "", False, error)]


async def test_a_pong_that_is_under_way_does_not_end_tcp_before_the_close() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        await peer.send(PING, b"whose Pong waits for the peer")
        await wait_all_tasks_blocked()
        nursery.start_soon(end_of, stream)
        await peer.send(RESERVED)
        await wait_all_tasks_blocked()
        assert (await peer.receive())[0] == PONG
        assert (await peer.receive())[0] == CLOSE
        await peer.expect_eof()


@pytest.mark.parametrize("steps", range(6))
async def test_the_peers_end_of_tcp_does_not_drop_a_close_that_need_not_wait(steps: int) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "memory")

        async def take_steps() -> None:
            for _ in range(steps):
                await trio.lowlevel.cancel_shielded_checkpoint()

        transport: Any = stream._transport
        transport.send_stream.send_all_hook = take_steps
        nursery.start_soon(end_of, stream)
        await wait_all_tasks_blocked()
        await peer.send(PING)
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        await peer.send(RESERVED)
        await peer.transport.send_eof()
        assert (await peer.receive())[0] == PONG
        assert (await peer.receive())[0] == CLOSE
        await peer.expect_eof()


async def test_failing_a_client_leaves_the_end_of_tcp_to_the_server(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "memory", client=True)
        await peer.send(RESERVED)
        assert (await peer.receive())[0] == CLOSE
        with trio.move_on_after(stream.config.close_timeout - 1) as waiting:
            await peer.expect_eof()
        assert waiting.cancelled_caught


@SIDES
async def test_a_failed_connection_ends_after_close_timeout_with_no_caller(
    client: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        events = stream.subscribe()
        started = trio.current_time()
        await peer.send(3)
        assert isinstance((await all_events(events))[-1], StreamClosed)
        assert trio.current_time() - started == pytest.approx(10, abs=0.2)


@SIDES
async def test_a_peer_that_goes_on_after_a_failure_does_not_put_the_end_off(
    client: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        await peer.send(RESERVED)
        await end_of(stream)
        started = trio.current_time()

        async def go_on() -> None:
            while True:
                await peer.transport.send_stream.send_all(b"x")
                await trio.sleep(0.7)  # never just at the end

        nursery.start_soon(go_on)
        with trio.move_on_after(100):
            await all_events(stream.subscribe())
        assert trio.current_time() - started == pytest.approx(10)
        nursery.cancel_scope.cancel()


@SIDES
async def test_no_clean_close_follows_a_send_that_was_refused(client: bool) -> None:
    """The peer has ended only its side of TCP, so a Close could still call half the data all."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        await peer.transport.send_eof()
        assert isinstance((await end_of(stream))[1], ConnectionLost)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"the other half")
        await stream.aclose()
        await peer.expect_eof()


# This side closes


@SIDES
@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "TLS 1.2"])
async def test_aclose_waits_for_the_peers_close_and_for_tcp(transport: str, client: bool) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, client=client)
        events = stream.subscribe()
        done = trio.Event()

        async def close() -> None:
            await stream.aclose(4001, "enough")
            done.set()

        nursery.start_soon(close)
        assert await peer.receive() == (CLOSE, close_payload(4001, "enough"))
        await peer.send(BINARY, b"is dropped")
        await peer.send(PING, b"is not answered")
        await wait_all_tasks_blocked()
        assert not done.is_set()
        await peer.send(CLOSE, close_payload(4001, "enough"))
        if client:
            await wait_all_tasks_blocked()
            assert not done.is_set()
            await peer.transport.aclose()
        else:
            await peer.expect_eof()
        await done.wait()
        assert stream.closed == StreamClosed(4001, "enough", True, None)
        assert (await all_events(events))[-1] == stream.closed
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"")
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.ping()
        await stream.aclose()


@SIDES
async def test_a_silent_peer_holds_aclose_up_for_close_timeout_at_the_most(
    client: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, client=client)
        started = trio.current_time()
        await stream.aclose()
        assert trio.current_time() - started == pytest.approx(10)
        assert stream.closed == StreamClosed(1006, "", False, None)


async def test_a_clogged_transport_holds_aclose_up_for_close_timeout_at_the_most(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery, trio.open_nursery() as sending:
        stream, _ = await raw_pair(nursery, "lockstep")

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")

        sending.start_soon(send)
        await wait_all_tasks_blocked()
        started = trio.current_time()
        await stream.aclose()
        assert trio.current_time() - started == pytest.approx(10)


async def test_a_client_waits_for_tcp_for_close_timeout_at_the_most(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=True)
        await peer.send(CLOSE, close_payload(1000))
        started = trio.current_time()
        await stream.aclose()
        assert trio.current_time() - started == pytest.approx(10, abs=0.1)
        assert stream.closed == StreamClosed(1000, "", True, None)


@pytest.mark.parametrize("is_failing", [True, False])
@SIDES
async def test_the_streams_own_task_reads_at_once_when_closing_begins(
    is_failing: bool, client: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        started = trio.current_time()
        if is_failing:
            await peer.send(RESERVED)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        else:
            nursery.start_soon(stream.aclose)
        assert (await peer.receive())[0] == CLOSE
        await peer.transport.aclose()
        await all_events(stream.subscribe())
        assert trio.current_time() == started


async def test_the_transport_is_closed_when_tcp_has_ended() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", client=True)
        await peer.send(CLOSE, close_payload(1000))
        assert await stream.receive_some() == b""
        assert stream._transport.socket.fileno() != -1  # type: ignore[attr-defined]
        await peer.transport.aclose()
        await all_events(stream.subscribe())
        assert stream._transport.socket.fileno() == -1  # type: ignore[attr-defined]


async def test_aclose_may_be_called_by_several_tasks_and_all_return() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        async with trio.open_nursery() as closing:
            for _ in range(3):
                closing.start_soon(stream.aclose)
            assert await peer.receive() == (CLOSE, close_payload(1000))
            await peer.send(CLOSE, close_payload(1000))
        await peer.expect_eof()
        await stream.aclose()


@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_a_cancelled_aclose_drops_the_transport_at_once(transport: str) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport)
        events = stream.subscribe()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.aclose()
        assert scope.cancelled_caught
        assert stream.closed == StreamClosed(1006, "", False, None)
        assert await all_events(events) == [stream.closed]
        await peer.expect_eof()


async def test_a_second_aclose_that_is_cancelled_ends_the_first_too() -> None:
    async with background() as nursery, trio.open_nursery() as closing:
        stream, peer = await raw_pair(nursery)
        closing.start_soon(stream.aclose)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.aclose()
        assert await peer.receive() == (CLOSE, close_payload(1000))
        await peer.expect_eof()


async def test_calls_that_wait_raise_closed_resource_error_when_this_side_closes() -> None:
    async with background() as nursery, trio.open_nursery() as calling:
        stream, peer = await raw_pair(nursery, "lockstep")

        async def expect_closed(call: object, *args: object) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call(*args)  # type: ignore[operator]

        calling.start_soon(expect_closed, stream.receive_some)
        calling.start_soon(expect_closed, stream.send_all, b"finishes its frame")
        await wait_all_tasks_blocked()
        calling.start_soon(expect_closed, stream.ping)
        await wait_all_tasks_blocked()
        calling.start_soon(stream.aclose)
        await wait_all_tasks_blocked()
        assert await peer.receive() == (BINARY, b"finishes its frame")
        assert (await peer.receive())[0] == PING
        assert await peer.receive() == (CLOSE, close_payload(1000))
        await peer.send(CLOSE, close_payload(1000))


async def test_a_reader_of_the_other_task_need_not_be_there_for_aclose() -> None:
    """A caller that is blocked in the transport does not hold aclose up."""
    async with background() as nursery:
        client, server = await stream_pair(nursery, "tcp")
        async with trio.open_nursery() as calling:

            async def read() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await client.receive_some()

            calling.start_soon(read)
            await wait_all_tasks_blocked()
            await client.aclose()
            assert client.closed == StreamClosed(1000, "", True, None)
        assert await server.receive_some() == b""


VALID = [1000, 1003, 1007, 1014, 3000, 4999]
INVALID = [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65536]


@pytest.mark.parametrize("code", VALID)
async def test_aclose_sends_any_valid_code(code: int) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        nursery.start_soon(stream.aclose, code, "ü" * 61 + "x")
        assert await peer.receive() == (CLOSE, close_payload(code, "ü" * 61 + "x"))


@pytest.mark.parametrize(
    ("code", "reason"), [*((code, "") for code in INVALID), (1000, "ü" * 62), (1000, "half-close")]
)
async def test_aclose_refuses_invalid_codes_and_reasons_before_anything_is_sent(
    code: int, reason: str
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with pytest.raises(ValueError, match=reason[:32] or str(code)):
            await stream.aclose(code, reason)
        await stream.send_all(b"still open")
        assert await peer.receive() == (BINARY, b"still open")


@pytest.mark.parametrize(
    ("code", "reason"), [("1000", ""), (1000.0, ""), (1000, b"x"), (1000, None)]
)
async def test_aclose_refuses_codes_and_reasons_of_wrong_types(code: Any, reason: Any) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with pytest.raises(TypeError):
            await stream.aclose(code, reason)
        await stream.send_all(b"still open")
        assert await peer.receive() == (BINARY, b"still open")


async def test_a_code_may_be_any_kind_of_integer() -> None:
    class Code:
        def __index__(self) -> int:
            return 4000

    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        nursery.start_soon(answer_close, peer)
        closed_by_us: Any = Code()
        await stream.aclose(closed_by_us)
        assert stream.closed == StreamClosed(4000, "", True, None)


async def test_a_violation_while_closing_is_reported_and_changes_nothing_else() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe()
        nursery.start_soon(stream.aclose)
        assert await peer.receive() == (CLOSE, close_payload(1000))
        await peer.send(3)
        await peer.transport.aclose()
        error, closed = await all_events(events)
        assert isinstance(error, ErrorOccurred)
        assert isinstance(error.error, ProtocolViolation)
        assert closed == StreamClosed(1006, "", False, error.error)


# Half-close


@pytest.mark.parametrize("transport", ["memory", "lockstep", "tcp", "tls", "TLS 1.2"])
async def test_after_send_eof_the_other_side_may_go_on_sending(transport: str) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, transport)
        async with trio.open_nursery() as talking:

            async def ask() -> None:
                await client.send_all(b"question")
                await client.send_eof()
                with pytest.raises(trio.ClosedResourceError):
                    await client.send_all(b"more")
                await client.send_eof()
                assert await end_of(client) == (b"answer", None)

            talking.start_soon(ask)
            assert await end_of(server) == (b"question", None)
            await wait_all_tasks_blocked()
            assert await server.receive_some() == b""
            await server.send_all(b"answer")
            await server.send_eof()
        for stream in (client, server):
            assert (await all_events(stream.subscribe())) == [
                StreamClosed(1000, "half-close", True, None)
            ]


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_what_the_server_has_not_read_after_both_half_closes_still_arrives(
    transport: str,
) -> None:
    """The client waits for the server's end of TCP no longer than close_timeout."""
    async with background() as nursery:
        server_config = StreamConfig(receive_buffer_size=1000)
        client, server = await stream_pair(nursery, transport, SHORT, server_config)
        await client.send_all(bytes(30_000))
        await server.send_eof()
        assert await client.receive_some() == b""
        await client.send_eof()
        async for _ in client.subscribe(kinds=()):
            pass  # until the client has closed the transport
        received = b"".join([bytes(data) async for data in server])
        assert received == bytes(30_000)
        await server.aclose()
        assert server.closed == StreamClosed(1000, "half-close", True, None)


async def test_a_half_close_says_close_1000_half_close() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await stream.send_eof()
        assert await peer.receive() == (CLOSE, close_payload(1000, "half-close"))


async def test_a_peer_that_answers_a_half_close_at_once_makes_it_a_plain_close() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        await stream.send_all(b"nothing of this is lost")
        await stream.send_eof()
        assert await peer.receive() == (BINARY, b"nothing of this is lost")
        await peer.send(BINARY, b"was on its way")
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        assert await end_of(stream) == (b"was on its way", None)
        assert (await all_events(stream.subscribe())) == [
            StreamClosed(1000, "half-close", True, None)
        ]


HELD = [
    (HalfClose.AUTO, 1000, "half-close", True),
    (HalfClose.AUTO, 1000, "", False),
    (HalfClose.AUTO, 1001, "half-close", False),
    (HalfClose.ALWAYS, 1000, "", True),
    (HalfClose.ALWAYS, 1001, "", False),
    (HalfClose.ALWAYS, 1005, "", True),
    (HalfClose.ALWAYS, 1011, "", False),
    (HalfClose.NEVER, 1000, "half-close", False),
]


@SIDES
@pytest.mark.parametrize(("policy", "code", "reason", "is_held"), HELD)
async def test_the_policy_decides_which_answers_are_deferred(
    policy: HalfClose, code: int, reason: str, is_held: bool, client: bool
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(
            nursery, config=StreamConfig(half_close=policy), client=client
        )
        await peer.send(CLOSE, payload(code, reason))
        await end_of(stream)
        if is_held:
            if reason == "half-close":
                assert await peer.receive() == (PONG, ANSWER_DEFERRED)
            await stream.send_all(b"going on")
            assert await peer.receive() == (BINARY, b"going on")
            await stream.send_eof()
            assert await peer.receive() == (CLOSE, close_payload(1000, "half-close"))
        else:
            assert await peer.receive() == (CLOSE, payload(code, reason))


async def test_a_half_close_that_crosses_ours_is_not_held_back() -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        async with trio.open_nursery() as both:
            both.start_soon(client.send_eof)
            both.start_soon(server.send_eof)
        assert await end_of(client) == await end_of(server) == (b"", None)
        assert await all_events(client.subscribe()) == await all_events(server.subscribe())


async def test_pings_are_answered_both_ways_after_a_half_close() -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        await client.send_eof()
        assert await server.receive_some() == b""
        assert await server.ping() >= 0
        assert await client.ping() >= 0
        assert client.half_close_honoured is True
        assert server.half_close_honoured is None


@pytest.mark.parametrize("transport", ["memory", "unix"])
@SIDES
async def test_an_answer_that_was_held_back_begins_the_closing(
    client: bool, transport: str, autojump_clock: MockClock
) -> None:
    """Either side waits for the end of TCP, since the peer may still send heartbeats. A server ends
    its own direction of TCP first.
    """
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, client=client)
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        assert await stream.receive_some() == b""
        await stream.send_eof()
        assert await peer.receive() == (PONG, ANSWER_DEFERRED)
        assert await peer.receive() == (CLOSE, close_payload(1000, "half-close"))
        started = trio.current_time()
        if not client:
            await peer.expect_eof()
        with trio.move_on_after(100):
            await all_events(stream.subscribe())
        assert trio.current_time() - started == stream.config.close_timeout


@pytest.mark.parametrize("by_client", [True, False])
async def test_closing_that_may_take_for_ever_ends_as_soon_as_it_can(by_client: bool) -> None:
    async with background() as nursery:
        ends = await stream_pair(nursery, config=StreamConfig(close_timeout=math.inf))
        closing, other = ends if by_client else reversed(ends)
        subscription = other.subscribe(math.inf, backpressure=True)
        with trio.fail_after(30):
            await closing.aclose()
            assert await end_of(other) == (b"", None)
            assert (await all_events(subscription))[-1] == other.closed
        assert [stream.closed for stream in ends] == [StreamClosed(1000, "", True, None)] * 2


async def test_a_deferred_answer_has_no_timeout(autojump_clock: MockClock) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        await client.send_eof()
        assert await server.receive_some() == b""
        await trio.sleep(3600)
        await server.send_all(b"an hour later")
        assert await client.receive_some() == b"an hour later"
        await server.aclose()
        assert await client.receive_some() == b""


async def test_tcp_that_ends_while_an_answer_is_held_back_breaks_sending_only(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        events = stream.subscribe()
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        assert await stream.receive_some() == b""
        await peer.transport.aclose()
        close, error, closed = await all_events(events)
        assert close == CloseReceived(1000, "half-close")
        assert isinstance(error, ErrorOccurred)
        assert isinstance(error.error, ConnectionLost)
        assert closed == StreamClosed(1000, "half-close", False, error.error)
        assert await stream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"x")
        assert broken.value.__cause__ == error.error


async def test_a_connection_that_breaks_in_send_eof_is_broken_not_closed() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")

        async def hang_up() -> None:
            await wait_all_tasks_blocked()  # the Close waits for the peer to read
            await peer.transport.aclose()

        nursery.start_soon(hang_up)
        for send in (stream.send_eof, stream.send_eof, lambda: stream.send_all(b"x")):
            with pytest.raises(trio.BrokenResourceError) as broken:
                await send()
            assert isinstance(broken.value.__cause__, ConnectionLost)


async def test_a_cancelled_send_eof_does_nothing_before_it_begins() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_eof()
        await stream.send_all(b"x")
        assert await peer.receive() == (BINARY, b"x")


# Leaving, cancelling


@SIDES
async def test_leaving_the_stream_well_closes_with_1000(client: bool) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, client=client)
        nursery.start_soon(answer_close, peer)
        async with stream:
            pass
        assert stream.closed == StreamClosed(1000, "", True, None)


async def test_leaving_the_stream_with_an_exception_closes_with_1011() -> None:
    """Otherwise the peer could take half the data for all of it."""
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        error = RuntimeError("of the user")
        with pytest.raises(RuntimeError) as caught:
            async with client:
                await client.send_all(b"half of it")
                raise error
        assert caught.value is error
        assert await end_of(server) == (b"half of it", AbnormalClosure(1011))


async def test_an_exception_is_not_lost_when_its_closing_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)
        with pytest.raises(RuntimeError, match="of the user"):
            with trio.move_on_after(1):
                async with stream:
                    raise RuntimeError("of the user")


async def test_leaving_the_stream_cancelled_drops_the_transport_at_once() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery)
        with trio.CancelScope() as scope:
            async with stream:
                scope.cancel()
                await trio.sleep_forever()
        await peer.expect_eof()
        assert stream.closed == StreamClosed(1006, "", False, None)


@pytest.mark.parametrize("is_closing", [True, False])
async def test_a_cancelled_nursery_drops_the_transport_and_ends_every_call(
    is_closing: bool,
) -> None:
    async with trio.open_nursery() as calling:
        async with trio.open_nursery() as stream_nursery:
            stream, _ = await raw_pair(stream_nursery, "lockstep")
            events = stream.subscribe()

            async def expect_closed(call: object, *args: object) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await call(*args)  # type: ignore[operator]

            calling.start_soon(expect_closed, stream.receive_some)
            calling.start_soon(expect_closed, stream.send_all, b"x")
            calling.start_soon(expect_closed, stream.ping)
            if is_closing:
                calling.start_soon(stream.aclose)
            await wait_all_tasks_blocked()
            stream_nursery.cancel_scope.cancel()
        assert await all_events(events) == [StreamClosed(1006, "", False, None)]
        await expect_closed(stream.receive_some)
        await stream.aclose()


@pytest.mark.parametrize("method", ["receive_some", "send_all", "send_eof", "ping", "aclose"])
async def test_a_call_in_the_cancelled_nursery_is_cancelled_like_the_stream(method: str) -> None:
    """The call raises Cancelled, whichever task runs first. The nursery raises no error."""
    for _ in range(8):  # Trio's order of tasks is random
        async with background() as nursery:
            stream, _ = await raw_pair(nursery, "lockstep")
            nursery.start_soon(getattr(stream, method), *([b"x"] if method == "send_all" else []))
            await wait_all_tasks_blocked()


async def test_a_read_that_has_just_ended_is_cancelled_like_the_stream() -> None:
    for _ in range(12):  # Trio's order of tasks is random
        async with background() as nursery:
            stream, peer = await raw_pair(nursery)
            nursery.start_soon(stream.receive_some)
            await wait_all_tasks_blocked()
            await peer.send(PING)
            await wait_all_tasks_blocked()  # the reader is in the transport itself
            stream._transport.receive_stream.put_data(peer.frame(PING))  # type: ignore[attr-defined]
            nursery.cancel_scope.cancel()


async def answer_close(peer: RawPeer) -> None:
    """Answer a Close, as any peer does."""
    while True:
        opcode, data = await peer.receive()
        if opcode == CLOSE:
            await peer.send(CLOSE, data)
            await peer.transport.aclose()
            return
        assert opcode in (BINARY, PONG)
