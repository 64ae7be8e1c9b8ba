"""Trio's own tests of the stream contract, over every transport and with every way of reading."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trio_wsstream import StreamConfig, WsByteStream, _stream

from .support.pairs import stream_pair
from .support.tasks import background

Maker = Callable[[], Awaitable[tuple[WsByteStream, WsByteStream]]]

TIGHT = StreamConfig(receive_buffer_size=1)


async def clogged_pair(nursery: trio.Nursery) -> tuple[WsByteStream, WsByteStream]:
    """Make a pair whose sending is clogged: each side has read one byte and reads no more."""
    client, server = await stream_pair(nursery, "lockstep", TIGHT)
    for sender in (client, server):
        await sender.send_all(b"x")
    return client, server


@pytest.mark.slow
@pytest.mark.parametrize("grace_period", [_stream.GRACE_PERIOD, 0, math.inf])
@pytest.mark.parametrize("transport", ["memory", "lockstep", "tcp", "tls", "TLS 1.2"])
async def test_check_half_closeable_stream(
    transport: str, grace_period: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stream, "GRACE_PERIOD", grace_period)
    # With an infinite grace period no task reads the peer's Close, so closing takes the whole
    # close_timeout. Otherwise nothing waits for it, and a busy machine has all the time it needs.
    config = StreamConfig(close_timeout=1) if grace_period == math.inf else StreamConfig()
    async with background() as nursery:

        async def maker() -> tuple[WsByteStream, WsByteStream]:
            return await stream_pair(nursery, transport, config)

        async def clogged_maker() -> tuple[WsByteStream, WsByteStream]:
            return await clogged_pair(nursery)

        # Nor would any task read the byte that clogs the stream.
        is_cloggable = transport == "lockstep" and grace_period != math.inf
        await trio.testing.check_half_closeable_stream(
            maker, clogged_maker if is_cloggable else None
        )
