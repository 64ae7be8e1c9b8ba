"""Go: ``NetConn`` of ``github.com/coder/websocket``, gorilla, gobwas and ``golang.org/x/net``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from trio_wsstream import StreamConfig

from ..support.programs import port_of, running
from .checks import Checks, HalfClose, echo_odd_sizes, echo_through_pumps, sha256
from .conftest import Meet
from .peer import built_peer, serve_streams


class TestNetConn(Checks):
    """It tells only ``EOF`` for 1000 and 1001, and nothing when it has closed itself."""

    half_close = HalfClose(late="failed to write msg: use of closed network connection")
    abrupt_code = None
    answers_while_paused = False
    ping_payload = b"1"  # Its payloads are a counter.

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("go", "coder")

    def told(self, code: int, reason: str) -> tuple[int | None, str | None]:
        return (None, None) if code in (1000, 1001) else (code, reason)

    def told_of_our_answer(self, code: int, reason: str) -> tuple[None, None]:
        return None, None

    @pytest.mark.parametrize("code", [1000, 1001, 1011, 4002])
    async def test_1000_and_1001_are_the_end_for_it(self, meet: Meet, code: int) -> None:
        async with meet("/receive") as met:
            await met.stream.aclose(code)
            report = await met.report()
        assert (report.end == "EOF") is (code in (1000, 1001))

    async def test_without_a_close_there_is_no_end(self, meet: Meet) -> None:
        async with meet("/receive") as met:
            await trio.aclose_forcefully(met.stream)
            report = await met.report()
        assert report.end != "EOF"

    async def test_its_raw_read_takes_messages_of_32_kib(self, meet: Meet) -> None:
        """This `StreamConfig.max_message_size` suits it. It fails a larger message with 1009."""
        data = os.urandom(1_000_003)
        config = StreamConfig(max_message_size=32768)
        async with meet("/receive", limit=1, config=config) as met:
            await met.stream.send_all(data)
            await met.stream.aclose()
            report = await met.report()
        assert report.received_sha256 == sha256(data)
        async with meet("/receive", limit=1) as met:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await met.stream.send_all(data)
            report = await met.report()
        assert report.end.endswith("read limited at 32769 bytes")


class TestGorilla(Checks):
    half_close = HalfClose(late="websocket: close sent")
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("go", "gorilla")

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return code, ""


class TestGobwas(Checks):
    half_close = HalfClose(late="sent")  # It is dropped silently.
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("go", "gobwas")

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return code, ""


class TestXNet(Checks):
    """It answers each Close with 1000, when its program closes, and tells nobody a code."""

    cannot = frozenset({"/fragments", "/ping"})
    half_close = HalfClose(late="sent", received=b"late")
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("go", "xnet")

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return 1000, ""

    def close(self, code: int, reason: str) -> tuple[int, str]:
        return 1000, ""

    def told(self, code: int, reason: str) -> tuple[None, None]:
        return None, None

    def told_of_our_answer(self, code: int, reason: str) -> tuple[None, None]:
        return None, None

    async def test_it_closes_with_a_code_that_is_no_end(self, meet: Meet) -> None:
        """It has only 1000, so its program cannot tell us of an error."""
        async with meet("/close", code=4002) as met:
            await met.stream.send_all(b"end it")
            assert await met.stream.receive_some() == b""


# A tunnel of two pumps, with NetConn; our stream is its other half.


@pytest.fixture
def pumps_command() -> list[str | Path]:
    return built_peer("go", "pumps")


async def test_a_tunnel_of_two_pumps_in_front_of_tcp(pumps_command: list[str | Path]) -> None:
    await echo_through_pumps(pumps_command)


async def test_a_tunnel_of_two_pumps_behind_tcp(pumps_command: list[str | Path]) -> None:
    command = [*pumps_command, "listen"]
    async with (
        serve_streams() as (port, streams),
        running([*command, f"ws://127.0.0.1:{port}/"], "listening on") as pumps,
        await trio.open_tcp_stream("127.0.0.1", await port_of(pumps)) as tcp,
        await streams.receive() as stream,
    ):
        await echo_odd_sizes(stream, tcp)
