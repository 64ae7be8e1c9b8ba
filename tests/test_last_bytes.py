"""A server that closes must not reset TCP, though a half-closed peer sends control frames."""

from __future__ import annotations

import os
import ssl
from functools import partial

import pytest
import trio

from trio_wsstream import HalfClose, StreamConfig, WsByteStream, open_ws_stream, serve_ws

from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS

pytestmark = pytest.mark.slow

DATA = os.urandom(2_000_000)
ALWAYS = StreamConfig(half_close=HalfClose.ALWAYS)


async def answer(stream: WsByteStream) -> None:
    await receive_all(stream)
    await stream.send_all(DATA)


@pytest.mark.parametrize(("inner", "outer"), [(None, None), (CLIENT_TLS, SERVER_TLS)])
async def test_all_arrives_at_a_slow_reader_that_has_half_closed(
    inner: ssl.SSLContext | None, outer: ssl.SSLContext | None
) -> None:
    """The kernel has much to send yet when the server is done, and a reset would drop that."""
    async with background() as nursery:
        (listener,) = await nursery.start(partial(serve_ws, answer, "127.0.0.1", 0, outer))
        url = f"{'wss' if inner else 'ws'}://localhost:{listener.port}/"
        for _ in range(10):
            with trio.fail_after(20):
                async with open_ws_stream(url, inner, config=ALWAYS) as client:
                    await client.send_all(DATA)
                    await client.send_eof()
                    received = 0
                    async for chunk in client:
                        received += len(chunk)
                        await trio.sleep(0.0005)
                    assert received == len(DATA)
