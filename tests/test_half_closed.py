"""A half-closed connection lives for as long as the answer takes, and dies with its link.

The *half-closed* end has called `send_eof`. The other end *defers* its answer. The clock is a mock.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    AbnormalClosure,
    ErrorOccurred,
    HalfClose,
    HalfCloseIgnored,
    KeepaliveTimeout,
    PingReceived,
    PongReceived,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    _transport,
)
from trio_wsstream._protocol import ANSWER_DEFERRED

from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, close_payload
from .support.pairs import stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events, end_of
from .support.tasks import background
from .support.wire import Wire, watched, watched_pair

CONFIG = StreamConfig(ping_interval=20, ping_timeout=5)
REQUIRE = StreamConfig(ping_interval=20, ping_timeout=5, half_close=HalfClose.REQUIRE)
EOF_OF_OURS = (CLOSE, close_payload(1000, "half-close"))
WORD = (PONG, b"half-close: answer deferred")
BEAT = (PONG, b"heartbeat")
READERS = pytest.mark.parametrize("caller_reads", [True, False])


async def expect_timeout(stream: WsByteStream) -> None:
    with pytest.raises(trio.BrokenResourceError) as broken:
        while True:
            await stream.receive_some()
    assert isinstance(broken.value.__cause__, KeepaliveTimeout)


@asynccontextmanager
async def half_closed(
    *, client: bool = True, transport: str = "memory", config: StreamConfig = CONFIG
) -> AsyncGenerator[tuple[WsByteStream, RawPeer, Wire]]:
    """Return a stream that has half-closed, and a peer that has not answered."""
    async with watched_pair(transport, config, client=client) as (stream, peer, wire):
        await stream.send_eof()
        await wait_all_tasks_blocked()
        yield stream, peer, wire


@asynccontextmanager
async def deferring(
    *, client: bool = True, transport: str = "memory", config: StreamConfig = CONFIG
) -> AsyncGenerator[tuple[WsByteStream, RawPeer, Wire]]:
    """Return a stream that defers its answer, and a peer that has half-closed."""
    async with watched_pair(transport, config, client=client) as (stream, peer, wire):
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        assert await stream.receive_some() == b""
        yield stream, peer, wire


# The half-closed end


@SIDES
async def test_to_a_peer_that_has_not_said_the_word_nothing_is_sent_after_our_close(
    client: bool, autojump_clock: MockClock
) -> None:
    """It gets neither heartbeats nor Pongs, and it is not given up while it sends something."""
    async with half_closed(client=client) as (stream, peer, wire):
        for number in range(30):
            await trio.sleep(20)
            await peer.send(PING if number % 2 else PONG, b"still here")
        await peer.send(BINARY, b"the answer")
        await peer.send(CLOSE, close_payload(1000))
        assert await end_of(stream) == (b"the answer", None)
        assert stream.half_close_honoured is False
        assert wire[0] == (0, *EOF_OF_OURS)
        assert all(opcode == -1 for _, opcode, _ in wire[1:])


@READERS
@SIDES
async def test_a_peer_that_has_not_said_the_word_and_is_silent_is_given_up(
    client: bool, caller_reads: bool, autojump_clock: MockClock
) -> None:
    async with half_closed(client=client) as (stream, _, wire):
        if caller_reads:
            await expect_timeout(stream)
        else:
            await trio.sleep(26)
        assert isinstance(stream.closed, StreamClosed)
        assert isinstance(stream.closed.error, KeepaliveTimeout)
        await wait_all_tasks_blocked()
        assert wire == [(0, *EOF_OF_OURS), (25, -1, b"")]


@SIDES
async def test_pings_are_answered_once_the_peer_has_said_the_word(
    client: bool, autojump_clock: MockClock
) -> None:
    async with half_closed(client=client) as (stream, peer, wire):
        assert stream.half_close_honoured is None
        await peer.send(PING, b"too early")
        await peer.send(*WORD)
        await peer.send(PING, b"answered")
        await trio.sleep(1)
        assert stream.half_close_honoured is True
        await peer.send(PING, b"this, too")
        await trio.sleep(1)
        assert wire == [
            (0, *EOF_OF_OURS),
            (0.05, PONG, b"answered"),
            (0.55, *BEAT),
            (1, PONG, b"this, too"),
        ]


async def test_heartbeats_and_pings_go_to_a_peer_that_has_said_the_word(
    autojump_clock: MockClock,
) -> None:
    async with half_closed() as (_, peer, wire):
        await peer.send(*WORD)
        for _ in range(5):
            await trio.sleep(10)
            await peer.send(BINARY, b"a piece of the answer")
        await trio.sleep(24)
        beats = [(0.55, *BEAT), (20.55, *BEAT), (40.55, *BEAT), (60.55, *BEAT)]
        assert wire == [(0, *EOF_OF_OURS), *beats, (70, PING, b"?")]
        await trio.sleep(2)
        assert wire[-1] == (75, -1, b"")


async def test_the_word_is_confirmed_once_and_not_at_once(autojump_clock: MockClock) -> None:
    """A proxy that has passed a short answer on may close TCP before it has read the rest, and the
    reset would cut the answer off.
    """
    async with half_closed() as (_, peer, wire):
        for _ in range(3):
            await peer.send(*WORD)
        await trio.sleep(0.5)
        assert wire == [(0, *EOF_OF_OURS)]
        await trio.sleep(10)
        assert wire == [(0, *EOF_OF_OURS), (0.55, *BEAT)]


async def test_the_word_is_confirmed_sooner_if_the_interval_is_short(
    autojump_clock: MockClock,
) -> None:
    config = StreamConfig(ping_interval=1, ping_timeout=5)
    async with half_closed(config=config) as (_, peer, wire):
        await peer.send(*WORD)
        await trio.sleep(0.4)
        assert wire == [(0, *EOF_OF_OURS), (0.3, *BEAT)]


async def test_the_word_means_nothing_after_the_peers_close(autojump_clock: MockClock) -> None:
    """This side is the client, so that it waits for the server to end TCP."""
    async with half_closed() as (stream, peer, wire):
        await peer.send(CLOSE, close_payload(1000))
        await peer.send(*WORD)
        await trio.sleep(1)
        assert stream.half_close_honoured is False
        assert wire == [(0, *EOF_OF_OURS)]


async def test_the_word_alone_changes_nothing_for_an_end_that_has_not_half_closed(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=CONFIG)
        events = stream.subscribe()
        wire = watched(nursery, peer)
        await peer.send(*WORD)
        await trio.sleep(1)
        assert events.receive_nowait() == PongReceived(ANSWER_DEFERRED)
        await stream.send_all(b"x")
        assert stream.half_close_honoured is None
        await trio.sleep(1)
        assert wire == [(1, BINARY, b"x")]


async def test_after_the_peers_answer_nothing_more_is_sent(autojump_clock: MockClock) -> None:
    async with half_closed() as (stream, peer, wire):
        await peer.send(*WORD)
        await trio.sleep(1)
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        await peer.send(PING, b"behind the Close")
        assert await end_of(stream) == (b"", None)
        assert stream.half_close_honoured is True
        with pytest.raises(trio.ClosedResourceError):
            await stream.ping()
        await trio.sleep(5)
        assert wire == [(0, *EOF_OF_OURS), (0.55, *BEAT)]


async def test_ping_is_refused_until_the_peer_has_said_the_word(autojump_clock: MockClock) -> None:
    async with half_closed() as (stream, peer, _):
        with pytest.raises(trio.ClosedResourceError):
            await stream.ping()
        await peer.send(*WORD)
        await trio.sleep(1)
        with trio.move_on_after(1):
            await stream.ping(b"payload")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.ping, b"answered")
            await trio.sleep(1)
            await peer.send(PONG, b"answered")


# The end that defers its answer


@SIDES
@pytest.mark.parametrize("policy", [HalfClose.AUTO, HalfClose.ALWAYS, HalfClose.REQUIRE])
async def test_who_defers_its_answer_says_so_and_goes_on_pinging(
    policy: HalfClose, client: bool, autojump_clock: MockClock
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=5, half_close=policy)
    async with deferring(client=client, config=config) as (stream, peer, wire):
        await trio.sleep(1)
        await peer.send(*BEAT)
        await trio.sleep(21)
        assert wire == [(0, *WORD), (20, *BEAT), (21, PING, b"?")]
        await peer.send(PONG, b"anything")
        await trio.sleep(5)
        await stream.send_all(b"the answer")
        await stream.send_eof()
        await trio.sleep(1)
        assert wire[3:5] == [(27, BINARY, b"the answer"), (27, *EOF_OF_OURS)]


async def test_no_word_goes_to_a_peer_whose_close_is_no_half_close(
    autojump_clock: MockClock,
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=None, half_close=HalfClose.ALWAYS)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=config)
        wire = watched(nursery, peer)
        await peer.send(CLOSE, close_payload(1000))
        assert await stream.receive_some() == b""
        await trio.sleep(41)
        assert wire == [(20, PING, b"?"), (40, PING, b"?")]


@READERS
@pytest.mark.parametrize("transport", ["memory", "lockstep"])
async def test_who_defers_its_answer_gives_up_a_silent_peer(
    transport: str, caller_reads: bool, autojump_clock: MockClock
) -> None:
    """A transport in memory has no TCP that could acknowledge anything."""
    async with deferring(transport=transport) as (stream, _, wire):
        events = stream.subscribe()
        error, closed = await all_events(events)
        assert isinstance(error, ErrorOccurred)
        assert isinstance(error.error, KeepaliveTimeout)
        assert closed == StreamClosed(1000, "half-close", False, error.error)
        await wait_all_tasks_blocked()
        close = (25, CLOSE, close_payload(1011, "keepalive timeout"))
        assert wire == [(0, *WORD), (20, PING, b"?"), close, (25, -1, b"")]
        assert await stream.receive_some() == b""  # the peer's end was told, and stays
        for send in (lambda: stream.send_all(b"x"), stream.send_eof, stream.ping):
            with pytest.raises(trio.BrokenResourceError) as broken:
                await send()
            assert broken.value.__cause__ == error.error


async def test_a_sender_that_waits_is_told_that_its_half_closed_peer_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", CONFIG)
        nursery.start_soon(peer.send, *EOF_OF_OURS)
        assert await stream.receive_some() == b""
        assert await peer.receive() == WORD
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"nobody takes this")
        assert isinstance(broken.value.__cause__, KeepaliveTimeout)
        assert trio.current_time() - started == pytest.approx(25)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_peer_that_owes_no_pong_lives_while_its_kernel_acknowledges(
    transport: str, autojump_clock: MockClock
) -> None:
    """Such a peer is websocat, or version 0.1.0, which has sent its Close and is silent."""
    async with deferring(transport=transport) as (stream, peer, wire):
        for _ in range(30):
            await trio.sleep(10)
        assert stream.closed is None
        assert {opcode for _, opcode, _ in wire} == {PONG, PING}
        await peer.send(*BEAT)  # from now on, silence is death
        await trio.sleep(60)
        assert stream.closed is not None
        assert isinstance(stream.closed.error, KeepaliveTimeout)


ALWAYS = attrs.evolve(CONFIG, half_close=HalfClose.ALWAYS)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_under_always_a_silent_holder_lives_while_its_kernel_acknowledges(
    transport: str, autojump_clock: MockClock
) -> None:
    """Such a peer is websocat, which thinks for ten minutes here."""
    async with half_closed(transport=transport, config=ALWAYS) as (stream, peer, wire):
        await trio.sleep(600)
        await peer.send(BINARY, b"the answer")
        await peer.send(CLOSE, close_payload(1000))
        assert await end_of(stream) == (b"the answer", None)
        assert wire[0] == (0, *EOF_OF_OURS)
        assert all(opcode == -1 for _, opcode, _ in wire[1:])


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls", "TLS 1.2"])
async def test_under_always_a_silent_holder_is_given_up_when_its_kernel_is_silent(
    transport: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_acknowledges", lambda sock: False)
    async with half_closed(transport=transport, config=ALWAYS) as (stream, _, wire):
        await expect_timeout(stream)
        await wait_all_tasks_blocked()
        assert wire == [(0, *EOF_OF_OURS), (25, -1, b"")]


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
async def test_under_always_a_holder_that_has_said_the_word_must_go_on_speaking(
    autojump_clock: MockClock,
) -> None:
    async with half_closed(transport="tcp", config=ALWAYS) as (stream, peer, _):
        await peer.send(*WORD)
        await expect_timeout(stream)


@pytest.mark.parametrize("half_close", [HalfClose.AUTO, HalfClose.NEVER, HalfClose.REQUIRE])
async def test_under_other_policies_a_silent_holder_is_given_up(
    half_close: HalfClose, autojump_clock: MockClock
) -> None:
    config = attrs.evolve(CONFIG, half_close=half_close)
    async with half_closed(transport="tcp", config=config) as (stream, _, _):
        await expect_timeout(stream)
        assert trio.current_time() == pytest.approx(25)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
@pytest.mark.slow
def test_under_always_the_kernel_notices_that_a_link_is_dead() -> None:
    """The loopback device of a network namespace goes down while an end is half-closed."""
    command = ["unshare", "-rn", sys.executable, "-m", "tests.support.dying_link"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if ran.returncode == 1 and "unshare" in ran.stderr:
        pytest.skip("this user may have no network namespace")
    assert ran.stdout.split() == ["lives", "KeepaliveTimeout"], ran.stderr


# Both ends


@pytest.mark.parametrize("by_client", [True, False])
@pytest.mark.parametrize("transport", ["memory", "lockstep", "tcp", "tls", "TLS 1.2"])
async def test_a_half_closed_connection_lives_for_as_long_as_the_answer_takes(
    transport: str, by_client: bool, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        ends = await stream_pair(nursery, transport, CONFIG)
        asking, answering = ends if by_client else reversed(ends)
        seen = [end.subscribe(1000) for end in (asking, answering)]
        await asking.send_eof()
        assert await answering.receive_some() == b""
        await trio.sleep(1000)
        assert await asking.ping() >= 0
        assert await answering.ping() >= 0
        for events in seen:  # each gave a sign of life in each interval
            count = 0
            with pytest.raises(trio.WouldBlock):
                while True:
                    count += isinstance(events.receive_nowait(), PingReceived | PongReceived)
            assert count >= 49
        await answering.send_all(b"the answer")
        await answering.send_eof()
        assert await end_of(asking) == (b"the answer", None)
        assert asking.half_close_honoured is True


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_half_closed_reader_may_pause(by_client: bool, autojump_clock: MockClock) -> None:
    async with background() as nursery:
        ends = await stream_pair(nursery, "unix", StreamConfig(receive_buffer_size=1000))
        asking, answering = ends if by_client else reversed(ends)
        await asking.send_eof()
        assert await answering.receive_some() == b""

        async def answer() -> None:
            await answering.send_all(bytes(1_000_000))
            await answering.send_eof()

        nursery.start_soon(answer)
        await trio.sleep(600)
        received = 0
        while data := await asking.receive_some():
            received += len(data)
        assert received == 1_000_000


# REQUIRE, and what is known of the half-close


@SIDES
async def test_an_end_without_the_word_is_an_error_under_require(
    client: bool, autojump_clock: MockClock
) -> None:
    async with half_closed(client=client, config=REQUIRE) as (stream, peer, wire):
        await peer.send(BINARY, b"half of the answer")
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        error = HalfCloseIgnored(1000, "half-close")
        assert await end_of(stream) == (b"half of the answer", error)
        assert stream.half_close_honoured is False
        await stream.aclose()
        assert stream.closed == StreamClosed(1000, "half-close", True, error)
        assert wire[:2] == [(0, *WORD), (0, *EOF_OF_OURS)]


async def test_an_end_with_the_word_is_clean_under_require(autojump_clock: MockClock) -> None:
    async with half_closed(config=REQUIRE) as (stream, peer, _):
        await peer.send(*WORD)
        await trio.sleep(1)
        await peer.send(CLOSE, close_payload(1000))
        assert await end_of(stream) == (b"", None)


async def test_another_code_than_1000_is_its_own_error_under_require(
    autojump_clock: MockClock,
) -> None:
    async with half_closed(config=REQUIRE) as (stream, peer, _):
        await peer.send(CLOSE, close_payload(4000))
        assert await end_of(stream) == (b"", AbnormalClosure(4000, ""))


async def test_the_peers_close_without_a_half_close_of_ours_is_a_clean_end_under_require(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=REQUIRE)
        await peer.send(CLOSE, close_payload(1000))
        assert await end_of(stream) == (b"", None)


@pytest.mark.parametrize("transport", ["memory", "lockstep", "tcp", "tls", "TLS 1.2"])
@pytest.mark.parametrize("how", ["send_eof", "aclose"])
async def test_closes_that_cross_a_half_close_are_no_false_alarm_under_require(
    how: str, transport: str, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, transport, REQUIRE)
        async with trio.open_nursery() as both:
            both.start_soon(client.send_eof)
            both.start_soon(server.send_eof if how == "send_eof" else server.aclose)
        assert await end_of(client) == (b"", None)
        await client.aclose()
        await server.aclose()
        for end in (client, server):
            assert end.closed is not None
            assert end.closed.error is None


async def test_the_word_does_not_go_before_a_close_that_is_no_clean_end(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=REQUIRE)
        nursery.start_soon(stream.aclose, 1011)
        assert await peer.receive() == (CLOSE, close_payload(1011))


@pytest.mark.parametrize("honours", [True, False])
async def test_the_log_says_when_a_half_close_was_not_honoured(
    honours: bool, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.INFO, "trio_wsstream")
    async with half_closed() as (stream, peer, _):
        if honours:
            await peer.send(*WORD)
            await trio.sleep(1)
        await peer.send(CLOSE, close_payload(1000))
        await end_of(stream)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == (0 if honours else 1)
        assert honours or lines[0].endswith("the peer did not honour the half-close")


async def test_whether_a_half_close_is_honoured_has_no_answer_without_one(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        await client.aclose()
        assert client.half_close_honoured is None
        assert server.half_close_honoured is None


# Version 0.1.0 at the other end: it defers its answer silently, and is silent after its own Close


@pytest.mark.parametrize("heard", [b"", b"an earlier piece"])
async def test_an_older_end_that_defers_its_answer_loses_nothing_while_it_is_heard(
    heard: bytes, autojump_clock: MockClock
) -> None:
    async with half_closed() as (stream, peer, wire):
        for _ in range(4):
            await trio.sleep(24)
            await peer.send(BINARY, heard)
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        assert await end_of(stream) == (4 * heard, None)
        await wait_all_tasks_blocked()
        assert wire == [(0, *EOF_OF_OURS)]


@pytest.mark.parametrize("size", [10, 10_000_000])
async def test_an_older_end_that_has_half_closed_loses_nothing(
    size: int, autojump_clock: MockClock
) -> None:
    """It makes no difference how long the answer takes or how long it is not read."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp", CONFIG)
        await peer.send(*EOF_OF_OURS)
        assert await stream.receive_some() == b""
        await trio.sleep(300)

        async def answer() -> None:
            await stream.send_all(bytes(size))
            await stream.send_eof()

        nursery.start_soon(answer)
        await trio.sleep(300)
        received = 0
        while True:
            _, opcode, payload = await peer.receive_frame()
            if opcode in (BINARY, CONT):  # in fragments, if the line was slow
                received += len(payload)
            elif opcode == CLOSE:
                break
        assert received == size
