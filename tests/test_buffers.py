"""Whatever has bytes can be sent. What a socket refuses, a stream refuses with the same error."""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import Any

import pytest
import trio

from trio_wsstream import StreamConfig

from .support.frames import BINARY
from .support.raw_peer import raw_pair
from .support.tasks import background
from .support.transports import tcp_transport


class Point(ctypes.BigEndianStructure):
    _fields_ = (("x", ctypes.c_int32), ("y", ctypes.c_double))


def shaped(*shape: int) -> memoryview:
    """A view with these dimensions; one of them may be 0."""
    size = 1
    for length in shape:
        size *= length
    kind: Any = ctypes.c_uint16
    for length in reversed(shape):
        kind = kind * length
    return memoryview(kind.from_buffer_copy(bytes(i % 251 for i in range(2 * size))))


BUFFERS: dict[str, Any] = {
    "bytes": b"bytes",
    "bytearray": bytearray(b"bytearray"),
    "no bytes": b"",
    "an empty view": memoryview(b""),
    "an array": array.array("d", [1.5, 2.5]),
    "an empty array": array.array("d"),
    "a map of memory": mmap.mmap(-1, 100),
    "a view of 16 bits": shaped(5),
    "a view of two dimensions": shaped(3, 4),
    "a view of three dimensions": shaped(3, 4, 5),
    "a view with a 0 first": shaped(0, 4),
    "a view with a 0 last": shaped(4, 0),
    "a view with a 0 amid": shaped(2, 0, 3),
    "a structure": (Point * 2)((1, 2.0), (3, 4.0)),
    "a scalar": memoryview(ctypes.c_int32(5)),
    "a view that is not contiguous": memoryview(b"abcdef")[::2],
    "a view backwards": memoryview(b"abcdef")[::-1],
    "a view not contiguous, and empty": memoryview(b"abcdef")[0:0:2],
    "a view of one byte with a step": memoryview(b"abcdef")[0:1:2],
    "a released view": memoryview(b"abc"),
    "a string": "string",
    "a list": [1, 2],
    "a number": 5,
    "nothing": None,
}
BUFFERS["a released view"].release()


SPIN = {"a view with a 0 last", "a view with a 0 amid"}
"""What a `trio.SocketStream` sends nothing of for ever. A stream sends nothing, and returns."""


async def error_of(stream: Any, data: Any) -> type[Exception] | None:
    try:
        await stream.send_all(data)
    except (TypeError, ValueError, BufferError) as error:
        return type(error)
    return None


def bytes_of(data: Any) -> bytes:
    return memoryview(data).tobytes()


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("size", [3, 65536])
@pytest.mark.parametrize("name", BUFFERS)
async def test_a_buffer_is_sent_or_refused_as_by_a_socket(
    name: str, size: int, client: bool
) -> None:
    data = BUFFERS[name]
    ours, theirs = await tcp_transport()
    async with ours, theirs, background() as nursery:
        config = StreamConfig(max_message_size=size)
        stream, peer = await raw_pair(nursery, "tcp", config, client=client)
        error = None if name in SPIN else await error_of(ours, data)
        assert await error_of(stream, data) is error
        await stream.send_all(b"!")
        received = b""
        while not received.endswith(b"!"):
            opcode, payload = await peer.receive()
            assert opcode == BINARY
            assert 0 < len(payload) <= size
            received += payload
        assert received == (b"" if error else bytes_of(data)) + b"!"


@pytest.mark.parametrize("size", [3, 65536])
async def test_a_buffer_is_its_owners_again_after_a_send(size: int) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "tcp", StreamConfig(max_message_size=size))
        data = bytearray(b"data")
        await stream.send_all(data)
        data.clear()  # a BufferError, if a view of it is left
        data += bytes(10_000_000)
        with trio.move_on_after(0.01) as scope:
            await stream.send_all(data)
        assert scope.cancelled_caught
        data.clear()
