"""A stream that has ended goes as soon as nobody holds it: it is in no cycle of references."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import StreamConfig, WsByteStream

from .support.frames import BINARY, CLOSE, PING, TEXT, close_payload
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def closes(stream: WsByteStream, peer: RawPeer) -> None:
    await stream.aclose()


async def is_dropped(stream: WsByteStream, peer: RawPeer) -> None:
    await trio.aclose_forcefully(stream)


async def is_dropped_by_its_connection(stream: WsByteStream, peer: RawPeer) -> None:
    await stream.connection.aclose()


async def is_closed_by_its_peer(stream: WsByteStream, peer: RawPeer) -> None:
    await peer.send(BINARY, b"last")
    await peer.send(CLOSE, close_payload(4000, "reason"))
    await peer.transport.aclose()
    await receive_all(stream)


async def meets_a_violation(stream: WsByteStream, peer: RawPeer) -> None:
    await peer.send(TEXT, b"text")
    await receive_all(stream)
    await peer.transport.aclose()


async def is_lost(stream: WsByteStream, peer: RawPeer) -> None:
    await peer.transport.aclose()
    await receive_all(stream)


async def loses_an_event(stream: WsByteStream, peer: RawPeer) -> None:
    events = stream.subscribe(1, backpressure=True)
    await peer.send(PING)
    await peer.send(PING)
    with trio.move_on_after(0):
        await stream.receive_some()
    await wait_all_tasks_blocked(0.06)
    await trio.aclose_forcefully(stream)
    assert len([event async for event in events]) == 3


async def gives_up_a_ping(stream: WsByteStream, peer: RawPeer) -> None:
    async def ping() -> None:
        with suppress(trio.ClosedResourceError):
            await stream.ping()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        await wait_all_tasks_blocked()
        await trio.aclose_forcefully(stream)


async def is_cut_off(stream: WsByteStream, peer: RawPeer) -> None:
    with trio.move_on_after(0.01):
        await stream.send_all(bytes(10_000_000))
    await trio.aclose_forcefully(stream)


async def receive_all(stream: WsByteStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for _ in stream:
            pass


@pytest.mark.parametrize("transport", ["memory", "unix", "tls"])
@pytest.mark.parametrize(
    "end",
    [
        closes,
        is_dropped,
        is_dropped_by_its_connection,
        is_closed_by_its_peer,
        meets_a_violation,
        is_lost,
        loses_an_event,
        gives_up_a_ping,
        is_cut_off,
    ],
)
async def test_a_stream_that_has_ended_is_held_by_nobody(
    end: Callable[[WsByteStream, RawPeer], Awaitable[None]], transport: str
) -> None:
    held: list[weakref.ref[Any]] = []

    async def meet() -> None:
        async with background() as nursery:
            config = StreamConfig(close_timeout=0.05)
            stream, peer = await raw_pair(nursery, transport, config)
            await peer.send(BINARY, b"x")
            assert await stream.receive_some() == b"x"
            held.extend(map(weakref.ref, (stream, stream.connection)))
            await end(stream, peer)
            async for _ in stream.subscribe(kinds=()):
                pass  # until it is closed

    await meet()
    await trio.lowlevel.checkpoint()
    assert [reference() for reference in held] == [None, None]


async def test_a_stream_that_was_never_read_is_held_by_nobody() -> None:
    async def meet() -> weakref.ref[WsByteStream]:
        async with background() as nursery:
            stream, _ = await raw_pair(nursery)
            await trio.aclose_forcefully(stream)
            return weakref.ref(stream)

    assert (await meet())() is None
