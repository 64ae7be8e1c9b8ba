"""Code that was written for any Trio stream runs over a `WsByteStream`."""

from __future__ import annotations

import pytest
import trio
from tricycle import BufferedReceiveStream, TextReceiveStream

from .support.pairs import stream_pair
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS


@pytest.mark.parametrize("transport", ["memory", "tcp", "tls"])
async def test_tls_inside_a_websocket_carries_bytes_and_closes_cleanly(transport: str) -> None:
    data = bytes(range(256)) * 1000
    async with background() as nursery, trio.open_nursery() as talking:
        client, server = await stream_pair(nursery, transport)

        async def echo() -> None:
            async with trio.SSLStream(server, SERVER_TLS, server_side=True) as tls:
                async for chunk in tls:
                    await tls.send_all(chunk)

        talking.start_soon(echo)
        tls = trio.SSLStream(client, CLIENT_TLS, server_hostname="localhost")
        async with tls:
            talking.start_soon(tls.send_all, data)
            received = bytearray()
            while len(received) < len(data):
                received += await tls.receive_some()
            assert received == data


async def test_tricycle_reads_a_stream_by_length_and_by_line() -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery)
        await client.send_all(b"\x00\x05hello")
        buffered = BufferedReceiveStream(server)
        length = int.from_bytes(await buffered.receive_exactly(2), "big")
        assert await buffered.receive_exactly(length) == b"hello"
        await server.send_all("one\nzwölf\n".encode())
        await server.send_eof()
        lines = [line async for line in TextReceiveStream(client, encoding="utf-8")]
        assert lines == ["one\n", "zwölf\n"]
