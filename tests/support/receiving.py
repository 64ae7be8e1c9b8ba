"""Receiving from a stream, or from a subscription, until the end."""

from __future__ import annotations

import pytest
import trio

from trio_wsstream import WsByteStream, WsEvent, WsStreamError


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Receive until the stream ends cleanly, and return all bytes."""
    return b"".join([chunk async for chunk in stream])


async def receive_exactly(stream: WsByteStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = await stream.receive_some()
        assert data, f"the stream has ended after {len(received)} of {count} bytes"
        received += data
    return bytes(received)


async def receive_and_break(stream: WsByteStream) -> tuple[bytes, BaseException | None]:
    """Receive until the stream breaks. Return all bytes, and the cause of the error."""
    received = bytearray()
    with pytest.raises(trio.BrokenResourceError) as broken:
        while True:
            data = await stream.receive_some()
            assert data
            received += data
    return bytes(received), broken.value.__cause__


async def end_of(stream: WsByteStream) -> tuple[bytes, WsStreamError | None]:
    """Receive until the stream ends. Return all bytes, and the cause if the end is not clean."""
    received = bytearray()
    try:
        while chunk := await stream.receive_some():
            received += chunk
    except trio.BrokenResourceError as error:
        assert isinstance(error.__cause__, WsStreamError)
        return bytes(received), error.__cause__
    return bytes(received), None


async def all_events(channel: trio.MemoryReceiveChannel[WsEvent]) -> list[WsEvent]:
    return [event async for event in channel]
