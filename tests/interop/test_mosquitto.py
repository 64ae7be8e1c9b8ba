"""Tests with mosquitto's WebSocket listener (libwebsockets). It is a server only.

The tests frame MQTT 3.1.1 by hand. A packet is a type, a length and a body (section 2), and may be
cut into WebSocket messages anywhere (section 6).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from tricycle import BufferedReceiveStream

from trio_wsstream import (
    ConnectionLost,
    StreamClosed,
    WsByteStream,
    open_ws_stream,
)

from ..support.programs import LIMIT, Program, free_port, running
from ..support.transports import AUTHORITY, tls_for
from .peer import need_program

CONNECT, CONNACK, PUBLISH, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x82, 0x90
PINGREQ, PINGRESP, DISCONNECT = 0xC0, 0xD0, 0xE0

# mosquitto needs a listener without WebSocket to start. With IPv6 it listens on every interface.
CONFIGURATION = """
listener 0 {folder}/socket
listener {port} 127.0.0.1
protocol websockets
socket_domain ipv4
{tls}
allow_anonymous true
user root
"""
TLS = """
certfile {folder}/certificate.pem
keyfile {folder}/certificate.pem
"""


class Mqtt:
    """Sends and receives MQTT packets over a stream."""

    def __init__(self, stream: WsByteStream) -> None:
        self.stream = stream
        self._received = BufferedReceiveStream(stream)

    async def send(self, kind: int, body: bytes = b"") -> None:
        await self.stream.send_all(bytes([kind]) + encode_length(len(body)) + body)

    async def receive(self) -> tuple[int, bytes]:
        kind = await self._receive_byte()
        length, shift = 0, 0
        while (digit := await self._receive_byte()) > 127:  # 2.2.3
            length |= (digit & 127) << shift
            shift += 7
        length |= digit << shift
        return kind, await self._received.receive_exactly(length) if length else b""

    async def _receive_byte(self) -> int:
        return (await self._received.receive_exactly(1))[0]

    async def connect(self) -> None:
        """Send CONNECT (3.1): a clean session, 60 s of keepalive, an identifier from the server."""
        await self.send(CONNECT, text(b"MQTT") + b"\x04\x02" + b"\x00\x3c" + text(b""))
        assert await self.receive() == (CONNACK, b"\x00\x00")

    async def subscribe(self) -> None:
        """Send SUBSCRIBE (3.8) for the only topic, with quality of service 0."""
        await self.send(SUBSCRIBE, b"\x00\x01" + text(b"topic") + b"\x00")
        assert await self.receive() == (SUBACK, b"\x00\x01\x00")


def encode_length(length: int) -> bytes:
    digits = bytearray()
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes([*digits, length])


def text(string: bytes) -> bytes:
    """Encode a string (section 1.5.3)."""
    return len(string).to_bytes(2, "big") + string


@pytest.fixture(autouse=True)
def need_mosquitto() -> None:
    need_program("mosquitto")


@asynccontextmanager
async def broker(folder: Path, *, tls: bool = False) -> AsyncGenerator[tuple[Program, str], None]:
    """Run mosquitto, and yield it and its URL."""
    port = free_port()
    certificate = AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem
    certificate.write_to_path(folder / "certificate.pem")
    security = TLS.format(folder=folder) if tls else ""
    configuration = CONFIGURATION.format(folder=folder, port=port, tls=security)
    (folder / "configuration").write_text(configuration)
    command = [need_program("mosquitto"), "-v", "-c", folder / "configuration"]
    async with running(command, "running$") as program:
        yield program, f"{'wss' if tls else 'ws'}://localhost:{port}/"


@asynccontextmanager
async def connected(
    folder: Path, *, tls: bool = False
) -> AsyncGenerator[tuple[Mqtt, Program], None]:
    """Yield a client whose CONNECT is acknowledged, and the broker."""
    async with (
        broker(folder, tls=tls) as (program, url),
        open_ws_stream(url, tls_for(url), subprotocols=["mqtt"]) as stream,
    ):
        assert stream.subprotocol == "mqtt"
        mqtt = Mqtt(stream)
        await mqtt.connect()
        yield mqtt, program


@pytest.mark.parametrize("tls", [False, True])
async def test_a_message_published_to_mosquitto_comes_back(tmp_path: Path, tls: bool) -> None:
    async with connected(tmp_path, tls=tls) as (mqtt, _):
        await mqtt.subscribe()
        for size in (0, 1, 125, 126, 127, 65_536):
            message = text(b"topic") + os.urandom(size)
            await mqtt.send(PUBLISH, message)
            assert await mqtt.receive() == (PUBLISH, message)
        await mqtt.send(PINGREQ)
        assert await mqtt.receive() == (PINGRESP, b"")
        assert 0 < await mqtt.stream.ping() < LIMIT


async def test_mqtt_packets_may_be_cut_anywhere(tmp_path: Path) -> None:
    async with connected(tmp_path) as (mqtt, _):
        await mqtt.subscribe()
        message = text(b"topic") + bytes(range(200))
        for byte in bytes([PUBLISH]) + encode_length(len(message)) + message:
            await mqtt.stream.send_all(bytes([byte]))
        assert await mqtt.receive() == (PUBLISH, message)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going away"), (4002, "bye")])
async def test_mosquitto_answers_our_close_with_the_same_code(
    tmp_path: Path, code: int, reason: str
) -> None:
    async with connected(tmp_path) as (mqtt, program):
        await mqtt.stream.aclose(code, reason)
        await program.says("closed its connection")
    assert mqtt.stream.closed == StreamClosed(code, reason, clean=True, error=None)


async def test_mosquitto_ends_tcp_without_a_close_after_disconnect(tmp_path: Path) -> None:
    async with connected(tmp_path) as (mqtt, _):
        await mqtt.send(DISCONNECT)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await mqtt.stream.receive_some()
    assert isinstance(broken.value.__cause__, ConnectionLost)


async def test_mosquitto_notices_an_abrupt_end(tmp_path: Path) -> None:
    async with connected(tmp_path) as (mqtt, program):
        await trio.aclose_forcefully(mqtt.stream)
        await program.says("closed its connection")


async def test_a_half_close_loses_nothing_that_was_sent_before_it(tmp_path: Path) -> None:
    """mosquitto answers at once. If it is sending something, it drops TCP in the middle of it."""
    async with connected(tmp_path) as (mqtt, program):
        await mqtt.send(PUBLISH, text(b"topic") + bytes(200_000))
        await mqtt.stream.send_eof()
        assert b"".join([chunk async for chunk in mqtt.stream]) == b""
        await program.says(r"Received PUBLISH .*\(200000 bytes\)")
    assert mqtt.stream.closed == StreamClosed(1000, "half-close", clean=True, error=None)
