"""A peer that ends while we send: what `send_all` and its like say, and when they say nothing."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import (
    AbnormalClosure,
    ConnectionLost,
    ErrorOccurred,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    WsEvent,
)

from .support.frames import BINARY, CLOSE, PING, TEXT, close_payload, frame
from .support.handshakes import handshake
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background
from .support.transports import memory_transport, reset, tcp_transport

pytestmark = pytest.mark.slow

TOO_LONG = close_payload(1009, "too long")
MUCH = bytes(10_000_000)


# All is with the transport


@pytest.mark.parametrize(
    "last",
    [
        frame(CLOSE, close_payload(1000), masked=True),
        frame(CLOSE, close_payload(4000), masked=True),
        frame(TEXT, b"refused", masked=True),
        b"\xff\xff",
        b"",
    ],
    ids=["Close 1000", "Close 4000", "text", "a violation", "TCP ends"],
)
@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_send_of_what_the_peer_has_got_succeeds_though_the_peer_has_ended(
    last: bytes, size: int
) -> None:
    client, server = await memory_transport()
    async with background() as nursery:
        stream = WsByteStream(
            await handshake(nursery, server, client, client=False),
            nursery,
            StreamConfig(max_message_size=2_000_000),
        )

        async def end() -> None:
            await client.send_all(last) if last else await client.aclose()
            await wait_all_tasks_blocked()

        nursery.start_soon(ignore_the_end, stream.receive_some)
        await wait_all_tasks_blocked()
        server.send_stream.send_all_hook = end  # type: ignore[attr-defined]
        await stream.send_all(bytes(size))
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"more")


async def ignore_the_end(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except (trio.BrokenResourceError, trio.BusyResourceError):
        pass


# A Close that is no end


@pytest.mark.parametrize("transport", ["unix", "tcp", "tls", "lockstep"])
@pytest.mark.parametrize("client", [True, False])
async def test_a_peer_that_refuses_what_is_sent_and_reads_no_more_ends_the_send_at_once(
    transport: str, client: bool
) -> None:
    async with background() as nursery:
        config = StreamConfig(close_timeout=0.5)
        stream, peer = await raw_pair(nursery, transport, config, client=client)

        async def refuse() -> None:
            await wait_all_tasks_blocked(0.02)
            await peer.send(CLOSE, TOO_LONG)

        nursery.start_soon(refuse)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError) as error:
            await stream.send_all(MUCH)
        assert error.value.__cause__ == AbnormalClosure(1009, "too long")
        assert await code_that_receiving_tells(stream) == 1009


def stall(stream: WsByteStream) -> None:
    """Let its transport take nothing any more."""
    stream._transport.send_stream.send_all = forever  # type: ignore[attr-defined]


async def forever(data: object) -> None:
    await trio.sleep_forever()


async def code_that_receiving_tells(stream: WsByteStream) -> int:
    with pytest.raises(trio.BrokenResourceError) as error:
        await stream.receive_some()
    assert isinstance(error.value.__cause__, AbnormalClosure)
    return error.value.__cause__.code


@pytest.mark.parametrize("method", ["wait_send_all_might_not_block", "send_eof"])
async def test_a_peer_that_refuses_what_is_sent_ends_every_call_that_waits_for_it(
    method: str,
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix", StreamConfig(close_timeout=8))
        with suppress(BlockingIOError):
            while True:
                os.write(stream._transport.socket.fileno(), bytes(1000))  # type: ignore[attr-defined]

        async def refuse() -> None:
            await wait_all_tasks_blocked(0.02)
            await peer.send(CLOSE, TOO_LONG)

        nursery.start_soon(refuse)
        with trio.fail_after(4), pytest.raises(trio.BrokenResourceError) as error:
            await getattr(stream, method)()
        assert error.value.__cause__ == AbnormalClosure(1009, "too long")


async def test_a_peer_that_ends_well_lets_the_frame_under_way_be_finished() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "unix", StreamConfig(close_timeout=1000))

        async def end() -> None:
            await wait_all_tasks_blocked(0.02)
            await peer.send(CLOSE, close_payload(1000))
            await wait_all_tasks_blocked(0.02)
            while (received := await peer.receive()) == (BINARY, bytes(65536)):
                pass
            assert received == (CLOSE, close_payload(1000))

        nursery.start_soon(end)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await stream.send_all(MUCH)


# A Close, and then a reset

CALLS: dict[str, Callable[[WsByteStream], Awaitable[object]]] = {
    "send_all": lambda stream: stream.send_all(MUCH),
    "wait": lambda stream: stream.wait_send_all_might_not_block(),
    "ping": lambda stream: stream.ping(),
}


@pytest.mark.parametrize("is_behind_data", [True, False])
@pytest.mark.parametrize("is_under_way", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_a_close_that_has_arrived_tells_more_than_the_reset_behind_it(
    name: str, is_under_way: bool, is_behind_data: bool
) -> None:
    for _ in range(5):
        ours, theirs = await tcp_transport()
        async with background() as nursery:
            connection = await handshake(nursery, ours, theirs, client=True)
            stream = WsByteStream(connection, nursery, StreamConfig(close_timeout=1000))
            peer = RawPeer(theirs, masked=False)

            async def refuse(peer: RawPeer = peer, theirs: Any = theirs) -> None:
                if is_under_way:
                    await wait_all_tasks_blocked(0.005)
                if is_behind_data:
                    await peer.send(BINARY, bytes(1000))
                    await peer.send(PING)
                await peer.send(CLOSE, TOO_LONG)
                reset(theirs)

            if is_under_way:
                nursery.start_soon(refuse)
            else:
                await refuse()
            with trio.fail_after(30), pytest.raises(trio.BrokenResourceError) as error:
                while True:
                    await CALLS[name](stream)
                    await trio.sleep(0.02)
            assert error.value.__cause__ == AbnormalClosure(1009, "too long")
            if is_behind_data:
                received = b""
                while len(received) < 1000:
                    received += await stream.receive_some()
            assert await code_that_receiving_tells(stream) == 1009


# A sending side that fails


@pytest.mark.parametrize("transport", ["TLS 1.2", "memory"])
async def test_a_frame_that_is_cut_off_is_told_at_once(transport: str) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, transport)
        if transport == "memory":
            stall(stream)
        errors = stream.subscribe(kinds=ErrorOccurred)
        with trio.move_on_after(0.01):
            await stream.send_all(MUCH)
        event = errors.receive_nowait()
        assert isinstance(event, ErrorOccurred)
        assert event.error == ConnectionLost("a frame was cut off when its sending was cancelled")
        assert stream.closed is None


async def test_what_was_read_before_a_cancelled_send_broke_tls_1_2_is_received() -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "TLS 1.2")
        await peer.send(BINARY, b"read ahead")
        await wait_all_tasks_blocked(0.1)
        with trio.move_on_after(0.01):
            await stream.send_all(MUCH)
        assert await stream.receive_some() == b"read ahead"
        with pytest.raises(trio.BrokenResourceError) as error:
            await stream.receive_some()
        assert isinstance(error.value.__cause__, ConnectionLost)


@pytest.mark.parametrize("does", ["sends", "pings", "answers a ping"])
async def test_a_socket_that_is_broken_is_told_once(does: str) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(
            nursery, "tcp", StreamConfig(receive_buffer_size=1, close_timeout=1000)
        )
        events = stream.subscribe()
        await peer.send(BINARY, bytes(1000))
        if does == "answers a ping":
            await peer.send(PING)
        reset(peer.transport)
        with trio.fail_after(30):
            try:
                if does == "sends":
                    await stream.send_all(MUCH)
                else:
                    await stream.ping()
            except trio.BrokenResourceError:
                pass
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError as error:
                assert isinstance(error.__cause__, ConnectionLost)
            told: list[WsEvent] = [event async for event in events]
        assert sum(isinstance(event, ErrorOccurred) for event in told) == 1


# What had arrived


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_what_arrived_before_the_peer_hung_up_is_received(
    transport: str, client: bool
) -> None:
    """Pongs that cannot be sent any more break no reading."""
    config = StreamConfig(receive_buffer_size=20_000)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config, client=client)
        said = [peer.frame(BINARY, bytes(1000)) + peer.frame(PING, b"%d" % n) for n in range(100)]
        said.append(peer.frame(CLOSE, close_payload(1000)))
        await peer.transport.send_all(b"".join(said))
        await getattr(peer.transport, "transport_stream", peer.transport).aclose()
        received = b""
        while data := await stream.receive_some(4000):
            received += data
            await trio.lowlevel.checkpoint()
        assert received == bytes(100_000)


async def test_over_other_transports_than_sockets_a_frame_has_a_second_to_be_finished(
    autojump_clock: MockClock,
) -> None:
    """So a peer that goes on reading gets our answer to its Close."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep")
        nursery.start_soon(ignore_the_end, stream.receive_some)

        async def refuse() -> None:
            await wait_all_tasks_blocked()
            await peer.send(CLOSE, TOO_LONG)

        nursery.start_soon(refuse)
        started_at = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(MUCH)
        assert trio.current_time() == started_at + 1


# After a half-close of the peer, which is no reason to send nothing


@pytest.mark.parametrize("how", ["time is up", "TCP breaks"])
@pytest.mark.parametrize("transport", ["unix", "tls"])
async def test_an_answering_half_close_that_cannot_go_out_does_not_blame_the_peers(
    transport: str, how: str, autojump_clock: MockClock
) -> None:
    config = StreamConfig(ping_timeout=None, close_timeout=3)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, config)
        events = stream.subscribe(kinds=ErrorOccurred)
        await peer.send(CLOSE, close_payload(1000, "half-close"))
        assert await stream.receive_some() == b""
        with trio.move_on_after(1):
            await stream.send_all(MUCH)
        if how == "TCP breaks":
            nursery.start_soon(break_soon, peer)
        with pytest.raises(trio.BrokenResourceError) as error:
            await stream.send_eof()
        lost = error.value.__cause__
        assert isinstance(lost, ConnectionLost)
        assert ("in time" in str(lost)) is (how == "time is up")
        assert await stream.receive_some() == b""
        told = [event async for event in events]
        assert told == [ErrorOccurred(lost), StreamClosed(1000, "half-close", False, lost)]


async def break_soon(peer: RawPeer) -> None:
    await wait_all_tasks_blocked()
    await trio.aclose_forcefully(peer.transport)
