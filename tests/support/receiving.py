"""What is received from a stream, or from its subscription, until the end."""

from __future__ import annotations

import pytest
import trio

from trio_wsstream import WsByteStream, WsEvent, WsStreamError


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Until its end."""
    return b"".join([chunk async for chunk in stream])


async def receive_exactly(stream: WsByteStream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = await stream.receive_some()
        assert data, f"the stream has ended after {len(received)} of {count} bytes"
        received += data
    return bytes(received)


async def receive_and_break(stream: WsByteStream) -> tuple[bytes, BaseException | None]:
    """All that can be received, and why it is not all that there should be."""
    received = bytearray()
    with pytest.raises(trio.BrokenResourceError) as broken:
        while True:
            data = await stream.receive_some()
            assert data
            received += data
    return bytes(received), broken.value.__cause__


async def end_of(stream: WsByteStream) -> tuple[bytes, WsStreamError | None]:
    """What comes before the end, and the cause of an end that is not clean."""
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
