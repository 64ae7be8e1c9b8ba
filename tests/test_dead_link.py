"""A link that stops passing bytes is noticed on both sides within the interval and the timeout.

Over real sockets, with a relay between the two ends. No end of TCP and no reset tells of its death:
the relay's kernel goes on to acknowledge what it gets. The clock is a mock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wsstream import HalfClose, KeepaliveTimeout, StreamClosed, StreamConfig, WsByteStream

from .support.pairs import connection_pair
from .support.receiving import all_events
from .support.tasks import background
from .support.transports import tcp_transport

CONFIG = StreamConfig(ping_interval=20, ping_timeout=5)
WITHIN = 25
MUCH = bytes(20_000_000)  # more than sockets hold


class Relay:
    """Two sockets, and bytes that pass between them until they do not any more."""

    def __init__(self, nursery: trio.Nursery, left: trio.SocketStream, right: trio.SocketStream):
        self._scopes: list[trio.CancelScope] = []
        nursery.start_soon(self._pass_on, left, right)
        nursery.start_soon(self._pass_on, right, left)

    async def _pass_on(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            while data := await source.receive_some():
                await sink.send_all(data)
            await sink.send_eof()
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(source)

    def stop(self) -> None:
        for scope in self._scopes:
            scope.cancel()


@asynccontextmanager
async def relayed(
    client_config: StreamConfig = CONFIG, server_config: StreamConfig = CONFIG
) -> AsyncGenerator[tuple[WsByteStream, WsByteStream, Relay]]:
    async with background() as nursery:
        client, left = await tcp_transport()
        right, server = await tcp_transport()
        relay = Relay(nursery, left, right)
        ends = await connection_pair(nursery, (client, server))
        yield (
            WsByteStream(ends[0], nursery, client_config),
            WsByteStream(ends[1], nursery, server_config),
            relay,
        )


async def receive_until_broken(stream: WsByteStream, *, has_ended: bool) -> None:
    """An end that was told before stays."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError as error:
        assert isinstance(error.__cause__, KeepaliveTimeout)
        assert not has_ended
    else:
        assert has_ended


async def send_until_broken(stream: WsByteStream) -> None:
    with pytest.raises(trio.BrokenResourceError) as broken:
        await stream.send_all(MUCH)
    assert isinstance(broken.value.__cause__, KeepaliveTimeout)


async def ping_until_broken(stream: WsByteStream) -> None:
    with pytest.raises(trio.BrokenResourceError) as broken:
        while True:
            await stream.ping()
            await trio.sleep(1)
    assert isinstance(broken.value.__cause__, KeepaliveTimeout)


@pytest.mark.parametrize("pings", [True, False], ids=["callers ping", "callers do not ping"])
@pytest.mark.parametrize("sends", ["nobody", "client", "server", "both"])
@pytest.mark.parametrize("half_closed", ["nobody", "client", "server"])
async def test_a_dead_link_is_noticed_on_both_sides(
    half_closed: str, sends: str, pings: bool, autojump_clock: MockClock
) -> None:
    """Whoever has half-closed, whoever has bytes under way, and whoever waits for a Pong."""
    async with relayed() as (client, server, relay):
        ends = {"client": client, "server": server}
        if half_closed != "nobody":
            await ends[half_closed].send_eof()
            await trio.sleep(1)  # until the other end has said that it defers its answer
        seen = [end.subscribe(kinds=StreamClosed) for end in ends.values()]
        async with trio.open_nursery() as nursery:
            for name, end in ends.items():
                has_ended = half_closed not in (name, "nobody")
                nursery.start_soon(partial(receive_until_broken, end, has_ended=has_ended))
                if pings:
                    await trio.sleep(0.1)
                    nursery.start_soon(ping_until_broken, end)
            await trio.sleep(33)
            assert client.closed is server.closed is None
            relay.stop()
            await wait_all_tasks_blocked()
            died_at = trio.current_time()
            for name, end in ends.items():
                if sends in (name, "both") and half_closed != name:
                    nursery.start_soon(send_until_broken, end)
        for events in seen:
            (closed,) = await all_events(events)
            assert isinstance(closed, StreamClosed)
            assert isinstance(closed.error, KeepaliveTimeout)
        # The relay's kernel takes bytes until it is full, maybe after the clock has jumped.
        last_sign_at = max(died_at, client._wire.accepted_at, server._wire.accepted_at)
        assert trio.current_time() - last_sign_at <= WITHIN + 0.2


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_link_that_dies_before_the_half_close_has_arrived(
    by_client: bool, autojump_clock: MockClock
) -> None:
    async with relayed() as (client, server, relay):
        await wait_all_tasks_blocked()
        relay.stop()
        asking = client if by_client else server
        await asking.send_eof()
        await receive_until_broken(asking, has_ended=False)
        assert trio.current_time() <= WITHIN + 0.2
        await trio.sleep(0.2)
        for end in (client, server):
            assert end.closed is not None
            assert isinstance(end.closed.error, KeepaliveTimeout)


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_link_that_dies_while_the_close_of_a_half_close_waits(
    by_client: bool, autojump_clock: MockClock
) -> None:
    """`send_eof` ends with the error, and so does `receive_some`."""
    async with relayed() as (client, server, relay):
        asking = client if by_client else server
        await wait_all_tasks_blocked()
        relay.stop()
        died_at = trio.current_time()
        with trio.move_on_after(0.1):
            await asking.send_all(MUCH)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: receive_until_broken(asking, has_ended=False))
            with pytest.raises(trio.BrokenResourceError) as broken:
                await asking.send_eof()
            assert isinstance(broken.value.__cause__, KeepaliveTimeout)
        last_sign_at = max(died_at, asking._wire.accepted_at)
        assert trio.current_time() - last_sign_at <= WITHIN + 0.2


@pytest.mark.parametrize("half_close", HalfClose)
@pytest.mark.parametrize("by_client", [True, False])
async def test_a_link_that_dies_while_an_answer_of_another_policy_is_deferred(
    by_client: bool, half_close: HalfClose, autojump_clock: MockClock
) -> None:
    config = StreamConfig(ping_interval=20, ping_timeout=5, half_close=half_close)
    async with relayed(config, config) as (client, server, relay):
        asking, answering = (client, server) if by_client else (server, client)
        await asking.send_eof()
        assert await answering.receive_some() == b""
        await trio.sleep(21)  # until the half-closed end has sent something after its Close
        relay.stop()
        await trio.sleep(WITHIN + 0.2)
        if half_close is HalfClose.NEVER:
            assert asking.half_close_honoured is False
        else:
            for end in (client, server):
                assert end.closed is not None
                assert isinstance(end.closed.error, KeepaliveTimeout)
